"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest

from streamer.units import duration, parse_duration, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        (0, 0), (20, 20), ("0B", 0), ("20B", 20), ("1KB", 1_000), ("20MB", 20_000_000), ("1GB", 10**9), ("2TB", 2 * 10**12),
        ("1KiB", 1024), ("64MiB", 64 * 2**20), ("1GiB", 2**30), ("1TiB", 2**40), ("1.5GB", 1_500_000_000), ("0.5KiB", 512),
        (" 20 MB ", 20_000_000), ("20mb", 20_000_000), ("20mib", 20 * 2**20), ("0.001KB", 1),
    ],
)  # fmt: skip
def test_sizes(text: object, bytes_: int) -> None:
    assert parse_size(text) == bytes_
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "MB",
        "20 XB",
        "-1MB",
        -1,
        1.5,
        True,
        None,
        "1,5GB",
        "20MB!",
        "20 MB 3",
        [20],
        "1e3B",
        "20Mb/s",
    ],
)
def test_what_is_no_size_says_how_to_write_one(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 20MB, 64MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05), ("60s", 60.0), ("1m", 60.0), ("1h", 3600.0), ("1d", 86400.0), ("1h30m", 5400.0), ("1m30s500ms", 90.5),
        ("1.5h", 5400.0), ("0.5ms", 0.0005), (" 10s ", 10.0), ("10 s", 10.0), ("0s", 0.0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5",
        5,
        0.5,
        None,
        True,
        "s",
        "-5s",
        "5 seconds",
        "5S",
        "5sec",
        "1h-30m",
        "1h and 30m",
        ["5s"],
    ],
)
def test_what_is_no_duration_says_how_to_write_one(text: object) -> None:
    with pytest.raises(
        ValueError, match="is not a duration; write it with its unit, like 50ms, 60s or 1h30m"
    ):
        parse_duration(text)


def test_times_are_utc_where_they_name_no_zone():
    assert parse_time("2026-01-31T12:00:00Z") == 1769860800.0
    assert parse_time("2026-01-31T12:00:00") == 1769860800.0
    assert parse_time("2026-01-31T13:00:00.5+01:00") == 1769860800.5
    with pytest.raises(ValueError):
        parse_time("yesterday")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3569, "59 min"), (3600, "1 h 0 min"), (90_061, "25 h 1 min")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
