"""`verify -c`: the folder against the commit log and the group's offsets on a real Kafka, through
the installed command."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition
from sink_data import Maker, make_dataset

from streamer.audit import PROBLEMS, Audit, Report
from streamer.config import Config, load
from streamer.errors import ProtocolError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config
from streamer.kafka.log import CommittedState, LogReader
from streamer.sink.storage import Storage
from streamer.testing import create_topic, produce
from streamer.wire import checked
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


class Counting(CommittedState):
    """How many entries of the log were read."""

    read = 0

    def entries(self) -> Iterator[tuple[int, bytes]]:
        for entry in super().entries():
            Counting.read += 1
            yield entry


def compared(config: Config, file: Path, recheck: bool = False) -> tuple[Report, int]:
    """The report, and how many entries of the log were read for it."""
    admin, place = Admin(config.kafka), Path(config.output.path) / config.dataset
    Counting.read = 0
    with LogReader(config, admin, config.commits_topic) as log:
        committed = Counting(config, admin, log)
        with Audit(str(place), committed, remember=file, recheck=recheck) as audit:
            report = audit.run()
    return report, Counting.read


def test_of_the_log_only_what_is_new_is_read(config: Config, tmp_path: Path) -> None:
    file, folder = tmp_path / "verified", Path(config.output.path) / config.dataset
    maker = Maker(Storage(config.output.path, config.dataset), seed=5)
    written = [maker.commit("w-0", {0: 40}) for _ in range(6)]
    write_log(config, written)
    commit_offsets(config, {0: 240})
    assert [compared(config, file)[1] for _ in range(2)] == [6, 1]
    late = maker.seal("w-1", {0: 20})  # committed, and projected later
    write_log(config, [late])
    commit_offsets(config, {0: 260})
    for _ in range(2):
        report, read = compared(config, file)
        assert (report.ok, {n.code for n in report.notes}, read) == (
            True,
            {"staged", "unprojected"},
            2,
        )
    maker.storage.project(late)
    commit_offsets(config, {0: 240})
    report, read = compared(config, file)
    assert ({p.code for p in report.problems}, read) == ({"offsets_differ"}, 2)
    commit_offsets(config, {0: 260})
    assert [compared(config, file)[1] for _ in range(2)] == [2, 1]
    assert compared(config, file, recheck=True)[1] == 7

    # Something of what was compared is another one now: then all of it is
    path = folder / written[2].path
    path.write_bytes(path.read_bytes().replace(b"2026-01-01T00:01", b"2026-01-01T00:02"))
    report, read = compared(config, file)
    assert [(p.code, p.path) for p in report.problems] == [("epoch_differs", written[2].path)]
    assert read == 1 + 7
    path.unlink()
    report, _ = compared(config, file)
    assert "epoch_missing" in {p.code for p in report.problems}
    maker.storage.folder.replace(written[2].path, encode(written[2]), ".staging/x")
    (folder / "manifests/w-0-00000006.json").write_bytes(
        encode(
            replace(
                written[5],
                epoch=6,
                uuid="77",
                previous_uuid=written[5].uuid,
                files=(),
                counts={},
                partitions={},
            )
        )
    )
    report, _ = compared(config, file)
    assert [p.code for p in report.problems] == ["epoch_unknown"]


def test_a_log_that_is_not_the_one_that_was_read(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "verified"
    manifests = dataset(config)
    write_log(config, manifests)
    commit_offsets(config, ENDS)
    assert compared(config, file)[0].ok
    with sqlite3.connect(file) as database:
        (body,) = database.execute("SELECT body FROM facts WHERE name = 'commit log'").fetchone()
        for field, value in (("offset", 2), ("offset", 99), ("log_id", "another")):
            mark = {**checked.decode(body, 1, "it")["value"], field: value}
            changed = checked.encode({"value": mark}, 1)
            database.execute("UPDATE facts SET body = ? WHERE name = 'commit log'", (changed,))
            database.commit()
            if field == "offset":
                with pytest.raises(ProtocolError, match="the log lost entries"):
                    compared(config, file)
            else:
                report, read = compared(config, file)
                assert (report.ok, read) == (True, 5)
    database.close()


def test_neither_folder_nor_config(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.delenv("STREAMER_CONFIG", raising=False)
    assert "Give the dataset's folder DIR, or its config with -c" in verify(expect=2)["stderr"]
    monkeypatch.setenv("STREAMER_CONFIG", str(path))
    assert problems(verify(expect=1)) == [("no_dataset", "manifests")]


def test_every_code_of_the_comparison_is_met_above() -> None:
    met: set[str] = {"epoch_missing", "epoch_differs", "epoch_unknown", "offsets_differ"}
    assert met == {code for code, words in PROBLEMS.items() if "(with -c)" in words}
