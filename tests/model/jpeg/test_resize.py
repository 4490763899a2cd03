"""The resize on the device, against Pillow's through timm's own transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

from streamer.decode.image import _TRANSPOSE
from streamer.model.geometry import Geometry
from streamer.model.timm import _geometry

BASE = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    "mean": (0.48, 0.45, 0.40), "std": (0.2, 0.2, 0.2),
}  # fmt: skip
CONFIGS = {
    "center": {},
    "bilinear": {"interpolation": "bilinear", "crop_pct": 0.875},
    "whole": {"crop_pct": 1.0},
    "squash": {"crop_mode": "squash"},
    "border": {"crop_mode": "border"},
    "border whole": {"crop_mode": "border", "crop_pct": 1.0, "input_size": (3, 448, 336)},
    "448": {"input_size": (3, 448, 448), "crop_pct": 0.95},
    "wide": {"input_size": (3, 256, 320), "crop_pct": 0.95},
    "squash bilinear": {"crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 1.0},
}
SIZES = [
    (640, 480),
    (480, 640),
    (31, 17),
    (224, 224),
    (300, 225),
    (1600, 101),
    (101, 1600),
    (249, 911),
]


def config_of(name: str) -> dict[str, Any]:
    if name == "wide" and tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 30):
        pytest.skip("this timm takes bilinear for whatever is not square; a start notices it")
    return {**BASE, **CONFIGS[name]}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_pillows(name: str, without_cupy: None) -> None:
    from tests.model.jpeg.emulated import resize

    data_config = config_of(name)
    geometry = Geometry.of(data_config)
    assert geometry is not None
    rng = np.random.default_rng(7)
    images = [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES
    ]  # no filter hides in noise
    orientations = [i % 8 + 1 for i in range(len(images))]

    pixels = resize(images, orientations, geometry)

    transform = _geometry(data_config)
    for image, orientation, got in zip(images, orientations, pixels, strict=True):
        method = _TRANSPOSE.get(orientation)
        upright = Image.fromarray(image)
        upright = upright if method is None else upright.transpose(method)
        assert np.array_equal(got, np.asarray(transform(upright))), (image.shape, orientation)


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation": "lanczos"},
        {"crop_mode": "random"},
        {"crop_border_pixels": 4},
        {"input_size": (1, 28, 28)},
    ],
)
def test_what_is_no_plain_resize_has_no_geometry(changes) -> None:
    assert Geometry.of({**BASE, **changes}) is None
