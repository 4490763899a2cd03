"""What a start checks and opens (`check`), and the dedup state that it reads (`restore`), before
anybody is fenced or the group joined.

Both belong to the main thread, and come before any other thread of the line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from streamer.config import Config
from streamer.decode.reader import require_folders
from streamer.dedup.choose import open_index
from streamer.dedup.index import WinnerIndex
from streamer.dedup.meld import Meld
from streamer.flow.worker import Failure
from streamer.judge.filters import Rules
from streamer.kafka.admin import Admin, TopicInfo
from streamer.kafka.brokers import Brokers
from streamer.kafka.claim_log import ClaimLog
from streamer.kafka.log import LogReader
from streamer.kafka.snapshotter import Snapshotter
from streamer.model.model import Model
from streamer.ops.health import Health
from streamer.ops.metrics import Metrics
from streamer.provenance import binding, describe
from streamer.sink.agreement import Comparison, require_claims, require_no_offsets
from streamer.sink.patience import Patience
from streamer.sink.snapshots import open_snapshots
from streamer.sink.storage import Storage
from streamer.wire.manifest import decode

log = logging.getLogger("streamer")


@dataclass(frozen=True, slots=True)
class Ops:
    """What any thread failed with, what the probes answer, what is counted, whether brokers
    answer."""

    failure: Failure
    health: Health
    metrics: Metrics
    brokers: Brokers


@dataclass(frozen=True, slots=True)
class Ground:
    """What was checked and opened: every later step stands on it."""

    config: Config
    admin: Admin
    topic: TopicInfo
    storage: Storage
    has_room: bool
    """False: at the start the disk was full, perhaps of what is deleted when the writer recovers."""
    rules: Rules
    model: Model
    index: WinnerIndex
    """Empty."""
    pipeline: Mapping[str, Any]
    """What every manifest records of how its decisions came about."""
    ops: Ops


@dataclass(frozen=True, slots=True)
class Restored:
    """The dedup state at the end that the claim log had. With ``dedup: off`` nothing will be added
    to it."""

    meld: Meld
    claim_log: ClaimLog
    snapshotter: Snapshotter | None
    """None: ``dedup: off`` or ``dedup.snapshots: off``."""


def check(
    config: Config, admin: Admin, topic: TopicInfo, load_model: Callable[[Config], Model], ops: Ops
) -> Ground:
    """Validates everything before anything is written, but for the dataset's own topics, which are
    made last.

    Blocks while weights are fetched and the model is loaded. Raises ConfigError, DependencyError.
    """
    require_folders(config.fetch)
    # First of all the filters: what is recorded of the pipeline needs their modules.
    rules = Rules(config.filters, config.output.formats, (head.name for head in config.heads))
    patience = Patience(
        config.output.retry_for,
        ops.failure.stop.is_set,
        ops.metrics.storage_retried,
        ops.health.excuse,
        "output.retry_for",
    )
    ops.health.watch_storage(lambda: patience.away_s)
    ops.metrics.watch_storage(lambda: patience.away_s)
    storage = Storage(config.output.path, config.dataset, patience)
    if not (has_room := storage.has_room(config.writer)):
        log.warning(
            "the disk is full, perhaps of what an earlier process left in .staging: what was not committed of it is deleted first"
        )
    ops.health.enter("loading the model")
    log.info("loading the model; weights that are not here yet are fetched")
    model = load_model(config)
    log.info(
        "the model is ready",
        extra={"device": str(model.device), "dim": model.dim, "heads": list(model.score_names)},
    )
    index = make_index(config, model)
    pipeline = describe(config, model)
    require_logs(config, admin, topic, storage)
    admin.ensure_dataset_topics(config)
    return Ground(config, admin, topic, storage, has_room, rules, model, index, pipeline, ops)


def require_logs(config: Config, admin: Admin, topic: TopicInfo, storage: Storage) -> None:
    """Neither the commit log nor the claim log is missing while something else tells of them: made
    again they would be empty. Blocks; raises ProtocolError, DependencyError."""
    missing = admin.check_dataset_topics(config)
    if config.commits_topic in missing:
        Comparison(config.commits_topic, storage, storage.projected()).unprojected()
        committed = admin.committed(config.group, topic.name, range(topic.partitions))
        require_no_offsets(config.dataset, {p: found.offset for p, found in committed.items()})
    elif config.claims_topic in missing and config.dedup is not None:
        with LogReader(config, admin, config.commits_topic) as log:
            entries = (decode(message.value() or b"") for message in log.read())
            needed = max((manifest.claims_position for manifest in entries), default=0)
        require_claims(0, needed, config.claims_topic)


def restore(ground: Ground, at_exit: ExitStack) -> Restored:
    """Reads the newest snapshot, then the rest of the claim log; binds a dataset that is new.
    Blocks until the log's end is read.

    Raises DatasetMismatch where the dataset is bound to something else, ProtocolError,
    DependencyError.
    """
    config, admin, health, metrics = (
        ground.config,
        ground.admin,
        ground.ops.health,
        ground.ops.metrics,
    )
    health.enter("restoring the claim log")
    began = time.monotonic()
    meld = Meld(
        ground.model.dim,
        threshold_of(config),
        ground.index,
        capacity=None if config.dedup is None else config.dedup.capacity,
    )
    bound_to = binding(config, ground.topic, ground.model)
    limit = admin.message_limit(config.claims_topic)
    claim_log = ClaimLog(config, meld, bound_to, limit, ground.ops.brokers)
    at_exit.callback(claim_log.close)
    snapshotter, used = None, None
    if (
        snapshots := open_snapshots(config, bound_to, admin.topic_id(config.claims_topic))
    ) is not None and config.dedup is not None:
        health.enter("reading a snapshot of the dedup state")
        used = claim_log.resume(admin, snapshots)
        snapshotter = Snapshotter(snapshots, claim_log, config.dedup.snapshot_every, metrics, used)
    claim_log.restore(
        admin, lambda at, end: health.enter(f"restoring the claim log: {at} of {end} entries")
    )
    log.info("restored the dedup state", extra={
        "snapshot": 0 if used is None else used.position, "position": meld.position, "winners": len(meld), "seconds": round(time.monotonic() - began, 3),
    })  # fmt: skip
    metrics.watch_index(
        lambda: {"vectors": len(meld), "evicted_vectors": meld.evicted, **ground.index.gauges()}
    )
    return Restored(meld, claim_log, snapshotter)


def make_index(config: Config, model: Model) -> WinnerIndex:
    """Empty; on the model's device unless ``dedup.device`` says otherwise. Raises ConfigError for a
    device that is not there."""
    from streamer.model.device import choose

    dedup = config.dedup
    device = str(
        model.device
        if dedup is None or dedup.device == "auto"
        else choose(dedup.device, "dedup.device")
    )
    train_at = None if dedup is None or dedup.train_at == "auto" else dedup.train_at
    return open_index(
        model.dim,
        threshold_of(config),
        device,
        dedup is not None and dedup.probe == "calibrated",
        train_at,
    )


def threshold_of(config: Config) -> float:
    return 1.0 if config.dedup is None else config.dedup.threshold
