"""The Kafka thread: polls, feeds the line, commits what was sealed, and answers the group's
rebalances.

Two things end an epoch without a commit: its partitions were lost, or a deadline passed. Then the
whole uncommitted work is dropped (`_drop`: a new run), and what is still owned is rewound and
opened anew (`_reopen`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from streamer.decode.decoder import Decoder
from streamer.errors import DeadLetterFuse, DependencyError, StreamerError, TemporaryError
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Run, Span
from streamer.flow.worker import Failure
from streamer.kafka.claims import ClaimStage, NoClaims
from streamer.kafka.source import Source
from streamer.ops.health import Heartbeat
from streamer.ops.metrics import Metrics
from streamer.pauses import Pauses
from streamer.quarantine import Quarantine
from streamer.records import Decoded, Term
from streamer.sink.engine import CommitEngine, Sealed, iso
from streamer.sink.fuse import Flood
from streamer.sink.ledger import Ledger
from streamer.sink.writer import EpochThread, Finished
from streamer.skips import Cause, Skip, Skips

log = logging.getLogger("streamer")

DRAIN_DEADLINE_S = 60.0
"""At a shutdown. The pod's grace period is longer."""
SUPERSEDED_LIMIT_S = 60.0
"""So long the group may take to tell us that a partition is not ours any more."""
STANDBY_S = 2.0
"""How often a replica without partitions looks whether a bounded run is over."""
TICK_S = 0.02
TRIAL_S = 60.0
"""So long a trial waits for its records, while nothing else is read."""
SERVE_S = 1.0
"""How often the group's callbacks run while a trial is under way."""
PAUSES_S = 5.0
"""How often a replica looks whether a paused partition may go on."""
VAIN_SEEKS = 20
"""So often a partition may be read again from an offset that it says it has not."""
LAG_S = 1.0
"""How often the lag is shown; a replica that commits nothing must not look as if nothing were
behind."""


@dataclass(frozen=True, slots=True)
class Line:
    """The stages behind the Kafka thread, each with a thread of its own."""

    fence: Fence
    chunks: Channel[Chunk]
    decoder: Decoder
    stage: ClaimStage | NoClaims
    epochs: EpochThread


class Progress(NamedTuple):
    """How far a bounded run came, in offsets from where the dataset begins in its partitions."""

    committed: int
    end: int
    """0: it is not known yet."""


class Bound:
    """Where a bounded run ends. ``targets`` gives the end offsets of partitions, at the moment it
    is asked; ``partitions`` are all of the topic's."""

    def __init__(
        self,
        targets: Callable[[Collection[int]], Mapping[int, int]] | None,
        not_before: float = 0.0,
        partitions: Collection[int] = (),
    ) -> None:
        self._targets = targets
        self._not_before = not_before
        self._partitions = partitions
        self._ends: dict[int, int] = {}

    def fix(self, source: Source, partitions: Collection[int]) -> None:
        """Has the source stop at the ends of partitions; before ``not_before`` (UTC seconds) there
        are none yet."""
        if self._targets is not None and time.time() >= self._not_before:
            source.stop_at(self._ends_of(partitions))

    def _ends_of(self, partitions: Collection[int]) -> dict[int, int]:
        """As they were when they were asked for first."""
        assert self._targets is not None
        if new := set(partitions) - self._ends.keys():
            self._ends.update(self._targets(new))
        return {p: self._ends[p] for p in partitions}

    def is_reached(self, source: Source) -> bool:
        return self._targets is not None and time.time() >= self._not_before and source.is_done()

    def is_committed(self, ledger: Ledger) -> bool:
        """Whether the dataset is committed up to the end of every partition, whoever owns it. Once
        `is_reached`."""
        if not ledger.tiles or self._targets is None:
            return False
        ends = self._ends_of(self._partitions)
        return all((ledger.end(p) or 0) >= end for p, end in ends.items())

    def missing(self, partitions: Collection[int], ledger: Ledger, joined: bool) -> Progress | None:
        """How far a run came that was stopped while it owned ``partitions``; None: up to its end.
        ``joined``: the group had assigned them."""
        if self._targets is None:
            return None
        if not joined or not partitions or not self._ends.keys() >= set(partitions):
            return Progress(0, 0)
        begins = {p: ledger.tiles.get(p, (0, 0))[0] for p in partitions}
        committed = {p: min(ledger.end(p) or 0, self._ends[p]) for p in partitions}
        if all(committed[p] == self._ends[p] for p in partitions):
            return None
        return Progress(
            sum(committed[p] - begins[p] for p in partitions),
            sum(self._ends[p] - begins[p] for p in partitions),
        )


class Replica:
    """The life of one replica on the Kafka thread. `Source` calls `assigned`, `revoked` and `lost`
    while it polls."""

    def __init__(
        self, source: Source, engine: CommitEngine, line: Line, quarantine: Quarantine, pauses: Pauses, skips: Skips, failure: Failure,
        metrics: Metrics, show_paused: Callable[[Collection[int]], None], beat: Heartbeat, poll_interval_s: float,
    ) -> None:  # fmt: skip
        self._source = source
        self._quarantine = quarantine
        self._pauses = pauses
        self._pauses_seen_at = float("-inf")
        self._skips = skips
        self._to_skip: deque[Skip] = deque()
        """What is to be said to the line before anything else of these partitions."""
        self._in_vain: dict[int, tuple[int, int]] = {}
        """Partition → offset from which it was read again, and how often."""
        self._causes: dict[tuple[int, int], Cause] = {}
        """Partition, first offset → why they are skipped."""
        self._show_paused = show_paused
        self._engine = engine
        self._line = line
        self._failure = failure
        self._metrics = metrics
        self._beat = beat
        self._revoke_deadline_s = 0.2 * poll_interval_s
        self._drip_s = poll_interval_s / 4
        self._terms: dict[int, Term] = {}
        self._flushes = 0
        self._flushed: Run | None = None
        self._committing: Finished | None = None
        self._held: Finished | None = None
        """A sealed epoch that waits for the storage to say whether its files are there."""
        self._rewind = False
        self._superseded_since: float | None = None
        self._polled_at = time.monotonic()
        self._uncommitted: deque[tuple[int, dict[int, int]]] = deque()
        self._lag_shown_at = 0.0
        self._bound = Bound(None)
        self._ended: Run | None = None
        """The run whose last epoch is committed."""
        self._looked_at = float("-inf")
        self._trial_since = time.monotonic()
        self._dropped = ""

    # The loop

    def run(self, stop: Callable[[], bool], bound: Bound) -> Progress | None:
        """Until ``stop()`` or the bound; then drains, seals and commits. Returns how far a bounded
        run came that was stopped before its end. Raises what ended it early; nothing uncommitted
        is visible then."""
        try:
            stopped = self._run(stop, bound)
        except StreamerError:
            self._quarantine.closed()
            raise
        self._quarantine.closed()
        return stopped

    def _run(self, stop: Callable[[], bool], bound: Bound) -> Progress | None:
        self._bound = bound
        while not stop():
            self._failure.raise_if_any()
            self._beat()
            if self._commit_finished(TICK_S if self._is_confined() else 0.0):
                self._ended = self._line.fence.run
            self._check_superseded()
            self._look_at_pauses()  # before a reopen: what is dropped must not be handed on
            if self._rewind:
                self._reopen()
            if self._quarantine.is_open:
                self._try_suspects()
            bound.fix(self._source, self._source.owned)
            if time.monotonic() - self._lag_shown_at >= LAG_S:
                self._show_lag()
            self._feed()
            if self._rewind or self._quarantine.is_open:
                continue
            if not self._to_skip and bound.is_reached(self._source) and self._is_over(bound):
                self._raise_if_paused(bound)
                owned = self._source.owned
                return bound.missing(owned, self._engine.ledger, True) if owned else None
        log.info("draining: what is on the device is decided, sealed and committed")
        self._dropped = ""
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        owned, joined = set(self._source.owned), self._source.joined
        if self._drain(DRAIN_DEADLINE_S, self._serve, "shutdown") or not self._dropped:
            # not dropped: a revoke meanwhile has drained and committed it
            self._await_public(deadline)
            return bound.missing(owned, self._engine.ledger, joined)
        if self._dropped == "shutdown":
            raise TemporaryError(
                f"the line could not be drained within {DRAIN_DEADLINE_S:.0f} s; the open epoch was dropped. Nothing is lost: the next start reads it "
                "again. A smaller batch.size drains faster."
            )
        raise TemporaryError(
            f"the open epoch was dropped while the line was drained ({self._dropped}). Nothing is lost: whoever owns its partitions next reads it again."
        )

    def _is_over(self, bound: Bound) -> bool:
        """The bound is reached: commits what was read, and looks every `STANDBY_S` whether the run
        is over. Blocks on the group's coordinator or the commit log."""
        if not self._engine.settle():
            return False
        if self._source.owned and self._ended is not self._line.fence.run:
            self._flush()
            return False
        if time.monotonic() - self._looked_at < STANDBY_S:
            return False
        over = self._is_settled() if self._source.owned else self._others_are_done(bound)
        self._looked_at = time.monotonic()
        return over

    def _flush(self) -> None:
        """Asks, once, for an epoch that ends behind everything that was polled."""
        run = self._line.fence.run
        asked = Span(run, self._terms, {}, self._flushes + 1)
        if self._flushed is not run and self._line.chunks.put(_empty(asked)):
            self._flushes += 1
            self._flushed = run
            log.info("everything that is to be read is read; it is decided and committed now")

    def _try_suspects(self) -> None:
        """One step of the quarantine: a trial begins when what was in the line before is
        committed."""
        if self._ended is self._line.fence.run:
            self._flushed = self._ended = None
            trial = self._quarantine.proceed(self._engine.ledger.end, self._pauses.paused)
            self._source.confine(None if trial is None else {trial.partition: trial.end})
            self._trial_since = time.monotonic()
        elif self._is_confined():
            self._flush()
        elif time.monotonic() - self._trial_since >= TRIAL_S and not self._source.has_any:
            if self._flushed is not self._line.fence.run:
                log.warning("nothing comes of a partition whose records are to be tried alone")
            self._flush()

    def _is_confined(self) -> bool:
        """Whether nothing more may be read until what was read is committed."""
        return self._quarantine.is_open and self._source.windows_are_read and not self._to_skip

    def _look_at_pauses(self) -> None:
        """Pauses a partition that floods the dead letters, and goes on with one that somebody has
        looked at."""
        flood = self._line.epochs.flood(self._line.fence.run)
        if flood is not None:
            self._pause(flood)
            self._drop("flood")
        elif self._pauses.is_due and time.monotonic() - self._pauses_seen_at >= PAUSES_S:
            self._pauses_seen_at = time.monotonic()
            if self._pauses.look():
                log.info("paused partitions", extra={"paused": sorted(self._pauses.paused)})
                self._hold()
                if self._quarantine.reopen():
                    self._source.take_nothing()
            self._source.ask_end(self._pauses.paused)

    def _hold(self) -> None:
        """What is paused has changed, perhaps."""
        self._source.hold(self._pauses.paused)
        self._show_paused(self._pauses.paused)
        # A last epoch that was asked for is not the last one any more
        self._flushed = self._ended = None
        self._looked_at = float("-inf")

    def _pause(self, flood: Flood) -> None:
        partition, why = flood
        log.error("%s", _told(partition, why))
        at = self._engine.ledger.end(partition) or 0
        self._pauses.pause(partition, at, why, iso(time.time()))
        self._hold()

    def _raise_if_paused(self, bound: Bound) -> None:
        """A run that has an end ends without what is paused before it."""
        for partition, pause in sorted(self._pauses.paused.items()):
            if bound.missing([partition], self._engine.ledger, True) is not None:
                raise DeadLetterFuse(_told(partition, pause.why))

    def _is_settled(self) -> bool:
        """Whether no partition is on its way to us. If it were, and all replicas ended, nobody
        would read it."""
        if not self._source.is_settled():
            return False
        log.info(
            "the end is reached: everything up to it is decided and committed",
            extra={"partitions": sorted(self._source.owned)},
        )
        return True

    def _others_are_done(self, bound: Bound) -> bool:
        """A replica without partitions stands by until those who have them have reached the end: it
        may be needed when one of them goes."""
        if self._looked_at == float("-inf"):
            log.info("no partition is assigned to this replica: it stands by for the others")
        self._engine.assign(())  # reads what others have committed
        if not bound.is_committed(self._engine.ledger):
            return False
        log.info("the end is reached: others have committed everything up to it")
        return True

    def _feed(self) -> None:
        """One step: hands on what is in hand if the line has room, polls for more if the hand has."""
        source, line = self._source, self._line
        if self._to_skip and not self._rewind and line.chunks.wait_room(TICK_S):
            skip = self._to_skip.popleft()
            ranges = {skip.partition: ((skip.first, skip.following),)}
            line.chunks.put(_empty(Span(line.fence.run, self._terms, {}, skips=ranges)))
        elif source.has_any and not self._rewind and line.chunks.wait_room(TICK_S):
            records, marks, nbytes = source.take()
            line.chunks.put(
                Chunk(Span(line.fence.run, self._terms, marks), line.decoder.submit(records)),
                nbytes,
            )
            if records:
                last = {r.partition: r.offset for r in records}
                stamps = [r.timestamp_ms for r in records if r.timestamp_ms > 0]
                self._uncommitted.append((min(stamps, default=0), last))
        if not (source.has_any or self._rewind):
            for partition in sorted(source.halted):
                self._get_past(partition)
        if not (source.has_chunk or self._is_confined()):
            source.poll(0.0 if source.has_any else TICK_S)
            self._polled_at = time.monotonic()
        else:
            self._serve()

    def _get_past(self, partition: int) -> None:
        """Goes on behind what expired under us, or cannot be read, once it is known where. Raises
        ProtocolError where it may not; TemporaryError where the same offset is out of range again
        and again, although the topic has it. Blocks for a round trip or two."""
        at = self._source.reached[partition]
        cause: Cause = "expired"
        if self._source.is_unreadable(partition):
            cause = "unreadable"
            following = self._source.find_readable(partition)
            if following is None:
                return
        else:
            following = max(at, self._engine.past_expired(partition, at))
        # What lies behind the end of a replay is none of its range
        following = min(following, self._engine.ledger.ends.get(partition, following))
        if following > at:
            self._skip([Skip(partition, at, following, cause)])
        else:
            place, times = self._in_vain.get(partition, (at, 0))
            self._in_vain[partition] = at, times + 1 if place == at else 1
            if times >= VAIN_SEEKS:
                raise TemporaryError(
                    f"partition {partition} gives nothing at offset {at}, although the topic has "
                    "it. Start again."
                )
        self._source.rewind({partition: following})

    def _skip(self, skips: Collection[Skip]) -> None:
        for skip in skips:
            self._line.stage.skip(self._terms[skip.partition], skip.first, skip.following)
            self._causes[skip.partition, skip.first] = skip.cause
            log.warning(
                "offsets are skipped: no record of them is decided",
                extra={
                    "cause": skip.cause,
                    "partition": skip.partition,
                    "first": skip.first,
                    "next": skip.following,
                },
            )
        self._to_skip.extend(skips)

    def _serve(self) -> None:
        """Keeps the membership while nothing may be polled: one poll per quarter of the poll
        interval."""
        every_s = min(SERVE_S, self._drip_s) if self._quarantine.is_open else self._drip_s
        if time.monotonic() - self._polled_at >= every_s:
            self._source.serve()
            self._polled_at = time.monotonic()

    # Commit

    def _commit_finished(self, timeout: float) -> bool:
        """True when the epoch that was asked for (`_flush`) is committed."""
        finished = self._take(timeout)
        return (
            finished is not None
            and self._commit(finished, self._serve_once)
            and finished.flush == self._flushes
            and self._flushed is finished.run
        )

    def _take(self, timeout: float) -> Finished | None:
        """The next epoch to commit; None while the last one is not public. Waits for either, for at
        most ``timeout`` seconds."""
        is_public = self._engine.settle()
        if is_public and self._held is None:
            return self._line.epochs.take(timeout)
        if timeout:
            time.sleep(timeout)
        if not is_public:
            return None
        held, self._held = self._held, None
        return held

    def _await_public(self, deadline: float) -> None:
        """Raises TemporaryError where it is not by then."""
        while not self._engine.settle():
            if time.monotonic() >= deadline:
                raise TemporaryError(
                    f"the last epoch is committed, but its files did not get their public names within {DRAIN_DEADLINE_S:.0f} s: the storage is too slow "
                    "or away. Nothing is lost: the next start, or another replica, does it."
                )
            self._failure.raise_if_any()
            self._beat()
            self._serve()
            time.sleep(TICK_S)

    def _serve_once(self) -> bool:
        """The engine's last look before a transaction. False: a callback committed or dropped the
        epoch meanwhile."""
        self._source.serve()
        self._polled_at = time.monotonic()
        return self._committing is not None

    def _commit(self, finished: Finished, serve: Callable[[], bool]) -> bool:
        """False if the epoch was dropped, or is held until the storage answers."""
        sealed = finished.sealed
        if sealed is None:
            return finished.run.number == self._line.fence.run.number
        if finished.run.number != self._line.fence.run.number:
            self._engine.discard(sealed)
            return False
        self._quarantine.sealed()
        self._committing = finished
        began = time.monotonic()
        manifest = self._engine.commit(sealed, serve)
        if self._committing is None:
            return finished.run.number == self._line.fence.run.number  # a callback was faster
        self._committing = None
        if manifest is None:
            self._held = finished
            return False
        if isinstance(manifest, str):
            self._drop(manifest, sealed)
            return False
        committed = {p: following for p, (_, following) in sealed.ranges.items()}
        self._metrics.epoch_committed(finished.tally, len(sealed.dead_letters))
        for partition, ranges in sealed.skipped.items():
            for first, following in ranges:
                cause = self._causes.pop((partition, first))
                self._metrics.skipped(cause, following - first)
        self._line.stage.renew(committed, self._terms)
        self._show_lag()
        log.info(
            "epoch committed", extra={"epoch": sealed.epoch, "uuid": sealed.uuid, **sealed.counts, "seconds": round(time.monotonic() - began, 3)}
        )  # fmt: skip
        return True

    def _show_lag(self) -> None:
        self._lag_shown_at = time.monotonic()
        ends = self._source.ends()
        committed = {p: self._engine.ledger.end(p) or 0 for p in ends}
        # What belongs to another replica by now is that one's lag.
        while self._uncommitted and all(
            offset < committed.get(p, offset + 1) for p, offset in self._uncommitted[0][1].items()
        ):
            self._uncommitted.popleft()
        lag = {p: max(end - committed[p], 0) for p, end in ends.items()}
        # Records without a timestamp have no age, and hide nobody else's
        self._metrics.lag(
            lag, min((oldest for oldest, _ in self._uncommitted if oldest), default=0)
        )

    def _drain(self, deadline_s: float, serve: Callable[[], object], cause: str) -> bool:
        """Cuts the line: what the device has is decided, sealed and committed; what waits before it
        is forgotten, to be read again.

        False: the deadline passed (the drop's ``cause``) or the epoch fell; it was dropped.
        """
        deadline = time.monotonic() + deadline_s
        run = self._line.fence.run
        self._flushes += 1
        self._line.fence.cut = (run.number, self._flushes)
        while time.monotonic() < deadline and run is self._line.fence.run:
            self._failure.raise_if_any()
            self._beat()
            if (flood := self._line.epochs.flood(run)) is not None:
                self._pause(flood)
                cause = "flood"
                break
            finished = self._take(TICK_S)
            if finished is not None:
                committed = self._commit(finished, lambda: True)
                if self._held is None and (not committed or finished.flush == self._flushes):
                    return run is self._line.fence.run
            serve()
        if run is self._line.fence.run:
            self._drop(cause)
        return False

    def _drop(self, cause: str, sealed: Sealed | None = None) -> None:
        """Everything uncommitted dies: a new run. What is owned is rewound at the next step of the
        loop."""
        if sealed is not None:
            self._engine.discard(sealed)
        self._begin_run()
        self._dropped = cause
        self._metrics.epoch_dropped(cause, len(self._source.owned))
        log.warning(
            "uncommitted work is dropped and read again",
            extra={"cause": cause, "run": self._line.fence.run.number},
        )

    def _begin_run(self) -> None:
        """Whatever is in the line is forgotten; what is owned is rewound at the next step of the
        loop."""
        line = self._line
        held, self._held = self._held, None
        if held is not None and held.sealed is not None:
            self._engine.forget_look()
            self._engine.discard(held.sealed)
        line.fence.run = Run(line.fence.run.number + 1, self._engine.next_epoch)
        line.stage.reset()
        line.decoder.forget()
        self._committing = None
        self._uncommitted.clear()
        self._to_skip.clear()
        self._rewind = True

    # The group

    def assigned(self, partitions: Collection[int]) -> Mapping[int, int]:
        starts = self._open(partitions)
        self._pauses.opened(partitions)
        self._hold()
        self._bound.fix(
            self._source, partitions
        )  # before the first record: the same poll may already bring some
        # A last epoch that was asked for is not the last one any more
        self._flushed = self._ended = None
        self._looked_at = float("-inf")
        self._metrics.rebalanced("assigned", len(partitions), len(self._terms))
        log.info("partitions assigned", extra={"partitions": sorted(partitions), "starts": starts})
        return starts

    def _open(self, partitions: Collection[int]) -> Mapping[int, int]:
        """New terms: start offsets from the ledger, ``open`` entries in the claim log, read back.
        Returns where to read on, behind what is skipped."""
        fence, due = self._line.fence, self._engine.next_epoch
        starts = self._engine.assign(partitions)
        if (
            self._engine.next_epoch != due
        ):  # the dataset was founded, which takes an epoch's number; nothing is in the line yet
            fence.run = Run(fence.run.number + 1, self._engine.next_epoch)
        generation = self._source.generation()
        latest = {p: self._line.stage.latest_generation(p) for p in partitions}
        if any(generation < g for g in latest.values()) and not self._source.is_member(starts):
            raise TemporaryError(
                "another replica took our partitions over while they were being opened. Start again."
            )
        # A group that was forgotten by the brokers (empty for a week) counts its generations from 1
        # again.
        terms = [
            Term(p, secrets.randbits(63), max(generation, latest[p] + (generation < latest[p])), s)
            for p, s in starts.items()
        ]
        self._line.stage.open(terms, self._beat)
        for term in terms:
            self._engine.own(term)
        self._terms = {**self._terms, **{t.partition: t for t in terms}}
        self._quarantine.opened(starts, self._engine.ends)
        if self._quarantine.is_open:
            self._source.take_nothing()
        self._to_skip = deque(s for s in self._to_skip if s.partition not in partitions)
        try:
            self._skips.look()
        except DependencyError as error:
            log.warning("whether partitions were moved forward cannot be read: %s", error)
        ends = {**self._engine.ends, **self._engine.ledger.ends}
        skips = self._skips.due(starts, self._engine.begins, ends)
        self._skip(skips)
        return {**starts, **{skip.partition: skip.following for skip in skips}}

    def revoked(self, partitions: Collection[int]) -> None:
        current, self._committing = self._committing, None
        if self._terms:
            self._held = current or self._held
        if self._terms and self._drain(self._revoke_deadline_s, lambda: None, "revoked"):
            self._begin_run()  # what waited before the device is read again, by its new owner or by us
        self._committing = None
        self._release(partitions, "revoked")

    def lost(self, partitions: Collection[int]) -> None:
        current, self._committing = self._committing, None
        self._release(partitions, "lost")
        self._drop("lost", current.sealed if current is not None else None)

    def _release(self, partitions: Collection[int], event: str) -> None:
        self._engine.disown(partitions)
        self._line.stage.close(partitions)
        self._quarantine.released(partitions)
        self._pauses.released(partitions)
        self._hold()
        self._terms = {p: t for p, t in self._terms.items() if p not in partitions}
        self._to_skip = deque(s for s in self._to_skip if s.partition not in partitions)
        self._superseded_since = None
        self._looked_at = float("-inf")
        self._metrics.rebalanced(event, len(partitions), len(self._terms))
        log.info(f"partitions {event}", extra={"partitions": sorted(partitions)})

    def _reopen(self) -> None:
        """After a drop: what is still owned is read again from what is committed, under new terms."""
        self._rewind = False
        self._source.take()
        if self._source.owned:
            self._source.rewind(self._open(sorted(self._source.owned)))

    def _check_superseded(self) -> None:
        """Another replica opened a partition of ours: we were away for too long. The group is about
        to say so; until then nothing is read."""
        superseded = self._line.stage.superseded
        if not superseded:
            return
        now = time.monotonic()
        if self._superseded_since is None:
            self._superseded_since = now
            self._engine.disown(superseded)
            self._source.forget(superseded)
            self._terms = {p: t for p, t in self._terms.items() if p not in superseded}
            self._drop("lost")
        elif now - self._superseded_since > SUPERSEDED_LIMIT_S:
            raise TemporaryError(
                f"partitions {sorted(superseded)} belong to another replica, but the group does not say so. Start again."
            )


def _empty(span: Span) -> Chunk:
    """Bookkeeping without records."""
    none: Future[list[Decoded]] = Future()
    none.set_result([])
    return Chunk(span, none)


def _told(partition: int, why: str) -> str:
    return (
        f"partition {partition} is paused: {why}. What was not committed is read again when it goes "
        "on. Look at the records in a scratch dataset (`streamer replay run --dataset scratch --from "
        "count:200 --set dead_letters.max_ratio=1`), then mend what is wrong, or go on with "
        "`streamer resume -c CONFIG`."
    )
