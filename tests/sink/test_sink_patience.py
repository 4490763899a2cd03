"""A storage that is away: what is tried again, for how long, and what is final at once. The store
is a real S3 server behind a proxy that can be away (`unreliable_store`)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from unreliable_store import UnreliableStore, unreliable

import streamer.sink.s3
from streamer.errors import STORAGE_CAUSES, DependencyError, StorageAway
from streamer.sink.folder import Folder
from streamer.sink.location import open_folder
from streamer.sink.patience import ONCE, Patience
from streamer.sink.storage import Storage

AWAY = {"refused": "no_connection", "slow down": "throttled", "stalled": "timeout"}


@pytest.fixture(scope="module")
def proxied(s3_query: str) -> Iterator[tuple[UnreliableStore, str]]:
    with unreliable(s3_query) as (store, query):
        yield store, f"{query}&request_timeout=1&connect_timeout=1"


@pytest.fixture
def store(proxied: tuple[UnreliableStore, str]) -> Iterator[UnreliableStore]:
    made, _ = proxied
    made.answered.clear()
    made.failed.clear()
    yield made
    made.mode, made.slow_copies_s = "there", 0.0


class Bench:
    """A folder of the store, and what its patience tells."""

    def __init__(self, query: str, name: str, retry_for: float) -> None:
        self.causes: Counter[str] = Counter()
        self.stop = threading.Event()
        self.waits = 0
        self.patience = Patience(
            retry_for, self.stop.is_set, self.tell, self.wait, "output.retry_for"
        )
        self.uri = f"s3://curated/{name}/out{query}"
        self.folder = open_folder(self.uri, "cats", patience=self.patience)

    def tell(self, cause: str) -> None:
        self.causes[cause] += 1

    def wait(self) -> None:
        self.waits += 1


@pytest.fixture
def bench(
    proxied: tuple[UnreliableStore, str], store: UnreliableStore, topic_name: str
) -> Callable[..., Bench]:
    return lambda retry_for=60.0: Bench(proxied[1], topic_name, retry_for)


def put(folder: Folder, path: str, data: bytes) -> None:
    with folder.create(path) as file:
        file.write(data)


def back_after(store: UnreliableStore, bench: Bench, tries: int) -> threading.Thread:
    """The store comes back once so many tries were in vain."""

    def look() -> None:
        while bench.causes.total() < tries:
            time.sleep(0.01)
        store.mode = "there"

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.mark.parametrize("mode", AWAY)
def test_every_operation_is_tried_again_until_the_store_is_back(
    mode: str,
    bench: Callable[..., Bench],
    store: UnreliableStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamer.sink.s3, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(streamer.sink.s3, "COPY_BYTES", 5 << 20)
    caplog.set_level(logging.INFO, "streamer")
    here = bench()
    folder = here.folder
    large = os.urandom((5 << 20) + 17)
    writing = folder.create("large")

    operations: list[tuple[str, Callable[[], object]]] = [
        ("create", lambda: put(folder, "small", b"abc")),
        ("a part", lambda: (writing.write(large[: 5 << 20]), writing.flush())),
        ("the rest", lambda: (writing.write(large[5 << 20 :]), writing.close())),
        ("size", lambda: folder.size("small")),
        ("walk", lambda: list(folder.walk(""))),
        ("folders", lambda: folder.folders("")),
        ("read", lambda: folder.read("small")),
        ("copy", lambda: folder.publish("small", "public/small", 3)),
        ("copy in parts", lambda: folder.publish("large", "public/large", len(large))),
        ("remove", lambda: folder.remove("public/nothing")),
    ]
    for name, do in operations if mode == "slow down" else operations[:2]:
        here.causes.clear()
        caplog.clear()
        store.mode = mode
        waiter = back_after(store, here, 2)
        do()
        waiter.join()
        assert set(here.causes) == {AWAY[mode]}, name
        assert here.causes.total() >= 2, name
        said = [record.message.partition(";")[0] for record in caplog.records]
        assert said == ["the storage is away", "the storage is back"], name
    assert here.waits
    assert here.patience.away_s == 0
    assert set(AWAY.values()) <= set(STORAGE_CAUSES)
    if mode == "slow down":
        assert folder.read("large") == folder.read("public/large") == large
        assert store.answered["PUT part Copy"] == 2
        assert folder.read("public/small") == b"abc"


def test_it_ends_when_the_time_is_up(bench: Callable[..., Bench], store: UnreliableStore) -> None:
    here = bench(retry_for=0.5)
    put(here.folder, "a", b"abc")
    store.mode = "slow down"
    for do in (
        lambda: put(here.folder, "b", b"abc"),
        lambda: here.folder.publish("a", "public/a", 3),
        lambda: here.folder.read("a"),
    ):
        with pytest.raises(StorageAway, match=r"s3://.*SlowDown|503|SLOW_DOWN") as caught:
            do()
        assert caught.value.exit_code == 75
        assert "(output.retry_for)" in str(caught.value)
    assert here.patience.away_s == 0


def test_it_ends_when_the_process_ends(bench: Callable[..., Bench], store: UnreliableStore) -> None:
    here = bench(retry_for=3600.0)
    store.mode = "slow down"

    def stop() -> None:
        store.wait_for_failures(2)
        here.stop.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(StorageAway):
        put(here.folder, "a", b"abc")
    thread.join()


def test_what_is_final_is_not_tried_again(
    bench: Callable[..., Bench], store: UnreliableStore
) -> None:
    here = bench()
    put(here.folder, "a", b"abc")
    store.mode = "denied"
    for do in (
        lambda: put(here.folder, "b", b"abc"),
        lambda: here.folder.publish("a", "public/a", 3),
        lambda: here.folder.size("a"),
        lambda: here.folder.read("a"),
        lambda: list(here.folder.walk("")),
    ):
        store.failed.clear()
        with pytest.raises(DependencyError, match=r"The fix: .*credentials") as caught:
            do()
        assert caught.value.exit_code == 1
        assert not isinstance(caught.value, StorageAway)
        assert store.failed.total() == 1
    assert not here.causes


def test_a_copy_that_was_done_but_not_answered_in_time_is_not_made_again(
    bench: Callable[..., Bench], store: UnreliableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.sink.s3, "SLOWEST_BYTES_PER_S", 1e12)
    here = bench()
    put(here.folder, "a", b"abc")
    store.slow_copies_s = 2.5
    here.folder.publish("a", "public/a", 3)
    assert (store.answered["PUT Copy"], here.causes["timeout"]) == (1, 1)
    store.slow_copies_s = 0.0
    here.folder.publish("a", "public/a", 3)
    assert store.answered["PUT Copy"] == 1, "nor by the next start"
    put(here.folder, "b", b"xyz")
    here.folder.publish("b", "public/a", 3)
    assert here.folder.read("public/a") == b"xyz", "another file of the same size is not this one"


def test_the_time_for_a_copy_grows_with_its_size(
    bench: Callable[..., Bench], store: UnreliableStore
) -> None:
    here = bench()
    put(here.folder, "a", b"abc")
    store.slow_copies_s = 2.5
    here.folder.publish("a", "public/a", 3)
    assert not here.causes
    assert store.answered["PUT Copy"] == 1


def test_a_file_that_is_given_up_leaves_no_upload_behind(
    bench: Callable[..., Bench], store: UnreliableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.sink.s3, "PART_BYTES", 5 << 20)
    here = bench()
    folder = here.folder
    assert isinstance(folder, streamer.sink.s3.S3Folder)

    def uploads() -> list[str]:
        found = folder._clients.quick.list_multipart_uploads(Bucket="curated")
        return [u["Key"] for u in found.get("Uploads", ()) if u["Key"].startswith(folder._prefix)]

    abandoned, killed = (folder.create(f"staged/{name}") for name in ("abandoned", "killed"))
    for file in (abandoned, killed):
        file.write(os.urandom(6 << 20))
        file.flush()
    put(folder, "staged/whole", b"abc")
    assert len(uploads()) == 2
    abandoned.abandon()
    assert len(uploads()) == 1
    folder.remove("staged")
    assert uploads() == []
    killed._hashing.dead = True  # its process is gone: nothing is sent when it is collected


def test_a_look_before_a_transaction_does_not_wait(
    bench: Callable[..., Bench], store: UnreliableStore
) -> None:
    from sink_data import Maker

    here = bench(retry_for=1.0)
    storage = Storage(here.uri, "cats", here.patience)
    manifest = Maker(storage).seal()
    assert storage.is_staged(manifest) is True
    store.mode = "slow down"
    assert storage.is_staged(manifest) is None
    asked = store.failed.total()
    assert storage.is_staged(manifest) is None, "too early for another try"
    assert store.failed.total() == asked
    store.mode = "there"
    while (there := storage.is_staged(manifest)) is None:
        time.sleep(0.01)
    assert there
    store.mode = "slow down"

    def look_for_long() -> None:
        while storage.is_staged(manifest) is None:
            time.sleep(0.01)

    with pytest.raises(StorageAway):
        look_for_long()
    store.mode = "there"
    storage.discard("w-0", 0, manifest.uuid)
    assert storage.is_staged(manifest) is False


def test_without_patience_there_is_one_try(
    bench: Callable[..., Bench], store: UnreliableStore
) -> None:
    folder = open_folder(bench().uri, "cats", patience=ONCE)
    store.mode = "slow down"
    with pytest.raises(StorageAway):
        folder.size("a")
    assert store.failed.total() == 1


def test_what_was_given_up_inside_of_another_operation_is_not_begun_again() -> None:
    patience, begun = Patience(0.05), []

    def refuse() -> None:
        raise StorageAway("no", "timeout")

    def copy() -> None:
        begun.append("copy")
        patience.call(refuse)

    with pytest.raises(StorageAway, match="It was tried again for"):
        patience.call(copy)
    assert begun == ["copy"]
    assert patience.away_s == 0
