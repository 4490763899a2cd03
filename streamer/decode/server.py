"""What is known of the servers that references lead to: whose fault is it that an image does not
come?

One image that its server does not give, while it answers for others, is that record's fault. A
server that answers nobody is not: it may be back in an hour, and its images with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque

EVERYBODY = 5
"""So many different references that failed in a row are taken for everybody."""
_ASKED_AGAIN = 3
_REMEMBERED = 1024


class Server:
    """A host and port, a bucket, or a folder. Any thread; nothing blocks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._answered: deque[str] = deque(maxlen=_ASKED_AGAIN)
        """URIs that it answered last; they can be asked again."""
        self._answered_at = float("-inf")
        self._up_since = float("-inf")
        """When it answered again, after it was found down; monotonic seconds."""
        self.is_down = False
        """It was found to answer nobody, and has not answered since."""
        self._failing: set[str] = set()
        """Distinct URIs that failed since it answered last, and are not given up."""
        self._trying = 0
        self._told_at = float("-inf")
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """False if it answers nobody and is being asked already: one try at a time is enough for
        it, and leaves the fetch threads to others. True: call `leave` after the try."""
        with self._lock:
            if self._trying and self._fails_for_everybody():
                return False
            self._trying += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._trying -= 1

    def answer(self, uri: str) -> None:
        """It answered for ``uri``: with the image, or that there is none."""
        with self._lock:
            if uri not in self._answered:
                self._answered.append(uri)
            self._answered_at = time.monotonic()
            if self.is_down:
                self.is_down, self._up_since = False, self._answered_at
            self._failing.clear()

    def fail(self, uri: str) -> None:
        with self._lock:
            self._failing.add(uri)

    def forget(self, uri: str) -> None:
        """``uri`` is given up, or wanted no more."""
        with self._lock:
            self._failing.discard(uri)

    def over_at(self, began: float, patience_s: float) -> float:
        """When a fetch whose first try began then has been tried for ``patience_s`` seconds. Time in
        which the server was down does not count. Monotonic seconds."""
        return max(began, self._up_since) + patience_s

    def answered_since(self, when: float) -> bool:
        return not self.is_down and self._answered_at > when

    def others(self, uri: str) -> list[str]:
        """What it answered last, but for ``uri``."""
        with self._lock:
            return [other for other in self._answered if other != uri]

    def found_silent(self, asked: bool) -> bool:
        """It did not answer what it answered before (``asked``), or there was nothing to ask, and
        then everybody must fail. True: it is down until it answers."""
        with self._lock:
            self.is_down = asked or self._fails_for_everybody()
            return self.is_down

    def is_due(self, every_s: float) -> bool:
        """True once in ``every_s`` seconds."""
        with self._lock:
            due = time.monotonic() - self._told_at >= every_s
            if due:
                self._told_at = time.monotonic()
            return due

    @property
    def is_idle(self) -> bool:
        return not self._trying and not self._failing

    def _fails_for_everybody(self) -> bool:
        return len(self._failing) >= EVERYBODY


class Servers:
    """By name; those that nobody waits for are forgotten first, for names come from records. Any
    thread."""

    def __init__(self) -> None:
        self._known: dict[str, Server] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Server:
        with self._lock:
            server = self._known.pop(name, None) or Server(name)
            if len(self._known) >= _REMEMBERED:
                idle = next((n for n, s in self._known.items() if s.is_idle), None)
                if idle is not None:
                    del self._known[idle]
            self._known[name] = server
            return server
