"""The Kafka port of the commit engine: one transaction an epoch, the commit log, offsets and their
bounds.

Main thread only. Every call blocks, none for longer than its deadline; what hangs inside the client
is ended by the watchdog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streamer.config import Config
from streamer.errors import DependencyError, ProtocolError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import (
    TRANSACTION_TIMEOUT_S,
    consumer_config,
    explain,
    is_final,
    transactional_config,
)
from streamer.sink.engine import DeadLetter
from streamer.wire import manifest as wire
from streamer.wire.manifest import Manifest

READ_DEADLINE_S = TRANSACTION_TIMEOUT_S + 20.0
"""Longer than a transaction that its owner left open can hide the commit log's end."""
CALL_TIMEOUT_S = 10.0
DEAD_LETTER_SLACK = 1_000
"""Bytes kept free below the topic's message limit for the record batch's own framing."""

Delivered = Callable[[KafkaError | None, Message], None]


class KafkaTransactions:
    """`streamer.sink.engine.Transactions` on real Kafka. Constructing it connects to nothing."""

    def __init__(
        self,
        config: Config,
        admin: Admin,
        consumer: Consumer,
        dead_letter_limit: int,
        starts: Callable[[Collection[int]], Mapping[int, int]],
        refresh: Callable[[], None],
    ) -> None:
        """``dead_letter_limit``: the dead letter topic's max.message.bytes. ``starts``: where a new
        dataset begins. ``refresh`` tells the health page that a long wait is alive."""
        self._config = config
        self._admin = admin
        self._consumer = consumer
        self._starts = starts
        self._refresh = refresh
        self._dead_letter_limit = dead_letter_limit - DEAD_LETTER_SLACK
        self._producer = Producer(transactional_config(config, self._dead_letter_limit))
        self._log = Consumer(consumer_config(config, f"{config.group}.commit-log-reader"))
        self._log_at = 0
        self._log.assign([TopicPartition(config.commits_topic, 0, 0)])

    def close(self) -> None:
        self._log.close()

    def fence(self) -> None:
        deadline = time.monotonic() + READ_DEADLINE_S
        while True:
            try:
                self._producer.init_transactions(CALL_TIMEOUT_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise explain(
                        error, f"opening the transactional id {self._config.transactional_id}"
                    ) from None
            self._refresh()

    def confirm(self) -> None:
        """Leaves an aborted entry in the commit log: only the broker knows whether our producer
        epoch is still the newest."""
        doing = f"confirming the transactional id {self._config.transactional_id}"
        try:
            self._producer.begin_transaction()
            self._producer.produce(self._config.commits_topic, b"")
            unsent = self._producer.flush(
                CALL_TIMEOUT_S
            )  # an abort forgets what was not sent, and then asks nobody
        except KafkaException as error:
            raise explain(error, doing) from None
        if unsent:  # and an abort would wait for it for ever
            raise TemporaryError(
                f"{doing}: no answer from the broker within {CALL_TIMEOUT_S:.0f} s. Start again."
            )
        self._abort(doing)

    # The commit log

    @property
    def log_id(self) -> str:
        return self._admin.topic_id(self._config.commits_topic)

    def resume(self, offset: int) -> None:
        topic = self._config.commits_topic
        end = self._admin.end_offsets(topic, [0], committed=False)[0]
        if end <= offset:
            raise ProtocolError(
                f"{topic}: ends at offset {end}, but a checkpoint knows its entry at {offset}: the "
                "log lost entries. Restore the topic, or continue with a new dataset name."
            )
        self._log_at = offset
        self._log.assign([TopicPartition(topic, 0, offset)])

    def read(self, patience_s: float | None = None) -> Iterator[tuple[int, Manifest]]:
        topic = self._config.commits_topic
        begin = self._admin.begin_offsets(topic, [0])[0]
        if begin > 0:
            raise ProtocolError(
                f"{topic}: the commit log begins at offset {begin}, its older entries are gone. It must be kept for ever "
                "(retention.ms=-1, retention.bytes=-1); restore the topic, or continue with a new dataset name."
            )
        target = self._admin.end_offsets(topic, [0], committed=False)[0]
        if target < self._log_at:
            raise ProtocolError(
                f"{topic}: ends at offset {target}, but was read up to {self._log_at}: the commit log was deleted and made again."
            )
        patience_s = READ_DEADLINE_S if patience_s is None else patience_s
        moved = time.monotonic()
        while self._log_at < target:
            if time.monotonic() - moved > patience_s:
                raise TemporaryError(
                    f"{topic}: nothing came after offset {self._log_at} of {target} for {patience_s:.0f} s: another writer's transaction is still "
                    f"open, or the broker is slow. Start again. If it stays so, the transaction hangs: {self._find_hanging(topic)}"
                )
            message = self._log.poll(0.2)
            self._refresh()
            if message is None:
                continue
            error = message.error()
            if error is None:
                self._log_at = message.offset() + 1
                yield message.offset(), _manifest(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._log_at = max(self._log_at, message.offset())  # past the control records
            elif is_final(error):
                raise explain(error, f"reading {topic}")
            else:
                continue
            moved = time.monotonic()

    def _find_hanging(self, topic: str) -> str:
        return (
            f"find it with kafka-transactions.sh --bootstrap-server {self._config.kafka.bootstrap_servers} find-hanging --topic {topic}, and end it with "
            "the same command's abort."
        )

    # Offsets

    def committed(self, partitions: Collection[int]) -> Mapping[int, int | None]:
        wanted = [TopicPartition(self._config.kafka.topic, p) for p in partitions]
        deadline = time.monotonic() + READ_DEADLINE_S
        while True:
            try:
                answer = self._consumer.committed(wanted, timeout=CALL_TIMEOUT_S)
                failed = next((tp.error for tp in answer if tp.error is not None), None)
                if failed is None:
                    return {tp.partition: tp.offset if tp.offset >= 0 else None for tp in answer}
                error = failed
            except KafkaException as raised:
                error = raised.args[0]
            # A time-out means unknown, never none: another writer's open transaction hides the
            # offset until it ends.
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"the group {self._config.group}'s committed offsets cannot be read: {error.str()}. Start again. If it stays so while the brokers are "
                    f"up, a transaction hangs: {self._find_hanging('__consumer_offsets')}"
                )
            self._refresh()
            time.sleep(0.1)

    def bounds(self, partitions: Collection[int]) -> Mapping[int, tuple[int, int]]:
        topic, wanted = self._config.kafka.topic, list(partitions)
        begins = self._admin.begin_offsets(topic, wanted)
        ends = self._admin.end_offsets(topic, wanted, committed=False)
        return {p: (begins[p], ends[p]) for p in wanted}

    def starts(self) -> Mapping[int, int]:
        topic = self._config.kafka.topic
        info = self._admin.topic(topic)
        if info is None:
            raise DependencyError(f"kafka.topic: the topic {topic!r} does not exist any more")
        return self._starts(range(info.partitions))

    # The transaction

    def membership(self) -> object:
        membership: object = self._consumer.consumer_group_metadata()
        return membership

    def commit(
        self,
        manifest: Manifest,
        dead_letters: Sequence[DeadLetter],
        offsets: Mapping[int, int],
        membership: object,
    ) -> bool:
        doing = f"committing epoch {manifest.epoch} of {manifest.writer}"
        producer, topic = self._producer, self._config.kafka.topic
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            producer.begin_transaction()
            self._produce(self._config.commits_topic, wire.encode(manifest), [], delivered)
            for letter in dead_letters:
                self._produce_dead_letter(letter, delivered)
            if offsets:
                positions = [
                    TopicPartition(topic, p, o, manifest.uuid) for p, o in sorted(offsets.items())
                ]
                _again(
                    lambda: producer.send_offsets_to_transaction(
                        positions, membership, CALL_TIMEOUT_S
                    )
                )
            _again(lambda: producer.commit_transaction(CALL_TIMEOUT_S))
        except KafkaException as raised:
            error = raised.args[0]
            if error.fatal() or not error.txn_requires_abort():
                raise explain(raised, doing) from None
            self._abort(doing)
            if failed and failed[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise explain(failed[0], doing) from None
            return False
        return True

    def _abort(self, doing: str) -> None:
        try:
            _again(lambda: self._producer.abort_transaction(CALL_TIMEOUT_S))
        except KafkaException as error:
            raise explain(error, f"aborting after {doing}") from None

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        headers: list[tuple[str, bytes | None]],
        delivered: Delivered,
    ) -> None:
        while True:
            try:
                self._producer.produce(topic, value, headers=headers, on_delivery=delivered)
                return
            except BufferError:
                self._producer.poll(0.1)  # the watchdog bounds this

    def _produce_dead_letter(self, letter: DeadLetter, delivered: Delivered) -> None:
        origin: list[tuple[str, bytes | None]] = [
            ("streamer-reason", letter.reason.encode()),
            (
                "streamer-detail",
                letter.detail.encode(errors="replace")[:500].decode(errors="ignore").encode(),
            ),
            ("streamer-topic", self._config.kafka.topic.encode()),
            ("streamer-partition", str(letter.partition).encode()),
            ("streamer-offset", str(letter.offset).encode()),
        ]
        headers = [*letter.headers, *origin]
        size = sum(len(k.encode()) + len(v or b"") + 10 for k, v in headers)
        value = letter.value
        if value is not None and size + len(value) > self._dead_letter_limit:
            value = None  # too big for the topic: it travels as headers only
        if size > self._dead_letter_limit:
            headers = origin
        self._produce(self._config.dead_topic, value, headers, delivered)


def founding_manifest(config: Config, admin: Admin) -> Manifest | None:
    """The first manifest of the dataset; None if nobody founded it so far. Joins no group and
    fences nobody.

    Blocks for `CALL_TIMEOUT_S` at most. Raises TemporaryError, DependencyError, ProtocolError.
    """
    topic = config.commits_topic
    if admin.topic(topic) is None:
        return None
    consumer = Consumer(consumer_config(config, f"{config.group}.commit-log-reader"))
    consumer.assign([TopicPartition(topic, 0, 0)])
    deadline = time.monotonic() + CALL_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            error = None if message is None else message.error()
            if message is not None and error is None:
                return _manifest(message)
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return None
            if error is not None and is_final(error):
                raise explain(error, f"reading {topic}")
    finally:
        consumer.close()
    raise TemporaryError(
        f"{topic}: its first entry was not read within {CALL_TIMEOUT_S:.0f} s. Start again."
    )


def _manifest(message: Message) -> Manifest:
    try:
        return wire.decode(message.value() or b"")
    except ProtocolError as error:
        raise ProtocolError(f"{message.topic()} offset {message.offset()}: {error}") from None


def _again(call: Callable[[], object]) -> None:
    """The same call until it is not retriable any more; the watchdog bounds it from outside
    (librdkafka#5456)."""
    while True:
        try:
            call()
            return
        except KafkaException as error:
            if (
                not error.args[0].retriable()
                or error.args[0].txn_requires_abort()
                or error.args[0].fatal()
            ):
                raise
            time.sleep(0.05)
