"""Snapshots in a folder: the newest good one wins, each writer keeps two, and whatever is wrong
with one is said and passed over."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamer.config import Config, parse
from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.dedup.store import WinnerStore
from streamer.errors import ConfigError, DependencyError
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder
from streamer.sink.snapshots import DATA, HEADER, Snapshots, Wanted, open_snapshots
from streamer.wire.claim import Claims, DatasetEntry, Open

DIM = 64
BINDING = DatasetEntry("topic-id", "model", DIM, 0.9, 1)
WANTED = Wanted(BINDING, "claims-id", None)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(open_folder(str(tmp_path)), "w0", WANTED)


def meld_with(rows: int) -> Meld:
    meld = Meld(DIM, 0.9, open_index(DIM, 0.9, "cpu"))
    vectors = np.random.default_rng(rows).standard_normal((rows, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for entry in (
        BINDING,
        Open(0, 1, 7, 0),
        Claims(0, 7, 2, np.arange(rows), vectors.astype(np.float16)),
    ):
        meld.apply(entry)
    return meld


def write(snapshots: Snapshots, rows: int, writer: str = "w0") -> Path:
    """Its folder."""
    before = {found.path for found in snapshots.find()}
    Snapshots(snapshots.folder, writer, snapshots.wanted).write(
        meld_with(rows).state(), offset=rows
    )
    [new] = {found.path for found in snapshots.find()} - before
    return Path(snapshots.folder.uri) / new


def loaded(snapshots: Snapshots) -> int:
    """Rows of the one that a start would take; −1 where there is none."""
    found = snapshots.load(WinnerStore(DIM))
    if found is None:
        return -1
    header, state = found
    meld = Meld(DIM, 0.9, open_index(DIM, 0.9, "cpu"))
    meld.restore(state)
    assert meld.digest() == meld_with(header.rows).digest()
    assert header.offset == header.rows
    return header.rows


def test_the_newest_of_any_writer_wins_and_each_keeps_two(snapshots: Snapshots) -> None:
    assert loaded(snapshots) == -1
    for rows, writer in ((10, "w0"), (90, "w1"), (20, "w0"), (30, "w0"), (5, "w1")):
        write(snapshots, rows, writer)
    assert [(found.writer, found.header and found.header.rows) for found in snapshots.find()] == [
        ("w1", 90), ("w0", 30), ("w0", 20), ("w1", 5),
    ]  # fmt: skip
    assert loaded(snapshots) == 90


def test_on_every_kind_of_storage(folder: Folder) -> None:
    snapshots = Snapshots(folder, "w0", WANTED)
    assert loaded(snapshots) == -1
    for rows in (10, 30, 20):
        snapshots.write(meld_with(rows).state(), offset=rows)
    assert [found.header and found.header.rows for found in snapshots.find()] == [30, 20]
    assert loaded(snapshots) == 30
    snapshots.write(meld_with(40).state(), offset=40)
    assert loaded(snapshots) == 40
    assert len(list(folder.walk(""))) == 4


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(bytes(raw))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "torn": (lambda folder: os.truncate(folder / DATA, 100), "its data have 100 bytes"),
    "a bit flipped": (lambda folder: flip(folder / DATA, 77), "its data are damaged"),
    "a bit of the header flipped": (lambda folder: flip(folder / HEADER, 77), "its header"),
    "half a header": (
        lambda folder: os.truncate(folder / HEADER, 100),
        "its header cannot be read",
    ),
    "no data": (lambda folder: (folder / DATA).unlink(), "its data have 0 bytes"),
    "no header": (lambda folder: (folder / HEADER).unlink(), "it is unfinished"),
    "a folder in place of the data": (
        lambda folder: ((folder / DATA).unlink(), (folder / DATA).mkdir(), None)[-1],
        "its data have 0 bytes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_passed_over_and_said(
    snapshots: Snapshots, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(snapshots, 10)
    newest = write(snapshots, 20)
    change, said = DAMAGE[damage]
    change(newest)
    with caplog.at_level(logging.INFO, "streamer"):
        assert loaded(snapshots) == 10
    [record] = caplog.records
    assert str(newest) in record.getMessage()
    assert said in record.getMessage()
    assert record.levelno == (logging.INFO if damage == "no header" else logging.WARNING)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (replace(WANTED, topic_id="made-again"), "topic"),
        (replace(WANTED, dataset=replace(BINDING, topic_id="other")), "binding"),
        (replace(WANTED, dataset=replace(BINDING, meld_version=2)), "binding"),
        (replace(WANTED, capacity=100_000), "dedup.capacity"),
        (replace(WANTED, window=4), "window"),
    ],
)
def test_what_is_of_something_else_is_passed_over_and_said(
    snapshots: Snapshots, wanted: Wanted, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(snapshots, 10)
    assert Snapshots(snapshots.folder, "w0", wanted).load(WinnerStore(DIM)) is None
    assert said in caplog.text


def test_a_writer_clears_away_what_it_left_unfinished_and_nothing_of_others(
    snapshots: Snapshots,
) -> None:
    mine, others = write(snapshots, 50, "w0"), write(snapshots, 60, "w1")
    (mine / HEADER).unlink()
    (others / HEADER).unlink()
    write(snapshots, 10, "w0")
    assert not mine.exists()
    assert others.exists()
    assert loaded(snapshots) == 10


def test_other_files_in_the_folder_are_no_snapshots(snapshots: Snapshots) -> None:
    root = Path(snapshots.folder.uri)
    for path in ("README", "w0/notes.txt", "w0/000000000099-0123456/header.json"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}")
    write(snapshots, 10)
    assert len(snapshots.find()) == 1


def test_a_write_that_fails_leaves_nothing(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(snapshots, 10)
    monkeypatch.setattr(
        snapshots.folder,
        "replace",
        lambda *_: (_ for _ in ()).throw(FileNotFoundError("taken away")),
    )
    with pytest.raises(DependencyError, match="cannot write"):
        snapshots.write(meld_with(20).state(), 20)
    assert len(list(Path(snapshots.folder.uri).rglob("*.bin"))) == 1


def test_a_folder_that_cannot_be_looked_into_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    snapshots = Snapshots(open_folder(str(tmp_path / "file")), "w0", WANTED)
    assert snapshots.load(WinnerStore(DIM)) is None
    with pytest.raises(DependencyError, match="in the way"):
        snapshots.write(meld_with(10).state(), 10)


def test_age_and_header_for_people(snapshots: Snapshots) -> None:
    folder = write(snapshots, 10)
    for file in folder.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    [found] = snapshots.find()
    assert found.age_s == pytest.approx(3600, abs=60)
    assert found.bytes == sum(file.stat().st_size for file in folder.iterdir())
    told = json.loads((folder / HEADER).read_text())
    assert (told["format"], told["position"], told["offset"], told["writer"]) == (1, 12, 10, "w0")


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ({}, "out/d/.index"),
        ({"snapshots": "dataset"}, "out/d/.index"),
        ({"snapshots": "elsewhere"}, "elsewhere/d"),
    ],
)
def test_where_they_are(
    setting: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = open_snapshots(config({"threshold": 0.9, **setting}), BINDING, "claims-id")
    assert made is not None
    assert made.folder.uri == str(tmp_path / place)


def test_a_place_that_cannot_be_is_a_mistake_in_the_config() -> None:
    with pytest.raises(ConfigError, match=r"^dedup\.snapshots: s3:// does not know 'regio'"):
        open_snapshots(config({"snapshots": "s3://bucket/there?regio=eu"}), BINDING, "claims-id")


@pytest.mark.parametrize("dedup", ["off", {"snapshots": "off"}, {"snapshots": False}])
def test_off(dedup: object) -> None:
    assert open_snapshots(config(dedup), BINDING, "claims-id") is None


def config(dedup: object) -> Config:
    kafka = {"bootstrap_servers": "b", "topic": "t"}
    return parse(
        {
            "dataset": "d",
            "writer": "w0",
            "kafka": kafka,
            "embedder": {"model": "m"},
            "output": {"path": "out"},
            "dedup": dedup,
        }
    )
