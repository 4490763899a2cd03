"""A stream of embeddings as they arrive: topics whose sizes follow a power law, that come, move and go; and planted near-duplicates."""

from __future__ import annotations

import numpy as np

from streamer.records import F16, F64

HALF_LIFE = 200_000
"""Vectors after which a topic has moved once, on average."""


class Stream:
    """Unit vectors as fp16. A vector is what all have in common, its topic, something along the main directions of all, and noise."""

    def __init__(self, dim: int, seed: int = 0, topics: int = 4000) -> None:
        self.dim = dim
        self.rng = np.random.default_rng(seed)
        directions = np.linalg.qr(self.rng.standard_normal((dim, dim)))[0]
        self._spectrum = (directions * np.arange(1, dim + 1) ** -0.5).astype(np.float32)  # variance falls as 1 / rank
        self._common = _unit(self.rng.standard_normal((1, dim)).astype(np.float32))
        self._topics = self._directions(topics)
        self._share = np.arange(1, topics + 1) ** -1.0
        self._share /= self._share.sum()
        self.rng.shuffle(self._share)

    def take(self, n: int) -> F16:
        """(n, dim) of the stream as it is now; then topics move as far as n vectors let them."""
        topics = self._topics[self.rng.choice(len(self._topics), n, p=self._share)]
        noise = self.rng.standard_normal((n, self.dim), np.float32) / np.float32(np.sqrt(self.dim))
        vectors = _unit(0.35 * self._common + 0.7 * topics + 0.5 * self._directions(n) + 0.25 * noise)
        moved = self.rng.random(len(self._topics)) < n / HALF_LIFE
        if moved.any():
            self._topics[moved] = _unit(self._topics[moved] + self._directions(int(moved.sum())))
        return vectors.astype(np.float16)

    def _directions(self, n: int) -> np.ndarray:
        return _unit(self.rng.standard_normal((n, self.dim), np.float32) @ self._spectrum.T)


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
