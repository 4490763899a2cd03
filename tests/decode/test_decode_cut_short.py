"""A JPEG that ends early, with an end marker behind what is left: libjpeg says nothing."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from streamer.decode import jpeg
from streamer.decode.image import decode_rgb, read_header, set_up
from streamer.errors import InvalidRecord
from tests.decode.images import LIMITS, NEVER, decoded, picture, reason, saved

WHOLE = "whole"
OPTIONS = [
    {},
    {"optimize": True},
    {"restart_marker_blocks": 1},
    {"restart_marker_blocks": 7},
    {"restart_marker_rows": 1},
    {"restart_marker_rows": 3},
]


@pytest.fixture(autouse=True)
def _set_up():
    set_up(64_000_000)


def scan(data: bytes) -> int:
    """Where the first scan's entropy data begin."""
    return next(end for marker, _, end in jpeg._segments(data) if marker == 0xDA)


def cut(data: bytes, part: float) -> bytes:
    begin = scan(data)
    kept = data[: begin + int(part * (len(data) - 2 - begin))]
    return kept.rstrip(b"\xff") + b"\xff\xd9"


def photograph(mode: str, size: tuple[int, int] = (160, 120)) -> Image.Image:
    noise = np.random.default_rng(0).integers(-40, 40, (size[1], size[0], 3))
    rough = np.clip(np.asarray(picture(size)).astype(int) + noise, 0, 255)
    return Image.fromarray(rough.astype(np.uint8)).convert(mode)


def outcome(data: bytes, draft: tuple[int, int] = NEVER) -> str:
    try:
        decode_rgb(data, read_header(data, LIMITS), draft)
    except InvalidRecord as error:
        return error.reason
    return WHOLE


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("mode", "subsampling"), [("L", None), *product(("RGB", "CMYK"), range(3))]
)
def test_a_sequential_jpeg(mode, subsampling, options):
    chroma = {} if subsampling is None else {"subsampling": subsampling}
    data = saved(photograph(mode), "JPEG", **chroma, **options)
    assert outcome(data) == WHOLE
    for part, draft in product((0, 0.1, 0.25, 0.5, 0.75, 0.9), (NEVER, (20, 15))):
        assert outcome(cut(data, part), draft) == "truncated", part


def test_exactly_between_two_restarts():
    data = saved(photograph("RGB"), "JPEG", restart_marker_rows=1)
    restart = data.index(b"\xff\xd3", scan(data))
    assert reason(data[:restart] + b"\xff\xd9") == "truncated"
    assert reason(data[: restart + 2] + b"\xff\xd9") == "truncated"


def test_whatever_marker_ends_it_and_whatever_follows():
    data = saved(photograph("RGB"), "JPEG")
    half = cut(data, 0.5)[:-2]
    for behind in (b"\xff\xd9" + data, b"\xff\xff\xff\xd9", b"\xff\xd9" + bytes(5_000)):
        assert reason(half + behind) == "truncated"
        assert outcome(data[:-2] + behind) == WHOLE


def test_metadata_does_not_hide_it():
    exif = Image.Exif()
    exif[274] = 6
    data = saved(photograph("RGB"), "JPEG", exif=exif, icc_profile=b"x" * 5_000)
    assert reason(cut(data, 0.5)) == "truncated"


@pytest.mark.parametrize("options", [*OPTIONS, {"progressive": True}], ids=str)
@pytest.mark.parametrize(
    ("mode", "subsampling"), [("L", None), *product(("RGB", "CMYK"), range(3))]
)
@pytest.mark.parametrize("size", [(64, 48), (101, 77), (16, 16), (3, 5), (1, 1)])
def test_mid_grey_may_be_meant(mode, subsampling, options, size):
    """Flat pictures, and pictures that end flat, around the grey that libjpeg fills with."""
    chroma = {} if subsampling is None else {"subsampling": subsampling}
    for level, quality in product((126, 127, 128, 129), (30, 75, 100)):
        flat = Image.new(mode, size, (level,) * len(mode) if mode != "L" else level)
        ends_flat = photograph("RGB", size).convert(mode)
        ends_flat.paste(flat.crop((0, 0, size[0], size[1] - size[1] // 2)), (0, size[1] // 2))
        for image in (flat, ends_flat):
            data = saved(image, "JPEG", quality=quality, **chroma, **options)
            assert outcome(data) == outcome(data, (8, 8)) == WHOLE


def test_photographs_are_whole(data_set, monkeypatch):
    """And hardly one of them is decoded twice to know it."""
    seconds = []
    last_scan = jpeg._last_scan
    monkeypatch.setattr(jpeg, "_last_scan", lambda data: seconds.append(1) or last_scan(data))
    files = [*(data_set / "photos").rglob("*.jpg")][:400]
    for file in files:
        data = file.read_bytes()
        assert outcome(data, (100, 100)) == WHOLE, file
        assert outcome(cut(data, 0.5), (100, 100)) == "truncated", file
    assert len(seconds) - len(files) <= len(files) / 100


# Progressive


def scans(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of each scan's entropy data; then come tables, or the end."""
    begins = [
        found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        for found in jpeg._SCAN.finditer(data, scan(data) - 14)
    ]
    return [(begin, jpeg._END_OF_SCAN.search(data, begin).start()) for begin in begins]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_progressive_jpeg(mode):
    """Cut within any scan but the last."""
    data = saved(photograph(mode), "JPEG", progressive=True)
    assert outcome(data) == WHOLE
    others = [(begin, end) for begin, end in scans(data)[:-1] if end - begin > 50]
    assert len(others) > 3
    for begin, end in others:
        for part in (0.3, 0.6):
            at = begin + int(part * (end - begin))
            assert outcome(data[:at].rstrip(b"\xff") + b"\xff\xd9") == "truncated"


def test_a_progressive_jpeg_need_not_send_everything():
    """T.81 leaves it to the encoder how many bits it sends: whole scans make a whole picture, only
    coarser."""
    data = saved(photograph("RGB"), "JPEG", progressive=True)
    for _, end in scans(data):
        assert outcome(data[:end] + b"\xff\xd9") == WHOLE


def test_the_finest_details_of_a_progressive_jpeg_may_be_missing():
    """The known limit: where all scans begin, what the last one lacks is not looked for."""
    data = saved(photograph("RGB"), "JPEG", progressive=True)
    begin, end = scans(data)[-1]
    short = data[: (begin + end) // 2].rstrip(b"\xff") + b"\xff\xd9"
    assert outcome(short) == WHOLE
    assert np.abs(decoded(short) - decoded(data)).mean() < 8
