"""One Parquet row for every record, whatever its outcome: columns from batches,
written in bounded row groups."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamer.records import DecidedBatch, key_of
from streamer.sink.folder import NewFile
from streamer.wire.manifest import FileEntry

TABLE_VERSION = 1
GROUP_ROWS = 16_384
GROUP_BYTES = 64_000_000
"""A row group is written when it holds so many rows or bytes: that much memory, and no more, waits
for a seal."""

FIXED_SIZE = int(pa.__version__.partition(".")[0]) >= 26
"""``embedding`` is a fixed_size_list, some of it null. Older pyarrow cannot read that back; there
it is a plain list of the same numbers."""

_REPEATING = [
    "shard",
    "topic",
    "partition",
    "format",
    "outcome",
    "reason",
    "flags.list.element",
    "pipeline",
]
_SEARCHED = ["partition", "offset", "timestamp", "outcome", "reason", "claim"]


def table_schema(dim: int, score_names: Sequence[str], facts: Mapping[str, Any]) -> pa.Schema:
    """The columns of the contract. ``facts`` become schema metadata, each as ``streamer.NAME``;
    what is no string is written as JSON."""
    text, number = pa.string(), pa.int64()
    columns = [
        ("key", text, False),
        ("shard", text, True),
        ("topic", text, False),
        ("partition", pa.int32(), False),
        ("offset", number, False),
        ("timestamp", pa.timestamp("ms", "UTC"), True),
        *((name, text, True) for name in ("id", "text", "url", "format")),
        *((name, pa.int32(), True) for name in ("width", "height")),
        ("bytes", number, True),
        ("sha256", text, True),
        ("outcome", text, False),
        ("reason", text, True),
        ("detail", text, True),
        ("flags", pa.list_(text), False),
        ("duplicate_of", text, True),
        ("similarity", pa.float64(), True),
        ("claim", number, True),
        ("embedding", embedding_type(dim), True),
        *((f"{name}_score", pa.float32(), True) for name in score_names),
        ("metadata", text, True),
        ("pipeline", text, False),
    ]
    known = {"table": TABLE_VERSION, "dim": dim, **facts}
    metadata = {
        f"streamer.{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True)
        for k, v in known.items()
    }
    return pa.schema(
        [pa.field(name, kind, nullable=null) for name, kind, null in columns], metadata
    )


def embedding_type(dim: int) -> pa.DataType:
    return pa.list_(pa.float16(), dim) if FIXED_SIZE else pa.list_(pa.float16())


def _in_parts(batch: DecidedBatch, metadata: Sequence[str | None]) -> Iterator[slice]:
    """The rows of a batch in parts whose texts have `GROUP_BYTES` or little more: Arrow's columns of
    text end at 2 GiB."""
    begin = characters = 0
    for i, (facts, more) in enumerate(zip(batch.facts, metadata, strict=True)):
        characters += len(facts.id or "") + len(facts.text or "") + len(facts.url or "")
        characters += len(more or "")
        if characters >= GROUP_BYTES:
            yield slice(begin, i + 1)
            begin, characters = i + 1, 0
    if begin < len(batch.facts):
        yield slice(begin, len(batch.facts))


def _part(batch: DecidedBatch, some: slice) -> DecidedBatch:
    return DecidedBatch(
        batch.records[some], batch.facts[some], batch.decisions[some], batch.embeddings[some],
        batch.embedded[some], {name: column[some] for name, column in batch.scores.items()},
    )  # fmt: skip


class TableWriter:
    """The Parquet file of one epoch, made with its first row. ``create``: public path → new file.

    Writer thread only; methods block for I/O and raise DependencyError.
    """

    def __init__(
        self,
        create: Callable[[str], NewFile],
        path: str,
        schema: pa.Schema,
        dim: int,
        topic: str,
        pipeline: str,
    ) -> None:
        self.rows = 0
        self.nbytes = 0
        """Bytes of the columns so far, before compression."""
        self._create = create
        self._path = path
        self._schema = schema
        self._topic = topic
        self._pipeline = pipeline
        self._dim = dim
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._open: tuple[NewFile, pq.ParquetWriter] | None = None

    def append(
        self, batch: DecidedBatch, shards: Sequence[str | None], metadata: Sequence[str | None]
    ) -> None:
        """One row per record, in order; the arrays of ``batch`` are kept until the row group is
        written and must not change."""
        for some in _in_parts(batch, metadata):
            rows = self._columns(_part(batch, some), shards[some], metadata[some])
            self.rows += rows.num_rows
            self.nbytes += rows.nbytes
            self._waiting.append(rows)
            self._waiting_rows += rows.num_rows
            self._waiting_bytes += rows.nbytes
            if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
                self._flush()

    def close(self) -> FileEntry | None:
        """Makes the file complete and durable. None: there was no row, and there is no file."""
        if self._waiting:
            self._flush()
        if self._open is None:
            return None
        file, writer = self._open
        writer.close()
        file.close()
        return FileEntry(self._path, file.nbytes, file.sha256, self.rows)

    def abandon(self) -> None:
        """Gives up the file. Does not raise."""
        self._waiting.clear()
        if self._open is not None:
            file, writer = self._open
            file.abandon()
            writer.is_open = False  # else it would write its footer when it is collected

    def _flush(self) -> None:
        if self._open is None:
            file = self._create(self._path)
            options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
            self._open = file, pq.ParquetWriter(
                file, self._schema, use_dictionary=_REPEATING, write_statistics=_SEARCHED, **options
            )  # fmt: skip
        group = pa.Table.from_batches(self._waiting, self._schema)
        self._open[1].write_table(group, row_group_size=group.num_rows)
        self._waiting.clear()
        self._waiting_rows = self._waiting_bytes = 0

    def _columns(
        self, batch: DecidedBatch, shards: Sequence[str | None], metadata: Sequence[str | None]
    ) -> pa.RecordBatch:
        records, facts, decisions, n = (
            batch.records,
            batch.facts,
            batch.decisions,
            len(batch.records),
        )
        text, number = pa.string(), pa.int64()
        times = np.array([r.timestamp_ms for r in records], np.int64)
        columns: list[pa.Array] = [
            pa.array([key_of(r.partition, r.offset) for r in records], text),
            pa.array(shards, text),
            pa.repeat(pa.scalar(self._topic, text), n),
            pa.array([r.partition for r in records], pa.int32()),
            pa.array([r.offset for r in records], number),
            pa.array(times, pa.timestamp("ms", "UTC"), mask=times <= 0),
            pa.array([f.id or None for f in facts], text),
            pa.array([f.text or None for f in facts], text),
            pa.array([f.url or None for f in facts], text),
            pa.array([f.format for f in facts], text),
            pa.array([f.width for f in facts], pa.int32()),
            pa.array([f.height for f in facts], pa.int32()),
            pa.array([None if f.data is None else len(f.data) for f in facts], number),
            pa.array([f.sha256 for f in facts], text),
            pa.array([d.outcome for d in decisions], text),
            pa.array([d.reason for d in decisions], text),
            pa.array(
                [d.detail or None if d.outcome == "invalid" else None for d in decisions], text
            ),
            pa.array([d.flags for d in decisions], pa.list_(text)),
            pa.array(
                [None if d.duplicate_of is None else key_of(*d.duplicate_of) for d in decisions],
                text,
            ),
            pa.array([d.similarity for d in decisions], pa.float64()),
            pa.array([d.claim for d in decisions], number),
            self._embeddings(batch),
        ]
        for column in batch.scores.values():
            columns.append(pa.array(column, pa.float32(), mask=np.isnan(column)))
        columns.append(pa.array(metadata, text))
        columns.append(pa.repeat(pa.scalar(self._pipeline, text), n))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _embeddings(self, batch: DecidedBatch) -> pa.Array:
        assert batch.embeddings.shape == (len(batch.records), self._dim), (
            f"this is a bug: embeddings are {batch.embeddings.shape}"
        )
        if FIXED_SIZE:
            values = pa.array(np.ascontiguousarray(batch.embeddings, np.float16).reshape(-1))
            return pa.FixedSizeListArray.from_arrays(
                values, self._dim, mask=pa.array(~batch.embedded)
            )
        values = pa.array(batch.embeddings[batch.embedded].astype(np.float16).reshape(-1))
        ends = np.concatenate([[0], np.cumsum(batch.embedded)]) * self._dim
        return pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), values, mask=pa.array(~batch.embedded)
        )
