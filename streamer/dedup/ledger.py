"""What the claim log decided about the origins of one partition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.records import F16, I64, Claim

if TYPE_CHECKING:
    import hashlib

    from streamer.wire.claim import Open


class Ledger:
    """Verdicts of one partition's counting claims, for offsets from ``floor`` on. Written by the
    claims thread, read by any.

    ``until`` is the highest counted offset + 1: what is at or above it has no verdict, which is all
    that most records need to know.
    """

    def __init__(self, opened: Open) -> None:
        self.opened = opened
        self.floor = opened.start
        """The highest ``from`` of any valid open. Offsets never come back below it, so nothing
        there can count twice."""
        self.until = opened.start
        self._won: dict[int, int] = {}
        self._lost: dict[int, Claim] = {}
        self._evicted: dict[int, Claim] = {}
        """Winners whose vectors the store has no more; each of them is in ``_won`` too."""

    def open(self, entry: Open) -> None:
        """Takes over the partition, and forgets every verdict below its ``from``."""
        if entry.start > self.floor:
            self._won = {
                offset: position for offset, position in self._won.items() if offset >= entry.start
            }
            self._lost = {
                offset: claim for offset, claim in self._lost.items() if offset >= entry.start
            }
            self._evicted = {
                offset: claim for offset, claim in self._evicted.items() if offset >= entry.start
            }
            self.floor = entry.start
            self.until = max(self.until, entry.start)
        self.opened = entry

    def are_new(self, offsets: I64) -> bool:
        """True if it takes only a glance to see that no offset has a verdict and none comes twice."""
        return bool(offsets[0] >= self.until and (offsets[1:] > offsets[:-1]).all())

    def has(self, offset: int) -> bool:
        return offset in self._won or offset in self._lost

    def win(self, offsets: list[int], positions: list[int]) -> None:
        self._won.update(zip(offsets, positions, strict=True))
        self.until = max(self.until, max(offsets, default=-1) + 1)

    def lose(self, offset: int, claim: Claim) -> None:
        self._lost[offset] = claim
        self.until = max(self.until, offset + 1)

    def evict(self, offset: int, claim: Claim) -> None:
        """The store drops the winner's vector; here it stays as long as its verdict may be asked
        for."""
        if offset in self._won:
            self._evicted[offset] = claim

    def evicted(self, offset: int) -> Claim | None:
        return self._evicted.get(offset)

    def won(self, offset: int) -> int:
        """Position of the offset's winner, withdrawn or not; −1 where it has none."""
        return self._won.get(offset, -1)

    def winners(self, first: int, following: int) -> list[int]:
        """The offsets from ``first`` to ``following`` that have one, withdrawn or not."""
        return sorted(offset for offset in list(self._won) if first <= offset < following)

    def lost(self, offset: int) -> Claim | None:
        return self._lost.get(offset)

    @property
    def losers(self) -> int:
        """Verdicts of duplicates that are still held."""
        return len(self._lost)

    def copy(self) -> Ledger:
        """As it is now, whatever is done to this one later. Claims thread: tens of milliseconds for
        a million verdicts."""
        twin = Ledger(self.opened)
        twin.floor, twin.until = self.floor, self.until
        twin._won, twin._lost, twin._evicted = (
            self._won.copy(),
            self._lost.copy(),
            self._evicted.copy(),
        )
        return twin

    def tables(self, dim: int) -> dict[str, np.ndarray]:
        """Every verdict, as arrays that `from_tables` understands: integers (n, …), float64 (n,)
        and the vectors (n, ``dim``) float16."""
        lost, evicted = self._lost.items(), self._evicted.items()
        return {
            "won": _whole(self._won.items(), 2),
            "lost": _whole(
                ((offset, claim.position, *(claim.duplicate_of or ())) for offset, claim in lost), 4
            ),
            "similarity": np.array([claim.similarity for _, claim in lost], np.float64),
            "lost_vectors": _vectors(self._lost, dim),
            "evicted": _whole(
                ((offset, claim.position, claim.won) for offset, claim in evicted), 3
            ),
            "evicted_vectors": _vectors(self._evicted, dim),
        }

    @classmethod
    def from_tables(
        cls, opened: Open, floor: int, until: int, tables: Mapping[str, np.ndarray]
    ) -> Ledger:
        """The inverse of `tables`. Keeps none of the arrays."""
        made = cls(opened)
        made.floor, made.until = floor, until
        made._won = dict(tables["won"].tolist())
        for (offset, position, *origin), similarity, vector in zip(
            tables["lost"].tolist(),
            tables["similarity"].tolist(),
            tables["lost_vectors"],
            strict=True,
        ):
            made._lost[offset] = Claim(
                position, False, (origin[0], origin[1]), similarity, vector.copy()
            )
        for (offset, position, won), vector in zip(
            tables["evicted"].tolist(), tables["evicted_vectors"], strict=True
        ):
            made._evicted[offset] = Claim(position, bool(won), None, None, vector.copy())
        return made

    def hash_into(self, digest: hashlib._Hash) -> None:
        """The state in a canonical form."""
        entry = self.opened
        digest.update(
            repr(
                (
                    entry.partition,
                    entry.generation,
                    entry.term,
                    entry.start,
                    self.floor,
                    sorted(self._won.items()),
                )
            ).encode()
        )
        for offset, claim in (*sorted(self._lost.items()), *sorted(self._evicted.items())):
            digest.update(
                repr(
                    (offset, claim.position, claim.won, claim.duplicate_of, claim.similarity)
                ).encode()
            )
            digest.update(claim.vector.tobytes())


def _whole(rows: Iterable[tuple[Any, ...]], columns: int) -> I64:
    return np.array([*rows], np.int64).reshape(-1, columns)


def _vectors(claims: Mapping[int, Claim], dim: int) -> F16:
    return (
        np.stack([claim.vector for claim in claims.values()])
        if claims
        else np.empty((0, dim), np.float16)
    )
