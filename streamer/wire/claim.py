"""Entries of the claim log ``NAME.claims``: bytes ⇄ types.

What is rare is JSON, so that a person can read it; what is frequent is binary, and decoding it copies nothing.
The first bytes tell which::

    {            one JSON object with "entry": "dataset" | "open" | "withdraw" and "version"
    SCLM         claims: header of 32 bytes, then the offsets, then the vectors; everything little-endian

        0  4s  magic "SCLM"        8  int32   partition       16  uint64  term         32           int64[rows]         offsets
        4  u16 version             12 uint32  rows            24  int64   seen         32 + 8·rows  float16[rows][dim]  vectors
        6  u16 dim
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamer.errors import DependencyError, ProtocolError
from streamer.records import F16, I64

VERSION = 1
"""Version of these encodings. What a meld makes of them has its own, in the dataset entry."""
_MAGIC = b"SCLM"
_HEADER = struct.Struct("<4sHHiIQq")
_OFFSET = np.dtype("<i8")
_VECTOR = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """The first entry: what the dataset is bound to for good."""

    topic_id: str
    """Kafka's id of the input topic."""
    model: str
    """The embedder's fingerprint."""
    dim: int
    threshold: float
    meld_version: int

    def spell(self, name: str) -> str:
        """A field as people write it; the threshold 0 stands for ``dedup: off``."""
        value = getattr(self, name)
        return "off" if name == "threshold" and value == 0 else repr(value)


@dataclass(frozen=True, slots=True)
class Open:
    """An owner takes a partition from offset ``start`` on (on the wire: ``from``)."""

    partition: int
    generation: int
    """The consumer group's generation under which the partition was assigned."""
    term: int
    """uint64, unique to this assignment; the owner's claims carry it."""
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """Rows of one micro-batch that claim their place. n rows, d dimensions."""

    partition: int
    term: int
    seen: int
    """Position that the claimant's meld had fully applied when it pre-checked these rows."""
    offsets: I64
    """(n,) int64"""
    vectors: F16
    """(n, d) float16, L2-normalised; read-only when decoded."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The winner of this origin can never be delivered. Counts like a claim: under the owner's term
    only, since a zombie would otherwise withdraw what the new owner has delivered."""

    partition: int
    offset: int
    term: int


Entry = DatasetEntry | Open | Claims | Withdraw


def encode(entry: Entry) -> bytes:
    """The value of one Kafka message. Pure."""
    if isinstance(entry, Claims):
        rows, dim = entry.vectors.shape
        assert entry.vectors.dtype == np.float16, "this is a bug: vectors travel as float16"
        assert entry.offsets.shape == (rows,), (
            "this is a bug: claims need one offset for each vector"
        )
        return b"".join(
            (
                _HEADER.pack(_MAGIC, VERSION, dim, entry.partition, rows, entry.term, entry.seen),
                entry.offsets.astype(_OFFSET, copy=False).tobytes(),
                entry.vectors.astype(_VECTOR, copy=False).tobytes(),
            )
        )
    name, fields = _WIRE[type(entry)]
    body = {"entry": name, "version": VERSION} | {
        wire: getattr(entry, attribute) for wire, (attribute, _) in fields.items()
    }
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes) -> Entry:
    """The inverse of `encode`. Arrays are read-only views of ``data``. Pure.

    Raises ProtocolError, with the way out, for bytes that no `encode` of this version made: a
    replica that skipped them would no longer agree with the others.
    """
    if data[:4] == _MAGIC:
        return _decode_claims(data)
    if data[:1] == b"{":
        return _decode_json(data)
    raise _foreign(data, "it is no entry of streamer's")


def split(claims: Claims, max_bytes: int) -> list[Claims]:
    """Parts by rows, in order, each at most ``max_bytes`` when encoded; arrays are views. Pure.

    Raises DependencyError where not even one row fits.
    """
    rows, dim = claims.vectors.shape
    row_bytes = _OFFSET.itemsize + dim * _VECTOR.itemsize
    fitting = (max_bytes - _HEADER.size) // row_bytes
    if fitting < 1:
        raise DependencyError(
            f"claim log: a message of {max_bytes} bytes cannot hold one claim of {dim} dimensions;"
            f" raise max.message.bytes of the claims topic to at least {_HEADER.size + row_bytes} (better 1 MB or more)"
        )
    return [
        Claims(
            claims.partition,
            claims.term,
            claims.seen,
            claims.offsets[at : at + fitting],
            claims.vectors[at : at + fitting],
        )
        for at in range(0, rows, fitting)
    ]


def _decode_claims(data: bytes) -> Claims:
    if len(data) < _HEADER.size:
        raise _foreign(data, f"its header ends after {len(data)} bytes")
    _, version, dim, partition, rows, term, seen = _HEADER.unpack_from(data)
    if version != VERSION:
        raise _foreign(data, f"its version is {version}", newer=version > VERSION)
    vectors_at = _HEADER.size + rows * _OFFSET.itemsize
    if len(data) != vectors_at + rows * dim * _VECTOR.itemsize:
        raise _foreign(data, f"{rows} rows of {dim} dimensions do not make {len(data)} bytes")
    if partition < 0 or seen < 0:
        raise _foreign(data, f"partition {partition} or seen {seen} is negative")
    offsets = np.frombuffer(data, _OFFSET, rows, _HEADER.size)
    vectors = np.frombuffer(data, _VECTOR, rows * dim, vectors_at).reshape(rows, dim)
    return Claims(partition, term, seen, offsets, vectors)


def _decode_json(data: bytes) -> Entry:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _foreign(data, f"it is not JSON: {error}") from None
    version, name = body.pop("version", None), body.pop("entry", None)
    if version != VERSION:
        raise _foreign(
            data,
            f"its version is {version!r}",
            newer=isinstance(version, int) and version > VERSION,
        )
    for kind, (known, fields) in _WIRE.items():
        if name == known:
            if body.keys() != fields.keys():
                raise _foreign(
                    data,
                    f"{name} has the fields {', '.join(fields)}, this one has {', '.join(body) or 'none'}",
                )
            for wire, (_, is_right) in fields.items():
                if not is_right(body[wire]):
                    raise _foreign(data, f"{name}.{wire} cannot be {body[wire]!r}")
            made: Entry = kind(**{attribute: body[wire] for wire, (attribute, _) in fields.items()})
            return made
    raise _foreign(data, f"there is no entry {name!r}")


def _whole(below: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < below


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _cosine(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and -1 <= value <= 1


_WIRE: dict[type[Any], tuple[str, dict[str, tuple[str, Callable[[Any], bool]]]]] = {
    DatasetEntry: (
        "dataset",
        {
            "topic_id": ("topic_id", _text),
            "model": ("model", _text),
            "dim": ("dim", _whole(2**16, least=1)),
            "threshold": ("threshold", _cosine),
            "meld_version": ("meld_version", _whole(2**31)),
        },
    ),
    Open: (
        "open",
        {
            "partition": ("partition", _whole(2**31)),
            "generation": ("generation", _whole(2**63, least=-1)),
            "term": ("term", _whole(2**64)),
            "from": ("start", _whole(2**63)),
        },
    ),
    Withdraw: (
        "withdraw",
        {
            "partition": ("partition", _whole(2**31)),
            "offset": ("offset", _whole(2**63)),
            "term": ("term", _whole(2**64)),
        },
    ),
}
"""Entry type → its name on the wire, and per field on the wire its attribute and what it may hold."""


def _foreign(data: bytes, what: str, newer: bool = False) -> ProtocolError:
    if newer:
        return ProtocolError(
            f"claim log: {what}, and this streamer reads version {VERSION}; upgrade this replica to the others' version"
        )
    return ProtocolError(
        f"claim log: an entry that begins with {data[:16]!r} cannot be read: {what}. Something else writes to the claims topic, or it is"
        " damaged: stop that writer, and make the dataset again under a new name with `streamer replay run`"
    )
