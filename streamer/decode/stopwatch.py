"""Which images are being decoded, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Overrun(NamedTuple):
    partition: int
    offset: int
    thread: int
    """Its identifier."""


class Stopwatch:
    """Counts turns of whoever looks, not seconds: a process that stood still and goes on has
    overrun nothing. Decode threads measure, one other thread looks; nothing blocks."""

    def __init__(self) -> None:
        self._turns: dict[int, list[int]] = {}
        """Thread → partition, offset, how often it was seen."""

    @contextmanager
    def measure(self, partition: int, offset: int) -> Iterator[None]:
        thread = threading.get_ident()
        self._turns[thread] = [partition, offset, 0]
        try:
            yield
        finally:
            del self._turns[thread]

    def look(self, limit: float) -> Overrun | None:
        """The one that was seen most often, if that is more than ``limit`` times by now."""
        turns = list(self._turns.items())
        for _, turn in turns:
            turn[2] += 1
        thread, (partition, offset, seen) = max(
            turns, key=lambda item: item[1][2], default=(0, [0, 0, 0])
        )
        return Overrun(partition, offset, thread) if seen > limit else None
