"""Is the process alive, and is it doing its work: what `/livez` and `/readyz` answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from streamer.flow.worker import Failure


@dataclass(frozen=True)
class Report:
    """The answer to a probe. ``reason`` is empty iff ``ok``."""

    ok: bool
    phase: str
    reason: str = ""
    heartbeats: dict[str, float] = field(default_factory=dict)
    """Thread name → seconds since its last beat."""

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "phase": self.phase,
            "reason": self.reason,
            "heartbeats": self.heartbeats,
        }


class Heartbeat:
    """One thread's sign of life: call it in every turn of its loop. One assignment; never blocks."""

    def __init__(self, name: str, limit_s: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.limit_s = limit_s
        self._clock = clock
        self._last = clock()

    def __call__(self) -> None:
        self._last = self._clock()

    @property
    def age_s(self) -> float:
        return self._clock() - self._last


class Health:
    """The state behind the probes. Safe for any thread; nothing blocks.

    *Live* until a thread has failed or a heartbeat is older than its limit: only a restart helps
    then. *Ready* while live and in a phase that was entered with ``ready=True``: the dedup state is
    restored, and the group's partitions are polled: not while brokers are away.
    """

    def __init__(self, failure: Failure, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, which may stand still while no thread can be blamed."""
        self._failure = failure
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ("starting", False)
        self._held: Callable[[], Mapping[str, int]] = dict
        self._paused: tuple[int, ...] = ()
        self._storage_away_s: Callable[[], float] = lambda: 0.0
        self._excused = clock()
        self._beats: dict[str, Heartbeat] = {}
        self._brokers: Callable[[], str] = str

    def enter(self, phase: str, ready: bool = False) -> None:
        """Names what the process does now, in words for a person: ``loading the model``,
        ``polling``, ``draining``."""
        self._phase = (phase, ready)

    def watch_held(self, read: Callable[[], Mapping[str, int]]) -> None:
        """``read`` gives the records that wait for each server; it must not block. The phase names
        the servers."""
        self._held = read

    def paused(self, partitions: Collection[int]) -> None:
        """The phase names them from now on."""
        self._paused = tuple(sorted(partitions))

    def watch_storage(self, away_s: Callable[[], float]) -> None:
        """``away_s`` gives for how many seconds the storage has been away, 0 while it is not; it
        must not block. The phase says so."""
        self._storage_away_s = away_s

    def excuse(self) -> None:
        """A thread waits for something that has a deadline of its own, and may hold up the others:
        all beats count from now. Any thread."""
        self._excused = self._clock()

    @contextmanager
    def unwatched(self, beat: Heartbeat) -> Iterator[None]:
        """The thread begins something that may take long, and gives no sign meanwhile."""
        self.forget(beat)
        yield
        beat()
        with self._lock:
            self._beats[beat.name] = beat

    def watch_brokers(self, read: Callable[[], str]) -> None:
        """``read`` says in words that the brokers are away; it must not block."""
        self._brokers = read

    def heartbeat(self, name: str, limit_s: float) -> Heartbeat:
        """Watches a thread from now on; it must beat at least every ``limit_s`` seconds until
        `forget`."""
        beat = Heartbeat(name, limit_s, self._clock)
        with self._lock:
            self._beats[name] = beat
        return beat

    def forget(self, beat: Heartbeat) -> None:
        """The thread ended, or begins something that has a deadline of its own (a watchdog's)."""
        with self._lock:
            self._beats.pop(beat.name, None)

    def livez(self) -> Report:
        with self._lock:
            beats = tuple(self._beats.values())
        ages = {beat.name: round(beat.age_s, 3) for beat in beats}
        excused_s = self._clock() - self._excused
        late = [
            f"thread {b.name} gave no sign for {ages[b.name]:.0f} s (limit {b.limit_s:g} s)"
            for b in beats
            if min(ages[b.name], excused_s) > b.limit_s
        ]
        if self._failure.thread:
            late.insert(0, f"thread {self._failure.thread} failed; its error is in the log")
        return Report(not late, self._described(self._phase[0]), "; ".join(late), ages)

    def readyz(self) -> Report:
        phase, ready = self._phase
        live = self.livez()
        if live.ok and not ready:
            said = self._described(phase)
            return Report(False, said, f"not consuming yet or any more: {said}", live.heartbeats)
        if live.ok and (away := self._brokers()):
            return Report(False, live.phase, away, live.heartbeats)
        return live

    def _described(self, phase: str) -> str:
        waits_for = sorted(self._held())
        if away_s := self._storage_away_s():
            waits_for.append(f"the storage ({away_s:.0f} s)")
        if waits_for:
            phase = f"{phase}, waiting for {', '.join(waits_for)}"
        if self._paused:
            paused = ", ".join(map(str, self._paused))
            phase = f"{phase}, paused partitions: {paused} (too many invalid records)"
        return f"{phase}; {away}" if (away := self._brokers()) else phase
