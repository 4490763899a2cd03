"""How long does a start read the commit log of an old dataset, and what does it keep of it?

A real commit log of so many epochs is made: eight writers, each manifest with nine files. One
process reads all of it, as the start of a dataset without a checkpoint does, and leaves a
checkpoint. After 2 048 epochs more (256 of each writer) a fresh process starts from that.

    python3 tasks.py bench commit_log [--epochs 1000000]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from benchmarks.harness import broker
from streamer.app import SystemClock
from streamer.config import Config, parse
from streamer.kafka.admin import Admin
from streamer.kafka.commit import KafkaTransactions
from streamer.kafka.source import Source
from streamer.sink.engine import CHECKPOINT_EPOCHS, CommitEngine
from streamer.sink.errand import at_once
from streamer.sink.storage import Storage
from streamer.testing import create_topic
from streamer.wire.manifest import FileEntry, Manifest, encode

WRITERS = 8
TAIL = WRITERS * CHECKPOINT_EPOCHS
RECORDS = 50_000
DATASET = "old"


def manifest(n: int) -> Manifest:
    """The log's entry ``n``; 0 is the founding."""
    if n == 0:
        writer, epoch, uuid, previous = "founder", 0, "f" * 32, None
        partitions = dict.fromkeys(range(WRITERS), (0, 0))
    else:
        epoch, w = divmod(n - 1, WRITERS)
        writer, uuid = f"w-{w}", f"{n:032x}"
        previous = f"{n - WRITERS:032x}" if epoch else None
        partitions = {w: (epoch * RECORDS, (epoch + 1) * RECORDS)}
    name = f"{writer}-{epoch:08d}"
    files = [f"shards/jpg/{name}-{s:03d}.tar" for s in range(8)] + [f"metadata/{name}.parquet"]
    return Manifest(
        version=1, dataset=DATASET, writer=writer, epoch=epoch, uuid=uuid, previous_uuid=previous, partitions=partitions, skipped={},
        counts={"accepted": 40_000, "duplicate": 9_000, "filtered": 900, "invalid": 100},
        files=tuple(FileEntry(path, 1_000_000_000, "a" * 64, 5_000) for path in files) if n else (), claims_position=n * RECORDS,
        pipeline={"config": "sha256:" + "c" * 64}, started="2026-01-01T00:00:00.000+00:00", sealed="2026-01-01T00:01:00.000+00:00",
    )  # fmt: skip


def entries(first: int, end: int) -> Iterator[bytes]:
    """As `manifest` makes them, but faster."""
    sample = manifest(WRITERS + 1)
    text = encode(sample).decode()
    assert sample.previous_uuid is not None
    for n in range(first, end):
        if n <= WRITERS:
            yield encode(manifest(n))
            continue
        epoch, w = divmod(n - 1, WRITERS)
        yield (
            text.replace(sample.name, f"w-{w}-{epoch:08d}")
            .replace('"writer":"w-0","epoch":1', f'"writer":"w-{w}","epoch":{epoch}')
            .replace(sample.uuid, f"{n:032x}")
            .replace(sample.previous_uuid, f"{n - WRITERS:032x}")
            .replace('"0":[50000,100000]', f'"{w}":[{epoch * RECORDS},{(epoch + 1) * RECORDS}]')
            .replace(
                f'"claims_position":{(WRITERS + 1) * RECORDS}', f'"claims_position":{n * RECORDS}'
            )
            .encode()
        )


def append(servers: str, topic: str, first: int, end: int) -> None:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50, "compression.type": "lz4"})
    for value in entries(first, end):
        while True:
            try:
                producer.produce(topic, value)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def engine(config: Config) -> CommitEngine:
    admin = Admin(config.kafka)
    source = Source(config, admin)
    transactions = KafkaTransactions(
        config, admin, source.consumer, 1_000_000, lambda partitions: {}, lambda: None
    )
    storage = Storage(config.output.path, config.dataset)
    return CommitEngine(
        config.dataset, config.writer, transactions, storage, SystemClock(), {}, 300.0
    )


def memory_mb(field: str) -> float:
    """``VmRSS``: now; ``VmHWM``: at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def start(config: Config, whole: bool, answer: Any) -> None:
    """In a process of its own: the time, and what the peak of its memory grows by."""
    made = engine(config)
    before = memory_mb("VmRSS")
    began, cpu = time.monotonic(), time.process_time()
    if whole:
        for _ in made._entries():
            pass
        made._checkpoint(at_once)
    else:
        made.recover()
    answer.put(
        {
            "seconds": round(time.monotonic() - began, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "mb": round(memory_mb("VmHWM") - before, 1),
            "writers": len(made.ledger.last),
        }
    )


def measured(config: Config, whole: bool) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=start, args=(config, whole, answer))
    process.start()
    found: dict[str, Any] = answer.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=1_000_000)
    args = parser.parse_args()
    assert list(entries(0, 40)) == [encode(manifest(n)) for n in range(40)]
    with broker() as servers, tempfile.TemporaryDirectory() as folder:
        config = parse({
            "dataset": DATASET, "writer": "w-0", "kafka": {"bootstrap_servers": servers, "topic": "input"},
            "embedder": {"type": "a.b:C"}, "output": {"path": folder},
        })  # fmt: skip
        create_topic(servers, "input", partitions=WRITERS)
        Admin(config.kafka).ensure_dataset_topics(config)
        append(servers, config.commits_topic, 0, args.epochs)
        whole = measured(config, whole=True)
        append(servers, config.commits_topic, args.epochs, args.epochs + TAIL)
        root = Path(folder) / DATASET
        for n in range(args.epochs - WRITERS, args.epochs + TAIL):
            late = manifest(n)
            path = root / late.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(late))
        started = measured(config, whole=False)
        size = max(p.stat().st_size for p in (root / ".checkpoints").iterdir())
    whole["epochs_per_s"] = round(args.epochs / whole["seconds"])
    print(json.dumps({
        "epochs": args.epochs, "entry_bytes": len(encode(manifest(WRITERS + 1))), "tail": TAIL, "checkpoint_bytes": size,
        "without_checkpoint": whole, "from_checkpoint": started,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
