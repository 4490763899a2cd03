"""The index in two parts: newest winners exactly, all others in Faiss's inverted lists, which
follow the data as it grows and drifts.

    tail     rows that are in no list yet, compared one by one
    base     rows in k-means cells, of which a query looks into those that its bounds leave (`streamer.dedup.cells`)

Where both are kept is a `Backend`: the host or a GPU. Both only nominate, by codes that miss
nothing (`streamer.dedup.sketch`); float64 decides. So training, merging and when either happens
change what a search costs and never what it finds. The one exception is asked for: with
``calibrated`` the base looks into fewer cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from streamer.dedup.arithmetic import widen
from streamer.dedup.backend import Backend, Queries
from streamer.dedup.base import Base
from streamer.dedup.calibration import Calibration
from streamer.dedup.cells import trained
from streamer.dedup.exact import decide_pairs
from streamer.dedup.index import Found, Resident, nothing_found
from streamer.dedup.sketch import Sketch, fitted
from streamer.dedup.store import BLOCK, Winners, WinnerStore
from streamer.records import F16, I64

AT_ONCE = 256
"""Queries that are searched for together: memory of a search grows with them."""
SAMPLE = 65_536
SKETCH_SAMPLE = 8192
GROWTH = 4
WORN = 1.5
"""Growth before which nothing but eviction is a reason to train again."""
IMBALANCE = 2.0
NOMINEES = 8.0
"""Rows nominated in vain for each query (`Base.nominees`), above which the codes tell vectors apart
too badly."""


class IvfIndex:
    """`WinnerIndex` whose `maintain` belongs to a thread of its own."""

    def __init__(
        self,
        store: WinnerStore,
        threshold: float,
        backend: Backend,
        calibration: Calibration | None = None,
        train_at: int | None = None,
    ) -> None:
        """``calibration``: None searches ``certified``, as brute force finds. ``train_at``: winners
        at which cells are first made."""
        self.store = store
        self._threshold = threshold
        self._backend = backend
        self._calibration = calibration
        self._train_at = backend.train_at if train_at is None else train_at
        self._tail = backend.tail(store, threshold)
        self._base: Base | None = None
        self._longest_wait = 0.0
        self._trainings = 0

    # The claims thread

    def add(self, vectors: F16, positions: I64) -> None:
        """The rows are in the tail, which gives up those that the base has."""
        self._tail.add(vectors)
        base = self._base
        self._tail.forget(0 if base is None else base.rows)

    # Any thread

    def search(self, vectors: F16, resident: Resident | None = None) -> Found:
        found = nothing_found(len(vectors))
        for at in range(0, len(vectors), AT_ONCE):
            part = slice(at, at + AT_ONCE)
            there = None if resident is None else Resident(resident.tensor, resident.rows[part])
            self._search(self._backend.queries(vectors[part], there), found.part(part))
        return found

    def _search(self, queries: Queries, found: Found) -> None:
        held = self._tail.held  # before the view, which has whatever it holds
        view = (
            self.store.view
        )  # before the base: what the base covers by then may be in no tail any more
        base = self._base
        covered = view.first
        if base is not None:
            covered = self._search_base(base, queries, view, found)
        self._tail.search(queries, held, view, covered, found)

    def _search_base(self, base: Base, queries: Queries, view: Winners, found: Found) -> int:
        """Rows below the answer were compared."""
        n = len(queries.wide)
        rho, audited = (
            (np.ones(n, np.float32), None)
            if self._calibration is None
            else self._calibration.draw(n)
        )
        began = time.monotonic()
        with base.lock:
            self._longest_wait = max(self._longest_wait, time.monotonic() - began)
            covered = base.rows
            asking, rows = base.nominate(queries, rho)
        matched = decide_pairs(queries.wide, asking, rows, view, self._threshold, found)
        base.count(n, len(rows) - len(matched))
        if self._calibration is not None and audited is not None:
            # Copies lie in the query's own cell: learning from them would teach to look nowhere
            # else.
            hits = audited[matched[:, 0]] & (
                found.similarity[matched[:, 0]] < (1 + self._threshold) / 2
            )
            self._calibration.learn(base.needed(queries, matched[hits, 0], matched[hits, 1]))
        return covered

    def gauges(self) -> Mapping[str, float]:
        """Values for metrics, by name."""
        base, view = self._base, self.store.view
        recall, low = (1.0, 1.0) if self._calibration is None else self._calibration.recall()
        return {
            "base_vectors": 0 if base is None else base.rows - max(base.first, view.first),
            "lists": 0 if base is None else len(base.cells.centroids),
            "imbalance": 1.0 if base is None else base.imbalance(),
            "nominees": 0.0 if base is None else base.nominees,
            "trainings": self._trainings,
            "longest_wait_seconds": self._longest_wait,
            "rho": 1.0 if self._calibration is None else self._calibration.rho,
            "recall": recall,
            "recall_low": low,
        }

    # The maintenance thread

    def maintain(self) -> bool:
        """One step of upkeep: trains, or merges a part of the tail. False: there was nothing to do.
        Blocks while it trains (seconds)."""
        view, base = self.store.view, self._base
        if base is None:
            if view.rows - view.first < self._train_at:
                return False
            self._train(view)
            return True
        if is_worn(base, view):
            self._train(view)
            return True
        return self._merge(base)

    def _merge(self, base: Base) -> bool:
        view = self.store.view
        if view.rows - base.rows < self._backend.merge_rows:
            return False
        base.append(view, base.rows + self._backend.merge_rows)
        return True

    def _train(self, view: Winners) -> None:
        rng = np.random.default_rng(view.rows)
        count = view.rows - view.first
        rows = np.sort(rng.choice(count, min(count, SAMPLE), replace=False)) + view.first
        sample = widen(view.vectors(rows))
        sketch = fitted(sample[rng.permutation(len(sample))[:SKETCH_SAMPLE]])
        centroids = trained(sketch.codes(sample), lists_for(count, self._backend.list_rows))
        self._replace(
            Base(self._backend.cells(sketch, centroids, self._threshold), view.first, count)
        )

    def _replace(self, base: Base) -> None:
        """Fills the new base; the old one goes on until then."""
        while self._merge(base):
            if self._base is not None:
                self._merge(self._base)
        self._base = base
        self._trainings += 1

    # A snapshot

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs to spare the next process the training: the sketch, the centroids,
        each row's cell. Any thread."""
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
        """Takes up what another process's `state` says of the rows that are in the store now.
        Before any other thread."""
        if self._calibration is not None and "needed" in state:
            self._calibration = Calibration(np.asarray(state["needed"], np.float64))
        view, covered = self.store.view, self.store.view.first
        if "cells" in state:
            pad, slack = state["rounding"].tolist()
            sketch = Sketch(np.asarray(state["basis"]), pad, slack)
            first, trained_on = state["first"].tolist()
            cells = self._backend.cells(sketch, np.asarray(state["centroids"]), self._threshold)
            base, end = Base(cells, max(first, view.first), trained_on), first + len(state["cells"])
            while base.rows < end:
                low, high = base.rows, min(base.rows + max(self._backend.merge_rows, BLOCK), end)
                base.append(view, high, state["cells"][low - first : high - first].astype(np.int64))
            self._base, covered = base, base.rows
        self._tail.restore(covered)


def is_worn(base: Base, view: Winners) -> bool:
    """Is it time for new centroids?"""
    rows = base.rows - base.first
    if view.first - base.first > rows / 4:
        return True
    if rows < WORN * base.trained_on:
        return False
    return (
        rows >= GROWTH * base.trained_on or base.imbalance() > IMBALANCE or base.nominees > NOMINEES
    )


def lists_for(rows: int, list_rows: int) -> int:
    """4·√n, with at least so many rows each."""
    return max(min(round(4 * math.sqrt(rows)), rows // list_rows), 1)
