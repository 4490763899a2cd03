"""The epoch writer thread on real storage, and the fuse."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from sink_data import Maker

import streamer.sink.writer
from streamer.config import Config
from streamer.errors import DependencyError, ProtocolError
from streamer.flow.channel import Channel
from streamer.flow.item import Decided, Fence, Run, Span
from streamer.flow.worker import Failure, Worker
from streamer.ops.metrics import Metrics
from streamer.records import DecidedBatch, Decision, Term
from streamer.sink.epoch import EpochWriter
from streamer.sink.storage import Storage, staging_path
from streamer.sink.writer import MAX_SEALED, EpochThread, Finished

FIRST = Run(1, 7)
WAIT_S = 20.0


class Bench:
    """The thread, what feeds it, and where it writes. Partition p is owned from offset 0 under the
    term 10 + p."""

    def __init__(self, root: Path, **output: object) -> None:
        limits = {"path": str(root), "epoch_records": 40, "seal_after": "1h", **output}
        self.config = Config.model_validate(
            {
                "dataset": "cats",
                "writer": "w-0",
                "kafka": {"bootstrap_servers": "nowhere", "topic": "photos"},
                "embedder": {"type": "timm", "model": "none"},
                "output": limits,
                "dead_letters": {"max_ratio": 1},
            }
        )
        self.storage = Storage(str(root), "cats")
        self.maker = Maker(self.storage)
        self.fence = Fence(FIRST)
        self.failure = Failure()
        self.decided: Channel[Decided] = Channel("write", 100)
        self.thread = EpochThread(
            self.config,
            self.decided,
            self.fence,
            self._open,
            lambda: 99,
            {},
            self.failure,
            Metrics(),
            lambda: None,
        )
        self.worker = Worker("writer", self.thread.run, self.failure)
        self.worker.start()

    def _open(self, epoch: int, uuid: str) -> EpochWriter:
        return EpochWriter(
            self.storage, dataset="cats", writer="w-0", epoch=epoch, uuid=uuid, topic="photos", dim=16, score_names=("aesthetic",),
            pipeline="0123456789abcdef", limits=self.config.output, fingerprints={},
        )  # fmt: skip

    def feed(
        self,
        *sizes: tuple[int, int],
        marks: Mapping[int, int] = {},
        flush: int = 0,
        skips: Mapping[int, tuple[tuple[int, int], ...]] = {},
        terms: Mapping[int, Term] | None = None,
    ) -> None:
        """One batch of (partition, records) each; ``marks`` and ``flush`` come with the last one."""
        batches = [self.maker.batch(p, n) for p, n in sizes] or [self.maker.batch(0, 0)]
        owned = {p: Term(p, 10 + p, 1, 0) for p in range(3)} if terms is None else terms
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            span = Span(self.fence.run, owned, marks if last else {}, flush if last else 0, skips)
            self.decided.put(Decided(span, batch))

    def next(self) -> Finished:
        finished = self.thread.take(WAIT_S)
        assert finished is not None, self.failure.raise_if_any()
        return finished

    def staged(self) -> set[int]:
        return {s.epoch for s in self.storage.staged()}

    def settle(self) -> None:
        """Until the thread has seen everything that was put."""
        deadline = time.monotonic() + WAIT_S
        while len(self.decided) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)

    def stop(self) -> None:
        self.failure.stop.set()
        assert self.worker.join(WAIT_S)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()


def test_an_epoch_is_sealed_when_it_has_its_records_and_the_next_goes_on_there(
    bench: Bench,
) -> None:
    bench.feed((0, 16), (1, 16), (0, 16), (1, 40))
    first, second = bench.next(), bench.next()
    assert first.sealed is not None
    assert second.sealed is not None
    assert (first.run, first.flush) == (FIRST, 0)
    assert (first.sealed.epoch, second.sealed.epoch) == (7, 8)
    assert first.sealed.ranges == {0: (0, 32), 1: (0, 16)}
    assert first.sealed.terms == {0: 10, 1: 11}
    assert second.sealed.ranges == {1: (16, 56)}
    assert sum(first.sealed.counts.values()) == first.tally.records == 48
    assert first.sealed.claims_position == 99
    for file in first.sealed.files:
        bench.storage.check_staged("w-0", 7, first.sealed.uuid, file)
    assert {f.path.partition("/")[0] for f in first.sealed.files} == {"metadata", "shards"}
    assert bench.storage.files("metadata") == bench.storage.files("shards") == [], (
        "nothing is public before the commit"
    )


def test_an_epoch_is_sealed_when_it_is_old_enough_whatever_the_wall_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = iter(range(1_750_000_000, 0, -3600))
    monkeypatch.setattr(
        streamer.sink.writer,
        "time",
        SimpleNamespace(time=lambda: float(next(wall)), monotonic=time.monotonic),
    )
    bench = Bench(tmp_path, seal_after="300ms")
    began = time.monotonic()
    bench.feed((0, 3))
    sealed = bench.next().sealed
    bench.stop()
    assert sealed is not None
    assert sealed.ranges == {0: (0, 3)}
    assert 0.3 <= time.monotonic() - began < WAIT_S
    assert began <= sealed.began <= time.monotonic()


def test_a_flush_is_answered_with_what_there_is_or_with_nothing(bench: Bench) -> None:
    bench.feed(flush=1)
    answer = bench.next()
    assert (answer.run, answer.sealed, answer.tally.records, answer.flush) == (FIRST, None, 0, 1)
    bench.feed((0, 5), flush=2)
    answer = bench.next()
    assert answer.flush == 2
    assert answer.sealed is not None
    assert answer.sealed.ranges == {0: (0, 5)}


def test_a_mark_moves_the_end_over_what_will_never_be_decided(bench: Bench) -> None:
    bench.feed((0, 5), marks={0: 7, 1: 0}, flush=1)
    sealed = bench.next().sealed
    assert sealed is not None
    assert sealed.ranges == {0: (0, 7), 1: (0, 0)}

    bench.feed(marks={0: 7}, flush=2)
    assert bench.next().sealed is None, "nothing new: no epoch"

    bench.feed(marks={0: 8}, flush=3)
    sealed = bench.next().sealed
    assert sealed is not None
    assert (sealed.ranges, sealed.files, sealed.counts) == ({0: (7, 8)}, (), {})


def test_what_is_skipped_is_named_and_the_end_moves_past_it(bench: Bench) -> None:
    bench.feed((0, 5))
    bench.feed(skips={0: ((5, 9), (9, 12)), 1: ((0, 3),)}, flush=1)
    sealed = bench.next().sealed
    assert sealed is not None
    assert sealed.ranges == {0: (0, 12), 1: (0, 3)}
    assert sealed.skipped == {0: ((5, 9), (9, 12)), 1: ((0, 3),)}

    bench.feed(skips={0: ((12, 20),)}, terms={}, flush=2)
    assert bench.next().sealed is None, "it is somebody else's"


def test_a_mark_of_a_partition_that_is_not_owned_any_more_is_nothing(bench: Bench) -> None:
    bench.feed(marks={2: 50}, terms={}, flush=1)
    assert bench.next().sealed is None


def test_a_new_run_forgets_the_open_epoch_its_number_and_its_positions(bench: Bench) -> None:
    bench.feed((0, 16))
    bench.settle()
    assert bench.staged() == {7}
    old = bench.fence.run
    bench.fence.run = Run(2, 7)
    bench.settle()
    assert bench.staged() == set()

    bench.decided.put(Decided(Span(old, {0: Term(0, 10, 1, 0)}, {}, 5), bench.maker.batch(0, 4)))
    bench.maker.next[0] = 3
    bench.feed((0, 4), flush=1, terms={0: Term(0, 77, 1, 3)})
    answer = bench.next()
    assert answer.flush == 1, "the old run's flush is not answered"
    assert answer.sealed is not None
    assert (answer.sealed.epoch, answer.sealed.ranges, answer.sealed.terms) == (
        7,
        {0: (3, 7)},
        {0: 77},
    )


def test_only_so_many_epochs_wait_for_the_commit_and_they_fall_with_their_run(bench: Bench) -> None:
    for _ in range(MAX_SEALED + 2):
        bench.feed((0, 40))
    deadline = time.monotonic() + WAIT_S
    while len(bench.staged()) <= MAX_SEALED and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(bench.staged()) == MAX_SEALED + 1
    assert len(bench.decided) == 1, "the line is held back"
    bench.fence.run = Run(2, 7)
    bench.settle()
    assert len(bench.staged()) == MAX_SEALED, (
        "the Kafka thread discards what it is handed of an old run"
    )
    assert [bench.next().run for _ in range(MAX_SEALED)] == [FIRST] * MAX_SEALED
    assert bench.thread.take(0.2) is None


def test_an_epoch_ends_where_headers_of_invalid_records_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in memory for the transaction, like values."""
    monkeypatch.setattr(streamer.sink.writer, "DEAD_LETTER_BYTES", 50_000)
    bench = Bench(tmp_path)
    batch = bench.maker.batch(0, 2)
    large = [record._replace(headers=[("x", bytes(30_000))]) for record in batch.records]
    invalid = [Decision("invalid", "corrupt")] * 2
    batch = dataclasses.replace(batch, records=large, decisions=invalid)
    bench.decided.put(Decided(Span(FIRST, {0: Term(0, 10, 1, 0)}, {}), batch))
    sealed = bench.next().sealed
    assert sealed is not None
    assert len(sealed.dead_letters) == 2
    bench.stop()


def test_invalid_records_are_kept_for_the_dead_letter_topic(bench: Bench) -> None:
    bench.feed((0, 40))
    sealed = bench.next().sealed
    assert sealed is not None
    assert len(sealed.dead_letters) == sealed.counts["invalid"] > 0
    assert {(d.partition, d.value, d.reason) for d in sealed.dead_letters} == {
        (0, b"value", "empty_value")
    }


def test_what_is_open_when_the_process_stops_is_discarded(bench: Bench) -> None:
    bench.feed((0, 16))
    bench.settle()
    assert bench.staged() == {7}
    bench.stop()
    assert bench.staged() == set()
    assert not Path(bench.storage.root_uri, staging_path("w-0", 7, "")).exists()


def test_a_write_that_fails_leaves_nothing_of_the_open_epoch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not stay full because of what can never be committed."""
    bench.feed((0, 16))
    bench.settle()
    assert bench.staged() == {7}

    def fails(self: EpochWriter, batch: DecidedBatch) -> None:
        raise DependencyError("the disk is full")

    monkeypatch.setattr(EpochWriter, "append", fails)
    bench.feed((0, 16))
    assert bench.worker.join(WAIT_S)
    assert bench.staged() == set()
    with pytest.raises(DependencyError, match="the disk is full"):
        bench.failure.raise_if_any()


def test_an_epoch_that_cannot_be_removed_does_not_hide_why_the_thread_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    discard = EpochWriter.discard

    def append_fails(self: EpochWriter, *_: object) -> None:
        raise DependencyError("the storage is away")

    def discard_fails(self: EpochWriter) -> None:
        discard(self)  # or its files would be closed by nobody
        raise DependencyError("still away")

    bench.feed((0, 16))
    bench.settle()
    monkeypatch.setattr(EpochWriter, "append", append_fails)
    monkeypatch.setattr(EpochWriter, "discard", discard_fails)
    bench.feed((0, 16))
    assert bench.worker.join(WAIT_S)
    with pytest.raises(DependencyError, match="the storage is away"):
        bench.failure.raise_if_any()


@pytest.mark.parametrize("how", ["backwards", "two terms"])
def test_a_line_out_of_order_stops_the_process(bench: Bench, how: str) -> None:
    bench.feed((0, 4))
    if how == "backwards":
        bench.maker.next[0] = 2
        bench.feed((0, 4))
    else:
        bench.feed((0, 4), terms={0: Term(0, 11, 1, 4)})
    assert bench.worker.join(WAIT_S)
    with pytest.raises(
        ProtocolError, match=r"this is a bug: (offset 2 comes after 3|partition 0 has two terms)"
    ):
        bench.failure.raise_if_any()
    bench.worker = Worker("writer", lambda: None, bench.failure)
    bench.worker.start()
