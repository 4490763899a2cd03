"""Files that were made, or found, to break decoders: every one is decoded or settled, in bounded
memory, and as Pillow alone sees it, or better."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header, set_up
from streamer.errors import INVALID_REASONS, InvalidRecord
from tests.decode.hostile import run

OURS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
}


BETTER = {
    "bomb/png_decompression_dos.png",  # text that inflates to gigabytes beside one good pixel
}
"""Decoded here, refused by Pillow alone"""


def test_the_hostile_set(data_set, large):
    folder = data_set / "hostile"
    report = run(folder)
    assert report["grown_mb"] < 800
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
        manifest = list(csv.DictReader(lines, delimiter="\t"))
    assert len(manifest) == len(report["files"]) - 1 > (400 if large else 200), (
        "all but the manifest itself"
    )
    checked = 0
    for row in manifest:
        outcome, reason, format, width, height, sha256 = report["files"][row["file"]]
        assert sha256 == row["sha256"], row["file"]
        assert (outcome, reason) in {("decoded", ""), ("filtered", "format")} or (
            outcome == "invalid" and reason in INVALID_REASONS
        ), row["file"]
        if row["file"] in BETTER:
            assert outcome == "decoded", row["file"]
            continue
        if row["format"] not in OURS:
            assert outcome != "decoded", row["file"]
            continue
        checked += 1
        assert (outcome == "decoded") == (row["pillow_outcome"] == "ok"), (
            row["file"],
            outcome,
            reason,
        )
        if outcome == "decoded":
            assert format == OURS[row["format"]], row["file"]
            if row["size_after_exif"]:
                assert f"{width}x{height}" == row["size_after_exif"], row["file"]
    assert checked > (250 if large else 140)


def test_big_images_at_once_take_bounded_memory(tmp_path):
    """25 megapixels with alpha on four threads: above 700 MB if four were decoded at once."""
    Image.new("RGBA", (5000, 5000), (1, 2, 3, 100)).save(tmp_path / "big.png", compress_level=1)
    report = run(tmp_path / "big.png")["big.png"]
    assert report["decoded"] == 6
    assert report["grown_mb"] < 600


def _seed(format: str, size: tuple[int, int], **options) -> bytes:
    stream = io.BytesIO()
    ramp = Image.linear_gradient("L").resize(size)
    exif = Image.Exif()
    exif[274] = 6
    Image.merge("RGB", (ramp, ramp.rotate(90).resize(size), ramp.rotate(180))).save(
        stream, format, exif=exif, **options
    )
    return stream.getvalue()


SEEDS = [
    _seed("JPEG", (64, 48)), _seed("JPEG", (64, 48), progressive=True), _seed("PNG", (64, 48)), _seed("WEBP", (64, 48)),
    _seed("WEBP", (64, 48), lossless=True), _seed("TIFF", (16, 16)), _seed("TIFF", (16, 16), compression="tiff_lzw"), _seed("AVIF", (64, 48)),
    _seed("JPEG", (64, 48), restart_marker_rows=1, icc_profile=b"x" * 300), _seed("PNG", (64, 48), icc_profile=b"x" * 300, transparency=(1, 2, 3)),
    _seed("WEBP", (64, 48), icc_profile=b"x" * 300, xmp=b"<x/>"), _seed("GIF", (64, 48), comment=b"x" * 300), _seed("BMP", (16, 16)),
    _seed("TIFF", (16, 16), big_tiff=True), _seed("AVIF", (64, 48), xmp=b"<x/>"),
]  # fmt: skip


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_are_decoded_or_invalid(data):
    set_up(64_000_000)
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 8))):
        # half of the flips hit the first 256 bytes, where a file's structure is
        at = data.draw(
            st.integers(0, min(255, len(damaged) - 1)) | st.integers(0, len(damaged) - 1)
        )
        damaged[at] = data.draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF, damaged[at] ^ 1, damaged[at] ^ 0x80])
        )
    del damaged[data.draw(st.just(len(damaged)) | st.integers(0, len(damaged))) :]
    limits = Decode(max_pixels=1_000_000)
    try:
        header = read_header(bytes(damaged), limits)
        assert 0 < header.width * header.height <= limits.max_pixels
        image = decode_rgb(bytes(damaged), header, (16, 16))
    except InvalidRecord:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert header.format == "jpg" or image.size == (header.width, header.height)


@pytest.mark.parametrize("data", SEEDS)
def test_the_seeds_themselves_decode(data):
    header = read_header(data, Decode())
    assert decode_rgb(data, header, (0, 0)).size == (header.width, header.height)
