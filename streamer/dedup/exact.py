"""Brute force over the newest winners, all of them until there are enough to train on; and how
nominated pairs are decided on, on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from streamer.dedup.arithmetic import contenders, similarities_of, widen
from streamer.dedup.backend import Queries
from streamer.dedup.index import Found
from streamer.dedup.store import BLOCK, Winners, WinnerStore
from streamer.records import F32, I64

KEEP_CODES = 4 * BLOCK
"""Newest rows whose codes stay in the store: those of the tail, and of the meld's conflict zone."""
ROWS = 512
"""Nominated rows decided on at once."""
PAIRS = 4096
"""Nominated pairs decided on at once."""


class ExactTail(ABC):
    """`Tail` that compares every row: what `_nominate` names is decided in float64. Memory of a
    search: a few MB per thread on the host."""

    span: int
    """Winners nominated from before any is decided on."""

    def __init__(self, store: WinnerStore, threshold: float) -> None:
        self.store = store
        self._threshold = threshold

    def forget(self, below: int) -> None:
        """Frees codes that nobody compares any more."""
        self.store.forget_codes(min(below, self.store.view.rows - KEEP_CODES))

    def restore(self, first: int) -> None:
        self.store.make_codes(max(min(first, self.store.view.rows - KEEP_CODES), 0))

    def search(self, queries: Queries, held: Any, view: Winners, first: int, found: Found) -> None:
        """From the oldest winners to the newest: a query is done with its first match."""
        left = np.flatnonzero(found.winners < 0)
        if not len(left):
            return
        wide, keys = queries.wide[left], self._keys(queries.keys[left], view)
        for low in range(max(first, view.first), view.rows, self.span):
            asking, rows = self._nominate(keys, held, view, low, min(low + self.span, view.rows))
            if len(rows):
                done = np.zeros(len(left), np.bool_)
                for query, row, value in _decide(wide, asking, rows, view, self._threshold):
                    found.fill(int(left[query]), view, row, value)
                    done[query] = True
                wide, keys, left = wide[~done], keys[~done], left[~done]
                if not len(left):
                    return

    @abstractmethod
    def _keys(self, keys: Any, view: Winners) -> Any:
        """(n, d) `Queries.keys` → what `_nominate` compares: one row for each query."""

    @abstractmethod
    def _nominate(
        self, keys: Any, held: Any, view: Winners, low: int, high: int
    ) -> tuple[I64, I64]:
        """Queries and rows, each ascending, so that every pair of these rows at or above the
        threshold is one of both."""


def _decide(
    wide: F32, queries: I64, rows: I64, view: Winners, threshold: float
) -> list[tuple[int, int, float]]:
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


def decide_pairs(
    wide: F32, queries: I64, rows: I64, view: Winners, threshold: float, found: Found
) -> I64:
    """Of nominated pairs fills in each query's lowest matching row: (n, d) float32, (k,) and (k,) →
    (m, 2) the queries and these rows.

    Pairs may be in any order, and more than once. Rows that were evicted, or that the view does not
    have yet, are passed over.
    """
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
                found.fill(query, view, row, float(products[k]))
                matched.append((query, row))
    return np.array(matched, np.int64).reshape(-1, 2)
