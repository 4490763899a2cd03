"""Rows in buckets, for more of them than memory holds: what belongs together comes back
together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.records import I64

Rows = npt.NDArray[Any]


class Spill:
    """Keeps up to ``limit`` bytes of rows in memory, the others in one file a bucket in a folder
    for temporary files (``TMPDIR``). One thread; a context manager."""

    def __init__(self, limit: int) -> None:
        self.nbytes = 0
        """Of all rows that were added and not taken."""
        self._limit = limit
        self._waiting: list[tuple[I64, Rows]] = []
        self._in_memory = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written: set[int] = set()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def add(self, buckets: I64, rows: Rows) -> None:
        """(n,) bucket numbers and (n,) rows, all of one dtype; they must not change afterwards.
        Raises OSError where the folder for temporary files is full."""
        if len(rows):
            self._waiting.append((buckets, rows))
            self._in_memory += rows.nbytes
            self.nbytes += rows.nbytes
            if self._in_memory > self._limit:
                self._write()

    def take(self) -> Iterator[tuple[int, Rows]]:
        """Every bucket that has rows, in order, its rows in the order they came; afterwards there
        are none. Memory: the waiting rows and one bucket."""
        waiting = dict(self._gather())
        for bucket in sorted(self._written | waiting.keys()):
            parts = [waiting.pop(bucket)] if bucket in waiting else []
            if bucket in self._written:
                path = self._path(bucket)
                parts.insert(0, np.fromfile(path, self._dtype))
                path.unlink()
            yield bucket, np.concatenate(parts)
        self._written.clear()
        self.nbytes = 0

    def _gather(self) -> list[tuple[int, Rows]]:
        """What is in memory, bucket by bucket."""
        if not self._waiting:
            return []
        buckets = np.concatenate([some for some, _ in self._waiting])
        rows = np.concatenate([some for _, some in self._waiting])
        self._waiting.clear()
        self._in_memory = 0
        self._dtype = rows.dtype
        order = np.argsort(buckets, kind="stable")
        names, starts = np.unique(buckets[order], return_index=True)
        rows = rows[order]
        return list(zip(names.tolist(), np.split(rows, starts[1:]), strict=True))

    def _write(self) -> None:
        for bucket, rows in self._gather():
            with self._path(bucket).open("ab") as file:
                file.write(rows.tobytes())
            self._written.add(bucket)

    def _path(self, bucket: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="streamer-verify-")
        return Path(self._folder.name) / str(bucket)
