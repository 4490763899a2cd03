"""PNG (W3C, third edition): its chunks, and the transparent colour."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from streamer.decode.exif import orientation_of
from streamer.decode.prepared import MAX_PARTS, Kept, Prepared, Samples, too_many
from streamer.decode.rgb import strips
from streamer.errors import InvalidRecord
from streamer.records import U8, Bools

MAX_PROFILE_BYTES = 1 << 20
"""Of an EXIF block that is stored as text."""

_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBB")
_ANCILLARY = 0x20
"""Bit of a chunk's first letter: pixels do not depend on it, but for tRNS"""
_FRAMES = (b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PROFILE = b"Raw profile type exif\0"
_GREY, _RGB = 0, 2


def prepare(data: bytes) -> Prepared:
    """Removes all ancillary chunks except tRNS. That includes an animation's frames and control
    chunks: its default image remains.

    Orientation comes from the last eXIf chunk, or else from ImageMagick's profile in a text chunk,
    wherever they are in the file. Raises InvalidRecord, unsupported_image.
    """
    kept, exif, profile, samples = Kept(data), b"", (b"", b""), Samples()
    at, size, depth, colour, pixels = 8, None, 0, 0, False
    for _ in range(MAX_PARTS):
        if at + _CHUNK.size > len(data):
            break
        length, kind = _CHUNK.unpack_from(data, at)
        begin, end = at + 8, at + 12 + length
        if end > len(data) or not kind.isalpha():  # for the decoder to name
            if pixels and kind in _FRAMES:
                kept.drop(at, len(data))
            break
        if kind == b"IDAT":
            pixels = True
        elif kind == b"tRNS" and not pixels:
            samples = _samples(depth, colour, data[begin : end - 4])
        elif kind[0] & _ANCILLARY:
            kept.drop(at, end)
            if kind == b"eXIf" or (kind == b"tEXt" and data.startswith(b"exif\0", begin)):
                exif = data[begin + (0 if kind == b"eXIf" else 5) : end - 4]
            elif kind in _TEXTS and data.startswith(_PROFILE, begin):
                profile = kind, data[begin + len(_PROFILE) : end - 4]
        elif kind == b"IHDR" and length >= 13 and _is_intact(data, at, end):
            width, height, depth, colour = _HEADER.unpack_from(data, begin)
            size = width, height
        elif kind == b"CgBI":
            raise InvalidRecord("unsupported_image", "a PNG in Apple's variant for iPhones (CgBI)")
        elif kind == b"IEND":
            break
        at = end
    else:
        raise too_many("chunks")
    return Prepared(kept.parts(), size, orientation_of(exif or _unpacked(*profile)), samples)


def load(file: Prepared, _draft: tuple[int, int]) -> Image.Image:
    """The image. The transparent colour of an RGB image is white; that of a grey image is in
    `Prepared.samples`."""
    image = PngImageFile(file.open())
    image.load()
    if image.mode != "P":
        image.info.pop("transparency", None)  # in Pillow's units; `Prepared.samples` has the file's
    if image.mode == "RGB" and file.samples.transparent:
        _whiten(image, file.samples, _low_bytes(file) if file.samples.bits == 16 else None)
    return image


def _whiten(image: Image.Image, samples: Samples, low: Image.Image | None) -> None:
    colour = samples.transparent
    upper = colour if low is None else [value >> 8 for value in colour]
    for box in strips(image.size):
        pixels = np.array(image.crop(box))
        transparent = _equal(pixels, upper)
        if low is not None:
            transparent &= _equal(np.asarray(low.crop(box)), [value & 255 for value in colour])
        np.copyto(pixels, 255, where=transparent[..., None])
        image.paste(Image.fromarray(pixels), box)


def _equal(pixels: U8, colour: Sequence[int]) -> Bools:
    """(height, width)"""
    red, green, blue = colour
    equal: Bools = pixels[..., 0] == red
    equal &= pixels[..., 1] == green
    equal &= pixels[..., 2] == blue
    return equal


def _low_bytes(file: Prepared) -> Image.Image:
    """The lower bytes of 16-bit RGB samples, of which Pillow gives the upper ones."""
    image = PngImageFile(file.open())
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def _is_intact(data: bytes, at: int, end: int) -> bool:
    return zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _samples(depth: int, colour: int, transparent: bytes) -> Samples:
    """A palette's transparency is left to the decoder, and so is a chunk that is too short."""
    count = {_GREY: 1, _RGB: 3}.get(colour, 0)
    if not count or len(transparent) < 2 * count:
        return Samples()
    values = struct.unpack_from(f">{count}H", transparent)
    return Samples(depth, transparent=tuple(value & ((1 << depth) - 1) for value in values))


def _unpacked(kind: bytes, profile: bytes) -> bytes:
    """ImageMagick's way before there was eXIf: three lines, then hexadecimal digits."""
    try:
        if kind == b"zTXt":
            profile = _inflated(profile[1:])
        elif kind == b"iTXt":
            compressed, (_, _, text) = profile[0], profile[2:].split(b"\0", 2)
            profile = _inflated(text) if compressed else text
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii"))
    except (ValueError, IndexError, zlib.error):
        return b""


def _inflated(text: bytes) -> bytes:
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(text, MAX_PROFILE_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {MAX_PROFILE_BYTES} bytes")
    return inflated
