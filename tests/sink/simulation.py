"""The whole world of a simulation, and what can go wrong in it.

A *plan* is a list of (steps to wait, kind of trouble, argument): numbers, so that hypothesis can
make and shrink it. After the plan everything heals; then every record must be committed, every
process must end well, and nothing may be left over.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sim_client
from sim_broker import TRANSACTION_TIMEOUT_S, Broker
from sim_group import POLL_INTERVAL_S
from sim_oracle import Oracle, Violation
from sim_process import DRAIN_S, SEAL_AFTER_S, Process, simulated
from sim_schedule import Schedule, Task
from sim_storage import PATIENCE_S, Disk
from sim_trouble import DELAYS, TROUBLES

import streamer.replica
import streamer.sink.engine
import streamer.sink.storage
from streamer.errors import Fenced, ProtocolError, Unfinished
from streamer.wire.pause import decode as decode_pause
from streamer.wire.pause import encode as encode_pause

Trouble = tuple[int, int, int]
TRACE = 400
"""Steps that a failure shows."""
CALM_S = 400.0
"""So long the healed world may take to commit everything."""
STALE_AFTER_S = 2 * (SEAL_AFTER_S + DRAIN_S) + PATIENCE_S + TRANSACTION_TIMEOUT_S
"""As `streamer.app` reckons it."""


@dataclass(frozen=True)
class Setting:
    """How a world begins."""

    writers: int = 2
    partitions: int = 2
    records: int = 20
    static: bool = False
    copies: bool = False
    """Storage that copies instead of renaming."""
    latest: bool = False
    bounded: bool = False
    """Processes run with ``--until end``; what they report as done must be done."""
    hasty: bool = False
    """The consumer joins again in the background, before it tells that its partitions were lost."""
    patient: bool = False
    """The user raised ``max.poll.interval.ms``: the group waits longer for a member that hangs than
    staging is left alone."""
    poison: bool = False
    """Some records of partition 0 end the process that has them in its line."""
    expiring: bool = False
    """Records expire before they are decided; they are skipped."""
    skew: int = 0
    """Seconds that the clock of w-0's host is ahead, whatever process runs there."""
    jitter: int = 0
    """Not 0: the seed of small random delays of everything."""


@dataclass(frozen=True)
class Parts:
    """The modules under test; a mutation check puts broken ones here."""

    engine: Any = streamer.sink.engine
    replica: Any = streamer.replica
    client: Any = sim_client
    storage: Any = streamer.sink.storage


PARTS = Parts()


class World:
    def __init__(self, setting: Setting, plan: Sequence[Trouble], parts: Parts = PARTS) -> None:
        self.setting = setting
        self.parts = parts
        self.latest = setting.latest
        self.stale_after_s = STALE_AFTER_S / 2 if setting.patient else STALE_AFTER_S
        self.poll_interval_s = 5 * POLL_INTERVAL_S if setting.patient else POLL_INTERVAL_S
        self.schedule = Schedule(self._disturb)
        self.disk = Disk(lambda: self.schedule.now, setting.copies)
        self.oracle = Oracle(self.disk)
        self.broker = Broker(
            self.schedule, setting.partitions, self.poll_interval_s, self.oracle.decided
        )
        self.oracle.broker = self.broker
        self.oracle.may_delete = self.may_delete
        self.living: dict[str, Process] = {}
        """Writer → its newest process."""
        self.zombies: list[Process] = []
        self.processes: list[Process] = []
        self.gone: set[str] = set()
        """Writers whose pods were removed."""
        self.drops: list[str] = []
        """Why epochs were dropped, in order."""
        self.history: deque[str] = deque(maxlen=TRACE)
        self.at_port = False
        """The running thread is about to call Kafka or the storage."""
        self._plan = deque(plan)
        self._next_trouble = plan[0][0] if plan else -1
        self.calm = not plan
        self._restarts = True
        self._reached: dict[str, dict[int, int]] = {}
        """Writer → where its bounded run went, which ended well for good."""
        self._produced = 0
        self._dice = random.Random(setting.jitter) if setting.jitter else None
        if self._dice is not None:
            self.broker.marker_delay = lambda: self._dice.choice((0.0, 0.0, 0.05, 0.4))  # type: ignore[union-attr]

    # The story

    def run(self) -> None:
        logging.getLogger("streamer").setLevel(logging.CRITICAL)
        for log in self.broker.input:
            log.entries += [True] * (self.setting.records // self.setting.partitions)
        if self.setting.latest:
            for log in self.broker.input:
                log.begin = len(log.entries) // 3
            for n in range(
                20
            ):  # so that replicas which found the dataset at once see different ends
                self.schedule.at(
                    0.5 + 0.01 * n,
                    partial(self.broker.input[n % len(self.broker.input)].entries.append, True),
                )
        try:
            with simulated(self):
                self._tick()
                for n in range(self.setting.writers):
                    self.start(f"w-{n}")
                self._chaos()
                self._heal()
                self._stop_all()
                self._recover_all()
        finally:
            self.schedule.close()
            for process in self.processes:
                process.folder.forget()

    def _produce(self) -> None:
        """A little all the time, so that trouble meets epochs in every state."""
        if not self.calm:
            self._produced += 1
            self.broker.input[self._produced % len(self.broker.input)].entries += [True] * (
                1 + self._produced % 3
            )
            self.wake()
            self.schedule.at(0.7, self._produce)

    def _chaos(self) -> None:
        self._produce()
        self._until(
            lambda: not self._plan or self.schedule.now > self._started + 300, "the plan ends", 400
        )

    def _heal(self) -> None:
        self.calm = True
        for process in [*self.living.values(), *self.zombies]:
            process.frozen_until = min(process.frozen_until, self.schedule.now)
            process.fault, process.aborts = None, 0
        self.resume()
        for writer in [f"w-{n}" for n in range(self.setting.writers)]:
            self.gone.discard(writer)
            if writer not in self.living:
                self.start(writer)
        if self.setting.latest:
            for log in self.broker.input:  # else nothing may ever be there to be committed
                log.entries.append(True)
            self.wake()
        if not self.setting.bounded:
            self._until(self.oracle.is_complete, "every record is committed", CALM_S)

    def _stop_all(self) -> None:
        self._rest(max(DELAYS))
        for process in self.living.values():
            process.stopping = process.stopping or not self.setting.bounded
        last = list(self.living.values())
        self._restarts = self.setting.bounded
        if self.setting.bounded:
            writers = self.setting.writers
            self._until(lambda: len(self._reached) == writers, "every run ends well", CALM_S)
            self._bounded_are_done()
        self._until(lambda: not self.living, "every process ends", 60)
        if bad := [
            p
            for p in last
            if p.exit_code and not isinstance(p.error, Fenced) and not self.setting.bounded
        ]:
            raise Violation(
                f"{bad[0].name}, told to stop, ends with {bad[0].exit_code}: {bad[0].error}"
            )
        for zombie in self.zombies:
            self.kill(zombie, "the end")

    def _recover_all(self) -> None:
        """Starts every writer once more, one after the other, long after."""
        self._restarts = False
        self._rest(10 * self.stale_after_s)
        for n in range(self.setting.writers):
            process = self.start(f"w-{n}")
            process.stopping = True
            self._until(lambda: not self.living, "a last start recovers", 60)
            if process.exit_code != 0 and not isinstance(process.error, Unfinished):
                raise Violation(
                    f"a last start of {process.writer} ends with {process.exit_code}: {process.error}"
                )
        self.oracle.at_rest([f"w-{n}" for n in range(self.setting.writers)])

    def _rest(self, seconds: float) -> None:
        self.schedule.at(seconds, self.schedule.stop)
        self.schedule.run()

    def _until(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = self.schedule.now + seconds

        def look() -> None:
            if done():
                self.schedule.stop()
            elif self.schedule.now > deadline:
                raise Violation(
                    f"liveness: not within {seconds:.0f} s: {what}; tiles {self.oracle.tiles}, ends {[log.end for log in self.broker.input]}"
                )
            else:
                self.schedule.at(0.5, look)

        self.schedule.at(0.0, look)
        self.schedule.run()

    def _tick(self) -> None:
        self._started = self.schedule.now

        def tick() -> None:
            self.broker.group.tick()
            self.schedule.at(0.5, tick)

        tick()

    # Processes

    def start(self, writer: str) -> Process:
        process = Process(self, writer, self.setting.static, self.setting.bounded)
        self.living[writer] = process
        self.processes.append(process)
        process.start()
        self.trace(process, "starts")
        return process

    def exited(self, process: Process) -> None:
        self.trace(process, f"exit {process.exit_code} {process.error or ''}")
        if process in self.zombies:
            self.zombies.remove(process)
        if isinstance(process.error, ProtocolError) or process.is_robbed():
            self.schedule.fail(Violation(f"{process.name} ends with: {process.error}"))
        if process.exit_code == 0 and (self.setting.bounded or not process.stopping):
            undone = (
                {p: log.end for p, log in enumerate(self.broker.input)}
                if not self.setting.bounded
                else self._undone(process)
            )
            if undone:
                self.schedule.fail(
                    Violation(
                        f"{process.name} ended by itself; it was to go on to {undone}, the epochs end at {self.oracle.tiles}"
                    )
                )
        if self.living.get(process.writer) is process:
            del self.living[process.writer]
            done = process.exit_code == 0 and self.setting.bounded and self.calm
            if done:
                self._reached[process.writer] = process.targets
            if self._restarts and not done and process.writer not in self.gone:
                self.schedule.at(1.0, lambda: self._restart(process.writer))

    def _undone(self, process: Process) -> dict[int, int]:
        """Where a bounded run that says it is done had to go, and did not: the ends of its own
        partitions, or of all if it has none."""
        due = process.owned or range(len(self.broker.input))
        return self._short_of({p: process.targets.get(p, -1) for p in due})

    def _short_of(self, ends: Mapping[int, int]) -> dict[int, int]:
        return {
            p: end
            for p, end in ends.items()
            if not 0 <= end <= self.oracle.tiles.get(p, (0, -1))[1]
        }

    def _bounded_are_done(self) -> None:
        """All of them together: no partition may be left to nobody."""
        due = {
            p: min((t[p] for t in self._reached.values() if p in t), default=-1)
            for p in range(len(self.broker.input))
        }
        if undone := self._short_of(due):
            raise Violation(f"all replicas ended well, and nobody went on to {undone}")

    def _restart(self, writer: str) -> None:
        if writer not in self.living and writer not in self.gone and self._restarts:
            self.start(writer)

    def kill(self, process: Process, why: str) -> None:
        self.trace(process, f"killed: {why}")
        process.killed = True
        process.frozen_until = 0.0
        if process.exit_code is None:
            process.exit_code = 137
            self.exited(process)

    def is_poison(self, partition: int, offset: int) -> bool:
        return self.setting.poison and partition == 0 and offset in (7, 47)

    def may_delete(self, writer: str, uuid: str) -> bool:
        """Whether the running process may delete what this writer staged and has not committed: its
        own, or what is too old to be committed."""
        owner = self.schedule.current.owner
        if not isinstance(owner, Process) or owner.writer == writer:
            return True
        opened = [p.opened[uuid] for p in self.processes if uuid in p.opened]
        return all(self.schedule.now - at > 2 * self.stale_after_s for at in opened)

    def resume(self) -> None:
        """Somebody has looked at every partition that is paused."""
        for path, (data, _) in list(self.disk.files.items()):
            if path.startswith(".paused/") and path.endswith(".json"):
                pause = decode_pause(data)
                self.disk.put(path, encode_pause(replace(pause, resumed_to=pause.offset)))
        if self.calm:  # one may be noticed only now
            self.schedule.at(1.0, self.resume)

    def forgotten(self, process: Process, how: str) -> None:
        """What this process has not committed by now can never be committed."""
        committed = {m.uuid for m in self.oracle.committed}
        for uuid in process.opened.keys() - committed:
            self.oracle.dead.setdefault(uuid, how)

    # Trouble

    def trace(self, process: Process, what: str) -> None:
        self.history.append(f"{self.schedule.now - self._started:8.3f} {process.name} {what}")

    def _disturb(self, task: Task) -> None:
        if self._dice is not None and task.wake <= self.schedule.now and self._dice.random() < 0.2:
            self.schedule.delay(task, self._dice.choice((0.001, 0.01, 0.1)))
        if self.calm or not self._plan or not self.at_port:
            return
        self.at_port = False
        self._next_trouble -= 1
        if self._next_trouble > 0:
            return
        _, kind, argument = self._plan.popleft()
        if self._plan:
            self._next_trouble = self._plan[0][0]
        process = task.owner
        if isinstance(process, Process) and process.exit_code is None:
            name, act = TROUBLES[kind % len(TROUBLES)]
            self.trace(process, f"--- {name} {argument}")
            act(self, task, process, argument)

    def wake(self) -> None:
        for process in [*self.living.values(), *self.zombies]:
            process.notify()


def simulate(setting: Setting, plan: Sequence[Trouble], parts: Parts = PARTS) -> World:
    """Runs one world. Raises what went wrong, with the last steps before it."""
    world = World(setting, plan, parts)
    try:
        world.run()
    except Exception as error:
        tail = "\n".join(world.history)
        raise Violation(f"{error}\n{setting}\n{list(plan)}\n{tail}") from error
    return world
