"""The commit protocol under crash, rebalance, fencing, in-doubt commits and slow storage, against
the invariants of docs/architecture.md.

Each example is a whole world: one to three replicas made of the real Replica, Source, Batcher,
EpochThread, CommitEngine, Ledger and Storage, on a simulated Kafka, disk and clock (`simulation`).
STREAMER_LONG=1 runs many more of them, and every mutation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sim_mutation import BOUNDED_MUTATIONS, MUTATIONS, SKEWED_MUTATIONS, SLOPPY, Mutation
from sim_oracle import Violation
from sim_trouble import TROUBLES
from simulation import Setting, Trouble, simulate

LONG = os.environ.get("STREAMER_LONG", "") not in ("", "0")
WORLDS = settings(
    max_examples=6000 if LONG else 180,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

EXPIRE = [name for name, _ in TROUBLES].index("expire")

pytestmark = pytest.mark.timeout(3600 if LONG else 300)

jitter = st.one_of(st.just(0), st.integers(1, 1 << 16))
trouble = st.tuples(st.integers(1, 100), st.integers(0, len(TROUBLES) - 1), st.integers(0, 255))
plans = st.integers(0, 3).flatmap(lambda n: st.lists(trouble, min_size=12 * n, max_size=12 * n + 8))
of_all: dict[str, st.SearchStrategy[Any]] = {
    "writers": st.integers(1, 3),
    "partitions": st.integers(1, 3),
    "records": st.sampled_from((6, 20, 60)),
    "static": st.booleans(),
    "hasty": st.booleans(),
    "poison": st.integers(0, 3).map(lambda n: n == 3),
    "expiring": st.booleans(),
    "jitter": jitter,
    "skew": st.sampled_from((0, 0, 1000, -1000, 40)),
}
worlds = st.builds(
    Setting,
    **of_all,
    copies=st.booleans(),
    latest=st.integers(0, 5).map(lambda n: n == 5),
    patient=st.booleans(),
)
bounded_worlds = st.builds(Setting, **of_all, bounded=st.just(True))


@WORLDS
@example(Setting(), [])
@example(Setting(writers=3, partitions=3, records=60, jitter=1), [])
@example(Setting(writers=3, partitions=2, records=200, poison=True), [])
@example(Setting(records=60, expiring=True), [(40, EXPIRE, 28), (40, EXPIRE, 29)] * 8)
@given(worlds, plans)
def test_every_record_is_committed_once_whatever_happens(
    setting: Setting, plan: list[Trouble]
) -> None:
    simulate(setting, plan)


@settings(WORLDS, max_examples=WORLDS.max_examples // 3)
@given(bounded_worlds, plans)
def test_a_bounded_run_that_ends_well_has_done_everything(
    setting: Setting, plan: list[Trouble]
) -> None:
    simulate(setting, plan)


@pytest.mark.parametrize(
    ("plan", "cause"),
    [
        ((("abort", 5),), "aborted"),
        (
            (("terminate", 0), ("delay", 8)),
            "shutdown",
        ),  # the storage takes longer than the line has at a shutdown
    ],
)
def test_the_cause_of_a_drop_is_told(plan: tuple[tuple[str, int], ...], cause: str) -> None:
    kinds = [name for name, _ in TROUBLES]
    first, *more = [(kinds.index(kind), argument) for kind, argument in plan]
    found = []
    for step in range(20, 80):  # some of them meet an epoch half way
        troubles = [
            (step, *first),
            *((1, *trouble) for trouble in more),
            (100, kinds.index("nothing"), 0),
        ]
        found.append(simulate(Setting(writers=1), troubles).drops)
    assert [cause] in found


def dice(seed: int) -> tuple[Setting, list[Trouble]]:
    """A world for a mutation check: no shrinking is needed there, only many worlds."""
    roll = random.Random(seed)
    setting = Setting(
        writers=roll.choice((1, 2, 2, 3)), partitions=roll.randint(1, 3), records=roll.choice((6, 20, 60)), static=roll.random() < 0.4,
        copies=roll.random() < 0.4, latest=roll.random() < 0.2, hasty=roll.random() < 0.4, patient=roll.random() < 0.4,
        jitter=roll.choice((0, roll.randrange(1, 1 << 16))),
    )  # fmt: skip
    plan = [
        (
            roll.randint(1, roll.choice((10, 60, 150))),
            roll.randrange(len(TROUBLES)),
            roll.randrange(256),
        )
        for _ in range(roll.choice((10, 25, 40)))
    ]
    return setting, plan


@pytest.mark.parametrize(
    ("mutation", "bounded"),
    [
        pytest.param(mutation, mutation in BOUNDED_MUTATIONS, id=mutation.name)
        for mutation in (*MUTATIONS, *BOUNDED_MUTATIONS)
        if LONG or mutation.quick
    ],
)
def test_a_broken_protocol_is_noticed(mutation: Mutation, bounded: bool) -> None:
    assert finds_a_violation(mutation, bounded_dice if bounded else dice)


def test_the_engine_alone_keeps_the_invariants_for_a_caller_that_looks_at_nothing() -> None:
    parts = Mutation("sloppy", {"replica": SLOPPY}).parts()
    for seed in range(1000 if LONG else 20):
        simulate(*dice(seed), parts)


def bounded_dice(seed: int) -> tuple[Setting, list[Trouble]]:
    """A world where partitions change hands again and again while the end is near."""
    roll = random.Random(seed)
    setting = Setting(
        writers=roll.choice((2, 3)),
        partitions=roll.choice((2, 3)),
        records=roll.choice((6, 20)),
        hasty=roll.random() < 0.4,
        bounded=True,
        jitter=roll.choice((0, roll.randrange(1, 1 << 16))),
    )
    kinds = [name for name, _ in TROUBLES]
    plan = [
        (
            roll.randint(1, 10),
            kinds.index(roll.choice(("turn", "turn", "turn", "delay", "abort"))),
            roll.randrange(9),
        )
        for _ in range(roll.choice((60, 120)))
    ]
    return setting, plan


def skewed_dice(seed: int) -> tuple[Setting, list[Trouble]]:
    """A world where one host's clock is wrong, and its process starts again and again."""
    roll = random.Random(seed)
    setting = Setting(writers=2, records=60, skew=roll.choice((1000, 1000, -1000)))
    kinds = [name for name, _ in TROUBLES]
    plan = [
        (
            roll.randint(1, 40),
            kinds.index(roll.choice(("kill", "terminate", "delay", "append"))),
            roll.randrange(9),
        )
        for _ in range(40)
    ]
    return setting, plan


def test_a_host_with_a_wrong_clock_harms_nobody() -> None:
    for seed in range(200 if LONG else 15):
        simulate(*skewed_dice(seed))


@pytest.mark.parametrize("mutation", [pytest.param(m, id=m.name) for m in SKEWED_MUTATIONS])
def test_a_wrong_clock_that_does_harm_is_noticed(mutation: Mutation) -> None:
    assert finds_a_violation(mutation, skewed_dice)


def finds_a_violation(
    mutation: Mutation,
    world: Callable[[int], tuple[Setting, list[Trouble]]] = dice,
) -> bool:
    parts = mutation.parts()
    for seed in range(5000 if LONG else 150):
        try:
            simulate(*world(seed), parts)
        except Violation:
            return True
    return False
