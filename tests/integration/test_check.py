"""`streamer check` looks at what a start needs, or says that it did not; what it calls wrong ends a
start before anything is written."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.testing import create_topic, free_port, jpeg, produce
from tests.integration.service import Made, Service, streamer, verified


def check(service: Service, expect: int, *arguments: str, **changes: Any) -> dict[str, Any]:
    """Name of the check → (ok, detail)."""
    path = str(service.config(**changes))
    told = json.loads(streamer("check", "--json", "-c", path, *arguments, expect=expect).stdout)
    assert told["ok"] == (expect == 0)
    return {line["check"]: (line["ok"], line["detail"]) for line in told["checks"]}


def test_the_wrong_output_path_of_a_dataset(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(i), {}) for i in range(5)])
    service = make_service(dataset_name)
    fresh = check(service, 0)
    assert fresh["topics"][1].startswith(f"a start will create {dataset_name}.claims, ")
    service.run("--until", "end")
    right = check(service, 0)
    assert right["output"] == (True, f"{service.output} is writable; all of 2 epochs are there")
    assert right["topics"][1].startswith(f"{dataset_name}.claims, {dataset_name}.commits, ")

    elsewhere = {"path": str(tmp_path / "elsewhere")}
    said = f"is missing files of epoch w0-00000001, which {dataset_name}.commits has committed"
    ok, detail = check(service, 1, output=elsewhere)["output"]
    assert ok is False
    assert said in detail
    assert "Is output.path right?" in detail
    produce(kafka, topic_name, [(jpeg(9), {})])
    replica = service.run("--until", "end", expect=1, output=elsewhere)
    assert said in replica.lines[-1]
    assert "Nothing was written" in replica.lines[-1]
    left = tmp_path / "elsewhere"
    assert not left.exists() or not [p for p in left.rglob("*") if p.is_file()]

    # The folder is moved there: then all is well, and the dataset goes on
    shutil.move(service.output, left / dataset_name)
    assert check(service, 0, output=elsewhere)["output"][0] is True
    service.run("--until", "end", output=elsewhere)
    assert verified(left / dataset_name)["records"] == 6


def test_an_epoch_whose_files_were_removed_before_they_were_public(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """One file of a committed epoch is gone: the start says which, and touches nothing."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(i), {}) for i in range(5)])
    service = make_service(dataset_name)
    service.run("--until", "end")
    (service.output / "manifests/w0-00000001.json").unlink()
    [tar] = (service.output / "shards/jpg").iterdir()
    kept = tar.read_bytes()
    tar.unlink()
    before = sorted(service.output.rglob("*"))
    replica = service.run("--until", "end", expect=1)
    assert "is missing files of epoch w0-00000001" in replica.lines[-1]
    assert sorted(service.output.rglob("*")) == before
    tar.write_bytes(kept)
    service.run("--until", "end")
    assert verified(service.output)["records"] == 5


def test_whatever_ends_a_start_is_wrong(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """Topics, offsets and folders that are not those of one dataset. Neither `check` nor the start
    changes anything."""
    admin = AdminClient({"bootstrap.servers": kafka})
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(i), {}) for i in range(5)])
    service, other = make_service(dataset_name), make_service(f"{dataset_name}-b")
    service.run("--until", "end")
    other.run("--until", "end")
    produce(kafka, topic_name, [(jpeg(i), {}) for i in range(5, 9)])
    assert check(service, 0)["offsets"] == (True, "1 partition committed, 4 offsets behind")
    before = contents(tmp_path)

    def refused(name: str, words: str, start: bool = True) -> None:
        ok, detail = check(service, 1)[name]
        assert (ok, words in detail) == (False, True), detail
        if start:
            assert words in service.run("--until", "end", expect=1).lines[-1]
        assert contents(tmp_path) == before

    def commit(offset: int) -> None:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"streamer.{dataset_name}"})
        consumer.commit(offsets=[TopicPartition(topic_name, 0, offset)], asynchronous=False)
        consumer.close()

    commit(3)
    refused("offsets", "is committed at offset 3, but the manifests end at 5")
    commit(5)
    swap(service.output, other.output, tmp_path)
    before = contents(tmp_path)
    refused("output", "is of another epoch")
    swap(service.output, other.output, tmp_path)
    service.output.rename(tmp_path / "away")
    service.output.mkdir()
    (service.output / "metadata").write_text("")
    before = contents(tmp_path)
    refused("output", "a file is in the way", start=False)
    shutil.rmtree(service.output)
    (tmp_path / "away").rename(service.output)

    before = contents(tmp_path)
    for future in admin.delete_records([TopicPartition(topic_name, 0, 7)]).values():
        future.result(30)
    refused("offsets", "the offsets 5 to 6 expired before they were processed")
    for log, name, words in (
        ("claims", "dataset", "it was deleted or made again"),
        ("commits", "output", "does not name: the commit log was lost"),
    ):
        topic = f"{dataset_name}.{log}"
        admin.delete_topics([topic])[topic].result(30)
        refused(name, words)
        assert topic not in admin.list_topics(timeout=30).topics
    shutil.rmtree(service.output)
    before = contents(tmp_path)
    refused("offsets", f"is committed at offset 5, but {dataset_name}.commits holds no epoch")
    assert not {f"{dataset_name}.{log}" for log in ("claims", "commits")} & set(
        admin.list_topics(timeout=30).topics
    )


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of the datasets below ``folder``, snapshots aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    return {path: path.read_bytes() for path in files}


def swap(one: Path, other: Path, scratch: Path) -> None:
    one.rename(scratch / "swapped")
    other.rename(one)
    (scratch / "swapped").rename(other)


def test_what_it_does_not_look_at(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    nobody = {"bootstrap_servers": f"127.0.0.1:{free_port()}", "topic": topic_name}
    service = make_service(dataset_name)
    found = check(service, 1, kafka=nobody, embedder={"type": "timm", "model": "resnet-18"})
    assert found["broker"][0] is found["model"][0] is False
    for name in ("topics", "output", "index", "dataset"):
        ok, detail = found[name]
        assert ok is None
        assert "kipped" in detail
    lines = streamer("check", "-c", str(service.config(kafka=nobody)), expect=1).stdout.splitlines()
    assert {line[:5] for line in lines if "skipped: needs" in line} == {"?    "}


def test_the_port(kafka: str, topic_name: str, dataset_name: str, make_service: Made) -> None:
    create_topic(kafka, topic_name)
    service = make_service(dataset_name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        http = {"host": "127.0.0.1", "port": port}
        ok, detail = check(service, 0, http=http)["http"]
        assert ok is None
        assert f"127.0.0.1:{port} is in use. If this replica is not running" in detail
    assert check(service, 0, http=http)["http"] == (True, f"127.0.0.1:{port} is free")
    assert check(service, 1, http={"host": "192.0.2.1", "port": port})["http"][0] is False


def test_a_folder_that_is_not_mounted(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """Every record that refers into it would be invalid for good."""
    create_topic(kafka, topic_name)
    folder = tmp_path / "mnt"
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    uri = f"file://{folder}/1.jpg".encode()
    produce(kafka, topic_name, [(b"", {"uri": uri})])
    fetch = {"schemes": ["file"], "hosts": [str(folder)]}
    service = make_service(dataset_name, fetch=fetch, dead_letters={"max_ratio": 1})
    said = f"fetch.hosts: folder {folder} does not exist. Mount it or correct the path."
    assert check(service, 1)["fetch"] == (False, said)
    assert said in service.run("--until", "end", expect=1).lines[-1]
    folder.mkdir()
    shutil.move(tmp_path / "1.jpg", folder)
    ok, detail = check(service, 0)["fetch"]
    assert (ok, detail) == (True, f"file from {folder}; no host was asked")
    service.run("--until", "end")
    assert verified(service.output)["outcomes"]["accepted"] == 1


def test_a_topic_that_loses_its_entries(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    create_topic(kafka, f"{dataset_name}.claims", retention_ms=1000)
    ok, detail = check(make_service(dataset_name), 1)["topics"]
    assert ok is False
    assert "retention.ms is 1000, it must be -1" in detail


def test_the_decoder_that_a_start_would_use(
    make_service: Made, dataset_name: str, kafka: str, topic_name: str
) -> None:
    """`device: cpu`, so that the answer is the same on a machine with a GPU."""
    create_topic(kafka, topic_name, partitions=1)
    service = make_service(dataset_name)
    said = check(service, 0, device="cpu")["decode"]
    assert said[0] is True
    assert said[1].startswith("JPEGs are decoded on the CPU: the embedder runs on cpu; all else")
    refused = check(service, 2, device="cpu", decode={"device": "gpu"})
    assert refused["model"][0] is False
    assert "decode.device: gpu: the embedder runs on cpu; use auto or cpu" in refused["model"][1]
    assert refused["decode"] == (None, "skipped: needs the model")
