"""What is not public yet is no fault: epochs of other replicas that are not committed, or that are
committed and not projected, while replicas run and after they were killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sink_data import Maker

from streamer.audit import Audit
from streamer.audit.report import Report
from streamer.sink.storage import Storage, staging_path
from streamer.wire.manifest import Manifest, encode


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """A dataset with 40 records of partition 0, and many near-duplicates to come."""
    maker = Maker(Storage(str(tmp_path), "cats"), seed=5)
    maker.commit("w-0", {0: 40})
    return maker


def audit(maker: Maker) -> Report:
    return Audit(maker.storage.root_uri).run()


def codes(report: Report) -> tuple[set[str], set[str]]:
    return {p.code for p in report.problems}, {n.code for n in report.notes}


def publish(maker: Maker, manifest: Manifest, files: int) -> None:
    """The first steps of a projection."""
    staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
    for file in manifest.files[:files]:
        maker.storage.folder.publish(f"{staged}/{file.path}", file.path, file.bytes)


def test_a_winner_of_another_replica_that_has_not_committed(maker: Maker) -> None:
    other = maker.seal("w-1", {1: 40})
    maker.commit("w-0", {0: 40})
    report = audit(maker)
    assert codes(report) == (set(), {"staged", "target_pending"})
    assert all(n.detail.startswith("names 00001_") for n in report.notes if n.code != "staged")
    # Its uncommitted work is dropped, and read again later: then nothing of it is staged
    maker.storage.discard(other.writer, other.epoch, other.uuid)
    assert codes(audit(maker)) == (set(), {"target_pending"})


def test_a_winner_that_no_epoch_can_hold_any_more(maker: Maker) -> None:
    """At or beyond the end of a replay nothing comes."""
    maker.seal("w-1", {1: 40})
    manifest = maker.commit("w-0", {0: 40})
    _write_ends(maker, manifest, {0: 80, 1: 0})
    assert codes(audit(maker)) == ({"duplicate_target"}, {"staged"})
    _write_ends(maker, manifest, {0: 80, 1: 40})
    assert codes(audit(maker)) == ({"unfinished"}, {"staged", "target_pending"})
    # `run` has let it go on behind the end of the replay
    _write_ends(maker, manifest, {0: 70, 1: 0})
    assert codes(audit(maker)) == (set(), {"staged", "target_pending"})


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_a_projection_that_is_under_way_or_broken_off(maker: Maker, files: int) -> None:
    manifest = maker.seal("w-0", {0: 40})
    publish(maker, manifest, files)
    expected = {"staged", "file_pending"} if files else {"staged"}
    assert codes(audit(maker)) == (set(), expected)
    maker.storage.project(manifest)
    report = audit(maker)
    assert codes(report) == (set(), set())
    assert report.records == 80


def test_a_file_that_belongs_to_no_epoch_in_staging(maker: Maker) -> None:
    manifest = maker.seal("w-0", {0: 40})
    publish(maker, manifest, 2)
    maker.storage.discard(manifest.writer, manifest.epoch, manifest.uuid)
    assert codes(audit(maker)) == ({"file_unknown"}, set())


def test_an_epoch_that_is_published_while_the_audit_runs(maker: Maker) -> None:
    """Another one each time that the audit has read something: it follows them all."""
    waiting = [maker.seal("w-0", {0: 20}), maker.seal("w-1", {1: 20}), maker.seal("w-1", {1: 20})]

    def advance(_nbytes: int) -> None:
        if waiting:
            maker.storage.project(waiting.pop(0))

    report = Audit(maker.storage.root_uri).run(advance=advance)
    assert not waiting
    assert codes(report) == (set(), set())
    assert report.records == 100
    assert report.partitions[1] == {"first": 0, "next": 40, "records": 40, "skipped": 0}


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_partition_that_another_replica_took_over_from_a_killed_one(
    maker: Maker, files: int
) -> None:
    """w-1 was killed between its commit and the end of its projection; w-0 has gone on from there,
    and w-1's duplicates are in w-0's epochs."""
    killed = maker.seal("w-1", {0: 40})
    maker.commit("w-0", {0: 40})
    publish(maker, killed, files)
    problems, notes = codes(audit(maker))
    assert problems == set()
    assert notes == {"staged", "gap_pending", "target_pending"} | (
        {"file_pending"} if files else set()
    )
    maker.storage.project(killed)
    assert codes(audit(maker)) == (set(), set())


def test_a_gap_that_nothing_in_staging_fills(maker: Maker) -> None:
    lost = maker.seal("w-1", {0: 40})
    maker.commit("w-0", {0: 40})
    maker.storage.discard(lost.writer, lost.epoch, lost.uuid)
    assert codes(audit(maker)) == ({"range_gap", "duplicate_target"}, set())
    open_epoch = maker.open("w-1")  # one that is still being written fills none either
    open_epoch.append(maker.batch(0, 10))
    assert codes(audit(maker)) == ({"range_gap", "duplicate_target"}, {"staged"})
    open_epoch.discard()


def _write_ends(maker: Maker, manifest: Manifest, ends: dict[int, int]) -> None:
    """Makes the dataset one of a replay, by its manifest."""
    path = Path(maker.storage.root_uri) / manifest.path
    raw = json.loads(encode(manifest))
    raw["pipeline"]["ends"] = {str(p): end for p, end in ends.items()}
    path.write_text(json.dumps(raw))


def test_a_replay_is_done_at_the_end_that_its_first_manifest_names(maker: Maker) -> None:
    manifest = maker.commit("w-0", {1: 40})
    _write_ends(maker, manifest, {0: 40, 1: 41})
    report = audit(maker)
    [problem] = report.problems
    assert (problem.code, problem.path) == ("unfinished", manifest.path)
    assert problem.detail == (
        "partition 1: the replay ends at offset 41, but its epochs reach only 40"
    )
    _write_ends(maker, manifest, {0: 40, 1: 40})
    assert codes(audit(maker)) == (set(), set())
    _write_ends(maker, manifest, {0: 40, 1: 40, 2: 3})
    assert codes(audit(maker)) == ({"unfinished"}, set()), "of partition 2 there is nothing"


def test_nothing_is_proven_where_there_is_no_record(tmp_path: Path) -> None:
    maker = Maker(Storage(str(tmp_path), "cats"))
    maker.commit("w-0", {0: 0})
    assert codes(audit(maker)) == ({"no_records"}, set())
