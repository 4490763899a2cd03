"""Every duplicate against the record that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamer.audit.manifests import Epoch
from streamer.audit.named import Named
from streamer.audit.report import Report
from streamer.audit.rows import vectors_of
from streamer.audit.spill import Spill
from streamer.audit.table import Damaged, open_table
from streamer.audit.tiles import Tiles
from streamer.records import F64, I64, NEAR_DUPLICATE, Bools, key_of
from streamer.sink.folder import Folder

MEMORY_BYTES = 32_000_000
ROUND_BYTES = 8_000_000_000
"""Duplicates that wait, in memory and in temporary files, before their winners are read: each round
reads the table of every winner's epoch once, and what it proves is remembered."""
BUCKETS = 2048
"""Files that they wait in, by the epoch of the winner."""
BLOCK = 2048
"""Vectors that are multiplied at a time."""
_TARGET = ["partition", "offset", "outcome", "reason", "flags", "claim", "embedding"]


@dataclass(slots=True)
class Compared:
    report: Report = field(default_factory=Report)
    found_in: set[int] = field(default_factory=set)
    """Numbers of the epochs whose duplicates are in ``report``."""


class Filing:
    """Puts duplicates to the epochs of their winners. One thread; a context manager."""

    def __init__(self, tiles: Tiles, tables: Mapping[int, str], report: Report) -> None:
        """``tables``: the path of each epoch's table, of those that have one to read, by the
        numbers that ``tiles`` has; may grow."""
        self.found_in: set[int] = set()
        """Epochs among whose duplicates something was found."""
        self._pending: list[int] = []
        """Epochs whose duplicates wait to be compared."""
        self._unfound_in: set[int] = set()
        self._dtype: np.dtype[np.void] | None = None
        self._tiles = tiles
        self._tables = tables
        self._report = report
        self._spill = Spill(MEMORY_BYTES)
        self._unfound = Spill(MEMORY_BYTES)
        """Their winners' epochs are not public so far; some may be when all is read."""

    def __enter__(self) -> Filing:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.__exit__()
        self._unfound.__exit__()

    @property
    def is_due(self) -> bool:
        return self._spill.nbytes >= ROUND_BYTES

    def add(self, number: int, named: Named, threshold: float | None) -> None:
        """The duplicates of the epoch ``number``, which may be changed."""
        self._pending.append(number)
        if not len(named):
            return
        named["epoch"] = number
        self._dtype = self._dtype or named.dtype
        if named.dtype != self._dtype:
            detail = (
                f"vectors of {_dim(named.dtype)} numbers, {_dim(self._dtype)} in the files before"
            )
            self._problem("similarity", named[0], detail)
            return
        if threshold is not None:
            for one in named[~(named["similarity"] >= threshold)]:
                detail = f"{float(one['similarity'])!r} is below the threshold {threshold!r}"
                self._problem("similarity", one, detail)
        self._file(named)

    def tasks(self) -> Iterator[Compare]:
        """What waits, by winner's epoch."""
        for _, named in self._spill.take():
            targets, sources = (
                {number: self._tables[number] for number in np.unique(named[field]).tolist()}
                for field in ("target", "epoch")
            )
            yield Compare(named, targets, sources)

    def settled(self) -> list[int]:
        """After `tasks`: the epochs whose duplicates are all compared, and right."""
        right = [n for n in self._pending if n not in self.found_in and n not in self._unfound_in]
        self._pending = [n for n in self._pending if n in self._unfound_in]
        return right

    def finish(self) -> None:
        """When every epoch is known, and before the last `tasks`."""
        self._unfound_in.clear()
        for _, named in self._unfound.take():
            self._file(named, is_last=True)

    def _file(self, named: Named, is_last: bool = False) -> None:
        targets = self._tiles.find(named["of_partition"], named["of_offset"])
        nowhere = targets < 0
        if is_last:
            for one in named[nowhere]:
                self._report_unfound(one)
        else:
            self._unfound_in.update(named["epoch"][nowhere].tolist())
            self._unfound.add(named["offset"][nowhere] % BUCKETS, named[nowhere])
        named, targets = named[~nowhere], targets[~nowhere]
        named["target"] = targets
        there = np.ones(len(named), bool)
        for number in np.unique(targets).tolist():
            epoch = self._tiles.epochs[number]
            here = targets == number
            if epoch.skipped:
                skipped = here & _is_skipped(epoch, named)
                here, there = here & ~skipped, there & ~skipped
                for one in named[skipped]:
                    detail = f"names {_winner(one)}, which was skipped"
                    self._note("withdrawn_target", one, detail)
            if number not in self._tables:  # one of nothing but skipped offsets has none
                there &= ~here
                for one in named[here]:
                    detail = f"names {_winner(one)}, but {epoch.path} has no table to read"
                    self._problem("duplicate_target", one, detail)
        self._spill.add(targets[there] % BUCKETS, named[there])

    def _report_unfound(self, one: np.void) -> None:
        what = f"names {_winner(one)}, whose offset is in no manifest"
        if self._tiles.may_come(int(one["of_partition"]), int(one["of_offset"])):
            self._note("target_pending", one, f"{what} yet")
        else:
            self._problem("duplicate_target", one, what)

    def _problem(self, code: str, one: np.void, detail: str) -> None:
        self.found_in.add(int(one["epoch"]))
        self._report.problem(code, _where(self._tables[int(one["epoch"])], one), detail)

    def _note(self, code: str, one: np.void, detail: str) -> None:
        self.found_in.add(int(one["epoch"]))
        self._report.note(code, _where(self._tables[int(one["epoch"])], one), detail)


@dataclass(frozen=True, slots=True)
class Compare:
    """Reads the winners' tables, of each the row groups that hold some. A task of
    `streamer.audit.pool`: it raises DependencyError if the storage refuses."""

    named: Named
    targets: dict[int, str]
    """Number of a winner's epoch → its table."""
    sources: dict[int, str]
    """Number of a duplicate's epoch → its table."""

    def __call__(self, folder: Folder, advance: Callable[[int], None]) -> Compared:
        found = Compared()
        for number, path in self.targets.items():
            look = _Look(self.named[self.named["target"] == number], self.sources, found)
            try:
                with open_table(folder, path) as table:
                    look.read(table)
            except (Damaged, FileNotFoundError) as error:  # reported where its rows are read
                look.lost(f"the file of its winner cannot be read: {error}")
                continue
            for one in look.unmatched():
                look.problem("duplicate_target", one, f"names {_winner(one)}, which has no row")
        return found


class _Look:
    """The duplicates of winners in one table."""

    def __init__(self, named: Named, sources: dict[int, str], found: Compared) -> None:
        self._sources = sources
        self._found = found
        origins = np.stack([named["of_partition"], named["of_offset"]], axis=1)
        self._winners, self._winner_of = np.unique(origins, axis=0, return_inverse=True)
        self._named = named
        self._matched = np.zeros(len(self._winners), bool)

    def unmatched(self) -> Named:
        return self._named[~self._matched[self._winner_of]]

    def problem(self, code: str, one: np.void, detail: str) -> None:
        self._found.found_in.add(int(one["epoch"]))
        self._found.report.problem(code, self._where(one), detail)

    def lost(self, detail: str) -> None:
        """One finding for all that are left."""
        left = self.unmatched()
        self._found.found_in.update(left["epoch"].tolist())
        self._found.report.problem("duplicate_target", self._where(left[0]), detail)

    def _where(self, one: np.void) -> str:
        return _where(self._sources[int(one["epoch"])], one)

    def read(self, table: pq.ParquetFile) -> None:
        offsets = pa.array(np.unique(self._winners[:, 1]), pa.int64())
        for group in range(table.num_row_groups):
            origins = table.read_row_group(group, columns=["offset"], use_threads=False)
            hits = pc.is_in(origins["offset"], offsets)
            if pc.any(hits).as_py():  # the embeddings are most of the file
                rows = table.read_row_group(group, columns=_TARGET, use_threads=False)
                for batch in rows.filter(hits).to_batches(max_chunksize=BLOCK):
                    self._judge(batch)

    def _judge(self, batch: pa.RecordBatch) -> None:
        """The first row of each winner counts."""
        winners = self._numbers(batch["partition"].to_numpy(), batch["offset"].to_numpy())
        _, first = np.unique(winners, return_index=True)
        first = first[(winners[first] >= 0) & ~self._matched[winners[first]]]
        self._matched[winners[first]] = True
        row_of = np.full(len(self._winners), -1)
        row_of[winners[first]] = first
        rows = row_of[self._winner_of]
        for part in np.array_split(np.flatnonzero(rows >= 0), 1 + len(rows) // BLOCK):
            if len(part):
                self._compare(self._named[part], batch.take(pa.array(rows[part])))

    def _numbers(self, partitions: I64, offsets: I64) -> I64:
        """Which winner each origin is; -1: none."""
        found = np.full(len(offsets), -1)
        for partition in np.unique(partitions):
            # They are sorted by partition, and each partition's by offset
            begin, end = np.searchsorted(self._winners[:, 0], [partition, partition + 1])
            here = np.flatnonzero(partitions == partition)
            at = begin + np.searchsorted(self._winners[begin:end, 1], offsets[here])
            at = np.minimum(at, end - 1)
            hit = (begin < end) & (self._winners[at, 1] == offsets[here])
            found[here[hit]] = at[hit]
        return found

    def _compare(self, named: Named, winners: pa.RecordBatch) -> None:
        """n duplicates and their n winners."""
        withdrawn = pc.and_(
            pc.equal(winners["outcome"], "invalid"), pc.equal(winners["reason"], "withdrawn")
        )
        withdrawn = _bools(withdrawn)
        accepted = _bools(pc.equal(winners["outcome"], "accepted"))
        flagged = _flagged(winners["flags"]) & accepted
        for i in np.flatnonzero(withdrawn):
            self._found.found_in.add(int(named[i]["epoch"]))
            self._found.report.note(
                "withdrawn_target", self._where(named[i]), f"names {_winner(named[i])}"
            )
        for i in np.flatnonzero(~withdrawn & ~accepted):
            detail = f"names {_winner(named[i])}, which is {winners['outcome'][i]}"
            self.problem("duplicate_target", named[i], detail)
        for i in np.flatnonzero(flagged):
            detail = f"names {_winner(named[i])}, which is itself a flagged duplicate"
            self.problem("duplicate_target", named[i], detail)
        right = (withdrawn | accepted) & ~flagged
        claims = pc.fill_null(winners["claim"], -1).to_numpy()
        for i in np.flatnonzero(right & (named["claim"] >= 0) & (claims >= named["claim"])):
            detail = f"claimed at {named[i]['claim']}, before {_winner(named[i])} at {claims[i]}"
            self.problem("duplicate_target", named[i], detail)
        right &= _bools(pc.is_valid(winners["embedding"]))
        here = named[right]
        similarity = _products(here, winners["embedding"].filter(pa.array(right)))
        for i in np.flatnonzero(similarity != here["similarity"]):
            detail = f"{float(here[i]['similarity'])!r}, but the embeddings give {float(similarity[i])!r}"
            self.problem("similarity", here[i], detail)


def _products(named: Named, winners: pa.Array) -> F64:
    """Every product of two fp16 numbers, and every sum of those of unit vectors, is exact in
    float64: any order gives these bits. NaN where the dimensions differ."""
    vectors = vectors_of(winners)
    if vectors.shape != named["vector"].shape:
        return np.full(len(named), np.nan)
    wide = named["vector"].astype(np.float64), vectors.astype(np.float64)
    products: F64 = np.einsum("nd,nd->n", *wide)
    return products


def _flagged(flags: pa.Array) -> Bools:
    found = np.zeros(len(flags), bool)
    near = pc.equal(flags.flatten(), NEAR_DUPLICATE)
    found[pc.list_parent_indices(flags).filter(near).to_numpy()] = True
    return found


def _is_skipped(epoch: Epoch, named: Named) -> Bools:
    found = np.zeros(len(named), bool)
    for partition, ranges in epoch.skipped.items():
        for first, end in ranges:
            offsets = named["of_offset"]
            found |= (named["of_partition"] == partition) & (offsets >= first) & (offsets < end)
    return found


def _bools(column: pa.Array) -> Bools:
    found: Bools = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return found


def _dim(dtype: np.dtype[np.void]) -> int:
    return int(dtype["vector"].shape[0])


def _where(table: str, one: np.void) -> str:
    return f"{table}#{key_of(int(one['partition']), int(one['offset']))}"


def _winner(one: np.void) -> str:
    return key_of(int(one["of_partition"]), int(one["of_offset"]))
