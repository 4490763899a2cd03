"""What becomes of an image's size on the way into a network: resize, then crop or pad.

The numbers are those of timm's evaluation transform (`timm.data.transforms_factory`) and of the
torchvision functions that it calls; tests compare the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import PIL

Filter = Literal["bilinear", "bicubic"]
FILTERS: tuple[Filter, ...] = ("bilinear", "bicubic")


LONGEST = 16
"""Aspect ratio of the longest images that are resized as they are; of longer ones only the middle
is (`streamer.model.timm`)."""


class Placement(NamedTuple):
    """The image resized to ``height`` × ``width`` pixels, and the corner of the crop. A corner
    below 0 is in the border."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """How any image becomes one of ``height`` × ``width`` pixels."""

    height: int
    width: int
    scaled: tuple[int, int]
    """(height, width) that an image is resized to, or that one of its sides is fitted to."""
    mode: Literal["center", "squash", "border"]
    """center: the shorter side is fitted and the longer one is cut. squash: both sides are fitted.
    border: the longer side is fitted and the shorter one is padded."""
    filter: Filter
    fill: tuple[int, int, int]
    """RGB of the border"""

    @classmethod
    def of(cls, data_config: dict[str, Any]) -> Geometry | None:
        """That of timm's data config; None where it is none of this shape."""
        height, width = data_config["input_size"][1:]
        mode, filter = data_config["crop_mode"], data_config["interpolation"]
        if filter not in FILTERS or mode not in ("center", "squash", "border"):
            return None
        if data_config["input_size"][0] != 3 or data_config.get("crop_border_pixels"):
            return None
        percent = data_config["crop_pct"]
        scaled = math.floor(height / percent), math.floor(width / percent)
        mean = data_config["mean"] if mode == "border" else (0.0, 0.0, 0.0)
        red, green, blue = (round(255 * level) for level in mean)
        return cls(height, width, scaled, mode, filter, (red, green, blue))

    def place(self, height: int, width: int) -> Placement:
        """For an upright image of ``height`` × ``width`` pixels."""
        rows, columns = self._resized(height, width)
        return Placement(rows, columns, _offset(rows, self.height), _offset(columns, self.width))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.mode == "squash":
            return self.scaled
        if self.mode == "center" and self.scaled[0] == self.scaled[1]:
            side = self.scaled[0]
            if width <= height:
                return int(side * height / width), side
            return side, int(side * width / height)
        ratios = height / self.scaled[0], width / self.scaled[1]
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)


def _offset(resized: int, wanted: int) -> int:
    """Of the crop in the image, or, negative, of the image in it."""
    if wanted > resized:
        return -((wanted - resized) // 2)
    return round((resized - wanted) / 2)


_ORDERS = int(PIL.__version__.partition(".")[0]) >= 13
"""Pillow 13 and later may resize the columns first."""


def is_resized_down_first(height: int, width: int, to: Placement) -> bool:
    """Whether Pillow shrinks the height before the width, where it does either: the pixels are
    rounded in between, so the order is seen in the result."""
    if height == to.height or width == to.width:
        return False
    lost = height - to.height
    return _ORDERS and lost > 0 and lost > 2 * (width - to.width)
