"""The line on real Kafka with a light model: every outcome, one row a record, one place a record."""

from __future__ import annotations

import json
import signal

from streamer.testing import create_topic, produce, read_topic
from tests.integration.service import Made, check_exactly_once, photographs, read_output, verified


def test_bounded_run_decides_every_record_once(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    images = photographs(400, seed=1)
    create_topic(kafka, topic_name, partitions=3)
    origins = produce(
        kafka,
        topic_name,
        [(image, {"text": f"picture {i}", "id": str(i)}) for i, image in enumerate(images)],
    )
    service = make_service(dataset_name, filters=[{"field": "min_side", "at_least": 40}])
    service.run("--until", "end")
    output = read_output(service.output)
    check_exactly_once(output, dict(zip(origins, images, strict=True)), threshold=0.97)
    report = verified(service.output)
    assert report["records"] == len(images)
    assert {outcome for outcome, n in report["outcomes"].items() if n} == {
        "accepted",
        "filtered",
        "duplicate",
        "invalid",
    }
    dead = read_topic(kafka, f"{dataset_name}.dead")
    invalid = {(row["partition"], row["offset"]): row["reason"] for row in output.of("invalid")}
    assert {
        (int(dict(d.headers)["streamer-partition"]), int(dict(d.headers)["streamer-offset"])): dict(
            d.headers
        )["streamer-reason"].decode()
        for d in dead
    } == invalid
    sample = output.members[output.of("accepted")[0]["key"]]
    assert sample["txt"].startswith(b"picture ")
    assert json.loads(sample["json"])


def test_sigterm_drains_seals_commits_and_ends_with_0(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    images = photographs(60, seed=2)
    create_topic(kafka, topic_name, partitions=1)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])
    service = make_service(dataset_name)
    replica = service.start()
    replica.wait_for("partitions assigned")
    replica.process.send_signal(signal.SIGTERM)
    assert replica.end() == 0, replica.log
    assert "starting" in replica.lines[0]
    assert dataset_name in replica.lines[0]
    assert "ended well" in replica.lines[-1]
    service.run("--until", "end")
    check_exactly_once(
        read_output(service.output), dict(zip(origins, images, strict=True)), threshold=0.97
    )
    verified(service.output)
