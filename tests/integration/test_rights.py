"""A broker with an authorizer: which rights a replica needs, who says that one is missing, and that
what says so names it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from streamer.config import Config, parse
from streamer.kafka.admin import Admin
from streamer.kafka.rights import look_up
from streamer.testing import Broker, create_topic, jpeg, produce
from tests.integration.service import ROOT, THUMBNAIL, Service, streamer

USER, PASSWORD = "replica", "a-secret-of-its-own"
KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
Right = tuple[ResourceType, str, ResourcePatternType, AclOperation]


def documented() -> list[Right]:
    """What docs/operations.md says a replica needs, of its dataset ``cats`` and topic
    ``image-text``."""
    found: list[Right] = []
    for line in (ROOT / "docs/operations.md").read_text().splitlines():
        if not line.startswith("kafka-acls.sh"):
            continue
        [(kind, name)] = re.findall(r"--(topic|group|transactional-id) (\S+)", line)
        pattern = "PREFIXED" if "--resource-pattern-type prefixed" in line else "LITERAL"
        for operation in re.findall(r"--operation (\w+)", line):
            spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()
            found.append((KINDS[kind], name, ResourcePatternType[pattern], AclOperation[spelled]))
    return found


class Cluster:
    """One node. `kafka` may do everything, `servers` is for our user."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.folder = folder
        self.kafka = broker.bootstrap_servers
        self.servers = f"127.0.0.1:{broker.upstream_port}"
        self._admin = AdminClient({"bootstrap.servers": self.kafka})

    def grant(self, right: Right, kind: str = "ALLOW") -> None:
        binding = AclBinding(*right[:3], f"User:{USER}", "*", right[3], AclPermissionType[kind])
        for future in self._admin.create_acls([binding]).values():
            future.result(30)

    def take(self, right: Right, kind: str = "ALLOW") -> None:
        what = AclBindingFilter(*right[:3], f"User:{USER}", "*", right[3], AclPermissionType[kind])
        for future in self._admin.delete_acls([what]).values():
            future.result(30)

    @contextmanager
    def without(self, right: Right) -> Iterator[None]:
        self.take(right)
        try:
            yield
        finally:
            self.grant(right)

    @contextmanager
    def denied(self, topic: str) -> Iterator[None]:
        """Write on one topic."""
        right = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, AclOperation.WRITE)
        self.grant(right, "DENY")
        try:
            yield
        finally:
            self.take(right, "DENY")


@pytest.fixture(scope="module")
def cluster(embedded: type[Broker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    broker = embedded(
        proxy_port=1,
        properties={
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.proxied.plain.sasl.jaas.config": login,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
    )
    broker.proxy_port = broker.upstream_port  # no proxy: the second listener is its own
    with broker:
        made = Cluster(broker, tmp_path_factory.mktemp("rights"))
        create_topic(made.kafka, "image-text")
        for right in documented():
            made.grant(right)
        yield made


def settings(cluster: Cluster) -> dict[str, Any]:
    return {
        "dataset": "cats",
        "writer": "w0",
        "kafka": {
            "bootstrap_servers": cluster.servers,
            "topic": "image-text",
            "client": {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanisms": "PLAIN",
                "sasl.username": USER,
                "sasl.password": PASSWORD,
            },
        },
        "embedder": THUMBNAIL,
        "output": {"path": str(cluster.folder / "out"), "epoch_records": 40, "seal_after": "1s"},
        "batch": {"size": 16, "linger": "20ms"},
        "http": {"host": "127.0.0.1", "port": 0},
        "device": "cpu",
        "dead_letters": {"max_ratio": 1},
    }


def denied(config: Config) -> str:
    return ", ".join(look_up(config, Admin(config.kafka)).denied)


def test_what_is_documented_is_enough_and_each_part_of_it_is_needed(cluster: Cluster) -> None:
    """With all rights a dataset is made and its dead letters are written; without any one of them
    `check` names it, and a start ends with it."""
    service = Service(cluster.folder, settings(cluster))
    config = parse(service.settings)
    produce(cluster.kafka, "image-text", [(jpeg(i), {}) for i in range(20)] + [(b"none", {})])
    create = [right for right in documented() if right[3] is AclOperation.CREATE]
    assert create
    found = look_up(config, Admin(config.kafka))
    assert (found.denied, len(found.unknown)) == ((), 3)
    for right in create:
        with cluster.without(right):
            assert "Create on the topic cats." in denied(config)
    service.run("--until", "end")
    assert denied(config) == ""
    shown = streamer("check", "--json", "-c", str(service.config())).stdout
    rights = {line["check"]: line for line in json.loads(shown)["checks"]}["rights"]
    assert rights == {"check": "rights", "ok": True, "detail": "all that a replica needs"}

    needed = [right for right in documented() if right not in create]
    assert len(needed) >= 8
    for right in needed:
        operation = right[3].name.title().replace("_", "")
        with cluster.without(right):
            assert f"{operation} on the " in denied(config), right
            assert right[1] in denied(config), right


@pytest.mark.timeout(300)
def test_a_replica_that_lacks_a_right_ends_with_its_name(cluster: Cluster) -> None:
    service = Service(cluster.folder, settings(cluster))
    service.run("--until", "end")
    (cluster.folder / "one.jpg").write_bytes(jpeg(1))
    client = service.settings["kafka"]["client"]
    where = ["--topic", "image-text", "--bootstrap", cluster.servers]
    where += [part for name, value in client.items() for part in ("--client", f"{name}={value}")]
    refused = streamer("produce", str(cluster.folder / "one.jpg"), *where, expect=1).stderr
    assert "Grant Write on the topic image-text" in refused
    assert "Traceback" not in refused
    produce(cluster.kafka, "image-text", [(jpeg(i), {}) for i in range(50, 70)] + [(b"none", {})])

    def ended(*said: str) -> None:
        replica = service.run("--until", "end", expect=1)
        last = json.loads(replica.lines[-1])["message"]
        assert "Traceback" not in replica.log
        for words in said:
            assert words in last

    with cluster.denied("cats.claims"):
        ended("appending to cats.claims: access to", "Grant Write on the topic cats.claims")
    with cluster.denied("cats.commits"):
        ended("committing epoch", "denied", "Grant Write on the topic cats.commits on the brokers")
    with cluster.without(next(r for r in documented() if r[0] is ResourceType.TRANSACTIONAL_ID)):
        ended("Grant Write on the transactional id streamer.cats.w0")
    service.run("--until", "end")
