"""`Source` on real Kafka: order and completeness under a full line, end-of-partition marks,
targets, and the group's decisions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.config import Config, parse
from streamer.errors import DependencyError, Fenced, InvalidRecord
from streamer.kafka.admin import Admin
from streamer.kafka.leave import leave
from streamer.kafka.source import CHUNK_BYTES, CHUNK_RECORDS, Source
from streamer.records import UNREADABLE_HEADERS, Record
from streamer.testing import create_topic, produce
from streamer.wire.envelope import parse as envelope
from streamer.wire.limits import weight

SOON = 30.0


class Listener:
    """Notes what it is told; partitions start at ``starts``, 0 where that says nothing."""

    def __init__(self, starts: Mapping[int, int] | None = None) -> None:
        self.starts = dict(starts or {})
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.raises: dict[str, Exception] = {}

    def _told(self, event: str, partitions: Collection[int]) -> None:
        self.calls.append((event, tuple(sorted(partitions))))
        if event in self.raises:
            raise self.raises[event]

    def assigned(self, partitions: Collection[int]) -> Mapping[int, int]:
        self._told("assigned", partitions)
        return {p: self.starts.get(p, 0) for p in partitions}

    def revoked(self, partitions: Collection[int]) -> None:
        self._told("revoked", partitions)

    def lost(self, partitions: Collection[int]) -> None:
        self._told("lost", partitions)


class Group:
    """Sources of one dataset, all polled from this thread."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sources: list[Source] = []
        self.closed: list[Source] = []

    def source(self, listener: Listener | None = None, **kafka: object) -> Source:
        config = self.config.model_copy(
            update={"kafka": self.config.kafka.model_copy(update=kafka)}
        )
        made = Source(config, Admin(config.kafka))
        made.subscribe(listener or Listener())
        self.sources.append(made)
        return made

    def close(self, source: Source) -> None:
        self.sources.remove(source)
        source.close()


@pytest.fixture
def group(kafka: str, topic_name: str, dataset_name: str) -> Iterator[Group]:
    made = Group(parse({
        "dataset": dataset_name, "writer": "w0",
        "kafka": {"bootstrap_servers": kafka, "topic": topic_name, "client": {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000, "heartbeat.interval.ms": 500}},
        "embedder": {"type": "a.b:C"}, "output": {"path": "/nowhere"},
    }))  # fmt: skip
    yield made
    for source in made.sources:
        source.close()


def until(condition: Callable[[], bool], *sources: Source, seconds: float = SOON) -> None:
    """Polls the sources in turn."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        for source in sources:
            source.poll(0.02)


def take_until(
    source: Source, condition: Callable[[], bool]
) -> tuple[list[Record], dict[int, int]]:
    """Everything that comes, with the last mark of each partition."""
    records: list[Record] = []
    marks: dict[int, int] = {}
    deadline = time.monotonic() + SOON
    while not condition() or source.has_any:
        assert time.monotonic() < deadline, f"{len(records)} records, {marks}"
        source.poll(0.02)
        taken, marked, nbytes = source.take()
        assert nbytes == sum(weight(r) for r in taken)
        records += taken
        marks |= marked
    return records, marks


def transaction(
    servers: str, topic: str, count: int, commit: bool = True, partition: int = 0
) -> None:
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "transactional.id": f"test-{topic}-{time.monotonic_ns()}",
            "log_level": 0,
        }
    )
    producer.init_transactions(SOON)
    producer.begin_transaction()
    for i in range(count):
        producer.produce(topic, b"t%d" % i, partition=partition)
    producer.flush(SOON)
    producer.commit_transaction(SOON) if commit else producer.abort_transaction(SOON)


def test_records_come_as_they_were_produced(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name)
    before = int(time.time() * 1000)
    sent: list[tuple[bytes | None, dict[str, str | bytes | None]]] = [
        (b"v", {"text": "ä", "none": None}), (None, {}), (b"", {"id": "1"}), (b"w" * 100_000, {}),
    ]  # fmt: skip
    produce(kafka, topic_name, sent)
    source = group.source()
    records, _ = take_until(source, lambda: source.reached.get(0) == 4)
    assert [(r.partition, r.offset, r.value) for r in records] == [
        (0, i, value) for i, (value, _) in enumerate(sent)
    ]
    assert [dict(r.headers) for r in records] == [
        {"text": "ä".encode(), "none": None},
        {},
        {"id": b"1"},
        {},
    ]
    assert all(before - 60_000 <= r.timestamp_ms <= before + 60_000 for r in records)


def test_a_header_name_that_is_no_text_costs_only_its_record(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"before", {"id": "1"})])
    _produce_with_header_name(kafka, topic_name, b"na\xffme")
    produce(kafka, topic_name, [(b"after", {"id": "2"})])
    source = group.source()
    records, _ = take_until(source, lambda: source.reached.get(0) == 3)
    assert [r.value for r in records] == [b"before", b"hostile", b"after"]
    assert [dict(records[i].headers) for i in (0, 2)] == [{"id": b"1"}, {"id": b"2"}]
    with pytest.raises(InvalidRecord) as raised:
        envelope(records[1], "image/jpeg")
    assert raised.value.reason == "bad_header"


def test_a_header_name_that_is_no_text_is_met_by_code_that_has_run_often(
    group: Group, kafka: str, topic_name: str
) -> None:
    """Then the interpreter takes short cuts, and looks for no error beside a result."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"before", {"id": "1"})] * 300)
    for _ in range(5):
        _produce_with_header_name(kafka, topic_name, b"na\xffme")
    produce(kafka, topic_name, [(b"after", {"id": "2"})])
    source = group.source()
    records, _ = take_until(source, lambda: source.reached.get(0) == 306)
    unreadable = [r.value for r in records if r.headers is UNREADABLE_HEADERS]
    assert unreadable == [b"hostile"] * 5
    assert records[-1].value == b"after"


def test_a_hand_is_a_chunk_by_records_or_by_bytes(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name, max_message_bytes=2_000_000)
    produce(kafka, topic_name, [(b"x", {})] * (2 * CHUNK_RECORDS) + [(b"y" * 1_500_000, {})] * 8)
    source = group.source()
    until(lambda: source.has_chunk, source)
    assert len(source.take()[0]) == CHUNK_RECORDS
    assert not source.has_any
    until(lambda: source.has_chunk, source)
    assert len(source.take()[0]) == CHUNK_RECORDS
    until(lambda: source.has_chunk, source)
    records, _, nbytes = source.take()
    assert nbytes == 1_500_000 * len(records)
    assert CHUNK_BYTES <= nbytes < CHUNK_BYTES + 1_500_000


def test_a_full_line_holds_back_and_keeps_its_membership_and_its_order(
    group: Group, kafka: str, topic_name: str
) -> None:
    """A hand is kept for longer than the poll interval. Another consumer that does not `serve`
    meanwhile loses its partitions."""
    create_topic(kafka, topic_name, partitions=2)
    origins = produce(kafka, topic_name, [(b"%06d" % i * 50, {}) for i in range(2000)])
    kept, forgetful = Listener(), Listener()
    patient, idle = (
        group.source(kept),
        Source(
            group.config.model_copy(update={"dataset": f"{group.config.dataset}-2"}),
            Admin(group.config.kafka),
        ),
    )
    idle.subscribe(forgetful)
    group.sources.append(idle)
    until(lambda: patient.has_chunk and idle.has_chunk, patient, idle)
    records = patient.take()[0]
    until(lambda: patient.has_chunk, patient)
    before = time.monotonic()
    while time.monotonic() < before + 7.5:
        patient.serve()
        time.sleep(1.5)
    rest, _ = take_until(patient, lambda: sum(patient.reached.values()) == len(origins))
    records += rest
    assert sorted((r.partition, r.offset) for r in records) == sorted(origins)
    for p in (0, 1):
        assert [r.offset for r in records if r.partition == p] == list(range(1000))
    assert [event for event, _ in kept.calls] == ["assigned"]

    until(lambda: len(forgetful.calls) >= 3, idle)
    assert [event for event, _ in forgetful.calls[:3]] == ["assigned", "lost", "assigned"]
    assert forgetful.calls[1][1] == (0, 1)
    again, _ = take_until(idle, lambda: sum(idle.reached.values()) == len(origins))
    assert sorted((r.partition, r.offset) for r in again) == sorted(
        origins
    )  # what was in hand is read again, once


# Ends of partitions


@pytest.mark.parametrize("commit", [True, False])
def test_marks_cover_control_records(
    commit: bool, group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"a", {}), (b"b", {})])
    transaction(kafka, topic_name, 3, commit)  # offsets 2 to 4, and a control record
    source = group.source()
    records, marks = take_until(source, lambda: source.reached.get(0) == 6)
    assert [r.offset for r in records] == ([0, 1, 2, 3, 4] if commit else [0, 1])
    assert marks == {0: 6}
    assert source.ends() == {0: 6}
    produce(kafka, topic_name, [(b"c", {})])
    records, marks = take_until(source, lambda: source.reached.get(0) == 7)
    assert [r.offset for r in records] == [6]
    assert marks in ({}, {0: 7})


def test_an_end_that_is_known_already_is_no_mark(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"a", {})])
    source = group.source(Listener({0: 1}))
    until(lambda: source.owned == {0}, source)
    for _ in range(20):
        source.poll(0.02)
    assert not source.has_any
    assert source.reached == {0: 1}


def test_a_start_in_the_middle(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [(b"a", {})] * 20)
    source = group.source(Listener({0: 4, 1: 9}))
    records, _ = take_until(source, lambda: source.reached == {0: 10, 1: 10})
    assert [r.offset for r in records if r.partition == 0] == [4, 5, 6, 7, 8, 9]
    assert [r.offset for r in records if r.partition == 1] == [9]


# Targets


def test_nothing_at_or_beyond_a_target_is_taken(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name, partitions=3)
    produce(kafka, topic_name, [(b"a", {})] * 60)  # 20 each
    source = group.source(Listener({2: 5}))
    source.stop_at({0: 7, 1: 20, 2: 3})
    assert not source.is_done()  # nothing is assigned yet
    records, marks = take_until(source, source.is_done)
    assert sorted({(r.partition, r.offset) for r in records}) == [(0, i) for i in range(7)] + [
        (1, i) for i in range(20)
    ]
    assert marks.get(0, 7) == 7
    assert source.reached == {0: 7, 1: 20, 2: 5}


def test_a_target_is_reached_past_control_records(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    transaction(kafka, topic_name, 3)
    transaction(kafka, topic_name, 2, commit=False)
    source = group.source()
    source.stop_at({0: 7})
    records, marks = take_until(source, source.is_done)
    assert [r.offset for r in records] == [0, 1, 2]
    assert marks == {0: 7}


def test_a_target_between_a_record_and_its_control_record(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    transaction(kafka, topic_name, 3)
    produce(kafka, topic_name, [(b"later", {})] * 2)
    source = group.source()
    source.stop_at({0: 3})
    records, _ = take_until(source, source.is_done)
    assert [r.offset for r in records] == [0, 1, 2]
    assert source.reached == {0: 3}


def test_an_empty_assignment_is_done(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name)
    owner, idle = group.source(), group.source()
    until(lambda: owner.joined and idle.joined, owner, idle)
    assert sorted([owner.owned, idle.owned], key=len) == [set(), {0}]
    assert [s.is_done() for s in sorted((owner, idle), key=lambda s: len(s.owned))] == [True, False]


# The group


def test_forget_and_rewind(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [(b"a" * 10, {})] * 40)
    source = group.source()
    until(lambda: source.reached == {0: 20, 1: 20}, source)
    source.forget([1])
    records, marks, nbytes = source.take()
    assert {r.partition for r in records} == {0}
    assert set(marks) <= {0}
    assert nbytes == 200
    assert source.owned == {0}
    assert source.reached == {0: 20}
    source.rewind({0: 15, 1: 5})
    assert source.owned == {0, 1}
    assert source.reached == {0: 15, 1: 5}
    records, _ = take_until(source, lambda: source.reached == {0: 20, 1: 20})
    for p, first in ((0, 15), (1, 5)):
        assert [r.offset for r in records if r.partition == p] == list(range(first, 20))


def test_a_bounded_run_is_not_done_while_the_group_has_yet_to_say_whose_a_partition_is(
    group: Group, kafka: str, topic_name: str
) -> None:
    """Whether it was lost, or another replica's `open` was read before the group said anything."""
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [(b"a", {})] * 40)
    told, done_when_lost = Listener(), []
    source = group.source(told)
    told.lost = lambda partitions: (
        done_when_lost.append(source.is_done()) or told._told("lost", partitions)
    )  # type: ignore[method-assign]
    source.stop_at({0: 20, 1: 20})
    take_until(source, source.is_done)
    source.forget([1])
    assert not source.is_done()

    time.sleep(7)  # longer than the poll interval
    until(lambda: source.owned == {0, 1}, source)
    assert done_when_lost == [False]
    assert not source.is_done(), "it is read again"
    take_until(source, source.is_done)


def test_partitions_move_to_a_second_member_and_back(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name, partitions=4)
    produce(kafka, topic_name, [(b"a", {})] * 40)
    told, told_b = Listener(), Listener(dict.fromkeys(range(4), 10))
    a = group.source(told)
    joined_when_revoked: list[bool] = []
    told.revoked = lambda partitions: (
        joined_when_revoked.append(a.joined) or told._told("revoked", partitions)
    )  # type: ignore[method-assign]
    until(lambda: len(a.owned) == 4, a)
    generation = a.generation()
    assert a.is_member(dict.fromkeys(range(4), 0))
    b = group.source(told_b)
    until(lambda: len(b.owned) == 2, a, b)
    assert a.owned | b.owned == {0, 1, 2, 3}
    assert a.generation() == b.generation() > generation
    moved = tuple(sorted(b.owned))
    assert joined_when_revoked == [
        False
    ]  # a bounded run does not end on what it happens to own between two assignments
    until(lambda: a.joined, a, b)
    assert ("revoked", moved) in told.calls
    assert not any(r.partition in moved for r in a.take()[0])
    assert not any(p in moved for p in a.reached)
    group.close(b)
    until(lambda: len(a.owned) == 4, a)
    assert told.calls[-1] == ("assigned", moved)
    assert "lost" not in [event for event, _ in told.calls]
    assert ("revoked", moved) not in told_b.calls  # it left: nobody is told any more


def test_one_who_left_is_no_member(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name)
    source = group.source()
    until(lambda: source.owned == {0}, source)
    source.consumer.unsubscribe()
    deadline = time.monotonic() + SOON
    while source.is_member({0: 0}):
        assert time.monotonic() < deadline
        source.consumer.poll(0.1)


def test_a_static_member_leaves_for_good_or_is_taken_out(
    group: Group, kafka: str, topic_name: str
) -> None:
    """Its session is longer than the test waits: at a mere close its partitions would stay with
    it."""
    create_topic(kafka, topic_name, partitions=3)
    long = {"session.timeout.ms": 45_000, "max.poll.interval.ms": 45_000}
    a, b, c = (group.source(group_instance_id=f"pod-{n}", client=long) for n in range(3))
    until(lambda: all(s.joined and len(s.owned) == 1 for s in (a, b, c)), a, b, c)
    admin, config = Admin(group.config.kafka), group.config
    group.sources.remove(b)
    b.close(for_good=True)
    assert set(admin.instances(config.group)) == {"pod-0", "pod-2"}
    until(lambda: len(a.owned | c.owned) == 3, a, c)

    group.close(c)
    assert set(admin.instances(config.group)) == {"pod-0", "pod-2"}, "it may come back"
    with ThreadPoolExecutor() as pool:  # the group waits for its member, whom we poll meanwhile
        left = pool.submit(leave, config, admin, "pod-2")
        until(left.done, a)
        assert left.result() is True
        assert leave(config, admin, "pod-2") is False
    until(lambda: a.owned == {0, 1, 2}, a)


def test_a_static_member_is_fenced_by_its_namesake(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    older = group.source(group_instance_id="pod-0")
    until(lambda: older.owned == {0}, older)
    newer = group.source(group_instance_id="pod-0")
    with pytest.raises(Fenced, match="another process"):
        until(lambda: False, older, newer)
    until(lambda: newer.owned == {0}, newer)


@pytest.mark.parametrize("event", ["assigned", "revoked"])
def test_what_a_callback_raises_comes_out_of_poll(
    event: str, group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [(b"a", {})] * 4)
    told = Listener()
    told.raises[event] = DependencyError("the disk is full")
    a = group.source(told)
    other: list[Source] = []
    if event == "revoked":
        until(lambda: len(a.owned) == 2, a)
        other = [group.source()]
    with pytest.raises(DependencyError, match="the disk is full"):
        until(lambda: False, a, *other)
    with pytest.raises(DependencyError, match="the disk is full"):
        a.serve()  # and out of every later one
    assert event == "revoked" or not a.has_any


# A topic that is not what it was


def test_records_that_expired_under_us_are_told_and_no_jump(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"a", {})] * 10)
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_records([TopicPartition(topic_name, 0, 6)]).values():
        future.result(SOON)
    source = group.source(Listener({0: 2}))
    until(lambda: source.stuck, source)
    assert not source.has_any
    assert source.reached == {0: 2}
    assert not source.is_unreadable(0)
    source.rewind({0: 6})
    until(lambda: len(source._records) == 4, source)
    assert [r.offset for r in source.take()[0]] == [6, 7, 8, 9]


def test_an_offset_beyond_the_end_is_told_and_no_jump(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"a", {})] * 10)
    source = group.source(Listener({0: 50}))
    until(lambda: source.stuck, source)
    assert not source.has_any


def test_a_topic_that_is_deleted_under_us(group: Group, kafka: str, topic_name: str) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(b"a", {})])
    # The client hears of it when it refreshes its metadata: every 5 minutes unless told otherwise.
    source = group.source(
        client={**group.config.kafka.client, "topic.metadata.refresh.interval.ms": 1000}
    )
    until(lambda: source.has_any, source)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_topics([topic_name])[topic_name].result(SOON)
    with pytest.raises(DependencyError, match=f"reading {topic_name}: there is no such topic"):
        until(lambda: False, source)


def _produce_with_header_name(servers: str, topic: str, name: bytes) -> None:
    """Straight into librdkafka: the Python client only takes names that are text. (``rdkafka.h``:
    ``rd_kafka_vtype_t``, ``rd_kafka_producev``.)"""
    [path] = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob(
        "librdkafka*"
    )
    lib = ctypes.CDLL(str(path))
    for made in (lib.rd_kafka_conf_new, lib.rd_kafka_new, lib.rd_kafka_headers_new):
        made.restype = ctypes.c_void_p
    why = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
    assert lib.rd_kafka_conf_set(conf, b"bootstrap.servers", servers.encode(), why, len(why)) == 0
    client = ctypes.c_void_p(lib.rd_kafka_new(0, conf, why, len(why)))
    headers = ctypes.c_void_p(lib.rd_kafka_headers_new(1))
    assert (
        lib.rd_kafka_header_add(
            headers, name, ctypes.c_ssize_t(len(name)), b"v", ctypes.c_ssize_t(1)
        )
        == 0
    )
    value, vtype = b"hostile", ctypes.c_int
    arguments = (
        vtype(1),
        topic.encode(),
        vtype(4),
        value,
        ctypes.c_size_t(len(value)),
        vtype(7),
        vtype(2),
        vtype(10),
        headers,
        vtype(0),
    )
    assert lib.rd_kafka_producev(client, *arguments) == 0
    assert lib.rd_kafka_flush(client, 20_000) == 0
    lib.rd_kafka_destroy(client)


def test_a_source_is_settled_once_it_owns_what_the_group_gave_it(
    group: Group, kafka: str, topic_name: str
) -> None:
    create_topic(kafka, topic_name, partitions=2)
    first = group.source()
    assert not first.is_settled(), "it has not joined"
    until(lambda: first.owned == {0, 1}, first)
    assert first.is_settled()
    second = group.source()
    assert not second.is_settled(), "it has not joined"
    until(lambda: len(first.owned) == 1, first, second)
    assert not second.owned
    given = Admin(group.config.kafka)
    until(
        lambda: bool(given.assigned(group.config.group, second.consumer.memberid(), topic_name)),
        first,
    )
    assert second.owned == set(), "nobody has polled it since"
    assert second.is_settled(), "the assignment waited to be served"
    assert len(second.owned) == len(first.owned) == 1
    assert first.is_settled()


def test_a_source_is_not_settled_while_no_broker_answers(group: Group) -> None:
    nowhere = group.config.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
    source = group.source()
    source._admin = Admin(nowhere, timeout_s=0.5)
    assert not source.is_settled()
