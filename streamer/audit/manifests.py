"""The manifests of a folder: do they chain, do their ranges tile, do they account for every file?"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
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
    dataset: str
    writer: str
    epoch: int
    uuid: str
    previous: str | None
    ranges: dict[int, tuple[int, int]]
    skipped: dict[int, list[tuple[int, int]]]
    counts: dict[str, int]
    tables: tuple[File, ...]
    tars: tuple[File, ...]

    @property
    def files(self) -> tuple[File, ...]:
        return self.tables + self.tars


def read_manifests(folder: Folder, report: Report) -> list[Epoch]:
    """Every readable manifest, by writer and epoch."""
    epochs = []
    for entry in folder.walk("manifests"):
        try:
            with folder.open(entry.path) as file:
                epoch = _parse(entry.path, json.loads(file.read()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            report.problem("manifest_unreadable", entry.path, f"{type(error).__name__}: {error}")
            continue
        name = _NAME.fullmatch(entry.path)
        if name is None or (name[1], int(name[2])) != (epoch.writer, epoch.epoch):
            report.problem(
                "manifest_name", entry.path, f"it says writer {epoch.writer}, epoch {epoch.epoch}"
            )
        epochs.append(epoch)
    if not epochs:
        report.problem(
            "no_dataset", "manifests", "there is none; is this the folder OUTPUT/DATASET?"
        )
    return sorted(epochs, key=lambda e: (e.writer, e.epoch))


def _parse(path: str, raw: dict[str, Any]) -> Epoch:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no manifest."""
    if raw["version"] != 1:
        raise ValueError(f"version {raw['version']!r} is not known")
    files = [
        File(str(f["path"]), int(f["bytes"]), str(f["sha256"]), int(f["rows"]))
        for f in raw["files"]
    ]
    return Epoch(
        path=path,
        dataset=str(raw["dataset"]),
        writer=str(raw["writer"]),
        epoch=int(raw["epoch"]),
        uuid=str(raw["uuid"]),
        previous=None if raw["previous_uuid"] is None else str(raw["previous_uuid"]),
        ranges={int(p): (int(first), int(end)) for p, (first, end) in raw["partitions"].items()},
        skipped={
            int(p): [(int(first), int(end)) for first, end in ranges]
            for p, ranges in raw["skipped"].items()
        },
        counts={str(k): int(v) for k, v in raw["counts"].items()},
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


class Tiles:
    """Per partition, which epoch holds which offsets."""

    def __init__(self, epochs: list[Epoch]) -> None:
        tiles: dict[int, list[tuple[int, int, Epoch]]] = defaultdict(list)
        self._marks: dict[int, set[int]] = defaultdict(set)
        for epoch in epochs:
            for partition, (first, end) in epoch.ranges.items():
                if first < end:
                    tiles[partition].append((first, end, epoch))
                else:
                    self._marks[partition].add(first)
        self._tiles = {p: sorted(found, key=lambda t: t[:2]) for p, found in tiles.items()}
        self._firsts = {p: [t[0] for t in found] for p, found in self._tiles.items()}

    def find(self, partition: int, offset: int) -> Epoch | None:
        at = bisect_right(self._firsts.get(partition, []), offset) - 1
        if at < 0:
            return None
        first, end, epoch = self._tiles[partition][at]
        return epoch if first <= offset < end else None

    def check(self, report: Report) -> None:
        """Ranges of one partition meet end to end. An empty range says where a partition's first
        one may begin."""
        for partition in sorted(self._tiles.keys() | self._marks.keys()):
            tiles = self._tiles.get(partition, [])
            marks = self._marks.get(partition, set())
            start = tiles[0][0] if tiles else min(marks)
            if marks and tiles and start not in marks and start > min(marks):
                report.problem(
                    "range_gap",
                    tiles[0][2].path,
                    f"partition {partition}: the dataset begins at {min(marks)}, its records at {start}",
                )
            cursor = start
            for first, end, epoch in tiles:
                if first != cursor:
                    code, what = (
                        ("range_gap", "in no manifest")
                        if first > cursor
                        else ("range_overlap", "in an earlier manifest too")
                    )
                    report.problem(
                        code,
                        epoch.path,
                        f"partition {partition}: offsets [{min(first, cursor)}, {max(first, cursor)}) are {what}",
                    )
                cursor = max(cursor, end)
                for a, b in epoch.skipped.get(partition, []):
                    if not first <= a <= b <= end:
                        report.problem(
                            "skipped_outside",
                            epoch.path,
                            f"partition {partition}: [{a}, {b}) is not in [{first}, {end})",
                        )
            skipped = sum(
                b - a for _, _, epoch in tiles for a, b in epoch.skipped.get(partition, [])
            )
            report.partitions[partition] = {
                "first": start,
                "next": cursor,
                "records": 0,
                "skipped": skipped,
            }


def check_files(folder: Folder, epochs: list[Epoch], report: Report) -> set[str]:
    """Every file named once, present and as long as it should be; nothing else there. Returns the
    paths worth reading."""
    sizes = {
        entry.path: entry.size for below in ("shards", "metadata") for entry in folder.walk(below)
    }
    named: set[str] = set()
    readable = set()
    for epoch in epochs:
        for file in epoch.files:
            if file.path in named:
                report.problem("file_twice", file.path, f"named again by {epoch.path}")
                continue
            named.add(file.path)
            size = sizes.get(file.path)
            if size is None:
                report.problem("file_missing", file.path, f"named by {epoch.path}")
            else:
                readable.add(file.path)
                if size != file.bytes:
                    report.problem(
                        "file_size", file.path, f"{size} bytes, {file.bytes} in {epoch.path}"
                    )
    for path in sizes.keys() - named:
        report.problem("file_unknown", path, "no manifest names it")
    for writer in folder.folders(".staging"):
        for name in folder.folders(f".staging/{writer}"):
            report.note("staged", f".staging/{writer}/{name}", "not public")
    return readable
