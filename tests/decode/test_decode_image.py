import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from streamer.config import Decode
from streamer.decode import guard
from streamer.decode import image as room
from streamer.decode.image import Header, decode_rgb, orientation_of, read_header, sniff
from streamer.errors import InvalidRecord

LIMITS = Decode(max_bytes=2_000_000, max_pixels=4_000_000)
NEVER = (0, 0)


@pytest.fixture(autouse=True)
def _set_up():
    room.set_up()


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


def reason(data: bytes, limits: Decode = LIMITS) -> str:
    with pytest.raises(InvalidRecord) as caught:
        decode_rgb(data, read_header(data, limits), NEVER)
    return caught.value.reason


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
    assert read_header(data, LIMITS) == Header(extension, 64, 48, 1)
    assert np.abs(decoded(data) - np.asarray(picture()).astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"), (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "avif"), (b"\0\0\0\x18ftypisom\0\0\0\0mp41avc1", None),
        (b"\xff\x0a\xfa", "jxl"), (b"8BPS", "psd"), (b"<svg xmlns='x'>", "svg"), (b"<?xml version='1.0'?>\n<svg>", "svg"), (b"<?xml?><html>", None),
        (b"BMW is a car, not a picture", None), (b"%PDF-1.7", "pdf"), (b"", None), (b"\xff\xd8", None), (b"RIFF\0\0\0\0WAVE", None), (b"{}", None),
    ],
)  # fmt: skip
def test_sniff(data, name):
    assert sniff(data) == name
    if name != "avif":
        assert reason(data) == ("not_an_image" if name is None else "unsupported_image")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(format, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(picture(), format, exif=exif)
    header = read_header(data, LIMITS)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    assert (
        (header.height, header.width)
        == expected.shape[:2]
        == ((48, 64) if orientation <= 4 else (64, 48))
    )
    assert np.array_equal(decoded(data), expected)


def test_orientation_after_the_pixels_of_a_png():
    data = saved(picture(), "PNG")
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 274, 3, 1, 6, 0) + bytes(4)
    chunk = b"eXIf" + exif
    data = (
        data[:-12]
        + struct.pack(">I", len(exif))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + data[-12:]
    )
    assert read_header(data, LIMITS) == Header("png", 48, 64, 6)
    assert decoded(data).shape == (64, 48, 3)


def test_orientation_in_image_magicks_text_chunk():
    from PIL.PngImagePlugin import PngInfo

    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 1, 8, 0) + bytes(4)
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    assert read_header(saved(picture(), "PNG", pnginfo=info), LIMITS).orientation == 8
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n  4\nnothex\n")
    assert read_header(saved(picture(), "PNG", pnginfo=info), LIMITS).orientation == 1


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01" + bytes(11),
    ],
)
def test_damaged_exif_means_upright(exif):
    assert orientation_of(exif) == 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_means_upright(value):
    assert (
        orientation_of(b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 274, 3, 1, value, 0)) == 1
    )


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
    monkeypatch.setattr(room, "_STRIP_PIXELS", 60 * 7)
    assert np.array_equal(decoded(data), whole)
    monkeypatch.setattr(room, "_STRIP_PIXELS", 1)
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
    data = png_of(20_000, 15_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        room.set_up()
        assert read_header(data, limits) == Header("png", 20_000, 15_000, 1)
    assert reason(data) == "too_many_pixels"


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with a header and no pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        *chunks,
        (b"IDAT", b""),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )


def test_bombs_are_refused_by_their_header():
    assert reason(png_of(50_000, 50_000)) == "too_many_pixels"
    assert reason(png_of(0, 5)) == "zero_size"
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


def test_text_and_profile_bombs_in_a_png():
    bomb = zlib.compress(bytes(50_000_000))
    assert reason(png_of(8, 8, (b"zTXt", b"a\0\0" + bomb))) == "unsupported_image"
    assert reason(png_of(8, 8, (b"iCCP", b"a\0\0" + bomb))) == "unsupported_image"
    assert reason(png_of(8, 8, *[(b"tEXt", b"a\0b")] * 1001)) == "unsupported_image"


def test_sizes_of_jpegs_are_read_as_pillow_reads_them(data_set):
    files = [*(data_set / "hostile").rglob("*.jp*g"), *(data_set / "photos").rglob("*.jpg")]
    agreed = 0
    for file in files:
        data = file.read_bytes()
        try:
            jpeg = guard.scan_jpeg(data)
        except InvalidRecord:
            continue
        if jpeg is not None:
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == jpeg[:2], file
                assert orientation_of(jpeg.exif) == (image.getexif().get(274) or 1), file
            agreed += 1
    assert agreed > 0.9 * len(files) > 25


def test_endless_jpegs():
    data = saved(picture(), "JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    assert reason(data[:at] + data[at:-2] * 501 + data[-2:]) == "unsupported_image", "scans"
    assert reason(data[:2] + b"\xff\xe1\0\x09Exif\0\0x" * 1001 + data[2:]) == "unsupported_image", (
        "segments"
    )
    # a stray byte or marker, which Pillow skips, is no way around
    assert (
        reason(data[:2] + b"\xff\x01" + data[2:at] + data[at:-2] * 501 + data[-2:])
        == "unsupported_image"
    )
    assert (
        reason(data[:20] + b"x" + b"\xff\xe1\0\x09Exif\0\0x" * 1001 + data[20:])
        == "unsupported_image"
    )
    assert decoded(data[:20] + b"x" + data[20:]).shape == (48, 64, 3)
    assert decoded(data[:2] + b"\xff\xe1\0\x09Exif\0\0x" * 100 + data[2:]).shape == (48, 64, 3)
    assert decoded(data[:2] + b"\xff" * 100 + data[2:]).shape == (48, 64, 3), "fill bytes"


def test_endless_gif_comments():
    data = saved(picture(), "GIF")
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * 5000 + b"\0"
    at = 13 + 3 * 256
    assert reason(data[:at] + comment + data[at:]) == "unsupported_image"
    assert decoded(
        data[:at] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 50 + b"\0" + data[at:]
    ).shape == (48, 64, 3)


def tiff_of(*tags: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4)
        + more
    )


def test_giant_tags_and_tiles_in_a_tiff():
    grey = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    assert (
        reason(
            tiff_of(*grey, (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 9))
        )
        == "too_many_pixels"
    )
    assert (
        reason(tiff_of(*grey, *[(40_000 + i, 1, 3000, 8) for i in range(100)], more=bytes(3000)))
        == "unsupported_image"
    )
    assert reason(tiff_of(*[(40_000 + i, 1, 1, 0) for i in range(1001)])) == "unsupported_image"
    assert reason(tiff_of(*grey, (273, 4, 100, 1 << 30))) == "truncated"


def test_whatever_a_decoder_raises_has_a_reason():
    for error, expected in [
        (NotImplementedError("x"), "unsupported_image"), (MemoryError(), "unsupported_image"), (EOFError(), "truncated"), (ValueError("x"), "corrupt"),
        (OSError("image file is truncated (3 bytes not processed)"), "truncated"), (Image.DecompressionBombError("x"), "too_many_pixels"), (RecursionError(), "corrupt"),
    ]:  # fmt: skip
        with pytest.raises(InvalidRecord) as caught, room.Undecodable():
            raise error
        assert caught.value.reason == expected
    with pytest.raises(KeyboardInterrupt), room.Undecodable():
        raise KeyboardInterrupt
