"""An image in any of Pillow's modes → 8-bit RGB over white.

It works in strips, so that a large image needs memory only for itself and the result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from streamer.decode.prepared import Samples
from streamer.records import U8

_STRIP_PIXELS = 1_000_000


def to_rgb(image: Image.Image, samples: Samples) -> Image.Image:
    """``image`` itself if it is RGB and opaque."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    spread = _spread(image, samples) if image.mode in ("I", "F") else (0.0, 0.0)
    boxes = strips(image.size)
    if len(boxes) == 1:
        return _strip_rgb(image, samples, spread)
    result = Image.new("RGB", image.size)
    for box in boxes:
        result.paste(_strip_rgb(image.crop(box), samples, spread), box)
    return result


def strips(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of strips of about a million pixels that cover an image of
    ``size`` (width, height), from top to bottom."""
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    return [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]


def _strip_rgb(image: Image.Image, samples: Samples, spread: tuple[float, float]) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        levels = _sixteen_to_eight(samples)[np.asarray(image).astype(np.uint16, copy=False)]
        return Image.fromarray(levels).convert("RGB")
    if mode in ("I", "F"):
        darkest, scale = spread
        values = (_values(image, samples) - np.float32(darkest)) * np.float32(scale)
        levels = np.rint(values).astype(np.uint8)
        return Image.fromarray(255 - levels if samples.white_is_zero else levels).convert("RGB")
    if samples.transparent and mode in ("1", "L"):
        return image.convert("L").point(_with_white(samples)).convert("RGB")
    if image.has_transparency_data:
        if mode == "La":
            image = image.convert("LA")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


@lru_cache(maxsize=4)
def _sixteen_to_eight(samples: Samples) -> U8:
    """(65536,) the level of each value"""
    levels = np.arange(65_536) * (255 / ((1 << samples.bits) - 1))
    table: U8 = np.rint(np.minimum(levels, 255)).astype(np.uint8)
    if samples.white_is_zero:
        table = 255 - table
    table[list(samples.transparent)] = 255
    return table


def _with_white(samples: Samples) -> list[int]:
    """(256) the level of each level, where Pillow has spread `Samples.bits` over 0 … 255"""
    transparent = samples.transparent[0] * 255 // ((1 << samples.bits) - 1)
    return [255 if level == transparent else level for level in range(256)]


def _values(image: Image.Image, samples: Samples) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.asarray(image)
    if samples.unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)
    return np.nan_to_num(values.astype(np.float32))


def _spread(image: Image.Image, samples: Samples) -> tuple[float, float]:
    """(d, s): a value v of a 32-bit image is the level (v − d) · s."""
    low, high = np.inf, -np.inf
    for box in strips(image.size):
        values = _values(image.crop(box), samples)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    whole = image.mode == "I"
    if low < 0 or high > (65_535 if whole else 255):
        return low, 255 / max(high - low, 1e-30)
    if high <= (255 if whole else 1):
        return 0.0, 1.0 if whole else 255.0
    return 0.0, 1 / 257 if whole else 1.0
