"""Restored from a snapshot, a meld is the one that read the whole log; what is damaged is never
taken for a state."""

import hashlib
import io
from contextlib import suppress
from dataclasses import asdict, replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meld_oracle import dot
from test_meld import DATASET, DIM, OP, entry_of, pool

import streamer.dedup.exact
import streamer.dedup.host
import streamer.dedup.meld
import streamer.dedup.sketch
import streamer.dedup.snapshot
import streamer.dedup.store
from streamer.dedup import snapshot
from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld, W, least_capacity
from streamer.dedup.snapshot import Header
from streamer.dedup.store import WinnerStore
from streamer.wire import checked
from streamer.wire.checked import Unusable
from streamer.wire.claim import Claims, DatasetEntry, Open, Withdraw


def taken(state, offset=0):
    """The header and the data of a snapshot."""
    data = io.BytesIO()
    arrays = snapshot.write(state, data)
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    made = Header(
        1.5,
        "w0",
        "topic",
        offset,
        arrays=arrays,
        bytes=len(data.getvalue()),
        sha256=sha256,
        **snapshot.describe(state),
    )
    return snapshot.decode(snapshot.encode(made)), data.getvalue()


def restored(header, data, threshold=0.9, index=None):
    index = index or open_index(header.dataset.dim, threshold, "cpu")
    meld = Meld(header.dataset.dim, threshold, index, header.window, header.capacity)
    meld.restore(snapshot.read(header, io.BytesIO(data), meld.store))
    return meld


@settings(max_examples=250, deadline=None)
@given(
    ops=st.lists(OP, min_size=1, max_size=30),
    cut=st.integers(0, 30),
    seed=st.integers(0, 50),
    window=st.sampled_from([4, 9]),
    capacity=st.sampled_from([None, 26]),
    width=st.sampled_from([3, DIM]),
)
@example(
    ops=[("claims", p, 1, 0, [(2 * i + p, i) for i in range(9)]) for p in (0, 1)] * 2,
    cut=2,
    seed=0,
    window=9,
    capacity=26,
    width=3,
)
def test_snapshot_and_tail_are_the_whole_log(ops, cut, seed, window, capacity, width):
    vectors = pool(seed)
    threshold = dot(vectors[0], vectors[1])
    threshold = threshold if 0.9 < threshold < 0.99 else 0.95
    with (
        mock.patch.object(streamer.dedup.meld, "BLOCK", 4),
        mock.patch.object(streamer.dedup.store, "BLOCK", 4),
        mock.patch.object(streamer.dedup.snapshot, "BLOCK", 4),
        mock.patch.object(streamer.dedup.store, "FIRST_FIT", 3),
        mock.patch.object(streamer.dedup.store, "width_for", return_value=width),
        mock.patch.object(streamer.dedup.sketch, "width_for", return_value=width),
        mock.patch.object(streamer.dedup.exact, "ROWS", 2),
        mock.patch.object(streamer.dedup.host, "ROWS", 2),
        mock.patch.object(streamer.dedup.host.HostTail, "span", 6),
    ):
        whole = Meld(DIM, threshold, open_index(DIM, threshold, "cpu"), window, capacity)
        log = [("dataset", "m"), ("open", 0, 0, 1, 0), ("open", 1, 0, 1, 0), *ops]
        state, digest, tail = None, "", []
        for at, op in enumerate(log):
            entry = entry_of(op, whole.position, vectors)
            applied = whole.apply(entry)
            if state is not None:
                tail.append((entry, applied))
            if at == cut:
                state, digest = whole.state(), whole.digest()
        if state is None:
            state, digest = whole.state(), whole.digest()
        # Written only now: what the log did since must not show.
        again = restored(*taken(state), threshold)
        assert again.digest() == digest
        for entry, expected in tail:
            applied = again.apply(entry)
            assert (applied.position, applied.valid) == (expected.position, expected.valid)
            for name in ("status", "winners", "similarity", "origins"):
                np.testing.assert_array_equal(getattr(applied, name), getattr(expected, name))
        assert again.digest() == whole.digest()
        assert len(again) == len(whole)
        for left, right in zip(
            again.precheck(vectors[:24]), whole.precheck(vectors[:24]), strict=True
        ):
            np.testing.assert_array_equal(left, right)
        for partition in range(2):
            assert again.open_of(partition) == whole.open_of(partition)
            assert again.claimed_until(partition) == whole.claimed_until(partition)
            for offset in range(15):
                assert repr(again.prior(partition, offset)) == repr(whole.prior(partition, offset))


def unit(rows, dim, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def meld_with(rows, dim=40, capacity=None, index=None):
    meld = Meld(dim, 0.9, index or open_index(dim, 0.9, "cpu", train_at=4096), capacity=capacity)
    meld.apply(DatasetEntry("topic-id", "model", dim, 0.9, 1))
    meld.apply(Open(0, 1, 2**64 - 1, 0))
    vectors = unit(rows, dim, 1)
    for at in range(0, rows, 1000):
        offsets = np.arange(at, min(at + 1000, rows))
        meld.apply(Claims(0, 2**64 - 1, meld.position, offsets, vectors[offsets]))
    return meld


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 10_000])
def test_blocks_of_the_real_size(rows):
    meld = meld_with(rows)
    if rows:
        meld.apply(Withdraw(0, rows // 2, 2**64 - 1))
    header, data = taken(meld.state(), offset=17)
    assert (header.offset, header.rows, header.withdrawn, header.position) == (
        17,
        rows,
        int(rows > 0),
        meld.position,
    )
    again = restored(header, data)
    assert again.digest() == meld.digest()
    more = Claims(0, 2**64 - 1, meld.position, np.arange(rows, rows + 5000), unit(5000, 40, 2))
    again.apply(more)
    meld.apply(more)
    assert again.digest() == meld.digest()


def test_what_was_evicted_stays_away():
    meld = meld_with(40_000, dim=4 * 4, capacity=least_capacity())
    assert meld.evicted > 0
    header, data = taken(meld.state())
    again = restored(header, data)
    assert (again.digest(), again.evicted, len(again)) == (meld.digest(), meld.evicted, len(meld))
    assert again.prior(0, 3).vector.tolist() == meld.prior(0, 3).vector.tolist(), (
        "its verdict may still be asked for"
    )


def small():
    meld = meld_with(50, dim=8)
    meld.apply(Withdraw(0, 7, 2**64 - 1))
    return taken(meld.state())


def test_what_was_taken_does_not_change_any_more():
    meld = meld_with(50, dim=8)
    state, digest = meld.state(), meld.digest()
    meld.apply(Withdraw(0, 7, 2**64 - 1))
    meld.apply(Claims(0, 2**64 - 1, meld.position, np.arange(50, 90), unit(40, 8, 3)))
    meld.apply(Open(0, 2, 5, 60))
    assert restored(*taken(state)).digest() == digest != meld.digest()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_of_the_data_is_noticed(data):
    header, raw = small()
    at = data.draw(st.integers(0, 8 * len(raw) - 1))
    flipped = bytearray(raw)
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(Unusable, match="damaged"):
        snapshot.read(header, io.BytesIO(bytes(flipped)), WinnerStore(8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-1], "too early"),
        (lambda raw: b"", "too early"),
        (lambda raw: raw + b"x", "longer"),
    ],
)
def test_data_of_another_length_are_noticed(change, said):
    header, raw = small()
    with pytest.raises(Unusable, match=said):
        snapshot.read(header, io.BytesIO(change(raw)), WinnerStore(8))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_of_the_header_is_noticed(data):
    raw = bytearray(snapshot.encode(small()[0]))
    at = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[at // 8] ^= 1 << at % 8
    with suppress(Unusable):
        assert snapshot.decode(bytes(raw)) == small()[0], "only white space may differ"


def test_a_header_of_another_time_is_refused():
    with mock.patch.object(streamer.dedup.snapshot, "FORMAT", 2):
        newer = snapshot.encode(small()[0])
    with pytest.raises(Unusable, match="its format is 2"):
        snapshot.decode(newer)
    body = {**asdict(small()[0]), "more": 1}
    for fields in (body, {}, {**body, "arrays": [1]}):
        with pytest.raises(Unusable, match="other fields"):
            snapshot.decode(checked.encode(fields, 1))
    for nonsense in (b"", b"[]", b"null", b'{"checksum": 1}', b"\xff"):
        with pytest.raises(Unusable, match="cannot be read"):
            snapshot.decode(nonsense)


def test_blocks_of_another_size_are_refused():
    header, data = small()
    with pytest.raises(Unusable, match="blocks"):
        snapshot.read(replace(header, evicted=100), io.BytesIO(data), WinnerStore(8))


def test_arrays_of_the_index_travel_along():
    meld = meld_with(10, dim=8)
    cells = {
        "cells": np.arange(10, dtype=np.int32),
        "centroids": np.eye(8, dtype=np.float32),
        "none": np.empty((0, 8), np.float16),
    }
    header, data = taken(replace(meld.state(), index=cells))
    state = snapshot.read(header, io.BytesIO(data), WinnerStore(8))
    assert state.index.keys() == cells.keys()
    for name, array in cells.items():
        np.testing.assert_array_equal(state.index[name], array)
        assert state.index[name].dtype == array.dtype


def test_a_trained_index_goes_on_as_it_was():
    def index():
        return open_index(40, 0.9, "cpu", train_at=2048)

    meld = meld_with(12_000, index=index())
    trained = meld.index
    while trained.maintain():
        pass
    assert trained.gauges()["base_vectors"] > 2048
    header, data = taken(meld.state())
    again = restored(header, data, index=index())
    assert again.index.gauges()["base_vectors"] == trained.gauges()["base_vectors"]
    assert again.index.gauges()["trainings"] == 0, "nothing is learnt anew"
    queries = np.concatenate([unit(12_000, 40, 1)[::7], unit(500, 40, 9)])
    for left, right in zip(again.precheck(queries), meld.precheck(queries), strict=True):
        np.testing.assert_array_equal(left, right)
    for one in (meld, again):
        one.apply(Claims(0, 2**64 - 1, one.position, np.arange(12_000, 15_000), unit(3_000, 40, 2)))
    assert again.index.maintain()
    queries = np.concatenate([queries, unit(3_000, 40, 2)[::7]])
    found = meld.precheck(queries).winners
    assert (found >= 12_000).sum() > 400
    assert again.precheck(queries).winners.tolist() == found.tolist()


def test_an_index_whose_oldest_rows_were_evicted_since_its_training_goes_on():
    capacity = least_capacity()
    meld = meld_with(16_000, dim=40, capacity=capacity)
    while meld.index.maintain():
        pass
    offsets = np.arange(16_000, 16_000 + 1000)
    for seed in range(12):
        meld.apply(
            Claims(0, 2**64 - 1, meld.position, offsets + 1000 * seed, unit(1000, 40, 20 + seed))
        )
    assert meld.evicted > 0
    again = restored(*taken(meld.state()))
    queries = np.concatenate([unit(16_000, 40, 1)[::9], unit(1000, 40, 22)])
    found = meld.precheck(queries)
    assert (found.winners >= 0).sum() > 1500
    for left, right in zip(again.precheck(queries), found, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_binding_is_the_logs():
    meld = Meld(2, 0.9, open_index(2, 0.9, "cpu"))
    meld.apply(DATASET)
    header, _ = taken(meld.state())
    assert (header.dataset, header.window, header.capacity) == (DATASET, W, None)
