"""The main job: photographs and hostile files from a folder, through Kafka, into shards that every
loader opens."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from streamer.model.lite0 import write_demo_checkpoint
from streamer.testing import read_topic
from tests.integration.service import Made, Output, Replica, read_output, streamer, verified

TAU = 0.9
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def demo_embedder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    checkpoint = write_demo_checkpoint(tmp_path_factory.mktemp("weights") / "lite0.safetensors")
    return {
        "type": "timm",
        "model": "tf_efficientnet_lite0",
        "pretrained": False,
        "checkpoint": str(checkpoint),
    }


def test_photographs_end_in_shards_that_every_loader_opens(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    data_set: Path,
    demo_embedder: dict[str, Any],
    tmp_path: Path,
) -> None:
    photos = data_set / "photos"
    done = streamer(
        "produce", str(photos), "--topic", topic_name, "--bootstrap", kafka, "--create-topic", "--partitions", "2", "--json",
        "--captions", str(photos / "captions.tsv"), "--path-column", "file", "--text-column", "captions(|-separated)",
    )  # fmt: skip
    with (photos / "captions.tsv").open() as file:
        wanted = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert json.loads(done.stdout)["sent"] == len(wanted)
    service = make_service(
        dataset_name, embedder=demo_embedder, dedup={"threshold": TAU}, batch={"size": 32, "linger": "50ms"},
        output={"path": str(tmp_path / "out"), "epoch_records": 400, "shard_records": 150},
        filters=[{"field": "min_side", "at_least": 200}, {"field": "aspect_ratio", "at_most": 2}],
    )  # fmt: skip
    service.run("--until", "end", timeout=400)

    output = read_output(service.output)
    assert Counter(row["id"] for row in output.rows) == Counter(list(wanted))
    for row in output.rows:
        assert row["sha256"] == wanted[row["id"]]["sha256"]
        assert (row["width"], row["height"]) == (
            int(wanted[row["id"]]["width"]),
            int(wanted[row["id"]]["height"]),
        )
    report = verified(service.output)
    assert report["records"] == len(wanted)
    assert set(report["outcomes"]) >= {"accepted", "filtered"}
    _opens_in_webdataset(service.output, output)
    _opens_in_datasets(service.output, output, tmp_path)
    _opens_in_duckdb(service.output, output)


def test_hostile_files_have_their_rows_and_dead_letters(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    data_set: Path,
    large: bool,
    demo_embedder: dict[str, Any],
    tmp_path: Path,
) -> None:
    folders = ("hostile", "photos/coco" if large else "photos/skimage")
    files = sorted(
        path for folder in folders for path in (data_set / folder).rglob("*") if path.is_file()
    )
    for folder in folders:
        streamer(
            "produce", str(data_set / folder), "--topic", topic_name, "--bootstrap", kafka, "--all-files",
            *(["--create-topic", "--partitions", "2"] if folder == "hostile" else []),
        )  # fmt: skip
    formats = ["jpg", "png", "webp", "gif", "tiff", "bmp", "avif"]
    service = make_service(
        dataset_name, embedder=demo_embedder, dedup={"threshold": TAU}, dead_letters={"max_ratio": 1}, batch={"size": 32, "linger": "50ms"},
        output={"path": str(tmp_path / "out"), "formats": formats},
    )  # fmt: skip
    replica = service.start("--until", "end")
    peak = _peak_resident_bytes(replica)
    assert replica.end() == 0, replica.log
    output = read_output(service.output)
    assert len(output.rows) == len(files)
    assert Counter(row["sha256"] for row in output.rows if row["sha256"]) <= Counter(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    )
    report = verified(service.output)
    assert report["outcomes"]["invalid"] >= 50
    invalid = {(row["partition"], row["offset"]): row["reason"] for row in output.of("invalid")}
    dead = [dict(stored.headers) for stored in read_topic(kafka, f"{dataset_name}.dead")]
    assert {
        (int(d["streamer-partition"] or b""), int(d["streamer-offset"] or b"")): (
            d["streamer-reason"] or b""
        ).decode()
        for d in dead
    } == invalid
    print(f"peak resident memory {peak / 1e6:.0f} MB, {report['outcomes']}")
    assert peak < 3_000_000_000


def _peak_resident_bytes(replica: Replica) -> int:
    """Watches the process until it ends; bytes."""
    peak = 0
    while replica.process.poll() is None:
        try:
            status = Path(f"/proc/{replica.process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        peak = max(
            [
                peak,
                *(
                    int(line.split()[1]) * 1024
                    for line in status.splitlines()
                    if line.startswith("VmHWM")
                ),
            ]
        )
        try:
            replica.process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    return peak


def _python(code: str, env: dict[str, str] | None = None) -> Any:
    """The JSON that a fresh interpreter prints: the loaders warn and keep global state."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _opens_in_webdataset(folder: Path, output: Output) -> None:
    found = _python(f"""
        import json, webdataset as wds
        from glob import glob
        samples = wds.WebDataset(sorted(glob({str(folder)!r} + "/shards/jpg/*.tar")), shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "txt", "json")
        print(json.dumps([[key, list(image.size), text, data["sha256"]] for key, image, text, data in samples]))
    """)
    rows = {row["key"]: row for row in output.of("accepted")}
    assert len(found) == len(rows) > 0
    for key, _, text, sha256 in found:
        assert (text, sha256) == (rows[key]["text"], rows[key]["sha256"])


def _opens_in_datasets(folder: Path, output: Output, tmp_path: Path) -> None:
    for streaming in (False, True):
        keys = _python(
            f"""
            import json
            from datasets import load_dataset
            data = load_dataset({str(folder)!r}, split="train", streaming={streaming})
            print(json.dumps([[row["__key__"], row["jpg"].size[0], row["txt"]] for row in data]))
            """,
            {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        )
        assert {key: text for key, _, text in keys} == {
            row["key"]: row["text"] for row in output.of("accepted")
        }, f"streaming={streaming}"


def _opens_in_duckdb(folder: Path, output: Output) -> None:
    found = _python(f"""
        import duckdb, json
        query = "select outcome, count(*), count(embedding) from '" + {str(folder)!r} + "/metadata/*.parquet' group by 1"
        print(json.dumps(duckdb.sql(query).fetchall()))
    """)
    assert {outcome: n for outcome, n, _ in found} == dict(
        Counter(row["outcome"] for row in output.rows)
    )
