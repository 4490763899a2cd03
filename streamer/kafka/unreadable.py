"""Where a partition can be read again behind a batch that the client cannot read."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamer.config import Config
from streamer.errors import StreamerError, TemporaryError
from streamer.kafka.client import consumer_config, explain, new_consumer
from streamer.kafka.events import UNREADABLE

ONE_BY_ONE = 256
"""So many offsets are tried each; then, as a batch may hold a million records, by bisection."""
ANSWER_S = 30.0
"""For one try."""
BEYOND = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
"""The offset lies behind the partition's end."""
WITHIN_S = 300.0
"""For all of them."""


class Search:
    """`readable_from` in a daemon thread: the client was seen to hang while it closes, and whoever
    waits for the answer keeps a membership alive meanwhile. Kafka thread."""

    def __init__(self, config: Config, partition: int, broken: int) -> None:
        self.broken = broken
        self._partition = partition
        self._deadline = time.monotonic() + WITHIN_S
        self._found: int | BaseException | None = None

        def search() -> None:
            try:
                self._found = readable_from(config, partition, broken)
            except BaseException as error:  # noqa: BLE001 - told by `found`
                self._found = error

        threading.Thread(target=search, name="unreadable", daemon=True).start()

    def found(self) -> int | None:
        """None: not yet. Does not block. Raises what the search ended with, and TemporaryError
        after `WITHIN_S`."""
        if isinstance(self._found, StreamerError):
            raise self._found
        if isinstance(self._found, BaseException):
            raise RuntimeError("the search for a readable offset failed") from self._found
        if self._found is None and time.monotonic() > self._deadline:
            raise TemporaryError(
                f"partition {self._partition}: where it can be read again behind offset "
                f"{self.broken} was not found within {WITHIN_S:.0f} s. Start again."
            )
        return self._found


def readable_from(config: Config, partition: int, broken: int) -> int:
    """The first offset from ``broken`` on that can be read; the partition's end counts as one.

    The client does not tell where a batch ends, so this asks for one offset after the other. Behind
    `ONE_BY_ONE` of them a good batch between two broken ones may be taken for broken, too. Blocks
    for some round trips a try. Raises TemporaryError where no answer comes, DependencyError for
    what the brokers refuse.
    """
    changed = {"fetch.error.backoff.ms": 0, "fetch.queue.backoff.ms": 0}
    own = consumer_config(config, f"{config.group}.log-reader", "read_uncommitted") | changed

    def is_readable(offset: int) -> bool:
        consumer = new_consumer(own)  # a used one tells again of what it was asked for before
        try:
            return _is_readable(consumer, TopicPartition(config.kafka.topic, partition, offset))
        finally:
            consumer.close()

    for offset in range(broken, broken + 1 + ONE_BY_ONE):
        if is_readable(offset):
            return offset
    low, step = broken + ONE_BY_ONE, ONE_BY_ONE
    while not is_readable(low + step):
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_readable(middle) else (middle, high)
    return high


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
        if error.code() in BEYOND:
            return True
        if error.fatal() or not error.retriable():
            raise explain(KafkaException(error), f"reading {place.topic}", "")
    raise TemporaryError(
        f"{place.topic} partition {place.partition}: no answer for offset {place.offset} within "
        f"{ANSWER_S:.0f} s. Start again."
    )
