"""Staging and projection: an epoch's files are written under ``.staging``, and get their public
names once Kafka has committed them.

Projection never fails for good and never loses anything: it copies (or renames), checks, writes the
manifest last and only then removes the staged folder. Anybody may redo it at any time, and two
processes may do it at once.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO
from uuid import uuid4

from streamer.errors import DependencyError, DiskFull, ProtocolError, StorageAway
from streamer.sink.card import update_card
from streamer.sink.epoch_set import EpochSet
from streamer.sink.folder import Entry, NewFile
from streamer.sink.location import open_folder
from streamer.sink.patience import BRIEFLY, Patience, Retry
from streamer.wire.manifest import FileEntry, Manifest, decode, encode

log = logging.getLogger("streamer")

STAGING = ".staging"
CHECKPOINTS = ".checkpoints"
"""Of the commit log: two files of each writer."""
JOURNALS = ".reading"
PAUSES = ".paused"
SEEKS = ".seeks"
CLOCKS_APART_S = 60.0
"""A host whose clock is so far from the storage's trusts no age."""
PROBE = ".probe-"
PROBE_AGE_S = 3600.0
"""So old a probe belongs to a start that was broken off."""
_STAGED = re.compile(r"(\d{8,})-([0-9a-f-]+)")
_MANIFEST = re.compile(r"([a-z0-9-]+)-(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class Staged:
    """A folder of an epoch that is not (wholly) projected."""

    writer: str
    epoch: int
    uuid: str
    age_s: float
    """Seconds since the last change in it, by the storage's clock; 0 where that is not known."""


def staging_path(writer: str, epoch: int, uuid: str) -> str:
    return f"{STAGING}/{writer}/{epoch:08d}-{uuid}"


class Storage:
    """The dataset folder ``output_path/dataset``. Stateless but for `is_staged`: any thread; every
    method may block for I/O, and for as long as ``patience`` says while the storage is away.

    Raises ConfigError at construction for a path that cannot be one; later DependencyError for what
    a person must fix, StorageAway where the patience has ended.
    """

    def __init__(self, output_path: str, dataset: str, patience: Patience = BRIEFLY) -> None:
        self.folder = open_folder(output_path, dataset, patience=patience)
        self._look = Retry(patience)

    @property
    def root_uri(self) -> str:
        """What to pass to ``streamer dataset verify``."""
        return self.folder.uri

    # Staging

    def open_staged(self, writer: str, epoch: int, uuid: str, path: str) -> NewFile:
        """A new file that will have the public name ``path``; complete and durable once its
        ``close()`` returned."""
        staged = f"{staging_path(writer, epoch, uuid)}/{path}"
        try:
            return self.folder.create(staged)
        except FileNotFoundError as error:
            raise self.folder.refused(error, "create", staged) from error

    def check_staged(self, writer: str, epoch: int, uuid: str, file: FileEntry) -> None:
        """Reads a sealed file back. Raises DependencyError if it is not what was written."""
        staged = f"{staging_path(writer, epoch, uuid)}/{file.path}"
        try:
            self.folder.check(staged, file.bytes, file.sha256)
        except FileNotFoundError as error:
            raise self.folder.refused(error, "read back", staged) from error

    def is_staged(self, manifest: Manifest) -> bool | None:
        """Whether each of its files is still there, by its length. None: the storage is away, or
        was a moment ago; ask again. One thread; one try, which never waits for the next.

        Raises StorageAway once that went on for too long.
        """
        staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
        folder = self.folder.impatient()
        looked = self._look.attempt(
            lambda: all(folder.size(f"{staged}/{f.path}") == f.bytes for f in manifest.files)
        )
        return None if looked is None else looked[0]

    def forget_look(self) -> None:
        """Nobody asks for that epoch any more (`is_staged`)."""
        self._look.abandon()

    def staged(self) -> list[Staged]:
        """Everything in staging, whoever's it is."""
        changed: dict[tuple[str, int, str], float | None] = {}
        for writer in self.folder.folders(STAGING):
            for name in self.folder.folders(f"{STAGING}/{writer}"):
                if match := _STAGED.fullmatch(name):
                    path = f"{STAGING}/{writer}/{name}"
                    mtimes = (e.mtime for e in self.folder.walk(path))
                    changed[writer, int(match[1]), match[2]] = max(
                        mtimes, default=None
                    ) or self.folder.changed(path)
        now = self._trusted_now() if changed else None
        return [
            Staged(*key, age_s=0.0 if now is None or mtime is None else max(0.0, now - mtime))
            for key, mtime in changed.items()
        ]

    def _trusted_now(self) -> float | None:
        """`_now`, or None where nobody's age can be told: another host's files must not look old
        because one of the clocks is wrong."""
        try:
            now = self._now()
        except DiskFull:
            return None
        if now is None:
            return None
        apart = time.time() - now
        if abs(apart) <= CLOCKS_APART_S:
            return now
        log.warning(
            "this host's clock is %.0f s %s that of the storage: what other replicas left behind is "
            "not deleted by this one. Set the clock (NTP).",
            abs(apart),
            "ahead of" if apart > 0 else "behind",
        )
        return None

    def _now(self) -> float | None:
        """By the storage's clock, seconds since 1970: what it says of a file that is made for it.
        None where somebody took that away."""
        path = f"{STAGING}/{PROBE}{uuid4().hex}"
        self.folder.create(f"{path}/probe").close()
        try:
            return next((entry.mtime for entry in self.folder.walk(path)), None)
        finally:
            self.folder.remove(path)

    def clear_probes(self) -> None:
        """Removes what `check_writable` left behind where the process was ended meanwhile."""
        probes = [n for n in self.folder.folders(STAGING) if n.startswith(PROBE)]
        if not probes or (now := self._now()) is None:
            return
        for name in probes:
            path = f"{STAGING}/{name}"
            mtimes = (e.mtime for e in self.folder.walk(path))
            changed = max(mtimes, default=None) or self.folder.changed(path)
            if changed is not None and now - changed > PROBE_AGE_S:
                self.folder.remove(path)

    def discard(self, writer: str, epoch: int, uuid: str) -> None:
        """Removes a staged epoch that the commit log does not name, or whose projection is done.
        Idempotent."""
        self.folder.remove(staging_path(writer, epoch, uuid))

    # Projection

    def projected(self) -> EpochSet:
        """The epochs of all public manifests. Lists them all."""
        names = (e.path.rpartition("/")[2] for e in self.folder.walk("manifests"))
        return EpochSet((m[1], int(m[2])) for m in map(_MANIFEST.fullmatch, names) if m)

    def has(self, manifest: Manifest) -> bool:
        """Whether each of its files is staged or public, by its length. Staging is looked at first:
        somebody may be publishing them."""
        staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
        return all(
            file.bytes in (self.folder.size(f"{staged}/{file.path}"), self.folder.size(file.path))
            for file in manifest.files
        )

    def project(self, manifest: Manifest) -> None:
        """Gives a committed epoch its public names. Idempotent; safe when others do the same at the
        same moment.

        Raises ProtocolError when a file is neither staged nor public as the manifest says, or when
        another epoch has its name.
        """
        if not self.is_projected(manifest):
            staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
            for file in manifest.files:
                self._publish(f"{staged}/{file.path}", file)
            scratch = f"{staged}/{uuid4().hex}"
            try:
                update_card(self.folder, manifest.dataset, f"{scratch}.md")
                self.folder.replace(manifest.path, encode(manifest), f"{scratch}.json")
            except FileNotFoundError:
                if not self.is_projected(
                    manifest
                ):  # else somebody was faster, and removed the staged folder
                    raise ProtocolError(
                        f"{staged} was taken away while it was projected: only one dataset may use this folder"
                    ) from None
        self.discard(manifest.writer, manifest.epoch, manifest.uuid)

    def _publish(self, source: str, file: FileEntry) -> None:
        try:
            self.folder.publish(source, file.path, file.bytes)
        except FileNotFoundError:
            found = self.folder.size(file.path)
            if found != file.bytes:
                state = (
                    "is missing" if found is None else f"has {found} bytes instead of {file.bytes}"
                )
                raise ProtocolError(
                    f"{self.folder.place(file.path)} {state}, and {source} is gone. The commit log names it: "
                    "bring the file back (a backup or a version of the bucket), then start again."
                ) from None

    def is_projected(self, manifest: Manifest) -> bool:
        """True when the epoch's manifest, which is written last, is there. Raises ProtocolError if
        it is of another epoch."""
        try:
            data = self.read(manifest.path)
        except FileNotFoundError:
            return False
        if data != encode(manifest):
            raise ProtocolError(
                f"{self.folder.place(manifest.path)} is of another epoch ({decode(data).uuid}) than the commit log's ({manifest.uuid}): "
                "the folder belongs to another life of this dataset. Give the dataset a new name or the output a new path."
            )
        return True

    # Checkpoints of the commit log

    def checkpoints(self) -> Iterator[tuple[str, bytes]]:
        """Everybody's, the newest first: path and bytes. Raises DependencyError for a folder that
        cannot be listed; passes over a file that cannot be read."""
        found = [e for e in self.folder.walk(CHECKPOINTS) if e.path.endswith(".json")]
        for entry in sorted(found, key=lambda e: e.mtime, reverse=True):
            try:
                yield entry.path, self.read(entry.path)
            except StorageAway:
                raise
            except (OSError, DependencyError) as error:
                log.warning("a checkpoint cannot be read: %s", error)

    def write_checkpoint(self, writer: str, data: bytes) -> None:
        """Replaces the older one of the writer's two. Raises DependencyError."""
        mtimes = {e.path: e.mtime for e in self.folder.walk(CHECKPOINTS)}
        paths = (f"{CHECKPOINTS}/{writer}.{n}.json" for n in (0, 1))
        oldest = min(paths, key=lambda path: mtimes.get(path, 0.0))
        try:
            self.folder.replace(oldest, data, f"{CHECKPOINTS}/{writer}.new")
        except FileNotFoundError as error:
            raise self.folder.refused(error, "write", oldest) from error

    # What replicas tell each other; with one try, for the thread that asks must not wait

    def journals(self) -> Iterator[tuple[str, bytes]]:
        """Everybody's: writer and bytes. Raises DependencyError."""
        yield from self._notes(JOURNALS)

    def write_journal(self, writer: str, data: bytes) -> None:
        """Raises DependencyError."""
        self._write_note(f"{JOURNALS}/{writer}", data)

    def pauses(self) -> Iterator[bytes]:
        """Of all partitions. Raises DependencyError."""
        for _, data in self._notes(PAUSES):
            yield data

    def write_pause(self, partition: int, data: bytes) -> None:
        """Raises DependencyError."""
        self._write_note(f"{PAUSES}/{partition:05d}", data)

    def seeks(self) -> Iterator[bytes]:
        """Of all partitions. Raises DependencyError."""
        for _, data in self._notes(SEEKS):
            yield data

    def write_seek(self, partition: int, data: bytes) -> None:
        """Raises DependencyError."""
        self._write_note(f"{SEEKS}/{partition:05d}", data)

    def _notes(self, below: str) -> Iterator[tuple[str, bytes]]:
        folder = self.folder.impatient()
        for entry in folder.walk(below):
            name, dot, rest = entry.path.rpartition("/")[2].rpartition(".json")
            if dot and not rest:
                with suppress(FileNotFoundError):  # it is being replaced
                    yield name, folder.read(entry.path)

    def _write_note(self, path: str, data: bytes) -> None:
        folder = self.folder.impatient()
        try:
            folder.replace(f"{path}.json", data, f"{path}-{uuid4().hex}.new")
        except FileNotFoundError as error:
            raise folder.refused(error, "write", f"{path}.json") from error

    def check_writable(self) -> None:
        """Writes, reads, and removes a small file. Raises DependencyError (DiskFull); leaves
        nothing behind (on S3 an empty marker of the folder)."""
        self.folder.probe(f"{STAGING}/{PROBE}{uuid4().hex}")

    def has_room(self, writer: str) -> bool:
        """Like `check_writable`, but False where the disk is full and ``writer`` has something in
        staging that its recovery may delete."""
        try:
            self.check_writable()
        except DiskFull:
            if any(left.writer == writer for left in self.staged()):
                return False
            raise
        return True

    # Reading

    def read(self, path: str) -> bytes:
        """A small public file. Raises FileNotFoundError."""
        return self.folder.read(path)

    def open(self, path: str) -> BinaryIO:
        """A public file, seekable. Raises FileNotFoundError."""
        return self.folder.open(path)

    def files(self, below: str = "") -> list[Entry]:
        """Every file below ``below``, sorted by path."""
        return list(self.folder.walk(below))
