"""One epoch's files against its manifest and each other: all that can be said without the others.

A pure function of the folder, so that any number of processes may do it at the same time. Memory:
some windows and batches of rows, the claims and the duplicates of one epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamer.audit.manifests import NOT_A_MANIFEST, Epoch, File, read_manifest
from streamer.audit.named import Named, named_by, no_duplicates
from streamer.audit.report import Report
from streamer.audit.rows import BATCH_ROWS, COLUMNS, OF_A_SAMPLE, RowCheck, vectors_of
from streamer.audit.shards import ShardCheck, Strange
from streamer.audit.table import Damaged, open_table
from streamer.audit.tars import check_tar
from streamer.errors import DependencyError
from streamer.records import F16, I64
from streamer.sink.folder import Folder
from streamer.units import counted

BOUND = ("dataset", "topic", "dim", "threshold")
"""What the whole dataset is bound to, by the names in the tables' metadata."""
Advance = Callable[[int], None]


@dataclass(slots=True)
class Checked:
    """What one epoch says for itself."""

    report: Report = field(default_factory=Report)
    bound: dict[str, dict[str, str]] = field(default_factory=dict)
    """Table → its values of `BOUND`."""
    certified: bool = True
    """Was every table written under a search that misses nothing?"""
    claims: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positions, sorted."""
    duplicates: Named = field(default_factory=no_duplicates)
    winners: list[tuple[list[str], F16]] = field(default_factory=list)
    """Keys and vectors of accepted records that are no flagged duplicates; only where asked for."""


@dataclass(frozen=True, slots=True)
class CheckEpoch:
    """All of an epoch. A task of `streamer.audit.pool`: it raises DependencyError if the storage
    refuses."""

    known: Epoch
    readable: frozenset[str] | None
    """The files to look into; None: all."""
    winners: bool = False
    """Keep those, too."""

    def __call__(self, folder: Folder, advance: Advance) -> Checked:
        epoch, checked = _whole(folder, self.known), Checked()
        report = checked.report
        if (
            len(epoch.tables) > 1
            or (epoch.tars and not epoch.tables)
            or (sum(epoch.counts.values()) and not epoch.tables)
        ):
            detail = f"{counted(len(epoch.tables), 'table')} for {counted(len(epoch.tars), 'tar')} and {epoch.counts}"
            report.problem("counts_mismatch", epoch.path, detail)
        tables = _once(epoch.tables, self.readable)
        with ExitStack() as at_exit:
            shards = _Shards(folder, _once(epoch.tars, self.readable), at_exit, advance)
            for file in tables.values():
                with _present(epoch, file, report):
                    _check_sum(folder, file, report, advance)
                    _check_table(folder, epoch, file, shards, checked, self.winners)
            doubtful = shards.doubtful()
        for file in doubtful:
            with _present(epoch, file, report):
                check_tar(folder, file, _rows_of(folder, tables, file.path), report)
        checked.claims.sort()
        return checked


@dataclass(frozen=True, slots=True)
class FindDuplicates:
    """Only the duplicates, of an epoch of which all else is known. Like `CheckEpoch`."""

    known: Epoch
    readable: frozenset[str] | None

    def __call__(self, folder: Folder, advance: Advance) -> Checked:
        found = [no_duplicates()]
        columns = ["key", "partition", "offset", "duplicate_of", "similarity", "claim", "embedding"]
        for file in _once(_whole(folder, self.known).tables, self.readable).values():
            with suppress(Damaged), open_table(folder, file.path) as table:
                for batch in table.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    found.append(named_by(file.path, batch, Report()))
        return Checked(duplicates=_joined(found))


def _whole(folder: Folder, known: Epoch) -> Epoch:
    """With its files, which the audit does not keep. Raises DependencyError if it changed."""
    try:
        epoch = read_manifest(folder, known.path)
    except (*NOT_A_MANIFEST, FileNotFoundError):
        epoch = None
    if epoch is None or epoch.sha256 != known.sha256:
        raise DependencyError(f"{folder.place(known.path)} changed while it was verified")
    return epoch


@contextmanager
def _present(epoch: Epoch, file: File, report: Report) -> Iterator[None]:
    """For a file that was there when the folder was listed."""
    try:
        yield
    except FileNotFoundError:
        report.problem("file_missing", file.path, f"named by {epoch.path}")


def _once(files: tuple[File, ...], readable: Collection[str] | None) -> dict[str, File]:
    return {file.path: file for file in files if readable is None or file.path in readable}


def _check_table(
    folder: Folder, epoch: Epoch, file: File, shards: _Shards, checked: Checked, winners: bool
) -> None:
    report = checked.report
    ours = pa.array([tar.path for tar in epoch.tars], pa.string())
    claims, duplicates = [checked.claims], [checked.duplicates]
    try:
        with open_table(folder, file.path) as table:
            metadata = table.schema_arrow.metadata or {}
            check = RowCheck(epoch, file, report)
            if not check.has_columns(table):
                return
            _bind(checked, file.path, metadata)
            for batch in check.batches(table):
                claims.append(batch["claim"].drop_null().to_numpy())
                duplicates.append(named_by(file.path, batch, report))
                accepted = batch.filter(pc.equal(batch["outcome"], "accepted"))
                if winners:
                    checked.winners.append(_winners(accepted))
                elsewhere = accepted.filter(pc.invert(pc.is_in(accepted["shard"], ours)))
                for key, shard in zip(
                    elsewhere["key"].to_pylist(), elsewhere["shard"].to_pylist(), strict=True
                ):
                    detail = f"its shard {shard} is not in {epoch.path}"
                    report.problem("row_invalid", f"{file.path}#{key}", detail)
                shards.add(accepted.select([*OF_A_SAMPLE, "shard"]))
    except Damaged as error:
        report.problem("table_unreadable", file.path, str(error))
    checked.claims, checked.duplicates = np.concatenate(claims), _joined(duplicates)


def _bind(checked: Checked, path: str, metadata: dict[bytes, bytes]) -> None:
    checked.bound[path] = {
        name: metadata.get(f"streamer.{name}".encode(), b"").decode() for name in BOUND
    }
    searched = metadata.get(b"streamer.search", b"certified")
    checked.certified = checked.certified and searched == b"certified"


def _winners(accepted: pa.RecordBatch) -> tuple[list[str], F16]:
    flagged = [("near_duplicate" in flags) for flags in accepted["flags"].to_pylist()]
    found = accepted.filter(pa.array([not f for f in flagged], pa.bool_()))
    return found["key"].to_pylist(), vectors_of(found["embedding"])


def _joined(found: list[Named]) -> Named:
    """Those of one dimension; others cannot be compared, and their file is not what the dataset is
    bound to."""
    filled = [some for some in found if len(some)] or found[:1]
    return np.concatenate([some for some in filled if some.dtype == filled[0].dtype])


class _Shards:
    """The tars of one epoch, each read along with the rows that name it."""

    def __init__(
        self, folder: Folder, tars: dict[str, File], at_exit: ExitStack, advance: Advance
    ) -> None:
        self._folder = folder
        self._tars = tars
        self._at_exit = at_exit
        self._advance = advance
        self._open: dict[str, tuple[ShardCheck, BinaryIO]] = {}
        self._right: set[str] = set()
        self._doubtful: set[str] = set()

    def add(self, accepted: pa.RecordBatch) -> None:
        """The next rows of all shards. Raises DependencyError."""
        for path in pc.unique(accepted["shard"]).to_pylist():
            if path in self._tars and path not in self._doubtful:
                with self._judged(path):
                    check = self._check(path)
                    check.add(accepted.filter(pc.equal(accepted["shard"], path)))
                    if check.is_complete:
                        self._finish(path)

    def doubtful(self) -> list[File]:
        """After the last row: those that are not clearly right."""
        for path in [p for p in self._tars if p not in self._right and p not in self._doubtful]:
            with self._judged(path):
                self._check(path)
                self._finish(path)
        return [self._tars[path] for path in self._tars if path not in self._right]

    def _check(self, path: str) -> ShardCheck:
        if path in self._right:
            raise Strange("a row after its last sample")
        if path not in self._open:
            source = self._at_exit.enter_context(self._folder.open(path))
            check = ShardCheck(self._tars[path], source, self._advance)
            self._open[path] = check, source
        return self._open[path][0]

    def _finish(self, path: str) -> None:
        self._open[path][0].finish()
        self._close(path)
        self._right.add(path)

    def _close(self, path: str) -> None:
        if path in self._open:
            self._open.pop(path)[1].close()

    @contextmanager
    def _judged(self, path: str) -> Iterator[None]:
        try:
            with self._folder.explained("read", path):
                yield
        except (Strange, pa.ArrowException, FileNotFoundError):
            self._close(path)
            self._right.discard(path)
            self._doubtful.add(path)


def _rows_of(folder: Folder, tables: dict[str, File], shard: str) -> dict[str, dict[str, Any]]:
    """Key → the accepted row whose sample is in this shard, of what can be read."""
    found: dict[str, dict[str, Any]] = {}
    columns = [*OF_A_SAMPLE, "shard", "outcome"]
    for path in tables:
        with suppress(Damaged), open_table(folder, path) as table:
            if set(COLUMNS) - set(table.schema_arrow.names):
                continue
            for batch in table.iter_batches(columns=columns, use_threads=False):
                here = pc.and_(
                    pc.equal(batch["outcome"], "accepted"), pc.equal(batch["shard"], shard)
                )
                rows = batch.filter(pc.fill_null(here, False))
                found.update((row["key"], row) for row in rows.to_pylist())
    return found


def _check_sum(folder: Folder, file: File, report: Report, advance: Advance) -> None:
    """Reads the file once for its sha256."""
    digest = hashlib.sha256()
    with folder.explained("read", file.path), folder.open(file.path) as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    if digest.hexdigest() != file.sha256:
        detail = f"its sha256 is {digest.hexdigest()}, {file.sha256} in its manifest"
        report.problem("file_checksum", file.path, detail)
