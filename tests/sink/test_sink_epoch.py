"""One epoch: sealed whole, or given up without a trace."""

import gc
import subprocess
import sys

import pytest
from sink_data import Maker

from streamer.errors import DependencyError
from streamer.sink.storage import Storage, staging_path


def test_counts_records_bytes(storage):
    maker = Maker(storage)
    writing = maker.open()
    batches = [maker.batch(0, 25), maker.batch(1, 25)]
    for batch in batches:
        writing.append(batch)
    decisions = [d for b in batches for d in b.decisions]
    assert writing.records == 50
    assert writing.counts == {
        o: sum(d.outcome == o for d in decisions) for o in {d.outcome for d in decisions}
    }
    images = sum(
        len(f.data)
        for b in batches
        for f, d in zip(b.facts, b.decisions, strict=True)
        if d.outcome == "accepted"
    )
    assert images < writing.nbytes < 10 * images
    files = writing.seal()
    assert sum(f.rows for f in files if f.path.endswith(".tar")) == writing.counts["accepted"]
    assert [f.rows for f in files if f.path.endswith(".parquet")] == [50]
    for file in files:
        staged = f"{staging_path('w-0', 0, writing.uuid)}/{file.path}"
        storage.folder.check(staged, file.bytes, file.sha256)


def test_an_epoch_without_records_has_no_files(storage):
    writing = Maker(storage).open()
    assert writing.seal() == ()
    assert writing.counts == {}
    assert storage.staged() == []


def test_an_epoch_without_accepted_records_has_no_tar(storage):
    maker = Maker(storage)
    writing = maker.open()
    batch = maker.batch(0, 64)
    keep = [i for i, d in enumerate(batch.decisions) if d.outcome in ("invalid", "filtered")]
    rows = {"records": batch.records, "facts": batch.facts, "decisions": batch.decisions}
    scores = {k: v[keep] for k, v in batch.scores.items()}
    some = {k: [v[i] for i in keep] for k, v in rows.items()}
    writing.append(
        type(batch)(
            **some, embeddings=batch.embeddings[keep], embedded=batch.embedded[keep], scores=scores
        )
    )
    assert [f.path for f in writing.seal()] == ["metadata/w-0-00000000.parquet"]


@pytest.mark.parametrize("sealed", [False, True])
def test_discard_leaves_nothing(storage, sealed):
    maker = Maker(storage)
    writing = maker.open()
    for _ in range(3):
        writing.append(maker.batch(0, 40))
    if sealed:
        writing.seal()
    writing.discard()
    writing.discard()
    del writing
    gc.collect()
    assert storage.staged() == []
    assert storage.files() == []


@pytest.mark.parametrize("sealed", [False, True])
def test_staged_files_that_somebody_removes_are_trouble_with_the_storage(tmp_path, sealed):
    storage = Storage(str(tmp_path), "cats")
    maker = Maker(storage, shard_records=3)
    writing = maker.open()
    writing.append(maker.batch(0, 25))
    storage.discard("w-0", 0, writing.uuid)
    with pytest.raises(DependencyError):
        writing.seal() if sealed else writing.append(maker.batch(1, 25))
    writing.discard()


def test_a_write_that_fails_ends_the_epoch_and_leaves_nothing(tmp_path):
    """A real EFBIG in the middle of a tar and of a Parquet file, in a process of its own; warnings
    and late errors would show on stderr."""
    code = """if True:
        import gc, resource, signal, sys, webdataset
        sys.path.insert(0, sys.argv[2])
        from sink_data import Maker
        from streamer.errors import DependencyError
        from streamer.sink.storage import Storage
        from streamer.sink import table
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        table.GROUP_ROWS = int(sys.argv[3])
        maker = Maker(Storage(sys.argv[1], "cats"), dim=int(sys.argv[5]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
        writing = maker.open()
        try:
            for _ in range(40):
                writing.append(maker.batch(0, 16))
            writing.seal()
        except DependencyError as error:
            print(error)
        else:
            print("nothing failed")
        writing.discard()
        del writing
        gc.collect()
        print(maker.storage.files())
    """
    tests = __file__.rpartition("/sink/")[0]
    for rows, limit, dim, where in (
        (10**6, 300_000, 16, ".tar"),
        (16, 400_000, 4096, ".parquet"),
        (10**6, 0, 16, ""),
    ):
        run = [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "ignore",
            "-c",
            code,
            str(tmp_path),
            tests,
            str(rows),
            str(limit),
            str(dim),
        ]
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        message, left = done.stdout.splitlines()
        assert message.startswith("cannot write")
        assert where in message
        assert "File too large" in message
        assert left == "[]"
        assert done.stderr == ""


def test_a_staged_file_that_changes_under_seal_is_noticed(tmp_path):
    """Another process writes into our staging folder: the seal must not believe what it counted."""
    storage = Storage(str(tmp_path), "cats")
    maker = Maker(storage, formats=("jpg",))
    writing = maker.open()
    writing.append(maker.batch(0, 400))
    [tar] = (tmp_path / "cats").rglob("*.tar")
    with tar.open("r+b") as intruder:
        intruder.write(b"intruder")
    assert tar.stat().st_size > 8  # the writer's buffer had gone out, so the intruder's bytes stay
    with pytest.raises(DependencyError, match="reads back other than it was written"):
        writing.seal()
