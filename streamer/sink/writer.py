"""The epoch writer thread: decided batches in, sealed epochs out, in the order of the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from streamer.config import Config
from streamer.errors import DeadLetterFuse, DependencyError, ProtocolError
from streamer.flow.channel import Channel
from streamer.flow.item import Decided, Fence, Run, Span
from streamer.flow.worker import Failure
from streamer.ops.metrics import Metrics
from streamer.ops.tally import EpochTally
from streamer.records import DecidedBatch, Term
from streamer.sink.engine import DeadLetter, Sealed, iso
from streamer.sink.epoch import EpochWriter
from streamer.sink.fuse import Flood, Fuse
from streamer.wire.limits import headers_bytes

log = logging.getLogger("streamer")

DEAD_LETTER_BYTES = 64_000_000
"""An epoch that holds so many bytes of invalid records in memory for its transaction is sealed."""
EPOCH_BYTES = 20_000_000_000
"""An epoch is sealed at so many bytes, whatever its records."""
MAX_SEALED = 2
"""Epochs that may wait for the Kafka thread."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A sealed epoch on its way to the Kafka thread. ``sealed`` is None where a flush found nothing
    to seal."""

    run: Run
    sealed: Sealed | None
    tally: EpochTally
    flush: int
    """The flush request that this answers; 0: none."""


class OpenEpoch(Protocol):
    """Makes the writer of one epoch's files: ``(epoch, uuid) -> EpochWriter``."""

    def __call__(self, epoch: int, uuid: str) -> EpochWriter: ...


class EpochThread:
    """Owns the open epoch. `run` is the thread's body; `take` is for the Kafka thread."""

    def __init__(
        self,
        config: Config,
        decided: Channel[Decided],
        fence: Fence,
        open_epoch: OpenEpoch,
        claims_position: Callable[[], int],
        allowed: Mapping[int, int],
        failure: Failure,
        metrics: Metrics,
        beat: Callable[[], None],
    ) -> None:
        """``allowed``: see `Fuse`."""
        self._beat = beat
        self._limits = config.output
        self._decided = decided
        self._fence = fence
        self._open_epoch = open_epoch
        self._claims_position = claims_position
        self._failure = failure
        self._metrics = metrics
        self._fuse = Fuse(config.dead_letters.max_ratio, allowed)
        self._stops = config.dead_letters.on_flood == "stop"
        self._flooded: tuple[Run, Flood] | None = None
        self._sealed: Channel[Finished] = Channel("sealed", MAX_SEALED)
        self._opened = 0
        self._run = fence.run
        self._positions: dict[int, tuple[int, int]] = {}
        self._epoch: _Epoch | None = None

    def take(self, timeout: float) -> Finished | None:
        """The oldest finished epoch; None if nothing came within ``timeout`` seconds."""
        return self._sealed.get(timeout)

    def flood(self, run: Run) -> Flood | None:
        """Of which partition too many records are invalid; nothing of the run is written any more.
        Any thread; does not block."""
        flooded = self._flooded
        return None if flooded is None or flooded[0].number != run.number else flooded[1]

    def run(self) -> None:
        try:
            while not self._failure.stop.is_set():
                item = self._decided.get(0.05)
                self._beat()
                if self._run.number != self._fence.run.number:
                    self._forget()
                if self.flood(self._run) is not None:
                    continue
                if item is not None and self._fence.holds(item.span):
                    with self._metrics.stage("write"):
                        self._append(item)
                    if item.span.flush and self.flood(self._run) is None:
                        self._seal(item.span.flush)
                if self._epoch is not None and self._is_due(self._epoch):
                    self._seal(0)
        finally:
            with suppress(
                DependencyError
            ):  # also after a failure: it may be what fills the disk. The next start tries again
                self._forget()

    def _append(self, item: Decided) -> None:
        span, batch = item.span, item.batch
        if self._epoch is None and not batch.records and not self._moves(span):
            return
        flood = self._fuse.count(batch)
        if flood is not None:
            self._blow(flood)
            return
        epoch = self._epoch or self._open(span.run)
        for record in batch.records:
            self._range(epoch, record.partition, span.terms).advance(record.offset)
        if batch.records:
            epoch.write(batch)
        for partition, offset in span.marks.items():
            if partition in span.terms:
                known = self._range(epoch, partition, span.terms)
                known.next = max(known.next, offset)
        for partition, ranges in span.skips.items():
            if partition in span.terms:
                self._range(epoch, partition, span.terms).skip(ranges)
        self._metrics.epoch_open(epoch.records, epoch.nbytes, epoch.opened)

    def _blow(self, flood: Flood) -> None:
        if self._stops:
            raise DeadLetterFuse(
                f"partition {flood.partition}: {flood.why}. Nothing of this epoch was committed. "
                "Look at the records in a scratch dataset (`streamer replay run --dataset scratch "
                "--from count:200 --set dead_letters.max_ratio=1`), or raise dead_letters.max_ratio "
                "(1 switches the fuse off)."
            )
        if self._epoch is not None:
            self._epoch.files.discard()
            self._epoch = None
            self._metrics.epoch_open(0, 0, 0)
        self._flooded = self._run, flood

    def _moves(self, span: Span) -> bool:
        """True if an end-of-partition mark lies beyond what is decided, or offsets are skipped."""
        return any(
            p in span.terms and offset > self._position(p, span.terms)
            for p, offset in span.marks.items()
        ) or not span.terms.keys().isdisjoint(span.skips)

    def _position(self, partition: int, terms: Mapping[int, Term]) -> int:
        """The next offset to decide, under the term that owns the partition now."""
        term, following = self._positions.get(partition, (0, 0))
        return following if term == terms[partition].id else terms[partition].start

    def _range(self, epoch: _Epoch, partition: int, terms: Mapping[int, Term]) -> _Range:
        known = epoch.ranges.get(partition)
        if known is None:
            known = epoch.ranges[partition] = _Range(
                terms[partition].id, self._position(partition, terms)
            )
        elif known.term != terms[partition].id:
            raise ProtocolError(f"this is a bug: partition {partition} has two terms in one epoch")
        return known

    def _open(self, run: Run) -> _Epoch:
        uuid = uuid4().hex
        number = run.first_epoch + self._opened
        self._opened += 1
        self._epoch = _Epoch(number, uuid, self._open_epoch(number, uuid))
        return self._epoch

    def _is_due(self, epoch: _Epoch) -> bool:
        return (
            epoch.records >= self._limits.epoch_records
            or epoch.nbytes >= EPOCH_BYTES
            or epoch.dead_bytes >= DEAD_LETTER_BYTES
            or time.monotonic() - epoch.began >= self._limits.seal_after
        )

    def _seal(self, flush: int) -> None:
        epoch, run = self._epoch, self._run
        sealed = None
        if epoch is not None:
            with self._metrics.stage("seal"):
                sealed = epoch.seal(self._claims_position())
            log.info(
                "epoch sealed",
                extra={"epoch": sealed.epoch, "uuid": sealed.uuid, "records": epoch.records},
            )
            for partition, owned in epoch.ranges.items():
                self._positions[partition] = (owned.term, owned.next)
            self._epoch = None
            self._metrics.epoch_open(0, 0, 0)
        finished = Finished(run, sealed, epoch.tally if epoch is not None else EpochTally(), flush)
        while not self._failure.stop.is_set() and run.number == self._fence.run.number:
            if self._sealed.put(finished, timeout=0.1):
                return
        if epoch is not None:
            epoch.files.discard()

    def _forget(self) -> None:
        """A new run: nothing of the old one may be written down."""
        if self._epoch is not None:
            self._epoch.files.discard()
            self._epoch = None
            self._metrics.epoch_open(0, 0, 0)
        self._run = self._fence.run
        self._opened = 0
        self._positions.clear()


class _Range:
    """A partition's share of the open epoch: [first, next)."""

    __slots__ = ("first", "next", "skipped", "term")

    def __init__(self, term: int, first: int) -> None:
        self.term = term
        self.first = first
        self.next = first
        self.skipped: tuple[tuple[int, int], ...] = ()

    def skip(self, ranges: tuple[tuple[int, int], ...]) -> None:
        self.skipped += ranges
        self.next = max(self.next, *(following for _, following in ranges))

    def advance(self, offset: int) -> None:
        if offset < self.next:
            raise ProtocolError(
                f"this is a bug: offset {offset} comes after {self.next - 1} in the line"
            )
        self.next = offset + 1


class _Epoch:
    def __init__(self, number: int, uuid: str, files: EpochWriter) -> None:
        self.number = number
        self.uuid = uuid
        self.files = files
        self.opened = time.time()
        self.began = time.monotonic()
        self.ranges: dict[int, _Range] = {}
        self.dead: list[DeadLetter] = []
        self.dead_bytes = 0
        self.tally = EpochTally()

    @property
    def records(self) -> int:
        return self.files.records

    @property
    def nbytes(self) -> int:
        return self.files.nbytes

    def write(self, batch: DecidedBatch) -> None:
        self.files.append(batch)
        self.tally.add(batch)
        for record, decision in zip(batch.records, batch.decisions, strict=True):
            if decision.outcome == "invalid":
                reason, detail = decision.reason or "", decision.detail
                self.dead.append(
                    DeadLetter(
                        record.partition,
                        record.offset,
                        record.value,
                        record.headers,
                        reason,
                        detail,
                    )
                )
                self.dead_bytes += len(record.value or b"") + headers_bytes(record.headers) + 500

    def seal(self, claims_position: int) -> Sealed:
        files = self.files.seal()
        return Sealed(
            epoch=self.number, uuid=self.uuid, ranges={p: (r.first, r.next) for p, r in sorted(self.ranges.items())},
            skipped={p: r.skipped for p, r in sorted(self.ranges.items()) if r.skipped},
            terms={p: r.term for p, r in self.ranges.items()}, counts=dict(self.files.counts), files=files, dead_letters=self.dead,
            claims_position=claims_position, started=iso(self.opened), sealed=iso(time.time()), began=self.began,
        )  # fmt: skip
