"""What the chaos test needs inside of the processes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.plugins import thumbnail

LOOK_S = 0.2


class ChaosEmbedder(thumbnail.PoisonedEmbedder):
    """Its process's wall clock is off by the seconds in the file that CHAOS_CLOCK names."""

    def __init__(self, delay_ms: float = 0.0) -> None:
        super().__init__(delay_ms)
        if path := os.environ.get("CHAOS_CLOCK"):
            time.time = Clock(Path(path)).now


class Moody(thumbnail.Moody):
    """But keeps what is poison: that must become `invalid`."""

    def keep(self, row: Any) -> bool:
        width, height = row.facts.width, row.facts.height
        return max(width, height) > 3 * min(width, height) or super().keep(row)


class Clock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._real = time.time
        self._off_s = 0.0
        self._looked = 0.0

    def now(self) -> float:
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            with suppress(OSError, ValueError):  # nothing there, or not yet
                self._off_s = float(self._path.read_text())
        return self._real() + self._off_s
