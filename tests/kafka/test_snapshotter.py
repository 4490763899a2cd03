"""Snapshots on a real claims topic: taken while entries keep coming, and gone on from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamer.config import Config, parse
from streamer.dedup.choose import open_index
from streamer.dedup.meld import Meld
from streamer.errors import DependencyError, ProtocolError
from streamer.flow.worker import Failure, Worker
from streamer.kafka import snapshotter as snapshotter_module
from streamer.kafka.admin import Admin
from streamer.kafka.claim_log import ClaimLog
from streamer.kafka.snapshotter import Snapshotter
from streamer.ops.metrics import Metrics
from streamer.sink.snapshots import Snapshots, open_snapshots
from streamer.testing import create_topic
from streamer.wire.claim import Claims, DatasetEntry, Open

DIM = 32
BINDING = DatasetEntry("topic-id", "model", DIM, 0.9, 1)


class Place:
    """One claims topic, and replicas' claim logs on it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.admin = Admin(config.kafka)
        self.logs: list[ClaimLog] = []
        self.claimed = 0

    def log(self) -> ClaimLog:
        made = ClaimLog(
            self.config, Meld(DIM, 0.9, open_index(DIM, 0.9, "cpu")), BINDING, 1_000_000
        )
        self.logs.append(made)
        return made

    def restored(self) -> ClaimLog:
        """From the beginning."""
        made = self.log()
        made.restore(self.admin, lambda at, end: None)
        return made

    def claim(self, log: ClaimLog, rows: int) -> None:
        """Appends and applies ``rows`` claims, 10 an entry."""
        for _ in range(rows // 10):
            vectors = np.random.default_rng(self.claimed).standard_normal((10, DIM))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            offsets = np.arange(self.claimed, self.claimed + 10)
            log.append(Claims(0, 7, log.meld.position, offsets, vectors.astype(np.float16)))
            self.claimed += 10
        assert log.flush(20) == 0
        self.catch_up(log)

    def catch_up(self, log: ClaimLog) -> None:
        log.read_to(
            self.admin.end_offsets(log.topic, [0], committed=False)[0], lambda at, end: None
        )

    def snapshots(self) -> Snapshots:
        made = open_snapshots(self.config, BINDING, self.admin.topic_id(self.config.claims_topic))
        assert made is not None
        return made


@pytest.fixture
def place(kafka: str, topic_name: str, dataset_name: str, tmp_path: Path) -> Iterator[Place]:
    made = Place(parse({
        "dataset": dataset_name, "writer": "w0", "kafka": {"bootstrap_servers": kafka, "topic": topic_name}, "embedder": {"type": "a.b:C"},
        "output": {"path": str(tmp_path)}, "dedup": {"threshold": 0.9},
    }))  # fmt: skip
    create_topic(kafka, made.config.claims_topic)
    yield made
    for log in made.logs:
        log.close()


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(f"streamer_snapshot_{name}")
    assert found is not None
    return found


def test_snapshot_and_the_rest_of_the_log_are_the_whole_log(place: Place) -> None:
    log, snapshots = place.restored(), place.snapshots()
    log.append(Open(0, 1, 7, 0))
    place.claim(log, 200)
    snapshots.write(log.meld.state(), log.offset)
    place.claim(log, 100)
    again = place.log()
    header = again.resume(place.admin, snapshots)
    assert header is not None
    assert again.offset == header.offset == 22
    assert again.meld.position == header.position == 202
    read: list[int] = []
    again.restore(place.admin, lambda at, end: read.append(at))
    assert read[0] > 22, "only the rest is read"
    assert again.meld.digest() == log.meld.digest() == place.restored().meld.digest()


def test_reading_ends_exactly_where_it_is_told(place: Place) -> None:
    log = place.restored()
    log.append(Open(0, 1, 7, 0))
    place.claim(log, 100)
    for end in (1, 5, 6, 12):
        part = place.log()
        part.read_to(end, lambda at, end: None)
        assert part.offset == end


def test_without_a_snapshot_the_log_is_read_from_its_beginning(place: Place) -> None:
    log = place.restored()
    again = place.log()
    assert again.resume(place.admin, place.snapshots()) is None
    again.restore(place.admin, lambda at, end: None)
    assert again.meld.digest() == log.meld.digest()


def test_a_log_that_is_shorter_than_the_snapshot_has_lost_entries(place: Place) -> None:
    log, snapshots = place.restored(), place.snapshots()
    snapshots.write(log.meld.state(), offset=99)
    with pytest.raises(ProtocolError, match="ends at offset 1, but a snapshot was taken at 99"):
        place.log().resume(place.admin, snapshots)


def test_a_snapshot_of_a_topic_that_was_made_again_is_not_used(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    log, snapshots = place.restored(), place.snapshots()
    snapshots.write(log.meld.state(), log.offset)
    snapshots.wanted = replace(snapshots.wanted, topic_id="another")
    assert place.log().resume(place.admin, snapshots) is None
    assert "the claim log's topic" in caplog.text


class TestSnapshotter:
    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshotter_module, "PAUSE_S", 0.0)

    def run(self, made: Snapshotter) -> Worker:
        failure = Failure()
        worker = Worker("snapshot", made.run, failure)
        worker.start()
        return worker

    def end(self, made: Snapshotter, worker: Worker) -> None:
        made.finish()
        assert worker.join(20)

    def test_when(self, place: Place) -> None:
        log, snapshots, metrics = place.restored(), place.snapshots(), Metrics()
        log.append(Open(0, 1, 7, 0))
        made = Snapshotter(snapshots, log, 100, metrics, None)
        worker = self.run(made)
        positions = []
        for _ in range(6):
            place.claim(log, 50)
            made.offer()
            while made._busy:
                pass
            positions = [found.position for found in snapshots.find()]
        assert positions == [302, 202], "every 100 positions, and two are kept"
        place.claim(log, 40)
        self.end(made, worker)
        assert [found.position for found in snapshots.find()] == [302, 202], (
            "too little to be worth one at the end"
        )
        assert value(metrics, "position") == 302
        assert value(metrics, "bytes") > 300 * DIM * 2
        assert 0 < value(metrics, "age_seconds") < 60
        assert value(metrics, "failures_total") == 0

    def test_at_a_clean_end_half_is_enough(self, place: Place) -> None:
        log, snapshots = place.restored(), place.snapshots()
        log.append(Open(0, 1, 7, 0))
        made = Snapshotter(snapshots, log, 100, Metrics(), None)
        worker = self.run(made)
        place.claim(log, 50)
        self.end(made, worker)
        [found] = snapshots.find()
        again = place.log()
        assert again.resume(place.admin, snapshots) == found.header
        assert again.meld.digest() == log.meld.digest()

    def test_after_a_start_from_a_snapshot_the_next_is_due_as_much_later(
        self, place: Place
    ) -> None:
        log, snapshots, metrics = place.restored(), place.snapshots(), Metrics()
        log.append(Open(0, 1, 7, 0))
        place.claim(log, 200)
        header = snapshots.write(log.meld.state(), log.offset)
        made = Snapshotter(snapshots, log, 100, metrics, header)
        assert value(metrics, "position") == 202
        place.claim(log, 90)
        made.offer()
        assert not made._busy
        place.claim(log, 10)
        made.offer()
        assert made._busy

    def test_the_line_goes_on_while_one_is_written(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, snapshots = place.restored(), place.snapshots()
        log.append(Open(0, 1, 7, 0))
        held, writing = threading.Event(), threading.Event()
        write = snapshots._write

        def slow(*args: object):
            writing.set()
            assert held.wait(20)
            return write(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(snapshots, "_write", slow)
        made = Snapshotter(snapshots, log, 100, Metrics(), None)
        worker = self.run(made)
        place.claim(log, 150)
        digest, position = log.meld.digest(), log.meld.position
        made.offer()
        assert writing.wait(20)
        log.append(Open(0, 2, 7, 60))
        place.claim(log, 150)
        made.offer()
        held.set()
        while made._busy:
            pass
        [found] = snapshots.find()
        assert found.position == position
        again = place.log()
        again.resume(place.admin, snapshots)
        assert again.meld.digest() == digest != log.meld.digest()
        self.end(made, worker)

    def test_a_write_that_fails_is_a_warning_and_tried_again_later(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        log, snapshots, metrics = place.restored(), place.snapshots(), Metrics()
        log.append(Open(0, 1, 7, 0))

        def refuse(path: str) -> None:
            raise DependencyError(f"cannot create {path}")

        monkeypatch.setattr(snapshots.folder, "create", refuse)
        made = Snapshotter(snapshots, log, 100, metrics, None)
        worker = self.run(made)
        place.claim(log, 150)
        with caplog.at_level(logging.WARNING, "streamer"):
            made.offer()
            while made._busy:
                pass
        assert "no snapshot of the dedup state could be written" in caplog.text
        assert value(metrics, "failures_total") == 1
        monkeypatch.undo()
        place.claim(log, 100)
        self.end(made, worker)
        assert len(snapshots.find()) == 1
