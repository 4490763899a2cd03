"""`precheck` and `prior` on other threads while the meld applies."""

import sys
import threading

import numpy as np
import pytest

from streamer.dedup.choose import open_index
from streamer.dedup.meld import WON, Meld
from streamer.wire.claim import Claims, Open, Withdraw

DIM = 16
THRESHOLD = 0.95


@pytest.fixture
def impatient():
    """Threads take turns every 10 µs instead of every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_precheck_equals_brute_force_at_the_seen_it_returns(impatient):
    rng = np.random.default_rng(0)
    clusters = rng.standard_normal((700, DIM))
    rows = clusters[rng.integers(0, 700, 12_000)] + 0.08 * rng.standard_normal((12_000, DIM))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    meld = Meld(DIM, THRESHOLD, open_index(DIM, THRESHOLD, "cpu"))
    meld.apply(Open(0, 1, 7, 0))
    done = threading.Event()
    seen: list[list] = [[], [], []]
    wrong: list[str] = []

    def look(results, seed):
        chosen = np.random.default_rng(seed)
        while not done.is_set() or len(results) < 20:
            queries = vectors[chosen.integers(0, 12_000, 40)]
            results.append((queries, meld.precheck(queries), meld.position))

    def ask():
        while not done.is_set():
            until = meld.claimed_until(0)
            for offset in (until - 1, until // 2):
                claim = meld.prior(0, offset) if offset >= 0 else None
                if claim is not None and claim.vector.tolist() != vectors[offset].tolist():
                    wrong.append(f"prior({offset}) has another origin's vector")

    threads = [
        threading.Thread(target=look, args=(results, seed)) for seed, results in enumerate(seen)
    ] + [threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    winners: list[tuple[int, np.ndarray]] = []
    withdrawn_at: dict[int, int] = {}
    for at in range(0, 12_000, 60):
        applied = meld.apply(
            Claims(0, 7, max(meld.position - 300, 0), np.arange(at, at + 60), vectors[at : at + 60])
        )
        fresh = [
            (int(p), vectors[at + k])
            for k, p in enumerate(applied.positions)
            if applied.status[k] == WON
        ]
        winners += fresh
        if fresh and at % 5 == 0:
            withdrawn_at[fresh[0][0]] = meld.position
            assert meld.apply(
                Withdraw(0, at + int(np.flatnonzero(applied.status == WON)[0]), 7)
            ).valid
    done.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()

    assert not wrong
    positions = np.array([position for position, _ in winners])
    gone = np.array([withdrawn_at.get(position, 2**62) for position, _ in winners])
    products = np.stack([vector for _, vector in winners]).astype(np.float64)
    ahead = exact = 0
    for queries, found, after in [result for results in seen for result in results]:
        matches = queries.astype(np.float64) @ products.T >= THRESHOLD
        for row, winner in zip(matches, found.winners.tolist(), strict=True):
            certain = positions[row & (positions < found.seen) & (gone >= after)]
            possible = positions[
                row & (positions < after + 60) & (gone >= found.seen)
            ]  # the entry being applied counts whole
            if winner >= 0:
                assert winner in possible, (
                    "a winner that was applied, is near, and was not withdrawn before the search"
                )
                ahead += winner >= found.seen
            exact += len(certain) > 0
            assert winner <= certain.min() if len(certain) and winner >= 0 else not len(certain), (
                "every winner below seen was compared"
            )
    assert exact > 1_000
    assert sum(found.seen > 1_000 for results in seen for _, found, _ in results) > 20, (
        "it looked while entries were applied"
    )
