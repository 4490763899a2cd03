"""One replica, put together: this page reads like section 2 of the design.

    Source ─▶ Decoder ─▶ Batcher ─▶ Judge ─▶ Claims ─▶ Epoch ─▶ Commit
    Kafka     pool       ┗━ device thread ┛   claims     writer   Kafka
    thread                                    thread     thread   thread

A record is polled. The decoder reads its header, lets the cheap filters reject it, and decodes it, or calls it invalid.
Samples gather into a micro-batch; the device embeds and scores it, the filters reject, the index names what is plainly a
duplicate. What is left claims its place in the claim log, whose order decides who was first. The epoch writes every
decision down; once it is sealed on durable storage, one Kafka transaction makes the epoch and its offsets true together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import webdataset  # noqa: F401 - takes seconds to import: now, and not in the writer thread at the first accepted record

from streamer.config import Config
from streamer.decode.decoder import Decoder
from streamer.dedup.choose import open_index
from streamer.dedup.index import WinnerIndex
from streamer.dedup.meld import VERSION as MELD_VERSION
from streamer.dedup.meld import Meld
from streamer.errors import ConfigError, DependencyError, Fenced, ProtocolError, StreamerError
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Decided, Fence, Run
from streamer.flow.worker import Failure, Worker
from streamer.judge.batcher import Batcher
from streamer.judge.filters import Rules
from streamer.judge.judge import Judge
from streamer.kafka.admin import Admin, TopicInfo
from streamer.kafka.claim_log import ClaimLog
from streamer.kafka.claims import ClaimStage, NoClaims
from streamer.kafka.client import TRANSACTION_TIMEOUT_S, poll_interval_s
from streamer.kafka.commit import KafkaTransactions, founding_manifest
from streamer.kafka.snapshotter import Snapshotter
from streamer.kafka.source import CHUNK_RECORDS, Source
from streamer.kafka.topics import configured_starts, input_topic
from streamer.model.model import Model, load_model
from streamer.ops.health import Health
from streamer.ops.http import OpsServer
from streamer.ops.metrics import Metrics
from streamer.ops.watchdog import Watchdog
from streamer.replay import end_offsets, first_offsets
from streamer.replica import DRAIN_DEADLINE_S, Bound, Line, Replica
from streamer.sink.engine import CommitEngine
from streamer.sink.epoch import EpochWriter
from streamer.sink.ledger import Ledger
from streamer.sink.snapshots import open_snapshots
from streamer.sink.storage import Storage
from streamer.sink.writer import EpochThread
from streamer.wire.claim import DatasetEntry
from streamer.wire.manifest import Manifest

log = logging.getLogger("streamer")

QUEUE_BYTES = 256_000_000
"""Raw image bytes in the decode queue, and again in the writer's."""
QUEUE_BATCHES = 3
"""Batches of records that may wait for the device: enough to keep it busy, few enough to be cheap to read again after a rebalance."""
HEARTBEAT_S = 300.0
"""A thread that gives no sign for so long is taken for dead by the liveness probe: longer than any single step may take."""
CLOSE_LIMIT_S = 20.0
SNAPSHOT_LIMIT_S = 30.0
"""So long a clean end may take for its snapshot, when the group is left and others went on; what is unfinished then is thrown away."""
COMMIT_LIMIT_S = 90.0
"""The watchdog's budget for one transaction, and for a projection of no bytes."""
PROJECT_BYTES_PER_S = 10_000_000
"""The watchdog takes a projection that is slower for one that hangs: a disk renames, an object store copies."""
MAINTAIN_S = 0.2
"""How often the index looks whether there is something to train or to merge."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


Offsets = Callable[[Collection[int]], Mapping[int, int]]
"""Partitions → an offset of each."""


@dataclass(frozen=True, slots=True)
class Range:
    """The part of the topic that a replica reads."""

    starts: Offsets
    """Where a new dataset begins."""
    ends: Offsets | None = None
    """Where a bounded run stops; None: nowhere."""
    not_before: float = 0.0
    """UTC seconds: `ends` is asked from then on."""
    fixed_ends: Callable[[Mapping[int, int]], Mapping[int, int]] | None = None
    """A replay's end for given starts: asked once, when the dataset is founded, and kept in its first manifest."""


def run(config: Config, stop: Callable[[], bool], until: str | float | None = None) -> None:
    """Runs one replica until ``stop()``, or until ``until``: "end" or UTC seconds.

    Blocks. Raises the StreamerError, or the bug, that ended it early; then nothing uncommitted is visible.
    """
    admin = Admin(config.kafka)
    topic = input_topic(admin, config)

    def ends(partitions: Collection[int]) -> Mapping[int, int]:
        if until is None or until == "end":
            return admin.end_offsets(topic.name, partitions, committed=False)
        return admin.offsets_at(topic.name, partitions, round(float(until) * 1000))

    starts = partial(configured_starts, admin, config)
    not_before = 0.0 if until is None or until == "end" else float(until)
    run_range(config, admin, topic, Range(starts, None if until is None else ends, not_before), stop)


def replay(config: Config, stop: Callable[[], bool], first: str, last: str) -> None:
    """Like `run`, over the part of the topic that ``first`` and ``last`` name (`streamer.replay`), into a new dataset."""
    admin = Admin(config.kafka)
    topic = input_topic(admin, config)
    starts = first_offsets(first, admin, topic.name, range(topic.partitions))
    ends = end_offsets(last, starts, admin, topic.name)  # a wrong --until ends here, before anything is written
    founded = founding_manifest(config, admin)
    if founded is not None:  # and so does the name of a dataset that is no replay's, before its group is joined
        ledger = Ledger()
        ledger.apply(founded)
        fixed = ledger.fixed_ends(ledger.tiles)
        begun = {p: first for p, (first, _) in ledger.tiles.items()}
        log.info("this replay was begun before; it keeps the range that it was begun with", extra={"starts": begun, "ends": fixed})
    elif all(ends[p] == start for p, start in starts.items()):
        raise ConfigError(f"--from, --until: no record of {topic.name} lies between them; nothing was begun, and the name is still free")
    span = Range(lambda _: starts, fixed_ends=lambda founded: end_offsets(last, founded, admin, topic.name))
    run_range(config, admin, topic, span, stop)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a benchmark of the line may replace or watch."""

    load_model: Callable[[Config], Model] = load_model
    decoder: type[Decoder] = Decoder
    metrics: type[Metrics] = Metrics


PARTS = Parts()


def run_range(config: Config, admin: Admin, topic: TopicInfo, span: Range, stop: Callable[[], bool], parts: Parts = PARTS) -> None:
    """`run` over a given part of the topic."""
    failure = Failure()
    with ExitStack() as at_exit:
        health, metrics = Health(failure), parts.metrics(rule.name for rule in config.filters)
        server = OpsServer(config.http, metrics, health)
        server.start()
        at_exit.callback(server.close)
        log.info("serving /metrics, /livez and /readyz", extra={"port": server.port})

        # 1. Validate everything before anything is written or anybody is fenced.
        storage = Storage(config.output.path, config.dataset)
        if not (has_room := storage.has_room(config.writer)):
            log.warning(
                "the disk is full, perhaps of what an earlier process left in .staging: what was not committed of it is deleted first"
            )
        health.enter("loading the model")
        log.info("loading the model; weights that are not here yet are fetched")
        model = parts.load_model(config)
        log.info("the model is ready", extra={"device": str(model.device), "dim": model.dim, "heads": list(model.score_names)})
        admin.ensure_dataset_topics(config)

        # 2. The claim log says what the dataset is bound to, and holds every decision so far.
        health.enter("restoring the claim log")
        began = time.monotonic()
        fence = Fence(Run(0, 0))
        chunks: Channel[Chunk] = Channel(
            "decode", QUEUE_BATCHES * config.batch.size // CHUNK_RECORDS + config.decode.threads + 2, QUEUE_BYTES
        )
        decided: Channel[Decided] = Channel("write", 4, QUEUE_BYTES)
        index = make_index(config, model)
        meld = Meld(model.dim, threshold_of(config), index, capacity=None if config.dedup is None else config.dedup.capacity)
        bound_to = binding(config, topic, model)
        claim_log = ClaimLog(config, meld, bound_to, admin.message_limit(config.claims_topic))
        at_exit.callback(claim_log.close)
        snapshotter, used = None, None
        if (snapshots := open_snapshots(config, bound_to, admin.topic_id(config.claims_topic))) is not None and config.dedup is not None:
            health.enter("reading a snapshot of the dedup state")
            used = claim_log.resume(admin, snapshots)
            snapshotter = Snapshotter(snapshots, claim_log, config.dedup.snapshot_every, metrics, used)
        claim_log.restore(admin, lambda at, end: health.enter(f"restoring the claim log: {at} of {end} entries"))
        log.info("restored the dedup state", extra={
            "snapshot": 0 if used is None else used.position, "position": meld.position, "winners": len(meld), "seconds": round(time.monotonic() - began, 3),
        })  # fmt: skip
        metrics.watch_index(lambda: {"vectors": len(meld), "evicted_vectors": meld.evicted, **index.gauges()})
        offer = (lambda: None) if snapshotter is None else snapshotter.offer
        stage = (
            NoClaims(decided, fence, failure)
            if config.dedup is None
            else ClaimStage(config, claim_log, decided, fence, failure, metrics, offer)
        )

        # 3. The line.
        rules = Rules(config.filters, config.output.formats, (head.name for head in config.heads))
        embedder = model.embedder
        decoder = parts.decoder(
            config, embedder.transform, embedder.decode, embedder.draft_size, rules.header_rules, stage.prior, failure,
            lambda: metrics.stage("decode"), metrics.fetch_failed, metrics.fetch_seconds.observe, model.pixels_shape,
        )  # fmt: skip
        at_exit.callback(decoder.close)
        judge = Judge(
            Batcher(chunks, config.batch.size, config.batch.linger, fence), model, rules, None if config.dedup is None else meld, stage,
            config.dedup is not None and config.dedup.action == "flag", failure, metrics, health.heartbeat("device", HEARTBEAT_S),
        )  # fmt: skip
        pipeline = describe(config, model)

        def open_epoch(epoch: int, uuid: str) -> EpochWriter:
            return EpochWriter(
                storage, dataset=config.dataset, writer=config.writer, epoch=epoch, uuid=uuid, topic=config.kafka.topic, dim=model.dim,
                score_names=model.score_names, pipeline=pipeline["config"], limits=config.output, fingerprints=fingerprints(config, pipeline),
            )  # fmt: skip

        epochs = EpochThread(
            config, decided, fence, open_epoch, lambda: stage.position, failure, metrics, health.heartbeat("writer", HEARTBEAT_S)
        )
        line = Line(fence, chunks, decoder, stage, epochs)
        metrics.watch_queue(chunks, decided)
        metrics.watch_device_memory(model.memory)

        # 4. Fence the predecessor, redo or forget what it left behind, join the group.
        health.enter("recovering what an earlier process left")
        watchdog = Watchdog()
        beat = health.heartbeat("kafka", HEARTBEAT_S)
        source = Source(config)
        transactions = KafkaTransactions(config, admin, source.consumer, admin.message_limit(config.dead_topic), span.starts, beat)
        at_exit.callback(transactions.close)

        @contextmanager
        def guarded(step: str, manifest: Manifest) -> Iterator[None]:
            with metrics.stage(step), watchdog.limit(f"{step} of {manifest.name}", limit_s(step, manifest)):
                yield

        stale_after_s = 2 * (config.output.seal_after + DRAIN_DEADLINE_S) + TRANSACTION_TIMEOUT_S
        engine = CommitEngine(
            config.dataset, config.writer, transactions, storage, SystemClock(), pipeline, stale_after_s, span.fixed_ends, guarded
        )  # fmt: skip
        engine.recover()
        if not has_room:
            storage.check_writable()
        if engine.claims_position > stage.position:  # others went on since; nobody else tails it yet
            claim_log.restore(admin, lambda at, end: None)
        if engine.claims_position > stage.position and config.dedup is not None:
            raise ProtocolError(
                f"{config.claims_topic}: the claim log ends at position {stage.position}, but the commit log knows it up to {engine.claims_position}: it was deleted "
                "or made again. Restore the topic, or continue with a new dataset name."
            )
        fence.run = Run(1, engine.next_epoch)
        replica = Replica(source, engine, line, failure, metrics, beat, poll_interval_s(config))

        def stopping() -> bool:
            if stop():
                health.enter("draining")
                return True
            return False

        workers = [Worker("device", judge.run, failure), Worker("writer", epochs.run, failure)]
        if isinstance(stage, ClaimStage):
            workers += [Worker("claims", stage.run, failure), Worker("index", partial(maintain, index, failure), failure)]
        for worker in workers:
            worker.start()
        writing = None if snapshotter is None else Worker("snapshot", snapshotter.run, failure)
        if writing is not None:
            writing.start()
        try:
            source.subscribe(replica)
            health.enter("polling", ready=True)
            replica.run(stopping, Bound(span.ends if span.fixed_ends is None else engine.ledger.fixed_ends, span.not_before))
            health.enter("leaving the group")
        except DependencyError:
            _raise_if_fenced(transactions, watchdog)
            raise
        finally:
            failure.stop.set()
            with watchdog.limit("leaving the group", CLOSE_LIMIT_S):
                for worker in workers:
                    worker.join(CLOSE_LIMIT_S / 4)
                source.close()
            watchdog.close()
        if writing is not None and snapshotter is not None and not any(worker.is_alive() for worker in workers):
            health.enter("writing a snapshot of the dedup state")
            snapshotter.finish()
            writing.join(SNAPSHOT_LIMIT_S)
        if log.isEnabledFor(logging.DEBUG) and not any(worker.is_alive() for worker in workers):  # reads every winner's vector
            log.debug("claim log melded", extra={"position": meld.position, "digest": meld.digest()})


def limit_s(step: str, manifest: Manifest) -> float:
    """The watchdog's budget for an epoch's ``commit`` or ``project``."""
    nbytes = sum(file.bytes for file in manifest.files) if step == "project" else 0
    return COMMIT_LIMIT_S + nbytes / PROJECT_BYTES_PER_S


def _raise_if_fenced(transactions: KafkaTransactions, watchdog: Watchdog) -> None:
    """What a process of the same name does away with, when it takes over, looks like trouble with the storage."""
    with watchdog.limit("asking who took over", CLOSE_LIMIT_S):
        try:
            transactions.confirm()
        except Fenced:
            raise
        except StreamerError as error:
            log.debug("whether another process took over is unknown: %s", error)


def threshold_of(config: Config) -> float:
    return 1.0 if config.dedup is None else config.dedup.threshold


def make_index(config: Config, model: Model) -> WinnerIndex:
    """Empty; on the model's device unless ``dedup.device`` says otherwise."""
    dedup = config.dedup
    device = str(model.device) if dedup is None or dedup.device == "auto" else dedup.device
    train_at = None if dedup is None or dedup.train_at == "auto" else dedup.train_at
    return open_index(model.dim, threshold_of(config), device, dedup is not None and dedup.probe == "calibrated", train_at)


def maintain(index: WinnerIndex, failure: Failure) -> None:
    """The index thread: upkeep beside the line."""
    while not failure.stop.is_set():
        if not index.maintain():
            failure.stop.wait(MAINTAIN_S)


def binding(config: Config, topic: TopicInfo, model: Model) -> DatasetEntry:
    """What the dataset is bound to for good (section 4.2); a threshold of 0 stands for ``dedup: off``."""
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
    """The Parquet files' schema metadata."""
    threshold = "off" if config.dedup is None else repr(config.dedup.threshold)
    return {
        "model": str(pipeline["model"]), "config": str(pipeline["config"]), "code": str(pipeline["code"]), "threshold": threshold,
        "search": "certified" if config.dedup is None else config.dedup.search,
    }  # fmt: skip
