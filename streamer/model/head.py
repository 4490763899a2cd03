"""What turns a vector into a score: the interface that the shipped heads and every
``pkg.mod:Class`` fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from streamer.model.embedder import move

if TYPE_CHECKING:
    import torch


class Head(ABC):
    """One score per vector. Made once at start-up; the score is the field and column
    ``NAME_score``."""

    name: str
    """From the config; set by the loader after ``__init__`` for a custom class."""
    dim: int
    """Length of the vectors it takes; another embedder is a start-up error."""
    requires_normalized: bool = True
    """True: it was trained on vectors of length 1."""
    range: tuple[float, float] | None = None
    """Nominal (lowest, highest) score, for people; scores are written as they are, never clipped."""
    families: frozenset[str] = frozenset()
    """`ImageEmbedder.family` values it was trained for; empty: any."""
    fingerprint: str = ""
    """``sha256:…`` over its weights, for the manifest. Empty: over the tensors and modules that it
    holds as attributes once it is made."""

    @abstractmethod
    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, `dim`) float32 → (n,) float32, raw, on the same device; NaN fails every rule. The
        device thread only; it must not block.

        What it raises is treated as what `ImageEmbedder.embed` raises; the reason of the one record
        is ``head_failed``.
        """

    def place(self, device: torch.device) -> None:
        """Called once, before the first `score`. The base class moves every attribute that is a
        tensor or a torch module."""
        move(self, device)
