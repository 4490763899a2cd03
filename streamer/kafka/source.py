"""The source: polls the input topic and keeps what was polled until the line has room. Kafka thread
only."""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from operator import methodcaller
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streamer.config import Config
from streamer.errors import DependencyError, ProtocolError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config, new_consumer, timestamp_ms
from streamer.kafka.events import PASS_BY, UNREADABLE, Events
from streamer.kafka.unreadable import Search
from streamer.records import UNREADABLE_HEADERS, Headers, Record
from streamer.wire.limits import weight

CHUNK_RECORDS = 64
CHUNK_BYTES = 8_000_000
POLL_MESSAGES = 10 * CHUNK_RECORDS
"""A poll ends after so many, whatever became of them."""
ASK_LIMIT_S = 2.0
LEAVE_S = 5.0
NO_TARGET = 1 << 62
EXPIRED = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
"""The offset that is to be read next is not in the topic's log: it expired, or the topic was made
again."""
SKIPPABLE = EXPIRED | UNREADABLE
REFERENCE_BYTES = 4_000_000
"""What a record that may be a reference counts for: its image's bytes are known only once they are
fetched."""
SMALL_BYTES = 4_096
"""A value of at most so many bytes may be a reference."""


class Listener(Protocol):
    """Told of the group's decisions, inside `Source.poll` and `Source.serve`; may block within the
    poll interval."""

    def assigned(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Returns where each of the new partitions starts. Records follow from there."""

    def revoked(self, partitions: Collection[int]) -> None:
        """The last moment to finish: after it these partitions belong to somebody else."""

    def lost(self, partitions: Collection[int]) -> None:
        """They belong to somebody else already."""


class Source:
    """One consumer of the group. Never calls ``pause()`` because the line is full (librdkafka
    throws prefetched messages away): the caller keeps the last chunk in hand and calls `serve` now
    and then, which keeps the membership alive."""

    def __init__(self, config: Config, admin: Admin) -> None:
        """Connects to nothing until `subscribe`."""
        self._config = config
        self._admin = admin
        self._group = config.group
        self._instance = config.group_instance_id
        self.consumer = new_consumer(
            consumer_config(config, config.group, group_instance_id=config.group_instance_id)
        )
        self._topic = config.kafka.topic
        self._events = Events(self._topic, config.group, PASS_BY)
        self._reference_bytes = (
            min(config.fetch.max_bytes, REFERENCE_BYTES) if config.fetch.schemes else 0
        )
        self._listener: Listener = _Nobody()
        self._error: BaseException | None = None
        self._records: list[Record] = []
        self._bytes = 0
        self._marks: dict[int, int] = {}
        self._targets: dict[int, int] = {}
        self._windows: Mapping[int, int] | None = None
        self._held: list[Record] = []
        """What came behind the windows. A seek would bring it again, but takes half a second: the
        fetch that is under way must come back first."""
        self._passed: set[int] = set()
        """Partitions of which messages came that were neither taken nor held."""
        self._on_hold: frozenset[int] = frozenset()
        self._is_new_hold = False
        self.stuck: dict[int, KafkaError] = {}
        """Partition → why nothing comes behind what was `reached`: it expired, or cannot be read
        and may be skipped. What else comes of it is ignored until it is rewound."""
        self._searches: dict[int, Search] = {}
        self._skips_unreadable = config.kafka.on_unreadable == "skip"
        self._asked_ends: dict[int, int] = {}
        self._asked_for = -1
        self._paused: set[int] = set()
        self._log_ends: dict[int, int] = {}
        """Partition → the end offset that the client told last; it does so once."""
        self.owned: set[int] = set()
        """Partitions whose records are taken; of others, what is still in the client's queue is
        ignored."""
        self.reached: dict[int, int] = {}
        """Partition → offset up to which everything was polled."""
        self.joined = False
        """True after an assignment, an empty one too, until partitions are taken away: then the
        group has another one coming."""

    def subscribe(self, listener: Listener) -> None:
        """Joins the group; ``listener`` is called from the next poll on."""
        self._listener = listener
        self.consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def close(self, for_good: bool = False) -> None:
        """Closes the consumer. Seal before: what is unsealed is forgotten.

        A dynamic member leaves its group by it. A static one stays until its session ends, so that
        a restart moves nothing; ``for_good``: it leaves, too. Blocks for `LEAVE_S` then, at most.
        """
        self._listener = _Nobody()
        if for_good and self._instance is not None:
            end_membership(self.consumer, self._admin, self._group, LEAVE_S)
        self.consumer.close()

    def generation(self) -> int:
        """The group's generation, from librdkafka's serialised metadata (``CGMDv2:`` +
        little-endian int32)."""
        data: bytes = self.consumer.consumer_group_metadata()
        magic = b"CGMDv2:"
        if not data.startswith(magic):
            raise ProtocolError(
                f"librdkafka's group metadata begins with {data[:7]!r}, not {magic!r}: this version of confluent-kafka is not supported"
            )
        return int(struct.unpack_from("<i", data, len(magic))[0])

    def is_member(self, starts: Mapping[int, int]) -> bool:
        """Asks the coordinator whether our generation holds, by committing offsets that are true
        already. Blocks on the round trip."""
        try:
            self.consumer.commit(
                offsets=[TopicPartition(self._topic, p, o) for p, o in starts.items()],
                asynchronous=False,
            )
        except KafkaException:
            return False
        return True

    def is_settled(self) -> bool:
        """Whether the group has no partition for us that we do not own yet. An assignment may be
        under way: between brokers and client, or behind messages in the client's queue. False too
        while the brokers do not say. Blocks on the coordinator, and calls the listener."""
        try:
            assigned = self._admin.assigned(self._group, self.consumer.memberid(), self._topic)
        except (DependencyError, TemporaryError):
            return False
        message = self._poll(0)
        while message is not None:
            self._accept(message)
            message = self._poll(0)
        return self.joined and self.owned == assigned

    # Polling

    def poll(self, timeout: float) -> None:
        """Fills the hand until it is a whole chunk or nothing more is there; waits at most
        ``timeout`` seconds for the first message.

        Raises what a callback raised, and the broker's final errors.
        """
        if self._is_new_hold:
            self._is_new_hold = False
            self.confine(self._windows)
        message = self._poll(timeout)
        for _ in range(POLL_MESSAGES):
            if message is None:
                return
            self._accept(message)
            if self.has_chunk or self._windows_are_polled():
                return
            message = self._poll(0)
        if message is not None:
            self._accept(message)

    def serve(self) -> None:
        """Runs the group's callbacks once; a message that comes along is kept in hand."""
        message = self._poll(0)
        if message is not None:
            self._accept(message)

    @property
    def has_any(self) -> bool:
        return bool(self._records or self._marks)

    @property
    def has_chunk(self) -> bool:
        """True when no more should be polled before this was taken."""
        return len(self._records) >= CHUNK_RECORDS or self._bytes >= CHUNK_BYTES

    def take(self) -> tuple[list[Record], dict[int, int], int]:
        """What is in hand: records, end-of-partition marks that come after them, bytes."""
        hand = self._records, self._marks, self._bytes
        self._records, self._marks, self._bytes = [], {}, 0
        return hand

    def forget(self, partitions: Collection[int]) -> None:
        """They are taken away, or about to be: drops what is in hand of them and ignores what still
        comes."""
        self.joined = False
        self.owned.difference_update(partitions)
        self._records = [r for r in self._records if r.partition in self.owned]
        self._bytes = sum(self._weight(r) for r in self._records)
        self._marks = {p: o for p, o in self._marks.items() if p in self.owned}
        for partition in partitions:
            self.reached.pop(partition, None)
            self._log_ends.pop(partition, None)
            self.stuck.pop(partition, None)
        self._passed.difference_update(partitions)
        self._held = [r for r in self._held if r.partition in self.owned]
        self._resume(self._paused.intersection(partitions))

    def rewind(self, starts: Mapping[int, int]) -> None:
        """Reads these partitions again from the given offsets. Not inside a callback."""
        for partition, offset in starts.items():
            self._seek(partition, offset)
            self.owned.add(partition)
            self.reached[partition] = offset
            self._log_ends.pop(partition, None)
            self.stuck.pop(partition, None)
        self._held = [r for r in self._held if r.partition not in starts]

    @property
    def halted(self) -> set[int]:
        """Partitions that are stuck before the end of what may be taken."""
        return self.stuck.keys() - self._passed

    def _seek(self, partition: int, offset: int) -> None:
        self.stuck.pop(partition, None)
        self._passed.discard(partition)
        place = TopicPartition(self._topic, partition, offset)
        try:
            self.consumer.seek(place)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            # The next offset expired: the client has given the partition up, told or not yet
            self.consumer.incremental_unassign([place])
            self.consumer.incremental_assign([place])
            self._paused.discard(partition)
            self._is_new_hold = True

    # Windows

    def confine(self, windows: Mapping[int, int] | None) -> None:
        """From now on only records of these partitions are taken, below these offsets; None: of
        all. What is not taken meanwhile is read when it may be. Not inside a callback."""
        self._windows = windows
        wanted = self.owned if windows is None else self.owned.intersection(windows)
        wanted = wanted - self._on_hold
        self._resume(self._paused & wanted)
        held, self._held = self._held, []
        for record in held:
            if record.partition not in self._passed:
                self._take(record)
        for partition in self._passed & wanted:
            self._passed.discard(partition)
            self._seek(partition, self.reached[partition])
        if unwanted := self.owned - wanted - self._paused:
            self.consumer.pause([TopicPartition(self._topic, p) for p in sorted(unwanted)])
            self._paused |= unwanted
            self._passed |= unwanted

    def hold(self, partitions: Collection[int]) -> None:
        """From now on nothing is taken of these, whatever the windows are, and of the others again.
        Any callback."""
        self._is_new_hold = self._is_new_hold or self._on_hold != set(partitions)
        self._on_hold = frozenset(partitions)

    def take_nothing(self) -> None:
        """`confine` to no partition, also inside a callback: what comes is not taken."""
        self._windows = {}

    @property
    def windows_are_read(self) -> bool:
        """Whether nothing more is to be taken, and nothing is in hand."""
        return not self.has_any and self._windows_are_polled()

    def _windows_are_polled(self) -> bool:
        return self._windows is not None and all(
            self.reached.get(p, -1) >= min(self._end(p), self._log_ends.get(p, NO_TARGET))
            for p in self.owned.intersection(self._windows)
        )

    def _end(self, partition: int) -> int:
        """Records of it at or beyond this offset are not taken."""
        if partition in self._on_hold:
            return 0
        target = self._targets.get(partition, NO_TARGET)
        return target if self._windows is None else min(target, self._windows.get(partition, 0))

    def _resume(self, partitions: Collection[int]) -> None:
        if partitions:
            self.consumer.resume([TopicPartition(self._topic, p) for p in sorted(partitions)])
            self._paused.difference_update(partitions)

    def find_readable(self, partition: int) -> int | None:
        """Of a partition that is stuck: the next offset that can be read; None: it is looked for,
        ask again. Does not block. Raises like `Search.found`."""
        at = self.reached[partition]
        search = self._searches.get(partition)
        if search is None or search.broken != at:
            search = self._searches[partition] = Search(self._config, partition, at)
        found = search.found()
        if found is not None:
            del self._searches[partition]
        return found

    def is_unreadable(self, partition: int) -> bool:
        """Of a partition that is stuck: whether a batch cannot be read. Else it expired."""
        return self.stuck[partition].code() in UNREADABLE

    # Bounded runs

    def stop_at(self, targets: Mapping[int, int]) -> None:
        """Records at or beyond these offsets are not taken."""
        self._targets.update(targets)

    def is_done(self) -> bool:
        """True when every owned partition that is not on hold reached its target (`stop_at`) and
        nothing is in hand any more."""
        return (
            self.joined
            and not self.has_any
            and all(
                self.reached.get(p, -1) >= self._targets.get(p, NO_TARGET)
                for p in self.owned - self._on_hold
            )
        )

    def ends(self) -> dict[int, int]:
        """The owned partitions' end offsets as the client last heard of them; does not block."""
        ends = {}
        for partition in self.owned:
            _, high = self.consumer.get_watermark_offsets(
                TopicPartition(self._topic, partition), cached=True
            )
            ends[partition] = max(
                high, self.reached.get(partition, 0), self._asked_ends.get(partition, 0)
            )
        return ends

    def ask_end(self, partitions: Collection[int]) -> None:
        """Of one of them, in turn: of what is not fetched the client hears nothing. Blocks for a
        round trip, `ASK_LIMIT_S` at most; where the brokers do not answer, the end stays as it
        is."""
        self._asked_for = next(
            (p for p in sorted(partitions) if p > self._asked_for), min(partitions, default=-1)
        )
        if self._asked_for >= 0:
            place = TopicPartition(self._topic, self._asked_for)
            with suppress(KafkaException):
                _, high = self.consumer.get_watermark_offsets(place, timeout=ASK_LIMIT_S)
                self._asked_ends[self._asked_for] = high

    # Inside

    def _poll(self, timeout: float) -> Message | None:
        message = self.consumer.poll(timeout)
        if self._error is not None:
            raise self._error
        return message

    def _accept(self, message: Message) -> None:
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if error is not None:
            self._event(error, partition, offset)
        elif partition in self.owned and partition not in self.stuck:
            self._take(
                Record(partition, offset, timestamp_ms(message), message.value(), _headers(message))
            )

    def _take(self, record: Record) -> None:
        """Into the hand, unless it is behind a target or a window."""
        partition, end = record.partition, self._end(record.partition)
        if record.offset < end:
            self._records.append(record)
            self._bytes += self._weight(record)
            self.reached[partition] = record.offset + 1
            return
        self._mark(partition, end)
        if record.offset < self._targets.get(partition, NO_TARGET):
            known = partition in (self._windows or {}) and partition not in self._passed
            if known and len(self._held) < CHUNK_RECORDS:
                self._held.append(record)
            else:
                self._passed.add(partition)

    def _weight(self, record: Record) -> int:
        """Bytes that the record counts for in the line, with those of the image that it may refer
        to."""
        nbytes = weight(record)
        small = record.value is None or len(record.value) <= SMALL_BYTES
        return max(nbytes, self._reference_bytes) if small else nbytes

    def _mark(self, partition: int, offset: int) -> None:
        if offset > self.reached.get(partition, -1):
            self._marks[partition] = offset
            self.reached[partition] = offset

    def _event(self, error: KafkaError, partition: int, offset: int) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            if partition in self.owned and partition not in self.stuck:
                end = self._end(partition)
                self._mark(partition, min(offset, end))
                self._log_ends[partition] = offset
                if offset > end:
                    self._passed.add(partition)
        elif code not in SKIPPABLE:
            self._events.heed(error, partition, offset)
        elif partition in self.owned and partition not in self.stuck:
            # No look at its offset: behind a broken batch that is rubbish, perhaps
            if self.reached.get(partition, -1) >= self._end(partition):
                self._passed.add(partition)
            elif code in UNREADABLE and not self._skips_unreadable:
                self._events.heed(error, partition, offset)
            self.stuck[partition] = error

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        with _Kept(self):
            self.joined = True
            starts = self._listener.assigned([tp.partition for tp in assigned]) if assigned else {}
            consumer.incremental_assign(
                [TopicPartition(self._topic, p, o) for p, o in sorted(starts.items())]
            )
            self.owned.update(starts)
            self.reached.update(starts)

    def _on_revoke(self, _consumer: Consumer, revoked: list[TopicPartition]) -> None:
        with _Kept(self):
            partitions = [tp.partition for tp in revoked]
            self.forget(partitions)
            self._listener.revoked(partitions)

    def _on_lost(self, _consumer: Consumer, lost: list[TopicPartition]) -> None:
        with _Kept(self):
            partitions = [tp.partition for tp in lost]
            self.forget(partitions)
            self._listener.lost(partitions)


def end_membership(consumer: Consumer, admin: Admin, group: str, timeout_s: float) -> None:
    """Ends a membership, a static one too: the client lets that leave when it unsubscribes, not
    when it closes. Blocks until the group says so, or for ``timeout_s`` and one call of
    ``admin``."""
    member = consumer.memberid()
    consumer.unsubscribe()
    deadline = time.monotonic() + timeout_s
    with suppress(DependencyError, TemporaryError):
        while time.monotonic() < deadline:
            consumer.poll(0.1)
            if member not in admin.instances(group).values():
                return


_ask_headers = methodcaller("headers")
"""For a name that is not UTF-8 the client gives a list with a hole in it *and* an error. A call
through here is looked at for both; one that the interpreter has specialised, after some records, is
not: the error came out of whatever was called next, and ended the process."""


def _headers(message: Message) -> Headers:
    try:
        return _ask_headers(message) or ()
    except (SystemError, UnicodeDecodeError):  # anybody may write such a record
        return UNREADABLE_HEADERS


class _Kept:
    """An exception in a callback would still be followed by the client's default assignment: keep
    it, and leave at the next step."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is not None and self._source._error is None:
            self._source._error = error
        return error is not None


class _Nobody:
    def assigned(self, partitions: Collection[int]) -> Mapping[int, int]:
        return {}

    def revoked(self, partitions: Collection[int]) -> None:
        pass

    def lost(self, partitions: Collection[int]) -> None:
        pass
