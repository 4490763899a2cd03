"""Reads the dataset's own topics of one partition, which keep everything, from their beginning or
from a checkpoint on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import KafkaError, Message, TopicPartition

from streamer.config import Config
from streamer.errors import DependencyError, ProtocolError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import TRANSACTION_TIMEOUT_S, consumer_config, new_consumer
from streamer.kafka.events import Events
from streamer.sink.checkpoints import newest, require_entry
from streamer.sink.storage import Storage
from streamer.wire import manifest as wire
from streamer.wire.checkpoint import Checkpoint

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
        self._at: int | None = None
        group = f"{config.group}.log-reader"
        self._events = Events(topic, group)
        self._consumer = new_consumer(consumer_config(config, group))

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def begin_at(self, offset: int) -> None:
        """The next `read` begins at this offset. Raises ProtocolError where the log ends before
        it, DependencyError for what the brokers refuse."""
        end = self._admin.end_offsets(self.topic, [0], committed=False)[0]
        if end <= offset:
            raise ProtocolError(
                f"{self.topic}: ends at offset {end}, but its entry at {offset} was read earlier: "
                "the log lost entries. Restore the topic."
            )
        self._assign(offset)

    def _assign(self, offset: int) -> None:
        self._at = offset
        self._consumer.assign([TopicPartition(self.topic, 0, offset)])

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
            self.begin = self._admin.begin_offsets(self.topic, [0])[0]
        if self._at is None:
            self._assign(self.begin)
        assert self._at is not None
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


def from_checkpoint(
    log: LogReader, config: Config, admin: Admin, storage: Storage
) -> Checkpoint | None:
    """Begins at the newest checkpoint in the output folder; the next `read` of ``log`` gives what
    came after it. None, and the log from its beginning, where there is no good one.

    Blocks for the storage. Raises like `LogReader.read`, and ProtocolError where the log lost what
    the checkpoint knows.
    """
    if admin.topic(log.topic) is None:
        return None
    found = newest(storage.checkpoints(), config.dataset, admin.topic_id(log.topic))
    if found is None:
        return None
    path, checkpoint = found
    log.begin_at(checkpoint.offset)
    first = next(log.read(), None)
    entry = None if first is None else (first.offset(), wire.decode(first.value() or b"").uuid)
    require_entry(checkpoint, storage.folder.place(path), entry)
    return checkpoint


class CommittedState:
    """What Kafka holds of a dataset: its commit log, and the offsets of its group."""

    def __init__(self, config: Config, admin: Admin, log: LogReader) -> None:
        self.topic = log.topic
        self._config = config
        self._admin = admin
        self._log = log

    @property
    def log_id(self) -> str:
        """Kafka's id of the commit log's topic. Raises DependencyError where there is none."""
        if self._admin.topic(self.topic) is None:
            raise DependencyError(
                f"there is no topic {self.topic}: no replica has started so far, or it was deleted"
            )
        return self._admin.topic_id(self.topic)

    def begin_at(self, offset: int) -> None:
        """The next `entries` begin at this offset of the commit log. Raises like
        `LogReader.begin_at`."""
        self._log.begin_at(offset)

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """The commit log's entries since the last call, with their offsets. Blocks and raises like
        `LogReader.read`; ProtocolError where the log lost its beginning."""
        for message in self._log.read(whole=True):
            yield message.offset(), message.value() or b""

    def offsets(self) -> Mapping[int, int]:
        """Partition → the group's committed offset; partitions without one are left out."""
        topic = self._config.kafka.topic
        info = self._admin.topic(topic)
        partitions = range(info.partitions) if info is not None else ()
        committed = self._admin.committed(self._config.group, topic, partitions)
        return {partition: found.offset for partition, found in committed.items()}
