"""Brute force over all winners, on the CPU: the index until there are enough winners to train on, and the oracle of its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.dedup.arithmetic import contenders, similarities_of, widen
from streamer.dedup.index import Found, nothing_found
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, I64

QUERIES = 256
ROWS = 512
"""Rows of one product in float32, a divisor of the store's `BLOCK`: small enough to stay in the cache."""
PAIRS = 4096
"""Nominated pairs decided on at once."""


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
        view, found = self.store.view, nothing_found(len(vectors))
        for at in range(0, len(vectors), QUERIES):
            part = slice(at, at + QUERIES)
            self.search_rows(widen(vectors[part]), view, view.first, found.part(part))
        return found

    def search_rows(self, wide: F32, view: Winners, first: int, found: Found) -> None:
        """Fills in what is missing in ``found``, from rows of the view at or above ``first``, a multiple of `ROWS`.

        ``wide``: (n, d) float32. From the oldest winners to the newest: a query is done with its first match.
        """
        left = np.flatnonzero(found.winners < 0)
        if not len(left):
            return
        keys = self._keys(wide[left], view)
        for low in range(max(first, view.first), view.rows, self.span):
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

    def maintain(self) -> bool:
        return False

    def gauges(self) -> Mapping[str, float]:
        return {"rho": 1.0, "recall": 1.0, "recall_low": 1.0, "imbalance": 1.0}

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """All that it needs are the codes."""
        self.store.make_codes(0)

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


def decide_pairs(wide: F32, queries: I64, rows: I64, view: Winners, threshold: float, found: Found) -> I64:
    """Of nominated pairs fills in each query's lowest matching row: (n, d) float32, (k,) and (k,) → (m, 2) the queries and rows that matched."""
    known = (rows >= view.first) & (rows < view.rows)
    order = np.flatnonzero(known)[np.argsort(rows[known], kind="stable")]
    matched: list[tuple[int, int]] = []
    for low in range(0, len(order), PAIRS):
        part = order[low : low + PAIRS]
        part = part[found.winners[queries[part]] < 0]
        products = similarities_of(wide[queries[part]], view.vectors(rows[part]))
        for k in np.flatnonzero(products >= threshold).tolist():
            query, row = int(queries[part[k]]), int(rows[part[k]])
            if found.winners[query] < 0 and not view.is_removed(row):
                found.winners[query], found.similarity[query] = view.position(row), products[k]
                found.origins[query] = view.origin(row)
                matched.append((query, row))
    return np.array(matched, np.int64).reshape(-1, 2)
