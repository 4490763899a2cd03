"""A replay: a part of the input topic into a new dataset, with its end fixed at the start. The live
group is never touched."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping

from streamer.config import Config, merge, parse
from streamer.errors import ConfigError
from streamer.kafka.admin import Admin
from streamer.units import parse_time

log = logging.getLogger("streamer")

_OFFSETS = re.compile(r"offset:(?:(\d+)|(\d+=\d+(?:,\d+=\d+)*))")
_COUNT = re.compile(r"count:(\d+)")


def first_offsets(
    text: str, admin: Admin, topic: str, partitions: Collection[int], option: str = "--from"
) -> Mapping[int, int]:
    """``earliest``, a time, ``offset:N``, ``offset:P=N,…`` or ``count:N`` (the last N offsets of
    each partition) → first offsets.

    A partition that ``offset:P=N`` does not name begins at its end. Raises ConfigError, which
    names the ``option``.
    """
    begins = admin.begin_offsets(topic, partitions)
    ends = admin.end_offsets(topic, partitions, committed=False)
    if text == "earliest":
        return begins
    if match := _COUNT.fullmatch(text):
        return {p: max(begins[p], ends[p] - int(match[1])) for p in partitions}
    if text.startswith("offset:"):
        given = _offsets(option, text, partitions)
        for p, offset in given.items():
            if not begins[p] <= offset <= ends[p]:
                raise ConfigError(
                    f"{option} {text}: partition {p} of {topic} begins at offset {begins[p]} and ends at {ends[p]}; {offset} is "
                    "outside"
                )
        return {p: given.get(p, ends[p]) for p in partitions}
    return admin.offsets_at(topic, partitions, _milliseconds(option, text))


def forward_offsets(
    text: str, admin: Admin, topic: str, decided: Mapping[int, int]
) -> Mapping[int, int]:
    """``earliest``, a time, ``offset:N``, ``offset:P=N,…`` or ``count:N`` → of the partitions that
    are ``decided`` up to an offset before that, where they are to go on. Raises ConfigError for an
    offset that lies before it, or beyond the topic's end."""
    if text.startswith("offset:"):
        wanted: Mapping[int, int] = _offsets("--to", text, decided)
        ends = admin.end_offsets(topic, list(wanted), committed=False)
        for p, offset in wanted.items():
            if not decided[p] <= offset <= ends[p]:
                raise ConfigError(
                    f"--to {text}: partition {p} is decided up to offset {decided[p]} and ends at "
                    f"{ends[p]}; {offset} is outside. What was decided is read again by "
                    "`streamer replay run`, into a new dataset"
                )
    else:
        wanted = first_offsets(text, admin, topic, list(decided), "--to")
    return {p: offset for p, offset in wanted.items() if offset > decided[p]}


def end_offsets(
    text: str, starts: Mapping[int, int], admin: Admin, topic: str
) -> Mapping[int, int]:
    """``end``, a time, ``offset:N``, ``offset:P=N,…`` or ``count:N`` (N offsets of each partition)
    → one past the last offset.

    Never before the start, never beyond the end that the topic has now. Raises ConfigError.
    """
    ends = admin.end_offsets(topic, list(starts), committed=False)
    if text == "end":
        wanted: Mapping[int, int] = ends
    elif match := _COUNT.fullmatch(text):
        wanted = {p: start + int(match[1]) for p, start in starts.items()}
    elif text.startswith("offset:"):
        given = _offsets("--until", text, list(starts))
        wanted = {p: given.get(p, starts[p]) for p in starts}
    else:
        wanted = admin.offsets_at(topic, list(starts), _milliseconds("--until", text))
    if beyond := [p for p in sorted(wanted) if wanted[p] > ends[p]]:
        where = f"partition {beyond[0]} ends at offset {ends[beyond[0]]}"
        log.warning(
            f"--until {text} lies beyond the end of {topic}: {where}; the replay ends there"
        )
    return {p: max(start, min(wanted[p], ends[p])) for p, start in starts.items()}


def into(path: str, overrides: Iterable[str], dataset: str) -> Config:
    """The config at ``path`` with ``overrides``, under a new dataset name. What does not fit the
    old name may fit the new one: its dead letters as the input topic, for example.

    Raises ConfigError, also for the live dataset's own name.
    """
    merged = merge(path, overrides)
    if dataset == merged.settings.get("dataset"):
        raise ConfigError(
            f"--dataset {dataset}: that is the live dataset; a replay needs a new name"
        )
    settings = {**merged.settings, "dataset": dataset}
    origins = {**merged.origins, "dataset": "--dataset"}
    return parse(settings, f"{path} with --dataset {dataset}", origins)


def _offsets(option: str, text: str, partitions: Collection[int]) -> dict[int, int]:
    match = _OFFSETS.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option} {text}: write offset:N for every partition, or offset:P=N,P=N")
    if match[1] is not None:
        return dict.fromkeys(partitions, int(match[1]))
    pairs = [pair.split("=") for pair in match[2].split(",")]
    given = {int(p): int(n) for p, n in pairs}
    if len(given) < len(pairs):
        raise ConfigError(f"{option} {text}: a partition is named twice")
    if unknown := sorted(set(given) - set(partitions)):
        raise ConfigError(f"{option} {text}: there is no partition {unknown[0]}")
    return given


def _milliseconds(option: str, text: str) -> int:
    try:
        return round(parse_time(text) * 1000)
    except ValueError:
        choices = "end" if option == "--until" else "earliest"
        raise ConfigError(
            f"{option} {text}: neither {choices}, a time like 2026-01-31T12:00:00Z, offset:N, offset:P=N,… nor count:N"
        ) from None
