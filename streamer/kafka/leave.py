"""Takes a static member that does not come back out of its group."""

from __future__ import annotations

import time

from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from streamer.config import Config
from streamer.errors import Fenced, TemporaryError
from streamer.kafka.admin import Admin
from streamer.kafka.client import consumer_config, explain, is_denied, new_consumer
from streamer.kafka.source import LEAVE_S, end_membership

JOIN_S = 30.0
"""A group that rebalances takes no new member of an old name before it is done."""


def leave(config: Config, admin: Admin, instance: str) -> bool:
    """Joins the group under ``instance`` (``group.instance.id``), which fences whoever still runs
    under it, and leaves, so that the others get its partitions at once. False: there is no such
    member.

    Commits nothing, and takes no record. Blocks for `JOIN_S` and a few calls of ``admin`` at most.
    Raises TemporaryError, DependencyError."""
    if instance not in admin.instances(config.group):
        return False
    consumer = new_consumer(consumer_config(config, config.group, group_instance_id=instance))
    joined: list[bool] = []

    def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # The client hangs where it may not take them; from their ends it has nothing to fetch
        ends = [TopicPartition(tp.topic, tp.partition, OFFSET_END) for tp in partitions]
        consumer.incremental_assign(ends)
        joined.append(True)

    try:
        consumer.subscribe([config.kafka.topic], on_assign=assigned)
        deadline = time.monotonic() + JOIN_S
        while not joined:
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"the group {config.group} took no member {instance} in within {JOIN_S:.0f} s. Try again."
                )
            message = consumer.poll(0.1)
            error = None if message is None else message.error()
            if error is not None and (error.fatal() or is_denied(error)):
                found = explain(
                    error, f"joining {config.group}", f"Read on the group {config.group}"
                )
                if not isinstance(found, Fenced):
                    raise found
                raise TemporaryError(
                    f"{instance} runs, or was started again: it took its place in the group {config.group} back. Nothing was changed."
                )
        end_membership(consumer, admin, config.group, LEAVE_S)
    finally:
        consumer.close()
    return True
