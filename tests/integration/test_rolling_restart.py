"""A deployment: replicas are stopped and started one after another while records keep coming."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.testing import create_topic, produce
from tests.integration.service import (
    Made,
    Service,
    check_exactly_once,
    photographs,
    read_output,
    verified,
)

TAU = 0.97
Produced = dict[tuple[int, int], bytes]


@contextmanager
def stream(
    kafka: str, topic: str, images: list[bytes], produced: Produced
) -> Iterator[threading.Event]:
    """Produces ``images`` little by little until there are none left or the event is set;
    ``produced`` grows."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for at in range(0, len(images), 15):
                if stop.wait(0.15):
                    return
                part = images[at : at + 15]
                produced.update(
                    zip(produce(kafka, topic, [(image, {}) for image in part]), part, strict=True)
                )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
    assert not errors, errors


def decided(service: Service) -> int:
    return sum(
        sum(json.loads(path.read_text())["counts"].values())
        for path in (service.output / "manifests").glob("*.json")
    )


@pytest.mark.timeout(300)
def test_replicas_restarted_one_by_one_while_records_come(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    create_topic(kafka, topic_name, partitions=4)
    service = make_service(
        dataset_name,
        embedder={"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 15}},
        output={
            "path": str(tmp_path / "out"),
            "epoch_records": 50,
            "shard_records": 30,
            "seal_after": "1s",
        },
        batch={"size": 16, "linger": "10ms"},
        dead_letters={"max_ratio": 1},
    )
    produced: Produced = {}
    with stream(kafka, topic_name, photographs(3000, seed=71), produced) as stop:
        running = {name: service.start(writer=name) for name in ("w0", "w1")}
        for replica in running.values():
            replica.wait_for("partitions assigned", timeout=90)
            replica.wait_for("epoch committed", timeout=90)
        for name in ("w0", "w1"):
            running[name].process.send_signal(signal.SIGTERM)
            assert running[name].end() == 0, running[name].log
            running[name] = service.start(writer=name)
            running[name].wait_for("epoch committed", timeout=90)
        stop.set()
    deadline = time.monotonic() + 60
    while decided(service) < len(produced):
        assert time.monotonic() < deadline, [replica.log for replica in running.values()]
        assert all(replica.process.poll() is None for replica in running.values()), [
            replica.log for replica in running.values()
        ]
        time.sleep(0.2)
    for replica in running.values():
        replica.process.send_signal(signal.SIGTERM)
    for replica in running.values():
        assert replica.end() == 0, replica.log
    output = read_output(service.output)
    check_exactly_once(output, produced, TAU)
    assert len(output.of("duplicate")) > 50
    report = verified(service.output)
    assert report["records"] == len(produced) > 300
    assert {path.name.rsplit("-", 1)[0] for path in (service.output / "manifests").iterdir()} == {
        "w0",
        "w1",
    }
    assert not [path for path in (service.output / ".staging").rglob("*") if path.is_file()]
