"""Images that have few enough pixels and bytes, and would keep a decoder busy all the same. How long
and how much memory: `benchmarks/costly.py`, which makes them."""

import struct

import pytest

from benchmarks import costly
from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header
from streamer.errors import InvalidRecord
from tests.decode.images import NEVER
from tests.decode.images import tiff as tiff_of

SQUARE = (8000, 8000)
LARGE = (4000, 4000)
SMALL = (640, 480)


def answer(data: bytes, **limits: int) -> str:
    try:
        read_header(data, Decode(**limits))
    except InvalidRecord as error:
        return error.reason
    return ""


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(costly.jpeg(SQUARE, 33), id="scans of a large JPEG"),
        pytest.param(costly.jpeg(LARGE, 129), id="scans of a smaller one"),
        pytest.param(costly.jpeg(SQUARE, 11, arithmetic=True), id="arithmetic coding"),
        pytest.param(costly.jpeg((8, 8), 501), id="scans of a tiny JPEG"),
        pytest.param(costly.tiff(SQUARE, 7, costly.jpeg(LARGE, 33)), id="scans in a TIFF"),
        pytest.param(costly.png((1, 21_000_000), 1, 0), id="rows of a PNG"),
        pytest.param(costly.tiff((1, 21_000_000), 8, b""), id="rows of a TIFF"),
        pytest.param(costly.bmp((1, 21_000_000), 8, b"\0\1"), id="rows of a BMP"),
        pytest.param(costly.bmp(SQUARE, 4, costly.runs(SQUARE, 255)), id="runs over all pixels"),
        pytest.param(costly.bmp((6, 6), 8, bytes(18_000_000)), id="runs of nothing"),
        pytest.param(
            costly.tiff((16 * 100, 16), 8, b"", tile=(16, 4_000_000), pieces=100),
            id="tiles beyond the image",
        ),
        pytest.param(
            costly.tiff((1, 3000), 8, bytes(1_000_000), rows=1, pieces=3000), id="shared strips"
        ),
        pytest.param(
            tiff_of(
                [
                    *((256, 4, [1]), (257, 4, [3000]), (258, 3, [8]), (259, 3, [8])),
                    *((262, 3, [1]), (273, 4, [16] * 3000), (278, 4, [1])),
                ],
                bytes(1_000_000),
            ),
            id="strips of unknown length",
        ),
        pytest.param(costly.avif((500, 500), (500, 500), items=1400), id="pictures of an AVIF"),
    ],
)
def test_what_would_keep_a_decoder_busy_is_refused(data):
    assert len(data) < 20_000_000
    assert answer(data) == "too_costly"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(costly.jpeg(LARGE, 20), id="JPEG"),
        pytest.param(costly.jpeg(SMALL, 500), id="a small JPEG of 500 scans"),
        pytest.param(costly.jpeg(SMALL, 500, arithmetic=True), id="arithmetic coding"),
        pytest.param(costly.tiff(SMALL, 7, costly.jpeg(SMALL, 90)), id="TIFF of a JPEG"),
        pytest.param(costly.png((3, 200_000), 8, 6), id="a tall PNG"),
        pytest.param(
            costly.bmp((600, 600), 4, costly.runs((600, 600), 4)), id="BMP, run-length-coded"
        ),
        pytest.param(
            costly.tiff((300, 300), 8, costly.zeros(256 * 256), tile=(256, 256), pieces=4),
            id="TIFF of tiles",
        ),
        pytest.param(
            costly.tiff((8, 5000), 8, costly.zeros(8), rows=1, pieces=5000), id="TIFF of strips"
        ),
        pytest.param(costly.avif((500, 500), (500, 500), items=4), id="AVIF of four pictures"),
        pytest.param(costly.avif((64, 64), (64, 64), frames=4), id="AVIF of four layers"),
    ],
)
def test_what_is_long_and_not_too_long_is_decoded(data):
    header = read_header(data, Decode(max_pixels=16_000_000))
    assert decode_rgb(data, header, NEVER).size == (header.width, header.height)


def test_the_reason_says_what_is_too_much():
    with pytest.raises(InvalidRecord) as caught:
        read_header(costly.jpeg(SQUARE, 64), Decode())
    assert caught.value.detail == (
        "8000 × 8000: decoding may take 4.1 billion steps, at most 2.0 (from decode.max_pixels)"
    )


def test_a_higher_limit_of_pixels_allows_more_work():
    data = costly.jpeg(SQUARE, 64)
    assert answer(data) == answer(data, max_pixels=129_000_000 - 2_000_000) == "too_costly"
    assert answer(data, max_pixels=129_000_000) == ""


def test_an_avif_is_as_large_as_its_frames():
    """``ispe`` says 16 × 16."""
    limits = {"max_pixels": 250_000}
    assert answer(costly.avif((16, 16), (500, 500)), **limits) == ""
    assert answer(costly.avif((16, 16), (501, 500)), **limits) == "too_many_pixels"
    assert answer(costly.avif((16, 16), (250, 500), frames=3), **limits) == "too_many_pixels"
    cut = costly.avif((16, 16), (250, 500))
    for end in range(0, len(cut), 7):
        assert answer(cut[:end], **limits) in ("", "truncated", "corrupt", "not_an_image")


def test_frames_of_an_animation(data_set, large):
    name = "libavif_colors-animated-8bpc-alpha-exif-xmp.avif"
    if not large:
        name = next(p.name for p in (data_set / "hostile/avif").glob("*animated*"))
    data = (data_set / "hostile/avif" / name).read_bytes()
    header = read_header(data, Decode())
    assert answer(data, max_pixels=header.width * header.height) == ""
    at = data.index(b"ispe") + 8  # what it is said to be; its tracks say the same elsewhere
    size = struct.pack(">II", header.width, header.height)
    assert data[at : at + 8] == size
    assert answer(data.replace(size, struct.pack(">II", 16, 16)), max_pixels=5_000) == (
        "too_many_pixels"
    )
