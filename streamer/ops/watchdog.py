"""Ends the process when something that cannot be interrupted takes too long.

A commit can hang inside the client library for longer than any time-out it was given. What it did
is then unknown; the next start resolves it. So the process ends at once, without waiting for
anybody: exit code 75, try again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from streamer.errors import EXIT_TRY_AGAIN
from streamer.ops.logs import say_now


@dataclass(frozen=True, eq=False)
class _Limit:
    what: str
    seconds: float
    deadline: float
    thread: int


class Watchdog:
    """One daemon thread that waits for the nearest deadline. Any number of threads may hold limits,
    and limits may nest.

    It needs the interpreter to run: a C call that hangs *while holding the GIL* is not seen (the
    Kafka client releases it).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, which may stand still while what is limited is not to blame."""
        self._clock = clock
        self._limits: set[_Limit] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def limit(self, what: str, seconds: float) -> Iterator[None]:
        """Ends the process with exit code 75 unless the body ends within ``seconds``; ``what`` is
        named in its last line."""
        limit = _Limit(what, seconds, self._clock() + seconds, threading.get_ident())
        with self._changed:
            self._limits.add(limit)
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._limits.discard(limit)

    def close(self) -> None:
        """Ends the thread; limits that are still held are no longer watched."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(1.0)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                nearest = min(self._limits, key=lambda limit: limit.deadline, default=None)
                left = None if nearest is None else nearest.deadline - self._clock()
                if nearest is not None and left is not None and left <= 0:
                    _end(nearest)
                self._changed.wait(left)


def _end(limit: _Limit) -> None:
    end_process(f"{limit.what} did not end within {limit.seconds:g} s", limit.thread)


def end_process(why: str, thread: int) -> NoReturn:
    """At once, without waiting for anybody; ``thread`` is the identifier of the one that hangs."""
    say_now(
        f"{why}{_where(thread)}: the process ends (exit {EXIT_TRY_AGAIN}); "
        "the next start finds out what was committed and goes on from there"
    )
    os._exit(EXIT_TRY_AGAIN)


def _where(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return (
        ""
        if frame is None
        else f", it hangs in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
    )
