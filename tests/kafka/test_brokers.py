"""What is made of the cluster's answers; a real outage is in tests/integration/test_outage.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import pytest
from confluent_kafka import KafkaError

from streamer.config import Config, parse
from streamer.errors import DependencyError, ProtocolError, TemporaryError
from streamer.flow.worker import Failure
from streamer.kafka import brokers as module
from streamer.kafka.admin import Unreachable
from streamer.kafka.brokers import STOP_S, Brokers
from streamer.kafka.events import Events, log

CONFIG: Config = parse(
    {
        "dataset": "cats",
        "kafka": {"bootstrap_servers": "kafka:9092", "topic": "t", "give_up_after": "60s"},
        "embedder": {"type": "a.b:C"},
        "output": {"path": "/out"},
    }
)
REFUSED = Unreachable("no Kafka broker answered", "refused")


class World:
    """A clock of its own, and what the cluster says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.failure = Failure()
        self.brokers = Brokers(CONFIG, self.failure)
        self.brokers._admin = self  # type: ignore[assignment]
        self.answer: Exception | str | None = None

    def monotonic(self) -> float:
        return self.now

    def leaderless(self, topics: Collection[str]) -> str | None:
        assert set(topics) == {"cats.claims", "cats.commits"}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ask(self, answer: Exception | str | None, times: int = 1, seconds: float = 5.0) -> None:
        self.answer = answer
        for _ in range(times):
            self.now += seconds
            self.brokers._hear(self.brokers._ask())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (REFUSED, "refused"),
        ("cats.claims", "cats.claims has no leader"),
        (TemporaryError("not within 4 s"), "not within 4 s"),
    ],
)
def test_the_clock_stands_still_while_nobody_answers(
    world: World, caplog: pytest.LogCaptureFixture, answer: Exception | str, why: str
) -> None:
    brokers = world.brokers
    world.ask(answer)
    assert (brokers.away_s, brokers.said, brokers.clock()) == (0, "", 105.0), "one is nothing"
    world.ask(None)
    world.ask(answer, 2)
    assert brokers.clock() == 120.0
    world.ask(answer, 4)
    assert (brokers.away_s, brokers.clock()) == (20.0, 120.0)
    assert brokers.said == f"the Kafka brokers are away for 20 s ({why})"
    world.ask(None)
    assert (brokers.away_s, brokers.said, brokers.clock()) == (0, "", 120.0)
    world.now += 7
    assert brokers.clock() == 127.0
    world.ask(answer, 3)
    assert brokers.clock() == 137.0
    brokers.check()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"the Kafka brokers at kafka:9092 are away ({why}); waiting for them, up to 60 s (kafka.give_up_after)",
        "the Kafka brokers are back after 25 s",
        told[0],
    ]


def test_a_refusal_is_an_answer(world: World) -> None:
    world.ask(DependencyError("denied"), 5)
    assert world.brokers.away_s == 0


def give_up(world: World) -> None:
    world.ask(REFUSED, 2)
    world.ask(REFUSED, seconds=59)
    world.brokers.check()
    world.ask(REFUSED, seconds=1)


def stop(world: World) -> None:
    world.brokers.heed(lambda: True)
    world.ask(None, 3, STOP_S)
    world.ask(REFUSED, 2)
    world.brokers.check()
    world.ask(REFUSED, seconds=STOP_S)


@pytest.mark.parametrize(
    ("end", "says"), [(give_up, r"no answer for 60 s"), (stop, "this process was told to stop")]
)
def test_a_wait_that_lasted_long_enough_ends_the_process(
    world: World, end: Callable[[World], None], says: str
) -> None:
    end(world)
    with pytest.raises(TemporaryError, match=rf"kafka:9092 are away \(refused\), and {says}"):
        world.brokers.check()
    with pytest.raises(TemporaryError):
        world.failure.raise_if_any()
    before = world.brokers.clock()
    world.now += 9
    assert world.brokers.clock() == before + 9, "what hangs then is ended by its own limit"


def test_the_clock_goes_on_once_the_process_ends(world: World) -> None:
    """Whatever ended it: what it still waits for is ended by the watchdog."""
    world.ask(REFUSED, 2)
    before = world.brokers.clock()
    world.failure.report(DependencyError("the disk is full"))
    world.brokers._watch()
    world.now += 9
    assert world.brokers.clock() == before + 9


def test_events_of_a_reader(caplog: pytest.LogCaptureFixture) -> None:
    """Unknown ones are told, and not again and again; what brokers that are away cause is not."""
    caplog.set_level(logging.INFO, log.name)
    events = Events("t", "g")
    for offset in range(3):
        events.heed(KafkaError(KafkaError._ALL_BROKERS_DOWN, "down"), 0, offset)
        events.heed(KafkaError(KafkaError._PARTITION_EOF, "end"), 0, offset)
        events.heed(KafkaError(KafkaError._MAX_POLL_EXCEEDED, f"too slow by {offset}"), 2, offset)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "reading t partition 2: too slow by 0")
    ]
    with pytest.raises(ProtocolError, match=r"t partition 3: the records from offset 7 on cannot"):
        events.heed(KafkaError(KafkaError._BAD_COMPRESSION, "bad"), 3, 7)
    with pytest.raises(DependencyError, match="Grant Read on the group g "):
        events.heed(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "no"), -1, -1)
