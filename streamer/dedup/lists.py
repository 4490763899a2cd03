"""Faiss's inverted lists behind one face: rows in cells, and which of them may match. Nothing here decides.

Cells are assigned and probed by us (`streamer.dedup.cells`); Faiss holds the codes in fp16 (`IndexIVFScalarQuantizer`) and scans them.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np

from streamer.dedup.arithmetic import rounding
from streamer.records import F32, I64

RESULTS = 4_000_000
"""Rows that one call may scan, and so find: 50 MB of results."""
_HALF = 2.0**-11 * 1.03 + 2.0**-20
"""How far rounding a code to fp16 may move a product: half a unit of the last place, and what subnormals lose."""


def bound_of(width: int, threshold: float) -> float:
    """What a product with an fp16 code is at least, where the float32 code's is at least ``threshold``."""
    return threshold - _HALF - rounding(width)


class Lists(Protocol):
    """One thread at a time."""

    def add(self, codes: F32, rows: I64, cells: I64) -> None:
        """(n, w) codes of (n,) rows into (n,) cells."""

    def scan(self, codes: F32, queries: I64, cells: I64, sizes: I64, threshold: float) -> tuple[I64, I64]:
        """Looks into (k,) ``cells`` for (k,) ``queries``, ascending numbers of (n, w) ``codes``; ``sizes`` (L,) says how many rows a cell has.

        Returns pairs (queries, rows): with every row of those cells whose code has a product of at least ``threshold`` among them.
        """


class CpuLists:
    """`Lists` in memory, scanned with as many threads as OpenMP gives the caller."""

    def __init__(self, centroids: F32) -> None:
        count, self._width = centroids.shape
        self._quantizer = faiss.IndexFlatIP(self._width)  # never asked: what it must have is a dimension
        self._index: Any = faiss.IndexIVFScalarQuantizer(
            self._quantizer, self._width, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        self._index.is_trained = True

    def add(self, codes: F32, rows: I64, cells: I64) -> None:
        pointer = faiss.swig_ptr
        codes = np.ascontiguousarray(codes)
        self._index.add_core(len(codes), pointer(codes), pointer(rows), pointer(cells))

    def scan(self, codes: F32, queries: I64, cells: I64, sizes: I64, threshold: float) -> tuple[I64, I64]:
        bound = bound_of(self._width, threshold)
        found: list[tuple[I64, I64]] = []
        for low, high in _parts(queries, sizes[cells]):
            at, keys = _padded(queries[low:high], cells[low:high])
            self._index.nprobe = keys.shape[1]
            limits, _, rows = self._index.range_search_preassigned(codes[at], bound, keys, None)
            found.append((np.repeat(at, np.diff(limits.astype(np.int64))), rows))
        return np.concatenate([q for q, _ in found] or [_NONE]), np.concatenate([r for _, r in found] or [_NONE])


_NONE = np.empty(0, np.int64)


def _parts(queries: I64, rows: I64) -> list[tuple[int, int]]:
    """Cuts (k,) probes, ascending by query, so that each part scans about `RESULTS` rows at most and no query is in two."""
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
    keys[np.repeat(np.arange(len(at)), counts), np.arange(len(queries)) - np.repeat(first, counts)] = cells
    return at, keys
