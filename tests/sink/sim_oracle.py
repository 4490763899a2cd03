"""What must hold at every moment of a simulation (docs/architecture.md, invariants 1 to 4 and
6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sim_broker import Broker
from sim_storage import Disk, rows_of

from streamer.sink.storage import staging_path
from streamer.wire.manifest import Manifest, encode

_STAGED = re.compile(r"\.staging/([^/]+)/\d+-([0-9a-f]+)/")


class Violation(AssertionError):
    """An invariant does not hold."""


class Oracle:
    """Told of every decided transaction and of every change on the disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        disk.watch = self.changes
        self.broker: Broker
        self.may_delete: Callable[[str, str], bool]
        """Writer, uuid of an epoch of it that is not committed → whether the running process
        may."""
        self.committed: list[Manifest] = []
        self.tiles: dict[int, tuple[int, int]] = {}
        self.dead: dict[str, str] = {}
        """Epochs that were dropped or lost: uuid → how."""
        self._decided: set[tuple[int, int]] = set()
        self._public: dict[str, tuple[Manifest, bytes]] = {}
        """Public path → the committed epoch that owns the name, and what must be there."""
        self._staged: dict[str, str] = {}
        """Staged path of a committed file → its public path."""

    # A transaction is decided

    def decided(self, manifest: Manifest) -> None:
        self._is_alive(manifest)
        self._is_next(manifest)
        self._is_durable(manifest)
        self._tiles_on(manifest)
        self.committed.append(manifest)

    def _is_alive(self, manifest: Manifest) -> None:
        if manifest.uuid in self.dead:
            raise Violation(
                f"6: epoch {manifest.name} ({manifest.uuid}) is committed after it was {self.dead[manifest.uuid]}"
            )

    def _is_next(self, manifest: Manifest) -> None:
        own = [m for m in self.committed if m.writer == manifest.writer]
        if manifest.epoch != len(own):
            raise Violation(f"{manifest.name} is committed where epoch {len(own)} is due")
        if manifest.previous_uuid != (own[-1].uuid if own else None):
            raise Violation(f"{manifest.name} names {manifest.previous_uuid} as the one before it")

    def _is_durable(self, manifest: Manifest) -> None:
        """1: the files are complete before the transaction. 4: they hold each record of the ranges
        once, and no other."""
        staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
        rows: list[tuple[int, int]] = []
        for file in manifest.files:
            path = f"{staged}/{file.path}"
            data = self._disk.files.get(path, (None, 0.0))[0]
            if data is None or len(data) != file.bytes:
                raise Violation(
                    f"1: {path} is {'missing' if data is None else 'incomplete'} when {manifest.name} is committed"
                )
            self._public[file.path] = (manifest, data)
            self._staged[path] = file.path
            if file.path.startswith("metadata/"):
                rows += rows_of(data)
        self._public[manifest.path] = (manifest, encode(manifest))
        due = {
            (p, o)
            for p, (first, following) in manifest.partitions.items()
            for o in self.broker.input[p].records(first, following)
            if not any(a <= o < b for a, b in manifest.skipped.get(p, ()))
        }
        self._are_expired(manifest)
        if len(rows) != len(set(rows)) or set(rows) != due:
            raise Violation(
                f"4: {manifest.name} has rows {sorted(rows)} for the ranges {manifest.partitions}"
            )
        if twice := self._decided & set(rows):
            raise Violation(f"4: {sorted(twice)} have a second decision in {manifest.name}")
        self._decided |= set(rows)

    def _are_expired(self, manifest: Manifest) -> None:
        """What is skipped is not there any more."""
        for p, ranges in manifest.skipped.items():
            if any(following > self.broker.input[p].begin for _, following in ranges):
                raise Violation(f"4: {manifest.name} skips {ranges} of partition {p}")

    def _tiles_on(self, manifest: Manifest) -> None:
        if not self.tiles or not manifest.files:
            founding = all(first == following for first, following in manifest.partitions.values())
            if founding:
                return self._found(manifest)
        for p, (first, following) in manifest.partitions.items():
            tile = self.tiles.get(p, (0, 0))
            if first != tile[1]:
                raise Violation(
                    f"3: {manifest.name} begins at {first} of partition {p}, the epochs before it end at {tile[1]}"
                )
            self.tiles[p] = (tile[0], following)
        return None

    def _found(self, manifest: Manifest) -> None:
        """The first founding in the *log* holds; until it is known which one that is, the first
        decided one may still be replaced."""
        if any(first != following for first, following in self.tiles.values()):
            return
        founding = [
            t.manifest
            for t in self.broker.log
            if t.state != "aborted" and not any(a != b for a, b in t.manifest.partitions.values())
        ]
        first = next(m for m in founding if m in (*self.committed, manifest))
        self.tiles = dict(first.partitions)

    # A file changes

    def changes(self, path: str, data: bytes | None) -> None:
        if path.startswith(".staging/"):
            public = self._staged.get(path)
            if public is None:
                if data is None and (match := _STAGED.match(path)):
                    self._is_abandoned(path, *match.groups())
                return
            if data is not None and data != self._public[public][1]:
                raise Violation(f"2: {path} changes after it was committed")
            if (
                data is None
                and self._disk.files.get(public, (None, 0.0))[0] != self._public[public][1]
            ):
                raise Violation(f"2: {path} is deleted: it is committed, and not public yet")
        elif path != "README.md" and not path.startswith(
            (".checkpoints/", ".reading/", ".paused/")
        ):
            if path not in self._public:
                raise Violation(f"{path} becomes public, and no committed epoch has this name")
            manifest, right = self._public[path]
            if data != right:
                what = "is deleted" if data is None else "gets other bytes than its manifest says"
                raise Violation(f"2: {path} of {manifest.name} {what}")

    def _is_abandoned(self, path: str, writer: str, uuid: str) -> None:
        if uuid not in {m.uuid for m in self.committed} and not self.may_delete(writer, uuid):
            raise Violation(f"2: {path} is deleted by another process, while it may be committed")

    # Everything is at rest

    def is_complete(self) -> bool:
        """Every record, and every control record at the end, is inside a committed epoch."""
        logs = self.broker.input
        return all(log.end == self.tiles.get(p, (0, 0))[1] for p, log in enumerate(logs)) and bool(
            self.tiles
        )

    def at_rest(self, ours: Collection[str]) -> None:
        """After a last recovery by the writers ``ours``, nothing else running."""
        for p, offset in self.broker.offsets.items():
            if offset != self.tiles[p][1]:
                raise Violation(
                    f"3: the group is at {offset} of partition {p}, the epochs end at {self.tiles[p][1]}"
                )
        for path, (manifest, right) in self._public.items():
            found = self._disk.files.get(path, (None, 0.0))[0]
            if found != right:
                raise Violation(f"2: {path} of {manifest.name} is not public at the end")
        left = [p for p in self._disk.files if p.startswith(".staging/")]
        if left:
            raise Violation(f"staging of {sorted(ours)} and others is left at the end: {left}")
