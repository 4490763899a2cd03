"""`Judge`: every way a row of a batch is decided, on the real batcher, rules and meld. Only the
model and the claim stage are stand-ins."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest

from streamer.config import FieldRule
from streamer.dedup.choose import open_index
from streamer.dedup.meld import LOST, WON, Meld
from streamer.errors import DependencyError, InvalidRecord
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Judged, Run, Span
from streamer.flow.worker import Failure, Worker
from streamer.judge.batcher import Batcher
from streamer.judge.filters import Rules
from streamer.judge.judge import Judge
from streamer.model.model import Embedded, unit_vectors
from streamer.ops.metrics import Metrics
from streamer.records import (
    NEAR_DUPLICATE,
    Claim,
    Decision,
    Decoded,
    Facts,
    FailedRule,
    Record,
    Sample,
    Settled,
    Term,
)
from streamer.wire.claim import Claims, Open

DIM = 8
TAU = 0.9
EYE = np.eye(DIM, dtype=np.float32)
NEAR_0 = EYE[0] + 0.3 * EYE[1]
"""Similarity 0.958 with EYE[0]."""


@dataclass
class Vectors:
    """A model whose pixels are the number of a row: ``vectors[number]``, and ``scores`` by head."""

    vectors: list[np.ndarray]
    heads: Mapping[str, list[float]]
    dim: int = DIM
    calls: list[int] = field(default_factory=list)
    failures: dict[int, InvalidRecord] = field(default_factory=dict)
    """By the row's place among those that are embedded."""
    broken: Exception | None = None
    resident: torch.Tensor | None = None
    """What the last batch left on the device."""

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def submit(self, pixels: Sequence[np.ndarray]) -> Ready:
        if self.broken is not None:
            raise self.broken
        numbers = [int(p[0, 0, 0]) for p in pixels]
        self.calls.append(len(numbers))
        scores = {
            name: np.array([column[n] for n in numbers], np.float32)
            for name, column in self.heads.items()
        }
        units, lengths = unit_vectors(
            torch.tensor(np.array([self.vectors[n] for n in numbers], np.float32))
        )
        self.resident = units.float()
        return Ready(Embedded(units.numpy(), lengths.numpy(), scores, self.failures, self.resident))


@dataclass
class Ready:
    answer: Embedded

    def result(self) -> Embedded:
        return self.answer


class Collected:
    """The claim stage's port: keeps what it is given."""

    def __init__(self) -> None:
        self.judged: list[Judged] = []
        self.withdrawn: list[tuple[int, int, int]] = []
        self.came = threading.Condition()

    def submit(self, judged: Judged) -> None:
        with self.came:
            self.judged.append(judged)
            self.came.notify_all()

    def withdraw(self, partition: int, offset: int, term: int) -> None:
        self.withdrawn.append((partition, offset, term))

    def wait(self, count: int) -> list[Judged]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.judged) >= count, 20)
            return self.judged[:count]


class Setup:
    def __init__(
        self,
        vectors: Sequence[Any] = (),
        heads: Mapping[str, list[float]] | None = None,
        rules: Sequence[Mapping[str, Any]] = (),
        dedup: bool = True,
        flag: bool = False,
    ) -> None:
        self.fence = Fence(Run(1, 0))
        self.failure = Failure()
        self.chunks: Channel[Chunk] = Channel("decode", 100)
        self.model = Vectors([np.asarray(v, np.float32) for v in vectors], heads or {})
        self.meld = Meld(DIM, TAU, open_index(DIM, TAU, "cpu"))
        self.meld.apply(Open(0, 1, 77, 0))
        self.stage = Collected()
        self.metrics = Metrics()
        self.beats = 0
        names = [FieldRule.model_validate(rule) for rule in rules]
        self.judge = Judge(
            Batcher(self.chunks, 64, 0.005, self.fence), self.model, Rules(names, ("jpg",), self.model.heads), self.meld if dedup else None,
            self.stage, flag, self.failure, self.metrics, self._beat,
        )  # fmt: skip
        self.worker = Worker("device", self.judge.run, self.failure)

    def _beat(self) -> None:
        self.beats += 1

    def win(self, offset: int, vector: np.ndarray) -> Claim:
        """A winner that is in the log already."""
        unit = unit_vectors(torch.tensor(vector[None]))[0].numpy()
        status = self.meld.apply(Claims(0, 77, self.meld.position, np.array([offset]), unit)).status
        assert status.tolist() == [WON]
        claim = self.meld.prior(0, offset)
        assert claim is not None
        return claim

    def lose(self, offset: int, vector: np.ndarray) -> Claim:
        unit = unit_vectors(torch.tensor(vector[None]))[0].numpy()
        assert self.meld.apply(Claims(0, 77, 0, np.array([offset]), unit)).status.tolist() == [LOST]
        claim = self.meld.prior(0, offset)
        assert claim is not None
        return claim

    def feed(self, rows: list[Decoded]) -> None:
        future: Future[list[Decoded]] = Future()
        future.set_result(rows)
        self.chunks.put(Chunk(Span(self.fence.run, {0: Term(0, 77, 1, 0)}, {}), future))

    def judged(self, rows: list[Decoded]) -> Judged:
        """What comes out for one batch of these rows."""
        self.feed(rows)
        self.worker.start()
        [judged] = self.stage.wait(1)
        self.stop()
        self.failure.raise_if_any()
        assert [r.offset for r in judged.records] == [row.record.offset for row in rows]
        return judged

    def stop(self) -> None:
        self.failure.stop.set()
        assert self.worker.join(10)


@pytest.fixture
def made() -> Iterator[list[Setup]]:
    setups: list[Setup] = []
    yield setups
    for setup in setups:
        if setup.worker.is_alive():
            setup.stop()


def sample(
    number: int, failures: Sequence[FailedRule] = (), prior: Claim | None = None, **facts: Any
) -> Sample:
    """The record at offset 100 + number, whose vector is the model's ``number``."""
    known = {"data": b"x", "format": "jpg", **facts}
    return Sample(
        Record(0, 100 + number, 0, b"v", ()),
        Facts(**known),
        np.full((1, 1, 3), number, np.uint8),
        list(failures),
        prior,
    )


def settled(number: int, decision: Decision, prior: Claim | None = None, **facts: Any) -> Settled:
    return Settled(Record(0, 100 + number, 0, b"v", ()), Facts(**facts), decision, prior)


def test_an_undecided_batch_goes_on_to_claim() -> None:
    setup = Setup([EYE[0] * 5, NEAR_0, EYE[2]])
    judged = setup.judged([sample(i) for i in range(3)])
    assert judged.decisions == [Decision("accepted")] * 3
    assert judged.claimed.tolist() == [
        0,
        1,
        2,
    ]  # 0 and 1 are near each other, but batch-mates may yet lose
    assert judged.seen == setup.meld.position == 1
    assert judged.embedded.all()
    assert judged.embeddings.dtype == np.float16
    np.testing.assert_array_equal(judged.embeddings[0], EYE[0].astype(np.float16))
    assert judged.scores == {}


def test_settled_records_are_not_embedded_and_keep_their_decision() -> None:
    setup = Setup([EYE[0], EYE[1]], heads={"a": [0.5, 0.6]})
    invalid, filtered = (
        Decision("invalid", "corrupt", detail="x"),
        Decision("filtered", "small", ("small",)),
    )
    judged = setup.judged([settled(5, invalid), sample(0), settled(6, filtered), sample(1)])
    assert judged.decisions == [invalid, Decision("accepted"), filtered, Decision("accepted")]
    assert judged.embedded.tolist() == [False, True, False, True]
    assert judged.claimed.tolist() == [1, 3]
    assert setup.model.calls == [2]
    np.testing.assert_array_equal(
        judged.scores["a"], np.array([np.nan, 0.5, np.nan, 0.6], np.float32)
    )
    assert not judged.embeddings[0].any()


def test_a_batch_without_a_sample_does_not_ask_the_model() -> None:
    setup = Setup()
    judged = setup.judged([settled(0, Decision("invalid", "corrupt"))])
    assert setup.model.calls == []
    assert judged.claimed.tolist() == []


@pytest.mark.parametrize(
    "bad", [np.full(DIM, np.nan), np.zeros(DIM), np.array([np.inf, *np.zeros(DIM - 1)])]
)
def test_an_embedding_that_is_none_makes_one_record_invalid(bad: np.ndarray) -> None:
    setup = Setup([EYE[0], bad, EYE[1]])
    judged = setup.judged([sample(i) for i in range(3)])
    assert judged.decisions == [
        Decision("accepted"),
        Decision("invalid", "embedding_not_finite"),
        Decision("accepted"),
    ]
    assert judged.embedded.tolist() == [True, False, True]
    assert judged.claimed.tolist() == [0, 2]
    assert np.isfinite(judged.embeddings).all()


def test_an_image_that_the_model_cannot_take_makes_one_record_invalid() -> None:
    setup = Setup([EYE[0], np.full(DIM, np.nan), EYE[1]], heads={"a": [0.5, np.nan, np.nan]})
    setup.model.failures = {
        1: InvalidRecord("embedder_failed", "KeyError: 'x'"),
        2: InvalidRecord("head_failed", "OSError: y"),
    }
    judged = setup.judged(
        [settled(7, Decision("invalid", "corrupt")), *(sample(i) for i in range(3))]
    )
    assert judged.decisions[1:] == [
        Decision("accepted"),
        Decision("invalid", "embedder_failed", detail="KeyError: 'x'"),
        Decision("invalid", "head_failed", detail="OSError: y"),
    ]
    assert judged.embedded.tolist() == [False, True, False, True]
    assert judged.claimed.tolist() == [1]


def test_a_won_prior_that_the_model_cannot_take_now_keeps_its_vector() -> None:
    setup = Setup([np.full(DIM, np.nan)])
    setup.model.failures = {0: InvalidRecord("embedder_failed")}
    prior = setup.win(100, EYE[0])
    judged = setup.judged([sample(0, prior=prior)])
    assert judged.decisions == [
        Decision("accepted", None, ("embedder_failed",), claim=prior.position)
    ]
    np.testing.assert_array_equal(judged.embeddings[0], EYE[0].astype(np.float16))


def test_header_failures_that_only_flag_become_flags() -> None:
    setup = Setup([EYE[0]])
    judged = setup.judged([sample(0, [FailedRule("dark", False), FailedRule("tiny", False)])])
    assert judged.decisions == [Decision("accepted", None, ("dark", "tiny"))]
    assert judged.claimed.tolist() == [0]


RULES = (
    {"name": "meh", "field": "a_score", "at_least": 3, "action": "flag"},
    {"name": "low", "field": "a_score", "at_least": 2},
    {"name": "unsafe", "field": "b_score", "at_most": 0.25},
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (3.0, 0.25, Decision("accepted")),  # bounds are inclusive
        (2.5, 0.1, Decision("accepted", None, ("meh",))),
        (1.0, 0.1, Decision("filtered", "low", ("meh", "low"))),
        (5.0, 0.9, Decision("filtered", "unsafe", ("unsafe",))),
        (
            1.0,
            0.9,
            Decision("filtered", "low", ("meh", "low", "unsafe")),
        ),  # the first removal is the reason
        (float("nan"), 0.1, Decision("filtered", "low", ("meh", "low"))),  # NaN fails every rule
    ],
)
def test_score_rules(a: float, b: float, expected: Decision) -> None:
    setup = Setup([EYE[0], EYE[1]], heads={"a": [a, 9.0], "b": [b, 0.0]}, rules=RULES)
    judged = setup.judged([sample(0), sample(1)])
    assert judged.decisions == [expected, Decision("accepted")]
    assert judged.claimed.tolist() == ([0, 1] if expected.outcome == "accepted" else [1])


def test_header_flags_stand_before_score_flags_and_each_name_once() -> None:
    setup = Setup([EYE[0]], heads={"a": [0.0], "b": [0.0]}, rules=RULES)
    judged = setup.judged([sample(0, [FailedRule("dark", False), FailedRule("meh", False)])])
    assert judged.decisions == [Decision("filtered", "low", ("dark", "meh", "low"))]


# Priors


def test_a_won_prior_is_accepted_though_the_filters_say_no_now_and_keeps_its_vector() -> None:
    setup = Setup([EYE[3]], heads={"a": [0.0], "b": [0.9]}, rules=RULES)
    prior = setup.win(100, EYE[0])
    judged = setup.judged([sample(0, [FailedRule("small", True)], prior)])
    assert judged.decisions == [
        Decision("accepted", None, ("small", "meh", "low", "unsafe"), claim=prior.position)
    ]
    assert judged.claimed.tolist() == []
    np.testing.assert_array_equal(judged.embeddings[0], EYE[0].astype(np.float16))
    assert judged.scores["a"].tolist() == [0.0]
    assert setup.stage.withdrawn == []


def test_a_won_prior_near_an_earlier_winner_is_not_looked_up_again() -> None:
    setup = Setup([NEAR_0])
    prior = setup.win(100, NEAR_0)
    setup.meld.apply(Open(1, 1, 78, 0))
    judged = setup.judged([sample(0, prior=prior)])
    assert judged.decisions == [Decision("accepted", claim=prior.position)]


@pytest.mark.parametrize("flag", [False, True])
def test_a_lost_prior_is_a_duplicate(flag: bool) -> None:
    setup = Setup([NEAR_0], flag=flag)
    setup.win(1, EYE[0])
    prior = setup.lose(100, NEAR_0)
    [decision] = setup.judged([sample(0, prior=prior)]).decisions
    assert (decision.duplicate_of, decision.similarity, decision.claim) == (
        (0, 1),
        prior.similarity,
        prior.position,
    )
    assert (decision.outcome, decision.reason, decision.flags) == (
        ("accepted", None, (NEAR_DUPLICATE,)) if flag else ("duplicate", NEAR_DUPLICATE, ())
    )


def test_a_lost_prior_whose_image_is_gone_is_still_a_duplicate() -> None:
    setup = Setup()
    setup.win(1, EYE[0])
    prior = setup.lose(100, NEAR_0)
    [decision] = setup.judged([settled(0, Decision("invalid", "not_found"), prior)]).decisions
    assert (decision.outcome, decision.duplicate_of, decision.flags) == (
        "duplicate",
        (0, 1),
        ("not_found",),
    )


def test_a_lost_prior_whose_image_is_gone_cannot_be_kept_with_action_flag() -> None:
    setup = Setup(flag=True)
    setup.win(1, EYE[0])
    prior = setup.lose(100, NEAR_0)
    judged = setup.judged([settled(0, Decision("invalid", "not_found", detail="404"), prior)])
    assert judged.decisions == [
        Decision("invalid", "not_found", claim=prior.position, detail="404")
    ]
    assert setup.stage.withdrawn == []  # it was no winner: nobody counts on it


def test_a_won_prior_that_is_undecodable_now_but_has_its_bytes_is_delivered() -> None:
    setup = Setup()
    prior = setup.win(100, EYE[0])
    judged = setup.judged(
        [settled(0, Decision("invalid", "truncated"), prior, data=b"x", format="jpg")]
    )
    assert judged.decisions == [Decision("accepted", None, ("truncated",), claim=prior.position)]
    assert judged.embedded.tolist() == [True]
    np.testing.assert_array_equal(judged.embeddings[0], EYE[0].astype(np.float16))
    assert setup.stage.withdrawn == []


@pytest.mark.parametrize("facts", [{}, {"data": b"x"}])
@pytest.mark.parametrize("flag", [False, True])
def test_a_won_prior_that_cannot_be_written_down_any_more_is_withdrawn(
    facts: dict[str, Any], flag: bool
) -> None:
    setup = Setup(flag=flag)
    prior = setup.win(100, EYE[0])
    judged = setup.judged([settled(0, Decision("invalid", "not_found"), prior, **facts)])
    [decision] = judged.decisions
    assert (decision.outcome, decision.reason, decision.claim, decision.detail) == (
        "invalid",
        "withdrawn",
        prior.position,
        "not_found",
    )
    assert setup.stage.withdrawn == [(0, 100, 77)]
    assert judged.claimed.tolist() == []


def test_a_prior_that_was_withdrawn_stays_invalid() -> None:
    prior = Claim(5, False, None, None, EYE[0].astype(np.float16))
    setup = Setup([EYE[1]])
    judged = setup.judged([sample(0, prior=prior)])
    assert judged.decisions == [Decision("invalid", "withdrawn", claim=5)]
    assert setup.stage.withdrawn == []
    assert judged.claimed.tolist() == []


# The pre-check


@pytest.mark.parametrize("flag", [False, True])
def test_what_is_near_an_applied_winner_makes_no_claim(flag: bool) -> None:
    setup = Setup([EYE[2], NEAR_0, EYE[0]], flag=flag)
    setup.win(1, EYE[0])
    judged = setup.judged([sample(0), sample(1, [FailedRule("dark", False)]), sample(2)])
    assert judged.claimed.tolist() == [0]
    assert judged.seen == setup.meld.position
    exact = float(judged.embeddings[1].astype(np.float64) @ EYE[0].astype(np.float64))
    flags = ("dark", NEAR_DUPLICATE) if flag else ("dark",)
    outcome, reason = ("accepted", None) if flag else ("duplicate", NEAR_DUPLICATE)
    assert judged.decisions[1] == Decision(outcome, reason, flags, (0, 1), exact, None)
    assert judged.decisions[2].similarity == 1.0


def test_what_a_filter_removes_is_not_looked_up() -> None:
    setup = Setup([EYE[0]], heads={"a": [0.0], "b": [0.0]}, rules=RULES)
    setup.win(1, EYE[0])
    [decision] = setup.judged([sample(0)]).decisions
    assert (decision.outcome, decision.duplicate_of) == ("filtered", None)


def test_without_dedup_nothing_is_claimed() -> None:
    setup = Setup([EYE[0], EYE[0]], dedup=False)
    judged = setup.judged([sample(0), sample(1)])
    assert judged.decisions == [Decision("accepted")] * 2
    assert judged.claimed.tolist() == []
    assert judged.embedded.all()


# The thread


def test_batches_come_out_in_order_and_the_thread_gives_signs_of_life(made: list[Setup]) -> None:
    setup = Setup([EYE[i % DIM] for i in range(60)])
    made.append(setup)
    setup.worker.start()
    for at in range(0, 60, 3):
        setup.feed([sample(at + i) for i in range(3)])
        time.sleep(0.002)
    deadline = time.monotonic() + 20
    while sum(len(j.records) for j in setup.stage.judged) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [r.offset for j in setup.stage.judged for r in j.records] == [100 + i for i in range(60)]
    assert setup.beats > len(setup.stage.judged)
    assert b"streamer_batch_records_sum 60.0" in generate_latest(setup.metrics.registry)


def test_what_the_model_raises_stops_the_process(made: list[Setup]) -> None:
    setup = Setup([EYE[0]])
    made.append(setup)
    setup.model.broken = DependencyError("device: out of memory with a single image")
    setup.feed([sample(0)])
    setup.worker.start()
    assert setup.failure.stop.wait(10)
    assert setup.failure.thread == "device"
    with pytest.raises(DependencyError, match="out of memory"):
        setup.failure.raise_if_any()
    assert setup.stage.judged == []


def test_the_index_is_given_the_rows_where_the_model_left_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup([EYE[0], EYE[1], EYE[2], EYE[3]], rules=[{"field": "text_length", "at_least": 1}])
    given: list[Any] = []
    search = setup.meld.index.search
    monkeypatch.setattr(
        setup.meld.index, "search", lambda *args: given.append(args) or search(*args)
    )
    rows = [
        settled(9, Decision("invalid", "corrupt")),
        *(sample(i, [] if i != 1 else [FailedRule("text_length", True)]) for i in range(4)),
    ]
    judged = setup.judged(rows)
    assert judged.claimed.tolist() == [1, 3, 4]
    ((vectors, resident),) = given
    assert resident.tensor is setup.model.resident
    np.testing.assert_array_equal(
        resident.tensor[resident.rows].numpy(), vectors.astype(np.float32)
    )


def test_batches_in_flight_fall_to_none_when_nothing_comes() -> None:
    setup = Setup([EYE[0], EYE[1]])
    seen: list[float] = []
    submit = setup.stage.submit

    def in_flight() -> float:
        value = setup.metrics.registry.get_sample_value("streamer_batches_in_flight")
        assert value is not None
        return value

    def watched(judged: Judged) -> None:
        seen.append(in_flight())
        submit(judged)

    setup.stage.submit = watched  # type: ignore[method-assign]
    setup.judged([sample(0), sample(1)])
    assert seen == [1]
    assert in_flight() == 0
