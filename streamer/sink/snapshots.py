"""Snapshots of the dedup state in a folder: ``WRITER/POSITION-UNIQUE/`` with the data and, written
last, the header.

Every writer keeps its newest ones in a folder of its own, so that none ever waits for, or deletes
from, another; a start takes the newest good one of any writer. Nothing here is needed: the claim
log has all of it, and what cannot be used is passed over with a warning.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import NamedTuple
from uuid import uuid4

from streamer.config import Config
from streamer.dedup import snapshot
from streamer.dedup.meld import State, W
from streamer.dedup.snapshot import Header
from streamer.dedup.store import WinnerStore
from streamer.errors import DependencyError
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder
from streamer.wire.checked import Unusable
from streamer.wire.claim import DatasetEntry

log = logging.getLogger("streamer")

INDEX = ".index"
"""Beside ``.staging``: readers of datasets pass over folders that begin with a dot."""
DATA, HEADER = "state.bin", "header.json"
KEEP = 2
"""The newest of each writer; one more than is needed, should it turn out to be damaged."""
_NAME = re.compile(r"([a-z0-9-]+)/(\d{12,})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a snapshot must be of."""

    dataset: DatasetEntry
    topic_id: str
    """Kafka's id of the claim log's topic."""
    capacity: int | None
    window: int = W

    def check(self, header: Header) -> None:
        """Raises Unusable for a snapshot of something else."""
        bound = [
            (
                f"the dataset's binding, {f.name},",
                header.dataset.spell(f.name),
                self.dataset.spell(f.name),
            )
            for f in fields(DatasetEntry)
        ]
        for what, there, here in (
            ("the claim log's topic (by id)", header.topic_id, self.topic_id),
            *bound,
            ("the window W", header.window, self.window),
            ("dedup.capacity", header.capacity, self.capacity),
        ):
            if there != here:
                raise Unusable(f"it is of something else: {what} is {there} there and {here} here")


class Found(NamedTuple):
    """A snapshot in the folder."""

    path: str
    writer: str
    position: int
    age_s: float
    """Seconds since its last file was written."""
    bytes: int
    header: Header | None
    """None where it has none that can be read."""
    trouble: str
    """Why it cannot be used; empty for all that can be told without reading the data."""
    unfinished: bool
    """It has no header: it is being written, or its writer died."""


class Snapshots:
    """The snapshots of one dataset. Stateless but for names; any thread; every method blocks for
    I/O."""

    def __init__(self, folder: Folder, writer: str, wanted: Wanted) -> None:
        self.folder = folder
        self.writer = writer
        self.wanted = wanted

    def find(self) -> list[Found]:
        """Everybody's, the newest position first. Raises DependencyError."""
        files: dict[str, dict[str, tuple[int, float]]] = {}
        for entry in self.folder.walk(""):
            path, _, name = entry.path.rpartition("/")
            if _NAME.fullmatch(path):
                files.setdefault(path, {})[name] = (entry.size, entry.mtime)
        found = [self._look(path, there) for path, there in files.items()]
        return sorted(found, key=lambda f: (f.position, -f.age_s), reverse=True)

    def _look(self, path: str, files: dict[str, tuple[int, float]]) -> Found:
        match = _NAME.fullmatch(path)
        assert match is not None
        header, trouble = None, ""
        try:
            if HEADER not in files:
                raise Unusable("it is unfinished: being written, or its writer died")
            header = self._header(path)
            self.wanted.check(header)
            if (size := files.get(DATA, (0, 0.0))[0]) != header.bytes:
                raise Unusable(f"its data have {size} bytes, its header says {header.bytes}")
        except Unusable as error:
            trouble = str(error)
        age = max(0.0, time.time() - max(mtime for _, mtime in files.values()))
        total = sum(size for size, _ in files.values())
        return Found(
            path, match[1], int(match[2]), age, total, header, trouble, HEADER not in files
        )

    def _header(self, path: str) -> Header:
        try:
            with self.folder.open(f"{path}/{HEADER}") as file:
                return snapshot.decode(file.read())
        except (OSError, DependencyError) as error:
            raise Unusable(f"its header cannot be read: {error}") from None

    def read(self, found: Found, store: WinnerStore) -> State:
        """Reads and checks all of it. Raises Unusable."""
        if found.header is None or found.trouble:
            raise Unusable(found.trouble)
        try:
            with self.folder.open(f"{found.path}/{DATA}") as file:
                return snapshot.read(found.header, file, store)
        except (OSError, DependencyError) as error:
            raise Unusable(f"its data cannot be read: {error}") from None

    def load(self, store: WinnerStore) -> tuple[Header, State] | None:
        """The newest good one; warns of those passed over. None if there is none. Raises nothing:
        the claim log has it all."""
        try:
            candidates = self.find()
        except (OSError, DependencyError) as error:
            log.warning(
                "snapshots of the dedup state cannot be looked for; the claim log is read from its beginning: %s",
                error,
            )
            return None
        for found in candidates:
            try:
                state = self.read(found, store)
                assert found.header is not None
                return found.header, state
            except Unusable as error:
                level = logging.INFO if found.unfinished else logging.WARNING
                log.log(
                    level,
                    "a snapshot of the dedup state is not used: %s: %s",
                    self.folder.place(found.path),
                    error,
                )
        return None

    def write(self, state: State, offset: int) -> Header:
        """Writes one, durably, and removes the writer's older ones. Raises DependencyError; leaves
        nothing half behind if it can."""
        path = f"{self.writer}/{state.position:012d}-{uuid4().hex[:8]}"
        try:
            header = self._write(path, state, offset)
        except FileNotFoundError as error:
            self._forget(path)
            raise self.folder.refused(error, "write", path) from error
        except DependencyError:
            self._forget(path)
            raise
        try:
            self._prune()
        except DependencyError as error:
            log.warning("older snapshots of the dedup state cannot be removed: %s", error)
        return header

    def _write(self, path: str, state: State, offset: int) -> Header:
        file = self.folder.create(f"{path}/{DATA}")
        try:
            arrays = snapshot.write(state, file)
            file.close()
        finally:
            file.abandon()
        header = Header(
            created=round(time.time(), 3), writer=self.writer, topic_id=self.wanted.topic_id, offset=offset,
            arrays=arrays, bytes=file.nbytes, sha256=file.sha256, **snapshot.describe(state),
        )  # fmt: skip
        self.folder.replace(f"{path}/{HEADER}", snapshot.encode(header), f"{path}/{HEADER}.new")
        return header

    def _forget(self, path: str) -> None:
        with suppress(OSError, DependencyError):
            self.folder.remove(path)

    def _prune(self) -> None:
        """Of the own ones only the newest good ones stay."""
        mine = [found for found in self.find() if found.writer == self.writer]
        kept = [found.path for found in mine if not found.trouble][:KEEP]
        for found in mine:
            if found.path not in kept:
                self.folder.remove(found.path)


def snapshot_folder(config: Config) -> Folder | None:
    """That of ``dedup.snapshots``; None where it is off. Raises ConfigError for a place that cannot
    be one."""
    if config.dedup is None or config.dedup.snapshots == "off":
        return None
    if config.dedup.snapshots == "dataset":
        return open_folder(config.output.path, config.dataset, INDEX)
    return open_folder(config.dedup.snapshots, config.dataset, setting="dedup.snapshots")


def open_snapshots(config: Config, dataset: DatasetEntry, topic_id: str) -> Snapshots | None:
    """Those of `snapshot_folder`; None where there is none. Raises ConfigError."""
    folder = snapshot_folder(config)
    capacity = None if config.dedup is None else config.dedup.capacity
    return (
        None
        if folder is None
        else Snapshots(folder, config.writer, Wanted(dataset, topic_id, capacity))
    )
