"""The base of an index: rows of the store in the cells of one training."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from streamer.dedup.backend import CellIndex, Queries
from streamer.dedup.store import Winners
from streamer.records import F32, F64, I64


class Base:
    """Rows ``first`` to ``rows`` of the store. One thread at a time grows it by `append`; ``lock``
    is for that and for `nominate`."""

    def __init__(self, cells: CellIndex, first: int, trained_on: int) -> None:
        """``trained_on``: how many rows there were when the centroids were made."""
        self.cells = cells
        self.first = self.rows = first
        self.trained_on = trained_on
        self.lock = threading.Lock()
        self._cells = np.empty(0, np.int32)
        self._queries = self._nominees = 0.0

    def append(self, view: Winners, high: int, cells: I64 | None = None) -> None:
        """Rows up to ``high`` of the view, but for those that were evicted meanwhile; ``cells``
        where they are known.

        Blocks while codes are made; takes the lock only to put them into the lists.
        """
        if view.first > self.rows:  # a multiple of `BLOCK`, and so of what is appended at once
            self._skip(view.first)
        low = self.rows
        if low >= high:
            return
        prepared = self.cells.prepare(view.slice(low, high), cells)
        self._make_room(high)
        with self.lock:
            self._cells[low - self.first : high - self.first] = prepared.cells
            self.cells.add(np.arange(low, high), prepared)
            self.rows = high

    def _skip(self, high: int) -> None:
        self._make_room(high)
        with self.lock:
            self.rows = high

    def _make_room(self, high: int) -> None:
        if high - self.first > len(self._cells):
            self._cells = np.concatenate(
                [self._cells, np.full(max(len(self._cells), high - self.rows), -1, np.int32)]
            )

    def nominate(self, queries: Queries, rho: F32) -> tuple[I64, I64]:
        """See `CellIndex.nominate`. Under the lock."""
        return self.cells.nominate(queries, rho, self._rows_in)

    def _rows_in(self, cell: int) -> I64:
        rows: I64 = np.flatnonzero(self._cells[: self.rows - self.first] == cell) + self.first
        return rows

    def needed(self, queries: Queries, asking: I64, rows: I64) -> F64:
        """(m,) numbers of queries, and (m,) rows that match them → (m,) the least ρ that finds
        each. Any thread."""
        return self.cells.needed(queries, asking, self._cells[rows - self.first].astype(np.int64))

    def cells_until(self, rows: int) -> npt.NDArray[np.int32]:
        """Of the rows from ``first`` on; −1 where a row was evicted before it had one. They never
        change."""
        return self._cells[: rows - self.first]

    def count(self, queries: int, nominees: int) -> None:
        """For so many queries so many rows were nominated in vain; what is long ago counts less.
        Any thread; a lost count does no harm."""
        self._queries, self._nominees = (
            0.999 * self._queries + queries,
            0.999 * self._nominees + nominees,
        )

    @property
    def nominees(self) -> float:
        """Rows for each query that were nominated and were not its answer."""
        return self._nominees / max(self._queries, 1.0)

    def imbalance(self) -> float:
        """What a scan of one row's cell costs, against cells of equal size."""
        sizes = self.cells.sizes.astype(np.float64)
        return float((sizes**2).sum() * len(sizes) / sizes.sum() ** 2) if sizes.any() else 1.0
