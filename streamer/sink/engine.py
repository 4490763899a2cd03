"""The commit engine: which epoch may become true, and what is redone or
forgotten at a start.

A state machine over three ports. It knows nothing of threads, sockets or files, so that tests can
drive it through thousands of interleavings of crash, rebalance, fencing and in-doubt commits
(tests/sink/test_engine.py). Every method belongs to the Kafka thread. `CommitEngine.recover` waits
for the storage; afterwards nothing does: an epoch is published beside the Kafka thread
(`streamer.sink.errand`), and until that is done (`CommitEngine.settle`) nothing more is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from typing import Any, Literal, Protocol
from uuid import uuid4

from streamer.errors import (
    DependencyError,
    Fenced,
    InDoubt,
    ProtocolError,
    StreamerError,
    TemporaryError,
)
from streamer.records import Headers, Term
from streamer.sink.agreement import Comparison, Projected, contradiction, require_no_offsets
from streamer.sink.checkpoints import newest, require_entry
from streamer.sink.epoch_set import EpochSet
from streamer.sink.errand import Begin, IsDone, at_once
from streamer.sink.ledger import Ledger
from streamer.wire.checkpoint import Checkpoint
from streamer.wire.checkpoint import encode as encode_checkpoint
from streamer.wire.manifest import FileEntry, Manifest

log = logging.getLogger("streamer")

OTHERS_GRACE_S = 10.0
"""A committed epoch of another writer is projected for it once it was sealed so long ago."""
COMMIT_ATTEMPTS = 5
CHECKPOINT_EPOCHS = 256
"""A writer's epochs between two checkpoints of the commit log: some hours of them, read back within
a second."""
CHECKPOINT_PATIENCE_S = 5.0
PROGRESS_EPOCHS = 100_000
Fallen = Literal["stale", "aborted", "late"]
"""Why an epoch must be dropped: its terms or first offsets are not the current ones, or a file of
it is gone; every attempt of its transaction was aborted, or one that was in doubt; it is so old
that its files may be gone."""
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An invalid record on its way to NAME.dead."""

    partition: int
    offset: int
    value: bytes | None
    headers: Headers
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """An epoch whose files are complete and durable under staging names. Nothing of it is true yet."""

    epoch: int
    uuid: str
    ranges: Mapping[int, tuple[int, int]]
    """Partition → [first, next)."""
    terms: Mapping[int, int]
    """Partition → id of the term it was read under."""
    counts: Mapping[str, int]
    files: tuple[FileEntry, ...]
    dead_letters: Sequence[DeadLetter]
    claims_position: int
    started: str
    sealed: str
    began: float
    """Monotonic seconds at ``started``."""
    skipped: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Offsets inside ``ranges`` that will never be decided."""


class Staged(Protocol):
    @property
    def writer(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def age_s(self) -> float: ...


class Transactions(Protocol):
    """The Kafka port."""

    def fence(self) -> None:
        """Fences any predecessor with this writer's name and resolves its in-doubt transaction.
        Raises Fenced."""

    @property
    def log_id(self) -> str:
        """Kafka's id of the commit log's topic."""

    def resume(self, offset: int) -> None:
        """The next `read` begins at this offset of the commit log. Raises ProtocolError where the
        log ends before it."""

    def read(self, patience_s: float | None = None) -> Iterator[tuple[int, Manifest]]:
        """Manifests committed since the last call, with their offsets in the log, complete past the
        read_uncommitted end at the call. Raises TemporaryError when none comes for ``patience_s``
        (None: longer than another writer's open transaction can hide them)."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, int | None]:
        """The group's stable offsets; None: there is none. Unknown is never None: it raises
        TemporaryError."""

    def bounds(self, partitions: Collection[int]) -> Mapping[int, tuple[int, int]]:
        """First and end offset of the input topic's partitions."""

    def starts(self) -> Mapping[int, int]:
        """``kafka.start`` resolved to an offset for every partition of the input topic."""

    def membership(self) -> object:
        """The group membership that `commit` is fenced with."""

    def commit(
        self,
        manifest: Manifest,
        dead_letters: Sequence[DeadLetter],
        offsets: Mapping[int, int],
        membership: object,
    ) -> bool:
        """One transaction. True: committed. False: aborted, nothing happened. InDoubt: nobody knows
        before `fence` and `read`. Anything else ends the process: Fenced, TemporaryError."""


class Files(Projected, Protocol):
    """The storage port; see `streamer.sink.storage.Storage`."""

    def staged(self) -> Sequence[Staged]: ...
    def projected(self) -> EpochSet: ...
    def is_staged(self, manifest: Manifest) -> bool | None:
        """Whether its files are still there. None: that cannot be told now; ask again. Raises
        StorageAway when it could not be told for too long; never waits."""

    def forget_look(self) -> None:
        """The epoch that `is_staged` could not tell of is not asked for again."""

    def checkpoints(self) -> Iterable[tuple[str, bytes]]:
        """The newest first."""

    def write_checkpoint(self, writer: str, data: bytes) -> None:
        """Raises DependencyError."""

    def project(self, manifest: Manifest) -> None:
        """Nothing is staged of it afterwards."""

    def discard(self, writer: str, epoch: int, uuid: str) -> None: ...


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    def sleep(self, seconds: float) -> None: ...


class CommitEngine:
    """Decides what becomes true. ``pipeline`` is what every manifest records of the configuration."""

    def __init__(
        self,
        dataset: str,
        writer: str,
        kafka: Transactions,
        files: Files,
        clock: Clock,
        pipeline: Mapping[str, Any],
        stale_after_s: float,
        fixed_ends: Callable[[Mapping[int, int]], Mapping[int, int]] | None = None,
        stage: Callable[[str, Manifest], AbstractContextManager[None]] = lambda name, manifest: (
            nullcontext()
        ),
        begin: Begin = at_once,
        skip_limit: Callable[[int], int] = lambda partition: 0,
    ) -> None:
        """``stale_after_s``: an epoch that was opened so long ago is not committed any more, and
        what others left staged and uncommitted for twice as long is deleted.

        ``fixed_ends``: for a replay, its end offsets for given starts; written into the dataset's
        first manifest.

        ``stage`` is entered around each epoch's transaction (``commit``) and each projection after
        one (``project``), to time and to limit them; the latter in the thread of ``begin``, which
        has things done at the storage beside this one.

        ``skip_limit``: below which offset of a partition records may have expired; for a dataset
        that has committed none, that is no loss.
        """
        self.dataset = dataset
        self.writer = writer
        self.ledger = Ledger()
        self.terms: dict[int, Term] = {}
        self.begins: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        """Partition → where it began and ended in the input topic when it was assigned."""
        self._kafka = kafka
        self._files = files
        self._clock = clock
        self._pipeline = dict(pipeline)
        self._stale_after_s = stale_after_s
        self._fixed_ends = fixed_ends
        self._stage = stage
        self._begin = begin
        self._skip_limit = skip_limit
        self._errand: IsDone | None = None
        self._publishing: tuple[Manifest, ...] = ()
        """What the errand gives its public names; empty where it is a checkpoint's."""
        self.claims_position = 0
        """The claim log was at least so long when the last epoch was sealed."""
        self._unseen: dict[str, Manifest] = {}
        """Other writer → its last manifest, which nobody has been seen to project."""
        self._was_late = False
        """The epoch before was dropped for its age."""
        self._last_entry: tuple[int, str] | None = None
        """Of the commit log, as far as it was read: offset and uuid."""

    @property
    def next_epoch(self) -> int:
        """The number of this writer's next epoch to be committed."""
        return self.ledger.next_epoch(self.writer)

    # Start

    def recover(self) -> None:
        """Steps 2 to 4 of the start: fence, read the commit log to its true end, delete what is not
        committed, project what is."""
        # What is staged is listed before anybody is fenced: whoever staged it cannot commit it any
        # more from the fence on, while a successor stages nothing before it has fenced us.
        staged = list(self._files.staged())
        self._kafka.fence()
        named = {s.uuid for s in staged}
        checkpoint = self._resume()
        projected = self._files.projected() if checkpoint is None else None
        comparison = Comparison(f"{self.dataset}.commits", self._files, projected)
        known = () if checkpoint is None else checkpoint.waiting
        committed: dict[str, Manifest] = {}
        """Of what is staged; some of it may be projected."""
        entries = 0
        for manifest in chain(known, self._entries()):
            entries += 1
            if entries % PROGRESS_EPOCHS == 0:
                log.info("reading the commit log", extra={"epochs": entries})
            comparison.add(manifest)
            if manifest.uuid in named:
                committed[manifest.uuid] = manifest
        doubtful = committed | {m.uuid: m for m in comparison.unprojected()}
        log.info(
            "the commit log is read",
            extra={
                "epochs": entries,
                "checkpoint": -1 if checkpoint is None else checkpoint.offset,
            },
        )
        for left in staged:  # first, for it may fill the disk, and a projection needs some room
            if left.uuid not in committed and (
                left.writer == self.writer or left.age_s > 2 * self._stale_after_s
            ):
                self._files.discard(left.writer, left.epoch, left.uuid)
        waiting: list[Manifest] = []
        for manifest in doubtful.values():
            if manifest.writer == self.writer or self._is_settled(manifest):
                self._files.project(manifest)
            else:
                waiting.append(manifest)
        self._unseen = {m.writer: m for m in waiting}
        if entries >= CHECKPOINT_EPOCHS:
            self._checkpoint(at_once)

    # Checkpoints of the commit log

    def _resume(self) -> Checkpoint | None:
        """Takes the newest good one for what was read. Raises ProtocolError where the log's entry
        that it ends with is another one now."""
        found = newest(self._files.checkpoints(), self.dataset, self._kafka.log_id)
        if found is None:
            return None
        path, checkpoint = found
        self._kafka.resume(checkpoint.offset)
        first = next(iter(self._kafka.read()), None)
        entry = None if first is None else (first[0], first[1].uuid)
        require_entry(checkpoint, f"{self._files.root_uri}/{path}", entry)
        self.ledger = Ledger.restored(checkpoint)
        self.claims_position = checkpoint.claims_position
        self._last_entry = checkpoint.offset, checkpoint.uuid
        return checkpoint

    def _checkpoint(self, begin: Begin) -> None:
        """Reads what others have committed, and has written down what all of it says. Does without
        where somebody's transaction is open for long, and where brokers or storage refuse: nothing
        depends on it. Raises Fenced."""
        try:
            self._read_as_last_of_our_name(CHECKPOINT_PATIENCE_S)
        except Fenced:
            raise
        except (TemporaryError, DependencyError) as error:
            _warn_of_checkpoint(error)
            return
        if (data := self._state()) is None:
            return

        def write() -> None:
            try:
                self._files.write_checkpoint(self.writer, data)
            except DependencyError as error:
                _warn_of_checkpoint(error)

        self._errand = begin(write)

    def _state(self) -> bytes | None:
        """A checkpoint; None where our own epochs were not all read back."""
        if self._last_entry is None or not self.ledger.is_as_read:
            return None
        offset, uuid = self._last_entry
        checkpoint = Checkpoint(
            dataset=self.dataset,
            log_id=self._kafka.log_id,
            offset=offset,
            uuid=uuid,
            tiles=self.ledger.tiles,
            last=self.ledger.last,
            ends=self.ledger.ends,
            claims_position=self.claims_position,
            waiting=tuple(self._unseen.values()),
        )
        return encode_checkpoint(checkpoint)

    # The commit log

    def _entries(self, patience_s: float | None = None) -> Iterator[Manifest]:
        """What is new in the commit log, each applied when it is asked for. What this process
        committed itself is not new."""
        for offset, manifest in self._kafka.read(patience_s):
            if manifest.dataset != self.dataset:
                raise ProtocolError(
                    f"{self.dataset}.commits: holds a manifest of the dataset {manifest.dataset}: something else writes to this topic"
                )
            is_new = self.ledger.apply(manifest)
            self._last_entry = offset, manifest.uuid
            self.claims_position = max(self.claims_position, manifest.claims_position)
            if manifest.writer != self.writer:
                self._unseen[manifest.writer] = manifest
            if is_new:
                yield manifest

    def _read_as_last_of_our_name(self, patience_s: float | None = None) -> None:
        """Reads what is new in the commit log. Raises Fenced if some of it is a successor's under
        our name: what we read from the input could never be committed."""
        for manifest in self._entries(patience_s):
            if manifest.writer == self.writer:
                raise Fenced(_namesake(self.writer))

    def _is_settled(self, manifest: Manifest) -> bool:
        """True once its own writer had time enough to project it."""
        return self._clock.now() - _seconds(manifest.sealed) >= OTHERS_GRACE_S

    # Publishing

    def _publish(self, manifest: Manifest) -> None:
        """Has a committed epoch projected, and with it those of writers that went for good: they
        may have left their last one, while every earlier one was projected before they went on."""
        manifests = (manifest, *(m for m in self._unseen.values() if self._is_settled(m)))

        def project() -> None:
            for one in manifests:
                with self._stage("project", one):
                    self._files.project(one)

        self._publishing = manifests
        self._errand = self._begin(project)
        self.settle()

    def settle(self) -> bool:
        """Whether all that was committed is public, and nothing is under way at the storage. Does
        not block, but for a checkpoint: that reads the commit log. Raises Fenced."""
        while self._errand is not None and self._errand():
            published, self._errand, self._publishing = self._publishing, None, ()
            for manifest in published[1:]:
                if self._unseen.get(manifest.writer) == manifest:
                    del self._unseen[manifest.writer]
            if published and (published[0].epoch + 1) % CHECKPOINT_EPOCHS == 0:
                self._checkpoint(self._begin)
        return self._errand is None

    def assign(self, partitions: Collection[int]) -> dict[int, int]:
        """Where each newly assigned partition starts: the stable committed offset, then the commit
        log, which must agree.

        Raises ProtocolError where offsets, log and topic contradict each other for longer than a
        last owner's commit may take, and Fenced when a successor under our name has committed: what
        we read could never be.
        """
        for attempt in range(COMMIT_ATTEMPTS):
            committed = self._kafka.committed(partitions)
            self._read_as_last_of_our_name()
            if not self.ledger.tiles and partitions:
                require_no_offsets(self.dataset, committed)
                self._found()
            starts = {p: self._start(p, committed[p]) for p in sorted(partitions)}
            bounds = self._kafka.bounds(partitions)
            found = (self._contradiction(p, starts[p], committed[p], *bounds[p]) for p in starts)
            problem = next((why for why in found if why), "")
            if not problem:
                self.begins |= {p: bounds[p][0] for p in starts}
                self.ends |= {p: bounds[p][1] for p in starts}
                return starts
            self._clock.sleep(0.1 * 2**attempt)
        raise ProtocolError(problem)

    def _contradiction(
        self, partition: int, start: int, offset: int | None, begin: int, end: int
    ) -> str:
        limit = end if self.ledger.is_new else self._skip_limit(partition)
        return contradiction(self.dataset, partition, start, offset, begin, end, limit)

    def past_expired(self, partition: int, at: int) -> int:
        """Where the records go on of a partition that has none at ``at`` any more. Raises
        ProtocolError where they may not be skipped, or did not expire."""
        self._read_as_last_of_our_name()  # a dataset that others have begun is new no more
        begin, end = self._kafka.bounds([partition])[partition]
        if why := self._contradiction(partition, at, None, begin, end):
            raise ProtocolError(why)
        return begin

    def _start(self, partition: int, offset: int | None) -> int:
        tile = self.ledger.end(partition)
        if tile is not None:
            return tile
        return 0 if offset is None else offset  # a partition that was added later starts at 0

    def own(self, term: Term) -> None:
        """From now on epochs read under this term may be committed, and those of the partition's
        earlier terms never again."""
        self.terms[term.partition] = term

    def disown(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.terms.pop(partition, None)

    # Commit

    def commit(self, sealed: Sealed, serve: Callable[[], bool]) -> Manifest | Fallen | None:
        """Makes a sealed epoch true, and has it projected. Only once `settle` says so. `Fallen`: it
        must be dropped, with everything after it; nothing of it was committed. None: the storage
        does not say whether its files are there; try again.

        ``serve`` runs the group's callbacks once; False means that one of them already committed or
        dropped this epoch. Raises what ends the process: Fenced, TemporaryError, DependencyError,
        ProtocolError.
        """
        if sealed.epoch != self.next_epoch:
            raise ProtocolError(
                f"this is a bug: epoch {sealed.epoch} is sealed where {self.next_epoch} is due"
            )
        if not self.settle():
            raise ProtocolError(
                "this is a bug: an epoch is committed before the last one is public"
            )
        manifest = self._manifest(sealed)
        for attempt in range(COMMIT_ATTEMPTS):
            there = self._files.is_staged(manifest)
            if there is None:
                return None
            if not there:
                log.warning(
                    "files of epoch %d are gone from staging: somebody deleted them. It is read again",
                    sealed.epoch,
                )
                return "stale"
            membership = self._kafka.membership()
            if not serve() or not self._still_ours(sealed):
                return "stale"
            if self._is_late(sealed):
                return "late"
            offsets = {p: following for p, (_, following) in sealed.ranges.items()}
            try:
                with self._stage("commit", manifest):
                    committed = self._kafka.commit(
                        manifest, sealed.dead_letters, offsets, membership
                    )
            except InDoubt as doubt:
                log.warning("whether epoch %d is committed is looked up: %s", sealed.epoch, doubt)
                if not self._was_committed(manifest):
                    return "aborted"
                committed = True
            if committed:
                self.ledger.commit(manifest)
                self._was_late = False
                self._publish(manifest)
                return manifest
            self._clock.sleep(0.1 * 2**attempt)
        return "aborted"

    def _was_committed(self, manifest: Manifest) -> bool:
        """Fences ourselves, which ends whatever is open, and reads what it became. If it is not
        committed, nothing of what we have staged may be, ever: a namesake that started meanwhile
        has deleted it. Raises Fenced if one has committed."""
        self._kafka.fence()
        for entry in self._entries():
            if entry.writer == self.writer and entry.uuid != manifest.uuid:
                raise Fenced(_namesake(self.writer))
        return self.ledger.last.get(self.writer) == (manifest.epoch, manifest.uuid)

    def forget_look(self) -> None:
        """An epoch that `commit` could not look at is not asked for again."""
        self._files.forget_look()

    def discard(self, sealed: Sealed) -> None:
        """Has the files of an epoch deleted that was dropped. Where the storage refuses, the next
        start does it. Idempotent."""

        def discard() -> None:
            try:
                self._files.discard(self.writer, sealed.epoch, sealed.uuid)
            except DependencyError as error:
                log.warning("a dropped epoch stays in staging until the next start: %s", error)

        self._begin(discard)

    def _still_ours(self, sealed: Sealed) -> bool:
        """The broker fences members, not partitions: a member that was lost and came back could
        move offsets backwards."""
        if any(p not in self.terms or self.terms[p].id != term for p, term in sealed.terms.items()):
            return False
        committed = self._kafka.committed(list(sealed.ranges))
        for p, (first, _) in sealed.ranges.items():
            offset = committed[p]
            expected = offset if offset is not None else self.ledger.end(p)
            if expected is not None and expected != first:
                return False
        return True

    def _is_late(self, sealed: Sealed) -> bool:
        """Others delete staging that is twice as old and not committed: what may have been deleted
        must not be committed any more. Once that is bad luck: brokers were away, or the process
        stood still. Raises TemporaryError for the second epoch in a row."""
        age = self._clock.monotonic() - sealed.began
        if age > self._stale_after_s:
            if self._was_late:
                raise TemporaryError(
                    f"epoch {sealed.epoch} was opened {age:.0f} s ago and is only now ready, more than {self._stale_after_s:.0f} s, like the one before: the "
                    "storage is too slow for it, or the process stands still. It is read again at the next start; a lower output.epoch_records or "
                    "output.shard_bytes makes it smaller."
                )
            self._was_late = True
            return True
        return False

    def _manifest(self, sealed: Sealed) -> Manifest:
        _, previous = self.ledger.last.get(self.writer, (-1, None))
        return Manifest(
            version=MANIFEST_VERSION, dataset=self.dataset, writer=self.writer, epoch=sealed.epoch, uuid=sealed.uuid, previous_uuid=previous,
            partitions=dict(sealed.ranges), skipped=dict(sealed.skipped), counts=dict(sealed.counts), files=sealed.files, claims_position=sealed.claims_position,
            pipeline=self._pipeline, started=sealed.started, sealed=sealed.sealed,
        )  # fmt: skip

    def _found(self) -> None:
        """The dataset's first manifest: where every partition starts. It names no file and moves no
        offset."""
        starts = self._kafka.starts()
        now = iso(self._clock.now())
        ends = (
            {}
            if self._fixed_ends is None
            else {"ends": {str(p): end for p, end in self._fixed_ends(starts).items()}}
        )
        manifest = Manifest(
            version=MANIFEST_VERSION, dataset=self.dataset, writer=self.writer, epoch=self.next_epoch, uuid=uuid4().hex, previous_uuid=None,
            partitions={p: (s, s) for p, s in starts.items()}, skipped={}, counts={}, files=(), claims_position=0,
            pipeline={**self._pipeline, **ends}, started=now, sealed=now,
        )  # fmt: skip
        for attempt in range(COMMIT_ATTEMPTS):
            if self._kafka.commit(manifest, (), {}, None):
                break
            self._clock.sleep(0.1 * 2**attempt)
        else:
            raise TemporaryError(
                f"{self.dataset}.commits: the dataset's first manifest was aborted {COMMIT_ATTEMPTS} times. Start again."
            )
        # Ours, and that of a replica that was faster: the first one in the log holds
        list(self._entries())
        self._publish(manifest)


def _warn_of_checkpoint(error: StreamerError) -> None:
    log.warning("a checkpoint of the commit log cannot be written: %s", error)


def _namesake(writer: str) -> str:
    return f"another process runs under the writer name {writer!r} and has committed: give every replica its own name (config: writer)"


def iso(seconds: float) -> str:
    """UTC seconds since 1970 as ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
