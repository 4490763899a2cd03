"""One process's side of the simulated Kafka: a consumer below the real `Source`, and the commit
engine's port."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from sim_broker import (
    TRANSACTION_TIMEOUT_S,
    Abortable,
    Broker,
    FencedProducer,
    Identity,
    Transaction,
)
from sim_group import Member, Membership
from sim_schedule import Schedule, wait

from streamer.errors import Fenced, InDoubt, TemporaryError
from streamer.sink.engine import DeadLetter
from streamer.wire import manifest as wire
from streamer.wire.manifest import Manifest

READ_DEADLINE_S = 5.0
IDLE_S = 1.0
"""A poll that finds nothing waits so long instead of a few milliseconds; whatever happens ends it
early."""

Step = Callable[[str], None]
"""``step(what)``: a point at which the process may be interrupted; raises what the call to Kafka
fails with."""


class SimMessage:
    __slots__ = ("_error", "_offset", "_partition")

    def __init__(self, partition: int, offset: int, error: KafkaError | None = None) -> None:
        self._partition = partition
        self._offset = offset
        self._error = error

    def error(self) -> KafkaError | None:
        return self._error

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return b"%d" % self._offset

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_700_000_000_000)

    def headers(self) -> None:
        return None


class SimConsumer:
    """What `Source` uses of confluent_kafka.Consumer, in one group."""

    def __init__(
        self,
        broker: Broker,
        schedule: Schedule,
        step: Step,
        instance: str | None,
        wake: Callable[[], None],
        is_present: Callable[[], bool],
        impatient: bool,
        hasty: bool,
    ) -> None:
        """``impatient``: a poll that finds nothing returns sooner than a rebalance takes.
        ``hasty``: it joins again in the background, before it has told anybody that its partitions
        were lost."""
        self._idle_s = IDLE_S / 5 if impatient else IDLE_S
        self._hasty = hasty
        self._lost = False
        self._broker = broker
        self._schedule = schedule
        self._step = step
        self._instance = instance
        self._wake = wake
        self._is_present = is_present
        self._member: Member | None = None
        self._callbacks: dict[str, Callable[..., None]] = {}
        self._positions: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._turns: deque[int] = deque()
        self._paused: set[int] = set()
        self._given_up: set[int] = set()
        """Partitions whose next offset expired: nothing more comes, and no seek helps."""

    # The group

    def subscribe(self, _topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self._step("join")
        self._join()

    def _join(self) -> None:
        self._member = self._broker.group.join(
            self._instance, self._wake, self._is_present, self._rejoin if self._hasty else None
        )

    def _rejoin(self) -> None:
        """In the background: the group went on without us."""
        self._lost = True
        self._join()
        self._wake()

    def close(self) -> None:
        if self._member is not None and self._instance is None:
            self._broker.group.leave(self._member)

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:" + struct.pack("<i", self.membership().generation)

    def membership(self) -> Membership:
        return (
            Membership(-1, -1)
            if self._member is None
            else Membership(self._member.id, self._member.generation)
        )

    def memberid(self) -> str:
        return str(self.membership().member)

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        self._step("commit offsets")
        if not self._broker.group.is_current(self.membership()):
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
        self._broker.offsets.update({tp.partition: tp.offset for tp in offsets})
        self._step("committed offsets")

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            self._positions[tp.partition] = tp.offset
            self._ended.pop(tp.partition, None)
            self._turns.append(tp.partition)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            self._forget(tp.partition)

    def _forget(self, partition: int) -> None:
        self._positions.pop(partition, None)
        self._given_up.discard(partition)
        self._paused.discard(partition)
        self._turns = deque(p for p in self._turns if p in self._positions)

    def seek(self, tp: TopicPartition) -> None:
        if tp.partition not in self._positions or tp.partition in self._given_up:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._positions[tp.partition] = tp.offset
        self._ended.pop(tp.partition, None)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused.update(tp.partition for tp in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused.difference_update(tp.partition for tp in partitions)

    def get_watermark_offsets(
        self, tp: TopicPartition, timeout: float = 0.0, cached: bool = False
    ) -> tuple[int, int]:
        log = self._broker.input[tp.partition]
        return log.begin, log.end

    # Polling

    def poll(self, timeout: float) -> SimMessage | None:
        self._step("poll")
        message = self._serve() or self._fetch()
        if message is None and timeout > 0:
            wait(self._schedule, lambda: self._is_due() or self._has_news(), self._idle_s)
            message = self._serve() or self._fetch()
        return message

    @property
    def _joined(self) -> Member:
        assert self._member is not None, "polled before subscribe"
        return self._member

    def _is_due(self) -> bool:
        return self._lost or bool(self._joined.events) or self._joined.state != "joined"

    def _serve(self) -> None:
        """Callbacks that are due."""
        self._joined.last_poll = self._schedule.now
        while self._is_due():
            member = self._joined
            if self._lost:
                self._lost = False
                self._call(member, "lost", set(self._positions))
            elif member.state == "replaced":
                raise Fenced(
                    "the group instance id was taken over"
                )  # a fatal error of the consumer, as `explain` gives it
            elif member.state == "lost":
                member.state = "left"
                self._call(member, "lost", set(self._positions))
                self._join()
            else:
                kind, partitions = member.events.pop(0)
                self._call(member, kind, partitions)
                self._broker.group.acknowledge(member, kind, partitions)
            self._joined.last_poll = self._schedule.now

    def _call(self, member: Member, kind: str, partitions: set[int]) -> None:
        if kind != "assign" and not partitions:
            return
        member.busy = True
        self._callbacks[kind](self, [TopicPartition("t", p) for p in sorted(partitions)])
        self._step("callback done")
        member.busy = False
        if kind != "assign":
            for p in partitions:
                self._forget(p)

    def _has_news(self) -> bool:
        return any(
            self._broker.input[p].end > at or self._ended.get(p) != at
            for p, at in self._positions.items()
            if p not in self._paused and p not in self._given_up
        )

    def _fetch(self) -> SimMessage | None:
        for _ in range(len(self._turns)):
            partition = self._turns[0]
            self._turns.rotate(-1)
            if partition in self._paused or partition in self._given_up:
                continue
            log, at = self._broker.input[partition], self._positions[partition]
            if at < log.begin:
                self._given_up.add(partition)
                return SimMessage(partition, at, KafkaError(KafkaError._AUTO_OFFSET_RESET))
            while at < log.end and not log.entries[at]:
                at += 1
            if at < log.end:
                self._positions[partition] = at + 1
                return SimMessage(partition, at)
            self._positions[partition] = at
            if self._ended.get(partition) != at:
                self._ended[partition] = at
                return SimMessage(partition, at, KafkaError(KafkaError._PARTITION_EOF))
        return None


class SimAdmin:
    """What `Source` uses of `streamer.kafka.admin.Admin`."""

    def __init__(self, broker: Broker, step: Step) -> None:
        self._broker = broker
        self._step = step

    def assigned(self, _group: str, member: str, _topic: str) -> set[int] | None:
        self._step("describe the group")
        return self._broker.group.assigned(int(member))


class SimTransactions:
    """`streamer.sink.engine.Transactions` on the simulated broker."""

    def __init__(
        self,
        broker: Broker,
        schedule: Schedule,
        step: Step,
        consumer: SimConsumer,
        name: str,
        latest: bool,
    ) -> None:
        """``latest``: the dataset starts at the end of the topic."""
        self._broker = broker
        self._schedule = schedule
        self._step = step
        self._consumer = consumer
        self._name = name
        self._latest = latest
        self.epoch = -1
        self._at = 0

    def fence(self) -> None:
        deadline = self._schedule.now + READ_DEADLINE_S
        self._step("fence")
        while (epoch := self._broker.fence(self._name)) is None:
            self._wait_more(deadline)
        self.epoch = epoch
        self._step("fenced")

    def attach(self) -> None:
        """Not of the port: goes on under whatever epoch there is, for the check that `fence` is
        missed."""
        self.epoch = self._broker.identities.setdefault(self._name, Identity()).epoch

    @property
    def log_id(self) -> str:
        return "log"

    def resume(self, offset: int) -> None:
        self._step("resume")
        assert offset < len(self._broker.log)
        self._at = offset

    def read(self, patience_s: float | None = None) -> Iterator[tuple[int, Manifest]]:
        self._step("read")
        target = len(self._broker.log)
        deadline = self._schedule.now + (READ_DEADLINE_S if patience_s is None else patience_s)
        while self._broker.stable_end < target:
            self._wait_more(deadline)
        end = self._broker.stable_end
        while self._at < end:
            at, self._at = self._at, self._at + 1
            if self._broker.log[at].state == "committed":
                yield at, self._broker.log[at].manifest
        self._step("have read")

    def committed(self, partitions: Collection[int]) -> Mapping[int, int | None]:
        self._step("ask offsets")
        deadline = self._schedule.now + READ_DEADLINE_S
        while self._broker.is_unstable(partitions):
            self._wait_more(deadline)
        answer = {p: self._broker.offsets.get(p) for p in partitions}
        self._step("have offsets")
        return answer

    def _wait_more(self, deadline: float) -> None:
        if self._schedule.now >= deadline:
            raise TemporaryError("another writer's transaction stays open")
        self._schedule.pause(0.2)

    def bounds(self, partitions: Collection[int]) -> Mapping[int, tuple[int, int]]:
        self._step("bounds")
        return {p: (self._broker.input[p].begin, self._broker.input[p].end) for p in partitions}

    def starts(self) -> Mapping[int, int]:
        self._step("starts")
        return {
            p: log.end if self._latest else log.begin for p, log in enumerate(self._broker.input)
        }

    def membership(self) -> Membership:
        self._step("membership")
        return self._consumer.membership()

    def commit(
        self,
        manifest: Manifest,
        dead_letters: Sequence[DeadLetter],
        offsets: Mapping[int, int],
        membership: object,
    ) -> bool:
        assert wire.decode(wire.encode(manifest)) == manifest
        assert len(dead_letters) == manifest.counts.get("invalid", 0)
        began = self._schedule.now
        try:
            return self._transact(manifest, offsets, membership)
        except FencedProducer:
            if self._schedule.now - began >= 0.8 * TRANSACTION_TIMEOUT_S:
                raise InDoubt("the transaction took too long") from None
            raise Fenced("another process runs under this writer's name") from None
        except TemporaryError as error:
            raise InDoubt(f"no answer: {error}") from None

    def _transact(self, manifest: Manifest, offsets: Mapping[int, int], membership: object) -> bool:
        self._step("begin")
        while (transaction := self._broker.begin(self._name, self.epoch, manifest)) is None:
            self._schedule.pause(0.1)
        self._step("produced")
        if offsets:
            assert isinstance(membership, Membership)
            if not self._broker.send_offsets(
                self._name, self.epoch, transaction, offsets, membership
            ):
                return self._abort(transaction)
        try:
            self._step("commit")
        except Abortable:
            return self._abort(transaction)
        self._broker.end(self._name, self.epoch, transaction, "committed")
        self._step("committed")
        return True

    def _abort(self, transaction: Transaction) -> bool:
        self._step("abort")
        self._broker.end(self._name, self.epoch, transaction, "aborted")
        self._step("aborted")
        return False
