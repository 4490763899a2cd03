"""The object store goes away while a real replica works: during uploads, while committed epochs get
their public names, at a start, and at a shutdown."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from streamer.testing import create_topic, produce
from tests.integration.service import (
    Made,
    check_exactly_once,
    photographs,
    read_output,
    verified,
)
from tests.integration.watch import ask, port_of, scrape, total, wait_until
from tests.sink_data import s3_server
from tests.unreliable_store import UnreliableStore, unreliable

TAU = 0.97
POLL_INTERVAL_S = 8.0
SHORT_DRAIN = (
    sys.executable,
    "-c",
    "import runpy, sys, streamer.replica; streamer.replica.DRAIN_DEADLINE_S = 5.0; "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')",
)
"""Starts the command behind it with less time for a shutdown."""


@pytest.fixture(scope="module")
def s3_query() -> Iterator[str]:
    with s3_server() as query:
        yield query


@pytest.fixture
def store(s3_query: str) -> Iterator[tuple[UnreliableStore, str]]:
    with unreliable(s3_query) as (made, query):
        yield made, f"{query}&request_timeout=2&connect_timeout=2"


@pytest.mark.timeout(400)
def test_outages_cost_nothing_but_time(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    tmp_path: Path,
    s3_query: str,
    store: tuple[UnreliableStore, str],
) -> None:
    there, query = store
    images = photographs(600, seed=43)
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(
        kafka, topic_name, [(image, {"text": str(i)}) for i, image in enumerate(images)]
    )
    prefix = f"curated/{uuid.uuid4().hex}/out"
    settings: dict[str, Any] = {
        "kafka": {
            "bootstrap_servers": kafka, "topic": topic_name,
            "client": {"session.timeout.ms": 6000, "max.poll.interval.ms": int(1000 * POLL_INTERVAL_S)},
        },
        "embedder": {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 60}},
        "output": {"path": f"s3://{prefix}{query}", "epoch_records": 60, "shard_records": 25, "seal_after": "1s", "retry_for": "5m"},
        "batch": {"size": 16, "linger": "10ms"}, "dedup": {"threshold": TAU},
    }  # fmt: skip
    service = make_service(dataset_name, **settings)

    # At a start: the process waits, and says so.
    there.mode = "slow down"
    replica = service.start("--until", "end")
    port = port_of(replica)
    replica.wait_for("the storage is away")
    assert "waiting for the storage" in ask(port, "/readyz")[1]
    assert ask(port, "/livez")[0] == 200
    there.mode = "there"
    replica.wait_for("the storage is back")

    # While an epoch is written and sealed: longer than the group waits for one that does not poll.
    replica.wait_for("epoch committed", timeout=120)
    there.mode = "refused"
    replica.wait_for("the storage is away", count=2)
    wait_until(
        lambda: total(scrape(port), "streamer_storage_away_seconds") > 1.3 * POLL_INTERVAL_S,
        replica,
    )
    there.mode = "there"
    replica.wait_for("the storage is back", count=2)

    # While a committed epoch gets its public names.
    copies = there.answered["PUT Copy"]
    there.break_at("PUT Copy", "stalled")
    there.wait_for_failures(1, timeout=90)
    replica.wait_for("the storage is away", count=3, timeout=150)
    wait_until(
        lambda: total(scrape(port), "streamer_storage_away_seconds") > 1.3 * POLL_INTERVAL_S,
        replica,
    )
    there.mode = "there"
    replica.wait_for("the storage is back", count=3)

    # Copies that take longer than a connection may be silent.
    there.slow_copies_s = 3.0
    wait_until(lambda: there.answered["PUT Copy"] >= copies + 2, replica)
    there.slow_copies_s = 0.0

    assert replica.end(180) == 0, replica.log
    assert not replica.count("partitions lost")
    assert not replica.count("uncommitted work is dropped")
    uri = f"s3://{prefix}/{dataset_name}"
    assert verified(f"{uri}{s3_query}")["records"] == len(images)
    here = tmp_path / "here"
    fs.copy_files(
        f"{prefix}/{dataset_name}", str(here), source_filesystem=fs.FileSystem.from_uri(f"{uri}{s3_query}")[0]
    )  # fmt: skip
    check_exactly_once(read_output(here), dict(zip(origins, images, strict=True)), TAU)
    assert not [path for path in (here / ".staging").rglob("*") if path.is_file()]


@pytest.mark.timeout(300)
def test_an_outage_that_does_not_end_is_exit_75_and_the_next_start_goes_on(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    s3_query: str,
    store: tuple[UnreliableStore, str],
) -> None:
    there, query = store
    images = photographs(200, seed=44)
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in images])
    prefix = f"curated/{uuid.uuid4().hex}/out"
    output = {"path": f"s3://{prefix}{query}", "epoch_records": 40, "seal_after": "1s"}
    service = make_service(
        dataset_name,
        embedder={"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 60}},
        batch={"size": 16, "linger": "10ms"},
    )
    replica = service.start(output={**output, "retry_for": "2s"})
    replica.wait_for("epoch committed", timeout=90)
    there.mode = "slow down"
    assert replica.end(90) == 75
    assert "output.retry_for" in replica.lines[-1]
    assert "Traceback" not in replica.log

    there.mode = "there"
    replica = service.start(output={**output, "retry_for": "10m"}, prefix=SHORT_DRAIN)
    replica.wait_for("epoch committed", timeout=90)
    there.mode = "slow down"
    replica.wait_for("the storage is away")
    replica.kill(signal.SIGTERM)
    assert replica.end(60) == 75, replica.log
    assert "within 5 s" in replica.lines[-1]

    there.mode = "denied"
    denied = service.start(output={**output, "retry_for": "10m"})
    assert denied.end(60) == 1
    assert "The fix: let these credentials" in denied.lines[-1]

    there.mode = "there"
    service.run("--until", "end", output=output)
    report = verified(f"s3://{prefix}/{dataset_name}{s3_query}")
    assert report["records"] == len(images)
