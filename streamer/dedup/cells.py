"""Voronoi cells of the winners' codes: which of them can hold a match of a query, by bounds that
miss none.

A winner x lies in the cell of the centroid it has the largest product with. For a query q with q·x
≥ τ and any centroid a (here the query's own, its best), a cell j can hold x only if

* ``q·a − q·j ≤ R·|a − j|`` with R² = |q|² − τ²/|x|²: as x·(a − j) ≤ 0, q·(a − j) ≤ (q − λx)·(a − j)
  for every λ ≥ 0, and R is the least |q − λx| (the bisector, or Hilbert, bound; Connor et al. 2017,
  arXiv 1707.08361). ρ < 1 scales R: cheaper, and no longer certain.
* the angle between q and j is within arccos τ of the angles that j's winners have to it (the ring
  bound).
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from streamer.dedup.arithmetic import places, rounding
from streamer.dedup.sketch import Sketch
from streamer.records import F32, F64, I64

ITERATIONS = 6
GATHERED = 8
"""Distances of so many pairs of cells cost what a row of products with all cells does, times their
number: gathered rows are slow to read."""
PER_LIST = 64
"""Rows per centroid that k-means learns from, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The result of one training: L centroids over codes of one sketch."""

    sketch: Sketch
    centroids: F32
    """(L, w) float32, of length 1 up to rounding"""
    farthest: F32
    """(L,) the largest distance of each from any other"""
    slack: float
    """See `slack_of`."""

    def products(self, codes: F32) -> F32:
        """(n, w) → (n, L)"""
        products: F32 = codes @ self.centroids.T
        return products

    def assign(self, codes: F32) -> tuple[I64, F32]:
        """(n, w) codes → (n,) their cells, (n,) the products with their centroids."""
        products = self.products(codes)
        cells = products.argmax(axis=1)
        return cells, products[np.arange(len(codes)), cells]

    def distances(self, own: I64, queries: I64, others: I64) -> F32:
        """(n,) cells of queries, (k,) numbers of queries and (k,) other cells → (k,) |a − j|, never
        too small. A matrix of all would be 32 bytes a winner; what a batch asks for costs no more
        than its products with the centroids."""
        if len(queries) < len(own) * len(self.centroids) // GATHERED:
            ones = self.centroids[own[queries]]
            products: F32 = np.einsum("ij,ij->i", ones, self.centroids[others])
        else:
            products = self.products(self.centroids[own])[queries, others]
        return _apart(products, self.centroids.shape[1])


def cells_of(sketch: Sketch, centroids: F32) -> Cells:
    """The cells around (L, w) centroids of length 1."""
    count, width = centroids.shape
    least = [(centroids[low : low + 512] @ centroids.T).min(axis=1) for low in range(0, count, 512)]
    return Cells(sketch, centroids, _apart(np.concatenate(least), width), slack_of(width))


def _apart(products: F32, width: int) -> F32:
    """Distances of centroids from their products; the constant covers float32 next to 0."""
    apart: F32 = np.sqrt(np.maximum(2 - 2 * products, 0) + np.float32(4 * rounding(width)))
    apart *= np.float32(1 + 2.0**-20)
    return apart


def slack_of(width: int) -> float:
    """What rounding in float32 can do to one side of the bisector bound."""
    return 6 * rounding(width)


def trained(codes: F32, count: int, seed: int = 0) -> F32:
    """Spherical k-means over (m, w) codes by Faiss → (count, w) centroids of length 1. Blocks: at 4
    096 lists and 64 numbers a second or two."""
    kmeans = faiss.Kmeans(
        codes.shape[1],
        count,
        niter=ITERATIONS,
        spherical=True,
        max_points_per_centroid=PER_LIST,
        min_points_per_centroid=1,
        seed=seed + 1,
    )
    kmeans.train(codes)
    assert kmeans.centroids is not None
    centroids: F32 = kmeans.centroids / np.linalg.norm(kmeans.centroids, axis=1, keepdims=True)
    return centroids


class Bounds:
    """What is known of the winners in each cell: how many, and between which angles to the
    centroid. One thread at a time."""

    def __init__(self, count: int) -> None:
        self.sizes = np.zeros(count, np.int64)
        self.longest = 0.0
        """The greatest length of any winner's code."""
        self._least = np.full(count, 2.0)
        self._most = np.full(count, -2.0)

    def include(self, cells: I64, products: F32, lengths: F64) -> None:
        """(n,) cells, products with their centroids, and lengths of the codes."""
        cosines = products / lengths
        np.add.at(self.sizes, cells, 1)
        np.minimum.at(self._least, cells, cosines)
        np.maximum.at(self._most, cells, cosines)
        self.longest = max(self.longest, float(lengths.max(initial=0.0)))

    def ring(self, reach: float, slack: float) -> tuple[F32, F32]:
        """(L,) between which cosines to each centroid a query has to be, if it has cosine ``reach``
        with a winner there."""
        angle = np.arccos(np.clip(reach, -1, 1))
        nearest = np.arccos(np.clip(self._most + slack, -1, 1))
        farthest = np.arccos(np.clip(self._least - slack, -1, 1))
        upper = np.cos(np.maximum(nearest - angle, 0)) + slack
        lower = np.cos(np.minimum(farthest + angle, np.pi)) - slack
        upper[self.sizes == 0] = -2.0
        return lower.astype(np.float32), upper.astype(np.float32)


def lengths_of(codes: F32) -> F64:
    """(n, w) → (n,) float64, rounded up a little."""
    lengths: F64 = np.sqrt(np.einsum("ij,ij->i", codes, codes).astype(np.float64)) * (1 + 1e-5)
    return lengths


def probe(cells: Cells, bounds: Bounds, codes: F32, threshold: float, rho: F32) -> tuple[I64, I64]:
    """Which cells can hold a match: (k,) queries, ascending, and (k,) cells.

    ``codes``: (n, w) of the queries. ``rho``: (n,) ≤ 1 scales the bisector bound; with 1 every
    winner whose code has a product of at least ``threshold`` with the query's lies in one of the
    cells.
    """
    lengths = lengths_of(codes)
    reach = max(threshold, 0.0) / max(bounds.longest, 1e-9)
    radius = (rho * np.sqrt(np.maximum(lengths**2 - reach**2, 0))).astype(np.float32)
    products = cells.products(codes)
    own = products.argmax(axis=1)
    best = products[np.arange(len(codes)), own]
    queries, near = places(products >= (best - radius * cells.farthest[own] - cells.slack)[:, None])
    found = products[queries, near]
    lower, upper = bounds.ring(
        threshold / (bounds.longest * float(lengths.max(initial=1e-9)) + 1e-9), 2 * cells.slack
    )
    cosines = found / lengths[queries]
    keep = (cosines >= lower[near]) & (cosines <= upper[near])
    queries, near, found = queries[keep], near[keep], found[keep]
    apart = cells.distances(own, queries, near)
    keep = best[queries] - found <= radius[queries] * apart + cells.slack
    return queries[keep], near[keep]


def needed(cells: Cells, bounds: Bounds, codes: F32, threshold: float, winners: I64) -> F64:
    """(n,) the least ρ with which `probe` would have opened the cells (n,) ``winners`` lie in; 0
    for the query's own."""
    lengths = lengths_of(codes)
    products = cells.products(codes)
    at = np.arange(len(codes))
    own = products.argmax(axis=1)
    gap = products[at, own].astype(np.float64) - products[at, winners] - cells.slack
    radius = np.sqrt(
        np.maximum(lengths**2 - (max(threshold, 0.0) / max(bounds.longest, 1e-9)) ** 2, 1e-12)
    )
    return np.where(
        own == winners,
        0.0,
        np.maximum(gap, 0) / (radius * cells.distances(own, at, winners).astype(np.float64)),
    )
