"""EXIF orientation, in every format and in every way it is written, as Pillow understands it."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from streamer.decode.exif import orientation_of
from streamer.decode.image import Header, read_header, set_up
from tests.decode.images import (
    LIMITS,
    chunk,
    chunks_of,
    decoded,
    every,
    exif,
    picture,
    riff,
    saved,
    segment,
    tiff_of,
    turned,
)

PICTURE = picture()
UPRIGHT = saved(PICTURE, "PNG")
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32: what brings the picture upright"""
VALUES = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}


@pytest.fixture(autouse=True)
def _set_up():
    set_up(64_000_000)


def with_profile(kind: bytes, block: bytes) -> bytes:
    """ImageMagick's profile in a PNG's text chunk."""
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    start = b"Raw profile type exif\0"
    content = {
        b"tEXt": start + text,
        b"zTXt": start + b"\0" + zlib.compress(text),
        b"iTXt": start + b"\0\0en\0\0" + text,
        b"iTXt deflated": start + b"\1\0\0\0" + zlib.compress(text),
    }[kind]
    return UPRIGHT[:33] + chunk(kind[:4], content) + UPRIGHT[33:]


CARRIERS = {
    "JPEG": lambda block: _jpeg(segment(0xE1, b"Exif\0\0" + block)),
    "JPEG, in two": lambda block: _jpeg(
        segment(0xE1, b"Exif\0\0" + block[:20]) + segment(0xE1, b"Exif\0\0" + block[20:])
    ),
    "PNG": lambda block: UPRIGHT[:33] + chunk(b"eXIf", block) + UPRIGHT[33:],
    "PNG, damaged": lambda block: UPRIGHT[:33] + chunk(b"eXIf", block, True) + UPRIGHT[33:],
    "PNG, behind": lambda block: UPRIGHT[:-12] + chunk(b"eXIf", block) + UPRIGHT[-12:],
    "PNG, tEXt": lambda block: with_profile(b"tEXt", b"Exif\0\0" + block),
    "PNG, zTXt": lambda block: with_profile(b"zTXt", block),
    "PNG, iTXt": lambda block: with_profile(b"iTXt", block),
    "PNG, iTXt deflated": lambda block: with_profile(b"iTXt deflated", block),
    "WebP": lambda block: saved(PICTURE, "WEBP", exif=block),
    "WebP, lossless": lambda block: saved(PICTURE, "WEBP", lossless=True, exif=b"Exif\0\0" + block),
}


def _jpeg(segments: bytes) -> bytes:
    data = saved(PICTURE, "JPEG")
    return data[:20] + segments + data[20:]


def without_turn(format: str) -> np.ndarray:
    options = {"lossless": True} if "lossless" in format else {}
    return decoded(saved(PICTURE, format.split(",")[0].upper(), **options))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("order", "kind"), [("<", 3), (">", 3), ("<", 4), (">", 4)])
def test_every_carrier(carrier, orientation, order, kind):
    data = CARRIERS[carrier](turned(orientation, order, kind))
    upright = Image.fromarray(without_turn(carrier).astype(np.uint8))
    expected = upright if (turn := TURNS[orientation]) is None else upright.transpose(turn)
    assert read_header(data, LIMITS)[1:4] == (*expected.size, orientation)
    assert np.array_equal(decoded(data), np.asarray(expected))
    if "damaged" not in carrier:  # which Pillow refuses
        with Image.open(io.BytesIO(data)) as opened:
            assert ImageOps.exif_transpose(opened).size == expected.size


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("deflated", [False, True])
def test_tiff(orientation, order, kind, deflated):
    samples = every(8, 3)[:10]
    data = tiff_of(samples, 8, 2, (274, kind, [orientation]), order=order, deflated=deflated)
    upright = Image.fromarray(samples.astype(np.uint8))
    expected = upright if (turn := TURNS[orientation]) is None else upright.transpose(turn)
    pixels = expected.width * expected.height
    assert read_header(data, LIMITS) == Header("tiff", *expected.size, orientation, pixels)
    assert np.array_equal(decoded(data), np.asarray(expected))


@pytest.mark.parametrize("orientation", TURNS)
def test_avif(orientation):
    data = saved(PICTURE, "AVIF", exif=turned(orientation))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    assert read_header(data, LIMITS).orientation == orientation
    assert np.array_equal(decoded(data), expected)


def test_only_exif_counts():
    """Not XMP's orientation, not a WebP's block that its header does not announce."""
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6' tiff:Orientation=\"6\"/>"
    assert read_header(_jpeg(segment(0xE1, xmp)), LIMITS).orientation == 1
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert read_header(saved(PICTURE, "PNG", pnginfo=info), LIMITS).orientation == 1
    samples = every(8, 3)[:10]
    xmp_tag = (700, 1, b'<x tiff:Orientation="6"/>')
    assert np.array_equal(decoded(tiff_of(samples, 8, 2, xmp_tag)), samples)
    webp = chunks_of(saved(PICTURE, "WEBP", exif=turned(6)))
    assert read_header(riff(webp), LIMITS).orientation == 6
    simple = riff([part for part in webp if part[0] != b"VP8X"])
    assert read_header(simple, LIMITS).orientation == 1


def test_the_last_block_of_a_png_counts():
    last = chunk(b"eXIf", turned(3)) + chunk(b"eXIf", turned(6))
    assert read_header(UPRIGHT[:33] + last + UPRIGHT[33:], LIMITS).orientation == 6
    profile = with_profile(b"tEXt", turned(3))
    both = profile[:-12] + chunk(b"eXIf", turned(6)) + profile[-12:]
    assert read_header(both, LIMITS).orientation == 6, "before ImageMagick's"


@pytest.mark.parametrize(
    "text", [b"", b"\nexif\n4\nnothex\n", b"\0\0no zlib", b"\0\0" + zlib.compress(bytes(3_000_000))]
)
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_damaged_profile_means_upright(kind, text):
    data = UPRIGHT[:33] + chunk(kind, b"Raw profile type exif\0" + text) + UPRIGHT[33:]
    assert read_header(data, LIMITS).orientation == 1


# The block itself


def by_pillow(block: bytes) -> int:
    parsed = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed.load(block)
            return {value: value for value in range(2, 9)}.get(parsed.get(274), 1)
        except (SyntaxError, struct.error, OSError):
            return 1  # where Pillow raises


@st.composite
def blocks(draw) -> bytes:
    order = draw(st.sampled_from("<>"))
    count = draw(st.integers(0, 5))
    entries, more = [], b""
    for _ in range(count):
        kind = draw(st.sampled_from([*range(14), 16, 17, 99]))
        value = draw(st.integers(0, 9))
        if kind in VALUES:
            one = struct.pack(order + VALUES[kind], value)
        elif kind in (5, 10):
            one = struct.pack(
                order + "II",
                *draw(st.sampled_from([(value, 1), (2 * value, 2), (value, 3), (value, 0)])),
            )
        else:
            one = bytes([value])
        values = draw(st.sampled_from([0, 1, 1, 1, 2, 5, 40]))
        field = one * values
        if len(field) > 4:
            at = draw(st.sampled_from([14 + 12 * count + len(more)] * 6 + [8, 10**9]))
            field, more = struct.pack(order + "I", at), more + field
        tag = draw(st.sampled_from([271, 274, 274, 282]))
        entries.append((tag, kind, values, field.ljust(4, draw(st.sampled_from([b"\0", b"\6"])))))
    block = exif(*entries, order=order, more=more)
    block = block[: draw(st.sampled_from([len(block)] * 8 + [len(block) // 2, len(block) - 3]))]
    return draw(st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])) + block


@settings(max_examples=1_000, deadline=None)
@given(blocks())
def test_a_block_means_what_it_means_to_pillow(block):
    assert orientation_of(block) == by_pillow(block)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("count", [1, 3])
def test_every_type_of_number(kind, order, count):
    value = struct.pack(order + VALUES[kind], 6) * count
    entry = (274, kind, count, value.ljust(4, b"\0"))
    if len(value) > 4:
        entry = (274, kind, count, struct.pack(order + "I", 26))
    assert orientation_of(exif(entry, order=order, more=value)) == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01" + bytes(11),
        *(turned(value) for value in (0, 9, 65535)),
        exif((274, 1, 1, b"\6\0\0\0")),
        exif((274, 2, 2, b"6\0\0\0")),
        exif((274, 7, 1, b"\6\0\0\0")),
    ],
)
def test_what_is_damaged_or_no_orientation_means_upright(block):
    assert orientation_of(block) == by_pillow(block) == 1
