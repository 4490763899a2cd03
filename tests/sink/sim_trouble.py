"""What can go wrong in a simulated world: each trouble befalls the process whose thread is about to
call Kafka or the storage."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from sim_broker import InputLog
from sim_process import Process
from sim_schedule import Task

from streamer.errors import DependencyError, TemporaryError
from streamer.sink.fuse import Flood

if TYPE_CHECKING:
    from simulation import World

DELAYS = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0, 8.0, 12.0, 20.0, 35.0, 90.0)
"""Seconds, ten times as fast as the service's own."""


def delay(world: World, task: Task, _process: Process, argument: int) -> None:
    world.schedule.delay(task, DELAYS[argument % len(DELAYS)])


def kill(world: World, _task: Task, process: Process, _argument: int) -> None:
    world.kill(process, "kill -9")


def freeze(world: World, _task: Task, process: Process, argument: int) -> None:
    process.frozen_until = world.schedule.now + DELAYS[argument % len(DELAYS)]


def replace(world: World, _task: Task, process: Process, argument: int) -> None:
    """A second process with the same name; the first one goes on, perhaps after a while."""
    if world.living.get(process.writer) is process and not world.setting.bounded:
        world.zombies.append(process)
        if argument % 3:
            process.frozen_until = world.schedule.now + DELAYS[argument % len(DELAYS)]
        world.start(process.writer)


def double(world: World, _task: Task, process: Process, argument: int) -> None:
    """Killed, and started twice by mistake."""
    if world.living.get(process.writer) is process and not world.setting.bounded:
        world.kill(process, "kill -9")
        first = world.start(process.writer)
        first.stall_after, first.stall_s = 1 + argument % 16, DELAYS[4 + argument // 16 % 8]
        world.schedule.at(0.5, lambda: _supersede(world, first))


def _supersede(world: World, first: Process) -> None:
    if world.living.get(first.writer) is first and not world.calm:
        world.zombies.append(first)
        world.start(first.writer)


def terminate(world: World, _task: Task, process: Process, _argument: int) -> None:
    process.stopping = True


def refuse(world: World, _task: Task, process: Process, _argument: int) -> None:
    process.fault = TemporaryError


def break_disk(world: World, _task: Task, process: Process, _argument: int) -> None:
    process.fault = DependencyError


def abort(world: World, _task: Task, process: Process, argument: int) -> None:
    process.aborts = 1 + argument % 6


def turn(world: World, _task: Task, _process: Process, argument: int) -> None:
    world.broker.group.turn_around()


def kick(world: World, _task: Task, process: Process, _argument: int) -> None:
    """The session runs out while the process works on: its heartbeats were lost."""
    for member in list(world.broker.group.members.values()):
        if member.wake == process.notify:
            world.broker.group.leave(member)


def cut_off(world: World, task: Task, process: Process, argument: int) -> None:
    """The network is away: the session runs out while a request hangs."""
    kick(world, task, process, argument)
    delay(world, task, process, argument)


def append(world: World, _task: Task, _process: Process, argument: int) -> None:
    log = world.broker.input[argument % len(world.broker.input)]
    log.entries += [True] * (1 + argument % 5)
    world.wake()


def append_gap(world: World, _task: Task, _process: Process, argument: int) -> None:
    world.broker.input[argument % len(world.broker.input)].entries.append(False)
    world.wake()


def expire(world: World, _task: Task, _process: Process, argument: int) -> None:
    """Retention takes what is committed, and in some worlds more."""
    p = argument % len(world.broker.input)
    log = world.broker.input[p]
    more = argument // 4 % 8 if world.setting.expiring else 0
    log.begin = max(log.begin, min(world.broker.offsets.get(p, 0) + more, log.end))
    world.wake()


def skew(world: World, _task: Task, process: Process, argument: int) -> None:
    process.skew += (1000.0, -1000.0, 7.0, -7.0)[argument % 4]


def remove(world: World, _task: Task, process: Process, argument: int) -> None:
    """The pod goes for good: its writer never comes back before the end."""
    if world.setting.writers - len(world.gone) > 1 and not world.setting.bounded:
        world.gone.add(process.writer)
        if argument % 2:
            process.stopping = True
        else:
            world.kill(process, "removed")


def grow(world: World, _task: Task, _process: Process, argument: int) -> None:
    if len(world.broker.input) < 4 and not world.setting.bounded:
        world.broker.input.append(InputLog(0, [True] * (argument % 7)))
        world.broker.group.grown()


def hold_markers(world: World, _task: Task, _process: Process, argument: int) -> None:
    delays = [DELAYS[argument % len(DELAYS)], 0.0]
    random.Random(argument).shuffle(delays)
    usual = world.broker.marker_delay

    def once() -> float:
        if delays:
            return delays.pop()
        world.broker.marker_delay = usual
        return usual()

    world.broker.marker_delay = once


def be_away(world: World, _task: Task, process: Process, argument: int) -> None:
    process.away_until = world.schedule.now + DELAYS[argument % len(DELAYS)]


def nothing(world: World, _task: Task, _process: Process, _argument: int) -> None:
    pass


def flood(world: World, _task: Task, process: Process, argument: int) -> None:
    """Too many records of a partition are invalid; somebody looks after a while."""
    if process.epochs is not None:
        partition = argument % len(world.broker.input)
        process.epochs._flooded = process.epochs._run, Flood(partition, "simulated")
        world.schedule.at(DELAYS[argument // 16 % 12], world.resume)


TROUBLES: list[tuple[str, Callable[[World, Task, Process, int], None]]] = [
    ("nothing", nothing),
    ("delay", delay),
    ("kill", kill),
    ("delay", delay),
    ("freeze", freeze),
    ("turn", turn),
    ("replace", replace),
    ("append", append),
    ("kick", kick),
    ("turn", turn),
    ("delay", delay),
    ("terminate", terminate),
    ("refuse", refuse),
    ("disk", break_disk),
    ("abort", abort),
    ("append", append),
    ("gap", append_gap),
    ("expire", expire),
    ("skew", skew),
    ("remove", remove),
    ("grow", grow),
    ("markers", hold_markers),
    ("kick", kick),
    ("freeze", freeze),
    ("double", double),
    ("double", double),
    ("cut off", cut_off),
    ("cut off", cut_off),
    ("away", be_away),
    ("flood", flood),
    ("flood", flood),
]
