"""WebP (RFC 9649): its chunks and its canvas."""

from __future__ import annotations

import struct

from streamer.decode.exif import orientation_of
from streamer.decode.prepared import MAX_PARTS, Kept, Prepared, too_many

_CHUNK = struct.Struct("<4sI")
_STILLS, _METADATA = (b"VP8 ", b"VP8L"), (b"ICCP", b"EXIF", b"XMP ")
_FLAGS, _HAS_EXIF, _HAS_METADATA = 20, 0x08, 0x2C
"""Byte of a chunk VP8X, and its flags for EXIF and for any of `_METADATA`"""


def prepare(data: bytes) -> Prepared:
    """Removes colour profile, EXIF and XMP. A chunk that claims more bytes than the file has is
    removed if it follows the pixels of a still image; if it precedes them, they cannot be found.
    Raises InvalidRecord, unsupported_image."""
    size, end = _canvas(data), 8 + int.from_bytes(data[4:8], "little")
    if size is None or end > len(data):
        return Prepared((data,), size)  # for the decoder to name
    kept, exif, lost, flags, shown = Kept(data), b"", 0, 0, False
    kept.drop(0, 12)
    if data[12:16] == b"VP8X":
        flags = data[_FLAGS]
        kept.drop(_FLAGS, _FLAGS + 1, bytes((flags & ~_HAS_METADATA,)))
    at = 12
    for _ in range(MAX_PARTS):
        if at + _CHUNK.size > end:
            break
        kind, length = _CHUNK.unpack_from(data, at)
        begin, after = at + _CHUNK.size, at + _CHUNK.size + length
        if after > end and not shown:
            break  # for the decoder to name
        padded = min(after + length % 2, end)
        if kind in _METADATA or after > end:
            if kind == b"EXIF" and after <= end and flags & _HAS_EXIF and not exif:
                exif = data[begin:after]
            kept.drop(at, padded)
            lost += padded - at
        shown = shown or kind in _STILLS
        at = padded
    else:
        raise too_many("chunks")
    if not lost and not flags & _HAS_METADATA:
        return Prepared((data,), size)
    kept.drop(end, len(data))
    header = b"RIFF" + (end - 8 - lost).to_bytes(4, "little") + b"WEBP"
    return Prepared((header, *kept.parts()), size, orientation_of(exif))


def _canvas(data: bytes) -> tuple[int, int] | None:
    """The canvas from the first chunk (sections 2.5 to 2.7); None where it is damaged."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
