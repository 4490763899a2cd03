"""The resize on a GPU (`resize.cu`): Pillow's pixels, bit for bit, of images of many sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch

from streamer.model.geometry import Geometry, is_resized_down_first
from streamer.model.jpeg.cuda import address, kernels, launching, uploaded
from streamer.model.jpeg.source import Source

_AXIS = np.dtype(
    [
        *((name, np.int64) for name in ("step", "out_step", "coefficients")),
        *((name, np.int32) for name in ("size", "resized", "offset", "outputs", "taps", "unused")),
    ]
)
IMAGE = np.dtype(
    [
        ("axes", _AXIS, 2),
        ("pixels", np.int64),
        ("halfway", np.int64),
        ("first", np.int32),
        ("count", np.int32),
    ]
)
"""`Axis` and `Image` of resize.cu"""
_THREADS = 256
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of a filter, in pixels of the smaller image."""


def resize(
    sources: Sequence[Source], geometry: Geometry, stream: torch.cuda.Stream
) -> torch.Tensor:
    """n ≥ 1 images of any size → (n, height, width, 3) uint8 on the stream's device.

    Queues three launches on ``stream`` and returns; the images must live until they are done. The
    result belongs to ``stream``.
    """
    images, coefficients, nbytes = plan(sources, geometry)
    n, device = len(images), stream.device
    cubic = np.int32(geometry.filter == "bicubic")
    with torch.cuda.stream(stream):
        table = uploaded(images, device)
        weights = torch.empty(coefficients, dtype=torch.int32, device=device)
        halfway = torch.empty(nbytes, dtype=torch.uint8, device=device)
        out = torch.empty((n, geometry.height, geometry.width, 3), dtype=torch.uint8, device=device)
    weigh, pass_0, pass_1 = kernels("resize.cu", ("weigh", "pass_0", "pass_1"), device.index)
    at, weights_at, halfway_at = address(table), address(weights), address(halfway)
    lines, outputs = int(images["count"].max()), max(geometry.height, geometry.width)
    fill = np.int32(int.from_bytes(bytes(geometry.fill), "big"))
    with launching(stream):
        weigh((2, n), (_THREADS,), (at, weights_at, cubic))
        pass_0((lines, n), (_THREADS,), (at, weights_at, halfway_at, cubic))
        pass_1(
            (outputs, n),
            (_THREADS,),
            (at, weights_at, halfway_at, address(out), np.int64(out[0].numel()), cubic, fill),
        )
    return out


def plan(
    sources: Sequence[Source], geometry: Geometry
) -> tuple[np.ndarray[Any, np.dtype[np.void]], int, int]:
    """(n,) of `IMAGE`, how many coefficients there are, and the bytes between the passes."""
    fits = [_fit(s.rows, s.columns, s.pitch, s.orientation, geometry) for s in sources]
    images = np.frombuffer(bytearray(b"".join(fit.image for fit in fits)), IMAGE)
    weights = np.array([fit.coefficients for fit in fits])
    halfway = np.array([fit.halfway for fit in fits])
    begins = np.cumsum(weights) - weights
    images["axes"]["coefficients"] += begins[:, None]
    images["halfway"] = np.cumsum(halfway) - halfway
    images["pixels"] += np.array([source.address for source in sources])
    return images, int(weights.sum()), int(halfway.sum())


class _Fit(NamedTuple):
    image: bytes
    """`IMAGE`, as the only one, with its pixels at 0"""
    coefficients: int
    halfway: int


@lru_cache(maxsize=4096)
def _fit(rows: int, columns: int, pitch: int, orientation: int, geometry: Geometry) -> _Fit:
    """All that follows from an image's size."""
    origin, down, across = _steps(rows, columns, pitch, orientation)
    height, width = (columns, rows) if orientation > 4 else (rows, columns)
    fit = geometry.place(height, width)
    support = _SUPPORT[geometry.filter]
    axes = [
        (across, 3, width, fit.width, fit.left, geometry.width),
        (down, 3 * geometry.width, height, fit.height, fit.top, geometry.height),
    ]
    if is_resized_down_first(height, width, fit):
        axes.reverse()
    table, coefficients = [], 0
    for step, out_step, size, resized, offset, outputs in axes:
        taps = ceil(support * max(size / resized, 1.0)) * 2 + 1
        table.append((step, out_step, coefficients, size, resized, offset, outputs, taps, 0))
        coefficients += outputs * taps
    _, _, size, resized, offset, outputs = axes[1]
    first, end = _needed(size, resized, offset, outputs, support)
    halfway = 3 * axes[0][5] * (end - first)
    image = np.array((table, origin, 0, first, end - first), IMAGE)
    return _Fit(image.tobytes(), coefficients, halfway)


def _steps(rows: int, columns: int, pitch: int, orientation: int) -> tuple[int, int, int]:
    """(origin, down, across) in bytes: the pixel (y, x) of the upright image is at origin
    + y · down + x · across."""
    last_row, last_column = (rows - 1) * pitch, 3 * (columns - 1)
    return {
        2: (last_column, pitch, -3),
        3: (last_row + last_column, -pitch, -3),
        4: (last_row, -pitch, 3),
        5: (0, 3, pitch),
        6: (last_row, 3, -pitch),
        7: (last_row + last_column, -3, -pitch),
        8: (last_column, -3, pitch),
    }.get(orientation, (0, pitch, 3))


def _needed(size: int, resized: int, offset: int, outputs: int, support: float) -> tuple[int, int]:
    """(first, end) of an axis's pixels that the crop is made of."""
    scale = size / resized
    support *= max(scale, 1.0)
    low, high = max(offset, 0), min(offset + outputs, resized) - 1
    first = max(int((low + 0.5) * scale - support + 0.5), 0)
    return first, min(int((high + 0.5) * scale + support + 0.5), size)
