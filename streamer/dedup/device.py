"""The backend on a GPU: torch compares, Faiss's inverted lists scan, and vectors that a model has
just computed there never leave it for that.

All of it also runs on torch's CPU device, with Faiss's lists in memory, which is how it is tested
where there is no GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from streamer.dedup.arithmetic import rounding, widen
from streamer.dedup.backend import Queries
from streamer.dedup.device_cells import DeviceCells
from streamer.dedup.exact import ExactTail
from streamer.dedup.index import Found, Resident
from streamer.dedup.sketch import Sketch
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, I64

CHUNK = 65_536
"""Rows of one allocation: 64 MB at 512 dimensions."""
OVERLAP = 65_536
"""Rows that stay in the tail although the base has them, at least `DeviceBackend.merge_rows`: a
base that has just been trained has at most that many fewer than the last one."""


class DeviceBackend:
    """See `Backend`. Memory on the device: 2·d bytes for a winner of the tail, 2·w + 8 for one of
    the base, and about 250 MB for a search.

    All work is queued on one stream of a high priority: what is queued first is seen by what comes
    later, and a search does not wait for the model's next batch. Raises torch.OutOfMemoryError or
    RuntimeError where the device is full: the process cannot go on.
    """

    train_at = 1_000_000
    merge_rows = 16_384
    list_rows = 256

    def __init__(self, device: str) -> None:
        """``device``: ``cpu`` or ``cuda:N``; ``cuda`` is ``cuda:0``, as for the model: torch takes
        the two names for two devices."""
        named = torch.device(device)
        self._device = named if named.type == "cpu" else torch.device(named.type, named.index or 0)
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]

    def queries(self, vectors: F16, resident: Resident | None) -> Queries:
        with torch.cuda.stream(self._stream):
            if resident is not None and resident.tensor.device == self._device:
                keys = resident.tensor[torch.tensor(resident.rows, device=self._device)]
            else:
                keys = torch.tensor(vectors, device=self._device).float()
        return Queries(widen(vectors), keys)

    def tail(self, store: WinnerStore, threshold: float) -> DeviceTail:
        return DeviceTail(store, threshold, self._device, self._stream)

    def cells(self, sketch: Sketch, centroids: F32, threshold: float) -> DeviceCells:
        return DeviceCells(sketch, centroids, threshold, self._device, self._stream)


class Held(NamedTuple):
    """Rows ``first`` to ``rows`` of the store on the device."""

    first: int
    """A multiple of `CHUNK`."""
    rows: int
    chunks: tuple[torch.Tensor, ...]
    """(CHUNK, d) torch.float16 each; rows that were written never change"""


class DeviceTail(ExactTail):
    """`Tail` with the winners' fp16 vectors in device memory. Their float32 products nominate: fp16
    numbers are exact in TF32 as well."""

    span = 32_768

    def __init__(
        self,
        store: WinnerStore,
        threshold: float,
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        super().__init__(store, threshold)
        self._bound = threshold - rounding(store.dim)
        self._device = device
        self._stream = stream
        self._held = Held(0, 0, ())

    @property
    def held(self) -> Held:
        return self._held

    def add(self, vectors: F16) -> None:
        first, rows, chunks = self._held
        with torch.cuda.stream(self._stream):
            new = torch.tensor(vectors, device=self._device)
            while len(new):
                at = rows - first - CHUNK * (len(chunks) - 1)
                if not chunks or at == CHUNK:
                    chunks, at = (
                        (
                            *chunks,
                            torch.zeros(
                                (CHUNK, self.store.dim), dtype=torch.float16, device=self._device
                            ),
                        ),
                        rows % CHUNK,
                    )
                n = min(len(new), CHUNK - at)
                chunks[-1][at : at + n] = new[:n]
                new, rows = new[n:], rows + n
        self._held = Held(first, rows, chunks)

    def forget(self, below: int) -> None:
        view, (first, rows, chunks) = self.store.view, self._held
        super().forget(view.rows)  # codes nominate nothing here
        gone = max(min(max(below - OVERLAP, view.first) - first, rows - first) // CHUNK, 0)
        if gone:
            self._held = Held(first + gone * CHUNK, rows, chunks[gone:])

    def restore(self, first: int) -> None:
        view = self.store.view
        super().restore(view.rows)
        begin = max(
            (min(first, view.rows) - OVERLAP) // CHUNK * CHUNK, view.first
        )  # all of a chunk's rows, but for evicted ones
        self._held = Held(begin // CHUNK * CHUNK, begin, ())
        for _, block, here in view.spans(begin, view.rows):
            self.add(block.vectors[here])

    def search(self, queries: Queries, held: Held, view: Winners, first: int, found: Found) -> None:
        assert max(first, view.first) >= held.first, (
            f"this is a bug: rows {first} to {held.first} are nowhere"
        )
        with torch.cuda.stream(self._stream):
            super().search(
                queries, held, view._replace(rows=min(held.rows, view.rows)), first, found
            )

    def _keys(self, keys: torch.Tensor, view: Winners) -> torch.Tensor:
        return keys

    def _nominate(
        self, keys: torch.Tensor, held: Held, view: Winners, low: int, high: int
    ) -> tuple[I64, I64]:
        near = (
            torch.cat([keys @ part.float().T for part in _parts(held, low, high)], dim=1)
            >= self._bound
        )
        hits: Any = (
            torch.cat([near.any(dim=1), near.any(dim=0)]).cpu().numpy()
        )  # one copy: it waits for the device
        return np.flatnonzero(hits[: len(keys)]), np.flatnonzero(hits[len(keys) :]) + low


def _parts(held: Held, low: int, high: int) -> list[torch.Tensor]:
    """Rows ``low`` to ``high``, of one chunk each."""
    return [
        chunk[max(low - begin, 0) : min(high - begin, CHUNK)]
        for begin, chunk in zip(range(held.first, held.rows, CHUNK), held.chunks, strict=True)
        if begin < high and begin + CHUNK > low
    ]
