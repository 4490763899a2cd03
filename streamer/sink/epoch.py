"""One open epoch: its tars and its table, written under staging names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from streamer.config import Output
from streamer.errors import DependencyError
from streamer.records import DecidedBatch
from streamer.sink.folder import NewFile
from streamer.sink.shards import ShardWriter, compact
from streamer.sink.storage import Storage
from streamer.sink.table import TableWriter, table_schema
from streamer.wire.manifest import FileEntry, epoch_name


class EpochWriter:
    """Appends batches, then `seal` or `discard`. Writer thread only; every method blocks for I/O.

    ``fingerprints``: what the Parquet schema's metadata says beside versions, each as
    ``streamer.NAME``. ``threshold`` is the one that `streamer dataset verify` reads: τ as a number,
    or "off".

    After a DependencyError (full disk, failed upload) only `discard` is of use; nothing was public
    before, nothing is now.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        dataset: str,
        writer: str,
        epoch: int,
        uuid: str,
        topic: str,
        dim: int,
        score_names: Sequence[str],
        pipeline: str,
        limits: Output,
        fingerprints: Mapping[str, Any],
    ) -> None:
        self.records = 0
        self._storage = storage
        self._epoch = (writer, epoch, uuid)
        self._counts: Counter[str] = Counter()
        name = epoch_name(writer, epoch)
        facts = {"dataset": dataset, "topic": topic, "pipeline": pipeline, **fingerprints}
        self._score_names = tuple(score_names)
        self._shards = ShardWriter(
            self._create, name, topic, limits.shard_records, limits.shard_bytes
        )
        schema = table_schema(dim, score_names, facts)
        self._table = TableWriter(
            self._create, f"metadata/{name}.parquet", schema, dim, topic, pipeline
        )

    @property
    def nbytes(self) -> int:
        """Bytes taken in so far: images, texts and columns, before compression."""
        return self._shards.nbytes + self._table.nbytes

    @property
    def counts(self) -> dict[str, int]:
        """Rows by outcome; an outcome that did not occur is not there."""
        return dict(self._counts)

    def append(self, batch: DecidedBatch) -> None:
        """Writes accepted samples and every row, in the order of the batch. Raises DependencyError.

        The batch's arrays are kept for a while and must not be changed afterwards.
        """
        assert tuple(batch.scores) == self._score_names, (
            f"this is a bug: scores {tuple(batch.scores)}, expected {self._score_names}"
        )
        metadata = [None if f.metadata is None else compact(f.metadata) for f in batch.facts]
        with _removed_by_nobody():
            self._table.append(batch, self._shards.append(batch, metadata), metadata)
        self._counts.update(d.outcome for d in batch.decisions)
        self.records += len(batch.records)

    def seal(self) -> tuple[FileEntry, ...]:
        """Makes every file complete and durable under its staging name, and reads it back. Sorted;
        empty if there was no record.

        Raises DependencyError.
        """
        with _removed_by_nobody():
            table = self._table.close()
            files = (*([table] if table else []), *self._shards.close())
            for file in files:
                self._storage.check_staged(*self._epoch, file)
        return files

    def discard(self) -> None:
        """Gives the epoch up and removes what was staged, sealed or not. Idempotent. Raises
        DependencyError if it cannot be removed."""
        self._shards.abandon()
        self._table.abandon()
        self._storage.discard(*self._epoch)

    def _create(self, path: str) -> NewFile:
        return self._storage.open_staged(*self._epoch, path)


@contextmanager
def _removed_by_nobody() -> Iterator[None]:
    """A staged file that is gone is trouble with the storage, or a namesake has taken over: the
    caller finds out which."""
    try:
        yield
    except FileNotFoundError as error:
        raise DependencyError(
            f"a staged file is gone: {error}; somebody removed it: leave .staging to its writers"
        ) from error
