"""Threads whose failure stops the process: the one place with a broad ``except``."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Failure:
    """The first exception of any thread, and the event that tells the others to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._thread = ""

    def report(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error, self._thread = error, threading.current_thread().name
        self.stop.set()

    def raise_if_any(self) -> None:
        """Raises the first exception in the caller's thread. Does not block."""
        if self._error is not None:
            raise self._error

    @property
    def thread(self) -> str:
        """Name of the thread that failed first; empty while none did."""
        return self._thread


class Worker:
    """One named daemon thread. ``run`` returns when ``failure.stop`` is set, or when its work is
    done."""

    def __init__(self, name: str, run: Callable[[], None], failure: Failure) -> None:
        self._run = run
        self._failure = failure
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """True when the thread ended within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - a thread that fails must stop the process, whatever it raised
            self._failure.report(error)
