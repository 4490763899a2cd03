"""TIFF 6.0 and BigTIFF: the first directory."""

from __future__ import annotations

import struct
from contextlib import suppress
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from streamer.decode.exif import ORIENTATION, TYPE_BYTES, UPRIGHT, orientation_in
from streamer.decode.jpeg import ARITHMETIC_PASSES, SOS_MARKER
from streamer.decode.prepared import MAX_PARTS, Prepared, Samples, too_many
from streamer.errors import InvalidRecord

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _COLOUR_MAP = 256, 257, 258, 259, 262, 320
_STRIPS, _SAMPLES, _STRIP_BYTES = 273, 277, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_PIECES = ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES))
_SAMPLE_FORMAT, _JPEG_OFFSET, _SUBSAMPLING = 339, 513, 530
_PIXELS = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, *(_STRIPS, _SAMPLES, 278)),
        *(_STRIP_BYTES, 284, 292, 293, 317, _COLOUR_MAP, *(_TILE_WIDTH, _TILE_HEIGHT, _TILES)),
        *(_TILE_BYTES, 332, 334, 338, _SAMPLE_FORMAT),
        *(347, *range(512, 522)),  # JPEG
        *range(529, 533),  # YCbCr
        *(*range(32995, 32999), 48129, 50674),  # of SGI, Microsoft and LERC
    )
)
"""Tags that pixels depend on"""
_NEEDED = _PIXELS | {ORIENTATION}
_JPEG = (6, 7)
_UNCOMPRESSED, _WHITE_IS_ZERO, _BLACK_IS_ZERO, _YCBCR = 1, 0, 1, 6
_UNSIGNED = 1
_SHORT = 3
_INTEGERS = {1: "u1", _SHORT: "u2", 4: "u4", 16: "u8"}
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}

_Integers = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


def prepare(data: bytes) -> Prepared:
    """Keeps the first directory, and of its tags those that affect pixels. Orientation is reported
    and removed as well.

    Raises InvalidRecord: truncated if pixels or a tag that is needed lie beyond the end, corrupt if
    there are no pixels (libtiff would print a line for each), unsupported_image.
    """
    directory = _Directory(data)
    if not directory.entries:
        return Prepared((data,))  # for the decoder to name
    _check(directory)
    orientation = UPRIGHT
    if (turned := directory.entries.pop(ORIENTATION, None)) is not None:
        orientation = orientation_in(directory.layout.order, turned.kind, bytes(turned.value))
    bits = directory.first(_BITS, 1)
    white_is_zero = bits > 8 and directory.first(_PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO
    if white_is_zero:  # Pillow inverts no more than 8 bits, and knows fewer layouts of it
        directory.replace(_PHOTOMETRIC, np.array([_BLACK_IS_ZERO]))
    colours = directory.numbers(_COLOUR_MAP)
    if len(colours) and colours.max() < 256:  # in 8 bits instead of 16, as libtiff guesses, too
        directory.replace(_COLOUR_MAP, colours.astype(np.uint32) * 257)
    return Prepared(
        directory.file(),
        orientation=orientation,
        samples=Samples(
            bits, white_is_zero, directory.first(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
        ),
        tile=(directory.first(_TILE_WIDTH, 1), directory.first(_TILE_HEIGHT, 1)),
        passes=_passes(directory),
        steps=_steps(directory),
    )


def load(file: Prepared, _draft: tuple[int, int]) -> Image.Image:
    """The image. libtiff gives samples in this machine's byte order, even if Pillow expects the
    file's."""
    image = TiffImageFile(file.open())
    for i, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            mode, *others = tile.args
            image.tile[i] = tile._replace(args=(_NATIVE.get(mode, mode), *others))
    image.load()
    return image


class _Layout(NamedTuple):
    """How a TIFF writes its numbers, as in `struct`."""

    order: str
    start: int
    """Where the first directory's offset is"""
    offset: str
    number: str
    """of entries in a directory"""

    def entry(self) -> struct.Struct:
        return struct.Struct(f"{self.order}HH{self.offset}{struct.calcsize(self.offset)}s")


class _Entry(NamedTuple):
    kind: int
    value: memoryview
    raw: bytes
    """as it is in the directory"""


class _Directory:
    """The tags of a TIFF's first directory that are needed, and the file that has no others."""

    def __init__(self, data: bytes) -> None:
        big, order = data[2:4] in (b"+\0", b"\0+"), "<" if data[:2] == b"II" else ">"
        if big and order == ">":
            raise InvalidRecord("unsupported_image", "a BigTIFF in big-endian order")
        self.data = data
        self.layout = _Layout(order, 8, "Q", "Q") if big else _Layout(order, 4, "I", "H")
        self.entries: dict[int, _Entry] = {}
        self._behind = bytes(len(data) % 2)
        with suppress(struct.error):  # cut off: what was read before counts
            self._read()

    def numbers(self, tag: int) -> _Integers:
        """Empty where there is no such tag, or none of integers."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _INTEGERS:
            return np.empty(0, np.uint8)
        return np.frombuffer(entry.value, self.layout.order + _INTEGERS[entry.kind])

    def first(self, tag: int, default: int) -> int:
        numbers = self.numbers(tag)
        return int(numbers[0]) if len(numbers) else default

    def replace(self, tag: int, numbers: _Integers) -> None:
        order, _, offset, _ = self.layout
        value = numbers.astype(f"{order}u2").tobytes()
        field = value
        if len(value) > struct.calcsize(offset):
            field = struct.pack(order + offset, len(self.data) + len(self._behind))
            self._behind += value
        raw = self.layout.entry().pack(tag, _SHORT, len(numbers), field)
        self.entries[tag] = _Entry(_SHORT, memoryview(value), raw)

    def file(self) -> list[bytes | memoryview]:
        """The directory stands behind everything else, so that offsets stay true."""
        order, start, offset, number = self.layout
        at = len(self.data) + len(self._behind)
        header = self.data[:start] + struct.pack(order + offset, at)
        count, following = struct.pack(order + number, len(self.entries)), bytes(len(header))
        entries = b"".join(entry.raw for entry in self.entries.values())
        tail = b"".join((self._behind, count, entries, following))
        return [header, memoryview(self.data)[len(header) :], tail]

    def _read(self) -> None:
        """The first entry for each tag that can be read."""
        order, start, offset, number = self.layout
        entry, view = self.layout.entry(), memoryview(self.data)
        (at,) = struct.unpack_from(order + offset, self.data, start)
        (tags,) = struct.unpack_from(order + number, self.data, at)
        if tags > MAX_PARTS:
            raise too_many("tags")
        at += struct.calcsize(number)
        for begin in range(at, at + tags * entry.size, entry.size):
            tag, kind, count, value = entry.unpack_from(self.data, begin)
            size = count * TYPE_BYTES.get(kind, 0)
            if not 0 < size <= len(self.data) or tag in self.entries or tag not in _NEEDED:
                continue
            where = begin + entry.size - len(value)
            if size > len(value):
                (where,) = struct.unpack(order + offset, value)
            if where + size <= len(self.data):
                raw = self.data[begin : begin + entry.size]
                self.entries[tag] = _Entry(kind, view[where : where + size], raw)
            elif tag != ORIENTATION:
                raise InvalidRecord(
                    "truncated", f"tag {tag} ends at byte {where + size} of {len(self.data)}"
                )


def _steps(directory: _Directory) -> int:
    """One for each byte that a decompressor reads, which strips and tiles may share, and for each
    that it gives in tiles, which may reach far beyond the image."""
    size, steps = len(directory.data), 0
    for offsets, lengths in _PIECES:
        counts = np.minimum(directory.numbers(lengths).astype(np.uint64), np.uint64(size))
        missing = max(len(directory.numbers(offsets)) - len(counts), 0)
        steps += int(counts.sum()) + missing * size
    tile = [directory.first(tag, 0) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if all(tile):
        image = (directory.first(tag, 0) for tag in (_WIDTH, _HEIGHT))
        tiles = prod(ceil(pixels / side) for pixels, side in zip(image, tile, strict=True))
        bits = directory.first(_SAMPLES, 1) * directory.first(_BITS, 1)
        steps += tiles * prod(tile) * ceil(bits / 8)
    return steps


def _passes(directory: _Directory) -> int:
    """The most scans of a JPEG inside."""
    if directory.first(_COMPRESSION, _UNCOMPRESSED) not in _JPEG:
        return 1
    scans = 1
    for offsets, lengths in _PIECES:
        counts = directory.numbers(lengths)
        for begin, length in zip(
            directory.numbers(offsets).tolist(), counts.tolist(), strict=False
        ):
            scans = max(scans, directory.data.count(SOS_MARKER, begin, begin + length))
    return scans * ARITHMETIC_PASSES


def _check(directory: _Directory) -> None:
    size, entries = len(directory.data), directory.entries
    if not any(tag in entries for tag in (_STRIPS, _TILES, _JPEG_OFFSET)):
        raise InvalidRecord("corrupt", "no strips and no tiles")
    for tag in (_STRIPS, _TILES):
        offsets = directory.numbers(tag)
        if len(offsets) > MAX_PARTS:
            raise too_many("strips or tiles")
        if len(offsets) and offsets.max() > size:
            raise InvalidRecord("truncated", f"pixels begin at byte {offsets.max()} of {size}")
    if sum(len(entry.value) for entry in entries.values()) > 4 * size:
        raise InvalidRecord(
            "unsupported_image", f"tags that read a file of {size} bytes again and again"
        )
    subsampled = directory.numbers(_SUBSAMPLING).max(initial=1) > 1
    if (
        subsampled
        and directory.first(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
        and directory.first(_PHOTOMETRIC, _YCBCR) == _YCBCR
    ):  # Pillow would take it for three samples a pixel
        raise InvalidRecord("unsupported_image", "subsampled YCbCr without compression")
