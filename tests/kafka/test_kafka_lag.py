"""lag: committed, end, records and seconds, from group offsets, the commit log, or the configured
start."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.commands.lag import command
from streamer.config import Config, load
from streamer.errors import DependencyError, ProtocolError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config, producer_config, transactional_config
from streamer.kafka.lag import PartitionLag, measure
from streamer.sink.storage import Storage
from streamer.testing import create_topic
from streamer.wire import checkpoint, claim
from streamer.wire.checkpoint import Checkpoint
from streamer.wire.manifest import Manifest, encode

HOUR_S = 3600


@pytest.fixture
def path(kafka, dataset_name, topic_name, tmp_path):
    file = tmp_path / "streamer.yaml"
    file.write_text(yaml.safe_dump({
        "dataset": dataset_name, "writer": "w0", "kafka": {"bootstrap_servers": kafka, "topic": topic_name},
        "embedder": {"model": "resnet18"}, "output": {"path": str(tmp_path)},
    }))  # fmt: skip
    return file


@pytest.fixture
def config(path) -> Config:
    return load(path)


def write_hourly(config: Config, partition: int, count: int) -> None:
    """Record i is ``count - i`` hours old."""
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap_servers})
    for i in range(count):
        timestamp_ms = round((time.time() - (count - i) * HOUR_S) * 1000)
        producer.produce(
            config.kafka.topic, b"x" * 1000, partition=partition, timestamp=timestamp_ms
        )
    assert producer.flush(10) == 0


def commit(config: Config, **offsets: int) -> None:
    consumer = Consumer(consumer_config(config, config.group))
    consumer.commit(
        offsets=[TopicPartition(config.kafka.topic, int(p[1:]), o) for p, o in offsets.items()],
        asynchronous=False,
    )
    consumer.close()


def about(row: PartitionLag, committed: int | None, end: int, records: int, hours: float) -> bool:
    return (row.committed, row.end, row.records) == (committed, end, records) and abs(
        row.seconds - hours * HOUR_S
    ) < 60


def test_from_the_groups_offsets(config):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic, partitions=3)
    for partition in range(2):
        write_hourly(config, partition, 5)
    commit(config, p0=3, p1=5, p2=0)
    first, second, third = measure(config, Admin(config.kafka))
    assert about(first, 3, 5, 2, 2)
    assert about(second, 5, 5, 0, 0)
    assert about(third, 0, 0, 0, 0)
    assert not any(row.note for row in (first, second, third))


def test_before_the_first_commit_it_counts_from_the_start(config):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic)
    write_hourly(config, 0, 4)
    assert about(measure(config, Admin(config.kafka))[0], None, 4, 4, 4)
    latest = config.model_copy(
        update={"kafka": config.kafka.model_copy(update={"start": "latest"})}
    )
    assert about(measure(latest, Admin(config.kafka))[0], None, 4, 0, 0)


def test_an_expired_groups_offsets_come_from_the_commit_log(config):
    servers = config.kafka.bootstrap_servers
    create_topic(servers, config.kafka.topic, partitions=2)
    Admin(config.kafka).ensure_dataset_topics(config)
    write_hourly(config, 0, 6)
    write_hourly(config, 1, 6)
    producer = Producer(transactional_config(config))
    producer.init_transactions(30)
    for epoch, partitions in enumerate([{0: (0, 2), 1: (0, 6)}, {0: (2, 5)}]):
        manifest = Manifest(
            1,
            config.dataset,
            "w0",
            epoch,
            f"{epoch}a",
            None,
            partitions,
            {},
            {},
            (),
            0,
            {},
            "a",
            "b",
        )
        producer.begin_transaction()
        producer.produce(config.commits_topic, encode(manifest))
        producer.commit_transaction(10)
    first, second = measure(config, Admin(config.kafka))
    assert about(first, 5, 6, 1, 1)
    assert about(second, 6, 6, 0, 0)


def test_the_commit_log_is_read_from_a_checkpoint_on(config):
    """Its first entries are none that anybody could read."""
    servers = config.kafka.bootstrap_servers
    create_topic(servers, config.kafka.topic, partitions=2)
    admin = Admin(config.kafka)
    admin.ensure_dataset_topics(config)
    write_hourly(config, 0, 6)
    write_hourly(config, 1, 6)
    entries = [
        Manifest(1, config.dataset, "w0", n, f"{n}a", None, {0: r}, {}, {}, (), 0, {}, "a", "b")
        for n, r in enumerate([(2, 4), (4, 5)])
    ]
    producer = Producer(producer_config(config))
    for value in (b"no manifest", b"no manifest", *map(encode, entries)):
        producer.produce(config.commits_topic, value)
    assert producer.flush(10) == 0
    with pytest.raises(ProtocolError, match="not JSON"):
        measure(config, admin)
    storage = Storage(config.output.path, config.dataset)
    known = Checkpoint(
        config.dataset, admin.topic_id(config.commits_topic), 2, "0a", {0: (0, 4), 1: (0, 6)}, {"w0": (0, "0a")}, {}, 0, ()
    )  # fmt: skip
    storage.write_checkpoint("w0", checkpoint.encode(known))
    first, second = measure(config, admin)
    assert about(first, 5, 6, 1, 1)
    assert about(second, 6, 6, 0, 0)
    for wrong in (replace(known, uuid="9"), replace(known, offset=7)):
        storage.write_checkpoint("w0", checkpoint.encode(wrong))
        with pytest.raises(ProtocolError, match="the log lost entries"):
            measure(config, admin)
    storage.write_checkpoint("w1", b"{}")  # one that is none is passed over
    storage.write_checkpoint("w0", checkpoint.encode(known))
    assert measure(config, admin)[0].committed == 5


def test_without_the_output_folder_the_whole_log_is_read(config):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic)
    Admin(config.kafka).ensure_dataset_topics(config)
    write_hourly(config, 0, 4)
    producer = Producer(producer_config(config))
    entry = Manifest(
        1, config.dataset, "w0", 0, "a", None, {0: (0, 3)}, {}, {}, (), 0, {}, "a", "b"
    )
    producer.produce(config.commits_topic, encode(entry))
    assert producer.flush(10) == 0
    for path in ("/dev/null/nowhere", "s3://bucket/x?regoin=1"):
        elsewhere = config.model_copy(
            update={"output": config.output.model_copy(update={"path": path})}
        )
        assert measure(elsewhere, Admin(config.kafka))[0].committed == 3


def test_control_records_are_no_work(config):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic)
    producer = Producer(transactional_config(config))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(config.kafka.topic, b"x")
    producer.commit_transaction(10)
    commit(config, p0=1)
    assert about(measure(config, Admin(config.kafka))[0], 1, 2, 0, 0)


def test_a_topic_that_was_made_again_is_not_processed_at_all(config, path):
    servers, topic = config.kafka.bootstrap_servers, config.kafka.topic
    create_topic(servers, topic, partitions=2)
    admin = Admin(config.kafka)
    admin.ensure_dataset_topics(config)
    producer = Producer(producer_config(config))
    for entry in (claim.DatasetEntry("another topic's id", "m", 4, 0.9, 1), claim.Open(0, 1, 1, 0)):
        producer.produce(config.claims_topic, claim.encode(entry))
    assert producer.flush(10) == 0
    write_hourly(config, 0, 5)
    commit(config, p0=5)
    first, second = measure(config, admin)
    assert about(first, 5, 5, 5, 5)
    assert first.note == second.note == "the topic was made again: nothing of it is processed"
    table = CliRunner().invoke(command, ["-c", str(path)], catch_exceptions=False)
    assert "made again" in table.stdout


def test_a_topic_that_ends_before_the_committed_offset_was_made_again(config):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic)
    write_hourly(config, 0, 2)
    commit(config, p0=7)
    (row,) = measure(config, Admin(config.kafka))
    assert about(row, 7, 2, 2, 2)
    assert "made again" in row.note


def test_records_that_expired_before_they_were_processed_are_told(config):
    servers, topic = config.kafka.bootstrap_servers, config.kafka.topic
    create_topic(servers, topic)
    write_hourly(config, 0, 5)
    commit(config, p0=1)
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.delete_records([TopicPartition(topic, 0, 3)]).values():
        future.result(10)
    (row,) = measure(config, Admin(config.kafka))
    assert about(row, 1, 5, 2, 2)
    assert row.note == "2 offsets expired before they were processed"


def test_the_command(config, path):
    create_topic(config.kafka.bootstrap_servers, config.kafka.topic, partitions=2)
    write_hourly(config, 1, 3)
    commit(config, p1=2)
    done = CliRunner().invoke(command, ["-c", str(path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    summary = json.loads(done.stdout)
    assert (summary["group"], summary["state"], summary["members"], summary["records"]) == (
        config.group,
        "empty",
        0,
        1,
    )
    assert abs(summary["seconds"] - HOUR_S) < 60
    assert [row["committed"] for row in summary["partitions"]] == [None, 2]
    table = CliRunner().invoke(command, ["-c", str(path)], catch_exceptions=False)
    assert "records behind" in table.stdout
    assert "none yet" in table.stdout
    assert table.stderr == f"group {config.group}: empty, members: 0\n"


def test_no_topic(config, path):
    with pytest.raises(
        DependencyError, match=rf"kafka\.topic: the topic '{config.kafka.topic}' does not exist"
    ):
        CliRunner().invoke(command, ["-c", str(path)], catch_exceptions=False)
