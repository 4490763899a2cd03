"""Judges what a dataset left behind (`tests.faults.evidence`) by the words of docs/architecture.md, sharing no
code with the service.

The claim log is decoded and decided here once more, row after row, from its raw bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.faults.evidence import Evidence, Origin, Row

HEADER = struct.Struct("<4sHHiIQq")
WINDOW = 8192
EVICTED = 4096
"""Winners are evicted in multiples of it."""
PART = 256
"""After so many rows of an entry, and at its end, there may be too many winners."""
NEVER = sys.maxsize
BLOCK = 256
NEAR = "near_duplicate"


class Counted(NamedTuple):
    """The verdict on an origin's counting claim."""

    position: int
    start: int
    """Position of its entry's first row: the search for it was over by then."""
    vector: np.ndarray
    """(d,) float16"""
    winner: int
    """Position of the winner that it lost to; −1 if it won."""
    similarity: float


class Term(NamedTuple):
    """An owner's time with a partition: both lists begin with its open and ascend."""

    offsets: list[int]
    """Where it begins, and what it claimed; again, if that was void, does not count."""
    seen: list[int]
    """What was applied then."""


@dataclass
class ClaimLog:
    """The log's verdicts. ``kinds`` counts what happened to claim rows."""

    capacity: int | None = None
    threshold: float = 2.0
    position: int = 0
    counted: dict[Origin, Counted] = field(default_factory=dict)
    winners: dict[int, Origin] = field(default_factory=dict)
    """Position → origin of every winner, withdrawn ones too."""
    withdrawn: set[int] = field(default_factory=set)
    evicted: int = 0
    """How many winners were evicted, the oldest."""
    gone: dict[int, int] = field(default_factory=dict)
    """Position of a winner → the last one before it was evicted or withdrawn: who has seen more
    than that cannot find it."""
    kinds: Counter[str] = field(default_factory=Counter)
    parted: int = 0
    """Pairs of winners that are near, the first of which was gone before the search for the second:
    what `violations` let pass."""
    _opens: dict[int, dict[str, int]] = field(default_factory=dict)
    _floors: dict[int, int] = field(default_factory=dict)
    _terms: defaultdict[int, list[Term]] = field(default_factory=lambda: defaultdict(list))
    _positions: list[int] = field(default_factory=list)
    _vectors: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def read(self, value: bytes) -> None:
        """Applies the log's next entry."""
        if value[:4] == b"SCLM":
            _, _, dim, partition, rows, term, seen = HEADER.unpack_from(value)
            offsets = np.frombuffer(value, "<i8", rows, HEADER.size)
            vectors = np.frombuffer(value, "<f2", rows * dim, HEADER.size + 8 * rows).reshape(
                rows, dim
            )
            start = self.position
            for row, (offset, vector) in enumerate(zip(offsets.tolist(), vectors, strict=True), 1):
                self.kinds[self._claim(partition, term, seen, offset, vector, start)] += 1
                if row % PART == 0 or row == rows:
                    self._evict()
                self.position += 1
            return
        entry = json.loads(value)
        if entry["entry"] == "dataset" and self.position == 0:
            self.threshold = entry["threshold"]
            self._vectors = np.empty((1024, entry["dim"]))
        elif entry["entry"] == "open":
            partition, latest = entry["partition"], self._opens.get(entry["partition"])
            if latest is None or entry["generation"] >= latest["generation"]:
                self._opens[partition] = entry
                self._floors[partition] = max(self._floors.get(partition, 0), entry["from"])
                if latest is None or entry["term"] != latest["term"]:
                    self._terms[partition].append(Term([entry["from"]], [self.position + 1]))
            else:
                self.kinds["void open"] += 1
        elif entry["entry"] == "withdraw":
            partition, offset = entry["partition"], entry["offset"]
            counted = self.counted.get((partition, offset))
            if (
                counted is not None
                and counted.winner < 0
                and self._owns(partition, entry["term"], offset)
            ):
                self.withdrawn.add(counted.position)
                self.gone.setdefault(counted.position, self.position)
        self.position += 1

    def seen(self, origin: Origin) -> int:
        """What a search for it had seen at least: what the batch before its own had, under the term
        that could commit it."""
        partition, offset = origin
        term = next(term for term in reversed(self._terms[partition]) if term.offsets[0] <= offset)
        its = term.seen[bisect_right(term.offsets, offset) - 1]
        return term.seen[max(bisect_left(term.seen, its) - 1, 0)]

    def _owns(self, partition: int, term: int, offset: int) -> bool:
        latest = self._opens.get(partition)
        return latest is not None and latest["term"] == term and offset >= self._floors[partition]

    def _evict(self) -> None:
        rows = len(self._positions)
        if self.capacity is None or rows - self.evicted <= self.capacity:
            return
        many = rows - self.capacity + self.capacity // 16
        following = -(-many // EVICTED) * EVICTED
        for position in self._positions[self.evicted : following]:
            self.gone.setdefault(position, self.position)
        self.evicted = following

    def _claim(
        self, partition: int, term: int, seen: int, offset: int, vector: np.ndarray, start: int
    ) -> str:
        if not self._owns(partition, term, offset):
            return "void, not under the latest open"
        latest = self._terms[partition][-1]
        if offset > latest.offsets[-1]:
            latest.offsets.append(offset)
            latest.seen.append(seen)
        if (partition, offset) in self.counted:
            return "repeated"
        if seen > start or self.position - seen > WINDOW:
            return "void, stale"
        wide = vector.astype(np.float64)
        first = bisect_left(self._positions, seen)
        similar = self._vectors[first : len(self._positions)] @ wide
        for at in np.flatnonzero(similar >= self.threshold).tolist():
            if self._positions[first + at] not in self.withdrawn:
                self.counted[partition, offset] = Counted(
                    self.position, start, vector, self._positions[first + at], float(similar[at])
                )
                return "lost"
        if len(self._positions) == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[len(self._positions)] = wide
        self._positions.append(self.position)
        self.winners[self.position] = partition, offset
        self.counted[partition, offset] = Counted(self.position, start, vector, -1, 0.0)
        return "won"


def read_log(claims: list[bytes], capacity: int | None = None) -> ClaimLog:
    """``capacity``: dedup.capacity."""
    log = ClaimLog(capacity)
    for value in claims:
        log.read(value)
    return log


def violations(evidence: Evidence, log: ClaimLog) -> list[str]:
    """Everything that contradicts the invariants; empty if all is well. ``log``: the evidence's
    claims."""
    return [
        *_epochs(evidence),
        *_records(evidence),
        *_shards(evidence),
        *_claims(evidence, log),
        *_near(evidence, log),
    ]


def measures(evidence: Evidence, log: ClaimLog) -> dict[str, Any]:
    """What the run was about, for people, once `violations` has looked for them."""
    rows = [row.facts for row in evidence.rows]
    duplicates = [row for row in rows if row["outcome"] == "duplicate"]
    return {
        **{
            f"records {name}": count
            for name, count in sorted(Counter(row["outcome"] for row in rows).items())
        },
        "duplicates decided by the log": sum(row["claim"] is not None for row in duplicates),
        "duplicates decided by the pre-check": sum(row["claim"] is None for row in duplicates),
        "accepted although a filter said no later": sum(
            row["outcome"] == "accepted" and bool(row["flags"]) for row in rows
        ),
        **{f"claims {name}": count for name, count in sorted(log.kinds.items())},
        "claim log positions": log.position,
        "epochs": sum(bool(manifest["files"]) for manifest in evidence.commits),
        "records skipped, which expired": len(skipped(evidence)),
        "poison set aside": sum(row["reason"] == "crashed" for row in rows),
        "winners withdrawn": len(log.withdrawn),
        "winners evicted": log.evicted,
        "pairs of winners of which one was gone before the other": log.parted,
    }


def skipped(evidence: Evidence) -> set[Origin]:
    """What the commit log says will never be decided."""
    return {
        (int(partition), offset)
        for manifest in evidence.commits
        for partition, ranges in manifest["skipped"].items()
        for first, following in ranges
        for offset in range(first, following)
    }


def _epochs(evidence: Evidence) -> Iterator[str]:
    """The folder shows exactly what the commit log names, and the ranges tile each partition up to
    the committed offset."""
    named: set[str] = set()
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    paths = set()
    for manifest in evidence.commits:
        path = f"manifests/{manifest['writer']}-{manifest['epoch']:08d}.json"
        if path in paths:
            yield f"{path} is committed twice"
        paths.add(path)
        if evidence.manifests.get(path) != manifest:
            yield f"{path} is not what the commit log holds"
        for partition, (first, following) in manifest["partitions"].items():
            ranges[int(partition)].append((first, following))
        for partition, passed in manifest["skipped"].items():
            first, following = manifest["partitions"].get(partition, (0, 0))
            for a, b in passed:
                if not first <= a < b <= following:
                    yield f"{path} skips {a} to {b} of partition {partition}, outside its range"
                if b > evidence.expired.get(int(partition), 0):
                    yield f"{path} skips {a} to {b} of partition {partition}, which did not expire"
        for file in manifest["files"]:
            if file["path"] in named:
                yield f"{file['path']} is in two epochs"
            named.add(file["path"])
            if evidence.files.get(file["path"]) != (file["bytes"], file["sha256"]):
                yield f"{file['path']} is not the file of {path}"
    yield from (
        f"{path} is in no committed epoch"
        for path in [*evidence.manifests.keys() - paths, *evidence.files.keys() - named]
    )
    yield from (f"{path} is left in staging" for path in evidence.staged)
    for partition, found in sorted(ranges.items()):
        at = 0
        for first, following in sorted(found):
            if first != at:
                yield f"partition {partition}: a range begins at {first}, the one before ends at {at}"
            at = following
        if at != evidence.committed.get(partition):
            yield f"partition {partition}: the ranges end at {at}, the committed offset is {evidence.committed.get(partition)}"


def _records(evidence: Evidence) -> Iterator[str]:
    """Every produced record has exactly one row, which tells the truth about it, or was skipped."""
    rows = Counter(row.origin for row in evidence.rows)
    passed = skipped(evidence)
    yield from (f"{origin} is lost" for origin in evidence.produced.keys() - rows.keys() - passed)
    yield from (f"{origin} is skipped and decided" for origin in rows.keys() & passed)
    yield from (f"{origin} was never produced" for origin in rows.keys() - evidence.produced.keys())
    yield from (
        f"{origin} was decided {count} times" for origin, count in rows.items() if count > 1
    )
    for row in evidence.rows:
        produced, facts = evidence.produced.get(row.origin), row.facts
        if facts["key"] != _key(row.origin):
            yield f"{row.origin} has the key {facts['key']}"
        if produced is not None and facts["sha256"] not in (None, produced.sha256):
            yield f"{row.origin}: the row's sha256 is not that of what was produced"
        if produced is not None and facts["text"] not in (None, produced.text):
            yield f"{row.origin}: the row's text is {facts['text']!r}, not {produced.text!r}"
        if produced is not None:
            set_aside = (facts["outcome"], facts["reason"]) == ("invalid", "crashed")
            if set_aside and not produced.is_poison:
                yield f"{row.origin} is set aside and is no poison"
            elif produced.is_poison and not set_aside:
                yield f"{row.origin} is poison and {facts['outcome']} ({facts['reason']})"


def _shards(evidence: Evidence) -> Iterator[str]:
    """Exactly the accepted records are in the shards, byte for byte as they were produced, each
    once."""
    samples: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for shard, key, extension, sha256 in evidence.members:
        if extension in samples[key]:
            yield f"{key}.{extension} is in the shards twice: {samples[key][extension][0]}, {shard}"
        samples[key][extension] = shard, sha256
    accepted = {
        row.facts["key"]: row for row in evidence.rows if row.facts["outcome"] == "accepted"
    }
    yield from (f"{key} is accepted and in no shard" for key in accepted.keys() - samples.keys())
    yield from (f"{key} is in a shard and not accepted" for key in samples.keys() - accepted.keys())
    for key in accepted.keys() & samples.keys():
        row, produced = accepted[key].facts, evidence.produced.get(accepted[key].origin)
        shard = row["shard"]
        if {"json", "txt", row["format"]} != samples[key].keys() or {
            found for found, _ in samples[key].values()
        } != {shard}:
            yield f"{key} is not whole in its shard {shard}: {samples[key]}"
        elif produced is not None:
            if samples[key][row["format"]][1] != produced.sha256:
                yield f"{key}: the image in {shard} is not what was produced"
            if samples[key]["txt"][1] != hashlib.sha256(produced.text.encode()).hexdigest():
                yield f"{key}: the caption in {shard} is not what was produced"


def _claims(evidence: Evidence, log: ClaimLog) -> Iterator[str]:
    """Rows say what the claim log decided, and nothing that it did not."""
    rows = {row.origin: row for row in evidence.rows}
    passed = skipped(evidence)
    for origin, counted in log.counted.items():
        row = rows.get(origin)
        if row is None and origin in passed:
            if counted.winner < 0 and counted.position not in log.withdrawn:
                yield f"{origin} won at {counted.position}, was skipped and is not withdrawn"
            continue
        if row is None:
            yield f"{origin} has a claim at {counted.position} and no row"
            continue
        facts, outcome = row.facts, row.facts["outcome"]
        if counted.position in log.withdrawn:
            if (outcome, facts["reason"]) != ("invalid", "withdrawn"):
                yield f"{origin} was withdrawn and is {outcome}"
            continue
        if facts["claim"] != counted.position:
            yield f"{origin}: its claim counted at {counted.position}, its row says {facts['claim']}"
        if row.vector is None or row.vector.tobytes() != counted.vector.tobytes():
            yield f"{origin}: its row's embedding is not that of its claim"
        if counted.winner < 0:
            if outcome != "accepted" or NEAR in facts["flags"]:
                yield f"{origin} won at {counted.position} and is {outcome}, {facts['flags']}"
        elif (facts["duplicate_of"], facts["similarity"]) != (
            _key(log.winners[counted.winner]),
            counted.similarity,
        ):
            yield f"{origin} lost to {log.winners[counted.winner]} and is a duplicate of {facts['duplicate_of']}"
        elif outcome != "duplicate" and NEAR not in facts["flags"]:
            yield f"{origin} lost at {counted.position} and is {outcome}, {facts['flags']}"
    for row in evidence.rows:
        if row.origin not in log.counted and row.facts["claim"] is not None:
            yield f"{row.origin}: its row names a claim at {row.facts['claim']}, which never counted"
        if (
            row.origin not in log.counted
            and row.facts["outcome"] == "accepted"
            and NEAR not in row.facts["flags"]
        ):
            yield f"{row.origin} is accepted without a claim that counted"


def _near(evidence: Evidence, log: ClaimLog) -> Iterator[str]:
    """Brute force in float64 over all winners, withdrawn ones too: none is near an earlier one that
    was not gone; a duplicate names the lowest that its search can have found."""
    winners = [
        row for row in evidence.rows if row.facts["reason"] == "withdrawn" or _is_winner(row)
    ]
    winners += _skipped_winners(evidence, log)
    winners.sort(key=lambda row: -1 if row.facts["claim"] is None else row.facts["claim"])
    duplicates = [
        row
        for row in evidence.rows
        if row.facts["outcome"] == "duplicate" or NEAR in row.facts["flags"]
    ]
    missing = [row for row in [*winners, *duplicates] if row.vector is None]
    if missing or not winners:
        yield from (
            f"{row.origin} is {row.facts['outcome']} and has no embedding" for row in missing
        )
        return
    known = np.stack([row.vector for row in winners]).astype(np.float64)
    gone = np.array([log.gone.get(row.facts["claim"], NEVER) for row in winners])
    for at in range(0, len(known), BLOCK):
        here = known[at : at + BLOCK]
        for left, right in np.argwhere(known[: at + len(here)] @ here.T >= log.threshold).tolist():
            counted = log.counted.get(winners[at + right].origin)
            if left >= at + right:
                continue
            if counted is not None and gone[left] < counted.start:
                log.parted += 1
            else:
                yield f"{winners[left].origin} and {winners[at + right].origin} are both accepted, similarity {known[left] @ here[right]!r}"
    number = {row.facts["key"]: at for at, row in enumerate(winners)}
    sealed = {
        file["path"]: manifest["claims_position"]
        for manifest in evidence.commits
        for file in manifest["files"]
    }
    for at in range(0, len(duplicates), BLOCK):
        part = duplicates[at : at + BLOCK]
        similar = known @ np.stack([row.vector for row in part]).astype(np.float64).T
        for i, row in enumerate(part):
            counted, named = log.counted.get(row.origin), number.get(row.facts["duplicate_of"])
            until = sealed.get(row.file, NEVER) if counted is None else counted.start
            until = (
                min(until, gone[named]) if named is not None else 0
            )  # a search at which what it names was there: what was gone by then?
            near = np.flatnonzero((similar[:, i] >= log.threshold) & (gone >= until))
            yield from _named(
                row,
                winners[near[0]] if len(near) else None,
                float(similar[near[0], i]) if len(near) else 0.0,
            )
            if counted is None and named is not None and gone[named] < log.seen(row.origin):
                yield f"{row.origin} is a duplicate of {row.facts['duplicate_of']}, which was gone at {gone[named]}, before the search for it"


def _skipped_winners(evidence: Evidence, log: ClaimLog) -> Iterator[Row]:
    """They have no rows: until they were withdrawn, others were compared with them."""
    for origin in skipped(evidence) & log.counted.keys():
        counted = log.counted[origin]
        if counted.winner < 0:
            facts = {
                "partition": origin[0],
                "offset": origin[1],
                "key": _key(origin),
                "claim": counted.position,
                "outcome": "skipped",
                "flags": [],
            }
            yield Row("", facts, counted.vector)


def _is_winner(row: Row) -> bool:
    return row.facts["outcome"] == "accepted" and NEAR not in row.facts["flags"]


def _named(row: Row, lowest: Row | None, similarity: float) -> Iterator[str]:
    if lowest is None:
        yield f"{row.origin} is a duplicate of {row.facts['duplicate_of']}, and no accepted record is near it"
    elif row.facts["duplicate_of"] != lowest.facts["key"]:
        yield f"{row.origin} is a duplicate of {row.facts['duplicate_of']}, and {lowest.facts['key']} of a lower position is near it"
    elif row.facts["similarity"] != similarity:
        yield f"{row.origin}: its similarity is {row.facts['similarity']!r}, the embeddings give {similarity!r}"


def _key(origin: Origin) -> str:
    return f"{origin[0]:05d}_{origin[1]:012d}"
