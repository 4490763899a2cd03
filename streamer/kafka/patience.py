"""How long a call to the cluster may wait: what a command has, and what `Brokers` overrides for a
replica."""

from __future__ import annotations

import time


class Patience:
    """A command's: its deadlines run on while brokers are away. Any thread; nothing blocks."""

    give_up_after_s = 0.0
    """What may wait for brokers waits so long, if that is longer than its own limit."""

    def clock(self) -> float:
        """Monotonic seconds for deadlines."""
        return time.monotonic()

    def check(self) -> None:
        """In every turn of a loop that waits. Raises the TemporaryError that ends the waiting."""


IMPATIENT = Patience()
