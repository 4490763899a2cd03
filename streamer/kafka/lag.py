"""How far a dataset is behind its topic, asked from outside: the running group is not touched."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, TopicPartition

from streamer.config import Config
from streamer.errors import ConfigError, DependencyError, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config, explain, new_consumer, timestamp_ms
from streamer.kafka.log import LogReader, from_checkpoint
from streamer.kafka.topics import configured_starts, input_topic
from streamer.sink.storage import Storage
from streamer.units import counted
from streamer.wire import claim
from streamer.wire import manifest as wire

DEADLINE_S = 20.0
LOOKED_AT = 500
"""Records of a partition among which one with a timestamp is looked for."""


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
    seconds: float | None
    """Age of the first record with a timestamp that is not committed; 0 if no record waits, None
    if those that wait have no timestamp."""
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
    committed = decided(config, admin, partitions)
    fresh = [p for p in partitions if p not in committed]
    starts = {**configured_starts(admin, config, fresh), **committed}
    begins = admin.begin_offsets(topic, partitions)
    ends = admin.end_offsets(topic, partitions, committed=True)
    notes = dict.fromkeys(partitions, "")
    notes |= {
        p: f"{counted(begins[p] - at, 'offset')} expired before they were processed"
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
    waiting = _waiting(config, behind)
    return [
        PartitionLag(
            partition=p,
            committed=committed.get(p),
            end=ends[p],
            # Where only control records are left there is nothing to do
            records=ends[p] - behind[p] if p in waiting else 0,
            seconds=_age_s(waiting[p]) if p in waiting else 0.0,
            note=notes[p],
        )
        for p in partitions
    ]


def decided(config: Config, admin: Admin, partitions: Collection[int]) -> dict[int, int]:
    """Partition → the offset after the last one that a committed epoch holds; empty before the
    dataset's first. Blocks, and raises, like `measure`."""
    known = admin.committed(config.group, config.kafka.topic, partitions)
    committed = {p: group.offset for p, group in known.items()}
    if len(committed) < len(partitions):
        # A group's offsets expire a week after it was last seen; what the commit log says holds.
        committed = {**_tile_ends(config, admin), **committed}
    return committed


def _age_s(timestamp_ms: int | None) -> float | None:
    if timestamp_ms is None:
        return None
    return round(max(0.0, time.time() - timestamp_ms / 1000), 3)


def _tile_ends(config: Config, admin: Admin) -> dict[int, int]:
    """Partition → where the last committed epoch that has it ends."""
    ends: dict[int, int] = {}
    with LogReader(config, admin, config.commits_topic) as log:
        if (storage := _storage(config)) is not None:
            checkpoint = from_checkpoint(log, config, admin, storage)
            ends = {p: end for p, (_, end) in checkpoint.tiles.items()} if checkpoint else {}
        for message in log.read():
            for partition, (_, following) in wire.decode(message.value() or b"").partitions.items():
                ends[partition] = max(following, ends.get(partition, 0))
    return ends


def _storage(config: Config) -> Storage | None:
    """None where the output folder cannot be read from here: the log has all of it, too."""
    try:
        storage = Storage(config.output.path, config.dataset)
        list(storage.checkpoints())
    except (ConfigError, DependencyError):
        return None
    return storage


def _bound_topic(config: Config, admin: Admin) -> str | None:
    """The id of the topic that the dataset is bound to; None before its first start."""
    with LogReader(config, admin, config.claims_topic) as log:
        for message in log.read():
            entry = claim.decode(message.value() or b"")
            return entry.topic_id if isinstance(entry, claim.DatasetEntry) else None
    return None


def _waiting(config: Config, positions: Mapping[int, int]) -> dict[int, int | None]:
    """Partition → timestamp (ms) of the first record at or after the position that has one: None
    where none of the first `LOOKED_AT` has. Partitions without a record are left out."""
    topic = config.kafka.topic
    found: dict[int, int | None] = {}
    if not positions:
        return found
    # One batch a partition is mostly all that is wanted.
    small = {
        "queued.min.messages": 1,
        "fetch.message.max.bytes": 1,
        "queued.max.messages.kbytes": 1024,
    }
    consumer = new_consumer({**consumer_config(config, f"{config.group}.lag"), **small})
    try:
        consumer.assign([TopicPartition(topic, p, o) for p, o in positions.items()])
        waiting = dict.fromkeys(positions, 0)
        deadline = time.monotonic() + DEADLINE_S
        while waiting:
            message = consumer.poll(0.2)
            if message is None:
                _check_deadline(deadline, topic)
                continue
            error, partition = message.error(), message.partition()
            if error is None:
                if partition in waiting:
                    waiting[partition] += 1
                    found[partition] = timestamp_ms(message) or None
                    if found[partition] is not None or waiting[partition] >= LOOKED_AT:
                        _done(consumer, topic, partition, waiting)
            elif error.code() == KafkaError._PARTITION_EOF:
                _done(consumer, topic, partition, waiting)
            elif not error.retriable():
                raise explain(error, f"reading {topic}")
    finally:
        consumer.close()
    return found


def _done(consumer: Consumer, topic: str, partition: int, waiting: dict[int, int]) -> None:
    if waiting.pop(partition, None) is not None:
        consumer.incremental_unassign([TopicPartition(topic, partition)])


def _check_deadline(deadline: float, topic: str) -> None:
    if time.monotonic() > deadline:
        raise TemporaryError(
            f"reading {topic}: the broker did not answer within {DEADLINE_S:.0f} s. Try again."
        )
