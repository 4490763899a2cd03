"""A partition that somebody has moved forward by hand, as it is written down beside the dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from streamer.wire import checked
from streamer.wire.checked import Unusable

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Seek:
    partition: int
    to: int
    """What lies below this offset, and is not decided yet, is skipped."""
    at: str
    """ISO 8601, UTC."""


def encode(seek: Seek) -> bytes:
    """Pure."""
    return checked.encode(asdict(seek), FORMAT)


def decode(data: bytes) -> Seek:
    """The inverse of `encode`. Pure. Raises Unusable."""
    body = checked.decode(data, FORMAT, "the seek")
    try:
        return Seek(int(body["partition"]), int(body["to"]), str(body["at"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"the seek lacks something ({type(error).__name__})") from None
