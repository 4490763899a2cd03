"""What makes nominating safe and deciding exact."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from streamer.dedup.arithmetic import NORM_SLACK, contenders, places, rounding, similarities, widen
from streamer.dedup.sketch import fitted, whole, width_for


def unit(rng, n, dim):
    rows = rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def near(rng, rows, cosine):
    """For each unit row one at about this cosine."""
    apart = rng.standard_normal(rows.shape)
    apart -= (apart * rows).sum(1, keepdims=True) * rows
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    return (cosine * rows + np.sqrt(1 - cosine**2) * apart).astype(np.float16)


@given(st_numpy.arrays(np.float16, (4, 3), elements=st.floats(-1, 1, width=16)))
def test_widen_is_exact(vectors):
    np.testing.assert_array_equal(widen(vectors), vectors.astype(np.float32))


def test_widen_every_number():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(every)
    wide = widen(every)
    np.testing.assert_array_equal(
        wide[finite].view(np.uint32), every[finite].astype(np.float32).view(np.uint32)
    )
    assert (np.abs(wide[~finite]) >= 65_536).all()


@pytest.mark.parametrize("dim", [192, 512, 1280, 4096])
def test_similarities_are_exact(dim):
    rng = np.random.default_rng(dim)
    left, right = unit(rng, 3, dim), unit(rng, 2, dim)
    right[0] = near(rng, left[:1].astype(np.float64), 0.95)[0]
    products = similarities(left, right)
    for i in range(3):
        for j in range(2):
            exact = sum(
                Fraction(float(a)) * Fraction(float(b))
                for a, b in zip(left[i], right[j], strict=True)
            )
            assert Fraction(products[i, j]) == exact


@pytest.mark.parametrize("dim", [2, 64, 512, 4096])
def test_rounding_is_bounded_with_room(dim):
    """float32 products of any shape are near the exact value, also of the longest vectors allowed."""
    rng = np.random.default_rng(dim)
    rows = unit(rng, 64, dim).astype(np.float64)
    left, right = (
        (rows * (1 + NORM_SLACK)).astype(np.float16),
        (near(rng, rows, 0.95).astype(np.float64) * (1 + NORM_SLACK)).astype(np.float16),
    )
    exact = np.diag(similarities(left, right))
    for size in (1, 5, 64):
        single = np.concatenate(
            [
                np.diag(widen(left[at : at + size]) @ widen(right[at : at + size]).T)
                for at in range(0, 64, size)
            ]
        )
        assert (np.abs(single - exact) <= rounding(dim) / 4).all()
    assert rounding(4096) < 1.1e-3


def test_contenders():
    rng = np.random.default_rng(0)
    left, right = unit(rng, 30, 200), unit(rng, 50, 200)
    right[[4, 7, 9]] = near(rng, left[[11, 2, 11]].astype(np.float64), 0.95)
    threshold = float(similarities(left[11:12], right[4:5])[0, 0])
    i, j, products = contenders(widen(left), widen(right), threshold)
    np.testing.assert_array_equal(products, similarities(left[i], right[j]))
    everywhere = similarities(left, right)
    for a, b in np.argwhere(everywhere >= threshold):
        assert a in i
        assert b in j
    assert {11} <= set(i.tolist()) <= {2, 11}
    assert {4} <= set(j.tolist()) <= {4, 7, 9}


DIRECTED = st.sampled_from(["isotropic", "low rank", "one direction", "sparse"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([130, 512, 1280]),
    kind=DIRECTED,
    length=st.sampled_from([0.99, 1.0, 1.01]),
)
def test_codes_never_hide_a_pair(seed, dim, kind, length):
    """Whatever the sample was like: products of codes stay above the exact ones, less the slack;
    also for twins and for zero residuals."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((600, dim))
    if kind == "low rank":
        rows = rng.standard_normal((600, 20)) @ rng.standard_normal((20, dim))
    elif kind == "one direction":
        rows = rows * 1e-3 + rng.standard_normal(dim)
    elif kind == "sparse":
        rows *= rng.random((600, dim)) < 0.01
        rows[:, 0] += 1e-3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sketch = fitted(rows[:300].astype(np.float32))
    twins = rows[250:350]
    left = (twins * length).astype(np.float16)
    for right in ((near(rng, twins, 0.95).astype(np.float64) * length).astype(np.float16), left):
        exact = np.diag(similarities(left, right))
        codes = np.diag(sketch.codes(widen(left)) @ sketch.codes(widen(right)).T)
        assert (codes >= exact - sketch.slack).all()
        assert (
            np.diag(whole(dim).codes(widen(left)) @ whole(dim).codes(widen(right)).T)
            >= exact - whole(dim).slack
        ).all()
    outside = twins - twins @ (basis := np.linalg.qr(sketch.basis.astype(np.float64))[0]) @ basis.T
    left_out = np.linalg.norm(outside, axis=1) * length
    assert (sketch.codes((twins * length).astype(np.float32))[:, -1] >= left_out).all(), (
        "what the directions leave out is never too small"
    )
    assert sketch.slack < 5e-3
    assert sketch.codes(widen(left)).shape == (100, width_for(dim))


def test_codes_tell_vectors_apart():
    """Half of the energy in the leading directions is enough to leave few of the pairs."""
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(1 + np.arange(512))
    rows = rng.standard_normal((2_000, 512)) * spread
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sketch = fitted(rows[:1_000].astype(np.float32))
    codes = sketch.codes(rows[1_000:].astype(np.float32))
    products = codes @ codes.T - 2 * np.eye(1_000)
    assert (products >= 0.95 - sketch.slack).mean() < 1e-3


def test_places_are_those_of_nonzero():
    rng = np.random.default_rng(9)
    for shape, density in (
        ((7, 5), 0.3),
        ((1, 9), 0.5),
        ((6, 1), 0.5),
        ((0, 4), 0.5),
        ((4, 300), 0.0),
        ((40, 300), 1.0),
    ):
        mask = rng.random(shape) < density
        for ours, numpys in zip(places(mask), np.nonzero(mask), strict=True):
            np.testing.assert_array_equal(ours, numpys)
