"""A dataset folder in memory, shared by all simulated processes; anything may happen between two of
its operations.

The real `Storage` works on it, so projection and discarding are the real ones.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from streamer.errors import DependencyError, ProtocolError
from streamer.records import DecidedBatch
from streamer.sink.folder import Entry, Folder, NewFile
from streamer.sink.patience import ONCE, Patience
from streamer.sink.storage import Storage
from streamer.wire.manifest import FileEntry, epoch_name

PATIENCE_S = 10.0
"""`output.retry_for` of the simulated service."""


class Disk:
    """What every process sees. ``watch`` is told before a file changes: (path, its new bytes or
    None)."""

    def __init__(self, now: Callable[[], float], copies: bool) -> None:
        """``copies``: publishing leaves the source behind, as on an object store."""
        self.now = now
        self.copies = copies
        self.files: dict[str, tuple[bytes, float]] = {}
        self.watch: Callable[[str, bytes | None], None] = lambda path, data: None

    def put(self, path: str, data: bytes) -> None:
        self.watch(path, data)
        self.files[path] = (data, self.now())

    def delete(self, path: str) -> None:
        if path in self.files:
            self.watch(path, None)
            del self.files[path]

    def rename(self, source: str, target: str) -> None:
        self.put(target, self.files[source][0])
        self.files[target] = self.files[source]
        self.delete(source)


class SimFolder(Folder):
    """One process's view: ``step`` pauses it, and may raise DependencyError or end it. ``away``:
    pauses it while the storage is away, or raises StorageAway where it must not wait."""

    uri = "/simulated"

    def __init__(
        self, disk: Disk, step: Callable[[str], None], away: Callable[[bool], None]
    ) -> None:
        self._disk = disk
        self._take_step = step
        self._away = away
        self._created: list[NewFile] = []

    def _step(self, what: str) -> None:
        self._take_step(what)
        self._away(self.patience is not ONCE)

    def create(self, path: str) -> NewFile:
        self._step("create")
        self._disk.put(path, b"")
        file = NewFile(_Drain(self._disk, self._step, path), self, path, 1 << 12)
        self._created.append(file)
        return file

    def forget(self) -> None:
        """The process is gone: what it had open stays as it is."""
        for file in self._created:
            file.abandon()
        self._created.clear()

    def open(self, path: str) -> BinaryIO:
        self._step("open")
        if path not in self._disk.files:
            raise FileNotFoundError(path)
        return io.BytesIO(self._disk.files[path][0])

    def size(self, path: str) -> int | None:
        self._step("size")
        found = self._disk.files.get(path)
        return None if found is None else len(found[0])

    def walk(self, path: str) -> Iterator[Entry]:
        self._step("walk")
        below = f"{path}/" if path else ""
        found = [
            Entry(p, len(d), t)
            for p, (d, t) in sorted(self._disk.files.items())
            if p.startswith(below)
        ]
        yield from found

    def folders(self, path: str) -> list[str]:
        self._step("folders")
        below = f"{path}/"
        return sorted(
            {
                p[len(below) :].partition("/")[0]
                for p in self._disk.files
                if p.startswith(below) and "/" in p[len(below) :]
            }
        )

    def changed(self, path: str) -> float | None:
        return None

    def publish(self, source: str, target: str, size: int) -> None:
        self._step("publish")
        if source not in self._disk.files:
            raise FileNotFoundError(source)
        data = self._disk.files[source][0]
        if len(data) != size:
            raise ProtocolError(f"{source} has {len(data)} bytes where its manifest says {size}")
        if self._disk.copies:
            self._disk.put(target, data)
        else:
            self._disk.rename(source, target)
        self._step("published")

    def replace(self, path: str, data: bytes, scratch: str) -> None:
        if not self._disk.copies:
            self._step("scratch")
            self._disk.put(scratch, data)
        self._step("replace")
        if self._disk.copies:
            self._disk.put(path, data)
        elif scratch in self._disk.files:
            self._disk.rename(scratch, path)
        else:
            raise FileNotFoundError(scratch)
        self._step("replaced")

    def remove(self, path: str) -> None:
        for file in sorted(p for p in self._disk.files if p.startswith(f"{path}/")):
            self._step("remove")
            self._disk.delete(file)
        self._step("removed")

    def check(self, path: str, size: int, sha256: str) -> None:
        self._step("check")
        data = self._disk.files.get(path, (b"", 0.0))[0]
        if (len(data), hashlib.sha256(data).hexdigest()) != (size, sha256):
            raise DependencyError(f"{path} reads back other than it was written")

    def probe(self, path: str) -> None:
        raise NotImplementedError


class _Drain:
    def __init__(self, disk: Disk, step: Callable[[str], None], path: str) -> None:
        self._disk = disk
        self._step = step
        self._path = path
        self._data = b""

    def write(self, data: memoryview) -> int:
        self._data += data
        return len(data)

    def finish(self) -> None:
        self._step("finish")
        if self._path not in self._disk.files and not self._disk.copies:
            raise FileNotFoundError(self._path)  # fsync of its folder, which somebody removed
        self._disk.put(self._path, self._data)
        self._step("finished")

    def abandon(self) -> None:
        pass


class SimEpoch:
    """Stands for `EpochWriter`, which is too slow to run thousands of times: one tar of what was
    accepted, one table of every row."""

    def __init__(self, storage: Storage, writer: str, epoch: int, uuid: str) -> None:
        self._storage = storage
        self._epoch = (writer, epoch, uuid)
        self._name = epoch_name(writer, epoch)
        self._files: dict[str, tuple[NewFile, list[str]]] = {}
        self.records = 0
        self.nbytes = 0
        self.counts: dict[str, int] = {}

    def append(self, batch: DecidedBatch) -> None:
        for record, decision in zip(batch.records, batch.decisions, strict=True):
            row = f"{record.partition}:{record.offset}"
            self._write(f"metadata/{self._name}.parquet", row)
            if decision.outcome == "accepted":
                self._write(f"shards/jpg/{self._name}-000.tar", row)
            self.counts[decision.outcome] = self.counts.get(decision.outcome, 0) + 1
        self.records += len(batch.records)

    def _write(self, path: str, row: str) -> None:
        if path not in self._files:
            self._files[path] = (self._storage.open_staged(*self._epoch, path), [])
        self._files[path][1].append(row)

    def seal(self) -> tuple[FileEntry, ...]:
        entries = []
        for path, (file, rows) in sorted(self._files.items()):
            file.write("\n".join(rows).encode())
            file.close()
            entries.append(FileEntry(path, file.nbytes, file.sha256, len(rows)))
        for entry in entries:
            self._storage.check_staged(*self._epoch, entry)
        return tuple(entries)

    def discard(self) -> None:
        for file, _ in self._files.values():
            file.abandon()
        self._storage.discard(*self._epoch)


def rows_of(data: bytes) -> list[tuple[int, int]]:
    """What `SimEpoch` wrote: (partition, offset) of every row."""
    return [tuple(map(int, line.split(":"))) for line in data.decode().splitlines()]  # type: ignore[misc]


def storage_on(folder: Folder, module: Any) -> Storage:
    """``module``: `streamer.sink.storage`, or a mutant of it."""
    storage: Storage = module.Storage("/simulated", "d", Patience(PATIENCE_S))
    storage.folder = folder
    return storage
