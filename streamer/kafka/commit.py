"""The Kafka port of the commit engine: one transaction an epoch, the commit log, offsets and their
bounds.

Main thread only. Every call blocks, none for longer than its deadline; what hangs inside the client
is ended by the watchdog.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streamer.config import Config
from streamer.errors import (
    DependencyError,
    Fenced,
    InDoubt,
    ProtocolError,
    StreamerError,
    TemporaryError,
)
from streamer.kafka.admin import Admin
from streamer.kafka.client import (
    TRANSACTION_TIMEOUT_S,
    consumer_config,
    explain,
    is_denied,
    new_consumer,
    raised_by,
    transactional_config,
)
from streamer.kafka.events import Events
from streamer.kafka.patience import IMPATIENT, Patience
from streamer.kafka.rights import denied_on_topics
from streamer.sink.engine import DeadLetter
from streamer.wire import manifest as wire
from streamer.wire.manifest import Manifest

log = logging.getLogger("streamer")

READ_DEADLINE_S = TRANSACTION_TIMEOUT_S + 20.0
"""Longer than a transaction that its owner left open can hide the commit log's end."""
CALL_TIMEOUT_S = 10.0
DOUBT_S = TRANSACTION_TIMEOUT_S - 5.0
"""From so long on the brokers may have aborted a transaction: that it is fenced does not say that
another process runs under the name."""
DEAD_LETTER_SLACK = 1_000
"""Bytes kept free below the topic's message limit for the record batch's own framing."""

_TOO_BIG = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
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
        patience: Patience = IMPATIENT,
        topics: Mapping[str, str] | None = None,
    ) -> None:
        """``dead_letter_limit``: the dead letter topic's max.message.bytes. ``starts``: where a new
        dataset begins. ``refresh`` tells the health page that a long wait is alive. ``topics``:
        name → id of what must be the same topic at every commit."""
        self._topics = topics or {}
        self._patience = patience
        self._config = config
        self._admin = admin
        self._consumer = consumer
        self._starts = starts
        self._refresh = refresh
        self._dead_letter_limit = dead_letter_limit - DEAD_LETTER_SLACK
        self._producer = self._new_producer()
        self._is_spent = False
        """The producer had a fatal error: `fence` needs another one."""
        reader = f"{config.group}.commit-log-reader"
        self._events = Events(config.commits_topic, reader)
        self._log = new_consumer(consumer_config(config, reader))
        self._log_at = 0
        self._log.assign([TopicPartition(config.commits_topic, 0, 0)])

    def close(self) -> None:
        self._log.close()

    def _new_producer(self) -> Producer:
        return Producer(transactional_config(self._config, self._dead_letter_limit))

    def fence(self) -> None:
        if self._is_spent:
            self._producer = self._new_producer()
            self._is_spent = False
        name = self._config.transactional_id
        deadline = self._patience.clock() + READ_DEADLINE_S
        while True:
            try:
                self._producer.init_transactions(CALL_TIMEOUT_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._patience.clock() > deadline:
                    raise explain(
                        error,
                        f"opening the transactional id {name}",
                        f"Write on the transactional id {name}",
                    ) from None
            self._wait()

    def _wait(self) -> None:
        """In every turn of a loop that waits for brokers."""
        self._refresh()
        self._patience.check()

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
        except (KafkaException, SystemError) as error:
            raise explain(raised_by(error), doing) from None
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
        moved = self._patience.clock()
        while self._log_at < target:
            if self._patience.clock() - moved > patience_s:
                raise TemporaryError(
                    f"{topic}: nothing came after offset {self._log_at} of {target} for {patience_s:.0f} s: another writer's transaction is still "
                    f"open, or the broker is slow. Start again. If it stays so, the transaction hangs: {self._find_hanging(topic)}"
                )
            message = self._log.poll(0.2)
            self._wait()
            if message is None:
                continue
            error = message.error()
            if error is None:
                self._log_at = message.offset() + 1
                yield message.offset(), _manifest(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._log_at = max(self._log_at, message.offset())  # past the control records
            else:
                self._events.heed(error, 0, self._log_at)
                continue
            moved = self._patience.clock()

    def _find_hanging(self, topic: str) -> str:
        return (
            f"find it with kafka-transactions.sh --bootstrap-server {self._config.kafka.bootstrap_servers} find-hanging --topic {topic}, and end it with "
            "the same command's abort."
        )

    # Offsets

    def committed(self, partitions: Collection[int]) -> Mapping[int, int | None]:
        wanted = [TopicPartition(self._config.kafka.topic, p) for p in partitions]
        deadline = self._patience.clock() + READ_DEADLINE_S
        while True:
            try:
                answer = self._consumer.committed(wanted, timeout=CALL_TIMEOUT_S)
                failed = next((tp.error for tp in answer if tp.error is not None), None)
                if failed is None:
                    return {tp.partition: tp.offset if tp.offset >= 0 else None for tp in answer}
                error = failed
            except KafkaException as raised:
                error = raised.args[0]
            if is_denied(error):
                group = self._config.group
                raise explain(
                    error, f"reading the offsets of {group}", f"Read on the group {group}"
                )
            # A time-out means unknown, never none: another writer's open transaction hides the
            # offset until it ends.
            if self._patience.clock() > deadline:
                raise TemporaryError(
                    f"the group {self._config.group}'s committed offsets cannot be read: {error.str()}. Start again. If it stays so while the brokers are "
                    f"up, a transaction hangs: {self._find_hanging('__consumer_offsets')}"
                )
            self._wait()
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
        self._check_topics()
        began = time.monotonic()
        try:
            return self._transact(manifest, dead_letters, offsets, membership, doing)
        except InDoubt:
            raise
        except (Fenced, TemporaryError) as error:
            if time.monotonic() - began < DOUBT_S:
                raise
            self._patience.check()
            self._is_spent = True
            raise InDoubt(str(error)) from None

    def _check_topics(self) -> None:
        """Where the brokers do not say, the next commit looks. Raises ProtocolError."""
        if not self._topics:
            return
        try:
            found = self._admin.topic_ids(self._topics)
        except (DependencyError, TemporaryError) as error:
            log.debug("whether the topics are the same is unknown: %s", error)
            return
        for name, known in self._topics.items():
            if found.get(name) != known:
                what = "deleted and made again" if name in found else "deleted"
                raise ProtocolError(
                    f"the topic {name} was {what} while this replica ran. Nothing that was read "
                    "since its last commit is committed. Restore the topic, or continue with a new "
                    "dataset name."
                )

    def _transact(
        self,
        manifest: Manifest,
        dead_letters: Sequence[DeadLetter],
        offsets: Mapping[int, int],
        membership: object,
        doing: str,
    ) -> bool:
        producer, topic = self._producer, self._config.kafka.topic
        refused: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None and (is_denied(error) or error.code() in _TOO_BIG):
                refused.append(error)
                needs.append(f"Write on the topic {message.topic()}")

        needs: list[str] = []
        try:
            producer.begin_transaction()
            self._produce(self._config.commits_topic, wire.encode(manifest), [], delivered)
            for letter in dead_letters:
                self._produce_dead_letter(letter, delivered)
            if offsets:
                positions = [
                    TopicPartition(topic, p, o, manifest.uuid) for p, o in sorted(offsets.items())
                ]
                self._again(
                    lambda: producer.send_offsets_to_transaction(
                        positions, membership, CALL_TIMEOUT_S
                    )
                )
            self._again(lambda: producer.commit_transaction(CALL_TIMEOUT_S))
        except (KafkaException, SystemError) as raised:
            error = raised_by(raised)
            if refused:  # the client then only says that nothing can be sent any more
                raise explain(refused[0], doing, needs[0]) from None
            if error.fatal() or is_denied(error) or not error.txn_requires_abort():
                raise explain(error, doing, self._needed(error)) from None
            self._abort(doing)
            return False
        return True

    def _needed(self, error: KafkaError) -> str:
        """The right whose lack an error of the transaction tells of."""
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return f"Read on the group {self._config.group}"
        if error.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            return f"Write on the transactional id {self._config.transactional_id}"
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:  # it does not say of which
            with suppress(StreamerError):
                return ", ".join(denied_on_topics(self._config, self._admin))
        return ""

    def _abort(self, doing: str) -> None:
        try:
            self._again(lambda: self._producer.abort_transaction(CALL_TIMEOUT_S))
        except (KafkaException, SystemError) as error:
            raise explain(raised_by(error), f"aborting after {doing}") from None

    def _again(self, call: Callable[[], object]) -> None:
        """The same call until it is not retriable any more; the watchdog bounds it from outside
        (librdkafka#5456). What is in doubt when it raises, stays so."""
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
            self._wait()
            time.sleep(0.05)

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
                self._wait()

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
    group = f"{config.group}.commit-log-reader"
    events = Events(topic, group)
    consumer = new_consumer(consumer_config(config, group))
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
            if error is not None:
                events.heed(error, 0, 0)
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
