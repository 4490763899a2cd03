"""Virtual time and one running thread: what makes a simulation of several processes deterministic.

The code under test blocks, so every simulated thread is a real one; but only one of them runs at
any moment, and it gives way only in `Schedule.pause`. Time stands still while anything can run and
jumps to the next moment when nothing can.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Any

EPOCH = 1_700_000_000.0
"""UTC seconds at which every simulation begins."""
UNWIND_S = 10.0
STEPS = 300_000
"""Of one world; the largest of a thousand took 16 000."""
PATIENCE = 500
"""Steps that a thread may take without any time passing, before the others have their turn."""


class Killed(BaseException):
    """The simulated process is gone: unwinds its threads. No code under test catches it."""


class Livelock(AssertionError):
    """A world goes round in circles."""


class Owner:
    """What threads belong to: one simulated process."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.killed = False
        self.frozen_until = 0.0


class Task:
    """One simulated thread."""

    __slots__ = ("baton", "done", "last", "name", "owner", "patience", "thread", "wake", "wakeable")

    def __init__(self, owner: Owner, name: str) -> None:
        self.owner = owner
        self.name = name
        self.wake = 0.0
        self.wakeable = False
        self.done = False
        self.last = 0
        self.patience = PATIENCE
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread: threading.Thread | None = None


class Schedule:
    """Who runs next, and what happens when."""

    def __init__(self, disturb: Callable[[Task], None]) -> None:
        """``disturb`` is called at every step of a thread, before it goes on; it may kill, freeze
        or delay anybody."""
        self.now = EPOCH
        self.steps = 0
        self.failure: BaseException | None = None
        self._disturb = disturb
        self._over = False
        self._tasks: list[Task] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count(1)
        self._driver = Task(Owner(), "driver")
        self.current = self._driver

    # For the driver

    def run(self) -> None:
        """Until `stop` is called. Raises what any thread or event raised."""
        self._over = False
        self._give_way(self._driver)
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self._over = True

    def close(self) -> None:
        """Unwinds every thread that is left."""
        self._over = True
        for task in list(self._tasks):
            task.owner.killed = True
            self.current = task
            task.baton.release()
            # A test that ran out of time leaves while another thread runs; then nobody answers
            self._driver.baton.acquire(timeout=UNWIND_S)

    # For anybody

    def spawn(self, owner: Owner, name: str, body: Callable[[], None]) -> Task:
        task = Task(owner, name)
        task.wake = self.now
        task.thread = threading.Thread(target=self._guard, args=(task, body), daemon=True)
        owner.tasks.append(task)
        self._tasks.append(task)
        task.thread.start()
        return task

    def at(self, delay: float, event: Callable[[], None]) -> None:
        """``event`` happens ``delay`` seconds from now; it must not pause."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def notify(self, owner: Owner) -> None:
        """Ends the waits of all threads of a process."""
        for task in owner.tasks:
            if task.wakeable:
                task.wake = self.now

    # For the running thread

    def pause(self, seconds: float = 0.0, wakeable: bool = False) -> None:
        """A point at which anything may happen. ``wakeable``: `notify` ends it early."""
        task = self.current
        if task.owner.killed:
            raise Killed
        self.steps += 1
        if self.steps > STEPS:
            raise Livelock(f"{STEPS} steps, and no end")
        task.patience -= 1
        if seconds or task.patience <= 0:
            seconds = max(seconds, 0.001)
            task.patience = PATIENCE
        task.wake = self.now + seconds
        task.wakeable = wakeable
        self._disturb(task)
        if task.owner.killed:
            raise Killed
        self._give_way(task)
        task.wakeable = False
        if task.owner.killed:
            raise Killed

    def delay(self, task: Task, seconds: float) -> None:
        """What the thread waits for takes so much longer."""
        task.wake = max(task.wake, self.now) + seconds
        task.wakeable = False

    # Inside

    def _guard(self, task: Task, body: Callable[[], None]) -> None:
        task.baton.acquire()
        try:
            if not task.owner.killed:
                body()
        except Killed:
            pass
        except BaseException as error:
            self.fail(error)
        task.done = True
        task.owner.tasks.remove(task)
        self._tasks.remove(task)
        following = self._pick(task) if not self._closing() else self._driver
        self.current = following
        following.baton.release()

    def _closing(self) -> bool:
        return self._over or self.failure is not None

    def fail(self, error: BaseException) -> None:
        """Ends the simulation."""
        if self.failure is None:
            self.failure = error
        self._over = True

    def _give_way(self, task: Task) -> None:
        following = self._pick(task)
        if following is not task:
            self.current = following
            following.baton.release()
            task.baton.acquire()

    def _pick(self, current: Task) -> Task:
        while not self._over:
            while self._events and self._events[0][0] <= self.now:
                event = heapq.heappop(self._events)[2]
                try:
                    event()
                except BaseException as error:
                    self.fail(error)
            if not current.done and current is not self._driver and _ready_at(current) <= self.now:
                return current
            best, best_key = None, (float("inf"), 0)
            for task in self._tasks:
                key = (_ready_at(task), task.last)
                if key < best_key:
                    best, best_key = task, key
            if self._events and (best is None or self._events[0][0] < best_key[0]):
                self.now = max(self.now, self._events[0][0])
            elif best is None:
                self.fail(AssertionError("nothing is left to happen"))
            else:
                self.now = max(self.now, best_key[0])
                best.last = next(self._order)
                best.patience = PATIENCE
                return best
        return self._driver


def _ready_at(task: Task) -> float:
    owner = task.owner
    return 0.0 if owner.killed else max(task.wake, owner.frozen_until)


def wait(schedule: Schedule, ready: Callable[[], Any], timeout: float) -> bool:
    """Pauses until ``ready()``; False when ``timeout`` seconds passed first."""
    deadline = schedule.now + timeout
    while not ready():
        left = deadline - schedule.now
        if left <= 0:
            return False
        schedule.pause(left, wakeable=True)
    return True
