"""Image files made byte by byte, so that what they mean is known without a decoder."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from PIL import Image

from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header
from streamer.errors import InvalidRecord

LIMITS = Decode(max_bytes=25_000_000, max_pixels=4_000_000)
NEVER = (0, 0)
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""(x, y, step of x, step of y) of each pass"""
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""PNG colour type → samples of a pixel"""
_FORMATS = {
    1: "B",
    2: "s",
    3: "H",
    4: "I",
    5: "I",
    6: "b",
    7: "s",
    8: "h",
    9: "i",
    10: "i",
    11: "f",
    12: "d",
    13: "I",
    16: "Q",
}


def picture(size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """Left to right and top to bottom differ, so that every wrong turn shows."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x / 2], -1).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoded(data: bytes, draft_size: tuple[int, int] = NEVER) -> np.ndarray:
    header = read_header(data, LIMITS)
    image = decode_rgb(data, header, draft_size)
    assert image.mode == "RGB"
    if draft_size == NEVER:
        assert image.size == (header.width, header.height)
    return np.asarray(image).astype(int)


def reason(data: bytes, limits: Decode = LIMITS, draft_size: tuple[int, int] = NEVER) -> str:
    with pytest.raises(InvalidRecord) as caught:
        decode_rgb(data, read_header(data, limits), draft_size)
    return caught.value.reason


def chunk(kind: bytes, data: bytes = b"", damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ihdr(width: int, height: int, depth: int, colour: int, interlaced: bool = False) -> bytes:
    return chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    )


def png_of(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *before_pixels: bytes,
    interlaced: bool = False,
    after_pixels: Sequence[bytes] = (),
) -> bytes:
    """``samples``: (height, width, samples of a pixel), within ``depth`` bits."""
    height, width, _ = samples.shape
    passes = [samples]
    if interlaced:
        passes = [samples[y::down, x::right] for x, y, right, down in ADAM7]
    pixels = b"".join(
        b"\0" + row.tobytes() for part in passes if part.size for row in packed(part, depth)
    )
    return png(
        ihdr(width, height, depth, colour, interlaced),
        *before_pixels,
        chunk(b"IDAT", zlib.compress(pixels)),
        *after_pixels,
        chunk(b"IEND"),
    )


def packed(samples: np.ndarray, depth: int, order: str = ">") -> list[np.ndarray]:
    """Rows of bytes, most significant bit first."""
    rows = samples.reshape(len(samples), -1)
    if depth in (8, 16, 32):
        return list(rows.astype(f"{order}u{depth // 8}").view(np.uint8).reshape(len(rows), -1))
    bits = (rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    return list(np.packbits(bits.reshape(len(rows), -1), axis=1))


def levels(samples: np.ndarray, depth: int) -> np.ndarray:
    return np.rint(samples * 255 / ((1 << depth) - 1)).astype(int)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Both 0 … 255."""
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(int)


Tag = tuple[int, int, Sequence[float] | bytes]
"""(tag, type, values)"""


def tiff(tags: Iterable[Tag], pixels: bytes = b"", order: str = "<", big: bool = False) -> bytes:
    """The pixels stand behind the header, at byte 16; out-of-line values behind the directory."""
    word, number = ("Q", "Q") if big else ("I", "H")
    entries, more = b"", b""
    tags = sorted(tags, key=lambda tag: tag[0])
    at = 16 + len(pixels) + len(pixels) % 2
    behind = at + struct.calcsize(number) + len(tags) * (20 if big else 12) + struct.calcsize(word)
    for tag, kind, values in tags:
        count = len(values) // (2 if kind in (5, 10) else 1)
        value = (
            values
            if isinstance(values, bytes)
            else struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        )
        if len(value) > struct.calcsize(word):
            value, more = struct.pack(order + word, behind + len(more)), more + value
        entries += struct.pack(f"{order}HH{word}", tag, kind, count)
        entries += value.ljust(struct.calcsize(word), b"\0")
    version = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    header = {"<": b"II", ">": b"MM"}[order] + version + struct.pack(order + word, at)
    return (
        (header.ljust(16, b"\0") + pixels).ljust(at, b"\0")
        + struct.pack(order + number, len(tags))
        + entries
        + bytes(struct.calcsize(word))
        + more
    )


def tiff_of(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *tags: Tag,
    order: str = "<",
    deflated: bool = False,
    big: bool = False,
) -> bytes:
    """``samples``: (height, width, samples of a pixel): within ``bits`` bits, or float32."""
    height, width, count = samples.shape
    if samples.dtype == np.float32:
        pixels = samples.astype(f"{order}f4").tobytes()
    else:
        pixels = b"".join(row.tobytes() for row in packed(samples, bits, order))
    if deflated:
        pixels = zlib.compress(pixels)
    standard: list[Tag] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * count),
        (259, 3, [8 if deflated else 1]),
        (262, 3, [photometric]),
        (273, 4, [16]),
        (277, 3, [count]),
        (278, 4, [height]),
        (279, 4, [len(pixels)]),
    ]
    given = {tag[0] for tag in tags}
    return tiff([*tags, *(tag for tag in standard if tag[0] not in given)], pixels, order, big)


def bmp(
    rows: Sequence[bytes],
    width: int,
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    masks: Sequence[int] = (),
    palette: bytes = b"",
    colours: int = 0,
    top_down: bool = False,
) -> bytes:
    """``rows`` from top to bottom, unpadded; ``masks``: red, green, blue, alpha."""
    height = len(rows)
    padded = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows]
    pixels = b"".join(padded if top_down else padded[::-1])
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            -height if top_down else height,
            1,
            bits,
            compression,
            len(pixels),
            0,
            0,
            colours,
            0,
        )
        if header >= 52:
            info += struct.pack(f"<{len(masks)}I", *masks)
        info = info.ljust(header, b"\0")
        if header == 40:
            info += struct.pack(f"<{len(masks[:3])}I", *masks[:3])
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(pixels), 0, 0, at) + info + palette + pixels


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", more: bytes = b"") -> bytes:
    """``entries``: (tag, type, count, four bytes); ``more`` begins at byte 14 + 12 · entries."""
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(entries))
    body = (struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return start + b"".join(body) + bytes(4) + more


def turned(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block that asks for ``orientation``."""
    value = struct.pack(order + {3: "HH", 4: "I"}[kind], *(orientation, 0)[: 2 if kind == 3 else 1])
    return exif((274, kind, 1, value), order=order)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def every(depth: int, samples: int, size: int = 16) -> np.ndarray:
    """(size, size, samples) with the darkest and the lightest values and many between, none
    alike."""
    top = (1 << depth) - 1
    values = np.linspace(0, top, size * size).round().astype(np.int64)
    channels = [np.roll(values, 37 * i)[:: (1, -1)[i % 2]] for i in range(samples)]
    return np.stack(channels, axis=-1).reshape(size, size, samples)


def pairs(*choices: Iterable) -> list[tuple]:
    return list(itertools.product(*choices))


def riff(chunks: list[tuple[bytes, bytes]], padded: bool = True) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    if not padded:
        body = body[:-1]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunks_of(webp: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at + 8 <= len(webp):
        kind, length = struct.unpack_from("<4sI", webp, at)
        found.append((kind, webp[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found
