"""What the benchmarks share: a broker, a filled topic, a run of the real line in this process, one
JSON line."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from streamer.cli import limit_blas

limit_blas()

from benchmarks.distance import distance
from streamer import app
from streamer.config import Config
from streamer.kafka.admin import Admin, TopicInfo
from streamer.kafka.topics import configured_starts
from streamer.ops.metrics import STAGES, Metrics
from streamer.ops.tally import EpochTally
from streamer.ops.thread_cpu import ThreadCpu
from streamer.testing import Broker, create_topic, free_port, produce


@contextmanager
def broker() -> Iterator[str]:
    """Bootstrap servers: KAFKA_BOOTSTRAP_SERVERS, or an embedded broker on this machine."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
    else:
        with Broker() as embedded:
            yield embedded.bootstrap_servers


@contextmanager
def distant_broker(round_trip_s: float | None) -> Iterator[tuple[str, str]]:
    """Bootstrap servers of one embedded broker, directly and from a distance; None: `broker`, and
    no distance."""
    with ExitStack() as at_exit:
        if round_trip_s is None:
            servers = at_exit.enter_context(broker())
            yield servers, servers
        else:
            port = free_port()
            embedded = at_exit.enter_context(Broker(proxy_port=port))
            assert embedded.upstream_port is not None
            at_exit.enter_context(distance(port, embedded.upstream_port, round_trip_s))
            yield embedded.bootstrap_servers, f"127.0.0.1:{port}"


def fill(servers: str, topic: str, values: Iterable[bytes], partitions: int) -> int:
    """Creates and fills the topic; outside of every measure. Returns the number of records."""
    create_topic(servers, topic, partitions=partitions)
    return len(
        produce(
            servers,
            topic,
            (
                (value, {"text": "a caption of the usual length for one photograph"})
                for value in values
            ),
        )
    )


class Watched(Metrics):
    """Metrics that also note when the first record came, when records were decided, and when the
    last epoch was committed (monotonic seconds: the same clock in every process)."""

    last: Watched

    def __init__(self, rules: Iterable[str] = ()) -> None:
        super().__init__(rules)
        Watched.last = self
        self.assigned_at = 0.0
        self.committed_at = 0.0
        self.records = 0
        self.decisions: dict[str, int] = {}
        self.threads_before: dict[str, float] = {}
        self.decided: list[tuple[float, int]] = []
        """When the writer wrote decisions down, and how many."""
        self._open_records = 0
        self._cpu = ThreadCpu()

    def rebalanced(self, event: str, partitions: int, owned: int) -> None:
        super().rebalanced(event, partitions, owned)
        if not self.assigned_at:
            self.threads_before = self._cpu.read()
            self.assigned_at = time.monotonic()

    def epoch_open(self, records: int, nbytes: int, opened_at: float) -> None:
        super().epoch_open(records, nbytes, opened_at)
        if records > self._open_records:
            self.decided.append((time.monotonic(), records - self._open_records))
        self._open_records = records

    def epoch_committed(self, tally: EpochTally, dead_letters: int) -> None:
        super().epoch_committed(tally, dead_letters)
        self.committed_at = time.monotonic()
        self.records += tally.records
        for (outcome, _), n in tally.decisions.items():
            self.decisions[outcome] = self.decisions.get(outcome, 0) + n
        self.threads_after = self._cpu.read()

    def report(self) -> dict[str, Any]:
        """Rates and CPU between the assignment and the last commit."""
        seconds = self.committed_at - self.assigned_at
        threads = {
            name: round(after - self.threads_before.get(name, 0.0), 3)
            for name, after in self.threads_after.items()
            if after - self.threads_before.get(name, 0.0) >= 0.005
        }
        stages = {stage: self._stage_seconds[stage]._value.get() for stage in STAGES}
        trips = self.claim_round_trip
        batches = sum(bucket.get() for bucket in trips._buckets)
        total = sum(stages.values()) or 1.0
        return {
            "records": self.records,
            "seconds": round(seconds, 3),
            "records_per_s": round(self.records / seconds, 1),
            "cpu_us_per_record": round(1e6 * sum(threads.values()) / self.records, 1),
            "outcomes": self.decisions,
            "thread_cpu_s": dict(sorted(threads.items(), key=lambda item: -item[1])),
            "claim_round_trip_ms": round(1000 * trips._sum.get() / batches, 1) if batches else None,
            "claims_void": self.claims_void._value.get(),
            "commit_s": round(stages["commit"], 3),
            "stage_share": {stage: round(value / total, 3) for stage, value in stages.items()},
        }


def run_line(config: Config, parts: app.Parts, records: int | None = None) -> dict[str, Any]:
    """The whole line in this process over everything that is in the topic, or over its first
    ``records``, the same number of each partition; what `Watched` saw."""

    def whole(admin: Admin, topic: TopicInfo) -> app.Range:
        def ends(partitions: Collection[int]) -> Mapping[int, int]:
            found = admin.end_offsets(topic.name, partitions, committed=False)
            if records is None:
                return found
            starts = configured_starts(admin, config, partitions)
            share = records // topic.partitions
            return {p: min(end, starts[p] + share) for p, end in found.items()}

        return app.Range(lambda partitions: configured_starts(admin, config, partitions), ends)

    app.run_range(config, whole, threading.Event().is_set, parts)
    return Watched.last.report()


def emit(benchmark: str, **result: Any) -> None:
    """One JSON line on stdout."""
    print(json.dumps({"benchmark": benchmark, **result, "machine": machine()}), flush=True)


def machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
