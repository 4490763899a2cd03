"""Brokers that are away."""

from __future__ import annotations

from streamer.errors import TemporaryError
from streamer.kafka.patience import Patience


class Patient(Patience):
    """Time stands still; at the look number ``looks`` it is enough."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def clock(self) -> float:
        return 0.0

    def check(self) -> None:
        self._left -= 1
        if not self._left:
            raise TemporaryError("enough")
