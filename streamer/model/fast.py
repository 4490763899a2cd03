"""``decode.pixels: fast``: the resize of PyTorch instead of Pillow's, at a quarter of the cost.

Its kernel for 8 bits antialiases with the same filters, in fixed point with fewer bits: of
photographs 0.3 % of the values differ, by at most 2. It computes in integers, so all machines get
the same pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from streamer.model.geometry import Geometry, is_resized_down_first
from streamer.records import U8


@torch.inference_mode()
def resize(image: Image.Image, geometry: Geometry) -> U8:
    """RGB → (height, width, 3) uint8. Any thread; on one core, without the GIL."""
    fit = geometry.place(image.height, image.width)
    pixels = np.array(image)
    if is_resized_down_first(image.height, image.width, fit):
        # The kernel takes the width first, and rounds in between
        turned = _resized(
            np.ascontiguousarray(pixels.swapaxes(0, 1)), fit.width, fit.height, geometry
        )
        resized = turned.transpose(0, 1)
    else:
        resized = _resized(pixels, fit.height, fit.width, geometry)
    rows, columns = max(fit.top, 0), max(fit.left, 0)
    cut: U8 = resized[rows : rows + geometry.height, columns : columns + geometry.width].numpy()
    if cut.shape[:2] == (geometry.height, geometry.width):
        return np.ascontiguousarray(cut)
    framed = np.empty((geometry.height, geometry.width, 3), np.uint8)
    framed[:] = geometry.fill
    top, left = max(-fit.top, 0), max(-fit.left, 0)
    framed[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return framed


def _resized(pixels: U8, height: int, width: int, geometry: Geometry) -> torch.Tensor:
    """(rows, columns, 3) → (height, width, 3)"""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(
        image, size=(height, width), mode=geometry.filter, antialias=True
    )[0].permute(1, 2, 0)
