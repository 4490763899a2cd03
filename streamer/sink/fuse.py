"""Too many invalid records in a row of one partition: without a fuse dead letters lose data
silently."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import NamedTuple

from streamer.errors import DEAD_LINKS
from streamer.records import DecidedBatch

WINDOW = 1000
LEAST = 100
"""Fewer records than this never blow the fuse."""


class Flood(NamedTuple):
    partition: int
    why: str
    """How many of its last records are invalid, by reason."""


class Fuse:
    """Watches each partition by itself. Dead links count neither way: many references lead nowhere,
    and that is not our fault. Writer thread only."""

    def __init__(self, max_ratio: float, allowed: Mapping[int, int]) -> None:
        """``allowed``: partition → offset; somebody has seen what is below it. It may change at any
        time."""
        self._max_ratio = max_ratio
        self._allowed = allowed
        self._windows: defaultdict[int, _Window] = defaultdict(_Window)
        self._counted: dict[int, int] = {}
        """Partition → offset; below it everything has been counted. What was dropped comes
        again."""

    def count(self, batch: DecidedBatch) -> Flood | None:
        """The first partition with too many."""
        records: Counter[int] = Counter()
        reasons: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for record, decision in zip(batch.records, batch.decisions, strict=True):
            reason = decision.reason or ""
            seen = max(
                self._counted.get(record.partition, 0), self._allowed.get(record.partition, 0)
            )
            if record.offset < seen:
                continue
            self._counted[record.partition] = record.offset + 1
            if decision.outcome != "invalid":
                records[record.partition] += 1
            elif reason not in DEAD_LINKS:
                records[record.partition] += 1
                reasons[record.partition][reason] += 1
        for partition, count in records.items():
            window = self._windows[partition]
            window.add(count, reasons[partition])
            invalid = window.invalid.total()
            if window.records >= LEAST and invalid > self._max_ratio * window.records:
                by_reason = ", ".join(f"{n} {reason}" for reason, n in window.invalid.most_common())
                del self._windows[partition]
                del self._counted[partition]
                return Flood(
                    partition,
                    f"{invalid} of the last {window.records} records are invalid ({by_reason}), "
                    f"more than dead_letters.max_ratio = {self._max_ratio:g}",
                )
        return None


class _Window:
    """The last `WINDOW` records of a partition, or some more: whole batches."""

    def __init__(self) -> None:
        self.records = 0
        self.invalid: Counter[str] = Counter()
        self._batches: deque[tuple[int, Counter[str]]] = deque()

    def add(self, records: int, invalid: Counter[str]) -> None:
        self._batches.append((records, invalid))
        self.records += records
        self.invalid += invalid
        while self.records - self._batches[0][0] >= WINDOW:
            oldest, invalid = self._batches.popleft()
            self.records -= oldest
            self.invalid -= invalid
