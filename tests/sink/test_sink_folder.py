"""One contract over every kind of folder (local disk, any pyarrow file system, S3), then what only
one of them has."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import streamer.sink.s3
from streamer.errors import ConfigError, DependencyError, ProtocolError, StorageAway
from streamer.sink.folder import NewFile
from streamer.sink.local import LocalFolder
from streamer.sink.location import open_folder
from streamer.sink.patience import ONCE
from streamer.sink.remote import RemoteFolder


def put(folder, path, data=b"abc"):
    with folder.create(path) as file:
        file.write(data)
    return file


def read(folder, path):
    with folder.open(path) as file:
        return file.read()


def paths(folder, below=""):
    return [e.path for e in folder.walk(below)]


def test_a_new_file_is_hashed_counted_and_there(folder):
    data = os.urandom(3_000_000)
    with folder.create("a/b/c.bin") as file:
        for at in range(0, len(data), 70_001):
            file.write(data[at : at + 70_001])
        assert file.tell() == len(data)
    assert (file.nbytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert folder.size("a/b/c.bin") == len(data)
    assert read(folder, "a/b/c.bin") == data
    folder.check("a/b/c.bin", file.nbytes, file.sha256)
    with pytest.raises(DependencyError, match=r"c\.bin"):
        folder.check("a/b/c.bin", file.nbytes + 1, file.sha256)


def test_what_is_not_there(folder):
    assert folder.size("a") is None
    assert paths(folder, "a") == []
    assert folder.folders("a") == []
    folder.remove("a")
    with pytest.raises(FileNotFoundError):
        folder.open("a")
    with pytest.raises(FileNotFoundError):
        folder.publish("a", "b", 0)
    assert folder.size("b") is None


def test_walk_and_folders(folder):
    for path in ("x/b/1", "x/a/2", "x/3", "y/4"):
        put(folder, path)
    assert sorted(paths(folder, "x")) == ["x/3", "x/a/2", "x/b/1"]
    assert sorted(paths(folder)) == ["x/3", "x/a/2", "x/b/1", "y/4"]
    assert folder.folders("x") == ["a", "b"]
    assert folder.folders("") == ["x", "y"]
    assert {e.size for e in folder.walk("x")} == {3}


def test_publish_remove_and_again(folder):
    put(folder, ".staging/e/shards/jpg/a.tar")
    folder.publish(".staging/e/shards/jpg/a.tar", "shards/jpg/a.tar", 3)
    assert read(folder, "shards/jpg/a.tar") == b"abc"
    folder.remove(".staging/e")
    folder.remove(".staging/e")
    assert paths(folder) == ["shards/jpg/a.tar"]
    put(folder, "again")
    folder.publish("again", "shards/jpg/a.tar", 3)
    assert read(folder, "shards/jpg/a.tar") == b"abc"


def test_publish_refuses_another_size(folder):
    put(folder, "a")
    with pytest.raises(ProtocolError, match="3 bytes where its manifest says 4"):
        folder.publish("a", "b", 4)
    assert paths(folder) == ["a"]


def test_replace_is_whole_and_leaves_no_scratch(folder):
    folder.replace("m/x.json", b"one", ".staging/s1")
    folder.replace("m/x.json", b"second", ".staging/s2")
    assert read(folder, "m/x.json") == b"second"
    assert paths(folder) == ["m/x.json"]


def test_abandon_leaves_nothing_after_remove(folder):
    file = folder.create(".staging/e/a")
    file.write(b"x" * 2_000_000)
    file.abandon()
    file.abandon()
    folder.remove(".staging/e")
    assert paths(folder) == []


def test_probe(folder):
    folder.probe(".staging/.probe")
    assert paths(folder) == []
    put(folder, "shards/jpg/a.tar")
    folder.probe(".staging/.probe")
    assert paths(folder) == ["shards/jpg/a.tar"]


def test_two_threads_publish_and_remove_the_same(folder):
    errors = []

    def work():
        try:
            for i in range(8):
                try:
                    folder.publish(f".staging/e/{i}", f"public/{i}", 3)
                except FileNotFoundError:
                    assert folder.size(f"public/{i}") == 3
            folder.remove(".staging/e")
        except BaseException as error:
            errors.append(error)

    for i in range(8):
        put(folder, f".staging/e/{i}")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert paths(folder) == [f"public/{i}" for i in range(8)]


# Local disks


def test_local_probe_removes_only_the_folders_it_made(tmp_path):
    LocalFolder(tmp_path / "deep" / "er" / "cats").probe(".staging/.probe")
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """A `Drain` onto the kernel's own full disk."""

    def __init__(self):
        self.fd = os.open("/dev/full", os.O_WRONLY)

    def write(self, data):
        return os.write(self.fd, data)

    def finish(self):
        raise AssertionError("a file that failed must never be finished")

    def abandon(self):
        os.close(self.fd)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_the_file_is_dead(tmp_path):
    file = NewFile(FullDisk(), LocalFolder(tmp_path), "a/b", 1 << 10)
    with pytest.raises(
        DependencyError, match=r"cannot write .*/a/b: No space left on device\. The fix: free space"
    ):
        file.write(b"x" * 10_000)
    file.close()
    assert file.nbytes == 0


def test_a_file_size_limit_is_named(tmp_path):
    """A real EFBIG from the kernel, in a process of its own."""
    code = (
        "import resource, signal, sys, pathlib\n"
        "from streamer.sink.local import LocalFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "file = LocalFolder(pathlib.Path(sys.argv[1])).create('a/b')\n"
        "file.write(bytes(3_000_000))\n"
        "file.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "DependencyError: cannot write" in done.stderr
    assert "File too large" in done.stderr


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "cats").write_text("a file in the way")
    with pytest.raises(DependencyError, match=r"cats.*The fix: a file is in the way"):
        LocalFolder(tmp_path / "cats").probe(".staging/.probe")


def test_a_staged_name_is_never_written_twice(tmp_path):
    folder = LocalFolder(tmp_path)
    put(folder, "a")
    with pytest.raises(DependencyError, match="File exists"):
        folder.create("a")


# Elsewhere


def test_a_large_file_is_uploaded_and_copied_in_parts(s3_output, monkeypatch):
    monkeypatch.setattr(streamer.sink.s3, "PARTS", 1)  # the second part is twice as large
    monkeypatch.setattr(streamer.sink.s3, "COPY_BYTES", 5 << 20)
    folder = open_folder(s3_output, "cats")
    data = os.urandom(25_000_000)
    put(folder, "a", data)
    folder.publish("a", "b", len(data))
    assert read(folder, "b") == data


def test_a_missing_bucket_is_named(s3_query):
    folder = open_folder(f"s3://no-such-bucket/out{s3_query}", "cats")
    with pytest.raises(DependencyError, match=r"no-such-bucket.*The fix: create the bucket"):
        folder.probe(".staging/.probe")


def test_a_dead_endpoint_is_named_in_time():
    folder = open_folder(
        "s3://curated/out?endpoint_override=http://127.0.0.1:9&region=us-east-1&connect_timeout=1&request_timeout=1",
        "cats",
        patience=ONCE,
    )
    with pytest.raises(StorageAway, match="The fix: check endpoint_override"):
        folder.probe(".staging/.probe")


def test_uris():
    assert open_folder("/a/b", "c").uri == "/a/b/c"
    assert open_folder("file:///a/b%20c", "d").uri == "/a/b c/d"
    assert open_folder("x", "c").uri == str(Path("x/c").absolute())
    remote = open_folder("s3://key:secret@bucket/p/?region=eu-west-1&scheme=http", "cats")
    assert remote.uri == "s3://bucket/p/cats?region=eu-west-1&scheme=http"
    assert remote.place("x/y") == "s3://bucket/p/cats/x/y?region=eu-west-1&scheme=http"
    assert isinstance(open_folder("mock://a", "b"), RemoteFolder)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s3://b/p?regoin=x", "does not know 'regoin'"),
        ("s3:///p", "needs a bucket"),
        ("s3:/b/p", "write s3://"),
        ("gs:b/p", "write gs://"),
        ("s3://b/p?region=x&connect_timeout=soon", "are seconds"),
        ("s3://k:s@b/p?region=x&anonymous=true", "anonymous"),
        ("nowhere://x", "no URI that pyarrow can open"),
    ],
)
def test_a_wrong_uri_is_a_config_error(path, says):
    with pytest.raises(ConfigError, match=says):
        open_folder(path)
