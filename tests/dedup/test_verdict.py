"""How the claim log's verdict changes a decision."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.dedup.verdict import by_prior, duplicate
from streamer.records import NEAR_DUPLICATE, Claim, Decision

VECTOR = np.zeros(2, np.float16)
WON = Claim(40, True, None, None, VECTOR)
LOST = Claim(41, False, (3, 99), 0.97, VECTOR)
WITHDRAWN = Claim(42, False, None, None, VECTOR)

ACCEPTED = Decision("accepted")
FLAGGED = Decision("accepted", None, ("small",))
FILTERED = Decision("filtered", "small", ("small", "dull"))
INVALID = Decision("invalid", "truncated", ("small",), detail="ends at byte 10")


@pytest.mark.parametrize(
    ("now", "flags"),
    [
        (ACCEPTED, ()),
        (FLAGGED, ("small",)),
        (FILTERED, ("small", "dull")),
        (INVALID, ("small", "truncated")),
    ],
)
@pytest.mark.parametrize("action_is_flag", [True, False])
def test_a_won_claim_is_accepted_whatever_is_said_now(
    now: Decision, flags: tuple[str, ...], action_is_flag: bool
) -> None:
    assert by_prior(WON, now, action_is_flag) == Decision("accepted", None, flags, claim=40)


@pytest.mark.parametrize("now", [ACCEPTED, FLAGGED, FILTERED, INVALID])
def test_a_lost_claim_is_a_duplicate_whatever_is_said_now(now: Decision) -> None:
    decided = by_prior(LOST, now, flags=False)
    assert (decided.outcome, decided.reason, decided.duplicate_of, decided.similarity, decided.claim) == (
        "duplicate", NEAR_DUPLICATE, (3, 99), 0.97, 41,
    )  # fmt: skip


def test_a_lost_claim_with_action_flag_is_accepted_and_says_so() -> None:
    decided = by_prior(LOST, FILTERED, flags=True)
    assert decided == Decision(
        "accepted", None, ("small", "dull", NEAR_DUPLICATE), (3, 99), 0.97, 41
    )


@pytest.mark.parametrize("action_is_flag", [True, False])
def test_a_withdrawn_winner_stays_invalid(action_is_flag: bool) -> None:
    assert by_prior(WITHDRAWN, ACCEPTED, action_is_flag) == Decision(
        "invalid", "withdrawn", (), claim=42
    )


def test_duplicate_keeps_the_flags_it_finds() -> None:
    removed = duplicate(FLAGGED, (1, 2), 0.99, None, flags=False)
    assert removed == Decision("duplicate", NEAR_DUPLICATE, ("small",), (1, 2), 0.99, None)
    kept = duplicate(FLAGGED, (1, 2), 0.99, 7, flags=True)
    assert kept == Decision("accepted", None, ("small", NEAR_DUPLICATE), (1, 2), 0.99, 7)
