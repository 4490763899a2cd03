"""Every winner's fp16 vector, position and origin: append-only, the truth that indexes only point
into.

Rows are in position order. Readers take one `Winners` view and keep it; growth adds blocks and
never moves a row, eviction drops the oldest blocks and never renumbers one. Beside each vector lies
its code (`streamer.dedup.sketch`), so that whoever compares computes it once.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from streamer.dedup.arithmetic import widen
from streamer.dedup.sketch import SAMPLE, Sketch, fitted, whole, width_for
from streamer.records import F16, F32, I64, Bools

BLOCK = 4096
"""Rows per block: 4 MB of vectors at 512 dimensions."""
FIRST_FIT = 1024
"""Winners at which codes are fitted to them for the first time; again whenever there are four times
as many."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """`BLOCK` rows; those at or beyond a view's ``rows`` are not yet written. Written rows never
    change, but for ``removed``."""

    vectors: F16
    """(BLOCK, d) float16"""
    codes: F32
    """(BLOCK, width) float32, under the view's sketch; (0, width) once they were forgotten"""
    positions: I64
    partitions: I64
    offsets: I64
    removed: Bools
    """True from the moment its withdrawal was applied; such a row is no winner any more."""


class Winners(NamedTuple):
    """What was appended up to some moment. Any thread; nothing here blocks."""

    blocks: tuple[Block | None, ...]
    """None where all rows were evicted."""
    first: int
    """Rows below this were evicted: a multiple of `BLOCK`."""
    rows: int
    """How many rows were ever written, the evicted ones with them."""
    sketch: Sketch

    def block(self, row: int) -> Block:
        """The block of a row that was not evicted."""
        block = self.blocks[row // BLOCK]
        assert block is not None
        return block

    def first_at(self, position: int) -> int:
        """The lowest row, of those not evicted, whose position is at least ``position``; ``rows``
        where there is none."""
        begin = self.first // BLOCK
        at = bisect_right(self.blocks, position - 1, lo=begin, key=_first_position) - 1
        if at < begin:
            return self.first
        used = min(BLOCK, self.rows - at * BLOCK)
        return at * BLOCK + int(np.searchsorted(self.block(at * BLOCK).positions[:used], position))

    def row_of(self, position: int) -> int:
        """The row of the winner at ``position``. Raises KeyError if no winner has it, or it was
        evicted."""
        row = self.first_at(position)
        if row == self.rows or self.position(row) != position:
            raise KeyError(position)
        return row

    def position(self, row: int) -> int:
        return int(self.block(row).positions[row % BLOCK])

    def origin(self, row: int) -> tuple[int, int]:
        """(partition, offset)"""
        block, at = self.block(row), row % BLOCK
        return int(block.partitions[at]), int(block.offsets[at])

    def vector(self, row: int) -> F16:
        """(d,) float16, a view."""
        vector: F16 = self.block(row).vectors[row % BLOCK]
        return vector

    def is_removed(self, row: int) -> bool:
        return bool(self.block(row).removed[row % BLOCK])

    def spans(self, low: int, high: int) -> list[tuple[int, Block, slice]]:
        """Rows ``low`` to ``high`` as (first row, block, rows inside it), in order."""
        return [
            (
                max(low, at * BLOCK),
                self.block(at * BLOCK),
                slice(max(low - at * BLOCK, 0), min(high - at * BLOCK, BLOCK)),
            )
            for at in range(low // BLOCK, -(-high // BLOCK))
        ]

    def vectors(self, rows: I64) -> F16:
        """(n,) rows → (n, d) float16, a copy."""
        found = np.empty((len(rows), self.sketch.basis.shape[0]), np.float16)
        for at, row in enumerate(rows.tolist()):
            found[at] = self.vector(row)
        return found

    def slice(self, low: int, high: int) -> F16:
        """Rows ``low`` to ``high`` → (n, d) float16, a copy."""
        return np.concatenate([block.vectors[here] for _, block, here in self.spans(low, high)])

    def removed(self, low: int, high: int) -> I64:
        """The withdrawn ones of rows ``low`` to ``high``, ascending."""
        found = [
            np.flatnonzero(block.removed[here]) + first
            for first, block, here in self.spans(low, high)
        ]
        return np.concatenate([*found, np.empty(0, np.int64)])


class WinnerStore:
    """Written by the claims thread alone; `view` is for any thread."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._view = Winners((), 0, 0, whole(dim))
        self._next_fit = FIRST_FIT
        self._forgotten = 0
        """Blocks below this one have no codes."""

    @property
    def view(self) -> Winners:
        """Everything appended so far. Reading it is atomic: vectors, codes, positions and origins
        belong together."""
        return self._view

    def append(
        self, vectors: F16, codes: F32, positions: I64, partition: int, offsets: I64
    ) -> None:
        """n winners of one partition, in position order and above every position before. Claims
        thread.

        ``codes``: theirs under the current view's sketch. A view taken afterwards has the rows;
        earlier views stay as they were.
        """
        blocks, first, rows, sketch = self._view
        done = 0
        while done < len(positions):
            at = rows % BLOCK
            if at == 0:
                blocks = (*blocks, self._new_block(codes.shape[1]))
            n = min(BLOCK - at, len(positions) - done)
            block, here, taken = blocks[-1], slice(at, at + n), slice(done, done + n)
            assert block is not None
            block.vectors[here] = vectors[taken]
            block.codes[here] = codes[taken]
            block.positions[here] = positions[taken]
            block.partitions[here] = partition
            block.offsets[here] = offsets[taken]
            rows += n
            done += n
        self._view = Winners(blocks, first, rows, sketch)
        if rows >= self._next_fit:
            self._next_fit = 4 * rows
            if width_for(self.dim) < self.dim:
                self._fit()

    def remove(self, row: int) -> None:
        """The winner of this row is none from now on. Claims thread."""
        self._view.block(row).removed[row % BLOCK] = True

    def evict(self, first: int) -> None:
        """Drops the rows below ``first``, a multiple of `BLOCK`. Views taken before keep them.
        Claims thread."""
        blocks, _, rows, sketch = self._view
        self._view = Winners(
            (*[None] * (first // BLOCK), *blocks[first // BLOCK :]), first, rows, sketch
        )

    def forget_codes(self, below: int) -> None:
        """Frees the codes of all blocks that end at or below the row ``below``. Claims thread."""
        begin, end = self._forgotten, min(below // BLOCK, len(self._view.blocks))
        if end <= begin:
            return
        blocks = self._view.blocks
        freed = (b and replace(b, codes=b.codes[:0].copy()) for b in blocks[begin:end])
        self._view = self._view._replace(blocks=(*blocks[:begin], *freed, *blocks[end:]))
        self._forgotten = end

    def room(self, first: int, rows: int) -> Winners:
        """Zeros in place of rows ``first`` to ``rows``, to be filled in and then given to
        `restore`. Any thread."""
        begin, end = first // BLOCK, -(-rows // BLOCK)
        blocks = (*[None] * begin, *(self._new_block(0) for _ in range(begin, end)))
        return Winners(blocks, first, rows, whole(self.dim))

    def restore(self, winners: Winners, removed: I64) -> None:
        """Takes over what `room` gave, in place of what it holds; ``removed``: the withdrawn rows.
        It has no codes until `make_codes`."""
        self._view = winners
        for row in removed.tolist():
            self.remove(row)
        if winners.rows >= FIRST_FIT:
            self._next_fit = 4 * winners.rows
        self._view = winners._replace(
            blocks=tuple(b and replace(b, codes=b.codes[:0]) for b in winners.blocks)
        )

    def make_codes(self, first: int) -> None:
        """After `restore`: codes for the rows from ``first`` on, and for those that share its
        block."""
        begin = first // BLOCK
        blocks = tuple(
            b and replace(b, codes=np.empty((BLOCK if at >= begin else 0, 0), np.float32))
            for at, b in enumerate(self._view.blocks)
        )
        self._view = self._view._replace(blocks=blocks)
        self._forgotten = begin
        self._fit(
            None
            if self._view.rows >= FIRST_FIT and width_for(self.dim) < self.dim
            else whole(self.dim)
        )

    def _fit(self, sketch: Sketch | None = None) -> None:
        """New codes for all rows that have any: 1 to 2 µs each, and as the store grows 1.3 times
        each in all. None: a sketch fitted to them."""
        blocks, first, rows, _ = self._view
        if sketch is None:
            sketch = fitted(
                widen(
                    self._view.vectors(
                        np.unique(np.linspace(first, rows - 1, SAMPLE).astype(np.int64))
                    )
                )
            )
        coded = tuple(
            None
            if block is None
            else replace(block, codes=sketch.codes(widen(block.vectors[: len(block.codes)])))
            for block in blocks
        )
        self._view = Winners(coded, first, rows, sketch)

    def _new_block(self, width: int) -> Block:
        return Block(
            np.zeros((BLOCK, self.dim), np.float16),
            np.empty((BLOCK, width), np.float32),
            np.empty(BLOCK, np.int64),
            np.empty(BLOCK, np.int64),
            np.empty(BLOCK, np.int64),
            np.zeros(BLOCK, np.bool_),
        )


def _first_position(block: Block | None) -> int:
    assert block is not None
    return int(block.positions[0])
