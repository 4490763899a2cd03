"""Plug-ins that tell more than they should: what they raise quotes records and their own
arguments."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from streamer import Filter, Head
from tests.plugins.thumbnail import ThumbnailEmbedder


class Embedder(ThumbnailEmbedder):
    """Takes no image that is wider than four times its height."""

    def __init__(self, api_token: str = "") -> None:
        super().__init__()
        self._token = api_token

    def transform(self, image: Image.Image) -> np.ndarray:
        if image.width > 4 * image.height:
            raise ValueError(f"{self._token} does not open this")
        return super().transform(image)


class Brightness(Head):
    dim = 256

    def __init__(self, api_token: str, weights: str) -> None:
        pass

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings[:, 0]


class Judge(Filter):
    """Raises for every record with a text."""

    def __init__(self, password: str = "") -> None:
        self._password = password

    def keep(self, row: object) -> bool:
        if row.facts.text:  # type: ignore[attr-defined]
            raise ValueError(f"{self._password} cannot judge {row.facts.text}")  # type: ignore[attr-defined]
        return True
