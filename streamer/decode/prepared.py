"""An image file prepared for its decoder: stripped of everything that does not affect its pixels.

Text, colour profiles, XMP, thumbnails and the like are never used here. A decoder that never sees
them cannot fail on damaged ones, and cannot be made to inflate or collect huge ones. Each format's
module says what is kept, and rewrites the few fields that Pillow misreads. Pixel data are not
copied.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from streamer.errors import InvalidRecord

MAX_PARTS = 100_000
"""Segments of a JPEG before the first scan, chunks of a PNG or WebP, blocks of a GIF before the
first frame: many more than any encoder writes, and walked through in about 20 ms."""
_WORK_PASSES, _WORK_PIXELS = 32, 64_000_000
"""A pass over a pixel is 2.5 ns, which is what the slowest scan of a Huffman-coded JPEG takes: one
that refines coefficients, decoded twice to see whether it is whole (`benchmarks/costly.py`). Formats
state what else they do in such passes."""
_ROW_STEPS = 100
"""of a row, whatever its width: decoders, and the conversion to RGB, go from row to row"""


class Samples(NamedTuple):
    """What a decoded image's mode does not say about its samples."""

    bits: int = 16
    """of a grey level, or of a colour with one that is transparent"""
    white_is_zero: bool = False
    """grey levels above 8 bits run from white to black"""
    unsigned: bool = False
    """32-bit integers have no sign"""
    transparent: tuple[int, ...] = ()
    """the grey level or RGB colour that is transparent, in `bits`; empty: none"""


_AS_THE_MODE_SAYS = Samples()


@dataclass(frozen=True, slots=True)
class Prepared:
    parts: Sequence[bytes | memoryview]
    """the file that is left"""
    size: tuple[int, int] | None = None
    """(width, height) in pixels as stored, before orientation; None: the decoder tells"""
    orientation: int | None = 1
    """EXIF's, 1 … 8; None: the decoder tells"""
    samples: Samples = _AS_THE_MODE_SAYS
    tile: tuple[int, int] = (1, 1)
    """(width, height) in pixels of what is decoded in one piece, where that is not the image"""
    baseline: bool = False
    """A JPEG for decoders in hardware: sequential, Huffman-coded, grey or of three colours"""
    partial: bool = False
    """It says itself that not all of the picture is in it."""
    passes: int = 1
    """that decoding makes over all pixels of the image; of 2.5 ns a pixel at most"""
    steps: int = 0
    """of decoding beside these passes, none longer than a pass over one pixel"""

    def check_work(self, width: int, height: int, max_pixels: int) -> None:
        """Raises InvalidRecord, too_costly, if decoding may take more than 32 passes over 64 million
        pixels, or over ``max_pixels`` if those are more: 5 s of a core, which is what the plainest
        images of so many pixels take at most. Progressive JPEGs have about 10 scans."""
        work = width * height * self.passes + height * _ROW_STEPS + self.steps
        limit = _WORK_PASSES * max(_WORK_PIXELS, max_pixels)
        if work > limit:
            raise InvalidRecord(
                "too_costly",
                f"{width} × {height}: decoding may take {work / 1e9:.1f} billion steps, "
                f"at most {limit / 1e9:.1f} (from decode.max_pixels)",
            )

    def open(self) -> BinaryIO:
        if len(self.parts) == 1:
            return io.BytesIO(self.parts[0])
        return io.BufferedReader(_Joined(self.parts))


class Kept:
    """The parts of ``data`` that are left when others are dropped, from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._parts: list[bytes | memoryview] = []
        self._begin = 0

    def drop(self, begin: int, end: int, instead: bytes = b"") -> None:
        """Leaves ``data[begin:end]`` out, or has ``instead`` in its place."""
        if begin == end and not instead:
            return
        if begin > self._begin:
            self._parts.append(self._view[self._begin : begin])
        if instead:
            self._parts.append(instead)
        self._begin = end

    def parts(self) -> list[bytes | memoryview]:
        """``data`` itself where nothing was dropped: only that is opened without a copy."""
        if self._begin == 0 and not self._parts:
            return [self._data]
        if self._begin < len(self._data):
            return [*self._parts, self._view[self._begin :]]
        return self._parts


class _Joined(io.RawIOBase):
    """Parts that read as one file."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        super().__init__()
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        i = bisect_right(self._ends, self._at)
        if i == len(self._parts):
            return 0
        part = self._parts[i]
        begin = self._at - self._ends[i] + len(part)
        read = min(len(buffer), len(part) - begin)
        buffer[:read] = part[begin : begin + read]
        self._at += read
        return read

    def readall(self) -> bytes:
        at, self._at = self._at, self._ends[-1]
        return b"".join(self._parts)[at:]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = (0, self._at, self._ends[-1])[whence] + offset
        if at < 0:
            raise ValueError(f"negative seek position {at}")
        self._at = at
        return at


def too_many(what: str) -> InvalidRecord:
    return InvalidRecord("unsupported_image", f"more than {MAX_PARTS} {what}")
