import numpy as np
import pytest

from streamer.dedup.arithmetic import widen
from streamer.dedup.store import BLOCK, FIRST_FIT, WinnerStore


def codes_of(store, vectors):
    return store.view.sketch.codes(widen(vectors))


def filled(n, dim=2, step=3):
    """Positions 0, step, 2·step, …; appended in uneven pieces across blocks."""
    store = WinnerStore(dim)
    vectors = (np.arange(n * dim) % 2_000).reshape(n, dim).astype(np.float16)
    at = 0
    for size in (0, 1, BLOCK - 2, 5, n):
        rows = slice(at, min(at + size, n))
        store.append(
            vectors[rows],
            codes_of(store, vectors[rows]),
            np.arange(n)[rows] * step,
            partition=size % 7,
            offsets=np.arange(n)[rows] + 100,
        )
        at = rows.stop
    return store, vectors


def test_rows_by_position():
    n = 2 * BLOCK + 10
    view = filled(n)[0].view
    assert view.rows == n
    for row in (0, 1, BLOCK - 1, BLOCK, BLOCK + 4, 2 * BLOCK - 1, 2 * BLOCK, n - 1):
        assert view.row_of(3 * row) == row
        assert view.position(row) == 3 * row
        assert view.first_at(3 * row) == row
        assert view.first_at(3 * row - 1) == row
        assert view.first_at(3 * row + 1) == row + 1
        with pytest.raises(KeyError):
            view.row_of(3 * row + 1)
    assert view.first_at(-5) == 0
    assert view.first_at(10**12) == n
    assert view.origin(BLOCK + 10) == (n % 7, BLOCK + 110)
    assert view.origin(0) == (1, 100)
    with pytest.raises(KeyError):
        WinnerStore(2).view.row_of(0)


def test_vectors_and_spans():
    n = BLOCK + 10
    store, vectors = filled(n)
    view = store.view
    rows = np.array([0, BLOCK + 3, BLOCK - 1, 7])
    np.testing.assert_array_equal(view.vectors(rows), vectors[rows])
    joined = np.concatenate(
        [block.vectors[here] for _, block, here in view.spans(BLOCK - 3, BLOCK + 4)]
    )
    np.testing.assert_array_equal(joined, vectors[BLOCK - 3 : BLOCK + 4])
    assert [first for first, _, _ in view.spans(BLOCK - 3, BLOCK + 4)] == [BLOCK - 3, BLOCK]
    assert (
        sum(
            len(block.vectors[here])
            for low in (0, 5, BLOCK)
            for _, block, here in view.spans(low, low)
        )
        == 0
    )


def test_removed():
    store, _ = filled(BLOCK + 10)
    for row in (BLOCK + 2, 3):
        store.remove(row)
    assert store.view.removed(0, BLOCK + 10).tolist() == [3, BLOCK + 2]
    assert store.view.removed(4, BLOCK + 2).tolist() == []
    assert store.view.is_removed(3)
    assert not store.view.is_removed(4)


def test_a_view_never_changes():
    store = WinnerStore(2)
    store.append(
        np.ones((3, 2), np.float16), np.ones((3, 2), np.float32), np.arange(3), 0, np.arange(3)
    )
    view = store.view
    store.append(
        np.zeros((2 * BLOCK, 2), np.float16),
        np.zeros((2 * BLOCK, 2), np.float32),
        np.arange(3, 3 + 2 * BLOCK),
        0,
        np.arange(2 * BLOCK),
    )
    assert view.rows == 3
    assert len(view.blocks) == 1
    assert view.first_at(3) == 3
    assert (view.vectors(np.arange(3)) == 1).all()


def test_codes_are_fitted_as_the_store_grows():
    rng = np.random.default_rng(0)
    dim, n = 160, 5 * FIRST_FIT
    vectors = rng.standard_normal((n, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    store, widths, before = WinnerStore(dim), [], []
    for at in range(0, n, 100):
        rows = slice(at, at + 100)
        before.append(store.view)
        store.append(
            vectors[rows], codes_of(store, vectors[rows]), np.arange(n)[rows], 0, np.arange(n)[rows]
        )
        widths.append(store.view.blocks[0].codes.shape[1])
    assert widths[:10] == [dim] * 10
    assert widths[10:] == [64] * (len(widths) - 10)
    assert len({id(view.sketch) for view in before}) == 3, "fitted twice"
    for view in (*before[1::7], store.view):
        codes = np.concatenate([block.codes[here] for _, block, here in view.spans(0, view.rows)])
        np.testing.assert_allclose(codes, view.sketch.codes(widen(vectors[: view.rows])), atol=1e-6)
    short, _ = filled(2 * FIRST_FIT, dim=128)
    assert short.view.blocks[0].codes.shape[1] == 128, (
        "vectors that are short enough are their own codes"
    )
    np.testing.assert_array_equal(short.view.sketch.codes(widen(vectors[:3])), widen(vectors[:3]))
    store.remove(3)
    assert before[20].is_removed(3), "a withdrawal reaches the views taken before"


def test_codes_are_forgotten_block_by_block_and_only_once():
    store, *_ = filled(4 * BLOCK)
    store.forget_codes(BLOCK - 1)
    assert all(len(block.codes) for block in store.view.blocks)
    store.forget_codes(2 * BLOCK + 5)
    before = store.view.blocks
    assert [len(block.codes) > 0 for block in before] == [False, False, True, True]
    store.forget_codes(3 * BLOCK)
    assert [len(block.codes) > 0 for block in store.view.blocks] == [False, False, False, True]
    assert store.view.blocks[:2] == before[:2], "what was forgotten is not touched again"
    assert store.view.blocks[0] is before[0]
    store.make_codes(BLOCK)
    store.forget_codes(2 * BLOCK)
    assert [len(block.codes) > 0 for block in store.view.blocks] == [False, False, True, True]
