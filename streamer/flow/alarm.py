"""Calls that are to be made later."""

from __future__ import annotations

import sched
import threading
import time
from collections.abc import Callable


class Alarm:
    """One daemon thread, which starts with the first call and makes them all; they must not block
    or raise."""

    def __init__(self, name: str) -> None:
        self._calls = sched.scheduler(time.monotonic)
        self._changed = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Any thread; does not block. Nothing is called any more once the alarm is closed."""
        self._calls.enter(seconds, 0, call)
        self._changed.set()
        with self._lock:
            if not self._closed and self._thread.ident is None:
                self._thread.start()

    def close(self) -> None:
        """Forgets what is not due yet. Returns at once."""
        self._closed = True
        self._changed.set()

    def _run(self) -> None:
        while not self._closed:
            self._changed.clear()
            next_s = self._calls.run(blocking=False)
            self._changed.wait(next_s)
