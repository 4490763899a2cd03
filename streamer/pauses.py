"""Partitions that are paused, for all replicas: whoever owns one does not read it, until somebody
has looked at its records (``streamer resume``)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol

from streamer.errors import DependencyError
from streamer.wire.checked import Unusable
from streamer.wire.pause import Pause, decode, encode

log = logging.getLogger("streamer")


class Places(Protocol):
    """The storage; see `streamer.sink.storage.Storage`."""

    def pauses(self) -> Iterable[bytes]:
        """Of all partitions. Raises DependencyError."""

    def write_pause(self, partition: int, data: bytes) -> None:
        """Raises DependencyError."""


class Pauses:
    """Those of the partitions that a replica owns. Kafka thread; what it reads and writes of the
    storage blocks. Where that refuses, the partition stays as it is in this process."""

    def __init__(self, writer: str, places: Places) -> None:
        self._writer = writer
        self._places = places
        self._owned: set[int] = set()
        self._unwritten: dict[int, Pause] = {}
        self._is_unsure = False
        """Whether the last look failed."""
        self.paused: dict[int, Pause] = {}
        self.allowed: dict[int, int] = {}
        """Partition → offset; below it nobody minds how many are invalid. Any thread may read."""

    def opened(self, partitions: Collection[int]) -> None:
        self._owned |= set(partitions)
        self.look()

    def released(self, partitions: Collection[int]) -> None:
        self._owned -= set(partitions)
        for partition in partitions:
            self._unwritten.pop(partition, None)
        self.paused = {p: pause for p, pause in self.paused.items() if p in self._owned}

    @property
    def is_due(self) -> bool:
        """Whether there is anything to look at, now and then."""
        return bool(self.paused) or self._is_unsure

    def pause(self, partition: int, offset: int, why: str, since: str) -> None:
        """From now on, until somebody resumes it."""
        pause = Pause(partition, offset, why, self._writer, since)
        self.paused = {**self.paused, partition: pause}
        self._unwritten[partition] = pause
        self._write()

    def look(self) -> bool:
        """Whether what is paused has changed."""
        self._write()
        try:
            known = {pause.partition: pause for pause in read(self._places)}
        except DependencyError as error:
            log.warning("which partitions are paused cannot be read: %s", error)
            self._is_unsure = True
            return False
        self._is_unsure = False
        before = self.paused
        mine = {p: pause for p, pause in known.items() if p in self._owned} | self._unwritten
        self.allowed |= {p: m.resumed_to for p, m in mine.items() if m.resumed_to is not None}
        self.paused = {p: m for p, m in mine.items() if m.resumed_to is None}
        return self.paused.keys() != before.keys()

    def _write(self) -> None:
        """What could not be written is written at the next look."""
        try:
            for partition, pause in list(self._unwritten.items()):
                self._places.write_pause(partition, encode(pause))
                del self._unwritten[partition]
        except DependencyError as error:
            log.warning("a pause cannot be written down: %s", error)


def read(places: Places) -> list[Pause]:
    """Those of all partitions, the resumed ones too; what is damaged is passed over with a warning.
    Blocks. Raises DependencyError."""
    found = []
    for data in places.pauses():
        try:
            found.append(decode(data))
        except Unusable as error:
            log.warning("a pause is not used: %s", error)
    return sorted(found, key=lambda pause: pause.partition)


def resume(places: Places, pause: Pause, offset: int) -> None:
    """Lets its owner go on; the fuse does not look at what is below ``offset``. Blocks. Raises
    DependencyError."""
    places.write_pause(pause.partition, encode(replace(pause, resumed_to=offset)))
