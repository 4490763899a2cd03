"""Micro-batches: decoded chunks in, batches of at most ``batch.size`` samples out, when full or
when the linger is over."""

from __future__ import annotations

import concurrent.futures
import time
from dataclasses import dataclass

from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Range, Span
from streamer.records import Decoded, Sample

BATCH_BYTES = 64_000_000
"""A batch has no more records when they take so many bytes: some batches are on their way at a time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in the order of the line. Settled records ride along: the line is first in, first out."""

    span: Span
    rows: list[Decoded]


class Batcher:
    """One thread at a time. A batch is full at ``size`` samples, at `BATCH_BYTES`, or at so many
    rows that settled ones cannot pile up."""

    def __init__(self, chunks: Channel[Chunk], size: int, linger_s: float, fence: Fence) -> None:
        self._chunks = chunks
        self._size = size
        self._rows_limit = max(4 * size, 1024)
        self._linger_s = linger_s
        self._fence = fence
        self._head: list[Chunk] = []
        """The chunk that is being decoded, if any."""
        self._rest: list[Decoded] = []
        """Decoded rows of the head chunk that did not fit into the last batch."""
        self._rows: list[Decoded] = []
        self._samples = 0
        self._bytes = 0
        self._spans: list[Span] = []
        """Spans of the chunks that are wholly in ``_rows``; the first record came at ``_since``."""
        self._since = 0.0
        self._cut_answered = (-1, 0)

    def take(self, timeout: float) -> Batch | None:
        """The next batch; None if none was ready within ``timeout`` seconds. Raises what a decode
        worker raised."""
        deadline = time.monotonic() + timeout
        while True:
            run, cut = self._fence.run, self._fence.cut
            if cut != self._cut_answered and cut[0] == run.number:
                self._cut_answered = cut
                self._forget()
                return Batch(Span(run, {}, {}, cut[1]), [])
            if self._head and not self._takes(self._head[0].span):
                self._forget()
            if self._rest:
                self._fill()
            if self._is_full():
                return self._cut()
            now = time.monotonic()
            lingers_until = self._since + self._linger_s if self._rows else deadline
            if self._rows and now >= lingers_until:
                return self._cut()
            wait = min(deadline, lingers_until) - now
            if not self._receive(max(wait, 0.0)) and time.monotonic() >= deadline:
                return None

    def _receive(self, wait: float) -> bool:
        """Waits for one decoded chunk. True if one came."""
        if not self._head:
            chunk = self._chunks.get(wait)
            if chunk is None:
                return False
            if not self._takes(chunk.span):
                return True
            if self._spans and not self._takes(self._spans[0]):
                self._forget()
            self._head.append(chunk)
        try:
            rows = self._head[0].decoded.result(wait)
        except concurrent.futures.TimeoutError:
            return False
        if not self._rows:
            self._since = time.monotonic()
        self._rest = rows
        self._fill()
        return True

    def _fill(self) -> None:
        """Moves rows of the head chunk into the batch, as many as fit."""
        taken = 0
        for row in self._rest:
            if self._has_enough():
                break
            self._rows.append(row)
            self._samples += isinstance(row, Sample)
            self._bytes += row.nbytes
            taken += 1
        self._rest = self._rest[taken:]
        if not self._rest:
            self._spans.append(self._head.pop().span)

    def _has_enough(self) -> bool:
        return (
            self._samples >= self._size
            or len(self._rows) >= self._rows_limit
            or self._bytes >= BATCH_BYTES
        )

    def _is_full(self) -> bool:
        if self._has_enough():
            return True
        if not self._spans:
            return False
        return bool(self._spans[-1].flush) or not self._rows  # marks alone need not wait

    def _cut(self) -> Batch:
        last = self._spans[-1] if self._spans else self._head[0].span
        marks: dict[int, int] = {}
        skips: dict[int, tuple[Range, ...]] = {}
        for span in self._spans:
            marks.update(span.marks)
            for partition, ranges in span.skips.items():
                skips[partition] = skips.get(partition, ()) + ranges
        # The head chunk's terms are the newest: what is in hand of it is in this batch, too.
        newest = self._head[0].span if self._rest else last
        flush = last.flush if self._spans else 0
        batch = Batch(Span(newest.run, newest.terms, marks, flush, skips), self._rows)
        self._rows, self._samples, self._bytes, self._spans = [], 0, 0, []
        self._since = time.monotonic()
        return batch

    def _takes(self, span: Span) -> bool:
        """False for records of an older run, and for those behind a cut."""
        return self._fence.holds(span) and self._fence.cut[0] != span.run.number

    def _forget(self) -> None:
        """The run ended or was cut: nothing more of it is embedded."""
        self._head.clear()
        self._rest, self._rows, self._samples, self._bytes, self._spans = [], [], 0, 0, []
