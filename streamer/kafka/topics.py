"""The input topic: that it is there, and where a new dataset begins in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from streamer.config import Config
from streamer.errors import DependencyError
from streamer.kafka.admin import Admin, TopicInfo


def input_topic(admin: Admin, config: Config) -> TopicInfo:
    """The input topic. Raises DependencyError where it does not exist: a service must not create
    what its producers own."""
    info = admin.topic(config.kafka.topic)
    if info is None:
        raise DependencyError(
            f"kafka.topic: the topic {config.kafka.topic!r} does not exist on {config.kafka.bootstrap_servers}. Create it (streamer produce --create-topic "
            "does), or mend the name; `run` never creates its input topic."
        )
    return info


def configured_starts(
    admin: Admin, config: Config, partitions: Collection[int]
) -> Mapping[int, int]:
    """``kafka.start`` as offsets."""
    topic, start = config.kafka.topic, config.kafka.start
    if start == "earliest":
        return admin.begin_offsets(topic, partitions)
    if start == "latest":
        return admin.end_offsets(topic, partitions, committed=True)
    assert not isinstance(start, str)
    return admin.offsets_at(topic, partitions, round(start.timestamp() * 1000))
