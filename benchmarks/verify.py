"""How fast is `streamer dataset verify`, of what the hardware allows?

A dataset of so many records is written by the line's own writers: 65 % accepted, 20 % duplicates of
a winner anywhere before them, 10 % filtered, 5 % invalid; image bytes are random, for the audit
decodes none. The command itself verifies it, as a process: once on one core, once on all of them,
and once more with what it remembers. The limit that is stated beside it is the time that one core
takes to read the files and hash them, each shard twice: once as a file, once image by image.

    python3 tasks.py bench verify [--records 120000] [--bytes 1000] [--dim 512] [--before CHECKOUT]

``--before``: a checkout of an older revision, whose command is measured on the same files first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.harness import emit  # isort: skip - before numpy

import numpy as np

from streamer.config import Output
from streamer.records import NEAR_DUPLICATE, DecidedBatch, Decision, Facts, Record
from streamer.sink.epoch import EpochWriter
from streamer.sink.storage import Storage
from streamer.wire.manifest import VERSION, Manifest

THRESHOLD = 0.9
BATCH = 256
WRITER = "w-0"


class Maker:
    """Writes epochs of one partition. Keeps the winners' vectors, which duplicates are made of."""

    def __init__(self, root: str, dim: int, nbytes: tuple[int, int], seed: int = 0) -> None:
        self.storage = Storage(root, "made")
        self._dim = dim
        self._nbytes = nbytes
        self._rng = np.random.default_rng(seed)
        self._noise = self._rng.bytes(4_000_000)
        self._offset = self._position = 0
        self._winners: list[int] = []
        self._vectors: list[Any] = []
        self._last: tuple[int, str | None] = (-1, None)

    def epoch(self, records: int) -> None:
        epoch, uuid, first = self._last[0] + 1, uuid4().hex, self._offset
        writer = EpochWriter(
            self.storage, dataset="made", writer=WRITER, epoch=epoch, uuid=uuid, topic="photos", dim=self._dim, score_names=("aesthetic",),
            pipeline="0123456789abcdef", limits=Output(path="unused"), fingerprints={"threshold": THRESHOLD},
        )  # fmt: skip
        for at in range(0, records, BATCH):
            writer.append(self._batch(min(BATCH, records - at)))
        manifest = Manifest(
            version=VERSION, dataset="made", writer=WRITER, epoch=epoch, uuid=uuid, previous_uuid=self._last[1],
            partitions={0: (first, self._offset)}, skipped={}, counts=writer.counts, files=writer.seal(), claims_position=self._position,
            pipeline={"config": "0123456789abcdef"}, started="2026-01-01T00:00:00Z", sealed="2026-01-01T00:01:00Z",
        )  # fmt: skip
        self.storage.project(manifest)
        self._last = (epoch, uuid)

    def _batch(self, n: int) -> DecidedBatch:
        kinds = self._rng.random(n)
        vectors = self._rng.standard_normal((n, self._dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        halves = vectors.astype(np.float16)
        records, facts, decisions = [], [], []
        for i in range(n):
            offset, self._offset = self._offset, self._offset + 1
            records.append(Record(0, offset, 1_700_000_000_000 + offset, b"", ()))
            known = self._facts(offset)
            facts.append(known if kinds[i] >= 0.05 else Facts())
            decisions.append(self._decision(kinds[i], offset, halves[i]))
        scores = {"aesthetic": self._rng.random(n).astype(np.float32)}
        return DecidedBatch(records, facts, decisions, halves, kinds >= 0.15, scores)

    def _facts(self, offset: int) -> Facts:
        low, high = self._nbytes
        size = int(self._rng.integers(low, high + 1))
        at = int(self._rng.integers(0, len(self._noise) - size))
        data = self._noise[at : at + size]
        return Facts(
            id=f"photos/{offset}.jpg",
            text=f"a caption of the usual length for photograph {offset}, naïvely put",
            url=f"https://images.example.org/{offset}.jpg?size=large",
            metadata={"lang": "en", "n": offset},
            data=data,
            format="jpg",
            width=640,
            height=480,
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def _decision(self, kind: float, offset: int, vector: Any) -> Decision:
        if kind < 0.05:
            return Decision("invalid", "empty_value")
        if kind < 0.15:
            return Decision("filtered", "min_side", ("min_side",))
        if kind < 0.35 and self._winners:
            at = int(self._rng.integers(len(self._winners)))
            vector[:] = self._vectors[at]  # a copy: some similarity at or above the threshold
            similarity = float(np.dot(vector.astype(np.float64), vector.astype(np.float64)))
            return Decision("duplicate", NEAR_DUPLICATE, (), (0, self._winners[at]), similarity)
        self._position += 1
        self._winners.append(offset)
        self._vectors.append(vector.copy())
        return Decision("accepted", claim=self._position)


def files(root: Path) -> list[Path]:
    return [p for below in ("shards", "metadata") for p in sorted((root / below).rglob("*.*"))]


def limit(root: Path) -> float:
    """CPU seconds of one core that reads each file in one go and hashes it, a shard twice."""
    began = time.process_time()
    buffer = bytearray(1 << 20)
    for path in files(root):
        digest, again = hashlib.sha256(), hashlib.sha256()
        with path.open("rb") as file:
            while n := file.readinto(buffer):
                digest.update(memoryview(buffer)[:n])
                if path.suffix == ".tar":
                    again.update(memoryview(buffer)[:n])
    return time.process_time() - began


def verify(root: Path, source: Path, *options: str) -> dict[str, Any]:
    """The command of ``source``, a checkout: seconds, CPU seconds of all its processes, and the
    peak of the first one's memory."""
    command = [sys.executable, "-m", "streamer", "dataset", "verify", str(root), "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    peak = 0
    with tempfile.TemporaryFile() as told:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=told, env=environment, cwd=source)
        while True:  # `ru_maxrss` would begin at what this process has
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int((status.partition("VmHWM:")[2].split() or ["0"])[0]))
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.05)
        seconds = time.monotonic() - began
        told.seek(0)
        report = json.loads(told.read())
    assert (os.waitstatus_to_exitcode(code), report["ok"]) == (0, True), report
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "cpu_us_per_record": round(1e6 * cpu / report["records"], 1),
        "records_per_s_a_core": round(report["records"] / cpu),
        "peak_mb": round(peak / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=120_000)
    parser.add_argument("--epoch", type=int, default=20_000)
    parser.add_argument("--bytes", default="1000", help="of an image: N, or LOW-HIGH")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--keep", type=Path, help="the folder to make it in, or to find it in")
    args = parser.parse_args()
    low, _, high = args.bytes.partition("-")
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        place = args.keep or Path(scratch)
        root = place / "made"
        if not root.exists():
            maker = Maker(str(place), args.dim, (int(low), int(high or low)))
            for at in range(0, args.records, args.epoch):
                maker.epoch(min(args.epoch, args.records - at))
        physical = limit(root)
        remember = ("--remember", str(Path(scratch) / "verified"))
        found = {} if args.before is None else {"before": verify(root, args.before.resolve())}
        found["one_core"] = verify(root, here, "--jobs", "1")
        found["all_cores"] = verify(root, here, *remember)
        found["again"] = verify(root, here, *remember)
        nbytes = sum(path.stat().st_size for path in files(root))
        emit(
            "verify",
            records=args.records,
            image_bytes=args.bytes,
            dim=args.dim,
            gb=round(nbytes / 1e9, 3),
            limit_cpu_s=round(physical, 2),
            of_the_limit=round(physical / found["one_core"]["cpu_s"], 3),
            load=os.getloadavg()[0],
            **found,
        )


if __name__ == "__main__":
    main()
