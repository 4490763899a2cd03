"""The manifest of one epoch: what the commit log and ``manifests/WRITER-EPOCH.json``
both hold, byte for byte.

`encode` gives one line of JSON with its fields in a fixed order, so equal manifests are equal
bytes. `decode` checks everything that a reader acts on: paths stay inside the dataset folder,
ranges are ranges, counts are counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from streamer.errors import ProtocolError
from streamer.records import OUTCOMES

VERSION: Literal[1] = 1
Range = tuple[int, int]
"""``(first, next)``: half-open, in Kafka offsets."""

_WRITER = re.compile(r"[a-z0-9-]+")
_UUID = re.compile(r"[0-9a-f-]{1,64}")
_PATH = re.compile(r"(?:shards/[a-z0-9]+|metadata)/[a-z0-9-]+\.(?:tar|parquet)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an epoch. ``rows``: samples of a tar, rows of a Parquet file."""

    path: str
    """From the dataset folder."""
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that one commit makes true; docs/reference.md names the fields."""

    version: int
    dataset: str
    writer: str
    epoch: int
    uuid: str
    previous_uuid: str | None
    """The uuid of the same writer's epoch before this one; None for its first."""
    partitions: Mapping[int, Range]
    skipped: Mapping[int, tuple[Range, ...]]
    """Offsets inside ``partitions`` that will never be decided."""
    counts: Mapping[str, int]
    """Rows by outcome; offsets are not dense, so counts come from rows and never from ranges."""
    files: tuple[FileEntry, ...]
    claims_position: int
    pipeline: Mapping[str, Any]
    started: str
    """ISO 8601, UTC."""
    sealed: str

    @property
    def name(self) -> str:
        """``WRITER-EPOCH``: the stem of every public file of this epoch."""
        return epoch_name(self.writer, self.epoch)

    @property
    def path(self) -> str:
        """The manifest's own public path, from the dataset folder."""
        return f"manifests/{self.name}.json"


def epoch_name(writer: str, epoch: int) -> str:
    return f"{writer}-{epoch:08d}"


def encode(manifest: Manifest) -> bytes:
    """Raises ProtocolError for a manifest that `decode` would refuse: it must never reach the
    commit log."""
    raw = {f.name: getattr(manifest, f.name) for f in fields(Manifest)}
    raw["partitions"] = {str(p): list(r) for p, r in sorted(manifest.partitions.items())}
    raw["skipped"] = {
        str(p): [list(r) for r in ranges] for p, ranges in sorted(manifest.skipped.items())
    }
    raw["counts"] = dict(manifest.counts)
    raw["files"] = [
        {"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "rows": f.rows}
        for f in manifest.files
    ]
    raw["pipeline"] = dict(manifest.pipeline)
    data = json.dumps(raw, separators=(",", ":")).encode() + b"\n"
    decode(data)
    return data


def decode(data: bytes) -> Manifest:
    """The inverse of `encode`. Raises ProtocolError, naming the field, for anything that is not a
    manifest of version 1."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise ProtocolError(f"a manifest is not JSON ({error}): {data[:80]!r}") from None
    if not isinstance(raw, dict):
        raise ProtocolError(f"a manifest is not a JSON object: {data[:80]!r}")
    if raw.get("version") != VERSION:
        raise ProtocolError(
            f"a manifest has version {raw.get('version')!r}, this release reads {VERSION}: run the release that wrote it"
        )
    known = {f.name for f in fields(Manifest)}
    if raw.keys() != known:
        raise ProtocolError(
            f"a manifest has wrong fields: missing {sorted(known - raw.keys())}, unknown {sorted(raw.keys() - known)}"
        )
    return _Reader(raw).manifest()


class _Reader:
    """Turns parsed JSON into a Manifest; every check names the writer, epoch and field."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw

    def manifest(self) -> Manifest:
        raw = self._raw
        partitions = {
            self._number("partitions", p): self._range("partitions", r)
            for p, r in self._mapping("partitions").items()
        }
        skipped = {
            self._number("skipped", p): tuple(
                self._range("skipped", r) for r in self._items("skipped", ranges)
            )
            for p, ranges in self._mapping("skipped").items()
        }
        for partition, ranges in skipped.items():
            first, end = partitions.get(partition, (0, -1))
            self._check(
                all(first <= a and b <= end for a, b in ranges),
                "skipped",
                f"partition {partition} is outside its range",
            )
        counts = {k: self._number("counts", v) for k, v in self._mapping("counts").items()}
        self._check(set(counts) <= set(OUTCOMES), "counts", f"outcomes are {', '.join(OUTCOMES)}")
        previous = raw["previous_uuid"]
        return Manifest(
            version=VERSION,
            dataset=self._text("dataset"),
            writer=self._text("writer", _WRITER),
            epoch=self._number("epoch", raw["epoch"]),
            uuid=self._text("uuid", _UUID),
            previous_uuid=None if previous is None else self._text("previous_uuid", _UUID),
            partitions=partitions,
            skipped=skipped,
            counts=counts,
            files=tuple(self._file(f) for f in self._items("files", raw["files"])),
            claims_position=self._number("claims_position", raw["claims_position"]),
            pipeline=self._mapping("pipeline"),
            started=self._text("started"),
            sealed=self._text("sealed"),
        )

    def _check(self, holds: bool, field: str, why: str) -> None:
        if not holds:
            raise ProtocolError(
                f"manifest {self._raw['writer']!r} epoch {self._raw['epoch']!r}: {field}: {why}"
            )

    def _mapping(self, field: str) -> dict[str, Any]:
        value = self._raw[field]
        self._check(isinstance(value, dict), field, "not an object")
        return dict(value)

    def _items(self, field: str, value: Any) -> list[Any]:
        self._check(isinstance(value, list), field, "not a list")
        return list(value)

    def _text(self, field: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self._raw[field]
        self._check(
            isinstance(value, str) and (pattern is None or pattern.fullmatch(value) is not None),
            field,
            f"{value!r} is not allowed",
        )
        return str(value)

    def _number(self, field: str, value: Any) -> int:
        if isinstance(value, str) and value.isdecimal():  # object keys are strings in JSON
            value = int(value)
        self._check(
            isinstance(value, int) and not isinstance(value, bool) and value >= 0,
            field,
            f"{value!r} is not a number from 0 on",
        )
        return int(value)

    def _range(self, field: str, value: Any) -> Range:
        self._check(
            isinstance(value, list) and len(value) == 2, field, f"{value!r} is not [first, next)"
        )
        first, end = (self._number(field, v) for v in value)
        self._check(first <= end, field, f"[{first}, {end}) runs backwards")
        return first, end

    def _file(self, value: Any) -> FileEntry:
        self._check(
            isinstance(value, dict) and value.keys() == {"path", "bytes", "sha256", "rows"},
            "files",
            f"{value!r} is no file entry",
        )
        path, sha256 = value["path"], value["sha256"]
        self._check(
            isinstance(path, str) and _PATH.fullmatch(path) is not None,
            "files",
            f"{path!r} is no path of a dataset folder",
        )
        self._check(
            isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None,
            "files",
            f"{sha256!r} is no sha256",
        )
        return FileEntry(
            path,
            self._number("files", value["bytes"]),
            sha256,
            self._number("files", value["rows"]),
        )
