"""Embeddings as they arrive, for an index to be filled with and asked for: synthetic ones, and
those of photographs and their edits.

Synthetic ones have topics whose sizes follow a power law, that come, move and go; near-duplicates
are planted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from streamer.dedup.arithmetic import similarities, similarities_of
from streamer.records import F16, F64, I64

HALF_LIFE = 200_000
"""Vectors after which a topic has moved once, on average."""
PLANTED = 4
"""One synthetic query in so many is a planted near-duplicate."""
BATCH = 256


class Source(Protocol):
    """What an index is filled with, and asked for. The same for every contender."""

    dim: int

    def take(self, n: int) -> F16:
        """At least one and at most n that the index gets next, in order."""

    def ask(self, held: F16, count: int) -> F16:
        """(count, d) queries that come after the (n, d) taken so far. Leaves the source as it is."""

    def lessons(self, held: F16) -> Iterator[F16]:
        """Queries that have a match among the (n, d) taken so far, for a calibration to learn from:
        none that are asked later."""


class Stream:
    """Unit vectors as fp16. A vector is what all have in common, its topic, something along the
    main directions of all, and noise."""

    def __init__(self, dim: int, seed: int = 0, topics: int = 4000) -> None:
        self.dim = dim
        self.rng = np.random.default_rng(seed)
        directions = np.linalg.qr(self.rng.standard_normal((dim, dim)))[0]
        self._spectrum = (directions * np.arange(1, dim + 1) ** -0.5).astype(
            np.float32
        )  # variance falls as 1 / rank
        self._common = _unit(self.rng.standard_normal((1, dim)).astype(np.float32))
        self._topics = self._directions(topics)
        self._share = np.arange(1, topics + 1) ** -1.0
        self._share /= self._share.sum()
        self.rng.shuffle(self._share)

    def take(self, n: int) -> F16:
        """(n, dim) of the stream as it is now; then topics move as far as n vectors let them."""
        topics = self._topics[self.rng.choice(len(self._topics), n, p=self._share)]
        noise = self.rng.standard_normal((n, self.dim), np.float32) / np.float32(np.sqrt(self.dim))
        vectors = _unit(
            0.35 * self._common + 0.7 * topics + 0.5 * self._directions(n) + 0.25 * noise
        )
        moved = self.rng.random(len(self._topics)) < n / HALF_LIFE
        if moved.any():
            self._topics[moved] = _unit(self._topics[moved] + self._directions(int(moved.sum())))
        return vectors.astype(np.float16)

    def _directions(self, n: int) -> np.ndarray:
        return _unit(self.rng.standard_normal((n, self.dim), np.float32) @ self._spectrum.T)


class Drifting:
    """A `Stream`, and near-duplicates of what it has brought."""

    def __init__(self, dim: int, threshold: float, seed: int) -> None:
        self.dim, self._threshold = dim, threshold
        self._stream = Stream(dim, seed)

    def take(self, n: int) -> F16:
        return self._stream.take(n)

    def ask(self, held: F16, count: int) -> F16:
        """One in `PLANTED` is planted; the others are what the stream brings next."""
        rng = np.random.default_rng(len(held))
        planted = self._planted(rng, held, np.sort(rng.integers(0, len(held), count // PLANTED)))
        both = np.concatenate([planted, copy.deepcopy(self._stream).take(count - len(planted))])
        return both[rng.permutation(len(both))]

    def lessons(self, held: F16) -> Iterator[F16]:
        """Without an end."""
        rng = np.random.default_rng(3)
        while True:
            yield self._planted(rng, held, rng.integers(0, len(held), 4 * BATCH))

    def _planted(self, rng: np.random.Generator, held: F16, rows: I64) -> F16:
        return near(rng, held[rows], rng.uniform(self._threshold + 1e-3, 1, len(rows)))


class Arrivals:
    """Vectors that arrive one after the other, as in the service: what wins enters the index, what
    duplicates a winner does not.

    Who wins is decided here by brute force, so that every contender holds the same; what arrives
    after them is asked for, whoever wins.
    """

    def __init__(self, vectors: F16, winners: I64) -> None:
        """``vectors``: (n, d) in order of arrival, normalised. ``winners``: their ascending rows,
        see `winners_of`."""
        self.dim = vectors.shape[1]
        self._vectors, self._winners, self._taken = vectors, winners, 0

    def take(self, n: int) -> F16:
        """Those that win among the `BATCH` arrivals of one batch, or the first n of them."""
        low = self._taken
        batch_end = (self._winners[low] // BATCH + 1) * BATCH
        self._taken = min(low + n, int(np.searchsorted(self._winners, batch_end)))
        return self._vectors[self._winners[low : self._taken]]

    def ask(self, held: F16, count: int) -> F16:
        """The next arrivals."""
        return np.array(self._vectors[self._arrived : self._arrived + count])

    def lessons(self, held: F16) -> Iterator[F16]:
        """What has arrived and lost, in random order, each once."""
        lost = np.setdiff1d(np.arange(self._arrived), self._winners[: self._taken])
        lost = np.random.default_rng(3).permutation(lost)
        for low in range(0, len(lost), 4 * BATCH):
            yield self._vectors[lost[low : low + 4 * BATCH]]

    @property
    def _arrived(self) -> int:
        return int(self._winners[self._taken - 1]) + 1


def winners_of(vectors: F16, threshold: float) -> I64:
    """(n, d) normalised, in order of arrival → the rows, ascending, that are below the threshold to
    every winner before them. Brute force."""
    winners: list[int] = []
    held = np.empty_like(vectors)
    for low in range(0, len(vectors), 1024):
        batch = vectors[low : low + 1024]
        fresh = np.flatnonzero(first_match(held[: len(winners)], batch, threshold) < 0)
        alike = similarities(batch[fresh], batch[fresh]) >= threshold
        won: list[int] = []
        for k in range(len(fresh)):
            if not alike[k, won].any():
                won.append(k)
        held[len(winners) : len(winners) + len(won)] = batch[fresh[won]]
        winners += (low + fresh[won]).tolist()
    return np.array(winners, np.int64)


def reachable(sizes: list[int], winners: I64, arrivals: int, queries: int) -> list[int]:
    """The sizes after which that many queries still arrive; the first one that is too large becomes
    the largest of those."""
    most = int(np.searchsorted(winners, arrivals - queries))
    return sorted({min(size, most) for size in sizes} - {0})


def first_match(held: F16, queries: F16, threshold: float) -> I64:
    """(n, d) and (m, d) → (m,) lowest row of ``held`` at or above the threshold, −1 for none:
    float32 nominates with a margin, float64 decides."""
    first = np.full(len(queries), -1, np.int64)
    for low in range(0, len(held), 8192):
        rows = held[low : low + 8192].astype(np.float32)
        for at in range(0, len(queries), 1024):
            left = np.flatnonzero(first[at : at + 1024] < 0) + at
            i, j = np.nonzero(queries[left].astype(np.float32) @ rows.T >= threshold - 1e-3)
            exact = similarities_of(queries[left[i]], held[low + j]) >= threshold
            for query, row in zip(left[i[exact]].tolist(), (low + j[exact]).tolist(), strict=True):
                if first[query] < 0:
                    first[query] = row
    return first


def near(rng: np.random.Generator, vectors: F16, cosines: F64) -> F16:
    """For each of (n, d) vectors another one at about that cosine, in a random direction."""
    wide = vectors.astype(np.float32)
    apart = rng.standard_normal(wide.shape, np.float32)
    apart -= np.einsum("ij,ij->i", apart, wide)[:, None] * wide
    cosines = cosines.astype(np.float32)[:, None]
    made: F16 = (cosines * wide + np.sqrt(1 - cosines**2) * _unit(apart)).astype(np.float16)
    return made


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
