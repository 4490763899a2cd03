"""What is recognised, refused and decoded, and at which size."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from streamer.config import Decode
from streamer.config.value import KNOWN_FORMATS
from streamer.decode import jpeg
from streamer.decode.failure import Undecodable
from streamer.decode.image import (
    _FORMATS,
    _MAGIC,
    FORMATS,
    Header,
    decode_rgb,
    read_header,
    set_up,
    sniff,
)
from streamer.errors import InvalidRecord
from tests.decode.images import (
    LIMITS,
    NEVER,
    chunk,
    decoded,
    ihdr,
    picture,
    png,
    reason,
    saved,
    tiff,
)


@pytest.fixture(autouse=True)
def _set_up():
    set_up(64_000_000)


@pytest.mark.parametrize(
    ("format", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
        ("MPO", "jpg"),
    ],
)
def test_formats(format, extension):
    data = saved(picture(), format)
    assert read_header(data, LIMITS) == Header(extension, 64, 48, 1, 64 * 48)
    assert np.abs(decoded(data) - np.asarray(picture()).astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"), (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "avif"), (b"\0\0\0\x18ftypisom\0\0\0\0mp41avc1", None),
        (b"\xff\x0a\xfa", "jxl"), (b"8BPS", "psd"), (b"<svg xmlns='x'>", "svg"), (b"<?xml version='1.0'?>\n<svg>", "svg"), (b"<?xml?><html>", None),
        (b"BMW is a car, not a picture", None), (b"%PDF-1.7", "pdf"), (b"", None), (b"\xff\xd8", None), (b"RIFF\0\0\0\0WAVE", None), (b"P6\n1 1\n255\n\0\0\0", "ppm"), (b"P9 is no PPM", None), (b"{}", None),
    ],
)  # fmt: skip
def test_sniff(data, name):
    assert sniff(data) == name
    if name != "avif":
        assert reason(data) == ("not_an_image" if name is None else "unsupported_image")


def test_the_config_knows_every_format():
    recognised = {name for _, name in _MAGIC} | {"webp", "avif", "heic", "bmp", "svg", "ppm"}
    assert set(KNOWN_FORMATS) == recognised
    assert KNOWN_FORMATS[: len(FORMATS)] == FORMATS


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_a_limit_above_that_of_pillow(format):
    """179 megapixels."""
    set_up(200_000_000)
    options = {"compression": "tiff_deflate"} if format == "TIFF" else {}
    data = saved(Image.new("1", (13_400, 13_400)), format, **options)
    limits = Decode(max_pixels=200_000_000)
    header = read_header(data, limits)
    assert decode_rgb(data, header, NEVER).size == (13_400, 13_400)
    with pytest.raises(InvalidRecord) as caught:
        read_header(data, LIMITS)
    assert "decode.max_pixels" in caught.value.detail


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_file_without_metadata_is_not_copied(format):
    data = saved(picture(), format)
    parts = _FORMATS[sniff(data)].prepare(data).parts
    assert len(parts) == 1
    assert parts[0] is data


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF"])
def test_parts_of_a_file_read_as_one(format):
    options = {"comment": b"x" * 300} if format != "PNG" else {"icc_profile": b"x" * 300}
    data = saved(picture(), format, **options)
    whole = _FORMATS[sniff(data)].prepare(data)
    assert len(whole.parts) > 1
    expected = b"".join(whole.parts)
    file = whole.open()
    assert file.read() == expected
    for at in (0, 5, len(expected) - 3, len(expected), len(expected) + 9):
        for size in (0, 1, 300, -1):
            file.seek(at)
            assert file.tell() == at
            assert file.read(size) == (expected[at:] if size < 0 else expected[at : at + size])
    assert (file.seek(-7, io.SEEK_END), file.read()) == (len(expected) - 7, expected[-7:])
    with pytest.raises(ValueError):
        file.seek(-1)


def test_draft_keeps_what_the_transform_needs():
    data = saved(picture((640, 480)), "JPEG")
    header = read_header(data, LIMITS)
    sizes = {
        want: decode_rgb(data, header, want).size
        for want in [(640, 480), (321, 241), (320, 240), (224, 224), (160, 120), (60, 60), NEVER]
    }
    assert sizes == {
        (640, 480): (640, 480), (321, 241): (640, 480), (320, 240): (320, 240), (224, 224): (320, 240), (160, 120): (160, 120), (60, 60): (80, 60), NEVER: (640, 480),
    }  # fmt: skip
    assert np.abs(decoded(data, (80, 60)) - np.asarray(picture((80, 60)))).mean() < 4
    assert decode_rgb(
        saved(picture((640, 480)), "PNG"), header._replace(format="png"), (80, 60)
    ).size == (640, 480)


def test_draft_of_a_lying_jpeg():
    exif = Image.Exif()
    exif[274] = 6
    data = saved(picture((640, 480)), "JPEG", exif=exif)
    header = read_header(data, LIMITS)
    assert (header.width, header.height) == (480, 640)
    assert decode_rgb(data, header, (240, 320)).size == (240, 320)
    assert decode_rgb(data, header, (320, 240)).size == (480, 640), "240 × 320 would be too narrow"


# Modes. Each expected value is what the picture means, not what some version of Pillow makes of it.


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    levels = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        assert decoded(saved(Image.fromarray(levels), format))[0, :, 0].tolist() == [
            0,
            0,
            1,
            128,
            255,
        ]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]), ([0, 257, 65535], [0, 1, 255]), ([-100, 0, 100], [0, 128, 255]), ([0, 65_536, 131_072], [0, 128, 255]),
        ([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 2.0, 255.0], [0, 2, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255]), ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([0.0, 1.0, float("inf")], [0, 0, 255]), ([7_000_000, 7_000_000, 7_000_000], [0, 0, 0]),
    ],
)  # fmt: skip
def test_deep_grey(levels, expected):
    kind = np.float32 if isinstance(levels[0], float) else np.int32
    found = decoded(saved(Image.fromarray(np.array([levels], kind)), "TIFF"))
    assert np.array_equal(found, np.repeat(np.array([expected])[:, :, None], 3, 2))


def test_one_bit_and_grey():
    assert decoded(saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG"))[
        0
    ].tolist() == [[0] * 3, [255] * 3]
    assert decoded(saved(Image.fromarray(np.array([[7, 200]], np.uint8)), "PNG"))[0].tolist() == [
        [7] * 3,
        [200] * 3,
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparent_is_white(mode, format):
    image = Image.new(mode, (8, 8), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    image.paste((0, 0, 0, 255) if mode == "RGBA" else (0, 255), (0, 0, 4, 8))
    image.paste((0, 0, 0, 128) if mode == "RGBA" else (0, 128), (4, 0, 8, 4))
    found = decoded(
        saved(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    )
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[7, 7].tolist() == [255, 255, 255]
    assert found[0, 7].tolist() == [127, 127, 127]


def test_transparent_palette_and_grey():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    for format in ("PNG", "GIF"):
        assert decoded(saved(palette, format, transparency=1))[0].tolist() == [
            [255, 0, 0],
            [255, 255, 255],
        ]
    assert decoded(saved(palette, "PNG", transparency=b"\x80\xff"))[0].tolist() == [
        [255, 127, 127],
        [0, 255, 0],
    ]
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    assert decoded(saved(grey, "PNG", transparency=10))[0].tolist() == [[255] * 3, [20] * 3]


def test_cmyk_and_lab():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decoded(saved(red, "JPEG", quality=95)) - [255, 0, 0]).max() <= 4
    assert np.abs(decoded(saved(red, "TIFF")) - [255, 0, 0]).max() <= 1
    lab = Image.new("LAB", (4, 4), (255, 128, 128))  # L 100, a 0, b 0: white
    assert np.abs(decoded(saved(lab, "TIFF")) - 255).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    found = decoded(saved(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert np.abs(found - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1", "I;16", "I", "F"])
def test_strips_do_not_show(monkeypatch, mode):
    if mode in ("I;16", "I", "F"):
        levels = np.arange(60 * 40).reshape(40, 60) * (27 if mode == "I;16" else 1000)
        image = Image.fromarray(
            levels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        )
    else:
        image = picture((60, 40), "RGBA" if mode == "RGBA" else mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    data = saved(image, "TIFF", **({"transparency": 3} if mode == "P" else {}))
    whole = decoded(data)
    monkeypatch.setattr("streamer.decode.rgb._STRIP_PIXELS", 60 * 7)
    assert np.array_equal(decoded(data), whole)
    monkeypatch.setattr("streamer.decode.rgb._STRIP_PIXELS", 1)
    assert np.array_equal(decoded(data), whole)


# Refusals


def test_limits():
    data = saved(picture(), "PNG")
    assert reason(data, Decode(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert reason(data, Decode(max_pixels=64 * 48 - 1)) == "too_many_pixels"
    assert decoded(data).shape == (48, 64, 3)
    assert read_header(data, Decode(max_bytes=len(data), max_pixels=64 * 48)).width == 64


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(format, part):
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    data = saved(picture((200, 150)).rotate(10), format, **options)
    assert reason(data[: int(part * len(data))]) in {"truncated", "corrupt"}
    if format in ("JPEG", "PNG", "WEBP", "BMP"):
        assert reason(data[: int(part * len(data))]) == "truncated"


def test_a_limit_beyond_pillows_own():
    """Pillow warns above 89 and refuses above 179 megapixels; ours counts, and no warning escapes."""
    limits = Decode(max_pixels=500_000_000)
    data = bare_png(20_000, 15_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_up(64_000_000)
        assert read_header(data, limits) == Header("png", 20_000, 15_000, 1, 300_000_000)
    assert reason(data) == "too_many_pixels"


def bare_png(width: int, height: int) -> bytes:
    """A header and no pixels."""
    return png(ihdr(width, height, 1, 0), chunk(b"IDAT"), chunk(b"IEND"))


def test_bombs_are_refused_by_their_header():
    assert reason(bare_png(50_000, 50_000)) == "too_many_pixels"
    assert reason(bare_png(0, 5)) == "zero_size"
    # 25 megapixels: above our limit, far below Pillow's own
    canvas = (4_999).to_bytes(3, "little") * 2
    assert reason(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas) == "too_many_pixels"
    assert (
        reason(
            b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f"
            + struct.pack("<I", 4_999 << 14 | 4_999)
            + bytes(8)
        )
        == "too_many_pixels"
    )
    assert (
        reason(
            b"RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 5_000, 5_000)
        )
        == "too_many_pixels"
    )
    assert (
        reason(
            b"GIF89a"
            + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
            + b",\0\0\0\0\x01\0\x01\0\0\x02\0;"
        )
        == "too_many_pixels"
    )
    assert (
        reason(
            b"BM"
            + struct.pack(
                "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0
            )
        )
        == "too_many_pixels"
    )


def test_sizes_of_jpegs_are_read_as_pillow_reads_them(data_set):
    files = [*(data_set / "hostile").rglob("*.jp*g"), *(data_set / "photos").rglob("*.jpg")]
    agreed = 0
    for file in files:
        data = file.read_bytes()
        try:
            prepared = jpeg.prepare(data)
        except InvalidRecord:
            continue
        if prepared.size is not None:
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == prepared.size, file
                assert prepared.orientation == (image.getexif().get(274) or 1), file
            agreed += 1
    assert agreed > 0.9 * len(files) > 25


@pytest.mark.parametrize("progressive", [False, True])
def test_endless_scans(progressive):
    data = saved(picture(), "JPEG", progressive=progressive)
    at = data.index(b"\xff\xda")
    assert read_header(data + data[at:] * 501, LIMITS), "behind the image's end"
    endless = data[:at] + data[at:-2] * 501 + data[-2:]
    assert reason(endless) == "too_costly"
    # a stray byte or marker, which decoders skip, is no way around
    assert reason(endless[:2] + b"\xff\x01" + endless[2:]) == "too_costly"
    assert reason(endless[:20] + b"x" + endless[20:]) == "too_costly"


def test_kinds_of_jpeg_that_nobody_decodes():
    data = saved(picture(), "JPEG")
    at = data.index(b"\xff\xc0")
    for process in (0xC3, 0xC5, 0xCF):  # lossless, hierarchical
        assert reason(data[: at + 1] + bytes([process]) + data[at + 2 :]) == "unsupported_image"
    assert reason(data[: at + 4] + b"\x0c" + data[at + 5 :]) == "unsupported_image", "12 bits"
    assert reason(data[:at] + b"\xff\xf7" + data[at:]) == "corrupt"


def test_giant_tags_and_tiles_in_a_tiff():
    grey = [(256, 3, [8]), (257, 3, [8]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1])]
    tiles = [(322, 4, [60_000]), (323, 4, [60_000]), (324, 4, [8]), (325, 4, [9])]
    assert reason(tiff([*grey, *tiles])) == "too_many_pixels"
    again = tiff([*grey, (273, 4, [8]), *[(tag, 1, b"gone") for tag in range(513, 522)]])
    for tag in range(513, 522):
        entry = struct.pack("<HH", tag, 1)
        at = again.index(entry)
        again = again[:at] + entry + struct.pack("<II", len(again), 0) + again[at + 12 :]
    assert reason(again) == "unsupported_image"
    assert reason(tiff([*grey, (273, 4, [1 << 30])])) == "truncated"
    assert reason(tiff(grey)) == "corrupt", "no pixels at all"
    cut = tiff([*grey, (273, 4, [8] * 100)])
    assert reason(cut[:-50]) == "truncated"


def test_whatever_a_decoder_raises_has_a_reason():
    for error, expected in [
        (NotImplementedError("x"), "unsupported_image"), (MemoryError(), "unsupported_image"), (EOFError(), "truncated"), (ValueError("x"), "corrupt"),
        (OSError("image file is truncated (3 bytes not processed)"), "truncated"), (Image.DecompressionBombError("x"), "too_many_pixels"), (RecursionError(), "corrupt"),
    ]:  # fmt: skip
        with pytest.raises(InvalidRecord) as caught, Undecodable():
            raise error
        assert caught.value.reason == expected
    with pytest.raises(KeyboardInterrupt), Undecodable():
        raise KeyboardInterrupt
