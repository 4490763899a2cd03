"""The backend on the CPU: numpy, and Faiss's inverted lists in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamer.dedup.arithmetic import widen
from streamer.dedup.backend import Prepared, Queries
from streamer.dedup.cells import Bounds, cells_of, lengths_of, needed, probe
from streamer.dedup.exact import ExactTail
from streamer.dedup.index import Resident
from streamer.dedup.lists import Lists
from streamer.dedup.sketch import Sketch
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, F64, I64

ROWS = 512
"""Rows of one product in float32, a divisor of the store's `BLOCK`: small enough to stay in the
cache."""


class HostBackend:
    """See `Backend`. A merge holds a search up for about a millisecond."""

    train_at = 16_384
    merge_rows = 2048
    list_rows = 64

    def queries(self, vectors: F16, resident: Resident | None) -> Queries:
        wide = widen(vectors)
        return Queries(wide, wide)

    def tail(self, store: WinnerStore, threshold: float) -> HostTail:
        return HostTail(store, threshold)

    def cells(self, sketch: Sketch, centroids: F32, threshold: float) -> HostCells:
        return HostCells(sketch, centroids, threshold)


class HostTail(ExactTail):
    """The store itself is what is searched, from a multiple of `ROWS` on: its codes nominate."""

    span = 8 * ROWS

    @property
    def held(self) -> None:
        return None

    def add(self, vectors: F16) -> None:
        """They are in the store."""

    def _keys(self, keys: F32, view: Winners) -> F32:
        return view.sketch.codes(keys)

    def _nominate(
        self, keys: F32, held: None, view: Winners, low: int, high: int
    ) -> tuple[I64, I64]:
        queries = np.zeros(len(keys), np.bool_)
        rows = np.zeros(high - low, np.bool_)
        for first in range(low, high, ROWS):
            ((_, block, here),) = view.spans(first, min(first + ROWS, high))
            near = keys @ block.codes[here].T >= self._threshold - view.sketch.slack
            if near.any():
                queries |= near.any(axis=1)
                rows[first - low : first - low + ROWS] = near.any(axis=0)
        return np.flatnonzero(queries), np.flatnonzero(rows) + low


class HostCells:
    """See `CellIndex`."""

    def __init__(self, sketch: Sketch, centroids: F32, threshold: float) -> None:
        self.sketch = sketch
        self.centroids = centroids
        self._cells = cells_of(sketch, centroids)
        self._threshold = threshold - sketch.slack
        self._bounds = Bounds(len(centroids))
        self._lists = Lists(centroids)

    @property
    def sizes(self) -> I64:
        return self._bounds.sizes

    def prepare(self, vectors: F16, cells: I64 | None) -> Prepared:
        codes = self.sketch.codes(widen(vectors))
        if cells is None:
            cells, products = self._cells.assign(codes)
        else:
            products = np.einsum("ij,ij->i", codes, self.centroids[cells])
        return Prepared(cells, codes, products, lengths_of(codes))

    def add(self, rows: I64, prepared: Prepared) -> None:
        self._lists.add(prepared.codes, rows, prepared.cells)
        self._bounds.include(prepared.cells, prepared.products, prepared.lengths)

    def nominate(
        self, queries: Queries, rho: F32, rows_in: Callable[[int], I64]
    ) -> tuple[I64, I64]:
        codes = self.sketch.codes(queries.keys)
        at, cells = probe(self._cells, self._bounds, codes, self._threshold, rho)
        return self._lists.scan(codes, at, cells, self.sizes, self._threshold)

    def needed(self, queries: Queries, asking: I64, cells: I64) -> F64:
        return needed(
            self._cells,
            self._bounds,
            self.sketch.codes(queries.keys[asking]),
            self._threshold,
            cells,
        )
