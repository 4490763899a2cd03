"""Sizes, durations and times as people write them: ``20MB`` (10⁶), ``64MiB`` (2²⁰), ``50ms``,
``60s``, ``1h30m``, ``2026-01-31T12:00:00Z``."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_SIZES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*((?:[KMGT]i?)?B)", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)")
SIZE_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGTkmgt][Ii]?)?[Bb]\s*$"
DURATION_PATTERN = r"^\s*(?=.*[1-9])([0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d))+\s*$"
"""What `parse_size` and `parse_duration` take of text, a duration of 0 aside, for a JSON Schema."""


def parse_size(value: object) -> int:
    """``"20MB"`` or a whole number of bytes → bytes. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write it like 20MB, 64MiB or a number of bytes")
    return round(float(match[1]) * _SIZES[match[2].upper()])


def parse_duration(value: object) -> float:
    """``"50ms"``, ``"1h30m"`` → seconds. A bare number is refused: its unit would be a guess.
    Raises ValueError."""
    if isinstance(value, str) and value.strip():
        text = value.strip()
        parts = list(_DURATION.finditer(text))
        if parts and "".join(p[0] for p in parts) == text:
            return sum(float(p[1]) * _SECONDS[p[2]] for p in parts)
    raise ValueError(
        f"{value!r} is not a duration; write it with its unit, like 50ms, 60s or 1h30m"
    )


def parse_time(text: str) -> float:
    """ISO 8601, UTC where it names no zone → seconds since 1970, UTC. Raises ValueError."""
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not know Z
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


def size(n: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.4g} TB"


def duration(seconds: float) -> str:
    """For people: ``45 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def counted(number: int, noun: str) -> str:
    """``1 record``, ``2 records``: for nouns whose plural is an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
