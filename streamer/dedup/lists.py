"""Faiss's inverted lists in memory: rows in cells, and which of them may match. Nothing here
decides.

Cells are assigned and probed by us (`streamer.dedup.cells`); Faiss holds the codes as bfloat16
(`IndexIVFScalarQuantizer`) and scans them for each query. Where many queries of a call look into
the same cell, one matrix product for all of them takes half the time.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from streamer.dedup.arithmetic import BF16, bound_of, places
from streamer.records import F32, I64

RESULTS = 4_000_000
"""Rows that one call may scan, and so find: 50 MB of results."""
ROWS = 8192
"""Rows of one product."""
CROWD = 6
"""Queries of one call that look into a cell, from which on one matrix product is cheaper than
Faiss's scan for each."""


class Lists:
    """Rows in cells, scanned with as many threads as OpenMP gives the caller. One thread at a time."""

    def __init__(self, centroids: F32) -> None:
        count, self._width = centroids.shape
        self._quantizer = faiss.IndexFlatIP(
            self._width
        )  # never asked: what it must have is a dimension
        self._index: Any = faiss.IndexIVFScalarQuantizer(
            self._quantizer,
            self._width,
            count,
            faiss.ScalarQuantizer.QT_bf16,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        self._index.is_trained = True

    def add(self, codes: F32, rows: I64, cells: I64) -> None:
        """(n, w) codes of (n,) rows into (n,) cells."""
        pointer = faiss.swig_ptr
        codes = np.ascontiguousarray(codes)
        self._index.add_core(len(codes), pointer(codes), pointer(rows), pointer(cells))

    def scan(
        self, codes: F32, queries: I64, cells: I64, sizes: I64, threshold: float
    ) -> tuple[I64, I64]:
        """Looks into (k,) ``cells`` for (k,) ``queries``, ascending numbers of (n, w) ``codes``;
        ``sizes`` (L,) says how many rows a cell has.

        Returns pairs (queries, rows): with every row of those cells whose code has a product of at
        least ``threshold`` among them.
        """
        bound = np.float32(bound_of(self._width, threshold, BF16))
        asking = np.bincount(cells, minlength=len(sizes))
        crowded = asking[cells] >= CROWD
        found = self._multiply(codes, queries[crowded], cells[crowded], bound)
        queries, cells = queries[~crowded], cells[~crowded]
        for low, high in _parts(queries, sizes[cells]):
            at, keys = _padded(queries[low:high], cells[low:high])
            self._index.nprobe = keys.shape[1]
            limits, _, rows = self._index.range_search_preassigned(codes[at], bound, keys, None)
            found.append((np.repeat(at, np.diff(limits.astype(np.int64))), rows))
        return np.concatenate([q for q, _ in found] or [_NONE]), np.concatenate(
            [r for _, r in found] or [_NONE]
        )

    def _multiply(
        self, codes: F32, queries: I64, cells: I64, bound: np.float32
    ) -> list[tuple[I64, I64]]:
        """Cells that many queries look into: one matrix product each, on Faiss's own memory."""
        if not len(cells):
            return []
        order = np.argsort(cells, kind="stable")
        queries, cells = queries[order], cells[order]
        starts = np.flatnonzero(np.diff(cells, prepend=-1)).tolist()
        lists, found = self._index.invlists, []
        for low, high in zip(starts, [*starts[1:], len(cells)], strict=True):
            cell, asking = int(cells[low]), queries[low:high]
            size, asked = lists.list_size(cell), codes[asking]
            held = (
                faiss.rev_swig_ptr(lists.get_codes(cell), size * self._width * 2)
                .view(np.uint16)
                .reshape(size, self._width)
            )
            for at in range(0, size, ROWS):
                wide = held[at : at + ROWS].astype(np.uint32)
                wide <<= 16  # bfloat16 is the upper half of a float32
                products = asked @ wide.view(np.float32).T
                if products.max() >= bound:
                    i, j = places(products >= bound)
                    found.append((asking[i], faiss.rev_swig_ptr(lists.get_ids(cell), size)[at + j]))
        return found


_NONE = np.empty(0, np.int64)


def _parts(queries: I64, rows: I64) -> list[tuple[int, int]]:
    """Cuts (k,) probes, ascending by query, so that each part scans about `RESULTS` rows at most
    and no query is in two."""
    if not len(queries):
        return []
    group = np.cumsum(rows) // RESULTS
    first = np.flatnonzero(np.diff(queries, prepend=-1))  # where each query begins
    starts = first[np.flatnonzero(np.diff(group[first], prepend=-1))]
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(queries)], strict=True))


def _padded(queries: I64, cells: I64) -> tuple[I64, I64]:
    """(k,) probes, ascending by query → (m,) the queries, (m, most) their cells, filled up with −1."""
    at, first, counts = np.unique(queries, return_index=True, return_counts=True)
    keys = np.full((len(at), counts.max()), -1, np.int64)
    keys[
        np.repeat(np.arange(len(at)), counts), np.arange(len(queries)) - np.repeat(first, counts)
    ] = cells
    return at, keys
