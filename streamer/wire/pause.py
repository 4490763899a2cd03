"""A partition that is paused because too many of its records are invalid, as it is written down
beside the dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from streamer.wire import checked
from streamer.wire.checked import Unusable

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Pause:
    partition: int
    offset: int
    """Up to it the partition is decided."""
    why: str
    writer: str
    """Who noticed."""
    since: str
    """ISO 8601, UTC."""
    resumed_to: int | None = None
    """Not None: somebody has looked, and what is below this offset may be as it is."""


def encode(pause: Pause) -> bytes:
    """Pure."""
    return checked.encode(asdict(pause), FORMAT)


def decode(data: bytes) -> Pause:
    """The inverse of `encode`. Pure. Raises Unusable."""
    body = checked.decode(data, FORMAT, "the pause")
    try:
        resumed_to = body["resumed_to"]
        return Pause(
            int(body["partition"]), int(body["offset"]), str(body["why"]), str(body["writer"]),
            str(body["since"]), None if resumed_to is None else int(resumed_to),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"the pause lacks something ({type(error).__name__})") from None
