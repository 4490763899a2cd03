"""The meld's rules one by one, then against the oracle over random logs."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meld_oracle import Oracle, dot
from pydantic import ValidationError

import streamer.dedup.exact
import streamer.dedup.host
import streamer.dedup.meld
import streamer.dedup.sketch
import streamer.dedup.store
from streamer.config import Dedup
from streamer.dedup.choose import open_index
from streamer.dedup.meld import (
    LOST,
    REPEAT,
    VOID_STALE,
    VOID_TERM,
    VOID_VECTOR,
    WON,
    Meld,
    W,
    least_capacity,
)
from streamer.records import Claim
from streamer.wire.claim import Claims, DatasetEntry, Open, Withdraw, decode, encode

KINDS = {
    WON: "won",
    LOST: "lost",
    REPEAT: "repeat",
    VOID_TERM: "void term",
    VOID_STALE: "void stale",
    VOID_VECTOR: "void vector",
}
DATASET = DatasetEntry("topic-id", "sha256:model", 2, 0.9, 1)


def at(degrees):
    """A unit vector of the plane: similarity is the cosine of the angle between two."""
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def claims(partition, term, seen, *rows):
    """Rows are (offset, degrees)."""
    vectors = np.array([at(degrees) for _, degrees in rows], np.float16)
    return Claims(
        partition, term, seen, np.array([offset for offset, _ in rows], np.int64), vectors
    )


def meld_of(*entries, threshold=0.9, window=W):
    meld = Meld(2, threshold, open_index(2, threshold, "cpu"), window)
    applied = [meld.apply(entry) for entry in entries]
    return meld, applied


def statuses(applied):
    return applied.status.tolist()


class TestZone:
    """τ = 0.9 is 25.8 degrees."""

    def test_a_winner_earlier_in_the_same_entry_wins(self):
        meld, (_, applied) = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 60), (2, 10), (3, 40))
        )
        assert statuses(applied) == [WON, WON, LOST, LOST]
        assert applied.positions.tolist() == [1, 2, 3, 4]
        assert applied.winners.tolist() == [-1, -1, 1, 2]
        assert applied.similarity[2] == dot(*(np.array([at(d) for d in (0, 10)], np.float16)))
        assert meld.position == 5
        assert len(meld) == 2

    def test_no_chaining_through_losers(self):
        _, (_, applied) = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 20), (2, 40), (3, 60), (4, 80))
        )
        assert statuses(applied) == [WON, LOST, WON, LOST, WON], (
            "40 degrees is near 20, which did not win"
        )
        assert applied.winners.tolist() == [-1, 1, -1, 3, -1]

    def test_the_lowest_position_is_named_and_not_the_nearest(self):
        _, (_, applied) = meld_of(Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 30), (2, 20)))
        assert applied.winners.tolist() == [-1, -1, 1]

    def test_rows_of_one_entry_share_seen_and_never_meet_what_lies_before_it(self):
        before = claims(0, 7, 1, (0, 0), (1, 90))  # positions 1 and 2
        _, (*_, applied) = meld_of(
            Open(0, 1, 7, 0), before, claims(0, 7, 2, (2, 0), (3, 90), (4, 5))
        )
        assert statuses(applied) == [WON, LOST, LOST]
        assert applied.winners.tolist() == [-1, 2, 3], (
            "position 1 is below seen; 4 degrees meets only the first row of its own entry"
        )

    def test_the_zone_reaches_across_blocks_of_the_store(self):
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((5_000, 40))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        meld = Meld(40, 0.9, open_index(40, 0.9, "cpu"))
        for entry in (Open(0, 1, 7, 0), Claims(0, 7, 1, np.arange(5_000), vectors)):
            meld.apply(entry)
        again = [4_999, 17, 4_095, 4_096, 2_000]
        applied = meld.apply(Claims(0, 7, 1, np.arange(5_000, 5_005), vectors[again]))
        assert applied.winners.tolist() == [1 + row for row in again]

    @pytest.mark.parametrize(("seen", "status"), [(1, LOST), (2, WON)])
    def test_the_zone_begins_at_seen(self, seen, status):
        _, (*_, applied) = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0)), claims(0, 7, seen, (1, 0))
        )
        assert statuses(applied) == [status]

    def test_the_zone_holds_winners_of_every_partition(self):
        meld, (*_, applied) = meld_of(
            Open(0, 1, 7, 0), Open(1, 1, 8, 0), claims(0, 7, 2, (5, 0)), claims(1, 8, 2, (9, 3))
        )
        assert statuses(applied) == [LOST]
        assert applied.origins.tolist() == [[0, 5]]
        assert meld.prior(1, 9).duplicate_of == (0, 5)

    def test_at_the_threshold_is_a_duplicate_and_a_bit_below_is_not(self):
        pair = np.array([at(0), at(20)], np.float16)
        threshold = dot(*pair)
        for τ, status in ((threshold, LOST), (np.nextafter(threshold, 1), WON)):
            _, (_, applied) = meld_of(
                Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 20)), threshold=float(τ)
            )
            assert statuses(applied) == [WON, status]


class TestStale:
    def test_the_window_counts_rows_and_ends_inside_an_entry(self):
        rows = [(offset, 40 * offset) for offset in range(4)]
        meld, (_, applied) = meld_of(Open(0, 1, 7, 0), claims(0, 7, 0, *rows), window=2)
        assert statuses(applied) == [WON, WON, VOID_STALE, VOID_STALE]
        assert meld.position == 5, "void rows take their positions too"
        assert meld.prior(0, 2) is None

    def test_a_stale_claim_does_not_register_and_may_be_claimed_again(self):
        meld, (*_, stale, again) = meld_of(
            Open(0, 1, 7, 0),
            *[Withdraw(9, 9, 7)] * 4,
            claims(0, 7, 0, (0, 0)),
            claims(0, 7, 6, (0, 0)),
            window=4,
        )
        assert statuses(stale) == [VOID_STALE]
        assert statuses(again) == [WON]
        assert meld.prior(0, 0).position == 6

    def test_a_claim_that_has_seen_the_future_is_void(self):
        _, (_, applied) = meld_of(Open(0, 1, 7, 0), claims(0, 7, 2, (0, 0), (1, 90)))
        assert statuses(applied) == [VOID_STALE, VOID_STALE]

    def test_window_of_the_contract(self):
        filler = [Withdraw(9, 9, 7)] * (W - 1)
        _, (*_, applied) = meld_of(Open(0, 1, 7, 0), *filler, claims(0, 7, 0, (0, 0), (1, 90)))
        assert statuses(applied) == [WON, VOID_STALE]


class TestOpen:
    def test_claims_need_the_latest_open(self):
        meld, applied = meld_of(
            claims(0, 7, 0, (0, 0)),
            Open(0, 1, 7, 0),
            claims(0, 8, 2, (1, 0)),
            Open(0, 2, 8, 0),
            claims(0, 7, 4, (2, 0)),
            claims(0, 8, 5, (3, 0)),
        )
        assert [statuses(a) for a in applied if len(a.status)] == [
            [VOID_TERM],
            [VOID_TERM],
            [VOID_TERM],
            [WON],
        ]
        assert [a.valid for a in applied] == [False, True, False, True, False, True]
        assert meld.open_of(0) == Open(0, 2, 8, 0)
        assert meld.open_of(1) is None

    def test_a_lower_generation_is_void_and_an_equal_one_replaces(self):
        meld, applied = meld_of(
            Open(0, 5, 7, 0), Open(0, 4, 8, 0), Open(0, 5, 9, 0), Open(1, 1, 3, 0)
        )
        assert [a.valid for a in applied] == [True, False, True, True]
        assert meld.open_of(0).term == 9

    def test_offsets_below_from_do_not_count(self):
        _, (_, applied) = meld_of(Open(0, 1, 7, 10), claims(0, 7, 1, (9, 0), (10, 0)))
        assert statuses(applied) == [VOID_TERM, WON]

    def test_an_open_forgets_verdicts_below_from_but_no_winner(self):
        meld, _ = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 5), (2, 90), (3, 95)), Open(0, 2, 8, 2)
        )
        assert meld.prior(0, 0) is None
        assert meld.prior(0, 1) is None
        assert meld.prior(0, 2).won
        assert not meld.prior(0, 3).won
        assert meld.precheck(np.array([at(0)], np.float16)).winners.tolist() == [1]
        assert len(meld) == 2

    def test_the_same_term_again_only_forgets(self):
        meld, (*_, applied) = meld_of(
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0)),
            Open(0, 1, 7, 1),
            claims(0, 7, 1, (1, 0), (0, 0)),
        )
        assert statuses(applied) == [LOST, VOID_TERM]
        assert applied.winners[0] == 1
        assert meld.prior(0, 1).duplicate_of == (0, 0)

    def test_an_origin_that_was_forgotten_can_not_count_again(self):
        """Committed offsets never move back; should an open say so, what was committed stays
        decided."""
        _, (*_, applied) = meld_of(
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0)),
            Open(0, 2, 8, 5),
            Open(0, 3, 9, 0),
            claims(0, 9, 4, (0, 90), (5, 90)),
        )
        assert statuses(applied) == [VOID_TERM, WON]

    def test_the_floor_is_the_highest_from_of_a_valid_open(self):
        meld, _ = meld_of(Open(0, 2, 7, 5), Open(0, 1, 8, 9), Open(0, 3, 9, 0))
        assert [meld.floor_of(p) for p in (0, 1)] == [5, 0]


class TestPrior:
    def test_first_counting_claim_stands(self):
        meld, (_, first, again) = meld_of(
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0), (1, 5), (0, 90)),
            claims(0, 7, 4, (1, 90), (0, 90), (2, 90)),
        )
        assert statuses(first) == [WON, LOST, REPEAT]
        assert statuses(again) == [REPEAT, REPEAT, WON]
        assert meld.prior(0, 0)[:4] == (1, True, None, None)
        lost = meld.prior(0, 1)
        assert lost[:4] == (2, False, (0, 0), first.similarity[1])
        assert lost.vector.tolist() == np.array(at(5), np.float16).tolist()
        assert meld.prior(0, 3) is None
        assert meld.prior(1, 0) is None

    def test_claimed_until(self):
        meld, _ = meld_of(Open(0, 1, 7, 3), claims(0, 7, 1, (9, 0), (5, 90), (7, 1)))
        assert meld.claimed_until(0) == 10
        assert meld.claimed_until(1) == 0

    def test_it_keeps_no_message_alive(self):
        meld = meld_of(Open(0, 1, 7, 0))[0]
        meld.apply(decode(encode(claims(0, 7, 1, (0, 0), (1, 1)))))
        assert meld.prior(0, 1).vector.base is None, (
            "a loser's vector is its own, not a view of a whole message"
        )


class TestCapacity:
    def test_the_config_refuses_less(self):
        with pytest.raises(ValidationError):
            Dedup(capacity=least_capacity() - 1)
        assert Dedup(capacity=least_capacity()).capacity == 24_576

    @pytest.fixture
    def evicted(self):
        """100 winners under offsets 0 to 99, of which the oldest were evicted."""
        rows = np.random.default_rng(0).standard_normal((100, 16))
        vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        with (
            mock.patch.object(streamer.dedup.store, "BLOCK", 4),
            mock.patch.object(streamer.dedup.meld, "BLOCK", 4),
            mock.patch.object(streamer.dedup.host, "ROWS", 4),
        ):
            meld = Meld(16, 0.95, open_index(16, 0.95, "cpu"), window=8, capacity=least_capacity(8))
            meld.apply(Open(0, 1, 7, 0))
            for offset in range(100):
                assert statuses(
                    meld.apply(
                        Claims(
                            0, 7, meld.position, np.array([offset]), vectors[offset : offset + 1]
                        )
                    )
                ) == [WON]
                assert len(meld) <= 24
            yield meld, vectors

    def test_the_oldest_go_and_are_found_no_more(self, evicted):
        meld, vectors = evicted
        assert meld.evicted + len(meld) == 100
        assert len(meld) >= 16
        found = meld.precheck(vectors)
        assert (found.winners >= 0).tolist() == [offset >= meld.evicted for offset in range(100)]
        assert found.origins[-1].tolist() == [0, 99]

    def test_their_verdict_stays_as_long_as_it_may_be_asked_for(self, evicted):
        meld, vectors = evicted
        claim = meld.prior(0, 3)
        assert claim[:4] == (4, True, None, None)
        assert claim.vector.tolist() == vectors[3].tolist()
        assert statuses(meld.apply(Claims(0, 7, meld.position, np.array([3]), vectors[3:4]))) == [
            REPEAT
        ]
        meld.apply(Open(0, 1, 7, 50))
        assert meld.prior(0, 3) is None
        assert meld.prior(0, 60).won

    def test_they_can_be_withdrawn(self, evicted):
        meld, _ = evicted
        assert meld.apply(Withdraw(0, 3, 7)).valid
        assert not meld.apply(Withdraw(0, 3, 7)).valid
        assert meld.prior(0, 3)[:4] == (4, False, None, None)
        assert meld.evicted + len(meld) == 100


class TestWithdraw:
    def test_a_withdrawn_winner_is_none_any_more(self):
        meld, (*_, withdrawn, again, later) = meld_of(
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0), (1, 5)),
            Withdraw(0, 0, 7),
            Withdraw(0, 0, 7),
            claims(0, 7, 1, (2, 0), (3, 0)),
        )
        assert withdrawn.valid
        assert not again.valid
        assert statuses(later) == [WON, LOST]
        assert later.winners.tolist() == [-1, 5]
        assert meld.prior(0, 0)[:4] == (1, False, None, None), (
            "won False without duplicate_of: withdrawn"
        )
        assert meld.prior(0, 1)[:3] == (2, False, (0, 0)), (
            "a verdict is final, also when what it names is withdrawn"
        )
        assert meld.precheck(np.array([at(0)], np.float16)).winners.tolist() == [5]
        assert len(meld) == 1

    @pytest.mark.parametrize("origin", [(0, 1), (0, 2), (3, 0)])
    def test_losers_and_unknown_origins_are_ignored(self, origin):
        meld, applied = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0), (1, 5)), Withdraw(*origin, 7)
        )
        assert not applied[-1].valid
        assert len(meld) == 1
        assert meld.position == 4

    def test_a_zombie_withdraws_nothing(self):
        meld, applied = meld_of(
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0)),
            Open(0, 2, 8, 0),
            Withdraw(0, 0, 7),
            Withdraw(0, 0, 8),
        )
        assert [a.valid for a in applied[3:]] == [False, True]
        assert len(meld) == 0

    def test_a_withdrawn_origin_does_not_count_again(self):
        _, (*_, applied) = meld_of(
            Open(0, 1, 7, 0), claims(0, 7, 1, (0, 0)), Withdraw(0, 0, 7), claims(0, 7, 3, (0, 0))
        )
        assert statuses(applied) == [REPEAT]


def test_a_row_that_is_no_unit_vector_is_void():
    rows = np.array(
        [
            [np.nan, 0],
            [np.inf, 0],
            [0, 0],
            [0.9893, 0],
            [1.011, 0],
            [0.9907, 0],
            [0, 1.0098],
            [65504, 65504],
        ],
        np.float16,
    )
    meld, (_, applied) = meld_of(Open(0, 1, 7, 0), Claims(0, 7, 1, np.arange(8), rows))
    assert statuses(applied) == [VOID_VECTOR] * 5 + [WON, WON, VOID_VECTOR]
    assert meld.prior(0, 0) is None
    assert statuses(meld.apply(claims(0, 7, 9, (0, 180)))) == [WON], "a void row does not register"
    assert statuses(meld.apply(Claims(0, 7, 9, np.array([20]), np.ones((1, 1), np.float16)))) == [
        VOID_VECTOR
    ]


def test_the_first_dataset_entry_holds():
    other = DatasetEntry("topic-id", "sha256:other", 2, 0.9, 1)
    meld, applied = meld_of(DATASET, DATASET, other)
    assert [a.valid for a in applied] == [True, True, False]
    assert meld.dataset == DATASET
    assert meld_of()[0].dataset is None


class TestDigest:
    LOG = (
        DATASET,
        Open(0, 1, 7, 0),
        claims(0, 7, 2, (0, 0), (1, 5), (2, 90)),
        Open(1, 1, 8, 4),
        claims(1, 8, 6, (4, 180)),
    )

    def test_equal_on_every_replica(self):
        assert (
            meld_of(*self.LOG)[0].digest()
            == meld_of(*(decode(encode(entry)) for entry in self.LOG))[0].digest()
        )

    @pytest.mark.parametrize(
        "log",
        [
            LOG[1:],
            (*LOG, Withdraw(9, 9, 7)),
            (DATASET, Open(0, 1, 7, 0), claims(0, 7, 2, (0, 0), (1, 6), (2, 90)), *LOG[3:]),
            (DATASET, Open(0, 1, 7, 0), claims(0, 7, 2, (0, 0), (1, 5), (2, 91)), *LOG[3:]),
            (DATASET, Open(0, 1, 7, 0), claims(0, 7, 2, (0, 0), (1, 5), (3, 90)), *LOG[3:]),
            (DATASET, Open(0, 1, 7, 0), claims(0, 7, 2, (0, 0), (3, 5), (2, 90)), *LOG[3:]),
            (DATASET, Open(0, 2, 7, 0), *LOG[2:]),
            (*LOG[:3], Open(1, 1, 8, 3), LOG[4]),
            (DatasetEntry("topic-id", "sha256:other", 2, 0.9, 1), *LOG[1:]),
        ],
    )
    def test_differs_with_the_state(self, log):
        assert meld_of(*log)[0].digest() != meld_of(*self.LOG)[0].digest()

    def test_differs_with_a_withdrawal(self):
        assert (
            meld_of(*self.LOG, Withdraw(0, 0, 7))[0].digest()
            != meld_of(*self.LOG, Withdraw(0, 1, 7))[0].digest()
        )

    def test_says_nothing_of_what_was_forgotten(self):
        one = (
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0), (1, 5), (2, 4)),
            Open(0, 2, 8, 3),
            claims(0, 8, 5, (3, 90)),
        )
        two = (
            Open(0, 1, 7, 0),
            claims(0, 7, 1, (0, 0), (0, 5), (2, 7)),
            Open(0, 2, 8, 3),
            claims(0, 8, 5, (3, 90)),
        )
        assert meld_of(*one)[0].digest() == meld_of(*two)[0].digest()


# Against the oracle

DIM = 6
PARTS = st.sampled_from([1, 3, 256])


def pool(seed):
    """24 unit vectors of which many pairs lie within a few fp16 steps of 0.95, and four that are no
    unit vectors.

    Two clusters, and a chain in which only neighbours are near each other.
    """
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((2, 1, DIM))
    centre /= np.linalg.norm(centre, axis=-1, keepdims=True)
    apart = rng.standard_normal((2, 7, DIM))
    apart -= (apart * centre).sum(-1, keepdims=True) * centre
    apart /= np.linalg.norm(apart, axis=-1, keepdims=True)
    angle = np.arccos(0.95) * rng.choice([0.5, 0.999, 1.0, 1.001, 0.25], (2, 7, 1))
    near = np.cos(angle) * centre + np.sin(angle) * apart
    step = np.arccos(0.95) * rng.choice([0.6, 0.9, 1.0], 8).cumsum()[:, None]
    chain = np.cos(step) * centre[0] + np.sin(step) * apart[0, 0]
    units = np.concatenate([centre.reshape(2, DIM), near.reshape(14, DIM), chain]).astype(
        np.float16
    )
    bad = np.zeros((4, DIM), np.float16)
    bad[1, 0], bad[2, 1], bad[3, 2] = np.nan, -np.inf, 1.02
    return np.concatenate([units, bad])


ROW = st.tuples(st.integers(0, 14), st.integers(0, 27))
CLAIM = st.tuples(
    st.just("claims"),
    st.integers(0, 1),
    st.integers(1, 3),
    st.integers(-2, 12),
    st.lists(ROW, min_size=1, max_size=9),
)
OP = st.one_of(
    CLAIM,
    CLAIM,
    CLAIM,
    st.tuples(
        st.just("open"), st.integers(0, 1), st.integers(0, 2), st.integers(1, 3), st.integers(0, 6)
    ),
    st.tuples(st.just("withdraw"), st.integers(0, 1), st.integers(0, 14), st.integers(1, 3)),
    st.tuples(st.just("dataset"), st.sampled_from(["m", "n"])),
)


def entry_of(op, position, vectors):
    if op[0] == "claims":
        _, partition, term, lag, rows = op
        offsets = np.array([offset for offset, _ in rows], np.int64)
        return Claims(
            partition, term, max(position - lag, 0), offsets, vectors[[which for _, which in rows]]
        )
    if op[0] == "open":
        return Open(*op[1:])
    return Withdraw(*op[1:]) if op[0] == "withdraw" else DatasetEntry("t", op[1], DIM, 0.95, 1)


def same(verdict, claim):
    """The oracle's verdict on an origin as `Meld.prior` says it."""
    kind, position, winner, similarity, vector = verdict
    assert claim.position == position
    assert claim.won == (kind == "won")
    assert claim.similarity == (similarity if kind == "lost" else None)
    assert claim.vector.tolist() == vector
    return winner if kind == "lost" else None


@settings(max_examples=400, deadline=None)
@given(
    ops=st.lists(OP, min_size=1, max_size=25),
    seed=st.integers(0, 50),
    pair=st.tuples(st.integers(0, 23), st.integers(0, 23)),
    window=st.sampled_from([4, 9, 1000]),
    part=PARTS,
    width=st.sampled_from([3, DIM]),
)
@example(
    ops=[("open", 0, 1, 1, 0), ("claims", 0, 1, 0, [(i, i) for i in range(9)])],
    seed=0,
    pair=(0, 1),
    window=1000,
    part=3,
    width=3,
)
def test_equals_the_oracle(ops, seed, pair, window, part, width):
    vectors = pool(seed)
    threshold = dot(vectors[pair[0]], vectors[pair[1]])  # some pair lies exactly at τ
    threshold = threshold if 0.9 < threshold < 0.99 else 0.95
    with (
        mock.patch.object(streamer.dedup.meld, "_ROWS", part),
        mock.patch.object(streamer.dedup.store, "BLOCK", 4),
        mock.patch.object(streamer.dedup.meld, "BLOCK", 4),
        mock.patch.object(streamer.dedup.store, "FIRST_FIT", 3),
        mock.patch.object(streamer.dedup.store, "width_for", return_value=width),
        mock.patch.object(streamer.dedup.sketch, "width_for", return_value=width),
        mock.patch.object(streamer.dedup.exact, "ROWS", 2),
        mock.patch.object(streamer.dedup.host, "ROWS", 2),
        mock.patch.object(streamer.dedup.host.HostTail, "span", 6),
    ):
        oracle = Oracle(DIM, threshold, window)
        capacity = least_capacity(window)
        replicas = [
            Meld(DIM, threshold, open_index(DIM, threshold, "cpu"), window, limit)
            for limit in (None, None, capacity, capacity)
        ]
        opened = [("open", 0, 0, 1, 0), ("open", 1, 0, 1, 0)]
        for op in opened + ops:
            entry = entry_of(op, oracle.position, vectors)
            expected = oracle.apply(entry)
            every = [
                replica.apply(entry if at == 0 else decode(encode(entry)))
                for at, replica in enumerate(replicas)
            ]
            assert {replica.position for replica in replicas} == {oracle.position}
            assert all(len(replica) <= capacity for replica in replicas[2:])
            if not isinstance(entry, Claims):
                assert {applied.valid for applied in every} == {expected}
                continue
            for applied in every:
                got = list(
                    zip(
                        map(KINDS.get, statuses(applied)),
                        applied.winners.tolist(),
                        applied.similarity.tolist(),
                        strict=True,
                    )
                )
                origins = [
                    oracle.winners[w][0] if w >= 0 else (-1, -1) for w in applied.winners.tolist()
                ]
                assert list(map(tuple, applied.origins.tolist())) == origins
                assert got == [
                    (
                        kind,
                        winner,
                        pytest.approx(s, abs=0)
                        if s is not None
                        else pytest.approx(np.nan, nan_ok=True),
                    )
                    for kind, winner, s in expected
                ]
        check_state(oracle, replicas[0], vectors)
        check_verdicts(oracle, replicas[2])
        assert replicas[0].digest() == replicas[1].digest()
        assert replicas[2].digest() == replicas[3].digest()


def check_state(oracle, meld, vectors):
    assert len(oracle.counted) == len(set(oracle.counted)), (
        "an origin has at most one counting claim"
    )
    assert len(meld) == len(oracle.winners.keys() - oracle.withdrawn)
    assert meld.dataset == oracle.dataset
    check_verdicts(oracle, meld)
    units = vectors[:24]
    seen, winners, similarity, origins = meld.precheck(units)
    assert seen == oracle.position
    for vector, winner, value, origin in zip(
        units, winners.tolist(), similarity.tolist(), origins.tolist(), strict=True
    ):
        expected, at_least = oracle.near(vector, below=seen)
        assert winner == expected
        assert value == at_least if expected >= 0 else np.isnan(value)
        assert tuple(origin) == (oracle.winners[winner][0] if winner >= 0 else (-1, -1))


def check_verdicts(oracle, meld):
    for partition in range(2):
        assert meld.open_of(partition) == oracle.opens[partition][-1]
        for offset in range(15):
            verdict, claim = oracle.prior(partition, offset), meld.prior(partition, offset)
            assert (verdict is None) == (claim is None)
            if isinstance(claim, Claim):
                winner = same(verdict, claim)
                assert claim.duplicate_of == (None if winner is None else oracle.winners[winner][0])
                assert winner is None or winner < claim.position, (
                    "a loser names a winner earlier in the log"
                )
                assert offset < meld.claimed_until(partition)
