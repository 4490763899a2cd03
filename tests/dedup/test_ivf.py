"""What `IvfIndex` promises beyond the contract of every index: bounds that miss nothing, upkeep
beside the searches, state, calibration."""

import threading

import numpy as np
import pytest

import streamer.dedup.calibration
import streamer.dedup.ivf
from streamer.dedup.arithmetic import widen
from streamer.dedup.calibration import Calibration
from streamer.dedup.cells import Bounds, cells_of, lengths_of, needed, probe, trained
from streamer.dedup.host import HostBackend
from streamer.dedup.ivf import IvfIndex
from streamer.dedup.sketch import fitted
from streamer.dedup.store import BLOCK, WinnerStore
from tests.dedup.test_index import brute, check, fill, near, unit

DIM, TAU = 256, 0.9


def clustered(rng, n, dim=DIM, topics=40):
    """Unit vectors around few topics, of lengths 1 ± 0.5 %: neighbours lie on both sides of many a
    border."""
    centres = unit(rng, topics, dim).astype(np.float64)
    rows = centres[rng.integers(0, topics, n)] + 0.6 * unit(rng, n, dim).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) * rng.uniform(0.995, 1.005, (n, 1))
    return rows.astype(np.float16)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.95, 0.999])
def test_no_match_is_outside_of_the_probed_cells(threshold):
    rng = np.random.default_rng(int(1000 * threshold))
    vectors = clustered(rng, 6_000)
    queries = np.concatenate(
        [
            near(
                rng,
                vectors[:1_500].astype(np.float64),
                np.minimum(threshold + rng.uniform(0, 0.02, 1_500), 1),
            ),
            clustered(rng, 500),
        ]
    )
    sketch = fitted(widen(vectors))
    codes = sketch.codes(widen(vectors))
    cells = cells_of(sketch, trained(codes, 64))
    bounds = Bounds(64)
    inside, products = cells.assign(codes)
    bounds.include(inside, products, lengths_of(codes))
    asked = sketch.codes(widen(queries))
    opened = np.zeros((len(queries), 64), np.bool_)
    pairs = probe(cells, bounds, asked, threshold - sketch.slack, np.ones(len(queries), np.float32))
    opened[pairs] = True
    assert (np.diff(pairs[0]) >= 0).all()
    matching, rows = np.nonzero(
        queries.astype(np.float64) @ vectors.astype(np.float64).T >= threshold
    )
    assert len(matching) > 500
    assert opened[matching, inside[rows]].all()
    if threshold >= 0.8:
        assert opened.mean() < 0.9, "or it would prove nothing"
    least = needed(cells, bounds, asked[matching], threshold - sketch.slack, inside[rows])
    assert (least <= 1).all()
    for rho in (0.05, 0.3):
        opened[:] = False
        opened[
            probe(
                cells,
                bounds,
                asked,
                threshold - sketch.slack,
                np.full(len(queries), rho, np.float32),
            )
        ] = True
        sure = least < rho - 1e-3
        assert opened[matching[sure], inside[rows[sure]]].all(), "rho is what is needed"


def test_everything_at_once_under_drift(backend):
    """Growth, new topics, withdrawals, evictions, batches of any size and several trainings: the
    answer stays that of brute force."""
    rng = np.random.default_rng(1)
    index = IvfIndex(WinnerStore(DIM), TAU, backend, train_at=3_000)
    vectors = np.concatenate(
        [clustered(rng, 5_000, topics=topics) for topics in (5, 30, 30, 200, 3)]
    )
    positions = np.cumsum(rng.integers(1, 3, len(vectors)))
    gone: list[int] = []
    first = 0
    for at in range(0, len(vectors), 1_250):
        fill(index, vectors[at : at + 1_250], positions[at : at + 1_250], offset=at)
        for row in rng.integers(first, at + 1_250, 5).tolist():
            index.store.remove(row)
            gone.append(int(positions[row]))
        if at in (10_000, 20_000):
            first = at // 2 // BLOCK * BLOCK
            index.store.evict(first)
            gone += positions[:first].tolist()
        known = slice(0, at + 1_250)
        source = vectors[rng.integers(0, at + 1_250, 150)].astype(np.float64)
        queries = np.concatenate(
            [near(rng, source, rng.uniform(TAU - 0.01, 1, 150)), clustered(rng, 40)]
        )
        expected = brute(vectors[known], positions[known], queries, TAU, gone)
        check(index.search(queries), expected)
        found = [index.search(part) for part in np.array_split(queries, 7)]
        np.testing.assert_array_equal(np.concatenate([part.winners for part in found]), expected[0])
    gauges = index.gauges()
    assert gauges["trainings"] >= 3
    assert gauges["base_vectors"] > 8_000


def test_searches_beside_the_upkeep(backend):
    """One thread appends, one maintains, two search: each answer is right for all that was there
    before it began."""
    rng = np.random.default_rng(2)
    index = IvfIndex(WinnerStore(64), 0.95, backend, train_at=2_048)
    vectors, done, errors = unit(rng, 30_000, 64), threading.Event(), []
    appended = 0

    def maintain():
        while not done.is_set():
            index.maintain()

    def search(seed):
        mine = np.random.default_rng(seed)
        while not done.is_set():
            until = appended
            rows = mine.integers(0, max(until, 1), 30)
            found = index.search(vectors[rows])
            wrong = rows[(found.winners != rows) & (rows < until)]
            errors.extend(wrong.tolist())

    threads = [threading.Thread(target=maintain)] + [
        threading.Thread(target=search, args=(seed,)) for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for at in range(0, 30_000, 100):
        part = slice(at, at + 100)
        index.store.append(
            vectors[part],
            index.store.view.sketch.codes(widen(vectors[part])),
            np.arange(at, at + 100),
            0,
            np.arange(at, at + 100),
        )
        index.add(vectors[part], np.arange(at, at + 100))
        appended = at + 100
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    assert index.gauges()["trainings"] >= 1


def test_eviction_overtakes_the_upkeep(backend):
    """Rows that were evicted before they were merged, by the old cells and by those that are being
    made."""
    rng = np.random.default_rng(8)
    index, vectors, positions = (
        IvfIndex(WinnerStore(DIM), TAU, backend, train_at=3_000),
        clustered(rng, 9 * BLOCK),
        np.arange(9 * BLOCK),
    )
    fill(index, vectors[: 3 * BLOCK], positions[: 3 * BLOCK])
    rest = slice(3 * BLOCK, None)
    index.store.append(
        vectors[rest],
        index.store.view.sketch.codes(widen(vectors[rest])),
        positions[rest],
        0,
        positions[rest],
    )
    index.add(vectors[rest], positions[rest])
    index.store.evict(6 * BLOCK)
    while index.maintain():
        pass
    assert index.gauges()["base_vectors"] == 3 * BLOCK
    queries = near(
        rng, vectors[::200].astype(np.float64), rng.uniform(TAU - 0.01, 1, len(vectors[::200]))
    )
    check(index.search(queries), brute(vectors, positions, queries, TAU, positions[: 6 * BLOCK]))


def test_state_spares_the_training(backend):
    rng = np.random.default_rng(3)
    vectors, positions = clustered(rng, 9_000), np.arange(9_000)
    before = IvfIndex(WinnerStore(DIM), TAU, backend, train_at=4_000)
    fill(before, vectors, positions)
    state = before.state()
    after = IvfIndex(WinnerStore(DIM), TAU, backend, train_at=4_000)
    after.store.append(
        vectors, after.store.view.sketch.codes(widen(vectors)), positions, 0, positions
    )
    after.restore({name: array.copy() for name, array in state.items()})
    assert after.gauges()["base_vectors"] == before.gauges()["base_vectors"] > 0
    assert after.gauges()["trainings"] == 0
    assert not after.maintain()
    queries = near(rng, vectors[:300].astype(np.float64), rng.uniform(TAU - 0.01, 1, 300))
    check(after.search(queries), brute(vectors, positions, queries, TAU))
    for name, array in after.state().items():
        np.testing.assert_array_equal(array, state[name])


def test_new_cells_right_after_a_restart_may_have_fewer_rows_than_those_of_the_snapshot(backend):
    """What they lack, the tail must have: another backend, or another first row, merges up to other
    rows."""
    rng = np.random.default_rng(9)
    vectors, positions = clustered(rng, 9_000), np.arange(9_000)
    before = IvfIndex(
        WinnerStore(DIM),
        TAU,
        type("FineBackend", (HostBackend,), {"merge_rows": 512})(),
        train_at=4_000,
    )
    fill(before, vectors, positions)
    after = IvfIndex(WinnerStore(DIM), TAU, backend, train_at=4_000)
    after.store.append(
        vectors, after.store.view.sketch.codes(widen(vectors)), positions, 0, positions
    )
    after.restore(
        {**before.state(), "first": np.array([0, 1])}
    )  # made when there was one row: they are worn
    assert after.gauges()["base_vectors"] == 8_704
    assert after.maintain()
    assert after.gauges()["base_vectors"] == 8_192
    check(after.search(vectors[8_000:]), brute(vectors, positions, vectors[8_000:], TAU))


def test_codes_of_old_rows_are_freed_and_new_ones_fitted_again(backend):
    rng = np.random.default_rng(4)
    index = IvfIndex(WinnerStore(DIM), TAU, backend, train_at=4_096)
    vectors = clustered(rng, 8 * BLOCK)
    for at in range(0, len(vectors), backend.merge_rows):
        fill(
            index,
            vectors[at : at + backend.merge_rows],
            np.arange(at, at + backend.merge_rows),
            offset=at,
        )
    view = index.store.view
    assert [len(block.codes) for block in view.blocks][:3] == [0, 0, 0]
    assert len(view.blocks[-1].codes) == BLOCK
    check(index.search(vectors[::97]), brute(vectors, np.arange(len(vectors)), vectors[::97], TAU))


class TestCalibrated:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(streamer.dedup.calibration, "WINDOW", 600)
        monkeypatch.setattr(streamer.dedup.calibration, "MISSES", 0)
        monkeypatch.setattr(streamer.dedup.calibration, "EVERY", 4)

    def test_it_learns_how_far_to_look_and_says_what_it_finds(self, backend):
        rng = np.random.default_rng(5)
        index = IvfIndex(WinnerStore(DIM), TAU, backend, Calibration(), train_at=4_000)
        vectors = clustered(rng, 12_000)
        fill(index, vectors, np.arange(12_000))
        assert index.gauges()["rho"] == 1
        found = sought = 0
        for _ in range(8):
            queries = near(
                rng,
                vectors[rng.integers(0, 12_000, 400)].astype(np.float64),
                rng.uniform(TAU + 0.01, 1, 400),
            )
            calibrated = index.gauges()["rho"] < 1
            hits = (index.search(queries).winners >= 0).sum()
            if calibrated:
                found, sought = found + hits, sought + 400
        gauges = index.gauges()
        assert 0 < gauges["rho"] < 1
        assert found / sought > 0.99
        assert 0.9 < gauges["recall_low"] < gauges["recall"] <= 1

    def test_copies_teach_nothing(self, backend):
        rng = np.random.default_rng(6)
        index = IvfIndex(WinnerStore(DIM), TAU, backend, Calibration(), train_at=4_000)
        vectors = clustered(rng, 6_000)
        fill(index, vectors, np.arange(6_000))
        for _ in range(3):
            index.search(vectors[:1_000])
        assert index.gauges()["rho"] == 1

    def test_what_it_learnt_survives_a_restart(self):
        learnt = Calibration()
        learnt.learn(np.linspace(0, 0.5, 600))
        assert learnt.rho == 0.5
        assert Calibration(learnt.state).rho == 0.5

    def test_a_worse_time_is_noticed(self):
        calibration = Calibration()
        calibration.learn(np.full(600, 0.1))
        assert calibration.rho == pytest.approx(0.1)
        rho, audited = calibration.draw(10_000)
        assert 0.2 < audited.mean() < 0.3
        assert set(np.unique(rho[audited]).tolist()) == {1.0}
        calibration.learn(np.array([0.05] * 99 + [0.7]))
        assert calibration.rho == pytest.approx(0.7)
        assert calibration.recall()[0] == 0.99
        assert calibration.recall()[1] == pytest.approx(0.9455, abs=1e-3)
