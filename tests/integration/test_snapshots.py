"""``kill -9``, and a start that goes on from a snapshot; what ``streamer index`` says and mends
meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from streamer.errors import Unfinished
from streamer.testing import create_topic, produce
from tests.integration.service import (
    Made,
    Service,
    check_exactly_once,
    photographs,
    read_output,
    streamer,
    verified,
)

TAU = 0.97


def index(verb: str, service: Service, *args: str, expect: int = 0) -> dict:
    return json.loads(
        streamer("index", verb, "-c", str(service.config()), "--json", *args, expect=expect).stdout
    )


def restored_from(log: list[str]) -> int:
    """The claim log position that a start found in a snapshot; 0 for none."""
    [line] = [json.loads(line) for line in log if "restored the dedup state" in line]
    return line["snapshot"]


@pytest.mark.timeout(400)
def test_a_killed_replica_goes_on_from_its_snapshot(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(1500, seed=31)
    create_topic(kafka, topic_name, partitions=3)
    origins = produce(kafka, topic_name, [(image, {}) for image in images[:900]])
    service = make_service(
        dataset_name,
        embedder={"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 40}},
        output={
            "path": str(tmp_path / "out"),
            "epoch_records": 64,
            "shard_records": 40,
            "seal_after": "2s",
        },
        batch={"size": 16, "linger": "10ms"},
        dedup={"threshold": TAU, "snapshot_every": 200},
        dead_letters={"max_ratio": 1},
    )
    killed = service.start()
    killed.wait_for("snapshot of the dedup state written", timeout=120)
    killed.kill()
    assert restored_from(killed.lines) == 0
    [first] = index("info", service, "--verify")["snapshots"]
    assert first["ok"]
    assert first["position"] >= 200
    folder = service.output / ".index"

    again = service.run("--until", "end")
    assert restored_from(again.lines) == first["position"]
    told = index("info", service, "--verify")
    assert len(told["snapshots"]) == 2, "one more at the clean end"
    assert told["tail"] < 150
    told = index("rebuild", service)
    assert (told["verdict"], told["removed"]) == ("equal", [])

    # The newest is damaged: the one before it is used, and the log for the rest.
    newest, older = index("info", service)["snapshots"]
    os.truncate(folder / newest["path"] / "state.bin", 1000)
    assert [s["ok"] for s in index("info", service)["snapshots"]] == [False, True]
    origins += produce(kafka, topic_name, [(image, {}) for image in images[900:]])
    last = service.start("--until", "end")
    last.wait_for("epoch committed", timeout=120)
    last.kill(signal.SIGTERM)
    assert last.end() == Unfinished.exit_code
    assert restored_from(last.lines) == older["position"]
    service.run("--until", "end")
    output = read_output(service.output)
    check_exactly_once(output, dict(zip(origins, images, strict=True)), TAU)
    assert verified(service.output)["records"] == len(images)

    assert index("rebuild", service)["verdict"] == "equal"
    written = index("snapshot", service)
    told = index("info", service, "--verify")
    assert told["tail"] == 0
    assert [s["ok"] for s in told["snapshots"]] == [True, True]
    assert told["snapshots"][0]["position"] == written["position"]
    assert told["snapshots"][0]["winners"] == written["winners"] == len(output.of("accepted"))


def test_rebuild_finds_a_snapshot_that_says_something_else(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """Well-formed but wrong, as after a bug: only the comparison with the log finds it."""
    from streamer.config import load
    from streamer.dedup.choose import open_index
    from streamer.dedup.meld import Meld
    from streamer.kafka.admin import Admin
    from streamer.kafka.claim_log import bound_to
    from streamer.sink.snapshots import open_snapshots
    from streamer.wire.claim import Open

    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(60, seed=32)])
    service = make_service(dataset_name, dedup={"threshold": TAU}, dead_letters={"max_ratio": 1})
    service.run("--until", "end")
    assert index("info", service)["snapshots"] == [], "too little to be worth one"
    config = load(service.config())
    admin = Admin(config.kafka)
    binding = bound_to(config, admin)
    wrong = Meld(binding.dim, TAU, open_index(binding.dim, TAU, "cpu"))
    wrong.apply(binding)
    wrong.apply(Open(0, 99, 5, 0))
    snapshots = open_snapshots(config, binding, admin.topic_id(config.claims_topic))
    assert snapshots is not None
    snapshots.write(wrong.state(), offset=2)
    told = index("rebuild", service, expect=1)
    assert told["verdict"] == "different"
    assert len(told["removed"]) == 1
    assert index("rebuild", service)["verdict"] == "equal"
    done = streamer("index", "info", "-c", str(service.config()))
    assert "looks good" in done.stdout
    assert "a start reads 0 of them" in done.stdout


def test_what_cannot_be(kafka: str, topic_name: str, dataset_name: str, make_service: Made) -> None:
    service = make_service(dataset_name)
    done = streamer("index", "info", "-c", str(service.config()), expect=1)
    assert f"{dataset_name}.claims" in done.stderr
    for setting, said in (
        ("dedup=off", "dedup is off"),
        ("dedup.snapshots=off", "dedup.snapshots is off"),
    ):
        done = streamer("index", "rebuild", "-c", str(service.config()), "--set", setting, expect=2)
        assert said in done.stderr
