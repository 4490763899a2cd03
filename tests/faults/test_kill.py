"""``kill -9`` at random moments and between seal and projection; SIGSTOP past the session: every
record in exactly one place."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from streamer.testing import create_topic, produce, read_topic
from tests.integration.conftest import make_service  # noqa: F401 - the fixture
from tests.integration.service import (
    Made,
    Service,
    check_exactly_once,
    photographs,
    read_output,
    verified,
)

TAU = 0.97
SETTINGS: dict[str, Any] = {
    "dedup": {"threshold": TAU},
    "filters": [
        {"field": "min_side", "at_least": 40},
        {"type": "tests.plugins.thumbnail:Moody", "name": "moody", "args": {"share": 0.05}},
    ],
    "embedder": {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 60}},
    "dead_letters": {"max_ratio": 1},
}


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    output = {
        "path": str(tmp_path / "out"),
        "epoch_records": 64,
        "shard_records": 40,
        "seal_after": "2s",
    }
    return {**SETTINGS, "output": output, "batch": {"size": 16, "linger": "10ms"}, **changes}


def unprojected(kafka: str, service: Service) -> set[str]:
    """Epochs that the commit log names and the folder does not show yet."""
    public = {path.stem for path in (service.output / "manifests").glob("*.json")}
    manifests = [
        json.loads(stored.value or b"")
        for stored in read_topic(kafka, f"{service.dataset}.commits")
    ]
    return {f"{m['writer']}-{m['epoch']:08d}" for m in manifests} - public


def test_kill_9_leaves_every_record_in_exactly_one_place(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    images = photographs(2200, seed=11)
    create_topic(kafka, topic_name, partitions=3)
    origins = produce(
        kafka, topic_name, [(image, {"text": f"{i}"}) for i, image in enumerate(images)]
    )
    service = make_service(dataset_name, **settings(tmp_path))
    dice = random.Random(5)
    random_kills, aimed_kills, hit = 0, 0, 0
    while random_kills + aimed_kills < 14:
        replica = service.start("--until", "end")
        replica.wait_for("partitions assigned", timeout=90)
        if random_kills <= 2 * aimed_kills + 1 and random_kills < 10:
            time.sleep(dice.uniform(0.0, 1.5))
            random_kills += 1
        else:
            # From "epoch sealed" on the files are durable; the transaction and the projection
            # follow within a few hundred ms.
            replica.wait_for("epoch sealed", count=dice.randint(1, 2), timeout=90)
            time.sleep(dice.uniform(0.0, 0.12))
            aimed_kills += 1
        assert replica.process.poll() is None, (
            f"ended by itself after {random_kills + aimed_kills} kills: make the run longer\n{replica.log}"
        )
        replica.kill()
        hit += len(unprojected(kafka, service))
    service.run("--until", "end")
    output = read_output(service.output)
    check_exactly_once(output, dict(zip(origins, images, strict=True)), TAU)
    report = verified(service.output)
    epochs = len(list((service.output / "manifests").glob("*.json")))
    print(
        f"{random_kills} random kills, {aimed_kills} aimed ones, {hit} of them between commit and projection, {epochs} epochs, {report['outcomes']}"
    )
    assert random_kills >= 10
    assert aimed_kills >= 3
    assert epochs >= 20
    assert not list((service.output / ".staging").glob("*/*")), "staging is left"


def test_replica_stopped_past_its_session_and_woken_again(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    images = photographs(1200, seed=12)
    create_topic(kafka, topic_name, partitions=4)
    half = len(images) // 2
    service = make_service(dataset_name, **settings(tmp_path))
    zombie = service.start(writer="w0")
    zombie.wait_for("partitions assigned", timeout=90)
    other = service.start(writer="w1")
    other.wait_for("partitions assigned", timeout=90)
    origins = produce(
        kafka, topic_name, [(image, {}) for image in images[:half]]
    )  # now that both own partitions
    zombie.wait_for("epoch committed", timeout=90)
    zombie.process.send_signal(signal.SIGSTOP)
    origins += produce(kafka, topic_name, [(image, {}) for image in images[half:]])
    other.wait_for(
        "partitions assigned", count=other.count("partitions assigned") + 1, timeout=60
    )  # the session of 6 s is over
    committed = other.count("epoch committed")
    other.wait_for("epoch committed", count=committed + 2, timeout=60)
    zombie.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 90
    while sum(_rows(service)) < len(images) and time.monotonic() < deadline:
        time.sleep(0.5)
        for replica in (zombie, other):
            assert replica.process.poll() in (None, 75), replica.log
    for replica in (zombie, other):
        if replica.process.poll() is None:
            replica.process.send_signal(signal.SIGTERM)
            assert replica.end() in (0, 75), replica.log
    service.run("--until", "end", writer="w2")
    check_exactly_once(read_output(service.output), dict(zip(origins, images, strict=True)), TAU)
    verified(service.output)


def _rows(service: Service) -> list[int]:
    return [
        sum(json.loads(path.read_text())["counts"].values())
        for path in (service.output / "manifests").glob("*.json")
    ]


pytestmark = pytest.mark.timeout(600)
