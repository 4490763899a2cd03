"""The claim log's topic: append, tail, apply. See `streamer.kafka.claims` for the
stage of the line on top of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import (
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from streamer.config import Config
from streamer.dedup.meld import Applied, Meld, State
from streamer.dedup.snapshot import Header
from streamer.errors import DatasetMismatch, DependencyError, ProtocolError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import (
    consumer_config,
    explain,
    is_denied,
    new_consumer,
    producer_config,
    raised_by,
)
from streamer.kafka.events import Events
from streamer.kafka.patience import IMPATIENT, Patience
from streamer.sink.snapshots import Snapshots
from streamer.wire.claim import Claims, DatasetEntry, Entry, decode, encode, split

ENTRY_DEADLINE_S = 30.0
"""An entry that was appended is read back within this time, or the process ends."""
_FRAME = 2_000
"""Bytes kept free below the topic's message limit."""


class ClaimLog:
    """NAME.claims: appended by an idempotent, non-transactional producer, tailed from its
    beginning, or a snapshot, and melded in its order."""

    def __init__(
        self,
        config: Config,
        meld: Meld,
        binding: DatasetEntry,
        message_limit: int,
        patience: Patience = IMPATIENT,
    ) -> None:
        """``message_limit``: the topic's max.message.bytes. Connects to nothing yet."""
        self.meld = meld
        self.patience = patience
        self._config = config
        self.topic = config.claims_topic
        self._binding = binding
        self._limit = message_limit - _FRAME
        self._producer = Producer(producer_config(config))
        reader = f"{config.group}.claim-log-reader"
        self._events = Events(self.topic, reader)
        self._consumer = new_consumer(consumer_config(config, reader, isolation="read_uncommitted"))
        self._consumer.assign([TopicPartition(self.topic, 0, 0)])
        self.offset = 0
        """Of the next entry to apply."""
        self._bound: DatasetEntry | None = None
        self._failed: list[KafkaError] = []

    def close(self) -> None:
        self._consumer.close()

    def resume(self, admin: Admin, snapshots: Snapshots) -> Header | None:
        """Goes on from the newest good snapshot, if there is one. Main thread, before `restore`.

        Raises ProtocolError where the log ends before it: entries were lost.
        """
        loaded = snapshots.load(self.meld.store)
        if loaded is not None:
            self.go_on(admin, *loaded)
        return loaded and loaded[0]

    def go_on(self, admin: Admin, header: Header, state: State) -> None:
        """As `resume`, from this one."""
        end = admin.end_offsets(self.topic, [0], committed=False)[0]
        if header.offset > end:
            raise ProtocolError(
                f"{self.topic}: the claim log ends at offset {end}, but a snapshot was taken at {header.offset}: entries were lost, and with them "
                "decisions. Restore the topic, or continue with a new dataset name."
            )
        self.meld.restore(state)
        self.offset, self._bound = header.offset, header.dataset
        self._consumer.assign([TopicPartition(self.topic, 0, header.offset)])

    def restore(self, admin: Admin, progress: Callable[[int, int], None]) -> None:
        """Reads the log, or what `resume` left of it, to its end, and binds the dataset if nobody
        did. Main thread, before `tail` runs.

        Raises DatasetMismatch (another topic, model, dimension, threshold or meld version),
        ProtocolError, DependencyError.
        """
        begin = admin.begin_offsets(self.topic, [0])[0]
        if begin > 0:
            raise _beheaded(self.topic, begin)
        self.read_to(admin.end_offsets(self.topic, [0], committed=False)[0], progress)
        if self._bound is None:
            self.append(self._binding)
            self.flush(ENTRY_DEADLINE_S)
            self.read_to(admin.end_offsets(self.topic, [0], committed=False)[0], progress)
        if self._bound is None:
            raise TemporaryError(
                f"{self.topic}: the first entry could not be written within {ENTRY_DEADLINE_S:.0f} s. Start again."
            )
        if self._bound != self._binding:
            raise DatasetMismatch(_mismatch(self._config.dataset, self._bound, self._binding))

    def read_to(self, end: int, progress: Callable[[int, int], None]) -> None:
        """Applies the entries below offset ``end`` and no other; ``progress`` receives the offset
        and ``end``."""
        waited = self.patience.clock()
        while self.offset < end:
            self.patience.check()
            if self.tail(0.2, end):
                waited = self.patience.clock()
                progress(self.offset, end)
            elif self.patience.clock() - waited > ENTRY_DEADLINE_S:
                raise TemporaryError(
                    f"{self.topic}: no answer from the broker at offset {self.offset} of {end}. Start again."
                )

    def append(self, entry: Entry) -> None:
        """Any thread; blocks only while the producer's queue is full. Raises what the brokers
        refuse earlier entries with."""
        while True:
            try:
                self._producer.produce(
                    self.topic, encode(entry), partition=0, on_delivery=self._delivered
                )
                return
            except KafkaException as error:  # of an earlier entry, and fatal
                self._failed.append(raised_by(error))
            except BufferError:
                pass
            self._serve(lambda: self._producer.poll(0.05))

    def flush(self, timeout: float) -> int:
        """Waits until what was appended is in the log; returns how many entries are not. Raises
        what the brokers refuse them with."""
        deadline = self.patience.clock() + timeout
        while True:
            left = self._serve(lambda: self._producer.flush(min(timeout, 1.0)))
            if not left or self.patience.clock() >= deadline:
                return left
            self.patience.check()

    def _serve(self, call: Callable[[], int]) -> int:
        """A call that runs `_delivered`."""
        try:
            done = call()
        except (KafkaException, SystemError) as error:
            self._failed.append(raised_by(error))
        if self._failed:
            refusal = next(filter(is_denied, self._failed), self._failed[0])
            needs = f"Write on the topic {self.topic}"
            raise explain(refusal, f"appending to {self.topic}", needs)
        return done

    def append_claims(self, claims: Claims) -> list[Claims]:
        """Appends the entry, split below the message limit; returns the parts."""
        parts = split(claims, self._limit)
        for part in parts:
            self.append(part)
        return parts

    def tail(self, timeout: float, end: int | None = None) -> list[tuple[Entry, Applied]]:
        """Applies what is there, below offset ``end`` if that is given, waiting at most ``timeout``
        seconds for the first entry. One thread at a time."""
        self._serve(lambda: self._producer.poll(0))
        applied: list[tuple[Entry, Applied]] = []
        message = self._consumer.poll(timeout)
        while message is not None:
            error = message.error()
            if error is None:
                entry = self._decode(message)
                if isinstance(entry, DatasetEntry) and self._bound is None:
                    self._bound = entry
                    if entry != self._binding:
                        raise DatasetMismatch(_mismatch(self._config.dataset, entry, self._binding))
                elif self._bound is None:
                    raise ProtocolError(
                        f"{self.topic}: the first entry is not the dataset's; this topic is no claim log"
                    )
                applied.append((entry, self.meld.apply(entry)))
                self.offset = message.offset() + 1
            else:
                self._events.heed(error, 0, self.offset)
            if len(applied) >= 64 or self.offset == end:
                break
            message = self._consumer.poll(0)
        return applied

    def _decode(self, message: Message) -> Entry:
        try:
            return decode(message.value() or b"")
        except ProtocolError as error:
            raise ProtocolError(f"{self.topic} offset {message.offset()}: {error}") from None

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed.append(error)


def bound_to(config: Config, admin: Admin) -> DatasetEntry:
    """What the first entry of the claim log binds the dataset to, whatever the config says. Joins
    no group, appends nothing.

    Raises DependencyError where there is no log, or nothing in it; ProtocolError where it is none,
    or its beginning is gone.
    """
    topic = config.claims_topic
    admin.topic_id(topic)
    begin, end = (
        admin.begin_offsets(topic, [0])[0],
        admin.end_offsets(topic, [0], committed=False)[0],
    )
    if begin > 0:
        raise _beheaded(topic, begin)
    if end == 0:
        raise DependencyError(
            f"{topic}: the claim log is empty: no replica of the dataset {config.dataset!r} has run yet"
        )
    reader = f"{config.group}.claim-log-reader"
    consumer = new_consumer(consumer_config(config, reader, isolation="read_uncommitted"))
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        events = Events(topic, reader)
        deadline = time.monotonic() + ENTRY_DEADLINE_S
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if (error := message.error()) is not None:
                events.heed(error, 0, 0)
                continue
            entry = decode(message.value() or b"")
            if not isinstance(entry, DatasetEntry):
                raise ProtocolError(
                    f"{topic}: the first entry is not the dataset's; this topic is no claim log"
                )
            return entry
    finally:
        consumer.close()
    raise TemporaryError(
        f"{topic}: no answer from the broker within {ENTRY_DEADLINE_S:.0f} s. Try again."
    )


def _beheaded(topic: str, begin: int) -> ProtocolError:
    return ProtocolError(
        f"{topic}: the claim log begins at offset {begin}, its older entries are gone. It must be kept for ever "
        "(retention.ms=-1, retention.bytes=-1, cleanup.policy=delete); continue with a new dataset name."
    )


def _mismatch(dataset: str, bound: DatasetEntry, ours: DatasetEntry) -> str:
    names = {
        "topic_id": "input topic (by id)",
        "model": "embedder",
        "dim": "dimension",
        "threshold": "dedup.threshold",
        "meld_version": "meld version",
    }
    differences = [
        f"{names[f]} is {bound.spell(f)} there and {ours.spell(f)} here"
        for f in names
        if getattr(bound, f) != getattr(ours, f)
    ]
    return (
        f"dataset {dataset!r} exists with another setting: {'; '.join(differences)}. One dataset has one answer: set it back, or replay the backlog "
        "into a new dataset (streamer replay run -c … --dataset NEW)."
    )
