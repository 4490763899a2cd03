"""The folder against the commit log and the group's offsets: what the folder alone cannot show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

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

    @property
    def log_id(self) -> str:
        """Kafka's id of that topic: another one when it was deleted and made again."""

    def begin_at(self, offset: int) -> None:
        """The next `entries` begin at this offset. Raises ProtocolError where the log ends before
        it."""

    def entries(self) -> Iterable[tuple[int, bytes]]:
        """Offsets and values of the commit log's entries since the last call."""

    def offsets(self) -> Mapping[int, int]:
        """Partition → the group's committed offset; the partitions that have one."""


@dataclass(frozen=True, slots=True)
class Founding:
    """The dataset's first manifest."""

    path: str
    dataset: str
    ends: dict[int, int]
    """Partition → where a replay ends."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the commit log is known to be what the folder is; of everything up to there no
    manifest has changed since, so that it need not be read again."""

    log_id: str
    offset: int
    """Of the last entry."""
    sha256: str
    """Of that entry."""
    founding: Founding
    last: dict[str, int]
    """Writer → its last epoch."""
    ends: dict[int, int]
    """Partition → where the last epoch that has it ends."""
    records: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Mark:
        """Raises KeyError, TypeError or ValueError."""
        founding = raw["founding"]
        return cls(
            log_id=raw["log_id"],
            offset=raw["offset"],
            sha256=raw["sha256"],
            founding=Founding(founding["path"], founding["dataset"], _by_number(founding["ends"])),
            last=dict(raw["last"]),
            ends=_by_number(raw["ends"]),
            records=raw["records"],
        )


def _by_number(raw: Mapping[str, int]) -> dict[int, int]:
    return {int(number): value for number, value in raw.items()}


class CommitAudit:
    """Made before the folder is listed and finished after it, so that epochs committed meanwhile are
    not reported as differences. Blocks for the brokers; raises what they refuse with."""

    def __init__(self, committed: Committed, report: Report, mark: Mark | None = None) -> None:
        """``mark``: begins there, until `read_whole`. Raises DependencyError where there is no log,
        ProtocolError for an entry that is not
        a manifest, and for a log that is not the one of the mark any more."""
        self._committed = committed
        self._report = report
        log_id = committed.log_id
        self._mark = mark if mark is not None and mark.log_id == log_id else None
        self._all: dict[tuple[str, int], Epoch] = {}
        self._last: tuple[int, str] | None = None
        """Offset and sha256 of the last entry that was read."""
        self.first: Founding | None = None
        if self._mark is not None:
            self.first = self._mark.founding
            committed.begin_at(self._mark.offset)
            self._require(self._mark)
        self._read()
        self._before = dict(self._all)
        self._read_to = self._last
        self._offsets = committed.offsets()
        self._is_all_there = False

    @property
    def begins_at(self) -> Mark | None:
        return self._mark

    def read_whole(self) -> None:
        """Does without the mark: reads what lies before it, too."""
        assert self._read_to is not None
        self._committed.begin_at(0)
        self._mark, self.first = None, None
        self._all.clear()
        self._read(until=self._read_to[0])
        self._before = dict(self._all)

    def mark(self) -> Mark | None:
        """After `check`: where the next audit may begin, if all that was read at first is in the
        folder as it should be."""
        if self._read_to is None or self.first is None or not self._is_all_there:
            return None
        last = {} if self._mark is None else dict(self._mark.last)
        for writer, epoch in sorted(self._before):
            last[writer] = epoch
        ends = _ends(self._before, self._mark)
        return Mark(self._committed.log_id, *self._read_to, self.first, last, ends, self.records)

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
        self._is_all_there = self._before.keys() <= there.keys()
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
            elif epoch.uuid in staged or (not epoch.has_files and latest[epoch.writer] == name):
                # A manifest that founds a dataset has no files, so nothing of it is staged.
                detail = f"{self._committed.topic} names it; it waits to be projected"
                self._report.note("unprojected", manifest_path(*name), detail)
            else:
                records = sum(epoch.counts.values())
                detail = f"{self._committed.topic} names it, with {records} records"
                self._report.problem("epoch_missing", manifest_path(*name), detail)
        known = {} if self._mark is None else self._mark.last
        for name in sorted(there.keys() - self._all.keys()):
            if name[1] <= known.get(name[0], -1):
                continue
            detail = f"{self._committed.topic} does not name it"
            self._report.problem("epoch_unknown", there[name].path, detail)
        self._check_offsets()

    @property
    def records(self) -> int:
        """Records that the commit log counts."""
        before = 0 if self._mark is None else self._mark.records
        return before + sum(n for epoch in self._before.values() for n in epoch.counts.values())

    def _check_offsets(self) -> None:
        """An offset that moved while the audit ran lies between the two ends of the log."""
        earliest, latest = _ends(self._before, self._mark), _ends(self._all, self._mark)
        for partition, offset in sorted(self._offsets.items()):
            if not earliest.get(partition, 0) <= offset <= latest.get(partition, 0):
                self._report.problem(
                    "offsets_differ",
                    self._committed.topic,
                    f"partition {partition}: the group is committed at offset {offset}, "
                    f"the commit log at {latest.get(partition, 0)}",
                )

    def _require(self, mark: Mark) -> None:
        entry = next(iter(self._committed.entries()), None)
        sha256 = None if entry is None else hashlib.sha256(entry[1]).hexdigest()
        if entry is None or (entry[0], sha256) != (mark.offset, mark.sha256):
            raise ProtocolError(
                f"{self._committed.topic}: offset {mark.offset} is not the epoch that an earlier "
                "audit read there: the log lost entries. Restore the topic. If the log is right, "
                "verify with --all."
            )
        self._last = mark.offset, mark.sha256

    def _read(self, until: int | None = None) -> None:
        """``until``: the last entry to be read."""
        for offset, data in self._committed.entries():
            try:
                epoch = parse_manifest(self._committed.topic, data)
            except NOT_A_MANIFEST as error:
                raise ProtocolError(
                    f"{self._committed.topic}: an entry is no manifest ({type(error).__name__}: "
                    f"{error}): {data[:80]!r}"
                ) from None
            self.first = self.first or Founding(epoch.path, epoch.dataset, epoch.ends)
            self._all[epoch.writer, epoch.epoch] = epoch.without_files()
            self._last = offset, epoch.sha256
            if until is not None and offset >= until:
                break


def _ends(epochs: Mapping[tuple[str, int], Epoch], mark: Mark | None) -> dict[int, int]:
    ends = {} if mark is None else dict(mark.ends)
    for epoch in epochs.values():
        for partition, (_, end) in epoch.ranges.items():
            ends[partition] = max(end, ends.get(partition, 0))
    return ends
