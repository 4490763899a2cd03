"""A bounded queue of lists between two threads, measured in items and in bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """FIFO with room for ``max_items`` and ``max_bytes``; an item is let in while there is any room
    at all.

    Safe for any number of threads. Only `put` and `get` with a positive timeout block, never for
    longer than that.
    """

    def __init__(self, name: str, max_items: int, max_bytes: int | None = None) -> None:
        self.name = name
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, item: T, nbytes: int = 0, timeout: float = 0.0) -> bool:
        """False if there was no room for the whole ``timeout`` (seconds)."""
        with self._changed:
            if not self.wait_room(timeout):
                return False
            self._items.append((item, nbytes))
            self._bytes += nbytes
            self._changed.notify_all()
            return True

    def wait_room(self, timeout: float) -> bool:
        """True if there is room, or there was within ``timeout`` seconds; it stays so while nobody
        else puts."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._items) >= self._max_items or (
                self._max_bytes is not None and self._bytes >= self._max_bytes
            ):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def get(self, timeout: float) -> T | None:
        """The oldest item, or None if none came within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._items:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            item, nbytes = self._items.popleft()
            self._bytes -= nbytes
            self._changed.notify_all()
            return item

    def __len__(self) -> int:
        return len(self._items)

    @property
    def nbytes(self) -> int:
        return self._bytes
