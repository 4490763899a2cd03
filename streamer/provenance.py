"""What a dataset is bound to, and what its files say of how their decisions came about."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from streamer.config import Config
from streamer.dedup.meld import VERSION as MELD_VERSION
from streamer.kafka.admin import TopicInfo
from streamer.model.model import Model
from streamer.wire.claim import DatasetEntry


def binding(config: Config, topic: TopicInfo, model: Model) -> DatasetEntry:
    """What the dataset is bound to for good (section 4.2); a threshold of 0 stands for ``dedup:
    off``."""
    threshold = 0.0 if config.dedup is None else config.dedup.threshold
    return DatasetEntry(topic.id, model.embedder.fingerprint, model.dim, threshold, MELD_VERSION)


def describe(config: Config, model: Model) -> dict[str, Any]:
    """What every manifest records of how its decisions came about."""
    return {
        "config": config.digest(),
        "model": model.embedder.fingerprint,
        "heads": [head.model_dump(mode="json") for head in config.heads],
        "code": version("streamer"),
    }


def fingerprints(config: Config, pipeline: Mapping[str, Any]) -> dict[str, str]:
    """The Parquet files' schema metadata; ``pipeline`` is what `describe` says."""
    threshold = "off" if config.dedup is None else repr(config.dedup.threshold)
    return {
        "model": str(pipeline["model"]), "config": str(pipeline["config"]), "code": str(pipeline["code"]), "threshold": threshold,
        "search": "certified" if config.dedup is None else config.dedup.search,
    }  # fmt: skip
