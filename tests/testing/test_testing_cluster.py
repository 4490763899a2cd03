"""streamer.testing.Cluster: a node may go away, whichever it is and however it goes, and nothing is
lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from streamer.testing import Broker, Cluster, create_topic, read_topic


@pytest.fixture(scope="module")
def cluster(embedded: type[Broker]) -> Iterator[Cluster]:
    """`embedded` is there where brokers can be had."""
    with Cluster() as cluster:
        yield cluster


def test_topics_are_replicated_to_every_node(cluster: Cluster) -> None:
    create_topic(cluster.bootstrap_servers, "replicated", partitions=3)
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    listed = admin.list_topics("replicated", timeout=10)
    assert len(listed.brokers) == 3
    for partition in listed.topics["replicated"].partitions.values():
        assert sorted(partition.replicas) == [1, 2, 3]
    resource = ConfigResource(ResourceType.TOPIC, "replicated")
    settings = admin.describe_configs([resource])[resource].result(10)
    assert settings["min.insync.replicas"].value == "2"


@pytest.mark.timeout(300)
def test_every_node_may_be_away_for_a_while(cluster: Cluster) -> None:
    """Each in its own way. What is produced meanwhile is there, and what was produced before."""
    topic = "away"
    create_topic(cluster.bootstrap_servers, topic, partitions=3)
    errors: list[KafkaError] = []
    written: list[str] = []
    settings = {"enable.idempotence": True, "socket.timeout.ms": 5000, "log_level": 0}
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, **settings})

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            errors.append(error)

    def write() -> None:
        for _ in range(50):
            producer.produce(topic, str(len(written)), on_delivery=delivered)
            written.append(str(len(written)))

    for number, how in enumerate(("kill", "stop", "freeze")):
        write()
        pid = cluster.nodes[number].pid
        assert pid is not None
        if how == "freeze":
            os.kill(pid, signal.SIGSTOP)
        else:
            (cluster.kill if how == "kill" else cluster.stop)(number)
            assert cluster.nodes[number].pid is None
        write()
        assert producer.flush(60) == 0
        if how == "freeze":
            os.kill(pid, signal.SIGCONT)
        else:
            cluster.start(number)
        cluster.wait_until_in_sync()
    assert not errors
    found = [s.value.decode() for s in read_topic(cluster.bootstrap_servers, topic) if s.value]
    assert sorted(found, key=int) == written
