"""What an index of winners promises."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from streamer.dedup.store import WinnerStore
from streamer.records import F16, F64, I64


class Found(NamedTuple):
    """What a search of n vectors found."""

    winners: I64
    """(n,) the lowest position of a winner at or above the threshold; −1 where there is none."""
    similarity: F64
    """(n,) the exact float64 dot product with that winner; NaN where there is none."""
    origins: I64
    """(n, 2) its partition and offset; −1 where there is none."""


class WinnerIndex(Protocol):
    """Finds near-duplicates among the winners of ``store``. An implementation only nominates rows of the store.

    The contract, which tests/dedup/test_index.py holds every implementation to:

    * `search` is identical to brute force over the store in float64: same positions, same bits of similarity.
    * The *lowest* position at or above the threshold is found, not the most similar one.
    * It sees every winner whose `add` returned before the search began. It may see later ones too.
    * Rows that the store has marked as removed, or evicted, before the search began are not found; nobody tells the index.
    * `search` may run on any number of threads while `add` runs on another. Neither waits for the other for longer than it
      takes to publish a reference; maintenance (training, merging) never changes an answer.
    * Memory of one search is bounded, whatever the data: independent of the number of winners and of matches.
    """

    store: WinnerStore

    def add(self, vectors: F16, positions: I64) -> None:
        """(n, d) fp16 and (n,) positions of the rows that were just appended to the store. Claims thread; does not block."""

    def search(self, vectors: F16) -> Found:
        """(n, d) fp16, each of length 1 ± `NORM_SLACK` → `Found`. Any thread; does not block."""


def open_index(dim: int, threshold: float, device: str) -> WinnerIndex:
    """An empty index for ``cpu`` or ``cuda:N``."""
    if device == "cpu":
        from streamer.dedup.exact import ExactIndex

        return ExactIndex(WinnerStore(dim), threshold)
    from streamer.dedup.device import DeviceIndex

    return DeviceIndex(WinnerStore(dim), threshold, device)
