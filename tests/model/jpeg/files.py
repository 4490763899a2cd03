"""JPEGs for the tests, and what of them would travel to the device."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from streamer.config import Decode
from streamer.decode.image import Header, prepare
from streamer.decode.prepared import Prepared
from streamer.errors import InvalidRecord
from streamer.records import U8, Jpeg

LIMITS = Decode()
KINDS = {
    "4:2:0": {"quality": 80},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 97},
    "coarse": {"quality": 3},
    "own tables": {"optimize": True},
    "restarts in rows": {"restart_marker_blocks": 5},
    "a restart a row": {"restart_marker_rows": 1},
    "comment": {"comment": b"\xff\xd9 not the end"},
}


def picture(seed: int, size: tuple[int, int] = (203, 157), mode: str = "RGB") -> Image.Image:
    """Smooth shapes with some noise: bright and dark rows, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-9, 10, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def opened(data: bytes) -> tuple[Header, Prepared] | None:
    try:
        return prepare(data, LIMITS)
    except InvalidRecord:
        return None


def as_jpeg(data: bytes) -> Jpeg | None:
    """What would travel to the device; None where nothing would."""
    found = opened(data)
    if found is None or not found[1].baseline or found[1].size is None:
        return None
    columns, rows = found[1].size
    return Jpeg(b"".join(found[1].parts), rows, columns, found[0].orientation)


def stored(data: bytes) -> U8:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
