"""Runs the hostile set, or single files six times each, through the Decoder; a process of its own,
so that its memory can be measured. Prints one JSON line."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from streamer.config import Config, parse
from streamer.decode.decoder import Decoder
from streamer.decode.image import FORMATS
from streamer.flow.worker import Failure
from streamer.judge.filters import Rules
from streamer.records import Decoded, Record, Sample


def config(**sections) -> Config:
    required = {
        "dataset": "d",
        "kafka": {"bootstrap_servers": "x", "topic": "t"},
        "embedder": {"model": "m"},
        "output": {"path": "/x", "formats": FORMATS},
    }
    return parse({**required, **sections})


def decode(records: list[Record], chunk: int) -> tuple[list[Decoded], float]:
    """One row for each record, and by how many MB the peak of the process's memory grew."""
    settings = config(decode={"threads": 4})
    rules = Rules(settings.filters, settings.output.formats).header_rules
    failure = Failure()
    decoder = Decoder(
        settings,
        lambda image: np.asarray(image.resize((64, 64))),
        None,
        (64, 64),
        rules,
        lambda p, o: None,
        lambda p, o: False,
        failure,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    futures = [decoder.submit(records[i : i + chunk]) for i in range(0, len(records), chunk)]
    rows = [row for future in futures for row in future.result(120)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoder.close()
    failure.raise_if_any()
    return rows, (after - before) / 1024


def main(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    records = [
        Record(0, i, 0, (folder / name).read_bytes(), [("content-type", b"image/x")])
        for i, name in enumerate(files)
    ]
    rows, grown_mb = decode(records, 8)
    found = {}
    for name, record, row in zip(files, records, rows, strict=True):
        assert row.record is record
        decision = (
            ("decoded", "")
            if isinstance(row, Sample)
            else (row.decision.outcome, row.decision.reason)
        )
        found[name] = [
            *decision,
            row.facts.format,
            row.facts.width,
            row.facts.height,
            row.facts.sha256,
        ]
    print(json.dumps({"grown_mb": grown_mb, "files": found}))


def main_big(files: list[Path]) -> None:
    found = {}
    for file in files:
        data, before = file.read_bytes(), time.process_time()
        rows, grown_mb = decode([Record(0, i, 0, data, []) for i in range(6)], 1)
        decoded = sum(isinstance(row, Sample) for row in rows)
        cpu_s = (time.process_time() - before) / len(rows)
        found[file.name] = {"decoded": decoded, "grown_mb": grown_mb, "cpu_s": cpu_s}
    print(json.dumps(found))


def run(*paths: Path) -> dict[str, Any]:
    """What the process prints about ``paths``: one folder, or files."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, *paths],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "decoders neither warn nor print"
    return json.loads(done.stdout)


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    main(*given) if given[0].is_dir() else main_big(given)
