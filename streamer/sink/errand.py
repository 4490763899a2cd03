"""What the Kafka thread has done at the storage beside itself: it may take minutes, while the group
wants to hear from us every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamer.errors import TemporaryError
from streamer.flow.channel import Channel
from streamer.flow.worker import Failure

MOST = 1000
"""Errands that may wait: one projection or checkpoint, and what dropped epochs left behind."""

IsDone = Callable[[], bool]
Begin = Callable[[Callable[[], None]], IsDone]
"""Has something done, and returns what tells whether it is."""


def at_once(work: Callable[[], None]) -> IsDone:
    """A `Begin` that blocks until the work is done."""
    work()
    return lambda: True


class Errands:
    """`begin` belongs to the Kafka thread, `run` is a thread's body. What an errand raises ends the
    process."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure
        self.channel: Channel[tuple[Callable[[], None], threading.Event]] = Channel("storage", MOST)

    def begin(self, work: Callable[[], None]) -> IsDone:
        """``work()`` runs after everything that was begun before. Does not block; raises
        TemporaryError where `MOST` wait already."""
        done = threading.Event()
        if not self.channel.put((work, done)):
            raise TemporaryError(
                f"{MOST} dropped epochs wait to be deleted: the storage does not answer"
            )
        return done.is_set

    def run(self) -> None:
        """At the end what waits is still done: then the storage has one try."""
        while True:
            errand = self.channel.get(0.05)
            if errand is not None:
                work, done = errand
                work()
                done.set()
            elif self._failure.stop.is_set():
                return
