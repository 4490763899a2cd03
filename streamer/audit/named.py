"""Rows that name a winner, as arrays: removed duplicates and flagged ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamer.audit.report import Report
from streamer.audit.rows import vectors_of
from streamer.records import I64, origin_of

Named = npt.NDArray[np.void]
"""(n,) of `named_type`."""
_KEY = r"^\d{5,9}_\d{12,18}$"
_NOWHERE = np.iinfo(np.int64).max
"""An offset that no manifest has."""


def named_type(dim: int) -> np.dtype[np.void]:
    """``epoch``: whose row it is, as the audit numbers them; ``target``: that of its winner."""
    return np.dtype([
        ("epoch", "<i4"), ("partition", "<i4"), ("offset", "<i8"), ("claim", "<i8"), ("similarity", "<f8"),
        ("target", "<i4"), ("of_partition", "<i8"), ("of_offset", "<i8"), ("vector", "<f2", (dim,)),
    ])  # fmt: skip


def no_duplicates(dim: int = 0) -> Named:
    return np.zeros(0, named_type(dim))


def named_by(path: str, batch: pa.RecordBatch, report: Report) -> Named:
    """Those of a batch of the table ``path``; a name that is no key is a problem. ``claim`` is -1
    where there is none, ``similarity`` NaN."""
    rows = batch.filter(
        pc.and_(pc.is_valid(batch["duplicate_of"]), pc.is_valid(batch["embedding"]))
    )
    if not rows.num_rows:
        return no_duplicates()
    vectors = vectors_of(rows["embedding"])
    found = np.zeros(rows.num_rows, named_type(vectors.shape[1]))
    found["partition"], found["offset"] = rows["partition"].to_numpy(), rows["offset"].to_numpy()
    found["claim"] = pc.fill_null(rows["claim"], -1).to_numpy()
    found["similarity"] = pc.fill_null(rows["similarity"], float("nan")).to_numpy()
    found["vector"] = vectors
    partitions, offsets, wrong = _origins(rows["duplicate_of"])
    found["of_partition"], found["of_offset"] = partitions, offsets
    for i in np.flatnonzero(wrong):
        detail = f"{rows['duplicate_of'][i].as_py()!r} is no key"
        report.problem("duplicate_target", f"{path}#{rows['key'][i]}", detail)
    right: Named = found[~wrong]
    return right


def _origins(keys: pa.Array) -> tuple[I64, I64, Any]:
    """Partition and offset of each key, and which are none."""
    usual = pc.match_substring_regex(keys, _KEY)
    parts = pc.split_pattern(pc.if_else(usual, keys, "0_0"), "_")
    both = parts.flatten().cast(pa.int64()).to_numpy().reshape(-1, 2)
    partitions, offsets = both[:, 0].copy(), both[:, 1].copy()
    wrong = np.zeros(len(keys), bool)
    for i in np.flatnonzero(~usual.to_numpy(zero_copy_only=False)):
        try:
            partition, offset = origin_of(keys[i].as_py())
        except ValueError:
            wrong[i] = True
            continue
        partitions[i], offsets[i] = min(partition, _NOWHERE), min(offset, _NOWHERE)
    return partitions, offsets, wrong
