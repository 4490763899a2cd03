"""The benchmarks of the line itself run: a figure in RESULTS.md can be measured again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.service import ROOT

SMALL = {
    "spine": ("--records", "600", "--bytes", "500", "--partitions", "2"),
    "commit_log": ("--epochs", "3000"),
    "end_to_end": ("--records", "64", "--batch", "8", "--replicas", "2", "--alone", "0.2"),
}


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_and_tells_a_result(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert results, done.stdout


def test_what_is_run_on_a_gpu_is_every_test_that_wants_one() -> None:
    from benchmarks.gpu import tests

    assert {"tests/dedup", "tests/model/test_model.py", "tests/model/test_heads.py"} <= {*tests()}
