"""AVIF (ISO/IEC 14496-12, 23008-12): its items and tracks, and how large the frames in them are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from streamer.decode.av1 import Bytes, coded
from streamer.decode.prepared import MAX_PARTS, Kept, Prepared, too_many
from streamer.errors import InvalidRecord

_METADATA = re.compile(rb"infe(?:\x02.{7}|\x03.{9})(?=Exif|mime)", re.DOTALL)
_UNKNOWN = b"skip"
_SAMPLE_TABLE = (b"trak", b"mdia", b"minf", b"stbl")
_FRAME_PASSES = 6
"""over the pixels of a frame, at most"""


def prepare(data: bytes) -> Prepared:
    """Gives the items for EXIF and XMP a type that no decoder reads. Orientation is in the boxes
    ``irot`` and ``imir``, which overrule EXIF.

    Frames are as large as AV1 says in them, whatever the container's ``ispe`` claims: decoders
    scale them when they are decoded. Raises InvalidRecord, unsupported_image.
    """
    kept, payloads = Kept(data), []
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"meta":
            for item in _METADATA.finditer(data, box.begin, box.end):
                kept.drop(item.end(), item.end() + 4, _UNKNOWN)
            payloads.append(_items(data, box))
        elif box.kind == b"moov":
            payloads.append(_first_samples(data, box))
    found = coded(chain.from_iterable(payloads))
    largest = max(found, key=lambda c: c.width * c.height * c.frames, default=None)
    return Prepared(
        kept.parts(),
        orientation=None,
        tile=(1, 1)
        if largest is None
        else (largest.width, largest.height * max(largest.frames, 1)),
        steps=_FRAME_PASSES * sum(c.largest * c.frames for c in found),
    )


class _Box(NamedTuple):
    kind: bytes
    begin: int
    """of its payload"""
    end: int


def _boxes(data: bytes, at: int, limit: int) -> Iterator[_Box]:
    """As far as they make sense."""
    for _ in range(MAX_PARTS):
        if at + 8 > limit:
            return
        size, begin = int.from_bytes(data[at : at + 4], "big"), at + 8
        kind = data[at + 4 : at + 8]
        if size == 1:
            size, begin = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = at + size if size else limit
        if end < begin or end > limit:
            return
        yield _Box(kind, begin, end)
        at = end
    raise too_many("boxes")


def _items(data: bytes, meta: _Box) -> Iterator[Bytes]:
    """The bytes of each item of AV1 (ISO/IEC 14496-12, 8.11)."""
    boxes = {box.kind: box for box in _boxes(data, meta.begin + 4, meta.end)}
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    images = set(_images(data, boxes[b"iinf"]))
    with suppress(IndexError):  # cut off: what was read before counts
        for item, extents, inside in _located(data, boxes[b"iloc"]):
            if item not in images:
                continue
            room = boxes.get(b"idat", _Box(b"", 0, 0)) if inside else _Box(b"", 0, len(data))
            parts, left = [], room.end - room.begin
            for offset, length in extents:
                begin = room.begin + offset
                part = memoryview(data)[begin : min(begin + (length or left), room.end)]
                left -= len(part)
                if left < 0:
                    raise InvalidRecord("unsupported_image", "an item reads bytes several times")
                parts.append(part)
            yield parts[0] if len(parts) == 1 else b"".join(parts)


def _images(data: bytes, iinf: _Box) -> Iterator[int]:
    """The numbers of items that are AV1."""
    wide = data[iinf.begin] > 0
    for box in _boxes(data, iinf.begin + (8 if wide else 6), iinf.end):
        digits = 4 if data[box.begin] > 2 else 2
        at = box.begin + 4 + digits + 2
        if box.kind == b"infe" and data[at : at + 4] == b"av01":
            yield int.from_bytes(data[box.begin + 4 : box.begin + 4 + digits], "big")


def _located(data: bytes, iloc: _Box) -> Iterator[tuple[int, list[tuple[int, int]], bool]]:
    """(number, [(offset, length; 0: up to the end)], whether in ``idat``) of each item. Raises
    IndexError where it is cut off."""
    numbers, left = _Numbers(data, iloc.begin, iloc.end), MAX_PARTS
    version = numbers.read(1)
    numbers.read(3)
    sizes = numbers.read(2)
    of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    of_number = 4 if version > 1 else 2
    for _ in range(numbers.read(of_number)):
        item = numbers.read(of_number)
        inside = version > 0 and numbers.read(2) & 15 == 1
        numbers.read(2)
        base, extents = numbers.read(of_base), []
        for _ in range(numbers.read(2)):
            left -= 1
            if left < 0:
                raise too_many("extents of items")
            if version > 0:
                numbers.read(of_index)
            extents.append((base + numbers.read(of_offset), numbers.read(of_length)))
        yield item, extents, inside


class _Numbers:
    def __init__(self, data: bytes, begin: int, end: int) -> None:
        self._data, self._at, self._end = data, begin, end

    def read(self, digits: int) -> int:
        """Raises IndexError behind the end."""
        begin, self._at = self._at, self._at + digits
        if self._at > self._end:
            raise IndexError(f"byte {self._at} of {self._end}")
        return int.from_bytes(self._data[begin : self._at], "big")


def _first_samples(data: bytes, moov: _Box) -> Iterator[Bytes]:
    """Of each track (section 8.7): what an animation's first frame is decoded from."""
    tables = [moov]
    for kind in _SAMPLE_TABLE:
        tables = [box for t in tables for box in _boxes(data, t.begin, t.end) if box.kind == kind]
    for table in tables:
        boxes = {box.kind: box.begin for box in _boxes(data, table.begin, table.end)}
        chunks = boxes.get(b"stco", boxes.get(b"co64"))
        if chunks is None or b"stsz" not in boxes:
            continue
        digits = 4 if b"stco" in boxes else 8
        sizes = boxes[b"stsz"] + 4
        begin, size, first = (
            int.from_bytes(data[at : at + n], "big")
            for at, n in ((chunks + 8, digits), (sizes, 4), (sizes + 8, 4))
        )
        yield memoryview(data)[begin : begin + (size or first)]
