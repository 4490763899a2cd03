"""Photographs of a folder, what people do to them, and the vectors that the line makes of them: for
benchmarks that need real ones."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from streamer.config import Config, Decode, load, parse
from streamer.decode.image import decode_rgb, read_header, set_up
from streamer.demo.photograph import photographs
from streamer.demo.record import encoded
from streamer.errors import InvalidRecord, StreamerError
from streamer.model.lite0 import MODEL, write_demo_checkpoint
from streamer.model.model import Model, load_model
from streamer.records import F16

SEED = 3

Picture = Image.Image
Edit = Callable[[Picture], Picture]


class Photo(NamedTuple):
    name: str
    scene: str
    """Photographs of one scene are never a false pair; each file of a folder is a scene of its own."""
    data: bytes


# Photographs and their edits


def gather(folder: Path | None) -> list[Photo]:
    """Every JPEG, PNG and WebP below the folder, in the order of their names; or the demo's."""
    if folder is None:
        return [
            Photo(photograph.name, photograph.scene, photograph.data)
            for photograph in photographs()
        ]
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    names = [str(path.relative_to(folder)) for path in paths]
    return [Photo(name, name, path.read_bytes()) for name, path in zip(names, paths, strict=True)]


def scaled(factor: float) -> Edit:
    return lambda image: image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )


def cropped(share: float) -> Edit:
    """Cuts that share of the area off, left and at the top."""
    kept = (1 - share) ** 0.5
    return lambda image: image.crop(
        (
            round((1 - kept) * image.width),
            round((1 - kept) * image.height),
            image.width,
            image.height,
        )
    )


def rotated(image: Picture) -> Picture:
    """By 2°, and cut to what has no corners missing."""
    turned = image.rotate(2, Image.Resampling.BICUBIC)
    x, y = round(0.035 * image.height / 2) + 1, round(0.035 * image.width / 2) + 1
    return turned.crop((x, y, max(x + 1, image.width - x), max(y + 1, image.height - y)))


def written_on(image: Picture) -> Picture:
    """A caption across the lower part, as on a meme."""
    copy = image.copy()
    size = max(8, image.width // 11)
    place = (image.width // 2, round(0.9 * image.height))
    ImageDraw.Draw(copy).text(
        place, "WHEN IT WORKS AT LAST", "white", ImageFont.load_default(size * 0.8), anchor="mm", stroke_width=max(1, size // 14), stroke_fill="black"
    )  # fmt: skip
    return copy


def watermarked(image: Picture) -> Picture:
    """Half-transparent words, repeated over the whole picture."""
    layer = Image.new("L", image.size)
    draw, size = ImageDraw.Draw(layer), max(8, image.width // 14)
    for y in range(size, image.height, 4 * size):
        for x in range(0, image.width, 7 * size):
            draw.text(
                (x + (y // (4 * size) % 2) * 3 * size, y),
                "© sample",
                90,
                ImageFont.load_default(size),
                anchor="lm",
            )
    return Image.composite(Image.new("RGB", image.size, "white"), image, layer)


def framed(image: Picture) -> Picture:
    """A white border, 6 % of the shorter side."""
    return ImageOps.expand(image, max(1, round(0.06 * min(image.size))), "white")


FAMILIES: Mapping[str, Mapping[str, tuple[Edit, int]]] = {
    "Saved again as JPEG": {
        f"quality {quality}": (lambda image: image, quality) for quality in (90, 50, 20)
    },
    "Made smaller": {"to ½": (scaled(0.5), 90), "to ¼": (scaled(0.25), 90)},
    "Cropped, left and top": {
        f"{share} % of the area": (cropped(share / 100), 90) for share in (5, 10, 20, 30)
    },
    "Light and colour": {
        "brightness +20 %": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 90),
        "brightness −20 %": (lambda image: ImageEnhance.Brightness(image).enhance(0.8), 90),
        "contrast +20 %": (lambda image: ImageEnhance.Contrast(image).enhance(1.2), 90),
        "contrast −20 %": (lambda image: ImageEnhance.Contrast(image).enhance(0.8), 90),
        "grey": (lambda image: ImageOps.grayscale(image).convert("RGB"), 90),
    },
    "Turned": {"mirrored": (ImageOps.mirror, 90), "rotated by 2°": (rotated, 90)},
    "Something added": {
        "white border": (framed, 90),
        "caption": (written_on, 90),
        "watermark": (watermarked, 90),
    },
}
"""Family → edit → what it does, and the JPEG quality that the result is saved with."""
EDITS = {name: edit for family in FAMILIES.values() for name, edit in family.items()}


def at_random(rng: random.Random) -> tuple[Edit, int]:
    """Several edits after one another, and a JPEG quality: a part of 50 to 100 % of the area
    anywhere, light, contrast, and a size of ½ to 1."""
    kept, x, y = rng.uniform(0.5, 1) ** 0.5, rng.random(), rng.random()
    light, contrast, size = rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3), rng.uniform(0.5, 1)

    def edit(image: Picture) -> Picture:
        left, top = round(x * (1 - kept) * image.width), round(y * (1 - kept) * image.height)
        image = image.crop(
            (
                left,
                top,
                left + max(1, round(kept * image.width)),
                top + max(1, round(kept * image.height)),
            )
        )
        return scaled(size)(
            ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(light)).enhance(contrast)
        )

    return edit, rng.randint(20, 95)


# Vectors


def model_options(parser: argparse.ArgumentParser) -> None:
    """What `config_of` reads."""
    parser.add_argument("--config", metavar="FILE", help="measure the embedder of this config")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, as with streamer run",
    )
    parser.add_argument("--model", default=MODEL, help="any timm model")
    parser.add_argument(
        "--weights", metavar="FILE", help="its checkpoint: a path, hf://… or https://…#sha256=…"
    )
    parser.add_argument("--features", default="auto", choices=("auto", "pool", "head"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--device", help="where the model computes: cpu or cuda:N")
    parser.add_argument("--batch", type=int, default=64)


def config_of(given: argparse.Namespace, folder: Path) -> Config:
    """The config whose embedder is measured."""
    if given.config is not None:
        loaded = load(given.config, given.set, os.environ)
        return loaded.model_copy(
            update={"heads": (), "dedup": None, "device": given.device or loaded.device}
        )
    chosen: dict[str, Any] = {
        "type": "timm",
        "model": given.model,
        "features": given.features,
        "precision": given.precision,
    }
    if given.weights is not None:
        chosen |= {"pretrained": False, "checkpoint": given.weights}
    elif given.model == MODEL:
        chosen |= {
            "pretrained": False,
            "checkpoint": str(write_demo_checkpoint(folder / "weights.safetensors")),
        }
    return parse({
        "dataset": "benchmark", "kafka": {"bootstrap_servers": "none:1", "topic": "none"}, "embedder": chosen,
        "output": {"path": str(folder)}, "device": given.device or "auto",
    })  # fmt: skip


def eye_of(given: argparse.Namespace) -> tuple[Eye, Config]:
    """What sees, and the config that says how. Ends the process where there is no such model."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = config_of(given, Path(folder))
            return Eye(load_model(config), given.batch), config
        except StreamerError as error:
            raise SystemExit(str(error)) from None


class Eye:
    """Image bytes → what the embedder makes of them, as on the line: header, draft mode, transform,
    forward, fp16."""

    def __init__(self, model: Model, batch: int) -> None:
        self._model, self._batch, self._limits, self.dim = model, batch, Decode(), model.dim
        set_up(self._limits.max_pixels)

    def vectors(self, images: Iterable[bytes], total: int) -> F16:
        """(n, d) L2-normalised fp16."""
        found: list[F16] = []
        done, images = 0, iter(images)
        with ThreadPoolExecutor(2) as pool:
            while batch := list(islice(images, self._batch)):
                result = self._model.submit(list(pool.map(self._pixels, batch))).result()
                assert result.embedded.all(), "a vector of no length"
                found.append(result.embeddings)
                done += len(batch)
                print(
                    f"{done} of {total} embedded",
                    end="\r" if sys.stderr.isatty() and done < total else "\n",
                    file=sys.stderr,
                    flush=True,
                )
        return np.concatenate(found)

    def _pixels(self, data: bytes) -> np.ndarray:
        embedder = self._model.embedder
        return embedder.transform(
            decode_rgb(data, read_header(data, self._limits), embedder.draft_size)
        )

    def picture(self, data: bytes) -> Picture:
        """In full size. Raises InvalidRecord."""
        return decode_rgb(data, read_header(data, self._limits), (0, 0))

    def can_see(self, photo: Photo) -> bool:
        """What cannot be decoded is named and left out."""
        try:
            self.picture(photo.data)
        except InvalidRecord as error:
            print(f"{photo.name}: left out, {error}", file=sys.stderr)
            return False
        return True


def rounds(eye: Eye, photos: Sequence[Photo], copies: int, cache: Path | None) -> F16:
    """(photographs × (1 + copies), d): all photographs, then all of them edited in one way after
    the other: `EDITS`, then `at_random`.

    ``cache``: a .npy that is written after each round; what it holds is not computed again, and a
    longer one is cut.
    """
    done: F16 | None = np.load(cache) if cache is not None and cache.exists() else None
    first, rest = divmod(0 if done is None else len(done), len(photos))
    if rest:
        raise SystemExit(
            f"{cache}: holds no whole number of vectors for each of {len(photos)} photographs; is it of others?"
        )
    for number in range(first, 1 + copies):
        print(f"round {number} of {copies}", file=sys.stderr, flush=True)
        vectors = eye.vectors(
            (_in_round(eye, photo, row, number) for row, photo in enumerate(photos)), len(photos)
        )
        done = vectors if done is None else np.concatenate([done, vectors])
        if cache is not None:
            part = cache.with_suffix(".part.npy")
            np.save(part, done)
            part.replace(cache)
    assert done is not None
    return done[: len(photos) * (1 + copies)]


def _in_round(eye: Eye, photo: Photo, row: int, number: int) -> bytes:
    if number == 0:
        return photo.data
    named = list(EDITS.values())
    edit, quality = (
        named[number - 1]
        if number <= len(named)
        else at_random(random.Random(f"{SEED} {number} {row}"))
    )
    return encoded(edit(eye.picture(photo.data)), "jpg", quality=quality)
