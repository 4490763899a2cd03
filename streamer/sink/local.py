"""A dataset folder on a local disk: fsync for what must last, rename for what must appear whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from streamer.errors import DependencyError, ProtocolError
from streamer.sink.folder import Entry, Folder, NewFile

REMOVE_PATIENCE_S = 5.0
"""A folder that is not empty when its files are gone is tried again for so long: whoever projects
the same epoch made one meanwhile."""


class LocalFolder(Folder):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def create(self, path: str) -> NewFile:
        with self.explained("create", path):
            target = self.root / path
            _make(target.parent)
            return NewFile(_LocalDrain(target), self, path, buffer_bytes=1 << 18)

    def open(self, path: str) -> BinaryIO:
        with self.explained("open", path):
            return (self.root / path).open("rb")

    def size(self, path: str) -> int | None:
        with self.explained("look at", path):
            try:
                found = (self.root / path).stat()
            except FileNotFoundError:
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def walk(self, path: str) -> Iterator[Entry]:
        for folder, below, names in os.walk(self.root / path):
            below.sort()
            for name in sorted(names):
                file = Path(folder) / name
                try:
                    found = file.stat()
                except OSError:  # its owner moved it meanwhile, or it is a link that leads nowhere
                    continue
                if stat.S_ISREG(found.st_mode):
                    below_root = file.relative_to(self.root).as_posix()
                    yield Entry(below_root, found.st_size, found.st_mtime)

    def folders(self, path: str) -> list[str]:
        try:
            return sorted(p.name for p in (self.root / path).iterdir() if p.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def changed(self, path: str) -> float | None:
        try:
            return (self.root / path).stat().st_mtime
        except FileNotFoundError:
            return None

    def publish(self, source: str, target: str, size: int) -> None:
        if (found := self.size(source)) is None:
            raise FileNotFoundError(self.place(source))
        if found != size:
            raise ProtocolError(
                f"{self.place(source)} has {found} bytes where its manifest says {size}: somebody changed it after it was sealed"
            )
        self._rename(source, target)

    def replace(self, path: str, data: bytes, scratch: str) -> None:
        with self.create(scratch) as file:
            file.write(data)
        self._rename(scratch, path)

    def _rename(self, source: str, target: str) -> None:
        final = self.root / target
        with self.explained("publish", target):
            _make(final.parent)
            (self.root / source).replace(final)
            _sync(final.parent)

    def remove(self, path: str) -> None:
        folder = self.root / path
        deadline = time.monotonic() + REMOVE_PATIENCE_S
        while folder.exists():
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:  # somebody else removes it too
                continue
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                    raise self.refused(error, "remove", path) from error

    def check(self, path: str, size: int, sha256: str) -> None:
        digest, count = hashlib.sha256(), 0
        with self.explained("read back", path), self.open(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                count += len(chunk)
        if (count, digest.hexdigest()) != (size, sha256):
            raise DependencyError(
                f"{self.place(path)} reads back other than it was written: check the disk, and who else writes there"
            )

    def probe(self, path: str) -> None:
        """Also sees to it that a rename from staging to any public folder stays on one file system."""
        with self.explained("write to", path):
            try:
                made = _make(self.root / path)
            except FileNotFoundError as error:  # a place like /proc, where nobody can make a folder
                raise self.refused(error, "write to", path) from error
            try:
                with self.create(f"{path}/probe") as file:
                    file.write(b"probe")
                device = (self.root / path).stat().st_dev
                for public in ("shards", "metadata", "manifests"):
                    folder = self.root / public
                    if folder.exists() and not folder.is_dir():
                        wrong = OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                        raise self.refused(wrong, "write to", public)
                    if folder.exists() and folder.stat().st_dev != device:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            finally:
                self.remove(path)
                for parent in reversed(made[:-1]):
                    with suppress(OSError):  # somebody else uses it by now
                        parent.rmdir()


class _LocalDrain:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)

    def write(self, data: memoryview) -> int:
        return self._file.write(data)

    def finish(self) -> None:
        with self._file:
            os.fsync(self._file.fileno())
        _sync(self._path.parent)

    def abandon(self) -> None:
        self._file.close()


def _sync(folder: Path) -> None:
    """A new name is durable only when its folder is."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if (
            error.errno != errno.EINVAL
        ):  # some network file systems cannot; their rename is synchronous
            raise
    finally:
        os.close(fd)


def _make(folder: Path) -> list[Path]:
    """``mkdir -p``, every new folder durable in its parent; returns the new ones, outermost first."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    missing.reverse()
    for path in missing:
        path.mkdir(exist_ok=True)
        _sync(path.parent)
    return missing
