"""The short form of `tests.faults.chaos`, and proof that its judgement finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from streamer.testing import Broker
from tests.faults.chaos import DECK, Chaos, plan, wrong_digests
from tests.faults.evidence import Evidence, Row
from tests.faults.verdict import measures, violations

SEED = 20


@pytest.mark.timeout(400)
def test_replicas_agree_whatever_happens_to_them(embedded: type[Broker], tmp_path: Path) -> None:
    faults = plan(SEED, 7, gap_s=3.0, replicas=3)
    print(f"seed {SEED}", *faults, sep="\n  ")
    assert len({fault.kind for fault in faults}) == len(set(DECK)) >= 3
    with Chaos(tmp_path, SEED) as chaos:
        chaos.run(faults)
        evidence, found = chaos.judge(chaos.settle())
    told = measures(evidence)
    print(*(f"{name}: {value}" for name, value in told.items()), chaos.drops, chaos.ends, sep="\n  ")
    assert not found, "\n".join(found[:20])
    assert told["duplicates decided by the log"] >= 0.15 * told["records duplicate"] > 40
    check_the_judge(evidence)
    position, _ = chaos.digests[-1]
    assert wrong_digests(evidence.claims, [(position, "0" * 64)])
    assert wrong_digests(evidence.claims[:-1], chaos.digests), "a log that ends early has other digests"


def check_the_judge(evidence: Evidence) -> None:
    """Each damage to good evidence is named."""
    assert not violations(evidence)
    for damage, words in DAMAGES:
        found = violations(damage(evidence))
        assert any(words in line for line in found), f"{damage.__name__}: nothing says {words!r} in {found[:5]}"


def of(evidence: Evidence, outcome: str) -> list[Row]:
    return [row for row in evidence.rows if row.facts["outcome"] == outcome]


def changed(evidence: Evidence, row: Row, **facts: object) -> Evidence:
    """With other facts in this row."""
    return replace(evidence, rows=[Row(r.file, {**r.facts, **facts}, r.vector) if r is row else r for r in evidence.rows])


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
    twice = [member._replace(shard="shards/jpg/other-00000001-000.tar") for member in evidence.members[:3]]
    return replace(evidence, members=[*evidence.members, *twice])


def another_image(evidence: Evidence) -> Evidence:
    members = [member._replace(sha256="0" * 64) if member.extension == "jpg" else member for member in evidence.members]
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
    last = next(i for i in reversed(range(len(evidence.claims))) if evidence.claims[i][:4] == b"SCLM")
    return replace(evidence, claims=[*evidence.claims[:last], *evidence.claims[last + 1 :]])


def another_vector(evidence: Evidence) -> Evidence:
    a, b, *_ = of(evidence, "accepted")
    return replace(evidence, rows=[Row(r.file, r.facts, b.vector if r is a else r.vector) for r in evidence.rows])


def an_epoch_not_shown(evidence: Evidence) -> Evidence:
    return replace(evidence, manifests=dict(list(evidence.manifests.items())[:-1]))


def an_epoch_not_committed(evidence: Evidence) -> Evidence:
    return replace(evidence, commits=evidence.commits[:-1])


def another_file(evidence: Evidence) -> Evidence:
    return replace(evidence, files={path: (size + 1, sha256) for path, (size, sha256) in evidence.files.items()})


def another_offset(evidence: Evidence) -> Evidence:
    return replace(evidence, committed={partition: offset - 1 for partition, offset in evidence.committed.items()})


def something_staged(evidence: Evidence) -> Evidence:
    return replace(evidence, staged=[".staging/w0/00000001-x/a.tar"])


DAMAGES: list[tuple[Callable[[Evidence], Evidence], str]] = [
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
]


def test_a_plan_follows_from_its_seed_and_uses_every_kind() -> None:
    assert plan(3, 20, 1.0, 3) == plan(3, 20, 1.0, 3) != plan(4, 20, 1.0, 3)
    kinds = Counter(fault.kind for fault in plan(5, 3 * len(DECK), 1.0, 3))
    assert kinds == {kind: 3 * DECK.count(kind) for kind in DECK}
