"""What a broker's distance must not cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from benchmarks.distance import distance
from streamer.config import parse
from streamer.kafka.client import consumer_config
from streamer.testing import Broker, create_topic, free_port, produce

ROUND_TRIP_S = 0.5


@pytest.fixture
def distant(embedded: Callable[..., Broker]) -> Iterator[tuple[str, str]]:
    """Bootstrap servers, near and far."""
    port = free_port()
    with embedded(proxy_port=port) as broker:
        assert broker.upstream_port is not None
        with distance(port, broker.upstream_port, ROUND_TRIP_S):
            yield broker.bootstrap_servers, f"127.0.0.1:{port}"


def test_a_round_trip_brings_more_than_a_few_images_of_a_partition(
    distant: tuple[str, str],
) -> None:
    near, far = distant
    create_topic(near, "images")
    produce(near, "images", [(bytes(200_000), {}) for _ in range(80)])
    config = parse({
        "dataset": "cats", "writer": "w0", "kafka": {"bootstrap_servers": far, "topic": "images"}, "embedder": {"model": "resnet18"},
        "output": {"path": "out"},
    })  # fmt: skip
    consumer = Consumer(consumer_config(config, "g"))
    consumer.assign([TopicPartition("images", 0, 0)])
    arrived: list[float] = []
    deadline = time.monotonic() + 60
    while len(arrived) < 80 and time.monotonic() < deadline:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            arrived.append(time.monotonic())
    consumer.close()
    assert len(arrived) == 80
    assert (
        arrived[-1] - arrived[0] < 8 * ROUND_TRIP_S
    )  # 16 MB; a megabyte a round trip, the client's default, takes 15
