"""Admin against a real broker: what it answers, what it refuses, and how long it takes to say so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from streamer.config import Config, parse
from streamer.errors import ConfigError, DependencyError, StreamerError, TemporaryError
from streamer.kafka.admin import Admin, CommittedOffset, GroupState, TopicInfo
from streamer.kafka.client import consumer_config, transactional_config
from streamer.testing import create_topic, free_port, produce


def make_config(servers: str, dataset: str, topic: str, **client: object) -> Config:
    return parse({
        "dataset": dataset, "writer": "w0", "kafka": {"bootstrap_servers": servers, "topic": topic, "client": client},
        "embedder": {"model": "resnet18"}, "output": {"path": "out"},
    })  # fmt: skip


@pytest.fixture
def config(kafka, dataset_name, topic_name) -> Config:
    return make_config(kafka, dataset_name, topic_name)


@pytest.fixture
def admin(config) -> Admin:
    return Admin(config.kafka)


def alter(servers: str, topic: str, **settings: str) -> None:
    entries = [
        ConfigEntry(k.replace("_", "."), v, incremental_operation=AlterConfigOpType.SET)
        for k, v in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    client = AdminClient({"bootstrap.servers": servers})  # must outlive its futures
    client.incremental_alter_configs([resource])[resource].result(10)


def test_a_topic_made_again_has_another_id(admin, kafka, topic_name):
    assert admin.topic(topic_name) is None
    assert admin.create(topic_name, 3) is True
    assert admin.create(topic_name, 5) is False
    first = admin.topic(topic_name)
    assert (first.name, first.partitions) == (topic_name, 3)
    client = AdminClient({"bootstrap.servers": kafka})
    client.delete_topics([topic_name])[topic_name].result(10)
    while admin.topic(topic_name) is not None:
        time.sleep(0.05)
    admin.create(topic_name, 3)
    assert admin.topic(topic_name).id != first.id


def test_dataset_topics_are_made_right_once_by_many(config, kafka):
    create_topic(kafka, config.kafka.topic, max_message_bytes=3_000_000)
    errors: list[BaseException] = []

    def ensure() -> None:
        try:
            Admin(config.kafka).ensure_dataset_topics(config)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    admin = Admin(config.kafka)
    for name in (config.claims_topic, config.commits_topic):
        assert admin.topic(name).partitions == 1
        settings = admin.settings(name)
        assert (
            settings["retention.ms"],
            settings["retention.bytes"],
            settings["cleanup.policy"],
        ) == ("-1", "-1", "delete")
        assert admin.message_limit(name) == 8_000_000
    assert admin.message_limit(config.dead_topic) >= 3_000_000


def test_the_input_topic_is_never_made(admin, config):
    with pytest.raises(
        DependencyError,
        match=rf"kafka\.topic: there is no topic '{config.kafka.topic}' at .*--create",
    ):
        admin.ensure_dataset_topics(config)
    assert admin.topic(config.kafka.topic) is None
    assert admin.topic(config.claims_topic) is None


@pytest.mark.parametrize(
    ("which", "setting", "value", "needed"),
    [
        ("claims", "retention.ms", "604800000", "-1"),
        ("commits", "retention.bytes", "1000", "-1"),
        ("claims", "cleanup.policy", "compact", "delete"),
        ("commits", "max.message.bytes", "1000", "8000000"),
        ("dead", "cleanup.policy", "compact", "delete"),
    ],
)
def test_wrong_settings_are_named_with_their_mending(
    admin, config, kafka, which, setting, value, needed
):
    create_topic(kafka, config.kafka.topic)
    admin.ensure_dataset_topics(config)
    topic = f"{config.dataset}.{which}"
    alter(kafka, topic, **{setting: value})
    with pytest.raises(DependencyError) as caught:
        admin.ensure_dataset_topics(config)
    message = str(caught.value)
    assert message.startswith(f"{topic}: the topic's {setting} is {value}, it must be {needed}.")
    assert message.endswith(
        f"--alter --entity-type topics --entity-name {topic} --add-config {setting}={needed}"
    )


def test_a_log_with_two_partitions_is_refused(admin, config, kafka):
    create_topic(kafka, config.kafka.topic)
    create_topic(kafka, config.claims_topic, partitions=2, retention_ms=-1, retention_bytes=-1)
    with pytest.raises(
        DependencyError,
        match=rf"{config.claims_topic}: has 2 partitions, but its one order needs exactly 1",
    ):
        admin.ensure_dataset_topics(config)


def test_a_refused_message_size_falls_back_to_the_brokers(admin, topic_name):
    admin._ensure(
        topic_name, {"max.message.bytes": "-5", "retention.ms": "-1"}
    )  # INVALID_CONFIG, as a managed cluster's cap gives
    assert admin.message_limit(topic_name) > 0
    assert admin.settings(topic_name)["retention.ms"] == "-1"


def test_offsets_by_end_begin_and_time(admin, kafka, topic_name):
    admin.create(topic_name, 2)
    produce(kafka, topic_name, [(b"old", {})] * 3, partition=0)
    time.sleep(0.05)
    between = time.time() * 1000
    time.sleep(0.05)
    produce(kafka, topic_name, [(b"new", {})] * 2, partition=0)
    assert admin.begin_offsets(topic_name, [0, 1]) == {0: 0, 1: 0}
    assert admin.end_offsets(topic_name, [0, 1], committed=True) == {0: 5, 1: 0}
    assert admin.offsets_at(topic_name, [0, 1], round(between)) == {0: 3, 1: 0}
    assert admin.offsets_at(topic_name, [0], round(between) + 3_600_000) == {0: 5}
    assert admin.end_offsets(topic_name, [], committed=True) == {}


def test_offsets_of_nothing_say_so_at_once(admin, kafka, topic_name):
    begun = time.monotonic()
    with pytest.raises(DependencyError, match=f"there is no topic {topic_name}"):
        admin.end_offsets(topic_name, [0], committed=True)
    admin.create(topic_name, 2)
    with pytest.raises(DependencyError, match=f"{topic_name} has 2 partitions, not 8"):
        admin.begin_offsets(topic_name, [0, 7])
    assert time.monotonic() - begun < 5
    with pytest.raises(DependencyError, match=r"[Uu]nknown topic"):
        admin.settings(f"{topic_name}-not")  # another broker may just have made it


def test_an_open_transaction_hides_the_end_and_the_offsets(config, kafka):
    topic, group = config.kafka.topic, config.group
    create_topic(kafka, topic)
    consumer = Consumer(consumer_config(config, group))
    consumer.subscribe([topic])
    deadline = time.monotonic() + 30
    while not consumer.assignment() and time.monotonic() < deadline:
        consumer.poll(0.1)
    admin = Admin(config.kafka, timeout_s=3)
    assert admin.committed(group, topic, [0]) == {}
    assert admin.group_state(group) == GroupState("stable", 1)

    def commit(offset: int) -> Producer:
        producer.begin_transaction()
        producer.produce(topic, b"x")
        producer.send_offsets_to_transaction(
            [TopicPartition(topic, 0, offset, f"uuid-{offset}")],
            consumer.consumer_group_metadata(),
            10,
        )
        return producer

    producer = Producer(transactional_config(config))
    producer.init_transactions(30)
    commit(1).commit_transaction(10)
    assert admin.committed(group, topic, [0]) == {0: CommittedOffset(1, "uuid-1")}
    assert admin.end_offsets(topic, [0], committed=True) == {
        0: 2
    }  # the record and its control record
    commit(2).flush(10)
    assert admin.end_offsets(topic, [0], committed=True) == {0: 2}
    assert admin.end_offsets(topic, [0], committed=False) == {0: 3}
    begun = time.monotonic()
    with pytest.raises(
        TemporaryError, match=f"committed offsets of the group {group}: not within 3 s"
    ):
        admin.committed(group, topic, [0])
    assert 2.5 < time.monotonic() - begun < 10
    producer.abort_transaction(10)
    assert admin.committed(group, topic, [0]) == {0: CommittedOffset(1, "uuid-1")}
    consumer.close()
    assert admin.group_state(group) == GroupState("empty", 0)
    assert admin.group_state(f"{group}.other") == GroupState("dead", 0)


@pytest.mark.parametrize("call", [
    lambda a: a.topic("t"), lambda a: a.create("t", 1), lambda a: a.settings("t"), lambda a: a.end_offsets("t", [0], committed=True),
    lambda a: a.committed("g", "t", [0]), lambda a: a.group_state("g"),
])  # fmt: skip
def test_no_broker_is_said_within_the_time_limit(call):
    servers = f"127.0.0.1:{free_port()}"
    admin = Admin(make_config(servers, "d", "t").kafka, timeout_s=1.5)
    begun = time.monotonic()
    with pytest.raises(
        DependencyError,
        match=rf"no Kafka broker at {servers} answered within 2 s \(.*Connection refused\). Check kafka.bootstrap_servers",
    ):
        call(admin)
    assert time.monotonic() - begun < 4


def test_an_unknown_host_is_named():
    with pytest.raises(DependencyError, match=r"Failed to resolve 'nosuch\.invalid:9092'"):
        Admin(make_config("nosuch.invalid:9092", "d", "t").kafka, timeout_s=1.5).topic("t")


def test_a_broker_that_comes_back_is_found_again(embedded, config):
    with embedded() as broker:
        admin = Admin(make_config(broker.bootstrap_servers, "d", "t").kafka, timeout_s=40)
        admin.create("t", 2)
        produce(broker.bootstrap_servers, "t", [(b"x", {})] * 4)
        broker.kill()
        late = threading.Thread(target=broker.start)
        late.start()
        assert admin.end_offsets("t", [0, 1], committed=True) == {0: 2, 1: 2}
        late.join()


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (
            {"secruity.protocol": "SSL"},
            r'kafka\.client: No such configuration property: "secruity\.protocol"; did you mean \'security\.protocol\'',
        ),
        (
            {"security.protocol": "TLS"},
            r'kafka\.client: Invalid value "TLS" for configuration property "security\.protocol"',
        ),
    ],
)
def test_a_property_the_client_does_not_know(client, message):
    with pytest.raises(ConfigError, match=message):
        Admin(make_config("127.0.0.1:1", "d", "t", **client).kafka)


NOT_CAUGHT_UP = -2000


class NoOffsetAtFirst:
    """An admin client that answers without an offset and without an error, then as it should."""

    def __init__(self, offsets: list[int]) -> None:
        self.offsets = offsets

    def list_offsets(self, wanted, **_settings):
        place = next(iter(wanted))
        future: Future = Future()
        offset = self.offsets.pop(0)
        if offset == NOT_CAUGHT_UP:
            future.set_exception(KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE)))
        else:
            future.set_result(SimpleNamespace(offset=offset))
        return {place: future}


def test_an_answer_without_an_offset_is_none(monkeypatch):
    admin = Admin(make_config("127.0.0.1:1", "d", "t").kafka)
    client = NoOffsetAtFirst([OFFSET_INVALID, NOT_CAUGHT_UP, OFFSET_INVALID, 121])
    monkeypatch.setattr(admin, "_client", client)
    assert admin.end_offsets("t", [0], committed=False) == {0: 121}
    assert client.offsets == []


class UnknownAtFirst:
    """An admin client that asks brokers which do not know the topic, then one that does."""

    def __init__(self, unknown: int) -> None:
        self.unknown = unknown

    def describe_configs(self, resources, **_settings):
        future: Future = Future()
        if self.unknown:
            self.unknown -= 1
            future.set_exception(KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)))
        else:
            future.set_result({"a": SimpleNamespace(name="a", value="b")})
        return {resources[0]: future}


def test_brokers_learn_of_a_new_topic_one_after_another(
    admin, config, kafka, topic_name, monkeypatch
):
    create_topic(kafka, topic_name)
    ask, late = admin.topic, [TopicInfo(config.claims_topic, "", 0), None]

    def topic(name):
        known = ask(name)
        return late.pop() if known is not None and name == config.claims_topic and late else known

    monkeypatch.setattr(admin, "topic", topic)
    admin.ensure_dataset_topics(config)
    assert not late
    monkeypatch.setattr(admin, "_client", UnknownAtFirst(2))
    assert admin.settings(config.claims_topic) == {"a": "b"}
    monkeypatch.setattr("streamer.kafka.admin.CATCH_UP_S", 0.2)
    monkeypatch.setattr(admin, "_client", UnknownAtFirst(1000))
    with pytest.raises(DependencyError):
        admin.settings(config.claims_topic)


def test_plaintext_to_a_broker_that_wants_none(kafka):
    admin = Admin(make_config(kafka, "d", "t", **{"security.protocol": "SSL"}).kafka, timeout_s=2)
    with pytest.raises(StreamerError, match=r"(?i)no Kafka broker at .*ssl"):
        admin.topic("t")
