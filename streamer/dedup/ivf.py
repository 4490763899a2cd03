"""The index of two tiers: newest winners exactly, all others in Faiss's inverted lists, which follow the data as it grows and drifts.

    tail     rows that are in no list yet, compared one by one (`ExactIndex`)
    base     rows in k-means cells; `streamer.dedup.cells` says which of them a query has to look into

Both only nominate, by codes that miss nothing (`streamer.dedup.sketch`); float64 decides. So training, merging and when either happens
change what a search costs and never what it finds. The one exception is asked for: with ``calibrated`` the base looks into fewer cells.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from streamer.dedup.arithmetic import widen
from streamer.dedup.calibration import Calibration
from streamer.dedup.cells import Bounds, Cells, cells_of, lengths_of, needed, probe, trained
from streamer.dedup.exact import QUERIES, ExactIndex, decide_pairs
from streamer.dedup.index import Found, nothing_found
from streamer.dedup.lists import CpuLists, Lists
from streamer.dedup.sketch import Sketch, fitted
from streamer.dedup.store import BLOCK, Winners, WinnerStore
from streamer.records import F16, F32, I64

TRAIN_AT = 16_384
MERGE = 2048
"""Rows that move from the tail to the base at once: a merge holds a search up for about a millisecond."""
KEEP_CODES = 4 * BLOCK
"""Newest rows whose codes stay in the store: those of the tail, and of the meld's conflict zone."""
SAMPLE = 65_536
SKETCH_SAMPLE = 8192
GROWTH = 4
WORN = 1.5
"""Growth before which nothing but eviction is a reason to train again."""
IMBALANCE = 2.0
NOMINEES = 8.0
"""Rows that float64 had to decide on for each query, above which the codes tell vectors apart too badly."""


class IvfIndex:
    """`WinnerIndex` whose `maintain` belongs to a thread of its own."""

    def __init__(
        self,
        store: WinnerStore,
        threshold: float,
        calibration: Calibration | None = None,
        train_at: int = TRAIN_AT,
        make_lists: Callable[[F32], Lists] = CpuLists,
    ) -> None:
        """``calibration``: None searches ``certified``, as brute force finds. ``train_at``: winners at which cells are first made."""
        self.store = store
        self._threshold = threshold
        self._calibration = calibration
        self._train_at = train_at
        self._make_lists = make_lists
        self._tail = ExactIndex(store, threshold)
        self._base: Base | None = None
        self._longest_wait = 0.0
        self._trainings = 0

    # The claims thread

    def add(self, vectors: F16, positions: I64) -> None:
        """The rows are in the tail. Frees codes that the base has made useless."""
        base = self._base
        if base is not None:
            self.store.forget_codes(min(base.rows, self.store.view.rows - KEEP_CODES))

    # Any thread

    def search(self, vectors: F16) -> Found:
        found = nothing_found(len(vectors))
        for at in range(0, len(vectors), QUERIES):
            part = slice(at, at + QUERIES)
            self._search(widen(vectors[part]), found.part(part))
        return found

    def _search(self, wide: F32, found: Found) -> None:
        view = self.store.view  # before the base: what the base covers by then may have no codes in the view
        base = self._base
        covered = view.first
        if base is not None:
            covered = self._search_base(base, wide, view, found)
        self._tail.search_rows(wide, view, covered, found)

    def _search_base(self, base: Base, wide: F32, view: Winners, found: Found) -> int:
        """Rows below the answer were compared."""
        n = len(wide)
        rho, audited = (np.ones(n, np.float32), None) if self._calibration is None else self._calibration.draw(n)
        began = time.monotonic()
        with base.lock:
            self._longest_wait = max(self._longest_wait, time.monotonic() - began)
            covered = base.rows
            queries, rows = base.nominate(wide, rho)
        matched = decide_pairs(wide, queries, rows, view, self._threshold, found)
        base.count(n, len(rows) - len(matched))
        if self._calibration is not None and audited is not None:
            # Copies lie in the query's own cell: learning from them would teach to look nowhere else.
            hits = audited[matched[:, 0]] & (found.similarity[matched[:, 0]] < (1 + self._threshold) / 2)
            self._calibration.learn(base.needed(wide[matched[hits, 0]], matched[hits, 1]))
        return covered

    def gauges(self) -> Mapping[str, float]:
        """Values for metrics, by name."""
        base, view = self._base, self.store.view
        recall, low = (1.0, 1.0) if self._calibration is None else self._calibration.recall()
        return {
            "base_vectors": 0 if base is None else base.rows - max(base.first, view.first),
            "lists": 0 if base is None else len(base.cells.centroids),
            "imbalance": 1.0 if base is None else base.imbalance(),
            "trainings": self._trainings,
            "longest_wait_seconds": self._longest_wait,
            "rho": 1.0 if self._calibration is None else self._calibration.rho,
            "recall": recall,
            "recall_low": low,
        }

    # The maintenance thread

    def maintain(self) -> bool:
        """One step of upkeep: trains, or merges a part of the tail. False: there was nothing to do. Blocks while it trains (seconds)."""
        view, base = self.store.view, self._base
        if base is None:
            if view.rows - view.first < self._train_at:
                return False
            self._train(view)
            return True
        if base.is_worn(view):
            self._train(view)
            return True
        return self._merge(base)

    def _merge(self, base: Base) -> bool:
        view = self.store.view
        if view.rows - base.rows < MERGE:
            return False
        base.append(view, base.rows + MERGE)
        return True

    def _train(self, view: Winners) -> None:
        rng = np.random.default_rng(view.rows)
        count = view.rows - view.first
        rows = np.sort(rng.choice(count, min(count, SAMPLE), replace=False)) + view.first
        sample = widen(view.vectors(rows))
        sketch = fitted(sample[rng.permutation(len(sample))[:SKETCH_SAMPLE]])
        cells = trained(sketch, sketch.codes(sample), lists_for(count))
        self._replace(Base(cells, self._threshold, self._make_lists(cells.centroids), view.first, count))

    def _replace(self, base: Base) -> None:
        """Fills the new base; the old one goes on until then."""
        while self._merge(base):
            if self._base is not None:
                self._merge(self._base)
        self._base = base
        self._trainings += 1

    # A snapshot

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs to spare the next process the training: the sketch, the centroids, each row's cell. Any thread."""
        base = self._base
        needed = {} if self._calibration is None else {"needed": self._calibration.state}
        if base is None:
            return needed
        sketch, rows = base.cells.sketch, base.rows
        return needed | {
            "basis": sketch.basis,
            "rounding": np.array([sketch.pad, sketch.slack]),
            "centroids": base.cells.centroids,
            "cells": base.cells_until(rows),
            "first": np.array([base.first, base.trained_on]),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what another process's `state` says of the rows that are in the store now. Before any other thread."""
        if self._calibration is not None and "needed" in state:
            self._calibration = Calibration(np.asarray(state["needed"], np.float64))
        if "cells" not in state:
            self.store.make_codes(0)
            return
        pad, slack = state["rounding"].tolist()
        cells = cells_of(Sketch(np.asarray(state["basis"]), pad, slack), np.asarray(state["centroids"]))
        first, trained_on = state["first"].tolist()
        view, end = self.store.view, first + len(state["cells"])
        base = Base(cells, self._threshold, self._make_lists(cells.centroids), max(first, view.first), trained_on)
        while base.rows < end:
            low, high = base.rows, min(base.rows + BLOCK, end)
            base.append(view, high, state["cells"][low - first : high - first].astype(np.int64))
        self._base = base
        self.store.make_codes(max(min(base.rows, view.rows - KEEP_CODES), 0))


class Base:
    """Rows ``first`` to ``rows`` of the store in the lists of one training. Grows by `append`; searched and grown under ``lock``."""

    def __init__(self, cells: Cells, threshold: float, lists: Lists, first: int, trained_on: int) -> None:
        """``trained_on``: how many rows there were when the centroids were made."""
        self.cells = cells
        self.first = self.rows = first
        self.trained_on = trained_on
        self.lock = threading.Lock()
        self._threshold = threshold - cells.sketch.slack
        self._lists = lists
        self._bounds = Bounds(len(cells.centroids))
        self._cells = np.empty(0, np.int32)
        self._queries = self._nominees = 0.0

    def append(self, view: Winners, high: int, cells: I64 | None = None) -> None:
        """Rows up to ``high`` of the view, but for those that were evicted meanwhile; ``cells`` where they are known."""
        if view.first > self.rows:  # a multiple of `BLOCK`, and so of what is appended at once
            self._skip(view.first)
        low = self.rows
        if low >= high:
            return
        codes = self.cells.sketch.codes(widen(view.slice(low, high)))
        if cells is None:
            cells, products = self.cells.assign(codes)
        else:
            products = np.einsum("ij,ij->i", codes, self.cells.centroids[cells])
        lengths = lengths_of(codes)
        self._make_room(high)
        with self.lock:
            self._cells[low - self.first : high - self.first] = cells
            self._lists.add(codes, np.arange(low, high), cells)
            self._bounds.include(cells, products, lengths)
            self.rows = high

    def _skip(self, high: int) -> None:
        self._make_room(high)
        with self.lock:
            self.rows = high

    def _make_room(self, high: int) -> None:
        """Cells of the rows below ``high``; 0 until they are known."""
        if high - self.first > len(self._cells):
            self._cells = np.concatenate([self._cells, np.zeros(max(len(self._cells), high - self.rows), np.int32)])

    def nominate(self, wide: F32, rho: F32) -> tuple[I64, I64]:
        """(n, d) and (n,) ρ → pairs (queries, rows); with ρ = 1 every match of a query among the base's rows is one. Under the lock."""
        codes = self.cells.sketch.codes(wide)
        queries, cells = probe(self.cells, self._bounds, codes, self._threshold, rho)
        return self._lists.scan(codes, queries, cells, self._bounds.sizes, self._threshold)

    def needed(self, wide: F32, rows: I64) -> np.ndarray:
        """(n, d) queries, and (n,) rows that match them → (n,) the least ρ that finds each."""
        return needed(self.cells, self._bounds, self.cells.sketch.codes(wide), self._threshold, self.cell_of(rows))

    def cell_of(self, rows: I64) -> I64:
        cells: I64 = self._cells[rows - self.first].astype(np.int64)
        return cells

    def cells_until(self, rows: int) -> npt.NDArray[np.int32]:
        """Of the rows from ``first`` on. They never change."""
        return self._cells[: rows - self.first]

    def count(self, queries: int, nominees: int) -> None:
        """Of so many queries so many nominees were no match; what is long ago counts less."""
        self._queries, self._nominees = 0.999 * self._queries + queries, 0.999 * self._nominees + nominees

    def imbalance(self) -> float:
        """What a scan of one row's cell costs, against cells of equal size."""
        sizes = self._bounds.sizes.astype(np.float64)
        return float((sizes**2).sum() * len(sizes) / max(sizes.sum(), 1) ** 2)

    def is_worn(self, view: Winners) -> bool:
        """Is it time for new centroids?"""
        rows = self.rows - self.first
        if view.first - self.first > rows / 4:
            return True
        if rows < WORN * self.trained_on:
            return False
        return rows >= GROWTH * self.trained_on or self.imbalance() > IMBALANCE or self._nominees > NOMINEES * max(self._queries, 1)


def lists_for(rows: int) -> int:
    """4·√n, with at least 64 rows each."""
    return max(min(round(4 * math.sqrt(rows)), rows // 64), 1)
