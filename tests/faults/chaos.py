"""Chaos on a real Kafka: replicas of one group under kill -9, SIGSTOP past the session, SIGTERM and
broker restarts, with filters that change their mind and files that are gone when a reference is
followed again, while near-duplicates keep arriving close together on different partitions.

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
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from confluent_kafka import KafkaError, Message, Producer
from PIL import Image
from rich.console import Console
from rich.table import Table

from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.testing import Broker, create_topic, jpeg
from streamer.wire.claim import DatasetEntry, decode
from tests.faults.evidence import Evidence, read_evidence
from tests.faults.verdict import measures, read_log, violations
from tests.integration.service import Replica, Service, streamer

TAU = 0.97
SESSION_S = 5.0
TRANSACTION_S = 30.0
DECK = ("kill", "kill", "pause", "stop", "broker kill", "broker stop")
LONG_DECK = (*DECK, *DECK, "kill", "kill", "long pause")
"""``pause`` outlasts the session, ``long pause`` a transaction's time-out too; ``stop`` is SIGTERM."""
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
        where = "" if self.kind.startswith("broker") else f" w{self.target}"
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
    lasting |= {"broker kill": (0.0, 4.0), "broker stop": (0.0, 4.0)}
    return [
        Fault(
            dice.uniform(0.2, 1.8) * gap_s,
            kind,
            dice.randrange(replicas),
            dice.uniform(*lasting.get(kind, (0.0, 0.0))),
        )
        for kind in drawn[:count]
    ]


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
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """How many records are in the topic. Call it while the broker is there."""
        self._stopping.set()
        assert self._thread is not None
        self._thread.join(90)
        assert not self._thread.is_alive(), "records could not be produced"
        assert not self.errors, f"records could not be produced: {self.errors[0]}"
        return self.produced

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
        groups = pictures(self.seed, self.reach)
        while not self._stopping.is_set():
            burst = dice.randint(
                1, round(self.rate)
            )  # all at once, so that twins meet in claims that are on their way together
            for group in itertools.islice(groups, burst // 2):
                partitions = dice.sample(range(self.partitions), min(len(group), self.partitions))
                for image, partition in zip(group, partitions, strict=False):
                    headers = {"text": f"picture {self.produced}"}
                    if dice.random() < REFERENCES:
                        path = self.folder / str(self.produced)
                        path.write_bytes(image)
                        headers |= {
                            "uri": path.as_uri(),
                            "sha256": hashlib.sha256(image).hexdigest(),
                        }
                        image = b""
                    producer.produce(
                        self.topic,
                        image,
                        partition=partition,
                        headers=headers,
                        on_delivery=self._delivered,
                    )
                    self.produced += 1
            producer.poll(0)
            self._stopping.wait(burst / self.rate)
            while self.is_behind(self.produced) and not self._stopping.is_set():
                producer.poll(0.1)
        producer.flush(80)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.errors.append(error)


@dataclass
class Slot:
    """One writer's name and its present process."""

    replica: Replica
    expects: set[int] = field(default_factory=set)
    """Exit codes that a fault explains."""
    wake_at: float | None = None
    start_at: float | None = None


class Chaos:
    """A broker, a dataset and its replicas in ``folder``, and what is done to them. One thread;
    `close` ends everything."""

    def __init__(
        self, folder: Path, seed: int, replicas: int = 3, partitions: int = 6, rate: float = 60.0, static: bool = False,
        capacity: int | None = None, say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """``static``: members with instance ids, as on Kubernetes. ``capacity``: dedup.capacity."""
        self._static = static
        self._capacity = capacity
        self._rate = rate
        self.broker = Broker(data=folder / "kafka")
        self.topic, self.seed = "pictures", seed
        self._say = say
        self._dice = random.Random(seed + 1)
        self._began = time.monotonic()
        self._broker_at: float | None = None
        self._counts: dict[str, int] = {}
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
        try:
            self.broker.start()
            create_topic(self.broker.bootstrap_servers, self.topic, partitions)
            self.service = Service(folder, self._settings())
            self.feed = Feed(
                self.broker.bootstrap_servers, self.topic, partitions, seed, rate, 2 * capacity if capacity else REACH, self._files,
                lambda n: n - self.decided > 20 * rate,
            )  # fmt: skip
            self.slots = [Slot(self._start(f"w{number}")) for number in range(replicas)]
        except BaseException:
            self.broker.close()
            raise

    def __enter__(self) -> Chaos:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.service.close()
        self.broker.close()
        if error is not None:
            for number, slot in enumerate(self.slots):
                self._save(number, slot)

    def _settings(self) -> dict[str, Any]:
        moody = {"type": "tests.plugins.thumbnail:Moody", "args": {"share": 0.1}}
        timing = {
            "session.timeout.ms": round(SESSION_S * 1000),
            "heartbeat.interval.ms": 1000,
            "max.poll.interval.ms": 30_000,
        }
        timing["linger.ms"] = 150  # claims are longer on their way, so that more twins meet there
        return {
            "dataset": "chaos",
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap_servers,
                "topic": self.topic,
                "client": timing,
            },
            "fetch": {"schemes": ["file"], "hosts": [str(self._files)]},
            "decode": {"threads": 2},
            "embedder": {
                "type": "tests.plugins.thumbnail:ThumbnailEmbedder",
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
                "path": str(self._folder / "out"),
                "epoch_records": round(2.5 * self._rate),
                "shard_records": round(self._rate),
                "seal_after": "2s",
            },
            "batch": {"size": 64, "linger": "150ms"},
            "dead_letters": {"max_ratio": 1},
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
            assert time.monotonic() < deadline, [slot.replica.log for slot in self.slots]
            self._step()
        for number, fault in enumerate(faults, 1):
            at = time.monotonic() + fault.after_s
            while time.monotonic() < at or not self._is_up(fault):
                self._step()
            self._tell(f"fault {number:3} of {len(faults)}: {fault!s:24} {self._progress()}")
            self._strike(fault)

    def settle(self) -> int:
        """Ends the feed, waits until every record is decided, and stops the replicas until each
        ended well. The number of records."""
        while self._broker_at is not None or any(
            slot.wake_at or slot.start_at for slot in self.slots
        ):
            self._step()
        records = self.feed.stop()
        self._tell(f"quiet: {self._progress()}")
        before, since = self.decided, time.monotonic()
        while self.decided < records or any(
            slot.start_at or not slot.replica.count("partitions assigned") for slot in self.slots
        ):
            self._step()
            if self.decided != before:
                before, since = self.decided, time.monotonic()
            assert time.monotonic() - since < QUIET_S, (
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

    @property
    def decided(self) -> int:
        """Records in the committed epochs that the folder shows."""
        for path in (self.service.output / "manifests").glob("*.json"):
            if path.name not in self._counts:
                self._counts[path.name] = sum(json.loads(path.read_text())["counts"].values())
        return sum(self._counts.values())

    def _tell(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.0f} s  {line}")

    def _progress(self) -> str:
        up = "".join("-" if slot.start_at else "z" if slot.wake_at else "+" for slot in self.slots)
        return f"{self.decided} of {self.feed.produced} records decided, replicas {up}"

    def _is_up(self, fault: Fault) -> bool:
        return (
            self._broker_at is None
            if fault.kind.startswith("broker")
            else self.slots[fault.target].start_at is None
        )

    def _strike(self, fault: Fault) -> None:
        self.feed.forget()
        slot, now = self.slots[fault.target], time.monotonic()
        if fault.kind.startswith("broker"):
            (self.broker.kill if fault.kind == "broker kill" else self.broker.stop)()
            self._broker_at = time.monotonic() + fault.for_s
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

    def _step(self) -> None:
        """Ends what lasted long enough, and is the supervisor: starts again what ended."""
        time.sleep(0.1)
        now = time.monotonic()
        if self._broker_at is not None and now >= self._broker_at:
            self.broker.start()
            self._broker_at = None
        for number, slot in enumerate(self.slots):
            if slot.wake_at is not None and now >= slot.wake_at:
                slot.wake_at = None
                slot.replica.kill(signal.SIGCONT)
            if slot.start_at is not None:
                if now >= slot.start_at:
                    self.slots[number] = Slot(self._start(f"w{number}"))
            elif slot.replica.process.poll() is not None:
                self._ended(number, slot)
                slot.wake_at, slot.start_at = None, now + self._dice.uniform(0.0, 1.5)

    def _start(self, writer: str, *args: str) -> Replica:
        kafka = {
            **self.service.settings["kafka"],
            "group_instance_id": writer if self._static else None,
        }
        return self.service.start(
            *args,
            writer=writer,
            kafka=kafka,
            env={"STREAMER_LOG_LEVEL": "debug", "OMP_NUM_THREADS": "1"},
        )

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
        explained = code in slot.expects or code == 75
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
        evidence = read_evidence(
            self.service.output, self.service.dataset, self.broker.bootstrap_servers, self.topic
        )
        log = read_log(evidence.claims, self._capacity)
        found = [
            *self.wrong,
            *violations(evidence, log),
            *wrong_digests(evidence.claims, self.digests, self._capacity),
        ]
        if len(evidence.produced) != records:
            found.append(
                f"{records} records were produced, and {len(evidence.produced)} are in the topic"
            )
        if len(self.digests) < len(self.slots):
            found.append(f"{len(self.digests)} digests were told, fewer than there are replicas")
        report = json.loads(
            streamer("dataset", "verify", str(self.service.output), "--json", expect=None).stdout
        )
        found += [f"`dataset verify` says {problem}" for problem in report["problems"]]
        if report["records"] != records:
            found.append(f"`dataset verify` counts {report['records']} records of {records}")
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
def main(
    minutes: float,
    faults: int,
    seed: int | None,
    replicas: int,
    partitions: int,
    rate: float,
    static: bool,
    capacity: int | None,
) -> None:
    """Chaos on a real Kafka, and a judgement at the end. Exit 1 on any violation; the folder is
    kept then."""
    console = Console()
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix=f"streamer-chaos-{seed}-"))

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"seed {seed}, folder {folder}")
    planned = plan(seed, faults, minutes * 60 / faults, replicas, LONG_DECK)
    with Chaos(folder, seed, replicas, partitions, rate, static, capacity, say) as chaos:
        chaos.run(planned)
        records = chaos.settle()
        _, told, found = chaos.judge(records)
    table = Table("seed", str(seed), show_header=True)
    for name, count in (Counter(fault.kind for fault in planned)).most_common():
        table.add_row(f"faults: {name}", str(count))
    for name, value in told.items():
        table.add_row(name, str(value))
    for name, count in chaos.ends.most_common():
        table.add_row(f"processes ended with {name}", str(count))
    for cause, count in chaos.drops.most_common():
        table.add_row(f"uncommitted work dropped: {cause}", str(count))
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
