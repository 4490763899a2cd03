"""Output on an object store: the whole protocol over a kill -9, audited where it lies."""

from __future__ import annotations

import time
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
    streamer,
    verified,
)
from tests.sink_data import s3_server

TAU = 0.97


@pytest.fixture(scope="module")
def s3_query() -> Iterator[str]:
    with s3_server() as query:
        yield query


@pytest.mark.timeout(300)
def test_the_line_on_s3_over_a_kill_9(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    tmp_path: Path,
    s3_query: str,
) -> None:
    images = photographs(400, seed=41)
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(
        kafka, topic_name, [(image, {"text": str(i)}) for i, image in enumerate(images)]
    )
    prefix = f"curated/{uuid.uuid4().hex}/out"
    settings: dict[str, Any] = {
        "embedder": {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 60}},
        "output": {"path": f"s3://{prefix}{s3_query}", "epoch_records": 60, "shard_records": 25, "seal_after": "1s"},
        "batch": {"size": 16, "linger": "10ms"}, "dedup": {"threshold": TAU},
    }  # fmt: skip
    service = make_service(dataset_name, **settings)
    replica = service.start("--until", "end")
    replica.wait_for("epoch sealed", count=2, timeout=90)
    time.sleep(0.05)
    replica.kill()
    service.run("--until", "end")

    uri = f"s3://{prefix}/{dataset_name}{s3_query}"
    report = verified(uri)
    assert report["records"] == len(images)
    here = tmp_path / "here"
    store, _ = fs.FileSystem.from_uri(uri)
    fs.copy_files(f"{prefix}/{dataset_name}", str(here), source_filesystem=store)
    check_exactly_once(read_output(here), dict(zip(origins, images, strict=True)), TAU)
    assert (here / "README.md").read_text().startswith("---")
    assert not [path for path in (here / ".staging").rglob("*") if path.is_file()]
    assert "accepted" in streamer("dataset", "stats", uri).stdout


def test_a_bucket_that_is_not_there(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, s3_query: str
) -> None:
    create_topic(kafka, topic_name)
    service = make_service(dataset_name, output={"path": f"s3://nowhere-at-all/out{s3_query}"})
    before = time.monotonic()
    replica = service.run("--until", "end", expect=1)
    assert time.monotonic() - before < 30
    assert "nowhere-at-all" in replica.lines[-1]
    assert "Traceback" not in replica.log
