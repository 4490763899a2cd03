"""The one port: what it answers, and what it does with bad clients."""

import http.client
import json
import socket
import sys
import threading

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


def slow_clients(port, count):
    """That many connections, each with the beginning of a request, in the order they are listed."""
    clients = []
    for _ in range(count):
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        clients[-1].sendall(b"GET /livez HTTP/1.1\r\nX: ")
    return clients


def threads_of_requests():
    return sum(thread.name == "http" for thread in threading.enumerate()) - 1


def test_slow_clients_neither_keep_the_probes_from_an_answer_nor_fill_the_process_with_threads(
    served,
):
    server, _, _ = served
    slow = slow_clients(server.port, 80)
    try:
        assert ask(server, "/livez")[0] == 200
        assert ask(server, "/metrics")[0] == 200
        assert threads_of_requests() <= 16
        assert slow[0].recv(1) == b"", "the oldest goes first"
    finally:
        for client in slow:
            client.close()
    assert ask(server, "/readyz")[0] == 503


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_a_crowd_from_one_address_costs_no_other_its_connection(served):
    server, _, _ = served
    with socket.create_connection(
        ("127.0.0.1", server.port), timeout=60, source_address=("127.0.0.2", 0)
    ) as kubelet:
        crowd = slow_clients(server.port, 80)
        try:
            assert crowd[0].recv(1) == b""
            kubelet.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert kubelet.recv(100).startswith(b"HTTP/1.0 200")
        finally:
            for client in crowd:
                client.close()


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["silent", "byte by byte"])
def test_a_request_has_a_deadline_however_it_comes(served, drip):
    """Nobody else connects, so it is time alone that ends it."""
    server, _, _ = served
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        for _ in range(300):
            try:
                client.sendall(drip)
                ended = client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
            assert ended
            return
    raise AssertionError("it still has the connection")


def test_garbage_gets_an_answer_and_the_server_goes_on(served):
    server, _, _ = served
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert client.recv(1000) != b""
    assert ask(server, "/livez")[0] == 200
