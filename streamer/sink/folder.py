"""The dataset folder as a handful of file operations; `LocalFolder` and `RemoteFolder` are the two
kinds.

Paths are relative to the folder, with ``/``. Every operation may block for I/O; none keeps state,
so any number of threads and processes may work on one folder. What a person must fix comes out as
DependencyError with the place and the fix, a remote storage that is away for longer than the
folder's `Patience` as StorageAway.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol

from streamer.errors import DependencyError, DiskFull
from streamer.sink.patience import BRIEFLY, ONCE, Patience
from streamer.sink.trouble import FIXES


class Entry(NamedTuple):
    """A file that was found. ``mtime``: seconds since 1970, by the storage's clock."""

    path: str
    size: int
    mtime: float


class Folder(ABC):
    uri: str
    """What a person passes to ``streamer dataset verify``; never holds credentials."""
    setting = "output.path"
    """The key of the config that names the place, for messages."""
    patience: Patience = BRIEFLY
    """How long operations try again while the storage is away; for files on a disk it has no
    meaning."""

    def impatient(self) -> Folder:
        """The same folder for a thread that must not wait: every operation has one try."""
        other = copy.copy(self)
        other.patience = ONCE
        return other

    @abstractmethod
    def create(self, path: str) -> NewFile:
        """A new file, its folders made as needed. Complete and durable once `NewFile.close`
        returned.

        Raises FileNotFoundError if a folder on the way is taken away meanwhile.
        """

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """For reading, seekable. Raises FileNotFoundError; OSErrors of its reads are the caller's
        (`explained`)."""

    def read(self, path: str) -> bytes:
        """A small file as a whole. Raises FileNotFoundError."""
        with self.explained("read", path), self.open(path) as file:
            return file.read()

    @abstractmethod
    def size(self, path: str) -> int | None:
        """In bytes; None if there is no such file."""

    @abstractmethod
    def walk(self, path: str) -> Iterator[Entry]:
        """Every regular file below ``path``, sorted; nothing if there is no such folder."""

    @abstractmethod
    def folders(self, path: str) -> list[str]:
        """Names of the folders directly in ``path``, sorted; empty if there is no such folder."""

    @abstractmethod
    def changed(self, path: str) -> float | None:
        """When something was last made or removed directly in the folder ``path``, like
        `Entry.mtime`; None where the storage does not know."""

    @abstractmethod
    def publish(self, source: str, target: str, size: int) -> None:
        """``target`` holds what ``source`` held, durably and never half; ``source`` may be gone
        afterwards.

        Raises FileNotFoundError if ``source`` is not there (or is taken away meanwhile),
        ProtocolError if it has another size.
        """

    @abstractmethod
    def replace(self, path: str, data: bytes, scratch: str) -> None:
        """Writes a small file so that a reader sees the old or the new one; ``scratch`` is a free
        name it may use meanwhile.

        Raises FileNotFoundError if the scratch file's folder is taken away meanwhile.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes the folder ``path`` with all it holds; nothing to do if it is not there."""

    @abstractmethod
    def check(self, path: str, size: int, sha256: str) -> None:
        """Raises DependencyError unless the file is there as it was written."""

    @abstractmethod
    def probe(self, path: str) -> None:
        """Makes, fills, reads and removes the folder ``path``. Raises DependencyError; leaves
        nothing behind."""

    def place(self, path: str) -> str:
        """The full address of a file, for messages."""
        base, mark, query = self.uri.partition("?")
        return f"{base}/{path}{mark}{query}"

    @contextmanager
    def explained(self, doing: str, path: str) -> Iterator[None]:
        """Turns an OSError into a DependencyError that names the place and the fix;
        FileNotFoundError stays what it is."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.refused(error, doing, path) from error

    def refused(self, error: OSError, doing: str, path: str) -> DependencyError:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else DependencyError
        fix = _fix(error).replace("output.path", self.setting)
        return kind(f"cannot {doing} {self.place(path)}: {error.strerror or error}{fix}")


_FIXES = {
    errno.ENOSPC: "free space there, or point output.path elsewhere",
    errno.EDQUOT: "raise the quota, or point output.path elsewhere",
    errno.EACCES: "give this user read and write access to it, or point output.path elsewhere",
    errno.EPERM: "give this user read and write access to it, or point output.path elsewhere",
    errno.EROFS: "it is mounted read-only; mount it for writing, or point output.path elsewhere",
    errno.ENOENT: "no folder can be made there; point output.path elsewhere",
    errno.EEXIST: "a file is in the way; remove it, or point output.path elsewhere",
    errno.ENOTDIR: "a file is in the way; remove it, or point output.path elsewhere",
    errno.EXDEV: "the dataset folder must be one file system; mount nothing below it",
}


def _fix(error: OSError) -> str:
    fix = _FIXES.get(error.errno or 0) or next(
        (fix for sign, fix in FIXES.items() if sign in str(error)), ""
    )
    return f". The fix: {fix}." if fix else ""


class Drain(Protocol):
    """Where a `NewFile`'s bytes go."""

    def write(self, data: memoryview) -> int: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class _Hashing(io.RawIOBase):
    """Hashes and counts what really went to the drain. After a failure it swallows the rest, and
    can only be abandoned."""

    def __init__(self, drain: Drain, folder: Folder, path: str) -> None:
        self._drain = drain
        self._folder = folder
        self._path = path
        self.sha256 = hashlib.sha256()
        self.nbytes = 0
        self.dead = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.nbytes

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self.dead:
            return len(view)
        self.dead = True  # until the bytes are through
        with self._folder.explained("write", self._path):
            taken = self._drain.write(view)
        self.dead = False
        self.sha256.update(view[:taken])
        self.nbytes += taken
        return taken

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.dead:
                self._drain.abandon()
            else:
                self.dead = True
                with self._folder.explained("finish", self._path):
                    self._drain.finish()
        finally:
            super().close()


class NewFile(io.BufferedWriter):
    """A file being written, hashed and counted on its way. One thread.

    `close` makes it complete and durable, or raises DependencyError; `abandon` gives it up.
    """

    def __init__(self, drain: Drain, folder: Folder, path: str, buffer_bytes: int) -> None:
        self._hashing = _Hashing(drain, folder, path)
        super().__init__(self._hashing, buffer_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes written so far; exact once closed."""
        return self._hashing.nbytes

    @property
    def sha256(self) -> str:
        """Hex digest of ``nbytes`` bytes; of the whole file once closed."""
        return self._hashing.sha256.hexdigest()

    def abandon(self) -> None:
        """Closes without finishing; what was written is to be removed. Does not raise, may be
        called twice."""
        self._hashing.dead = True
        self.close()
