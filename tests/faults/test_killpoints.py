"""A real process dies at every named step of the protocol, and its successor again while it
recovers: every record is in exactly one place.

STREAMER_LONG=1 (`python3 tasks.py killpoints`) takes every step, else some.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from streamer.testing import create_topic, jpeg, produce
from tests.faults.killpoint import NO_STEP, Point, live, points
from tests.integration.conftest import make_service  # noqa: F401 - the fixture
from tests.integration.forked import CONTEXT
from tests.integration.service import (
    Made,
    Service,
    check_exactly_once,
    read_output,
    verified,
)

LONG = os.environ.get("STREAMER_LONG", "") not in ("", "0")
TAU = 0.97
ALL = points()
RECOVERY = [
    point
    for point in ALL
    if point.name
    in {
        "KafkaTransactions.fence", "KafkaTransactions.read", "Storage.staged", "Storage.discard", "Storage.project",
        "ClaimStage.open", "Quarantine.opened", "Quarantine.proceed", "Quarantine.sealed", "KafkaTransactions.commit",
    }
]  # fmt: skip
QUICK = {
    "after Producer.commit_transaction",
    "before Storage.project",
    "after Storage.write_checkpoint",
    "before Quarantine.sealed",
}
DIED = -signal.SIGKILL

pytestmark = pytest.mark.timeout(400)


class Lives:
    """Processes of one dataset, and the records that they are given."""

    def __init__(self, service: Service, kafka: str, topic: str) -> None:
        self.service = service
        self.produced: dict[tuple[int, int], bytes] = {}
        self._kafka = kafka
        self._topic = topic
        self._logs = count()

    def produce(self, n: int) -> None:
        images = [jpeg(len(self.produced) + i) for i in range(n)]
        origins = produce(self._kafka, self._topic, [(image, {}) for image in images])
        self.produced |= dict(zip(origins, images, strict=True))

    def start(self, point: Point | None, *args: str, writer: str = "w0") -> Any:
        kafka = {**self.service.settings["kafka"], "group_instance_id": writer}
        config = str(self.service.config(writer=writer, kafka=kafka))
        log = str(self.service.folder / f"{next(self._logs)}.log")
        process = CONTEXT.Process(
            target=live, args=(point, ("run", "-c", config, *args), log), daemon=True
        )
        process.start()
        return process

    def end(self, process: Any, seconds: float = 60.0) -> int:
        process.join(seconds)
        assert process.exitcode is not None, self.log()
        return int(process.exitcode)

    def run(self, point: Point | None) -> int:
        return self.end(self.start(point, "--until", "end"))

    def log(self) -> str:
        logs = sorted(self.service.folder.glob("*.log"), key=lambda p: int(p.stem))
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in logs)

    def reach(self, point: Point) -> bool:
        """A process dies there: in a new dataset, after a death, or when partitions move."""
        self.produce(40)
        if self.run(point) == DIED:
            return True
        self.produce(20)
        assert self.run(next(p for p in ALL if str(p) == "before KafkaTransactions.commit")) == DIED
        if self.run(point) == DIED:
            return True
        self.produce(20)
        first = self.start(point)
        time.sleep(2)
        second = self.start(None, writer="w1")
        first.join(8)
        died = first.exitcode == DIED
        for process in (first, second):
            if process.exitcode is None:
                process.terminate()
        died = self.end(first) == DIED or died
        assert self.end(second) == 0, self.log()
        return died


@pytest.mark.parametrize(
    "point", [pytest.param(p, id=str(p)) for p in ALL if LONG or str(p) in QUICK]
)
def test_a_death_at_a_step_and_another_in_the_recovery_lose_and_double_nothing(
    point: Point,
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    create_topic(kafka, topic_name, partitions=2)
    service = make_service(
        dataset_name,
        dedup={"threshold": TAU, "snapshot_every": 10},
        batch={"size": 8, "linger": "10ms"},
    )
    service.settings["output"] |= {"epoch_records": 10, "seal_after": "300ms"}
    lives = Lives(service, kafka, topic_name)
    assert lives.reach(point), f"no process came to {point}; is it a step?\n{lives.log()}"
    again = RECOVERY[ALL.index(point) % len(RECOVERY)]
    assert lives.run(again) in (DIED, 0), lives.log()
    assert lives.run(None) == 0, lives.log()
    check_exactly_once(read_output(service.output), lives.produced, TAU)
    verified(service.output)
    assert not list((service.output / ".staging").glob("*/*")), "staging is left"


def test_every_step_that_is_left_out_is_one() -> None:
    named = {p.name for p in ALL}
    assert not named & NO_STEP.keys()
    assert {str(p) for p in ALL} >= QUICK
    assert {p.name for p in RECOVERY} >= {"Storage.project", "KafkaTransactions.fence"}
