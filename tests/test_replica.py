"""What `Replica` shows of itself; what it does is driven in tests/sink, tests/integration and
tests/faults."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from streamer.errors import TemporaryError
from streamer.flow.item import Fence, Run
from streamer.flow.worker import Failure
from streamer.ops.metrics import Metrics
from streamer.ops.tally import EpochTally
from streamer.pauses import Pauses
from streamer.quarantine import Quarantine
from streamer.records import Term
from streamer.replica import Bound, Replica
from streamer.sink.writer import Finished
from streamer.skips import Skips


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
