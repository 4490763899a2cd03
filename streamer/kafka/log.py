"""Reads the dataset's own topics of one partition, which keep everything, from their beginning."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from streamer.config import Config
from streamer.errors import DependencyError, ProtocolError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import TRANSACTION_TIMEOUT_S, consumer_config
from streamer.kafka.events import Events

STALL_S = TRANSACTION_TIMEOUT_S + 20.0
"""Longer than a transaction that its owner left open can hide what comes after it."""


class LogReader:
    """The committed entries of one topic, each once. One thread."""

    def __init__(self, config: Config, admin: Admin, topic: str) -> None:
        """Connects to nothing yet. A context manager: it closes its consumer."""
        self.topic = topic
        self.begin: int | None = None
        """The topic's first offset at the first `read`; None where there was no topic."""
        self._admin = admin
        self._at = 0
        group = f"{config.group}.log-reader"
        self._events = Events(topic, group)
        self._consumer = Consumer(consumer_config(config, group))

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self, whole: bool = False) -> Iterator[Message]:
        """What was committed since the last call, up to the end that the log has now; also what an
        open transaction hides, which is waited for. Nothing where there is no such topic.

        Blocks while entries come. Raises TemporaryError where none comes for `STALL_S`,
        DependencyError for what the brokers refuse, and, if it must be ``whole``, ProtocolError for
        a log that lost its beginning.
        """
        if self._admin.topic(self.topic) is None:
            return
        if self.begin is None:
            self.begin = self._at = self._admin.begin_offsets(self.topic, [0])[0]
            self._consumer.assign([TopicPartition(self.topic, 0, self._at)])
        if whole and self.begin > 0:
            raise ProtocolError(
                f"{self.topic} begins at offset {self.begin}: its older entries are gone. It must be "
                "kept for ever (retention.ms=-1, retention.bytes=-1)"
            )
        target = self._admin.end_offsets(self.topic, [0], committed=False)[0]
        moved = time.monotonic()
        while self._at < target:
            message = self._consumer.poll(0.2)
            error = None if message is None else message.error()
            if message is None:
                if time.monotonic() - moved > STALL_S:
                    raise TemporaryError(
                        f"{self.topic}: no entry after offset {self._at} (end {target}) within "
                        f"{STALL_S:.0f} s. Try again."
                    )
                continue
            if error is None:
                self._at = message.offset() + 1
                moved = time.monotonic()
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:  # past the control records
                self._at = max(self._at, message.offset())
            else:
                self._events.heed(error, 0, self._at)


class CommittedState:
    """What Kafka holds of a dataset: its commit log, and the offsets of its group."""

    def __init__(self, config: Config, admin: Admin, log: LogReader) -> None:
        self.topic = log.topic
        self._config = config
        self._admin = admin
        self._log = log

    def manifests(self) -> list[bytes]:
        """The commit log's entries since the last call. Blocks and raises like `LogReader.read`;
        DependencyError where there is no such log, ProtocolError where it lost its beginning."""
        entries = [message.value() or b"" for message in self._log.read(whole=True)]
        if self._log.begin is None:
            raise DependencyError(
                f"there is no topic {self.topic}: no replica has started so far, or it was deleted"
            )
        return entries

    def offsets(self) -> Mapping[int, int]:
        """Partition → the group's committed offset; partitions without one are left out."""
        topic = self._config.kafka.topic
        info = self._admin.topic(topic)
        partitions = range(info.partitions) if info is not None else ()
        committed = self._admin.committed(self._config.group, topic, partitions)
        return {partition: found.offset for partition, found in committed.items()}
