"""One simulated `streamer run`: the real Replica, Source, EpochThread, CommitEngine, Ledger and
Storage on simulated parts.

Between Source and EpochThread only the Batcher is real; decoder, judge and claims are a thread that
hands on what it gets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from sim_broker import Abortable
from sim_client import SimAdmin, SimConsumer
from sim_line import NOTHING, OUTCOMES, SimChannel, SimDecoder, SimFence, SimMetrics, SimStage
from sim_schedule import Killed, Owner, Schedule
from sim_storage import PATIENCE_S, Disk, SimEpoch, SimFolder, storage_on

import streamer.judge.batcher
import streamer.kafka.source
import streamer.sink.errand
import streamer.sink.patience
import streamer.sink.writer
from streamer.config import Config
from streamer.errors import (
    DependencyError,
    StorageAway,
    StreamerError,
    TemporaryError,
    Unfinished,
)
from streamer.flow.item import Chunk, Decided, Fence, Run
from streamer.flow.worker import Failure
from streamer.judge.batcher import Batcher
from streamer.pauses import Pauses
from streamer.quarantine import Quarantine
from streamer.records import DecidedBatch, Facts
from streamer.replica import Line, Replica
from streamer.sink.engine import CommitEngine
from streamer.sink.errand import Errands
from streamer.sink.writer import EpochThread
from streamer.skips import Skips

SEAL_AFTER_S = 6.0
DRAIN_S = 6.0
LIMITS_S = {"commit": 9.0, "project": 9.0 + PATIENCE_S}
SUPERSEDED_S = 6.0
GRACE_S = 1.0
PROBE_AGE_S = 100.0
"""The service's own values, ten times as fast."""
CONFIG = Config.model_validate(
    {
        "dataset": "d",
        "writer": "w",
        "kafka": {"bootstrap_servers": "nowhere", "topic": "t"},
        "embedder": {"type": "timm", "model": "none"},
        "output": {"path": "/simulated", "epoch_records": 5, "seal_after": f"{SEAL_AFTER_S}s"},
        "dead_letters": {"max_ratio": 1},
    }
)


class Process(Owner):
    """A replica's life from start to exit. ``exit_code`` is None while it lives; killed ones end
    with 137."""

    ids = itertools.count(1)

    def __init__(self, world: Any, writer: str, static: bool, bounded: bool = False) -> None:
        super().__init__()
        self.world = world
        self.schedule: Schedule = world.schedule
        self.writer = writer
        self.name = f"{writer}#{next(self.ids)}"
        self.exit_code: int | None = None
        self.error: BaseException | None = None
        self.skew = float(world.setting.skew) if writer == "w-0" else 0.0
        self.away_until = 0.0
        """The storage does not answer it until then."""
        self.fault: type[Exception] | None = None
        self.aborts = 0
        """Transactions of it that will be aborted."""
        self.stall_after, self.stall_s = 0, 0.0
        """It will freeze for ``stall_s`` seconds after so many calls to Kafka and the storage; 0:
        it will not."""
        self.stopping = False
        self.producer_epoch: Callable[[], int] = lambda: -1
        self.targets: dict[int, int] = {}
        """Where a bounded run is to end."""
        self.owned: set[int] = set()
        """Its partitions when its run ended."""
        self.epochs: EpochThread | None = None
        self.opened: dict[str, float] = {}
        """Every epoch it ever opened: uuid → when."""
        self._static = static
        self._bounded = bounded
        self.folder = SimFolder(world.disk, self.step_storage, self.bear_away)

    @property
    def is_present(self) -> bool:
        return self.exit_code is None and not self.killed and self.frozen_until <= self.schedule.now

    def is_robbed(self) -> bool:
        """True if it ended because a file of its staging was gone that nobody had a right to
        delete."""
        if (
            not isinstance(self.error, FileNotFoundError)
            or self.producer_epoch() != self.world.broker.identities[self.writer].epoch
        ):
            return False
        began = next(began for uuid, began in self.opened.items() if uuid in str(self.error))
        return self.schedule.now - began <= 2 * float(self.world.stale_after_s)

    def start(self) -> None:
        self.schedule.spawn(self, f"{self.name} kafka", self._main)

    def notify(self) -> None:
        self.schedule.notify(self)

    def step(self, what: str) -> None:
        self._step(what)
        self._raise_fault(what, TemporaryError)

    def step_storage(self, what: str) -> None:
        self._step(what)
        self._raise_fault(what, DependencyError)

    def bear_away(self, waits: bool) -> None:
        """What `Patience` does about a storage that is away for a while."""
        left = self.away_until - self.schedule.now
        if waits and left > 0:
            self.schedule.pause(min(left, PATIENCE_S))
        if self.away_until > self.schedule.now:
            raise StorageAway("simulated: the storage is away", "timeout", given_up=waits)

    def _step(self, what: str) -> None:
        self.world.trace(self, what)
        self.world.at_port = True
        if self.stall_after:
            self.stall_after -= 1
            if not self.stall_after:
                self.frozen_until = self.schedule.now + self.stall_s
        self.schedule.pause()

    def _raise_fault(self, what: str, kind: type[Exception]) -> None:
        if self.fault is kind and what != "poll":
            self.fault = None
            raise kind(f"simulated: {what}")
        if self.aborts and what == "commit":
            self.aborts -= 1
            raise Abortable

    # Clock of `CommitEngine`

    def now(self) -> float:
        return self.schedule.now + self.skew

    def monotonic(self) -> float:
        return self.schedule.now

    def sleep(self, seconds: float) -> None:
        self.schedule.pause(seconds)

    # Threads

    def _main(self) -> None:
        try:
            self._live()
            self._exit(0)
        except Killed:
            self._exit(137)
            raise
        except StreamerError as error:
            self.error = error
            self._exit(error.exit_code)
        except FileNotFoundError as error:
            self.error = error
            self._exit(1)

    def _exit(self, code: int) -> None:
        self.exit_code = code
        self.killed = True  # its other threads are daemons
        self.notify()
        self.world.exited(self)

    def _live(self) -> None:
        world, broker, failure = self.world, self.world.broker, Failure()
        consumer = SimConsumer(
            broker, self.schedule, self.step, self.writer if self._static else None, self.notify,
            lambda: self.is_present, self._bounded, world.setting.hasty,
        )  # fmt: skip
        transactions = world.parts.client.SimTransactions(
            broker, self.schedule, self.step, consumer, self.writer, world.latest
        )
        self.producer_epoch = lambda: transactions.epoch
        with mock.patch.object(streamer.kafka.source, "new_consumer", return_value=consumer):
            admin: Any = SimAdmin(broker, self.step)
            source = streamer.kafka.source.Source(CONFIG, admin)
        storage = storage_on(self.folder, world.parts.storage)
        with mock.patch.object(streamer.sink.errand, "Channel", partial(SimChannel, self)):
            errands = Errands(failure)

        def begin(work: Callable[[], None]) -> Callable[[], bool]:
            def told() -> None:
                work()
                self.notify()

            return errands.begin(told)

        skips = Skips(storage, world.setting.expiring)
        engine: CommitEngine = world.parts.engine.CommitEngine(
            "d",
            self.writer,
            transactions,
            storage,
            self,
            {"config": "c"},
            world.stale_after_s,
            stage=lambda name, _manifest: self.limit(name, LIMITS_S[name]),
            begin=begin,
            skip_limit=skips.limit,
        )
        engine.recover()
        storage.clear_probes()
        fence = SimFence(Run(1, engine.next_epoch), lambda: world.forgotten(self, "dropped"))
        chunks: SimChannel[Chunk] = SimChannel(self, "chunks", 3)
        decided: SimChannel[Decided] = SimChannel(self, "decided", 2)

        def open_epoch(epoch: int, uuid: str) -> SimEpoch:
            self.opened[uuid] = self.schedule.now
            return SimEpoch(storage, self.writer, epoch, uuid)

        stage = SimStage(self, broker)
        metrics: Any = SimMetrics(world.drops)
        epochs = self._epoch_thread(decided, fence, open_epoch, stage, failure, metrics)
        self.epochs = epochs
        line: Any = Line(fence, chunks, SimDecoder(), stage, epochs)  # type: ignore[arg-type]
        quarantine = Quarantine(self.writer, storage)
        replica: Replica = world.parts.replica.Replica(
            source,
            engine,
            line,
            quarantine,
            Pauses(self.writer, storage),
            skips,
            failure,
            metrics,
            lambda paused: None,
            lambda: None,
            world.poll_interval_s,
        )
        lost = replica.lost

        def seen_lost(partitions: Collection[int]) -> None:
            world.forgotten(self, "lost")
            lost(partitions)

        replica.lost = seen_lost  # type: ignore[method-assign]
        self._spawn("writer", epochs.run, failure)
        self._spawn("storage", errands.run, failure)
        batcher: Any = Batcher(chunks, 3, 0.05, fence)  # type: ignore[arg-type]
        self._spawn(
            "line", lambda: self._pass_on(batcher, decided, fence, quarantine, failure), failure
        )
        source.subscribe(replica)
        stopped = replica.run(
            lambda: self.stopping,
            world.parts.replica.Bound(
                self._ends if self._bounded else None, partitions=range(len(broker.input))
            ),
        )
        self.owned = set(source.owned)
        failure.stop.set()
        source.close()
        if stopped is not None:
            raise Unfinished(stopped.committed, stopped.end)

    def _ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        ends = {p: self.world.broker.input[p].end for p in partitions}
        self.targets.update(ends)
        return ends

    def _epoch_thread(
        self,
        decided: Any,
        fence: Fence,
        open_epoch: Any,
        stage: SimStage,
        failure: Failure,
        metrics: Any,
    ) -> EpochThread:
        with mock.patch.object(streamer.sink.writer, "Channel", partial(SimChannel, self)):
            return EpochThread(
                CONFIG,
                decided,
                fence,
                open_epoch,
                lambda: stage.position,
                {},
                failure,
                metrics,
                lambda: None,
            )

    def _spawn(self, name: str, body: Callable[[], None], failure: Failure) -> None:
        def guarded() -> None:
            try:
                body()
            except Exception as error:
                failure.report(error)
                self.notify()

        self.schedule.spawn(self, f"{self.name} {name}", guarded)

    def _pass_on(
        self,
        batcher: Batcher,
        decided: SimChannel[Decided],
        fence: Fence,
        quarantine: Quarantine,
        failure: Failure,
    ) -> None:
        """Decoder, judge and claims."""
        while not failure.stop.is_set():
            batch = batcher.take(0.05)
            if batch is None:
                continue
            records = [row.record for row in batch.rows]
            for r in records:
                origin = r.partition, r.offset
                if self.world.is_poison(*origin) and not quarantine.condemns(*origin):
                    self.world.kill(self, f"poison at {origin}")
                    return
            decisions = [OUTCOMES[r.offset % len(OUTCOMES)] for r in records]
            outcome = DecidedBatch(
                records, [Facts()] * len(records), decisions, NOTHING, NOTHING, {}
            )
            while (
                fence.holds(batch.span)
                and not failure.stop.is_set()
                and not decided.put(Decided(batch.span, outcome), 0, timeout=0.1)
            ):
                pass

    # Watchdog

    @contextmanager
    def limit(self, what: str, seconds: float) -> Iterator[None]:
        """A commit that overruns ends the process on the spot."""
        token = [True]

        def end() -> None:
            if token[0] and self.exit_code is None:
                self.world.kill(self, f"watchdog: {what}")

        self.schedule.at(seconds, end)
        try:
            yield
        finally:
            token[0] = False


class _Time:
    """``time`` of the modules under test: monotonic is virtual time, time() the process's own
    clock."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def monotonic(self) -> float:
        return float(self._world.schedule.now)

    def time(self) -> float:
        owner = self._world.schedule.current.owner
        return float(self._world.schedule.now + getattr(owner, "skew", 0.0))

    def sleep(self, seconds: float) -> None:
        self._world.schedule.pause(seconds)


class _Secrets:
    def __init__(self) -> None:
        self._terms = itertools.count(1)

    def randbits(self, _bits: int) -> int:
        return next(self._terms)


@contextmanager
def simulated(world: Any) -> Iterator[None]:
    """Puts virtual time and countable names under the real modules."""
    uuids = itertools.count(1)

    class _Name:
        def __init__(self) -> None:
            self.hex = f"{next(uuids):08x}"

    clock: Any = _Time(world)
    with (
        mock.patch.multiple(
            world.parts.replica,
            time=clock,
            secrets=_Secrets(),
            DRAIN_DEADLINE_S=DRAIN_S,
            SUPERSEDED_LIMIT_S=SUPERSEDED_S,
        ),
        mock.patch.multiple(streamer.sink.writer, time=clock, uuid4=_Name),
        mock.patch.multiple(streamer.sink.patience, time=clock),
        mock.patch.multiple(
            world.parts.storage,
            time=clock,
            PROBE_AGE_S=PROBE_AGE_S,
            uuid4=_Name,
            update_card=lambda *_a: None,
        ),
        mock.patch.multiple(
            world.parts.engine, uuid4=_Name, OTHERS_GRACE_S=GRACE_S, CHECKPOINT_EPOCHS=3
        ),
        mock.patch.multiple(streamer.judge.batcher, time=clock),
        mock.patch.multiple(
            streamer.kafka.source, CHUNK_RECORDS=3, consumer_config=lambda *_a, **_k: {}
        ),
    ):
        yield


__all__ = ["Disk", "Process", "simulated"]
