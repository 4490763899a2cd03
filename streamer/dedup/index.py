"""What an index of winners promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamer.dedup.store import Winners, WinnerStore
from streamer.records import F16, F64, I64


class Found(NamedTuple):
    """What a search of n vectors found."""

    winners: I64
    """(n,) the lowest position of a winner at or above the threshold; −1 where there is none."""
    similarity: F64
    """(n,) the exact float64 dot product with that winner; NaN where there is none."""
    origins: I64
    """(n, 2) its partition and offset; −1 where there is none."""

    def part(self, here: slice) -> Found:
        """Some of the n, to be filled in."""
        return Found(self.winners[here], self.similarity[here], self.origins[here])

    def fill(self, query: int, view: Winners, row: int, similarity: float) -> None:
        """The query's answer is the winner of this row."""
        self.winners[query], self.similarity[query], self.origins[query] = (
            view.position(row),
            similarity,
            view.origin(row),
        )


class Resident(NamedTuple):
    """Vectors that are in a GPU's memory as well, where a model has just computed them."""

    tensor: Any
    """(m, d) torch.float32 of fp16 values, complete; nothing writes to it any more"""
    rows: I64
    """(n,) which of the m"""


def nothing_found(n: int) -> Found:
    """For n vectors, to be filled in."""
    return Found(np.full(n, -1, np.int64), np.full(n, np.nan), np.full((n, 2), -1, np.int64))


class WinnerIndex(Protocol):
    """Finds near-duplicates among the winners of ``store``. An implementation only nominates rows
    of the store.

    The contract, which tests/dedup/test_index.py holds every implementation to:

    * `search` is identical to brute force over the store in float64: same positions, same bits of
      similarity.
    * The *lowest* position at or above the threshold is found, not the most similar one.
    * It sees every winner whose `add` returned before the search began. It may see later ones too.
    * Rows that the store has marked as removed, or evicted, before the search began are not found;
      nobody tells the index.
    * `search` may run on any number of threads while `add` runs on another. Neither waits for the
      other for longer than it takes to publish a reference. Maintenance never changes an answer; a
      search waits for one merge at most, for a training never.
    * Memory of one search is bounded, whatever the data: independent of the number of winners and
      of matches.
    """

    store: WinnerStore

    def add(self, vectors: F16, positions: I64) -> None:
        """(n, d) fp16 and (n,) positions of the rows that were just appended to the store. Claims
        thread; does not block."""

    def search(self, vectors: F16, resident: Resident | None = None) -> Found:
        """(n, d) fp16, each of length 1 ± `NORM_SLACK` → `Found`. Any thread; waits for one merge
        at most (milliseconds).

        ``resident``: the same vectors in a GPU's memory. An index on that GPU reads them there and
        copies nothing; any other ignores them.
        """

    def maintain(self) -> bool:
        """One step of upkeep, on a thread of its own: may take seconds. False: there was nothing to
        do."""

    def gauges(self) -> Mapping[str, float]:
        """Values for metrics, by name (`streamer.ops.metrics.INDEX`). Any thread."""

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """What spares the next process the upkeep, as named arrays that never change afterwards.
        Any thread; does not block."""

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """The store was filled from a snapshot: as if `add` had been called for all its rows.
        Before any other thread; takes its time.

        ``state``: of these rows, perhaps by another kind of index: what it does not know it
        ignores. The oldest may be evicted since. The store has no codes yet: calls its
        `make_codes`, for the newest `W` rows at least.
        """
