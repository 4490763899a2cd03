"""Every duplicate against the record that it names, and every pair of winners against the
threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamer.audit.manifests import Epoch
from streamer.audit.report import Report
from streamer.audit.rows import Duplicates, vectors_of
from streamer.audit.table import Damaged, open_table
from streamer.audit.tiles import Tiles
from streamer.records import F16, origin_of
from streamer.sink.folder import Folder

PENDING_BYTES = 256_000_000
"""Vectors of duplicates kept in memory before the files of their winners are read."""
_TARGET = ["partition", "offset", "outcome", "reason", "flags", "claim", "embedding"]


class _Pending(NamedTuple):
    where: str
    of: str
    similarity: float
    claim: int
    vector: F16


class DuplicateAudit:
    """Gathers duplicates by the file of the winner that they name, and reads each such file once in
    a while."""

    def __init__(self, folder: Folder, tiles: Tiles, readable: set[str], report: Report) -> None:
        self._folder = folder
        self._tiles = tiles
        self._readable = readable
        self._report = report
        self._pending: dict[str, dict[tuple[int, int], list[_Pending]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._bytes = 0
        self._unfound: list[_Pending] = []
        """Their winners' epochs are not public so far; some may be when all is read."""

    def add(self, path: str, duplicates: Duplicates, threshold: float | None) -> None:
        for i, key in enumerate(duplicates.keys):
            pending = _Pending(
                f"{path}#{key}", duplicates.of[i], duplicates.similarity[i], int(duplicates.claims[i]), duplicates.vectors[i].copy()
            )  # fmt: skip
            if threshold is not None and not pending.similarity >= threshold:
                self._report.problem(
                    "similarity",
                    pending.where,
                    f"{pending.similarity!r} is below the threshold {threshold!r}",
                )
            if not self._file(pending):
                self._unfound.append(pending)
        if self._bytes >= PENDING_BYTES:
            self.flush()

    def finish(self) -> None:
        """After the last `add`, when every epoch is known."""
        for pending in [p for p in self._unfound if not self._file(p)]:
            what = f"names {pending.of}, whose offset is in no manifest"
            if self._tiles.may_come(*origin_of(pending.of)):
                self._report.note("target_pending", pending.where, f"{what} yet")
            else:
                self._report.problem("duplicate_target", pending.where, what)
        self.flush()

    def _file(self, pending: _Pending) -> bool:
        """Puts it to the file that must hold its winner. False: no epoch has that offset."""
        try:
            origin = origin_of(pending.of)
        except ValueError:
            self._report.problem("duplicate_target", pending.where, f"{pending.of!r} is no key")
            return True
        epoch = self._tiles.find(*origin)
        if epoch is None:
            return False
        if _is_skipped(epoch, *origin):
            self._report.note(
                "withdrawn_target", pending.where, f"names {pending.of}, which was skipped"
            )
        else:
            path = next((t.path for t in epoch.tables if t.path in self._readable), None)
            if path is None:
                self._report.problem(
                    "duplicate_target",
                    pending.where,
                    f"names {pending.of}, but {epoch.path} has no table to read",
                )
            else:
                self._pending[path][origin].append(pending)
                self._bytes += pending.vector.nbytes
        return True

    def flush(self) -> None:
        """Reads the winners' files and compares. Raises DependencyError if the storage refuses."""
        for path, wanted in self._pending.items():
            try:
                with open_table(self._folder, path) as table:
                    self._compare(table, wanted)
            except Damaged as error:  # reported as table_unreadable where its rows are read
                missing = next(iter(wanted.values()))[0]
                self._report.problem(
                    "duplicate_target",
                    missing.where,
                    f"the file of its winner cannot be read: {error}",
                )
                continue
            for pendings in wanted.values():
                for pending in pendings:
                    self._report.problem(
                        "duplicate_target", pending.where, f"names {pending.of}, which has no row"
                    )
        self._pending.clear()
        self._bytes = 0

    def _compare(
        self, table: pq.ParquetFile, wanted: dict[tuple[int, int], list[_Pending]]
    ) -> None:
        """Takes what it finds out of ``wanted``."""
        offsets = pa.array(sorted({offset for _, offset in wanted}), pa.int64())
        for group in range(table.num_row_groups):
            hits = pc.is_in(table.read_row_group(group, columns=["offset"])["offset"], offsets)
            if not pc.any(hits).as_py():
                continue  # the embeddings are most of the file
            for row in table.read_row_group(group, columns=_TARGET).filter(hits).to_batches():
                vectors = row["embedding"]
                for i, (partition, offset) in enumerate(
                    zip(row["partition"].to_pylist(), row["offset"].to_pylist(), strict=True)
                ):
                    for pending in wanted.pop((partition, offset), ()):
                        self._judge(
                            pending,
                            {name: row[name][i].as_py() for name in _TARGET[2:-1]},
                            vectors.slice(i, 1),
                        )

    def _judge(self, pending: _Pending, winner: dict[str, object], vector: pa.Array) -> None:
        claim, flags = winner["claim"], winner["flags"]
        if winner["outcome"] == "invalid" and winner["reason"] == "withdrawn":
            self._report.note("withdrawn_target", pending.where, f"names {pending.of}")
        elif winner["outcome"] != "accepted":
            self._report.problem(
                "duplicate_target",
                pending.where,
                f"names {pending.of}, which is {winner['outcome']}",
            )
            return
        elif isinstance(flags, list) and "near_duplicate" in flags:
            self._report.problem(
                "duplicate_target",
                pending.where,
                f"names {pending.of}, which is itself a flagged duplicate",
            )
            return
        if pending.claim >= 0 and isinstance(claim, int) and claim >= pending.claim:
            self._report.problem(
                "duplicate_target",
                pending.where,
                f"claimed at {pending.claim}, before {pending.of} at {claim}",
            )
        if vector.null_count == 0:
            # Every product of two fp16 numbers, and every sum of those of unit vectors, is exact in
            # float64: any order gives these bits.
            similarity = float(
                np.dot(pending.vector.astype(np.float64), vectors_of(vector)[0].astype(np.float64))
            )
            if similarity != pending.similarity:
                self._report.problem(
                    "similarity",
                    pending.where,
                    f"{pending.similarity!r}, but the embeddings give {similarity!r}",
                )


def _is_skipped(epoch: Epoch, partition: int, offset: int) -> bool:
    return any(first <= offset < end for first, end in epoch.skipped.get(partition, []))


def check_pairs(
    keys: list[str],
    vectors: F16,
    threshold: float,
    certified: bool,
    report: Report,
    advance: Callable[[int], None],
    block: int = 2048,
) -> None:
    """Brute force over all winners: O(n²) time, n · d · 6 bytes. Nominates in float32, decides in
    float64 on the fp16 vectors.

    ``certified``: a pair is a problem; else it is what the user's settings may leave, and a note.
    """
    wide = vectors.astype(np.float32)
    n = len(keys)
    for top in range(0, n, block):
        for left in range(0, top + 1, block):
            near = np.argwhere(
                wide[top : top + block] @ wide[left : left + block].T >= threshold - 1e-4
            )
            for i, j in near:
                a, b = top + i, left + j
                if b < a:
                    similarity = float(
                        np.dot(vectors[a].astype(np.float64), vectors[b].astype(np.float64))
                    )
                    if similarity >= threshold:
                        detail = f"and {keys[b]} are both accepted, with similarity {similarity!r}"
                        if certified:
                            report.problem("pair", keys[a], detail)
                        else:
                            report.note("pair_missed", keys[a], detail)
        advance(min(block, n - top))
