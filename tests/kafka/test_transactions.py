"""`KafkaTransactions` on real Kafka: what others' transactions hide, who is fenced, what an abort
leaves, and what a dead letter may weigh."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from patient import Patient

from streamer.config import Config, parse
from streamer.errors import DependencyError, Fenced, InDoubt, ProtocolError, TemporaryError
from streamer.kafka import client as client_module
from streamer.kafka import commit as commit_module
from streamer.kafka.admin import Admin, CommittedOffset
from streamer.kafka.commit import KafkaTransactions, founding_manifest
from streamer.kafka.source import Source
from streamer.records import Headers
from streamer.sink.engine import DeadLetter
from streamer.testing import Broker, create_topic, produce, read_topic
from streamer.wire import manifest as wire
from streamer.wire.manifest import Manifest

SOON = 30.0
UUID = "0123456789abcdef0123456789abcdef"


class Dataset:
    """A dataset's topics, and writers on them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.admin = Admin(config.kafka)
        self.writers: list[Writer] = []
        self.others: list[Producer] = []

    @property
    def servers(self) -> str:
        return self.config.kafka.bootstrap_servers

    def writer(
        self, name: str = "w0", dead_letter_limit: int = 1_000_000, fence: bool = True
    ) -> Writer:
        made = Writer(
            self.config.model_copy(update={"writer": name}), self.admin, dead_letter_limit
        )
        self.writers.append(made)
        if fence:
            made.port.fence()
        return made

    def other(self) -> Producer:
        """A foreign transactional producer with a transaction open."""
        producer = Producer({
            "bootstrap.servers": self.servers, "transactional.id": f"{self.config.dataset}-other-{len(self.others)}", "log_level": 0,
        })  # fmt: skip
        producer.init_transactions(SOON)
        producer.begin_transaction()
        self.others.append(producer)
        return producer

    def log(self, committed: bool = True) -> list[bytes | None]:
        return [
            stored.value
            for stored in read_topic(self.servers, self.config.commits_topic, committed)
        ]

    def offsets(self) -> dict[int, CommittedOffset]:
        return self.admin.committed(self.config.group, self.config.kafka.topic, [0, 1])


class Writer:
    def __init__(self, config: Config, admin: Admin, dead_letter_limit: int) -> None:
        self.config = config
        self.source = Source(config, admin)
        self.refreshed = 0
        self.asked: list[list[int]] = []
        self.port = KafkaTransactions(
            config, admin, self.source.consumer, dead_letter_limit, self._starts, self._refresh
        )

    def _starts(self, partitions: Any) -> dict[int, int]:
        self.asked.append(list(partitions))
        return dict.fromkeys(partitions, 3)

    def _refresh(self) -> None:
        self.refreshed += 1

    def join(self) -> Writer:
        self.source.subscribe(_Listener())
        deadline = time.monotonic() + SOON
        while not self.source.joined or not self.source.owned:
            assert time.monotonic() < deadline
            self.source.poll(0.1)
        return self

    def manifest(self, epoch: int, uuid: str = UUID, **partitions: tuple[int, int]) -> Manifest:
        ranges = {int(name[1:]): span for name, span in partitions.items()}
        return Manifest(
            1, self.config.dataset, self.config.writer, epoch, uuid, None, ranges, {}, {}, (), 0, {}, "2026-01-01T00:00:00.000+00:00",
            "2026-01-01T00:00:01.000+00:00",
        )  # fmt: skip

    def commit(self, manifest: Manifest, letters: list[DeadLetter] | None = None) -> bool:
        """With the offsets that its ranges say, under the membership of this moment."""
        ends = {p: end for p, (_, end) in manifest.partitions.items()}
        return self.port.commit(
            manifest, letters or [], ends, self.port.membership() if ends else None
        )

    def read(self) -> list[Manifest]:
        return [manifest for _, manifest in self.port.read()]

    def close(self) -> None:
        self.port.close()
        self.source.close()


class _Listener:
    def assigned(self, partitions: Any) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)

    def revoked(self, partitions: Any) -> None: ...

    def lost(self, partitions: Any) -> None: ...


@pytest.fixture
def dataset(kafka: str, topic_name: str, dataset_name: str) -> Iterator[Dataset]:
    with new_dataset(kafka, topic_name, dataset_name) as made:
        yield made


@contextmanager
def new_dataset(kafka: str, topic_name: str, dataset_name: str) -> Iterator[Dataset]:
    config = parse({
        "dataset": dataset_name, "writer": "w0", "kafka": {"bootstrap_servers": kafka, "topic": topic_name, "client": {"session.timeout.ms": 6000}},
        "embedder": {"type": "a.b:C"}, "output": {"path": "/nowhere"},
    })  # fmt: skip
    create_topic(kafka, topic_name, partitions=2, max_message_bytes=1_000_000)
    produce(kafka, topic_name, [(b"x", {})] * 10)
    made = Dataset(config)
    made.admin.ensure_dataset_topics(config)
    yield made
    for writer in made.writers:
        writer.close()
    for producer in made.others:
        producer.abort_transaction(SOON)


def letter(value: bytes | None, headers: Headers = (), detail: str = "what is wrong") -> DeadLetter:
    return DeadLetter(1, 7, value, headers, "corrupt", detail)


def test_manifest_dead_letters_and_offsets_become_true_together(dataset: Dataset) -> None:
    a = dataset.writer().join()
    manifest = a.manifest(0, p0=(0, 5), p1=(0, 4))
    assert a.commit(manifest, [letter(b"broken", [("id", b"x"), ("empty", None)])])
    assert dataset.log() == [wire.encode(manifest)]
    assert dataset.offsets() == {0: CommittedOffset(5, UUID), 1: CommittedOffset(4, UUID)}
    assert a.port.committed([0, 1]) == {0: 5, 1: 4}
    [dead] = read_topic(dataset.servers, dataset.config.dead_topic)
    assert dead.value == b"broken"
    assert dead.headers == [
        ("id", b"x"), ("empty", None), ("streamer-reason", b"corrupt"), ("streamer-detail", b"what is wrong"),
        ("streamer-topic", dataset.config.kafka.topic.encode()), ("streamer-partition", b"1"), ("streamer-offset", b"7"),
    ]  # fmt: skip
    assert a.read() == [manifest]
    assert a.read() == []
    following = a.manifest(1, p0=(5, 6))
    assert a.commit(following)
    assert a.read() == [following]
    assert dataset.writer("w1").read() == [manifest, following]


def test_questions_about_a_fresh_dataset(dataset: Dataset) -> None:
    a = dataset.writer()
    assert a.read() == []
    assert a.port.committed([0, 1]) == {0: None, 1: None}
    assert a.port.bounds([0, 1]) == {0: (0, 5), 1: (0, 5)}
    assert a.port.starts() == {0: 3, 1: 3}
    assert a.asked == [[0, 1]]
    founding = a.manifest(0, p0=(0, 0))
    assert a.port.commit(founding, (), {}, None)  # moves no offset
    assert dataset.offsets() == {}
    assert a.read() == [founding]


def test_the_input_topic_is_gone(dataset: Dataset) -> None:
    a = dataset.writer()
    topic = dataset.config.kafka.topic
    admin = AdminClient({"bootstrap.servers": dataset.servers})
    admin.delete_topics([topic])[topic].result(SOON)
    deadline = time.monotonic() + SOON
    while topic in admin.list_topics(timeout=SOON).topics and time.monotonic() < deadline:
        time.sleep(0.05)  # brokers are told of it a moment later
    with pytest.raises(DependencyError, match=f"'{topic}' does not exist any more"):
        a.port.starts()


# What another's open transaction hides


@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_the_log_is_read_past_anothers_open_transaction(ends: str, dataset: Dataset) -> None:
    a = dataset.writer()
    foreign = a.manifest(0, uuid="f" * 32)
    other = dataset.other()
    other.produce(dataset.config.commits_topic, wire.encode(foreign))
    other.flush(SOON)
    mine = a.manifest(1)
    assert a.port.commit(mine, (), {}, None)
    assert dataset.log() == []  # a plain reader sees nothing: ours is behind the open one
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(a.read)
        time.sleep(1.0)
        assert not reading.done()
        assert a.refreshed > 2  # the health page is told that this wait is alive
        other.commit_transaction(SOON) if ends == "commit" else other.abort_transaction(SOON)
        assert reading.result(SOON) == ([foreign, mine] if ends == "commit" else [mine])
    other.begin_transaction()


def test_an_open_transaction_that_does_not_end_is_a_temporary_error(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "READ_DEADLINE_S", 1.0)
    a = dataset.writer()
    other = dataset.other()
    other.produce(dataset.config.commits_topic, b"x")
    other.flush(SOON)
    before = time.monotonic()
    with pytest.raises(
        TemporaryError,
        match=r"nothing came after offset 0 of 1 for 1 s: another writer's transaction.* find-hanging --topic .*\.commits",
    ):
        a.read()
    assert time.monotonic() - before < 5


def test_an_offset_that_is_hidden_is_unknown_and_never_none(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = dataset.writer().join()
    assert a.commit(a.manifest(0, p0=(0, 2)))
    other = dataset.other()
    other.send_offsets_to_transaction(
        [TopicPartition(dataset.config.kafka.topic, 0, 4)], a.port.membership(), SOON
    )
    monkeypatch.setattr(commit_module, "READ_DEADLINE_S", 0.5)
    monkeypatch.setattr(commit_module, "CALL_TIMEOUT_S", 0.5)
    with pytest.raises(
        TemporaryError,
        match=r"committed offsets cannot be read.* find-hanging --topic __consumer_offsets",
    ):
        a.port.committed([0])
    assert a.port.committed([1]) == {1: None}
    monkeypatch.setattr(commit_module, "READ_DEADLINE_S", SOON)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(a.port.committed, [0])
        time.sleep(0.7)
        assert not asking.done()
        other.abort_transaction(SOON)
        assert asking.result(SOON) == {0: 2}
    other.begin_transaction()


# Fencing and aborts


@pytest.mark.parametrize("asked_by", ["commit", "confirm"])
def test_a_second_process_of_the_same_name_fences_the_first(
    asked_by: str, dataset: Dataset
) -> None:
    first = dataset.writer()
    first.port.confirm()
    assert first.commit(first.manifest(0))
    second = dataset.writer()
    with pytest.raises(
        Fenced, match=r"of w0|\.w0: .*another process runs under this writer's name"
    ):
        first.commit(first.manifest(1)) if asked_by == "commit" else first.port.confirm()
    second.port.confirm()
    assert second.commit(second.manifest(1, uuid="e" * 32))
    assert [m.uuid for m in second.read()] == [UUID, "e" * 32]


def test_a_transaction_that_timed_out_is_not_blamed_on_a_namesake_alone(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers alike; it looks for transactions that are too old every 10 s."""
    monkeypatch.setattr(client_module, "TRANSACTION_TIMEOUT_S", 1.0)
    a = dataset.writer()
    a.port._producer.begin_transaction()
    a.port._producer.produce(dataset.config.commits_topic, b"")
    a.port._producer.flush(SOON)
    time.sleep(13)
    with pytest.raises(
        Fenced,
        match=r"another process .* or this one stood still for longer than a transaction may take, 1 s .* start it again",
    ):
        a.port._abort("testing")
    assert dataset.writer().commit(a.manifest(0))


@pytest.mark.parametrize("is_late", [False, True])
def test_a_transaction_that_took_too_long_is_in_doubt_until_it_is_looked_up(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """The brokers ended it while we waited for them, or they committed it and the answer was
    lost."""
    monkeypatch.setattr(client_module, "TRANSACTION_TIMEOUT_S", 1.0)
    monkeypatch.setattr(commit_module, "DOUBT_S", 2.0)
    a = dataset.writer().join()
    again = a.port._again

    def slow(call: Callable[[], object]) -> None:
        if is_late:
            time.sleep(6)
            again(call)
        else:
            again(call)
            calls.append(1)
            if len(calls) == 2:
                time.sleep(2)
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(a.port, "_again", slow)
        with pytest.raises(InDoubt):
            a.commit(a.manifest(0, p0=(0, 3)))
    a.port.fence()
    assert len(a.read()) == (not is_late)
    assert a.commit(a.manifest(1, p0=(3, 5)))
    assert len(a.read()) == 1


def test_a_commit_goes_on_when_a_broker_that_was_shut_down_is_back(
    embedded: type[Broker], topic_name: str, dataset_name: str
) -> None:
    """Shut down and not killed: it leaves the cluster's metadata first, and the client forgets it
    while it remembers the coordinator."""
    with (
        embedded() as broker,
        new_dataset(broker.bootstrap_servers, topic_name, dataset_name) as dataset,
    ):
        a = dataset.writer().join()
        assert a.commit(a.manifest(0, p0=(0, 3)))
        broker.stop()
        ended: list[bool] = []
        committing = threading.Thread(
            target=lambda: ended.append(a.commit(a.manifest(1, p0=(3, 5)))), daemon=True
        )
        committing.start()
        time.sleep(0.5)
        broker.start()
        committing.join(SOON)
        assert ended, "it hangs"


def test_other_names_do_not_fence_each_other(dataset: Dataset) -> None:
    a, b = dataset.writer("w0"), dataset.writer("w1")
    for epoch in range(2):
        for writer in (a, b):
            assert writer.commit(writer.manifest(epoch, uuid=f"{epoch}" * 32))
            writer.port.confirm()
    assert len(a.read()) == len(b.read()) == 4


def test_a_successor_resolves_what_its_predecessor_why(dataset: Dataset) -> None:
    first = dataset.writer()
    first.port._producer.begin_transaction()
    first.port._producer.produce(dataset.config.commits_topic, wire.encode(first.manifest(0)))
    first.port._producer.flush(SOON)  # and then it was killed
    second = dataset.writer()
    before = time.monotonic()
    assert second.read() == []
    assert time.monotonic() - before < 10  # not the transaction's time-out
    assert second.commit(second.manifest(0, uuid="e" * 32))
    assert [m.uuid for m in second.read()] == ["e" * 32]


def test_an_aborted_epoch_left_nothing_and_can_be_committed_again(dataset: Dataset) -> None:
    gone = Consumer(
        {"bootstrap.servers": dataset.servers, "group.id": dataset.config.group, "log_level": 0}
    )
    gone.subscribe([dataset.config.kafka.topic])
    deadline = time.monotonic() + SOON
    while not gone.assignment():
        assert time.monotonic() < deadline
        gone.poll(0.1)
    stale = gone.consumer_group_metadata()
    gone.close()
    a = dataset.writer().join()
    manifest = a.manifest(0, p0=(0, 5))
    assert (
        a.port.commit(manifest, [letter(b"x")], {0: 5}, stale) is False
    )  # the group does not know this member
    assert dataset.log() == []
    assert dataset.offsets() == {}
    assert read_topic(dataset.servers, dataset.config.dead_topic) == []
    assert a.commit(manifest, [letter(b"x")]) is True
    assert a.read() == [manifest]
    assert dataset.offsets() == {0: CommittedOffset(5, UUID)}
    assert len(read_topic(dataset.servers, dataset.config.dead_topic)) == 1


# Dead letters


def test_a_dead_letter_too_big_travels_as_headers_only(dataset: Dataset) -> None:
    limit = dataset.admin.message_limit(dataset.config.dead_topic)
    a = dataset.writer(dead_letter_limit=limit)
    headers: list[tuple[str, bytes | None]] = [("id", b"x")]
    sizes = (limit - 2_000, limit - 500, limit, 2 * limit)
    assert a.port.commit(a.manifest(0), [letter(b"v" * size, headers) for size in sizes], {}, None)
    stored = read_topic(dataset.servers, dataset.config.dead_topic)
    assert [None if s.value is None else len(s.value) for s in stored] == [
        sizes[0],
        None,
        None,
        None,
    ]
    for dead in stored:
        assert dict(dead.headers)["id"] == b"x"
        assert dict(dead.headers)["streamer-offset"] == b"7"


@pytest.mark.parametrize(
    "headers",
    [
        [("big", b"h" * 2_000_000)],
        [(f"h{i}", b"x" * 10) for i in range(60_000)],
        [("ä" * 600_000, b"x")],  # 600 000 characters, 1.2 MB
    ],
)
def test_headers_too_big_are_left_out(headers: Headers, dataset: Dataset) -> None:
    a = dataset.writer(dead_letter_limit=dataset.admin.message_limit(dataset.config.dead_topic))
    assert a.port.commit(a.manifest(0), [letter(b"value", headers)], {}, None)
    [dead] = read_topic(dataset.servers, dataset.config.dead_topic)
    assert set(dict(dead.headers)) == {
        f"streamer-{name}" for name in ("reason", "detail", "topic", "partition", "offset")
    }


def test_details_of_any_kind_are_text_of_at_most_500_bytes(dataset: Dataset) -> None:
    a = dataset.writer()
    details = ["ü" * 251, "€" * 400, "a lone \udcff", ""]
    assert a.port.commit(a.manifest(0), [letter(b"v", detail=d) for d in details], {}, None)
    told = [
        (dict(s.headers)["streamer-detail"] or b"")
        for s in read_topic(dataset.servers, dataset.config.dead_topic)
    ]
    assert all(len(d) <= 500 for d in told)
    assert [d.decode() for d in told] == ["ü" * 250, "€" * 166, "a lone ?", ""]


def test_a_dead_letter_that_the_topic_refuses_names_the_setting(dataset: Dataset) -> None:
    limit = dataset.admin.message_limit(dataset.config.dead_topic)
    a = dataset.writer(dead_letter_limit=4 * limit)  # it was lowered since the start
    with pytest.raises(
        DependencyError,
        match=r"committing epoch 0 of w0: too big for the topic .*max\.message\.bytes",
    ):
        a.port.commit(a.manifest(0), [letter(b"v" * (limit + 100))], {}, None)
    assert dataset.log() == []


# The founding manifest


def test_the_founding_manifest_is_found_without_touching_anything(dataset: Dataset) -> None:
    assert founding_manifest(dataset.config, dataset.admin) is None
    a = dataset.writer()
    a.port.confirm()  # an aborted entry comes first
    first, second = a.manifest(0), a.manifest(1)
    for manifest in (first, second):
        assert a.commit(manifest)
    assert founding_manifest(dataset.config, dataset.admin) == first
    a.port.confirm()  # nobody was fenced
    nowhere = dataset.config.model_copy(update={"dataset": f"{dataset.config.dataset}-new"})
    assert founding_manifest(nowhere, dataset.admin) is None
    assert dataset.admin.topic(nowhere.commits_topic) is None


# A damaged commit log


def test_what_is_no_manifest_is_named(dataset: Dataset) -> None:
    a = dataset.writer()
    assert a.commit(a.manifest(0))
    produce(dataset.servers, dataset.config.commits_topic, [(b"hello", {})])
    with pytest.raises(
        ProtocolError, match=rf"{dataset.config.commits_topic} offset 2: a manifest is not JSON"
    ):
        a.read()


def test_a_log_whose_beginning_is_gone(dataset: Dataset) -> None:
    a = dataset.writer()
    assert a.commit(a.manifest(0))
    admin = AdminClient({"bootstrap.servers": dataset.servers})
    for future in admin.delete_records(
        [TopicPartition(dataset.config.commits_topic, 0, 1)]
    ).values():
        future.result(SOON)
    with pytest.raises(
        ProtocolError, match=r"the commit log begins at offset 1, .*retention\.ms=-1"
    ):
        a.read()


def test_nothing_is_asked_of_an_unreachable_broker_for_ever(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(commit_module, "READ_DEADLINE_S", 1.0)
    nowhere = dataset.config.kafka.model_copy(
        update={"bootstrap_servers": "127.0.0.1:9", "client": {}}
    )
    config = dataset.config.model_copy(update={"kafka": nowhere})
    source = Source(config, dataset.admin)
    port = KafkaTransactions(
        config, dataset.admin, source.consumer, 1_000_000, lambda partitions: {}, lambda: None
    )
    calls: list[Callable[[], object]] = [port.fence, lambda: port.committed([0])]
    for call in calls:
        before = time.monotonic()
        with pytest.raises(TemporaryError, match=r"Start (again|it again)"):
            call()
        assert time.monotonic() - before < 10
    # While it is known that brokers are away, somebody else says how long to wait
    for call in calls:
        port._patience = Patient(4)
        with pytest.raises(TemporaryError, match="enough"):
            call()
    port.close()
    source.close()


def test_the_log_is_read_from_an_entry_on(dataset: Dataset) -> None:
    a = dataset.writer().join()
    uuids = [f"{n:032x}" for n in range(4)]
    for n, uuid in enumerate(uuids):
        assert a.commit(a.manifest(n, uuid, p0=(n, n + 1)))
    offsets = {manifest.uuid: offset for offset, manifest in a.port.read()}
    b = dataset.writer("w1")
    b.port.resume(offsets[uuids[2]])
    assert list(b.port.read()) == [
        (offsets[uuid], a.manifest(n, uuid, p0=(n, n + 1))) for n, uuid in enumerate(uuids) if n > 1
    ]
    assert a.commit(a.manifest(4, p0=(4, 5)))
    assert [m.epoch for m in b.read()] == [4]
    assert b.port.log_id == dataset.admin.topic_id(dataset.config.commits_topic) != ""


def test_a_log_that_ends_before_a_checkpoint_is_told(dataset: Dataset) -> None:
    a = dataset.writer()
    with pytest.raises(ProtocolError, match=r"ends at offset 0, but a checkpoint knows .* at 7"):
        a.port.resume(7)
