"""What every Kafka client of ours is configured with, and what the broker's errors mean to a user.

Three layers, each over the one before: values that measured well (``tuned``), the user's
``kafka.client``, and what the commit protocol rests on (``fixed``: a user's value for one of those
is refused, see `PROTOCOL`).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from streamer.config import Config, Kafka
from streamer.errors import ConfigError, DependencyError, Fenced, StreamerError, TemporaryError
from streamer.ops.logs import LIBRDKAFKA

TRANSACTION_TIMEOUT_S = 30.0
"""After so long without its owner the broker aborts an open transaction; until then it hides the
commit log's end."""
MAX_POLL_INTERVAL_MS = 300_000
SESSION_TIMEOUT_MS = 45_000
MESSAGE_BYTES = 100_000_000
"""The client's own limit for one message. The topic's ``max.message.bytes`` is the one that counts."""

LAST_DATE_MS = (2**63 - 1) // 10**6
"""11 April 2262."""

Isolation = Literal["read_committed", "read_uncommitted"]

_LOGGER = logging.getLogger(LIBRDKAFKA)
_HERE = "the commit protocol rests on it; take it out"
PROTOCOL: dict[str, str] = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "metadata.broker.list": "set kafka.bootstrap_servers",
    "group.id": "it follows from the dataset's name",
    "group.instance.id": "set kafka.group_instance_id",
    "group.protocol": "static membership needs the classic protocol; take it out",
    "partition.assignment.strategy": "the line is built for cooperative-sticky; take it out",
    "transactional.id": "it follows from the dataset's and the writer's names",
    **dict.fromkeys(
        ("acks", "request.required.acks", "auto.commit.enable", "auto.offset.reset", "allow.auto.create.topics", "enable.auto.commit",
         "enable.auto.offset.store", "enable.gapless.guarantee", "enable.idempotence", "enable.partition.eof", "isolation.level",
         "max.in.flight", "max.in.flight.requests.per.connection", "message.send.max.retries", "retries", "transaction.timeout.ms"),
        _HERE,
    ),
}  # fmt: skip
"""Properties that ``kafka.client`` may not set, and what to do instead."""


def client_config(
    kafka: Kafka, tuned: Mapping[str, Any] = {}, fixed: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """``tuned``, then ``kafka.client``, then ``fixed``. Raises ConfigError for a property in
    `PROTOCOL`."""
    refused = [
        f"kafka.client.{name}: cannot be set: {PROTOCOL[name]}"
        for name in kafka.client
        if name in PROTOCOL
    ]
    if refused:
        raise ConfigError(*refused)
    users = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in kafka.client.items()
    }
    return {
        "client.id": "streamer",
        "reconnect.backoff.max.ms": 2_000,
        **tuned,
        **users,
        **fixed,
        "bootstrap.servers": kafka.bootstrap_servers,
    }


def consumer_config(
    config: Config,
    group: str,
    isolation: Isolation = "read_committed",
    group_instance_id: str | None = None,
) -> dict[str, Any]:
    """For a member of ``group``, or for a reader that assigns itself partitions (``group`` is then
    only a label).

    Where to start is always told by us: an offset that is not there is an error, never a silent
    jump. Raises ConfigError.
    """
    tuned = {
        "fetch.queue.backoff.ms": 10,  # 113 → 295 MB/s with a small queue
        "queued.max.messages.kbytes": 65_536,  # resident memory
        # It does not count headers: a queue of so few of a partition bounds these, and the line
        # keeps what it weighs itself (`streamer.wire.limits`)
        "queued.min.messages": 16,
        # A partition's share of one fetch, and there is one fetch a round trip: with the default of
        # 1 MB, ten images in 50 ms.
        "fetch.message.max.bytes": 8_000_000,
        "check.crcs": True,
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "session.timeout.ms": SESSION_TIMEOUT_MS,
    }
    fixed = {
        "group.id": group,
        "partition.assignment.strategy": "cooperative-sticky",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": isolation,
        "enable.partition.eof": True,
        "allow.auto.create.topics": False,
        "logger": _LOGGER,
    }
    if group_instance_id is not None:
        fixed["group.instance.id"] = group_instance_id
    merged = client_config(config.kafka, tuned, fixed)
    if _integer(merged, "max.poll.interval.ms") < _integer(merged, "session.timeout.ms"):
        raise ConfigError(
            f"kafka.client: max.poll.interval.ms ({merged['max.poll.interval.ms']}) must not be below "
            f"session.timeout.ms ({merged['session.timeout.ms']}); set both"
        )
    return merged


def _integer(properties: Mapping[str, Any], name: str) -> int:
    try:
        return int(properties[name])
    except ValueError:
        raise ConfigError(f"kafka.client.{name}: {properties[name]!r} is no number") from None


def poll_interval_s(config: Config) -> float:
    """``max.poll.interval.ms`` in seconds: what the deadlines of drip polling and of a revoke are
    fractions of."""
    return (
        _integer(
            {"max.poll.interval.ms": MAX_POLL_INTERVAL_MS, **config.kafka.client},
            "max.poll.interval.ms",
        )
        / 1000
    )


def producer_config(config: Config) -> dict[str, Any]:
    """For the claim log: idempotent, never transactional (others must see each entry at once), one
    entry per micro-batch. Raises ConfigError."""
    return client_config(
        config.kafka,
        {"message.timeout.ms": _wait_ms(config.kafka), **_PRODUCER},
        {"enable.idempotence": True, **_OURS},
    )


def _wait_ms(kafka: Kafka) -> int:
    """An entry waits for brokers that are away as long as its replica, which then ends by
    itself."""
    return min(round(1000 * (kafka.give_up_after + 60)), 2**31 - 1)


def transactional_config(config: Config, batch_bytes: int = 1_000_000) -> dict[str, Any]:
    """For manifests, dead letters and offsets, under the writer's stable transactional id. Raises
    ConfigError."""
    limit_ms = round(TRANSACTION_TIMEOUT_S * 1000)
    fixed = {
        "transactional.id": config.transactional_id,
        "transaction.timeout.ms": limit_ms,
        **_OURS,
    }
    # A batch over the topic's limit is refused whole, the small records in it too. librdkafka keeps
    # the group's coordinator for so long after its last use. One that left the cluster (a broker
    # that is restarted) hangs send_offsets_to_transaction until then, whatever its time-out
    # (librdkafka#5511): 15 min by default.
    fixed["metadata.max.age.ms"] = 1_000
    merged = client_config(
        config.kafka, _PRODUCER, {**fixed, "batch.size": min(batch_bytes, 1_000_000)}
    )
    for name in (
        "message.timeout.ms",
        "delivery.timeout.ms",
    ):  # librdkafka refuses more than the transaction's
        if name in merged:
            merged[name] = min(_integer(merged, name), limit_ms)
    return merged


_PRODUCER = {"linger.ms": 0, "compression.type": "none"}  # fp16 vectors and images do not shrink
_OURS = {"acks": "all", "message.max.bytes": MESSAGE_BYTES, "logger": _LOGGER}

_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
_FORGOTTEN = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError._ASSIGNMENT_LOST,
}
_FORGOTTEN |= {
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
}
_MISSING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
_FINAL = {
    KafkaError._FATAL,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    *_FORBIDDEN,
}
LOGIN = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
}
"""A broker is there and refuses our name or password. (A broken TLS handshake may be a load
balancer without brokers.)"""
_TOO_BIG = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_AWAY = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
}
_AWAY |= {
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._WAIT_COORD,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
}
_AWAY |= {
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}
_AWAY |= {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.BROKER_NOT_AVAILABLE,
}
_AWAY |= {
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
_AWAY |= {
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.NOT_CONTROLLER,
    KafkaError.REBALANCE_IN_PROGRESS,
}


def explain(error: KafkaError | KafkaException, doing: str, needs: str = "") -> StreamerError:
    """What to raise for ``error``, met while ``doing`` ("reading cats.claims"): the place, the
    broker's words, the fix. ``needs``: the right that is missing if it is one of those ("Read on
    the topic cats.claims").

    Fenced for another process under our name or a membership that ended; TemporaryError for what
    may pass by itself; ConfigError for a property that the client refuses; DependencyError for
    everything else.
    """
    if isinstance(error, KafkaException):
        error = error.args[0]
    code, words = error.code(), plain(error)
    if code == KafkaError.FENCED_INSTANCE_ID or (
        code == KafkaError._FATAL and "fenced" in words
    ):  # a consumer says why only in words
        return Fenced(
            f"{doing}: another process runs under this writer's name and took over, or this one was without a broker for longer than its session "
            f"and joined again ({words}). Give each replica a `writer` of its own; if no other has this one's, just start it again."
        )
    if code in _FENCED:  # the broker raises the producer's epoch for both
        return Fenced(
            f"{doing}: another process runs under this writer's name and took over, or this one stood still for longer than a transaction may take, "
            f"{TRANSACTION_TIMEOUT_S:.0f} s ({words}). Give each replica a `writer` of its own; if no other has this one's, just start it again."
        )
    if code in _FORGOTTEN:
        return Fenced(
            f"{doing}: the broker no longer counts this replica in: it was away, busy or idle for too long ({words}). Start it again."
        )
    if code in _MISSING:
        return DependencyError(
            f"{doing}: there is no such topic or partition ({words}). Create it, or correct its name."
        )
    if code in _FORBIDDEN:
        return DependencyError(
            f"{doing}: access to the {_FORBIDDEN[code]} is denied ({words}). Grant {needs or 'it'} on the brokers, or change "
            "kafka.client; `streamer check` looks for every right."
        )
    if code in LOGIN or code == KafkaError._SSL:
        return DependencyError(
            f"{doing}: the broker does not let us in ({words}). Check the security, SASL and SSL properties in kafka.client."
        )
    if code in _TOO_BIG:
        return DependencyError(
            f"{doing}: too big for the topic ({words}). Raise the topic's max.message.bytes."
        )
    if code in (
        KafkaError._INVALID_ARG,
        KafkaError._NOT_CONFIGURED,
        KafkaError._UNSUPPORTED_FEATURE,
    ):
        return ConfigError(f"kafka.client: {words}{_hint(words)}")
    if is_away(error):
        return TemporaryError(
            f"{doing}: the broker is away or slow ({words}). Start again when it is back."
        )
    return DependencyError(f"{doing}: {words} [{error.name()}]")


def new_consumer(settings: Mapping[str, Any]) -> Consumer:
    """Connects to nothing yet. Raises ConfigError where ``kafka.client`` contradicts itself."""
    try:
        return Consumer(dict(settings))
    except KafkaException as error:
        raise explain(error.args[0], "making a consumer") from None


def raised_by(error: KafkaException | SystemError) -> KafkaError:
    """What a call of the client failed with. A fatal error that comes before a delivery report
    makes the report's callback a SystemError, whose cause it is. Raises anything else again."""
    cause = error if isinstance(error, KafkaException) else error.__cause__
    if not isinstance(cause, KafkaException):
        raise error
    found: KafkaError = cause.args[0]
    return found


def is_away(error: KafkaError) -> bool:
    """Whether it may pass by itself: brokers are away, or somebody else is being waited for."""
    return bool(error.retriable()) or error.code() in _AWAY


def is_denied(error: KafkaError) -> bool:
    return error.code() in _FORBIDDEN


def timestamp_ms(message: Message) -> int:
    """UTC milliseconds; 0 where the message has none, or one that is no date.

    A producer may write any number, microseconds by mistake for example. No reader of the output
    can show a date beyond `LAST_DATE_MS`: what 64-bit nanoseconds hold, as pandas has them.
    """
    stamp: int = message.timestamp()[1]
    return stamp if 0 < stamp <= LAST_DATE_MS else 0


def is_final(error: KafkaError) -> bool:
    """True for an error of a reader that waiting does not mend: the topic is gone or forbidden, or
    its offsets are."""
    return bool(error.fatal()) or error.code() in _FINAL


def plain(error: KafkaError) -> str:
    """The error's own words, without what only librdkafka's developers need."""
    return str(error.str()).partition(" (after ")[0].removesuffix(".")


_COMMON = ("security.protocol", "sasl.mechanisms", "sasl.username", "sasl.password", "ssl.ca.location", "ssl.certificate.location",
           "ssl.key.location", "session.timeout.ms", "max.poll.interval.ms", "fetch.max.bytes", "linger.ms", "client.id")  # fmt: skip


def _hint(words: str) -> str:
    name = words.partition('No such configuration property: "')[2].rstrip('"')
    close = difflib.get_close_matches(name, _COMMON, n=1) if name else []
    return f"; did you mean {close[0]!r}?" if close else ""
