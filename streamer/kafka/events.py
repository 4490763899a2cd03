"""The error events that a consumer delivers between its messages: what ends the process, and what
is told."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError

from streamer.errors import ProtocolError
from streamer.kafka.client import explain, is_away, is_final, plain
from streamer.ops.logs import Repeats

log = logging.getLogger("streamer.kafka.events")
log.filters[:] = [Repeats(30.0)]

TRIES = 5
"""So often the same offset is fetched again, about twice a second: bytes may break on their way, too."""
_UNREADABLE = {
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,
    KafkaError._UNDERFLOW,
    KafkaError._NOT_IMPLEMENTED,
    KafkaError.INVALID_MSG,
}


class Events:
    """Of one reader of one topic; its thread's own."""

    def __init__(self, topic: str, group: str) -> None:
        """``group``: the consumer's, for what a missing right is called."""
        self._topic = topic
        self._group = group
        self._unreadable: dict[int, tuple[int, int]] = {}
        """Partition → offset of a batch that could not be read, and how often in a row."""

    def moved(self, partition: int) -> None:
        """A message of it came."""
        if self._unreadable:
            self._unreadable.pop(partition, None)

    def heed(self, error: KafkaError, partition: int, offset: int) -> None:
        """Any event; the end of a partition is none. Returns where waiting may help, and then says
        what came: once in half a minute, or, while brokers are away, to who debugs.

        Raises what `explain` says for what waiting does not mend, and ProtocolError for a batch that
        cannot be read, which a reader would otherwise stand before for ever.
        """
        if error.code() == KafkaError._PARTITION_EOF:
            return
        if is_final(error):
            where = "group" if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED else "topic"
            named = self._group if where == "group" else self._topic
            raise explain(error, f"reading {self._topic}", f"Read on the {where} {named}")
        if error.code() in _UNREADABLE:
            self._count(error, partition, offset)
        level = logging.DEBUG if is_away(error) else logging.WARNING
        log.log(level, "reading %s partition %d: %s", self._topic, partition, plain(error))

    def _count(self, error: KafkaError, partition: int, offset: int) -> None:
        known, count = self._unreadable.get(partition, (offset, 0))
        count = count + 1 if known == offset else 1
        self._unreadable[partition] = offset, count
        if count >= TRIES:
            raise ProtocolError(
                f"{self._topic} partition {partition}: the records from offset {offset} on cannot be read ({plain(error)}): the batch is broken in the "
                "brokers' log, packed by a codec that this client does not know, or larger unpacked than receive.message.max.bytes allows (100 MB unless "
                "kafka.client raises it). Raise it, or restore the topic; kafka-dump-log.sh shows the batch. A replay from behind it "
                f"(--from offset:{partition}=N) goes on without it, into a new dataset."
            )
