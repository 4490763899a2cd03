"""What a run says when something could not be had: its last line, and its exit code in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, text: str, ci: str) -> tuple[int, str]:
    """Exit code and last line of a run of ``text`` as a test file, where no broker can be fetched
    and the large sets are what the test has put into shared/data."""
    folder = tmp_path / "repository/tests"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "test_it.py").write_text(text)
    env = {k: v for k, v in os.environ.items() if k != "KAFKA_BOOTSTRAP_SERVERS"}
    env |= {
        "CI": ci,
        "XDG_CACHE_HOME": os.devnull,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider", str(folder)],
        capture_output=True, text=True, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.rstrip().splitlines()[-1]


def test_a_missing_broker_is_the_last_line(tmp_path):
    text = "def test_a(kafka): pass\ndef test_b(kafka): pass\ndef test_c(embedded): pass\ndef test_d(embedded): pass\ndef test_e(): pass\n"
    code, last = run(tmp_path, text, ci="")
    assert code == 0
    assert last.startswith("!!! NOT TESTED: 4 tests without Apache Kafka (")


def test_a_missing_broker_fails_ci(tmp_path):
    code, last = run(tmp_path, "def test_a(kafka): pass\ndef test_b(): pass\n", ci="true")
    assert code == 1
    assert last.startswith("!!! FAILED FOR WANT OF IT: 1 test without Apache Kafka (")


USES_DATA = (
    "def test_a(data_set, large): assert (data_set / 'hostile/manifest.tsv').is_file() != large\n"
)
LARGE = (
    "on the large sets (../shared/data is not beside the repository: they ran on tests/data alone)"
)


@pytest.mark.parametrize("ci", ["", "true"])
def test_without_the_large_sets_a_test_runs_on_the_small_ones(tmp_path, ci):
    """Nothing is skipped and CI passes, for that is all a clone can do; but the last line says so."""
    text = f"{USES_DATA}def test_b(large): assert not large\ndef test_c(): pass\n"
    code, last = run(tmp_path, text, ci)
    assert (code, last) == (0, f"!!! NOT TESTED: 2 tests {LARGE}")


def test_what_fails_on_the_small_sets_fails_the_run(tmp_path):
    code, last = run(tmp_path, "def test_a(data_set): assert False\n", ci="true")
    assert (code, last) == (1, f"!!! NOT TESTED: 1 test {LARGE}")


def test_with_the_large_sets_a_test_runs_on_both_and_nothing_is_said(tmp_path):
    (tmp_path / "shared/data").mkdir(parents=True)
    code, last = run(tmp_path, USES_DATA, ci="true")
    assert code == 0
    assert "2 passed" in last


def test_a_test_that_did_not_run_is_not_counted_as_run_on_the_small_sets(tmp_path):
    """Nor does what passes in CI hide what does not."""
    text = "def test_a(kafka, data_set): pass\ndef test_b(data_set): pass\n"
    code, last = run(tmp_path, text, ci="true")
    assert code == 1
    assert last.startswith(
        f"!!! FAILED FOR WANT OF IT: 1 test {LARGE}; 1 test without Apache Kafka ("
    )


def test_a_missing_gpu_is_said_but_never_fails(tmp_path):
    code, last = run(tmp_path, "import pytest\n@pytest.mark.gpu\ndef test_a(): pass\n", ci="true")
    assert code == 0
    assert last.startswith("!!! NOT TESTED: 1 test without a CUDA device (")


def test_nothing_missing_says_nothing(tmp_path):
    code, last = run(tmp_path, "def test_a(): pass\n", ci="true")
    assert code == 0
    assert "1 passed" in last
