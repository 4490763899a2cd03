"""The fold of the commit log: what is committed, by whom, up to where. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Collection

from streamer.errors import ConfigError, ProtocolError
from streamer.wire.checkpoint import Checkpoint
from streamer.wire.manifest import Manifest


class Ledger:
    """Per partition the tiled range ``[first, next)``; per writer its last epoch and uuid. Main
    thread only."""

    def __init__(self) -> None:
        self.tiles: dict[int, tuple[int, int]] = {}
        self.last: dict[str, tuple[int, str]] = {}
        self.ends: dict[int, int] = {}
        """A replay's fixed ends, from the first manifest; empty for a live dataset."""
        self._early: set[str] = set()
        """Applied by `commit`, and not read from the log yet."""

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> Ledger:
        """As it was at a checkpoint; the log's entries after it follow."""
        ledger = cls()
        ledger.tiles = dict(checkpoint.tiles)
        ledger.last = dict(checkpoint.last)
        ledger.ends = dict(checkpoint.ends)
        return ledger

    @property
    def is_as_read(self) -> bool:
        """Whether it holds what was read from the log, and nothing else."""
        return not self._early

    def commit(self, manifest: Manifest) -> None:
        """Applies our own manifest, whose transaction is committed, unless the log has given it
        back already. Raises like `apply`."""
        if self.last.get(manifest.writer) == (manifest.epoch, manifest.uuid):
            return
        self._fold(manifest)
        self._early.add(manifest.uuid)

    def apply(self, manifest: Manifest) -> bool:
        """The next manifest of the log; False if `commit` had it before.

        Raises ProtocolError if it leaves a gap or overlaps, in offsets or in its writer's epochs.
        """
        if manifest.uuid in self._early:
            self._early.remove(manifest.uuid)
            return False
        self._fold(manifest)
        return True

    def _fold(self, manifest: Manifest) -> None:
        epoch, uuid = self.last.get(manifest.writer, (-1, None))
        if (manifest.epoch, manifest.previous_uuid) != (epoch + 1, uuid):
            raise ProtocolError(
                f"{manifest.dataset}.commits: {manifest.writer}'s epoch {manifest.epoch} ({manifest.uuid}, after {manifest.previous_uuid}) does not follow "
                f"its epoch {epoch} ({uuid}): two processes used one writer name with different transactional ids, or entries of the log are lost. "
                "Stop all replicas and run `streamer dataset verify`."
            )
        if not self.last:
            self.ends = {int(p): end for p, end in manifest.pipeline.get("ends", {}).items()}
        if any(first != following for first, following in manifest.partitions.values()):
            for partition, (first, following) in manifest.partitions.items():
                self._extend(manifest, partition, first, following)
        elif (
            not self.tiles
        ):  # two replicas may found a dataset at once: the first one in the log holds, as a whole
            self.tiles = dict(manifest.partitions)
        self.last[manifest.writer] = (manifest.epoch, manifest.uuid)

    def _extend(self, manifest: Manifest, partition: int, first: int, following: int) -> None:
        begin, end = self.tiles.get(partition, (first, first))
        if first != end:
            what = "overlaps" if first < end else "leaves a gap after"
            raise ProtocolError(
                f"{manifest.dataset}.commits: {manifest.writer}'s epoch {manifest.epoch} begins at offset {first} of partition {partition}, "
                f"which {what} what is committed up to {end}. Do not go on with this dataset: run `streamer dataset verify` on its folder."
            )
        self.tiles[partition] = (begin, following)

    @property
    def is_new(self) -> bool:
        """Whether no record of the dataset is decided yet."""
        return all(first == following for first, following in self.tiles.values())

    def end(self, partition: int) -> int | None:
        """Where the next epoch of this partition must begin; None if no manifest names the
        partition."""
        tile = self.tiles.get(partition)
        return None if tile is None else tile[1]

    def fixed_ends(self, partitions: Collection[int]) -> dict[int, int]:
        """Where a replay stops. Raises ConfigError for a dataset that is not a replay's."""
        if not self.ends:
            raise ConfigError(
                "--dataset: this dataset exists and is no replay's; choose a new name"
            )
        return {p: self.ends.get(p, 0) for p in partitions}

    def next_epoch(self, writer: str) -> int:
        return self.last.get(writer, (-1, ""))[0] + 1
