"""What a command loads before it knows what to do, and that the import rules would see an offender."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamer.cli import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "datasets", "pandas", "faiss")
SCRIPT = """
import json, sys
sys.argv = ["streamer", *{arguments!r}]
try:
    from streamer.cli import main
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in {heavy!r} if name in sys.modules]]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join
)
def test_help_never_waits_for_torch(arguments):
    script = SCRIPT.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert (code, loaded) == (0, [])
    assert "Usage: " in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("wire/claim.py", "from streamer.kafka import client"),
        ("sink/epoch.py", "from streamer.decode import image"),
        ("judge/judge.py", "import torch"),
        ("app.py", "import confluent_kafka"),
        ("flow/channel.py", "import faiss"),
        ("replica.py", "import prometheus_client"),
    ],
)
def test_the_import_rules_see_an_offender(tmp_path, module, line):
    shutil.copytree(
        ROOT / "streamer", tmp_path / "streamer", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "streamer" / module
    path.write_text(path.read_text("utf-8") + f"\n{line}\n", "utf-8")
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "1 broken" in done.stdout


def test_the_import_rules_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout
