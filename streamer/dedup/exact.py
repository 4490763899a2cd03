"""Brute force over all winners, on the CPU: the index until there are enough winners to train on, and the oracle of its tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamer.dedup.arithmetic import contenders, widen
from streamer.dedup.index import Found
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, I64

QUERIES = 256
ROWS = 512
"""Rows of one product in float32, a divisor of the store's `BLOCK`: small enough to stay in the cache."""


class ExactIndex:
    """`WinnerIndex` that searches the store itself: its codes nominate. Memory of a search: a few MB per thread."""

    span = 8 * ROWS
    """Winners nominated from before any is decided on."""

    def __init__(self, store: WinnerStore, threshold: float) -> None:
        self.store = store
        self._threshold = threshold

    def add(self, vectors: F16, positions: I64) -> None:
        """Nothing to do: the store is what is searched."""

    def search(self, vectors: F16) -> Found:
        view = self.store.view
        winners = np.full(len(vectors), -1, np.int64)
        similarity = np.full(len(vectors), np.nan)
        origins = np.full((len(vectors), 2), -1, np.int64)
        for at in range(0, len(vectors), QUERIES):
            part = slice(at, at + QUERIES)
            self._search(widen(vectors[part]), view, Found(winners[part], similarity[part], origins[part]))
        return Found(winners, similarity, origins)

    def _search(self, wide: F32, view: Winners, found: Found) -> None:
        """Fills in ``found``. From the oldest winners to the newest: a query is done with its first match."""
        keys, left = self._keys(wide, view), np.arange(len(wide))
        for low in range(view.first, view.rows, self.span):
            queries, rows = self._nominate(keys, view, low, min(low + self.span, view.rows))
            if len(rows):
                done = np.zeros(len(left), np.bool_)
                for query, row, value in _decide(wide[left], queries, rows, view, self._threshold):
                    found.winners[left[query]], found.similarity[left[query]] = view.position(row), value
                    found.origins[left[query]] = view.origin(row)
                    done[query] = True
                keys, left = keys[~done], left[~done]
                if not len(left):
                    return

    def _keys(self, wide: F32, view: Winners) -> Any:
        """What `_nominate` compares: one row for each query."""
        return view.sketch.codes(wide)

    def _nominate(self, keys: Any, view: Winners, low: int, high: int) -> tuple[I64, I64]:
        """Queries and rows, each ascending, so that every pair of these rows at or above the threshold is one of both."""
        queries = np.zeros(len(keys), np.bool_)
        rows = np.zeros(high - low, np.bool_)
        for first in range(low, high, ROWS):
            ((_, block, here),) = view.spans(first, min(first + ROWS, high))
            near = keys @ block.codes[here].T >= self._threshold - view.sketch.slack
            if near.any():
                queries |= near.any(axis=1)
                rows[first - low : first - low + ROWS] = near.any(axis=0)
        return np.flatnonzero(queries), np.flatnonzero(rows) + low


def _decide(wide: F32, queries: I64, rows: I64, view: Winners, threshold: float) -> list[tuple[int, int, float]]:
    """The lowest matching row of each query that has one: (query, row, similarity)."""
    rows = np.setdiff1d(rows, view.removed(int(rows[0]), int(rows[-1]) + 1), assume_unique=True)
    found = []
    for low in range(0, len(rows), ROWS):
        part = rows[low : low + ROWS]
        i, j, products = contenders(wide[queries], widen(view.vectors(part)), threshold)
        matches = products >= threshold
        matched = matches.any(axis=1)
        for k in np.flatnonzero(matched):
            first = int(matches[k].argmax())
            found.append((int(queries[i[k]]), int(part[j[first]]), float(products[k, first])))
        queries = np.delete(queries, i[matched])
    return found
