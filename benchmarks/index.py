"""What does a search for near-duplicates cost, and what does it miss, as the index grows? Ours beside flat search and the graphs.

A stream of vectors with power-law topics and drift fills each index; at each size it is asked for fresh vectors (three in four) and for
planted near-duplicates. Every contender runs in a process of its own, on one thread, on the same vectors, in the same run, and stops at the
size that it does not reach within its time. Truth is brute force: float32 nominates with a margin, float64 decides.

    python3 tasks.py bench index [--sizes 10000,100000,300000] [--contenders certified,flat,hnswlib] [--plot FILE.png]
    python3 tasks.py bench index --sizes 10000,30000,100000,300000,1000000 --budget 900
    python3 tasks.py bench index --planted 100000        how many answers differ from brute force: batches of any size, with a restart

hnswlib and usearch are contenders where they are installed (`.venv/bin/pip install hnswlib usearch`).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: one thread is what is measured
    os.environ[_name] = "1"

import faiss
import numpy as np

from benchmarks.vectors import Stream, near
from streamer.dedup.arithmetic import similarities_of, widen
from streamer.dedup.calibration import Calibration
from streamer.dedup.ivf import IvfIndex
from streamer.dedup.store import WinnerStore
from streamer.records import F16, F32, F64, I64

THRESHOLD = 0.95
BATCH = 256
STEP = 2048
PLANTED = 4
"""One query in so many is a planted near-duplicate."""
SEED = 7


class Contender(Protocol):
    def add(self, vectors: F16) -> None: ...
    def search(self, vectors: F16) -> tuple[I64, F64]:
        """A row at or above the threshold or −1, and the similarity."""


class Ours:
    def __init__(self, dim: int, calibrated: bool) -> None:
        self.index = IvfIndex(WinnerStore(dim), THRESHOLD, Calibration() if calibrated else None)
        self.calibrated = calibrated
        self._rows = 0

    def add(self, vectors: F16) -> None:
        rows = np.arange(self._rows, self._rows + len(vectors))
        self.index.store.append(vectors, self.index.store.view.sketch.codes(widen(vectors)), rows, 0, rows)
        self.index.add(vectors, rows)
        self._rows += len(vectors)
        while self.index.maintain():
            pass

    def search(self, vectors: F16) -> tuple[I64, F64]:
        found = self.index.search(vectors)
        return found.winners, found.similarity

    def warm_up(self, rng: np.random.Generator) -> None:
        """Lets a calibration learn before it is measured, as hours of a service would."""
        while self.calibrated and self.index.gauges()["rho"] >= 1 and self.index.gauges()["lists"]:
            rows = rng.integers(0, self._rows, 4 * BATCH)
            self.index.search(near(rng, self.index.store.view.vectors(rows), rng.uniform(THRESHOLD + 1e-3, 1, len(rows))))


class FaissIndex:
    def __init__(self, index: Any, train_at: int = 0) -> None:
        faiss.omp_set_num_threads(1)
        self._index = index
        self._train_at = train_at
        self._waiting: list[F32] = []

    @property
    def is_ready(self) -> bool:
        return bool(self._index.is_trained)

    def add(self, vectors: F16) -> None:
        wide = vectors.astype(np.float32)
        if not self._index.is_trained:
            self._waiting.append(wide)
            if sum(map(len, self._waiting)) < self._train_at:
                return
            wide, self._waiting = np.concatenate(self._waiting), []
            self._index.train(wide)
        self._index.add(wide)

    def search(self, vectors: F16) -> tuple[I64, F64]:
        products, rows = self._index.search(vectors.astype(np.float32), 1)
        return np.where(products[:, 0] >= THRESHOLD, rows[:, 0], -1), products[:, 0].astype(np.float64)


class Hnswlib:
    def __init__(self, dim: int, m: int, construction: int, ef: int) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", dim)
        self._index.init_index(1024, M=m, ef_construction=construction)
        self._index.set_ef(ef)
        self._index.set_num_threads(1)

    def add(self, vectors: F16) -> None:
        count = self._index.get_current_count() + len(vectors)
        if count > self._index.get_max_elements():
            self._index.resize_index(2 * count)
        self._index.add_items(vectors.astype(np.float32), num_threads=1)

    def search(self, vectors: F16) -> tuple[I64, F64]:
        rows, distances = self._index.knn_query(vectors.astype(np.float32), k=1, num_threads=1)
        similarity = 1 - distances[:, 0].astype(np.float64)
        return np.where(similarity >= THRESHOLD, rows[:, 0].astype(np.int64), -1), similarity


class Usearch:
    def __init__(self, dim: int) -> None:
        from usearch.index import Index

        self._index = Index(ndim=dim, metric="ip", dtype="f16", connectivity=16, expansion_add=100, expansion_search=64)

    def add(self, vectors: F16) -> None:
        first = len(self._index)
        self._index.add(np.arange(first, first + len(vectors)), vectors, threads=1)

    def search(self, vectors: F16) -> tuple[I64, F64]:
        found = self._index.search(vectors, 1, threads=1)
        similarity = 1 - np.asarray(found.distances, np.float64).reshape(-1)
        return np.where(similarity >= THRESHOLD, np.asarray(found.keys).reshape(-1).astype(np.int64), -1), similarity


def _ivf_once(dim: int) -> FaissIndex:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, 512, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 8
    return FaissIndex(index, train_at=16_384)


def _faiss_hnsw(dim: int) -> FaissIndex:
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 100, 64
    return FaissIndex(index)


CONTENDERS: dict[str, tuple[str, Callable[[int], Contender]]] = {
    "flat": ("Faiss flat", lambda dim: FaissIndex(faiss.IndexFlatIP(dim))),
    "certified": ("streamer, certified", lambda dim: Ours(dim, False)),
    "calibrated": ("streamer, calibrated", lambda dim: Ours(dim, True)),
    "ivf-once": ("Faiss IVF512, 8 probes, trained once", _ivf_once),
    "faiss-hnsw": ("Faiss HNSW M16/100/64", _faiss_hnsw),
    "hnswlib": ("hnswlib M16/100/64", lambda dim: Hnswlib(dim, 16, 100, 64)),
    "hnswlib-32": ("hnswlib M32/200/256", lambda dim: Hnswlib(dim, 32, 200, 256)),
    "usearch": ("usearch M16/100/64, f16", Usearch),
}


def queries_at(stream: Stream, count: int, held: F16) -> F16:
    """The same for every contender: what the stream brings next, and near-duplicates of what it has brought. Leaves the stream as it is."""
    rng = np.random.default_rng(len(held))
    planted = near(rng, held[np.sort(rng.integers(0, len(held), count // PLANTED))], rng.uniform(THRESHOLD + 1e-3, 1, count // PLANTED))
    both = np.concatenate([planted, copy.deepcopy(stream).take(count - len(planted))])
    return both[rng.permutation(len(both))]


def truth(held: F16, queries: F16) -> I64:
    """(n,) lowest row at or above the threshold, −1 for none: float32 products with a margin, then float64."""
    first = np.full(len(queries), -1, np.int64)
    for low in range(0, len(held), 8192):
        rows = held[low : low + 8192].astype(np.float32)
        for at in range(0, len(queries), 1024):
            left = np.flatnonzero(first[at : at + 1024] < 0) + at
            i, j = np.nonzero(queries[left].astype(np.float32) @ rows.T >= THRESHOLD - 1e-3)
            exact = similarities_of(queries[left[i]], held[low + j]) >= THRESHOLD
            for query, row in zip(left[i[exact]].tolist(), (low + j[exact]).tolist(), strict=True):
                if first[query] < 0:
                    first[query] = row
    return first


def measure(name: str, dim: int, sizes: list[int], count: int, budget: float, folder: Path) -> None:
    """One contender, in this process: a JSON line for each size."""
    stream, index = Stream(dim, SEED), CONTENDERS[name][1](dim)
    stored = folder / f"{name}.f2"
    gc.collect()
    before, rows, began = _private(), 0, time.process_time()
    for size in sizes:
        segment, start = 0.0, rows
        while rows < size:
            vectors = stream.take(min(STEP, size - rows))
            with stored.open("ab") as file:  # and not in memory, which is measured
                vectors.tofile(file)
            at = time.process_time()
            index.add(vectors)
            segment += time.process_time() - at
            rows += len(vectors)
            if time.process_time() - began > budget:
                return
        gc.collect()
        memory = _private() - before
        if not getattr(index, "is_ready", True):
            continue
        everything = np.memmap(stored, np.float16, "r").reshape(-1, dim)
        queries = queries_at(stream, count, everything)
        known = folder / f"truth-{size}.npy"
        if not known.exists():
            np.save(known, truth(everything, queries))
        expected = np.load(known)
        if isinstance(index, Ours):
            index.warm_up(np.random.default_rng(3))
        index.search(queries[:BATCH])
        at = time.process_time()
        answers = [index.search(queries[low : low + BATCH]) for low in range(0, len(queries), BATCH)]
        searching = (time.process_time() - at) / len(queries)
        found = np.concatenate([winners for winners, _ in answers])
        right = similarities_of(queries, everything[np.maximum(found, 0)]) >= THRESHOLD
        hits = (found >= 0) & right
        line = {
            "contender": name, "size": size, "search_us": round(1e6 * searching, 1), "add_us": round(1e6 * segment / (size - start), 1),
            "recall": round(float((hits & (expected >= 0)).sum() / (expected >= 0).sum()), 5),
            "precision": round(float(hits.sum() / max((found >= 0).sum(), 1)), 5),
            "different": int((found != expected).sum()) if isinstance(index, Ours) else None,
            "queries": len(queries), "matches": int((expected >= 0).sum()),
            "bytes_per_vector": round(memory / size),
            "gauges": {k: round(v, 4) for k, v in index.index.gauges().items()} if isinstance(index, Ours) else None,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


def planted(dim: int, size: int, count: int) -> dict[str, Any]:
    """How many of ``count`` planted near-duplicates get another answer than brute force gives, while the index grows and starts again."""
    stream, rng = Stream(dim, SEED), np.random.default_rng(5)
    index, held = Ours(dim, False), np.empty((0, dim), np.float16)
    asked = different = restarts = 0
    for _ in range(10):
        vectors = stream.take(size // 10)
        index.add(vectors)
        held = np.concatenate([held, vectors])
        queries = near(rng, held[rng.integers(0, len(held), count // 10)], rng.uniform(THRESHOLD - 1e-4, 1, count // 10))
        expected = truth(held, queries)
        cuts = np.sort(rng.integers(0, len(queries), len(queries) // 200))
        found = np.concatenate([index.search(part)[0] for part in np.split(queries, cuts)])
        asked, different = asked + int((expected >= 0).sum()), different + int((found != expected).sum())
        again = Ours(dim, False)
        rows = np.arange(len(held))
        again.index.store.append(held, again.index.store.view.sketch.codes(widen(held)), rows, 0, rows)
        again.index.restore(index.index.state())
        again._rows = len(held)
        index, restarts = again, restarts + 1
        print(f"  {len(held)} vectors, {asked} duplicates asked for, {different} different", file=sys.stderr, flush=True)
    return {"benchmark": "index --planted", "dim": dim, "vectors": size, "duplicates": asked, "different": different, "restarts": restarts}


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="CPU µs per vector on one thread", title_justify="left")
    for heading in ("contender", "vectors", "search", "add", "sum", "recall", "precision", "different", "bytes per vector"):
        table.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=heading == "contender")
    for line in lines:
        total = line["search_us"] + line["add_us"]
        table.add_row(
            CONTENDERS[line["contender"]][0], f"{line['size']:,}", f"{line['search_us']:.0f}", f"{line['add_us']:.0f}", f"{total:.0f}",
            f"{line['recall']:.4f}", f"{line['precision']:.4f}", "" if line["different"] is None else str(line["different"]),
            str(line["bytes_per_vector"]),
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (cost, recall) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, (label, _) in CONTENDERS.items():
        mine = [line for line in lines if line["contender"] == name]
        ours = name in ("certified", "calibrated")
        style = {"label": label, "marker": "o", "linewidth": 2.5 if ours else 1.2, "markersize": 5, "zorder": 3 if ours else 2}
        cost.plot([m["size"] for m in mine], [m["search_us"] + m["add_us"] for m in mine], **style)
        recall.plot([m["size"] for m in mine], [m["recall"] for m in mine], **style)
    for axes, title in ((cost, "CPU µs per vector: one search and one add, one thread"), (recall, f"recall at cosine {THRESHOLD}")):
        axes.set(xscale="log", xlabel="vectors in the index", title=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    cost.set_yscale("log")
    cost.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,30000,100000", help="vectors at which to measure, ascending")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=20_480)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--budget", type=float, default=300.0, help="CPU seconds after which a contender is not filled any further")
    parser.add_argument("--planted", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    if args.child:
        measure(args.child, args.dim, sizes, args.queries, args.budget, args.folder)
        return
    if args.planted:
        print(json.dumps(planted(args.dim, sizes[-1], args.planted)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        names = args.contenders.split(",")
        for name in sorted(names, key=lambda name: name != "flat"):  # it finds the truth on its way
            missing = {"hnswlib": "hnswlib", "hnswlib-32": "hnswlib", "usearch": "usearch"}.get(name)
            if missing and find_spec(missing) is None:
                print(f"{name}: not measured, {missing} is not installed", file=sys.stderr)
                continue
            print(f"{CONTENDERS[name][0]} …", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.index", "--child", name, "--folder", folder, "--sizes", args.sizes]
            command += ["--dim", str(args.dim), "--queries", str(args.queries), "--budget", str(args.budget)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                for text in child.stdout or ():
                    lines.append(json.loads(text))
                    print("  " + text.strip(), file=sys.stderr, flush=True)
    show(lines)
    if args.plot:
        plot(lines, args.plot)
    print(json.dumps({"benchmark": "index", "dim": args.dim, "threshold": THRESHOLD, "lines": lines}))


def _private() -> int:
    """Bytes in memory that are no file's."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text("ascii").split()
    return (int(resident) - int(shared)) * resource.getpagesize()


if __name__ == "__main__":
    main()
