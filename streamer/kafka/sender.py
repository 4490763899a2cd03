"""Many records into one topic, every one of them acknowledged or listed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamer.config import Kafka
from streamer.errors import StreamerError, TemporaryError
from streamer.kafka.client import client_config, explain, plain, raised_by

QUEUE_BYTES = 64_000_000
"""What may wait for its acknowledgement; `Sender.send` blocks beyond it."""
BATCH_BYTES = 1_000_000
ACK_TIMEOUT_S = 60.0

# Only the record is at fault; the next one may be fine.
_ITS_OWN_FAULT = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG,
}
_ITS_OWN_FAULT |= {KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_TIMESTAMP}


@dataclass(slots=True)
class Tally:
    """What has become of the records so far."""

    sent: int = 0
    """Acknowledged by all in-sync replicas."""
    with_text: int = 0
    """Of ``sent``: those with a header ``text``."""
    with_metadata: int = 0
    """Of ``sent``: those with a header ``meta-…``."""
    nbytes: int = 0
    """Of their values."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason)"""


class Sender:
    """An idempotent producer for ``kafka.topic``. One thread."""

    def __init__(self, kafka: Kafka, limit: int) -> None:
        """``limit``: the topic's max.message.bytes. Connects to nothing yet. Raises ConfigError."""
        limit = max(limit, 1_000)  # librdkafka's least
        tuned = {
            "linger.ms": 20,
            "compression.type": "none",  # images do not shrink
            "message.timeout.ms": round(ACK_TIMEOUT_S * 1000),
            # A batch over the topic's limit is refused whole, the small records in it too.
            "batch.size": min(BATCH_BYTES, limit),
            "queue.buffering.max.kbytes": (QUEUE_BYTES + limit) // 1024 + 1,
            "log_level": 0,
        }
        fixed = {"enable.idempotence": True, "acks": "all", "message.max.bytes": limit}
        try:
            self._producer = Producer(client_config(kafka, tuned, fixed))
        except KafkaException as error:
            raise explain(error, "connecting") from None
        self._topic = kafka.topic
        self._servers = kafka.bootstrap_servers
        self._broken: StreamerError | None = None
        self.tally = Tally()

    def send(
        self, id: str, value: bytes, headers: list[tuple[str, bytes]], key: bytes | None = None
    ) -> None:
        """Queues the record; blocks while the queue is full. ``tally`` says later what became of
        it.

        Raises what stops all records: TemporaryError if the broker does not acknowledge for 60 s,
        DependencyError if it refuses.
        """
        names = {name for name, _ in headers}

        def delivered(error: KafkaError | None, _message: Message) -> None:
            self._delivered(error, id, len(value), names)

        while True:
            self._raise_if_broken()
            try:
                self._producer.produce(
                    self._topic, value, key=key, headers=list(headers), on_delivery=delivered
                )
                break
            except BufferError:
                self._serve(lambda: self._producer.poll(0.1))
            except KafkaException as error:
                self._delivered(error.args[0], id, len(value), names)
                break
        self._serve(lambda: self._producer.poll(0))

    def finish(self, tick: Callable[[], None] = lambda: None) -> None:
        """Waits until every record is acknowledged or refused, calling ``tick`` now and then.
        Raises as `send` does."""
        deadline = time.monotonic() + ACK_TIMEOUT_S + 10
        while self._serve(lambda: self._producer.flush(0.2)):
            self._raise_if_broken()
            tick()
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"writing to {self._topic} at {self._servers}: records that were not acknowledged: {len(self._producer)}. Try again."
                )
        self._raise_if_broken()

    def _serve(self, call: Callable[[], int]) -> int:
        """A call that runs delivery reports."""
        try:
            return call()
        except (KafkaException, SystemError) as error:
            raise self._explained(raised_by(error)) from None

    def _explained(self, error: KafkaError) -> StreamerError:
        topic = self._topic
        doing = f"writing to {topic} at {self._servers}"
        return explain(error, doing, f"Write on the topic {topic}")

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _delivered(self, error: KafkaError | None, id: str, nbytes: int, headers: set[str]) -> None:
        if error is None:
            self.tally.sent += 1
            self.tally.with_text += "text" in headers
            self.tally.with_metadata += any(name.startswith("meta-") for name in headers)
            self.tally.nbytes += nbytes
        elif error.code() in _ITS_OWN_FAULT:
            self.tally.refused.append((id, plain(error)))
        elif self._broken is None:
            self._broken = self._explained(error)
