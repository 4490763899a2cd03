"""`Ledger` and `CommitEngine` one decision at a time; `test_engine_simulation` has them all at
once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from streamer.app import COMMIT_LIMIT_S, limit_s
from streamer.errors import (
    ConfigError,
    DependencyError,
    Fenced,
    InDoubt,
    ProtocolError,
    TemporaryError,
)
from streamer.records import Term
from streamer.sink.engine import (
    CHECKPOINT_EPOCHS,
    COMMIT_ATTEMPTS,
    OTHERS_GRACE_S,
    CommitEngine,
    Sealed,
    iso,
)
from streamer.sink.epoch_set import EpochSet
from streamer.sink.ledger import Ledger
from streamer.sink.storage import Staged
from streamer.wire.checkpoint import decode, encode
from streamer.wire.manifest import FileEntry, Manifest

NOW = 1_750_000_000.0
STALE_S = 300.0


def manifest(
    writer: str,
    epoch: int,
    ranges: Mapping[int, tuple[int, int]],
    previous: str | None = None,
    **changes: Any,
) -> Manifest:
    """Its uuid is ``<writer's last digit><epoch>``, and ``previous`` follows from it."""
    if previous is None and epoch:
        previous = f"{writer[-1]}{epoch - 1}"
    made = Manifest(
        version=1, dataset="cats", writer=writer, epoch=epoch, uuid=f"{writer[-1]}{epoch}", previous_uuid=previous, partitions=dict(ranges),
        skipped={}, counts={}, files=(), claims_position=0, pipeline={}, started=iso(NOW - 100), sealed=iso(NOW - 90),
    )  # fmt: skip
    return replace(made, **changes)


FOUNDED = manifest("w-9", 0, {0: (5, 5), 1: (0, 0)})


# The ledger


def test_the_ledger_tiles_each_partition_and_numbers_each_writer() -> None:
    ledger = Ledger()
    for entry in (
        FOUNDED,
        manifest("w-1", 0, {0: (5, 9)}),
        manifest("w-2", 0, {1: (0, 3)}),
        manifest("w-1", 1, {0: (9, 9), 1: (3, 4)}),
    ):
        ledger.apply(entry)
    assert ledger.tiles == {0: (5, 9), 1: (0, 4)}
    assert [ledger.end(p) for p in (0, 1, 2)] == [9, 4, None]
    assert [ledger.next_epoch(w) for w in ("w-1", "w-2", "w-3")] == [2, 1, 0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            manifest("w-1", 1, {0: (10, 12)}),
            "begins at offset 10 of partition 0, which leaves a gap after what is committed up to 9",
        ),
        (
            manifest("w-1", 1, {0: (8, 12)}),
            "begins at offset 8 of partition 0, which overlaps what is committed up to 9",
        ),
        (
            manifest("w-1", 1, {0: (7, 7), 1: (0, 2)}),
            "begins at offset 7 of partition 0, which overlaps",
        ),
        (
            manifest("w-1", 2, {0: (9, 12)}),
            r"epoch 2 \(12, after 11\) does not follow its epoch 0 \(10\)",
        ),
        (
            manifest("w-1", 0, {0: (9, 12)}, uuid="ab"),
            r"epoch 0 \(ab, after None\) does not follow its epoch 0 \(10\)",
        ),
        (
            manifest("w-1", 1, {0: (9, 12)}, previous="cd"),
            r"epoch 1 \(11, after cd\) does not follow",
        ),
    ],
)
def test_a_log_that_contradicts_itself_ends_the_process(wrong: Manifest, says: str) -> None:
    ledger = Ledger()
    ledger.apply(FOUNDED)
    ledger.apply(manifest("w-1", 0, {0: (5, 9)}))
    with pytest.raises(
        ProtocolError, match=rf"cats\.commits: w-1's .*{says}.*streamer dataset verify"
    ):
        ledger.apply(wrong)


def test_the_first_founding_in_the_log_holds_as_a_whole() -> None:
    """The second one saw a partition that was added in between, and the end of the topic there; it
    starts at 0 for everybody."""
    ledger = Ledger()
    for entry in (FOUNDED, manifest("w-2", 0, {0: (7, 7), 1: (2, 2), 2: (40, 40)})):
        ledger.apply(entry)
    assert ledger.tiles == {0: (5, 5), 1: (0, 0)}
    assert ledger.next_epoch("w-2") == 1


def test_our_own_epoch_counts_at_once_and_is_not_counted_again() -> None:
    ledger = Ledger()
    ledger.apply(FOUNDED)
    ours = manifest("w-1", 0, {0: (5, 9)})
    ledger.commit(ours)
    ledger.apply(manifest("w-2", 0, {1: (0, 3)}))
    ledger.apply(ours)
    assert ledger.tiles == {0: (5, 9), 1: (0, 3)}
    with pytest.raises(ProtocolError, match="does not follow"):
        ledger.apply(ours)


def test_a_replays_ends_come_from_the_first_manifest() -> None:
    ledger = Ledger()
    ledger.apply(replace(FOUNDED, pipeline={"ends": {"0": 50}}))
    ledger.apply(manifest("w-2", 0, {0: (7, 7)}, pipeline={"ends": {"0": 60}}))
    assert ledger.fixed_ends([0, 1]) == {0: 50, 1: 0}
    with pytest.raises(ConfigError, match="no replay's; choose a new name"):
        Ledger().fixed_ends([0])


# The engine


@dataclass
class Kafka:
    """`Transactions` in memory: what it is told to say."""

    log: list[Manifest] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)
    topic: dict[int, tuple[int, int]] = field(default_factory=lambda: {0: (0, 100), 1: (0, 100)})
    first: dict[int, int] = field(default_factory=lambda: {0: 5, 1: 0})
    outcomes: list[bool | Exception] = field(default_factory=list)
    """Of the next transactions; afterwards they are committed."""
    meanwhile: list[tuple[Manifest, dict[int, int]]] = field(default_factory=list)
    """Somebody else's transactions: one between each asking for the offsets and the reading of the
    log."""
    memberships: int = 0
    at: int = 0

    def fence(self) -> None:
        pass

    log_id: str = "L1"

    def resume(self, offset: int) -> None:
        self.at = offset

    def read(self, patience_s: float | None = None) -> Iterator[tuple[int, Manifest]]:
        end = len(self.log)
        while self.at < end:
            self.at += 1
            yield self.at - 1, self.log[self.at - 1]

    def committed(self, partitions: Collection[int]) -> Mapping[int, int | None]:
        answer = {p: self.offsets.get(p) for p in partitions}
        if self.meanwhile:
            entry, offsets = self.meanwhile.pop(0)
            self.log.append(entry)
            self.offsets.update(offsets)
        return answer

    def bounds(self, partitions: Collection[int]) -> Mapping[int, tuple[int, int]]:
        return {p: self.topic[p] for p in partitions}

    def starts(self) -> Mapping[int, int]:
        return self.first

    def membership(self) -> object:
        self.memberships += 1
        return self.memberships

    def commit(
        self,
        entry: Manifest,
        dead_letters: Sequence[Any],
        offsets: Mapping[int, int],
        membership: object,
    ) -> bool:
        outcome = self.outcomes.pop(0) if self.outcomes else True
        if isinstance(outcome, Exception):
            raise outcome
        if outcome:
            self.log.append(entry)
            self.offsets.update(offsets)
        return outcome


@dataclass
class Files:
    """`streamer.sink.engine.Files` in memory."""

    left: list[Staged] = field(default_factory=list)
    public: set[str] = field(default_factory=set)
    discarded: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """uuids of epochs whose files somebody removed."""
    away: bool = False
    looks: int = 0
    kept: list[tuple[str, bytes]] = field(default_factory=list)
    """Checkpoints."""
    listings: int = 0
    root_uri: str = "/out/cats"

    def staged(self) -> list[Staged]:
        return list(self.left)

    def projected(self) -> EpochSet:
        self.listings += 1
        return EpochSet((name[:3], int(name[4:])) for name in self.public)

    def checkpoints(self) -> Iterator[tuple[str, bytes]]:
        yield from reversed(self.kept)

    def write_checkpoint(self, writer: str, data: bytes) -> None:
        self.kept.append((f".checkpoints/{writer}.json", data))

    def is_staged(self, entry: Manifest) -> bool | None:
        self.looks += 1
        return None if self.away else entry.uuid not in self.lost

    def has(self, entry: Manifest) -> bool:
        return entry.uuid not in self.lost

    def is_projected(self, entry: Manifest) -> bool:
        return entry.name in self.public

    def project(self, entry: Manifest) -> None:
        self.public.add(entry.name)
        self.steps.append(f"project {entry.uuid}")

    def discard(self, writer: str, epoch: int, uuid: str) -> None:
        self.discarded.append(uuid)
        self.steps.append(f"discard {uuid}")


class Clock:
    def __init__(self) -> None:
        self.seconds = NOW

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds - NOW

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Bench:
    """An engine of writer w-1 on its fakes."""

    kafka: Kafka = field(default_factory=Kafka)
    files: Files = field(default_factory=Files)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.engine = CommitEngine(
            "cats", "w-1", self.kafka, self.files, self.clock, {"config": "c"}, STALE_S
        )

    def own(self, partition: int, start: int, term: int = 1) -> None:
        self.engine.own(Term(partition, term, 1, start))

    def sealed(
        self, first: int = 5, following: int = 9, term: int = 1, began: float = 0.0
    ) -> Sealed:
        epoch = self.engine.next_epoch
        return Sealed(
            epoch,
            f"e{epoch}",
            {0: (first, following)},
            {0: term},
            {},
            (),
            (),
            0,
            iso(NOW),
            iso(NOW),
            began,
        )


def founded(**kafka: Any) -> Bench:
    bench = Bench(Kafka(log=[FOUNDED], **kafka))
    bench.engine.recover()
    return bench


def begun(**kafka: Any) -> Bench:
    """Something of another partition is decided."""
    bench = Bench(Kafka(log=[FOUNDED, manifest("w-3", 0, {1: (0, 1)})], **kafka))
    bench.engine.recover()
    return bench


# Start


def test_a_start_projects_what_is_committed_and_deletes_what_is_not() -> None:
    files = Files(left=[Staged("w-1", 0, "10", 5.0), Staged("w-1", 1, "dead", 5.0)])
    bench = Bench(Kafka(log=[FOUNDED, manifest("w-1", 0, {0: (5, 9)})]), files)
    bench.engine.recover()
    assert {"w-1-00000000", "w-9-00000000"} <= files.public
    assert files.steps[0] == "discard dead", "what is not committed may fill the disk"
    assert sorted(files.steps[1:]) == ["project 10", "project 90"]
    assert bench.engine.next_epoch == 1


def test_nothing_is_deleted_for_a_folder_of_another_life() -> None:
    files = Files(left=[Staged("w-1", 1, "dead", 5.0)], public={"w-8-00000000"})
    with pytest.raises(ProtocolError, match="another life"):
        Bench(Kafka(log=[FOUNDED]), files).engine.recover()
    assert files.steps == []


@pytest.mark.parametrize("writer", ["w-1", "w-2"])
def test_nothing_is_written_to_a_folder_that_lacks_what_is_committed(writer: str) -> None:
    """Another folder than the dataset's, by a slip in the config; or somebody removed files."""
    files = Files(left=[Staged("w-1", 7, "dead", 5.0)], lost={f"{writer[2:]}0"})
    log = [FOUNDED, manifest(writer, 0, {0: (5, 9)})]
    with pytest.raises(
        ProtocolError, match=f"/out/cats is missing files of epoch {writer}-00000000.*right?"
    ):
        Bench(Kafka(log=log), files).engine.recover()
    assert files.steps == []
    files.public.add(f"{writer}-00000000")
    Bench(Kafka(log=log), files).engine.recover()


def test_a_successors_staging_is_never_taken_for_our_own() -> None:
    """It stages nothing before it has fenced us, so what was there before our own fence is not its."""
    files, kafka = Files(), Kafka(log=[FOUNDED])
    kafka.fence = lambda: files.left.append(Staged("w-1", 1, "successors", 5.0))  # type: ignore[method-assign]
    Bench(kafka, files).engine.recover()
    assert files.discarded == []


@pytest.mark.parametrize(("age_s", "gone"), [(STALE_S * 2 - 1, False), (STALE_S * 2 + 1, True)])
def test_uncommitted_staging_of_others_is_deleted_when_it_can_no_longer_be_committed(
    age_s: float, gone: bool
) -> None:
    files = Files(left=[Staged("w-2", 0, "theirs", age_s)])
    Bench(Kafka(log=[FOUNDED]), files).engine.recover()
    assert files.discarded == ["theirs"] * gone


def test_others_committed_epochs_are_left_to_them_for_a_while_and_then_projected() -> None:
    fresh = manifest("w-2", 0, {1: (0, 3)}, sealed=iso(NOW - 1))
    files = Files(left=[Staged("w-2", 0, "20", 2 * STALE_S + 1)])
    bench = Bench(Kafka(log=[FOUNDED, fresh]), files)
    bench.engine.recover()
    assert "w-2-00000000" not in files.public
    assert files.discarded == []

    bench.clock.sleep(OTHERS_GRACE_S)
    bench.own(0, 5)
    assert isinstance(bench.engine.commit(bench.sealed(), lambda: True), Manifest)
    assert "w-2-00000000" in files.public, "its writer is gone, and nobody starts"


def test_the_last_epoch_of_a_writer_whose_partition_came_to_us_is_projected_with_our_next() -> None:
    bench = founded()
    bench.kafka.log += [manifest("w-2", 0, {0: (5, 9)}), manifest("w-2", 1, {0: (9, 12)})]
    bench.kafka.offsets[0] = 12
    assert bench.engine.assign([0]) == {0: 12}
    bench.own(0, 12)
    assert isinstance(bench.engine.commit(bench.sealed(12, 15), lambda: True), Manifest)
    assert "w-2-00000001" in bench.files.public


# Checkpoints of the commit log


def aged(epochs: int = CHECKPOINT_EPOCHS) -> Bench:
    """A log so long that its reader writes a checkpoint; all is projected."""
    log = [FOUNDED, *(manifest("w-2", n, {1: (n, n + 1)}) for n in range(epochs))]
    bench = Bench(Kafka(log=log), Files(public={m.name for m in log}))
    bench.engine.recover()
    return bench


def test_a_start_reads_what_came_after_the_newest_checkpoint() -> None:
    bench = aged()
    assert len(bench.files.kept) == 1
    late = manifest("w-2", CHECKPOINT_EPOCHS, {1: (CHECKPOINT_EPOCHS, 900)}, sealed=iso(NOW - 50))
    after = Bench(Kafka(log=[*bench.kafka.log, late]), replace(bench.files, listings=0))
    read: list[int] = []
    plain = after.kafka.read
    after.kafka.read = lambda patience_s=None: (read.append(e[0]) or e for e in plain(patience_s))  # type: ignore[method-assign,func-returns-value]
    after.engine.recover()
    assert read == [CHECKPOINT_EPOCHS, CHECKPOINT_EPOCHS + 1], "its last entry, and the new one"
    assert after.files.listings == 0, "10 million names are not listed"
    assert late.name in after.files.public
    assert after.engine.ledger.tiles == {0: (5, 5), 1: (0, 900)}
    assert after.engine.ledger.last == {"w-9": (0, "90"), "w-2": (late.epoch, late.uuid)}


def test_a_writer_leaves_a_checkpoint_from_time_to_time() -> None:
    bench = founded()
    bench.own(0, 5)
    for n in range(CHECKPOINT_EPOCHS):
        assert isinstance(bench.engine.commit(bench.sealed(5 + n, 6 + n), lambda: True), Manifest)
        bench.kafka.log.append(manifest("w-2", n, {1: (n, n + 1)}))
    (kept,) = bench.files.kept
    found = decode(kept[1])
    assert found.tiles == {0: (5, 5 + CHECKPOINT_EPOCHS), 1: (0, CHECKPOINT_EPOCHS - 1)}
    assert [m.uuid for m in found.waiting] == [f"2{CHECKPOINT_EPOCHS - 2}"], "its owner is at it"


def test_no_checkpoint_is_waited_for_where_a_transaction_stays_open() -> None:
    bench = founded()
    bench.own(0, 5)
    read = bench.kafka.read

    def hanging(patience_s: float | None = None) -> Iterator[tuple[int, Manifest]]:
        if patience_s is not None:
            raise TemporaryError("open")
        return read()

    bench.kafka.read = hanging  # type: ignore[method-assign]
    for n in range(CHECKPOINT_EPOCHS):
        assert isinstance(bench.engine.commit(bench.sealed(5 + n, 6 + n), lambda: True), Manifest)
    assert bench.files.kept == []


def test_a_checkpoint_that_cannot_be_written_costs_nothing() -> None:
    bench = founded()

    def refuse(_writer: str, _data: bytes) -> None:
        raise DependencyError("the bucket is gone")

    bench.files.write_checkpoint = refuse  # type: ignore[method-assign]
    bench.own(0, 5)
    for n in range(CHECKPOINT_EPOCHS):
        assert isinstance(bench.engine.commit(bench.sealed(5 + n, 6 + n), lambda: True), Manifest)


def test_a_successor_that_is_seen_at_a_checkpoint_ends_this_process() -> None:
    bench = founded()
    bench.own(0, 5)
    for n in range(CHECKPOINT_EPOCHS - 1):
        assert isinstance(bench.engine.commit(bench.sealed(5 + n, 6 + n), lambda: True), Manifest)
    last = CHECKPOINT_EPOCHS - 1
    project = bench.files.project

    def late(entry: Manifest) -> None:
        project(entry)
        bench.kafka.log.append(manifest("w-1", last + 1, {1: (0, 3)}, previous=entry.uuid))

    bench.files.project = late  # type: ignore[method-assign]
    with pytest.raises(Fenced, match="another process runs under the writer name 'w-1'"):
        bench.engine.commit(bench.sealed(5 + last, 6 + last), lambda: True)
    assert bench.files.kept == []


@pytest.mark.parametrize("wrong", ["damaged", "foreign", "made again"])
def test_a_checkpoint_that_is_not_this_logs_is_passed_over(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = aged()
    path, data = bench.files.kept[0]
    other = replace(decode(data), dataset="dogs")
    bench.files.kept = [(path, data[:-9] if wrong == "damaged" else encode(other))]
    if wrong == "made again":
        bench.files.kept = [(path, data)]
    after = Bench(Kafka(log=bench.kafka.log), bench.files)
    after.kafka.log_id = "L2" if wrong == "made again" else "L1"
    after.engine.recover()
    assert after.engine.ledger.tiles == bench.engine.ledger.tiles
    assert "a checkpoint of the commit log is not used" in caplog.text


def test_a_log_that_lost_entries_ends_the_start() -> None:
    bench = aged()
    log = [*bench.kafka.log[:-1], replace(bench.kafka.log[-1], uuid="ee")]
    after = Bench(Kafka(log=log), replace(bench.files, steps=[]))
    with pytest.raises(ProtocolError, match=r"offset 256 is not the epoch 2255 .* lost entries"):
        after.engine.recover()
    assert after.files.steps == []


# Assign


def test_partitions_start_where_the_log_ends_and_added_ones_at_0() -> None:
    bench = founded(offsets={1: 0}, topic=dict.fromkeys(range(3), (0, 100)))
    assert bench.engine.assign([0, 1, 2]) == {0: 5, 1: 0, 2: 0}


def test_offsets_that_the_brokers_forgot_are_taken_from_the_log() -> None:
    bench = founded()
    bench.kafka.log.append(manifest("w-2", 0, {0: (5, 30)}))
    assert bench.engine.assign([0]) == {0: 30}


def test_the_first_replica_founds_the_dataset() -> None:
    bench = Bench()
    bench.engine.recover()
    assert bench.engine.assign([0]) == {0: 5}
    (first,) = bench.kafka.log
    assert first.partitions == {0: (5, 5), 1: (0, 0)}
    assert (first.epoch, first.files, bench.kafka.offsets) == (0, (), {})
    assert bench.files.public == {"w-1-00000000"}
    assert bench.engine.next_epoch == 1
    assert bench.engine.assign([1]) == {1: 0}
    assert len(bench.kafka.log) == 1


def test_offsets_without_a_commit_log_end_the_process() -> None:
    """The log was deleted: what those offsets stand for is nowhere."""
    bench = Bench(Kafka(offsets={1: 30}))
    bench.engine.recover()
    with pytest.raises(
        ProtocolError, match=r"partition 1: .* committed at offset 30, but cats.commits holds no"
    ):
        bench.engine.assign([0, 1])
    assert bench.kafka.log == []


def test_of_two_foundings_the_first_in_the_log_holds() -> None:
    bench = Bench()
    bench.engine.recover()
    bench.kafka.starts = lambda: bench.kafka.log.append(FOUNDED) or {0: 8, 1: 3}  # type: ignore[method-assign, func-returns-value]
    assert bench.engine.assign([0, 1]) == {0: 5, 1: 0}
    assert bench.engine.next_epoch == 1


def test_a_founding_that_is_aborted_every_time_publishes_nothing() -> None:
    bench = Bench(Kafka(outcomes=[False] * COMMIT_ATTEMPTS))
    bench.engine.recover()
    with pytest.raises(
        TemporaryError,
        match=r"cats\.commits: the dataset's first manifest was aborted 5 times\. Start again",
    ):
        bench.engine.assign([0])
    assert bench.files.public == set()


def test_a_last_owner_that_commits_between_the_two_looks_is_waited_for() -> None:
    bench = founded(offsets={0: 5}, meanwhile=[(manifest("w-2", 0, {0: (5, 9)}), {0: 9})])
    assert bench.engine.assign([0]) == {0: 9}


def test_a_successor_that_committed_under_our_name_ends_this_process() -> None:
    bench = founded()
    bench.own(0, 5)
    assert isinstance(bench.engine.commit(bench.sealed(), lambda: True), Manifest)
    bench.engine.assign([1])  # our own epoch comes back
    bench.kafka.log.append(manifest("w-1", 1, {1: (0, 3)}, previous="e0"))
    with pytest.raises(Fenced, match="another process runs under the writer name 'w-1'"):
        bench.engine.assign([1])


@pytest.mark.parametrize(
    ("offset", "topic", "says"),
    [
        (
            7,
            (0, 100),
            r"partition 0: the group streamer\.cats is committed at offset 7, but the manifests end at 5: .*--to-offset 5",
        ),
        (
            5,
            (0, 4),
            r"partition 0: the topic ends at offset 4, before 5 .* made again\. Use a new dataset name",
        ),
        (
            5,
            (8, 100),
            r"partition 0: the offsets 5 to 7 expired .* \(the topic begins at 8\)\. Whether they held records, .* is unknown.*longer retention.*streamer seek",
        ),
    ],
)
def test_what_contradicts_the_log_ends_the_process_with_place_and_fix(
    offset: int, topic: tuple[int, int], says: str
) -> None:
    bench = begun(offsets={0: offset}, topic={0: topic})
    with pytest.raises(ProtocolError, match=says):
        bench.engine.assign([0])


def test_what_expired_may_be_skipped_up_to_the_limit() -> None:
    assert founded(offsets={0: 5}, topic={0: (8, 100)}).engine.assign([0]) == {0: 5}
    bench = begun(offsets={0: 5}, topic={0: (8, 100)})
    bench.engine._skip_limit = lambda partition: 8
    assert bench.engine.assign([0]) == {0: 5}
    assert bench.engine.begins[0] == 8
    assert bench.engine.past_expired(0, 6) == 8
    bench.engine._skip_limit = lambda partition: 7
    with pytest.raises(ProtocolError, match="the offsets 5 to 7 expired"):
        bench.engine.assign([0])
    with pytest.raises(ProtocolError, match="the offsets 6 to 7 expired"):
        bench.engine.past_expired(0, 6)


def test_a_contradiction_that_is_gone_at_the_next_look_is_none() -> None:
    """A process that stood still between two questions: the others committed, and retention took
    it."""
    bench = founded(offsets={0: 5}, topic={0: (30, 100)})
    bench.kafka.meanwhile = [
        (manifest("w-2", 0, {1: (0, 1)}), {}),
        (manifest("w-2", 1, {0: (5, 30)}), {0: 30}),
    ]
    assert bench.engine.assign([0]) == {0: 30}


# Commit


def test_a_committed_epoch_names_the_one_before_it_and_becomes_public() -> None:
    bench = founded()
    bench.own(0, 5)
    first = bench.engine.commit(bench.sealed(5, 9), lambda: True)
    second = bench.engine.commit(bench.sealed(9, 12), lambda: True)
    assert first is not None
    assert second is not None
    assert (first.epoch, first.previous_uuid, second.epoch, second.previous_uuid) == (
        0,
        None,
        1,
        "e0",
    )
    assert bench.kafka.offsets == {0: 12}
    assert {"w-1-00000000", "w-1-00000001"} <= bench.files.public
    assert bench.engine.assign([0]) == {0: 12}, "reading our own manifests back changes nothing"


@pytest.mark.parametrize(
    "why",
    [
        "a callback was faster",
        "the term is over",
        "the partition is not ours",
        "somebody else committed",
        "the first epoch is there already",
    ],
)
def test_an_epoch_that_is_not_ours_any_more_is_never_offered_to_kafka(why: str) -> None:
    bench = founded(outcomes=[AssertionError("a transaction was begun")])
    bench.own(0, 5)
    sealed = bench.sealed()
    if why == "the term is over":
        bench.own(0, 5, term=2)
    elif why == "the partition is not ours":
        bench.engine.disown([0])
    elif why == "somebody else committed":
        bench.kafka.offsets[0] = 7
    elif why == "the first epoch is there already":  # and the brokers forgot the offset
        bench.kafka.log.append(manifest("w-2", 0, {0: (5, 9)}))
        bench.engine.assign([1])
    assert bench.engine.commit(sealed, lambda: why != "a callback was faster") == "stale"
    assert bench.files.public == {"w-9-00000000"}


def test_the_membership_is_asked_for_before_the_callbacks_are_served() -> None:
    """What the group does after that look is refused by the broker, which knows this membership to
    be over."""
    bench = founded()
    bench.own(0, 5)
    asked: list[int] = []
    bench.engine.commit(bench.sealed(), lambda: asked.append(bench.kafka.memberships) is None)
    assert asked == [1]


def test_an_aborted_transaction_is_tried_again_with_a_new_look() -> None:
    bench = founded(outcomes=[False, False])
    bench.own(0, 5)
    looks: list[float] = []
    assert isinstance(
        bench.engine.commit(bench.sealed(), lambda: looks.append(bench.clock.seconds) is None),
        Manifest,
    )
    assert len(looks) == 3
    assert bench.kafka.memberships == 3

    bench.kafka.outcomes = [False] * COMMIT_ATTEMPTS
    assert bench.engine.commit(bench.sealed(9, 12), lambda: True) == "aborted"
    assert bench.kafka.offsets == {0: 9}


def test_an_epoch_whose_files_are_gone_is_dropped_before_its_transaction() -> None:
    """Another host deleted them, for example: committed, they would be records without files."""
    bench = founded(outcomes=[False, AssertionError("a transaction was begun")])
    bench.own(0, 5)
    sealed = bench.sealed()
    bench.clock.sleep = lambda _s: bench.files.lost.add(sealed.uuid)  # type: ignore[method-assign]
    assert bench.engine.commit(sealed, lambda: True) == "stale", "after the first, aborted one"
    assert bench.files.looks == 2
    assert bench.kafka.offsets == {}


def test_an_epoch_is_neither_committed_nor_dropped_while_the_storage_is_away() -> None:
    bench = founded()
    bench.own(0, 5)
    sealed = bench.sealed()
    bench.files.away = True
    assert bench.engine.commit(sealed, lambda: True) is None
    assert (bench.kafka.memberships, bench.files.discarded) == (0, [])
    bench.files.away = False
    assert isinstance(bench.engine.commit(sealed, lambda: True), Manifest)


def test_nothing_is_committed_while_the_last_epoch_is_on_its_way_to_its_public_names() -> None:
    """A checkpoint would hide it from a start, were both of them unprojected."""
    waiting: list[Any] = []
    bench = founded()
    bench.engine = CommitEngine(
        "cats", "w-1", bench.kafka, bench.files, bench.clock, {}, STALE_S,
        begin=lambda work: waiting.append(work) or (lambda: work not in waiting),
    )  # fmt: skip
    bench.kafka.at = 0
    bench.engine.recover()
    bench.own(0, 5)
    assert isinstance(bench.engine.commit(bench.sealed(5, 9), lambda: True), Manifest)
    assert not bench.engine.settle()
    assert "w-1-00000000" not in bench.files.public
    with pytest.raises(ProtocolError, match="this is a bug: an epoch is committed before"):
        bench.engine.commit(bench.sealed(9, 12), lambda: True)
    waiting[0]()
    waiting.clear()
    assert bench.engine.settle()
    assert "w-1-00000000" in bench.files.public
    assert isinstance(bench.engine.commit(bench.sealed(9, 12), lambda: True), Manifest)


def test_an_epoch_in_doubt_is_neither_projected_nor_deleted() -> None:
    bench = founded(outcomes=[TemporaryError("no answer")])
    bench.own(0, 5)
    with pytest.raises(TemporaryError):
        bench.engine.commit(bench.sealed(), lambda: True)
    assert bench.files.public == {"w-9-00000000"}
    assert bench.files.discarded == []


def test_an_epoch_that_others_may_have_taken_for_abandoned_is_not_committed() -> None:
    bench = founded(outcomes=[AssertionError("a transaction was begun")])
    bench.own(0, 5)
    bench.clock.sleep(STALE_S + 1)
    assert bench.engine.commit(bench.sealed(began=0.0), lambda: True) == "late"
    with pytest.raises(
        TemporaryError,
        match=r"epoch 0 was opened 301 s ago .* more than 300 s, like the one before: .* read again at the next start; .*epoch_records",
    ):
        bench.engine.commit(bench.sealed(began=0.0), lambda: True)


def test_one_that_is_late_now_and_then_ends_nothing() -> None:
    """Brokers were away: it is read again."""
    bench = founded()
    bench.own(0, 5)
    bench.clock.sleep(STALE_S + 1)
    for first in (5, 9):
        assert (
            bench.engine.commit(bench.sealed(first, first + 4, began=0.0), lambda: True) == "late"
        )
        again = bench.sealed(first, first + 4, began=bench.clock.monotonic())
        assert isinstance(bench.engine.commit(again, lambda: True), Manifest)


@pytest.mark.parametrize("committed", [True, False])
def test_an_epoch_in_doubt_is_looked_up_in_the_log(committed: bool) -> None:
    bench = founded(outcomes=[InDoubt("no answer")])
    bench.own(0, 5)
    commit, fenced = bench.kafka.commit, []

    def transact(entry: Manifest, *rest: Any) -> bool:
        if committed and not bench.kafka.log[1:]:
            bench.kafka.log.append(entry)
            bench.kafka.offsets[0] = 9
        return commit(entry, *rest)

    bench.kafka.commit = transact  # type: ignore[method-assign]
    bench.kafka.fence = lambda: fenced.append(len(bench.kafka.log))  # type: ignore[method-assign]
    found = bench.engine.commit(bench.sealed(), lambda: True)
    assert fenced == [1 + committed], "before the log is read"
    assert bench.files.discarded == []
    if committed:
        assert isinstance(found, Manifest)
        assert found.name in bench.files.public
        assert bench.engine.next_epoch == 1
        assert isinstance(bench.engine.commit(bench.sealed(9, 12), lambda: True), Manifest)
    else:
        assert found == "aborted"
        assert bench.files.public == {"w-9-00000000"}
        assert bench.engine.next_epoch == 0


def test_an_epoch_in_doubt_under_a_name_that_another_process_took() -> None:
    bench = founded(outcomes=[InDoubt("no answer")])
    bench.own(0, 5)
    bench.kafka.fence = lambda: bench.kafka.log.append(manifest("w-1", 0, {0: (5, 7)}))  # type: ignore[method-assign]
    with pytest.raises(Fenced, match="another process runs under the writer name 'w-1'"):
        bench.engine.commit(bench.sealed(), lambda: True)


def test_an_epoch_out_of_turn_is_a_bug() -> None:
    bench = founded()
    with pytest.raises(ProtocolError, match="this is a bug: epoch 3 is sealed where 0 is due"):
        bench.engine.commit(replace(bench.sealed(), epoch=3), lambda: True)


def test_the_transaction_and_every_projection_are_limited_one_by_one() -> None:
    """A copy of gigabytes may take longer than a transaction, and what a callback does while it is
    served belongs to neither."""
    bench = founded()
    inside: list[str] = []
    steps: list[tuple[str, ...]] = []

    @contextmanager
    def stage(name: str, entry: Manifest) -> Iterator[None]:
        inside.append(f"{name} {entry.uuid}")
        steps.append(tuple(inside))
        yield
        inside.pop()

    bench.engine = CommitEngine(
        "cats", "w-1", bench.kafka, bench.files, bench.clock, {}, STALE_S, stage=stage
    )
    bench.kafka.at = 0
    bench.engine.recover()
    bench.kafka.log.append(manifest("w-2", 0, {1: (0, 3)}))
    bench.engine.assign([0])
    bench.own(0, 5)
    bench.engine.commit(bench.sealed(), lambda: inside == [])
    assert steps == [("commit e0",), ("project e0",), ("project 20",)]


def test_the_budget_of_a_projection_grows_with_its_bytes() -> None:
    large = manifest(
        "w-1",
        0,
        {},
        files=(FileEntry("a.tar", 15_000_000_000, "", 1), FileEntry("b.tar", 5_000_000_000, "", 1)),
    )
    assert limit_s("commit", large, 600) == COMMIT_LIMIT_S
    assert limit_s("project", large, 600) == COMMIT_LIMIT_S + 600 + 2000
    assert limit_s("project", FOUNDED, 60) == COMMIT_LIMIT_S + 60
