"""``decode.pixels: fast`` beside Pillow's resize."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamer.config import parse
from streamer.errors import ConfigError
from streamer.model import fast
from streamer.model.geometry import Geometry
from streamer.model.model import load_model
from streamer.model.timm import TimmImageEmbedder, _geometry

BASE = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    "mean": (0.48, 0.45, 0.40), "std": (0.2, 0.2, 0.2),
}  # fmt: skip
CHANGES = [
    {},
    {"interpolation": "bilinear", "crop_pct": 0.875},
    {"crop_mode": "squash"},
    {"crop_mode": "border", "crop_pct": 1.0},
    {"input_size": (3, 448, 448)},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_pixels_are_within_two_of_pillows(changes, data_set: Path) -> None:
    data_config = {**BASE, **changes}
    geometry, transform = Geometry.of(data_config), _geometry(data_config)
    assert geometry is not None
    photographs = sorted((data_set / "photos").rglob("*.jpg"))[:40]
    differences = []
    for path in photographs:
        image = Image.open(path).convert("RGB")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = fast.resize(image, geometry)
        differences.append(np.abs(pixels.astype(int) - np.asarray(transform(image))))
    flat = np.concatenate([d.ravel() for d in differences])
    assert flat.max() <= 2
    assert (flat > 0).mean() < 0.01


def test_vectors_point_the_same_way(data_set: Path, demo_checkpoint: str) -> None:
    exact, quick = (
        TimmImageEmbedder("tf_efficientnet_lite0", checkpoint=demo_checkpoint, pixels=pixels)
        for pixels in ("exact", "fast")
    )
    assert exact.fingerprint != quick.fingerprint
    images = [
        Image.open(path).convert("RGB")
        for path in sorted((data_set / "photos").rglob("*.jpg"))[:32]
    ]
    one, other = (
        embedder.embed(torch.from_numpy(np.stack([embedder.transform(i) for i in images])))
        for embedder in (exact, quick)
    )
    assert (one.double() * other.double()).sum(1).min() > 0.9999


@pytest.fixture
def demo_checkpoint(tmp_path: Path) -> str:
    from streamer.model.lite0 import write_demo_checkpoint

    return str(write_demo_checkpoint(tmp_path / "weights.safetensors"))


def test_a_custom_embedder_has_its_own_transform() -> None:
    config = parse({
        "dataset": "d", "kafka": {"bootstrap_servers": "x", "topic": "t"}, "output": {"path": "/x"},
        "embedder": {"type": "tests.plugins.nowhere:Embedder"}, "decode": {"pixels": "fast"},
    })  # fmt: skip
    with pytest.raises(ConfigError, match=r"decode\.pixels: fast: for embedders of type timm only"):
        load_model(config)
