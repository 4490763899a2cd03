"""Where a partition can be read again behind a batch that the client cannot read."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamer.config import Config
from streamer.errors import TemporaryError
from streamer.kafka.client import consumer_config, explain, new_consumer
from streamer.kafka.events import UNREADABLE

ONE_BY_ONE = 256
"""So many offsets are tried each; then, as a batch may hold a million records, by bisection."""
ANSWER_S = 30.0
"""For one try."""


def readable_from(
    config: Config, partition: int, broken: int, end: int, beat: Callable[[], None]
) -> int:
    """The first offset after ``broken``, which cannot be read, that can; ``end``, the partition's,
    counts as one.

    The client does not tell where a batch ends, so this asks for one offset after the other. Behind
    `ONE_BY_ONE` of them a good batch between two broken ones may be taken for broken, too. Blocks
    for a round trip a try. Raises TemporaryError where no answer comes, DependencyError for what
    the brokers refuse.
    """
    changed = {"fetch.error.backoff.ms": 0, "fetch.queue.backoff.ms": 0}
    own = consumer_config(config, f"{config.group}.unreadable", "read_uncommitted") | changed
    consumer = new_consumer(own)

    def is_readable(offset: int) -> bool:
        beat()
        return offset >= end or _is_readable(
            consumer, TopicPartition(config.kafka.topic, partition, offset)
        )

    try:
        for offset in range(broken + 1, broken + 1 + ONE_BY_ONE):
            if is_readable(offset):
                return offset
        low, step = broken + ONE_BY_ONE, ONE_BY_ONE
        while not is_readable(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, end)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_readable(middle) else (middle, high)
        return high
    finally:
        consumer.close()


def _is_readable(consumer: Consumer, place: TopicPartition) -> bool:
    consumer.assign([place])
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        error = None if message is None else message.error()
        if message is None:
            continue
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return True
        if error.code() in UNREADABLE:
            return False
        if error.fatal() or not error.retriable():
            raise explain(KafkaException(error), f"reading {place.topic}", "")
    raise TemporaryError(
        f"{place.topic} partition {place.partition}: no answer for offset {place.offset} within "
        f"{ANSWER_S:.0f} s. Start again."
    )
