"""The words of the line as types, in the order a record travels. Standard library and numpy only.

Record ─▶ Envelope ─▶ Sample | Settled ─▶ (Judge) ─▶ DecidedBatch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Outcome = Literal["accepted", "filtered", "duplicate", "invalid"]
OUTCOMES: tuple[Outcome, ...] = ("accepted", "filtered", "duplicate", "invalid")
NEAR_DUPLICATE = "near_duplicate"
"""Reason of a duplicate, and flag of one that ``dedup.action: flag`` lets pass."""
FORMAT_RULE = "format"
"""Name of the implicit first rule, so a reason too: the format is one of ``output.formats``."""

Headers = Sequence[tuple[str, bytes | None]]
UNREADABLE_HEADERS: Headers = (("streamer-unreadable-headers", None),)
"""In place of headers among which one's name is not UTF-8: the client gives none of them, and the
record is invalid."""
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class Term(NamedTuple):
    """One ownership of a partition by this replica: from one assignment (or rewind) to the next."""

    partition: int
    id: int
    generation: int
    """The consumer group's generation at the assignment."""
    start: int
    """The first offset read under it."""


class Record(NamedTuple):
    """What Kafka delivered. The topic is the dataset's; (partition, offset) is the origin."""

    partition: int
    offset: int
    timestamp_ms: int
    """UTC milliseconds; 0 where the broker has none, or one that is no date."""
    value: bytes | None
    headers: Headers


def key_of(partition: int, offset: int) -> str:
    """The sample key ``PPPPP_OOOOOOOOOOOO`` (contract: no dots, sorts like the origin)."""
    return f"{partition:05d}_{offset:012d}"


def origin_of(key: str) -> tuple[int, int]:
    """The inverse of `key_of`: (partition, offset). Raises ValueError for anything else."""
    partition, offset = key.split("_")
    return int(partition), int(offset)


class Reference(NamedTuple):
    """An image that is not in the record but at ``uri``."""

    uri: str
    sha256: str | None
    length: int | None


class Envelope(NamedTuple):
    """A record's value and headers, parsed."""

    id: str | None
    text: str
    url: str | None
    metadata: Mapping[str, Any]
    image: bytes | Reference


@dataclass(slots=True)
class Facts:
    """What is known about one record; every field but ``data`` is a column, None where it was never
    learnt."""

    id: str | None = None
    text: str | None = None
    url: str | None = None
    metadata: Mapping[str, Any] | None = None
    data: bytes | None = None
    """The image bytes as they came in; what is written to the shard."""
    format: str | None = None
    """The sniffed format as a file extension: jpg, png, webp, gif, …"""
    width: int | None = None
    """Pixels, after EXIF orientation."""
    height: int | None = None
    sha256: str | None = None
    """Hex digest of ``data``."""


class Claim(NamedTuple):
    """The final verdict on an origin's counting claim, as the claim log decided it."""

    position: int
    won: bool
    duplicate_of: tuple[int, int] | None
    """Origin of the lowest-position winner at or above the threshold; None iff won."""
    similarity: float | None
    """float64 dot product of the two fp16 vectors; None iff won."""
    vector: F16
    """(d,) float16, the vector of the claim that counted."""


class Decision(NamedTuple):
    """The one answer about a record. ``reason`` is None iff the outcome is accepted."""

    outcome: Outcome
    reason: str | None = None
    flags: tuple[str, ...] = ()
    """Names of every rule known to have failed, and `NEAR_DUPLICATE` where it is flagged so."""
    duplicate_of: tuple[int, int] | None = None
    similarity: float | None = None
    claim: int | None = None
    """Position of the claim that counted; None where none was made."""
    detail: str = ""
    """Where the outcome is ``invalid``: a few words about why."""


class FailedRule(NamedTuple):
    """A rule that a record failed."""

    name: str
    removes: bool


class Jpeg(NamedTuple):
    """A JPEG that the device decodes, where it can."""

    data: bytes
    """The file, stripped of what does not affect its pixels."""
    rows: int
    """Pixels, as stored."""
    columns: int
    orientation: int
    """EXIF's, 1 … 8: what has to be applied."""


class OnDevice(Protocol):
    """A tensor in the device's memory."""

    @property
    def shape(self) -> Any: ...


@dataclass(slots=True)
class Sample:
    """A record on its way to the device."""

    record: Record
    facts: Facts
    pixels: U8 | OnDevice | Jpeg
    """(height, width, 3) uint8, the embedder's input geometry, on the host or on the device; or
    what the device makes it from."""
    failures: list[FailedRule] = field(default_factory=list)
    """Header rules that failed (flagging rules only, unless ``prior`` is set)."""
    prior: Claim | None = None
    """The verdict of an earlier claim of the same origin: it decides, whatever the filters say now."""
    nbytes: int = 0
    """What record and facts take in memory (`streamer.wire.limits.weight`)."""


@dataclass(slots=True)
class Settled:
    """A record whose decision needs no embedding: invalid, filtered by its header, or undecodable
    with a prior claim."""

    record: Record
    facts: Facts
    decision: Decision
    prior: Claim | None = None
    nbytes: int = 0


Decoded = Sample | Settled


@dataclass(frozen=True, slots=True)
class DecidedBatch:
    """Decisions in the order of the line; columns for arrays, rows for bookkeeping. n records, d
    dimensions."""

    records: list[Record]
    facts: list[Facts]
    decisions: list[Decision]
    embeddings: F16
    """(n, d) float16; the row is meaningless where ``embedded`` is False."""
    embedded: Bools
    """(n,) bool"""
    scores: dict[str, F32]
    """Head name → (n,) float32, NaN where the record was not scored."""
