"""The rows of one epoch's Parquet file against its manifest."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamer.audit.manifests import Epoch, File
from streamer.audit.report import Report
from streamer.audit.table import Damaged, open_table
from streamer.records import F16, I64, OUTCOMES
from streamer.sink.folder import Folder
from streamer.units import counted

BATCH_ROWS = 8192
_OF_A_SAMPLE = (
    *("key", "format", "bytes", "sha256", "text", "topic", "partition", "offset"),
    *("id", "url", "width", "height", "metadata"),
)
COLUMNS = (
    *_OF_A_SAMPLE,
    *("shard", "timestamp", "outcome", "reason", "flags", "duplicate_of", "similarity", "claim"),
    *("embedding", "pipeline"),
)
DETAIL = "detail"
"""A column that files of the first builds do not have."""
_BINDING = ("dataset", "topic", "dim", "threshold")


class Duplicates(NamedTuple):
    """Rows that name a winner. n rows, d dimensions."""

    keys: list[str]
    of: list[str]
    similarity: list[float]
    claims: I64
    """-1: none."""
    vectors: F16
    """(n, d)"""


@dataclass(slots=True)
class Rows:
    """What one epoch's table says; no embeddings but those of ``duplicates``."""

    samples: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    """Shard path → key → what its sample must hold."""
    duplicates: list[Duplicates] = field(default_factory=list)
    claims: list[I64] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    winners: list[tuple[list[str], F16]] = field(default_factory=list)
    """Keys and vectors of accepted records that are no flagged duplicates; filled only where asked
    for."""


class RowAudit:
    """Reads tables one after another; remembers what all of them must agree on."""

    def __init__(
        self, folder: Folder, report: Report, keep_winners: bool, advance: Callable[[int], None]
    ) -> None:
        self.threshold: float | None = None
        """τ as the files say; None: no deduplication."""
        self.certified = True
        """Was every file written under a search that misses nothing?"""
        self._folder = folder
        self._report = report
        self._keep_winners = keep_winners
        self._advance = advance
        self._binding: dict[str, str | None] = {}

    def read(self, epoch: Epoch, file: File) -> Rows:
        """Raises DependencyError if the storage refuses."""
        rows = Rows()
        check_sum(self._folder, file, self._report, self._advance)
        try:
            with open_table(self._folder, file.path) as table:
                if missing := sorted(set(COLUMNS) - set(table.schema_arrow.names)):
                    self._report.problem(
                        "table_unreadable", file.path, f"it lacks the columns {', '.join(missing)}"
                    )
                    return rows
                self._bind(file.path, table.schema_arrow.metadata or {})
                seen: list[pa.Table] = []
                there = [*COLUMNS, *({DETAIL} & set(table.schema_arrow.names))]
                for batch in table.iter_batches(BATCH_ROWS, columns=there):
                    self._check(epoch, file.path, batch, rows)
                    seen.append(pa.table({"p": batch["partition"], "o": batch["offset"]}))
        except Damaged as error:
            self._report.problem("table_unreadable", file.path, str(error))
            return rows
        self._total(epoch, file, rows, seen)
        return rows

    def _bind(self, path: str, metadata: dict[bytes, bytes]) -> None:
        for name in _BINDING:
            value = metadata.get(f"streamer.{name}".encode(), b"").decode()
            if self._binding.setdefault(name, value) != value:
                self._report.problem(
                    "binding",
                    path,
                    f"{name} is {value!r}, in the files before {self._binding[name]!r}",
                )
        self.certified = (
            self.certified and metadata.get(b"streamer.search", b"certified") == b"certified"
        )
        threshold = self._binding["threshold"]
        try:
            self.threshold = None if threshold == "off" else float(threshold or "nan")
        except ValueError:
            self._report.problem("binding", path, f"threshold is {threshold!r}")

    def _check(self, epoch: Epoch, path: str, batch: pa.RecordBatch, rows: Rows) -> None:
        rows.outcomes.update(batch["outcome"].to_pylist())
        partitions, offsets = batch["partition"].to_numpy(), batch["offset"].to_numpy()
        for code, wrong, why in self._rules(epoch, batch, partitions, offsets):
            for i in np.flatnonzero(wrong):
                self._report.problem(code, f"{path}#{batch['key'][i]}", why)
        for partition, n in zip(*np.unique(partitions, return_counts=True), strict=True):
            self._report.rows[int(partition)] += int(n)
        accepted = batch.filter(pc.equal(batch["outcome"], "accepted"))
        for sample in accepted.select([*_OF_A_SAMPLE, "shard"]).to_pylist():
            rows.samples[sample["shard"]][sample["key"]] = sample
        if self._keep_winners:
            flagged = [("near_duplicate" in flags) for flags in accepted["flags"].to_pylist()]
            winners = accepted.filter(pa.array([not f for f in flagged], pa.bool_()))
            rows.winners.append((winners["key"].to_pylist(), vectors_of(winners["embedding"])))
        named = batch.filter(
            pc.and_(pc.is_valid(batch["duplicate_of"]), pc.is_valid(batch["embedding"]))
        )
        if named.num_rows:
            claims = pc.fill_null(named["claim"], -1).to_numpy()
            similarity = pc.fill_null(named["similarity"], float("nan")).to_pylist()
            rows.duplicates.append(
                Duplicates(
                    named["key"].to_pylist(),
                    named["duplicate_of"].to_pylist(),
                    similarity,
                    claims,
                    vectors_of(named["embedding"]),
                )
            )
        rows.claims.append(batch["claim"].drop_null().to_numpy())

    def _rules(
        self, epoch: Epoch, batch: pa.RecordBatch, partitions: I64, offsets: I64
    ) -> list[tuple[str, Any, str]]:
        """(code, which rows are wrong, why)"""
        outcome = batch["outcome"]
        accepted = _bools(pc.equal(outcome, "accepted"))
        duplicate = _bools(pc.equal(outcome, "duplicate"))
        has = {name: _bools(pc.is_valid(batch[name])) for name in batch.schema.names}
        keys = [
            f"{p:05d}_{o:012d}" for p, o in zip(partitions.tolist(), offsets.tolist(), strict=True)
        ]
        inside = np.zeros(len(keys), bool)
        for partition, (first, end) in epoch.ranges.items():
            inside |= (partitions == partition) & (offsets >= first) & (offsets < end)
        for partition, ranges in epoch.skipped.items():
            for first, end in ranges:
                inside &= ~((partitions == partition) & (offsets >= first) & (offsets < end))
        return [
            ("row_outside_range", ~inside, "its offset is not in its manifest's ranges"),
            (
                "row_invalid",
                ~_bools(pc.equal(batch["key"], pa.array(keys, pa.string()))),
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

    def _total(self, epoch: Epoch, file: File, rows: Rows, seen: list[pa.Table]) -> None:
        total = sum(rows.outcomes.values())
        self._report.records += total
        self._report.outcomes.update(rows.outcomes)
        if total != file.rows:
            self._report.problem(
                "rows_mismatch", file.path, f"{counted(total, 'row')}, {file.rows} in {epoch.path}"
            )
        stated = {k: n for k, n in epoch.counts.items() if n}
        if stated != {k: n for k, n in rows.outcomes.items() if n}:
            self._report.problem(
                "counts_mismatch",
                file.path,
                f"{dict(rows.outcomes)} in the rows, {stated} in {epoch.path}",
            )
        if seen:
            origins = pa.concat_tables(seen).group_by(["p", "o"]).aggregate([([], "count_all")])
            for origin in origins.filter(pc.greater(origins["count_all"], 1)).to_pylist():
                self._report.problem(
                    "row_twice",
                    file.path,
                    f"partition {origin['p']}, offset {origin['o']}: {origin['count_all']} rows",
                )


def vectors_of(column: pa.Array) -> F16:
    """A column of lists of one length, without nulls → (n, d) float16."""
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float16)
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)


def _bools(column: pa.Array) -> Any:
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def check_sum(folder: Folder, file: File, report: Report, advance: Callable[[int], None]) -> None:
    """Reads the file once for its sha256."""
    digest = hashlib.sha256()
    with folder.explained("read", file.path), folder.open(file.path) as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != file.sha256:
        report.problem(
            "file_checksum",
            file.path,
            f"its sha256 is {digest.hexdigest()}, {file.sha256} in its manifest",
        )
