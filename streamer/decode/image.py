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
  would show whatever colour the encoder left under transparent pixels.
* 16-bit grey is scaled by 1/257, never clipped. 32-bit integers and floats have no agreed range:
  values within 0…255 are taken as they are, within 0…65535 (integers) or 0…1 (floats) by that
  range, anything else from its minimum to its maximum; NaN counts as 0.
* CMYK and YCCK by Pillow's formula, LAB through LittleCMS; embedded colour profiles are ignored, as
  training code does.
* Of an animation, the first frame.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as Pil

from streamer.decode import guard
from streamer.errors import InvalidRecord

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}
FORMATS: tuple[str, ...] = tuple(_PLUGINS)
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

_STRIP_PIXELS = 1_000_000
_BLOCK_BYTES = 64 << 20
_SIXTEEN_TO_EIGHT = np.round(np.arange(65_536) / 257).astype(np.uint8)


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
    """1 … 8, what `decode_rgb` has to apply. 1 for TIFF, which Pillow orients itself."""


class Undecodable:
    """``with Undecodable():`` turns whatever a decoder raises inside into InvalidRecord. The one
    such place.

    Decoders raise nearly everything (ValueError, SyntaxError, TypeError, RuntimeError, MemoryError
    …), so only a catch-all keeps a bad image from being more than one bad record. With ``reason``
    all get that reason, else the one that fits.
    """

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, InvalidRecord):
            raise InvalidRecord(
                self._reason or _reason_of(error), f"{type(error).__name__}: {error}"[:200]
            ) from error


_UNDECODABLE = Undecodable()


def set_up() -> None:
    """Process-wide settings of Pillow that the decoder relies on. Idempotent; called once before
    the first image.

    Its warnings (odd metadata, big images) say nothing that the limits here do not; under ``-W
    error`` they would turn good images into bad ones. AVIF's own threads would only compete with
    the decode pool. Pixels in blocks of 16 MB, Pillow's default, are kept by glibc for the thread
    that freed them (measured: 1.2 GB instead of 0.65 GB after four images of 64 megapixels); blocks
    beyond glibc's largest mmap threshold of 32 MB go back to the system.
    """
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
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
    return "svg" if data.startswith(b"<?xml") and b"<svg" in data[:1024] else None


def read_header(data: bytes, limits: Limits) -> Header:
    """Format and size of an image, without decoding it: at most about 0.02 ms (JPEG 0.004), no
    allocation that grows with its pixels.

    Raises InvalidRecord: too_many_bytes, not_an_image, unsupported_image, zero_size,
    too_many_pixels, truncated, corrupt.
    """
    if len(data) > limits.max_bytes:
        raise InvalidRecord(
            "too_many_bytes", f"{len(data)} bytes, at most {limits.max_bytes} (decode.max_bytes)"
        )
    name = sniff(data)
    if name is None:
        raise InvalidRecord("not_an_image", f"{len(data)} bytes that begin with {data[:8]!r}")
    if name not in _PLUGINS:
        raise InvalidRecord("unsupported_image", f"{name} is not decoded")
    exif = b""
    with _UNDECODABLE:
        if name == "jpg":
            if jpeg := guard.scan_jpeg(data):
                return _header(name, jpeg.width, jpeg.height, orientation_of(jpeg.exif), limits)
        elif name == "png":
            exif = guard.check_png(data, limits.max_pixels)
        elif name == "webp":
            if canvas := guard.webp_canvas(data):
                guard.check_pixels(*canvas, limits.max_pixels)
        elif name == "gif":
            guard.check_gif(data)
        elif name == "tiff":
            guard.check_tiff(data, limits.max_pixels)
        image = _PLUGINS[name](BytesIO(data))
        return _header(
            name,
            *image.size,
            1 if name == "tiff" else orientation_of(exif or _exif_of(image)),
            limits,
        )


def decode_rgb(data: bytes, header: Header, draft_size: tuple[int, int]) -> Pil.Image:
    """``data``, whose header was read, as an upright 8-bit RGB image. About 2 ms for a JPEG of 640
    × 480; releases the GIL.

    A JPEG at least twice ``draft_size`` (width, height) in both directions is decoded at 1/2, 1/4
    or 1/8 of its size, which stays at least as large; (0, 0) means never. Raises InvalidRecord:
    truncated, corrupt, unsupported_image.
    """
    with _UNDECODABLE:
        image: Pil.Image = _PLUGINS[header.format](BytesIO(data))
        if header.format == "jpg" and draft_size[0] > 0:
            image.draft(None, draft_size if header.orientation <= 4 else draft_size[::-1])
        image.load()
        image = _rgb(image)
        method = _TRANSPOSE.get(header.orientation)
        return image if method is None else image.transpose(method)


def orientation_of(exif: bytes) -> int:
    """EXIF tag 274 of the first directory (1 … 8); 1 where it is absent or damaged. Raises nothing."""
    if exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (tags,) = struct.unpack_from(order + "H", exif, at)
        for i in range(tags):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at + 2 + i * 12)
            if tag == 274:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _header(name: str, width: int, height: int, orientation: int, limits: Limits) -> Header:
    guard.check_pixels(width, height, limits.max_pixels)
    return (
        Header(name, width, height, orientation)
        if orientation <= 4
        else Header(name, height, width, orientation)
    )


def _exif_of(image: Pil.Image) -> bytes:
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return exif
    raw = image.info.get(
        "Raw profile type exif"
    )  # ImageMagick's way before PNG had eXIf: three lines, then hexadecimal digits
    if isinstance(raw, str):
        try:
            return bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return b""
    return b""


def _rgb(image: Pil.Image) -> Pil.Image:
    """In strips, so that a large image needs no memory but for itself and the result."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    spread = _spread(image, rows) if image.mode in ("I", "F") else (0.0, 0.0)
    if rows >= height:
        return _strip_rgb(image, spread)
    result = Pil.new("RGB", image.size)
    for top in range(0, height, rows):
        result.paste(
            _strip_rgb(image.crop((0, top, width, min(top + rows, height))), spread), (0, top)
        )
    return result


def _strip_rgb(image: Pil.Image, spread: tuple[float, float]) -> Pil.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        return Pil.fromarray(
            _SIXTEEN_TO_EIGHT[np.asarray(image).astype(np.uint16, copy=False)]
        ).convert("RGB")
    if mode in ("I", "F"):
        darkest, scale = spread
        levels = (
            np.nan_to_num(np.asarray(image).astype(np.float32)) - np.float32(darkest)
        ) * np.float32(scale)
        return Pil.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        if mode != "RGBA":
            image = image.convert("RGBA")
        white = Pil.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _spread(image: Pil.Image, rows: int) -> tuple[float, float]:
    """(d, s): a value v of a 32-bit image is the level (v − d) · s."""
    low, high = np.inf, -np.inf
    for top in range(0, image.height, rows):
        values = np.nan_to_num(
            np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).astype(
                np.float32
            )
        )
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    whole = image.mode == "I"
    if low < 0 or high > (65_535 if whole else 255):
        return low, 255 / max(high - low, 1e-30)
    if high <= (255 if whole else 1):
        return 0.0, 1.0 if whole else 255.0
    return 0.0, 1 / 257 if whole else 1.0


def _reason_of(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, Pil.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, NotImplementedError | MemoryError) or any(
        words in text for words in _UNSUPPORTED
    ):
        return "unsupported_image"
    if isinstance(error, EOFError) or any(words in text for words in _TRUNCATED):
        return "truncated"
    return "corrupt"


_UNSUPPORTED = ("unsupported", "not support", "too large")
_TRUNCATED = (
    "truncated",
    "not enough image data",
    "unexpected end",
    "buffer overrun",
    "could not create decoder object",
)
