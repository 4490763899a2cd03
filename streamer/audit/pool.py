"""Work on many epochs at once: in processes, for most of it holds Python's lock. Results come in
the order of the tasks, whichever is ready first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Protocol, TypeVar

import streamer
from streamer.errors import DependencyError
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder

Advance = Callable[[int], None]
T = TypeVar("T", covariant=True)
_LOOK_S = 0.2
_STOP = -1 << 62
"""In place of the bytes that were read: tasks end with the next ones that they read."""


class Stopped(Exception):
    """In a process of the pool, when nobody wants its result any more."""


class Work(Protocol[T]):
    """A task: picklable, and so is what it gives or raises. ``advance``: told of bytes read."""

    def __call__(self, folder: Folder, advance: Advance, /) -> T: ...


class Pool:
    """``jobs`` processes, or for one job this one. One thread; a context manager, which ends
    them."""

    def __init__(self, path: str, jobs: int, advance: Advance) -> None:
        """``path``: the folder, as `open_folder` takes it. ``advance`` is called in the caller's
        thread. The processes start with the first task."""
        self._jobs = jobs
        self._advance = advance
        self._told = 0
        self._executor: ProcessPoolExecutor | None = None
        if jobs > 1 and _are_found():
            # A fork would copy Arrow's and librdkafka's locks without the threads that hold them
            context = multiprocessing.get_context("spawn")
            self._read: Any = context.Value("q")
            self._executor = ProcessPoolExecutor(jobs, context, _begin, (path, self._read))
        else:
            self._folder = open_folder(path)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            if kind is not None:
                self._read.value = _STOP
            self._executor.shutdown(cancel_futures=True)
            self._executor = self._read = None  # before the interpreter ends: they hold semaphores

    def results(self, tasks: Iterable[Work[T]]) -> Iterator[T]:
        """Of each task, in order; a few are done ahead. Raises what a task raises, and
        DependencyError where a process was killed."""
        if self._executor is None:
            for task in tasks:
                yield task(self._folder, self._advance)
            return
        ahead: deque[Future[T]] = deque()
        try:
            for task in tasks:
                ahead.append(self._executor.submit(_do, task))
                if len(ahead) > 2 * self._jobs:
                    yield self._result(ahead.popleft())
            while ahead:
                yield self._result(ahead.popleft())
        except BrokenProcessPool:
            raise DependencyError(
                "a process of the audit was killed, by a lack of memory perhaps: try fewer --jobs"
            ) from None

    def _result(self, future: Future[T]) -> T:
        while not wait([future], _LOOK_S).done:
            self._tell()
        self._tell()
        return future.result()

    def _tell(self) -> None:
        done = self._read.value
        self._advance(done - self._told)
        self._told = done


def _are_found() -> bool:
    """Whether a new process would import this package: not, where it was found in the working
    directory, which is not on the path."""
    specs = (finder.find_spec("streamer", None) for finder in sys.meta_path)
    found = next((spec for spec in specs if spec is not None), None)
    return found is not None and found.origin == streamer.__file__


_folder: Folder
_counter: Any


def _begin(path: str, counter: Any) -> None:
    """In each process of the pool."""
    global _folder, _counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _folder, _counter = open_folder(path), counter


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _do(task: Work[T]) -> T:
    return task(_folder, _count)


def _count(nbytes: int) -> None:
    with _counter.get_lock():
        _counter.value += nbytes
        if _counter.value < 0:
            raise Stopped
