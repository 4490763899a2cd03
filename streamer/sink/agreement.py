"""Whether the places that hold parts of one dataset agree: commit log, folder, claim log, the
group's offsets, input topic. Pure but for the folder; `streamer check` asks the same as a start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from streamer.errors import ProtocolError
from streamer.sink.epoch_set import EpochSet
from streamer.units import counted
from streamer.wire.manifest import Manifest, epoch_name


class Projected(Protocol):
    """What is asked of the folder; see `streamer.sink.storage.Storage`."""

    @property
    def root_uri(self) -> str: ...
    def has(self, manifest: Manifest) -> bool:
        """Whether each of its files is staged or projected."""

    def is_projected(self, manifest: Manifest) -> bool:
        """Raises ProtocolError if another epoch has its name."""


class Comparison:
    """Whether the folder is that of the commit log, entry by entry: it holds no other epochs, and
    the files of all these. Blocks for the storage."""

    def __init__(self, log: str, files: Projected, projected: EpochSet | None) -> None:
        """``projected``: every epoch that the folder holds. None, where the entries are only the
        log's last ones: of each writer all but the newest are projected, as a writer projects an
        epoch before it commits the next one."""
        self._log = log
        self._files = files
        self._others = projected
        """Those that no entry has named so far."""
        self._newest: dict[str, Manifest] = {}
        """Of each writer, of what is projected."""
        self._entries = 0
        self._missing: list[Manifest] = []
        self._lost: Manifest | None = None

    def add(self, manifest: Manifest) -> None:
        """The log's next entry."""
        self._entries += 1
        if self._others is None or self._others.discard(manifest.writer, manifest.epoch):
            self._newest[manifest.writer] = manifest
        else:
            self._miss(manifest)

    def _miss(self, manifest: Manifest) -> None:
        self._missing.append(manifest)
        if self._lost is None and not self._files.has(manifest):
            self._lost = manifest

    def unprojected(self) -> Sequence[Manifest]:
        """After the last entry: the epochs that are not projected; their files are there. Of the
        projected ones it compares each writer's newest, which chains to the others.

        Raises ProtocolError, before anything is written: the folder is the wrong one, or somebody
        removed files or topics.
        """
        if self._others:
            foreign, count = next(iter(self._others)), len(self._others) - 1
            more = f" and {counted(count, 'epoch')} more" if count else ""
            raise ProtocolError(
                f"{self._files.root_uri} holds {epoch_name(*foreign)}{more} that {self._log} does "
                "not name: the commit log was lost, or the folder belongs to another life of this "
                "dataset. Restore the topic, or give the dataset a new name."
            )
        for manifest in self._newest.values():
            if not self._files.is_projected(manifest):
                self._miss(manifest)
        if self._lost is not None:
            raise ProtocolError(
                f"{self._files.root_uri} is missing files of epoch {self._lost.name}, which "
                f"{self._log} has committed; {len(self._missing)} of "
                f"{counted(self._entries, 'epoch')} are not projected there. Is output.path right? "
                "If it is, bring the files back (a backup, or a version of the bucket), then start "
                "again. Nothing was written."
            )
        return self._missing


def require_claims(position: int, needed: int, log: str) -> None:
    """The claim log ``log``, which ends at ``position``, is at least so long as it was when the last
    epoch was sealed (``needed``). Raises ProtocolError."""
    if needed > position:
        raise ProtocolError(
            f"{log}: the claim log ends at position {position}, but the commit log knows it up to "
            f"{needed}: it was deleted or made again. Restore the topic, or continue with a new "
            "dataset name."
        )


def require_no_offsets(dataset: str, offsets: Mapping[int, int | None]) -> None:
    """The group of a dataset that has no manifest has no committed offset either: only a manifest's
    transaction commits one. Raises ProtocolError."""
    if some := {p: offset for p, offset in offsets.items() if offset is not None}:
        partition, offset = min(some.items())
        raise ProtocolError(
            f"partition {partition}: the group streamer.{dataset} is committed at offset {offset}, "
            f"but {dataset}.commits holds no epoch: the commit log was deleted or made again, and "
            "what lies before is nowhere. Restore the topic, or give the dataset a new name. If "
            "the offsets were set by hand, delete them (kafka-consumer-groups.sh "
            f"--bootstrap-server … --group streamer.{dataset} --delete) and set kafka.start."
        )


def contradiction(
    dataset: str,
    partition: int,
    start: int,
    offset: int | None,
    begin: int,
    end: int,
    skip_limit: int,
) -> str:
    """What is wrong with going on at ``start``, where the manifests of ``partition`` end, and what
    to do about it; empty if nothing is. ``offset``: the group's; ``begin``, ``end``: the topic's;
    ``skip_limit``: what expired below this offset may be skipped."""
    if offset is not None and offset != start:
        return (
            f"partition {partition}: the group streamer.{dataset} is committed at offset {offset}, "
            f"but the manifests end at {start}: somebody moved the group's offsets by hand, or "
            "aborted a part of a hanging transaction. Stop all replicas and set it back (kafka-consumer-groups.sh --bootstrap-server … --group "
            f"streamer.{dataset} --reset-offsets --to-offset {start} --topic TOPIC:{partition} "
            "--execute). Other records are read by replaying them into a new dataset."
        )
    if end < start:
        return (
            f"partition {partition}: the topic ends at offset {end}, before {start} where this "
            "dataset continues: the topic was deleted and made again. Use a new dataset name for "
            "the new topic."
        )
    if begin > max(start, skip_limit):
        return (
            f"partition {partition}: the offsets {start} to {begin - 1} expired before they were "
            f"processed (the topic begins at {begin}). Whether they held records, or only the end "
            "marks of a producer's transactions, is unknown. What they held is lost to this "
            "dataset. Give the topic a longer retention, then go on without them: `streamer seek "
            "-c CONFIG --to earliest --execute` (or always: kafka.on_expired: skip)."
        )
    return ""
