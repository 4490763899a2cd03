"""What a dataset is bound to, and what produced its decisions, for manifests and Parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from streamer.config import Config, CustomEmbedder, CustomHead, CustomRule, HeadConfig
from streamer.dedup.meld import VERSION as MELD_VERSION
from streamer.kafka.admin import TopicInfo
from streamer.model.model import Model
from streamer.plugins import files_of
from streamer.redact import digest, redacted
from streamer.wire.claim import DatasetEntry


def binding(config: Config, topic: TopicInfo, model: Model) -> DatasetEntry:
    """What the dataset is bound to for good; a threshold of 0 stands for ``dedup: off``."""
    threshold = 0.0 if config.dedup is None else config.dedup.threshold
    return DatasetEntry(topic.id, model.embedder.fingerprint, model.dim, threshold, MELD_VERSION)


def describe(config: Config, model: Model) -> dict[str, Any]:
    """What every manifest records of how its decisions came about.

    The config alone does not tell: files that it names can be replaced in place. So heads have the
    fingerprints of their weights, and classes of the user's own those of their module and of the
    files among their arguments. ``config`` is a digest over all of it. Nothing secret is in it:
    arguments of classes, and user info in URLs, are digests. Reads these files; raises
    DependencyError for one that cannot be read.
    """
    prints = model.fingerprints
    heads = [{**_public(head), "fingerprint": prints[head.name]} for head in config.heads]
    custom = [
        part
        for part in (config.embedder, *config.heads, *config.filters)
        if isinstance(part, CustomEmbedder | CustomHead | CustomRule)
    ]
    plugins: dict[str, dict[str, str]] = {}
    for part in custom:
        plugins.setdefault(part.type, {}).update(files_of(part.type, part.args))
    decides = [config.digest(), model.embedder.fingerprint, heads, plugins]
    whole = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "config": whole,
        "model": model.embedder.fingerprint,
        "heads": heads,
        "plugins": plugins,
        "code": version("streamer"),
    }


def _public(head: HeadConfig) -> dict[str, Any]:
    """Everybody may read a manifest."""
    told: dict[str, Any] = redacted(head.model_dump(mode="json", exclude={"args"}), digest)
    if isinstance(head, CustomHead):
        told["args"] = digest(head.args)
    return told


def fingerprints(config: Config, pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The Parquet files' schema metadata; ``pipeline`` is what `describe` says."""
    return {
        "model": pipeline["model"],
        "heads": {head["name"]: head["fingerprint"] for head in pipeline["heads"]},
        "config": pipeline["config"],
        "code": pipeline["code"],
        "threshold": "off" if config.dedup is None else repr(config.dedup.threshold),
        "search": "certified" if config.dedup is None else config.dedup.search,
    }
