"""The orientation that an EXIF block, or a TIFF's first directory, asks for.

A block means what it means to Pillow, and so to the loaders that read the output: a number of any
type counts, the first entry that can be read wins, and an entry whose data lie outside the block
ends the directory.
"""

from __future__ import annotations

import struct
from fractions import Fraction

ORIENTATION = 274
UPRIGHT = 1

TYPE_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8,
}  # fmt: skip
"""TIFF 6.0, section 2, and BigTIFF: type of an entry → bytes of one value."""

_NUMBERS = {
    3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q",
}  # fmt: skip
_FRACTIONS = (5, 10)
_ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II\0*": "<", b"MM*\0": ">"}


def orientation_of(exif: bytes) -> int:
    """EXIF tag 274 of the first directory (1 … 8); 1 where it is absent or damaged. Raises
    nothing."""
    for _ in range(2):
        exif = exif.removeprefix(b"Exif\0\0")
    order = _ORDERS.get(exif[:4])
    if order is None:
        return UPRIGHT
    entry = struct.Struct(order + "HHI4s")
    out_of_line, read = 0, set()
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (tags,) = struct.unpack_from(order + "H", exif, at)
        for begin in range(at + 2, at + 2 + tags * entry.size, entry.size):
            tag, kind, count, value = entry.unpack_from(exif, begin)
            size = count * TYPE_BYTES.get(kind, 0)
            if size == 0 or tag in read:
                continue
            if size > 4:
                out_of_line += size
                if out_of_line > len(exif):
                    continue
                (offset,) = struct.unpack(order + "I", value)
                if offset + size > len(exif):
                    break
                value = exif[offset : offset + size] if tag == ORIENTATION else b""
            if tag == ORIENTATION:
                return orientation_in(order, kind, value)
            read.add(tag)
    except struct.error:
        pass
    return UPRIGHT


def orientation_in(order: str, kind: int, value: bytes) -> int:
    """The first number of an entry's ``value``, where it is an orientation; else 1. ``order``: as
    in `struct`."""
    if kind not in _NUMBERS:
        return UPRIGHT
    numbers = struct.unpack_from(order + _NUMBERS[kind], value)
    if kind in _FRACTIONS:
        numbers = (Fraction(*numbers),) if numbers[1] else (0,)
    return int(numbers[0]) if numbers[0] in range(2, 9) else UPRIGHT
