"""How long the storage may be away.

What a later try may not meet (`StorageAway`) is tried again, with back-off and jitter, for
``output.retry_for``; everything else is final at once. One `Patience` serves all threads of a
process: it says once that the storage is away and once that it is back, however many of them wait.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from streamer.errors import StorageAway

T = TypeVar("T")
log = logging.getLogger("streamer")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""From a first failed try to the second, and the longest. In between a pause is twice the one
before; each is cut at random, by at most a half, so that replicas do not come back all at once."""
LOOK_S = 0.1
"""How often a thread that waits looks whether it is to end."""
TOLD_AFTER = 2
"""Failed tries in a row that are worth a line in the log: stores throttle single requests all the
time."""


class Patience:
    """Any thread. ``retry_for``: seconds from an operation's first failed try to its last one; 0:
    each has one try.

    ``stop()`` ends every wait. ``retried(cause)`` is told of each failed try, ``waiting()`` of each
    moment at which a thread waits. ``setting`` is the key of the config that ``retry_for`` comes
    from, for the message."""

    def __init__(
        self,
        retry_for: float,
        stop: Callable[[], bool] = lambda: False,
        retried: Callable[[str], None] = lambda cause: None,
        waiting: Callable[[], None] = lambda: None,
        setting: str = "",
    ) -> None:
        self._setting = setting
        self._retry_for = retry_for
        self._stop = stop
        self._retried = retried
        self._waiting = waiting
        self._lock = threading.Lock()
        self._failing: dict[Retry, float] = {}
        """What failed at its last try, and when it failed first."""
        self._told = False

    @property
    def away_s(self) -> float:
        """For so long something has been tried in vain; 0 while all goes well."""
        with self._lock:
            since = min(self._failing.values(), default=None)
        return 0.0 if since is None else time.monotonic() - since

    def call(self, once: Callable[[], T]) -> T:
        """``once()``, again and again while it raises StorageAway. Blocks; raises the last one when
        the time is up or the process ends."""
        retry = Retry(self)
        while (done := retry.attempt(once)) is None:
            self._waiting()
            time.sleep(LOOK_S)
        return done[0]

    def failed(self, retry: Retry, error: StorageAway, tries: int) -> float:
        """When the next try is due, in monotonic seconds. Raises StorageAway where there is
        none."""
        now = time.monotonic()
        self._retried(error.cause)
        with self._lock:
            began = self._failing.setdefault(retry, now)
            tells = tries >= TOLD_AFTER and not self._told
            self._told = self._told or tells
        deadline = began + self._retry_for
        if now >= deadline or self._stop():
            self._forget(retry)
            raise self._given_up(error, now - began) if self._retry_for else error
        if tells:
            log.warning(
                "the storage is away; what is to be done there is tried again for up to %.0f s: %s",
                self._retry_for,
                error,
            )
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 20))
        return min(deadline, now + random.uniform(0.5, 1.0) * pause)

    def answered(self, retry: Retry) -> None:
        """After at least one failed try."""
        seconds = self.away_s
        if self._forget(retry):
            self._waiting()
            log.info("the storage is back", extra={"seconds": round(seconds, 1)})

    def abandoned(self, retry: Retry) -> None:
        self._forget(retry)

    def raise_if_stopped(self, retry: Retry, error: StorageAway) -> None:
        if self._stop():
            self._forget(retry)
            raise error

    def _given_up(self, error: StorageAway, seconds: float) -> StorageAway:
        said = f" ({self._setting})" if self._setting else ""
        return StorageAway(
            f"{error} It was tried again for {seconds:.0f} s{said}. What is not committed is read again "
            "at the next start.",
            error.cause,
            given_up=True,
        )

    def _forget(self, retry: Retry) -> bool:
        """True if nothing else fails now, and the log says that the storage is away."""
        with self._lock:
            self._failing.pop(retry, None)
            told = self._told
            self._told = told and bool(self._failing)
            return told and not self._failing


class Retry:
    """Something that is tried again. One thread; never waits: `attempt` is to be called every now
    and then."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._tries = 0
        self._due = 0.0
        self._error: StorageAway | None = None

    def abandon(self) -> None:
        """It is not tried again: nobody waits for it any more."""
        self._tries, self._error, self._due = 0, None, 0.0
        self._patience.abandoned(self)

    def attempt(self, once: Callable[[], T]) -> tuple[T] | None:
        """What ``once()`` returned. None: it raised StorageAway, or did so lately; ask again.

        Raises StorageAway when the time is up or the process ends.
        """
        if self._error is not None and time.monotonic() < self._due:
            self._patience.raise_if_stopped(self, self._error)
            return None
        is_away = False
        try:
            return (once(),)
        except StorageAway as error:
            if error.given_up:  # by something inside
                raise
            is_away = True
            self._tries += 1
            self._error = error
            self._due = self._patience.failed(self, error, self._tries)
            return None
        finally:  # an error is an answer, too
            if not is_away and self._error is not None:
                self._tries, self._error = 0, None
                self._patience.answered(self)


ONCE = Patience(0.0)
BRIEFLY = Patience(10.0)
"""For commands that a person waits for, and for what can be done without."""
