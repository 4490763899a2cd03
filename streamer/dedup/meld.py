"""The meld: the pure function of the claim log that every replica applies in log order.

    A claim counts  ⇔  it is under its partition's latest valid open (same term), at an offset ≥ that open's ``from``,
                       its origin's first counting claim, and position − seen ≤ W.
    A counting claim wins  ⇔  no winner y with seen ≤ position(y) < position has a similarity ≥ τ.
    A withdrawal counts under the latest valid open too: from its position on, its origin's winner is none.

**Position** is the running number of a row in the log: every row of a claims entry takes one,
whether it counts or not, and every other entry takes one. Winners before ``seen`` were the
claimant's business (`Meld.precheck`) and are never compared here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from streamer.dedup.arithmetic import are_unit, contenders, widen
from streamer.dedup.index import Resident, WinnerIndex
from streamer.dedup.ledger import Ledger
from streamer.dedup.store import BLOCK, Winners, WinnerStore
from streamer.records import F16, F32, F64, I64, U8, Bools, Claim
from streamer.wire.claim import Claims, DatasetEntry, Entry, Open, Withdraw, encode

VERSION = 1
"""Version of these rules; the dataset entry binds a dataset to it."""
W = 8192
"""Positions after ``seen`` beyond which a claim is void: what bounds the conflict zone."""

WON, LOST, REPEAT, VOID_TERM, VOID_STALE, VOID_VECTOR = range(6)
"""Status of a claim row. The first two count and are final.

* ``REPEAT``: its origin has a counting claim already; `Meld.prior` tells its verdict.
* ``VOID_TERM``: not under the partition's latest valid open, or below its ``from``. Another owner
  decides this origin.
* ``VOID_STALE``: more than W positions after ``seen`` (or ``seen`` lies ahead of the entry):
  pre-check and claim again.
* ``VOID_VECTOR``: the vector has another dimension, is not finite, or not of length 1 ±
  `NORM_SLACK`. A claimant never sends such a row.
"""

_ROWS = 256
_EARLIER = np.tri(_ROWS, k=-1, dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """What one entry did. n is the number of its claim rows, 0 for any other entry."""

    position: int
    """Position of the entry's first row."""
    valid: bool
    """dataset: it is the first, or equal to it; open: it took effect; claims: under the latest
    open; withdraw: a winner is one no more."""
    status: U8
    """(n,) `WON`, `LOST`, …"""
    winners: I64
    """(n,) where LOST: position of the lowest-position winner at or above τ in the conflict zone;
    else −1."""
    similarity: F64
    """(n,) where LOST: exact dot product with that winner; else NaN."""
    origins: I64
    """(n, 2) where LOST: that winner's partition and offset; else −1."""

    @property
    def positions(self) -> I64:
        """(n,)"""
        return np.arange(self.position, self.position + len(self.status), dtype=np.int64)


class Precheck(NamedTuple):
    """Which of n vectors are near an applied winner."""

    seen: int
    """Every winner below this position was compared; a claim of these vectors carries it."""
    winners: I64
    """(n,) the lowest position of a winner at or above τ; −1 where there is none. May be ≥
    ``seen``: applied meanwhile."""
    similarity: F64
    """(n,) exact dot product with that winner; NaN where there is none."""
    origins: I64
    """(n, 2) that winner's partition and offset; −1 where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All that a meld knows at one position. Nothing of it changes any more, but the flags
    ``winners.removed``."""

    position: int
    dataset: DatasetEntry | None
    window: int
    capacity: int | None
    ledgers: Mapping[int, Ledger]
    winners: Winners
    removed: I64
    """The withdrawn rows at that position, ascending."""
    index: Mapping[str, np.ndarray]
    """The index's own arrays, see `WinnerIndex.state`."""


class Meld:
    """State of the claim log up to ``position``.

    `apply` and `digest` belong to the claims thread; everything else may be called on any thread
    meanwhile, and nothing blocks. What another thread reads is complete up to the ``position`` that
    it read before.
    """

    def __init__(
        self,
        dim: int,
        threshold: float,
        index: WinnerIndex,
        window: int = W,
        capacity: int | None = None,
    ) -> None:
        """``index``: empty, of the same dimension and threshold. ``window``: W, other values are
        for tests.

        ``capacity``: the most winners that are kept; at least `least_capacity`. Beyond it the
        oldest are evicted, at positions that follow from the log alone. The conflict zone is
        younger, so no verdict depends on it; only pre-checks miss what was evicted.
        """
        assert capacity is None or capacity >= least_capacity(window)
        self.dim = dim
        self.threshold = threshold
        self.position = 0
        """Number of positions applied; the next row's position."""
        self._index = index
        self._store = index.store
        self.window = window
        """W: a claim so many positions after its ``seen`` still counts."""
        self._capacity = capacity
        self._dataset: DatasetEntry | None = None
        self._ledgers: dict[int, Ledger] = {}
        self._withdrawn = 0

    def __len__(self) -> int:
        """Number of winners, without the withdrawn ones."""
        view = self._store.view
        return view.rows - view.first - self._withdrawn

    @property
    def evicted(self) -> int:
        """Number of winners evicted so far. Any thread."""
        return self._store.view.first

    @property
    def index(self) -> WinnerIndex:
        return self._index

    @property
    def store(self) -> WinnerStore:
        return self._store

    @property
    def dataset(self) -> DatasetEntry | None:
        """The log's first dataset entry, which holds for good; None if there is none so far."""
        return self._dataset

    def apply(self, entry: Entry) -> Applied:
        """Applies the log's next entry. Claims thread. Raises nothing for any decoded entry: what
        has no effect says so."""
        if isinstance(entry, Claims):
            applied = self._claims(entry)
            self.position += len(entry.offsets)
            return applied
        if isinstance(entry, Open):
            valid = self._open(entry)
        elif isinstance(entry, Withdraw):
            valid = self._withdraw(entry)
        else:
            self._dataset = self._dataset or entry
            valid = self._dataset == entry
        self.position += 1
        return Applied(
            self.position - 1,
            valid,
            np.empty(0, np.uint8),
            np.empty(0, np.int64),
            np.empty(0),
            np.empty((0, 2), np.int64),
        )

    def precheck(self, vectors: F16, resident: Resident | None = None) -> Precheck:
        """(n, d) fp16, each of length 1 ± `NORM_SLACK` → near which applied winner. Any thread.
        ``resident``: see `WinnerIndex.search`."""
        seen = self.position  # before the search: every winner below it is in the index
        found = self._index.search(vectors, resident)
        return Precheck(seen, *found)

    def prior(self, partition: int, offset: int) -> Claim | None:
        """The verdict on the origin's counting claim; None if it has none, or lies below its
        partition's latest ``from``. Any thread.

        ``won`` False with ``duplicate_of`` None: it had won and was withdrawn.
        """
        ledger = self._ledgers.get(partition)
        if ledger is None or offset >= ledger.until:
            return None
        position = ledger.won(offset)
        if position < 0:
            return ledger.lost(offset)
        view = self._store.view  # before the look at what was evicted: it is put there first
        evicted = ledger.evicted(offset)
        if evicted is not None:
            return evicted
        row = view.row_of(position)
        return Claim(position, not view.is_removed(row), None, None, view.vector(row))

    def claimed_until(self, partition: int) -> int:
        """Offsets of the partition at or above this have no verdict. Any thread."""
        ledger = self._ledgers.get(partition)
        return 0 if ledger is None else ledger.until

    def open_of(self, partition: int) -> Open | None:
        """The partition's latest valid open. Any thread."""
        ledger = self._ledgers.get(partition)
        return None if ledger is None else ledger.opened

    def floor_of(self, partition: int) -> int:
        """The highest ``from`` of the partition's valid opens, below which nothing counts any more.
        Any thread."""
        ledger = self._ledgers.get(partition)
        return 0 if ledger is None else ledger.floor

    @property
    def partitions(self) -> int:
        """Number of partitions that anybody has opened. Any thread."""
        return len(self._ledgers)

    def winners_of(self, partition: int, first: int, following: int) -> list[int]:
        """The offsets from ``first`` to ``following`` whose records are winners and may be asked
        for, withdrawn ones too. Any thread."""
        ledger = self._ledgers.get(partition)
        return [] if ledger is None else ledger.winners(first, following)

    def digest(self) -> str:
        """64 hex digits over the whole state: equal on all replicas at the same position, however
        each got there. Claims thread.

        Reads every winner's vector: about a second per gigabyte.
        """
        digest = hashlib.sha256(repr((VERSION, self.position, self.dim, self.threshold)).encode())
        digest.update(encode(self._dataset) if self._dataset else b"")
        for _, ledger in sorted(self._ledgers.items()):
            ledger.hash_into(digest)
        view = self._store.view
        for name in ("positions", "partitions", "offsets", "removed", "vectors"):
            for _, block, here in view.spans(view.first, view.rows):
                digest.update(getattr(block, name)[here].tobytes())
        return digest.hexdigest()

    def state(self) -> State:
        """As it is now, without a copy of the winners: 0.1 µs a verdict that is still held. Claims
        thread."""
        view = self._store.view
        removed = view.removed(view.first, view.rows) if self._withdrawn else np.empty(0, np.int64)
        ledgers = {partition: ledger.copy() for partition, ledger in self._ledgers.items()}
        return State(
            self.position,
            self._dataset,
            self.window,
            self._capacity,
            ledgers,
            view,
            removed,
            self._index.state(),
        )

    def restore(self, state: State) -> None:
        """Goes on where ``state`` was taken, by a meld of the same dataset, window and capacity;
        keeps what it is given.

        Before anything is applied, and before any other thread knows this meld.
        """
        assert self.position == 0
        assert (state.window, state.capacity) == (self.window, self._capacity)
        self._store.restore(state.winners, state.removed)
        self._index.restore(state.index)
        self._withdrawn = len(state.removed)
        self._ledgers = dict(state.ledgers)
        self._dataset = state.dataset
        self.position = state.position

    def _open(self, entry: Open) -> bool:
        ledger = self._ledgers.get(entry.partition)
        if ledger is None:
            self._ledgers[entry.partition] = Ledger(entry)
            return True
        if entry.generation < ledger.opened.generation:
            return False
        ledger.open(entry)
        return True

    def _withdraw(self, entry: Withdraw) -> bool:
        ledger = self._ledgers.get(entry.partition)
        if ledger is None or ledger.opened.term != entry.term or ledger.won(entry.offset) < 0:
            return False
        evicted = ledger.evicted(entry.offset)
        if evicted is not None:
            ledger.evict(entry.offset, evicted._replace(won=False))
            return evicted.won
        row = self._store.view.row_of(ledger.won(entry.offset))
        if self._store.view.is_removed(row):
            return False
        self._store.remove(row)
        self._withdrawn += 1
        return True

    def _claims(self, entry: Claims) -> Applied:
        n = len(entry.offsets)
        applied = Applied(
            self.position, True, np.full(n, VOID_TERM, np.uint8), np.full(n, -1, np.int64), np.full(n, np.nan), np.full((n, 2), -1, np.int64)
        )  # fmt: skip
        ledger = self._ledgers.get(entry.partition)
        if ledger is None or ledger.opened.term != entry.term:
            return replace(applied, valid=False)
        for at in range(
            0, n, _ROWS
        ):  # part after part is the same as all at once, in bounded memory
            self._part(ledger, entry, slice(at, min(at + _ROWS, n)), applied)
        return applied

    def _part(self, ledger: Ledger, entry: Claims, part: slice, applied: Applied) -> None:
        """Decides at most `_ROWS` rows, and fills their places in ``applied``."""
        offsets, vectors = entry.offsets[part], np.ascontiguousarray(entry.vectors[part])
        positions = np.arange(self.position + part.start, self.position + part.stop)
        fresh = (
            positions - entry.seen <= self.window
            if entry.seen <= self.position
            else np.zeros(len(positions), np.bool_)
        )
        wide = widen(vectors)
        unit = (
            are_unit(vectors, wide)
            if vectors.shape[1] == self.dim
            else np.zeros(len(positions), np.bool_)
        )
        status = _count(ledger, offsets, fresh, unit)
        applied.status[part] = status
        counting = np.flatnonzero(status == WON)
        if len(counting) == 0:
            return
        if len(counting) < len(positions):
            offsets, vectors, positions, wide = (
                offsets[counting],
                vectors[counting],
                positions[counting],
                wide[counting],
            )

        view = self._store.view
        first = view.first_at(entry.seen)
        codes = view.sketch.codes(wide)
        won = np.ones(len(counting), np.bool_)
        for row, column, similarity in self._losers(view, first, wide, codes):
            own = first + column - view.rows
            winner = int(positions[own]) if own >= 0 else view.position(first + column)
            origin = (
                (entry.partition, int(offsets[own])) if own >= 0 else view.origin(first + column)
            )
            at = part.start + int(counting[row])
            won[row], applied.status[at], applied.winners[at], applied.similarity[at] = (
                False,
                LOST,
                winner,
                similarity,
            )
            applied.origins[at] = origin
            ledger.lose(
                int(offsets[row]),
                Claim(int(positions[row]), False, origin, similarity, vectors[row].copy()),
            )

        if not won.all():
            offsets, vectors, positions, codes = (
                offsets[won],
                vectors[won],
                positions[won],
                codes[won],
            )
        self._store.append(vectors, codes, positions, entry.partition, offsets)
        self._index.add(vectors, positions)
        ledger.win(offsets.tolist(), positions.tolist())
        self._evict()

    def _evict(self) -> None:
        """Drops the oldest winners, a sixteenth of the capacity at once, when there are more than
        it allows."""
        view = self._store.view
        if self._capacity is None or view.rows - view.first <= self._capacity:
            return
        first = -(-(view.rows - self._capacity + self._capacity // 16) // BLOCK) * BLOCK
        for _, block, here in view.spans(view.first, first):
            self._withdrawn -= int(np.count_nonzero(block.removed[here]))
            for row in range(BLOCK):
                ledger, offset = self._ledgers[int(block.partitions[row])], int(block.offsets[row])
                if offset >= ledger.floor:
                    claim = Claim(
                        int(block.positions[row]),
                        not block.removed[row],
                        None,
                        None,
                        block.vectors[row].copy(),
                    )
                    ledger.evict(offset, claim)
        self._store.evict(first)

    def _losers(
        self, view: Winners, first: int, wide: F32, codes: F32
    ) -> list[tuple[int, int, float]]:
        """Who of n rows loses, each against the winners before it: (which of the n, its lowest
        matching winner, similarity).

        A winner is counted from row ``first`` of the store, and on into the n rows. Codes nominate,
        against the zone and the n themselves; only rows with a nominee take the sequential path.
        """
        n, zone = len(codes), view.rows - first
        least = self.threshold - view.sketch.slack
        near = np.empty((n, zone + n), np.bool_)
        for low, block, here in view.spans(first, view.rows):
            known = block.codes[here]
            np.greater_equal(
                codes @ known.T, least, out=near[:, low - first : low - first + len(known)]
            )
        np.greater_equal(codes @ codes.T, least, out=near[:, zone:])
        near[:, zone:] &= _EARLIER[:n, :n]
        near[:, view.removed(first, view.rows) - first] = False
        if not near.any():
            return []

        contested, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        known = widen(view.vectors(first + columns[columns < zone]))
        i, j, products = contenders(
            wide[contested],
            np.concatenate([known, wide[columns[columns >= zone] - zone]]),
            self.threshold,
        )
        contested, columns = contested[i], columns[j]
        matches = near[np.ix_(contested, columns)] & (products >= self.threshold)
        losers = []
        winning = np.ones(zone + n, np.bool_)
        for at, row in enumerate(contested.tolist()):
            winners = np.flatnonzero(matches[at] & winning[columns])
            if len(winners):
                winning[zone + row] = False
                losers.append((row, int(columns[winners[0]]), float(products[at, winners[0]])))
        return losers


def least_capacity(window: int = W) -> int:
    """The smallest capacity with which the conflict zone, and what an eviction takes beyond it, is
    never touched."""
    return 2 * window + 2 * BLOCK


def _count(ledger: Ledger, offsets: I64, fresh: Bools, unit: Bools) -> U8:
    """(n,) the status of each row if there were no duplicates: WON where it counts."""
    if ledger.are_new(offsets):
        status: U8 = np.where(fresh, np.where(unit, WON, VOID_VECTOR), VOID_STALE).astype(np.uint8)
        return status
    counting: set[int] = set()
    status = np.empty(len(offsets), np.uint8)
    for row, offset in enumerate(offsets.tolist()):
        if offset < ledger.floor:
            status[row] = VOID_TERM
        elif offset in counting or ledger.has(offset):
            status[row] = REPEAT
        elif not fresh[row]:
            status[row] = VOID_STALE
        elif not unit[row]:
            status[row] = VOID_VECTOR
        else:
            status[row] = WON
            counting.add(offset)
    return status
