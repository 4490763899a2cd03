"""A dataset folder on any ``pyarrow.fs``.

Object stores cannot rename: there a file is copied (which is atomic), checked, and the staged one
removed with its folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from streamer.errors import DependencyError, ProtocolError
from streamer.sink.folder import Entry, Folder, NewFile

_CHUNK = 1 << 20


class RemoteFolder(Folder):
    copy_limit = 5_000_000_000
    """S3's CopyObject takes no more; what is bigger travels through here."""

    def __init__(self, filesystem: Any, base: str, uri: str) -> None:
        self._fs = filesystem
        self._base = base.rstrip("/")
        self.uri = uri
        self._object_store = filesystem.type_name in ("s3", "gcs", "abfs")
        """No folders to make, a file appears whole when it is closed, and a rename is a copy and a
        delete."""

    def create(self, path: str) -> NewFile:
        with self.explained("create", path):
            self._make_parent(path)
            return NewFile(
                _RemoteDrain(self._fs.open_output_stream(self._at(path))),
                self,
                path,
                buffer_bytes=_CHUNK,
            )

    def open(self, path: str) -> BinaryIO:
        with self.explained("open", path):
            return cast(BinaryIO, self._fs.open_input_file(self._at(path)))

    def size(self, path: str) -> int | None:
        with self.explained("look at", path):
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
        with self.explained("look at", path):
            mtime = self._fs.get_file_info(self._at(path)).mtime
        return None if mtime is None else mtime.timestamp()

    def publish(self, source: str, target: str, size: int) -> None:
        if (found := self.size(source)) is None:
            raise FileNotFoundError(self.place(source))
        if found != size:
            raise ProtocolError(
                f"{self.place(source)} has {found} bytes where its manifest says {size}: somebody changed it after it was sealed"
            )
        try:
            if self._object_store:
                self._copy(self._at(source), self._at(target), size)
            else:
                self._make_parent(target)
                self._fs.move(self._at(source), self._at(target))
        except OSError as error:
            if self.size(source) is None:
                raise FileNotFoundError(self.place(source)) from error
            raise self.refused(error, "publish", target) from error
        if (found := self.size(target)) != size:
            raise DependencyError(
                f"{self.place(target)} has {found} bytes where {size} were published: start again, and check the storage"
            )

    def _copy(self, source: str, target: str, size: int) -> None:
        if size <= self.copy_limit:
            self._fs.copy_file(source, target)
            return
        with (
            self._fs.open_input_stream(source) as reader,
            self._fs.open_output_stream(target) as writer,
        ):
            while chunk := reader.read(8 * _CHUNK):
                writer.write(chunk)

    def replace(self, path: str, data: bytes, scratch: str) -> None:
        with self.create(path if self._object_store else scratch) as file:
            file.write(data)
        if not self._object_store:
            with self.explained("publish", path):
                self._make_parent(path)
                self._fs.move(self._at(scratch), self._at(path))

    def remove(self, path: str) -> None:
        with self.explained("remove", path):
            try:
                self._fs.delete_dir(self._at(path))
            except FileNotFoundError:
                return

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

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _make_parent(self, path: str) -> None:
        if not self._object_store:
            self._fs.create_dir(self._at(path).rpartition("/")[0], recursive=True)

    def _select(self, path: str, recursive: bool) -> list[Any]:
        from pyarrow import fs

        with self.explained("list", path):
            found = self._fs.get_file_info(
                fs.FileSelector(self._at(path), recursive=recursive, allow_not_found=True)
            )
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
