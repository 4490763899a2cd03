"""A Parquet file of a dataset that may be damaged, on a storage that may refuse."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from streamer.sink.folder import Folder


class Damaged(Exception):
    """Arrow cannot read the file."""


@contextmanager
def open_table(folder: Folder, path: str) -> Iterator[pq.ParquetFile]:
    """For reading inside the block, which raises `Damaged` for what Arrow cannot read. Raises
    DependencyError if the storage refuses, and FileNotFoundError."""
    with folder.explained("open", path):
        source = folder.open(path)
    with source:
        try:
            yield pq.ParquetFile(_Source(source, folder, path))
        except (pa.ArrowException, OSError) as error:  # an OSError of the storage comes out of it
            raise Damaged(str(error)) from error


class _Source(io.RawIOBase):
    """Tells the storage's errors, which become DependencyErrors, from Arrow's own: for Arrow a
    damaged page is an OSError too."""

    def __init__(self, file: BinaryIO, folder: Folder, path: str) -> None:
        super().__init__()
        self._file = file
        self._folder = folder
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._folder.explained("read", self._path):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with self._folder.explained("read", self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        with self._folder.explained("read", self._path):
            return self._file.read(size)
