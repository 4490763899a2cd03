"""A real Apache Kafka cluster as child processes: what a node that is away does to its clients."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from types import TracebackType

from streamer.errors import DependencyError
from streamer.testing.broker import Broker, Quorum, free_port, new_cluster_id

IN_SYNC_S = 60.0


class Cluster:
    """``nodes`` Kafka nodes on 127.0.0.1, each a broker and a controller, started by ``with`` or
    `start`; they die with this process, however that dies.

    Topics, internal ones too, are replicated to every node; with three nodes or more,
    ``min.insync.replicas`` is 2: one node may be away, and nothing is lost or stands still for
    long. Ports are kept over restarts. A node takes about 400 MB of memory.

    ``data`` is a folder to keep; without it a temporary one lives as long as this object is open.
    ``properties`` are further lines of every server.properties. `nodes` are for their ``pid`` (for
    SIGSTOP) and ``log_path``. All methods block; those of one node belong to one thread at a time.
    """

    def __init__(
        self, nodes: int = 3, data: Path | None = None, properties: Mapping[str, str] = {}
    ) -> None:
        self._temporary = None
        if data is None:
            data = self._temporary = Path(tempfile.mkdtemp(prefix="streamer-cluster-"))
        ports: list[int] = []
        while len(ports) < 2 * nodes:
            ports.append(free_port(ports))
        controllers = {number + 1: ports[nodes + number] for number in range(nodes)}
        cluster_id = new_cluster_id()
        self.nodes = [
            Broker(
                ports[number],
                data / f"node-{number}",
                {**_replication(nodes), **properties},
                quorum=Quorum(cluster_id, number + 1, controllers),
            )
            for number in range(nodes)
        ]

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def __enter__(self) -> Cluster:
        try:
            self.start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_all(self) -> None:
        """Returns when every node answers: none does before there is a majority. Raises
        DependencyError like `Broker.start`."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(Broker.start, self.nodes))

    def start(self, number: int) -> None:
        """Returns when this node is a member again; its replicas may still be behind, see
        `wait_until_in_sync`. Raises DependencyError."""
        self.nodes[number].start()

    def stop(self, number: int) -> None:
        """SIGTERM: it hands its leaderships over. SIGKILL after 20 s."""
        self.nodes[number].stop()

    def kill(self, number: int) -> None:
        """SIGKILL: what a crashed machine looks like to the others."""
        self.nodes[number].kill()

    def wait_until_in_sync(self, timeout: float = IN_SYNC_S) -> None:
        """Until every replica of every partition is in sync: only then may the next node go away
        without taking partitions below ``min.insync.replicas``. Raises DependencyError after
        ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while behind := self._behind():
            if time.monotonic() >= deadline:
                raise DependencyError(f"not in sync within {timeout:.0f} s: {', '.join(behind)}")
            time.sleep(0.1)

    def close(self) -> None:
        """Ends every node, and a temporary data folder goes. By SIGKILL: without a majority no node
        could end in order, and what is written is written."""
        for node in self.nodes:
            node.kill()
        if self._temporary is not None:
            rmtree(self._temporary, ignore_errors=True)

    def _behind(self) -> list[str]:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            topics = admin.list_topics(timeout=5.0).topics
        except KafkaException as error:
            return [error.args[0].str()]
        return [
            f"{name} [{number}]"
            for name, topic in topics.items()
            for number, partition in topic.partitions.items()
            if len(partition.isrs) < len(partition.replicas)
        ]


def _replication(nodes: int) -> dict[str, str]:
    least = "2" if nodes >= 3 else "1"
    return {
        "default.replication.factor": str(nodes),
        "min.insync.replicas": least,
        "offsets.topic.replication.factor": str(nodes),
        "transaction.state.log.replication.factor": str(nodes),
        "transaction.state.log.min.isr": least,
        "share.coordinator.state.topic.replication.factor": str(nodes),
        "share.coordinator.state.topic.min.isr": least,
    }
