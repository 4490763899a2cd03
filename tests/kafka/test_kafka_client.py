"""What the clients are configured with, and how the broker's errors read."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from streamer.config import Config, parse
from streamer.errors import ConfigError, DependencyError, Fenced, StreamerError, TemporaryError
from streamer.kafka.client import (
    PROTOCOL,
    consumer_config,
    explain,
    new_consumer,
    poll_interval_s,
    producer_config,
    transactional_config,
)


def make_config(**client: object) -> Config:
    return parse({
        "dataset": "cats", "writer": "w0", "kafka": {"bootstrap_servers": "127.0.0.1:1", "topic": "t", "client": client},
        "embedder": {"model": "resnet18"}, "output": {"path": "out"},
    })  # fmt: skip


def test_the_clients_accept_what_we_configure():
    config = make_config(**{"fetch.max.bytes": 1_000_000, "socket.keepalive.enable": True})
    consumer = Consumer(consumer_config(config, "g", group_instance_id="w0"))
    consumer.close()
    Producer(producer_config(config))
    Producer(transactional_config(config))


def test_the_protocols_properties_win_and_the_users_beat_the_tuned():
    config = make_config(
        **{"queued.min.messages": 7, "client.id": "mine", "linger.ms": 3, "check.crcs": False}
    )
    consumer = consumer_config(
        config, "streamer.cats", isolation="read_uncommitted", group_instance_id="w0"
    )
    assert consumer["queued.min.messages"] == 7
    assert consumer["client.id"] == "mine"
    assert consumer["check.crcs"] == "false"
    assert (consumer["group.id"], consumer["group.instance.id"], consumer["isolation.level"]) == (
        "streamer.cats",
        "w0",
        "read_uncommitted",
    )
    assert (consumer["enable.auto.commit"], consumer["auto.offset.reset"]) == (False, "error")
    assert "group.instance.id" not in consumer_config(config, "g")
    producer = producer_config(config)
    assert (producer["enable.idempotence"], producer["acks"], producer["linger.ms"]) == (
        True,
        "all",
        3,
    )
    assert "transactional.id" not in producer
    transactional = transactional_config(config)
    assert (transactional["transactional.id"], transactional["transaction.timeout.ms"]) == (
        "streamer.cats.w0",
        30_000,
    )


@pytest.mark.parametrize("name", sorted(PROTOCOL))
def test_what_the_protocol_rests_on_is_refused(name):
    for make in (lambda c: consumer_config(c, "g"), producer_config, transactional_config):
        with pytest.raises(ConfigError, match=rf"kafka\.client\.{name}: cannot be set: "):
            make(make_config(**{name: "1"}))


def test_all_refused_properties_are_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)enable\.auto\.commit: .*\n.*isolation\.level: "):
        producer_config(
            make_config(**{"enable.auto.commit": True, "isolation.level": "read_uncommitted"})
        )


def test_timeouts_that_cannot_go_together():
    with pytest.raises(
        ConfigError,
        match=r"max\.poll\.interval\.ms \(10000\) must not be below session\.timeout\.ms \(45000\)",
    ):
        consumer_config(make_config(**{"max.poll.interval.ms": 10_000}), "g")
    short = make_config(
        **{
            "max.poll.interval.ms": 10_000,
            "session.timeout.ms": 6_000,
            "message.timeout.ms": 90_000,
        }
    )
    Consumer(consumer_config(short, "g")).close()
    for make in (lambda c: consumer_config(c, "g"), poll_interval_s):
        with pytest.raises(
            ConfigError, match=r"kafka\.client\.max\.poll\.interval\.ms: 'soon' is no number"
        ):
            make(make_config(**{"max.poll.interval.ms": "soon"}))
    with pytest.raises(ConfigError, match=r"kafka\.client\.message\.timeout\.ms: '' is no number"):
        transactional_config(make_config(**{"message.timeout.ms": ""}))
    Producer(
        transactional_config(short)
    )  # librdkafka would refuse a message.timeout.ms above the transaction's
    assert poll_interval_s(short) == 10.0
    assert poll_interval_s(make_config()) == 300.0


@pytest.mark.parametrize(
    ("code", "kind", "fix"),
    [
        (
            KafkaError._FENCED,
            Fenced,
            "or this one stood still for longer than a transaction may take, 30 s",
        ),
        (
            KafkaError.INVALID_PRODUCER_EPOCH,
            Fenced,
            "`writer` of its own; if no other has this one's, just start it again",
        ),
        (
            KafkaError.FENCED_INSTANCE_ID,
            Fenced,
            "and took over, or this one was without a broker for longer than its session",
        ),
        (KafkaError.INVALID_PRODUCER_ID_MAPPING, Fenced, "away, busy or idle for too long"),
        (KafkaError.UNKNOWN_MEMBER_ID, Fenced, "Start it again"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, DependencyError, "Create it"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, DependencyError, "access to the topic is denied"),
        (
            KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            DependencyError,
            "access to the transactional id is denied",
        ),
        (KafkaError._AUTHENTICATION, DependencyError, "kafka.client"),
        (KafkaError.MSG_SIZE_TOO_LARGE, DependencyError, "max.message.bytes"),
        (KafkaError._TRANSPORT, TemporaryError, "Start again"),
        (KafkaError.NOT_ENOUGH_REPLICAS, TemporaryError, "Start again"),
        (KafkaError._INVALID_ARG, ConfigError, "kafka.client"),
        (KafkaError.UNSUPPORTED_VERSION, DependencyError, "UNSUPPORTED_VERSION"),
    ],
)
def test_errors_name_the_place_and_the_fix(code, kind, fix):
    for error in (KafkaError(code), KafkaException(KafkaError(code))):
        explained = explain(error, "reading cats.claims")
        assert type(explained) is kind
        assert isinstance(explained, StreamerError)
        assert fix in str(explained)
        assert kind is ConfigError or str(explained).startswith("reading cats.claims: ")
    assert issubclass(kind, StreamerError)


def test_settings_that_contradict_each_other_are_a_wrong_config():
    settings = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g"}
    with pytest.raises(ConfigError, match=r"kafka\.client: .*max\.poll\.interval\.ms"):
        new_consumer({**settings, "session.timeout.ms": 45_000, "max.poll.interval.ms": 30_000})
