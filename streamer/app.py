"""One replica, put together: this page reads like "The line" in docs/architecture.md.

    Source ─▶ Decoder ─▶ Batcher ─▶ Judge ─▶ Claims ─▶ Epoch ─▶ Commit
    Kafka     pool       ┗━ device thread ┛   claims     writer   Kafka
    thread                                    thread     thread   thread

A record is polled. The decoder reads its header, lets the cheap filters reject it, and decodes it,
or calls it invalid. Samples gather into a micro-batch; the device embeds and scores it, the filters
reject, the index names what is plainly a duplicate. What is left claims its place in the claim log,
whose order decides who was first. The epoch writes every decision down; once it is sealed on
durable storage, one Kafka transaction makes the epoch and its offsets true together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import webdataset  # noqa: F401 - takes seconds to import: now, and not in the writer thread at the first accepted record

from streamer.config import Config
from streamer.decode.decoder import Decoder
from streamer.dedup.index import WinnerIndex
from streamer.errors import (
    DependencyError,
    Fenced,
    StreamerError,
    Unfinished,
)
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Decided, Fence, Run
from streamer.flow.worker import Failure, Worker
from streamer.judge.ahead import DecodeAhead
from streamer.judge.batcher import Batcher
from streamer.judge.judge import Judge
from streamer.kafka.admin import Admin, TopicInfo
from streamer.kafka.brokers import Brokers
from streamer.kafka.claims import ClaimStage, NoClaims
from streamer.kafka.client import TRANSACTION_TIMEOUT_S, poll_interval_s
from streamer.kafka.commit import KafkaTransactions
from streamer.kafka.source import CHUNK_RECORDS, Source
from streamer.kafka.topics import input_topic
from streamer.model.model import Model, load_model
from streamer.ops.health import Health
from streamer.ops.http import OpsServer, is_free
from streamer.ops.metrics import Metrics
from streamer.ops.watchdog import Watchdog, end_process
from streamer.pauses import Pauses
from streamer.provenance import fingerprints
from streamer.quarantine import Quarantine
from streamer.range import Range, live_range, replay_range
from streamer.replica import DRAIN_DEADLINE_S, Bound, Line, Replica
from streamer.sink.agreement import require_claims
from streamer.sink.engine import CommitEngine
from streamer.sink.epoch import EpochWriter
from streamer.sink.errand import Errands
from streamer.sink.writer import EpochThread
from streamer.skips import Skips
from streamer.start import Ground, Ops, Restored, check, restore
from streamer.wire.manifest import Manifest

log = logging.getLogger("streamer")

DECODE_BYTES, WRITE_BYTES = 256_000_000, 128_000_000
"""What the records take that wait for the decoder's threads, and those that wait for the writer"""
QUEUE_BATCHES = 3
"""Batches of records that may wait for the device: enough to keep it busy, few enough to be cheap
to read again after a rebalance."""
HEARTBEAT_S = 300.0
"""A thread that gives no sign for so long is taken for dead by the liveness probe: longer than any
single step may take."""
CLOSE_LIMIT_S = 20.0
SNAPSHOT_LIMIT_S = 30.0
"""So long a clean end may take for its snapshot, when the group is left and others went on; what is
unfinished then is thrown away."""
COMMIT_LIMIT_S = 90.0
"""The watchdog's budget for one transaction, and beside ``output.retry_for`` for a projection of no
bytes."""
PROJECT_BYTES_PER_S = 10_000_000
"""The watchdog takes a projection that is slower for one that hangs: a disk renames, an object
store copies."""
JOURNAL_LIMIT_S = 5.0
"""So long a process that must end may take to write down why."""
LOOK_S = 1.0
"""How often somebody looks at what is being decoded."""
MAINTAIN_S = 0.2
"""How often the index looks whether there is something to train or to merge."""


def run(config: Config, stop: Callable[[], bool], until: str | float | None = None) -> None:
    """Runs one replica until ``stop()``, or until ``until``: "end" or UTC seconds.

    Blocks. Raises the StreamerError, or the bug, that ended it early; then nothing uncommitted is
    visible.
    """
    run_range(config, lambda admin, topic: live_range(config, admin, topic, until), stop)


def replay(config: Config, stop: Callable[[], bool], first: str, last: str) -> None:
    """Like `run`, over the part of the topic that ``first`` and ``last`` name (`streamer.replay`),
    into a new dataset. Where ``http.port`` is in use, by the live replica for example, it takes a
    free one."""
    if not is_free(config.http):
        log.warning("http.port %d is in use; this replay takes a free one", config.http.port)
        http = config.http.model_copy(update={"port": 0})
        config = config.model_copy(update={"http": http})
    run_range(config, lambda admin, topic: replay_range(config, admin, topic, first, last), stop)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a benchmark of the line may replace or watch."""

    load_model: Callable[[Config], Model] = load_model
    decoder: type[Decoder] = Decoder
    metrics: type[Metrics] = Metrics


PARTS = Parts()


def run_range(
    config: Config,
    choose: Callable[[Admin, TopicInfo], Range],
    stop: Callable[[], bool],
    parts: Parts = PARTS,
) -> None:
    """`run` over the part of the topic that ``choose`` names, step by step. What the steps opened
    is closed last first, however they end."""
    failure = Failure()
    brokers = Brokers(config, failure)
    ops = Ops(
        failure,
        Health(failure, brokers.clock),
        parts.metrics(rule.name for rule in config.filters),
        brokers,
    )
    ops.health.watch_brokers(lambda: brokers.said)
    ops.metrics.watch_brokers(lambda: brokers.away_s)
    with ExitStack() as at_exit:
        server = OpsServer(config.http, ops.metrics, ops.health)
        server.start()
        at_exit.callback(server.close)
        log.info("serving /metrics, /livez and /readyz", extra={"port": server.port})

        # 1. Validate everything before anything is written or anybody is fenced.
        brokers.start()
        at_exit.callback(brokers.close)
        ops.health.enter("looking for the brokers")
        admin = Admin(config.kafka, patience=brokers)
        topic = input_topic(admin, config)
        span = choose(admin, topic)
        ground = check(config, admin, topic, parts.load_model, ops)

        # 2. The claim log says what the dataset is bound to, and holds every decision so far.
        state = restore(ground, at_exit)

        # 3. The line.
        quarantine = Quarantine(config.writer, ground.storage)
        pauses = Pauses(config.writer, ground.storage)
        line, workers = put_together(ground, state, quarantine, pauses, parts.decoder, at_exit)

        # 4. Fence the predecessor, redo or forget what it left behind.
        recovered = recover(ground, state, line, quarantine, pauses, span, at_exit)

        # 5. Join the group, run, leave it, and keep the dedup state for the next start.
        take_part(ground, state, workers, recovered, stop)


def put_together(
    ground: Ground,
    state: Restored,
    quarantine: Quarantine,
    pauses: Pauses,
    decoder_type: type[Decoder],
    at_exit: ExitStack,
) -> tuple[Line, list[Worker]]:
    """The stages in the order a record meets them, and the threads that will run them; none is
    started here.

    Raises ConfigError where a filter of the user's own cannot be made.
    """
    config, model = ground.config, ground.model
    failure, health, metrics = ground.ops.failure, ground.ops.health, ground.ops.metrics
    dedup = config.dedup
    fence = Fence(Run(0, 0))
    chunks: Channel[Chunk] = Channel(
        "decode",
        QUEUE_BATCHES * config.batch.size // CHUNK_RECORDS + config.decode.threads + 2,
        DECODE_BYTES,
    )
    decided: Channel[Decided] = Channel("write", 4, WRITE_BYTES)
    offer = (lambda: None) if state.snapshotter is None else state.snapshotter.offer
    claims = (
        None
        if dedup is None
        else ClaimStage(config, state.claim_log, decided, fence, failure, metrics, offer)
    )
    stage = NoClaims(decided, fence, failure) if claims is None else claims

    rules = ground.rules
    at_exit.callback(rules.finish)
    embedder = model.embedder
    decoder = decoder_type(
        config, embedder.transform, embedder.decode, embedder.draft_size, rules.header_rules, stage.prior, quarantine.condemns, failure,
        lambda: metrics.stage("decode"), metrics.fetch_failed, metrics.fetch_seconds.observe, model.pixels_shape,
        model.jpeg_decoders[0].takes if model.jpeg_decoders else None,
        partial(metrics.images_decoded, "cpu"),
    )  # fmt: skip
    at_exit.callback(decoder.close)
    metrics.watch_held(decoder.held)
    health.watch_held(decoder.held)
    batcher = Batcher(chunks, config.batch.size, config.batch.linger, fence)
    ahead = None
    if model.jpeg_decoders:
        ahead = DecodeAhead(batcher, decoder.decode_here, fence, failure, metrics)
    judge = Judge(
        ahead or batcher, model, rules, None if dedup is None else state.meld, stage,
        dedup is not None and dedup.action == "flag", failure, metrics, health.heartbeat("device", HEARTBEAT_S),
    )  # fmt: skip

    def open_epoch(epoch: int, uuid: str) -> EpochWriter:
        return EpochWriter(
            ground.storage, dataset=config.dataset, writer=config.writer, epoch=epoch, uuid=uuid, topic=config.kafka.topic, dim=model.dim,
            score_names=model.score_names, pipeline=ground.pipeline["config"], limits=config.output, fingerprints=fingerprints(config, ground.pipeline),
        )  # fmt: skip

    epochs = EpochThread(
        config,
        decided,
        fence,
        open_epoch,
        lambda: stage.position,
        pauses.allowed,
        failure,
        metrics,
        health.heartbeat("writer", HEARTBEAT_S),
    )
    metrics.watch_queue(chunks, decided)
    metrics.watch_device_memory(model.memory)
    watch = partial(watch_decoding, decoder, quarantine, config.decode.timeout, failure)
    workers = [
        Worker("device", judge.run, failure),
        Worker("writer", epochs.run, failure),
        Worker("decode watch", watch, failure),
    ]
    if ahead is not None:
        metrics.watch_queue(ahead.ready)
        for i, jpegs in enumerate(model.jpeg_decoders):
            name = f"device decode {i}"
            run = partial(ahead.run, jpegs, health.heartbeat(name, HEARTBEAT_S))
            workers.append(Worker(name, run, failure))
    if claims is not None:
        workers += [
            Worker("claims", claims.run, failure),
            Worker("index", partial(maintain, state.meld.index, failure), failure),
        ]
    return Line(fence, chunks, decoder, stage, epochs), workers


@dataclass(frozen=True, slots=True)
class Recovered:
    """What is ready to join the group, and what it commits with."""

    source: Source
    transactions: KafkaTransactions
    watchdog: Watchdog
    replica: Replica
    bound: Bound
    errands: Errands


def recover(
    ground: Ground,
    state: Restored,
    line: Line,
    quarantine: Quarantine,
    pauses: Pauses,
    span: Range,
    at_exit: ExitStack,
) -> Recovered:
    """Fences the predecessor, redoes or forgets what it left behind. Main thread; blocks until the
    commit log is read to its end.

    Raises Fenced, TemporaryError or DependencyError; ProtocolError where the claim log lacks what
    the commit log knows of.
    """
    config, admin, storage = ground.config, ground.admin, ground.storage
    health, metrics = ground.ops.health, ground.ops.metrics
    health.enter("recovering what an earlier process left")
    brokers = ground.ops.brokers
    watchdog = Watchdog(brokers.clock)
    beat = health.heartbeat("kafka", HEARTBEAT_S)
    source = Source(config, Admin(config.kafka))
    limit = admin.message_limit(config.dead_topic)
    own = (config.commits_topic, *((config.claims_topic,) if config.dedup is not None else ()))
    topics = {ground.topic.name: ground.topic.id, **admin.topic_ids(own)}
    transactions = KafkaTransactions(
        config, admin, source.consumer, limit, span.starts, beat, brokers, topics
    )
    at_exit.callback(transactions.close)

    @contextmanager
    def guarded(step: str, manifest: Manifest) -> Iterator[None]:
        with (
            metrics.stage(step),
            watchdog.limit(
                f"{step} of {manifest.name}", limit_s(step, manifest, config.output.retry_for)
            ),
        ):
            yield

    stale_after_s = (
        2 * (config.output.seal_after + DRAIN_DEADLINE_S)
        + config.output.retry_for
        + TRANSACTION_TIMEOUT_S
    )
    skips = Skips(storage, config.kafka.on_expired == "skip")
    errands = Errands(ground.ops.failure)
    metrics.watch_queue(errands.channel)
    engine = CommitEngine(
        config.dataset, config.writer, transactions, storage, SystemClock(), ground.pipeline, stale_after_s, span.fixed_ends, guarded,
        errands.begin, skips.limit,
    )  # fmt: skip
    with health.unwatched(beat):  # copies may take minutes, and the storage may be away
        engine.recover()
        skips.look()
    if not ground.has_room:
        storage.check_writable()
    storage.clear_probes()
    if (
        engine.claims_position > line.stage.position
    ):  # others went on since; nobody else tails it yet
        state.claim_log.restore(admin, lambda at, end: None)
    if config.dedup is not None:
        require_claims(line.stage.position, engine.claims_position, config.claims_topic)
    line.fence.run = Run(1, engine.next_epoch)

    def show_paused(partitions: Collection[int]) -> None:
        health.paused(partitions)
        metrics.paused(len(partitions))

    replica = Replica(
        source, engine, line, quarantine, pauses, skips, ground.ops.failure, metrics, show_paused, beat, poll_interval_s(config)
    )  # fmt: skip
    bound = Bound(
        span.ends if span.fixed_ends is None else engine.ledger.fixed_ends,
        span.not_before,
        range(ground.topic.partitions),
    )
    return Recovered(source, transactions, watchdog, replica, bound, errands)


def take_part(
    ground: Ground,
    state: Restored,
    workers: Sequence[Worker],
    recovered: Recovered,
    stop: Callable[[], bool],
) -> None:
    """Starts the threads, joins the group, runs until ``stop()`` or the bound, and leaves; then a
    snapshot, if all went well.

    Raises what ended it early: Unfinished where it was stopped before the end that was asked for.
    Whatever it was, the threads have been told to stop and the group is left, or the watchdog
    ends the process.
    """
    failure, health, snapshotter = ground.ops.failure, ground.ops.health, state.snapshotter

    def stopping() -> bool:
        if stop():
            health.enter("draining")
            return True
        return False

    workers = [*workers, Worker("storage", recovered.errands.run, failure)]
    for worker in workers:
        worker.start()
    writing = None if snapshotter is None else Worker("snapshot", snapshotter.run, failure)
    if writing is not None:
        writing.start()
    is_done = False
    try:
        ground.ops.brokers.heed(stopping)
        recovered.source.subscribe(recovered.replica)
        health.enter("polling", ready=True)
        stopped = recovered.replica.run(stopping, recovered.bound)
        is_done = stopped is None and not stop()  # a bounded run reached its end: it comes no more
        health.enter("leaving the group")
    except DependencyError:
        _raise_if_fenced(recovered.transactions, recovered.watchdog)
        raise
    finally:
        failure.stop.set()
        with recovered.watchdog.limit("leaving the group", CLOSE_LIMIT_S):
            for worker in workers:
                worker.join(CLOSE_LIMIT_S / 4)
            recovered.source.close(for_good=is_done)
        recovered.watchdog.close()
    if (
        writing is not None
        and snapshotter is not None
        and not any(worker.is_alive() for worker in workers)
    ):
        health.enter("writing a snapshot of the dedup state")
        snapshotter.finish()
        writing.join(SNAPSHOT_LIMIT_S)
    if log.isEnabledFor(logging.DEBUG) and not any(
        worker.is_alive() for worker in workers
    ):  # reads every winner's vector
        log.debug(
            "claim log melded",
            extra={"position": state.meld.position, "digest": state.meld.digest()},
        )
    if stopped is not None:
        raise Unfinished(stopped.committed, stopped.end)


def limit_s(step: str, manifest: Manifest, retry_for: float) -> float:
    """The watchdog's budget for an epoch's ``commit`` or ``project``; the storage may be away for
    ``retry_for`` seconds."""
    if step != "project":
        return COMMIT_LIMIT_S
    nbytes = sum(file.bytes for file in manifest.files)
    return COMMIT_LIMIT_S + retry_for + nbytes / PROJECT_BYTES_PER_S


def _raise_if_fenced(transactions: KafkaTransactions, watchdog: Watchdog) -> None:
    """What a process of the same name does away with, when it takes over, looks like trouble with
    the storage."""
    with watchdog.limit("asking who took over", CLOSE_LIMIT_S):
        try:
            transactions.confirm()
        except Fenced:
            raise
        except StreamerError as error:
            log.debug("whether another process took over is unknown: %s", error)


def maintain(index: WinnerIndex, failure: Failure) -> None:
    """The index thread: upkeep beside the line."""
    while not failure.stop.is_set():
        if not index.maintain():
            failure.stop.wait(MAINTAIN_S)


def watch_decoding(
    decoder: Decoder, quarantine: Quarantine, timeout_s: float, failure: Failure
) -> None:
    """The thread that ends the process when an image takes longer than ``decode.timeout``: a
    decoder that hangs cannot be interrupted."""
    while not failure.stop.wait(LOOK_S):
        overrun = decoder.overrun(timeout_s / LOOK_S)
        if overrun is not None:
            partition, offset, thread = overrun
            writing = threading.Thread(
                target=quarantine.overran, args=(partition, offset), daemon=True
            )
            writing.start()
            writing.join(JOURNAL_LIMIT_S)
            end_process(
                f"partition {partition}, offset {offset}: the image is being decoded for more than "
                f"decode.timeout = {timeout_s:g} s",
                thread,
            )


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
