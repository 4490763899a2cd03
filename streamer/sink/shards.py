"""Accepted samples into WebDataset tars: one stream of shards per image format, reproducible to the
byte.

`webdataset.TarWriter` does the writing. Only what it hands its members to is ours: `TarStream` lays
down the same USTAR headers as `tarfile` (a test compares them byte for byte) without building them
anew for every member and without keeping a list of all of them: 10 µs for a sample of three members
instead of 65, and memory that does not grow.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quoted
from math import isfinite

from streamer.records import DecidedBatch, Decision, Facts, Record, key_of
from streamer.sink.folder import NewFile
from streamer.wire.manifest import FileEntry

compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_BLOCK = 512
_APART = 1 << 16
"""Members from this size on are written by themselves, not joined with their header first."""


class TarStream:
    """The two methods of `tarfile.TarFile` that TarWriter calls, for plain files with short ASCII
    names, all of one owner, mode and time."""

    def __init__(self, stream: io.BufferedWriter) -> None:
        self.nbytes = 0
        self._stream = stream
        self._fixed: tuple[bytes, bytes, bytes, int] = (b"", b"", b"", 0)

    def addfile(self, info: tarfile.TarInfo, data: io.BytesIO) -> None:
        name = info.name.encode("ascii")
        assert len(name) <= 100, f"this is a bug: {info.name!r} is too long for a USTAR header"
        if not self.nbytes:
            self._fixed = _fixed_fields(info)
        owner, times, rest, base = self._fixed
        size = b"%011o\0" % info.size
        checksum = b"%06o\0 " % (base + sum(name) + sum(size))
        header = (name.ljust(100, b"\0"), owner, size, times, checksum, rest)
        padding = bytes(-info.size % _BLOCK)
        if info.size < _APART:
            self._stream.write(b"".join((*header, data.getvalue(), padding)))
        else:
            self._stream.write(b"".join(header))
            self._stream.write(data.getvalue())
            self._stream.write(padding)
        self.nbytes += _BLOCK + info.size + len(padding)

    def close(self) -> None:
        """Two empty blocks, filled up to a record of twenty, as tar does."""
        self.nbytes += 2 * _BLOCK
        self._stream.write(bytes(2 * _BLOCK + -self.nbytes % tarfile.RECORDSIZE))


def _fixed_fields(info: tarfile.TarInfo) -> tuple[bytes, bytes, bytes, int]:
    """The header's fields that no member changes, as `tarfile` writes them, and their part of the
    checksum."""
    header = info.tobuf(tarfile.USTAR_FORMAT)
    owner, times, rest = header[100:124], header[136:148], header[156:]
    return owner, times, rest, sum(owner) + sum(times) + sum(rest) + 8 * ord(" ")


class _Shard:
    """One open tar."""

    def __init__(self, path: str, file: NewFile) -> None:
        from webdataset.writer import TarWriter  # late: it imports torch

        self.path = path
        self.file = file
        self.samples = 0
        self.tar = TarStream(file)
        self._writer = TarWriter(file, mtime=0, encoder=False)
        self._writer.tarstream = self.tar

    def write(self, key: str, extension: str, image: bytes, text: str, facts: bytes) -> None:
        self._writer.write({"__key__": key, extension: image, "txt": text.encode(), "json": facts})
        self.samples += 1

    def close(self) -> FileEntry:
        self._writer.close()
        self.file.close()
        return FileEntry(self.path, self.file.nbytes, self.file.sha256, self.samples)


class ShardWriter:
    """The tars of one epoch. ``create``: public path → new file. Writer thread only; methods block
    for I/O and raise DependencyError."""

    def __init__(
        self,
        create: Callable[[str], NewFile],
        name: str,
        topic: str,
        shard_records: int,
        shard_bytes: int,
    ) -> None:
        self.nbytes = 0
        """Bytes of image, text and JSON so far."""
        self._create = create
        self._name = name
        self._topic = quoted(topic)
        self._shard_records = shard_records
        self._shard_bytes = shard_bytes
        self._open: dict[str, _Shard] = {}
        self._numbers: dict[str, int] = {}
        self._closed: list[FileEntry] = []

    def append(self, batch: DecidedBatch, metadata: Sequence[str | None]) -> list[str | None]:
        """Writes the accepted samples of a batch, in order. ``metadata``: each record's as JSON.

        Returns for each record its shard's public path; None if not accepted.
        """
        names = [quoted(name) for name in batch.scores]
        columns = [
            [v if isfinite(v) else 0.0 for v in column.tolist()] for column in batch.scores.values()
        ]
        shards: list[str | None] = []
        for i, (record, facts, decision) in enumerate(
            zip(batch.records, batch.facts, batch.decisions, strict=True)
        ):
            if decision.outcome != "accepted":
                shards.append(None)
                continue
            scores = ",".join(
                [f"{name}:{column[i]!r}" for name, column in zip(names, columns, strict=True)]
            )
            shards.append(self._write(record, facts, decision, scores, metadata[i] or "{}"))
        return shards

    def _write(
        self, record: Record, facts: Facts, decision: Decision, scores: str, metadata: str
    ) -> str:
        assert facts.data is not None, "this is a bug: an accepted record has no image bytes"
        assert facts.format is not None, "this is a bug: an accepted record has no format"
        key = key_of(record.partition, record.offset)
        described = _describe(key, self._topic, record, facts, decision, scores, metadata)
        text = facts.text or ""
        shard = self._shard(facts.format)
        shard.write(key, facts.format, facts.data, text, described)
        self.nbytes += len(facts.data) + len(text) + len(described)
        if shard.samples >= self._shard_records or shard.tar.nbytes >= self._shard_bytes:
            self._closed.append(self._open.pop(facts.format).close())
        return shard.path

    def _shard(self, extension: str) -> _Shard:
        shard = self._open.get(extension)
        if shard is None:
            assert extension.isalnum(), f"this is a bug: {extension!r} is no format"
            number = self._numbers.get(extension, 0)
            self._numbers[extension] = number + 1
            path = f"shards/{extension}/{self._name}-{number:03d}.tar"
            shard = self._open[extension] = _Shard(path, self._create(path))
        return shard

    def close(self) -> list[FileEntry]:
        """Makes every tar complete and durable; sorted by path."""
        while self._open:
            self._closed.append(self._open.popitem()[1].close())
        return sorted(self._closed, key=lambda f: f.path)

    def abandon(self) -> None:
        """Gives up what is open. Does not raise."""
        while self._open:
            self._open.popitem()[1].file.abandon()


def _describe(
    key: str,
    topic: str,
    record: Record,
    facts: Facts,
    decision: Decision,
    scores: str,
    metadata: str,
) -> bytes:
    """The sample's ``json``: always the same keys, never null, every value always of one type.
    Without heads there is no ``scores``: an empty object has no type that Parquet could hold.

    Hugging Face ``datasets`` takes the types from the first five samples. So what is unknown is
    ``""``, ``0`` or ``0.0``, and what has no fixed shape (flags, metadata) is a string of JSON. The
    Parquet row tells unknown and zero apart.
    """
    duplicate_of = "" if decision.duplicate_of is None else key_of(*decision.duplicate_of)
    scored = f'"scores":{{{scores}}},' if scores else ""
    flags = '"[]"' if not decision.flags else quoted(compact(decision.flags))
    return (
        f'{{"key":"{key}","topic":{topic},"partition":{record.partition},"offset":{record.offset},"timestamp":{record.timestamp_ms},'
        f'"id":{quoted(facts.id or "")},"url":{quoted(facts.url or "")},"format":"{facts.format}",'
        f'"width":{facts.width or 0},"height":{facts.height or 0},"bytes":{len(facts.data or b"")},"sha256":"{facts.sha256 or ""}",'
        f'{scored}"flags":{flags},"duplicate_of":"{duplicate_of}","similarity":{float(decision.similarity or 0.0)!r},'
        f'"claim":{decision.claim or 0},"metadata":{quoted(metadata)}}}'
    ).encode()
