"""Which epoch holds which offsets: per partition the ranges of the manifests, end to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from streamer.audit.manifests import Epoch
from streamer.audit.report import Report
from streamer.records import I64

Span = tuple[int, int, int]
"""Partition, first offset, and the one after the last."""


class Founder(Protocol):
    """A first manifest."""

    @property
    def path(self) -> str: ...
    @property
    def ends(self) -> Mapping[int, int]:
        """Partition → where a replay ends."""


class Tiles:
    """The ranges of the epochs that are public. Epochs may be added while others are audited."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        """By their numbers: in the order in which they were added."""
        self._tiles: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        """First offset, the one after the last, and the epoch's number; in order."""
        self._arrays: dict[int, I64] = {}
        """The same as (n, 3) arrays."""
        self._marks: dict[int, set[int]] = defaultdict(set)
        """Empty ranges: they say where a partition's first one may begin."""
        self._ends: dict[int, int] = {}
        self._pending: list[Span] = []
        self._founders: list[Epoch] = []
        """First manifests of a replay; two replicas may have founded it at once."""

    def add(self, epochs: Iterable[Epoch]) -> None:
        for number, epoch in enumerate(epochs, len(self.epochs)):
            self.epochs.append(epoch)
            if epoch.ends:
                self._founders.append(epoch)
            for partition, (first, end) in epoch.ranges.items():
                if first < end:
                    self._tiles[partition].append((first, end, number))
                else:
                    self._marks[partition].add(first)
                self._ends[partition] = max(end, self._ends.get(partition, 0))
        for partition, tiles in self._tiles.items():
            tiles.sort()
            self._arrays[partition] = np.array(tiles, np.int64)

    def expect(self, spans: Iterable[Span]) -> None:
        """Ranges of epochs that are complete, but not public yet."""
        self._pending += spans

    def find(self, partitions: I64, offsets: I64) -> I64:
        """(n,) and (n,) → (n,) numbers of the epochs that hold these offsets; -1: none does."""
        found = np.full(len(offsets), -1)
        for partition in np.unique(partitions).tolist():
            tiles = self._arrays.get(partition)
            if tiles is not None:
                here = np.flatnonzero(partitions == partition)
                at = np.searchsorted(tiles[:, 0], offsets[here], "right") - 1
                inside = (at >= 0) & (offsets[here] < tiles[at, 1])
                found[here[inside]] = tiles[at[inside], 2]
        return found

    def end(self, partition: int) -> int:
        """One past the last public offset; 0 for a partition that no manifest names."""
        return self._ends.get(partition, 0)

    def may_come(self, partition: int, offset: int) -> bool:
        """True for an offset that an epoch which is not public yet may hold."""
        if offset >= self.end(partition):
            ends = [founder.ends for founder in self._founders]
            return self._goes_on or any(offset < end.get(partition, 0) for end in ends)
        return any(p == partition and first <= offset < end for p, first, end in self._pending)

    @property
    def _goes_on(self) -> bool:
        """True unless this is a replay that nobody has let go on behind its end."""
        return not self._founders or any(
            at > founder.ends.get(partition, 0)
            for founder in self._founders
            for partition, at in self._ends.items()
        )

    def has_gaps(self) -> bool:
        return any(
            self._begin(partition) < tiles[0][0] or any(a < b for a, b in _between(tiles))
            for partition, tiles in self._tiles.items()
        )

    def check(self, report: Report) -> None:
        """Ranges of one partition meet end to end."""
        for partition in sorted(self._tiles.keys() | self._marks.keys()):
            tiles = self._tiles.get(partition, [])
            begin = self._begin(partition)
            start = tiles[0][0] if tiles else begin
            if begin < start:
                self._report_gap(report, self.epochs[tiles[0][2]], partition, begin, start)
            for (a, b), (_, _, number) in zip(_between(tiles), tiles[1:], strict=True):
                epoch = self.epochs[number]
                if a < b:
                    self._report_gap(report, epoch, partition, a, b)
                elif a > b:
                    report.problem(
                        "range_overlap",
                        epoch.path,
                        f"partition {partition}: offsets [{b}, {a}) are in an earlier manifest too",
                    )
            skipped = 0
            for first, end, number in tiles:
                epoch = self.epochs[number]
                for a, b in epoch.skipped.get(partition, []):
                    skipped += b - a
                    if not first <= a <= b <= end:
                        report.problem(
                            "skipped_outside",
                            epoch.path,
                            f"partition {partition}: [{a}, {b}) is not in [{first}, {end})",
                        )
            report.partitions[partition] = {
                "first": start,
                "next": self.end(partition),
                "records": report.rows[partition],
                "skipped": skipped,
            }

    def check_ends(self, report: Report, first: Founder | None) -> None:
        """A replay has come to the end that its first manifest names. ``first``: which manifest
        that is, where the commit log told; else the least that any founder names must be there."""
        founders: Sequence[Founder] = (
            self._founders if first is None else [first] if first.ends else []
        )
        for partition in sorted({p for founder in founders for p in founder.ends}):
            end = min(f.ends[partition] for f in founders if partition in f.ends)
            at = max(self.end(partition), self._begin(partition))
            if at < end:
                report.problem(
                    "unfinished",
                    founders[0].path,
                    f"partition {partition}: the replay ends at offset {end}, but its epochs reach "
                    f"only {at}",
                )

    def _begin(self, partition: int) -> int:
        """Where the partition's records begin by the manifests that say so: two replicas may have
        founded the dataset at once, and the folder does not tell which of them was first."""
        marks, tiles = self._marks.get(partition, set()), self._tiles.get(partition, [])
        if not tiles or not marks:
            return tiles[0][0] if tiles else min(marks, default=0)
        return tiles[0][0] if tiles[0][0] in marks else min(*marks, tiles[0][0])

    def _report_gap(
        self, report: Report, epoch: Epoch, partition: int, first: int, end: int
    ) -> None:
        detail = f"partition {partition}: offsets [{first}, {end}) are in no manifest"
        if any(p == partition and first <= a and b <= end for p, a, b in self._pending):
            report.note("gap_pending", epoch.path, f"{detail}, but in a complete epoch in .staging")
        else:
            report.problem("range_gap", epoch.path, detail)


def _between(tiles: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """For each tile but the first: where those before it end, and where it begins."""
    found, cursor = [], tiles[0][1] if tiles else 0
    for first, end, _ in tiles[1:]:
        found.append((cursor, first))
        cursor = max(cursor, end)
    return found
