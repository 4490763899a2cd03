"""The one port: what it answers, and what it does with bad clients."""

import http.client
import json
import socket
import threading
import time

import pytest

from streamer.config import Http
from streamer.errors import DependencyError
from streamer.flow.worker import Failure
from streamer.ops.health import Health
from streamer.ops.http import OpsServer
from streamer.ops.metrics import Metrics


@pytest.fixture
def served():
    failure = Failure()
    health = Health(failure)
    server = OpsServer(Http(host="127.0.0.1", port=0), Metrics(), health)
    server.start()
    yield server, health, failure
    server.close()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()
    finally:
        connection.close()


def test_metrics_in_both_formats(served):
    server, _, _ = served
    status, kind, body = ask(server, "/metrics?whatever=1")
    assert status == 200
    assert kind.startswith("text/plain")
    assert b"streamer_records_consumed_total 0.0" in body
    status, kind, body = ask(
        server, "/metrics", Accept="application/openmetrics-text; version=1.0.0"
    )
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_probes_follow_the_health(served):
    server, health, failure = served
    health.enter("restoring the claim log")
    assert ask(server, "/livez")[0] == 200
    status, kind, body = ask(server, "/readyz")
    assert (status, kind) == (503, "application/json")
    assert json.loads(body)["reason"] == "not consuming yet or any more: restoring the claim log"
    health.enter("polling", ready=True)
    assert ask(server, "/readyz")[0] == 200
    failure.report(RuntimeError("boom"))
    assert ask(server, "/livez")[0] == 503
    assert ask(server, "/readyz")[0] == 503


def test_head_unknown_paths_and_methods(served):
    server, _, _ = served
    assert ask(server, "/livez", "HEAD") == (200, "application/json", b"")
    status, _, body = ask(server, "/")
    assert (status, body) == (404, b"here are /metrics, /livez and /readyz\n")
    assert ask(server, "/livez/../../etc/passwd")[0] == 404
    assert ask(server, "/metrics", "POST")[0] == 501


def test_a_port_in_use_names_the_setting(served):
    server, health, _ = served
    with pytest.raises(
        DependencyError,
        match=rf"http\.port: {server.port} on 127\.0\.0\.1 is used by another process.*0 for any",
    ):
        OpsServer(Http(host="127.0.0.1", port=server.port), Metrics(), health)


def test_an_address_of_another_machine_names_the_setting():
    with pytest.raises(DependencyError, match=r"http\.host: cannot listen on 192\.0\.2\.1"):
        OpsServer(Http(host="192.0.2.1", port=0), Metrics(), Health(Failure()))


def test_the_port_is_free_after_close():
    for _ in range(3):
        server = OpsServer(Http(host="127.0.0.1", port=0), Metrics(), Health(Failure()))
        server.start()
        port = server.port
        assert ask(server, "/livez")[0] == 200
        server.close()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


def test_silent_clients_neither_block_the_probes_nor_fill_the_process_with_threads(served):
    server, _, _ = served
    silent = []
    try:
        silent += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(12)]
        assert ask(server, "/livez")[0] == 200  # twelve wait, the thirteenth is answered
        silent += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
        time.sleep(0.3)
        assert sum(thread.name == "http" for thread in threading.enumerate()) <= 17
    finally:
        for client in silent:
            client.close()
    deadline = time.monotonic() + 10
    while (
        sum(thread.name == "http" for thread in threading.enumerate()) > 1
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert ask(server, "/livez")[0] == 200


def test_a_silent_client_is_dropped_after_a_while(served):
    server, _, _ = served
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        began = time.monotonic()
        assert client.recv(1) == b""
        assert 3 < time.monotonic() - began < 15


def test_garbage_gets_an_answer_and_the_server_goes_on(served):
    server, _, _ = served
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert client.recv(1000) != b""
    assert ask(server, "/livez")[0] == 200
