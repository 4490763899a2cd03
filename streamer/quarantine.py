"""A poison record must not crash replica after replica: it is found and set aside.

A record can crash a process (a fault in a codec, out of memory) or make it hang, and then does the
same to the next owner of its partition. So each replica writes down what it reads. A partition that
has not moved since a process crashed while it read it is *suspected*: before anything else its next
records go through the line alone, in a window that is committed by itself (a *trial*). After a
crash the window is narrowed, down to one record; after a success it is doubled. A record that was
alone in the line in `DEATHS` crashes is *condemned*: it becomes `invalid`, reason ``crashed``,
unread.

What is written down is an aid: without it the search only takes longer.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from streamer.errors import DependencyError
from streamer.wire.checked import Unusable
from streamer.wire.journal import Journal, Reading, decode, encode

log = logging.getLogger("streamer")

WINDOW, LARGEST_WINDOW = 64, 65_536
"""Offsets of the first trial, and of the last one: each that goes well is followed by one of twice
its size, for the record may lie as deep as a process reads before its first commit."""
NARROWER = 16
"""After an end a window is cut into so many; one of `WINDOW` into single records."""
DEATHS = 3
"""Chance may end a process while it tries a record, but hardly again and again."""
OVERRUNS = 2
"""So often a decoding may take too long: there it is known which one it was."""
EMPTY = 3
"""A trial that found nothing so often is over: there is nothing, or it cannot be read."""


class Journals(Protocol):
    """The storage; see `streamer.sink.storage.Storage`."""

    def journals(self) -> Iterable[tuple[str, bytes]]:
        """Everybody's: writer and bytes. Raises DependencyError."""

    def write_journal(self, writer: str, data: bytes) -> None:
        """Raises DependencyError."""


class Trial(NamedTuple):
    """What may be in the line, alone."""

    partition: int
    first: int
    end: int


class Quarantine:
    """Kafka thread, but for `condemns` and `overran` (any). What it writes and reads of the storage
    blocks for one try; where that refuses, it does without."""

    def __init__(self, writer: str, journals: Journals) -> None:
        self._writer = writer
        self._journals = journals
        self._earlier: dict[int, Reading] | None = None
        """What our own predecessor read, of partitions that nobody is known to have taken. None: it
        could not be looked up so far, and is not written over."""
        self._readings: dict[int, Reading] = {}
        """Of what we own, as it is written."""
        self._starts: dict[int, int] = {}
        """Where what we own began."""
        self._ends: dict[int, int] = {}
        """What was there then."""
        self.is_open = False
        """Whether something is suspected, or was: until `proceed` says that there is nothing."""
        self._suspects: dict[int, Reading] = {}
        """Partition → its next trial."""
        self._tried: tuple[int, Reading] | None = None
        self._is_sealed = False
        self._empty: Counter[int] = Counter()
        self._overruns: dict[tuple[int, int], int] = {}
        self._condemned: frozenset[tuple[int, int]] = frozenset()
        self._writing = threading.Lock()

    def condemns(self, partition: int, offset: int) -> bool:
        return (partition, offset) in self._condemned

    def opened(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Partitions that begin, or begin again, at these offsets; ``ends``: their end offsets."""
        others = self._read()
        for partition, start in starts.items():
            known = self._suspects.pop(partition, None)
            if self._tried is not None and self._tried[0] == partition:
                known, self._tried = self._tried[1], None
            if known is not None:  # it begins again in this process
                if known.first <= start < known.until:
                    self._suspects[partition] = _moved(known, start)
            elif partition not in self._starts and start < ends[partition]:
                found = [j[partition] for j in others if partition in j]
                worst = max((r for r in found if r.first == start), key=_narrowness, default=None)
                if worst is not None:
                    self._suspects[partition] = _narrower(worst)
                    self._readings[partition] = worst
                    log.warning(
                        "a process crashed, or was killed, while it read this partition: its next "
                        "records are read alone, in small windows",
                        extra={"partition": partition, "offset": start, "window": _narrower(worst).size},
                    )  # fmt: skip
            if self._earlier is not None:
                self._earlier.pop(partition, None)
        self._starts |= starts
        self._ends |= ends
        self.is_open = self.is_open or bool(self._suspects)
        self._condemn()
        if not self.is_open:
            self._readings |= {p: Reading(start) for p, start in starts.items()}
        self._write()

    def reopen(self) -> bool:
        """Something is read again that was not: whether any of it is suspected."""
        self.is_open = self.is_open or bool(self._suspects)
        return self.is_open

    def released(self, partitions: Collection[int]) -> None:
        """They belong to somebody else from now on."""
        for partition in partitions:
            self._starts.pop(partition, None)
            self._readings.pop(partition, None)
            self._suspects.pop(partition, None)
            if self._tried is not None and self._tried[0] == partition:
                self._tried = None
        self._write()

    def proceed(
        self, end: Callable[[int], int | None], on_hold: Collection[int] = ()
    ) -> Trial | None:
        """The line is empty, and what went through it is committed up to ``end(partition)``: the
        next trial. None: there is none, everything may be read but what is ``on_hold``; the trials
        of that wait."""
        if self._tried is not None:
            partition, tried = self._tried
            self._tried = None
            following = self._after(partition, tried, end(partition) or 0)
            if following is not None:
                self._suspects[partition] = following
        partition = min(self._suspects.keys() - set(on_hold), default=-1)
        if partition < 0:
            self.is_open = False
            self._readings = {
                p: self._readings[p]
                if p in self._suspects and p in self._readings
                else Reading(end(p) or 0)
                for p in self._starts
            }
            self._write()
            log.info("nothing is suspected any more: everything is read as ever")
            return None
        tried = self._suspects.pop(partition)
        self._tried, self._is_sealed = (partition, tried), False
        self._readings = {p: r for p, r in self._readings.items() if p in self._suspects}
        self._readings[partition] = tried
        self._condemn()
        self._write()
        return Trial(partition, tried.first, tried.end)

    def _after(self, partition: int, tried: Reading, following: int) -> Reading | None:
        """The trial that comes after one which ended at ``following``."""
        if following <= tried.first:
            self._empty[partition] += 1
            return tried if self._empty[partition] < EMPTY else None
        del self._empty[partition]
        if following >= self._ends.get(partition, 0):  # all that was there when it began
            return None
        if following < tried.until:
            return _moved(tried, following)
        size = max(WINDOW, 2 * tried.size)
        return None if size > LARGEST_WINDOW else Reading(following, size, following + size)

    def sealed(self) -> None:
        """What was on trial is decided and on the storage: whatever ends the process now, it is not
        a record's fault."""
        if self._tried is None or self._is_sealed:
            return
        self._is_sealed = True
        partition, tried = self._tried
        if tried.end < tried.until:  # what a process leaves that leads to the next trial
            self._readings[partition] = Reading(tried.end, tried.size * NARROWER, tried.until)
        else:
            self._readings.pop(partition, None)
        self._write()

    def overran(self, partition: int, offset: int) -> None:
        """Its decoding takes too long. Any thread, and the last thing that the process does."""
        with self._writing:
            origin = partition, offset
            self._overruns = {**self._overruns, origin: self._overruns.get(origin, 0) + 1}
        self._write()

    def closed(self) -> None:
        """The process ends in order, so no record is to blame."""
        self._readings.clear()
        self._tried = None
        self._write()

    def _condemn(self) -> None:
        """Which records are invalid when they come along."""
        trials = [*self._suspects.items(), *([self._tried] if self._tried else [])]
        condemned = {(p, r.first) for p, r in trials if r.size == 1 and r.deaths >= DEATHS}
        condemned |= {origin for origin, n in self._own_overruns().items() if n >= OVERRUNS}
        for partition, offset in sorted(condemned - self._condemned):
            log.error(
                "a record is set aside as invalid (crashed): processes crashed while it was the only "
                "one in the line, or its decoding took longer than decode.timeout",
                extra={"partition": partition, "offset": offset},
            )
        self._condemned = frozenset(condemned)

    def _own_overruns(self) -> dict[tuple[int, int], int]:
        """Of others' partitions their own journals tell, and what is behind a start is done."""
        return {
            (p, offset): n
            for (p, offset), n in self._overruns.items()
            if p in self._starts and offset >= self._starts[p]
        }

    def _read(self) -> list[Mapping[int, Reading]]:
        """What others read, and once what our predecessor did."""
        found: dict[str, Journal] = {}
        try:
            for writer, data in self._journals.journals():
                try:
                    found[writer] = decode(data)
                except Unusable as error:
                    log.warning("what the replica %s read is not used: %s", writer, error)
            if self._earlier is None:
                self._earlier = dict(found.get(self._writer, Journal()).readings)
        except DependencyError as error:
            log.warning("what replicas read cannot be looked up: %s", error)
        with self._writing:
            for journal in found.values():
                for origin, n in journal.overruns.items():
                    self._overruns[origin] = max(n, self._overruns.get(origin, 0))
        others = [j.readings for writer, j in found.items() if writer != self._writer]
        return [*others, dict(self._earlier or {})]

    def _write(self) -> None:
        if self._earlier is None:
            return
        with self._writing:
            journal = Journal({**self._earlier, **self._readings}, self._own_overruns())
            try:
                self._journals.write_journal(self._writer, encode(journal))
            except DependencyError as error:
                log.warning("what this replica reads cannot be written down: %s", error)


def _narrowness(reading: Reading) -> tuple[bool, int, int]:
    return reading.size > 0, -reading.size, reading.deaths


def _narrower(reading: Reading) -> Reading:
    """The trial after a process ended with ``reading`` in hand."""
    if reading.size == 0:
        return Reading(reading.first, WINDOW, reading.first + WINDOW)
    if reading.size == 1:
        return Reading(reading.first, 1, reading.until, reading.deaths + 1)
    size = 1 if reading.size <= WINDOW else reading.size // NARROWER
    return Reading(reading.first, size, reading.end)


def _moved(reading: Reading, first: int) -> Reading:
    """What is left of it from there on."""
    return reading if first == reading.first else Reading(first, reading.size, reading.until)
