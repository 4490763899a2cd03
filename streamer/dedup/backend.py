"""Where an index keeps and compares its rows: on the host (`streamer.dedup.host`) or on a GPU
(`streamer.dedup.device`).

`streamer.dedup.ivf` decides what is trained and merged when; a backend only nominates, and misses
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from streamer.dedup.index import Found, Resident
from streamer.dedup.sketch import Sketch
from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F32, F64, I64


class Queries(NamedTuple):
    """n vectors that are searched for."""

    wide: F32
    """(n, d) float32 of fp16 values, on the host: what float64 decides on"""
    keys: Any
    """(n, d) the same where the backend compares, for the backend alone to read"""


class Tail(Protocol):
    """The newest winners, compared one by one."""

    @property
    def held(self) -> Any:
        """What it holds now, for `search`; to be read before the store's view. Any thread."""

    def add(self, vectors: F16) -> None:
        """(n, d) the rows that were just appended to the store. Claims thread."""

    def forget(self, below: int) -> None:
        """Rows below this one are searched elsewhere. Claims thread."""

    def restore(self, first: int) -> None:
        """The store was filled from a snapshot; rows below ``first`` are searched elsewhere. Before
        any other thread."""

    def search(self, queries: Queries, held: Any, view: Winners, first: int, found: Found) -> None:
        """Fills in what is missing in ``found``, from rows of ``held`` and the view at or above
        ``first``. Any thread."""


class Prepared(NamedTuple):
    """n rows on their way into their cells. Arrays of the backend's own, which nobody else reads,
    but for ``cells``."""

    cells: I64
    """(n,) on the host"""
    codes: Any
    """(n, w)"""
    products: Any
    """(n,) with the centroids of their cells"""
    lengths: Any
    """(n,) of the codes"""


class CellIndex(Protocol):
    """Rows in the k-means cells of one training. `prepare` and `needed` on any thread, the others
    one at a time."""

    sketch: Sketch
    centroids: F32
    """(L, w) on the host"""

    @property
    def sizes(self) -> I64:
        """(L,) rows in each cell, on the host"""

    def prepare(self, vectors: F16, cells: I64 | None) -> Prepared:
        """(n, d) fp16; ``cells`` (n,) where they are known. Takes its time."""

    def add(self, rows: I64, prepared: Prepared) -> None:
        """(n,) ascending rows of the store."""

    def nominate(
        self, queries: Queries, rho: F32, rows_in: Callable[[int], I64]
    ) -> tuple[I64, I64]:
        """(n,) ρ → pairs (queries, rows). With ρ = 1 every match of a query among the rows is one.
        ``rows_in``: the rows of a cell."""

    def needed(self, queries: Queries, asking: I64, cells: I64) -> F64:
        """(m,) numbers of queries, and (m,) the cells in which a match of each lies → (m,) the
        least ρ that finds it."""


class Backend(Protocol):
    train_at: int
    """Winners at which cells are first made, unless the config says otherwise."""
    merge_rows: int
    """Rows that move from the tail to the base at once; divides the store's `BLOCK`, or is a
    multiple of it."""
    list_rows: int
    """Rows a cell holds on average, at least."""

    def queries(self, vectors: F16, resident: Resident | None) -> Queries:
        """(n, d) fp16 to where they are compared; see `WinnerIndex.search`."""

    def tail(self, store: WinnerStore, threshold: float) -> Tail:
        """Empty."""

    def cells(self, sketch: Sketch, centroids: F32, threshold: float) -> CellIndex:
        """Empty cells around (L, w) float32 centroids of length 1, for vectors at or above the
        threshold."""
