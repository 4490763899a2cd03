"""`Batcher`: full or lingered, the order of the line kept, marks and flushes behind their records,
older runs forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import TemporaryError
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Run, Span
from streamer.judge import batcher
from streamer.judge.batcher import Batch, Batcher
from streamer.records import Decision, Decoded, Facts, Record, Sample, Settled, Term

PIXELS = np.zeros((1, 1, 3), np.uint8)
TERM = Term(0, 7, 1, 0)
LONG = 30.0


def sample(offset: int) -> Sample:
    return Sample(Record(0, offset, 0, b"", ()), Facts(), PIXELS)


def settled(offset: int) -> Settled:
    return Settled(Record(0, offset, 0, b"", ()), Facts(), Decision("invalid", "corrupt"))


def heavy(row: Decoded) -> Decoded:
    row.nbytes = 40
    return row


class Line:
    """A batcher with its channel, fed by hand. ``linger`` is long unless a test is about it: then
    only what is full comes out."""

    def __init__(self, size: int = 4, linger_s: float = LONG) -> None:
        self.run = Run(1, 0)
        self.fence = Fence(self.run)
        self.chunks: Channel[Chunk] = Channel("decode", 10_000)
        self.batcher = Batcher(self.chunks, size, linger_s, self.fence)

    def span(
        self,
        marks: Mapping[int, int] | None = None,
        flush: int = 0,
        terms: Mapping[int, Term] | None = None,
    ) -> Span:
        return Span(self.run, {0: TERM} if terms is None else terms, marks or {}, flush)

    def promise(self, span: Span | None = None) -> Future[list[Decoded]]:
        future: Future[list[Decoded]] = Future()
        assert self.chunks.put(Chunk(span or self.span(), future))
        return future

    def feed(
        self, rows: list[Decoded], marks: Mapping[int, int] | None = None, flush: int = 0
    ) -> None:
        self.promise(self.span(marks, flush)).set_result(rows)

    def take(self, timeout: float = 0.0) -> Batch | None:
        return self.batcher.take(timeout)

    def next_run(self) -> None:
        self.run = self.fence.run = Run(self.run.number + 1, 0)


def offsets(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [row.record.offset for row in batch.rows]


def test_nothing_to_take() -> None:
    line = Line()
    before = time.monotonic()
    assert line.take(0.1) is None
    assert 0.1 <= time.monotonic() - before < 5


def test_chunks_gather_into_a_full_batch() -> None:
    line = Line(size=4)
    line.feed([sample(0), sample(1)])
    assert line.take() is None
    line.feed([sample(2), sample(3)])
    assert offsets(line.take()) == [0, 1, 2, 3]
    assert line.take() is None


def test_a_batch_has_few_records_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settled ones, too: they are kept until they are written."""
    monkeypatch.setattr(batcher, "BATCH_BYTES", 100)
    line = Line(size=50)
    line.feed([heavy(sample(0)), heavy(settled(1)), heavy(sample(2)), sample(3)])
    line.feed([heavy(settled(4)), heavy(settled(5))])
    assert offsets(line.take()) == [0, 1, 2]
    assert line.take() is None
    line.feed([heavy(settled(6)), settled(7)])
    assert offsets(line.take()) == [3, 4, 5, 6]
    line.feed([], flush=1)
    assert offsets(line.take()) == [7]


def test_a_chunk_larger_than_a_batch_is_split_and_its_marks_come_with_its_last_part() -> None:
    line = Line(size=4)
    line.feed([sample(i) for i in range(10)], marks={0: 12})
    first, second = line.take(), line.take()
    assert offsets(first) == [0, 1, 2, 3]
    assert offsets(second) == [4, 5, 6, 7]
    assert first is not None
    assert second is not None
    assert first.span.marks == second.span.marks == {}
    assert first.span.terms == second.span.terms == {0: TERM}
    line.feed([], flush=3)
    last = line.take()
    assert offsets(last) == [8, 9]
    assert last is not None
    assert (last.span.marks, last.span.flush) == ({0: 12}, 3)


def test_a_batch_that_ends_within_a_chunk_carries_the_marks_of_the_chunks_before_it_only() -> None:
    line = Line(size=3)
    line.feed([sample(0)], marks={0: 5})
    line.feed([sample(i) for i in (5, 6, 7)], marks={0: 9, 1: 4})
    first = line.take()
    assert offsets(first) == [0, 5, 6]
    assert first is not None
    assert first.span.marks == {0: 5}
    line.feed([sample(9), sample(10)])
    second = line.take()
    assert offsets(second) == [7, 9, 10]
    assert second is not None
    assert second.span.marks == {0: 9, 1: 4}


def test_terms_of_the_newest_chunk_that_has_a_row_in_the_batch() -> None:
    line = Line(size=3)
    more = {0: TERM, 1: Term(1, 8, 2, 0)}
    line.promise(line.span()).set_result([sample(0)])
    line.promise(line.span(terms=more)).set_result([sample(i) for i in range(1, 5)])
    first = line.take()
    assert offsets(first) == [0, 1, 2]
    assert first is not None
    assert first.span.terms == more


def test_the_linger_begins_with_the_first_row() -> None:
    line = Line(size=100, linger_s=0.2)
    assert line.take(0.3) is None  # an empty batcher does not linger
    line.feed([sample(0)])
    before = time.monotonic()
    assert line.take(0.05) is None
    line.feed([sample(1)])  # does not begin it anew
    assert offsets(line.take(5)) == [0, 1]
    assert 0.15 <= time.monotonic() - before < 2


def test_rows_left_over_linger_anew() -> None:
    line = Line(size=2, linger_s=0.2)
    line.feed([sample(i) for i in range(3)])
    assert offsets(line.take()) == [0, 1]
    before = time.monotonic()
    assert offsets(line.take(5)) == [2]
    assert 0.15 <= time.monotonic() - before < 2


def test_a_chunk_still_being_decoded_does_not_hold_back_what_lingers() -> None:
    line = Line(size=100, linger_s=0.1)
    line.feed([sample(0)])
    slow = line.promise()
    assert offsets(line.take(5)) == [0]
    assert line.take(0.05) is None
    slow.set_result([sample(1)])
    assert offsets(line.take(5)) == [1]


def test_a_chunk_that_is_decoded_while_take_waits() -> None:
    line = Line(size=2)
    future = line.promise()
    timer = threading.Timer(0.1, lambda: future.set_result([sample(0), sample(1)]))
    timer.start()
    assert offsets(line.take(10)) == [0, 1]
    timer.join()


def test_settled_rows_ride_along_in_their_places() -> None:
    line = Line(size=2)
    line.feed([settled(0), sample(1), settled(2), settled(3), sample(4), settled(5), sample(6)])
    first = line.take()
    assert offsets(first) == [0, 1, 2, 3, 4]
    line.feed([sample(7)])
    assert offsets(line.take()) == [5, 6, 7]


def test_settled_rows_alone_cannot_pile_up() -> None:
    line = Line(size=2)  # the limit is 1024 rows
    line.feed([settled(i) for i in range(1500)])
    assert offsets(line.take()) == list(range(1024))
    assert line.take() is None
    line.feed([settled(i) for i in range(1500, 2100)])
    assert offsets(line.take()) == list(range(1024, 2048))


def test_marks_alone_need_not_wait() -> None:
    line = Line()
    line.feed([], marks={2: 40})
    batch = line.take()
    assert batch is not None
    assert batch.rows == []
    assert batch.span.marks == {2: 40}


def test_what_is_skipped_comes_before_the_rows_behind_it() -> None:
    line = Line()
    line.feed([sample(i) for i in range(3)])
    for skip in ((3, 9), (9, 12)):
        span = replace(line.span(), skips={0: (skip,)})
        line.promise(span).set_result([])
    line.feed([sample(i) for i in range(12, 20)])
    first, second = line.take(), line.take()
    assert first is not None
    assert second is not None
    assert offsets(first) == [0, 1, 2, 12]
    assert first.span.skips == {0: ((3, 9), (9, 12))}
    assert second.span.skips == {}


def test_a_flush_does_not_wait_and_comes_behind_its_records() -> None:
    line = Line(size=100)
    line.feed([sample(0)], marks={0: 1})
    line.feed([sample(1)], flush=9)
    line.feed([sample(2)])
    batch = line.take()
    assert offsets(batch) == [0, 1]
    assert batch is not None
    assert (batch.span.flush, batch.span.marks) == (9, {0: 1})
    assert line.take() is None


def test_rows_of_an_older_run_are_forgotten_wherever_they_are() -> None:
    line = Line(size=3)
    line.feed([sample(i) for i in range(4)])
    assert offsets(line.take()) == [0, 1, 2]  # 3 is left over
    line.feed([sample(4)])  # waits in the channel
    line.next_run()
    line.feed([sample(i) for i in (100, 101, 102)])
    assert offsets(line.take()) == [100, 101, 102]


def test_a_gathered_row_and_a_chunk_being_decoded_are_forgotten_with_their_run() -> None:
    line = Line(size=3)
    line.feed([sample(0)], marks={0: 1})
    slow = line.promise()
    assert line.take() is None  # 0 is gathered, the other chunk is waited for
    line.next_run()
    line.feed([sample(i) for i in (50, 51, 52)], marks={0: 60})
    slow.set_result([sample(1)])
    batch = line.take()
    assert offsets(batch) == [50, 51, 52]
    assert batch is not None
    assert batch.span.run.number == 2
    line.feed([], flush=1)
    last = line.take()
    assert last is not None
    assert last.span.marks in ({}, {0: 60})
    assert batch.span.marks | last.span.marks == {0: 60}


def test_a_failed_decode_of_an_older_run_is_nobodys_business_any_more() -> None:
    line = Line(size=1)
    slow = line.promise()
    assert line.take() is None
    line.next_run()
    slow.set_exception(TemporaryError("too late to matter"))
    line.feed([sample(5)])
    assert offsets(line.take()) == [5]


def test_a_cut_answers_once_and_forgets_everything_of_its_run() -> None:
    line = Line(size=3)
    line.feed([sample(i) for i in range(5)])
    assert offsets(line.take()) == [0, 1, 2]
    line.feed([sample(5)])
    line.fence.cut = (line.run.number, 4)
    answer = line.take()
    assert answer is not None
    assert answer.rows == []
    assert answer.span.run is line.run
    assert (answer.span.flush, answer.span.marks) == (4, {})
    line.feed([sample(i) for i in (6, 7, 8)])
    assert line.take() is None
    line.next_run()
    line.feed([sample(i) for i in (20, 21, 22)])
    assert offsets(line.take()) == [20, 21, 22]


def test_a_second_cut_of_the_same_run_is_answered_too() -> None:
    line = Line()
    for flush in (1, 2):
        line.fence.cut = (line.run.number, flush)
        answer = line.take()
        assert answer is not None
        assert answer.span.flush == flush
        assert line.take() is None


def test_the_cut_of_an_older_run_is_not_answered() -> None:
    line = Line(size=1)
    line.fence.cut = (line.run.number, 1)
    line.next_run()
    line.feed([sample(0)])
    assert offsets(line.take()) == [0]


def test_what_a_decode_worker_raised_comes_out_here() -> None:
    line = Line()
    line.promise().set_exception(TemporaryError("away"))
    with pytest.raises(TemporaryError, match="away"):
        line.take()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.booleans(), max_size=9), st.booleans(), st.booleans()), max_size=12
    ),
    st.integers(1, 6),
)
def test_whatever_comes_in_goes_out_once_in_order_and_marks_follow_their_records(
    chunks: list[tuple[list[bool], bool, bool]], size: int
) -> None:
    """Chunks of rows (True: a sample), with or without a mark (the chunk's end) and a flush behind
    them."""
    line = Line(size=size)
    at, flushes, ends = 0, 0, []
    for rows, marked, flushed in chunks:
        decoded: list[Decoded] = [
            sample(at + i) if is_sample else settled(at + i) for i, is_sample in enumerate(rows)
        ]
        at += len(rows)
        flushes += flushed
        line.feed(decoded, {0: at} if marked else None, flushes if flushed else 0)
        ends += [(at, flushes)] if flushed else []
    line.feed([], flush=99)
    seen: list[int] = []
    answered: list[tuple[int, int]] = []
    while (batch := line.take()) is not None:
        samples = [isinstance(row, Sample) for row in batch.rows]
        assert sum(samples) <= size
        seen += offsets(batch)
        assert all(mark <= len(seen) for mark in batch.span.marks.values())
        if batch.span.flush:
            answered.append((len(seen), batch.span.flush))
    assert seen == list(range(at))
    assert answered == [*ends, (at, 99)]
