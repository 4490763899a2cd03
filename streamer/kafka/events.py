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

UNREADABLE = {
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,
    KafkaError._UNDERFLOW,
    KafkaError._NOT_IMPLEMENTED,
    KafkaError.INVALID_MSG,
}
"""A batch that the client cannot read. Waiting does not help: at some of them the client stands
for ever, and behind a wrong checksum it was seen to read rubbish, and to go on at an offset
that it found there."""


RESTORE = (
    "Restore the topic from another copy of it, or continue with a new dataset name, by replay."
)
PASS_BY = (
    "Raise it, or restore the topic from another copy of it; or go on without the batch: "
    "kafka.on_unreadable: skip (for one run: --set kafka.on_unreadable=skip)."
)


class Events:
    """Of one reader of one topic; its thread's own."""

    def __init__(self, topic: str, group: str, way_on: str = RESTORE) -> None:
        """``group``: the consumer's, for what a missing right is called. ``way_on``: what to do
        about a batch that cannot be read."""
        self._way_on = way_on
        self._topic = topic
        self._group = group

    def heed(self, error: KafkaError, partition: int, offset: int) -> None:
        """Any event; the end of a partition is none. Returns where waiting may help, and then says
        what came: once in half a minute, or, while brokers are away, to who debugs.

        Raises what `explain` says for what waiting does not mend, and ProtocolError for a batch
        that cannot be read (`UNREADABLE`)."""
        if error.code() == KafkaError._PARTITION_EOF:
            return
        if is_final(error):
            where = "group" if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED else "topic"
            named = self._group if where == "group" else self._topic
            raise explain(error, f"reading {self._topic}", f"Read on the {where} {named}")
        if error.code() in UNREADABLE:
            raise ProtocolError(
                f"{self._topic} partition {partition}: the records from offset {offset} on cannot be read ({plain(error)}): the batch is broken in the "
                "brokers' log (kafka-dump-log.sh shows it), packed by a codec that this client does not know, or larger unpacked than "
                f"receive.message.max.bytes allows (100 MB unless kafka.client raises it). {self._way_on}"
            )
        level = logging.DEBUG if is_away(error) else logging.WARNING
        log.log(level, "reading %s partition %d: %s", self._topic, partition, plain(error))
