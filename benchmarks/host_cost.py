"""What does a record cost on the host, in CPU time, and how much of it under Python's lock?

The real stages, one after the other in one thread, on real JPEGs of which all are accepted: the
source takes messages, the decoder reads envelope and header and hashes, the judge decides and looks
up, the claim stage claims and melds, the writer writes tars and Parquet and seals. Replaced are
Kafka (messages are ready, claims come back at once) and what is no host cost: the pixels and the
model. CPU time is the thread's own, so that neighbours disturb it little; each number is the median
of the rounds.

"unlocked" is the part of it that runs with the lock released, as far as it is known: sha256, files,
Parquet's encoder. The rest is what all threads of a replica together can do only one at a time.
The floors are what nobody can save: hashing the image three times (record, tar, reading back), and
writing and reading its bytes.

    python3 tasks.py bench host_cost [--records 2048] [--rounds 5] [--kilobytes 44]
    python3 tasks.py bench host_cost --functions 15     # also the share of each function, by part
    python3 tasks.py bench host_cost --line             # the same records through the whole line
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import io
import pstats
import tempfile
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks.harness import Watched, broker, emit, fill, run_line  # isort: skip - before numpy

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Message

from benchmarks.pictures import photographs, pictures
from benchmarks.spine import SEED_BYTES, SeededModel
from benchmarks.vectors import Stream
from streamer import app
from streamer.config import Config
from streamer.config import parse as parse_config
from streamer.decode.decoder import Decoder
from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.dedup.store import FIRST_FIT
from streamer.flow.channel import Channel
from streamer.flow.item import Decided, Fence, Run, Span
from streamer.flow.worker import Failure
from streamer.judge.batcher import Batch
from streamer.judge.filters import Rules
from streamer.judge.judge import Judge
from streamer.kafka.claims import ClaimStage
from streamer.kafka.patience import IMPATIENT
from streamer.kafka.source import CHUNK_RECORDS, Source
from streamer.ops.metrics import Metrics
from streamer.records import Decoded, Term
from streamer.sink.epoch import EpochWriter
from streamer.sink.local import LocalFolder, _LocalDrain
from streamer.sink.storage import Storage
from streamer.sink.writer import EpochThread
from streamer.wire.claim import Claims, Entry, Open, decode, encode, split

PARTS = ("source", "decode", "judge", "claim", "meld", "write", "seal")
BATCH = 256
PARTITIONS = 4


class Clock:
    """CPU seconds of this thread by part, whole and unlocked."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.profiles = {part: cProfile.Profile(time.thread_time) for part in PARTS}
        self.profiling = False
        self._part = ""
        self._unlocked = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._part = name
        if self.profiling:
            self.profiles[name].enable()
        began = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] += time.thread_time() - began
            self.profiles[name].disable()

    def unlocked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            self._unlocked += 1
            began = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self._unlocked -= 1
                if not self._unlocked:
                    self.seconds[f"{self._part} unlocked"] += time.thread_time() - began

        return timed

    @contextmanager
    def watching_the_lock(self) -> Iterator[None]:
        """Calls that release the lock are timed: that itself takes time, so nothing else is."""
        clock, sha256, opened = self, hashlib.sha256, LocalFolder.open

        class Digest:
            def __init__(self, data: bytes = b"") -> None:
                self._digest = clock.unlocked(sha256)(data)
                self.update = clock.unlocked(self._digest.update)
                self.hexdigest = self._digest.hexdigest

        class Opened:
            def __init__(self, file: Any) -> None:
                self._file = file
                self.read = clock.unlocked(file.read)
                self.readinto = clock.unlocked(file.readinto)

            def __enter__(self) -> Opened:
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

        with (
            mock.patch.object(hashlib, "sha256", Digest),
            mock.patch.object(LocalFolder, "open", lambda *args: Opened(opened(*args))),
            mock.patch.object(_LocalDrain, "write", self.unlocked(_LocalDrain.write)),
            mock.patch.object(_LocalDrain, "finish", self.unlocked(_LocalDrain.finish)),
            mock.patch.object(
                pq.ParquetWriter, "write_table", self.unlocked(pq.ParquetWriter.write_table)
            ),
        ):
            yield


class ReadyConsumer:
    """In place of a Kafka client: its messages are there."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = deque(messages)

    def poll(self, _timeout: float) -> Message | None:
        return self._messages.popleft() if self._messages else None


class LocalLog:
    """In place of `streamer.kafka.claim_log.ClaimLog`: what is appended can be read at once."""

    topic = "claims"
    patience = IMPATIENT

    def __init__(self, meld: Meld) -> None:
        self.meld = meld
        self._entries: list[bytes] = []

    def append(self, entry: Entry) -> None:
        self._entries.append(encode(entry))

    def append_claims(self, claims: Claims) -> list[Claims]:
        parts = split(claims, 1_000_000)
        for part in parts:
            self.append(part)
        return parts

    def tail(self, _timeout: float) -> list[Any]:
        entries, self._entries = self._entries, []
        return [(entry, self.meld.apply(entry)) for entry in map(decode, entries)]


class Line:
    """The stages of one round. ``records`` go through them in batches."""

    def __init__(self, config: Config, dim: int, messages: list[Message]) -> None:
        self.fence = Fence(Run(1, 0))
        failure, metrics = Failure(), Metrics()
        self.terms = {p: Term(p, p + 1, 1, 0) for p in range(PARTITIONS)}
        meld = Meld(dim, 0.95, open_index(dim, 0.95, "cpu"))
        for p, term in self.terms.items():
            meld.apply(Open(p, 1, term.id, 0))
        # beyond the first fit of codes, which would be a quarter of the meld's time in a short round
        meld.apply(Open(PARTITIONS, 1, 0, 0))
        known = Stream(dim).take(FIRST_FIT)
        meld.apply(Claims(PARTITIONS, 0, 0, np.arange(len(known)), known))
        self.decided: Channel[Decided] = Channel("write", 4)
        self.claims = ClaimStage(config, LocalLog(meld), self.decided, self.fence, failure, metrics)  # type: ignore[arg-type]
        rules = Rules(config.filters, config.output.formats)
        model = MiddleModel(dim)
        self.decoder = Decoder(
            config, model.transform, model.decode, model.draft_size, rules.header_rules,
            self.claims.prior, lambda *_: False, failure, lambda: metrics.stage("decode"),
        )  # type: ignore[arg-type]  # fmt: skip
        self.judge = Judge(
            None, model, rules, meld, self.claims, False, failure, metrics, lambda: None
        )  # type: ignore[arg-type]
        storage = Storage(config.output.path, config.dataset)

        def open_epoch(epoch: int, uuid: str) -> EpochWriter:
            return EpochWriter(
                storage, dataset=config.dataset, writer=config.writer, epoch=epoch, uuid=uuid, topic="photographs", dim=dim,
                score_names=(), pipeline="0" * 64, limits=config.output, fingerprints={"threshold": 0.95},
            )  # fmt: skip

        self.writer = EpochThread(
            config, self.decided, self.fence, open_epoch, lambda: 0, {}, failure, metrics, lambda: None
        )  # fmt: skip
        self.source = Source(config, None)  # type: ignore[arg-type]
        self.source.consumer.close()
        self.source.consumer = ReadyConsumer(messages)
        self.source.owned = set(self.terms)
        self.source.reached = dict.fromkeys(self.terms, 0)

    def run(self, clock: Clock) -> None:
        while rows := self._batch(clock):
            span = Span(self.fence.run, self.terms, {})
            with clock.part("judge"):
                batch = Batch(span, rows)
                judged = self.judge._judge(batch, self.judge._submit(batch))
            with clock.part("claim"):
                self.claims.submit(judged)
            with clock.part("meld"):
                self._meld()
            decided = self.decided.get(0)
            assert decided is not None
            outcomes = {d.outcome for d in decided.batch.decisions}
            assert outcomes == {"accepted"}, outcomes
            with clock.part("write"):
                self.writer._append(decided)
        with clock.part("seal"):
            self.writer._seal(0)
        self.decoder.close()

    def _batch(self, clock: Clock) -> list[Decoded]:
        rows: list[Decoded] = []
        while len(rows) < BATCH:
            with clock.part("source"):
                self.source.poll(0)
                records, _, _ = self.source.take()
            if not records:
                break
            done: Future[list[Decoded]] = Future()
            self.decoder._unfinished.add(done)
            done.add_done_callback(self.decoder._unfinished.discard)
            with clock.part("decode"):
                self.decoder._start(records, done)
            rows += done.result()
        return rows

    def _meld(self) -> None:
        """One turn of `ClaimStage.run`."""
        with self.claims._changed:
            for entry, outcome in self.claims._log.tail(0):
                assert isinstance(entry, Claims)
                self.claims._settle(entry, outcome)
        self.claims._emit()


class MiddleModel(SeededModel):
    """`SeededModel` of what is in the middle of the bytes, where JPEGs differ."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.decode = lambda data: np.frombuffer(
            data, np.uint8, 3 * SEED_BYTES, len(data) // 2
        ).reshape(1, SEED_BYTES, 3)

    def submit(self, pixels: Any) -> Any:
        return super().submit([p.reshape(-1)[:SEED_BYTES] for p in pixels])


def messages(images: list[bytes]) -> list[Message]:
    """As the client gives them, partition by partition in stretches, as fetches bring them."""
    offsets = [0] * PARTITIONS
    made = []
    for i, data in enumerate(images):
        partition = i // CHUNK_RECORDS % PARTITIONS
        headers = [
            ("text", b"a caption of the usual length for one photograph"),
            ("id", b"photographs/%08d" % i),
            ("url", b"https://example.org/photographs/%08d.jpg" % i),
        ]
        made.append(
            Message(
                topic="photographs", partition=partition, offset=offsets[partition], value=data, headers=headers, timestamp=(1, 1_700_000_000_000 + i)
            )
        )  # fmt: skip
        offsets[partition] += 1
    return made


def images_of(kilobytes: int, records: int) -> list[bytes]:
    """``records`` different JPEGs of 640 × 480, of ``kilobytes`` on average."""
    originals = pictures(photographs(None), min(records, 256))
    quality = 90
    while quality > 10:
        made = [_again(data, quality) for data in originals]
        if sum(map(len, made)) <= 1000 * kilobytes * len(made):
            break
        quality -= 2
    rng = np.random.default_rng(5)
    return [_varied(made[i % len(made)], rng) for i in range(records)]


def _again(data: bytes, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _varied(data: bytes, rng: np.random.Generator) -> bytes:
    """Another picture to a hash and to the seeded model; the header stays as it is."""
    at = len(data) // 2
    return (
        data[:at] + rng.integers(1, 255, SEED_BYTES, np.uint8).tobytes() + data[at + SEED_BYTES :]
    )


def floors(images: list[bytes], folder: Path) -> dict[str, float]:
    """µs a record: hashing an image once, writing its bytes, reading them."""
    began = time.thread_time()
    for data in images:
        hashlib.sha256(data)
    hashed = time.thread_time()
    with (folder / "floor").open("wb", buffering=0) as file:
        for data in images:
            file.write(data)
    written = time.thread_time()
    buffer = bytearray(1 << 18)
    with (folder / "floor").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    read = time.thread_time()
    per = 1e6 / len(images)
    return {
        "floor sha256": per * (hashed - began),
        "floor write": per * (written - hashed),
        "floor read": per * (read - written),
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--records", type=int, default=2_048)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--kilobytes", type=int, default=44)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--functions", type=int, default=0)
    options.add_argument("--line", action="store_true")
    given = options.parse_args()
    images = images_of(given.kilobytes, given.records)
    if given.line:
        whole_line(given, images)
    else:
        by_part(given, images)


def whole_line(given: argparse.Namespace, images: list[bytes]) -> None:
    """Real Kafka and the real threads: CPU µs a record by thread, median of the rounds."""
    name = f"host-cost-{uuid.uuid4().hex[:8]}"
    rounds: list[dict[str, Any]] = []
    parts = app.Parts(load_model=lambda _: MiddleModel(given.dim), metrics=Watched)  # type: ignore[arg-type,return-value]
    with broker() as servers:
        fill(servers, name, images, PARTITIONS)
        for i in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(run_line(_config(folder, f"{name}-{i}", name, servers), parts))
    threads = {thread for r in rounds for thread in r["thread_cpu_s"]}
    per = 1e6 / given.records
    emit(
        "host_cost", **vars(given), outcomes=rounds[-1]["outcomes"],
        cpu_us_by_thread=_rounded({
            thread: per * median(r["thread_cpu_s"].get(thread, 0.0) for r in rounds) for thread in sorted(threads)
        }),
    )  # fmt: skip


def by_part(given: argparse.Namespace, images: list[bytes]) -> None:
    ready = messages(images)
    rounds: list[dict[str, float]] = []
    clock = Clock()
    for i in range(given.rounds + 2 + bool(given.functions)):
        clock.seconds.clear()
        clock.profiling = i > given.rounds + 1
        with tempfile.TemporaryDirectory() as folder:
            line = Line(_config(folder), given.dim, ready)
            if i == 0 or clock.profiling:  # the first one warms up
                line.run(clock)
            elif i == given.rounds + 1:
                with clock.watching_the_lock():
                    line.run(clock)
                unlocked = dict(clock.seconds)
            else:
                line.run(clock)
                rounds.append({**clock.seconds, **floors(images, Path(folder))})
    per = 1e6 / given.records
    whole = {part: per * median(r[part] for r in rounds) for part in PARTS}
    free = {part: per * unlocked.get(f"{part} unlocked", 0.0) for part in PARTS}
    emit(
        "host_cost", **vars(given), image_bytes=sum(map(len, images)) // len(images),
        cpu_us=_rounded(whole), unlocked_us=_rounded(free), locked_us=_rounded({p: whole[p] - free[p] for p in PARTS}),
        floor_us={name: round(median(r[f"floor {name}"] for r in rounds), 1) for name in ("sha256", "write", "read")},
    )  # fmt: skip
    if given.functions:
        for part, profile in clock.profiles.items():
            print(f"\n{part}")
            pstats.Stats(profile).sort_stats("tottime").print_stats(given.functions)


def _rounded(by_part: dict[str, float]) -> dict[str, float]:
    return {
        **{part: round(us, 1) for part, us in by_part.items()},
        "sum": round(sum(by_part.values()), 1),
    }


def _config(
    folder: str,
    dataset: str = "host-cost",
    topic: str = "photographs",
    servers: str = "127.0.0.1:1",
) -> Config:
    return parse_config({
        "dataset": dataset, "writer": "bench", "kafka": {"bootstrap_servers": servers, "topic": topic},
        "embedder": {"type": "timm", "model": "replaced by SeededModel"}, "dedup": {"threshold": 0.95, "snapshots": "off"},
        "output": {"path": folder}, "decode": {"threads": 1}, "http": {"host": "127.0.0.1", "port": 0},
    })  # fmt: skip


if __name__ == "__main__":
    main()
