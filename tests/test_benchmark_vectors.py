"""The pure parts of benchmarks/vectors.py and benchmarks/photographs.py."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import EDITS, Photo, at_random, rounds
from benchmarks.vectors import BATCH, Arrivals, Drifting, first_match, reachable, winners_of

TAU = 0.9


@pytest.fixture(scope="module")
def arrivals():
    """2 500 vectors in groups whose members are a little above or below the threshold to one
    another."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((125, 16)).repeat(20, axis=0) + 0.35 * rng.standard_normal(
        (2500, 16)
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[rng.permutation(2500)].astype(np.float16)


@pytest.fixture(scope="module")
def winners(arrivals):
    return winners_of(arrivals, TAU)


def alike(vectors, others):
    return vectors.astype(np.float64) @ others.astype(np.float64).T >= TAU


def test_winners_are_those_of_a_loop(arrivals, winners):
    won = []
    for row, hits in enumerate(alike(arrivals, arrivals)):
        if not hits[won].any():
            won.append(row)
    assert 300 < len(won) < 2000, "a threshold that tells something apart"
    assert winners.tolist() == won


def test_the_first_match_is_that_of_a_loop(arrivals):
    held, queries = arrivals[:1500], arrivals[1500:]
    expected = [int(np.flatnonzero(hits)[0]) if hits.any() else -1 for hits in alike(queries, held)]
    assert min(expected) == -1
    assert max(expected) > 0
    assert first_match(held, queries, TAU).tolist() == expected


def test_an_index_gets_the_winners_of_one_batch_after_the_other(arrivals, winners):
    source, taken, batches = Arrivals(arrivals, winners), 0, []
    while taken < len(winners):
        vectors = source.take(200)
        assert (vectors == arrivals[winners[taken : taken + len(vectors)]]).all()
        batches.append(set((winners[taken : taken + len(vectors)] // BATCH).tolist()))
        taken += len(vectors)
    assert all(len(batch) == 1 for batch in batches)
    assert len(Arrivals(arrivals, winners).take(3)) == 3


def test_queries_arrive_after_the_winners_and_lessons_before(arrivals, winners):
    source, held = Arrivals(arrivals, winners), np.empty((0, 16), np.float16)
    while len(held) < 400:
        held = np.concatenate([held, source.take(400 - len(held))])
    arrived = winners[399] + 1
    assert (source.ask(held, 100) == arrivals[arrived : arrived + 100]).all()
    lessons = np.concatenate(list(source.lessons(held)))
    assert len(lessons) == arrived - 400
    assert alike(lessons, held).any(axis=1).all()


def test_sizes_leave_queries(arrivals, winners):
    sizes = reachable([0, 10, 100, 10**6, 10**7], winners, len(arrivals), 500)
    assert sizes[:2] == [10, 100]
    assert len(sizes) == 3
    assert winners[sizes[2] - 1] < 2000 <= winners[sizes[2]]
    assert reachable([10], winners, 400, 500) == []


def test_the_synthetic_stream_is_asked_the_same_twice():
    first, second = Drifting(8, TAU, 1), Drifting(8, TAU, 1)
    held = first.take(64)
    assert (second.take(64) == held).all()
    queries = first.ask(held, 40)
    assert (first.ask(held, 40) == queries).all()
    assert (first.take(5) == second.take(5)).all(), "asking leaves the stream as it is"
    assert alike(next(first.lessons(held)), held).any(axis=1).all()


@pytest.mark.parametrize("size", [(320, 200), (1, 1), (9, 400)])
def test_edits_at_random_are_seeded_and_take_any_size(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    for seed in range(20):
        (edit, quality), (same, _) = at_random(random.Random(seed)), at_random(random.Random(seed))
        edited = edit(image)
        assert 20 <= quality <= 95
        assert edited.tobytes() == same(image).tobytes()
        assert 1 <= edited.width <= image.width
        assert 1 <= edited.height <= image.height


def test_what_the_cache_holds_is_not_embedded_again(tmp_path):
    seen = []

    def vectors(images, total):
        images = list(images)
        assert total == len(images) == 2
        seen.extend(images)
        return np.array([[len(seen) + k] for k in range(2)], np.float16)

    eye = SimpleNamespace(
        vectors=vectors, picture=lambda data: Image.effect_noise((40, 30), 80).convert("RGB")
    )
    photos, cache = [Photo("a", "a", b"a"), Photo("b", "b", b"b")], tmp_path / "vectors.npy"
    assert len(rounds(eye, photos, 1, cache)) == 4
    assert seen[:2] == [b"a", b"b"], "first the photographs themselves"
    longer = rounds(eye, photos, len(EDITS) + 1, cache)
    assert len(seen) == len(longer) == 2 * (len(EDITS) + 2)
    assert (rounds(eye, photos, 1, cache) == longer[:4]).all()
    assert len(seen) == len(longer), "none was embedded again"
    with pytest.raises(SystemExit, match="of others"):
        rounds(eye, [*photos, *photos, *photos, *photos, photos[0]], 1, cache)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
