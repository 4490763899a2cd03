"""The contract of `WinnerIndex`, held to every implementation."""

import tracemalloc

import numpy as np
import pytest

import streamer.dedup.exact
import streamer.dedup.ivf
import streamer.dedup.lists
import streamer.dedup.store
from streamer.dedup.arithmetic import similarities, widen
from streamer.dedup.host import ROWS, HostBackend, HostTail
from streamer.dedup.ivf import IvfIndex
from streamer.dedup.store import WinnerStore


@pytest.fixture(params=["exact", "ivf", "growing"])
def make(request, backend, monkeypatch):
    """(dim, threshold) → an empty index, of each backend.

    ``exact`` never trains, ``ivf`` as soon as it may, ``growing`` again and again, in small steps.
    """
    if request.param == "growing":
        monkeypatch.setattr(streamer.dedup.ivf, "GROWTH", 1.3)
        monkeypatch.setattr(streamer.dedup.ivf, "WORN", 1.0)
        monkeypatch.setattr(streamer.dedup.exact, "KEEP_CODES", 0)
        monkeypatch.setattr(streamer.dedup.lists, "RESULTS", 5_000)
        monkeypatch.setattr(type(backend), "merge_rows", 512)
    train_at = {"exact": 2**62, "ivf": 2_048, "growing": 600}[request.param]
    return lambda dim, threshold: IvfIndex(WinnerStore(dim), threshold, backend, train_at=train_at)


def unit(rng, n, dim):
    rows = rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def near(rng, rows, cosine):
    """For each row a unit vector at about this cosine."""
    apart = rng.standard_normal(rows.shape)
    apart -= (apart * rows).sum(1, keepdims=True) * rows
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    cosine = np.asarray(cosine).reshape(-1, 1)
    return (cosine * rows + np.sqrt(1 - cosine**2) * apart).astype(np.float16)


def fill(index, vectors, positions, partition=0, offset=0):
    index.store.append(
        vectors,
        index.store.view.sketch.codes(widen(vectors)),
        positions,
        partition,
        offset + np.arange(len(positions)),
    )
    index.add(vectors, positions)
    while index.maintain():
        pass


def brute(vectors, positions, queries, threshold, removed=()):
    """Positions and similarities by the definition, in float64."""
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    matches = (products >= threshold) & ~np.isin(positions, removed)
    first = matches.argmax(1)
    found = matches.any(1)
    return np.where(found, positions[first], -1), np.where(
        found, products[np.arange(len(queries)), first], np.nan
    )


def check(found, expected):
    np.testing.assert_array_equal(found.winners, expected[0])
    np.testing.assert_array_equal(
        found.similarity, expected[1]
    )  # NaN equals NaN here; the rest bit for bit
    assert found.winners.dtype == np.int64
    assert found.similarity.dtype == np.float64


def test_nothing_in_it(make):
    index = make(8, 0.9)
    found = index.search(unit(np.random.default_rng(0), 3, 8))
    check(found, (np.full(3, -1), np.full(3, np.nan)))
    assert len(index.search(np.empty((0, 8), np.float16)).winners) == 0


@pytest.mark.parametrize(("dim", "n"), [(2, 50), (64, 9_000), (512, 4_500), (1000, 700)])
def test_equals_brute_force(make, dim, n):
    rng = np.random.default_rng(dim)
    threshold = 0.95
    index, vectors = make(dim, threshold), unit(rng, n, dim)
    vectors[n // 2 :: 3] = near(
        rng, vectors[: len(vectors[n // 2 :: 3])].astype(np.float64), 0.97
    )  # winners near winners
    positions = np.cumsum(rng.integers(1, 4, n))
    for at in range(0, n, 1_111):
        fill(index, vectors[at : at + 1_111], positions[at : at + 1_111], offset=at)
    cosines = threshold + rng.choice([-0.02, -1e-3, -1e-4, 0, 1e-4, 1e-3, 0.02], 300)
    queries = np.concatenate(
        [
            near(rng, vectors[rng.integers(0, n, 300)].astype(np.float64), cosines),
            unit(rng, 40, dim),
        ]
    )
    check(index.search(queries), brute(vectors, positions, queries, threshold))


def test_the_threshold_itself_is_a_match(make):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 40, 512)
    queries = near(rng, vectors.astype(np.float64), 0.95)
    exact = np.diag(similarities(queries, vectors))
    for k in range(40):
        for threshold, winner in ((exact[k], 7), (np.nextafter(exact[k], 1), -1)):
            index = make(512, float(threshold))
            fill(index, vectors[k : k + 1], np.array([7]))
            assert index.search(queries[k : k + 1]).winners.tolist() == [winner]


def test_the_lowest_position_and_not_the_nearest(make):
    rng = np.random.default_rng(2)
    base = unit(rng, 1, 64).astype(np.float64)
    vectors = np.concatenate([near(rng, base, 0.96), base.astype(np.float16)])
    index = make(64, 0.95)
    fill(index, vectors, np.array([3, 9]))
    assert index.search(base.astype(np.float16)).winners.tolist() == [3]


def test_batch_and_order_change_nothing(make):
    rng = np.random.default_rng(3)
    index, vectors = make(256, 0.9), unit(rng, 3_000, 256)
    fill(index, vectors, np.arange(3_000))
    queries = near(rng, vectors[:700].astype(np.float64), 0.9)
    whole = index.search(queries)
    for size in (1, 7, 300):
        parts = [index.search(queries[at : at + size]) for at in range(0, 700, size)]
        check(
            whole,
            (
                np.concatenate([p.winners for p in parts]),
                np.concatenate([p.similarity for p in parts]),
            ),
        )


def test_removed_rows_are_not_found(make):
    rng = np.random.default_rng(4)
    index, vectors = make(32, 0.95), unit(rng, 600, 32)
    vectors[100:110] = vectors[0]
    fill(index, vectors, np.arange(0, 1_200, 2))
    assert index.search(vectors[:1]).winners.tolist() == [0]
    for row in (0, 100, 105, 599):
        index.store.remove(row)
    check(
        index.search(vectors),
        brute(vectors, np.arange(0, 1_200, 2), vectors, 0.95, removed=(0, 200, 210, 1_198)),
    )


def test_memory_is_bounded_when_everything_matches(make):
    """10⁴ copies of one template: 640 000 pairs at or above the threshold, and as many a hair below
    another one."""
    rng = np.random.default_rng(5)
    template = unit(rng, 1, 64)
    for threshold, winner in (
        (0.99, 0),
        (float(similarities(template, template)[0, 0]) + 1e-9, -1),
    ):
        index = make(64, threshold)
        fill(index, np.repeat(template, 10_000, axis=0), np.arange(10_000))
        queries = np.repeat(template, 64, axis=0)
        tracemalloc.start()
        found = index.search(queries)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.winners.tolist() == [winner] * 64
        assert peak < 80e6


def test_growth_beyond_the_first_allocation(make):
    rng = np.random.default_rng(6)
    index, vectors = make(4, 0.9999), unit(rng, 20_000, 4)
    for at in range(0, 20_000, 5_000):
        fill(index, vectors[at : at + 5_000], np.arange(at, at + 5_000))
    queries = vectors[19_900::7]
    check(index.search(queries), brute(vectors, np.arange(20_000), queries, 0.9999))


def test_products_of_the_hosts_tail_never_cross_a_block():
    assert streamer.dedup.store.BLOCK % ROWS == 0
    assert HostTail.span % ROWS == 0
    assert HostBackend.merge_rows % ROWS == 0
