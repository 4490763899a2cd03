"""Large sets: processes, temporary files, and what is remembered from one audit to the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from sink_data import Maker, make_dataset
from test_audit_verify import (
    DAMAGE,
    FIRST,
    SECOND,
    edit_manifest,
    edit_rows,
    row_where,
    shard,
)

from streamer.audit import Audit, claims, duplicates, verify
from streamer.audit.pool import Pool
from streamer.audit.report import Report
from streamer.audit.spill import Spill
from streamer.errors import ConfigError, DependencyError
from streamer.sink.folder import Folder
from streamer.sink.storage import Storage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scale")
    make_dataset(str(root), shard_records=9)
    return root / "cats"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "cats")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "verified"


def audit(folder: Path, file: Path | None = None, recheck: bool = False, jobs: int = 1) -> Report:
    with Audit(str(folder), remember=file, recheck=recheck) as made:
        return made.run(jobs=jobs)


def codes(report: Report) -> set[str]:
    return {p.code for p in report.problems}


def epochs(report: Report) -> tuple[int, int]:
    """Remembered, and checked."""
    return report.remembered_epochs, report.checked_epochs


# Processes and temporary files


def test_processes_say_what_one_says_in_the_same_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "a_changed_text",
        "a_duplicate_of_a_filtered_record",
        "a_claim_twice",
        "a_row_twice",
    ):
        DAMAGE[name][0](folder)
    edit_rows(folder, "w-1-00000002", lambda rows: [row.update(key="no") for row in rows])
    alone = audit(folder)
    assert len(alone.problems) > 40
    monkeypatch.setattr(verify, "ALONE_BYTES", 0)
    seen: list[int] = []
    with Audit(str(folder)) as made:
        many = made.run(advance=seen.append, jobs=2)
    assert many.as_json() == alone.as_json()
    assert sum(seen) == made.total_bytes


@pytest.mark.parametrize("name", [n for n, (_, found) in DAMAGE.items() if found & {
    "duplicate_target", "similarity", "claim_twice"}])  # fmt: skip
def test_temporary_files_change_nothing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGE[name][0](folder)
    in_memory = audit(folder).as_json()
    monkeypatch.setattr(claims, "MEMORY_BYTES", 0)
    monkeypatch.setattr(duplicates, "MEMORY_BYTES", 0)
    assert audit(folder).as_json() == in_memory
    monkeypatch.setattr(duplicates, "ROUND_BYTES", 1)  # then a table that is lost is so in each
    assert found(audit(folder).as_json()) == found(in_memory)


def found(told: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted(
        (f["code"], f["path"]) for f in told["problems"] if "cannot be read" not in f["detail"]
    )


def test_rows_come_back_by_their_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rng = np.random.default_rng(1)
    with Spill(limit=400) as spill:
        for _ in range(2):  # it can be filled again
            added: dict[int, list[int]] = {}
            for _ in range(20):
                rows = rng.integers(0, 1000, int(rng.integers(0, 40)))
                spill.add(rows % 7, rows)
                for row in rows.tolist():
                    added.setdefault(row % 7, []).append(row)
            assert len(list(tmp_path.rglob("*"))) > 1
            assert {b: rows.tolist() for b, rows in spill.take()} == added
            assert spill.nbytes == 0
    assert list(tmp_path.iterdir()) == []


class Die:
    def __call__(self, _folder: Folder, _advance: Callable[[int], None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Refuse:
    def __call__(self, _folder: Folder, _advance: Callable[[int], None]) -> None:
        raise DependencyError("the storage refuses")


@pytest.mark.parametrize(("task", "said"), [(Die(), "fewer --jobs"), (Refuse(), "refuses")])
def test_a_process_that_fails(folder: Path, task: Any, said: str) -> None:
    with Pool(str(folder), 2, lambda n: None) as pool, pytest.raises(DependencyError, match=said):
        list(pool.results([task, task]))


def test_where_others_would_not_find_the_package_one_process_does_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m streamer` in a checkout that is not installed."""
    monkeypatch.setattr(verify, "ALONE_BYTES", 0)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "streamer").is_dir()])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    assert audit(folder, jobs=2).ok
    with Pool(str(folder), 2, lambda n: None) as pool:
        assert list(pool.results([Pid()])) == [os.getpid()]
    monkeypatch.undo()
    with Pool(str(folder), 2, lambda n: None) as pool:
        assert list(pool.results([Pid()])) != [os.getpid()]


class Pid:
    def __call__(self, _folder: Folder, _advance: Callable[[int], None]) -> int:
        return os.getpid()


# What is remembered


def test_only_new_epochs_are_checked(tmp_path: Path, file: Path) -> None:
    maker = Maker(Storage(str(tmp_path), "cats"), seed=5)
    folder = tmp_path / "cats"
    maker.commit("w-0", {0: 40})
    assert epochs(audit(folder, file)) == (0, 1)
    maker.commit("w-0", {0: 40})
    maker.commit("w-1", {1: 40})
    report = audit(folder, file)
    assert epochs(report) == (1, 2)
    alone = audit(folder)
    for told in (report, audit(folder, file)):
        assert {**told.as_json(), "epochs": None} == {**alone.as_json(), "epochs": None}
    assert epochs(audit(folder, file, recheck=True)) == (0, 3)
    assert epochs(audit(folder, file)) == (3, 0)


def test_new_epochs_are_checked_against_those_that_are_remembered(
    tmp_path: Path, file: Path
) -> None:
    maker = Maker(Storage(str(tmp_path), "cats"), seed=5)
    folder = tmp_path / "cats"
    maker.commit("w-0", {0: 40})
    assert audit(folder, file).ok
    maker.commit("w-0", {0: 40})
    rows = pq.read_table(folder / f"metadata/{FIRST}.parquet").to_pylist()
    claim = row_where(rows, outcome="accepted")["claim"]
    filtered = row_where(rows, outcome="filtered")["key"]

    def change(rows: list[dict[str, Any]]) -> None:
        named = [r for r in rows if r["outcome"] == "duplicate" and r["duplicate_of"] < "00000_000000000040"]  # fmt: skip
        named[0].update(similarity=0.95)
        named[1].update(duplicate_of=filtered)
        row_where(rows, outcome="accepted").update(claim=claim)

    edit_rows(folder, SECOND, change)
    edit_manifest(folder, SECOND, lambda raw: raw["partitions"].update({"0": [39, 80]}))
    path = folder / f"metadata/{SECOND}.parquet"
    table = pq.read_table(path)
    report = audit(folder, file)
    assert epochs(report) == (1, 1)
    assert codes(report) == {"similarity", "duplicate_target", "claim_twice", "range_overlap"}
    assert epochs(audit(folder, file)) == (2, 0), "what it says for itself is right"
    assert codes(audit(folder, file)) == codes(report)
    assert table.num_rows == 40


def test_a_winner_that_comes_later(tmp_path: Path, file: Path) -> None:
    """Its duplicates are looked at again until it is there; their epoch's files are not."""
    maker = Maker(Storage(str(tmp_path), "cats"), seed=5)
    folder = tmp_path / "cats"
    maker.commit("w-0", {0: 40})
    late = maker.seal("w-1", {1: 40})
    maker.commit("w-0", {0: 40})
    assert "target_pending" in {n.code for n in audit(folder, file).notes}
    report = audit(folder, file)
    assert (epochs(report), "target_pending" in {n.code for n in report.notes}) == ((2, 0), True)
    maker.storage.project(late)
    edit_rows(folder, "w-1-00000000", lambda rows: [
        r.update(outcome="filtered", reason="x", shard=None) for r in rows if r["outcome"] == "accepted"
    ])  # fmt: skip
    report = audit(folder, file)
    assert epochs(report) == (2, 1)
    assert "duplicate_target" in codes(report)


def remove_a_file(folder: Path) -> None:
    (folder / shard(folder)).unlink()


def cut_a_file(folder: Path) -> None:
    path = folder / shard(folder)
    path.write_bytes(path.read_bytes()[:5000])


def change_a_manifest(folder: Path) -> None:
    edit_manifest(folder, FIRST, lambda raw: raw["counts"].update(accepted=1))


def remove_a_manifest(folder: Path) -> None:
    (folder / f"manifests/{FIRST}.json").unlink()


def rewrite_a_winner(folder: Path) -> None:
    """By a file and a manifest that are right for themselves."""
    edit_rows(folder, FIRST, lambda rows: [
        r.update(embedding=[-x for x in r["embedding"]]) for r in rows if r["outcome"] == "accepted"
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (remove_a_file, {"file_missing"}),
        (cut_a_file, {"file_checksum", "file_size", "tar_unreadable", "rows_mismatch", "member_missing"}),
        (change_a_manifest, {"counts_mismatch"}),
        (remove_a_manifest, {"epoch_gap", "file_unknown", "duplicate_target"}),
        (rewrite_a_winner, {"similarity"}),
    ],
)  # fmt: skip
def test_what_changed_since_makes_all_of_it_be_checked_again(
    folder: Path, file: Path, change: Callable[[Path], None], found: set[str]
) -> None:
    assert audit(folder, file).ok
    change(folder)
    report = audit(folder, file)
    assert (report.remembered_epochs, codes(report)) == (0, found)
    assert FIRST in report.forgotten
    again = audit(folder, file)
    assert (codes(again), again.forgotten) == (found, "")
    assert again.remembered_epochs > 0


def test_what_is_wrong_is_not_remembered(folder: Path, file: Path) -> None:
    for name in ("a_changed_text", "a_similarity_that_is_one_bit_off"):
        DAMAGE[name][0](folder)
    first = audit(folder, file)
    assert codes(first) == {"member_mismatch", "similarity"}
    again = audit(folder, file)
    assert epochs(again) == (4, 1)
    assert again.problems == first.problems


def test_a_damaged_entry_is_not_used(folder: Path, file: Path) -> None:
    assert audit(folder, file).ok
    with sqlite3.connect(file) as database:
        (body,) = database.execute(
            "SELECT body FROM epochs WHERE path LIKE ?", (f"%{FIRST}%",)
        ).fetchone()
        changed = body.replace(b'"accepted": ', b'"accepted": 1')
        assert changed != body
        database.execute("UPDATE epochs SET body = ? WHERE path LIKE ?", (changed, f"%{FIRST}%"))
    database.close()
    report = audit(folder, file)
    assert (epochs(report), report.ok, report.records) == ((4, 1), True, 180)


def test_files_that_are_none(folder: Path, file: Path, tmp_path: Path) -> None:
    assert audit(folder, file).ok
    other = shutil.copytree(folder, tmp_path / "dogs")
    with pytest.raises(ConfigError, match=f"verified is of the folder {folder}"):
        audit(other, file)
    audit(folder, file)  # it is as it was
    text = tmp_path / "text"
    text.write_text("anything" * 500)
    theirs = tmp_path / "theirs"
    with sqlite3.connect(theirs) as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    for path, said in (
        (text, "not a database"),
        (theirs, "not of `dataset verify`"),
        (tmp_path / "no/folder", "unable to open"),
    ):
        with pytest.raises(DependencyError, match=said):
            audit(folder, path)


STOPPED = """
import os, signal, sys
import psutil
from streamer.audit import remembered, verify
from streamer.cli import entry

verify.ALONE_BYTES, remembered.COMMIT_S = 0, 0
add, count = remembered.Remembered.add, 0

def stopping(*arguments, **options):
    global count
    add(*arguments, **options)
    count += 1
    if count == 3:
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        os.kill(os.getpid(), signal.{signal})

remembered.Remembered.add = stopping
sys.argv = ["streamer", "dataset", "verify", {folder!r}, "--remember", {file!r}, "--jobs", "2"]
entry()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -signal.SIGKILL)])
def test_an_audit_that_was_stopped_goes_on(folder: Path, file: Path, name: str, code: int) -> None:
    """And its processes end with it."""
    script = STOPPED.format(signal=name, folder=str(folder), file=str(file))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code
    assert name == "SIGKILL" or done.stderr.strip() == "stopped"
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) >= 2
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in children)
    report = audit(folder, file)
    assert (epochs(report), report.ok, report.records) == ((3, 2), True, 180)


def test_the_command(folder: Path, file: Path) -> None:
    def run(*arguments: object, expect: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streamer", "dataset", "verify", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    remember = (folder, "--remember", file)
    assert f"0 epochs as remembered in {file}, 5 checked" in run(*remember, expect=0).stdout
    assert f"5 epochs as remembered in {file}, 0 checked" in run(*remember, expect=0).stdout
    told = json.loads(run(*remember, "--all", "--json", "--jobs", 1, expect=0).stdout)
    assert told["epochs"] == {"checked": 5, "remembered": 0}
    change_a_manifest(folder)
    told = run(*remember, expect=1).stdout
    assert f"all is checked again: manifests/{FIRST}.json is not the manifest" in told
    assert "--all is for --remember" in run(folder, "--all", expect=2).stderr
    assert "is not in the range" in run(folder, "--jobs", 0, expect=2).stderr


MEASURED = """
import sys
from pathlib import Path
from streamer.audit import Audit
report = Audit(sys.argv[1]).run()
assert report.ok, report.problems
status = Path("/proc/self/status").read_text()
print(report.records, status.partition("VmHWM:")[2].split()[0])
"""
GROWTH_KB = 12_000
"""An epoch of these takes 4 MB in all, of which 3 MB are duplicates: 12 of them would take 50."""


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 000 records, and then 60 000 more."""
    from benchmarks.verify import Maker as Fast

    maker = Fast(str(tmp_path), dim=256, nbytes=(20, 20))
    peaks = []
    script = MEASURED.replace(
        "report =",
        "from streamer.audit import claims, duplicates\nclaims.MEMORY_BYTES = duplicates.MEMORY_BYTES = 1 << 20\nreport =",
    )
    for count in (4, 12):
        for _ in range(count):
            maker.epoch(5000)
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "made")],
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        peaks.append([int(number) for number in done.stdout.split()])
    (few, low), (many, high) = peaks
    assert (few, many) == (20_000, 80_000)
    assert high - low < GROWTH_KB
