"""The files of a folder against its manifests, and what waits in staging."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from streamer.audit.manifests import Epoch
from streamer.audit.report import Report
from streamer.audit.tiles import Span
from streamer.sink.folder import Folder

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

    sizes: dict[str, int]
    """Path → bytes, of what is in shards/ and metadata/."""
    staged: tuple[Staged, ...]


def look_at(folder: Folder) -> Look:
    """Lists public files, then staging. Raises DependencyError if the storage refuses."""
    sizes = {e.path: e.size for below in ("shards", "metadata") for e in folder.walk(below)}
    staged = []
    for writer in folder.folders(_STAGING):
        for name in folder.folders(f"{_STAGING}/{writer}"):
            if match := _STAGED.fullmatch(name):
                path = f"{_STAGING}/{writer}/{name}"
                staged.append(Staged(path, writer, int(match[1]), match[2]))
    return Look(sizes, tuple(staged))


@dataclass(frozen=True, slots=True)
class Present:
    """The files of one epoch."""

    readable: frozenset[str]
    """Paths worth reading, of those that no other epoch named before."""
    is_whole: bool
    """All of them are there, and as long as they should be."""


class FileAudit:
    """Every file is named once, is present, and is as long as it should be."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._named: set[str] = set()

    def check(self, epoch: Epoch, look: Look) -> Present:
        """``look`` was taken after the epoch's manifest was read."""
        readable, whole = set(), True
        for file in epoch.files:
            size = look.sizes.get(file.path)
            whole = whole and size == file.bytes and file.path not in self._named
            if file.path in self._named:
                self._report.problem("file_twice", file.path, f"named again by {epoch.path}")
                continue
            self._named.add(file.path)
            if size is None:
                self._report.problem("file_missing", file.path, f"named by {epoch.path}")
                continue
            readable.add(file.path)
            if size != file.bytes:
                detail = f"{size} bytes, {file.bytes} in {epoch.path}"
                self._report.problem("file_size", file.path, detail)
        return Present(frozenset(readable), whole)

    def check_rest(self, look: Look) -> None:
        """What no manifest names, that of an epoch in staging aside. Every manifest that was there
        after ``look`` must be checked."""
        projecting = {staged.name for staged in look.staged}
        for path in sorted(look.sizes.keys() - self._named):
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
