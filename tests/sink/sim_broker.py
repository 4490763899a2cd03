"""A Kafka of the size of this simulation: one input topic, one group, transactions, and the two
logs of a dataset.

It does what the real one was seen to do, and Kafka's own coordinator:
the group fences *members* and generations, not partitions; a transaction is decided at once, but
its markers reach the commit log and the offsets each in their own time; until then the log's end
and those offsets are hidden from who reads committed data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from sim_group import Group, Membership
from sim_schedule import Schedule

from streamer.wire.manifest import Manifest

TRANSACTION_TIMEOUT_S = 3.0
"""The service's own values, ten times as fast."""


@dataclass
class InputLog:
    """A partition of the input topic. An entry is True for a record, False for a control record."""

    begin: int = 0
    entries: list[bool] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.entries)

    def records(self, first: int, following: int) -> list[int]:
        return [o for o in range(first, following) if self.entries[o]]


@dataclass(eq=False)
class Transaction:
    manifest: Manifest
    offsets: dict[int, int] = field(default_factory=dict)
    state: str = "open"
    in_log: bool = False
    """The commit log shows how it ended."""
    in_offsets: bool = False
    """The group's offsets do."""

    @property
    def complete(self) -> bool:
        return self.in_log and self.in_offsets


@dataclass
class Identity:
    """A transactional id."""

    epoch: int = 0
    transaction: Transaction | None = None


class Abortable(Exception):
    """What makes the client ask for an abort."""


class FencedProducer(Exception):
    """This producer's epoch is over."""


class Broker:
    """Everything the processes share. Its methods take effect at once; who calls them pauses before
    and after."""

    def __init__(
        self,
        schedule: Schedule,
        partitions: int,
        poll_interval_s: float,
        decided: Callable[[Manifest], None],
    ) -> None:
        """``decided`` is told of every manifest at the moment its transaction can no longer be
        undone."""
        self._schedule = schedule
        self._decided = decided
        self.input = [InputLog() for _ in range(partitions)]
        self.log: list[Transaction] = []
        self.offsets: dict[int, int] = {}
        self.unstable: list[Transaction] = []
        self.identities: dict[str, Identity] = {}
        self.opens: dict[int, tuple[int, int]] = {}
        """The claim log's latest valid open: partition → (generation, term)."""
        self.group = Group(schedule, lambda: len(self.input), poll_interval_s)
        self.marker_delay: Callable[[], float] = lambda: 0.0

    # Transactions

    def fence(self, name: str) -> int | None:
        """The new producer epoch, once nothing of the predecessor is undecided; None: ask again."""
        identity = self.identities.setdefault(name, Identity())
        transaction = identity.transaction
        if transaction is not None and transaction.state == "open":
            identity.epoch += 1
            self._end(transaction, "aborted")
        if transaction is not None and not transaction.complete:
            return None
        identity.epoch += 1
        return identity.epoch

    def begin(self, name: str, epoch: int, manifest: Manifest) -> Transaction | None:
        """Opens a transaction with its first message; None: the last one is not complete yet.
        Raises FencedProducer."""
        identity = self._identity(name, epoch)
        if identity.transaction is not None and not identity.transaction.complete:
            return None
        transaction = identity.transaction = Transaction(manifest)
        self.log.append(transaction)
        self._schedule.at(TRANSACTION_TIMEOUT_S, lambda: self._expire(name, transaction))
        return transaction

    def send_offsets(
        self,
        name: str,
        epoch: int,
        transaction: Transaction,
        offsets: Mapping[int, int],
        membership: Membership,
    ) -> bool:
        """False: this membership is over. Raises FencedProducer."""
        self._identity(name, epoch)
        if not self.group.is_current(membership):
            return False
        transaction.offsets = dict(offsets)
        self.unstable.append(transaction)
        return True

    def end(self, name: str, epoch: int, transaction: Transaction, state: str) -> None:
        """Decides it. Raises FencedProducer."""
        self._identity(name, epoch)
        self._end(transaction, state)

    def _end(self, transaction: Transaction, state: str) -> None:
        assert transaction.state == "open"
        transaction.state = state
        if state == "committed":
            self._decided(transaction.manifest)
        self._schedule.at(self.marker_delay(), lambda: self._mark_log(transaction))
        self._schedule.at(self.marker_delay(), lambda: self._mark_offsets(transaction))

    def _mark_log(self, transaction: Transaction) -> None:
        transaction.in_log = True

    def _mark_offsets(self, transaction: Transaction) -> None:
        transaction.in_offsets = True
        if transaction in self.unstable:
            self.unstable.remove(transaction)
            if transaction.state == "committed":
                self.offsets.update(transaction.offsets)

    def _expire(self, name: str, transaction: Transaction) -> None:
        if transaction.state == "open":
            self.identities[name].epoch += 1
            self._end(transaction, "aborted")

    def _identity(self, name: str, epoch: int) -> Identity:
        identity = self.identities[name]
        if identity.epoch != epoch:
            raise FencedProducer
        return identity

    # Reading

    @property
    def stable_end(self) -> int:
        """The commit log's last stable offset."""
        return next((i for i, t in enumerate(self.log) if not t.in_log), len(self.log))

    def is_unstable(self, partitions: Collection[int]) -> bool:
        return any(p in t.offsets for t in self.unstable for p in partitions)

    # The claim log

    def open_partition(self, partition: int, generation: int, term: int) -> None:
        if generation >= self.opens.get(partition, (-1, 0))[0]:
            self.opens[partition] = (generation, term)
