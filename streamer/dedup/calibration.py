"""``dedup.probe: calibrated``: how much of the certain bound is worth looking at, learnt from an
audited sample of queries.

Only from matches nearer to τ than to 1: copies lie in the query's own cell, and would teach to look
nowhere else. So the recall that is stated is that of the harder half.
"""

from __future__ import annotations

import threading

import numpy as np

from streamer.records import F32, F64, Bools

WINDOW = 8192
"""Audited matches that ρ is learnt from."""
MISSES = 2
"""Of the last `WINDOW` audited matches so many would have been missed. The miss rate is then below
7.7·10⁻⁴ with 95 % confidence (Clopper and Pearson: 2 of 8 192)."""
EVERY = 100
"""One query in so many is audited: searched with ρ = 1."""


class Calibration:
    """ρ for each query: 1 until `WINDOW` matches were audited, then what would have found all but
    `MISSES` of them. Any thread."""

    def __init__(self, needed: F64 | None = None) -> None:
        """``needed``: what an earlier process had learnt, oldest first."""
        self._lock = threading.Lock()
        self._rng = np.random.default_rng()
        self._needed = np.empty(0) if needed is None else needed[-WINDOW:]
        self._learn()
        self._audited = self._missed = 0

    @property
    def state(self) -> F64:
        """At most `WINDOW` numbers: the least ρ of each audited match, oldest first."""
        return self._needed

    def draw(self, n: int) -> tuple[F32, Bools]:
        """(n,) ρ of each query, (n,) which of them are audited."""
        if self.rho >= 1:
            return np.ones(n, np.float32), np.ones(n, np.bool_)
        with self._lock:
            audited = self._rng.random(n) < 1 / EVERY
        return np.where(audited, np.float32(1), np.float32(self.rho)), audited

    def learn(self, needed: F64) -> None:
        """(n,) the least ρ that would have found each match of audited queries."""
        with self._lock:
            if self.rho < 1:
                self._audited += len(needed)
                self._missed += int(np.count_nonzero(needed > self.rho))
            self._needed = np.concatenate([self._needed, needed])[-WINDOW:]
            self._learn()

    def _learn(self) -> None:
        full = len(self._needed) == WINDOW
        self.rho = (
            min(float(np.partition(self._needed, WINDOW - 1 - MISSES)[WINDOW - 1 - MISSES]), 1.0)
            if full
            else 1.0
        )

    def recall(self) -> tuple[float, float]:
        """Share of the audited matches that the ρ of their time would have found, and the lower end
        of its 95 % interval (Wilson 1927).

        1 and 1 while everything is audited.
        """
        n, found = self._audited, self._audited - self._missed
        if n == 0:
            return 1.0, 1.0
        p, z = found / n, 1.96
        low = (p + z * z / (2 * n) - z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (
            1 + z * z / n
        )
        return p, float(low)
