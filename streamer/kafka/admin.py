"""Questions to the cluster, and the dataset's own topics. Every call is bounded in time; errors are
ours, with place and fix."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupState,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from streamer.config import Config, Kafka
from streamer.errors import DependencyError, TemporaryError
from streamer.kafka.client import LOGIN, client_config, explain, new_consumer, plain
from streamer.kafka.patience import IMPATIENT, Patience
from streamer.units import counted

T = TypeVar("T")
log = logging.getLogger("streamer")

LOG_SETTINGS = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
"""Of the claim log and the commit log: nothing in them may ever go."""
LOG_MESSAGE_BYTES = 8_000_000
"""Wished for when the logs are created; what the broker gives is read back with
`Admin.message_limit`."""
LEAST_MESSAGE_BYTES = 1_000_000
"""Below that a manifest or a micro-batch of claims may not fit. Kafka's default is 1 048 588."""
DEAD_LETTER_BYTES = 16_384
"""What a dead letter's own headers may add to the record."""

TRY_S = 5.0
"""Of one question: a broker that was lost a moment ago is found out by the next one, which another
broker gets."""
GRACE_S = 60.0
CATCH_UP_S = 10.0
"""Brokers learn of a new topic one after another: one that was asked may not know what another one
has just made."""
_PAUSE_S = 0.05


class Unreachable(DependencyError):
    """No broker answered. ``why``: the client's own words."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class TopicInfo:
    name: str
    id: str
    """The cluster's own id: another one when a topic was deleted and made again."""
    partitions: int


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    offset: int
    metadata: str
    """The uuid of the epoch that committed it; empty if somebody else did."""


@dataclass(frozen=True, slots=True)
class GroupState:
    state: str
    """``empty``, ``stable``, ``preparing_rebalancing``, ``completing_rebalancing``, …; ``dead`` if
    there is no such group."""
    members: int


class Admin:
    """One admin client. Any thread; every method blocks for ``timeout_s`` at most, or as long as
    ``patience`` waits for brokers.

    Raises Unreachable naming the bootstrap servers when none answers, and otherwise what `explain`
    says.
    """

    def __init__(
        self, kafka: Kafka, timeout_s: float = 10.0, patience: Patience = IMPATIENT
    ) -> None:
        """Connects to nothing yet. Raises ConfigError for a property of ``kafka.client`` that is
        refused or wrong."""
        self._patience = patience
        self._kafka = kafka
        self._servers = kafka.bootstrap_servers
        self._timeout_s = timeout_s
        self._limit_s = timeout_s
        if patience.give_up_after_s:  # it gives up first, and says why
            self._limit_s += patience.give_up_after_s + GRACE_S
        self._troubles: list[KafkaError] = []
        own = {
            "log_level": 0,
            "error_cb": self._remember,
        }  # the reasons go into our message instead of onto the terminal
        try:
            self._client = AdminClient(client_config(kafka, {}, own))
        except KafkaException as error:
            raise explain(error, "connecting") from None

    # Topics

    def topic(self, name: str) -> TopicInfo | None:
        """None if there is no such topic."""

        def ask(left: float) -> TopicInfo | None:
            described = self._client.describe_topics(TopicCollection([name]), request_timeout=left)[
                name
            ].result()
            return TopicInfo(name, str(described.topic_id), len(described.partitions))

        return self._ask(
            ask,
            f"looking up the topic {name}",
            {KafkaError.UNKNOWN_TOPIC_OR_PART: None},
            f"Describe on the topic {name} (Read or Write implies it)",
        )

    def leaderless(self, names: Collection[str]) -> str | None:
        """The first of these topics that has a partition without a leader; those that do not exist
        have none."""

        def ask(left: float) -> str | None:
            futures = self._client.describe_topics(
                TopicCollection(list(names)), request_timeout=left
            )
            for name, future in futures.items():
                try:
                    partitions = future.result().partitions
                except KafkaException as error:
                    if error.args[0].code() not in _NO_ANSWER:
                        continue
                    raise
                if any(p.leader is None or p.leader.id < 0 for p in partitions):
                    return str(name)
            return None

        return self._ask(ask, "looking up the leaders of the dataset's topics")

    def topic_id(self, name: str) -> str:
        """Raises DependencyError if there is no such topic."""
        found = self.topic(name)
        if found is None:
            raise DependencyError(f"there is no topic {name} at {self._servers}")
        return found.id

    def topic_ids(self, names: Collection[str]) -> Mapping[str, str]:
        """Of those that exist, in one request."""

        def ask(left: float) -> Mapping[str, str]:
            futures = self._client.describe_topics(
                TopicCollection(list(names)), request_timeout=left
            )
            found = {}
            for name, future in futures.items():
                try:
                    found[name] = str(future.result().topic_id)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
            return found

        return self._ask(ask, f"looking up the topics {', '.join(names)}")

    def create(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> bool:
        """Creates a topic with the broker's default replication, and waits for its leaders. False
        if it was there already."""
        made = self._create(name, partitions, settings or {}, {})
        self._wait_for_leaders(name)
        return made

    def settings(self, name: str) -> Mapping[str, str]:
        """All settings in force of a topic that exists."""
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            found = self._settings(name, time.monotonic() < deadline)
            if found is not None:
                return found
            time.sleep(_PAUSE_S)

    def _settings(self, name: str, may_be_new: bool) -> Mapping[str, str] | None:
        """None for a topic that may be new and is not known to the broker that was asked."""
        resource = ConfigResource(ResourceType.TOPIC, name)

        def ask(left: float) -> Mapping[str, str] | None:
            entries = self._client.describe_configs([resource], request_timeout=left)[
                resource
            ].result()
            return {entry.name: entry.value for entry in entries.values()}

        return self._ask(
            ask,
            f"reading the settings of the topic {name}",
            {KafkaError.UNKNOWN_TOPIC_OR_PART: None} if may_be_new else {},
            needs=f"DescribeConfigs on the topic {name}",
        )

    def message_limit(self, name: str) -> int:
        """``max.message.bytes`` of a topic: the most a record batch, so a record, may have with its
        framing."""
        return int(self.settings(name)["max.message.bytes"])

    def ensure_dataset_topics(self, config: Config) -> None:
        """Creates the claim log, the commit log and the dead letters topic where they are missing,
        and checks what is there.

        Several replicas may do so at once. Raises DependencyError if the input topic is missing (it
        is never created), or if a topic's partitions or settings are wrong, naming the command that
        mends them.
        """
        if self.topic(config.kafka.topic) is None:
            raise DependencyError(
                f"kafka.topic: there is no topic {config.kafka.topic!r} at {self._servers}. Correct the name, or create it "
                f"(kafka-topics.sh --bootstrap-server {self._servers} --create --topic {config.kafka.topic})."
            )
        for name in (config.claims_topic, config.commits_topic):
            self._ensure(name, {**LOG_SETTINGS, "max.message.bytes": str(LOG_MESSAGE_BYTES)})
            self._check_log(name)
        # A record that the input topic let through must fit, with the headers that say why it is
        # here.
        limit = min(self.message_limit(config.kafka.topic) + DEAD_LETTER_BYTES, 2**31 - 1)
        self._ensure(config.dead_topic, {"max.message.bytes": str(limit)})
        self._check_dead(config.dead_topic)

    def check_dataset_topics(self, config: Config) -> list[str]:
        """Checks those that are there, and changes nothing; returns the names of the others.
        Raises DependencyError like `ensure_dataset_topics`."""
        missing = [name for name in config.own_topics() if self.topic(name) is None]
        for name in {config.claims_topic, config.commits_topic}.difference(missing):
            self._check_log(name)
        if config.dead_topic not in missing:
            self._check_dead(config.dead_topic)
        return missing

    # Offsets

    def begin_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        return self._offsets(
            topic, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED
        )

    def end_offsets(
        self, topic: str, partitions: Collection[int], committed: bool
    ) -> dict[int, int]:
        """One past the last record. ``committed``: the last stable offset, before the first open
        transaction; else the high watermark."""
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(topic, partitions, OffsetSpec.latest(), isolation)

    def offsets_at(
        self, topic: str, partitions: Collection[int], timestamp_ms: int
    ) -> dict[int, int]:
        """The first offset with a timestamp (UTC milliseconds) at or after the given one; the high
        watermark where there is none."""
        # The watermarks first: a record that comes between the two questions must not be passed
        # over.
        ends = self.end_offsets(topic, partitions, committed=False)
        spec = OffsetSpec.for_timestamp(
            max(timestamp_ms, 0)
        )  # negative ones are words to Kafka: -1 the end, -2 the beginning
        found = self._offsets(topic, partitions, spec, IsolationLevel.READ_UNCOMMITTED)
        return {p: offset if offset >= 0 else ends[p] for p, offset in found.items()}

    def _offsets(
        self, topic: str, partitions: Collection[int], spec: OffsetSpec, isolation: IsolationLevel
    ) -> dict[int, int]:
        if not partitions:
            return {}

        def ask(left: float) -> dict[int, int]:
            wanted = {TopicPartition(topic, p): spec for p in partitions}
            futures = self._client.list_offsets(
                wanted, isolation_level=isolation, request_timeout=left
            )
            try:
                found = {tp.partition: future.result().offset for tp, future in futures.items()}
            except KafkaException as error:
                if error.args[0].code() in (
                    KafkaError._NOENT,
                    KafkaError._UNKNOWN_PARTITION,
                ):  # or only no leader for now
                    self._check_partitions(topic, partitions)
                if error.args[0].code() in (
                    KafkaError.FENCED_LEADER_EPOCH,
                    KafkaError.UNKNOWN_LEADER_EPOCH,
                ):
                    self._client.list_topics(
                        topic, timeout=left
                    )  # a broker was restarted: the client asks with the old leader's epoch until it looks
                raise
            if OFFSET_INVALID in found.values():
                # Seen where the leader has just been killed: an answer that has neither an offset
                # nor an error. Taken for an offset, it is a log that ends before it began.
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
            return found

        return self._ask(
            ask,
            f"reading the offsets of the topic {topic}",
            needs=f"Describe on the topic {topic} (Read or Write implies it)",
        )

    # Groups

    def committed(
        self, group: str, topic: str, partitions: Collection[int]
    ) -> dict[int, CommittedOffset]:
        """The group's stable committed offsets; a partition without one is left out.

        Raises TemporaryError while an open transaction hides them: unknown is not none.
        """
        if not partitions:
            return {}
        doing = f"reading the committed offsets of the group {group}"
        fixed = {"group.id": group, "isolation.level": "read_committed", "log_level": 0}

        def ask(left: float) -> list[TopicPartition]:
            wanted = [TopicPartition(topic, p) for p in partitions]
            answer: list[TopicPartition] = consumer.committed(wanted, left)
            for tp in answer:
                if tp.error is not None:
                    raise KafkaException(tp.error)
            return answer

        # A consumer that joins nothing: the admin client's own request ends the process with a
        # segmentation fault where the group's coordinator is another broker by now
        # (rd_kafka_handle_OffsetFetch).
        consumer = new_consumer(client_config(self._kafka, {}, fixed))
        try:
            answer = self._ask(ask, doing, needs=f"Read on the group {group}")
        except DependencyError:
            self.topic(topic)  # raises the same if no broker answers
            raise TemporaryError(
                f"{doing}: not within {self._limit_s:.0f} s: an open transaction hides them, or "
                "the group has no coordinator. Try again."
            ) from None
        finally:
            consumer.close()
        return {
            tp.partition: CommittedOffset(tp.offset, tp.metadata or "")
            for tp in answer
            if tp.offset >= 0
        }

    def group_state(self, group: str) -> GroupState:
        def ask(left: float) -> GroupState:
            described = self._client.describe_consumer_groups([group], request_timeout=left)[
                group
            ].result()
            return GroupState(described.state.name.lower(), len(described.members))

        return self._ask(
            ask,
            f"describing the group {group}",
            {KafkaError.GROUP_ID_NOT_FOUND: GroupState("dead", 0)},
            f"Describe on the group {group}",
        )

    def instances(self, group: str) -> dict[str, str]:
        """The group's static members: ``group.instance.id`` → member id."""

        def ask(left: float) -> dict[str, str]:
            described = self._client.describe_consumer_groups([group], request_timeout=left)[
                group
            ].result()
            return {
                found.group_instance_id: found.member_id
                for found in described.members
                if found.group_instance_id
            }

        return self._ask(
            ask,
            f"describing the group {group}",
            {KafkaError.GROUP_ID_NOT_FOUND: {}},
            f"Describe on the group {group}",
        )

    def assigned(self, group: str, member: str, topic: str) -> set[int] | None:
        """The topic's partitions that the group has assigned to a member. None while the group
        rebalances, and for a member that it does not know."""

        def ask(left: float) -> set[int] | None:
            described = self._client.describe_consumer_groups([group], request_timeout=left)[
                group
            ].result()
            if described.state != ConsumerGroupState.STABLE:
                return None
            for found in described.members:
                if found.member_id == member:
                    partitions = found.assignment.topic_partitions
                    return {tp.partition for tp in partitions if tp.topic == topic}
            return None

        return self._ask(
            ask,
            f"describing the group {group}",
            {KafkaError.GROUP_ID_NOT_FOUND: None},
            f"Describe on the group {group}",
        )

    # Rights

    def rights_on_topics(self, names: Collection[str]) -> dict[str, set[str]]:
        """Topic → the operations (``READ``, ``DESCRIBE_CONFIGS``, …) that we may do on it, none
        where we may not even see it; those that do not exist are left out."""

        def ask(left: float) -> dict[str, set[str]]:
            futures = self._client.describe_topics(
                TopicCollection(list(names)),
                include_authorized_operations=True,
                request_timeout=left,
            )
            found = {}
            for name, future in futures.items():
                try:
                    found[str(name)] = _names(future.result().authorized_operations)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                        found[str(name)] = set()
                    elif error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
            return found

        return self._ask(ask, "looking up our rights on the topics")

    def rights_on_groups(self, names: Collection[str]) -> dict[str, set[str]]:
        """Group → the operations that we may do on it, whether it exists or not."""

        def ask(left: float) -> dict[str, set[str]]:
            futures = self._client.describe_consumer_groups(
                list(names), include_authorized_operations=True, request_timeout=left
            )
            found: dict[str, set[str]] = {}
            for name, future in futures.items():
                try:
                    found[str(name)] = _names(future.result().authorized_operations)
                except KafkaException as error:
                    if error.args[0].code() not in (
                        KafkaError.GROUP_AUTHORIZATION_FAILED,
                        KafkaError.GROUP_ID_NOT_FOUND,
                    ):
                        raise
                    found[str(name)] = set()
            return found

        return self._ask(ask, "looking up our rights on the groups")

    def rights_on_cluster(self) -> set[str]:
        def ask(left: float) -> set[str]:
            described = self._client.describe_cluster(
                include_authorized_operations=True, request_timeout=left
            )
            return _names(described.result().authorized_operations)

        return self._ask(ask, "looking up our rights on the cluster")

    def may_create(self, name: str) -> bool:
        """Whether this topic, which does not exist, may be created. Nothing is."""

        def ask(left: float) -> bool:
            new = NewTopic(name, 1, -1)
            self._client.create_topics([new], validate_only=True, request_timeout=left)[
                name
            ].result()
            return True

        denied = dict.fromkeys(
            (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED), False
        )
        return self._ask(
            ask,
            f"asking whether the topic {name} may be created",
            {**denied, KafkaError.TOPIC_ALREADY_EXISTS: True, KafkaError.POLICY_VIOLATION: True},
        )

    # Inside

    def _remember(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._troubles = [*self._troubles, error][-1:]

    def _ask(
        self,
        ask: Callable[[float], T],
        doing: str,
        answers: Mapping[int, T] = {},
        needs: str = "",
    ) -> T:
        """``ask(seconds left)``, again while no broker answers or one says *later*; ``answers``:
        error codes that are an answer; ``needs``: the right that the question takes."""
        self._troubles = []
        began = time.monotonic()
        deadline, told = began + self._limit_s, False
        while True:
            self._patience.check()
            try:
                # One second at least, so that the broker's last answer has time to come.
                return ask(min(TRY_S, max(1.0, deadline - time.monotonic())))
            except KafkaException as raised:
                error: KafkaError = raised.args[0]
            if error.code() in answers:
                return answers[error.code()]
            is_away = error.code() in _NO_ANSWER
            if not (is_away or error.retriable() or error.code() in _LATER):
                raise explain(error, f"{doing} at {self._servers}", needs) from None
            if is_away and self._is_refused():
                raise self._unreachable(doing, error)
            if time.monotonic() >= deadline - _PAUSE_S:
                if is_away and self._limit_s == self._timeout_s:
                    raise self._unreachable(doing, error)
                raise TemporaryError(
                    f"{doing}: not within {self._limit_s:.0f} s: {plain(error)}. Try again."
                )
            # That no broker answers at all is said in one place, by `Brokers`
            if not (told or is_away) and time.monotonic() - began >= self._timeout_s:
                told = True
                log.warning(
                    "%s: no answer so far (%s); trying on for up to %.0f s",
                    doing,
                    plain(error),
                    self._limit_s,
                )
            time.sleep(_PAUSE_S)

    def _is_refused(self) -> bool:
        """Whether a broker is there and does not let us in: waiting does not mend it."""
        self._client.poll(0)  # serves `_remember`
        return bool(self._troubles) and self._troubles[-1].code() in LOGIN

    def _unreachable(self, doing: str, error: KafkaError) -> Unreachable:
        why = plain(self._troubles[-1] if self._troubles else error)
        return Unreachable(
            f"{doing}: no Kafka broker at {self._servers} answered within {self._limit_s:.0f} s ({why}). "
            "Check kafka.bootstrap_servers, the network and the security properties in kafka.client.",
            why,
        )

    def _check_partitions(self, topic: str, partitions: Collection[int]) -> None:
        info = self.topic(topic)
        if info is None or max(partitions) >= info.partitions:
            there = (
                f"the topic {topic} has {counted(info.partitions, 'partition')}, not {max(partitions) + 1}"
                if info
                else f"there is no topic {topic}"
            )
            raise DependencyError(
                f"reading the offsets of the topic {topic}: {there} at {self._servers}. Was it made again?"
            )

    def _wait_for_leaders(self, name: str) -> None:
        deadline = time.monotonic() + self._limit_s
        while time.monotonic() < deadline:
            found = self._ask(
                lambda left: self._client.list_topics(name, timeout=left),
                f"looking up the topic {name}",
            ).topics[name]
            if (
                found.error is None
                and found.partitions
                and all(p.leader >= 0 for p in found.partitions.values())
            ):
                return
            time.sleep(_PAUSE_S)
        raise TemporaryError(
            f"the topic {name} at {self._servers} has no leader after {self._limit_s:.0f} s. Start again."
        )

    def _create(
        self, name: str, partitions: int, settings: Mapping[str, str], answers: Mapping[int, bool]
    ) -> bool:
        new = NewTopic(name, partitions, -1, config=dict(settings))

        def ask(left: float) -> bool:
            self._client.create_topics([new], request_timeout=left, operation_timeout=left)[
                name
            ].result()
            return True

        return self._ask(
            ask,
            f"creating the topic {name}",
            {KafkaError.TOPIC_ALREADY_EXISTS: False, **answers},
            f"Create on the topic {name}",
        )

    def _ensure(self, name: str, settings: Mapping[str, str]) -> None:
        if self.topic(name) is not None:
            return
        refused = {KafkaError.POLICY_VIOLATION: False, KafkaError.INVALID_CONFIG: False}
        if not self._create(name, 1, settings, refused) and self.topic(name) is None:
            # Managed clusters cap max.message.bytes: then their default must do.
            self._create(
                name,
                1,
                {key: value for key, value in settings.items() if key != "max.message.bytes"},
                {},
            )
        self._wait_for_leaders(name)

    def _check_log(self, name: str) -> None:
        info = self._made(name)
        if info is None or info.partitions != 1:
            raise DependencyError(
                f"{name}: has {counted(info.partitions if info else 0, 'partition')}, but its one order needs exactly 1. "
                "This topic was not made by streamer: choose another dataset name, or delete it if nothing needs it."
            )
        actual = self.settings(name)
        for setting, value in LOG_SETTINGS.items():
            if actual[setting] != value:
                raise self._wrong(name, setting, actual[setting], value)
        if int(actual["max.message.bytes"]) < LEAST_MESSAGE_BYTES:
            raise self._wrong(
                name, "max.message.bytes", actual["max.message.bytes"], str(LOG_MESSAGE_BYTES)
            )

    def _made(self, name: str) -> TopicInfo | None:
        """`topic`, of one that was there a moment ago."""
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            info = self.topic(name)
            if (info is not None and info.partitions) or time.monotonic() >= deadline:
                return info
            time.sleep(_PAUSE_S)

    def _check_dead(self, name: str) -> None:
        if "compact" in (policy := self.settings(name)["cleanup.policy"]):
            raise self._wrong(name, "cleanup.policy", policy, "delete")

    def _wrong(self, name: str, setting: str, actual: str, needed: str) -> DependencyError:
        return DependencyError(
            f"{name}: the topic's {setting} is {actual}, it must be {needed}. Mend it with: kafka-configs.sh --bootstrap-server "
            f"{self._servers} --alter --entity-type topics --entity-name {name} --add-config {setting}={needed}"
        )


def _names(operations: Collection[AclOperation] | None) -> set[str]:
    return {operation.name for operation in operations or ()}


_NO_ANSWER = {
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
}
_LATER = {
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.OFFSET_NOT_AVAILABLE,  # a leader that was only just elected
}
_LATER |= {
    KafkaError._NOENT,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.NOT_CONTROLLER,
    KafkaError.FENCED_LEADER_EPOCH,  # the broker came back a moment ago
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
