"""Which record is set aside, and after how many ends; whole worlds are in tests/sink."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.decode.stopwatch import Overrun, Stopwatch
from streamer.errors import DependencyError
from streamer.quarantine import DEATHS, EMPTY, OVERRUNS, WINDOW, Quarantine, Trial
from streamer.wire.checked import Unusable
from streamer.wire.journal import Journal, Reading, decode, encode

LENGTH = 150
EPOCH = 40


class Folder:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refuses = False

    def journals(self) -> Iterable[tuple[str, bytes]]:
        self._check()
        return list(self.files.items())

    def write_journal(self, writer: str, data: bytes) -> None:
        self._check()
        self.files[writer] = data

    def _check(self) -> None:
        if self.refuses:
            raise DependencyError("the storage is away")


class World:
    """Partitions with `LENGTH` records each, some of which end the process that has them in its
    line."""

    def __init__(
        self,
        partitions: int,
        poison: set[tuple[int, int]],
        length: int = LENGTH,
        epoch: int = EPOCH,
    ) -> None:
        self.length, self.epoch = length, epoch
        self.folder = Folder()
        self.ends = dict.fromkeys(range(partitions), length)
        self.committed = dict.fromkeys(range(partitions), 0)
        self.poison = poison
        self.condemned: set[tuple[int, int]] = set()
        self.trials: list[Trial] = []

    def live(self, writer: str) -> bool:
        """One process; True if it came to the end."""
        quarantine = Quarantine(writer, self.folder)
        quarantine.opened(self.committed, self.ends)
        while quarantine.is_open:
            trial = quarantine.proceed(self.committed.get)
            if trial is not None:
                self.trials.append(trial)
                assert trial.first == self.committed[trial.partition]
                end = min(trial.end, self.length)
                if not self._pass(quarantine, trial.partition, end):
                    return False
                quarantine.sealed()
                self.committed[trial.partition] = end
        while any(at < self.length for at in self.committed.values()):
            for partition, at in self.committed.items():  # an epoch has a share of each
                if not self._pass(quarantine, partition, min(at + self.epoch, self.length)):
                    return False
            self.committed = {
                p: min(at + self.epoch, self.length) for p, at in self.committed.items()
            }
        quarantine.closed()
        return True

    def _pass(self, quarantine: Quarantine, partition: int, end: int) -> bool:
        for offset in range(self.committed[partition], end):
            if quarantine.condemns(partition, offset):
                self.condemned.add((partition, offset))
            elif (partition, offset) in self.poison:
                return False
        return True


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1)), max_size=5),
    st.lists(st.sampled_from(["w0", "w1", "w2"]), min_size=80, max_size=80),
)
def test_whoever_reads_next_every_poison_is_set_aside_and_nothing_else(
    poison: set[tuple[int, int]], writers: list[str]
) -> None:
    world = World(3, poison)
    ends = next(n for n, writer in enumerate(writers) if world.live(writer))
    assert world.condemned == poison
    assert ends <= len(poison) * (DEATHS + 5), "with progress, without, windows, alone"


@pytest.mark.parametrize("depth", [100, 9_999, 49_000])
def test_a_poison_that_lies_deep_costs_a_dozen_ends(depth: int) -> None:
    """A process reads tens of thousands of records before its first commit."""
    world = World(1, {(0, depth)}, 50_000, 50_000)
    ends = next(n for n in range(20) if world.live("w"))
    assert world.condemned == world.poison
    assert ends <= 10


def test_a_process_that_ends_with_a_word_leaves_no_suspicion() -> None:
    world = World(1, {(0, 0)})
    for _ in range(3):
        quarantine = Quarantine("w", world.folder)
        quarantine.opened(world.committed, world.ends)
        assert not quarantine.is_open
        quarantine.closed()


def test_what_ends_a_process_after_the_seal_is_no_record() -> None:
    world = World(1, set())
    for _ in range(2 * DEATHS):
        quarantine = Quarantine("w", world.folder)
        quarantine.opened({0: 0}, {0: LENGTH})
        while quarantine.is_open and quarantine.proceed({0: 0}.get):
            quarantine.sealed()
            break  # the commit hangs, and the watchdog ends the process
        assert not quarantine.condemns(0, 0)


def test_a_partition_without_new_records_is_not_suspected() -> None:
    folder = Folder()
    Quarantine("w", folder).opened({0: 7}, {0: 7})
    again = Quarantine("w", folder)
    again.opened({0: 7}, {0: 7})
    assert not again.is_open


def test_a_partition_that_begins_again_in_the_same_process_is_not_suspected() -> None:
    quarantine = Quarantine("w", Folder())
    quarantine.opened({0: 7}, {0: 9})
    quarantine.opened({0: 7}, {0: 9})
    assert not quarantine.is_open


def test_an_assignment_during_a_trial_does_not_end_it() -> None:
    folder = Folder()
    Quarantine("other", folder).opened({0: 5}, {0: 900})
    quarantine = Quarantine("w", folder)
    quarantine.opened({0: 5}, {0: 900})
    assert quarantine.proceed({0: 5}.get) == Trial(0, 5, 5 + WINDOW)
    quarantine.opened({1: 3}, {1: 900})
    assert quarantine.is_open
    assert quarantine.proceed({0: 5, 1: 3}.get) == Trial(0, 5, 5 + WINDOW), "nothing was read of it"
    assert quarantine.proceed({0: 6, 1: 3}.get) == Trial(0, 6, 5 + WINDOW), "the rest of it"
    assert decode(folder.files["w"]).readings.keys() == {0}, "nothing else is in the line"
    quarantine.opened({0: 9}, {0: 100})
    assert quarantine.proceed({0: 9, 1: 3}.get) == Trial(0, 9, 5 + WINDOW), "it began again"
    after = Trial(0, 5 + WINDOW, 5 + 3 * WINDOW)
    assert quarantine.proceed({0: 5 + WINDOW, 1: 3}.get) == after, "larger ones, up to the end"
    assert quarantine.proceed({0: 100, 1: 3}.get) is None
    assert decode(folder.files["w"]).readings.keys() == {0, 1}


def test_an_image_that_takes_too_long_again_is_set_aside_wherever_it_is() -> None:
    folder = Folder()
    for n in range(OVERRUNS):
        quarantine = Quarantine(f"w{n}", folder)
        quarantine.opened({0: 0}, {0: LENGTH})
        assert not quarantine.condemns(0, 99)
        quarantine.overran(0, 99)
    quarantine = Quarantine("w9", folder)
    quarantine.opened({0: 0}, {0: LENGTH})
    assert quarantine.condemns(0, 99)


def test_a_partition_on_hold_is_tried_when_it_is_read_again() -> None:
    folder = Folder()
    Quarantine("other", folder).opened({0: 5}, {0: 20})
    quarantine = Quarantine("w", folder)
    quarantine.opened({0: 5, 1: 0}, {0: 20, 1: 10})
    assert quarantine.proceed({0: 5, 1: 0}.get, on_hold={0}) is None
    assert decode(folder.files["w"]).readings == {0: Reading(5), 1: Reading(0)}
    assert quarantine.reopen()
    assert quarantine.proceed({0: 5, 1: 0}.get) == Trial(0, 5, 5 + WINDOW)


def test_a_trial_of_which_nothing_comes_ends() -> None:
    folder = Folder()
    Quarantine("other", folder).opened({0: 5}, {0: 20})
    quarantine = Quarantine("w", folder)
    quarantine.opened({0: 5}, {0: 20})
    trials = iter(lambda: quarantine.proceed({0: 5}.get), None)
    assert len(list(trials)) == EMPTY


def test_what_overran_elsewhere_or_long_ago_is_nobodys_business() -> None:
    folder = Folder()
    folder.files["x"] = encode(Journal({}, {(5, 100): 9, (0, 3): 9}))
    quarantine = Quarantine("w", folder)
    quarantine.opened({0: 7}, {0: 20})
    assert decode(folder.files["w"]).overruns == {}
    assert not quarantine.condemns(0, 3)
    quarantine.opened({5: 100}, {5: 200})
    assert quarantine.condemns(5, 100)


def test_storage_that_refuses_and_files_that_are_damaged_only_cost_time() -> None:
    folder = Folder()
    Quarantine("w", folder).opened({0: 0, 1: 0}, {0: LENGTH, 1: LENGTH})
    folder.files["another"] = b"{"
    before = dict(folder.files)
    folder.refuses = True
    quarantine = Quarantine("w", folder)
    quarantine.opened({0: 0}, {0: LENGTH})
    folder.refuses = False
    quarantine.released([0])
    assert folder.files == before, "what could not be read is not written over"
    quarantine.opened({1: 0}, {1: LENGTH})
    assert quarantine.proceed({1: 0}.get) == Trial(1, 0, WINDOW)


def test_the_journal_is_what_was_written() -> None:
    journal = Journal({3: Reading(7, 1, 70, 2), 1: Reading(5)}, {(3, 9): 1})
    data = encode(journal)
    assert decode(data) == journal
    with pytest.raises(Unusable):
        decode(data.replace(b"70", b"71"))


def test_a_stopwatch_counts_looks_and_not_seconds() -> None:
    watch = Stopwatch()
    with watch.measure(1, 17):
        assert watch.look(2) is None
        assert watch.look(2) is None
        found = watch.look(2)
        assert isinstance(found, Overrun)
        assert found[:2] == (1, 17)
    assert watch.look(0) is None
