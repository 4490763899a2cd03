"""What Prometheus sees. Everything that claims a result is counted after the commit that made it
true.

One registry of our own, so that a plugin's metrics and ours never collide. Label values come from
closed lists or from the config; whatever else arrives is counted as ``other``, so that no record
can create a series. Each metric's help text says what a rise means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from streamer.errors import INVALID_REASONS, STORAGE_CAUSES
from streamer.ops.collector import BulkHistogram, Scraped
from streamer.ops.tally import EpochTally
from streamer.ops.thread_cpu import ThreadCpu
from streamer.records import FORMAT_RULE, NEAR_DUPLICATE

STAGES = (
    "decode",
    "device_decode",
    "embed",
    "filter",
    "claim",
    "write",
    "seal",
    "commit",
    "project",
)
DROP_CAUSES = ("revoked", "shutdown", "lost", "aborted", "stale", "late", "flood")
"""Why an open epoch was forgotten: the deadline of a revoke or of a shutdown passed, its partitions
were lost, its transaction was aborted, its term or first offset was no longer the current one, or a
file of it was gone, it was too old when it could be committed, or too many records of a partition
were invalid, which is paused then."""
SKIP_CAUSES = ("expired", "seek", "unreadable")
"""Why offsets were never decided: their records expired, somebody moved the dataset forward, or a
batch could not be read."""
DECODERS = ("cpu", "gpu")
REBALANCES = ("assigned", "revoked", "lost")
FETCH_ERRORS = (
    "uri_not_allowed",
    "not_found",
    "fetch_refused",
    "unreachable",
    "length_mismatch",
    "sha256_mismatch",
    "too_many_bytes",
    "temporary",
)
"""The reasons of `INVALID_REASONS` that a fetch can have, and what is tried again."""
INDEX = {
    "vectors": "Vectors in the near-duplicate index; memory and search time rise with it.",
    "evicted_vectors": "Vectors forgotten because of dedup.capacity; what resembles them is new again.",
    "base_vectors": "Vectors in the lists of the index; those it holds beyond them are compared one by one.",
    "lists": "k-means cells of the index; 0 until there are enough vectors to train on.",
    "imbalance": "What the sizes of the cells cost, 1 if all were equal; above 2 the index trains again.",
    "nominees": "Vectors that a search compared in vain for each record, of late; above 8 the index trains again.",
    "trainings": "How often the index made its cells anew since the process began.",
    "longest_wait_seconds": "The longest a search waited for the upkeep of the index since the process began.",
    "rho": "Share of the certain bound that a search looks at; 1 unless dedup.probe is calibrated.",
    "recall": "Share of the audited near-duplicates that a calibrated search found; 1 where all searches are certified.",
    "recall_low": "Lower end of the 95 % interval of streamer_index_recall; low means that the data has changed.",
}
"""Gauges of the near-duplicate index, each named ``streamer_index_…``, and what they say."""
OTHER = "other"

_LATENCY_S = (
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    20,
    30,
    60,
    90,
    120,
    300,
    600,
    1800,
    3600,
    21600,
    86400,
)
_CLAIM_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_FETCH_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Queue(Protocol):
    """What a queue shows, as `streamer.flow.channel.Channel` does. Read at scrape time, from the
    HTTP thread."""

    name: str

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Metrics:
    """The metrics of one process. Every method is safe to call from any thread, and none blocks.

    ``rules``: the names of the configured filters; with `INVALID_REASONS`, ``format`` and
    ``near_duplicate`` they are all the values that the label ``reason`` can take (an accepted
    record's is empty).
    """

    def __init__(self, rules: Iterable[str] = ()) -> None:
        # The library has no narrower switch than this one for the whole process; each counter's
        # `_created` would double our series.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        self._queues: tuple[Queue, ...] = ()
        self._lag: Mapping[int, int] = {}
        self._oldest_ms = 0
        self._opened_at = 0.0
        self._device_memory: Callable[[], Mapping[str, float]] = dict
        self._index: Callable[[], Mapping[str, float]] = dict
        self._held: Callable[[], Mapping[str, int]] = dict
        self._storage_away_s: Callable[[], float] = lambda: 0.0
        self._brokers_away_s: Callable[[], float] = float
        self._snapshot_created = 0.0
        self._make_line()
        self._make_commit(
            {("accepted", ""), ("duplicate", NEAR_DUPLICATE)}
            | {("filtered", rule) for rule in (FORMAT_RULE, *rules)}
        )
        self._make_rebalance()
        self._make_dependencies()
        self._make_process()

    def _make_line(self) -> None:
        stages = Counter(
            "streamer_stage_seconds",
            "Seconds spent in each stage, summed over its threads; the stage that rises fastest limits the replica.",
            ["stage"],
            registry=self.registry,
        )
        self._stage_seconds = {stage: stages.labels(stage) for stage in STAGES}
        self.batch_records = Histogram(
            "streamer_batch_records",
            "Records in each micro-batch; small batches while the lag grows mean that decoding is the limit.",
            buckets=_BATCH,
            registry=self.registry,
        )
        images = Counter(
            "streamer_images_decoded",
            "Images by decoder; where cpu rises beside gpu, they are no baseline JPEGs, "
            "or damaged.",
            ["decoder"],
            registry=self.registry,
        )
        self._images = {decoder: images.labels(decoder) for decoder in DECODERS}
        self.batches_in_flight = Gauge(
            "streamer_batches_in_flight",
            "Micro-batches on the device; 0 or 1 while the lag grows: it waits for decoding.",
            registry=self.registry,
        )
        self.registry.register(Scraped(self._scrape_index))
        self._snapshot_position = Gauge(
            "streamer_snapshot_position",
            "Claim log position of the newest snapshot of the dedup state; a start reads what comes after it.",
            registry=self.registry,
        )
        self._snapshot_bytes = Gauge(
            "streamer_snapshot_bytes", "Bytes of the newest snapshot.", registry=self.registry
        )
        self._snapshot_seconds = Gauge(
            "streamer_snapshot_seconds",
            "Seconds that writing the newest snapshot took; a rise is the storage's.",
            registry=self.registry,
        )
        self._snapshot_failures = Counter(
            "streamer_snapshot_failures",
            "Snapshots that could not be written; a rise makes the next start longer, and nothing else.",
            registry=self.registry,
        )
        self.registry.register(Scraped(self._scrape_queues))

    def _make_commit(self, decisions: set[tuple[str, str]]) -> None:
        self._records_consumed = Counter(
            "streamer_records_consumed",
            "Records whose decision is committed; flat while the lag grows means that nothing is being committed.",
            registry=self.registry,
        )
        self._decisions = Counter(
            "streamer_decisions",
            "Committed decisions; a rising share of invalid points to a producer or a decoder.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        # All known series from the start: a rate never sees the first step of one that appears with
        # its first record.
        self._decision = {
            key: self._decisions.labels(*key)
            for key in sorted(decisions | {("invalid", reason) for reason in INVALID_REASONS})
        }
        self._epochs_committed = Counter(
            "streamer_epochs_committed",
            "Epochs committed; it stops rising when sealing or committing fails.",
            registry=self.registry,
        )
        self._dead_letters = Counter(
            "streamer_dead_letters",
            "Messages committed to the dead-letter topic; a rise is invalid records.",
            registry=self.registry,
        )
        self._end_to_end = BulkHistogram(
            "streamer_end_to_end_seconds",
            "Seconds from a record's timestamp to its commit; what is above output.seal_after was spent waiting in the topic.",
            _LATENCY_S,
        )
        self.registry.register(self._end_to_end)
        self._epoch_records = Gauge(
            "streamer_epoch_records",
            "Records in the open epoch; it falls to 0 at each seal, and one that does not cannot be sealed.",
            registry=self.registry,
        )
        self._epoch_bytes = Gauge(
            "streamer_epoch_bytes",
            "Bytes in the open epoch's files; it falls to 0 at each seal.",
            registry=self.registry,
        )
        self.registry.register(Scraped(self._scrape_lag))

    def _make_rebalance(self) -> None:
        dropped = Counter(
            "streamer_epochs_dropped",
            "Uncommitted epochs that were forgotten and are read again; a rise is work done twice.",
            ["cause"],
            registry=self.registry,
        )
        rewinds = Counter(
            "streamer_rewinds",
            "Partitions rewound to their committed offset; a rise is work done twice.",
            ["cause"],
            registry=self.registry,
        )
        self._drop = {
            cause: (dropped.labels(cause), rewinds.labels(cause)) for cause in (*DROP_CAUSES, OTHER)
        }
        rebalances = Counter(
            "streamer_rebalances",
            "Partitions gained and given up; a rise without a deployment means that members time out.",
            ["event"],
            registry=self.registry,
        )
        self._rebalance = {event: rebalances.labels(event) for event in REBALANCES}
        self._partitions = Gauge(
            "streamer_partitions_assigned",
            "Partitions that this replica owns; 0 means that it is a spare, or lost them.",
            registry=self.registry,
        )
        skipped = Counter(
            "streamer_skipped_offsets",
            "Offsets that are skipped for good: what records they held is lost to the dataset.",
            ["cause"],
            registry=self.registry,
        )
        self._skipped = {cause: skipped.labels(cause) for cause in SKIP_CAUSES}
        self._paused = Gauge(
            "streamer_partitions_paused",
            "Partitions of this replica that are not read because too many records were invalid; they wait for somebody to look.",
            registry=self.registry,
        )

    def _make_dependencies(self) -> None:
        self.claim_round_trip = Histogram(
            "streamer_claim_round_trip_seconds",
            "Seconds from writing a batch's claims to reading them back; a rise is the brokers' load.",
            buckets=_CLAIM_S,
            registry=self.registry,
        )
        self.claims_void = Counter(
            "streamer_claims_void",
            "Claims that did not count and are made again; a rise without a rebalance means reading the claim log too slowly.",
            registry=self.registry,
        )
        self.fetch_seconds = Histogram(
            "streamer_fetch_seconds",
            "Seconds to fetch an image by reference; a rise is the image servers' latency.",
            buckets=_FETCH_S,
            registry=self.registry,
        )
        errors = Counter(
            "streamer_fetch_errors",
            "Fetches that failed; temporary ones are tried again, all others make the record invalid.",
            ["cause"],
            registry=self.registry,
        )
        self._fetch_error = {cause: errors.labels(cause) for cause in (*FETCH_ERRORS, OTHER)}
        self.registry.register(Scraped(self._scrape_held))
        retries = Counter(
            "streamer_storage_retries",
            "Requests to the storage of the output that failed and are tried again; the log says once that it is away.",
            ["cause"],
            registry=self.registry,
        )
        self._storage_retry = {cause: retries.labels(cause) for cause in STORAGE_CAUSES}
        self.registry.register(Scraped(self._scrape_storage))

    def _make_process(self) -> None:
        self.registry.register(ThreadCpu())
        self.registry.register(Scraped(self._scrape_device))
        ProcessCollector(registry=self.registry)
        try:
            code = version("streamer")
        except PackageNotFoundError:  # run from a source tree that was never installed
            code = "unknown"
        Info("streamer_build", "The code that runs here.", registry=self.registry).info(
            {"version": code}
        )

    # The line

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the body's wall-clock seconds to one of `STAGES`; also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stage_seconds[name].inc(time.perf_counter() - began)

    def images_decoded(self, decoder: str, images: int = 1) -> None:
        """``images`` were decoded, or found damaged, by one of `DECODERS`. Any thread."""
        self._images[decoder].inc(images)

    def watch_queue(self, *queues: Queue) -> None:
        """Shows the queues' lengths and bytes from now on."""
        self._queues += queues

    def watch_device_memory(self, read: Callable[[], Mapping[str, float]]) -> None:
        """``read`` gives bytes by kind (``allocated``, ``free``, …); called at each scrape in the
        HTTP thread, must not block."""
        self._device_memory = read

    def watch_index(self, read: Callable[[], Mapping[str, float]]) -> None:
        """``read`` gives values by the names in `INDEX`, 0 for a missing one; called at each scrape
        in the HTTP thread, must not block."""
        self._index = read

    def skipped(self, cause: str, offsets: int) -> None:
        """``offsets`` of one partition will never be decided, for one of `SKIP_CAUSES`."""
        self._skipped[cause].inc(offsets)

    def paused(self, partitions: int) -> None:
        self._paused.set(partitions)

    def watch_held(self, read: Callable[[], Mapping[str, int]]) -> None:
        """``read`` gives the records that wait for each server; called at each scrape in the HTTP
        thread, must not block."""
        self._held = read

    def watch_storage(self, away_s: Callable[[], float]) -> None:
        """``away_s`` gives for how many seconds the storage has been away; called at each scrape in
        the HTTP thread, must not block."""
        self._storage_away_s = away_s

    def storage_retried(self, cause: str) -> None:
        """``cause`` is one of `STORAGE_CAUSES`. Any thread."""
        self._storage_retry[cause].inc()

    def watch_brokers(self, read: Callable[[], float]) -> None:
        """``read`` gives the seconds that the brokers have been away, 0 while they answer; called
        at each scrape in the HTTP thread, must not block."""
        self._brokers_away_s = read

    def snapshot_known(
        self, position: int, nbytes: int, created: float, seconds: float = 0.0
    ) -> None:
        """The newest snapshot that this process wrote, or started from; ``created`` is UTC,
        seconds."""
        self._snapshot_position.set(position)
        self._snapshot_bytes.set(nbytes)
        self._snapshot_seconds.set(seconds)
        self._snapshot_created = created

    def snapshot_failed(self) -> None:
        self._snapshot_failures.inc()

    # The commit

    def epoch_open(self, records: int, nbytes: int, opened_at: float) -> None:
        """The open epoch's size; ``opened_at`` (UTC, seconds) is when it took its first record, 0
        while it has none."""
        self._epoch_records.set(records)
        self._epoch_bytes.set(nbytes)
        self._opened_at = opened_at

    def epoch_committed(self, tally: EpochTally, dead_letters: int) -> None:
        """Counts an epoch whose transaction is committed: the only place that counts records,
        decisions and epochs."""
        self._records_consumed.inc(tally.records)
        for (outcome, reason), n in tally.decisions.items():
            counter = self._decision.get((outcome, reason)) or self._decisions.labels(
                outcome, self._known(reason)
            )
            counter.inc(n)
        self._dead_letters.inc(dead_letters)
        self._end_to_end.observe(tally.ages(time.time()))
        self._epochs_committed.inc()

    def _known(self, reason: str) -> str:
        return reason if any(reason == known for _, known in self._decision) else OTHER

    def lag(self, records: Mapping[int, int], oldest_ms: int) -> None:
        """Lag of the partitions owned now (all others are forgotten) and the timestamp of the
        oldest uncommitted record.

        ``oldest_ms``: UTC milliseconds, 0 when nothing is behind. Its age grows between the calls,
        too, so that a process that hangs shows it.
        """
        self._lag, self._oldest_ms = dict(records), oldest_ms

    # Rebalances and dependencies

    def epoch_dropped(self, cause: str, rewound: int) -> None:
        """An uncommitted epoch was forgotten for one of `DROP_CAUSES`, and ``rewound`` retained
        partitions were rewound."""
        dropped, rewinds = self._drop.get(cause, self._drop[OTHER])
        dropped.inc()
        rewinds.inc(rewound)

    def rebalanced(self, event: str, partitions: int, owned: int) -> None:
        """``partitions`` were gained or given up (one of `REBALANCES`); ``owned`` are left in all."""
        self._rebalance[event].inc(partitions)
        self._partitions.set(owned)

    def fetch_failed(self, cause: str) -> None:
        """A fetch failed for one of `FETCH_ERRORS`."""
        self._fetch_error.get(cause, self._fetch_error[OTHER]).inc()

    # Read at scrape time, in the HTTP thread

    def _scrape_index(self) -> Iterator[Metric]:
        values = self._index()
        for name, documentation in INDEX.items():
            yield GaugeMetricFamily(
                f"streamer_index_{name}", documentation, value=values.get(name, 0.0)
            )
        created = self._snapshot_created
        yield GaugeMetricFamily(
            "streamer_snapshot_age_seconds",
            "Age of the newest snapshot of the dedup state, 0 while none is known; old is right where little is claimed.",
            value=max(time.time() - created, 0.0) if created else 0.0,
        )

    def _scrape_held(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "streamer_fetch_held_records",
            "Records whose image server answers nobody; the line waits for it, and the log names it.",
            value=sum(self._held().values()),
        )
        yield GaugeMetricFamily(
            "streamer_brokers_away_seconds",
            "Seconds that the Kafka brokers have been away, 0 while they answer; the replica waits for kafka.give_up_after.",
            value=self._brokers_away_s(),
        )

    def _scrape_storage(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "streamer_storage_away_seconds",
            "For so long something has been tried at the output's storage in vain, 0 while all goes well; at output.retry_for the process ends.",
            value=self._storage_away_s(),
        )

    def _scrape_queues(self) -> Iterator[Metric]:
        items = GaugeMetricFamily(
            "streamer_queue_items",
            "Lists waiting in each queue; a full one means that the stage after it is the slower one.",
            labels=["queue"],
        )
        nbytes = GaugeMetricFamily(
            "streamer_queue_bytes",
            "Bytes waiting in each queue; memory rises with it, up to its bound.",
            labels=["queue"],
        )
        for queue in self._queues:
            items.add_metric([queue.name], len(queue))
            nbytes.add_metric([queue.name], queue.nbytes)
        yield items
        yield nbytes

    def _scrape_lag(self) -> Iterator[Metric]:
        records = GaugeMetricFamily(
            "streamer_lag_records",
            "Offsets between the committed one and the partition's end; a rise means slower than the producers.",
            labels=["partition"],
        )
        for partition, n in self._lag.items():
            records.add_metric([str(partition)], n)
        yield records
        now, oldest_ms, opened_at = time.time(), self._oldest_ms, self._opened_at
        yield GaugeMetricFamily(
            "streamer_lag_seconds",
            "Age of the oldest uncommitted record that has a timestamp; it rises a second per second "
            "while nothing is committed.",
            value=max(now - oldest_ms / 1000, 0.0) if oldest_ms else 0.0,
        )
        yield GaugeMetricFamily(
            "streamer_epoch_age_seconds",
            "Seconds since the open epoch took its first record; above output.seal_after it cannot be sealed.",
            value=max(now - opened_at, 0.0) if opened_at else 0.0,
        )

    def _scrape_device(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "streamer_device_memory_bytes",
            "Memory of the accelerator by kind; free near 0 makes batches halve.",
            labels=["kind"],
        )
        for kind, nbytes in self._device_memory().items():
            memory.add_metric([kind], nbytes)
        yield memory
