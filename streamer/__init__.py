"""streamer curates image-text data from Kafka as it arrives. The base classes for plugins are
importable from here.

They are loaded on first use (PEP 562), so that ``import streamer`` stays cheap.
"""

from __future__ import annotations

# Nothing that the interpreter has not loaded: `python -m streamer` runs this while the working
# directory is first on the import path (`streamer.__main__`).
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamer.judge.filters import Filter
    from streamer.model.embedder import ImageEmbedder
    from streamer.model.head import Head

__all__ = ["Filter", "Head", "ImageEmbedder"]

_HOMES = {
    "Filter": "streamer.judge.filters",
    "Head": "streamer.model.head",
    "ImageEmbedder": "streamer.model.embedder",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
