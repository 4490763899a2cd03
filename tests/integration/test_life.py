"""How a replica ends: signals, times, full disks, broken plugins, namesakes. Always with one
message, and with nothing half-written visible."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from streamer.testing import create_topic, produce, read_topic
from tests.integration.service import (
    Made,
    Replica,
    check_exactly_once,
    photographs,
    read_output,
    streamer,
    verified,
)

TAU = 0.97
SLOW = {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 60}}
pytestmark = pytest.mark.timeout(300)


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    output = {
        "path": str(tmp_path / "out"),
        "epoch_records": 60,
        "seal_after": "1s",
        **changes.pop("output", {}),
    }
    return {"embedder": SLOW, "batch": {"size": 16, "linger": "10ms"}, "output": output, **changes}


def files(folder: Path) -> list[Path]:
    """What is public."""
    return [path for path in folder.rglob("*") if path.is_file() and ".staging" not in path.parts]


# By itself, and by signals


def test_a_run_until_a_time(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """Records with a time stamp before it are decided, later ones are not; waiting for the time is
    part of it."""
    images = photographs(90, seed=61)
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])
    until = datetime.now(timezone.utc) + timedelta(seconds=9)
    service = make_service(dataset_name, **settings(tmp_path))
    replica = service.start("--until", until.isoformat())
    replica.wait_for("partitions assigned", timeout=60)
    late = photographs(30, seed=62)
    origins += produce(kafka, topic_name, [(image, {}) for image in late[:15]])
    assert datetime.now(timezone.utc) < until, "this machine is too slow for this test"
    time.sleep(max(0.0, (until - datetime.now(timezone.utc)).total_seconds() + 0.05))
    produce(kafka, topic_name, [(image, {}) for image in late[15:]])
    assert replica.end() == 0, replica.log
    produced = dict(zip(origins, images + late[:15], strict=True))
    check_exactly_once(read_output(service.output), produced, TAU)

    # A time that has passed: nothing is left to do before it, and the rest stays.
    service.run("--until", until.isoformat())
    assert len(read_output(service.output).rows) == len(produced)
    verified(service.output)


def test_a_second_signal_ends_at_once_and_nothing_is_lost(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(120, seed=63)
    create_topic(kafka, topic_name)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])
    very_slow = {**SLOW, "args": {"delay_ms": 4000}}
    service = make_service(dataset_name, **settings(tmp_path, embedder=very_slow))
    replica = service.start()
    replica.wait_for("partitions assigned", timeout=60)
    time.sleep(1.0)
    replica.process.send_signal(signal.SIGTERM)
    replica.wait_for("draining", timeout=20)
    began = time.monotonic()
    replica.process.send_signal(signal.SIGINT)
    assert replica.end() == 1
    assert time.monotonic() - began < 2
    assert "second signal (SIGINT)" in replica.lines[-1]
    assert not files(service.output / "shards")
    service.run("--until", "end", embedder=SLOW)
    check_exactly_once(read_output(service.output), dict(zip(origins, images, strict=True)), TAU)
    verified(service.output)


@pytest.mark.parametrize("when", ["loading", "idle"])
def test_sigterm_before_there_is_anything_to_drain(
    when: str, kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    service = make_service(dataset_name)
    replica = service.start()
    replica.wait_for("serving /metrics" if when == "loading" else "partitions assigned", timeout=60)
    replica.process.send_signal(signal.SIGTERM)
    assert replica.end(60) == 0, replica.log
    assert replica.count("draining") == (when == "idle"), "before anything is read it ends at once"


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.6, 0.9, 1.2, 2.0])
def test_sigterm_during_the_imports(
    after_s: float, kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """By the signal itself, as any process that has no handler yet, or by ours."""
    create_topic(kafka, topic_name)
    replica = make_service(dataset_name).start()
    time.sleep(after_s)
    replica.process.send_signal(signal.SIGTERM)
    assert replica.end(20) in (0, -signal.SIGTERM), replica.log
    assert "Traceback" not in replica.log


# Failures


def test_a_plugin_that_breaks_ends_the_process_and_a_fixed_one_goes_on(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(400, seed=64)
    create_topic(kafka, topic_name)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])
    breaking = {"type": "tests.plugins.thumbnail:BreakingEmbedder", "args": {"after": 15}}
    service = make_service(dataset_name, **settings(tmp_path, embedder=breaking))
    began = time.monotonic()
    replica = service.run("--until", "end", expect=1)
    assert time.monotonic() - began < 60
    assert any(
        "RuntimeError: the accelerator fell off the bus" in line for line in replica.lines
    ), replica.log
    before = read_output(service.output)
    verified(service.output)
    assert 0 < len(before.rows) < len(images)
    service.run("--until", "end", embedder=SLOW)
    check_exactly_once(read_output(service.output), dict(zip(origins, images, strict=True)), TAU)
    verified(service.output)


def test_a_full_disk_ends_the_process_and_the_next_start_goes_on(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: root would not notice a read-only
    folder."""
    images = photographs(200, seed=65)
    create_topic(kafka, topic_name)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])
    service = make_service(
        dataset_name, **settings(tmp_path, output={"epoch_records": 1000, "seal_after": "1h"})
    )
    replica = service.start(
        "--until", "end", prefix=("sh", "-c", 'ulimit -f 80; exec "$@"', "sh")
    )  # 40 960 bytes a file
    assert replica.end() == 1, replica.log
    message = replica.lines[-1]
    assert "File too large" in message, replica.log
    assert str(service.output) in message
    assert "Traceback" not in replica.log
    assert not files(service.output / "shards")
    assert not files(service.output / "metadata")
    service.run("--until", "end")
    check_exactly_once(read_output(service.output), dict(zip(origins, images, strict=True)), TAU)
    verified(service.output)
    assert not [path for path in (service.output / ".staging").rglob("*") if path.is_file()]


@pytest.fixture
def port_in_use() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_a_port_in_use_ends_the_start_before_anything_is_written(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, port_in_use: int
) -> None:
    create_topic(kafka, topic_name)
    service = make_service(dataset_name, http={"host": "127.0.0.1", "port": port_in_use})
    began = time.monotonic()
    replica = service.run("--until", "end", expect=1)
    assert time.monotonic() - began < 30
    assert all(
        word in replica.lines[-1]
        for word in ("http.port", str(port_in_use), "set http.port to another")
    ), replica.log
    assert not service.output.exists()


@pytest.mark.parametrize("on_flood", ["stop", "pause"])
def test_too_many_invalid_records_end_a_run_that_has_an_end(
    on_flood: str,
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    tmp_path: Path,
) -> None:
    images = photographs(200, seed=66, invalid=0.6)
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in images])
    service = make_service(
        dataset_name,
        **settings(tmp_path, output={"epoch_records": 1000}, dead_letters={"on_flood": on_flood}),
    )
    replica = service.run("--until", "end", expect=1)
    assert "dead_letters.max_ratio" in replica.lines[-1]
    assert not files(service.output / "metadata")
    assert read_topic(kafka, f"{dataset_name}.dead") == []
    if on_flood == "pause":
        streamer("resume", "-c", str(service.config()), "--execute")
        service.run("--until", "end")
    else:
        service.run("--until", "end", dead_letters={"max_ratio": 1})
    assert verified(service.output)["records"] == len(images)


# Namesakes


@pytest.mark.parametrize("static", [False, True])
def test_of_two_processes_with_one_name_the_older_ends_with_75(
    static: bool, kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(300, seed=67)
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(kafka, topic_name, [(image, {}) for image in images[:150]])
    service = make_service(
        dataset_name, **settings(tmp_path, output={"epoch_records": 1000, "seal_after": "3s"})
    )
    if static:
        service.settings["kafka"] = {**service.settings["kafka"], "group_instance_id": "w0"}
    older = service.start()
    older.wait_for("epoch committed", timeout=90)
    origins += produce(kafka, topic_name, [(image, {}) for image in images[150:220]])
    time.sleep(0.5)  # an epoch is open, its files are in the folder that the namesake cleans up
    newer = service.start()
    newer.wait_for("partitions assigned", timeout=90)
    if (
        older.process.poll() is None
    ):  # it may have committed just before: it hears of its namesake at its next commit
        origins += produce(kafka, topic_name, [(image, {}) for image in images[220:]])
    else:
        images = images[:220]
    assert older.end(120) == 75, older.log
    assert "writer" in older.lines[-1]
    assert "Traceback" not in older.log
    _until_decided(newer, service.output, len(images))
    newer.process.send_signal(signal.SIGTERM)
    assert newer.end() == 0, newer.log
    check_exactly_once(read_output(service.output), dict(zip(origins, images, strict=True)), TAU)
    verified(service.output)


def _until_decided(replica: Replica, folder: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while (
        sum(
            sum(json.loads(path.read_text())["counts"].values())
            for path in (folder / "manifests").glob("*.json")
        )
        < count
    ):
        assert replica.process.poll() is None, replica.log
        assert time.monotonic() < deadline, replica.log
        time.sleep(0.1)
