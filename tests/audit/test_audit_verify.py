"""Every problem code is given by the damage that it names, and by nothing less; a sound folder has
none."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sink_data import Maker, make_dataset

from streamer.audit import PROBLEMS, Audit
from streamer.audit.report import KEPT, Report
from streamer.records import key_of
from streamer.sink import table
from streamer.sink.storage import Storage

FIRST = "w-0-00000000"
SECOND = "w-0-00000001"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    make_dataset(str(root), shard_records=9)
    return root / "cats"


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "cats")


def codes(folder: Path, pairs: bool = False) -> dict[str, int]:
    report = Audit(str(folder)).run(pairs)
    assert report.ok == (not report.problems)
    return {code: n for code, n in report.counts.items() if code in PROBLEMS}


# Damage that keeps everything else right: a manifest is changed along with the file


def manifest_of(folder: Path, path: str) -> Path:
    name = Path(path).name
    return folder / "manifests" / f"{name[:12]}.json"


def edit_manifest(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    path = folder / "manifests" / f"{name}.json"
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_text(json.dumps(raw))


def refit(folder: Path, path: str, rows: int | None = None) -> None:
    """The manifest says again what the file is."""
    data = (folder / path).read_bytes()

    def change(raw):
        [entry] = [f for f in raw["files"] if f["path"] == path]
        entry.update(
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            **({} if rows is None else {"rows": rows}),
        )

    edit_manifest(folder, Path(path).name[:12], change)


def edit_rows(folder: Path, name: str, change: Callable[[list[dict]], None]) -> None:
    path = f"metadata/{name}.parquet"
    read = pq.read_table(folder / path)
    rows = read.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, read.schema), folder / path)
    refit(folder, path)


def shard(folder: Path, name: str = FIRST) -> str:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.glob(f"shards/*/{name}-000.tar")
    )[0]


def edit_tar(
    folder: Path, change: Callable[[list[tuple[str, bytes]]], None], rows: int | None = None
) -> None:
    path = shard(folder)
    with tarfile.open(folder / path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    change(members)
    with tarfile.open(folder / path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refit(folder, path, rows)


def row_where(rows: list[dict], **wanted) -> dict:
    return next(r for r in rows if all(r[k] == v for k, v in wanted.items()))


def edit_row(change: dict, **wanted) -> Callable[[Path], None]:
    return lambda folder: edit_rows(
        folder, SECOND, lambda rows: row_where(rows, **wanted).update(change)
    )


def samples_in(folder: Path) -> int:
    with tarfile.open(folder / shard(folder)) as tar:
        return len({m.name.partition(".")[0] for m in tar})


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {}


def damage(*expected: str) -> Callable[[Callable[[Path], object]], None]:
    def add(function: Callable[[Path], object]) -> None:
        DAMAGE[function.__name__] = (function, set(expected))

    return add


@damage("file_checksum", "member_mismatch")
def a_flipped_bit_in_an_image(folder):
    path = folder / shard(folder)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


@damage("file_checksum", "tar_unreadable", "rows_mismatch", "member_missing")
def a_flipped_bit_in_a_tar_header(folder):
    path = folder / shard(folder)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@damage("file_checksum", "file_size", "tar_unreadable", "rows_mismatch", "member_missing")
def a_truncated_tar(folder):
    path = folder / shard(folder)
    path.write_bytes(path.read_bytes()[:5000])


@damage("file_checksum", "file_size", "table_unreadable", "duplicate_target", "member_unknown")
def a_truncated_table(folder):
    path = folder / f"metadata/{FIRST}.parquet"
    path.write_bytes(path.read_bytes()[:-100])


@damage("file_checksum", "table_unreadable", "duplicate_target", "member_unknown")
def a_table_with_a_damaged_page(folder):
    path = folder / f"metadata/{FIRST}.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(2000) + data[2004:])


@damage("file_checksum", "table_unreadable", "duplicate_target", "member_unknown")
def a_table_with_a_damaged_footer(folder):
    path = folder / f"metadata/{FIRST}.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-400] + bytes(300) + data[-100:])


@damage("file_checksum")
def a_flipped_bit_that_no_row_shows(folder):
    path = folder / f"metadata/{FIRST}.parquet"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"parquet-cpp-arrow", b"parquet-cpp-arrox"))
    assert path.read_bytes() != data


@damage("file_missing", "duplicate_target", "member_unknown")
def a_missing_table(folder):
    (folder / f"metadata/{FIRST}.parquet").unlink()


@damage("file_missing")
def a_missing_tar(folder):
    (folder / shard(folder)).unlink()


@damage("file_unknown")
def a_tar_that_nobody_named(folder):
    shutil.copy(folder / shard(folder), folder / "shards/jpg/w-7-00000000-000.tar")


@damage("file_unknown")
def something_else_among_the_shards(folder):
    (folder / "shards/jpg/notes.txt").write_text("x")


@damage("file_twice")
def a_file_named_twice(folder):
    edit_manifest(folder, FIRST, lambda raw: raw["files"].append(raw["files"][-1]))


@damage("range_overlap")
def an_overlapping_manifest(folder):
    edit_manifest(folder, SECOND, lambda raw: raw["partitions"].update({"0": [39, 70]}))


@damage("range_gap", "row_outside_range")
def a_gap_in_the_ranges(folder):
    edit_manifest(folder, SECOND, lambda raw: raw["partitions"].update({"0": [41, 70]}))


@damage("epoch_gap", "range_gap")
def a_missing_manifest_in_the_middle(folder):
    (folder / "manifests/w-1-00000001.json").unlink()


@damage("range_gap", "file_unknown", "duplicate_target")
def a_missing_manifest(folder):
    (folder / f"manifests/{SECOND}.json").unlink()


@damage("epoch_gap", "file_unknown", "duplicate_target", "range_gap")
def a_missing_first_manifest(folder):
    (folder / f"manifests/{FIRST}.json").unlink()
    edit_manifest(folder, "w-1-00000001", lambda raw: raw["partitions"].update({"0": [0, 0]}))


@damage("uuid_chain")
def a_manifest_of_another_life(folder):
    edit_manifest(folder, SECOND, lambda raw: raw.update(previous_uuid="0000"))


@damage("range_gap", "file_unknown", "manifest_unreadable", "duplicate_target")
def a_manifest_that_is_not_json(folder):
    (folder / f"manifests/{SECOND}.json").write_text("{")


@damage("range_gap", "file_unknown", "manifest_unreadable", "duplicate_target")
def a_manifest_without_a_bottom(folder):
    (folder / f"manifests/{SECOND}.json").write_text("[" * 100_000)


@damage("range_gap", "file_unknown", "manifest_unreadable", "duplicate_target")
def a_manifest_of_endless_files(folder):
    path = folder / f"manifests/{SECOND}.json"
    path.write_text(re.sub(r'"bytes": ?\d+', '"bytes": 1e999', path.read_text()))


@damage("file_missing")
def a_link_that_leads_to_itself(folder):
    path = folder / shard(folder)
    path.unlink()
    path.symlink_to(path.name)


@damage("file_missing")
def a_pipe(folder):
    path = folder / shard(folder)
    path.unlink()
    os.mkfifo(path)
    os.mkfifo(folder / "manifests/w-9-00000000.json")


@damage()
def a_file_in_place_of_staging(folder):
    if (folder / ".staging").exists():
        shutil.rmtree(folder / ".staging")
    (folder / ".staging").write_text("")


@damage("range_gap", "file_unknown", "manifest_unreadable", "duplicate_target")
def a_manifest_of_the_future(folder):
    edit_manifest(folder, SECOND, lambda raw: raw.update(version=2))


@damage("manifest_name")
def a_manifest_under_another_name(folder):
    (folder / f"manifests/{SECOND}.json").rename(folder / "manifests/w-0-00000007.json")


@damage("manifest_name")
def a_manifest_of_another_dataset(folder):
    edit_manifest(folder, SECOND, lambda raw: raw.update(dataset="dogs"))


@damage("row_outside_range")
def a_skipped_range_with_a_row_in_it(folder):
    edit_manifest(folder, SECOND, lambda raw: raw["skipped"].update({"0": [[50, 51]]}))


@damage("skipped_outside")
def a_skipped_range_outside(folder):
    edit_manifest(folder, SECOND, lambda raw: raw["skipped"].update({"0": [[700, 701]]}))


@damage("counts_mismatch")
def counts_that_are_not_the_rows(folder):
    edit_manifest(
        folder, FIRST, lambda raw: raw["counts"].update(accepted=raw["counts"]["accepted"] + 1)
    )


@damage("rows_mismatch")
def rows_that_are_not_the_file(folder):
    refit(folder, f"metadata/{FIRST}.parquet", rows=41)


@damage("counts_mismatch", "rows_mismatch")
def a_lost_row(folder):
    edit_rows(folder, SECOND, lambda rows: rows.remove(row_where(rows, outcome="invalid")))


@damage("row_twice", "counts_mismatch", "rows_mismatch")
def a_row_twice(folder):
    edit_rows(folder, SECOND, lambda rows: rows.append(row_where(rows, outcome="invalid")))


@damage("table_unreadable", "member_unknown")
def a_column_that_is_missing(folder):
    path = f"metadata/{SECOND}.parquet"
    pq.write_table(pq.read_table(folder / path).drop_columns(["pipeline"]), folder / path)
    refit(folder, path)


@damage("binding")
def another_threshold(folder):
    path = f"metadata/{SECOND}.parquet"
    read = pq.read_table(folder / path)
    metadata = {**read.schema.metadata, b"streamer.threshold": b"0.9999999"}
    pq.write_table(read.replace_schema_metadata(metadata), folder / path)
    refit(folder, path)


DAMAGE["an accepted row with a reason"] = (
    edit_row({"reason": "min_side"}, outcome="accepted"),
    {"row_invalid"},
)
DAMAGE["a filtered row without one"] = (
    edit_row({"reason": None}, outcome="filtered"),
    {"row_invalid"},
)
DAMAGE["a filtered row with a shard"] = (
    edit_row({"shard": "shards/jpg/x.tar"}, outcome="filtered"),
    {"row_invalid"},
)
DAMAGE["a wrong key"] = (
    edit_row({"key": "00000_999999999999"}, outcome="filtered"),
    {"row_invalid"},
)
DAMAGE["an unknown outcome"] = (
    edit_row({"outcome": "lost"}, outcome="filtered"),
    {"row_invalid", "counts_mismatch"},
)
DAMAGE["a duplicate of nothing"] = (
    edit_row({"duplicate_of": None, "similarity": None}, outcome="duplicate"),
    {"row_invalid"},
)
DAMAGE["a duplicate without its vector"] = (
    edit_row({"embedding": None}, outcome="duplicate"),
    {"row_invalid"},
)
DAMAGE["a duplicate without similarity"] = (
    edit_row({"similarity": None}, outcome="duplicate"),
    {"row_invalid", "similarity"},
)


@damage("duplicate_target", "range_gap")
def a_duplicate_of_what_has_no_manifest(folder):
    """Its winner's offset lies before the first record that the dataset has."""
    (folder / "manifests/w-0-00000001.json").unlink()
    for path in (folder / "metadata/w-0-00000001.parquet", *folder.glob("shards/*/w-0-00000001-*")):
        path.unlink()


DAMAGE["a duplicate of no key"] = (
    edit_row({"duplicate_of": "somebody"}, outcome="duplicate"),
    {"duplicate_target"},
)
DAMAGE["a low similarity"] = (edit_row({"similarity": 0.5}, outcome="duplicate"), {"similarity"})
DAMAGE["an accepted row in a shard that is not the epoch's"] = (
    edit_row({"shard": "shards/jpg/w-0-00000009-000.tar"}, outcome="accepted"),
    {"row_invalid", "member_unknown"},
)


@damage("similarity")
def a_similarity_that_is_one_bit_off(folder):
    def change(rows):
        row = row_where(rows, outcome="duplicate")
        row["similarity"] = float(np.nextafter(row["similarity"], 0))

    edit_rows(folder, SECOND, change)


@damage("duplicate_target")
def a_duplicate_of_a_filtered_record(folder):
    target = row_where(
        pq.read_table(folder / f"metadata/{FIRST}.parquet").to_pylist(), outcome="filtered"
    )["key"]
    edit_row({"duplicate_of": target}, outcome="duplicate")(folder)


@damage("duplicate_target")
def a_duplicate_of_a_record_that_claimed_later(folder):
    edit_row({"claim": 2}, outcome="duplicate")(folder)
    edit_rows(
        folder,
        FIRST,
        lambda rows: [r.update(claim=r["claim"] + 10_000) for r in rows if r["claim"] is not None],
    )


@damage("claim_twice")
def a_claim_twice(folder):
    claim = row_where(
        pq.read_table(folder / f"metadata/{FIRST}.parquet").to_pylist(), outcome="accepted"
    )["claim"]
    edit_row({"claim": claim}, outcome="accepted")(folder)


@damage("member_mismatch")
def a_changed_text(folder):
    edit_tar(folder, lambda members: members.__setitem__(2, (members[2][0], b"other")))


@damage("member_mismatch")
def a_changed_json(folder):
    edit_tar(
        folder,
        lambda members: members.__setitem__(
            1, (members[1][0], members[1][1].replace(b'"offset":', b'"offset":1'))
        ),
    )


@damage("member_mismatch")
def a_json_that_is_none(folder):
    edit_tar(folder, lambda members: members.__setitem__(1, (members[1][0], b"[]")))


@damage("member_missing")
def a_sample_without_its_text(folder):
    edit_tar(folder, lambda members: members.pop(2))


@damage("member_missing", "rows_mismatch")
def a_lost_sample(folder):
    edit_tar(folder, lambda members: members.__delitem__(slice(0, 3)))


@damage("member_unknown")
def a_member_too_many(folder):
    edit_tar(
        folder, lambda members: members.insert(3, (members[0][0].replace(".", ".thumb."), b"x"))
    )


@damage("member_unknown")
def a_sample_without_a_row(folder):
    edit_tar(
        folder,
        lambda members: members.append(("00000_000000009999.txt", b"x")),
        rows=samples_in(folder) + 1,
    )


@damage("member_twice")
def a_sample_twice(folder):
    edit_tar(folder, lambda members: members.extend(members[:3]), rows=samples_in(folder) + 1)


@damage("no_dataset", "file_unknown")
def no_manifest_at_all(folder):
    shutil.rmtree(folder / "manifests")


@damage("no_records", "file_unknown")
def a_first_manifest_alone(folder):
    for path in (folder / "manifests").iterdir():
        if path.stem != FIRST:
            path.unlink()
    edit_manifest(
        folder, FIRST, lambda raw: raw.update(partitions={"0": [0, 0]}, files=[], counts={})
    )


@damage("unfinished")
def a_replay_that_was_stopped(folder):
    edit_manifest(folder, FIRST, lambda raw: raw["pipeline"].update(ends={"0": 90, "1": 92}))


def test_a_sound_folder(folder):
    report = Audit(str(folder)).run(pairs=True)
    assert report.as_json()["problems"] == []
    assert report.ok
    assert report.records == 180
    assert sum(report.outcomes.values()) == 180
    assert report.partitions[1] == {"first": 0, "next": 91, "records": 90, "skipped": 0}
    assert min(report.outcomes.values()) > 5, (
        "the folder must hold every outcome, or the tests below prove nothing"
    )


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(folder, name):
    do, expected = DAMAGE[name]
    do(folder)
    assert set(codes(folder)) == expected


def test_every_code_has_its_damage():
    found = set().union(*(expected for _, expected in DAMAGE.values())) | {"pair"}
    assert found == {code for code, words in PROBLEMS.items() if "(with -c)" not in words}


def test_pairs(folder, tmp_path):
    """A duplicate that was let through: accepted with the vector of another winner, everything else
    consistent."""
    maker = Maker(Storage(str(tmp_path / "flagged"), "cats"), action="flag", seed=3)
    maker.commit(sizes={0: 60})
    assert codes(tmp_path / "flagged/cats", pairs=True) == {}, (
        "flagged duplicates are accepted, and no winners"
    )
    vectors = pq.read_table(
        folder / f"metadata/{FIRST}.parquet", filters=pc.field("outcome") == "accepted"
    )["embedding"].to_pylist()
    edit_row({"embedding": vectors[0]}, outcome="accepted")(folder)
    assert "pair" not in codes(folder)
    assert codes(folder, pairs=True)["pair"] == 1
    table = pq.read_table(folder / f"metadata/{SECOND}.parquet")
    pq.write_table(
        table.replace_schema_metadata(
            {**table.schema.metadata, "streamer.search": "capacity 24576"}
        ),
        folder / f"metadata/{SECOND}.parquet",
    )
    refit(folder, f"metadata/{SECOND}.parquet")
    assert codes(folder, pairs=True) == {}
    assert Audit(str(folder)).run(pairs=True).counts["pair_missed"] == 1


def test_flagged_duplicates_are_checked_like_removed_ones(tmp_path):
    Maker(Storage(str(tmp_path), "cats"), action="flag", seed=3).commit("w-0", {0: 60})
    folder = tmp_path / "cats"
    assert codes(folder) == {}
    edit_rows(
        folder,
        FIRST,
        lambda rows: row_where(rows, flags=["near_duplicate"]).update(similarity=0.95),
    )
    assert codes(folder) == {"similarity": 1}


def test_without_deduplication_there_is_no_threshold(tmp_path):
    maker = Maker(Storage(str(tmp_path), "cats"), threshold=2.0)
    maker.stated_threshold = "off"
    maker.commit("w-0", {0: 40})
    assert codes(tmp_path / "cats", pairs=True) == {}


def test_a_winner_that_was_skipped_is_noted_though_its_epoch_has_no_table(tmp_path):
    maker = Maker(Storage(str(tmp_path), "cats"), seed=3)
    maker.commit("w-0", {0: 60})
    maker.commit("w-0", {1: 0})
    folder = tmp_path / "cats"
    edit_manifest(folder, SECOND, lambda raw: raw["skipped"].update({"1": [[0, 1]]}))
    assert json.loads(manifest_of(folder, SECOND).read_bytes())["files"] == []
    edit_rows(
        folder,
        FIRST,
        lambda rows: row_where(rows, outcome="duplicate").update(duplicate_of=key_of(1, 0)),
    )
    report = Audit(str(folder)).run()
    assert report.problems == []
    assert {n.code for n in report.notes} == {"withdrawn_target"}


def test_what_is_staged_and_withdrawn_is_noted_and_right(folder, tmp_path):
    maker = Maker(Storage(str(tmp_path), "cats"))
    maker.last["w-3"] = (4, "aa")
    maker.next = {5: 0}
    maker.seal("w-3", {5: 20})

    def withdraw(rows):
        wanted = row_where(rows, outcome="duplicate")["duplicate_of"]
        row = row_where(rows, key=wanted)
        row.update(outcome="invalid", reason="withdrawn", shard=None)

    # The winner's sample goes with it: withdrawn means that its image could not be had
    rows = pq.read_table(folder / f"metadata/{FIRST}.parquet").to_pylist()
    wanted = row_where(rows, outcome="duplicate")["duplicate_of"]
    home = row_where(rows, key=wanted)["shard"]
    edit_rows(folder, FIRST, withdraw)
    with tarfile.open(folder / home) as tar:
        kept = [(m, tar.extractfile(m).read()) for m in tar if not m.name.startswith(wanted)]
    with tarfile.open(folder / home, "w") as tar:
        for info, data in kept:
            tar.addfile(info, io.BytesIO(data))
    refit(folder, home, rows=len(kept) // 3)

    def recount(raw):
        raw["counts"]["accepted"] -= 1
        raw["counts"]["invalid"] += 1

    edit_manifest(folder, FIRST, recount)
    report = Audit(str(folder)).run()
    assert report.problems == []
    assert {n.code for n in report.notes} == {"staged", "withdrawn_target"}
    assert next(n.path for n in report.notes if n.code == "staged").startswith(
        ".staging/w-3/00000005-"
    )


def test_empty_manifests_at_the_start(tmp_path):
    """`kafka.start: latest` on two replicas at once: the commit log's first manifest holds, the
    other is of no consequence."""
    maker = Maker(Storage(str(tmp_path), "cats"))
    maker.next = {0: 100, 1: 0}
    folder = tmp_path / "cats"
    maker.commit("w-0", {0: 20})
    maker.commit("w-0", {0: 20})
    for name, marks in (
        ("w-1-00000000", {"0": [110, 110], "1": [7, 7]}),
        ("w-2-00000000", {"0": [100, 100]}),
    ):
        raw = json.loads((folder / f"manifests/{FIRST}.json").read_bytes())
        raw.update(writer=name[:3], uuid=name, partitions=marks, counts={}, files=[])
        (folder / f"manifests/{name}.json").write_text(json.dumps(raw))
    report = Audit(str(folder)).run()
    assert report.problems == []
    assert report.partitions[0] == {"first": 100, "next": 140, "records": 40, "skipped": 0}
    assert report.partitions[1] == {"first": 7, "next": 7, "records": 0, "skipped": 0}


def test_embeddings_as_plain_lists_are_checked_too(tmp_path, monkeypatch):
    """What pyarrow before 26 writes."""
    monkeypatch.setattr(table, "FIXED_SIZE", False)
    Maker(Storage(str(tmp_path), "cats")).commit("w-0", {0: 60})
    folder = tmp_path / "cats"
    assert codes(folder, pairs=True) == {}
    edit_rows(
        folder, FIRST, lambda rows: row_where(rows, outcome="duplicate").update(similarity=0.95)
    )
    assert codes(folder) == {"similarity": 1}


def test_the_report_stays_small():
    report = Report()
    for i in range(1000):
        report.problem("row_twice", f"x#{i}", "y")
    assert len(report.problems) == KEPT
    assert report.as_json()["counts"] == {"row_twice": 1000}
    assert not report.ok


def test_on_s3(s3_query):
    path = f"s3://curated/audit{s3_query}"
    make_dataset(path, shard_records=9)
    storage = Storage(path, "cats")
    report = Audit(storage.root_uri).run(pairs=True)
    assert report.problems == []
    assert report.records == 180
    tar = next(e.path for e in storage.files("shards"))
    storage.folder.create(tar).close()
    assert {"file_size", "file_checksum"} <= {
        p.code for p in Audit(storage.root_uri).run().problems
    }


def streamer(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "streamer", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_command(folder):
    done = streamer("dataset", "verify", str(folder), "--json", "--pairs")
    assert (done.returncode, done.stderr) == (0, "")
    raw = json.loads(done.stdout)
    assert raw["ok"] is True
    assert (raw["records"], sum(raw["outcomes"].values()), raw["problems"]) == (180, 180, [])
    assert set(raw["partitions"]) == {"0", "1"}
    assert raw["pairs"] == {"compared": raw["outcomes"]["accepted"], "threshold": 0.9}
    done = streamer("dataset", "verify", str(folder), "--pairs")
    assert (
        f"{raw['outcomes']['accepted']} winners were compared with each other, at a threshold of 0.9"
        in done.stdout
    )
    (folder / shard(folder)).unlink()
    done = streamer("dataset", "verify", str(folder), "--json")
    assert done.returncode == 1
    assert [(p["code"], p["path"]) for p in json.loads(done.stdout)["problems"]] == [
        ("file_missing", shard_name(folder))
    ]
    assert json.loads(done.stdout)["pairs"] is None
    done = streamer("dataset", "verify", str(folder))
    assert done.returncode == 1
    assert "file_missing (1): a file that a manifest names is not there" in done.stdout
    assert done.stdout.endswith("NOT ok: 1 problem\n")


def shard_name(folder: Path) -> str:
    raw = json.loads((folder / f"manifests/{FIRST}.json").read_bytes())
    [gone] = [f["path"] for f in raw["files"] if not (folder / f["path"]).exists()]
    return gone


@pytest.mark.parametrize(
    ("path", "code"), [("nowhere://x", 2), ("s3://b/x?regoin=1", 2), ("/does/not/exist", 1)]
)
def test_the_command_on_what_is_no_dataset(path, code):
    done = streamer("dataset", "verify", path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
