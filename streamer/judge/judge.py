"""The judge: embed, score, filter, pre-check. What is left undecided goes on to claim its place.

The device thread. While a batch is computed on an accelerator, the one before it is filtered and
pre-checked here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from streamer.dedup.index import Resident
from streamer.dedup.meld import Meld
from streamer.dedup.verdict import by_prior, duplicate
from streamer.errors import InvalidRecord
from streamer.flow.item import Judged
from streamer.flow.worker import Failure
from streamer.judge.ahead import Batches
from streamer.judge.batcher import Batch
from streamer.judge.filters import Rules
from streamer.model.model import Embedded
from streamer.ops.metrics import Metrics
from streamer.records import (
    F16,
    F32,
    I64,
    U8,
    Claim,
    Decision,
    Decoded,
    Facts,
    Jpeg,
    OnDevice,
    Record,
    Sample,
    Settled,
)

ACCEPTED = Decision("accepted")
AHEAD = 1
"""Batches that may compute while an earlier one is filtered."""


class Ticket(Protocol):
    def result(self) -> Embedded: ...


class BatchModel(Protocol):
    """What the judge needs of a model; see `streamer.model.model.Model`."""

    @property
    def dim(self) -> int: ...
    @property
    def score_names(self) -> tuple[str, ...]: ...
    def submit(self, pixels: Sequence[U8 | OnDevice]) -> Ticket: ...


class Stage(Protocol):
    """Where judged batches go; see `streamer.kafka.claims`."""

    def submit(self, judged: Judged) -> None: ...
    def withdraw(self, partition: int, offset: int, term: int) -> None: ...


class Judge:
    """`run` is the device thread's body."""

    def __init__(
        self,
        batches: Batches,
        model: BatchModel,
        rules: Rules,
        meld: Meld | None,
        stage: Stage,
        flag_duplicates: bool,
        failure: Failure,
        metrics: Metrics,
        beat: Callable[[], None],
    ) -> None:
        """``meld`` is None with ``dedup: off``."""
        self._batches = batches
        self._model = model
        self._rules = rules
        self._meld = meld
        self._stage = stage
        self._flag_duplicates = flag_duplicates
        self._failure = failure
        self._metrics = metrics
        self._beat = beat

    def run(self) -> None:
        computing: deque[tuple[Batch, Ticket | None]] = deque()
        while not self._failure.stop.is_set():
            self._beat()
            batch = self._batches.take(0.0 if computing else 0.05)
            if batch is not None:
                computing.append((batch, self._submit(batch)))
                self._metrics.batches_in_flight.set(len(computing))
            if computing and (batch is None or len(computing) > AHEAD):
                self._stage.submit(self._judge(*computing.popleft()))
                self._metrics.batches_in_flight.set(len(computing))

    def _submit(self, batch: Batch) -> Ticket | None:
        """None: there is nothing to embed."""
        pixels = [
            row.pixels
            for row in batch.rows
            if isinstance(row, Sample) and not isinstance(row.pixels, Jpeg)
        ]
        assert len(pixels) == sum(isinstance(row, Sample) for row in batch.rows), (
            "this is a bug: a JPEG came here that nobody decoded"
        )
        if not pixels:
            return None
        self._metrics.batch_records.observe(len(pixels))
        with self._metrics.stage("embed"):
            return self._model.submit(pixels)

    def _judge(self, batch: Batch, ticket: Ticket | None) -> Judged:
        n, names = len(batch.rows), self._model.score_names
        rows = np.array(
            [i for i, row in enumerate(batch.rows) if isinstance(row, Sample)], np.int64
        )
        embeddings = np.zeros((n, self._model.dim), np.float16)
        embedded = np.zeros(n, np.bool_)
        scores = {name: np.full(n, np.nan, np.float32) for name in names}
        failures: dict[int, InvalidRecord] = {}
        resident = None
        if ticket is not None:
            with self._metrics.stage("embed"):
                result = ticket.result()
            embeddings[rows], embedded[rows], resident = (
                result.embeddings,
                result.embedded,
                result.resident,
            )
            failures = {int(rows[i]): error for i, error in result.failures.items()}
            for name in names:
                scores[name][rows] = result.scores[name]
        with self._metrics.stage("filter"):
            decisions = [
                self._decide(row, bool(embedded[i]), failures.get(i), i, scores)
                for i, row in enumerate(batch.rows)
            ]
            for i, row in enumerate(batch.rows):
                if row.prior is not None:
                    decisions[i] = self._confirm(
                        row, row.prior, decisions[i], batch.span.terms[row.record.partition].id
                    )
                    embeddings[i], embedded[i] = row.prior.vector, True
        undecided = np.array(
            [
                i
                for i, row in enumerate(batch.rows)
                if decisions[i].outcome == "accepted" and row.prior is None
            ],
            np.int64,
        )
        with self._metrics.stage("claim"):
            there = (
                None if resident is None else Resident(resident, np.searchsorted(rows, undecided))
            )
            claimed, seen = self._look_up(undecided, embeddings, there, decisions)
        records: list[Record] = [row.record for row in batch.rows]
        facts: list[Facts] = [row.facts for row in batch.rows]
        return Judged(
            batch.span, records, facts, decisions, embeddings, embedded, scores, claimed, seen,
            nbytes=sum(row.nbytes for row in batch.rows),
        )  # fmt: skip

    def _decide(
        self,
        row: Decoded,
        is_embedded: bool,
        failure: InvalidRecord | None,
        i: int,
        scores: Mapping[str, F32],
    ) -> Decision:
        """The decision about row ``i`` if the record is nobody's duplicate."""
        if isinstance(row, Settled):
            return row.decision
        if failure is not None:
            return Decision("invalid", failure.reason, detail=failure.detail)
        if not is_embedded:
            return Decision("invalid", "embedding_not_finite")
        failures = row.failures
        if self._rules.score_rules:
            failures = [
                *failures,
                *self._rules.score_rules.check(
                    row.facts, {name: float(column[i]) for name, column in scores.items()}
                ),
            ]
        if not failures:
            return ACCEPTED
        flags = tuple(dict.fromkeys(f.name for f in failures))
        reason = next((f.name for f in failures if f.removes), None)
        return (
            Decision("accepted", None, flags)
            if reason is None
            else Decision("filtered", reason, flags)
        )

    def _confirm(self, row: Decoded, prior: Claim, now: Decision, term: int) -> Decision:
        """The outcome of an earlier claim of the same origin is final; only what cannot be written
        down any more can no longer be accepted."""
        outcome = by_prior(prior, now, self._flag_duplicates)
        if outcome.outcome != "accepted" or (
            row.facts.data is not None and row.facts.format is not None
        ):
            return outcome
        if not prior.won:  # a flagged duplicate: nobody counts on it
            return now._replace(claim=prior.position)
        self._stage.withdraw(row.record.partition, row.record.offset, term)
        return Decision(
            "invalid", "withdrawn", now.flags, claim=prior.position, detail=now.reason or ""
        )

    def _look_up(
        self, undecided: I64, embeddings: F16, there: Resident | None, decisions: list[Decision]
    ) -> tuple[I64, int]:
        """The pre-check: against winners already applied, never against batch-mates. Returns the
        rows left to claim, and ``seen``."""
        if self._meld is None or len(undecided) == 0:
            return undecided[:0], 0
        found = self._meld.precheck(embeddings[undecided], there)
        hits = found.winners >= 0
        for k in np.flatnonzero(hits):
            row = int(undecided[k])
            decisions[row] = duplicate(
                decisions[row],
                found.origins[k],
                float(found.similarity[k]),
                None,
                self._flag_duplicates,
            )
        return undecided[~hits], found.seen
