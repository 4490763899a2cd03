"""The short form of `tests.faults.chaos`, and proof that its judgement finds what it is there to
find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.dedup.choose import open_index
from streamer.dedup.meld import VERSION, Meld, least_capacity
from streamer.testing import Broker
from streamer.wire.claim import Claims, DatasetEntry, Entry, Open, Withdraw, encode
from tests.faults.chaos import DECK, Chaos, deck, plan, wrong_digests
from tests.faults.evidence import POISON, Evidence, Row
from tests.faults.verdict import EVICTED, ClaimLog, Counted, _near, read_log, violations

SEED = 20
Damage = tuple[Callable[[Evidence], Evidence], str]


@pytest.mark.timeout(600)
def test_replicas_agree_whatever_happens_to_them(embedded: type[Broker], tmp_path: Path) -> None:
    faults = plan(SEED, 7, gap_s=3.0, replicas=3)
    print(f"seed {SEED}", *faults, sep="\n  ")
    assert len({fault.kind for fault in faults}) == len(set(DECK)) >= 3
    with Chaos(tmp_path, SEED) as chaos:
        chaos.run(faults)
        evidence, told, found = chaos.judge(chaos.settle())
    print(
        *(f"{name}: {value}" for name, value in told.items()), chaos.drops, chaos.ends, sep="\n  "
    )
    assert not found, "\n".join(found[:20])
    assert told["duplicates decided by the log"] >= 0.15 * told["records duplicate"] > 40
    check_the_judge(evidence, DAMAGES)
    if told["winners withdrawn"]:  # most often some
        check_the_judge(evidence, WITHDRAWALS)
    position, _ = chaos.digests[-1]
    assert wrong_digests(evidence.claims, [(position, "0" * 64)])
    assert wrong_digests(evidence.claims[:-1], chaos.digests), (
        "a log that ends early has other digests"
    )


def check_the_judge(evidence: Evidence, damages: list[Damage]) -> None:
    """Each damage to good evidence is named."""
    for damage, words in damages:
        damaged = damage(evidence)
        found = violations(damaged, read_log(damaged.claims))
        assert any(words in line for line in found), (
            f"{damage.__name__}: nothing says {words!r} in {found[:5]}"
        )


def of(evidence: Evidence, outcome: str) -> list[Row]:
    return [row for row in evidence.rows if row.facts["outcome"] == outcome]


def changed(evidence: Evidence, row: Row, **facts: object) -> Evidence:
    """With other facts in this row."""
    return replace(
        evidence,
        rows=[
            Row(r.file, {**r.facts, **facts}, r.vector) if r is row else r for r in evidence.rows
        ],
    )


def a_row_gone(evidence: Evidence) -> Evidence:
    return replace(evidence, rows=evidence.rows[1:])


def a_row_twice(evidence: Evidence) -> Evidence:
    return replace(evidence, rows=[*evidence.rows, evidence.rows[3]])


def another_sha256(evidence: Evidence) -> Evidence:
    return changed(evidence, of(evidence, "duplicate")[0], sha256="0" * 64)


def a_winner_in_no_shard(evidence: Evidence) -> Evidence:
    key = of(evidence, "accepted")[5].facts["key"]
    return replace(evidence, members=[member for member in evidence.members if member.key != key])


def a_sample_in_two_shards(evidence: Evidence) -> Evidence:
    twice = [
        member._replace(shard="shards/jpg/other-00000001-000.tar")
        for member in evidence.members[:3]
    ]
    return replace(evidence, members=[*evidence.members, *twice])


def another_image(evidence: Evidence) -> Evidence:
    members = [
        member._replace(sha256="0" * 64) if member.extension == "jpg" else member
        for member in evidence.members
    ]
    return replace(evidence, members=members)


def two_near_ones_accepted(evidence: Evidence) -> Evidence:
    lost = next(row for row in of(evidence, "duplicate") if row.facts["claim"] is None)
    return changed(evidence, lost, outcome="accepted", duplicate_of=None, similarity=None)


def a_duplicate_of_a_duplicate(evidence: Evidence) -> Evidence:
    first, second, *_ = [row for row in of(evidence, "duplicate") if row.facts["claim"] is None]
    return changed(evidence, first, duplicate_of=second.facts["key"])


def a_lost_claim_forgotten(evidence: Evidence) -> Evidence:
    lost = next(row for row in of(evidence, "duplicate") if row.facts["claim"] is not None)
    return changed(evidence, lost, outcome="filtered", reason="moody", claim=None)


def a_won_claim_forgotten(evidence: Evidence) -> Evidence:
    return changed(evidence, of(evidence, "accepted")[2], outcome="filtered", reason="moody")


def a_claim_gone(evidence: Evidence) -> Evidence:
    last = next(
        i for i in reversed(range(len(evidence.claims))) if evidence.claims[i][:4] == b"SCLM"
    )
    return replace(evidence, claims=[*evidence.claims[:last], *evidence.claims[last + 1 :]])


def a_withdrawal_gone(evidence: Evidence) -> Evidence:
    return replace(
        evidence, claims=[value for value in evidence.claims if b'"withdraw"' not in value]
    )


def another_vector(evidence: Evidence) -> Evidence:
    a, b, *_ = of(evidence, "accepted")
    return replace(
        evidence,
        rows=[Row(r.file, r.facts, b.vector if r is a else r.vector) for r in evidence.rows],
    )


def an_epoch_not_shown(evidence: Evidence) -> Evidence:
    return replace(evidence, manifests=dict(list(evidence.manifests.items())[:-1]))


def an_epoch_not_committed(evidence: Evidence) -> Evidence:
    return replace(evidence, commits=evidence.commits[:-1])


def another_file(evidence: Evidence) -> Evidence:
    return replace(
        evidence,
        files={path: (size + 1, sha256) for path, (size, sha256) in evidence.files.items()},
    )


def another_offset(evidence: Evidence) -> Evidence:
    return replace(
        evidence,
        committed={partition: offset - 1 for partition, offset in evidence.committed.items()},
    )


def something_staged(evidence: Evidence) -> Evidence:
    return replace(evidence, staged=[".staging/w0/00000001-x/a.tar"])


def something_set_aside(evidence: Evidence) -> Evidence:
    return changed(evidence, of(evidence, "accepted")[1], outcome="invalid", reason="crashed")


def poison_accepted(evidence: Evidence) -> Evidence:
    origin = of(evidence, "accepted")[1].origin
    poison = evidence.produced[origin]._replace(text=f"{POISON} 1")
    return replace(evidence, produced={**evidence.produced, origin: poison})


def a_winner_skipped(evidence: Evidence, expired: bool = True) -> Evidence:
    """And nothing else: its row is gone."""
    row = next(r for r in of(evidence, "accepted") if r.facts["claim"] is not None)
    partition, offset = row.origin
    commits = [
        {**manifest, "skipped": {str(partition): [[offset, offset + 1]]}}
        if first <= offset < following
        else manifest
        for manifest in evidence.commits
        for first, following in [manifest["partitions"].get(str(partition), (0, 0))]
    ]
    return replace(
        evidence,
        commits=commits,
        rows=[r for r in evidence.rows if r is not row],
        expired={partition: offset + 1} if expired else {},
    )


def a_skip_of_what_is_there(evidence: Evidence) -> Evidence:
    return a_winner_skipped(evidence, expired=False)


def a_skip_of_what_is_decided(evidence: Evidence) -> Evidence:
    return replace(a_winner_skipped(evidence), rows=evidence.rows)


DAMAGES: list[Damage] = [
    (a_row_gone, "is lost"),
    (a_row_twice, "was decided 2 times"),
    (another_sha256, "sha256 is not that of what was produced"),
    (a_winner_in_no_shard, "accepted and in no shard"),
    (a_sample_in_two_shards, "in the shards twice"),
    (another_image, "is not what was produced"),
    (two_near_ones_accepted, "are both accepted"),
    (two_near_ones_accepted, "accepted without a claim"),
    (a_duplicate_of_a_duplicate, "of a lower position is near it"),
    (a_lost_claim_forgotten, "its row says None"),
    (a_won_claim_forgotten, "and is filtered"),
    (a_won_claim_forgotten, "in a shard and not accepted"),
    (a_claim_gone, "which never counted"),
    (another_vector, "is not that of its claim"),
    (another_vector, "are both accepted"),
    (an_epoch_not_shown, "is not what the commit log holds"),
    (an_epoch_not_committed, "in no committed epoch"),
    (another_file, "is not the file of"),
    (another_offset, "the committed offset is"),
    (something_staged, "left in staging"),
    (something_set_aside, "is set aside and is no poison"),
    (poison_accepted, "is poison and accepted"),
    (a_winner_skipped, "was skipped and is not withdrawn"),
    (a_skip_of_what_is_there, "which did not expire"),
    (a_skip_of_what_is_decided, "is skipped and decided"),
]
WITHDRAWALS: list[Damage] = [(a_withdrawal_gone, "and is invalid")]


def test_the_judge_knows_from_the_log_who_was_evicted_when() -> None:
    """As the meld does, after every entry, whatever its size; some winners are withdrawn before or
    after."""
    capacity, dim, dice = least_capacity(), 8, np.random.default_rng(8)
    meld, log = Meld(dim, 0.97, open_index(dim, 0.97, "cpu"), capacity=capacity), ClaimLog(capacity)
    read_both(meld, log, DatasetEntry("topic", "model", dim, 0.97, VERSION))
    read_both(meld, log, Open(0, 1, 7, 0))
    offset = 0
    while log.evicted < 3 * EVICTED:
        vectors = dice.standard_normal((int(dice.integers(1, 2000)), dim))
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        read_both(
            meld, log, Claims(0, 7, meld.position, np.arange(offset, offset + len(unit)), unit)
        )
        offset += len(unit)
        read_both(meld, log, Withdraw(0, int(dice.integers(offset)), 7))
    assert min(log.kinds["won"], log.kinds["lost"], len(log.withdrawn)) > 10


def read_both(meld: Meld, log: ClaimLog, entry: Entry) -> None:
    meld.apply(entry)
    log.read(encode(entry))
    assert (log.position, log.evicted, len(log.winners) - len(log.gone)) == (
        meld.position,
        meld.evicted,
        len(meld),
    )


@pytest.mark.parametrize(
    ("gone", "claim", "names", "says"),
    [
        ({}, 30, None, "both accepted"),
        ({10: 29, 20: 30}, 30, None, "both accepted"),
        ({10: 29, 20: 29}, 30, None, ""),
        ({}, None, 10, ""),
        ({10: 16}, None, 10, ""),
        ({10: 15}, None, 10, "before the search for it"),
        ({}, None, 20, "of a lower position"),
        ({10: 38}, None, 20, ""),
        ({10: 39}, None, 20, "of a lower position"),
        ({10: 30, 20: 31}, None, 20, ""),
        ({10: 30, 20: 30}, None, 20, "of a lower position"),
    ],
)
def test_a_winner_is_missed_only_once_it_is_gone(
    gone: dict[int, int], claim: int | None, names: int | None, says: str
) -> None:
    """A record that is near the winners at 10 and 20, of which some are gone; its term begins at
    16, its epoch was sealed at 39."""
    log = ClaimLog(threshold=0.9, gone=gone)
    log.position = 15
    log.read(encode(Open(0, 1, 7, 0)))
    rows = [row(log, 10, 0), row(log, 20, 40)]
    rows.append(
        row(log, 30, 20)
        if claim
        else row(log, 30, 20, claim=None, outcome="duplicate", duplicate_of=str(names))
    )
    if names is not None:
        rows[-1].facts["similarity"] = float(
            rows[-1].vector.astype(float) @ rows[names // 10 - 1].vector.astype(float)
        )
    commits = [{"files": [{"path": "rows"}], "claims_position": 39, "skipped": {}}]
    found = [*_near(Evidence({}, [], commits, {}, {}, rows, [], [], {}), log)]
    assert any(says in line for line in found) if says else not found, found


def row(log: ClaimLog, position: int, degrees: float, **facts: Any) -> Row:
    """Claimed at this position, which is its offset too, unless ``facts`` say otherwise."""
    vector = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float16)
    whole = {
        "key": str(position),
        "partition": 0,
        "offset": position,
        "claim": position,
        "outcome": "accepted",
        "reason": None,
        "flags": [],
    }
    if (whole | facts)["claim"] is not None:
        log.counted[0, position] = Counted(position, position, vector, -1, 0.0)
    return Row("rows", {**whole, **facts}, vector)


def test_a_plan_follows_from_its_seed_and_uses_every_kind() -> None:
    assert plan(3, 20, 1.0, 3) == plan(3, 20, 1.0, 3) != plan(4, 20, 1.0, 3)
    kinds = Counter(fault.kind for fault in plan(5, 3 * len(DECK), 1.0, 3))
    assert kinds == {kind: 3 * DECK.count(kind) for kind in DECK}
    assert set(DECK) < set(deck(brokers=1, on_s3=False)) < set(deck(brokers=3, on_s3=True))
