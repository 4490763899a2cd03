"""What is in a dataset: counts, bytes and score quantiles, from manifests and Parquet columns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamer.audit.manifests import new_manifests, order, read_manifests
from streamer.audit.report import Report
from streamer.audit.table import Damaged, open_table
from streamer.errors import DependencyError
from streamer.records import F32
from streamer.sink.location import open_folder

QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
KEPT_SCORES = 1_000_000
"""Scores of one head up to here give exact quantiles; above it a seeded sample of them does
(minimum and maximum stay exact)."""
_SUFFIX = "_score"


@dataclass(slots=True)
class _Scores:
    """A head's scores: all of them, or a uniform sample."""

    count: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    kept: list[F32] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def add(self, values: F32, rng: np.random.Generator) -> None:
        if not values.size:
            return
        self.count += values.size
        self.low, self.high = (
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )
        self.kept.append(values)
        self.weights.append(rng.random(values.size))
        if sum(v.size for v in self.kept) > 2 * KEPT_SCORES:
            self._thin()

    def _thin(self) -> None:
        """Keeps the scores with the lowest random weights: a uniform sample of all that came."""
        values, weights = np.concatenate(self.kept), np.concatenate(self.weights)
        lowest = np.argpartition(weights, KEPT_SCORES)[:KEPT_SCORES]
        self.kept, self.weights = [values[lowest]], [weights[lowest]]

    def quantiles(self) -> dict[str, float]:
        if not self.count:
            return {}
        found = np.quantile(np.concatenate(self.kept).astype(np.float64), QUANTILES)
        found[0], found[-1] = self.low, self.high
        return {f"{q:g}": round(float(v), 6) for q, v in zip(QUANTILES, found, strict=True)}


@dataclass(slots=True)
class Statistics:
    epochs: int = 0
    records: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    """Accepted samples by format."""
    image_bytes: int = 0
    """Of accepted samples."""
    shard_bytes: int = 0
    table_bytes: int = 0
    shards: int = 0
    writers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    partitions: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    scores: dict[str, _Scores] = field(default_factory=lambda: defaultdict(_Scores))

    def as_json(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs, "records": self.records, "outcomes": dict(self.outcomes), "reasons": dict(self.reasons.most_common()),
            "flags": dict(self.flags.most_common()), "formats": dict(self.formats.most_common()), "image_bytes": self.image_bytes,
            "shard_bytes": self.shard_bytes, "table_bytes": self.table_bytes, "shards": self.shards,
            "writers": {w: dict(c) for w, c in sorted(self.writers.items())},
            "partitions": {str(p): dict(c) for p, c in sorted(self.partitions.items())},
            "scores": {n: {"count": s.count, "quantiles": s.quantiles()} for n, s in sorted(self.scores.items())},
        }  # fmt: skip


def statistics(
    path: str, advance: Callable[[int, int], None] = lambda done, total: None
) -> Statistics:
    """Reads all columns but the embeddings. ``advance(tables read, tables)``. Raises ConfigError or
    DependencyError."""
    folder, unreadable = open_folder(path), Report()
    paths = new_manifests(folder, set())
    epochs = sorted(read_manifests(folder, unreadable, paths), key=order)
    if unreadable.problems:
        first = unreadable.problems[0]
        raise DependencyError(f"{folder.place(first.path)}: {first.code}: {first.detail}")
    if not epochs:
        raise DependencyError(f"{folder.uri} has no manifest; is it the folder OUTPUT/DATASET?")
    found, rng = Statistics(epochs=len(epochs)), np.random.default_rng(0)
    tables = [(epoch, file) for epoch in epochs for file in epoch.tables]
    for epoch in epochs:
        found.shards += len(epoch.tars)
        found.shard_bytes += sum(f.bytes for f in epoch.tars)
        found.table_bytes += sum(f.bytes for f in epoch.tables)
    for done, (epoch, file) in enumerate(tables, start=1):
        try:
            with open_table(folder, file.path) as table:
                scored = [n for n in table.schema_arrow.names if n.endswith(_SUFFIX)]
                columns = ["outcome", "reason", "flags", "format", "bytes", "partition", *scored]
                for batch in table.iter_batches(columns=columns):
                    _count(found, epoch.writer, batch, scored, rng)
        except (Damaged, FileNotFoundError) as error:
            raise DependencyError(
                f"cannot read {folder.place(file.path)}: {error}. Run `streamer dataset verify`."
            ) from error
        advance(done, len(tables))
    return found


def _count(
    found: Statistics,
    writer: str,
    batch: pa.RecordBatch,
    scored: list[str],
    rng: np.random.Generator,
) -> None:
    outcomes = _values(batch["outcome"])
    found.records += batch.num_rows
    found.outcomes += outcomes
    found.writers[writer] += outcomes
    found.reasons += _values(batch["reason"])
    found.flags += _values(batch["flags"].flatten())
    for partition in pc.unique(batch["partition"]).to_pylist():
        found.partitions[partition] += _values(
            batch["outcome"].filter(pc.equal(batch["partition"], partition))
        )
    accepted = batch.filter(pc.equal(batch["outcome"], "accepted"))
    found.formats += _values(accepted["format"])
    found.image_bytes += pc.sum(accepted["bytes"]).as_py() or 0
    for name in scored:
        found.scores[name.removesuffix(_SUFFIX)].add(batch[name].drop_null().to_numpy(), rng)


def _values(column: pa.Array) -> Counter[str]:
    return Counter(
        {c["values"]: c["counts"] for c in pc.value_counts(column.drop_null()).to_pylist()}
    )
