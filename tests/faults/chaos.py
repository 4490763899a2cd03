"""Chaos on a real Kafka: replicas of one group under kill -9, SIGSTOP past the session and SIGTERM,
nodes of the cluster that are killed, stopped and frozen one after another, with filters that change
their mind and files that are gone when a reference is followed again, while near-duplicates keep
arriving close together on different partitions. Records expire before they are decided, crash
processes, hang, or flood a partition with what is no image; the store is away or slow; clocks jump.

    python3 tasks.py chaos --minutes 30 --faults 100 --seed 7
    python3 tasks.py chaos --minutes 10 --faults 40 --seed 7 --capacity 24576 --rate 300    forgets the oldest winners as well

The seed fixes the faults and the pictures; the processes' timing stays their own. When the faults
are over and everything is decided, `tests.faults.verdict` judges the folder and the logs. Exit 1 on
any violation; the folder is kept then.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import click
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from PIL import Image
from pyarrow import fs
from rich.console import Console
from rich.table import Table

from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.errors import DependencyError
from streamer.testing import Cluster, create_topic, jpeg
from streamer.wire.claim import DatasetEntry, decode
from tests.faults.evidence import (
    POISON,
    Evidence,
    Origin,
    Produced,
    committed,
    read_evidence,
    read_produced,
)
from tests.faults.verdict import measures, read_log, skipped, violations
from tests.integration.service import ROOT, SCRIPT, Replica, Service, streamer
from tests.sink_data import s3_server
from tests.unreliable_store import UnreliableStore, unreliable

TAU = 0.97
SESSION_S = 5.0
TRANSACTION_S = 30.0
DECK = ("kill", "kill", "pause", "stop", "broker kill", "broker stop")
LONG_DECK = (*DECK, *DECK, "kill", "kill", "long pause")
"""``pause`` outlasts the session, ``long pause`` a transaction's time-out too; ``stop`` is SIGTERM."""
TROUBLES = ("expire", "expire", "poison crash", "poison hang", "flood", "clock")
"""``expire``: a replica is paused, and of its partitions a part that is not committed is deleted."""
CLUSTER_DECK = ("broker pause", "broker pause")
STORE_DECK = ("store away", "slow copies")
ON_REPLICAS = ("kill", "stop", "pause", "long pause", "expire", "clock")
AWAY_S = 120.0
"""For one node of the cluster, once in a long run."""
FLOOD = 700
"""Invalid records, more than `MAX_RATIO` of the last thousand of a partition."""
MAX_RATIO = 0.5
BACKOFF_S = 1.5
"""At most so long after its end a process is started again."""
IN_SYNC_S = 180.0
"""At most so long after an outage a node may take until its replicas are in sync."""
READY_S = 60.0
"""At most so long a start may take until it has partitions, while brokers and store are there: the
others notice first that its predecessor is gone, and let go of what they have in hand."""
FEW = 4
"""Faults of a kind, of which one at least must be seen in what is left behind."""
CRASHES = 12
"""Of processes, that one poisonous record may cost at most: see tests/integration/test_poison.py;
some more, for a process may be killed while it tries."""
STANDSTILL_S = 20.0
SLOW_COPY_S = 3.0
REACH = 500
"""Pictures come again among so many later ones; with a capacity, among twice as many as it keeps."""
REFERENCES = 0.3
"""Share of the records that are references, to files that are deleted with the next fault: who won
with one may have to be withdrawn."""
QUIET_S = 180.0
"""So long nothing may be decided while records are left, or a process go on that shall end: the
watchdog waits for a commit for 90 s, and before it the committed offsets may be waited for."""


@dataclass(frozen=True)
class Fault:
    """``after_s``: since the fault before. ``for_s``: how long a pause, or a broker that is away,
    lasts."""

    after_s: float
    kind: str
    target: int
    for_s: float = 0.0

    def __str__(self) -> str:
        where = f" w{self.target}" if self.kind in ON_REPLICAS else ""
        return f"{self.kind}{where}" + (f" for {self.for_s:.1f} s" if self.for_s else "")


def plan(
    seed: int, count: int, gap_s: float, replicas: int, deck: tuple[str, ...] = DECK
) -> list[Fault]:
    """``count`` faults, one every ``gap_s`` seconds on average; every kind of the deck comes before
    one comes again."""
    dice = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += dice.sample(deck, len(deck))
    lasting = {
        "pause": (1.2 * SESSION_S, 2 * SESSION_S),
        "long pause": (1.05 * TRANSACTION_S, 1.4 * TRANSACTION_S),
    }
    lasting |= {"broker kill": (0.0, 4.0), "broker stop": (0.0, 4.0), "broker pause": (2.0, 12.0)}
    lasting |= {"expire": lasting["pause"], "clock": (5.0, 20.0)}
    lasting |= {"store away": (3.0, 25.0), "slow copies": (10.0, 20.0)}
    return [
        Fault(
            dice.uniform(0.2, 1.8) * gap_s,
            kind,
            dice.randrange(replicas),
            dice.uniform(*lasting.get(kind, (0.0, 0.0))),
        )
        for kind in drawn[:count]
    ]


def deck(brokers: int, on_s3: bool) -> tuple[str, ...]:
    """Of a long run."""
    more = CLUSTER_DECK if brokers > 1 else ()
    return (*LONG_DECK, *TROUBLES, *more, *(STORE_DECK if on_s3 else ()))


def pictures(seed: int, reach: int) -> Iterator[list[bytes]]:
    """Groups without end: an original with its near-duplicates (re-encodings, sizes, crops around
    the threshold), in any order."""
    dice = random.Random(seed)
    for number in range(sys.maxsize):
        original = jpeg(seed * 10_000_000 + number)
        kind = dice.random()
        if kind < 0.03:
            yield [original[: dice.randrange(1, 900)]]
        elif kind < 0.06:
            yield [jpeg(seed * 10_000_000 + number, size=(20, 20))]
        else:
            group = [
                original,
                *(variant(original, dice) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))),
            ]
            if dice.random() < 0.1:
                group.append(
                    variant(
                        jpeg(
                            seed * 10_000_000 + dice.randrange(max(0, number - reach), number + 1)
                        ),
                        dice,
                    )
                )
            dice.shuffle(group)
            yield group


def variant(image: bytes, dice: random.Random) -> bytes:
    picture = Image.open(io.BytesIO(image))
    edge = dice.choice((0, 0, 1, 2, 3))
    width, height = picture.size
    cropped = picture.crop(
        (
            dice.randint(0, edge),
            dice.randint(0, edge),
            width - dice.randint(0, edge),
            height - dice.randint(0, edge),
        )
    )
    output = io.BytesIO()
    cropped.resize((dice.randint(80, 130), dice.randint(60, 90))).save(
        output, "JPEG", quality=dice.randint(40, 95)
    )
    return output.getvalue()


@dataclass
class Feed:
    """Produces pictures in a thread of its own, members of a group to different partitions, until
    `stop`. Outages only delay it.

    A part of them lies in ``folder``, until `forget`.
    """

    bootstrap: str
    topic: str
    partitions: int
    seed: int
    rate: float
    """Records a second, about."""
    reach: int
    folder: Path
    is_behind: Callable[[int], bool]
    """Told how many were produced: True makes it wait, so that the backlog stays bounded."""
    produced: int = 0
    errors: list[KafkaError] = field(default_factory=list)
    delivered: dict[Origin, Produced] = field(default_factory=dict)
    """Origins are for what the topic was told to hold; it may hold some of it twice, where the
    client began a new producer epoch: these are records like any other."""
    _asked: SimpleQueue[str] = field(default_factory=SimpleQueue)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call it while the brokers are there."""
        self._stopping.set()
        assert self._thread is not None
        self._thread.join(90)
        assert not self._thread.is_alive(), "records could not be produced"
        assert not self.errors, f"records could not be produced: {self.errors[0]}"

    def add(self, kind: str) -> None:
        """Something else, soon: a poisonous record, or a flood."""
        self._asked.put(kind)

    def forget(self) -> None:
        """Deletes every file that a record refers to."""
        for path in self.folder.iterdir():
            path.unlink()

    def _run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 300_000,
                "log_level": 0,
            }
        )
        dice = random.Random(self.seed)
        other_dice = random.Random(self.seed + 2)
        groups = pictures(self.seed, self.reach)
        while not self._stopping.is_set():
            burst = dice.randint(
                1, round(self.rate)
            )  # all at once, so that twins meet in claims that are on their way together
            for group in itertools.islice(groups, burst // 2):
                partitions = dice.sample(range(self.partitions), min(len(group), self.partitions))
                for image, partition in zip(group, partitions, strict=False):
                    text, uri = f"picture {self.produced}", ""
                    sha256 = hashlib.sha256(image).hexdigest()
                    if dice.random() < REFERENCES:
                        path = self.folder / str(self.produced)
                        path.write_bytes(image)
                        image, uri = b"", path.as_uri()
                    self._produce(producer, partition, image, Produced(sha256, text), uri)
            producer.poll(0)
            self._stopping.wait(burst / self.rate)
            self._serve(producer, other_dice)
            while self.is_behind(self.produced) and not self._stopping.is_set():
                producer.poll(0.1)
                self._serve(producer, other_dice)
        self._serve(producer, other_dice)
        producer.flush(80)

    def _serve(self, producer: Producer, dice: random.Random) -> None:
        """What was asked for."""
        while not self._asked.empty():
            kind, partition = self._asked.get(), dice.randrange(self.partitions)
            if kind == "flood":
                values, word = [b"no image"] * FLOOD, kind
            else:  # sizes that tests.plugins.chaos:ChaosEmbedder crashes with, or hangs
                size = (200, 40) if kind == "poison crash" else (40, 200)
                values, word = [jpeg(self.seed * 10_000_000 + self.produced, size)], POISON
            for value in values:
                known = Produced(hashlib.sha256(value).hexdigest(), f"{word} {self.produced}")
                self._produce(producer, partition, value, known)

    def _produce(
        self, producer: Producer, partition: int, value: bytes, known: Produced, uri: str = ""
    ) -> None:
        headers = {"text": known.text}
        if uri:
            headers |= {"uri": uri, "sha256": known.sha256}
        producer.produce(
            self.topic,
            value,
            partition=partition,
            headers=headers,
            on_delivery=partial(self._delivered, known),
        )
        self.produced += 1

    def _delivered(self, known: Produced, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.delivered[message.partition(), message.offset()] = known
        else:
            self.errors.append(error)


class Outage(threading.Thread):
    """A node of the cluster that is away for ``for_s``, and until its replicas are in sync: before
    that no other one may be."""

    def __init__(self, cluster: Cluster, number: int, how: str, for_s: float) -> None:
        super().__init__(name=f"outage of node {number}", daemon=True)
        self.error: Exception | None = None
        self._cluster = cluster
        self._number = number
        self._how = how
        self._for_s = for_s
        self._ending = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            self.error = error

    def end(self) -> None:
        """The cluster is closed next."""
        self._ending.set()
        self.join()

    def _run(self) -> None:
        until = time.monotonic() + self._for_s + IN_SYNC_S
        pid = self._cluster.nodes[self._number].pid
        assert pid is not None, f"node {self._number} ended by itself"
        if self._how == "pause":
            os.kill(pid, signal.SIGSTOP)
        else:
            (self._cluster.stop if self._how == "stop" else self._cluster.kill)(self._number)
        self._ending.wait(self._for_s)
        if self._how == "pause":
            os.kill(pid, signal.SIGCONT)
        else:
            self._start(until)
        while not self._ending.is_set():
            try:
                self._cluster.wait_until_in_sync(5.0)
                return
            except DependencyError:
                assert time.monotonic() < until, f"node {self._number} is not in sync again"

    def _start(self, until: float) -> None:
        """A loaded machine may take longer than one start is given."""
        while not self._ending.is_set():
            try:
                self._cluster.start(self._number)
                return
            except DependencyError:
                if time.monotonic() >= until:
                    raise


@dataclass
class Slot:
    """One writer's name and its present process."""

    replica: Replica
    expects: set[int] = field(default_factory=set)
    """Exit codes that a fault explains."""
    wake_at: float | None = None
    start_at: float | None = None
    down_since: float | None = None
    """When the process before this one ended, by the clock that stands still in outages, until this
    one has partitions."""
    read: int = 0
    """Log lines."""
    owned: list[int] = field(default_factory=list)
    """Partitions, by what was assigned last."""


class Chaos:
    """A cluster, a dataset and its replicas in ``folder``, and what is done to them. One thread;
    leaving it ends everything."""

    def __init__(
        self, folder: Path, seed: int, replicas: int = 3, partitions: int = 6, rate: float = 60.0, static: bool = False,
        capacity: int | None = None, say: Callable[[str], None] = print, brokers: int = 1, on_s3: bool = False,
    ) -> None:  # fmt: skip
        """``static``: members with instance ids, as on Kubernetes. ``capacity``: dedup.capacity.
        ``on_s3``: the output goes to an S3 server of its own, which can be away."""
        self._static = static
        self._capacity = capacity
        self._rate = rate
        self.cluster = Cluster(brokers, data=folder / "kafka")
        self.topic, self.seed = "pictures", seed
        self._say = say
        self._dice = random.Random(seed + 1)
        self._began = time.monotonic()
        self._outage: Outage | None = None
        self._outages = 0
        self._store: UnreliableStore | None = None
        self._store_at: float | None = None
        self._clocks: dict[int, float] = {}
        self._away_s = 0.0
        self._stepped = time.monotonic()
        self._counts: dict[str, int] = {}
        self._looked = 0.0
        self.decided = 0
        """Records in the committed epochs that the folder shows, and skipped ones."""
        self._moved = time.monotonic()
        self._folder = folder
        self._files = folder / "files"
        self._files.mkdir()
        self.wrong: list[str] = []
        """Ends of processes that nothing explains."""
        self.ends: Counter[str] = Counter()
        self.digests: list[tuple[int, str]] = []
        """(position, digest) of every replica that ended well."""
        self.restored = 0
        """Starts that went on from a snapshot of the dedup state."""
        self.drops: Counter[str] = Counter()
        """Times that uncommitted work was dropped, by cause."""
        self.resumed = 0
        """Times that paused partitions were let go on."""
        self._is_flooded = False
        self._earlier: dict[Origin, Produced] = {}
        """What was in the topic before some of it expired."""
        self.expired: dict[int, int] = {}
        """Partition → what lies before this offset was deleted, or was to be."""
        self.struck: Counter[str] = Counter()
        self.longest_down_s = 0.0
        """From the end of a process until the next one of its name had partitions; without the time
        that all brokers or the store were away."""
        self._operator = ThreadPoolExecutor(1, "operator")
        self._errands: list[Future[None]] = []
        self._closing = ExitStack()
        self._closing.callback(self._operator.shutdown, cancel_futures=True)
        self._closing.callback(self.cluster.close)
        try:
            self._out = str(folder / "out")
            self._query = self._direct_query = ""
            if on_s3:
                self._out = "s3://curated/chaos"
                self._direct_query = self._closing.enter_context(s3_server())
                self._store, query = self._closing.enter_context(unreliable(self._direct_query))
                self._query = f"{query}&request_timeout=2&connect_timeout=2"
            self.cluster.start_all()
            create_topic(self.cluster.bootstrap_servers, self.topic, partitions)
            self.service = Service(folder, self._settings())
            self._closing.callback(self.service.close)
            self._config = str(self.service.config())
            uri = f"{self._out}/{self.service.dataset}{self._direct_query}"
            self._files_of, self._output = fs.FileSystem.from_uri(uri)
            self.feed = Feed(
                self.cluster.bootstrap_servers, self.topic, partitions, seed, rate, 2 * capacity if capacity else REACH, self._files,
                lambda n: n - self.decided > 20 * rate,
            )  # fmt: skip
            self.slots = [Slot(self._start(f"w{number}")) for number in range(replicas)]
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Chaos:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._outage is not None:
            self._outage.end()
        self._closing.close()
        if error is not None:
            for number, slot in enumerate(self.slots):
                self._save(number, slot)

    def _settings(self) -> dict[str, Any]:
        moody = {"type": "tests.plugins.chaos:Moody", "args": {"share": 0.1}}
        timing = {
            "session.timeout.ms": round(SESSION_S * 1000),
            "heartbeat.interval.ms": 1000,
            "max.poll.interval.ms": 30_000,
        }
        timing["linger.ms"] = 150  # claims are longer on their way, so that more twins meet there
        return {
            "dataset": "chaos",
            "kafka": {
                "bootstrap_servers": self.cluster.bootstrap_servers,
                "topic": self.topic,
                "on_expired": "skip",
                "client": timing,
            },
            "fetch": {"schemes": ["file"], "hosts": [str(self._files)]},
            "decode": {"threads": 2, "timeout": "5s"},
            "embedder": {
                "type": "tests.plugins.chaos:ChaosEmbedder",
                "args": {"delay_ms": 40},
            },
            "filters": [
                {"field": "min_side", "at_least": 40},
                {**moody, "name": "moody"},
                {**moody, "name": "late", "type": "tests.plugins.thumbnail:LateMoody"},
            ],
            "dedup": {
                "threshold": TAU,
                "train_at": 1024,
                "snapshot_every": 500,
                "capacity": self._capacity,
            },
            "output": {
                "path": f"{self._out}{self._query}",
                "epoch_records": round(2.5 * self._rate),
                "shard_records": round(self._rate),
                "seal_after": "2s",
            },
            "batch": {"size": 64, "linger": "150ms"},
            "dead_letters": {"max_ratio": MAX_RATIO},
            "http": {"host": "127.0.0.1", "port": 0},
            "device": "cpu",
        }

    # The run

    def run(self, faults: list[Fault]) -> None:
        """Waits until every replica has committed something, then does the faults, one after
        another."""
        self.feed.start()
        deadline = time.monotonic() + 120
        while not all(slot.replica.count("epoch committed") for slot in self.slots):
            assert not self.wrong, self.wrong[0]
            assert time.monotonic() < deadline, [slot.replica.log for slot in self.slots]
            self._step()
        waiting = list(faults)
        while waiting:
            number = len(faults) - len(waiting) + 1
            at = time.monotonic() + waiting[0].after_s
            # Whoever is away already cannot be struck; others can meanwhile.
            while time.monotonic() < at or not any(map(self._is_up, waiting)):
                self._step()
            fault = next(filter(self._is_up, waiting))
            waiting.remove(fault)
            self._tell(f"fault {number:3} of {len(faults)}: {fault!s:25} {self._progress()}")
            self._strike(fault)

    def settle(self) -> int:
        """Ends the feed, waits until every record is decided, and stops the replicas until each
        ended well. The number of records."""
        while (
            self._outage is not None
            or self._store_at is not None
            or self._errands
            or self._clocks
            or any(slot.wake_at or slot.start_at for slot in self.slots)
        ):
            self._step()
        self.feed.stop()
        records = sum(self._ends(range(self.feed.partitions)).values())
        self._tell(f"quiet: {self._progress()}")
        self._moved = time.monotonic()
        while (
            self.decided < records
            or self._errands
            or any(
                slot.start_at or not slot.replica.count("partitions assigned")
                for slot in self.slots
            )
        ):
            self._step()
            assert time.monotonic() - self._moved < QUIET_S, (
                f"{self._progress()}, and no more\n"
                + "\n\n".join(s.replica.log for s in self.slots)
            )
        time.sleep(1.0)  # each reads the others' last claims
        for slot in self.slots:
            slot.expects.add(0)
            slot.replica.kill(signal.SIGTERM)
        for number, slot in enumerate(self.slots):
            slot.replica.end(QUIET_S)
            while (
                self._ended(number, slot) in (1, 75) and not self.wrong
            ):  # what it left behind is its own next start's business
                slot = Slot(self._start(f"w{number}", "--until", "end"), {0})
                slot.replica.end(QUIET_S)
        self._tell("ended")
        return records

    def _look(self) -> None:
        """How many are decided by now."""
        now = time.monotonic()
        if now < self._looked + (0.2 if self._store is None else 2.0):
            return
        self._looked = now
        selector = fs.FileSelector(f"{self._output}/manifests", allow_not_found=True)
        for info in self._files_of.get_file_info(selector):
            if info.base_name not in self._counts:
                with self._files_of.open_input_stream(info.path) as file:
                    manifest = json.loads(file.read())
                self._counts[info.base_name] = sum(manifest["counts"].values()) + sum(
                    b - a for ranges in manifest["skipped"].values() for a, b in ranges
                )
        decided = sum(self._counts.values())
        if decided != self.decided:
            self.decided, self._moved = decided, now

    def _tell(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.0f} s  {line}")

    def _progress(self) -> str:
        up = "".join("-" if slot.start_at else "z" if slot.wake_at else "+" for slot in self.slots)
        return f"{self.decided} of {self.feed.produced} records decided, replicas {up}"

    def _is_up(self, fault: Fault) -> bool:
        if fault.kind.startswith("broker"):
            return self._outage is None
        if fault.kind in STORE_DECK:
            return self._store_at is None
        return fault.kind not in ON_REPLICAS or self.slots[fault.target].start_at is None

    def _strike(self, fault: Fault) -> None:
        self.feed.forget()
        slot, now = self.slots[fault.target], time.monotonic()
        self.struck[fault.kind] += 1
        if fault.kind.startswith("broker"):
            node = self._outages % len(self.cluster.nodes)
            self._outage = Outage(self.cluster, node, fault.kind.split()[-1], fault.for_s)
            self._outages += 1
            self._outage.start()
        elif fault.kind in STORE_DECK:
            assert self._store is not None
            if fault.kind == "store away":
                self._store.mode = self._dice.choice(("refused", "slow down", "stalled"))
            else:
                self._store.slow_copies_s = SLOW_COPY_S
            self._store_at = now + fault.for_s
        elif fault.kind == "clock":
            hours = self._dice.choice((-1, 1)) * self._dice.choice((0.01, 0.2, 3.0))
            self._clock(fault.target).write_text(str(3600 * hours))
            self._clocks[fault.target] = now + fault.for_s
        elif fault.kind not in ON_REPLICAS:
            self.feed.add(fault.kind)
        elif fault.kind == "kill":
            slot.expects.add(-signal.SIGKILL)
            slot.wake_at = None
            slot.replica.kill()
        elif fault.kind == "stop":
            slot.expects |= {
                0,
                -signal.SIGTERM,
            }  # the latter before Python has imported what handles it
            slot.replica.kill(signal.SIGTERM)
        else:
            slot.replica.kill(signal.SIGSTOP)
            slot.wake_at = max(slot.wake_at or 0.0, now + fault.for_s)
            if fault.kind == "expire":
                partitions = slot.owned or list(range(self.feed.partitions))
                share = self._dice.uniform(0.3, 1.0)
                self._errands.append(self._operator.submit(self._expire, partitions, share))

    def _step(self) -> None:
        """Ends what lasted long enough, and is the supervisor: starts again what ended."""
        time.sleep(0.1)
        now = time.monotonic()
        is_away = self._store is not None and self._store.mode != "there"
        if is_away or (self._outage is not None and len(self.cluster.nodes) == 1):
            self._away_s += now - self._stepped
        self._stepped = now
        self._look()
        if self._outage is not None and not self._outage.is_alive():
            if self._outage.error is not None:
                raise self._outage.error
            self._outage = None
        if self._store is not None and self._store_at is not None and now >= self._store_at:
            self._store.mode, self._store.slow_copies_s, self._store_at = "there", 0.0, None
        for number in [n for n, until in self._clocks.items() if now >= until]:
            self._clock(number).write_text("0")
            del self._clocks[number]
        self._operate(now)
        for number, slot in enumerate(self.slots):
            if slot.wake_at is not None and now >= slot.wake_at:
                slot.wake_at = None
                slot.replica.kill(signal.SIGCONT)
                if slot.down_since is not None:
                    slot.down_since = self._time()
            self._listen(number, slot)
            if slot.start_at is not None:
                if now >= slot.start_at:
                    self.slots[number] = Slot(self._start(f"w{number}"), down_since=slot.down_since)
            elif slot.replica.process.poll() is not None:
                code = self._ended(number, slot)
                if slot.down_since is None or code in slot.expects:
                    slot.down_since = self._time()
                slot.wake_at, slot.start_at = None, now + self._dice.uniform(0.0, BACKOFF_S)

    def _time(self) -> float:
        """Of a clock that stands still while all brokers, or the store, are away."""
        return time.monotonic() - self._away_s

    def _clock(self, number: int) -> Path:
        """How far this replica's clock is off, in seconds."""
        return self._folder / f"clock-w{number}"

    def _listen(self, number: int, slot: Slot) -> None:
        """To what a replica said since the last time."""
        lines = slot.replica.lines[slot.read :]
        slot.read += len(lines)
        for line in lines:
            if "partitions assigned" in line and (said := _parsed(line)) is not None:
                slot.owned = said["partitions"]
            if "partitions assigned" in line and slot.down_since is not None:
                down_s, slot.down_since = self._time() - slot.down_since, None
                self.longest_down_s = max(self.longest_down_s, down_s)
                if down_s > BACKOFF_S + READY_S:
                    self.wrong.append(f"w{number} was down for {down_s:.1f} s")
            elif "is paused: " in line:
                self._is_flooded = True

    def _operate(self, now: float) -> None:
        """The operator, who looks when a partition is paused, and when nothing moves."""
        stands = self.struck["flood"] > 0 and now - self._moved > STANDSTILL_S
        if (stands or self._is_flooded) and not self._errands:
            self._is_flooded = False
            self._errands.append(self._operator.submit(self._resume))
        for errand in [e for e in self._errands if e.done()]:
            self._errands.remove(errand)
            errand.result()

    def _resume(self) -> None:
        """Lets paused partitions go on."""
        for _ in range(20):
            done = subprocess.run(
                [SCRIPT, "resume", "-c", self._config, "--execute"],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            if done.returncode == 0:
                self.resumed += "go on within seconds" in done.stderr
                return
            time.sleep(2.0)
        raise AssertionError(f"streamer resume: {done.stderr}")

    def _ends(self, partitions: Collection[int]) -> dict[int, int]:
        """Their end offsets."""
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap_servers, "log_level": 0})
        asked = {TopicPartition(self.topic, p): OffsetSpec.latest() for p in partitions}
        while True:
            found = {tp.partition: f.result(30) for tp, f in admin.list_offsets(asked).items()}
            if all(result.offset >= 0 for result in found.values()):
                return {partition: result.offset for partition, result in found.items()}
            time.sleep(0.2)  # no offset and no error: its leader has just gone away

    def _expire(self, partitions: Collection[int], share: float) -> None:
        """Deletes this share of what is not committed in these partitions."""
        servers = self.cluster.bootstrap_servers
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        for attempt in range(10):
            try:
                at = committed(servers, self.topic, f"streamer.{self.service.dataset}")
                ends = self._ends(partitions)
                self._earlier |= read_produced(servers, self.topic, partitions)
                for partition in partitions:
                    left = max(0, ends[partition] - at[partition])
                    offset = at[partition] + round(share * left)
                    if left and offset > self.expired.get(partition, 0):
                        self.expired[partition] = offset  # first: it may be done and not answered
                        wanted = TopicPartition(self.topic, partition, offset)
                        for future in admin.delete_records([wanted]).values():
                            future.result(30)
                return
            except (KafkaException, FutureTimeoutError):  # a leader is away
                if attempt == 9:
                    raise
                time.sleep(2.0)

    def _start(self, writer: str, *args: str) -> Replica:
        kafka = {
            **self.service.settings["kafka"],
            "group_instance_id": writer if self._static else None,
        }
        clock = str(self._clock(int(writer.removeprefix("w"))))
        env = {"STREAMER_LOG_LEVEL": "debug", "OMP_NUM_THREADS": "1", "CHAOS_CLOCK": clock}
        return self.service.start(*args, writer=writer, kafka=kafka, env=env)

    def _ended(self, number: int, slot: Slot) -> int:
        """Books the end of a process, and what it said; returns its exit code."""
        code, lines = slot.replica.end(), slot.replica.lines
        path = self._save(number, slot)
        said = [entry for entry in map(_parsed, lines) if entry is not None]
        for entry in said:
            if entry["message"] == "claim log melded":
                self.digests.append((entry["position"], entry["digest"]))
            elif entry["message"].startswith("uncommitted work is dropped"):
                self.drops[entry["cause"]] += 1
            elif entry["message"] == "restored the dedup state":
                self.restored += entry["snapshot"] > 0
        last = next((entry["message"] for entry in reversed(said) if entry["level"] == "error"), "")
        self.ends[f"{code}{': ' + re.sub(r'[0-9]+', 'N', last)[:100] if code > 0 else ''}"] += 1
        is_poisoned = code == -signal.SIGSEGV and self.struck["poison crash"] > 0
        explained = code in slot.expects or code == 75 or is_poisoned
        if not explained or any("Traceback" in line or "this is a bug" in line for line in lines):
            self.wrong.append(
                f"w{number} ended with {code} ({path.name}): {last or slot.replica.log}"
            )
        return code

    def _save(self, number: int, slot: Slot) -> Path:
        runs = len(list(self._folder.glob(f"w{number}-*.log")))
        path = self._folder / f"w{number}-{runs:03}.log"
        path.write_text("\n".join(slot.replica.lines))
        return path

    # The judgement

    def judge(self, records: int) -> tuple[Evidence, dict[str, Any], list[str]]:
        """What is left behind, what it was about, and everything that is wrong with it."""
        folder = self.service.output
        if self._store is not None:
            folder = self._folder / "copy"
            fs.copy_files(self._output, str(folder), source_filesystem=self._files_of)
        evidence = read_evidence(
            folder,
            self.service.dataset,
            self.cluster.bootstrap_servers,
            self.topic,
            self._earlier,
            self.expired,
        )
        log = read_log(evidence.claims, self._capacity)
        found = [
            *self.wrong,
            *violations(evidence, log),
            *wrong_digests(evidence.claims, self.digests, self._capacity),
        ]
        if len(evidence.produced) != records:
            found.append(
                f"{records} records are in the topic by its offsets, and {len(evidence.produced)} came"
            )
        told = {o: evidence.produced.get(o) for o in self.feed.delivered}
        if told != self.feed.delivered:
            found.append("the topic does not hold what was delivered to it")
        crashes, poison = self.ends[str(-signal.SIGSEGV)], self.struck["poison crash"]
        if crashes > CRASHES * poison:
            found.append(f"{crashes} processes crashed for {poison} poisonous records")
        # Faults that leave no trace were none
        if self.struck["expire"] >= FEW and not skipped(evidence):
            found.append(f"{self.struck['expire']} times records expired, and none is skipped")
        if self.struck["flood"] >= FEW and not self.resumed:
            found.append(f"{self.struck['flood']} floods paused no partition")
        if len(self.digests) < len(self.slots):
            found.append(f"{len(self.digests)} digests were told, fewer than there are replicas")
        uri = f"{self._out}/{self.service.dataset}{self._direct_query}"
        report = json.loads(streamer("dataset", "verify", uri, "--json", expect=None).stdout)
        found += [f"`dataset verify` says {problem}" for problem in report["problems"]]
        decided = records - len(skipped(evidence))
        if report["records"] != decided:
            found.append(f"`dataset verify` counts {report['records']} records of {decided}")
        return evidence, measures(evidence, log), found


def wrong_digests(
    claims: list[bytes], digests: Collection[tuple[int, str]], capacity: int | None = None
) -> list[str]:
    """Which of the replicas' digests are not those of a fresh meld that reads the log alone."""
    first = decode(claims[0])
    assert isinstance(first, DatasetEntry)
    meld = Meld(
        first.dim, first.threshold, open_index(first.dim, first.threshold, "cpu"), capacity=capacity
    )
    fresh = {}
    wanted = {position for position, _ in digests}
    for value in claims:
        meld.apply(decode(value))
        if meld.position in wanted:
            fresh[meld.position] = meld.digest()
    return [
        f"a replica's digest at position {at} is {told}, a fresh meld's {fresh.get(at)}"
        for at, told in sorted(digests)
        if fresh.get(at) != told
    ]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "message" in found else None


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="How long the faults go on.")
@click.option("--faults", default=100, show_default=True, help="How many there are.")
@click.option("--seed", type=int, help="Of the faults and the pictures; drawn if left out.")
@click.option("--replicas", default=3, show_default=True)
@click.option("--partitions", default=6, show_default=True)
@click.option("--rate", default=60.0, show_default=True, help="Records a second, at most.")
@click.option("--static", is_flag=True, help="Static members, as on Kubernetes.")
@click.option(
    "--capacity",
    type=click.IntRange(24_576),
    help="dedup.capacity. Choose a rate that brings more winners than that.",
)
@click.option("--brokers", default=3, show_default=True, help="Nodes of the Kafka cluster.")
@click.option(
    "--store",
    type=click.Choice(["s3", "folder"]),
    default="s3",
    show_default=True,
    help="Where the output goes. Only a store on S3 is away now and then.",
)
def main(
    minutes: float,
    faults: int,
    seed: int | None,
    replicas: int,
    partitions: int,
    rate: float,
    static: bool,
    capacity: int | None,
    brokers: int,
    store: str,
) -> None:
    """Chaos on a real Kafka, and a judgement at the end. Exit 1 on any violation; the folder is
    kept then."""
    console = Console()
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix=f"streamer-chaos-{seed}-"))

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"seed {seed}, folder {folder}")
    on_s3 = store == "s3"
    planned = plan(seed, faults, minutes * 60 / faults, replicas, deck(brokers, on_s3))
    if brokers > 1 and 60 * minutes >= 2 * AWAY_S:
        at = len(planned) // 3
        planned[at] = replace(planned[at], kind="broker away", for_s=AWAY_S)
    with Chaos(
        folder, seed, replicas, partitions, rate, static, capacity, say, brokers, on_s3
    ) as chaos:
        chaos.run(planned)
        records = chaos.settle()
        _, told, found = chaos.judge(records)
    table = Table("seed", str(seed), show_header=True)
    for name, count in chaos.struck.most_common():
        table.add_row(f"faults: {name}", str(count))
    for name, value in told.items():
        table.add_row(name, str(value))
    for name, count in chaos.ends.most_common():
        table.add_row(f"processes ended with {name}", str(count))
    for cause, count in chaos.drops.most_common():
        table.add_row(f"uncommitted work dropped: {cause}", str(count))
    table.add_row("paused partitions resumed", str(chaos.resumed))
    limit_s = BACKOFF_S + READY_S
    table.add_row(
        "longest time a replica was down", f"{chaos.longest_down_s:.1f} s of {limit_s:.1f} s"
    )
    table.add_row("starts from a snapshot", str(chaos.restored))
    table.add_row("digests compared", str(len(chaos.digests)))
    table.add_row("violations", str(len(found)))
    console.print(table)
    for violation in found[:50]:
        say(f"VIOLATION: {violation}")
    if found:
        say(f"kept: {folder}")
        sys.stdout.flush()
        os._exit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
