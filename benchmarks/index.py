"""What does a search for near-duplicates cost, and what does it miss, as the index grows? Ours
beside flat search and the graphs.

A stream of vectors with power-law topics and drift fills each index; at each size it is asked for
fresh vectors (three in four) and for planted near-duplicates. Every contender runs in a process of
its own, on one thread, on the same vectors, in the same run, and stops at the size that it does not
reach within its time. Truth is brute force: float32 nominates with a margin, float64 decides.

    python3 tasks.py bench index [--sizes 10000,100000,300000] [--contenders certified,flat,hnswlib] [--plot FILE.png]
    python3 tasks.py bench index --sizes 10000,30000,100000,300000,1000000 --budget 900
    python3 tasks.py bench index --planted 100000        how many answers differ from brute force: batches of any size, with a restart
    python3 tasks.py bench index --pauses --sizes 300000 how long searches take while a thread keeps the index up
    python3 tasks.py bench index --device cuda:0 --contenders certified,flat --sizes 1000000,4000000 --train-at 1000000
    python3 tasks.py bench index --images DIR --vectors FILE.npy [--copies 60] [--tau 0.9]

--device: where ours searches, and with --images the model computes. The table's µs are of CPUs also
then; ``search_wall_us`` of the JSON line has the time that passed.

--images: the stream is photographs and edits of them, in random order, as a model sees them (the
demo's, or --model, --config, as in the benchmark ``thresholds``). --copies: edits of each
photograph: the 19 of that benchmark, then several at random after one another. It takes 10 to 50 ms
of a core for each; --vectors keeps them, and a later run takes them from there or goes on where one
was ended. As in the service an index gets *winners* only: an edit at or above τ to an earlier
winner never enters it. Who wins is decided by brute force beforehand, so that every contender holds
the same; a contender that misses would hold more. --sizes are winners; queries are what arrives
next, winners and losers alike. A calibration learns from losers that arrived before, once each.

hnswlib and usearch are contenders where they are installed (`.venv/bin/pip install hnswlib
usearch`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

for _name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
):  # before numpy: one thread is what is measured
    os.environ[_name] = "1"

import faiss
import numpy as np

from benchmarks.vectors import (
    BATCH,
    Arrivals,
    Drifting,
    Source,
    Stream,
    first_match,
    near,
    reachable,
    winners_of,
)
from streamer.dedup.arithmetic import similarities_of, widen
from streamer.dedup.choose import open_index
from streamer.dedup.host import HostBackend
from streamer.records import F16, F32, F64, I64

STEP = 2048
SEED = 7


class Setting(NamedTuple):
    dim: int
    threshold: float
    train_at: int
    """Vectors at which lists are first made."""
    device: str = "cpu"
    """Where ours searches."""


class Contender(Protocol):
    def add(self, vectors: F16) -> None: ...
    def search(self, vectors: F16) -> tuple[I64, F64]:
        """(n, d) → (n,) the most similar row, or any at or above the threshold; −1 for none; and
        (n,) the similarity."""


class Ours:
    def __init__(self, setting: Setting, calibrated: bool) -> None:
        self.index = open_index(
            setting.dim, setting.threshold, setting.device, calibrated, setting.train_at
        )
        self.calibrated = calibrated
        self._rows = 0

    def append(self, vectors: F16) -> None:
        rows = np.arange(self._rows, self._rows + len(vectors))
        self.index.store.append(
            vectors, self.index.store.view.sketch.codes(widen(vectors)), rows, 0, rows
        )
        self.index.add(vectors, rows)
        self._rows += len(vectors)

    def add(self, vectors: F16) -> None:
        self.append(vectors)
        while self.index.maintain():
            pass

    def search(self, vectors: F16) -> tuple[I64, F64]:
        found = self.index.search(vectors)
        return found.winners, found.similarity

    def warm_up(self, lessons: Iterable[F16]) -> None:
        """Lets a calibration learn before it is measured, as hours of a service would."""
        for queries in lessons:
            if (
                not self.calibrated
                or self.index.gauges()["rho"] < 1
                or not self.index.gauges()["lists"]
            ):
                return
            self.index.search(queries)


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
        return rows[:, 0], products[:, 0].astype(np.float64)


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
        return rows[:, 0].astype(np.int64), 1 - distances[:, 0].astype(np.float64)


class Usearch:
    def __init__(self, dim: int) -> None:
        from usearch.index import Index

        self._index = Index(
            ndim=dim,
            metric="ip",
            dtype="f16",
            connectivity=16,
            expansion_add=100,
            expansion_search=64,
        )

    def add(self, vectors: F16) -> None:
        first = len(self._index)
        self._index.add(np.arange(first, first + len(vectors)), vectors, threads=1)

    def search(self, vectors: F16) -> tuple[I64, F64]:
        found = self._index.search(vectors, 1, threads=1)
        return np.asarray(found.keys).reshape(-1).astype(np.int64), 1 - np.asarray(
            found.distances, np.float64
        ).reshape(-1)


def _ivf_once(setting: Setting) -> FaissIndex:
    """512 lists, where they are made of 16 384 vectors."""
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(setting.dim),
        setting.dim,
        setting.train_at // 32,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.nprobe = 8
    return FaissIndex(index, setting.train_at)


def _faiss_hnsw(setting: Setting) -> FaissIndex:
    index = faiss.IndexHNSWFlat(setting.dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 100, 64
    return FaissIndex(index)


CONTENDERS: dict[str, tuple[str, Callable[[Setting], Contender]]] = {
    "flat": ("Faiss flat", lambda setting: FaissIndex(faiss.IndexFlatIP(setting.dim))),
    "certified": ("streamer, certified", lambda setting: Ours(setting, False)),
    "calibrated": ("streamer, calibrated", lambda setting: Ours(setting, True)),
    "ivf-once": ("Faiss IVF, 8 probes, trained once", _ivf_once),
    "faiss-hnsw": ("Faiss HNSW M16/100/64", _faiss_hnsw),
    "hnswlib": ("hnswlib M16/100/64", lambda setting: Hnswlib(setting.dim, 16, 100, 64)),
    "hnswlib-32": ("hnswlib M32/200/256", lambda setting: Hnswlib(setting.dim, 32, 200, 256)),
    "usearch": ("usearch M16/100/64, f16", lambda setting: Usearch(setting.dim)),
}


def measure(
    name: str,
    setting: Setting,
    source: Source,
    sizes: list[int],
    count: int,
    budget: float,
    folder: Path,
) -> None:
    """One contender, in this process: a JSON line for each size. ``folder``: where the first one
    leaves the truth for the others."""
    dim, threshold = setting.dim, setting.threshold
    index = CONTENDERS[name][1](setting)
    stored = folder / f"{name}.f2"
    gc.collect()
    before, rows, began = _private(), 0, time.process_time()
    for size in sizes:
        segment, start = 0.0, rows
        while rows < size:
            vectors = source.take(min(STEP, size - rows))
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
        queries = source.ask(everything, count)
        known = folder / f"truth-{size}.npy"
        if not known.exists():
            np.save(known, first_match(everything, queries, threshold))
        expected = np.load(known)
        if isinstance(index, Ours):
            index.warm_up(source.lessons(everything))
        index.search(queries[:BATCH])
        at, began_at = time.process_time(), time.perf_counter()
        answers = [
            index.search(queries[low : low + BATCH]) for low in range(0, len(queries), BATCH)
        ]
        searching, waited = (
            (time.process_time() - at) / len(queries),
            (time.perf_counter() - began_at) / len(queries),
        )
        found = np.concatenate(
            [np.where(similarity >= threshold, nearest, -1) for nearest, similarity in answers]
        )
        right = similarities_of(queries, everything[np.maximum(found, 0)]) >= threshold
        hits = (found >= 0) & right
        line = {
            "contender": name, "size": size, "search_us": round(1e6 * searching, 1), "add_us": round(1e6 * segment / (size - start), 1),
            "search_wall_us": round(1e6 * waited, 1),
            "recall": round(float((hits & (expected >= 0)).sum() / (expected >= 0).sum()), 5),
            "precision": round(float(hits.sum() / max((found >= 0).sum(), 1)), 5),
            "different": int((found != expected).sum()) if isinstance(index, Ours) else None,
            "queries": len(queries), "matches": int((expected >= 0).sum()),
            "bytes_per_vector": round(memory / size),
            "gauges": {k: round(v, 4) for k, v in index.index.gauges().items()} if isinstance(index, Ours) else None,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


def planted(setting: Setting, size: int, count: int) -> dict[str, Any]:
    """How many of ``count`` planted near-duplicates get another answer than brute force gives,
    while the index grows and starts again."""
    dim, threshold = setting.dim, setting.threshold
    stream, rng = Stream(dim, SEED), np.random.default_rng(5)
    index, held = Ours(setting, False), np.empty((0, dim), np.float16)
    asked = different = restarts = 0
    for _ in range(10):
        vectors = stream.take(size // 10)
        index.add(vectors)
        held = np.concatenate([held, vectors])
        queries = near(
            rng,
            held[rng.integers(0, len(held), count // 10)],
            rng.uniform(threshold - 1e-4, 1, count // 10),
        )
        expected = first_match(held, queries, threshold)
        cuts = np.sort(rng.integers(0, len(queries), len(queries) // 200))
        found = np.concatenate([index.search(part)[0] for part in np.split(queries, cuts)])
        asked, different = (
            asked + int((expected >= 0).sum()),
            different + int((found != expected).sum()),
        )
        again = Ours(setting, False)
        rows = np.arange(len(held))
        again.index.store.append(
            held, again.index.store.view.sketch.codes(widen(held)), rows, 0, rows
        )
        again.index.restore(index.index.state())
        again._rows = len(held)
        index, restarts = again, restarts + 1
        print(
            f"  {len(held)} vectors, {asked} duplicates asked for, {different} different",
            file=sys.stderr,
            flush=True,
        )
    return {
        "benchmark": "index --planted",
        "dim": dim,
        "vectors": size,
        "duplicates": asked,
        "different": different,
        "restarts": restarts,
    }


def pauses(setting: Setting, size: int) -> dict[str, Any]:
    """How long searches took, in wall time, while the index grew to ``size`` and kept itself up on
    a thread of its own, as in a replica."""
    stream, ours, done = Stream(setting.dim, SEED), Ours(setting, False), threading.Event()

    def keep_up() -> None:
        while not done.is_set():
            if not ours.index.maintain():
                done.wait(0.01)

    upkeep, taken = threading.Thread(target=keep_up), []
    upkeep.start()
    while ours.index.gauges()["base_vectors"] + STEP < size:
        vectors = stream.take(BATCH)
        began = time.perf_counter()
        ours.index.search(vectors)
        taken.append(time.perf_counter() - began)
        ours.append(vectors)
    done.set()
    upkeep.join()
    gauges = ours.index.gauges()
    return {
        "benchmark": "index --pauses", "dim": setting.dim, "vectors": size, "batches": len(taken), "trainings": gauges["trainings"],
        "search_ms": {name: round(1e3 * float(np.quantile(taken, at)), 2) for name, at in (("median", 0.5), ("99.9 %", 0.999), ("longest", 1))},
        "longest_wait_ms": round(1e3 * gauges["longest_wait_seconds"], 2),
    }  # fmt: skip


def show(lines: list[dict[str, Any]], threshold: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"CPU µs per vector on one thread, τ = {threshold}", title_justify="left")
    for heading in (
        "contender",
        "vectors",
        "search",
        "add",
        "sum",
        "recall",
        "precision",
        "different",
        "bytes per vector",
    ):
        table.add_column(
            heading,
            justify="left" if heading == "contender" else "right",
            no_wrap=heading == "contender",
        )
    for line in lines:
        total = line["search_us"] + line["add_us"]
        table.add_row(
            CONTENDERS[line["contender"]][0], f"{line['size']:,}", f"{line['search_us']:.0f}", f"{line['add_us']:.0f}", f"{total:.0f}",
            f"{line['recall']:.4f}", f"{line['precision']:.4f}", "" if line["different"] is None else str(line["different"]),
            str(line["bytes_per_vector"]),
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def plot(lines: list[dict[str, Any]], threshold: float, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (cost, recall) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, (label, _) in CONTENDERS.items():
        mine = [line for line in lines if line["contender"] == name]
        ours = name in ("certified", "calibrated")
        style = {
            "label": label,
            "marker": "o",
            "linewidth": 2.5 if ours else 1.2,
            "markersize": 5,
            "zorder": 3 if ours else 2,
        }
        cost.plot([m["size"] for m in mine], [m["search_us"] + m["add_us"] for m in mine], **style)
        recall.plot([m["size"] for m in mine], [m["recall"] for m in mine], **style)
    for axes, title in (
        (cost, "CPU µs per vector: one search and one add, one thread"),
        (recall, f"recall at cosine {threshold}"),
    ):
        axes.set(xscale="log", xlabel="vectors in the index", title=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    cost.set_yscale("log")
    cost.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def prepared(args: argparse.Namespace) -> tuple[F16, dict[str, Any]]:
    """(n, d) vectors of photographs and their edits in the order of their arrival, and what they
    are of."""
    from benchmarks.photographs import eye_of, gather, rounds  # torch, which no contender needs

    eye, config = eye_of(args)
    photos = [photo for photo in gather(args.images) if eye.can_see(photo)]
    vectors = rounds(eye, photos, args.copies, args.vectors)
    about = {
        "model": getattr(config.embedder, "model", config.embedder.type),
        "photographs": len(photos),
        "copies": args.copies,
    }
    return vectors[np.random.default_rng(SEED).permutation(len(vectors))], about


def in_a_child(name: str, folder: str) -> Iterator[dict[str, Any]]:
    """The lines of `measure`, as they come, from a process in which nothing else was."""
    command = [sys.executable, "-m", "benchmarks.index", "--child", name, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from map(json.loads, process.stdout or ())


def child(name: str, folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text("utf-8"))
    setting, arrivals = Setting(*task["setting"]), folder / "arrivals.npy"
    source: Source = Drifting(setting.dim, setting.threshold, SEED)
    if arrivals.exists():
        source = Arrivals(np.load(arrivals, mmap_mode="r"), np.load(folder / "winners.npy"))
    measure(name, setting, source, task["sizes"], task["queries"], task["budget"], folder)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return
    from benchmarks.photographs import model_options

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="10000,30000,100000", help="vectors at which to measure, ascending"
    )
    parser.add_argument("--dim", type=int, default=512, help="of the synthetic ones")
    parser.add_argument("--queries", type=int, help="at each size: 20 480; 4 096 with --images")
    parser.add_argument("--tau", type=float, help="threshold: 0.95; 0.9 with --images")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument(
        "--budget",
        type=float,
        default=300.0,
        help="CPU seconds after which a contender is not filled any further",
    )
    parser.add_argument(
        "--train-at",
        type=int,
        default=HostBackend.train_at,
        help="vectors at which lists are first made: ours, and those trained once",
    )
    parser.add_argument("--planted", type=int, default=0)
    parser.add_argument("--pauses", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument("--copies", type=int, default=19, help="edits of each photograph")
    parser.add_argument(
        "--vectors", type=Path, metavar="FILE.npy", help="keeps the vectors of the photographs"
    )
    model_options(parser)
    args = parser.parse_args()
    args.tau = args.tau or (0.9 if args.images else 0.95)
    args.queries = args.queries or (4096 if args.images else 20_480)
    sizes = [int(size) for size in args.sizes.split(",")]
    setting = Setting(args.dim, args.tau, args.train_at, args.device or "cpu")
    if args.planted:
        print(json.dumps(planted(setting, sizes[-1], args.planted)))
        return
    if args.pauses:
        print(json.dumps(pauses(setting, sizes[-1])))
        return
    about: dict[str, Any] = {"threshold": args.tau, "train_at": args.train_at}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            vectors, of = prepared(args)
            winners = winners_of(vectors, args.tau)
            np.save(Path(folder, "arrivals.npy"), vectors)
            np.save(Path(folder, "winners.npy"), winners)
            about |= of | {"arrivals": len(vectors), "winners": len(winners)}
            print(
                f"{len(vectors)} vectors, {len(winners)} of them win at {args.tau}", file=sys.stderr
            )
            if len(vectors) <= args.queries:
                raise SystemExit(
                    f"{len(vectors)} vectors are too few for --queries {args.queries}; more --copies make more"
                )
            sizes, args.dim = (
                reachable(sizes, winners, len(vectors), args.queries),
                vectors.shape[1],
            )
        task = {
            "setting": setting._replace(dim=args.dim),
            "sizes": sizes,
            "queries": args.queries,
            "budget": args.budget,
        }
        Path(folder, "task.json").write_text(json.dumps(task), "utf-8")
        names = args.contenders.split(",")
        for name in sorted(names, key=lambda name: name != "flat"):  # it finds the truth on its way
            missing = {"hnswlib": "hnswlib", "hnswlib-32": "hnswlib", "usearch": "usearch"}.get(
                name
            )
            if missing and find_spec(missing) is None:
                print(f"{name}: not measured, {missing} is not installed", file=sys.stderr)
                continue
            print(f"{CONTENDERS[name][0]} …", file=sys.stderr, flush=True)
            for line in in_a_child(name, folder):
                print("  " + json.dumps(line), file=sys.stderr, flush=True)
                lines.append(line)
    show(lines, args.tau)
    if args.plot:
        plot(lines, args.tau, args.plot)
    print(json.dumps({"benchmark": "index", "dim": args.dim, **about, "lines": lines}))


def _private() -> int:
    """Bytes in memory that are no file's."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text("ascii").split()
    return (int(resident) - int(shared)) * resource.getpagesize()


if __name__ == "__main__":
    main()
