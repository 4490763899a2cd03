"""`Worker` and `Failure`: the first thread that fails stops all, and its exception is the one that
is told."""

from __future__ import annotations

import threading

import pytest

from streamer.errors import DependencyError
from streamer.flow.item import Fence, Run, Span
from streamer.flow.worker import Failure, Worker


def test_nothing_failed() -> None:
    failure = Failure()
    failure.raise_if_any()
    assert failure.thread == ""
    assert not failure.stop.is_set()


def test_a_failing_thread_sets_stop_and_its_error_is_raised_in_the_callers_thread() -> None:
    failure = Failure()
    error = DependencyError("the disk is full")

    def run() -> None:
        raise error

    worker = Worker("writer", run, failure)
    assert not worker.is_alive()
    worker.start()
    assert worker.join(10)
    assert failure.stop.is_set()
    assert failure.thread == "writer"
    for _ in range(2):
        with pytest.raises(DependencyError) as raised:
            failure.raise_if_any()
        assert raised.value is error


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), GeneratorExit()]
)
def test_whatever_a_thread_raises_stops_the_process(error: BaseException) -> None:
    failure = Failure()

    def run() -> None:
        raise error

    worker = Worker("device", run, failure)
    worker.start()
    assert worker.join(10)
    assert failure.stop.is_set()
    with pytest.raises(type(error)):
        failure.raise_if_any()


def test_the_first_error_is_the_one_that_is_told() -> None:
    failure = Failure()
    first, second = (
        Worker("first", lambda: _raise("first"), failure),
        Worker("second", lambda: _raise("second"), failure),
    )
    first.start()
    assert first.join(10)
    second.start()
    assert second.join(10)
    assert failure.thread == "first"
    with pytest.raises(ValueError, match="first"):
        failure.raise_if_any()


def test_a_thread_that_ends_by_itself_fails_nobody() -> None:
    failure = Failure()
    worker = Worker("quiet", lambda: None, failure)
    worker.start()
    assert worker.join(10)
    failure.raise_if_any()
    assert not failure.stop.is_set()


def test_join_says_whether_the_thread_ended_and_stop_ends_it() -> None:
    failure = Failure()
    worker = Worker("loop", lambda: _assert(failure.stop.wait(30)), failure)
    worker.start()
    assert worker.is_alive()
    assert not worker.join(0.05)
    failure.stop.set()
    assert worker.join(10)
    assert not worker.is_alive()
    failure.raise_if_any()


def test_workers_are_named_daemons() -> None:
    seen: list[tuple[str, bool]] = []
    worker = Worker(
        "claims",
        lambda: seen.append((threading.current_thread().name, threading.current_thread().daemon)),
        Failure(),
    )
    worker.start()
    assert worker.join(10)
    assert seen == [("claims", True)]


def test_a_fence_holds_for_the_current_run_only() -> None:
    fence = Fence(Run(1, 0))
    old, new = Span(Run(1, 0), {}, {}), Span(Run(2, 0), {}, {})
    assert fence.holds(old)
    assert not fence.holds(new)
    fence.run = Run(2, 5)
    assert fence.holds(new)
    assert not fence.holds(old)


def _raise(text: str) -> None:
    raise ValueError(text)


def _assert(value: bool) -> None:
    assert value
