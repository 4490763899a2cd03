"""The manifests of a folder, as the audit reads them, and whether each writer's form one chain."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from streamer.audit.report import Report
from streamer.sink.folder import Folder

_NAME = re.compile(r"manifests/([a-z0-9-]+)-(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class File:
    path: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """A manifest as the audit reads it."""

    path: str
    sha256: str
    """Of the manifest's bytes."""
    dataset: str
    writer: str
    epoch: int
    uuid: str
    previous: str | None
    ranges: dict[int, tuple[int, int]]
    skipped: dict[int, list[tuple[int, int]]]
    ends: dict[int, int]
    """Partition → where a replay ends; only in the first manifests of one."""
    counts: dict[str, int]
    has_files: bool
    tables: tuple[File, ...] = ()
    tars: tuple[File, ...] = ()
    """Nothing in either where only the rest is kept: `without_files`."""

    @property
    def files(self) -> tuple[File, ...]:
        return self.tables + self.tars

    def without_files(self) -> Epoch:
        """A kilobyte, of which the audit of an old dataset keeps a million."""
        return replace(self, tables=(), tars=())


NOT_A_MANIFEST = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),  # 1e999 bytes, lists in lists without an end
)


def new_manifests(folder: Folder, known: set[str]) -> list[str]:
    """The paths of those that are not in ``known``, to which they are added. Raises DependencyError
    if the storage refuses."""
    new = [entry.path for entry in folder.walk("manifests") if entry.path not in known]
    known.update(new)
    return new


def read_manifests(folder: Folder, report: Report, paths: Iterable[str]) -> Iterator[Epoch]:
    """Those that can be read. Raises DependencyError if the storage refuses."""
    for path in paths:
        try:
            epoch = read_manifest(folder, path)
        except NOT_A_MANIFEST as error:
            report.problem("manifest_unreadable", path, f"{type(error).__name__}: {error}")
            continue
        name = _NAME.fullmatch(path)
        if name is None or (name[1], int(name[2])) != (epoch.writer, epoch.epoch):
            detail = f"it says writer {epoch.writer}, epoch {epoch.epoch}"
            report.problem("manifest_name", path, detail)
        yield epoch


def read_manifest(folder: Folder, path: str) -> Epoch:
    """Raises one of `NOT_A_MANIFEST`, and DependencyError."""
    with folder.explained("read", path), folder.open(path) as file:
        data = file.read()
    return parse_manifest(path, data)


def manifest_path(writer: str, epoch: int) -> str:
    return f"manifests/{writer}-{epoch:08d}.json"


def order(epoch: Epoch) -> tuple[str, int]:
    return epoch.writer, epoch.epoch


def parse_manifest(path: str, data: bytes) -> Epoch:
    """Raises one of `NOT_A_MANIFEST`."""
    raw: dict[str, Any] = json.loads(data)
    if raw["version"] != 1:
        raise ValueError(f"version {raw['version']!r} is not known")
    previous = raw["previous_uuid"]
    files = [
        File(str(f["path"]), int(f["bytes"]), str(f["sha256"]), int(f["rows"]))
        for f in raw["files"]
    ]
    return Epoch(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        dataset=sys.intern(str(raw["dataset"])),
        writer=sys.intern(str(raw["writer"])),
        epoch=int(raw["epoch"]),
        uuid=sys.intern(str(raw["uuid"])),
        previous=None if previous is None else sys.intern(str(previous)),
        ranges={int(p): (int(first), int(end)) for p, (first, end) in raw["partitions"].items()},
        skipped={
            int(p): [(int(first), int(end)) for first, end in ranges]
            for p, ranges in raw["skipped"].items()
        },
        ends={int(p): int(end) for p, end in raw["pipeline"].get("ends", {}).items()},
        counts={sys.intern(str(k)): int(v) for k, v in raw["counts"].items()},
        has_files=bool(files),
        tables=tuple(f for f in files if f.path.endswith(".parquet")),
        tars=tuple(f for f in files if not f.path.endswith(".parquet")),
    )


def check_chains(epochs: list[Epoch], report: Report) -> None:
    """Per writer: epochs numbered without a gap, each naming the uuid of the one before."""
    last: dict[str, Epoch] = {}
    for epoch in epochs:
        before = last.get(epoch.writer)
        last[epoch.writer] = epoch
        if epoch.dataset != epochs[0].dataset:
            report.problem(
                "manifest_name",
                epoch.path,
                f"it is of dataset {epoch.dataset}, others of {epochs[0].dataset}",
            )
        if before is None:
            if epoch.previous is not None:
                report.problem(
                    "epoch_gap",
                    epoch.path,
                    f"the first manifest of {epoch.writer}, but it follows uuid {epoch.previous}",
                )
        elif epoch.epoch != before.epoch + 1:
            report.problem(
                "epoch_gap", epoch.path, f"follows epoch {before.epoch} of {epoch.writer}"
            )
        elif epoch.previous != before.uuid:
            report.problem(
                "uuid_chain",
                epoch.path,
                f"names {epoch.previous} as the epoch before, which is {before.uuid}",
            )
