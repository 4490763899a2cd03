"""`verify -c`: the folder against the commit log and the group's offsets on a real Kafka, through
the installed command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition
from sink_data import Maker, make_dataset

from streamer.audit import PROBLEMS
from streamer.config import Config, load
from streamer.kafka.client import consumer_config
from streamer.sink.storage import Storage
from streamer.testing import create_topic, produce
from streamer.wire.manifest import Manifest, encode

ENDS = {0: 90, 1: 91}
"""Of what `make_dataset` makes."""


@pytest.fixture
def path(kafka: str, topic_name: str, dataset_name: str, tmp_path: Path) -> Path:
    file = tmp_path / "streamer.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "dataset": dataset_name,
                "writer": "w-0",
                "kafka": {"bootstrap_servers": kafka, "topic": topic_name},
                "embedder": {"model": "resnet18"},
                "output": {"path": str(tmp_path / "out")},
            }
        )
    )
    create_topic(kafka, topic_name, partitions=2)
    create_topic(kafka, f"{dataset_name}.commits", message_timestamp_type="LogAppendTime")
    return file


@pytest.fixture
def config(path: Path) -> Config:
    return load(path)


def write_log(config: Config, manifests: list[Manifest]) -> None:
    servers = config.kafka.bootstrap_servers
    produce(servers, config.commits_topic, [(encode(m), {}) for m in manifests])


def commit_offsets(config: Config, offsets: Mapping[int, int]) -> None:
    consumer = Consumer(consumer_config(config, config.group))
    wanted = [TopicPartition(config.kafka.topic, p, o) for p, o in offsets.items()]
    consumer.commit(offsets=wanted, asynchronous=False)
    consumer.close()


def verify(*arguments: object, expect: int) -> dict[str, Any]:
    script = Path(sysconfig.get_path("scripts")) / "streamer"
    command = [script, "dataset", "verify", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return {**found, "stderr": done.stderr}


def problems(told: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((p["code"], p["path"]) for p in told["problems"])


def dataset(config: Config) -> list[Manifest]:
    return make_dataset(config.output.path, name=config.dataset)


def test_a_whole_dataset(config: Config, path: Path) -> None:
    write_log(config, dataset(config))
    commit_offsets(config, ENDS)
    told = verify("-c", path, expect=0)
    assert (told["ok"], told["records"], told["compared_with"]) == (True, 180, config.commits_topic)
    assert told["notes"] == []
    folder = Path(config.output.path) / config.dataset
    assert verify(folder, expect=0)["compared_with"] is None
    script = Path(sysconfig.get_path("scripts")) / "streamer"
    for arguments, said in (
        ([folder], "The folder alone cannot show whether its newest epochs are missing"),
        (["-c", path], f"nothing that {config.commits_topic} names is missing"),
    ):
        done = subprocess.run(
            [script, "dataset", "verify", *arguments], capture_output=True, text=True, check=True
        )
        assert said in done.stdout


def test_a_copy_without_its_newest_epochs(config: Config, path: Path, tmp_path: Path) -> None:
    """The folder alone is right: every offset that it names, it has."""
    manifests = dataset(config)
    write_log(config, manifests)
    copy = tmp_path / "copy"
    shutil.copytree(Path(config.output.path) / config.dataset, copy)
    for manifest in manifests[-2:]:
        for gone in (manifest.path, *(file.path for file in manifest.files)):
            (copy / gone).unlink()
    assert verify(copy, expect=0)["records"] == 140
    told = verify(copy, "-c", path, expect=1)
    assert problems(told) == [("epoch_missing", m.path) for m in manifests[-2:]]
    assert "with 40 records" in told["problems"][1]["detail"]


def test_an_epoch_that_is_committed_and_waits_in_staging(config: Config, path: Path) -> None:
    maker = Maker(Storage(config.output.path, config.dataset), seed=5)
    written = [maker.commit("w-0", {0: 40}), maker.seal("w-1", {0: 40})]
    written.append(maker.commit("w-0", {0: 40}))
    write_log(config, written)
    told = verify("-c", path, expect=0)
    assert {n["code"] for n in told["notes"]} == {
        "staged",
        "unprojected",
        "gap_pending",
        "target_pending",
    }
    maker.storage.discard("w-1", 0, written[1].uuid)
    assert ("epoch_missing", written[1].path) in problems(verify("-c", path, expect=1))


def test_epochs_of_another_life(config: Config, path: Path) -> None:
    manifests = dataset(config)
    write_log(config, [*manifests[:-1], replace(manifests[-1], sealed="2026-01-01T00:00:01Z")])
    report = verify("-c", path, expect=1)
    assert problems(report) == [("epoch_differs", manifests[-1].path)]
    assert "sha256" in report["problems"][0]["detail"]


def test_an_epoch_that_the_log_does_not_name(config: Config, path: Path) -> None:
    manifests = dataset(config)
    write_log(config, manifests[:-1])
    assert problems(verify("-c", path, expect=1)) == [("epoch_unknown", manifests[-1].path)]


@pytest.mark.parametrize("offset", [0, 89, 91])
def test_offsets_that_somebody_moved(config: Config, path: Path, offset: int) -> None:
    write_log(config, dataset(config))
    commit_offsets(config, {**ENDS, 0: offset})
    told = verify("-c", path, expect=1)
    assert problems(told) == [("offsets_differ", config.commits_topic)]
    assert f"partition 0: the group is committed at offset {offset}, the commit log at 90" in str(
        told["problems"]
    )


def test_a_dataset_without_a_record(config: Config, path: Path) -> None:
    """Of the folder alone that is no proof of anything; the commit log says that it is right."""
    maker = Maker(Storage(config.output.path, config.dataset))
    write_log(config, [maker.commit("w-0", {0: 0})])
    assert problems(verify(Path(config.output.path) / config.dataset, expect=1)) == [
        ("no_records", "manifests")
    ]
    assert verify("-c", path, expect=0)["records"] == 0
    write_log(config, [maker.seal("w-0", {0: 20})])
    assert ("no_records", "manifests") in problems(verify("-c", path, expect=1))


def test_the_log_says_where_a_replay_ends(config: Config, path: Path) -> None:
    """Two replicas founded it at once: the first manifest of the log holds."""
    maker = Maker(Storage(config.output.path, config.dataset))
    first = maker.seal("w-0", {0: 0})
    maker.next = {}
    second = maker.seal("w-1", {0: 0})
    maker.next = {}
    written = [
        replace(m, partitions={0: (0, 0)}, pipeline={**m.pipeline, "ends": {"0": end}})
        for m, end in ((first, 41), (second, 40))
    ]
    for manifest in written:
        maker.storage.project(manifest)
    written.append(maker.commit("w-0", {0: 40}))
    write_log(config, written)
    assert verify(Path(config.output.path) / config.dataset, expect=0)["ok"]
    assert problems(verify("-c", path, expect=1)) == [("unfinished", config.commits_topic)]


def test_a_folder_of_another_dataset(config: Config, path: Path, tmp_path: Path) -> None:
    write_log(config, dataset(config))
    make_dataset(str(tmp_path), name="dogs")
    told = verify(tmp_path / "dogs", "-c", path, expect=2)
    assert f"holds dataset dogs, but the config names {config.dataset}" in told["stderr"]


def test_a_log_that_is_none(config: Config, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text().replace(config.dataset, "nobody-has-started-it"))
    told = verify("-c", other, expect=1)
    assert "there is no topic nobody-has-started-it.commits" in told["stderr"]
    produce(config.kafka.bootstrap_servers, config.commits_topic, [(b"no manifest", {})])
    assert "an entry is no manifest" in verify("-c", path, expect=1)["stderr"]


def test_neither_folder_nor_config(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.delenv("STREAMER_CONFIG", raising=False)
    assert "Give the dataset's folder DIR, or its config with -c" in verify(expect=2)["stderr"]
    monkeypatch.setenv("STREAMER_CONFIG", str(path))
    assert problems(verify(expect=1)) == [("no_dataset", "manifests")]


def test_every_code_of_the_comparison_is_met_above() -> None:
    met: set[str] = {"epoch_missing", "epoch_differs", "epoch_unknown", "offsets_differ"}
    assert met == {code for code, words in PROBLEMS.items() if "(with -c)" in words}
