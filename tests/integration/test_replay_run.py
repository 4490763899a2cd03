"""``streamer replay run``: a part of the topic into a new dataset, and the live one untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamer.config import Kafka
from streamer.kafka.admin import Admin
from streamer.testing import create_topic, produce, read_topic
from tests.integration.service import (
    Made,
    Replica,
    Service,
    check_exactly_once,
    photographs,
    read_output,
    streamer,
    verified,
)

TAU = 0.97
PARTITIONS = (0, 1, 2)


class Replays:
    """Starts ``streamer replay run`` with the service's config."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def start(
        self, dataset: str, first: str, last: str, writer: str = "w0", delay_ms: int = 0
    ) -> Replica:
        embedder = {
            "type": "tests.plugins.thumbnail:ThumbnailEmbedder",
            "args": {"delay_ms": delay_ms},
        }
        path = str(self.service.config(writer=writer, embedder=embedder))
        return self.service.launch(
            "replay", "run", "-c", path, "--dataset", dataset, "--from", first, "--until", last
        )

    def output(self, dataset: str) -> Path:
        return self.service.output.parent / dataset


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / "manifests").glob("*.json")]


def live_state(kafka: str, service: Service) -> tuple[object, ...]:
    """Everything of the live dataset that a replay might touch."""
    admin = Admin(Kafka(bootstrap_servers=kafka, topic=service.settings["kafka"]["topic"]))
    offsets = admin.committed(
        f"streamer.{service.dataset}", service.settings["kafka"]["topic"], PARTITIONS
    )
    logs = {
        name: len(read_topic(kafka, f"{service.dataset}.{name}", committed=False))
        for name in ("claims", "commits", "dead")
    }
    return offsets, logs, sorted(str(path) for path in service.output.rglob("*"))


@pytest.mark.timeout(400)
def test_replays_beside_a_live_dataset(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(900, seed=51, invalid=0.0)
    create_topic(kafka, topic_name, partitions=3)
    origins = produce(kafka, topic_name, [(image, {}) for image in images])  # 300 each
    produced = dict(zip(origins, images, strict=True))
    service = make_service(
        dataset_name,
        output={"path": str(tmp_path / "out"), "epoch_records": 60, "seal_after": "1s"},
        batch={"size": 16, "linger": "10ms"},
    )
    service.run("--until", "end")
    before = live_state(kafka, service)
    live = {key: row["outcome"] for key, row in read_output(service.output).by_origin.items()}
    replays = Replays(service)

    # From offsets, a count of them from there. It is killed once, records arrive meanwhile, and two
    # replicas finish it.
    new, wanted = (
        f"{dataset_name}-again",
        {(p, o) for p, first in ((0, 20), (1, 50)) for o in range(first, first + 200)},
    )
    killed = replays.start(new, "offset:0=20,1=50", "count:200", delay_ms=60)
    killed.wait_for("epoch committed", timeout=90)
    killed.kill()
    produce(kafka, topic_name, [(image, {}) for image in photographs(60, seed=52)])
    pair = [
        replays.start(new, "offset:0=20,1=50", "count:200", writer=f"w{i}", delay_ms=20)
        for i in range(2)
    ]
    # At the same time: a tiny one, of the last ten offsets that there were then.
    small = f"{dataset_name}-small"
    tiny = replays.start(small, "offset:290", "count:10", writer="w5")
    for replica in (*pair, tiny):
        assert replica.end() == 0, replica.log

    output = read_output(replays.output(new))
    check_exactly_once(output, {origin: produced[origin] for origin in wanted}, TAU)
    verified(replays.output(new))
    [founding] = [m for m in manifests(replays.output(new)) if "ends" in m["pipeline"]]
    assert founding["pipeline"]["ends"] == {"0": 220, "1": 250, "2": 300}
    # Each partition is tiled from its start to its fixed end, the one that was left out is empty.
    tiles: dict[str, list[list[int]]] = {}
    for m in manifests(replays.output(new)):
        for p, (first, following) in m["partitions"].items():
            tiles.setdefault(p, []).append([first, following])
    assert {p: (min(t)[0], max(t)[1]) for p, t in tiles.items()} == {
        "0": (20, 220),
        "1": (50, 250),
        "2": (300, 300),
    }

    tiny_rows = read_output(replays.output(small)).by_origin
    assert set(tiny_rows) == {(p, o) for p in PARTITIONS for o in range(290, 300)}
    verified(replays.output(small))

    # Not one offset, entry or file of the live dataset moved, and it has nothing to say about the
    # new names.
    assert live_state(kafka, service) == before
    done = streamer("lag", "-c", str(service.config()), "--json")
    assert json.loads(done.stdout)["records"] == 60
    assert set(read_output(service.output).by_origin) == set(live)


def test_a_replay_into_what_is_no_replays_dataset(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(8, seed=3)])
    live = make_service(dataset_name)
    other = make_service(f"{dataset_name}-other")
    one, two = live.start("--until", "end"), other.start("--until", "end")
    assert (one.end(), two.end()) == (0, 0)
    before = live_state(kafka, other)
    replays = Replays(live)
    empty = f"{dataset_name}-empty"
    for name, first, words in (
        (other.dataset, "earliest", "is no replay's; choose a new name"),
        (dataset_name, "earliest", "that is the live dataset"),
        (empty, "2099-01-01", "lies between them; nothing was begun, and the name is still free"),
    ):
        refused = replays.start(name, first, "end")
        assert refused.end() == 2, refused.log
        assert words in refused.lines[-1]
        assert "Traceback" not in refused.log
    assert live_state(kafka, other) == before
    assert replays.start(empty, "earliest", "count:4").end() == 0
    again = replays.start(empty, "earliest", "count:8")
    assert again.end() == 0
    assert "it keeps the range that it was begun with" in again.log
    assert len(read_output(replays.output(empty)).rows) == 4
