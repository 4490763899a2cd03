"""The whole audit, epoch by epoch: memory for one epoch's rows, whatever the dataset's size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamer.audit.commits import CommitAudit, Committed
from streamer.audit.duplicates import DuplicateAudit, check_pairs
from streamer.audit.files import FileAudit, look_at, note_staged, staged_spans
from streamer.audit.manifests import Epoch, File, check_chains, order, read_manifests
from streamer.audit.report import Report
from streamer.audit.rows import RowAudit, Rows
from streamer.audit.tars import check_tar
from streamer.audit.tiles import Tiles
from streamer.records import F16, I64
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder
from streamer.units import counted

MAX_PASSES = 100
"""What replicas project while the audit runs is audited too, in up to this many passes."""


class Audit:
    """Exactly once, proven from the output folder. ``path``: a local folder or any URI that
    ``output.path`` may be. ``committed``: what Kafka holds of the dataset, to compare it with.

    Made in two steps, so that a caller can show progress: construction reads the manifests, `run`
    everything else. Raises ConfigError for a wrong URI, DependencyError if the storage or a broker
    refuses; everything else is in the report.
    """

    def __init__(self, path: str, committed: Committed | None = None) -> None:
        self.report = Report()
        self.folder: Folder = open_folder(path)
        self._commits = None if committed is None else CommitAudit(committed, self.report)
        if committed is not None:
            self.report.compared_with = committed.topic
        self._known: set[str] = set()
        self.epochs: list[Epoch] = read_manifests(self.folder, self.report, self._known)
        if not self.epochs and (self._commits is None or self._commits.first is None):
            detail = "there is none; is this the folder OUTPUT/DATASET?"
            self.report.problem("no_dataset", "manifests", detail)
        self.total_bytes = sum(file.bytes for epoch in self.epochs for file in epoch.files)
        """What `run` will read, at least."""

    def run(
        self, pairs: bool = False, advance: Callable[[int], None] = lambda nbytes: None
    ) -> Report:
        """``pairs``: also compare all winners with each other (memory 6 bytes a number, time O(n²)).
        ``advance``: told of bytes read."""
        report = self.report
        tiles, files = Tiles(), FileAudit(report)
        rows = RowAudit(self.folder, report, pairs, advance)
        duplicates = DuplicateAudit(self.folder, tiles, files.readable, report)
        claims: list[I64] = []
        winners: list[tuple[list[str], F16]] = []
        fresh, checked = self.epochs, set[str]()
        for _ in range(MAX_PASSES):
            look = look_at(self.folder)
            tiles.add(fresh)
            files.check(fresh, look)
            for epoch in fresh:
                here = self._epoch(epoch, rows, duplicates, files.readable - checked, advance)
                checked.update(file.path for file in epoch.files)
                claims += here.claims
                winners += here.winners
            look = look_at(self.folder)
            fresh = read_manifests(self.folder, report, self._known)
            if not fresh:
                break
            self.epochs = sorted([*self.epochs, *fresh], key=order)
        check_chains(self.epochs, report)
        files.check_rest(look, {file.path for epoch in fresh for file in epoch.files})
        if tiles.has_gaps():
            tiles.expect(staged_spans(self.folder, look))
        if self._commits is not None:
            tiles.expect(self._commits.spans(self.epochs))
            self._commits.check(self.epochs, look, self.folder.uri)
        tiles.check(report)
        tiles.check_ends(report, None if self._commits is None else self._commits.first)
        duplicates.finish()
        note_staged(look, report)
        self._claims(claims)
        if self.epochs and not report.records and (self._commits is None or self._commits.records):
            report.problem("no_records", "manifests", "there is nothing to verify")
        if pairs and rows.threshold is not None and any(keys for keys, _ in winners):
            keys = [key for some, _ in winners for key in some]
            vectors = [found for some, found in winners if some]
            report.pairs = {"compared": len(keys), "threshold": rows.threshold}
            certified = rows.certified
            check_pairs(
                keys, np.concatenate(vectors), rows.threshold, certified, report, lambda n: None
            )
        return report

    def _epoch(
        self,
        epoch: Epoch,
        reader: RowAudit,
        duplicates: DuplicateAudit,
        readable: set[str],
        advance: Callable[[int], None],
    ) -> Rows:
        rows = Rows()
        if (
            len(epoch.tables) > 1
            or (epoch.tars and not epoch.tables)
            or (sum(epoch.counts.values()) and not epoch.tables)
        ):
            self.report.problem(
                "counts_mismatch",
                epoch.path,
                f"{counted(len(epoch.tables), 'table')} for {counted(len(epoch.tars), 'tar')} and {epoch.counts}",
            )
        for file in self._readable(epoch.tables, readable):
            rows = reader.read(epoch, file)
            for some in rows.duplicates:
                duplicates.add(file.path, some, reader.threshold)
            for shard in rows.samples.keys() - {tar.path for tar in epoch.tars}:
                for key in rows.samples[shard]:
                    self.report.problem(
                        "row_invalid",
                        f"{file.path}#{key}",
                        f"its shard {shard} is not in {epoch.path}",
                    )
        for file in self._readable(epoch.tars, readable):
            check_tar(self.folder, file, rows.samples.get(file.path, {}), self.report, advance)
        return rows

    def _readable(self, files: tuple[File, ...], readable: set[str]) -> list[File]:
        return [file for file in files if file.path in readable]

    def _claims(self, claims: list[I64]) -> None:
        """Eight bytes a claim: the one thing that is kept of every row."""
        positions, counts = np.unique(
            np.concatenate([np.zeros(0, np.int64), *claims]), return_counts=True
        )
        for position in positions[counts > 1]:
            self.report.problem("claim_twice", "metadata", f"claim {position} is in several rows")
