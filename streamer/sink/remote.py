"""A dataset folder on any ``pyarrow.fs``.

Object stores cannot rename: there a file is copied (which is atomic), checked, and the staged one
removed with its folder. What the storage refuses for now is tried again (`streamer.sink.patience`),
but for the bytes of a new file: only `S3Folder` can send part of a file again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar, cast

from streamer.errors import DependencyError, ProtocolError, StorageAway
from streamer.sink.folder import Drain, Entry, Folder, NewFile
from streamer.sink.trouble import cause_of

T = TypeVar("T")
_CHUNK = 1 << 20
_REMOVALS = 3
"""Tries where somebody else removes the same folder."""


class RemoteFolder(Folder):
    def __init__(self, filesystem: Any, base: str, uri: str) -> None:
        self._fs = filesystem
        self._base = base.rstrip("/")
        self.uri = uri
        self._object_store = filesystem.type_name in ("s3", "gcs", "abfs")
        """No folders to make, a file appears whole when it is closed, and a rename is a copy and a
        delete."""

    def create(self, path: str) -> NewFile:
        return NewFile(
            self._patiently("create", path, lambda: self._drain(path)),
            self,
            path,
            buffer_bytes=_CHUNK,
        )

    def _drain(self, path: str) -> Drain:
        self._make_parent(path)
        return _RemoteDrain(self._fs.open_output_stream(self._at(path)))

    def open(self, path: str) -> BinaryIO:
        return self._patiently(
            "open", path, lambda: cast(BinaryIO, self._fs.open_input_file(self._at(path)))
        )

    def read(self, path: str) -> bytes:
        def once() -> bytes:
            with self._fs.open_input_file(self._at(path)) as file:
                return bytes(file.read())

        return self._patiently("read", path, once)

    def size(self, path: str) -> int | None:
        return self._patiently("look at", path, lambda: self._size(path))

    def _size(self, path: str) -> int | None:
        info = self._fs.get_file_info(self._at(path))
        return info.size if info.is_file else None

    def walk(self, path: str) -> Iterator[Entry]:
        for info in self._select(path, recursive=True):
            if info.is_file:
                mtime = info.mtime.timestamp() if info.mtime else time.time()
                yield Entry(info.path[len(self._base) + 1 :], info.size, mtime)

    def folders(self, path: str) -> list[str]:
        return [i.base_name for i in self._select(path, recursive=False) if not i.is_file]

    def changed(self, path: str) -> float | None:
        mtime = self._patiently(
            "look at", path, lambda: self._fs.get_file_info(self._at(path)).mtime
        )
        return None if mtime is None else float(mtime.timestamp())

    def publish(self, source: str, target: str, size: int) -> None:
        self._patiently("publish", target, lambda: self._publish(source, target, size))

    def _publish(self, source: str, target: str, size: int) -> None:
        if (found := self._size(source)) is None:
            raise FileNotFoundError(self.place(source))
        if found != size:
            raise ProtocolError(
                f"{self.place(source)} has {found} bytes where its manifest says {size}: somebody changed it after it was sealed"
            )
        try:
            if self._object_store:
                self._copy(source, target, size)
            else:
                self._make_parent(target)
                self._fs.move(self._at(source), self._at(target))
        except OSError as error:
            if cause_of(error) is None and self._size(source) is None:
                raise FileNotFoundError(self.place(source)) from error
            raise
        if (found := self._size(target)) != size:
            raise DependencyError(
                f"{self.place(target)} has {found} bytes where {size} were published: start again, and check the storage"
            )

    def _copy(self, source: str, target: str, size: int) -> None:
        """One try."""
        self._fs.copy_file(self._at(source), self._at(target))

    def replace(self, path: str, data: bytes, scratch: str) -> None:
        with self.create(path if self._object_store else scratch) as file:
            file.write(data)
        if not self._object_store:
            with self.explained("publish", path):
                self._make_parent(path)
                self._fs.move(self._at(scratch), self._at(path))

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._patiently("remove", path, lambda: self._remove(path))

    def _remove(self, path: str) -> None:
        for attempt in range(1, _REMOVALS + 1):
            try:
                self._fs.delete_dir(self._at(path))
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or attempt == _REMOVALS:
                    raise

    def check(self, path: str, size: int, sha256: str) -> None:
        """The length only: reading every byte back would double the traffic, and the client sends
        checksums of its own."""
        if (found := self.size(path)) != size:
            raise DependencyError(
                f"{self.place(path)} has {found} bytes where {size} were written: start again, and check the storage"
            )

    def probe(self, path: str) -> None:
        with self.create(f"{path}/probe") as file:
            file.write(b"probe")
        try:
            self.publish(f"{path}/probe", f"{path}/copy", 5)
        finally:
            self.remove(path)

    def refused(self, error: OSError, doing: str, path: str) -> DependencyError:
        final = super().refused(error, doing, path)
        return final if (cause := cause_of(error)) is None else StorageAway(str(final), cause)

    def _patiently(self, doing: str, path: str, do: Callable[[], T]) -> T:
        def once() -> T:
            with self.explained(doing, path):
                return do()

        return self.patience.call(once)

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _make_parent(self, path: str) -> None:
        if not self._object_store:
            self._fs.create_dir(self._at(path).rpartition("/")[0], recursive=True)

    def _select(self, path: str, recursive: bool) -> list[Any]:
        from pyarrow import fs

        selector = fs.FileSelector(self._at(path), recursive=recursive, allow_not_found=True)
        found = self._patiently("list", path, lambda: self._fs.get_file_info(selector))
        return sorted(found, key=lambda info: str(info.path))


class _RemoteDrain:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: memoryview) -> int:
        self._stream.write(
            bytes(data)
        )  # a copy: the client may keep it after the caller reuses its buffer
        return len(data)

    def finish(self) -> None:
        self._stream.close()

    def abandon(self) -> None:
        try:
            self._stream.close()  # pyarrow cannot abort; the caller removes what this leaves
        except OSError:
            return
