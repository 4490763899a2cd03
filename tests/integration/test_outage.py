"""Brokers that are away, for a real process: at its start, while it reads, with a commit in flight;
stopped as a hanging machine is, and killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.testing import Broker, create_topic, produce
from tests.integration.service import (
    THUMBNAIL,
    Replica,
    Service,
    check_exactly_once,
    photographs,
    read_output,
    verified,
)
from tests.integration.watch import ask, port_of, scrape, total

TAU = 0.97
AWAY = "are away"
Produced = dict[tuple[int, int], bytes]


class World:
    """A node of its own, a topic on it, and a dataset of that."""

    def __init__(self, broker: Broker, folder: Path, static: bool) -> None:
        self.broker = broker
        self.produced: Produced = {}
        self.service = Service(
            folder,
            {
                "dataset": "cats",
                "writer": "w0",
                "kafka": {
                    "bootstrap_servers": broker.bootstrap_servers,
                    "topic": "t",
                    "group_instance_id": "w0" if static else None,
                    "client": {"session.timeout.ms": 6000},
                },
                "embedder": {**THUMBNAIL, "args": {"delay_ms": 20}},
                "dedup": {"threshold": TAU},
                "decode": {"threads": 2},
                "output": {"path": str(folder / "out"), "epoch_records": 40, "seal_after": "1s"},
                "batch": {"size": 16, "linger": "20ms"},
                "dead_letters": {"max_ratio": 1},
                "http": {"host": "127.0.0.1", "port": 0},
                "device": "cpu",
            },
        )

    def feed(self, count: int, seed: int) -> None:
        images = photographs(count, seed)
        origins = produce(self.broker.bootstrap_servers, "t", [(image, {}) for image in images])
        self.produced.update(zip(origins, images, strict=True))

    @property
    def decided(self) -> int:
        return sum(
            sum(json.loads(path.read_text())["counts"].values())
            for path in (self.service.output / "manifests").glob("*.json")
        )

    def wait_until_decided(self, replica: Replica) -> None:
        deadline = time.monotonic() + 120
        while self.decided < len(self.produced):
            assert time.monotonic() < deadline, replica.log
            assert replica.process.poll() is None, replica.log
            time.sleep(0.1)

    def check(self) -> None:
        check_exactly_once(read_output(self.service.output), self.produced, TAU)
        assert verified(self.service.output)["records"] == len(self.produced)


@contextmanager
def world(embedded: type[Broker], folder: Path, static: bool = True) -> Iterator[World]:
    with embedded() as broker:
        create_topic(broker.bootstrap_servers, "t", partitions=2)
        made = World(broker, folder, static)
        try:
            yield made
        finally:
            made.service.close()


def stand_still(broker: Broker) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)


def go_on(broker: Broker) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.timeout(400)
def test_one_process_outlives_every_outage(embedded: type[Broker], tmp_path: Path) -> None:
    """At its start, and while it reads; a static member."""
    with world(embedded, tmp_path) as made:
        broker = made.broker
        made.feed(200, seed=5)
        broker.stop()
        replica = made.service.start()
        replica.wait_for(AWAY)
        port = port_of(replica)
        status, body = ask(port, "/readyz")
        assert (status, "the Kafka brokers are away" in json.loads(body)["phase"]) == (503, True)
        assert ask(port, "/livez")[0] == 200
        broker.start()
        replica.wait_for("brokers are back")
        replica.wait_for("epoch committed", timeout=90)
        made.wait_until_decided(replica)

        # While it reads: nothing is in flight
        broker.kill()
        replica.wait_for(AWAY, count=2)
        assert total(scrape(port), "streamer_brokers_away_seconds") > 0
        assert ask(port, "/readyz")[0] == 503
        broker.start()
        replica.wait_for("brokers are back", count=2)
        made.feed(100, seed=6)
        made.wait_until_decided(replica)
        assert ask(port, "/readyz")[0] == 200
        assert total(scrape(port), "streamer_brokers_away_seconds") == 0

        finish(made, replica, outages=2)


@pytest.mark.timeout(400)
def test_commits_in_flight_outlive_brokers_that_stand_still(
    embedded: type[Broker], tmp_path: Path
) -> None:
    """For longer than a session, and than the brokers leave a transaction open: what was in flight
    is dropped, and read again. (Not a static member: two of its own attempts to join, which the
    broker answers when it wakes up, may fence each other.)"""
    with world(embedded, tmp_path, static=False) as made:
        made.feed(300, seed=7)
        replica = made.service.start()
        replica.wait_for("epoch committed", timeout=90)
        stand_still(made.broker)
        replica.wait_for(AWAY)
        time.sleep(25)
        go_on(made.broker)
        replica.wait_for("brokers are back")
        made.wait_until_decided(replica)
        assert "uncommitted work is dropped and read again" in "\n".join(replica.lines)
        finish(made, replica, outages=1)


def finish(made: World, replica: Replica, outages: int) -> None:
    """Each outage was told once, in our words, and cost nothing."""
    assert replica.count(AWAY) == replica.count("brokers are back") == outages
    raw = [line for line in replica.lines if json.loads(line)["logger"].endswith("librdkafka")]
    assert not [line for line in raw if "Connect to" in line or "Timed out" in line]
    replica.kill(signal.SIGTERM)
    assert replica.end() == 0, replica.log
    made.check()


@pytest.mark.timeout(300)
def test_it_waits_no_longer_than_it_may(embedded: type[Broker], tmp_path: Path) -> None:
    """When it is told to stop, and at a start; nothing is lost by it."""
    with world(embedded, tmp_path) as made:
        made.feed(300, seed=5)
        replica = made.service.start()
        replica.wait_for("epoch committed", count=2, timeout=90)
        made.broker.kill()
        replica.wait_for(AWAY)
        replica.kill(signal.SIGTERM)
        assert replica.end(60) == 75, replica.log
        last = json.loads(replica.lines[-1])["message"]
        assert "this process was told to stop" in last

        short = {**made.service.settings["kafka"], "give_up_after": "4s"}
        start = made.service.start(kafka=short)
        assert start.end() == 75, start.log
        last = json.loads(start.lines[-1])["message"]
        assert "(kafka.give_up_after)" in last
        assert "start again when they are back" in last

        made.broker.start()
        last_run = made.service.start("--until", "end")
        assert last_run.end() == 0, last_run.log
        made.check()
