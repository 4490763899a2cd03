"""What an open epoch will count if it is committed."""

from __future__ import annotations

from collections import Counter

import numpy as np

from streamer.records import F64, I64, DecidedBatch


class EpochTally:
    """What one open epoch will add to the counters if it is committed. Owned by the thread that
    fills it."""

    def __init__(self) -> None:
        self.records = 0
        self.decisions: Counter[tuple[str, str]] = Counter()
        """(outcome, reason) → records; the reason is empty for accepted ones."""
        self._timestamps: list[I64] = []

    def add(self, batch: DecidedBatch) -> None:
        self.records += len(batch.records)
        self.decisions.update((d.outcome, d.reason or "") for d in batch.decisions)
        self._timestamps.append(
            np.fromiter(
                (r.timestamp_ms for r in batch.records), dtype=np.int64, count=len(batch.records)
            )
        )

    def ages(self, now_s: float) -> F64:
        """Seconds from each record's timestamp to ``now_s`` (UTC, seconds); records without a
        timestamp are left out.

        A producer whose clock is ahead of ours gives 0.
        """
        stamps = (
            np.concatenate(self._timestamps) if self._timestamps else np.empty(0, dtype=np.int64)
        )
        ages: F64 = np.maximum(now_s - stamps[stamps > 0] / 1000.0, 0.0)
        return ages
