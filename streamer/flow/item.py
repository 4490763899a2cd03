"""What travels down the line between threads: lists of records with their bookkeeping beside them.

Chunk ─▶ (decode) ─▶ Judged ─▶ (claims) ─▶ Decided
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from streamer.records import (
    F16,
    F32,
    I64,
    Bools,
    DecidedBatch,
    Decision,
    Decoded,
    Facts,
    Record,
    Term,
)

Range = tuple[int, int]
"""``(first, next)``: half-open, in Kafka offsets."""


@dataclass(frozen=True, slots=True)
class Run:
    """One life of the line. Whatever was read under an older run is forgotten wherever it is met."""

    number: int
    first_epoch: int
    """The number of the first epoch that this run opens."""


@dataclass(frozen=True, slots=True)
class Span:
    """The bookkeeping of one item; marks and flush come after its records."""

    run: Run
    terms: Mapping[int, Term]
    """The partitions owned when the records were polled."""
    marks: Mapping[int, int]
    """Partition → end-of-partition offset that was reached: the epoch's end moves there."""
    flush: int = 0
    """Not 0: everything before this is to be sealed now; the number names the request."""
    skips: Mapping[int, tuple[Range, ...]] = field(default_factory=dict)
    """Partition → offsets that will never be decided: the epoch's end moves past them. What comes
    behind them of the partition is in no earlier item."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records on their way through the decode pool."""

    span: Span
    decoded: Future[list[Decoded]]


@dataclass(frozen=True, slots=True)
class Judged:
    """A judged batch of n records. ``decisions`` hold if every claim is won; `claimed` lists the
    rows where that is open."""

    span: Span
    records: list[Record]
    facts: list[Facts]
    decisions: list[Decision]
    embeddings: F16
    embedded: Bools
    scores: dict[str, F32]
    claimed: I64
    """Ascending row numbers that need a claim."""
    seen: int
    """Claim log position applied when they were pre-checked."""
    nbytes: int = 0
    """What the records take in memory."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A batch whose every record has its one decision."""

    span: Span
    batch: DecidedBatch


class Fence:
    """The current run, and whether it is cut. Written by the Kafka thread alone, read by all."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cut = (-1, 0)
        """(run number, flush request): of that run nothing more is to be embedded; the batcher
        answers with the flush."""

    def holds(self, span: Span) -> bool:
        return span.run.number == self.run.number
