"""The line's stage on the claim log, where replicas agree on who was first: judged batches go in,
decided batches come out in the same order, as soon as their own claims came back and were melded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.config import Config
from streamer.dedup.meld import LOST, VOID_STALE, VOID_TERM, VOID_VECTOR, WON, Applied, W
from streamer.dedup.verdict import duplicate
from streamer.errors import ProtocolError, TemporaryError
from streamer.flow.channel import Channel
from streamer.flow.item import Decided, Fence, Judged
from streamer.flow.worker import Failure
from streamer.kafka.claim_log import ENTRY_DEADLINE_S, ClaimLog
from streamer.ops.metrics import Metrics
from streamer.records import Claim, DecidedBatch, Term, key_of
from streamer.wire.claim import Claims, Open, Withdraw

MAX_IN_FLIGHT = 4
"""Batches whose claims are on their way: enough to hide the round trip."""
MAX_ROWS = W // 8
"""Claims on their way, and of batches that wait for a verdict, unless one batch alone has more: a
claim is void when W others come between its search and itself. Of a larger batch so many are
claimed at a time."""
VERDICTS = 100_000
"""Claims, of all partitions together, whose verdicts are held although nobody can ask for them any
more. A partition that has made its share of them since its last open gets a renewed one with its
next commit, which lets every replica forget."""


@dataclass(slots=True)
class _Pending:
    """A judged batch in the queue. ``missing`` rows of it have no verdict yet, of which
    ``unclaimed`` wait for the others; the first claims were written at ``started``."""

    judged: Judged
    missing: int
    unclaimed: np.ndarray
    started: float


class ClaimStage:
    """Turns judged batches into decided ones. `submit` and `withdraw` belong to the device thread,
    `run` to the claims thread, `prior` and `position` to any, the rest to the Kafka thread."""

    def __init__(
        self, config: Config, log: ClaimLog, decided: Channel[Decided], fence: Fence, failure: Failure, metrics: Metrics,
        applied: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """``applied``: called on the claims thread between any two turns."""
        assert config.dedup is not None
        self._flags = config.dedup.action == "flag"
        self._log = log
        self._meld = log.meld
        self._patience = log.patience
        self._decided = decided
        self._fence = fence
        self._failure = failure
        self._metrics = metrics
        self._applied = applied
        self._changed = threading.Condition()
        """Guards all that follows, but for ``_emitting``, and tells whoever waits."""
        self._queue: deque[_Pending] = deque()
        self._in_flight: dict[
            tuple[int, int], tuple[_Pending, np.ndarray]
        ] = {}  # (term, first offset) of an entry → rows
        self._terms: dict[int, int] = {}
        self._opened: dict[int, int] = {}
        self._claimed: dict[int, int] = {}
        self._emitting = threading.Lock()
        self.superseded: frozenset[int] = frozenset()
        """Partitions of ours that another replica opened: this process was away for too long."""

    # The Kafka thread

    def open(self, terms: Sequence[Term], serve: Callable[[], None]) -> None:
        """Appends ``open`` entries and waits until they are read back; from then on every earlier
        owner's claims are applied.

        Raises TemporaryError when a newer owner's open is found, or none is read back within
        `ENTRY_DEADLINE_S`; ProtocolError when an open of somebody else begins beyond our start: no
        claim of what lies between could ever count.
        """
        with self._changed:
            for term in terms:
                self._terms[term.partition] = term.id
                self._claimed[term.partition] = 0
                self._log.append(Open(term.partition, term.generation, term.id, term.start))
            self.superseded = self.superseded - {t.partition for t in terms}
        deadline = self._patience.clock() + ENTRY_DEADLINE_S
        for term in terms:
            while True:
                latest = self._meld.open_of(term.partition)
                if latest is not None and latest.term == term.id:
                    if (floor := self._meld.floor_of(term.partition)) > term.start:
                        raise ProtocolError(
                            f"{self._log.topic}: an open entry says that partition {term.partition} is decided up to offset {floor}, but the manifests end at "
                            f"{term.start}: something other than this dataset's replicas wrote it, and what lies between could never be claimed. Find out what "
                            "writes to this topic and stop it; continue with a new dataset name."
                        )
                    with self._changed:
                        self._opened[term.partition] = term.id
                    break
                if latest is not None and latest.generation > term.generation:
                    raise TemporaryError(
                        f"partition {term.partition} was taken over by another replica while it was being opened. Start again."
                    )
                if self._patience.clock() > deadline:
                    raise TemporaryError(
                        f"{self._log.topic}: an entry was not read back within {ENTRY_DEADLINE_S:.0f} s. Start again."
                    )
                self._failure.raise_if_any()
                self._patience.check()
                serve()
                with self._changed:
                    self._changed.wait(0.05)

    def close(self, partitions: Collection[int]) -> None:
        with self._changed:
            for partition in partitions:
                self._terms.pop(partition, None)
                self._opened.pop(partition, None)
            self.superseded = self.superseded - set(partitions)

    def renew(self, committed: Mapping[int, int], terms: Mapping[int, Term]) -> None:
        """After a commit: lets all replicas forget the verdicts below the committed offsets, once
        they are many."""
        share = VERDICTS // max(self._meld.partitions, 2)
        with self._changed:
            for partition, offset in committed.items():
                if partition in terms and self._claimed.get(partition, 0) >= share:
                    self._claimed[partition] = 0
                    term = terms[partition]
                    self._log.append(Open(partition, term.generation, term.id, offset))

    def skip(self, term: Term, first: int, following: int) -> None:
        """What the partition won at these offsets will never be delivered: withdraws it. Blocks
        until that is in the log. Raises TemporaryError."""
        offsets = self._meld.winners_of(term.partition, first, following)
        for offset in offsets:
            self._log.append(Withdraw(term.partition, offset, term.id))
        if offsets:
            self._flush()

    def latest_generation(self, partition: int) -> int:
        latest = self._meld.open_of(partition)
        return -1 if latest is None else latest.generation

    def reset(self) -> None:
        """A new run: claims on their way are forgotten here; the log keeps their outcome."""
        with self._changed:
            self._queue.clear()
            self._in_flight.clear()
            self._changed.notify_all()

    @property
    def position(self) -> int:
        """Claim log positions applied."""
        return self._meld.position

    # Any thread

    def prior(self, partition: int, offset: int) -> Claim | None:
        return self._meld.prior(partition, offset)

    # The device thread

    def submit(self, judged: Judged) -> None:
        """Claims what needs a claim. Blocks while `MAX_IN_FLIGHT` batches wait, or `MAX_ROWS`
        claims of them.

        Where the log went on by half of W meanwhile, it is searched again first: the claims would
        soon be void.
        """
        rows, waited = judged.claimed, False
        with self._changed:
            while self._is_full(len(rows)):
                if self._failure.stop.is_set() or not self._fence.holds(judged.span):
                    return
                waited = True
                self._changed.wait(0.1)
            if not self._fence.holds(judged.span):
                return
            pending = _Pending(judged, len(rows), rows, time.monotonic())
            self._queue.append(pending)
            self._claim_next(pending, waited)
        self._emit()

    def _is_full(self, more: int) -> bool:
        waiting = sum(pending.missing for pending in self._queue)
        return len(self._queue) >= MAX_IN_FLIGHT or (waiting > 0 and waiting + more > MAX_ROWS)

    def withdraw(self, partition: int, offset: int, term: int) -> None:
        """A winner that can never be delivered. Blocks until the entry is in the log, which is
        before any commit that skips the record."""
        self._log.append(Withdraw(partition, offset, term))
        self._flush()

    def _flush(self) -> None:
        if self._log.flush(ENTRY_DEADLINE_S):
            raise TemporaryError(
                f"{self._log.topic}: an entry could not be written within {ENTRY_DEADLINE_S:.0f} s. Start again."
            )

    def _claim_next(self, pending: _Pending, waited: bool) -> None:
        """Claims `MAX_ROWS` of a batch that has none on their way. ``waited``: perhaps for so long
        that they are searched for again first."""
        while len(pending.unclaimed) and pending.missing == len(pending.unclaimed):
            rows, pending.unclaimed = pending.unclaimed[:MAX_ROWS], pending.unclaimed[MAX_ROWS:]
            seen = pending.judged.seen
            if waited and self._meld.position - seen > self._meld.window // 2:
                pending.missing -= self._claim_again(pending, rows)
            else:
                self._claim(pending, rows, seen)

    def _claim(self, pending: _Pending, rows: np.ndarray, seen: int) -> None:
        """Appends claims of these rows, an entry a partition."""
        judged = pending.judged
        if len(rows) == 0:
            return
        partitions = np.fromiter((judged.records[i].partition for i in rows), np.int64, len(rows))
        offsets = np.fromiter((judged.records[i].offset for i in rows), np.int64, len(rows))
        for partition in np.unique(partitions):
            mine = partitions == partition
            term = judged.span.terms[int(partition)].id
            entry = Claims(int(partition), term, seen, offsets[mine], judged.embeddings[rows[mine]])
            self._claimed[int(partition)] = self._claimed.get(int(partition), 0) + len(
                entry.offsets
            )
            at = 0
            for part in self._log.append_claims(entry):
                n = len(part.offsets)
                self._in_flight[term, int(part.offsets[0])] = (pending, rows[mine][at : at + n])
                at += n

    # The claims thread

    def run(self) -> None:
        while not self._failure.stop.is_set():
            applied = self._log.tail(0.01 if self._queue else 0.05)
            if applied:
                with self._changed:
                    for entry, outcome in applied:
                        if isinstance(entry, Claims):
                            self._settle(entry, outcome)
                        elif isinstance(entry, Open):
                            self._watch(entry)
                    self._changed.notify_all()
                self._applied()
            self._emit()

    def _watch(self, entry: Open) -> None:
        latest = self._meld.open_of(entry.partition)
        ours = self._terms.get(entry.partition)
        if (
            ours is not None
            and latest is not None
            and latest.term == entry.term != ours
            and self._held(entry.partition, ours)
        ):
            self.superseded = self.superseded | {entry.partition}

    def _held(self, partition: int, term: int) -> bool:
        """True once our own open was read back: an older owner's open before ours is no news."""
        return self._opened.get(partition) == term

    def _settle(self, entry: Claims, outcome: Applied) -> None:
        key = (entry.term, int(entry.offsets[0]))
        if key not in self._in_flight:
            return
        pending, rows = self._in_flight.pop(key)
        judged = pending.judged
        again: list[int] = []
        answers = zip(
            rows.tolist(), outcome.status.tolist(), outcome.positions.tolist(), strict=True
        )
        for k, (row, status, position) in enumerate(answers):
            if status == WON:
                judged.decisions[row] = judged.decisions[row]._replace(claim=position)
            elif status == LOST:
                winner, similarity = outcome.origins[k], float(outcome.similarity[k])
                judged.decisions[row] = duplicate(
                    judged.decisions[row], winner, similarity, position, self._flags
                )
            elif status == VOID_STALE:
                again.append(row)
            elif status == VOID_TERM:
                return  # another owner: what is in flight here will be dropped by the Kafka thread
            elif status == VOID_VECTOR:
                raise ProtocolError("this is a bug: a claim's vector is not a unit vector")
            else:
                raise ProtocolError(
                    f"this is a bug: {key_of(entry.partition, int(entry.offsets[k]))} was claimed twice under one term"
                )
        pending.missing -= len(rows) - len(again)
        if again:
            self._metrics.claims_void.inc(len(again))
            pending.missing -= self._claim_again(pending, np.array(again, np.int64))
        self._claim_next(pending, waited=True)
        if not pending.missing:
            self._metrics.claim_round_trip.observe(time.monotonic() - pending.started)

    def _claim_again(self, pending: _Pending, rows: np.ndarray) -> int:
        """A search that is older than W counts for nothing: search again, then claim. Returns how
        many were found duplicates at once."""
        judged = pending.judged
        found = self._meld.precheck(judged.embeddings[rows])
        hits = found.winners >= 0
        for k in np.flatnonzero(hits):
            row = int(rows[k])
            judged.decisions[row] = duplicate(
                judged.decisions[row],
                found.origins[k],
                float(found.similarity[k]),
                None,
                self._flags,
            )
        self._claim(pending, rows[~hits], found.seen)
        return int(hits.sum())

    def _emit(self) -> None:
        """Hands on every batch at the head of the queue that has all its verdicts, as far as the
        epoch writer has room. Does not block: the writer may be waiting for the Kafka thread, and
        that one in `open` for the claims thread."""
        if not self._emitting.acquire(blocking=False):
            return  # the other thread is at it; the claims thread comes again at its next turn
        try:
            while True:
                with self._changed:
                    if not self._queue or self._queue[0].missing:
                        return
                    pending = self._queue[0]
                if not hand_on(pending.judged, self._decided, timeout=0.0):
                    return
                with self._changed:
                    if (
                        self._queue and self._queue[0] is pending
                    ):  # unless a new run began meanwhile
                        self._queue.popleft()
                        self._changed.notify_all()
        finally:
            self._emitting.release()


def hand_on(judged: Judged, decided: Channel[Decided], timeout: float) -> bool:
    """Puts a batch whose every decision holds into the writer's channel. False if it had no room
    for ``timeout`` seconds."""
    batch = DecidedBatch(
        judged.records,
        judged.facts,
        judged.decisions,
        judged.embeddings,
        judged.embedded,
        judged.scores,
    )
    return decided.put(Decided(judged.span, batch), judged.nbytes, timeout)


class NoClaims:
    """The stage of ``dedup: off``: every decision holds at once."""

    superseded: frozenset[int] = frozenset()
    position = 0

    def __init__(self, decided: Channel[Decided], fence: Fence, failure: Failure) -> None:
        self._decided = decided
        self._fence = fence
        self._failure = failure

    def submit(self, judged: Judged) -> None:
        while self._fence.holds(judged.span) and not self._failure.stop.is_set():
            if hand_on(judged, self._decided, timeout=0.1):
                return

    def open(self, terms: Sequence[Term], serve: Callable[[], None]) -> None:
        pass

    def close(self, partitions: Collection[int]) -> None:
        pass

    def renew(self, committed: Mapping[int, int], terms: Mapping[int, Term]) -> None:
        pass

    def reset(self) -> None:
        pass

    def skip(self, term: Term, first: int, following: int) -> None:
        pass

    def latest_generation(self, partition: int) -> int:
        return -1

    def prior(self, partition: int, offset: int) -> Claim | None:
        return None

    def withdraw(self, partition: int, offset: int, term: int) -> None:
        raise AssertionError("this is a bug: without claims there are no winners")
