"""`ClaimLog` and `ClaimStage` on a real claims topic. Two stages in this process are two replicas:
each has its own meld, client and threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from patient import Patient

from streamer.config import Config, parse
from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.errors import (
    DatasetMismatch,
    DependencyError,
    ProtocolError,
    StreamerError,
    TemporaryError,
)
from streamer.flow.channel import Channel
from streamer.flow.item import Decided, Fence, Judged, Run, Span
from streamer.flow.worker import Failure, Worker
from streamer.kafka import claim_log as claim_log_module
from streamer.kafka import claims as claims_module
from streamer.kafka.admin import Admin
from streamer.kafka.claim_log import ClaimLog
from streamer.kafka.claims import MAX_IN_FLIGHT, ClaimStage, NoClaims
from streamer.ops.metrics import Metrics
from streamer.records import NEAR_DUPLICATE, Decision, Facts, Record, Term
from streamer.testing import create_topic, produce, read_topic
from streamer.wire.claim import Claims, DatasetEntry, Open, Withdraw, decode, encode

DIM = 8
TAU = 0.9
EYE = np.eye(DIM, dtype=np.float32)
NEAR_0 = EYE[0] + 0.3 * EYE[1]
BINDING = DatasetEntry("topic-id", "model-a", DIM, TAU, 1)
ACCEPTED = Decision("accepted")
SOON = 20.0


def unit(rows: np.ndarray) -> np.ndarray:
    """(n, d) → L2-normalised fp16"""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


class Replica:
    """One stage with all that is its own. ``run`` starts its claims thread."""

    def __init__(
        self, config: Config, window: int, message_limit: int, room: int, binding: DatasetEntry
    ) -> None:
        self.meld = Meld(DIM, TAU, open_index(DIM, TAU, "cpu"), window)
        self.log = ClaimLog(config, self.meld, binding, message_limit)
        self.decided: Channel[Decided] = Channel("write", room)
        self.fence = Fence(Run(1, 0))
        self.failure = Failure()
        self.metrics = Metrics()
        self.stage = ClaimStage(
            config, self.log, self.decided, self.fence, self.failure, self.metrics
        )
        self.worker = Worker("claims", self.stage.run, self.failure)
        self.terms: dict[int, Term] = {}

    def run(self) -> Replica:
        self.worker.start()
        return self

    def open(self, partition: int, term: int, generation: int = 1, start: int = 0) -> Term:
        opened = Term(partition, term, generation, start)
        self.stage.open([opened], lambda: None)
        self.terms[partition] = opened
        return opened

    def judged(
        self,
        rows: Sequence[tuple[int, int, np.ndarray]],
        claimed: Sequence[int] | None = None,
        seen: int | None = None,
    ) -> Judged:
        """(partition, offset, vector) rows, of which ``claimed`` (all) need a claim."""
        n = len(rows)
        vectors = unit(np.array([v for _, _, v in rows], np.float32).reshape(n, DIM))
        return Judged(
            Span(self.fence.run, dict(self.terms), {}), [Record(p, o, 0, b"v", ()) for p, o, _ in rows], [Facts() for _ in rows],
            [ACCEPTED] * n, vectors, np.ones(n, np.bool_), {}, np.arange(n) if claimed is None else np.array(claimed, np.int64),
            self.meld.position if seen is None else seen,
        )  # fmt: skip

    def claim(self, *rows: tuple[int, int, np.ndarray], seen: int | None = None) -> None:
        self.stage.submit(self.judged(rows, seen=seen))

    def take(self, timeout: float = SOON) -> list[Decision]:
        """The next batch's decisions."""
        decided = self.decided.get(timeout)
        assert decided is not None, "nothing was decided"
        return decided.batch.decisions

    def catch_up(self, other: Replica) -> None:
        wait(lambda: self.meld.position >= other.meld.position)

    def void(self) -> float:
        value = self.metrics.registry.get_sample_value("streamer_claims_void_total")
        assert value is not None
        return value

    def close(self) -> None:
        self.failure.stop.set()
        assert not self.worker.is_alive() or self.worker.join(10)
        self.log.close()


def wait(condition: Callable[[], bool], timeout: float = SOON) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


@dataclass
class Dataset:
    """The topics of one dataset, and replicas on it."""

    config: Config
    admin: Admin
    replicas: list[Replica]

    @property
    def servers(self) -> str:
        return self.config.kafka.bootstrap_servers

    def replica(
        self,
        window: int = 8192,
        message_limit: int = 1_000_000,
        room: int = 100,
        action: str = "remove",
        binding: DatasetEntry = BINDING,
    ) -> Replica:
        """Restored and running."""
        made = self.bare(window, message_limit, room, action, binding)
        made.log.restore(self.admin, lambda at, end: None)
        return made.run()

    def bare(
        self,
        window: int = 8192,
        message_limit: int = 1_000_000,
        room: int = 100,
        action: str = "remove",
        binding: DatasetEntry = BINDING,
    ) -> Replica:
        assert self.config.dedup is not None
        config = self.config.model_copy(
            update={"dedup": self.config.dedup.model_copy(update={"action": action})}
        )
        made = Replica(config, window, message_limit, room, binding)
        self.replicas.append(made)
        return made

    def entries(self) -> list[Any]:
        return [
            decode(stored.value or b"")
            for stored in read_topic(self.servers, self.config.claims_topic)
        ]


@pytest.fixture
def dataset(kafka: str, topic_name: str, dataset_name: str) -> Iterator[Dataset]:
    config = parse({
        "dataset": dataset_name, "kafka": {"bootstrap_servers": kafka, "topic": topic_name}, "embedder": {"type": "a.b:C"},
        "output": {"path": "/nowhere"}, "dedup": {"threshold": TAU},
    })  # fmt: skip
    create_topic(kafka, config.claims_topic)
    made = Dataset(config, Admin(config.kafka), [])
    yield made
    for replica in made.replicas:
        replica.close()
    for replica in made.replicas:
        replica.failure.raise_if_any()


def expect_failure(replica: Replica, kind: type[StreamerError], *words: str) -> None:
    """The replica's claims thread fails so; the fixture need not raise it again."""
    assert replica.failure.stop.wait(SOON)
    with pytest.raises(kind) as raised:
        replica.failure.raise_if_any()
    assert all(word in str(raised.value) for word in words), raised.value
    replica.failure = Failure()
    replica.failure.stop.set()


# One replica


def test_claims_come_back_as_decisions_in_the_order_of_the_line(dataset: Dataset) -> None:
    a = dataset.replica()
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, NEAR_0), (0, 2, EYE[2]))  # batch-mates: the first of two wins
    a.claim((0, 3, EYE[0]), (0, 4, EYE[3]), seen=2)  # pre-checked before the others were applied
    first, second = a.take(), a.take()
    assert [d.outcome for d in first + second] == [
        "accepted",
        "duplicate",
        "accepted",
        "duplicate",
        "accepted",
    ]
    base = 2  # after the dataset entry and the open
    assert [d.claim for d in first + second] == [base, base + 1, base + 2, base + 3, base + 4]
    assert first[1] == Decision(
        "duplicate", NEAR_DUPLICATE, (), (0, 0), first[1].similarity, base + 1
    )
    assert second[0].duplicate_of == (0, 0)
    assert second[0].similarity == 1.0
    assert a.stage.position == base + 5 == a.meld.position
    assert len(a.meld) == 3
    prior = a.stage.prior(0, 1)
    assert prior is not None
    assert (prior.won, prior.duplicate_of) == (False, (0, 0))


def test_rows_that_need_no_claim_and_batches_without_any_keep_their_place(dataset: Dataset) -> None:
    a = dataset.replica()
    a.open(0, term=11)
    a.stage.submit(a.judged([(0, i, EYE[i]) for i in range(4)], claimed=[1, 3]))
    a.stage.submit(a.judged([(0, 4, EYE[4])], claimed=[]))
    a.claim((0, 5, EYE[5]))
    a.stage.submit(a.judged([], claimed=[]))
    assert [[d.claim for d in a.take()] for _ in range(4)] == [[None, 2, None, 3], [None], [4], []]
    a.stage.submit(a.judged([(0, 6, EYE[6])], claimed=[]))  # nothing is in flight: at once
    assert a.take() == [ACCEPTED]


def test_a_batch_of_several_partitions_makes_an_entry_each(dataset: Dataset) -> None:
    a = dataset.replica()
    for p in range(3):
        a.open(p, term=20 + p)
    a.claim((2, 7, EYE[0]), (0, 5, EYE[1]), (2, 8, EYE[2]), (1, 0, EYE[3]), (0, 6, EYE[1]))
    decisions = a.take()
    claims = [e for e in dataset.entries() if isinstance(e, Claims)]
    assert {(e.partition, e.term): e.offsets.tolist() for e in claims} == {
        (0, 20): [5, 6],
        (1, 21): [0],
        (2, 22): [7, 8],
    }
    assert [d.outcome for d in decisions] == ["accepted"] * 4 + ["duplicate"]
    assert decisions[4].duplicate_of == (0, 5)
    assert len({d.claim for d in decisions}) == 5


def test_a_small_message_limit_splits_a_batch(dataset: Dataset) -> None:
    a = dataset.replica(message_limit=claim_log_module._FRAME + 32 + 3 * (8 + 2 * DIM))
    a.open(0, term=11)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((10, DIM)).astype(np.float32)
    vectors[7] = vectors[2]
    a.claim(*((0, i, vectors[i]) for i in range(10)))
    decisions = a.take()
    claims = [e for e in dataset.entries() if isinstance(e, Claims)]
    assert [e.offsets.tolist() for e in claims] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [d.claim for d in decisions] == list(range(2, 12))
    assert decisions[7].duplicate_of == (0, 2)


def test_a_message_limit_that_not_even_one_claim_fits(dataset: Dataset) -> None:
    a = dataset.replica(message_limit=claim_log_module._FRAME + 40)
    a.open(0, term=11)
    with pytest.raises(DependencyError, match=r"max\.message\.bytes"):
        a.claim((0, 0, EYE[0]))


def test_duplicates_are_flagged_where_the_action_says_so(dataset: Dataset) -> None:
    a = dataset.replica(action="flag")
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, EYE[0]))
    decisions = a.take()
    assert decisions[1] == Decision("accepted", None, (NEAR_DUPLICATE,), (0, 0), 1.0, 3)
    assert len(a.meld) == 1  # and it is no winner


def test_no_more_than_so_many_batches_are_in_flight(dataset: Dataset) -> None:
    a = dataset.bare(room=1)
    a.log.restore(dataset.admin, lambda at, end: None)
    a.run()
    a.open(0, term=11)
    blocked = MAX_IN_FLIGHT + 1  # and one is in the writer's channel
    done: list[int] = []

    def submit() -> None:
        for i in range(blocked + 3):
            a.claim((0, i, EYE[i % DIM] + i))
            done.append(i)

    device = Worker("device", submit, a.failure)
    device.start()
    wait(lambda: len(done) >= blocked)
    time.sleep(0.3)
    assert len(done) == blocked
    for _ in range(blocked + 3):
        a.take()
    assert device.join(SOON)
    assert len(done) == blocked + 3


def test_large_batches_do_not_crowd_the_log(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tailer stands still, so that no claim gets its verdict: a second batch of three waits
    where four claims may be on their way."""
    monkeypatch.setattr(claims_module, "MAX_ROWS", 4)
    a = dataset.bare()
    a.log.restore(dataset.admin, lambda at, end: None)
    done: list[int] = []

    def submit() -> None:
        for i in range(3):
            a.claim(
                *((0, 3 * i + k, EYE[3 * i + k] if 3 * i + k < DIM else EYE[0]) for k in range(3))
            )
            done.append(i)

    a.terms[0] = Term(0, 11, 1, 0)
    a.log.append(Open(0, 1, 11, 0))
    device = Worker("device", submit, a.failure)
    device.start()
    time.sleep(0.5)
    assert done == [0], "one batch goes however large it is"
    a.run()
    assert [d.claim for _ in range(3) for d in a.take()] == [*range(2, 11)]
    assert device.join(SOON)


def test_a_batch_larger_than_may_be_on_their_way_is_claimed_in_parts(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "MAX_ROWS", 3)
    a = dataset.replica()
    a.open(0, term=11)
    a.open(1, term=12)
    a.claim(*((k % 2, k, EYE[k]) for k in range(7)))
    assert [d.claim for d in a.take()] == [3, 5, 4, 7, 6, 8, 9]
    assert [len(entry.offsets) for entry in dataset.entries() if isinstance(entry, Claims)] == [
        2,
        1,
        1,
        2,
        1,
    ]
    a.claim(
        (0, 10, EYE[0]), (0, 11, NEAR_0), (0, 12, EYE[7]), (0, 13, EYE[7]), (0, 14, EYE[7]), seen=0
    )
    assert [d.outcome for d in a.take()] == [
        "duplicate",
        "duplicate",
        "accepted",
        "duplicate",
        "duplicate",
    ]


def test_large_batches_of_several_replicas_do_not_void_each_other(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has as many rows as W: claimed at once, those of one replica would all be void, again
    and again, while the others' come in."""
    monkeypatch.setattr(claims_module, "MAX_ROWS", 8)
    replicas = [dataset.replica(window=64) for _ in range(3)]
    dice = np.random.default_rng(4)

    def submit(a: Replica, partition: int) -> None:
        for first in range(0, 5 * 64, 64):
            a.claim(*((partition, first + k, dice.standard_normal(DIM)) for k in range(64)))

    for partition, a in enumerate(replicas):
        a.open(partition, term=partition)
    devices = [
        Worker("device", lambda a=a, partition=i: submit(a, partition), a.failure)
        for i, a in enumerate(replicas)
    ]  # type: ignore[misc]
    for device in devices:
        device.start()
    assert all(len(a.take()) == 64 for a in replicas for _ in range(5))
    assert all(device.join(SOON) for device in devices)
    assert sum(a.void() for a in replicas) < 100


def test_a_batch_that_waited_for_room_is_searched_again_before_it_claims(dataset: Dataset) -> None:
    a, b = dataset.replica(window=8, room=1), dataset.replica(window=8)
    a.open(0, term=11)
    b.open(1, term=21)
    batches = MAX_IN_FLIGHT + 2  # one is in the writer's channel, and the last one waits
    device = Worker(
        "device", lambda: [a.claim((0, i, EYE[1] + i * EYE[2])) for i in range(batches)], a.failure
    )
    device.start()
    wait(lambda: len(a.stage._queue) == MAX_IN_FLIGHT and len(a.decided) == 1)
    for k in range(5):
        b.claim((1, 2 * k, EYE[3] + k * EYE[4]), (1, 2 * k + 1, EYE[5] + k * EYE[6]))
        b.take()
    wait(lambda: a.meld.position >= 17)
    decisions = [d for _ in range(batches) for d in a.take()]
    assert all(d.outcome in ("accepted", "duplicate") for d in decisions)
    assert a.void() == 0
    assert device.join(SOON)


def test_a_claims_round_trip_is_no_wait_for_room(dataset: Dataset) -> None:
    a = dataset.replica(room=1)
    a.open(0, term=11)
    batches = (
        MAX_IN_FLIGHT + 2
    )  # one is in the writer's channel, and the last one waits before it is claimed
    device = Worker(
        "device", lambda: [a.claim((0, i, EYE[i % DIM] + i)) for i in range(batches)], a.failure
    )
    device.start()
    time.sleep(3)
    for _ in range(batches):
        a.take()
    measured = a.metrics.registry.get_sample_value
    assert measured("streamer_claim_round_trip_seconds_count") == batches
    longest = measured("streamer_claim_round_trip_seconds_sum")
    assert longest is not None
    assert longest < 2.5  # all of them together


def test_a_submit_that_waits_for_room_gives_up_with_its_run(dataset: Dataset) -> None:
    a = dataset.replica(room=1)
    a.open(0, term=11)
    device = Worker(
        "device", lambda: [a.claim((0, i, EYE[i % DIM] + i)) for i in range(20)], a.failure
    )
    device.start()
    wait(lambda: len(a.decided) == 1)
    time.sleep(0.2)
    assert device.is_alive()
    a.fence.run = Run(
        2, 0
    )  # whatever is submitted later is of the new run; what waits is of the old one
    a.stage.reset()
    while device.is_alive():
        a.decided.get(0.01)
    a.failure.raise_if_any()


def test_open_does_not_wait_for_a_writer_that_waits_for_us(dataset: Dataset) -> None:
    """The Kafka thread opens a partition inside a callback: then nobody takes sealed epochs, so the
    writer, and what is behind it, may stand still."""
    a = dataset.replica(room=1)
    a.open(0, term=11)
    for i in range(3):
        a.claim((0, i, EYE[i]))
    wait(lambda: a.meld.position == 5)
    time.sleep(0.1)  # the second batch meets a full channel
    before = time.monotonic()
    a.open(1, term=12)
    assert time.monotonic() - before < 5
    assert [[d.claim for d in a.take()] for _ in range(3)] == [[2], [3], [4]]
    a.claim((1, 0, EYE[5]))
    assert [d.claim for d in a.take()] == [6]


def test_a_new_run_forgets_what_is_in_flight_but_the_log_keeps_the_outcome(
    dataset: Dataset,
) -> None:
    a = dataset.replica()
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, EYE[0]))
    a.fence.run = Run(2, 0)
    a.stage.reset()
    a.open(0, term=12)  # read back: every claim made before it is applied
    won, lost = a.stage.prior(0, 0), a.stage.prior(0, 1)
    assert won is not None
    assert lost is not None
    assert (won.won, lost.won, lost.duplicate_of) == (True, False, (0, 0))
    a.claim((0, 2, EYE[2]))
    assert [d.claim for d in a.take()] == [5]  # not the forgotten batch
    assert a.decided.get(0.1) is None


def test_winners_among_what_is_skipped_are_withdrawn(dataset: Dataset) -> None:
    """Of an earlier term, too; what is not skipped keeps its verdict."""
    a, b = dataset.replica(), dataset.replica()
    a.open(0, term=11)
    a.claim(*((0, i, EYE[i]) for i in range(4)))
    a.take()
    a.open(0, term=12)
    a.stage.skip(Term(0, 12, 1, 0), 1, 3)
    assert dataset.entries()[-2:] == [Withdraw(0, 1, 12), Withdraw(0, 2, 12)]
    for replica in (a, b):
        wait(lambda replica=replica: len(replica.meld) == 2)
        found = [replica.stage.prior(0, i) for i in range(4)]
        assert [prior is not None and prior.won for prior in found] == [True, False, False, True]


def test_a_withdrawn_winner_is_in_the_log_when_the_call_returns(dataset: Dataset) -> None:
    a, b = dataset.replica(), dataset.replica()
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]))
    a.take()
    a.stage.withdraw(0, 0, 11)
    assert dataset.entries()[-1] == Withdraw(0, 0, 11)
    wait(lambda: b.meld.position == 4)
    for replica in (a, b):
        wait(lambda replica=replica: len(replica.meld) == 0)
        prior = replica.stage.prior(0, 0)
        assert prior is not None
        assert (prior.won, prior.duplicate_of) == (False, None)


# Stale claims


def test_a_claim_that_came_too_late_is_made_again_and_counted(dataset: Dataset) -> None:
    a = dataset.replica(window=4)
    a.open(0, term=11)
    a.claim(*((0, i, EYE[i]) for i in range(3)))
    a.take()
    a.claim((0, 3, EYE[3]), (0, 4, EYE[4]), seen=0)  # at positions 5 and 6
    decisions = a.take()
    assert [d.outcome for d in decisions] == ["accepted", "accepted"]
    assert [d.claim for d in decisions] == [7, 8]
    assert a.void() == 2


def test_a_partly_stale_entry_keeps_what_counted(dataset: Dataset) -> None:
    a = dataset.replica(window=4)
    a.open(0, term=11)
    a.claim(*((0, i, EYE[i]) for i in range(5)), seen=1)  # positions 2 to 6: the last is 5 behind
    decisions = a.take()
    assert [d.claim for d in decisions] == [2, 3, 4, 5, 7]
    assert a.void() == 1
    assert [d.outcome for d in decisions] == ["accepted"] * 5


def test_a_stale_claim_is_looked_up_again_and_may_be_a_duplicate_by_now(dataset: Dataset) -> None:
    a = dataset.replica(window=4)
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, EYE[1]), (0, 2, EYE[2]))
    a.take()
    a.claim((0, 3, NEAR_0), (0, 4, EYE[4]), seen=0)
    decisions = a.take()
    assert decisions[0] == Decision(
        "duplicate", NEAR_DUPLICATE, (), (0, 0), decisions[0].similarity, None
    )
    assert decisions[1].claim == 7
    assert a.void() == 2
    claims = [e.offsets.tolist() for e in dataset.entries() if isinstance(e, Claims)]
    assert claims == [[0, 1, 2], [3, 4], [4]]


def test_a_stale_batch_that_is_all_duplicates_by_now_is_handed_on(dataset: Dataset) -> None:
    a = dataset.replica(window=2)
    a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, EYE[1]))
    a.take()
    a.claim((0, 2, EYE[0]), (0, 3, EYE[1]), seen=0)
    assert [d.duplicate_of for d in a.take()] == [(0, 0), (0, 1)]


# Two replicas


def test_near_duplicates_at_the_same_moment_one_wins_and_both_agree(dataset: Dataset) -> None:
    a, b = dataset.replica(), dataset.replica()
    a.open(0, term=11)
    b.open(1, term=12)
    rng = np.random.default_rng(7)
    pictures = rng.standard_normal((40, DIM)).astype(np.float32)
    decisions: dict[tuple[int, int], Decision] = {}
    for at in range(0, 40, 4):  # nobody has seen anything of the other's when it claims
        for replica, partition in ((a, 0), (b, 1)):
            replica.claim(*((partition, i, pictures[i]) for i in range(at, at + 4)), seen=3)
        for replica, partition in ((a, 0), (b, 1)):
            decisions |= {(partition, at + i): d for i, d in enumerate(replica.take())}
    a.catch_up(b)
    b.catch_up(a)
    assert a.meld.digest() == b.meld.digest()
    for i in range(40):
        pair = [decisions[0, i], decisions[1, i]]
        for (own, other), origin in zip((pair, pair[::-1]), ((1, i), (0, i)), strict=True):
            if own.outcome == "duplicate" and own.duplicate_of == origin:
                assert other.outcome == "accepted"
        if all(d.outcome == "duplicate" for d in pair):  # both near a third picture
            assert all(d.duplicate_of is not None and d.duplicate_of[1] != i for d in pair)
    winners = [key for key, d in decisions.items() if d.outcome == "accepted"]
    assert len(winners) == len(a.meld) <= 40
    for d in decisions.values():
        assert d.outcome == "accepted" or d.duplicate_of in winners


def test_a_newcomer_restores_the_same_state(dataset: Dataset) -> None:
    a = dataset.replica()
    a.open(0, term=11)
    rng = np.random.default_rng(3)
    for at in range(0, 300, 30):
        a.claim(
            *(
                (0, at + i, v)
                for i, v in enumerate(rng.standard_normal((30, DIM)).astype(np.float32))
            )
        )
        a.take()
    told: list[tuple[int, int]] = []
    late = dataset.bare()
    late.log.restore(dataset.admin, lambda at, end: told.append((at, end)))
    assert late.meld.digest() == a.meld.digest()
    assert told[-1] == (12, 12)
    assert late.stage.latest_generation(0) == 1
    assert late.stage.latest_generation(1) == -1


def test_a_newer_owner_is_noticed_and_the_older_ones_claims_are_void(dataset: Dataset) -> None:
    a, b = dataset.replica(), dataset.replica()
    for p in (0, 1):
        a.open(p, term=11 + p, generation=1)
    assert a.stage.superseded == frozenset()
    b.open(0, term=21, generation=2)
    wait(lambda: a.stage.superseded == {0})
    a.claim((0, 0, EYE[0]))
    assert a.decided.get(0.3) is None  # void: nothing of it is ever handed on
    b.claim((0, 0, EYE[0]))
    assert [d.outcome for d in b.take()] == ["accepted"]
    a.fence.run = Run(2, 0)
    a.stage.reset()
    a.stage.close([0])
    assert a.stage.superseded == frozenset()
    a.claim((1, 0, EYE[3]))  # what is still its own goes on
    assert [d.outcome for d in a.take()] == ["accepted"]
    assert b.stage.superseded == frozenset()


def test_opening_again_oneself_supersedes_nobody(dataset: Dataset) -> None:
    a = dataset.replica()
    for term in (11, 12, 13):
        a.open(0, term=term)
    time.sleep(0.1)
    assert a.stage.superseded == frozenset()


def test_an_older_generations_open_is_void_and_the_opener_is_told(dataset: Dataset) -> None:
    a, b = dataset.replica(), dataset.replica()
    b.open(0, term=21, generation=5)
    with pytest.raises(TemporaryError, match="taken over by another replica"):
        a.open(0, term=11, generation=4)
    assert b.stage.superseded == frozenset()
    b.claim((0, 0, EYE[0]))
    assert [d.outcome for d in b.take()] == ["accepted"]


def test_a_partition_that_somebody_opened_beyond_our_start_is_an_error_and_no_hang(
    dataset: Dataset,
) -> None:
    """A claim below the highest `from` never counts: the batch would wait for its verdicts for
    ever."""
    a = dataset.replica()
    a.log.append(Open(0, 1, 99, 1000))
    wait(lambda: a.meld.open_of(0) is not None)
    with pytest.raises(
        ProtocolError,
        match=r"partition 0 is decided up to offset 1000, but the manifests end at 7: .* new dataset name",
    ):
        a.open(0, term=11, generation=2, start=7)
    a.open(1, term=12, start=7)
    a.open(0, term=13, generation=2, start=1000)


def test_an_open_that_is_not_read_back_ends_in_time(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = dataset.bare()
    a.log.restore(dataset.admin, lambda at, end: None)  # and its claims thread does not run
    monkeypatch.setattr(claims_module, "ENTRY_DEADLINE_S", 0.3)
    served: list[int] = []
    with pytest.raises(TemporaryError, match="not read back within"):
        a.stage.open([Term(0, 11, 1, 0)], lambda: served.append(1))
    assert served
    a.stage._patience = Patient(30)
    with pytest.raises(TemporaryError, match="enough"):
        a.stage.open([Term(0, 12, 1, 0)], lambda: None)
    a.log.patience = Patient(30)
    monkeypatch.setattr(claim_log_module, "ENTRY_DEADLINE_S", 0.1)
    with pytest.raises(TemporaryError, match="enough"):
        a.log.read_to(a.log.offset + 1000, lambda at, end: None)


def test_an_open_ends_with_the_thread_that_failed(dataset: Dataset) -> None:
    a = dataset.bare()
    a.log.restore(dataset.admin, lambda at, end: None)
    a.failure.report(DependencyError("the disk is full"))
    with pytest.raises(DependencyError, match="the disk is full"):
        a.stage.open([Term(0, 11, 1, 0)], lambda: None)
    a.failure = Failure()


def test_a_renewed_open_lets_everybody_forget_losers(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "VERDICTS", 8)
    a, b = dataset.replica(), dataset.replica()
    term = a.open(0, term=11)
    a.claim((0, 0, EYE[0]), (0, 1, EYE[0]), (0, 2, EYE[2]))
    a.take()
    a.stage.renew({0: 2}, a.terms)  # only 3 claims so far
    a.claim((0, 3, EYE[2]), (0, 4, EYE[4]), seen=2)
    a.take()
    a.stage.renew({0: 2, 7: 9}, a.terms)  # 7 is not ours
    wait(lambda: a.meld.open_of(0) == Open(0, 1, 11, 2))
    b.catch_up(a)
    for replica in (a, b):
        assert replica.stage.prior(0, 1) is None
        kept = replica.stage.prior(0, 3)
        assert kept is not None
        assert kept.duplicate_of == (0, 2)
    assert [e.start for e in dataset.entries() if isinstance(e, Open)] == [term.start, 2]
    assert a.stage.superseded == frozenset()
    a.claim((0, 5, EYE[0]), seen=2)  # the winner of offset 0 is still a winner
    assert a.take()[0].duplicate_of == (0, 0)
    a.stage.renew({0: 6}, a.terms)  # counted anew
    time.sleep(0.1)
    assert len([e for e in dataset.entries() if isinstance(e, Open)]) == 2


def test_partitions_share_what_may_be_held_of_verdicts(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "VERDICTS", 8)
    a = dataset.replica()
    for partition in range(4):
        a.open(partition, term=11 + partition)
        a.claim(*((partition, i, EYE[0]) for i in range(2)))
        a.take()
    a.stage.renew(dict.fromkeys(range(4), 2), a.terms)
    wait(lambda: all(a.meld.floor_of(p) == 2 for p in range(4)))
    assert all(a.stage.prior(p, 1) is None for p in range(4))


# The binding


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("topic_id", "other", "input topic (by id) is 'topic-id' there and 'other' here"),
        ("model", "model-b", "embedder is 'model-a' there and 'model-b' here"),
        ("threshold", 0.95, "dedup.threshold is 0.9 there and 0.95 here"),
        ("meld_version", 2, "meld version is 1 there and 2 here"),
        ("dim", 16, "dimension is 8 there and 16 here"),
    ],
)
def test_a_dataset_is_bound_for_good(
    field: str, value: object, words: str, dataset: Dataset
) -> None:
    dataset.replica()
    other = dataset.bare(binding=replace(BINDING, **{field: value}))
    with pytest.raises(DatasetMismatch) as raised:
        other.log.restore(dataset.admin, lambda at, end: None)
    for word in (repr(dataset.config.dataset), words, "streamer replay run"):
        assert word in str(raised.value)
    assert dataset.entries() == [BINDING]


def test_the_same_binding_twice_is_none(dataset: Dataset) -> None:
    one, two = dataset.bare(), dataset.bare()
    for log in (one.log, two.log):
        log.append(BINDING)  # as when both found an empty log
        assert log.flush(SOON) == 0
    for replica in (one, two):
        replica.log.restore(dataset.admin, lambda at, end: None)
    assert dataset.entries() == [BINDING, BINDING]


def test_a_topic_that_is_no_claim_log(dataset: Dataset) -> None:
    produce(dataset.servers, dataset.config.claims_topic, [(encode(Open(0, 1, 1, 0)), {})])
    with pytest.raises(ProtocolError, match="the first entry is not the dataset's"):
        dataset.bare().log.restore(dataset.admin, lambda at, end: None)


@pytest.mark.parametrize("value", [b"hello", b"", None, b'{"entry":"open","version":1}'])
def test_a_foreign_entry_stops_everybody_and_is_named(
    value: bytes | None, dataset: Dataset
) -> None:
    a = dataset.replica()
    produce(dataset.servers, dataset.config.claims_topic, [(value, {})])
    expect_failure(a, ProtocolError, f"{dataset.config.claims_topic} offset 1")
    with pytest.raises(ProtocolError, match=r"offset 1: "):
        dataset.bare().log.restore(dataset.admin, lambda at, end: None)


def test_a_log_whose_beginning_is_gone(dataset: Dataset) -> None:
    dataset.replica()
    admin = AdminClient({"bootstrap.servers": dataset.servers})
    for future in admin.delete_records(
        [TopicPartition(dataset.config.claims_topic, 0, 1)]
    ).values():
        future.result(SOON)
    with pytest.raises(ProtocolError, match=r"begins at offset 1, .*retention\.ms=-1"):
        dataset.bare().log.restore(dataset.admin, lambda at, end: None)


# dedup: off


def test_without_dedup_every_decision_holds_at_once() -> None:
    fence, failure = Fence(Run(1, 0)), Failure()
    decided: Channel[Decided] = Channel("write", 1)
    stage = NoClaims(decided, fence, failure)
    vectors = unit(EYE[:1])
    judged = Judged(
        Span(fence.run, {}, {0: 4}, 2), [Record(0, 0, 0, b"v", ())], [Facts(data=b"12345")], [ACCEPTED], vectors, np.ones(1, np.bool_), {},
        np.empty(0, np.int64), 0, nbytes=5,
    )  # fmt: skip
    stage.open([Term(0, 1, 1, 0)], lambda: None)
    stage.submit(judged)
    assert decided.nbytes == 5
    item = decided.get(0)
    assert item is not None
    assert (item.span, item.batch.decisions) == (judged.span, [ACCEPTED])
    assert (stage.prior(0, 0), stage.latest_generation(0), stage.position, stage.superseded) == (
        None,
        -1,
        0,
        frozenset(),
    )
    decided.put(item)
    fence.run = Run(2, 0)
    stage.submit(judged)  # of an older run: it is forgotten though the channel is full
    fence.run = judged.span.run
    failure.stop.set()
    stage.submit(judged)  # the process stops
    assert len(decided) == 1
