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
    and no shared data is there."""
    (tmp_path / "shared").mkdir(exist_ok=True)
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


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_missing_shared_data(tmp_path, ci, code):
    assert run(tmp_path, "def test_a(shared_data): pass\n", ci) == (
        code,
        f"!!! {'FAILED FOR WANT OF IT' if ci else 'NOT TESTED'}: 1 test without ../shared/data (the folder is not beside the repository)",
    )


def test_a_missing_gpu_is_said_but_never_fails(tmp_path):
    code, last = run(tmp_path, "import pytest\n@pytest.mark.gpu\ndef test_a(): pass\n", ci="true")
    assert code == 0
    assert last.startswith("!!! NOT TESTED: 1 test without a CUDA device (")


def test_nothing_missing_says_nothing(tmp_path):
    code, last = run(tmp_path, "def test_a(): pass\n", ci="true")
    assert code == 0
    assert "1 passed" in last
