"""`streamer demo` as a user starts it: a real broker, real weights, real photographs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest

from streamer.commands.demo import open_line
from streamer.demo.child import Replica
from streamer.errors import StreamerError

DEMO = [sys.executable, "-m", "streamer", "demo"]


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_the_demo_shows_every_outcome_and_leaves_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [*DEMO, "--out", str(out), "--json"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)

    assert shown["records"] >= 300
    assert sum(shown["outcomes"].values()) == shown["records"]
    assert shown["verified"] is True
    assert shown["outcomes"]["accepted"] >= 60
    assert {"min_side", "aspect_ratio", "text_length", "language", "format", "printed_page"} == set(
        shown["reasons"]["filtered"]
    )
    assert len(shown["reasons"]["invalid"]) >= 10
    assert shown["flagged"] >= 1
    assert shown["copies"]["found"] >= 0.85 * shown["copies"]["copies"]
    assert shown["copies"]["wrong_pairs"] == 0
    assert 0.9 <= shown["pair"]["similarity"] < 1

    dataset = Path(shown["dataset"])
    table = ds.dataset(dataset / "metadata", format="parquet").to_table(
        columns=["id", "outcome", "similarity"]
    )
    assert table.num_rows == shown["records"]
    photographs = {
        id.partition("/")[0]
        for id in table["id"].to_pylist()
        if id and not id.startswith("damaged/")
    }
    assert len(photographs) >= 12

    opened = subprocess.run(
        open_line(dataset), shell=True, capture_output=True, text=True, timeout=60
    )
    assert opened.returncode == 0, opened.stderr
    assert (
        len(re.findall(r"^\d{5}_\d{12} ", opened.stdout, re.MULTILINE))
        == shown["outcomes"]["accepted"]
    )

    page = Path(shown["contact_sheet"]).read_text("utf-8")
    assert page.count("<figure ") == shown["records"]
    assert {address[:5] for address in re.findall(r"(?:src|href)='([^']*)'", page)} <= {
        "data:",
        "#acce",
        "#dupl",
        "#filt",
        "#inva",
    }
    assert (
        page.count("src='data:image/jpeg;base64,")
        >= shown["records"] - shown["outcomes"]["invalid"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo = subprocess.Popen(
        [*DEMO, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 180
        children: list[psutil.Process] = []
        while len(children) < 2:  # the broker and the replica
            assert demo.poll() is None, demo.communicate()[0]
            assert time.monotonic() < deadline, children
            time.sleep(0.2)
            children = (
                psutil.Process(demo.pid).children(recursive=True)
                if (out / "replica.log").exists()
                else []
            )
        time.sleep(1)
        os.kill(demo.pid, signal.SIGINT)
        said, _ = demo.communicate(timeout=80)
        assert demo.returncode == 130, said
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, alive
    finally:
        demo.kill()
        demo.communicate()


def wait_for(replica: Replica) -> None:
    while replica.running():
        assert replica.glance() is None


def test_a_replica_that_fails_is_quoted(tmp_path: Path) -> None:
    with Replica(tmp_path / "missing.yaml", tmp_path / "replica.log", 1) as replica:
        with pytest.raises(StreamerError, match="cannot read the config"):
            wait_for(replica)


def test_a_users_mistake_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--out", str(tmp_path / "demo"), "--images", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "has no images" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo/broker").exists()
