"""A dataset that has lived for long: what a start reads of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from streamer.sink.engine import CHECKPOINT_EPOCHS
from streamer.testing import create_topic, produce
from tests.integration.service import SCRIPT, Made, Replica, Service, photographs, verified


def read_epochs(replica: Replica) -> tuple[int, int]:
    """How many epochs its start read, and the offset of the checkpoint that it began with."""
    (line,) = (found for found in map(json.loads, replica.lines) if "epochs" in found)
    return line["epochs"], line["checkpoint"]


def test_a_start_reads_the_commit_log_from_a_checkpoint(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    count = 2 * CHECKPOINT_EPOCHS + 20
    some = photographs(50, seed=7, invalid=0)
    produce(kafka, topic_name, [(some[i % 50], {}) for i in range(count)])
    service = make_service(dataset_name, batch={"size": 2, "linger": "1ms"})
    service.settings["output"] |= {"epoch_records": 2}
    assert read_epochs(service.run("--until", "end")) == (0, -1)
    (kept,) = (service.output / ".checkpoints").iterdir()
    offset = json.loads(kept.read_bytes())["offset"]
    assert offset >= CHECKPOINT_EPOCHS

    epochs, checkpoint = read_epochs(service.run("--until", "end"))
    assert (checkpoint, epochs < 30) == (offset, True)
    assert verified(service.output)["records"] == count
    ok, detail = _output(service)
    assert (ok, f"the {epochs} after the checkpoint at offset {offset} are there" in detail) == (
        True,
        True,
    ), detail
    newest = max(service.output.glob("manifests/*.json"))
    away = newest.rename(newest.with_suffix(".away"))
    table = service.output / f"metadata/{newest.stem}.parquet"
    gone = table.rename(table.with_suffix(".away"))
    assert _output(service)[0] is False
    gone.rename(table)
    away.rename(newest)

    _damage(kept)
    assert "; all of " in _output(service)[1]
    epochs, checkpoint = read_epochs(service.run("--until", "end"))
    assert (checkpoint, epochs > CHECKPOINT_EPOCHS) == (-1, True)
    assert len(list(kept.parent.iterdir())) == 2, "so long a log is not read twice"
    assert read_epochs(service.run("--until", "end"))[1] > offset


def _output(service: Service) -> tuple[bool, str]:
    """What `streamer check` says of the output."""
    done = subprocess.run(
        [SCRIPT, "check", "--json", "-c", service.config()], capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    return next(
        (c["ok"], c["detail"]) for c in json.loads(done.stdout)["checks"] if c["check"] == "output"
    )


def _damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"tiles"', b'"tales"'))
