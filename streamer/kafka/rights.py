"""The rights on the cluster that a replica needs, and which of them the brokers deny it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaException, Producer

from streamer.config import Config
from streamer.kafka.admin import Admin
from streamer.kafka.client import explain, is_denied, transactional_config

READERS = ("claim-log-reader", "commit-log-reader", "log-reader", "lag")
"""Labels of the consumers that join no group; the brokers ask for the right to read it all the
same."""
PROBE_S = 10.0
_SPELLED = {"READ": "Read", "WRITE": "Write", "DESCRIBE_CONFIGS": "DescribeConfigs"}


@dataclass(frozen=True, slots=True)
class Found:
    denied: tuple[str, ...]
    """As ``kafka-acls.sh`` calls them: ``Read on the topic cats.claims``."""
    unknown: tuple[str, ...]
    """Topics of which only Create could be looked at: they do not exist."""


def look_up(config: Config, admin: Admin) -> Found:
    """Asks the brokers; nothing is written, joined, created or fenced. They remember a
    transactional id of its own, ``…WRITER.check``, for some days.

    Blocks for a few calls of ``admin`` and `PROBE_S`. Raises DependencyError, TemporaryError.
    """
    denied = [*denied_on_topics(config, admin), *_of_groups(config, admin)]
    if not _may_transact(config):
        denied.append(f"Write on the transactional id {config.transactional_id} (prefix)")
    there = admin.rights_on_topics(config.own_topics())
    missing = [name for name in config.own_topics() if name not in there]
    denied += [f"Create on the topic {name}" for name in missing if not admin.may_create(name)]
    # Who may do this is a broker, or everybody is allowed everything
    is_free = "CLUSTER_ACTION" in admin.rights_on_cluster()
    return Found(tuple(denied), () if is_free else tuple(missing))


def denied_on_topics(config: Config, admin: Admin) -> Iterator[str]:
    """Of those that exist. Blocks for one call of ``admin``; raises like it."""
    log = ("READ", "WRITE", "DESCRIBE_CONFIGS")
    needed = {
        config.kafka.topic: ("READ", "DESCRIBE_CONFIGS"),
        config.claims_topic: log,
        config.commits_topic: log,
        config.dead_topic: ("WRITE", "DESCRIBE_CONFIGS"),
    }
    for name, rights in admin.rights_on_topics(needed).items():
        for right in needed[name]:
            # What may not be seen at all may still have its settings read
            if right not in rights and (rights or right != "DESCRIBE_CONFIGS"):
                yield f"{_SPELLED[right]} on the topic {name}"


def _of_groups(config: Config, admin: Admin) -> Iterator[str]:
    group = config.group
    rights = admin.rights_on_groups([group, *(f"{group}.{label}" for label in READERS)])
    if "READ" not in rights[group]:
        yield f"Read on the group {group}"
    if any("READ" not in found for name, found in rights.items() if name != group):
        yield f"Read on the groups {group}. (prefix)"


def _may_transact(config: Config) -> bool:
    """Under another name with the same beginning: our own would fence a replica that runs."""
    name = f"{config.transactional_id}.check"
    producer = Producer({**transactional_config(config), "transactional.id": name})
    try:
        producer.init_transactions(PROBE_S)
    except KafkaException as error:
        if is_denied(error.args[0]):
            return False
        raise explain(error, f"opening the transactional id {name}") from None
    return True
