"""When too many records of a partition are invalid."""

from __future__ import annotations

from itertools import count

import pytest

from streamer.records import DecidedBatch, Decision, Facts, Record
from streamer.sink.fuse import LEAST, WINDOW, Flood, Fuse

OFFSETS = count()


def batch(
    invalid: int,
    valid: int,
    reason: str = "truncated",
    partition: int = 0,
    first: int | None = None,
) -> DecidedBatch:
    """Its records come after all that were made before, or from ``first`` on."""
    n = invalid + valid
    offsets = [next(OFFSETS) if first is None else first + i for i in range(n)]
    decisions = [Decision("invalid", reason)] * invalid + [Decision("accepted")] * valid
    nothing: object = None
    return DecidedBatch(
        [Record(partition, offset, 0, b"", ()) for offset in offsets], [Facts()] * n, decisions, nothing, nothing, {}
    )  # type: ignore[arg-type]  # fmt: skip


def test_it_blows_when_more_than_the_ratio_is_invalid_and_says_what() -> None:
    fuse = Fuse(0.2, {})
    assert fuse.count(batch(20, 80)) is None
    assert fuse.count(batch(1, 0, "corrupt")) == Flood(
        0,
        "21 of the last 101 records are invalid (20 truncated, 1 corrupt), "
        "more than dead_letters.max_ratio = 0.2",
    )


@pytest.mark.parametrize("reason", ["not_found", "unreachable"])
def test_dead_links_never_blow_it(reason: str) -> None:
    fuse = Fuse(0.0, {})
    for _ in range(10):
        assert fuse.count(batch(LEAST, LEAST, reason)) is None


def test_dead_links_do_not_hide_what_blows_it() -> None:
    fuse = Fuse(0.2, {})
    for _ in range(10):
        assert fuse.count(batch(10 * WINDOW, 0, "not_found")) is None
        assert fuse.count(batch(2, 8)) is None
    flood = fuse.count(batch(1, 0))
    assert flood is not None
    assert flood.why.startswith("21 of the last 101 records")


def test_few_records_never_blow_it() -> None:
    fuse = Fuse(0.0, {})
    assert fuse.count(batch(LEAST - 1, 0)) is None
    assert fuse.count(batch(0, 1)) is not None


def test_it_looks_at_the_latest_records_only() -> None:
    fuse = Fuse(0.2, {})
    for _ in range(20):
        assert fuse.count(batch(0, WINDOW // 2)) is None
    assert fuse.count(batch(WINDOW // 5, 0)) is None, "of 10 000 records 2 %, of the window's 20 %"
    flood = fuse.count(batch(WINDOW // 10, 0))
    assert flood is not None
    assert flood.why.startswith("300 of the last 1300 records")


def test_a_ratio_of_1_switches_it_off() -> None:
    fuse = Fuse(1.0, {})
    for _ in range(10):
        assert fuse.count(batch(WINDOW, 0)) is None


def test_a_partition_is_not_blamed_for_another_one() -> None:
    fuse = Fuse(0.2, {})
    for _ in range(3):
        assert fuse.count(batch(0, WINDOW, partition=1)) is None
    assert fuse.count(batch(20, 80, partition=1)) is None
    flood = fuse.count(batch(LEAST, 0, partition=2))
    assert flood is not None
    assert flood.partition == 2


def test_what_is_read_again_does_not_count_again() -> None:
    """After a drop."""
    fuse = Fuse(0.2, {})
    for _ in range(3):
        assert fuse.count(batch(12, 38, first=0)) is None
    assert fuse.count(batch(0, 49, first=50)) is None
    assert fuse.count(batch(9, 0, first=99)) is None, "21 of 108: 19 %"
    assert fuse.count(batch(1, 0, first=108)) is not None, "22 of 109"


def test_what_somebody_has_seen_does_not_count() -> None:
    allowed: dict[int, int] = {}
    fuse = Fuse(0.2, allowed)
    assert fuse.count(batch(LEAST, 0, first=0)) is not None
    allowed[0] = LEAST
    assert fuse.count(batch(LEAST, 0, first=0)) is None
    assert fuse.count(batch(LEAST - 1, 0, first=LEAST)) is None
    assert fuse.count(batch(1, 0, first=2 * LEAST)) is not None
