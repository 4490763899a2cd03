"""Brute force over all winners on a GPU: float32 products there nominate, float64 on the host decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamer.dedup.arithmetic import rounding
from streamer.dedup.exact import ExactIndex
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, I64

_FIRST_ROWS = 65_536


class DeviceIndex(ExactIndex):
    """`WinnerIndex` with the winners' fp16 vectors in device memory, in one tensor that doubles when it is full.

    All work is queued on the device's default stream, so a search sees every row whose copy was queued before it. Memory of a search:
    about 100 MB on the device.
    """

    span = 16_384

    def __init__(self, store: WinnerStore, threshold: float, device: str) -> None:
        super().__init__(store, threshold)
        self._bound = threshold - rounding(store.dim)
        self._device = torch.device(device)
        self._stream = torch.cuda.default_stream(self._device) if self._device.type == "cuda" else None
        self._rows = torch.empty((_FIRST_ROWS, store.dim), dtype=torch.float16, device=self._device)
        self._count = 0

    def add(self, vectors: F16, positions: I64) -> None:
        """Raises torch.OutOfMemoryError where the device is full: the process cannot go on."""
        with torch.cuda.stream(self._stream):
            count = self._count + len(vectors)
            rows = self._rows
            if count > len(rows):
                rows = torch.empty((max(2 * len(rows), count), rows.shape[1]), dtype=rows.dtype, device=self._device)
                rows[: self._count] = self._rows[: self._count]
            rows[self._count : count] = torch.tensor(vectors)
            self._rows, self._count = rows, count

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises torch.OutOfMemoryError where the device is full."""
        super().restore(state)
        view = self.store.view
        self._count = view.first
        for _, block, here in view.spans(view.first, view.rows):
            self.add(block.vectors[here], block.positions[here])

    def _keys(self, wide: F32, view: Winners) -> torch.Tensor:
        return torch.from_numpy(wide).to(self._device)

    def _nominate(self, keys: torch.Tensor, view: Winners, low: int, high: int) -> tuple[I64, I64]:
        with torch.cuda.stream(self._stream):
            near = keys @ self._rows[low:high].float().T >= self._bound
            queries, rows = near.any(dim=1).cpu().numpy(), near.any(dim=0).cpu().numpy()
        return np.flatnonzero(queries), np.flatnonzero(rows) + low
