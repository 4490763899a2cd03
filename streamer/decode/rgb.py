"""An image in any of Pillow's modes → 8-bit RGB over white.

In strips, so that a large image needs no memory but for itself and the result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from streamer.decode.plain import Samples
from streamer.records import U8

_STRIP_PIXELS = 1_000_000


def to_rgb(image: Image.Image, samples: Samples, low: Image.Image | None = None) -> Image.Image:
    """``image`` itself where it is RGB and opaque. ``low``: the lower bytes of 16-bit RGB, where
    ``image`` has the upper ones; needed where one colour is transparent."""
    if image.mode == "RGB" and not samples.transparent and not image.has_transparency_data:
        return image
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    spread = _spread(image, samples, rows) if image.mode in ("I", "F") else (0.0, 0.0)
    if rows >= height:
        return _strip_rgb(image, samples, spread, low)
    result = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        strip = _strip_rgb(image.crop(box), samples, spread, low and low.crop(box))
        result.paste(strip, (0, top))
    return result


def _strip_rgb(
    image: Image.Image, samples: Samples, spread: tuple[float, float], low: Image.Image | None
) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        levels = _sixteen_to_eight(samples)[np.asarray(image).astype(np.uint16, copy=False)]
        return Image.fromarray(levels).convert("RGB")
    if mode in ("I", "F"):
        darkest, scale = spread
        values = (_values(image, samples) - np.float32(darkest)) * np.float32(scale)
        levels = np.rint(values).astype(np.uint8)
        return Image.fromarray(255 - levels if samples.white_is_zero else levels).convert("RGB")
    if samples.transparent:
        if mode == "RGB":
            return _without_colour(image, samples, low)
        if mode in ("1", "L"):
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


def _without_colour(image: Image.Image, samples: Samples, low: Image.Image | None) -> Image.Image:
    colour = np.array(samples.transparent)
    pixels = np.array(image)
    if low is None:
        transparent = (pixels == colour).all(axis=2)
    else:
        transparent = ((pixels == colour >> 8) & (np.asarray(low) == colour & 255)).all(axis=2)
    pixels[transparent] = 255
    return Image.fromarray(pixels)


def _values(image: Image.Image, samples: Samples) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.asarray(image)
    if samples.unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)
    return np.nan_to_num(values.astype(np.float32))


def _spread(image: Image.Image, samples: Samples, rows: int) -> tuple[float, float]:
    """(d, s): a value v of a 32-bit image is the level (v − d) · s."""
    low, high = np.inf, -np.inf
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        values = _values(image.crop(box), samples)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    whole = image.mode == "I"
    if low < 0 or high > (65_535 if whole else 255):
        return low, 255 / max(high - low, 1e-30)
    if high <= (255 if whole else 1):
        return 0.0, 1.0 if whole else 255.0
    return 0.0, 1 / 257 if whole else 1.0
