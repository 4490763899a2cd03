"""JPEG (ITU-T T.81): the segments before the first scan, and whether the scan is whole."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from math import ceil
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from streamer.decode.exif import UPRIGHT, orientation_of
from streamer.decode.prepared import MAX_PARTS, Kept, Prepared, too_many
from streamer.errors import InvalidRecord

MAX_SCANS = 500
"""Scans of a JPEG, however small; encoders write about 10. libjpeg-turbo's fuzzers use the same
limit."""
SCAN_PASSES, ARITHMETIC_PASSES = 1, 3
"""of a scan that is Huffman-coded, or may be arithmetic-coded"""

_SOS, _DRI, _APP0, _APP1, _APP14, _COM = 0xDA, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE
_FRAMES = frozenset(
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
)
_TABLES = frozenset((0xC4, 0xCC, 0xDB, _DRI))
_BASELINE = 0xC0
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA), (0xC9, 0xCA)
_METADATA = frozenset((*range(_APP0, 0xF0), _COM))
_EOI, _JUNK = 0xD9, 0x00
_ENDS = frozenset((0xD8, _EOI))
_USUAL = frozenset((b"\x11", b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11"))
"""Sampling factors: grey; chroma whole, halved across, halved both ways"""
_IGNORED = frozenset((_JUNK, 0x01, *range(0xD0, 0xD8)))
_SINGLE = frozenset((0x01, *range(0xD0, 0xDA)))
_RESERVED = frozenset((*range(0x02, 0xC0), 0xC8, *range(0xF0, 0xFE)))
_FEW_SCANS = 10
_MARKER = re.compile(rb"\xff[^\x00\xff]")
SOS_MARKER = b"\xff\xda"
_SCAN = re.compile(SOS_MARKER)
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_END_OF_SCAN = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_FRAME = struct.Struct(">BHHB")

_ALL_COEFFICIENTS = (1 << 64) - 1
_MID_GREY = {128, 127}
"""In CMYK, which is stored inverted, 127"""
_MORE = bytes(range(0xFF)) * 8
"""Entropy-coded data, as good as any other"""


def prepare(data: bytes) -> Prepared:
    """Removes comments, application data that does not affect colours, and junk between segments.
    Reports the size if the frame header is as regular as encoders write it.

    Raises InvalidRecord: unsupported_image, too_costly, corrupt.
    """
    kept, exif, frame, progressive, arithmetic = Kept(data), [], None, False, False
    frames, is_regular = 0, True
    for marker, begin, end in _segments(data):
        if marker in _TABLES:
            continue
        if marker in _METADATA:
            if marker == _APP1 and data[begin + 4 : begin + 10] == b"Exif\0\0":
                exif.append(data[begin + 10 : end])
            if not _bears_on_colours(marker, data, begin, end):
                kept.drop(begin, end)
        elif marker in _FRAMES:
            if marker not in _SEQUENTIAL and marker not in _PROGRESSIVE:
                raise InvalidRecord("unsupported_image", f"JPEG process SOF{marker - 0xC0}")
            progressive = progressive or marker in _PROGRESSIVE
            arithmetic = arithmetic or marker in _ARITHMETIC
            frame = _frame(data, begin, end)
            frames += 1
            is_regular = is_regular and marker == _BASELINE and data[begin + 11 : end : 3] in _USUAL
        elif marker == _SOS:
            passes = _count(data, begin) * (ARITHMETIC_PASSES if arithmetic else SCAN_PASSES)
            size = (frame.width, frame.height) if frame else None
            partial = progressive and not _covers_all(data, _scans(data, begin), frame)
            orientation = orientation_of(b"".join(exif)) if exif else UPRIGHT
            baseline = is_regular and frames == 1 and frame is not None
            return Prepared(
                kept.parts(), size, orientation, baseline=baseline, partial=partial, passes=passes
            )
        elif marker in _IGNORED:
            kept.drop(begin, end)
        elif marker in _ENDS:
            is_regular = False
        elif marker in _RESERVED:
            raise InvalidRecord("corrupt", f"reserved marker FF{marker:02X} at byte {begin}")
    return Prepared(kept.parts())


def load(file: Prepared, draft: tuple[int, int]) -> Image.Image:
    """The image, at 1/2, 1/4 or 1/8 of its size if that is at least ``draft`` (width, height).

    Raises InvalidRecord, truncated, if a scan ends early but is followed by an EOI marker.
    """
    image = _load(file.open(), draft)
    _check_whole(image, file, lambda longer: _load(longer, draft))
    return image


def _load(file: BinaryIO, draft: tuple[int, int]) -> Image.Image:
    image = JpegImageFile(file)
    if draft[0] > 0:
        image.draft(None, draft)
    image.load()
    return image


def _check_whole(
    image: Image.Image, file: Prepared, decode: Callable[[BinaryIO], Image.Image]
) -> None:
    """libjpeg leaves pixels without data mid-grey, or coarse in a progressive JPEG, and reports
    nothing. A picture may also look like that on purpose, so the last scan is given more data: a
    complete scan ignores it. That second decode happens only if the picture ends in mid-grey or the
    scans of a progressive JPEG do not cover it; any other picture is taken for whole."""
    width, height = image.size
    corner = image.crop((max(0, width - 2), max(0, height - 2), width, height))
    if not file.partial and not _MID_GREY.issuperset(corner.tobytes()):
        return
    data = b"".join(file.parts)
    if (scan := _last_scan(data)) is None:
        return
    whole = sum(1 for _ in _RESTART.finditer(data, scan.begin, scan.end)) >= scan.restarts
    if whole:
        longer = decode(BytesIO(b"".join((data[: scan.end], _MORE, data[scan.end :]))))
        whole = ImageChops.difference(image, longer).getbbox() is None
    if not whole:
        raise InvalidRecord("truncated", "an end marker before the end of the picture")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of what lies before the first scan, and of that scan's header."""
    at = 2
    for _ in range(MAX_PARTS):
        if at + 4 > len(data):
            return
        start, marker = data[at], data[at + 1]
        if start != 0xFF or marker in (0x00, 0xFF):
            found = _MARKER.search(data, at)
            if found is None:
                return
            marker, end = _JUNK, found.start()
        elif marker in _SINGLE:
            end = at + 2
        else:
            end = at + 2 + max(2, data[at + 2] << 8 | data[at + 3])
            if end > len(data):
                return
        yield marker, at, end
        if marker == _SOS:
            return
        at = end
    raise too_many("segments before the first scan")


def _bears_on_colours(marker: int, data: bytes, begin: int, end: int) -> bool:
    """As libjpeg sees it: JFIF and Adobe's segment say what the components are."""
    if marker == _APP0:
        return end - begin >= 18 and data[begin + 4 : begin + 9] == b"JFIF\0"
    return marker == _APP14 and end - begin >= 16 and data[begin + 4 : begin + 9] == b"Adobe"


class _Frame(NamedTuple):
    width: int
    height: int
    mcus: int
    """Minimum coded units, where all components share one scan"""
    components: int


def _frame(data: bytes, begin: int, end: int) -> _Frame | None:
    """None where it is damaged, or no kind that is decoded: the decoder names it."""
    if end - begin < 10:
        return None
    precision, height, width, components = _FRAME.unpack_from(data, begin + 4)
    factors = data[begin + 11 : end : 3]
    if precision != 8 or components not in (1, 3, 4) or len(factors) != components:
        return None
    across = down = 1
    if components > 1:
        across, down = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    if not (width and height and across and down):
        return None
    return _Frame(width, height, ceil(width / (8 * across)) * ceil(height / (8 * down)), components)


def _scans(data: bytes, begin: int) -> list[int]:
    """Where scans begin, from the first one on: inside entropy data 0xFF is always followed by 0 or
    a restart marker."""
    return [found.start() for found in islice(_SCAN.finditer(data, begin), MAX_SCANS)]


def _count(data: bytes, begin: int) -> int:
    """Scans from ``begin``, the first one, to the end of the image: each costs a decoder a pass over
    all of its pixels. Of a few, those of a picture behind the image count, too. Raises
    InvalidRecord, too_costly, for more than `MAX_SCANS`."""
    # bytes.count would take longer than all else here
    scans = sum(1 for _ in islice(_SCAN.finditer(data, begin), _FEW_SCANS + 1))
    if scans <= _FEW_SCANS:
        return scans
    scans, at = 0, begin
    while (found := _MARKER.search(data, at)) is not None:
        at, marker = found.end(), found[0][-1]
        if marker == _EOI:
            break
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise InvalidRecord("too_costly", f"more than {MAX_SCANS} scans")
        if marker not in _SINGLE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return scans


def _covers_all(data: bytes, scans: list[int], frame: _Frame | None) -> bool:
    """Whether the scans of a progressive JPEG send all coefficients, and to the last bit."""
    missing: dict[int, int] = {}
    for at in scans:
        if at + 4 >= len(data):
            break
        spectrum = at + 5 + 2 * data[at + 4]
        if spectrum + 3 > len(data):
            break
        first, last, bits = data[spectrum : spectrum + 3]
        sent = (2 << last) - (1 << first) if bits & 15 == 0 and first <= last < 64 else 0
        for component in data[at + 5 : spectrum : 2]:
            missing[component] = missing.get(component, _ALL_COEFFICIENTS) & ~sent
    return frame is None or (len(missing) == frame.components and not any(missing.values()))


class _Scan(NamedTuple):
    begin: int
    end: int
    restarts: int
    """Restart markers that belong into it, at least"""


def _last_scan(data: bytes) -> _Scan | None:
    """None where it has no end, or is of one component among several in sequential mode: then
    mid-grey says nothing."""
    frame, interval, sequential = None, 0, True
    for marker, begin, end in _segments(data):
        if marker in _FRAMES:
            frame, sequential = _frame(data, begin, end), marker in _SEQUENTIAL
        elif marker == _DRI:
            interval = int.from_bytes(data[begin + 4 : begin + 6], "big")
        elif marker == _SOS and frame is not None:
            restarts = (frame.mcus - 1) // interval if interval and sequential else 0
            if not sequential:
                end = _scans(data, begin)[-1]
                end += 2 + int.from_bytes(data[end + 2 : end + 4], "big")
            elif data[begin + 4 : begin + 5] != bytes((frame.components,)):
                return None
            behind = _END_OF_SCAN.search(data, end)
            return behind and _Scan(end, behind.start(), restarts)
    return None
