"""The rows of one epoch's Parquet file against its manifest, by columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamer.audit.manifests import Epoch, File
from streamer.audit.report import Report
from streamer.records import F16, I64, OUTCOMES
from streamer.units import counted

BATCH_ROWS = 8192
OF_A_SAMPLE = (
    *("key", "format", "bytes", "sha256", "text", "topic", "partition", "offset"),
    *("id", "url", "width", "height", "metadata"),
)
COLUMNS = (
    *OF_A_SAMPLE,
    *("shard", "timestamp", "outcome", "reason", "flags", "duplicate_of", "similarity", "claim"),
    *("embedding", "pipeline"),
)
DETAIL = "detail"
"""A column that files of the first builds do not have."""


class RowCheck:
    """One table. It remembers sixteen bytes of each row, for rows that come twice."""

    def __init__(self, epoch: Epoch, file: File, report: Report) -> None:
        self._epoch = epoch
        self._file = file
        self._report = report
        self._outcomes: Counter[str] = Counter()
        self._origins: list[pa.Table] = []

    def has_columns(self, table: pq.ParquetFile) -> bool:
        missing = sorted(set(COLUMNS) - set(table.schema_arrow.names))
        if missing:
            detail = f"it lacks the columns {', '.join(missing)}"
            self._report.problem("table_unreadable", self._file.path, detail)
        return not missing

    def batches(self, table: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        """Checks every row, and hands on what it has checked. Raises what Arrow raises for
        damage."""
        there = [*COLUMNS, *({DETAIL} & set(table.schema_arrow.names))]
        for batch in table.iter_batches(BATCH_ROWS, columns=there, use_threads=False):
            self._check(batch)
            self._origins.append(pa.table({"p": batch["partition"], "o": batch["offset"]}))
            yield batch
        self._total()

    def _check(self, batch: pa.RecordBatch) -> None:
        for value in pc.value_counts(batch["outcome"]).to_pylist():
            self._outcomes[value["values"]] += value["counts"]
        partitions, offsets = batch["partition"].to_numpy(), batch["offset"].to_numpy()
        for code, wrong, why in self._rules(batch, partitions, offsets):
            for i in np.flatnonzero(wrong):
                self._report.problem(code, f"{self._file.path}#{batch['key'][i]}", why)
        for partition, n in zip(*np.unique(partitions, return_counts=True), strict=True):
            self._report.rows[int(partition)] += int(n)

    def _rules(
        self, batch: pa.RecordBatch, partitions: I64, offsets: I64
    ) -> list[tuple[str, Any, str]]:
        """(code, which rows are wrong, why)"""
        epoch = self._epoch
        outcome = batch["outcome"]
        accepted = _bools(pc.equal(outcome, "accepted"))
        duplicate = _bools(pc.equal(outcome, "duplicate"))
        has = {name: _bools(pc.is_valid(batch[name])) for name in batch.schema.names}
        inside = np.zeros(batch.num_rows, bool)
        for partition, (first, end) in epoch.ranges.items():
            inside |= (partitions == partition) & (offsets >= first) & (offsets < end)
        for partition, ranges in epoch.skipped.items():
            for first, end in ranges:
                inside &= ~((partitions == partition) & (offsets >= first) & (offsets < end))
        return [
            ("row_outside_range", ~inside, "its offset is not in its manifest's ranges"),
            (
                "row_invalid",
                ~_bools(pc.equal(batch["key"], _keys(batch))),
                "the key is not PARTITION_OFFSET",
            ),
            (
                "row_invalid",
                ~_bools(pc.is_in(outcome, pa.array(OUTCOMES))),
                "the outcome is none of the four",
            ),
            (
                "row_invalid",
                has["reason"] == accepted,
                "a reason where it is accepted, or none where it is not",
            ),
            (
                "row_invalid",
                has.get(DETAIL, False) & ~_bools(pc.equal(outcome, "invalid")),
                "a detail where it is not invalid",
            ),
            (
                "row_invalid",
                has["shard"] != accepted,
                "a shard where it is not accepted, or none where it is",
            ),
            (
                "row_invalid",
                accepted & ~(has["embedding"] & has["sha256"] & has["format"]),
                "accepted without embedding, sha256 or format",
            ),
            (
                "row_invalid",
                duplicate & ~(has["duplicate_of"] & has["embedding"]),
                "a duplicate without duplicate_of or embedding",
            ),
            (
                "row_invalid",
                has["duplicate_of"] & ~accepted & ~duplicate,
                "duplicate_of where it is neither accepted nor a duplicate",
            ),
            (
                "row_invalid",
                has["duplicate_of"] != has["similarity"],
                "duplicate_of without similarity, or the other way round",
            ),
        ]

    def _total(self) -> None:
        report, file, epoch = self._report, self._file, self._epoch
        total = sum(self._outcomes.values())
        report.records += total
        report.outcomes.update(self._outcomes)
        if total != file.rows:
            report.problem(
                "rows_mismatch", file.path, f"{counted(total, 'row')}, {file.rows} in {epoch.path}"
            )
        stated = {k: n for k, n in epoch.counts.items() if n}
        if stated != {k: n for k, n in self._outcomes.items() if n}:
            detail = f"{dict(self._outcomes)} in the rows, {stated} in {epoch.path}"
            report.problem("counts_mismatch", file.path, detail)
        if self._origins:
            origins = pa.concat_tables(self._origins).group_by(["p", "o"], use_threads=False)
            counts = origins.aggregate([([], "count_all")])
            for origin in counts.filter(pc.greater(counts["count_all"], 1)).to_pylist():
                report.problem(
                    "row_twice",
                    file.path,
                    f"partition {origin['p']}, offset {origin['o']}: {origin['count_all']} rows",
                )


def _keys(batch: pa.RecordBatch) -> pa.Array:
    """What the keys must be: ``PPPPP_OOOOOOOOOOOO``."""
    text = pa.string()
    partition = pc.utf8_lpad(batch["partition"].cast(text), 5, "0")
    offset = pc.utf8_lpad(batch["offset"].cast(text), 12, "0")
    return pc.binary_join_element_wise(partition, offset, "_")


def vectors_of(column: pa.Array) -> F16:
    """A column of lists of one length, without nulls → (n, d) float16."""
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float16)
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)


def _bools(column: pa.Array) -> Any:
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)
