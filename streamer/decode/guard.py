"""Looks at the raw structure of an image before Pillow does, and refuses what would cost more than
any real file is worth.

Pillow's parsers allocate nothing for pixels, but a small hostile file can still make them allocate
a canvas (WebP), inflate thousands of colour profiles (PNG), copy one buffer again and again (JPEG,
GIF) or read the same bytes for every tag (TIFF). The limits here are far above what real encoders
write. Pure functions over bytes; a damaged file is left for the decoder to name.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from streamer.errors import InvalidRecord

MAX_SEGMENTS = 1_000
"""JPEG segments before the first scan, PNG chunks that hold no pixels. (A colour profile takes at
most 255 segments.)"""
MAX_SCANS = 500
"""Scans of a progressive JPEG; encoders write about 10. libjpeg-turbo's fuzzers use the same limit."""
MAX_EXTENSION_BYTES = 1_000_000
"""GIF comments and application data before the first frame."""
MAX_TAGS = 1_000
"""Entries of a TIFF's first directory."""

_TIFF_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_PNG_PIXELS = (b"IDAT", b"fdAT", b"fcTL")
_TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_TIFF_TILE = (322, 323)
_TIFF_OFFSETS = (273, 324)
_CHUNK = struct.Struct(">I4s")
_SIZE = struct.Struct(">II")


_SOF = (0xC0, 0xC1, 0xC2)
_JPEG_FRAME = struct.Struct(">BHHB")


class Canvas(NamedTuple):
    """Pixels as stored, before orientation."""

    width: int
    height: int


class JpegHeader(NamedTuple):
    width: int
    height: int
    exif: bytes
    """From its byte order on; empty where there is none."""


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises InvalidRecord: zero_size, too_many_pixels."""
    if width <= 0 or height <= 0:
        raise InvalidRecord("zero_size", f"{width} × {height}")
    if width * height > max_pixels:
        raise InvalidRecord(
            "too_many_pixels",
            f"{width} × {height}, at most {max_pixels} pixels (decode.max_pixels)",
        )


def scan_jpeg(data: bytes) -> JpegHeader | None:
    """Limits segments before the first scan to `MAX_SEGMENTS`, and the scans of a progressive JPEG
    to `MAX_SCANS`.

    Tells size and EXIF where the file is as regular as encoders write it, in a sixth of the time
    that Pillow takes to open it. None leaves it to Pillow to make sense of it, or not.
    """
    at, end, width, height, progressive, exif = 2, len(data) - 10, 0, 0, False, b""
    for _ in range(MAX_SEGMENTS):
        if at > end or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _SOF:
            progressive = progressive or marker == 0xC2
            precision, height, width, components = _JPEG_FRAME.unpack_from(data, at + 4)
            if precision != 8 or components not in (1, 3, 4):
                break
        elif marker == 0xDA:
            # inside entropy data 0xFF is always followed by 0 or a restart marker, so that counting
            # finds scans only
            if progressive and data.count(b"\xff\xda", at) > MAX_SCANS:
                raise InvalidRecord("unsupported_image", f"more than {MAX_SCANS} scans")
            if not (width and height):
                break
            return JpegHeader(width, height, exif)
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            exif += data[at + 10 : at + 2 + (data[at + 2] << 8 | data[at + 3])]
        elif marker == 0xFF:
            at += 1
            continue
        elif marker <= 0x01 or 0xC0 < marker < 0xC4 or 0xC4 < marker < 0xDA:
            break
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    else:
        raise InvalidRecord(
            "unsupported_image", f"more than {MAX_SEGMENTS} segments before the first scan"
        )
    # The segments cannot be followed, so the same limits by counting what costs Pillow and libjpeg
    # the most.
    if data.count(b"\xff\xda") > MAX_SCANS or data.count(b"Exif\0\0") > MAX_SEGMENTS:
        raise InvalidRecord("unsupported_image", "too many scans or segments")
    return None


def check_png(data: bytes, max_pixels: int) -> bytes:
    """Limits pixels and chunks; returns what the chunk ``eXIf`` holds, wherever it stands (empty if
    there is none)."""
    if len(data) >= 24:
        width, height = _SIZE.unpack_from(data, 16)
        check_pixels(width, height, max_pixels)
    at, end, others, exif = 8, len(data) - 8, 0, b""
    while at <= end:
        length, kind = _CHUNK.unpack_from(data, at)
        if kind not in _PNG_PIXELS:
            if kind == b"eXIf":
                exif = data[at + 8 : at + 8 + length]
            elif kind == b"IEND":
                break
            others += 1
            if others > MAX_SEGMENTS:
                raise InvalidRecord("unsupported_image", f"more than {MAX_SEGMENTS} chunks")
        at += 12 + length
    return exif


def check_gif(data: bytes) -> None:
    """At most `MAX_EXTENSION_BYTES` before the first frame."""
    if len(data) < 13:
        return
    flags = data[10]
    start = at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while at + 2 < len(data) and data[at] == 0x21:
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        if at - start > MAX_EXTENSION_BYTES:
            raise InvalidRecord(
                "unsupported_image", f"more than {MAX_EXTENSION_BYTES} bytes before the first frame"
            )


def webp_canvas(data: bytes) -> Canvas | None:
    """The canvas from the first chunk (RFC 9649, sections 2.5 to 2.7); None where it is damaged."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return Canvas(
            int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        )
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return Canvas(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return Canvas((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None


def check_tiff(data: bytes, max_pixels: int) -> None:
    """The first directory: at most `MAX_TAGS` entries that together read the file no more than 4
    times; pixels that lie in the file (libtiff prints a line for each that does not); no giant
    tile."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    inline = 8 if big else 4
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    try:
        (at,) = (
            struct.unpack_from(order + "Q", data, 8)
            if big
            else struct.unpack_from(order + "I", data, 4)
        )
        (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        if tags > MAX_TAGS:
            raise InvalidRecord("unsupported_image", f"{tags} tags, at most {MAX_TAGS}")
        at += 8 if big else 2
        total, tile = 0, 1
        for i in range(tags):
            tag, kind, count, value = entry.unpack_from(data, at + i * entry.size)
            size = count * _TIFF_TYPE_BYTES.get(kind, 1)
            total += min(size, len(data))
            begin = at + (i + 1) * entry.size - inline if size <= inline else value
            if begin > len(data):
                raise InvalidRecord("truncated", f"tag {tag} begins at byte {begin} of {len(data)}")
            if tag in _TIFF_TILE and kind in _TIFF_INTEGERS:
                tile *= struct.unpack_from(order + _TIFF_INTEGERS[kind], data, begin)[0]
            elif tag in _TIFF_OFFSETS and kind in _TIFF_INTEGERS and 0 < size <= len(data):
                last = max(struct.unpack_from(f"{order}{count}{_TIFF_INTEGERS[kind]}", data, begin))
                if last > len(data):
                    raise InvalidRecord("truncated", f"pixels begin at byte {last} of {len(data)}")
    except struct.error:
        return
    if total > 4 * len(data):
        raise InvalidRecord(
            "unsupported_image", f"tags that read a file of {len(data)} bytes again and again"
        )
    if tile > max_pixels:
        raise InvalidRecord(
            "too_many_pixels", f"tiles of {tile} pixels, at most {max_pixels} (decode.max_pixels)"
        )
