"""The whole audit: epoch by epoch, as many at once as there are processes, and what only all of
them together show. Memory does not depend on the number of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamer.audit.claims import Claims
from streamer.audit.commits import CommitAudit, Committed, Mark
from streamer.audit.duplicates import Filing
from streamer.audit.epoch import BOUND, Checked, CheckEpoch, FindDuplicates
from streamer.audit.files import FileAudit, Look, Present, look_at, note_staged, staged_spans
from streamer.audit.manifests import Epoch, check_chains, new_manifests, order, read_manifests
from streamer.audit.pairs import check_pairs
from streamer.audit.pool import Pool
from streamer.audit.remembered import Remembered
from streamer.audit.report import Report
from streamer.audit.tiles import Tiles
from streamer.records import F16
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder

MAX_PASSES = 100
"""What replicas project while the audit runs is audited too, in up to this many passes."""
_LOG = "commit log"
"""What is remembered of it."""
ALONE_BYTES = 100_000_000
"""Less than this is read by one process: others would take longer to start."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One to be audited: its number is that of `Tiles`."""

    number: int
    epoch: Epoch
    """Without its files."""
    present: Present
    nbytes: int
    """Of its files."""


class Audit:
    """Exactly once, proven from the output folder. ``path``: a local folder or any URI that
    ``output.path`` may be. ``committed``: what Kafka holds of the dataset, to compare it with.
    ``remember``: a file that says what earlier audits have proven, and is made where there is none.

    Made in two steps, so that a caller can show progress: construction reads the manifests and
    lists the files, `run` reads them. A context manager. One thread. Raises ConfigError for a wrong
    URI or file, DependencyError if the storage or a broker refuses; everything else is in the
    report.
    """

    def __init__(
        self,
        path: str,
        committed: Committed | None = None,
        remember: Path | None = None,
        recheck: bool = False,
    ) -> None:
        """``recheck``: what is remembered is checked again, too."""
        self.report = Report()
        self.folder: Folder = open_folder(path)
        self._path = path
        self._memory = None if remember is None else Remembered(remember, self.folder.uri)
        self._known: set[str] = set()
        self._tiles, self._files = Tiles(), FileAudit(self.folder, self.report)
        self._tables: dict[int, str] = {}
        """Number of an epoch → its table, if it has one to read."""
        self._bound: dict[str, str] = {}
        self._threshold: float | None = None
        """τ as the files say; None: no deduplication."""
        self._certified = True
        try:
            self._begin(committed, recheck)
        except BaseException:
            self.__exit__()
            raise

    def _begin(self, committed: Committed | None, recheck: bool) -> None:
        if self._memory is not None and recheck:
            self._memory.forget()
        self._commits = (
            None if committed is None else CommitAudit(committed, self.report, self._mark())
        )
        if committed is not None:
            self.report.compared_with = committed.topic
        paths = new_manifests(self.folder, self._known)
        self._look = look_at(self.folder)
        self._fresh = self._read(paths, self._look)
        self.epochs = [one.epoch for one in self._fresh]
        if not self.epochs and (self._commits is None or self._commits.first is None):
            detail = "there is none; is this the folder OUTPUT/DATASET?"
            self.report.problem("no_dataset", "manifests", detail)
        self._distrust()
        self.total_bytes = sum(one.nbytes for one in self._fresh if not self._is_known(one))
        """What `run` will read, at least."""

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, *_: object) -> None:
        if self._memory is not None:
            self._memory.__exit__()

    def run(
        self,
        pairs: bool = False,
        advance: Callable[[int], None] = lambda nbytes: None,
        jobs: int = 1,
    ) -> Report:
        """``pairs``: also compare all winners with each other (memory 6 bytes a number, time O(n²);
        everything is read). ``advance``: told of bytes read. ``jobs``: processes, at most."""
        report, look = self.report, self._look
        jobs = jobs if self.total_bytes >= ALONE_BYTES else 1
        winners: list[tuple[list[str], F16]] = []
        with (
            Claims() as claims,
            Filing(self._tiles, self._tables, report) as filing,
            Pool(self._path, jobs, advance) as pool,
        ):
            fresh = self._fresh
            for _ in range(MAX_PASSES):
                for one, checked in self._checked(pool, fresh, pairs):
                    self._absorb(one, checked)
                    claims.add(checked.claims)
                    winners += checked.winners
                    filing.add(one.number, checked.duplicates, self._threshold)
                    if filing.is_due:
                        self._compare(pool, filing)
                look = look_at(self.folder)
                paths = new_manifests(self.folder, self._known)
                if not paths:
                    break
                fresh = self._read(paths, look_at(self.folder))
                self.epochs = sorted([*self.epochs, *(one.epoch for one in fresh)], key=order)
            self._whole_folder(look)
            filing.finish()
            self._compare(pool, filing)
            claims.check(report)
        if self._memory is not None and self._commits is not None and report.ok:
            mark = self._commits.mark()
            if mark is not None:
                self._memory.set_fact(_LOG, mark.as_json())
        if pairs and self._threshold is not None and any(keys for keys, _ in winners):
            keys = [key for some, _ in winners for key in some]
            vectors = np.concatenate([found for some, found in winners if some])
            report.pairs = {"compared": len(keys), "threshold": self._threshold}
            check_pairs(keys, vectors, self._threshold, self._certified, report)
        return report

    # What is remembered

    def _distrust(self) -> None:
        """Forgets everything at the first sign that the folder is not the one that was proven."""
        if self._memory is None:
            return
        manifests = {one.epoch.path: one for one in self._fresh}
        for path, sha256 in self._memory.manifests():
            one = manifests.get(path)
            if one is None or one.epoch.sha256 != sha256:
                self.report.forgotten = f"{path} is not the manifest that was verified"
            elif not one.present.is_whole:
                self.report.forgotten = f"files of {path} are not there as they were"
            else:
                continue
            break
        if self.report.forgotten:
            self._memory.forget()
        if self._commits is not None and self._commits.begins_at is not None:
            known = {order(one.epoch) for one in self._fresh if self._is_known(one)}
            last = self._commits.begins_at.last
            if not all(
                (writer, n) in known for writer, end in last.items() for n in range(end + 1)
            ):
                self._commits.read_whole()

    def _mark(self) -> Mark | None:
        raw = None if self._memory is None else self._memory.fact(_LOG)
        try:
            return None if raw is None else Mark.from_json(raw)
        except (KeyError, TypeError, ValueError):
            return None

    def _is_known(self, one: _Epoch) -> bool:
        return self._memory is not None and self._memory.get(one.epoch) is not None

    # Epochs

    def _read(self, paths: list[str], look: Look) -> list[_Epoch]:
        """Manifests that were there before ``look`` was taken, by writer and epoch."""
        found = []
        for epoch in read_manifests(self.folder, self.report, paths):
            present = self._files.check(epoch, look)
            readable = present.readable
            tables = (t.path for t in epoch.tables if readable is None or t.path in readable)
            nbytes = sum(file.bytes for file in epoch.files)
            found.append((epoch.without_files(), present, next(tables, None), nbytes))
        found.sort(key=lambda one: order(one[0]))
        numbered = []
        for number, (epoch, present, table, nbytes) in enumerate(found, len(self._tiles.epochs)):
            if table is not None:
                self._tables[number] = table
            numbered.append(_Epoch(number, epoch, present, nbytes))
        self._tiles.add(one.epoch for one in numbered)
        return numbered

    def _checked(
        self, pool: Pool, fresh: list[_Epoch], winners: bool
    ) -> Iterator[tuple[_Epoch, Checked]]:
        """Each with what was found, or is remembered, in order."""

        def known(one: _Epoch) -> tuple[Checked, bool] | None:
            return None if self._memory is None or winners else self._memory.get(one.epoch)

        def tasks() -> Iterator[CheckEpoch | FindDuplicates]:
            for one in fresh:
                found = known(one)
                if found is None:
                    yield CheckEpoch(one.epoch, one.present.readable, winners)
                elif not found[1]:
                    yield FindDuplicates(one.epoch, one.present.readable)

        results = pool.results(tasks())
        for one in fresh:
            found = known(one)
            if found is None:
                checked = next(results)
                self.report.checked_epochs += 1
                right = one.present.is_whole and not checked.report.problems
                if self._memory is not None and right:
                    self._memory.add(one.epoch, checked, whole=False)
            else:
                checked, whole = found
                self.report.remembered_epochs += 1
                if not whole:
                    checked.duplicates = next(results).duplicates
            yield one, checked

    def _absorb(self, one: _Epoch, checked: Checked) -> None:
        self.report.absorb(checked.report)
        self._certified = self._certified and checked.certified
        for path, values in checked.bound.items():
            for name in BOUND:
                before = self._bound.setdefault(name, values[name])
                if before != values[name]:
                    detail = f"{name} is {values[name]!r}, in the files before {before!r}"
                    self.report.problem("binding", path, detail)
            threshold = self._bound["threshold"]
            try:
                self._threshold = None if threshold == "off" else float(threshold or "nan")
            except ValueError:
                self.report.problem("binding", path, f"threshold is {threshold!r}")

    def _compare(self, pool: Pool, filing: Filing) -> None:
        for compared in pool.results(filing.tasks()):
            self.report.absorb(compared.report)
            filing.found_in |= compared.found_in
        for number in filing.settled():
            if self._memory is not None:
                self._memory.add_whole(self._tiles.epochs[number])

    def _whole_folder(self, look: Look) -> None:
        """What only all manifests together show. Those that were there after ``look`` are known."""
        report, tiles, commits = self.report, self._tiles, self._commits
        check_chains(self.epochs, report)
        self._files.check_rest(look)
        if tiles.has_gaps():
            tiles.expect(staged_spans(self.folder, look))
        if commits is not None:
            tiles.expect(commits.spans(self.epochs))
            commits.check(self.epochs, look, self.folder.uri)
        tiles.check(report)
        tiles.check_ends(report, None if commits is None else commits.first)
        note_staged(look, report)
        if self.epochs and not report.records and (commits is None or commits.records):
            report.problem("no_records", "manifests", "there is nothing to verify")
