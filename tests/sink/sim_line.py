"""The stages between the real ones, in virtual time: channels, the claim log as far as it decides
ownership, a decoder that does nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, Generic, Protocol, TypeVar

from sim_broker import Broker
from sim_schedule import Schedule, wait

from streamer.errors import TemporaryError
from streamer.flow.item import Fence, Run
from streamer.records import Decision, Facts, Record, Sample, Settled, Term

T = TypeVar("T")
OPEN_DEADLINE_S = 3.0
TICK_S = 1.0
"""Short waits of the code under test last so long: what they wait for ends them early."""
NOTHING: Any = None
OUTCOMES = (
    Decision("accepted"),
    Decision("filtered", "min_side"),
    Decision("accepted"),
    Decision("invalid", "truncated"),
)


class Process(Protocol):
    """What the stages need of the process they belong to; see `sim_process`."""

    schedule: Schedule

    def notify(self) -> None: ...
    def step(self, what: str) -> None: ...


class SimChannel(Generic[T]):
    """`streamer.flow.channel.Channel` in virtual time."""

    def __init__(
        self, process: Process, name: str, max_items: int, max_bytes: int | None = None
    ) -> None:
        self._process = process
        self._max_items = max_items
        self._items: deque[T] = deque()

    def put(self, item: T, nbytes: int = 0, timeout: float = 0.0) -> bool:
        if not self.wait_room(timeout):
            return False
        self._items.append(item)
        self._process.notify()
        return True

    def wait_room(self, timeout: float) -> bool:
        return wait(
            self._process.schedule,
            lambda: len(self._items) < self._max_items,
            TICK_S if timeout else 0.0,
        )

    def get(self, timeout: float) -> T | None:
        if not wait(self._process.schedule, lambda: self._items, TICK_S if timeout else 0.0):
            return None
        item = self._items.popleft()
        self._process.notify()
        return item

    def __len__(self) -> int:
        return len(self._items)


class SimStage:
    """The claim log, as far as it decides who owns a partition."""

    def __init__(self, process: Process, broker: Broker) -> None:
        self._process = process
        self._broker = broker
        self._terms: dict[int, int] = {}
        self.position = 0

    @property
    def superseded(self) -> frozenset[int]:
        return frozenset(p for p, term in self._terms.items() if self._broker.opens[p][1] != term)

    def open(self, terms: Sequence[Term], serve: Callable[[], None]) -> None:
        for term in terms:
            self._terms.pop(term.partition, None)
        self._process.step("open")
        for term in terms:
            self._broker.open_partition(term.partition, term.generation, term.id)
        deadline = self._process.schedule.now + OPEN_DEADLINE_S
        for term in terms:
            while True:
                self._process.step("read open")
                generation, latest = self._broker.opens[term.partition]
                if latest == term.id:
                    self._terms[term.partition] = term.id
                    break
                if generation > term.generation or self._process.schedule.now > deadline:
                    raise TemporaryError(
                        f"partition {term.partition} was taken over while it was being opened"
                    )
                self._process.schedule.pause(0.05)

    def close(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._terms.pop(partition, None)

    def renew(self, committed: Mapping[int, int], terms: Mapping[int, Term]) -> None:
        pass

    def reset(self) -> None:
        pass

    def skip(self, term: Term, first: int, following: int) -> None:
        self._process.step("withdraw")

    def latest_generation(self, partition: int) -> int:
        return self._broker.opens.get(partition, (-1, 0))[0]


class SimFence(Fence):
    """Tells when a new run begins: nothing of the old one may be committed from then on."""

    def __init__(self, run: Run, begun: Callable[[], None]) -> None:
        self._begun = begun
        super().__init__(run)

    @property
    def run(self) -> Run:
        return self._run

    @run.setter
    def run(self, run: Run) -> None:
        self._begun()
        self._run = run


class SimDecoder:
    def submit(self, records: list[Record]) -> Future[list[Any]]:
        """Two of three records reach the device."""
        future: Future[list[Any]] = Future()
        future.set_result(
            [
                Sample(r, Facts(), NOTHING) if r.offset % 3 else Settled(r, Facts(), OUTCOMES[0])
                for r in records
            ]
        )
        return future

    def forget(self) -> None:
        pass


class SimMetrics:
    """Counts nothing but why epochs were dropped."""

    def __init__(self, drops: list[str]) -> None:
        self._drops = drops

    def epoch_dropped(self, cause: str, _rewound: int) -> None:
        self._drops.append(cause)

    def stage(self, _name: str) -> Any:
        return nullcontext()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args: None
