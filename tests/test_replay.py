"""Where a replay begins and ends, asked of a real topic; and the config that it runs with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.config import Kafka, load, parse
from streamer.errors import ConfigError
from streamer.kafka.admin import Admin
from streamer.replay import end_offsets, first_offsets, into
from streamer.testing import create_topic, produce, read_topic
from tests.test_config import MINIMAL, changed

PARTS = (0, 1, 2)


@pytest.fixture
def topic(kafka: str, topic_name: str) -> tuple[Admin, str]:
    """Partition 0 holds 10 records, 1 holds 4, 2 none."""
    create_topic(kafka, topic_name, partitions=3)
    produce(kafka, topic_name, [(b"%d" % i, {}) for i in range(10)], partition=0)
    produce(kafka, topic_name, [(b"%d" % i, {}) for i in range(4)], partition=1)
    return Admin(Kafka(bootstrap_servers=kafka, topic=topic_name)), topic_name


def test_first_offsets(topic: tuple[Admin, str]) -> None:
    cases: dict[str, dict[int, int]] = {
        "earliest": {0: 0, 1: 0, 2: 0},
        "count:3": {0: 7, 1: 1, 2: 0},
        "count:0": {0: 10, 1: 4, 2: 0},
        "count:99999": {0: 0, 1: 0, 2: 0},
        "offset:0": {0: 0, 1: 0, 2: 0},
        "offset:0=10,1=2": {0: 10, 1: 2, 2: 0},
        "offset:1=3": {0: 10, 1: 3, 2: 0},  # the others are left out
        "2000-01-01": {0: 0, 1: 0, 2: 0},
        "1960-01-01T00:00:00Z": {
            0: 0,
            1: 0,
            2: 0,
        },  # before the epoch, where Kafka's timestamps have other meanings
        "1969-12-31T23:59:59.999Z": {0: 0, 1: 0, 2: 0},
        "2999-01-01T00:00:00Z": {0: 10, 1: 4, 2: 0},
    }
    assert {text: dict(first_offsets(text, *topic, PARTS)) for text in cases} == cases


def test_end_offsets(topic: tuple[Admin, str]) -> None:
    starts = {0: 2, 1: 4, 2: 0}
    cases: dict[str, dict[int, int]] = {
        "end": {0: 10, 1: 4, 2: 0},
        "count:3": {0: 5, 1: 4, 2: 0},  # never beyond the end
        "count:0": {0: 2, 1: 4, 2: 0},
        "offset:6": {0: 6, 1: 4, 2: 0},
        "offset:0=6": {0: 6, 1: 4, 2: 0},  # the others end where they start
        "offset:0=1,1=2": {0: 2, 1: 4, 2: 0},  # never before the start
        "offset:99": {0: 10, 1: 4, 2: 0},
        "2000-01-01": {0: 2, 1: 4, 2: 0},
        "1960-01-01": {0: 2, 1: 4, 2: 0},
        "2999-01-01T00:00:00Z": {0: 10, 1: 4, 2: 0},
    }
    assert {text: dict(end_offsets(text, starts, *topic)) for text in cases} == cases


def test_a_time_between_two_records(topic: tuple[Admin, str], kafka: str) -> None:
    admin, name = topic
    last = max(stored.timestamp_ms for stored in read_topic(kafka, name))
    while time.time() * 1000 < last + 3:
        time.sleep(0.001)
    between = datetime.fromtimestamp((last + 2) / 1000, timezone.utc)
    time.sleep(0.01)
    produce(kafka, name, [(b"new", {})], partition=0)
    zoned = between.astimezone(timezone(timedelta(hours=5))).isoformat()
    for text in (
        between.isoformat(),
        between.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        between.replace(tzinfo=None).isoformat(),
        zoned,
    ):
        assert first_offsets(text, admin, name, PARTS) == {0: 10, 1: 4, 2: 0}, text
        assert end_offsets(text, {0: 0, 1: 0, 2: 0}, admin, name) == {0: 10, 1: 4, 2: 0}, text
    assert end_offsets("end", {0: 0, 1: 0, 2: 0}, admin, name) == {0: 11, 1: 4, 2: 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("--from", "earliest", "offset:N")),
        ("latest", ("--from latest", "neither earliest, a time")),
        ("end", ("--from end",)),
        ("yesterday", ("--from yesterday", "2026-01-31T12:00:00Z")),
        ("2026-13-01", ("--from 2026-13-01",)),
        ("count:", ("--from count:",)),
        ("count:-3", ("--from count:-3",)),
        ("offset:", ("offset:N for every partition", "offset:P=N,P=N")),
        ("offset:x", ("offset:N for every partition",)),
        ("offset:0=1,", ("offset:P=N,P=N",)),
        ("offset:0=-1", ("offset:P=N,P=N",)),
        ("offset:3=0", ("there is no partition 3",)),
        ("offset:11", ("partition 0", "ends at 10; 11 is outside")),
        ("offset:5", ("partition 1", "ends at 4; 5 is outside")),
        ("offset:0=1,0=2", ("a partition is named twice",)),
    ],
)
def test_wrong_first_offsets(text: str, words: tuple[str, ...], topic: tuple[Admin, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        first_offsets(text, *topic, PARTS)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("earliest", ("--until earliest", "neither end, a time")),
        ("offset:7=1", ("--until", "there is no partition 7")),
        ("count:x", ("--until",)),
    ],
)
def test_wrong_end_offsets(text: str, words: tuple[str, ...], topic: tuple[Admin, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        end_offsets(text, dict.fromkeys(PARTS, 0), *topic)
    assert all(word in str(raised.value) for word in words), raised.value


# The config


@pytest.mark.parametrize(
    "raw",
    [
        MINIMAL,
        changed(dedup="off"),
        changed(
            batch={"linger": "0.4ms"},
            filters=[{"field": "text", "in": ["a"]}, {"type": "a.b:C", "name": "c"}],
            heads=[{"type": "nsfw"}],
        ),
        changed(kafka={"start": "2026-01-31T12:00:00Z", "client": {"security.protocol": "SSL"}}),
        {**MINIMAL, "embedder": {"type": "a.b:C", "args": {"x": [1, {"y": None}]}}},
    ],
)
def test_a_replay_runs_the_same_pipeline_under_a_new_name(
    raw: Mapping[str, Any], tmp_path: Path
) -> None:
    live = parse(raw)
    again = into(written(raw, tmp_path), (), "cats-v2")
    assert again == parse({**raw, "dataset": "cats-v2"})
    assert again.digest() == live.digest()
    assert (again.group, again.claims_topic) == ("streamer.cats-v2", "cats-v2.claims")


def written(raw: Mapping[str, Any], folder: Path) -> str:
    path = folder / "streamer.yaml"
    path.write_text(yaml.safe_dump(dict(raw)))
    return str(path)


def test_dead_letters_are_a_topic_to_replay(tmp_path: Path) -> None:
    """Under its own name the dataset may not read them, under a new one it may."""
    path = written(MINIMAL, tmp_path)
    for dead in ("cats-v1.dead", "cats-v1.claims"):
        with pytest.raises(ConfigError, match="own topics"):
            load(path, (f"kafka.topic={dead}",))
    again = into(path, ("kafka.topic=cats-v1.dead",), "mended")
    assert (again.kafka.topic, again.dead_topic) == ("cats-v1.dead", "mended.dead")


@pytest.mark.parametrize(
    ("raw", "overrides", "dataset", "words"),
    [
        (MINIMAL, (), "cats-v1", ("--dataset cats-v1", "live dataset")),
        (MINIMAL, (), "Cats", ("--dataset: dataset: must be a name", "'Cats'")),
        (MINIMAL, (), "", ("--dataset: dataset: must be a name",)),
        (MINIMAL, ("dataset=other",), "other", ("--dataset other", "live dataset")),
        (MINIMAL, ("dedup.threshold=7",), "x", ("--set: dedup.threshold: ",)),
        (
            changed(kafka={"topic": "x.claims"}),
            (),
            "x",
            ("with --dataset x: ", "'x.claims'", "another dataset name"),
        ),
    ],
)
def test_a_replay_under_a_wrong_name(
    raw: Mapping[str, Any],
    overrides: tuple[str, ...],
    dataset: str,
    words: tuple[str, ...],
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as raised:
        into(written(raw, tmp_path), overrides, dataset)
    assert all(word in str(raised.value) for word in words), raised.value
