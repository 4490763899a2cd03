"""examples/downscaled.py through the real loader: copies are near, other photographs are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from streamer.config import parse
from streamer.model.model import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_finds_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((EXAMPLES / "downscaled.py").read_text().splitlines()) <= 30
    monkeypatch.chdir(EXAMPLES)
    config = {
        "dataset": "d",
        "kafka": {"bootstrap_servers": "b", "topic": "t"},
        "embedder": {"type": "downscaled:Downscaled", "args": {"side": 16}},
        "output": {"path": "o"},
        "device": "cpu",
    }
    model = load_model(parse(config))
    cat, rocket = Image.fromarray(skimage.data.chelsea()), Image.fromarray(skimage.data.rocket())
    file = io.BytesIO()
    cat.resize((200, 133)).save(file, "JPEG", quality=40)
    pixels = [model.embedder.transform(i.convert("RGB")) for i in (cat, Image.open(file), rocket)]
    similarity = (v := model.submit(pixels).result().embeddings.astype(np.float32)) @ v.T
    assert model.dim == 768
    assert similarity[0, 1] > 0.99
    assert np.abs(similarity[2, :2]).max() < 0.9
