"""The part of the topic that a replica reads: where it begins, and where it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from streamer.config import Config
from streamer.errors import ConfigError
from streamer.kafka.admin import Admin, TopicInfo
from streamer.kafka.commit import founding_manifest
from streamer.kafka.topics import configured_starts
from streamer.replay import end_offsets, first_offsets
from streamer.sink.ledger import Ledger

log = logging.getLogger("streamer")

Offsets = Callable[[Collection[int]], Mapping[int, int]]
"""Partitions → an offset of each."""


@dataclass(frozen=True, slots=True)
class Range:
    """The part of the topic that a replica reads."""

    starts: Offsets
    """Where a new dataset begins."""
    ends: Offsets | None = None
    """Where a bounded run stops; None: nowhere."""
    not_before: float = 0.0
    """UTC seconds: `ends` is asked from then on."""
    fixed_ends: Callable[[Mapping[int, int]], Mapping[int, int]] | None = None
    """A replay's end for given starts: asked once, when the dataset is founded, and kept in its
    first manifest."""


def live_range(config: Config, admin: Admin, topic: TopicInfo, until: str | float | None) -> Range:
    """From where the group is, to nowhere (None), to the ``end`` at the assignment, or to a time
    (UTC seconds). Asks nobody yet."""

    def ends(partitions: Collection[int]) -> Mapping[int, int]:
        if until is None or until == "end":
            return admin.end_offsets(topic.name, partitions, committed=False)
        return admin.offsets_at(topic.name, partitions, round(float(until) * 1000))

    starts = partial(configured_starts, admin, config)
    not_before = 0.0 if until is None or until == "end" else float(until)
    return Range(starts, None if until is None else ends, not_before)


def replay_range(config: Config, admin: Admin, topic: TopicInfo, first: str, last: str) -> Range:
    """What ``first`` and ``last`` name (`streamer.replay`), for a new dataset or for one that this
    replay founded before.

    Writes nothing, joins nothing. Raises ConfigError for offsets that are none, for a range of
    nothing, and for a dataset that is no replay's.
    """
    founded = founding_manifest(config, admin)
    if founded is not None:  # its range is no longer asked for: some of it may have expired
        ledger = Ledger()
        ledger.apply(founded)
        # The name of a dataset that is no replay's ends here, before its group is joined
        fixed = ledger.fixed_ends(ledger.tiles)
        begun = {p: first for p, (first, _) in ledger.tiles.items()}
        log.info(
            "this replay was begun before; it keeps the range that it was begun with",
            extra={"starts": begun, "ends": fixed},
        )
        return Range(lambda _: begun, fixed_ends=lambda _: fixed)
    starts = first_offsets(first, admin, topic.name, range(topic.partitions))
    # A wrong --until ends here, before anything is written
    ends = end_offsets(last, starts, admin, topic.name)
    if all(ends[p] == start for p, start in starts.items()):
        raise ConfigError(
            f"--from, --until: no record of {topic.name} lies between them; nothing was begun, and the name is still free"
        )
    return Range(
        lambda _: starts, fixed_ends=lambda founded: end_offsets(last, founded, admin, topic.name)
    )
