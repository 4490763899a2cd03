"""What a dataset left behind: its folder, its logs and its input, read with plain tarfile, pyarrow,
json and a Kafka consumer.

Nothing here is the service's own code, so that a mistake of the service cannot hide itself.
`tests.faults.verdict` judges what is read.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

SILENCE_S = 60.0
POISON = "poison"
Origin = tuple[int, int]
"""(partition, offset)"""


class Produced(NamedTuple):
    """One record of the input topic."""

    sha256: str
    """Of the image, in its value or by reference."""
    text: str
    """Its first word is `POISON` if no process can decode it."""

    @property
    def is_poison(self) -> bool:
        return self.text.split(" ")[0] == POISON


class Row(NamedTuple):
    """One row of a Parquet file; ``vector`` is (d,) float16, None where nothing was embedded."""

    file: str
    facts: Mapping[str, Any]
    vector: np.ndarray | None

    @property
    def origin(self) -> Origin:
        return self.facts["partition"], self.facts["offset"]


class Member(NamedTuple):
    """One member of a tar."""

    shard: str
    key: str
    extension: str
    sha256: str


@dataclass(frozen=True)
class Evidence:
    """Everything there is to judge. Lists may hold what must not be there twice twice."""

    produced: dict[Origin, Produced]
    claims: list[bytes]
    """Values of the claim log, in order."""
    commits: list[dict[str, Any]]
    """The committed manifests, in order."""
    manifests: dict[str, dict[str, Any]]
    """Public path → manifest."""
    files: dict[str, tuple[int, str]]
    """Public path of a tar or Parquet file → bytes, sha256."""
    rows: list[Row]
    members: list[Member]
    staged: list[str]
    """Files that are left in staging."""
    committed: dict[int, int]
    """Partition → the group's committed offset."""
    expired: Mapping[int, int] = field(default_factory=dict)
    """Partition → offset; what lies below it was deleted from the topic, or was to be."""


def read_evidence(
    folder: Path,
    dataset: str,
    bootstrap: str,
    topic: str,
    earlier: Mapping[Origin, Produced] = {},
    expired: Mapping[int, int] = {},
) -> Evidence:
    """Reads the logs to their ends, and the dataset's ``folder``. ``earlier``: what `read_produced`
    found before some of it ``expired``. Blocks. Raises RuntimeError if the broker stays silent for
    60 s."""
    produced = {**earlier, **read_produced(bootstrap, topic)}
    tables = [path for path in sorted((folder / "metadata").iterdir()) if path.is_file()]
    tars = sorted((folder / "shards").rglob("*.tar"))
    return Evidence(
        produced=produced,
        claims=[message.value() for message in messages(bootstrap, f"{dataset}.claims")],
        commits=[
            json.loads(message.value()) for message in messages(bootstrap, f"{dataset}.commits")
        ],
        manifests={
            path.relative_to(folder).as_posix(): json.loads(path.read_bytes())
            for path in (folder / "manifests").iterdir()
        },
        files={path.relative_to(folder).as_posix(): _sum(path) for path in [*tables, *tars]},
        rows=[row for path in tables for row in _rows(path, path.relative_to(folder).as_posix())],
        members=[
            member
            for path in tars
            for member in _members(path, path.relative_to(folder).as_posix())
        ],
        staged=[
            str(path.relative_to(folder))
            for path in (folder / ".staging").rglob("*")
            if path.is_file()
        ],
        committed=committed(bootstrap, topic, f"streamer.{dataset}"),
        expired=expired,
    )


def read_produced(
    bootstrap: str, topic: str, partitions: Collection[int] | None = None
) -> dict[Origin, Produced]:
    """What is in the topic now, or in some of its partitions."""
    produced = {}
    for message in messages(bootstrap, topic, partitions):
        headers = dict(message.headers() or [])
        origin = message.partition(), message.offset()
        sha256 = (
            headers["sha256"].decode()
            if "uri" in headers
            else hashlib.sha256(message.value()).hexdigest()
        )
        produced[origin] = Produced(sha256, headers["text"].decode())
    return produced


def messages(
    bootstrap: str, topic: str, partitions: Collection[int] | None = None
) -> Iterator[Message]:
    """Every committed message that is in the topic, or in these of its partitions, now; each
    partition in its order."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "evidence", "enable.auto.commit": False, "enable.partition.eof": True,
                         "isolation.level": "read_committed", "log_level": 0})  # fmt: skip
    try:
        there = consumer.list_topics(topic, timeout=SILENCE_S).topics[topic].partitions
        waiting = set(there if partitions is None else partitions)
        consumer.assign(
            [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in waiting]
        )
        while waiting:
            message = consumer.poll(SILENCE_S)
            if message is None:
                raise RuntimeError(
                    f"{topic}: nothing for {SILENCE_S:.0f} s, and {waiting} not read to the end"
                )
            if message.error() is None:
                yield message
            elif message.error().code() == KafkaError._PARTITION_EOF:
                waiting.discard(message.partition())
            elif message.error().fatal():
                raise RuntimeError(f"{topic}: {message.error()}")
    finally:
        consumer.close()


def committed(bootstrap: str, topic: str, group: str) -> dict[int, int]:
    """Partition → the group's committed offset. Blocks for 60 s at most."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=SILENCE_S).topics[topic].partitions
        found = consumer.committed(
            [TopicPartition(topic, partition) for partition in partitions], timeout=SILENCE_S
        )
        return {entry.partition: entry.offset for entry in found}
    finally:
        consumer.close()


def _sum(path: Path) -> tuple[int, str]:
    return path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(path: Path, name: str) -> Iterator[Row]:
    table = pq.read_table(path)
    column = table["embedding"].combine_chunks()
    there = np.asarray(column.is_valid())
    numbers = (
        column.filter(pa.array(there)).flatten().to_numpy(zero_copy_only=False).astype(np.float16)
    )
    vectors = iter(numbers.reshape(int(there.sum()), -1)) if there.any() else iter(())
    for facts, is_there in zip(table.drop_columns("embedding").to_pylist(), there, strict=True):
        yield Row(name, facts, next(vectors) if is_there else None)


def _members(path: Path, name: str) -> Iterator[Member]:
    with tarfile.open(path) as tar:
        for entry in tar:
            key, _, extension = entry.name.partition(".")
            file = tar.extractfile(entry)
            assert file is not None, f"{name}: {entry.name} is no file"
            yield Member(name, key, extension, hashlib.sha256(file.read()).hexdigest())
