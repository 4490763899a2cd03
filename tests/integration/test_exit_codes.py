"""What the installed command tells the shell: every exit code, by causing it."""

from __future__ import annotations

import json
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.testing import create_topic, free_port, jpeg, produce
from tests.integration import service
from tests.integration.service import (
    SCRIPT,
    Made,
    Replica,
    Service,
    photographs,
    streamer,
    verified,
)

SLOW = {"type": "tests.plugins.thumbnail:ThumbnailEmbedder", "args": {"delay_ms": 400}}
SHORT = {"epoch_records": 40, "seal_after": "1s"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FORKED", False)


def last_line(replica: Replica) -> str:
    message: str = json.loads(replica.lines[-1])["message"]
    return message


def problems(folder: Path) -> list[dict[str, Any]]:
    done = streamer("dataset", "verify", str(folder), "--json", expect=None)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return list(report["problems"])


# produce


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"p{i}.jpg").write_bytes(jpeg(i))
    return folder


def test_produce(kafka: str, topic_name: str, images: Path) -> None:
    where = ("--topic", topic_name, "--bootstrap", kafka)
    assert "there is no topic" in streamer("produce", str(images), *where, expect=1).stderr
    streamer("produce", str(images), *where, "--create-topic")
    (images / "p9.jpg").symlink_to(images / "nowhere")
    done = streamer("produce", str(images), *where, expect=1)
    assert done.stdout.startswith("sent 4 records")
    assert "1 could not be sent" in done.stdout
    done = streamer("produce", str(images), *where, "--json", expect=1)
    assert [f["id"] for f in json.loads(done.stdout)["failed"]] == ["p9.jpg"]
    for i in range(4):
        (images / f"p{i}.jpg").unlink()
    assert streamer("produce", str(images), *where, expect=1).stdout.startswith("sent 0 records")


def test_produce_of_an_archive_that_ends_in_the_middle(
    kafka: str, topic_name: str, images: Path, tmp_path: Path
) -> None:
    create_topic(kafka, topic_name)
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for path in sorted(images.iterdir()):
            tar.add(path, path.name)
    broken = tmp_path / "broken.tar"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 4])
    where = ("--topic", topic_name, "--bootstrap", kafka)
    streamer("produce", str(whole), *where)
    assert "not sent: broken" in streamer("produce", str(broken), *where, expect=1).stderr


def test_ctrl_c(kafka: str, topic_name: str, tmp_path: Path) -> None:
    create_topic(kafka, topic_name)
    folder = tmp_path / "many"
    folder.mkdir()
    one = tmp_path / "one.jpg"
    one.write_bytes(jpeg(0) + bytes(500_000))
    for i in range(20_000):  # 10 GB: nobody waits for all of it
        (folder / f"{i:05d}.jpg").hardlink_to(one)
    command = [SCRIPT, "produce", str(folder), "--topic", topic_name, "--bootstrap", kafka]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the first line about its progress
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("stopped")


# Wrong configs, usage, and what is not there


def test_usage_and_config(tmp_path: Path, make_service: Made, dataset_name: str) -> None:
    assert streamer("--version").stdout
    for arguments in (["rnu"], ["run"], ["run", "-c", str(tmp_path / "none.yaml")]):
        streamer(*arguments, expect=2, env={"STREAMER_CONFIG": ""})
    service = make_service(dataset_name)
    wrong = str(service.config(bacth={}))
    for verb in (["run"], ["check"], ["lag"], ["index", "info"], ["replay", "run", "--dataset=x"]):
        assert "'batch'" in streamer(*verb, "-c", wrong, expect=2).stderr
    topicless = str(service.config())
    for verb in (["run"], ["check"], ["lag"], ["replay", "run", "--dataset", "x"]):
        streamer(*verb, "-c", topicless, expect=1)
    nobody = {"bootstrap_servers": f"127.0.0.1:{free_port()}", "topic": "t"}
    assert (
        "no Kafka broker"
        in streamer("lag", "-c", str(service.config(kafka=nobody)), expect=1).stderr
    )
    streamer("dataset", "verify", str(tmp_path), expect=1)
    streamer("dataset", "stats", str(tmp_path), expect=1)


# A run that has an end


@pytest.mark.parametrize("verb", ["replay", "run"])
def test_a_bounded_run_that_is_stopped_early(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, verb: str
) -> None:
    """It is not done: a supervisor must not take it for done, and `verify` shows it for a replay,
    whose end stands in its first manifest. Started again it goes on, and then it is done."""
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [(image, {}) for image in photographs(400, seed=7, invalid=0)])
    service = make_service(dataset_name, embedder=SLOW, output={**_out(make_service), **SHORT})
    name = f"{dataset_name}-again"

    def start() -> Replica:
        if verb == "run":
            return service.start("--until", "end")
        return service.launch("replay", "run", "-c", str(service.config()), "--dataset", name)

    replica = start()
    replica.wait_for("epoch committed", timeout=120)
    replica.kill(signal.SIGTERM)
    assert replica.end() == 75, replica.log
    folder = service.output if verb == "run" else service.output.parent / name
    committed = sum(
        following - first
        for path in (folder / "manifests").glob("*.json")
        for first, following in json.loads(path.read_text())["partitions"].values()
    )
    assert 0 < committed < 400
    assert last_line(replica) == f"stopped at {committed} of 400, start again to go on"
    found = problems(folder)
    if verb == "replay":
        assert {p["code"] for p in found} == {"unfinished"}
        assert "the replay ends at offset 200" in found[0]["detail"]
    else:
        assert found == [], "the folder cannot know where it was to end"
    again = start()
    assert again.end() == 0, again.log
    assert "ended well" in again.lines[-1]
    assert again.count("the end is reached: everything up to it is decided and committed") == 1
    assert problems(folder) == []
    assert start().end() == 0, "there is nothing left to do"


@pytest.mark.parametrize("killed", [False, True])
def test_a_replica_without_a_partition_is_not_done_before_the_others(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    tmp_path: Path,
    killed: bool,
) -> None:
    """It stands by: when the one that has the partition is killed, it finishes its work."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(300, seed=7, invalid=0)])
    quick = {
        "bootstrap_servers": kafka,
        "topic": topic_name,
        "client": {"session.timeout.ms": 6000},
    }
    hold = tmp_path / "hold"
    service = make_service(
        dataset_name,
        embedder={**SLOW, "args": {"delay_ms": 400, "hold": str(hold)}},
        kafka=quick,
        output={**_out(make_service), **SHORT},
    )
    one = service.start("--until", "end")
    one.wait_for("epoch committed", timeout=120)
    hold.write_text(str(one.process.pid))
    other = service.start("--until", "end", writer="w1")
    other.wait_for("it stands by for the others", timeout=90)
    assert other.process.poll() is None
    if killed:
        one.kill()
    hold.unlink()
    assert killed or one.end() == 0, one.log
    assert other.end() == 0, other.log
    assert ("epoch committed" in other.log) == killed
    assert verified(service.output)["records"] == 300


@pytest.mark.parametrize("drained", [True, False])
def test_replicas_of_a_bounded_run_that_start_one_after_the_other_share_it(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,
    tmp_path: Path,
    drained: bool,
) -> None:
    """A group hands over in two steps: a new member has no partition at first. The first one has
    read everything up to the end by then, and must read again what it keeps: also what was on the
    device, if that takes longer than a hand-over may (a fifth of the poll interval)."""
    create_topic(kafka, topic_name, partitions=4)
    produce(kafka, topic_name, [(image, {}) for image in photographs(300, seed=7, invalid=0)])
    hold = tmp_path / "hold"
    quick = {
        "bootstrap_servers": kafka,
        "topic": topic_name,
        "client": {
            "session.timeout.ms": 6000,
            "max.poll.interval.ms": 120_000 if drained else 30_000,
        },
    }
    service = make_service(
        dataset_name,
        embedder={**SLOW, "args": {"delay_ms": 2000, "hold": str(hold)}},
        kafka=quick,
        output={**_out(make_service), **SHORT},
    )
    one = service.start("--until", "end")
    one.wait_for("epoch committed", timeout=120)
    hold.write_text(str(one.process.pid))
    other = service.start("--until", "end", writer="w1")
    other.wait_for("it stands by" if drained else "partitions assigned", timeout=90)
    hold.unlink()
    assert (one.end(), other.end()) == (0, 0)
    assert one.count("uncommitted work is dropped") == (not drained)
    assert "epoch committed" in other.log
    assert verified(service.output)["records"] == 300


def _out(make_service: Made) -> dict[str, Any]:
    settings: dict[str, Any] = make_service("unused").settings["output"]
    return settings


def test_a_bounded_run_that_is_stopped_while_it_starts(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(1), {})])
    service = make_service(dataset_name)
    for arguments, code, said in (
        (["--until", "end"], 75, "stopped before its end, start again to go on"),
        (["--until", "2099-01-01"], 75, "stopped before its end, start again to go on"),
        ([], 0, "SIGTERM before anything was read: leaving"),
    ):
        replica = service.start(*arguments)
        replica.wait_for("loading the model")
        replica.kill(signal.SIGTERM)
        assert replica.end() == code, replica.log
        assert last_line(replica) == said


def test_a_run_that_waits_for_its_end_and_one_that_has_none(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(1), {})])
    service = make_service(dataset_name, output={**_out(make_service), **SHORT})
    waiting = service.start("--until", "2099-01-01")
    waiting.wait_for("epoch committed", timeout=90)
    waiting.kill(signal.SIGTERM)
    assert waiting.end() == 75, waiting.log
    endless = service.start()
    endless.wait_for("partitions assigned", timeout=90)
    endless.kill(signal.SIGTERM)
    assert endless.end() == 0, endless.log
    assert "ended well" in endless.lines[-1]


def test_a_second_signal(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(200, seed=7, invalid=0)])
    slow = {**SLOW, "args": {"delay_ms": 4000}}
    service = make_service(dataset_name, embedder=slow)
    replica = service.start("--until", "end")
    replica.wait_for("partitions assigned", timeout=90)
    replica.kill(signal.SIGTERM)
    replica.wait_for("draining")
    replica.kill(signal.SIGTERM)
    assert replica.end() == 1, replica.log
    assert "second signal" in last_line(replica)


# Others


def test_a_namesake_ends_the_older_process(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    service = make_service(dataset_name, output={**_out(make_service), **SHORT})
    older = service.start()
    older.wait_for("partitions assigned", timeout=90)
    younger = service.start()
    seed = 0
    while older.process.poll() is None:  # it is told when it wants to commit
        seed += 1
        produce(kafka, topic_name, [(jpeg(seed), {})])
        time.sleep(0.5)
    assert older.end() == 75, older.log
    younger.kill(signal.SIGTERM)
    assert younger.end() == 0, younger.log


def test_a_dataset_that_is_bound_to_something_else(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    service: Service = make_service(dataset_name)
    service.run("--until", "end")
    other = service.run("--until", "end", expect=2, dedup={"threshold": 0.9})
    assert "exists with another setting: dedup.threshold is 0.97 there and 0.9 here" in last_line(
        other
    )
    off = service.run("--until", "end", expect=2, dedup="off")
    assert "dedup.threshold is 0.97 there and off here" in last_line(off)
    shown = streamer("check", "-c", str(service.config(dedup="off")), expect=2)
    assert "dedup.threshold is 0.97 there and off here" in shown.stdout


def test_a_snapshot_that_is_damaged(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(image, {}) for image in photographs(60, seed=3, invalid=0)])
    service = make_service(dataset_name)
    service.run("--until", "end")
    path = str(service.config())
    streamer("index", "snapshot", "-c", path)
    told = json.loads(streamer("index", "info", "--verify", "--json", "-c", path).stdout)
    [snapshot] = told["snapshots"]
    data = service.output / ".index" / snapshot["path"] / "state.bin"
    data.write_bytes(data.read_bytes()[:-1] + b"\xff\xff")
    for form in ([], ["--json"]):
        assert streamer("index", "info", "--verify", *form, "-c", path, expect=1).stdout


def test_the_config_is_one_of_the_things_that_yaml_can_hold(tmp_path: Path) -> None:
    for text in ("[]", "1", "dataset: [", yaml.safe_dump({"dataset": "x"})):
        path = tmp_path / "any.yaml"
        path.write_text(text)
        done = streamer("check", "-c", str(path), expect=2)
        assert "Traceback" not in done.stderr
