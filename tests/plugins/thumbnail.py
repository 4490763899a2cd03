"""A real, light embedder for tests of the line: the image's 16 × 16 grey thumbnail, mean removed.
Re-encodings stay near, others do not."""

from __future__ import annotations

import ctypes
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from streamer import Filter, ImageEmbedder


class ThumbnailEmbedder(ImageEmbedder):
    """So that a process can be met at work, `delay_ms` makes each batch slower, and each batch
    of the process whose id stands in the file `hold` waits while the file is there."""

    def __init__(self, delay_ms: float = 0.0, hold: str = "") -> None:
        self.dim = 256
        self.normalized = True
        self.family = "thumbnail"
        self.fingerprint = "thumbnail-16x16-v1"
        self.draft_size = (16, 16)
        self._delay_s = delay_ms / 1000
        self._hold = Path(hold)

    def transform(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((16, 16), Image.Resampling.BOX))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self._delay_s)
        while self._is_held():
            time.sleep(0.02)
        grey = pixels.float().mean(dim=3).flatten(1)
        return torch.nn.functional.normalize(grey - grey.mean(dim=1, keepdim=True), dim=1)

    def _is_held(self) -> bool:
        return self._hold.is_file() and self._hold.read_text() == str(os.getpid())


class PoisonedEmbedder(ThumbnailEmbedder):
    """A very wide image crashes it, with a very high one it hangs."""

    def transform(self, image: Image.Image) -> np.ndarray:
        if image.width > 3 * image.height:
            ctypes.string_at(0)
        while image.height > 3 * image.width:
            time.sleep(1)
        return super().transform(image)


class Moody(Filter):
    """Changes its mind: removes a random share of records, differently at every start of the
    process."""

    needs = "header"

    def __init__(self, share: float) -> None:
        self._share = share
        self._random = random.Random(os.getpid() * 7919 + time.time_ns())

    def keep(self, row: object) -> bool:
        return self._random.random() >= self._share


class LateMoody(Moody):
    """The same after the embedding."""

    needs = "scores"


class OtherEmbedder(ThumbnailEmbedder):
    """The same vectors under another fingerprint."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = "thumbnail-16x16-v2"


class BreakingEmbedder(ThumbnailEmbedder):
    """Fails for good after so many batches."""

    def __init__(self, after: int) -> None:
        super().__init__(delay_ms=100)
        self._left = after

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the accelerator fell off the bus")
        return super().embed(pixels)
