"""What the run decided, read back from the Parquet it wrote, beside what the demo knew beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from streamer.demo.record import DemoRecord
from streamer.errors import ProtocolError
from streamer.records import OUTCOMES, key_of

Origin = tuple[int, int]


class Row(NamedTuple):
    """One record's decision, and the record."""

    key: str
    outcome: str
    reason: str
    """Empty iff accepted."""
    flags: tuple[str, ...]
    duplicate_of: str
    """The winner's key; empty unless a duplicate."""
    similarity: float
    scores: Mapping[str, float]
    """Only those that were computed."""
    format: str
    width: int
    height: int
    nbytes: int
    record: DemoRecord


class Truth(NamedTuple):
    """The copies that the demo made, and what became of them."""

    copies: int
    found: int
    """Decided to be duplicates."""
    filtered: int
    """Removed by a filter before anybody compared them."""
    crops: int
    """Crops that were decided to be duplicates of the whole, or of each other."""
    wrong_pairs: int
    """Duplicates of something from another scene."""


@dataclass(frozen=True)
class Result:
    """All rows in input order."""

    rows: tuple[Row, ...]

    def count(self, outcome: str) -> int:
        return sum(row.outcome == outcome for row in self.rows)

    def reasons(self, outcome: str) -> list[tuple[str, int]]:
        """(reason, records), most frequent first."""
        return sorted(
            Counter(row.reason for row in self.rows if row.outcome == outcome).items(),
            key=lambda item: (-item[1], item[0]),
        )

    def of(self, outcome: str, reason: str = "") -> list[Row]:
        return [
            row
            for row in self.rows
            if row.outcome == outcome and (not reason or row.reason == reason)
        ]

    def flagged(self) -> int:
        return sum(row.outcome == "accepted" and bool(row.flags) for row in self.rows)

    def groups(self) -> list[tuple[Row, list[Row]]]:
        """(winner, its duplicates by falling similarity), biggest group first."""
        by_key = {row.key: row for row in self.rows}
        found: dict[str, list[Row]] = {}
        for row in self.of("duplicate"):
            found.setdefault(row.duplicate_of, []).append(row)
        pairs = [
            (by_key[key], sorted(rows, key=lambda row: -row.similarity))
            for key, rows in found.items()
        ]
        return sorted(pairs, key=lambda pair: (-len(pair[1]), pair[0].key))

    def telling_pair(self) -> tuple[Row, Row] | None:
        """(winner, duplicate): the copy least similar to what it repeats, else the least similar
        duplicate; None without duplicates."""
        pairs = [(winner, row) for winner, rows in self.groups() for row in rows]
        copies = [(winner, row) for winner, row in pairs if row.record.copy_of == winner.record.id]
        return min(copies or pairs, key=lambda pair: pair[1].similarity, default=None)

    def truth(self) -> Truth:
        by_key = {row.key: row for row in self.rows}
        copies = [row for row in self.rows if row.record.copy_of]
        duplicates = self.of("duplicate")
        return Truth(
            len(copies),
            sum(row.outcome == "duplicate" for row in copies),
            sum(row.outcome == "filtered" for row in copies),
            sum(row.record.kind == "crop" for row in duplicates),
            sum(by_key[row.duplicate_of].record.scene != row.record.scene for row in duplicates),
        )

    def as_json(self) -> dict[str, Any]:
        truth = self.truth()
        return {
            "records": len(self.rows),
            "outcomes": {outcome: self.count(outcome) for outcome in OUTCOMES},
            "reasons": {
                outcome: dict(self.reasons(outcome))
                for outcome in OUTCOMES
                if outcome != "accepted"
            },
            "flagged": self.flagged(),
            "copies": truth._asdict(),
        }


def read_result(dataset: Path, sent: Mapping[Origin, DemoRecord]) -> Result:
    """The dataset's rows joined with the records that were sent. Raises ProtocolError unless they
    match one to one."""
    import pyarrow.parquet as pq

    rows: dict[str, Row] = {}
    records = {key_of(*origin): record for origin, record in sent.items()}
    for path in sorted((dataset / "metadata").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name != "embedding"]
            for values in file.read(columns=columns).to_pylist():
                row = _row(values, records)
                if row.key in rows:
                    raise ProtocolError(
                        f"{path}: record {row.key} was decided twice; this is a bug"
                    )
                rows[row.key] = row
    missing = records.keys() - rows.keys()
    if missing:
        raise ProtocolError(
            f"{dataset}: {len(missing)} records have no row, {min(missing)} first; this is a bug"
        )
    return Result(tuple(rows[key] for key in records))


def _row(values: Mapping[str, Any], records: Mapping[str, DemoRecord]) -> Row:
    key = values["key"]
    if key not in records:
        raise ProtocolError(f"record {key} has a row but was never sent; this is a bug")
    scores = {
        name.removesuffix("_score"): value
        for name, value in values.items()
        if name.endswith("_score") and value is not None
    }
    return Row(
        key, values["outcome"], values["reason"] or "", tuple(values["flags"]), values["duplicate_of"] or "", values["similarity"] or 0.0,
        scores, values["format"] or "", values["width"] or 0, values["height"] or 0, values["bytes"] or 0, records[key],
    )  # fmt: skip


def outcome_lines(result: Result) -> Iterable[tuple[str, str, int]]:
    """(outcome, reason, records) for the table, in the order people ask."""
    yield "in", "", len(result.rows)
    yield "accepted", "", result.count("accepted")
    for outcome in ("filtered", "duplicate", "invalid"):
        yield outcome, "", result.count(outcome)
        for reason, count in _without_repeating(outcome, result.reasons(outcome)):
            yield "", reason, count


def _without_repeating(
    outcome: str, reasons: Sequence[tuple[str, int]]
) -> Sequence[tuple[str, int]]:
    return () if outcome == "duplicate" else reasons  # there is only one reason to be a duplicate
