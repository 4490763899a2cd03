"""AVIF (ISO/IEC 14496-12, 23008-12): its items."""

from __future__ import annotations

import re

from streamer.decode.prepared import Kept, Prepared

_MAX_BOXES = 100
_METADATA = re.compile(rb"infe(?:\x02.{7}|\x03.{9})(?=Exif|mime)", re.DOTALL)
_UNKNOWN = b"skip"


def prepare(data: bytes) -> Prepared:
    """Gives the items for EXIF and XMP a type that no decoder reads. Orientation is in the boxes
    ``irot`` and ``imir``, which overrule EXIF."""
    kept, at = Kept(data), 0
    for _ in range(_MAX_BOXES):
        size, begin = int.from_bytes(data[at : at + 4], "big"), at + 8
        kind = data[at + 4 : at + 8]
        if size == 1:
            size, begin = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = at + size if size else len(data)
        if end < begin or end > len(data):
            break
        if kind == b"meta":
            for item in _METADATA.finditer(data, begin, end):
                kept.drop(item.end(), item.end() + 4, _UNKNOWN)
            break
        at = end
    return Prepared(kept.parts(), orientation=None)
