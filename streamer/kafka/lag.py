"""How far a dataset is behind its topic, asked from outside: the running group is not touched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, TopicPartition

from streamer.config import Config
from streamer.errors import TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config, explain
from streamer.kafka.topics import configured_starts, input_topic
from streamer.wire import claim
from streamer.wire import manifest as wire

DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    partition: int
    committed: int | None
    """The offset after the last one that a committed epoch holds; None before the dataset's first."""
    end: int
    """One past the last record that a reader of committed records can see."""
    records: int
    """Offsets from the committed one (or from where the dataset would start) to the end: control
    records are counted, too."""
    seconds: float
    """Age of the first record that is not committed; 0 if there is none."""
    note: str
    """Why a replica would refuse to start here; empty if it would not."""


def measure(config: Config, admin: Admin) -> list[PartitionLag]:
    """One row per partition of the input topic. Blocks for `DEADLINE_S` and a few calls of
    ``admin`` at most.

    Raises DependencyError, TemporaryError, ProtocolError.
    """
    topic = config.kafka.topic
    found = input_topic(admin, config)
    partitions = range(found.partitions)
    committed = {
        p: group.offset for p, group in admin.committed(config.group, topic, partitions).items()
    }
    if len(committed) < len(partitions):
        # A group's offsets expire a week after it was last seen; what the commit log says holds.
        committed = {**_tile_ends(config, admin), **committed}
    fresh = [p for p in partitions if p not in committed]
    starts = {**configured_starts(admin, config, fresh), **committed}
    begins = admin.begin_offsets(topic, partitions)
    ends = admin.end_offsets(topic, partitions, committed=True)
    notes = dict.fromkeys(partitions, "")
    notes |= {
        p: f"{begins[p] - at} offsets expired before they were processed"
        for p, at in committed.items()
        if at < begins[p]
    }
    if _bound_topic(config, admin) not in (None, found.id) or any(
        at > ends[p] for p, at in committed.items()
    ):
        notes = dict.fromkeys(partitions, "the topic was made again: nothing of it is processed")
        starts = begins
    behind = {
        p: max(starts[p], begins[p]) for p in partitions if ends[p] > max(starts[p], begins[p])
    }
    oldest = _first_timestamps(config, behind)
    now = time.time()
    return [
        PartitionLag(
            partition=p,
            committed=committed.get(p),
            end=ends[p],
            records=ends[p] - behind[p]
            if p in oldest
            else 0,  # only control records are left: nothing to do
            seconds=round(max(0.0, now - oldest[p] / 1000), 3) if p in oldest else 0.0,
            note=notes[p],
        )
        for p in partitions
    ]


def _tile_ends(config: Config, admin: Admin) -> dict[int, int]:
    """Partition → where the last committed epoch that has it ends."""
    ends: dict[int, int] = {}
    for value in _values(config, admin, config.commits_topic):
        for partition, (_, following) in wire.decode(value).partitions.items():
            ends[partition] = max(following, ends.get(partition, 0))
    return ends


def _bound_topic(config: Config, admin: Admin) -> str | None:
    """The id of the topic that the dataset is bound to; None before its first start."""
    for value in _values(config, admin, config.claims_topic):
        entry = claim.decode(value)
        return entry.topic_id if isinstance(entry, claim.DatasetEntry) else None
    return None


def _values(config: Config, admin: Admin, topic: str) -> Iterator[bytes]:
    """The values of the one partition of ``topic``, if there is such a topic, up to its end."""
    if admin.topic(topic) is None:
        return
    begin, end = (
        admin.begin_offsets(topic, [0])[0],
        admin.end_offsets(topic, [0], committed=True)[0],
    )
    if begin == end:
        return
    consumer = Consumer(consumer_config(config, f"{config.group}.lag"))
    try:
        consumer.assign([TopicPartition(topic, 0, begin)])
        deadline = time.monotonic() + DEADLINE_S
        at = begin
        while at < end:
            message = consumer.poll(0.2)
            if message is None:
                _check_deadline(deadline, topic)
                continue
            error = message.error()
            if error is None:
                yield message.value() or b""
                at = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                at = message.offset()
            elif not error.retriable():
                raise explain(error, f"reading {topic}")
    finally:
        consumer.close()


def _first_timestamps(config: Config, positions: Mapping[int, int]) -> dict[int, int]:
    """Partition → timestamp (ms) of the first record at or after the position; partitions with none
    are left out."""
    topic = config.kafka.topic
    found: dict[int, int] = {}
    if not positions:
        return found
    # One batch a partition is all that is wanted.
    small = {
        "queued.min.messages": 1,
        "fetch.message.max.bytes": 1,
        "queued.max.messages.kbytes": 1024,
    }
    consumer = Consumer({**consumer_config(config, f"{config.group}.lag"), **small})
    try:
        consumer.assign([TopicPartition(topic, p, o) for p, o in positions.items()])
        waiting = set(positions)
        deadline = time.monotonic() + DEADLINE_S
        while waiting:
            message = consumer.poll(0.2)
            if message is None:
                _check_deadline(deadline, topic)
                continue
            error, partition = message.error(), message.partition()
            if error is None:
                if partition in waiting:
                    found[partition] = max(0, message.timestamp()[1])
                    _done(consumer, topic, partition, waiting)
            elif error.code() == KafkaError._PARTITION_EOF:
                _done(consumer, topic, partition, waiting)
            elif not error.retriable():
                raise explain(error, f"reading {topic}")
    finally:
        consumer.close()
    return found


def _done(consumer: Consumer, topic: str, partition: int, waiting: set[int]) -> None:
    if partition in waiting:
        waiting.discard(partition)
        consumer.incremental_unassign([TopicPartition(topic, partition)])


def _check_deadline(deadline: float, topic: str) -> None:
    if time.monotonic() > deadline:
        raise TemporaryError(
            f"reading {topic}: the broker did not answer within {DEADLINE_S:.0f} s. Try again."
        )
