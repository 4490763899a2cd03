"""Offsets that are skipped: they are never decided, and a manifest names them. They expired
(``kafka.on_expired``), cannot be read (``kafka.on_unreadable``), or somebody has moved the dataset
forward (``streamer seek``)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from streamer.wire.checked import Unusable
from streamer.wire.seek import Seek, decode

log = logging.getLogger("streamer")

Cause = Literal["expired", "seek", "unreadable"]
NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Skip:
    """The offsets from ``first`` up to, and without, ``following``."""

    partition: int
    first: int
    following: int
    cause: Cause


class Places(Protocol):
    """The storage; see `streamer.sink.storage.Storage`."""

    def seeks(self) -> Iterable[bytes]:
        """Of all partitions. Raises DependencyError."""


class Skips:
    """What one replica may skip. Kafka thread."""

    def __init__(self, places: Places, expired: bool) -> None:
        """``expired``: whatever expired is skipped."""
        self._places = places
        self._skips_expired = expired
        self._seeks: Mapping[int, Seek] = {}

    def look(self) -> None:
        """At what was asked for by hand: while no replica ran, so a look at the start sees it.
        Blocks. Raises DependencyError; what was known holds then."""
        self._seeks = read(self._places)

    def limit(self, partition: int) -> int:
        """What expired below this offset of a partition is skipped; the rest ends the process."""
        if self._skips_expired:
            return NO_LIMIT
        seek = self._seeks.get(partition)
        return 0 if seek is None else seek.to

    def due(
        self, starts: Mapping[int, int], begins: Mapping[int, int], ends: Mapping[int, int]
    ) -> list[Skip]:
        """Of partitions that go on at ``starts``. ``begins``: where the topic begins; ``ends``:
        where it ends, or a replay of it."""
        skips = []
        for partition, start in sorted(starts.items()):
            seek, end = self._seeks.get(partition), ends[partition]
            wanted = 0 if seek is None else min(seek.to, end)
            begin = min(begins[partition], end)
            if begin > max(start, wanted):
                skips.append(Skip(partition, start, begin, "expired"))
            elif wanted > start:
                skips.append(Skip(partition, start, wanted, "seek"))
        return skips


def read(places: Places) -> dict[int, Seek]:
    """Partition → its seek; what is damaged is passed over with a warning. Blocks. Raises
    DependencyError."""
    found = {}
    for data in places.seeks():
        try:
            seek = decode(data)
        except Unusable as error:
            log.warning("a seek is not used: %s", error)
        else:
            found[seek.partition] = seek
    return found
