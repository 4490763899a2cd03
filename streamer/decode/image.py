"""Image bytes → header → RGB, with Pillow held to what is safe. Nothing here keeps state;
everything may run on any thread.

Decoded are JPEG (MPO as JPEG), PNG, WebP, GIF, BMP, TIFF and AVIF: what image-text data is made of.
Left out, so that their bytes are `unsupported_image`: EPS, PDF and PostScript (an interpreter), SVG
(a browser), PSD and ICO/ICNS (they decode while they are opened, before a limit can act), JPEG
2000, and the historical rest. HEIC and JPEG XL have no decoder in Pillow. An embedder that brings
its own ``decode(bytes)`` may support more; `sniff` names them all.

Pixels become 8-bit RGB like this:

* EXIF orientation is applied (from EXIF only; XMP's is ignored), and the width and height reported
  are those after it.
* Transparency is composited over white, as img2dataset does and a web page shows it; dropping alpha
  would show whatever colour the encoder left under transparent pixels. A BMP whose alpha is 0
  everywhere is opaque: many writers leave the fourth byte empty.
* Grey of 12 or 16 bits is scaled to 0…255, never clipped; of 16-bit colour the upper byte counts.
  32-bit integers and floats have no agreed range: values within 0…255 are taken as they are, within
  0…65535 (integers) or 0…1 (floats) by that range, anything else from its minimum to its maximum;
  NaN counts as 0. Where white is 0, the result is inverted.
* CMYK and YCCK by Pillow's formula, LAB through LittleCMS; embedded colour profiles are ignored, as
  training code does.
* Of an animation, the first frame.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol

from PIL import AvifImagePlugin, ImageFile
from PIL import Image as Pil
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from streamer.decode import avif, bmp, gif, jpeg, png, tiff, webp
from streamer.decode.exif import orientation_of
from streamer.decode.failure import Undecodable
from streamer.decode.prepared import Prepared
from streamer.decode.rgb import to_rgb
from streamer.errors import InvalidRecord
from streamer.units import counted

_Size = tuple[int, int]


def _load_by(plugin: type[ImageFile.ImageFile]) -> Callable[[Prepared, _Size], Pil.Image]:
    def load(file: Prepared, _draft: _Size) -> Pil.Image:
        image = plugin(file.open())
        image.load()
        return image

    return load


class _Format(NamedTuple):
    plugin: type[ImageFile.ImageFile]
    prepare: Callable[[bytes], Prepared]
    load: Callable[[Prepared, _Size], Pil.Image]
    """Decodes; takes the draft size."""


_FORMATS = {
    "jpg": _Format(JpegImageFile, jpeg.prepare, jpeg.load),
    "png": _Format(PngImageFile, png.prepare, png.load),
    "webp": _Format(WebPImageFile, webp.prepare, _load_by(WebPImageFile)),
    "gif": _Format(GifImageFile, gif.prepare, _load_by(GifImageFile)),
    "bmp": _Format(BmpImageFile, bmp.prepare, bmp.load),
    "tiff": _Format(TiffImageFile, tiff.prepare, tiff.load),
    "avif": _Format(AvifImageFile, avif.prepare, _load_by(AvifImageFile)),
}
FORMATS: tuple[str, ...] = tuple(_FORMATS)
"""Formats that are decoded, by their file extensions."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"),
    (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"II+\0", "tiff"), (b"MM\0+", "tiff"),
    (b"\xff\x0a", "jxl"), (b"\0\0\0\x0cJXL ", "jxl"), (b"\0\0\0\x0cjP  ", "jp2"), (b"\xff\x4f\xff\x51", "jp2"),
    (b"8BPS", "psd"), (b"icns", "icns"), (b"\0\0\1\0", "ico"), (b"DDS ", "dds"), (b"\x76\x2f\x31\x01", "exr"), (b"qoif", "qoi"),
    (b"#?RADIANCE", "hdr"), (b"\x01\xda", "sgi"), (b"%PDF-", "pdf"), (b"%!PS", "eps"), (b"<svg", "svg"),
)  # fmt: skip

_TRANSPOSE = {
    2: Pil.Transpose.FLIP_LEFT_RIGHT,
    3: Pil.Transpose.ROTATE_180,
    4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE,
    6: Pil.Transpose.ROTATE_270,
    7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_90,
}
"""EXIF 2.32, tag 274 → what brings the picture upright."""

_BLOCK_BYTES = 64 << 20


class Limits(Protocol):
    """`streamer.config.Decode`, or anything with its two limits."""

    @property
    def max_bytes(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...


class Header(NamedTuple):
    """What is known before decoding."""

    format: str
    """File extension, one of `FORMATS`."""
    width: int
    """Pixels, after orientation."""
    height: int
    orientation: int
    """1 … 8, what `decode_rgb` has to apply."""
    pixels: int
    """Of what is in memory at once while it is decoded: the image, or a tile or frame that is more"""


def set_up(max_pixels: int) -> None:
    """Process-wide settings of Pillow that the decoder relies on. Idempotent; called once before
    the first image. Pillow's own limit becomes twice ``max_pixels``.

    Its warnings (odd metadata, big images) say nothing that the limits here do not; under ``-W
    error`` they would turn good images into bad ones. AVIF's own threads would only compete with
    the decode pool. Pixels in blocks of 16 MB, Pillow's default, are kept by glibc for the thread
    that freed them (measured: 1.2 GB instead of 0.65 GB after four images of 64 megapixels); blocks
    beyond glibc's largest mmap threshold of 32 MB go back to the system.
    """
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Pil.MAX_IMAGE_PIXELS = max_pixels
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Pil.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined]  # documented, untyped


def sniff(data: bytes) -> str | None:
    """The format that the first bytes say, as a file extension; None if they say nothing. Also
    knows formats that are not decoded."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        return (
            "avif"
            if b"avif" in brands or b"avis" in brands
            else "heic"
            if b"hei" in brands or b"mif1" in brands
            else None
        )
    if data.startswith(b"BM") and len(data) > 18 and int.from_bytes(data[14:18], "little") <= 256:
        return "bmp"  # two letters are little to go by, so the length of its header must make sense too
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "ppm"
    return "svg" if data.startswith(b"<?xml") and b"<svg" in data[:1024] else None


def read_header(data: bytes, limits: Limits) -> Header:
    """Format and size of an image, without decoding it: in 0.01 ms for JPEG, PNG and WebP, at most
    0.2 ms otherwise; no allocation that grows with its pixels.

    Raises InvalidRecord: too_many_bytes, not_an_image, unsupported_image, zero_size,
    too_many_pixels, too_costly, truncated, corrupt.
    """
    return prepare(data, limits)[0]


def prepare(data: bytes, limits: Limits) -> tuple[Header, Prepared]:
    """`read_header`, and what is left of the file for its decoder; refers to ``data``."""
    if len(data) > limits.max_bytes:
        raise InvalidRecord(
            "too_many_bytes", f"{len(data)} bytes, at most {limits.max_bytes} (decode.max_bytes)"
        )
    name = sniff(data)
    if name is None:
        raise InvalidRecord(
            "not_an_image", f"{counted(len(data), 'byte')}, beginning with {data[:8]!r}"
        )
    if name not in _FORMATS:
        raise InvalidRecord("unsupported_image", f"{name} is not decoded")
    with Undecodable():
        file = _FORMATS[name].prepare(data)
        _check_pixels(*file.tile, limits.max_pixels)
        size, orientation = file.size, file.orientation
        if size is None or orientation is None:
            image = _FORMATS[name].plugin(file.open())
            size = image.size
            if orientation is None:
                orientation = orientation_of(image.info.get("exif", b""))
        _check_pixels(*size, limits.max_pixels)
        file.check_work(*size, limits.max_pixels)
    pixels = max(size[0] * size[1], file.tile[0] * file.tile[1])
    upright = size if orientation <= 4 else size[::-1]
    return Header(name, *upright, orientation, pixels), file


def decode_rgb(
    data: bytes, header: Header, draft_size: tuple[int, int], whole: bool = True
) -> Pil.Image:
    """``data``, whose header was read, as an upright 8-bit RGB image. About 2 ms for a JPEG of 640
    × 480; releases the GIL.

    A JPEG at least twice ``draft_size`` (width, height) in both directions is decoded at 1/2, 1/4
    or 1/8 of its size, which stays at least as large; (0, 0) means never. A JPEG that was cut, with
    an end mark, is truncated only if it must be ``whole``. Raises InvalidRecord: truncated, corrupt,
    unsupported_image.
    """
    with Undecodable():
        file = _FORMATS[header.format].prepare(data)
    return decode_prepared(file, header, draft_size, whole)


def decode_prepared(
    file: Prepared, header: Header, draft_size: tuple[int, int], whole: bool = True
) -> Pil.Image:
    """`decode_rgb` of what `prepare` gave."""
    draft = draft_size if header.orientation <= 4 else draft_size[::-1]
    format = _FORMATS[header.format]
    with Undecodable():
        load = format.load if whole else _load_by(format.plugin)
        image = to_rgb(load(file, draft), file.samples)
        method = _TRANSPOSE.get(header.orientation)
        return image if method is None else image.transpose(method)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise InvalidRecord("zero_size", f"{width} × {height}")
    if width * height > max_pixels:
        raise InvalidRecord(
            "too_many_pixels",
            f"{width} × {height}, at most {max_pixels} pixels (decode.max_pixels)",
        )
