"""A very long image is cropped before it is resized: timm's own order would need gigabytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from streamer.model.timm import TimmImageEmbedder


@pytest.fixture(scope="module")
def embedder() -> TimmImageEmbedder:
    return TimmImageEmbedder("tf_efficientnet_lite0", pretrained=False)


@pytest.mark.parametrize("size", [(65_500, 1), (1, 65_500), (40_000, 30)])
def test_only_the_middle_is_resized(embedder: TimmImageEmbedder, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    seen: list[tuple[int, int]] = []
    geometry = embedder._geometry
    embedder._geometry = lambda small: seen.append(small.size) or geometry(small)
    try:
        pixels = embedder.transform(image)
    finally:
        embedder._geometry = geometry
    assert pixels.shape == (224, 224, 3)
    assert max(seen[0]) == 16 * min(seen[0])
    short = min(size)
    middle = (max(size) - 16 * short) // 2
    box = (
        (middle, 0, middle + 16 * short, short)
        if size[0] > size[1]
        else (0, middle, short, middle + 16 * short)
    )
    assert np.array_equal(pixels, embedder.transform(image.crop(box)))


def test_up_to_16_to_1_nothing_changes(embedder: TimmImageEmbedder) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 480, 3), dtype=np.uint8))
    assert np.array_equal(embedder.transform(image), np.asarray(embedder._geometry(image)))
