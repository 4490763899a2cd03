"""BMP: palettes that Pillow would ignore, and an alpha channel that was left empty."""

from __future__ import annotations

import struct

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from streamer.decode.prepared import Kept, Prepared

_OFFSET, _HEADER, _BITS, _COLOURS = 10, 14, 28, 46
"""Where the file says where its pixels are, how long its header is, …"""
_COMPRESSION, _RLE = 30, (1, 2)
_RLE_PASSES, _RLE_STEPS = 48, 120
"""of a pixel, and of a byte that codes for some: Pillow's decoder is written in Python"""
_BLACK = bytes(4)


def prepare(data: bytes) -> Prepared:
    """Adds an unused colour to a black-and-white palette of a 4- or 8-bit image, and to one of the
    darkest 16 greys of a 4-bit image: Pillow would ignore such a palette and misread the bits."""
    kept, is_rle = Kept(data), False
    if len(data) >= _COLOURS + 8:
        offset, header = struct.unpack_from("<I", data, _OFFSET)[0], data[_HEADER]
        bits, colours = data[_BITS], int.from_bytes(data[_COLOURS : _COLOURS + 4], "little")
        colours = colours or 1 << bits
        is_rle = (
            header >= 40 and int.from_bytes(data[_COMPRESSION : _COMPRESSION + 4], "little") in _RLE
        )
        behind = _HEADER + header + 4 * colours
        if header >= 40 and (bits == 4 or (bits == 8 and colours == 2)) and behind <= len(data):
            if offset >= behind:
                kept.drop(_OFFSET, _OFFSET + 4, struct.pack("<I", offset + len(_BLACK)))
            kept.drop(_COLOURS, _COLOURS + 4, struct.pack("<I", colours + 1))
            kept.drop(behind, behind, _BLACK)
    if is_rle:
        return Prepared(kept.parts(), passes=_RLE_PASSES, steps=_RLE_STEPS * len(data))
    return Prepared(kept.parts())


def load(file: Prepared, _draft: tuple[int, int]) -> Image.Image:
    """The image; opaque if its alpha is 0 everywhere: many writers leave the fourth byte empty."""
    image = BmpImageFile(file.open())
    image.load()
    return image.convert("RGB") if image.mode == "RGBA" and image.getbbox() is None else image
