"""Where a decoded image lies."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """An RGB image in the GPU's memory: (rows, columns, 3) uint8 as stored."""

    address: int
    pitch: int
    """Bytes from row to row"""
    rows: int
    columns: int
    orientation: int
    """EXIF's, 1 … 8, which the resize applies"""
