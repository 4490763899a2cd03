"""The files of a folder against its manifests, and what waits in staging."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamer.audit.manifests import Epoch
from streamer.audit.report import Report
from streamer.audit.tiles import Span
from streamer.sink.folder import Entry, Folder

_STAGING = ".staging"
_STAGED = re.compile(r"(\d{8,})-([0-9a-f-]+)")
_PUBLIC = re.compile(r"(?:shards/[^/]+|metadata)/([a-z0-9-]+-\d{8,})(?:-\d{3,})?\.(?:tar|parquet)")


@dataclass(frozen=True, slots=True)
class Staged:
    """The folder of an epoch that is not public, or not wholly."""

    path: str
    writer: str
    epoch: int
    uuid: str

    @property
    def name(self) -> str:
        """The stem of the names that its files will have."""
        return f"{self.writer}-{self.epoch:08d}"


@dataclass(frozen=True, slots=True)
class Look:
    """What a folder held at one moment. Staging was listed after the public files: a file that is
    public before its manifest is has its epoch in there."""

    sizes: Sizes
    """Of what is in shards/ and metadata/."""
    staged: tuple[Staged, ...]


class Sizes:
    """Path → bytes of many files: 16 bytes each, for the paths are not kept."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        names, sizes = array("Q"), array("q")
        for entry in entries:
            names.append(_short(entry.path))
            sizes.append(entry.size)
        order = np.argsort(np.frombuffer(names, np.uint64), kind="stable")
        self.names = np.frombuffer(names, np.uint64)[order]
        self._sizes = np.frombuffer(sizes, np.int64)[order]

    def get(self, path: str) -> int | None:
        """None: there is no such file."""
        name = np.uint64(_short(path))
        at = int(np.searchsorted(self.names, name))
        return int(self._sizes[at]) if at < len(self.names) and self.names[at] == name else None


_SECRET = os.urandom(16)


def _short(path: str) -> int:
    """64 bits for a path, of which nobody can make two alike."""
    data = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=_SECRET).digest(), "little")


def look_at(folder: Folder) -> Look:
    """Lists public files, then staging. Raises DependencyError if the storage refuses."""
    sizes = Sizes(_public(folder))
    staged = []
    for writer in folder.folders(_STAGING):
        for name in folder.folders(f"{_STAGING}/{writer}"):
            if match := _STAGED.fullmatch(name):
                path = f"{_STAGING}/{writer}/{name}"
                staged.append(Staged(path, writer, int(match[1]), match[2]))
    return Look(sizes, tuple(staged))


def _public(folder: Folder) -> Iterator[Entry]:
    for below in ("shards", "metadata"):
        yield from folder.walk(below)


@dataclass(frozen=True, slots=True)
class Present:
    """The files of one epoch."""

    readable: frozenset[str] | None
    """Paths worth reading, of those that no other epoch named before. None: all of them, and each
    is as long as it should be."""

    @property
    def is_whole(self) -> bool:
        return self.readable is None


class FileAudit:
    """Every file is named once, is present, and is as long as it should be."""

    def __init__(self, folder: Folder, report: Report) -> None:
        self._folder = folder
        self._report = report
        self._named: set[int] = set()

    def check(self, epoch: Epoch, look: Look) -> Present:
        """``look`` was taken after the epoch's manifest was there."""
        readable, whole = set(), True
        for file in epoch.files:
            size, name = look.sizes.get(file.path), _short(file.path)
            whole = whole and size == file.bytes and name not in self._named
            if name in self._named:
                self._report.problem("file_twice", file.path, f"named again by {epoch.path}")
                continue
            self._named.add(name)
            if size is None:
                self._report.problem("file_missing", file.path, f"named by {epoch.path}")
                continue
            readable.add(file.path)
            if size != file.bytes:
                detail = f"{size} bytes, {file.bytes} in {epoch.path}"
                self._report.problem("file_size", file.path, detail)
        return Present(None if whole else frozenset(readable))

    def check_rest(self, look: Look) -> None:
        """What no manifest names, that of an epoch in staging aside. Every manifest that was there
        after ``look`` must be checked."""
        projecting = {staged.name for staged in look.staged}
        unknown = {name for name in map(int, look.sizes.names) if name not in self._named}
        paths = (entry.path for entry in _public(self._folder)) if unknown else ()
        for path in sorted(path for path in paths if _short(path) in unknown):
            name = _PUBLIC.fullmatch(path)
            if name is not None and name[1] in projecting:
                detail = (
                    "its epoch is in .staging: it is being projected, or the next start does it"
                )
                self._report.note("file_pending", path, detail)
            else:
                self._report.problem("file_unknown", path, "no manifest names it")


def staged_spans(folder: Folder, look: Look) -> list[Span]:
    """The offsets of the epochs in staging that are sealed, so that their Parquet file is whole.

    An epoch that is being written has none yet; one that is being projected may have it under its
    public name already. Reads two columns of each file.
    """
    spans = []
    for epoch in look.staged:
        paths = [entry.path for entry in folder.walk(f"{epoch.path}/metadata")]
        for path in [*paths, f"metadata/{epoch.name}.parquet"]:
            try:
                with folder.open(path) as file:
                    rows = pq.read_table(file, columns=["partition", "offset"])
            except (OSError, pa.ArrowException):
                continue
            ranges = rows.group_by("partition").aggregate([("offset", "min"), ("offset", "max")])
            for row in ranges.to_pylist():
                spans.append((row["partition"], row["offset_min"], row["offset_max"] + 1))
    return spans


def note_staged(look: Look, report: Report) -> None:
    for staged in look.staged:
        report.note("staged", staged.path, "not public")
