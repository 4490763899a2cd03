"""What a process reads, as it writes it down beside the dataset: after a crash the next owner of a
partition learns from it what was in hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamer.wire import checked
from streamer.wire.checked import Unusable

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """A partition that is being read from the offset ``first``."""

    first: int
    size: int = 0
    """Not 0: a trial. Of all partitions only these offsets [first, first + size) are in the
    line."""
    until: int = 0
    """Offsets below it are to be tried one by one."""
    deaths: int = 0
    """Processes that ended while they tried the one record at ``first``."""

    @property
    def end(self) -> int:
        """Of the trial's window."""
        return min(self.first + self.size, self.until)


@dataclass(frozen=True, slots=True)
class Journal:
    readings: Mapping[int, Reading] = field(default_factory=dict)
    """By partition."""
    overruns: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """(partition, offset) → how often its decoding took too long."""


def encode(journal: Journal) -> bytes:
    """Pure."""
    return checked.encode(
        {
            "partitions": {
                str(p): [r.first, r.size, r.until, r.deaths]
                for p, r in sorted(journal.readings.items())
            },
            "overruns": [[*origin, n] for origin, n in sorted(journal.overruns.items())],
        },
        FORMAT,
    )


def decode(data: bytes) -> Journal:
    """The inverse of `encode`. Pure. Raises Unusable."""
    body = checked.decode(data, FORMAT, "the journal")
    try:
        readings = {int(p): Reading(*map(int, r)) for p, r in body["partitions"].items()}
        return Journal(readings, {(int(p), int(o)): int(n) for p, o, n in body["overruns"]})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unusable(f"the journal lacks something ({type(error).__name__})") from None
