"""A real `streamer` process that dies by its own SIGKILL at a named step of the protocol.

Steps are found by name: every public method of the classes below is one, before and after it. A
method that is added there is a step from then on, and `test_killpoints` fails until a run of a
replica reaches it or it stands in `NO_STEP`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CLASSES = (
    "streamer.kafka.commit:KafkaTransactions",
    "streamer.kafka.commit:Producer",
    "streamer.kafka.claims:ClaimStage",
    "streamer.kafka.claim_log:ClaimLog",
    "streamer.sink.storage:Storage",
    "streamer.sink.epoch:EpochWriter",
    "streamer.sink.snapshots:Snapshots",
    "streamer.replica:Replica",
    "streamer.quarantine:Quarantine",
)
NO_STEP = {
    "KafkaTransactions.confirm": "only after somebody took our name",
    "Producer.abort_transaction": "only after a refusal; the simulation has it",
    "Producer.cluster_id": "is not used",
    "Producer.list_topics": "asks",
    "Producer.poll": "serves callbacks",
    "Producer.purge": "is not used",
    "Producer.set_sasl_credentials": "is not used",
    "Producer.produce_batch": "is not used",
    "Producer.close": "is not used",
    "ClaimStage.withdraw": "only for an image that is gone; tests/faults/chaos.py has it",
    "ClaimStage.skip": "only where records expired; tests/integration/test_expired.py kills there",
    "ClaimStage.prior": "looks",
    "ClaimStage.latest_generation": "looks",
    "ClaimStage.run": "a thread's body",
    "ClaimLog.tail": "the claims thread's loop",
    "EpochWriter.discard": "only of what was dropped; the simulation has it",
    "Storage.files": "of readers",
    "Storage.has": "looks",
    "Storage.is_staged": "looks",
    "Storage.forget_look": "writes nothing; only where the storage was away: test_storage_away.py",
    "Storage.open": "of readers",
    "Storage.pauses": "looks",
    "Storage.write_pause": "only in a flood; tests/integration/test_flood.py",
    "Storage.seeks": "looks",
    "Storage.write_seek": "of a command",
    "Snapshots.load": "only where there is one, in the second life",
    "Snapshots.read": "the same",
    "Replica.lost": "only after a session ran out; tests/faults/test_kill.py",
    "Quarantine.overran": "the process's last step",
    "Quarantine.reopen": "writes nothing; only after a pause: tests/integration/test_flood.py",
}
SCRIPT = Path(__file__).parents[2]


class Point(NamedTuple):
    cls: str
    method: str
    after: bool
    count: int = 1
    """At which call."""

    @property
    def name(self) -> str:
        return f"{self.cls.rpartition(':')[2]}.{self.method}"

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.name}"


def points() -> list[Point]:
    """Every step, in the order of the classes."""
    found = []
    for place in CLASSES:
        cls = _class(place)
        for method in sorted(vars(cls) if cls.__module__.startswith("streamer") else dir(cls)):
            if not method.startswith("_") and callable(inspect.getattr_static(cls, method)):
                found += [Point(place, method, after) for after in (False, True)]
    return [point for point in found if point.name not in NO_STEP]


def live(point: Point | None, arguments: tuple[str, ...], log: str) -> None:
    """The body of the process: `streamer` with these arguments, and what it says in ``log``."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(SCRIPT)
    if point is not None:
        _arm(point)

    cli = importlib.import_module("streamer.cli")
    # Some within a test's few epochs
    importlib.import_module("streamer.sink.engine").CHECKPOINT_EPOCHS = 3
    sys.argv = ["streamer", *arguments]
    cli.entry()


def _arm(point: Point) -> None:
    module = importlib.import_module(point.cls.partition(":")[0])
    cls = _class(point.cls)
    method: Callable[..., Any] = getattr(cls, point.method)
    calls = [0]

    @functools.wraps(method)
    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] < point.count:
            return method(self, *args, **kwargs)
        if point.after:
            result = method(self, *args, **kwargs)
            if inspect.isgenerator(result):
                return _to_its_end(result)
        os.kill(os.getpid(), signal.SIGKILL)

    armed = type(cls.__name__, (cls,), {point.method: dies})
    setattr(module, cls.__name__, armed)
    for other in list(sys.modules.values()):
        if getattr(other, cls.__name__, None) is cls:
            setattr(other, cls.__name__, armed)


def _to_its_end(result: Any) -> Any:
    yield from result
    os.kill(os.getpid(), signal.SIGKILL)


def _class(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
