"""Which files the device vouches for. The engine says nothing about damage, so this must."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamer.decode.image import decode_rgb, set_up
from streamer.errors import InvalidRecord
from streamer.records import U8
from tests.model.jpeg.emulated import vouched as look
from tests.model.jpeg.files import KINDS, LIMITS, as_jpeg, encoded, opened, picture, stored

pytestmark = pytest.mark.usefixtures("without_cupy")


@pytest.fixture(autouse=True)
def _set_up() -> None:
    set_up(LIMITS.max_pixels)


def vouches(data: bytes, shown: U8 | None = None) -> bool:
    jpeg = as_jpeg(data)
    return jpeg is not None and look([jpeg], [shown])[0]


def cpu_accepts(data: bytes) -> bool:
    found = opened(data)
    try:
        if found is not None:
            decode_rgb(data, found[0], (0, 0))
    except InvalidRecord:
        return False
    return found is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(203, 157), (16, 16), (17, 33), (640, 48)])
def test_what_encoders_write_is_vouched_for(kind: str, mode: str, size: tuple[int, int]) -> None:
    data = encoded(picture(1, size, mode), **KINDS[kind])
    if mode == "L" and kind == "4:2:2":  # grey that says it is subsampled: the CPU knows what to do
        assert as_jpeg(data) is None
    else:
        assert vouches(data, stored(data))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_always_seen(kind: str) -> None:
    data = encoded(picture(2, (61, 47)), **KINDS[kind])
    begin = data.index(b"\xff\xda")
    for end in range(begin, len(data) - 2):
        assert not vouches(data[:end]), end
        assert not vouches(data[:end] + b"\xff\xd9"), end


def test_what_hardware_does_not_decode_never_travels() -> None:
    progressive = encoded(picture(3), progressive=True)
    four = encoded(picture(3).convert("CMYK"))
    assert as_jpeg(progressive) is None
    assert as_jpeg(four) is None


def test_colours_that_are_not_ycbcr_are_left_to_the_cpu() -> None:
    assert not vouches(encoded(picture(4), keep_rgb=True))


@pytest.mark.parametrize(("length", "good"), [(9, False), (10, True)])
def test_a_code_of_ones_alone_is_left_to_the_cpu(length: int, good: bool) -> None:
    """T.81 keeps it free, and libjpeg refuses the file. The last code of the usual table for DC is
    111111110: another one of 9 bits has ones alone, one of 10 has not. No file uses it."""
    data = encoded(picture(6, (61, 47)))
    at = data.index(b"\xff\xc4")
    size = int.from_bytes(data[at + 2 : at + 4], "big")
    table = bytearray(data[at + 4 : at + 2 + size])
    assert table[0] == 0
    assert list(table[1:17]) == [0, 1, 5, 1, 1, 1, 1, 1, 1] + [0] * 7
    table[length] += 1
    table.append(0)
    made = data[: at + 2] + (size + 1).to_bytes(2, "big") + bytes(table) + data[at + 2 + size :]
    assert as_jpeg(made) is not None
    assert vouches(made, stored(data)) == cpu_accepts(made) == good


@pytest.mark.parametrize(("second", "good"), [("0", True), ("1", False)])
def test_brightness_beyond_8_bits_is_left_to_the_cpu(second: str, good: bool) -> None:
    """Decoders do different things with it."""
    data = encoded(Image.new("L", (16, 16)))
    begin = data.index(b"\xff\xda") + 2
    begin += int.from_bytes(data[begin : begin + 2], "big")
    # The usual codes: a difference of 11 bits, here 2047 or -2047, and the end of the block
    blocks = [f"111111110{bit * 11}1010" for bit in ("1", second) * 2]
    bits = "".join(blocks)
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    assert vouches(data[:begin] + coded + b"\xff\xd9") == good


def _flipped(count: int) -> Iterator[bytes]:
    rng = random.Random(5)
    whole = [encoded(picture(6, (61, 47)), **options) for options in KINDS.values()]
    for _ in range(count):
        damaged = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(2, len(damaged))] ^= 1 << rng.randrange(8)
        yield bytes(damaged)


def test_nothing_is_vouched_for_that_the_cpu_refuses() -> None:
    flipped = list(_flipped(4_000))
    vouched = [data for data in flipped if vouches(data)]
    assert 20 < len(vouched) < 3_000, "else this shows nothing"
    assert [data for data in vouched if not cpu_accepts(data)] == []


@pytest.mark.parametrize("wrong", ["black", "another", "mirrored", "half"])
def test_a_picture_that_is_not_the_files_own_is_seen(wrong: str) -> None:
    data = encoded(picture(7))
    right = stored(data)
    shown = {
        "black": np.zeros_like(right),
        "another": stored(encoded(picture(8))),
        "mirrored": right[::-1],
        "half": np.concatenate([right[:79], np.zeros_like(right[79:])]),
    }[wrong]
    assert vouches(data, right)
    assert not vouches(data, shown)


def test_hostile_files(data_set: Path, large: bool) -> None:
    files = [
        path.read_bytes() for path in sorted((data_set / "hostile").rglob("*")) if path.is_file()
    ]
    jpegs = [data for data in files if data.startswith(b"\xff\xd8\xff")]
    assert len(jpegs) > (30 if large else 3)
    vouched = [data for data in jpegs if vouches(data)]
    assert len(vouched) > (20 if large else 0)
    assert [data for data in vouched if not cpu_accepts(data)] == []


def test_photographs(data_set: Path, large: bool) -> None:
    files = [path.read_bytes() for path in sorted((data_set / "photos").rglob("*.jpg"))]
    assert len(files) > (1_000 if large else 3)
    baseline = [data for data in files if as_jpeg(data) is not None]
    assert len(baseline) > 0.9 * len(files)
    assert all(vouches(data, stored(data)) for data in baseline)
