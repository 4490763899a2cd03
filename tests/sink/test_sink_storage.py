"""Storage: what projection promises after a crash at any step, with others at work, and with files
that are gone."""

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pyarrow import fs
from sink_data import Maker, make_dataset
from test_engine import FOUNDED, Bench, Kafka

import streamer.sink.storage
from streamer.errors import ConfigError, DependencyError, DiskFull, ProtocolError
from streamer.sink.card import update_card
from streamer.sink.local import LocalFolder
from streamer.sink.remote import RemoteFolder
from streamer.sink.storage import CLOCKS_APART_S, Storage, staging_path
from streamer.wire.manifest import FileEntry, decode, encode


def snapshot(storage):
    """Every public file with its bytes."""
    return {
        e.path: storage.read(e.path) for e in storage.files() if not e.path.startswith(".staging")
    }


def leftovers(storage):
    return [e.path for e in storage.files(".staging")]


def test_nothing_is_public_before_projection_and_all_of_it_after(storage):
    maker = Maker(storage, shard_records=4)
    manifest = maker.seal()
    assert snapshot(storage) == {}
    assert set(storage.projected()) == set()
    [staged] = storage.staged()
    assert (staged.writer, staged.epoch, staged.uuid) == ("w-0", 0, manifest.uuid)
    assert 0 <= staged.age_s < 60
    storage.project(manifest)
    public = snapshot(storage)
    assert public.keys() == {f.path for f in manifest.files} | {manifest.path, "README.md"}
    assert public[manifest.path] == encode(manifest)
    assert all(len(public[f.path]) == f.bytes for f in manifest.files)
    assert storage.staged() == []
    assert leftovers(storage) == []
    assert set(storage.projected()) == {("w-0", 0)}


def test_paths_of_the_contract(storage):
    manifest = Maker(storage, shard_records=3, formats=("jpg",)).commit("pod-7")
    shards = sorted(f.path for f in manifest.files if f.path.endswith(".tar"))
    assert shards[:2] == ["shards/jpg/pod-7-00000000-000.tar", "shards/jpg/pod-7-00000000-001.tar"]
    assert "metadata/pod-7-00000000.parquet" in {f.path for f in manifest.files}
    assert manifest.path == "manifests/pod-7-00000000.json"


STEPS = 12
"""More than a projection of the epoch below has."""


@pytest.mark.parametrize("done", range(STEPS))
def test_a_projection_cut_off_after_any_step_is_finished_by_the_next(tmp_path, done):
    """The half-done state is laid on the disk as a killed process leaves it."""
    storage, whole = (
        Storage(str(tmp_path / "cut"), "cats"),
        Storage(str(tmp_path / "whole"), "cats"),
    )
    manifest, same = (Maker(s, shard_records=4).seal(sizes={0: 30}) for s in (storage, whole))
    assert manifest == same
    whole.project(manifest)
    staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
    steps = [
        lambda f=f: storage.folder.publish(f"{staged}/{f.path}", f.path, f.bytes)
        for f in manifest.files
    ]
    steps.append(lambda: update_card(storage.folder, "cats", f"{staged}/scratch.md"))
    steps.append(lambda: storage.folder.create(f"{staged}/killed-here.json").close())
    steps.append(
        lambda: storage.folder.replace(manifest.path, encode(manifest), f"{staged}/scratch.json")
    )
    assert 5 < len(steps) < STEPS
    for step in steps[:done]:
        step()
    storage.project(manifest)
    storage.project(manifest)
    assert snapshot(storage) == snapshot(whole)
    assert leftovers(storage) == []


@pytest.mark.parametrize("done", range(3))
def test_the_same_on_s3(s3_output, done):
    storage = Storage(s3_output, "cats")
    manifest = Maker(storage, formats=("jpg",)).seal()
    staged = staging_path(manifest.writer, manifest.epoch, manifest.uuid)
    for file in manifest.files[:done]:
        storage.folder.publish(f"{staged}/{file.path}", file.path, file.bytes)
    storage.project(manifest)
    storage.project(manifest)
    assert set(storage.projected()) == {("w-0", 0)}
    assert leftovers(storage) == []
    for file in manifest.files:
        storage.folder.check(file.path, file.bytes, file.sha256)


def test_a_file_that_is_nowhere_stops_it(storage):
    maker = Maker(storage)
    manifest = maker.seal()
    ghost = FileEntry("shards/jpg/w-0-00000000-099.tar", 10, "ab" * 32, 1)
    with pytest.raises(ProtocolError, match=r"099.tar.* is missing.*bring the file back"):
        storage.project(replace(manifest, files=(*manifest.files, ghost)))
    assert manifest.path not in snapshot(storage)


def test_a_public_file_of_another_size_stops_it(storage):
    manifest = Maker(storage).seal()
    storage.project(manifest)
    wrong = tuple(replace(f, bytes=f.bytes + 1) for f in manifest.files)
    other = replace(manifest, epoch=1, files=wrong)
    with pytest.raises(
        ProtocolError, match=f"has {wrong[0].bytes - 1} bytes instead of {wrong[0].bytes}"
    ):
        storage.project(other)


def test_a_sealed_file_that_changed_stops_it(tmp_path):
    storage = Storage(str(tmp_path), "cats")
    manifest = Maker(storage).seal()
    sealed = tmp_path / "cats" / staging_path("w-0", 0, manifest.uuid) / manifest.files[0].path
    sealed.write_bytes(sealed.read_bytes()[:-1])
    with pytest.raises(ProtocolError, match="somebody changed it after it was sealed"):
        storage.project(manifest)


def test_another_life_of_the_dataset_is_not_overwritten(storage):
    first = Maker(storage).commit()
    before = snapshot(storage)
    second = Maker(storage, seed=1).seal()
    assert first.path == second.path
    with pytest.raises(ProtocolError, match="another life of this dataset"):
        storage.project(second)
    assert snapshot(storage) == before


def test_discard_twice(storage):
    maker = Maker(storage)
    manifest = maker.seal()
    storage.discard("w-0", 0, manifest.uuid)
    storage.discard("w-0", 0, manifest.uuid)
    assert storage.staged() == []
    assert snapshot(storage) == {}


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_an_empty_staged_folder_is_as_old_as_it_looks(tmp_path, kind):
    """A process that was killed between making the folder and its first file must not leave it for
    ever."""
    storage = Storage(str(tmp_path), "cats")
    if kind == "remote":
        storage.folder = RemoteFolder(
            fs.LocalFileSystem(), str(tmp_path / "cats"), "elsewhere://cats"
        )
    empty, fresh = (tmp_path / "cats" / staging_path("w-0", epoch, "ab") for epoch in (3, 4))
    for folder in (empty, fresh):
        folder.mkdir(parents=True)
    os.utime(empty, (time.time() - 5000, time.time() - 5000))
    ages = {s.epoch: s.age_s for s in storage.staged()}
    assert 4990 < ages[3] < 5100
    assert ages[4] < 100
    storage.open_staged("w-0", 3, "ab", "x").close()
    os.utime(empty, (time.time() - 5000, time.time() - 5000))
    assert {s.epoch: s.age_s < 100 for s in storage.staged()} == {3: True, 4: True}, (
        "a file says it better"
    )


class Ahead:
    """The clock of a host that is off."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def time(self) -> float:
        return time.time() + self.seconds


@pytest.mark.parametrize("seconds", [540.0, -86_400.0, 20.0])
def test_an_age_does_not_depend_on_the_hosts_clock(storage, monkeypatch, caplog, seconds):
    """Nine minutes ahead were enough to take for abandoned what another writer was about to
    commit."""
    storage.open_staged("w-1", 3, "ab", "x").close()
    monkeypatch.setattr(streamer.sink.storage, "time", Ahead(seconds))
    [staged] = storage.staged()
    assert staged.age_s < 20
    warned = [r.message for r in caplog.records if "clock" in r.message]
    assert len(warned) == (abs(seconds) > CLOCKS_APART_S)
    assert leftovers(storage) == [f"{staging_path('w-1', 3, 'ab')}/x"], "the probe is gone"


def test_where_the_clocks_differ_nothing_of_others_looks_old(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path), "cats")
    storage.open_staged("w-1", 3, "ab", "x").close()
    staged = tmp_path / "cats" / staging_path("w-1", 3, "ab") / "x"
    os.utime(staged, (time.time() - 5000, time.time() - 5000))
    assert storage.staged()[0].age_s > 4990
    monkeypatch.setattr(streamer.sink.storage, "time", Ahead(-120.0))
    assert storage.staged()[0].age_s == 0.0


def test_where_no_probe_can_be_made_no_age_is_known(tmp_path):
    storage = Storage(str(tmp_path), "cats")
    storage.open_staged("w-1", 3, "ab", "x").close()
    staged = tmp_path / "cats" / staging_path("w-1", 3, "ab") / "x"
    os.utime(staged, (time.time() - 5000, time.time() - 5000))
    storage.folder = FullFolder(tmp_path / "cats")
    assert [s.age_s for s in storage.staged()] == [0.0]


def test_a_host_with_a_wrong_clock_leaves_a_sealed_epoch_to_its_writer(tmp_path, monkeypatch):
    """The whole start of another replica, on real files; then the epoch is committed and whole."""
    storage = Storage(str(tmp_path), "cats")
    manifest = Maker(storage).seal()
    bench = Bench(Kafka(log=[FOUNDED]), storage)
    monkeypatch.setattr(streamer.sink.storage, "time", Ahead(3600.0))
    bench.engine.recover()
    assert storage.is_staged(manifest)
    monkeypatch.setattr(streamer.sink.storage, "time", time)
    storage.project(manifest)
    assert {f.path for f in manifest.files} <= snapshot(storage).keys()


def test_probes_of_starts_that_were_broken_off_are_removed(storage, monkeypatch):
    for name in ("aa", "bb"):
        storage.folder.create(f".staging/.probe-{name}/probe").close()
    storage.clear_probes()
    assert len(leftovers(storage)) == 2, "they may be of starts that go on"
    monkeypatch.setattr(streamer.sink.storage, "PROBE_AGE_S", -1.0)
    storage.clear_probes()
    assert leftovers(storage) == []
    storage.clear_probes()


def test_other_things_in_staging_are_left_alone(storage):
    for path in (".staging/w-0/notes.txt", ".staging/w-0/00000001/x", ".staging/w-0/1-abc/x"):
        storage.folder.create(path).close()
    assert storage.staged() == []


def _project(output, data):
    Storage(output, "cats").project(decode(data))


def test_two_processes_project_the_same_epochs(tmp_path):
    storage = Storage(str(tmp_path), "cats")
    maker = Maker(storage, shard_records=2)
    manifests = [maker.seal() for _ in range(4)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(
            _project, [(str(tmp_path), encode(m)) for m in manifests for _ in range(3)], chunksize=1
        )
    assert set(storage.projected()) == {("w-0", e) for e in range(4)}
    assert leftovers(storage) == []
    for file in (f for m in manifests for f in m.files):
        storage.folder.check(file.path, file.bytes, file.sha256)


def test_many_threads_project_the_same_epoch_on_every_storage(storage):
    manifest = Maker(storage, shard_records=8).seal()
    errors = []

    def work():
        try:
            storage.project(manifest)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    storage.project(manifest)
    assert set(storage.projected()) == {("w-0", 0)}
    assert leftovers(storage) == []


def test_of_a_writers_checkpoints_the_older_one_is_replaced(storage):
    assert list(storage.checkpoints()) == []
    for n in range(4):
        storage.write_checkpoint("w-0", b"%d" % n)
        time.sleep(1.05)  # the clocks of object stores count seconds
    storage.write_checkpoint("w-1", b"9")
    assert [data for _, data in storage.checkpoints()] == [b"9", b"3", b"2"]
    assert {path for path, _ in storage.checkpoints()} == {
        ".checkpoints/w-0.0.json",
        ".checkpoints/w-0.1.json",
        ".checkpoints/w-1.0.json",
    }


def test_check_writable_leaves_nothing_behind(tmp_path, s3_output):
    Storage(str(tmp_path / "out"), "cats").check_writable()
    assert list(tmp_path.iterdir()) == []
    storage = Storage(s3_output, "cats")
    storage.check_writable()
    assert storage.files() == []


def test_check_writable_where_no_folder_can_be_made():
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(
        DependencyError,
        match=r"/proc/nowhere/cats/.*no folder can be made there; point output\.path elsewhere",
    ):
        Storage("/proc/nowhere", "cats").check_writable()


def test_check_writable_says_what_is_wrong(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(DependencyError, match=r"out/cats.*The fix"):
        Storage(str(tmp_path / "out"), "cats").check_writable()
    with pytest.raises(ConfigError):
        Storage("nowhere://x", "cats")


class FullFolder(LocalFolder):
    """A disk on which names can still be made and nothing can be written: `/dev/full` is the
    kernel's own."""

    def create(self, path):
        file = super().create(path)
        file.close()
        (self.root / path).unlink()
        (self.root / path).symlink_to("/dev/full")
        with self.explained("write", path), (self.root / path).open("wb", buffering=0) as full:
            full.write(b"x")


def test_a_full_disk_is_fatal_unless_something_of_our_own_may_be_deleted(tmp_path):
    storage = Storage(str(tmp_path), "cats")
    assert storage.has_room("w-0")
    storage.open_staged("w-1", 3, "ab", "shards/x.tar").close()
    storage.folder = FullFolder(tmp_path / "cats")
    with pytest.raises(DiskFull, match=r"No space left on device\. The fix: free space"):
        storage.has_room("w-0")
    assert not storage.has_room("w-1")
    assert [s.writer for s in storage.staged()] == ["w-1"], "the probe left nothing"


def test_root_uri_is_what_verify_takes(tmp_path, s3_output):
    assert Storage(str(tmp_path), "cats").root_uri == str(tmp_path / "cats")
    base, _, query = s3_output.partition("?")
    assert Storage(s3_output, "cats").root_uri == f"{base}/cats?{query}"


# The card


def front(storage):
    return yaml.safe_load(storage.read("README.md").decode().split("---\n")[1])


def test_the_card_names_every_format_and_keeps_what_people_wrote(storage):
    maker = Maker(storage, formats=("png",))
    maker.commit()
    assert front(storage)["configs"] == [
        {"config_name": "png", "data_files": "shards/png/*.tar", "default": True}
    ]
    edited = (
        storage.read("README.md")
        .decode()
        .replace("pretty_name: cats", "pretty_name: My cats\nlicense: mit")
        + "\nMy words.\n"
    )
    storage.folder.replace("README.md", edited.encode(), ".staging/x")
    maker.commit()
    assert storage.read("README.md").decode() == edited
    maker.formats = ("jpg",)
    maker.commit()
    assert front(storage)["configs"] == [
        {"config_name": "jpg", "data_files": "shards/jpg/*.tar", "default": True},
        {"config_name": "png", "data_files": "shards/png/*.tar"},
    ]
    assert (front(storage)["pretty_name"], front(storage)["license"]) == ("My cats", "mit")
    assert storage.read("README.md").decode().endswith("\nMy words.\n")


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "no front matter",
        "---\nconfigs: [\n---\nbody",
        "---\n- a list\n---\nbody",
        "---\nunclosed",
    ],
)
def test_a_broken_card_is_mended(tmp_path, broken):
    storage = Storage(str(tmp_path), "cats")
    storage.folder.create("shards/jpg/a.tar").close()
    storage.folder.create("README.md").write(broken.encode())
    update_card(storage.folder, "cats", ".staging/x")
    assert [c["config_name"] for c in front(storage)["configs"]] == ["jpg"]


def test_a_dataset_without_samples_has_no_card(tmp_path):
    storage = Storage(str(tmp_path), "cats")
    update_card(storage.folder, "cats", ".staging/x")
    assert storage.files() == []


def test_make_dataset_is_reproducible(tmp_path):
    one, two = (make_dataset(str(tmp_path / name), shard_records=8) for name in ("a", "b"))
    assert one == two
    assert snapshot(Storage(str(tmp_path / "a"), "cats")) == snapshot(
        Storage(str(tmp_path / "b"), "cats")
    )
