"""A plugin: the image itself, shrunk to 16×16, as its vector. Enough to find copies, resized and
re-encoded ones too.

embedder: {type: "downscaled:Downscaled", args: {side: 16}}      # in the folder where `streamer run` starts
"""

import numpy as np
import torch
from PIL import Image

from streamer import ImageEmbedder


class Downscaled(ImageEmbedder):
    normalized = True
    family = "downscaled"

    def __init__(self, side: int = 16) -> None:
        self.dim = 3 * side * side
        self.fingerprint = f"downscaled-{side}"
        self.side = side

    def transform(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BOX))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.flatten(1).float()
        return torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
