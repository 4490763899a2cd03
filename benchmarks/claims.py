"""How many claims a second can a replica follow? Entries are decoded and melded as the tailer does
it, on one thread; then snapshots.

The log is made beforehand: batches of vectors from a drifting stream, some of them near-duplicates
of vectors that are still in flight, as several replicas would claim them. Kafka is not in the
measure. Then the whole state is written as a snapshot, and read again.

    python3 tasks.py bench claims [--claims 100000] [--dim 512] [--batch 256] [--duplicates 0.3]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator

for _name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
):  # before numpy: one core is what is measured
    os.environ[_name] = "1"

import numpy as np

from benchmarks.vectors import Stream, near
from streamer.dedup.choose import open_index
from streamer.dedup.meld import WON, Meld
from streamer.records import F16
from streamer.sink.location import open_folder
from streamer.sink.snapshots import Snapshots, Wanted
from streamer.wire.claim import Claims, DatasetEntry, Open, decode, encode

THRESHOLD = 0.95
PARTITIONS = 6
LATE = 1000
"""Positions between what a claimant had seen and its claim's own place: four batches in flight."""


def log(claims: int, dim: int, batch: int, duplicates: float) -> Iterator[bytes]:
    stream, rng = Stream(dim, 1), np.random.default_rng(2)
    yield encode(DatasetEntry("topic", "sha256:model", dim, THRESHOLD, 1))
    for partition in range(PARTITIONS):
        yield encode(Open(partition, 1, partition, 0))
    position, last = 1 + PARTITIONS, np.empty((0, dim), np.float16)
    for entry in range(claims // batch):
        vectors: F16 = stream.take(batch)
        again = rng.random(batch) < duplicates
        if len(last):
            vectors[again] = near(
                rng,
                last[rng.integers(0, len(last), int(again.sum()))],
                rng.uniform(0.96, 1, int(again.sum())),
            )
        last = vectors
        offsets = np.arange(entry // PARTITIONS * batch, (entry // PARTITIONS + 1) * batch)
        yield encode(
            Claims(
                entry % PARTITIONS, entry % PARTITIONS, max(position - LATE, 0), offsets, vectors
            )
        )
        position += batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--claims", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--duplicates", type=float, default=0.3)
    args = parser.parse_args()

    entries = list(log(args.claims, args.dim, args.batch, args.duplicates))
    meld = Meld(args.dim, THRESHOLD, open_index(args.dim, THRESHOLD, "cpu"))
    won, slowest = 0, 0.0
    began = time.process_time()
    for value in entries:
        at = time.process_time()
        won += int((meld.apply(decode(value)).status == WON).sum())
        slowest = max(slowest, time.process_time() - at)
    seconds = time.process_time() - began
    claims = sum(
        len(entry.offsets) for value in entries if isinstance(entry := decode(value), Claims)
    )
    result = {
        "benchmark": "claims", "claims": claims, "dim": args.dim, "batch": args.batch, "won": won, "claims_per_s": round(claims / seconds),
        "cpu_us_per_claim": round(1e6 * seconds / claims, 2), "slowest_entry_ms": round(1e3 * slowest, 1),
        "log_bytes_per_claim": round(sum(map(len, entries)) / claims),
    }  # fmt: skip
    del entries
    print(json.dumps(result | snapshot(meld)))


def snapshot(meld: Meld) -> dict[str, object]:
    """Trains and merges, then writes the state to a folder and reads it into another meld, on as
    many threads as the service has."""
    while meld.index.maintain():
        pass
    assert meld.dataset is not None
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(open_folder(folder), "w", Wanted(meld.dataset, "log", None))
        times = [time.monotonic()]
        state = meld.state()
        times.append(time.monotonic())
        header = snapshots.write(state, 0)
        times.append(time.monotonic())
        again = Meld(meld.dim, THRESHOLD, open_index(meld.dim, THRESHOLD, "cpu"))
        cpu = time.process_time()
        loaded = snapshots.load(again.store)
        assert loaded is not None
        again.restore(loaded[1])
        times.append(time.monotonic())
        cpu = time.process_time() - cpu
    assert again.digest() == meld.digest()
    pause, write, restore = np.diff(times).tolist()
    return {
        "snapshot_bytes": header.bytes, "snapshot_winners": header.winners, "snapshot_pause_ms": round(1e3 * pause, 1),
        "snapshot_write_s": round(write, 2), "restore_s": round(restore, 2), "restore_cpu_s": round(cpu, 2), "lists": again.index.gauges()["lists"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
