"""JPEGs of 640 × 480, each another part of a photograph at one of several scales, made by all
cores."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 640, 480
QUALITY = 85
"""About 45 KB each."""
SCALES = (1.2, 1.6, 2.2)
"""Of the whole photograph, in pictures."""
SEED = 3


def photographs(folder: Path | None) -> list[bytes]:
    """The JPEGs below the folder, in the order of their names; or the demo's photographs."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    import skimage

    data = Path(skimage.__file__).parent / "data"
    return [path.read_bytes() for path in sorted(data.glob("*.[jp][pn]g"))]


def pictures(originals: list[bytes], count: int) -> list[bytes]:
    """``count`` different JPEGs in random order, the same ones each time. To be called before
    torch starts threads or uses a GPU: it forks."""
    shares = np.bincount(np.arange(count) % len(originals)).tolist()
    tasks = [(originals[i], i, share) for i, share in enumerate(shares)]
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, len(tasks))) as pool:
        made = [jpeg for part in pool.imap(_parts, tasks) for jpeg in part]
    order = np.random.default_rng(SEED).permutation(len(made))
    return [made[i] for i in order]


def _parts(task: tuple[bytes, int, int]) -> list[bytes]:
    data, number, count = task
    rng = np.random.default_rng((SEED, number))
    return [_jpeg(part) for part in _cut(Image.open(io.BytesIO(data)).convert("RGB"), count, rng)]


def _cut(image: Image.Image, count: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    width, height = SIZE
    for share, scale in zip(np.bincount(np.arange(count) % len(SCALES)), SCALES, strict=False):
        whole = image.resize((round(width * scale), round(height * scale)))
        for _ in range(share):
            x = int(rng.integers(0, whole.width - width + 1))
            y = int(rng.integers(0, whole.height - height + 1))
            part = whole.crop((x, y, x + width, y + height))
            yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
