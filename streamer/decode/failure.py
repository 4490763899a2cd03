"""What a decoder raises → the reason of an invalid record."""

from __future__ import annotations

from types import TracebackType

from PIL import Image as Pil

from streamer.errors import InvalidRecord

_UNSUPPORTED = (
    "unsupported",
    "not support",
    "not yet support",
    "too large",
    "unknown pixel mode",
    "cannot handle",
)
_TRUNCATED = (
    "truncated",
    "not enough image data",
    "unexpected end",
    "buffer overrun",
    "could not create decoder object",
)


class Undecodable:
    """``with Undecodable():`` turns whatever a decoder raises inside into InvalidRecord. The one
    such place.

    Decoders raise nearly everything (ValueError, SyntaxError, TypeError, RuntimeError, MemoryError
    …), so only a catch-all keeps a bad image from being more than one bad record. With ``reason``
    all get that reason, else the one that fits.
    """

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, InvalidRecord):
            raise InvalidRecord(
                self._reason or _reason_of(error), f"{type(error).__name__}: {error}"[:200]
            ) from error


def _reason_of(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, Pil.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, NotImplementedError | MemoryError) or any(
        words in text for words in _UNSUPPORTED
    ):
        return "unsupported_image"
    if isinstance(error, EOFError) or any(words in text for words in _TRUNCATED):
        return "truncated"
    return "corrupt"
