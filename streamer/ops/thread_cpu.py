"""CPU seconds of each thread, from the kernel: Python's threads by their name, native ones by the
name they gave themselves."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_TASKS = Path("/proc/self/task")
_NUMBERS = re.compile(r"[-_ ]?\d+")
_LIBRDKAFKA = "rdk:"
_SCHED_PER_THREAD = 0b110
"""The low bits of a thread's CPU clock (Linux, include/linux/posix-timers.h). /proc has the same
time in ticks of 10 ms, in which a thread that wakes up often and briefly may have used none."""
NATIVE = "native"
"""The pools of BLAS, Arrow and CUDA: threads that neither Python nor librdkafka named."""


class ThreadCpu(Collector):
    """Sums by thread name that never fall: what a thread used before it ended stays counted, as far
    as it was seen.

    Empty where there is no /proc (macOS). Safe for any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, int], tuple[str, float]] = {}
        """(thread id, start time) → (name, CPU seconds when last seen)"""
        self._ended: defaultdict[str, float] = defaultdict(float)

    def read(self) -> dict[str, float]:
        """Thread name → CPU seconds (user and system) since the process began. Numbers in names are
        dropped: decode-3 is decode."""
        with self._lock:
            now = {}
            for key, name, seconds in _tasks():
                # Python forgets a thread a moment before the kernel does: it keeps the name it was
                # last seen with.
                known = self._seen.get(key, (name, 0.0))[0] if name == NATIVE else name
                now[key] = (known, seconds)
            for key in self._seen.keys() - now.keys():
                name, seconds = self._seen[key]
                self._ended[name] += seconds
            self._seen = now
            sums = self._ended.copy()
            for name, seconds in now.values():
                sums[name] += seconds
            return dict(sums)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "streamer_thread_cpu_seconds",
            "CPU seconds by thread; one that rises a second per second is a limit of its own.",
            labels=["thread"],
        )
        for name, seconds in sorted(self.read().items()):
            family.add_metric([name], seconds)
        yield family


def _tasks() -> Iterator[tuple[tuple[int, int], str, float]]:
    """((thread id, start time), name, CPU seconds) of every thread that is alive."""
    if not _TASKS.is_dir():
        return
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in _TASKS.iterdir():
        tid = int(task.name)
        try:
            stat = (task / "stat").read_bytes()
            seconds = time.clock_gettime(~tid << 3 | _SCHED_PER_THREAD)
        except OSError:  # it ended between the two calls
            continue
        # proc(5): "pid (comm) state ppid …"; comm may hold spaces and parentheses. Field 22 is the
        # start time.
        comm, rest = stat[stat.index(b"(") + 1 :].rsplit(b")", 1)
        fields = rest.split()
        yield (
            (tid, int(fields[19])),
            _name(names.get(tid), comm.decode("utf-8", "replace")),
            seconds,
        )


def _name(python_name: str | None, comm: str) -> str:
    """Without numbers, so that the set is bounded: decode-3 is decode, rdk:broker1 is rdk:broker."""
    if python_name is not None:
        return _NUMBERS.sub("", python_name) or "thread"
    return _NUMBERS.sub("", comm) if comm.startswith(_LIBRDKAFKA) else NATIVE
