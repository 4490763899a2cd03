"""Metadata is never used, so it refuses no picture, however damaged, large or numerous it is, and
costs little."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamer.decode.image import read_header, set_up
from streamer.errors import InvalidRecord
from tests.decode.hostile import run
from tests.decode.images import (
    LIMITS,
    Tag,
    chunk,
    chunks_of,
    decoded,
    every,
    exif,
    ihdr,
    picture,
    png,
    png_of,
    reason,
    riff,
    saved,
    segment,
    tiff_of,
    turned,
)

GREY = np.arange(12, dtype=np.int64).reshape(3, 4, 1) * 20
PICTURE = picture()


@pytest.fixture(autouse=True)
def _set_up():
    set_up(64_000_000)


def orientation(data: bytes) -> int:
    return read_header(data, LIMITS).orientation


def same(data: bytes, original: bytes) -> None:
    assert np.array_equal(decoded(data), decoded(original))


# PNG


BIG = zlib.compress(bytes(3_000_000))
USELESS = [
    *(chunk(kind, b"k\0\0" + BIG) for kind in (b"zTXt", b"iCCP")),
    chunk(b"iTXt", b"k\0\1\0\0\0" + BIG),
    chunk(b"tEXt", b"k\0" + bytes(3_000_000)),
    chunk(b"zTXt", b"k\0\1" + BIG),
    chunk(b"zTXt", b"k\0\0no zlib"),
    *(chunk(kind) for kind in (b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"zTXt", b"iTXt")),
    *(chunk(kind) for kind in (b"bKGD", b"sBIT", b"hIST", b"tIME", b"sPLT", b"eXIf", b"prVt")),
    *(chunk(kind) for kind in (b"acTL", b"fcTL", b"fdAT")),
    chunk(b"acTL", struct.pack(">II", 0, 0)) * 2,
    chunk(b"fcTL", bytes(26)),
    chunk(b"tEXt", b"k\0v") * 1_001,
]


@pytest.mark.parametrize("useless", [*USELESS, *(u[:-1] + b"\xa5" for u in USELESS)])
@pytest.mark.parametrize("behind", [False, True])
def test_ancillary_chunks_of_a_png(useless, behind):
    plain = png_of(GREY, 8, 0)
    data = png_of(GREY, 8, 0, *[useless] * (not behind), after_pixels=[useless] * behind)
    same(data, plain)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_what_pixels_depend_on_keeps_its_checksum(kind, damaged):
    content = {
        b"IHDR": struct.pack(">IIBBBBB", 4, 3, 8, 3, 0, 0, 0),
        b"PLTE": bytes(i % 256 for i in range(3 * 256)),
        b"tRNS": b"\0",
    }
    chunks = [chunk(k, v, damaged=damaged and k == kind) for k, v in content.items()]
    pixels = zlib.compress(b"".join(b"\0" + bytes(row.ravel().tolist()) for row in GREY))
    data = png(*chunks, chunk(b"IDAT", pixels), chunk(b"IEND"))
    if damaged:
        assert reason(data) == "corrupt"
    else:
        assert decoded(data)[0, :2].tolist() == [[255] * 3, [60, 61, 62]]


def test_a_png_that_ends_early_is_truncated_whatever_ends_it():
    data = png_of(GREY, 8, 0, chunk(b"tEXt", b"k\0" + bytes(100)))
    for end in (data.index(b"IDAT") + 9, data.index(b"tEXt") + 50):
        assert reason(data[:end]) == "truncated"
    behind = png_of(GREY, 8, 0, after_pixels=[chunk(b"tEXt", b"k\0" + bytes(100))])
    assert reason(behind[: behind.index(b"tEXt") + 50]) == "truncated"


@pytest.mark.parametrize("default_image", [False, True])
def test_an_animated_png_is_its_first_frame_whatever_follows(default_image):
    frames = [Image.new("RGBA", (16, 16), color) for color in ("red", "blue", "lime")]
    data = saved(
        frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image
    )
    red = decoded(saved(frames[0], "PNG"))
    assert np.array_equal(decoded(data), red)
    second = data.index(b"fcTL", data.index(b"IDAT"))
    assert np.array_equal(decoded(data[: second + 10]), red), "cut in the second frame"
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        at = data.index(kind)
        assert np.array_equal(decoded(data[: at + 4] + b"\xff" + data[at + 5 :]), red), kind


def test_chunks_between_the_pixels_of_a_png():
    pixels = zlib.compress(b"".join(b"\0" + bytes(row.ravel().tolist()) for row in GREY))
    parts = [pixels[:5], b"", pixels[5:]]
    idats = [chunk(b"IDAT", part) + chunk(b"tEXt", b"k\0v") for part in parts]
    same(png(ihdr(4, 3, 8, 0), *idats, chunk(b"IEND")), png_of(GREY, 8, 0))


def test_unknown_critical_chunks_of_a_png_are_left_to_the_decoder():
    same(png_of(GREY, 8, 0, chunk(b"ABCD", b"x")), png_of(GREY, 8, 0))
    assert reason(png_of(GREY, 8, 0, chunk(b"ABCD", b"x", damaged=True))) == "corrupt"
    assert reason(png_of(GREY, 8, 0, chunk(b"a\0CD", b"x"))) == "corrupt"


def test_apples_png_is_unsupported_and_says_so():
    data = png(chunk(b"CgBI", b"\x50\0\x20\x02"), png_of(GREY, 8, 2)[8:])
    with pytest.raises(InvalidRecord) as caught:
        read_header(data, LIMITS)
    assert caught.value.reason == "unsupported_image"
    assert "CgBI" in caught.value.detail


# JPEG


SEGMENTS = [
    (0xE0, b"JFIF"),
    (0xE0, b"JFXX\0\x10"),
    (0xEE, b"Adobe"),
    (0xEE, b"Adobe\0d\0\0\0\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xE2, b"ICC_PROFILE\0\1\2" + bytes(9)),
    (0xED, b"Photoshop 3.0\x008BIM\4\4"),
    (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\3abc"),
    (0xE1, b"Exif\0\0"),
    (0xE1, b"Exif\0\0garbage"),
    (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    (0xE2, b"MPF\0"),
    (0xE2, b"FPXR\0"),
    (0xFE, b""),
    (0xE5, b""),
]


@pytest.mark.parametrize(("marker", "content"), SEGMENTS)
@pytest.mark.parametrize("count", [1, 1_500])
def test_application_data_and_comments_of_a_jpeg(marker, content, count):
    for original in (saved(PICTURE, "JPEG"), saved(PICTURE.convert("CMYK"), "JPEG")):
        for at in (2, original.index(b"\xff\xdb")):
            same(original[:at] + segment(marker, content) * count + original[at:], original)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_application_data_of_a_jpeg(data):
    set_up(64_000_000)
    original = saved(PICTURE, "JPEG", quality=30)
    marker = data.draw(st.sampled_from([*range(0xE1, 0xEE), 0xEF, 0xFE]))
    start = data.draw(st.sampled_from([c for m, c in SEGMENTS if m == marker] or [b""]))
    content = start + data.draw(st.binary(max_size=60))
    at = data.draw(st.sampled_from([2, 20, original.index(b"\xff\xc0")]))
    found = decoded(original[:at] + segment(marker, content) + original[at:])
    assert np.array_equal(np.sort(found, axis=None), np.sort(decoded(original), axis=None)), (
        "upright or turned, the pixels are those of the original"
    )


def test_what_stands_between_the_segments_of_a_jpeg():
    original = saved(PICTURE, "JPEG")
    for junk in (
        b"\xff" * 2_000,
        b"x",
        b"\0" * 2_000,
        b"\xff\0",
        b"\xff\x01",
        b"\xff\xd3",
        b"\xff\xe5\0\0",
    ):
        same(original[:20] + junk + original[20:], original)


def test_components_of_a_jpeg_mean_what_its_segments_say():
    """JFIF and Adobe's segment decide about colours, so they stay."""
    ycck = saved(PICTURE.convert("CMYK"), "JPEG")
    assert b"Adobe" in ycck
    expected = np.asarray(PICTURE.convert("CMYK").convert("RGB")).astype(int)
    assert np.abs(decoded(ycck) - expected).mean() < 4
    rgb = saved(PICTURE, "JPEG", keep_rgb=True)
    assert np.abs(decoded(rgb) - np.asarray(PICTURE).astype(int)).mean() < 4
    no_jfif = saved(PICTURE, "JPEG")
    no_jfif = no_jfif[:2] + no_jfif[20:]
    same(no_jfif, saved(PICTURE, "JPEG"))


# GIF, WebP, TIFF, AVIF


@pytest.mark.parametrize(
    "useless",
    [
        b"\x21\xfe" + (b"\xff" + b"x" * 255) * 5_000 + b"\0",
        b"\x21\xfe\0" * 2_000,
        b"\x21\xff\x0bXMP DataXMP" + b"<" * 61 * 40_000 + b"\0",
        b"\x21\xff\0",
        b"\x21\xff\x03abc\0",
        b"\x21\xff\x0bNETSCAPE2.0\1\1\0",
        b"\x21\x01\x0c" + bytes(12) + b"\0",
        b"\x21\xf9\1\1\0",
        b"\x21\x42\1x\0",
        b"x" * 2_000,
    ],
)
def test_extensions_of_a_gif(useless):
    palette = PICTURE.quantize(16)
    for original in (saved(palette, "GIF"), saved(palette, "GIF", transparency=3)):
        at = 13 + 3 * 16
        same(original[:at] + useless + original[at:], original)


@pytest.mark.parametrize("lossless", [False, True])
def test_metadata_of_a_webp(lossless):
    options = {"lossless": lossless, "exif": turned(6), "icc_profile": b"i" * 33, "xmp": b"<x/>"}
    data = saved(PICTURE, "WEBP", **options)
    parts = chunks_of(data)
    assert [kind for kind, _ in parts[:2]] == [b"VP8X", b"ICCP"]
    upright = saved(PICTURE, "WEBP", lossless=lossless)
    same(data, saved(PICTURE, "WEBP", lossless=lossless, exif=turned(6)))
    same(riff([p for p in parts if p[0] != b"EXIF"]), upright)
    same(riff([*parts[:1], *parts[2:]]), data)
    same(riff([*parts, (b"ICCP", b"x"), (b"EXIF", b"x"), (b"JUNK", b"x")]), data)
    same(riff([*parts[:-1], (b"XMP ", b"odd")], padded=False), data)
    for kind in (b"EXIF", b"XMP "):
        at = data.index(kind)
        for length in (0xFFFFFFFF, 0x7FFFFFFF, len(data), 3):
            broken = data[: at + 4] + struct.pack("<I", length) + data[at + 8 :]
            same(broken, data if kind == b"XMP " else upright)
    assert reason(data[:-3]) == "truncated"
    at = data.index(b"ICCP")
    assert reason(data[: at + 4] + b"\xff" * 4 + data[at + 8 :]) == "truncated", "hides the pixels"


def test_metadata_of_an_animated_webp():
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    same(saved(frames[0], "WEBP", xmp=b"<x/>", **options), saved(frames[0], "WEBP", **options))


DAMAGED_TAGS: list[Tag] = [
    (305, 2, b"gone" * 9),
    (282, 2, b"word"),
    (296, 2, b"word"),
    (700, 2, b"<x tiff:Orientation='6'>"),
    (34665, 4, [2**31]),
    (34665, 2, b"word"),
    (34853, 4, [3]),
    (34675, 7, b"icc"),
    (33723, 4, [1]),
    (330, 4, [2**31, 2**31]),
    (301, 3, [1] * 768),
    (42113, 2, b""),
    (40_000, 99, b"unknown"),
    (34377, 1, b"8BIM"),
    (50838, 4, [1]),
]


@pytest.mark.parametrize("tag", DAMAGED_TAGS, ids=lambda tag: str(tag[0]))
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_tags_of_a_tiff_that_pixels_do_not_depend_on(tag, deflated, big):
    samples = every(8, 3)
    original = tiff_of(samples, 8, 2, deflated=deflated, big=big)
    data = tiff_of(samples, 8, 2, tag, deflated=deflated, big=big)
    same(data, original)
    entry = struct.pack("<HH", *tag[:2]) + struct.pack("<Q" if big else "<I", len(tag[2]))
    at = data.index(entry)
    for offset in (0xFFFFFFFF, len(data) - 1, 0):
        for count in (0xFFFFFFFF, 100, 0):
            number = struct.pack("<QQ" if big else "<II", count, offset)
            same(data[: at + 4] + number + data[at + 4 + len(number) :], original)


def test_many_tags_and_later_directories_of_a_tiff():
    samples = every(8, 1)
    original = tiff_of(samples, 8, 1)
    same(tiff_of(samples, 8, 1, *[(40_000 + i, 1, b"x") for i in range(2_000)]), original)
    pages = saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(180)])
    assert np.array_equal(decoded(pages), np.asarray(PICTURE))


def test_items_of_an_avif():
    block = exif((271, 2, 9, b"\x1a\0\0\0"), (274, 3, 1, b"\6\0\0\0"), more=b"a camera\0")
    data = saved(PICTURE, "AVIF", exif=b"Exif\0\0" + block, xmp=b"<x:xmpmeta/>")
    upright = saved(PICTURE, "AVIF")
    assert (orientation(data), orientation(upright)) == (6, 1)
    turned_upright = decoded(data)
    at = data.index(b"*\0" if b"II*\0" in data else b"\0*") - 2
    for garbage in (b"garb", b"\xff" * 4, b"\0" * 4):
        assert np.array_equal(decoded(data[:at] + garbage + data[at + 4 :]), turned_upright)
        before = data[: at - 4] + garbage + data[at:]
        assert np.array_equal(decoded(before), turned_upright), "where the block begins"
    location = data.index(b"iloc") + 12 + 14
    for extent in ((0x7FFFFFFF, 40), (len(data) + 5, 9), (20, 0x7FFFFFFF), (20, 0)):
        broken = data[: location + 6] + struct.pack(">II", *extent) + data[location + 14 :]
        assert np.array_equal(decoded(broken), turned_upright), extent


# Bombs


def _gif_with(extensions: bytes) -> bytes:
    data = saved(PICTURE.quantize(16), "GIF")
    return data[: 13 + 3 * 16] + extensions + data[13 + 3 * 16 :]


def _jpeg_with(segments: bytes) -> bytes:
    data = saved(PICTURE, "JPEG")
    return data[:20] + segments + data[20:]


def _gigabytes(size: int) -> bytes:
    """About ``size`` bytes that inflate to a thousand times as many."""
    deflater, zeros = zlib.compressobj(9), bytes(10_000_000)
    start, more = (deflater.compress(zeros) + deflater.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return start + more * (size // len(more))


def bombs() -> dict[str, tuple[bytes, bool]]:
    """Name → (a file, whether it decodes)."""
    return {
        "text of a PNG": (png_of(GREY, 8, 0, chunk(b"tEXt", b"k\0" + bytes(60_000)) * 310), True),
        "small texts of a PNG": (png_of(GREY, 8, 0, chunk(b"tEXt", b"k\0v") * 90_000), True),
        "endless chunks of a PNG": (png_of(GREY, 8, 0, chunk(b"tEXt") * 1_500_000), False),
        "endless pixels of a PNG": (png_of(GREY, 8, 0, chunk(b"IDAT") * 1_500_000), False),
        "gigabytes in a PNG's text": (
            png_of(
                GREY,
                8,
                0,
                *(chunk(k, b"k\0\0" + _gigabytes(9_000_000)) for k in (b"zTXt", b"iCCP")),
            ),
            True,
        ),
        "gigabytes in a PNG's EXIF": (
            png_of(
                GREY,
                8,
                0,
                *[chunk(b"zTXt", b"Raw profile type exif\0\0" + _gigabytes(180_000))] * 100,
            ),
            True,
        ),
        "comments of a JPEG": (_jpeg_with(segment(0xFE, b"x" * 190) * 99_000), True),
        "EXIF of a JPEG": (_jpeg_with(segment(0xE1, b"Exif\0\0" + b"x" * 190) * 90_000), True),
        "endless segments of a JPEG": (_jpeg_with(segment(0xFE, b"") * 4_900_000), False),
        "zeros in a JPEG": (_jpeg_with(bytes(19_000_000)), True),
        "comments of a GIF": (
            _gif_with(b"\x21\xfe" + (b"\xff" + b"x" * 255) * 74_000 + b"\0"),
            True,
        ),
        "endless blocks of a GIF": (_gif_with(b"\x21\xfe" + b"\1x" * 9_000_000 + b"\0"), False),
        "zeros in a GIF": (_gif_with(bytes(19_000_000)), True),
        "endless chunks of a WebP": (
            riff(
                [*chunks_of(saved(PICTURE, "WEBP", exif=turned(6))), *[(b"XMP ", b"")] * 2_000_000]
            ),
            False,
        ),
        "tags of a TIFF": (
            tiff_of(every(8, 1), 8, 1, *[(40_000 + i, 1, bytes(2_300)) for i in range(8_000)]),
            True,
        ),
        "endless strips of a TIFF": (
            tiff_of(every(8, 1), 8, 1, (273, 4, [16] * 4_500_000), (278, 4, [1])),
            False,
        ),
    }


def test_bombs_cost_little(tmp_path):
    """Each six times on four threads."""
    expected = {}
    for name, (data, decodes) in bombs().items():
        assert len(data) <= 20_000_000, name
        (tmp_path / name).write_bytes(data)
        expected[name] = 6 * decodes
    report = run(*(tmp_path / name for name in expected))
    assert {name: found["decoded"] for name, found in report.items()} == expected
    assert {name: found for name, found in report.items() if found["cpu_s"] > 0.5} == {}
    assert sum(found["grown_mb"] for found in report.values()) < 100
