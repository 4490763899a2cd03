"""What an audit found: closed lists of codes, and a report that stays small however much is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from streamer.records import OUTCOMES

PROBLEMS: dict[str, str] = {
    "no_dataset": "there is no manifest in this folder",
    "manifest_unreadable": "a file in manifests/ is not a manifest",
    "manifest_name": "a manifest is not named WRITER-EPOCH.json after what it says, or is of another dataset",
    "no_records": "no epoch holds a record, so nothing is proven",
    "unfinished": "a replay has not come to its end: start it again to go on",
    "epoch_gap": "a writer's epochs are not numbered without a gap: a manifest is missing",
    "uuid_chain": "a manifest does not name the uuid of its writer's epoch before it",
    "range_gap": "offsets of a partition between two manifests are in none",
    "range_overlap": "offsets of a partition are in two manifests",
    "skipped_outside": "a skipped range is outside its manifest's range",
    "file_missing": "a file that a manifest names is not there",
    "file_size": "a file has another length than its manifest says",
    "file_checksum": "a file has another sha256 than its manifest says",
    "file_twice": "a file is named by two manifests, or twice",
    "file_unknown": "a file in shards/, metadata/ or manifests/ belongs to no manifest",
    "binding": "files differ in what the whole dataset is bound to: dataset, topic, dimension, threshold",
    "table_unreadable": "a Parquet file cannot be read or lacks a column of the contract",
    "rows_mismatch": "a file has another number of rows or samples than its manifest says",
    "counts_mismatch": "a manifest's counts by outcome are not its rows'",
    "row_outside_range": "a row's (partition, offset) is not in its manifest's ranges, or is in a skipped one",
    "row_twice": "two rows of an epoch have one (partition, offset)",
    "row_invalid": "a row contradicts itself: key, outcome, reason, shard, embedding or duplicate_of",
    "claim_twice": "two rows have one claim position",
    "tar_unreadable": "a tar cannot be read to its end",
    "member_missing": "an accepted row's sample, or a member of it, is not in its shard",
    "member_unknown": "a shard holds a member that no accepted row accounts for",
    "member_twice": "a shard holds a sample twice",
    "member_mismatch": "a sample's image bytes, text or json are not what its row says",
    "duplicate_target": "a duplicate does not name an accepted record that came before it",
    "similarity": "a duplicate's similarity is not the one of the stored embeddings, or is below the threshold",
    "epoch_missing": "the commit log names an epoch that is not in this folder (with -c)",
    "epoch_unknown": "a manifest is of an epoch that the commit log does not name (with -c)",
    "epoch_differs": "a manifest is not the one of the commit log (with -c)",
    "offsets_differ": "the group's committed offsets are not where the commit log ends (with -c)",
    "pair": "two accepted records are at or above the threshold (checked with --pairs)",
}
"""The closed list of problem codes; `dataset verify` exits 1 if there is any."""

NOTES: dict[str, str] = {
    "staged": "an epoch in .staging that is not projected yet: it belongs to a running writer, or the next start projects or removes it",
    "file_pending": "a file of an epoch that is being projected, or whose projection the next start finishes",
    "gap_pending": "offsets between two manifests are in none, but in a complete epoch in .staging: the next start of a replica projects it",
    "target_pending": "a duplicate names a winner whose epoch is not projected yet: its replica has not committed or projected it",
    "unprojected": "an epoch is committed but not projected yet: it is being projected, or the next start does it (with -c)",
    "pair_missed": "two accepted records are at or above the threshold, as dedup.capacity or a calibrated probe may leave some (with --pairs)",
    "withdrawn_target": "a duplicate names a winner that was withdrawn later: its image was no longer available",
}
"""What a person may want to know of a folder that is right."""

KEPT = 100
"""Findings of one code that are listed; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    path: str
    """From the dataset folder; with ``#KEY`` where it is one row or sample."""
    detail: str


@dataclass(slots=True)
class Report:
    records: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)
    """Partition → rows read."""
    partitions: dict[int, dict[str, int]] = field(default_factory=dict)
    """Partition → first, next, records, skipped."""
    counts: Counter[str] = field(default_factory=Counter)
    """Code → how often."""
    compared_with: str | None = None
    """The commit log that the folder was compared with; None: it was not."""
    pairs: dict[str, float] | None = None
    """With --pairs: ``compared``, so many winners with each other, and the ``threshold``. None:
    they were not."""
    checked_epochs: int = 0
    """Epochs whose files were read."""
    remembered_epochs: int = 0
    """Epochs that an earlier audit had found right."""
    forgotten: str = ""
    """Why nothing of what was remembered is trusted any more; empty if it is."""
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def problem(self, code: str, path: str, detail: str) -> None:
        assert code in PROBLEMS, f"this is a bug: {code!r} is not in PROBLEMS"
        self._keep(self.problems, Finding(code, path, detail))

    def note(self, code: str, path: str, detail: str) -> None:
        assert code in NOTES, f"this is a bug: {code!r} is not in NOTES"
        self._keep(self.notes, Finding(code, path, detail))

    def _keep(self, findings: list[Finding], finding: Finding) -> None:
        self.counts[finding.code] += 1
        if self.counts[finding.code] <= KEPT:
            findings.append(finding)

    def absorb(self, other: Report) -> None:
        """Adds what another one counted and found, behind what is here."""
        self.records += other.records
        self.outcomes.update(other.outcomes)
        self.rows.update(other.rows)
        here = self.counts.copy()
        for ours, theirs in ((self.problems, other.problems), (self.notes, other.notes)):
            for finding in theirs:
                here[finding.code] += 1
                if here[finding.code] <= KEPT:
                    ours.append(finding)
        self.counts.update(other.counts)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "records": self.records,
            "outcomes": {**dict.fromkeys(OUTCOMES, 0), **self.outcomes},
            "partitions": {str(p): facts for p, facts in sorted(self.partitions.items())},
            "problems": [
                {"code": f.code, "path": f.path, "detail": f.detail} for f in self.problems
            ],
            "notes": [{"code": f.code, "path": f.path, "detail": f.detail} for f in self.notes],
            "counts": dict(self.counts),
            "epochs": {"checked": self.checked_epochs, "remembered": self.remembered_epochs},
            "pairs": self.pairs,
            "compared_with": self.compared_with,
        }
