"""The whole audit, epoch by epoch: memory for one epoch's rows, whatever the dataset's size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamer.audit.duplicates import DuplicateAudit, check_pairs
from streamer.audit.manifests import Epoch, File, Tiles, check_chains, check_files, read_manifests
from streamer.audit.report import Report
from streamer.audit.rows import RowAudit, Rows
from streamer.audit.tars import check_tar
from streamer.records import F16, I64
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder


class Audit:
    """Exactly once, proven from the output folder alone. ``path``: a local folder or any URI that
    ``output.path`` may be.

    Made in two steps, so that a caller can show progress: construction reads the manifests, `run`
    everything else. Raises ConfigError for a wrong URI, DependencyError if the storage refuses;
    everything else is in the report.
    """

    def __init__(self, path: str) -> None:
        self.report = Report()
        self.folder: Folder = open_folder(path)
        self.epochs: list[Epoch] = read_manifests(self.folder, self.report)
        self.total_bytes = sum(file.bytes for epoch in self.epochs for file in epoch.files)
        """What `run` will read, at least."""

    def run(
        self, pairs: bool = False, advance: Callable[[int], None] = lambda nbytes: None
    ) -> Report:
        """``pairs``: also compare all winners with each other (memory 6 bytes a number, time
        O(n²)). ``advance``: told of bytes read."""
        check_chains(self.epochs, self.report)
        tiles = Tiles(self.epochs)
        tiles.check(self.report)
        readable = check_files(self.folder, self.epochs, self.report)
        rows = RowAudit(self.folder, self.report, pairs, advance)
        duplicates = DuplicateAudit(self.folder, tiles, readable, self.report)
        claims: list[I64] = []
        winners: list[tuple[list[str], F16]] = []
        checked: set[str] = set()
        for epoch in self.epochs:
            here = self._epoch(epoch, rows, duplicates, readable - checked, advance)
            checked.update(file.path for file in epoch.files)
            claims += here.claims
            winners += here.winners
        duplicates.flush()
        self._claims(claims)
        if pairs and rows.threshold is not None and any(keys for keys, _ in winners):
            keys = [key for some, _ in winners for key in some]
            vectors = [found for some, found in winners if some]
            self.report.pairs = {"compared": len(keys), "threshold": rows.threshold}
            check_pairs(
                keys,
                np.concatenate(vectors),
                rows.threshold,
                rows.certified,
                self.report,
                lambda n: None,
            )
        return self.report

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
                f"{len(epoch.tables)} tables for {len(epoch.tars)} tars and {epoch.counts}",
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
