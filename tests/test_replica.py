"""What `Replica` shows of itself; what it does is driven in tests/sink, tests/integration and
tests/faults."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

import streamer.replica
from streamer.errors import DeadLetterFuse, TemporaryError
from streamer.flow.item import Fence, Run
from streamer.flow.worker import Failure
from streamer.ops.metrics import Metrics
from streamer.ops.tally import EpochTally
from streamer.pauses import Pauses
from streamer.quarantine import Quarantine
from streamer.records import Term
from streamer.replica import Bound, Replica
from streamer.sink.fuse import Flood
from streamer.sink.writer import Finished
from streamer.skips import Skip, Skips


def nobody() -> tuple[Quarantine, Pauses, Skips]:
    """They suspect nothing, pause nothing, skip nothing and write nowhere."""
    places: Any = SimpleNamespace(
        journals=lambda: (),
        write_journal=lambda writer, data: None,
        pauses=lambda: (),
        seeks=lambda: (),
    )
    return Quarantine("w", places), Pauses("w", places), Skips(places, expired=False)


class Source:
    """Two partitions with ten records each."""

    def __init__(self) -> None:
        self.owned = {0, 1}

    def hold(self, partitions: Collection[int]) -> None:
        pass

    def ends(self) -> dict[int, int]:
        return dict.fromkeys(self.owned, 10)


def lags(metrics: Metrics) -> dict[str, float]:
    found = (
        s
        for family in metrics.registry.collect()
        for s in family.samples
        if s.name == "streamer_lag_records"
    )
    return {s.labels["partition"]: s.value for s in found}


def test_a_replica_that_lost_its_partitions_shows_no_lag_and_owns_none() -> None:
    """It stays ready, like a spare: these two are how one sees it."""
    nothing: Any = lambda *_: None  # noqa: E731
    source, metrics = Source(), Metrics()
    engine: Any = SimpleNamespace(
        ledger=SimpleNamespace(end=lambda p: 4), next_epoch=0, disown=nothing
    )
    stage = SimpleNamespace(close=nothing, reset=nothing)
    runs: list[int] = []
    fence = Fence(Run(1, 0))
    decoder = SimpleNamespace(forget=lambda: runs.append(fence.run.number))
    line: Any = SimpleNamespace(fence=fence, stage=stage, decoder=decoder)
    replica = Replica(source, engine, line, *nobody(), Failure(), metrics, nothing, nothing, 300.0)  # type: ignore[arg-type]
    replica._uncommitted.append((1_000, {0: 9}))
    replica._show_lag()
    assert lags(metrics) == {"0": 6, "1": 6}
    assert metrics.registry.get_sample_value("streamer_lag_seconds")

    lost: Collection[int] = set(source.owned)
    source.owned.clear()
    replica.lost(lost)
    replica._show_lag()
    assert lags(metrics) == {}
    assert metrics.registry.get_sample_value("streamer_lag_seconds") == 0
    assert metrics.registry.get_sample_value("streamer_partitions_assigned") == 0
    assert metrics.registry.get_sample_value("streamer_rebalances_total", {"event": "lost"}) == 2
    assert runs == [2], "what the decoder holds of the old run is wanted no more"


class Draining:
    """A replica at its shutdown: what is in its line is decided and sealed as soon as ``event``, a
    callback of the group, is served."""

    def __init__(self, event: str) -> None:
        nothing: Any = lambda *_: None  # noqa: E731
        self.served = False
        self.event = event
        self.fence = Fence(Run(1, 0))
        engine: Any = SimpleNamespace(
            ledger=SimpleNamespace(end=lambda p: 4),
            next_epoch=0,
            disown=nothing,
            settle=lambda: True,
        )
        stage = SimpleNamespace(close=nothing, reset=nothing)
        line: Any = SimpleNamespace(
            fence=self.fence,
            stage=stage,
            decoder=SimpleNamespace(forget=nothing),
            epochs=SimpleNamespace(take=self.take, flood=lambda run: None),
        )
        source: Any = SimpleNamespace(
            owned={0, 1}, joined=True, ends=dict, serve=self.serve, hold=nothing
        )
        self.replica = Replica(
            source, engine, line, *nobody(), Failure(), Metrics(), nothing, nothing, 300.0
        )
        self.replica._terms = {0: Term(0, 1, 1, 0)}
        self.replica._polled_at = float("-inf")

    def serve(self) -> None:
        self.served = True
        getattr(self.replica, self.event)([0, 1])

    def take(self, _timeout: float) -> Finished | None:
        return (
            Finished(self.fence.run, None, EpochTally(), self.fence.cut[1]) if self.served else None
        )


def test_what_a_revoke_committed_during_the_shutdown_was_not_dropped() -> None:
    Draining("revoked").replica.run(lambda: True, Bound(None))


def test_partitions_lost_during_the_shutdown_are_not_blamed_on_the_deadline() -> None:
    with pytest.raises(TemporaryError, match=r"dropped while the line was drained \(lost\)"):
        Draining("lost").replica.run(lambda: True, Bound(None))


def test_a_bounded_run_is_not_over_while_a_partition_is_on_its_way_to_us() -> None:
    """Its own partitions are done, and committed."""
    asked: list[bool] = []
    nothing: Any = lambda *_: None  # noqa: E731
    source: Any = SimpleNamespace(owned={0}, is_settled=lambda: asked.pop(0))
    line: Any = SimpleNamespace(fence=Fence(Run(1, 0)))
    engine: Any = SimpleNamespace(settle=lambda: True)
    replica = Replica(
        source, engine, line, *nobody(), Failure(), Metrics(), nothing, nothing, 300.0
    )
    replica._ended = line.fence.run
    asked += [False, True]
    assert not replica._is_over(Bound(None))
    assert not replica._is_over(Bound(None)), "it looks from time to time"
    assert asked == [True]
    replica._looked_at = float("-inf")
    assert replica._is_over(Bound(None))


class Bench:
    """A replica whose neighbours are told what to answer."""

    def __init__(self) -> None:
        nothing: Any = lambda *_: None  # noqa: E731
        self.fence = Fence(Run(1, 0))
        self.asked: list[str] = []
        self.ends = {0: 4}
        self.flood: Flood | None = None
        self.source: Any = SimpleNamespace(
            owned={0}, joined=True, ends=dict, serve=nothing, hold=nothing, has_any=False,
            windows_are_read=False, confine=nothing, ask_end=nothing, take_nothing=nothing,
        )  # fmt: skip
        self.engine: Any = SimpleNamespace(
            ledger=SimpleNamespace(end=lambda p: self.ends.get(p), tiles={0: (0, 4)}),
            next_epoch=0, disown=nothing, settle=lambda: True,
            forget_look=lambda: self.asked.append("forget look"),
            discard=lambda sealed: self.asked.append(f"discard {sealed}"),
        )  # fmt: skip
        line: Any = SimpleNamespace(
            fence=self.fence,
            stage=SimpleNamespace(close=nothing, reset=nothing),
            decoder=SimpleNamespace(forget=nothing),
            chunks=SimpleNamespace(put=self._put),
            epochs=SimpleNamespace(take=nothing, flood=lambda run: self.flood),
        )
        self.replica = Replica(
            self.source, self.engine, line, *nobody(), Failure(), Metrics(), nothing, nothing, 300.0
        )  # fmt: skip
        places: Any = SimpleNamespace(pauses=lambda: (), write_pause=nothing)
        self.replica._pauses = Pauses("w", places)
        self.replica._pauses.opened({0})

    def _put(self, chunk: Any) -> bool:
        self.asked.append(f"flush {chunk.span.flush}")
        return True


def test_a_drain_that_meets_a_flood_pauses_the_partition_and_drops_at_once() -> None:
    bench = Bench()
    bench.flood = Flood(0, "all of them are broken")
    began = time.monotonic()
    assert not bench.replica._drain(60.0, lambda: None, "shutdown")
    assert time.monotonic() - began < 30
    assert set(bench.replica._pauses.paused) == {0}
    assert bench.replica._dropped == "flood"
    assert bench.fence.run.number == 2


def test_an_epoch_that_is_held_and_then_dropped_is_asked_for_no_more() -> None:
    bench = Bench()
    sealed: Any = "epoch 3"
    bench.replica._held = Finished(bench.fence.run, sealed, EpochTally(), 0)
    bench.replica._drop("revoked")
    assert bench.asked == ["forget look", "discard epoch 3"]
    assert bench.replica._held is None


def test_what_is_paused_anew_makes_no_asked_for_epoch_the_last_one() -> None:
    bench = Bench()
    replica = bench.replica
    replica._flushed = replica._ended = bench.fence.run
    replica._looked_at = 0.0
    replica._hold()
    assert replica._flushed is replica._ended is None
    assert replica._looked_at == float("-inf")


def test_a_trial_of_which_nothing_comes_ends_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.replica._quarantine = SimpleNamespace(is_open=True)  # type: ignore[assignment]
    bench.replica._try_suspects()
    assert bench.asked == []
    monkeypatch.setattr(streamer.replica, "TRIAL_S", 0.0)
    bench.replica._try_suspects()
    assert bench.asked == ["flush 1"]
    bench.source.has_any = True
    bench.replica._flushed = None
    bench.replica._try_suspects()
    assert bench.asked == ["flush 1"], "there is something to hand on"


@pytest.mark.parametrize(("end", "raises"), [(9, True), (4, False)])
def test_a_run_with_an_end_fails_only_for_what_is_paused_before_it(end: int, raises: bool) -> None:
    bench = Bench()
    bound = Bound(lambda partitions: dict.fromkeys(partitions, end), partitions=[0])
    bound._ends_of([0])
    bench.replica._pauses.pause(0, 4, "all of them are broken", "then")
    if raises:
        with pytest.raises(DeadLetterFuse, match="partition 0 is paused: all of them are broken"):
            bench.replica._raise_if_paused(bound)
    else:
        bench.replica._raise_if_paused(bound)


def test_what_is_skipped_ends_where_a_replay_does() -> None:
    bench = Bench()
    skipped: list[Skip] = []
    rewound: list[dict[int, int]] = []
    bench.source.reached, bench.source.rewind = {0: 4}, rewound.append
    bench.source.is_unreadable = lambda partition: False
    bench.engine.past_expired = lambda partition, at: 50
    bench.engine.ledger.ends = {0: 20}
    bench.replica._skip = skipped.extend  # type: ignore[method-assign, assignment]
    bench.replica._get_past(0)
    assert skipped == [Skip(0, 4, 20, "expired")]
    assert rewound == [{0: 20}]


def test_a_partition_that_gives_nothing_ends_the_process_after_some_tries() -> None:
    bench = Bench()
    bench.source.reached, bench.source.rewind = {0: 4}, lambda starts: None
    bench.source.is_unreadable = lambda partition: False
    bench.engine.past_expired = lambda partition, at: 0
    bench.engine.ledger.ends = {}
    for _ in range(streamer.replica.VAIN_SEEKS):
        bench.replica._get_past(0)
    with pytest.raises(TemporaryError, match="partition 0 gives nothing at offset 4"):
        bench.replica._get_past(0)


def test_what_is_to_be_skipped_goes_ahead_of_the_records_behind_it() -> None:
    bench = Bench()
    spans: list[Any] = []
    replica = bench.replica
    replica._line.chunks.put = lambda chunk, nbytes=0: spans.append(chunk.span)  # type: ignore
    replica._line.chunks.wait_room = lambda timeout: True  # type: ignore
    replica._line.decoder.submit = lambda records: None  # type: ignore
    replica._line.stage.skip = lambda *skip: bench.asked.append("withdraw")  # type: ignore
    bench.source.halted, bench.source.has_any, bench.source.has_chunk = set(), True, True
    bench.source.take = lambda: ([], {0: 9}, 0)
    replica._terms = {0: Term(0, 1, 1, 2)}
    replica._skip([Skip(0, 2, 7, "expired")])
    assert bench.asked == ["withdraw"]
    replica._feed()
    replica._feed()
    assert [(span.skips, span.marks) for span in spans] == [({0: ((2, 7),)}, {}), ({}, {0: 9})]
    replica._skip([Skip(0, 2, 7, "expired")])
    replica._drop("lost")
    assert not replica._to_skip, "it is read again"
