"""Real `streamer` processes for the integration tests, and a reader of what they wrote that shares
nothing with the service."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sysconfig
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from tests.integration.forked import Forked
from tests.integration.forked import run as run_forked

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(sysconfig.get_path("scripts")) / "streamer")
"""The command as it is installed: what a shell and Kubernetes start."""
FORKED = True
"""False: the processes are the installed script's."""
THUMBNAIL = {"type": "tests.plugins.thumbnail:ThumbnailEmbedder"}


@dataclass
class Replica:
    """One running process with its log lines."""

    process: subprocess.Popen[str] | Forked
    reader: threading.Thread = field(default_factory=threading.Thread)
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()

    def wait_for(self, text: str, count: int = 1, timeout: float = 60.0) -> None:
        """Until ``text`` stood in ``count`` lines, or the process ended (AssertionError then, and
        after the time-out)."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while sum(text in line for line in self.lines) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"no {text!r} within {timeout} s:\n{self.log}"
                assert self.process.poll() is None or self.changed.wait(0.5), (
                    f"ended with {self.process.returncode} before {text!r}:\n{self.log}"
                )
                self.changed.wait(min(left, 0.5))

    def count(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))

    @property
    def log(self) -> str:
        return "\n".join(self.lines[-60:])

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(20)

    def end(self, timeout: float = 120.0) -> int:
        try:
            code = self.process.wait(timeout)
            self.reader.join(10)
            return code
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end within {timeout} s:\n{self.log}") from None


@dataclass
class Service:
    """A dataset's config in ``folder``, and processes that run it."""

    folder: Path
    settings: dict[str, Any]
    replicas: list[Replica] = field(default_factory=list)

    @property
    def dataset(self) -> str:
        return str(self.settings["dataset"])

    @property
    def output(self) -> Path:
        return Path(self.settings["output"]["path"]) / self.dataset

    def config(self, **changes: Any) -> Path:
        path = self.folder / f"{self.dataset}-{len(list(self.folder.glob('*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **changes}))
        return path

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **changes: Any,
    ) -> Replica:
        """``streamer run``; ``prefix`` is a command that starts the one behind it."""
        return self.launch("run", "-c", str(self.config(**changes)), *args, env=env, prefix=prefix)

    def launch(
        self, *args: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Replica:
        process: subprocess.Popen[str] | Forked
        if FORKED and not prefix:
            process = Forked(args, ROOT, _environment(env))
        else:
            process = subprocess.Popen(
                [*prefix, SCRIPT, *args], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=_environment(env)
            )  # fmt: skip
        replica = Replica(process)
        replica.reader = threading.Thread(target=replica.read, daemon=True)
        replica.reader.start()
        self.replicas.append(replica)
        return replica

    def run(self, *args: str, expect: int = 0, timeout: float = 240.0, **changes: Any) -> Replica:
        replica = self.start(*args, **changes)
        code = replica.end(timeout)
        assert code == expect, f"exit {code}, not {expect}:\n{replica.log}"
        return replica

    def close(self) -> None:
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.process.send_signal(signal.SIGCONT)
                replica.process.kill()
                replica.process.wait(20)
            replica.reader.join(10)


def streamer(
    *args: str, expect: int | None = 0, timeout: float = 240.0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One finished command."""
    if FORKED:
        done = run_forked(args, ROOT, _environment(env), timeout)
    else:
        done = subprocess.run(
            [SCRIPT, *args], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=_environment(env)
        )  # fmt: skip
    assert expect is None or done.returncode == expect, (
        f"exit {done.returncode}, not {expect}:\n{done.stdout}\n{done.stderr}"
    )
    return done


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {
        **os.environ,
        "STREAMER_LOG": "json",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        **(extra or {}),
    }


def verified(folder: Path | str) -> dict[str, Any]:
    """The report of ``streamer dataset verify``; fails the test unless it is ok."""
    done = streamer("dataset", "verify", str(folder), "--json", expect=None)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"], json.dumps(report["problems"][:20], indent=1)
    assert done.returncode == 0, (
        f"exit {done.returncode} although all is well: {done.stderr[-2000:]}"
    )
    return report


@dataclass(frozen=True)
class Output:
    """Everything that is public in a dataset's folder."""

    rows: list[dict[str, Any]]
    members: dict[str, dict[str, bytes]]
    """Sample key → member extension → bytes."""
    shard_of: dict[str, str]

    @property
    def by_origin(self) -> dict[tuple[int, int], dict[str, Any]]:
        return {(row["partition"], row["offset"]): row for row in self.rows}

    def of(self, outcome: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["outcome"] == outcome]


def read_output(folder: Path) -> Output:
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "metadata").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    members: dict[str, dict[str, bytes]] = {}
    shard_of: dict[str, str] = {}
    for path in sorted((folder / "shards").rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                file = tar.extractfile(member)
                assert file is not None
                assert extension not in members.setdefault(key, {}), (
                    f"{member.name} is in two shards"
                )
                members[key][extension] = file.read()
                shard_of[key] = str(path.relative_to(folder))
    return Output(rows, members, shard_of)


def check_exactly_once(
    output: Output, produced: Mapping[tuple[int, int], bytes], threshold: float
) -> None:
    """Every produced record is decided once; accepted ones are in the shards as they were produced;
    duplicates name an accepted record; no two accepted records are near-duplicates."""
    origins = [(row["partition"], row["offset"]) for row in output.rows]
    assert len(origins) == len(set(origins)), "a record was decided twice"
    assert set(origins) == set(produced), (
        f"lost {sorted(set(produced) - set(origins))[:5]}, invented {sorted(set(origins) - set(produced))[:5]}"
    )
    accepted = {row["key"]: row for row in output.of("accepted")}
    assert set(output.members) == set(accepted)
    for key, row in accepted.items():
        image = output.members[key][row["format"]]
        assert (
            hashlib.sha256(image).hexdigest()
            == hashlib.sha256(produced[row["partition"], row["offset"]]).hexdigest()
            == row["sha256"]
        )
        assert row["shard"] == output.shard_of[key]
    for row in output.of("duplicate"):
        assert row["duplicate_of"] in accepted, (
            f"{row['key']} is a duplicate of {row['duplicate_of']}, which is not accepted"
        )
        assert row["similarity"] >= threshold
        pair = np.array(row["embedding"], np.float64) @ np.array(
            accepted[row["duplicate_of"]]["embedding"], np.float64
        )
        assert pair == row["similarity"]
    vectors = np.array(
        [row["embedding"] for row in accepted.values() if not row["flags"]], np.float64
    )
    if len(vectors):
        gram = vectors @ vectors.T
        np.fill_diagonal(gram, -1.0)
        assert gram.max() < threshold, f"two accepted records have similarity {gram.max()}"


def read_claims(kafka: str, topic: str) -> Iterator[bytes]:
    from streamer.testing import read_topic

    for stored in read_topic(kafka, topic):
        assert stored.value is not None
        yield stored.value


def photographs(
    count: int, seed: int, near_duplicates: float = 0.3, invalid: float = 0.03, small: float = 0.05
) -> list[bytes]:
    """Distinct smooth pictures, re-encodings of earlier ones, broken files and tiny ones, in a
    random order that the seed fixes."""
    from PIL import Image

    from streamer.testing import jpeg

    rng = np.random.default_rng(seed)
    made: list[bytes] = []
    originals: list[bytes] = []
    for i in range(count):
        kind = rng.random()
        if kind < invalid:
            made.append(jpeg(seed * 100_000 + i)[: int(rng.integers(1, 900))])
        elif kind < invalid + small:
            made.append(jpeg(seed * 100_000 + i, size=(20, 20)))
        elif kind < invalid + small + near_duplicates and originals:
            image = Image.open(
                io.BytesIO(
                    originals[int(rng.integers(max(0, len(originals) - 200), len(originals)))]
                )
            )
            buffer = io.BytesIO()
            image.resize((int(rng.integers(80, 130)), int(rng.integers(60, 90)))).save(
                buffer, "JPEG", quality=int(rng.integers(40, 95))
            )
            made.append(buffer.getvalue())
        else:
            made.append(jpeg(seed * 100_000 + i))
            originals.append(made[-1])
    return made


Made = Callable[..., Service]
