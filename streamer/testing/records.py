"""Topics, records and small images for tests."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streamer.errors import DependencyError

TIMEOUT_S = 30.0


class Stored(NamedTuple):
    """One record as it lies in a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def jpeg(seed: int, size: tuple[int, int] = (96, 64), quality: int = 90) -> bytes:
    """A small JPEG of smooth random colours. Equal arguments give equal bytes; other seeds look
    different.

    ``size`` is (width, height) in pixels.
    """
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    output = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
        output, "JPEG", quality=quality
    )
    return output.getvalue()


def create_topic(
    bootstrap_servers: str, topic: str, partitions: int = 1, **settings: str | int
) -> None:
    """Creates ``topic`` and waits until it can be written. ``settings``: topic settings with _ for
    the dots.

    Raises DependencyError, also when the topic exists.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    new = NewTopic(
        topic,
        partitions,
        -1,
        config={name.replace("_", "."): str(value) for name, value in settings.items()},
    )
    try:
        admin.create_topics([new], request_timeout=TIMEOUT_S)[topic].result(TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            found = admin.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
            if (
                found.error is None
                and len(found.partitions) == partitions
                and all(p.leader >= 0 for p in found.partitions.values())
            ):
                return
            time.sleep(0.02)
    except KafkaException as error:
        raise DependencyError(
            f"{topic}: cannot be created at {bootstrap_servers}: {error.args[0].str()}"
        ) from None
    raise DependencyError(f"{topic}: has no leader at {bootstrap_servers} after {TIMEOUT_S:.0f} s")


def produce(
    bootstrap_servers: str,
    topic: str,
    records: Iterable[tuple[bytes | None, Mapping[str, str | bytes | None]]],
    partition: int | None = None,
) -> list[tuple[int, int]]:
    """Writes (value, headers) pairs and waits for every acknowledgement; returns their (partition,
    offset), in order.

    Without ``partition`` the record number modulo the partition count chooses. Raises
    DependencyError if one is refused.
    """
    from confluent_kafka import KafkaError, KafkaException, Message, Producer

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "message.max.bytes": 100_000_000,
            "linger.ms": 5,
            "log_level": 0,
        }
    )
    origins: dict[int, tuple[int, int]] = {}
    errors: list[KafkaError] = []
    count = 0
    try:
        partitions = len(producer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions)
        for value, headers in records:

            def delivered(error: KafkaError | None, message: Message, number: int = count) -> None:
                if error is not None:
                    errors.append(error)
                else:
                    origins[number] = message.partition(), message.offset()

            chosen = count % max(partitions, 1) if partition is None else partition
            while True:
                try:
                    producer.produce(
                        topic,
                        value,
                        partition=chosen,
                        headers=list(headers.items()),
                        on_delivery=delivered,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
            count += 1
    except KafkaException as error:
        raise DependencyError(
            f"{topic}: cannot be written at {bootstrap_servers}: {error.args[0].str()}"
        ) from None
    left = producer.flush(TIMEOUT_S)
    if left or errors:
        why = errors[0].str() if errors else f"no acknowledgement within {TIMEOUT_S:.0f} s"
        raise DependencyError(
            f"{topic}: {left + len(errors)} of {count} records were not written at {bootstrap_servers}: {why}"
        )
    return [origins[number] for number in range(count)]


def read_topic(bootstrap_servers: str, topic: str, committed: bool = True) -> list[Stored]:
    """Everything that is in ``topic`` now, partition by partition. ``committed`` leaves out open
    and aborted transactions.

    Blocks until the end is reached, 30 s at most. Raises DependencyError.
    """
    from confluent_kafka import (
        OFFSET_BEGINNING,
        Consumer,
        KafkaError,
        KafkaException,
        TopicPartition,
    )

    consumer = Consumer({
        "bootstrap.servers": bootstrap_servers, "group.id": "streamer-testing-read", "enable.auto.commit": False, "log_level": 0,
        "enable.partition.eof": True, "isolation.level": "read_committed" if committed else "read_uncommitted",
    })  # fmt: skip
    found: list[Stored] = []
    try:
        listed = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
        if listed.error is not None:
            raise DependencyError(
                f"{topic}: cannot be read at {bootstrap_servers}: {listed.error.str()}"
            )
        waiting = set(listed.partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in waiting])
        deadline = time.monotonic() + TIMEOUT_S
        while waiting:
            message = consumer.poll(max(0.0, min(1.0, deadline - time.monotonic())))
            if message is None:
                if time.monotonic() >= deadline:
                    raise DependencyError(
                        f"{topic}: its end was not reached at {bootstrap_servers} within {TIMEOUT_S:.0f} s"
                    )
            elif (error := message.error()) is None:
                timestamp_ms = message.timestamp()[1]
                headers = list(message.headers() or [])
                found.append(
                    Stored(
                        message.partition(),
                        message.offset(),
                        timestamp_ms,
                        message.key(),
                        message.value(),
                        headers,
                    )
                )
            elif error.code() == KafkaError._PARTITION_EOF:
                waiting.discard(message.partition())
            else:
                raise DependencyError(
                    f"{topic}: cannot be read at {bootstrap_servers}: {error.str()}"
                )
    except KafkaException as error:
        raise DependencyError(
            f"{topic}: cannot be read at {bootstrap_servers}: {error.args[0].str()}"
        ) from None
    finally:
        consumer.close()
    return sorted(found)
