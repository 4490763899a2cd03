"""The folder against the commit log and the group's offsets: what the folder alone cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from streamer.audit.files import Look
from streamer.audit.manifests import NOT_A_MANIFEST, Epoch, manifest_path, parse_manifest
from streamer.audit.report import Report
from streamer.audit.tiles import Span
from streamer.errors import ConfigError, ProtocolError


class Committed(Protocol):
    """What Kafka holds of a dataset; see `streamer.kafka.log.CommittedState`."""

    @property
    def topic(self) -> str:
        """Name of the commit log."""

    def manifests(self) -> Sequence[bytes]:
        """The entries of the commit log since the last call."""

    def offsets(self) -> Mapping[int, int]:
        """Partition → the group's committed offset; the partitions that have one."""


class CommitAudit:
    """Made before the folder is listed and finished after it, so that epochs committed meanwhile are
    not reported as differences. Blocks for the brokers; raises what they refuse with."""

    def __init__(self, committed: Committed, report: Report) -> None:
        """Raises ProtocolError for an entry that is not a manifest."""
        self._committed = committed
        self._report = report
        self._all: dict[tuple[str, int], Epoch] = {}
        self.first: Epoch | None = None
        """The dataset's first manifest."""
        self._read()
        self._before = dict(self._all)
        self._offsets = committed.offsets()

    def spans(self, public: Sequence[Epoch]) -> list[Span]:
        """The ranges of the epochs that were committed, but are not projected."""
        names = {(e.writer, e.epoch) for e in public}
        return [
            (partition, first, end)
            for name, epoch in self._before.items()
            if name not in names
            for partition, (first, end) in epoch.ranges.items()
            if first < end
        ]

    def check(self, public: Sequence[Epoch], look: Look, place: str) -> None:
        """``public``: the folder's manifests. ``look`` was taken before the last of them was read.
        Raises ConfigError where the folder is of another dataset."""
        self._read()
        if public and self.first is not None and public[0].dataset != self.first.dataset:
            raise ConfigError(
                f"{place} holds dataset {public[0].dataset}, but the config names "
                f"{self.first.dataset}. Pass the config of {public[0].dataset}."
            )
        there = {(e.writer, e.epoch): e for e in public}
        staged = {s.uuid for s in look.staged}
        latest = {writer: (writer, epoch) for writer, epoch in sorted(self._before)}
        for name, epoch in sorted(self._before.items()):
            found = there.get(name)
            if found is not None:
                if found.sha256 != epoch.sha256:
                    here, there_ = found.uuid, epoch.uuid
                    if here == there_:
                        here, there_ = f"sha256 {found.sha256[:12]}", f"{epoch.sha256[:12]}"
                    detail = f"{here} here, {there_} in {self._committed.topic}"
                    self._report.problem("epoch_differs", found.path, detail)
            elif epoch.uuid in staged or (not epoch.files and latest[epoch.writer] == name):
                # A manifest that founds a dataset has no files, so nothing of it is staged.
                detail = f"{self._committed.topic} names it; it waits to be projected"
                self._report.note("unprojected", manifest_path(*name), detail)
            else:
                records = sum(epoch.counts.values())
                detail = f"{self._committed.topic} names it, with {records} records"
                self._report.problem("epoch_missing", manifest_path(*name), detail)
        for name in sorted(there.keys() - self._all.keys()):
            detail = f"{self._committed.topic} does not name it"
            self._report.problem("epoch_unknown", there[name].path, detail)
        self._check_offsets()

    @property
    def records(self) -> int:
        """Records that the commit log counts."""
        return sum(n for epoch in self._before.values() for n in epoch.counts.values())

    def _check_offsets(self) -> None:
        """An offset that moved while the audit ran lies between the two ends of the log."""
        earliest, latest = _ends(self._before), _ends(self._all)
        for partition, offset in sorted(self._offsets.items()):
            if not earliest.get(partition, 0) <= offset <= latest.get(partition, 0):
                self._report.problem(
                    "offsets_differ",
                    self._committed.topic,
                    f"partition {partition}: the group is committed at offset {offset}, "
                    f"the commit log at {latest.get(partition, 0)}",
                )

    def _read(self) -> None:
        for data in self._committed.manifests():
            try:
                epoch = parse_manifest(self._committed.topic, data)
            except NOT_A_MANIFEST as error:
                raise ProtocolError(
                    f"{self._committed.topic}: an entry is no manifest ({type(error).__name__}: "
                    f"{error}): {data[:80]!r}"
                ) from None
            self.first = self.first or epoch
            self._all[epoch.writer, epoch.epoch] = epoch


def _ends(epochs: Mapping[tuple[str, int], Epoch]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for epoch in epochs.values():
        for partition, (_, end) in epoch.ranges.items():
            ends[partition] = max(end, ends.get(partition, 0))
    return ends
