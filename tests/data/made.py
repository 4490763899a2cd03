"""The small sets: what this folder keeps, and what can be made and is therefore not kept."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance, ImageOps

from streamer.demo.photograph import Photograph, photographs

FOLDER = Path(__file__).parent
KEPT = ("hostile", "heads")


def make_small_sets(target: Path) -> Path:
    """Fills ``target``, a new folder laid out as the large sets are. Takes seconds."""
    for name in KEPT:
        shutil.copytree(FOLDER / name, target / name)
    _make_photos(target / "photos")
    _make_clip_golden(target / "clip_preprocess_golden")
    _make_heads(target / "heads")
    return target


# Photographs of scikit-image, which the extra `demo` installs


def _make_photos(folder: Path) -> None:
    """Eight pictures of each photograph that show the same, and two that are too small or too
    narrow for most uses; captions.tsv tells about each file."""
    for name in ("skimage", "unwanted"):
        (folder / name).mkdir(parents=True)
    rows = []
    for photograph in photographs():
        for file, made, picture in _prints(photograph):
            picture.save(folder / file, "JPEG", quality=92)
            data = (folder / file).read_bytes()
            rows.append(
                {
                    "file": file,
                    "captions(|-separated)": f"{photograph.caption}|{photograph.caption}, {made}",
                    "label": photograph.name,
                    "licence": photograph.credit,
                    "width": picture.width,
                    "height": picture.height,
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    with (folder / "captions.tsv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(
            lines, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def _prints(photograph: Photograph) -> Iterator[tuple[str, str, Image.Image]]:
    """(file, how it was made, picture)."""
    with Image.open(io.BytesIO(photograph.data)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((640, 640))
    width, height = image.size
    margin = (width // 16, height // 16, width - width // 16, height - height // 16)
    same = {
        "whole": image,
        "half": image.resize((width // 2, height // 2)),
        "mirrored": ImageOps.mirror(image),
        "trimmed": image.crop(margin),
        "left": image.crop((0, 0, width * 3 // 4, height)),
        "right": image.crop((width // 4, 0, width, height)),
        "dark": ImageEnhance.Brightness(image).enhance(0.4),
        "bright": ImageEnhance.Brightness(image).enhance(1.5),
    }
    for made, picture in same.items():
        yield f"skimage/{photograph.name}__{made}.jpg", made, picture
    yield f"unwanted/{photograph.name}-thumbnail.jpg", "thumbnail", image.reduce(8)
    strip = image.crop((0, 0, width, height // 5))
    yield f"unwanted/{photograph.name}-strip.jpg", "strip", strip


# OpenAI's preprocessing, as the repository of CLIP (clip/clip.py, `_transform`) states it


def _make_clip_golden(folder: Path) -> None:
    """A photograph, and what a CLIP tower of 224 pixels must be fed for it: (1, 3, 224, 224),
    float32."""
    folder.mkdir()
    Image.fromarray(skimage.data.chelsea()).save(folder / "chelsea.jpg", quality=92)
    with Image.open(folder / "chelsea.jpg") as image:
        width, height = image.size
        assert height < width
        small = image.resize((int(224 * width / height), 224), Image.Resampling.BICUBIC)
    left = round((small.width - 224) / 2)
    pixels = np.asarray(small.crop((left, 0, left + 224, 224))).astype(np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    expected = ((pixels - mean) / std).transpose(2, 0, 1)[None]
    np.save(folder / "expected_preprocessed_image.npy", expected)


# LAION's heads that are too large to keep


def _make_heads(folder: Path) -> None:
    import safetensors.torch  # torch takes seconds to import: only where the small sets are made
    import torch

    for original, port in (
        ("laion_clip_nsfw_vit_l_14", "clip_ViT-L-14_openai_binary_nsfw_head.pth"),
        ("laion_clip_nsfw_vit_b_32", "clip_ViT-B-32_openai_binary_nsfw_head.pth"),
    ):
        tables = safetensors.torch.load_file(folder / f"{original}.categorical.safetensors")
        state = torch.load(folder / port, map_location="cpu", weights_only=True)
        safetensors.torch.save_file({**state, **tables}, folder / f"{original}.safetensors")
    with np.load(folder / "golden.npz") as golden:
        layers = _five_layers(golden["proto_l_14"], golden["proto_l_14_sac"])
    torch.save(
        {key: torch.from_numpy(value) for key, value in layers.items()},
        folder / "sac+logos+ava1-l14-linearMSE.pth",
    )


def _five_layers(x: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """A head shaped like LAION's aesthetic V2: random layers, but for the first, which is such that
    ``x`` (n, 768) has ``scores`` (n,)."""
    dice = np.random.default_rng(8)
    widths = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    state = {}
    for i, (wide, out) in widths.items():
        weight = dice.normal(size=(out, wide)) / np.sqrt(wide)
        state[f"layers.{i}.weight"] = weight.astype(np.float32)
        state[f"layers.{i}.bias"] = dice.normal(size=out).astype(np.float32)
    first, *later = widths
    rest, bias = np.eye(1024), np.zeros(1024)
    for i in later:
        weight = state[f"layers.{i}.weight"].astype(np.float64)
        rest, bias = weight @ rest, weight @ bias + state[f"layers.{i}.bias"]
    weight = state[f"layers.{first}.weight"].astype(np.float64)
    bias = bias + rest @ state[f"layers.{first}.bias"]
    wanted = np.linalg.lstsq(x.astype(np.float64), scores - bias, rcond=None)[0]
    weight += rest.T @ (wanted[None] - rest @ weight) / (rest @ rest.T)
    state[f"layers.{first}.weight"] = weight.astype(np.float32)
    return state
