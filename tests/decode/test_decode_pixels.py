"""What every kind of file shows, against what its samples mean: computed here, without a
decoder."""

import struct

import numpy as np
import pytest
from PIL import Image

from streamer.decode.image import set_up
from tests.decode.images import (
    SAMPLES,
    bmp,
    chunk,
    decoded,
    every,
    levels,
    over_white,
    packed,
    pairs,
    picture,
    png_of,
    reason,
    saved,
    tiff_of,
)

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _set_up():
    set_up(64_000_000)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, 3, axis=2)


def check(data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    found = decoded(data)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", ["none", "first", "last", "other", "upper bits"])
def test_grey_png(depth, transparent, interlaced):
    """The lower bits of tRNS count, as PNG says; the upper ones should be 0."""
    samples, top = every(depth, 1), (1 << depth) - 1
    key = {"none": -1, "first": 0, "last": top}.get(transparent, int(samples[7, 3, 0]))
    chunks = []
    if transparent != "none":
        upper = 0xFFFF & ~top if transparent == "upper bits" else 0
        chunks = [chunk(b"tRNS", struct.pack(">H", key | upper))]
    expected = np.where(samples == key, 255, levels(samples, depth))
    check(png_of(samples, depth, 0, *chunks, interlaced=interlaced), grey(expected))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("transparent", ["none", "exact", "upper bits", "upper byte only"])
def test_rgb_png(depth, transparent, interlaced):
    samples = every(depth, 3)
    key = samples[7, 3].copy()
    if transparent == "upper byte only":
        key[1] ^= 1  # in 16 bits another colour, although the upper bytes are those of a pixel
    upper = 0xFF00 if depth == 8 and transparent == "upper bits" else 0
    chunks = [] if transparent == "none" else [chunk(b"tRNS", struct.pack(">3H", *(key | upper)))]
    opaque = (samples != key).any(axis=2) | (transparent == "none")
    assert opaque.all() == (transparent in ("none", "upper byte only"))
    expected = np.where(opaque[..., None], samples >> (depth - 8), 255)
    check(png_of(samples, depth, 2, *chunks, interlaced=interlaced), expected)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", ["none", "one", "short", "all", "half"])
def test_palette_png(depth, transparent, interlaced):
    colours = 1 << depth
    palette = RANDOM.integers(0, 256, (colours, 3))
    alpha = {
        "none": [],
        "one": [255] * (colours - 1) + [0],
        "short": [0],
        "all": [0] * colours,
        "half": list(RANDOM.integers(0, 256, colours)),
    }[transparent]
    chunks = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
    if alpha:
        chunks.append(chunk(b"tRNS", bytes(alpha)))
    indices = every(depth, 1)
    opacity = np.array([*alpha, *[255] * (colours - len(alpha))])[indices[..., 0]]
    expected = over_white(palette[indices[..., 0]], opacity)
    check(png_of(indices, depth, 3, *chunks, interlaced=interlaced), expected, 1)


@pytest.mark.parametrize(("colour", "depth", "trns"), pairs((4, 6), (8, 16), (False, True)))
def test_png_with_alpha(colour, depth, trns):
    """tRNS is no chunk of theirs."""
    samples = every(depth, SAMPLES[colour])
    colours = samples[..., :-1] >> (depth - 8)
    expected = over_white(
        grey(colours) if colour == 4 else colours, samples[..., -1] >> (depth - 8)
    )
    chunks = [chunk(b"tRNS", bytes(6))] * trns
    check(png_of(samples, depth, colour, *chunks), expected, 1)


def test_transparency_of_a_png_that_is_out_of_place_or_too_short():
    samples = every(8, 1)
    for short in (chunk(b"tRNS", b"\0"), chunk(b"tRNS")):
        assert reason(png_of(samples, 8, 0, short)) == "truncated"
    behind = png_of(samples, 8, 0, after_pixels=[chunk(b"tRNS", b"\0\0")])
    check(behind, grey(samples))


def test_a_transparent_colour_in_strips(monkeypatch):
    for depth in (8, 16):
        samples = every(depth, 3, 40)
        data = png_of(samples, depth, 2, chunk(b"tRNS", struct.pack(">3H", *samples[9, 9])))
        whole = decoded(data)
        assert whole[9, 9].tolist() == [255] * 3
        monkeypatch.setattr("streamer.decode.rgb._STRIP_PIXELS", 40 * 7)
        assert np.array_equal(decoded(data), whole)
        monkeypatch.undo()


# TIFF


ORDERS = pairs("<>", (False, True))
BIG = [("<", False, True), ("<", True, True)]
FILES = [(order, deflated, False) for order, deflated in ORDERS] + BIG
"""(byte order, deflated, BigTIFF)"""


@pytest.mark.parametrize(("order", "deflated", "big"), FILES)
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiff(bits, photometric, order, deflated, big):
    samples = every(bits, 1)
    expected = levels(samples, bits)
    data = tiff_of(samples, bits, photometric, order=order, deflated=deflated, big=big)
    if bits == 12 and order == ">":
        assert reason(data) == "unsupported_image"
        return
    check(data, grey(255 - expected if photometric == 0 else expected))


@pytest.mark.parametrize(("order", "deflated", "big"), FILES)
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    ("samples", "format", "top"),
    [
        (every(8, 1), 1, 255),
        (every(16, 1), 1, 65_535),
        (every(32, 1), 1, 2**32 - 1),
        (every(8, 1), 2, 255),
        (every(16, 1), 2, 65_535),
        (every(31, 1), 2, 2**31 - 1),
        (every(8, 1).astype(np.float32), 3, 255),
        ((every(8, 1) / 255).astype(np.float32), 3, 1),
    ],
)
def test_deep_tiff(samples, format, top, photometric, order, deflated, big):
    """Unsigned, signed, floating."""
    expected = np.rint(samples / top * 255).astype(int)
    data = tiff_of(
        samples, 32, photometric, (339, 3, [format]), order=order, deflated=deflated, big=big
    )
    if format == 1 and order == ">":
        assert reason(data) == "unsupported_image"
        return
    check(data, grey(255 - expected if photometric == 0 else expected), 1)


def test_white_is_zero_in_strips(monkeypatch):
    for bits in (16, 32):
        data = tiff_of(every(bits, 1, 40), bits, 0)
        whole = decoded(data)
        assert whole[0, 0, 0] == 255
        monkeypatch.setattr("streamer.decode.rgb._STRIP_PIXELS", 40 * 7)
        assert np.array_equal(decoded(data), whole)
        monkeypatch.undo()


@pytest.mark.parametrize(("order", "deflated", "big"), FILES)
@pytest.mark.parametrize(
    ("photometric", "bits", "extra"),
    [
        (2, 8, ()),
        (2, 16, ()),
        (2, 8, (0,)),
        (2, 8, (1,)),
        (2, 8, (2,)),
        (2, 16, (0,)),
        (2, 16, (1,)),
        (2, 16, (2,)),
        (2, 8, (999,)),
        (1, 8, (0,)),
        (1, 8, (1,)),
        (1, 8, (2,)),
        (5, 8, ()),
        (5, 16, ()),
        (6, 8, ()),
    ],
)
def test_coloured_tiff(photometric, bits, extra, order, deflated, big):
    """``extra``: 0 is no alpha, 1 is associated, 2 and 999 are not."""
    count = {1: 1, 2: 3, 5: 4, 6: 3}[photometric] + len(extra)
    samples = every(bits, count)
    if extra == (1,):
        samples = np.minimum(samples, samples[..., -1:])
    upper = samples >> (bits - 8)
    colours = grey(upper[..., :1]) if photometric == 1 else upper[..., :3]
    if extra == (1,):
        expected = colours + 255 - upper[..., -1:]
    elif extra and extra != (0,):
        expected = over_white(colours, upper[..., -1])
    elif photometric == 5:
        expected = (255 - colours) * (255 - upper[..., 3:]) // 255
    elif photometric == 6:
        y, cb, cr = np.moveaxis(upper.astype(float), 2, 0)
        red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
        green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        expected = np.rint(np.clip(np.stack([red, green, blue], -1), 0, 255)).astype(int)
    else:
        expected = colours
    tags = [(338, 3, list(extra))] if extra else [(530, 3, [1, 1])] if photometric == 6 else []
    check(
        tiff_of(samples, bits, photometric, *tags, order=order, deflated=deflated, big=big),
        expected,
        2,
    )


@pytest.mark.parametrize(("order", "deflated", "big"), FILES)
@pytest.mark.parametrize("scale", [257, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_tiff(bits, scale, order, deflated, big):
    """A palette has 16 bits; writers that put 8 into it are understood, as by libtiff."""
    palette = RANDOM.integers(0, 256, (1 << bits, 3))
    samples = every(bits, 1)
    tag = (320, 3, (palette.T.ravel() * scale).tolist())
    data = tiff_of(samples, bits, 3, tag, order=order, deflated=deflated, big=big)
    check(data, palette[samples[..., 0]])


def test_a_tiff_that_pillow_would_misread_is_unsupported():
    samples = every(8, 3)
    assert reason(tiff_of(samples, 8, 6, (530, 3, [2, 2]))) == "unsupported_image"
    assert reason(tiff_of(samples, 8, 2, order=">", big=True)) == "unsupported_image"


# BMP


HEADERS = [40, 52, 56, 64, 108, 124]
WITH_ALPHA = [56, 108, 124]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("palette", ["random", "greys", "black and white", "darkest greys", "one"])
def test_palette_bmp(palette, bits, header, top_down):
    colours = {
        "random": RANDOM.integers(0, 256, (1 << bits, 3)),
        "greys": np.repeat(np.linspace(0, 255, 1 << bits).astype(int)[:, None], 3, 1),
        "black and white": np.array([[0] * 3, [255] * 3]),
        "darkest greys": np.repeat(np.arange(min(1 << bits, 16))[:, None], 3, 1),
        "one": np.array([[200, 100, 50]]),
    }[palette]
    indices = RANDOM.integers(0, len(colours), (9, 11, 1))
    used = 0 if len(colours) == 1 << bits else len(colours)
    table = b"".join(bytes((blue, green, red, 0)) for red, green, blue in colours)
    rows = [row.tobytes() for row in packed(indices, bits)]
    data = bmp(rows, 11, bits, header=header, palette=table, colours=used, top_down=top_down)
    check(data, colours[indices[..., 0]])


def alpha_of(name: str) -> np.ndarray:
    return {
        "empty": np.zeros((9, 11, 1), int),
        "some": every(8, 1, 11)[:9],
        "full": np.full((9, 11, 1), 255),
    }[name]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("alpha", ["empty", "some", "full"])
@pytest.mark.parametrize("header", HEADERS)
def test_32_bit_bmp(header, alpha, top_down):
    """Alpha counts where the header names it and not all of it is 0."""
    colours, opacity = every(8, 3, 11)[:9], alpha_of(alpha)
    bgra = np.concatenate([colours[..., ::-1], opacity], 2).astype(np.uint8)
    rows = [row.tobytes() for row in bgra]
    check(bmp(rows, 11, 32, header=header, top_down=top_down), colours)
    if header == 64:
        return
    masks = [0xFF0000, 0xFF00, 0xFF, 0xFF000000][: 4 if header in WITH_ALPHA else 3]
    data = bmp(rows, 11, 32, header=header, compression=3, masks=masks, top_down=top_down)
    visible = alpha == "some" and header in WITH_ALPHA
    check(data, over_white(colours, opacity[..., 0]) if visible else colours, 1)


@pytest.mark.parametrize("alpha", ["empty", "some", "full"])
@pytest.mark.parametrize(
    "masks",
    [(0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0, 0, 0, 0)],
)
def test_other_layouts_of_a_32_bit_bmp(masks, alpha):
    colours, opacity = every(8, 3, 11)[:9], alpha_of(alpha)
    layout = masks if any(masks) else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    shifts = [(mask & -mask).bit_length() - 1 for mask in layout]
    samples = np.concatenate([colours, opacity], 2)
    values = sum(samples[..., i] << shift for i, shift in enumerate(shifts))
    rows = [row.astype("<u4").tobytes() for row in values]
    expected = over_white(colours, opacity[..., 0]) if alpha == "some" else colours
    check(bmp(rows, 11, 32, header=124, compression=3, masks=masks), expected, 1)


def test_two_bmps_with_empty_alpha_are_two_pictures():
    rows = [every(8, 4, 11)[:9].astype(np.uint8), every(8, 4, 11)[-9:].astype(np.uint8)]
    for pixels in rows:
        pixels[..., 3] = 0
    masks = [0xFF0000, 0xFF00, 0xFF, 0xFF000000]
    first, second = (
        decoded(bmp([r.tobytes() for r in p], 11, 32, header=108, compression=3, masks=masks))
        for p in rows
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("alpha", ["empty", "some", "full"])
@pytest.mark.parametrize("header", [12, *HEADERS])
def test_16_and_24_bit_bmp(header, alpha):
    """The single bit of alpha in 5-5-5-1 is ignored, as by Windows."""
    colours = every(8, 3, 11)[:9]
    rows = [row[:, ::-1].astype(np.uint8).tobytes() for row in colours]
    check(bmp(rows, 11, 24, header=header), colours)
    fives = every(5, 3, 11)[:9]
    values = (alpha_of(alpha) >> 7 << 15)[..., 0] | (fives << (10, 5, 0)).sum(axis=2)
    rows = [row.astype("<u2").tobytes() for row in values]
    check(bmp(rows, 11, 16, header=header), levels(fives, 5), 1)
    if header in (12, 64):
        return
    masks = [0x7C00, 0x3E0, 0x1F, 0x8000][: 4 if header in WITH_ALPHA else 3]
    check(bmp(rows, 11, 16, header=header, compression=3, masks=masks), levels(fives, 5), 1)
    sixes = np.concatenate(
        [every(5, 1, 11), every(6, 1, 11)[::-1], every(5, 1, 11).T.reshape(11, 11, 1)], 2
    )[:9]
    values = (sixes << (11, 5, 0)).sum(axis=2)
    rows = [row.astype("<u2").tobytes() for row in values]
    expected = np.concatenate(
        [levels(sixes[..., i : i + 1], bits) for i, bits in enumerate((5, 6, 5))], 2
    )
    masks = [0xF800, 0x7E0, 0x1F, 0][: len(masks)]
    check(bmp(rows, 11, 16, header=header, compression=3, masks=masks), expected, 1)


# All modes that Pillow writes, of all formats


LOSSY = {"JPEG", "AVIF"}
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
    "WEBP": ("L", "LA", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "PA", "I;16", "I", "F", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "AVIF": ("L", "LA", "RGB", "RGBA"),
}
RAMP = np.tile(np.arange(16) * 17, (16, 1))


def ramp_in(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A ramp of greys, its lower half transparent where there is alpha, and the levels it shows."""
    image = Image.fromarray(RAMP.astype(np.uint8))
    if mode == "1":
        return image.point(lambda v: 255 * (v > 127)).convert("1"), (RAMP > 127) * 255
    if mode in ("LA", "PA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.repeat(np.uint8([[255]] * 8 + [[0]] * 8), 16, 1)))
        return image, np.where(np.arange(16)[:, None] < 8, RAMP, 255)
    if mode == "I;16":
        return Image.fromarray((RAMP * 257).astype(np.uint16)), RAMP
    if mode in ("I", "F"):
        return Image.fromarray(RAMP.astype({"I": np.int32, "F": np.float32}[mode])), RAMP
    if mode == "LAB":  # from lightness 0 to 100; between them it is not linear
        image = Image.new("LAB", (16, 16), (0, 128, 128))
        image.paste((255, 128, 128), (8, 0, 16, 16))
        return image, (RAMP > 127) * 255
    return image.convert(mode), RAMP


@pytest.mark.parametrize(("format", "mode"), [(f, m) for f, modes in MODES.items() for m in modes])
def test_every_mode_of_every_format(format, mode):
    image, expected = ramp_in(mode)
    options = {"quality": 100} if format in LOSSY else {}
    if format == "WEBP":
        options = {"lossless": True, "exact": True}
    data = saved(image, format, **options)
    check(data, grey(expected[..., None]), 4 if format in LOSSY else 1)


def test_a_palette_gif_with_a_transparent_colour():
    image = picture((16, 16)).quantize(8)
    index = image.getpixel((3, 3))
    found = decoded(saved(image, "GIF", transparency=index))
    expected = np.asarray(image.convert("RGB")).astype(int)
    expected[np.asarray(image) == index] = 255
    assert np.array_equal(found, expected)
