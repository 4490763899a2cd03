"""References that nobody can fetch, and servers that are away, through real processes."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streamer.testing import create_topic, jpeg, produce, read_topic
from tests.integration.service import Made, read_output, verified
from tests.integration.watch import ask, port_of, scrape, total


class Web:
    """``/N.jpg`` is a picture; the other pages are what may go wrong. Nothing but 503 while it is
    ``away``."""

    def __init__(self) -> None:
        self.away = False
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if web.away:
                    return self._say(503)
                if self.path.endswith(".jpg"):
                    return self._say(200, jpeg(int(self.path[1:-4])))
                if self.path == "/redirect":
                    return self._say(302, b"", ("Location", "http://[/x"))
                if self.path == "/limited":
                    return self._say(429, b"", ("Retry-After", "300"))
                if self.path == "/chunk":
                    self.wfile.write(
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n"
                    )
                    self.close_connection = True
                    return None
                return self._say(500)

            def _say(self, code: int, body: bytes = b"", *headers: tuple[str, str]) -> None:
                self.send_response(code)
                for name, value in (*headers, ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def referring(uri: str) -> tuple[bytes, dict[str, str]]:
    return b"", {"uri": uri}


def test_one_reference_costs_its_record_and_no_other(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, web: Web, closed_port: int
) -> None:
    bad = {
        "file://[x/y.jpg": "uri_not_allowed",
        "http://[/1.jpg": "uri_not_allowed",
        f"http://{web.host}/redirect": "uri_not_allowed",
        f"http://127.0.0.1:{closed_port + 1}/": "uri_not_allowed",
        f"http://{web.host}/chunk": "unreachable",
        f"http://{web.host}/broken": "unreachable",
        f"http://{web.host}/limited": "unreachable",
        f"http://127.0.0.1:{closed_port}/1.jpg": "unreachable",
        f"https://{web.host}/1.jpg": "unreachable",
    }
    good = [f"http://{web.host}/{i}.jpg" for i in range(3)]
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [referring(uri) for uri in (*bad, *good)])
    service = make_service(
        dataset_name,
        fetch={
            "schemes": ["http", "https", "file"],
            "hosts": [web.host, f"127.0.0.1:{closed_port}", "/mnt"],
            "give_up_after": "3s",
        },
    )
    service.run("--until", "end")
    rows = read_output(service.output).by_origin
    found = [rows[0, i] for i in range(len(bad) + len(good))]
    assert {row["url"]: row["reason"] for row in found[: len(bad)]} == bad
    assert [row["outcome"] for row in found[len(bad) :]] == ["accepted"] * len(good)
    for row in found:
        assert (row["reason"] == "unreachable") == ("; tried " in (row["detail"] or "")), row
    letters = [dict(letter.headers) for letter in read_topic(kafka, f"{dataset_name}.dead")]
    assert [str(headers["streamer-reason"], "utf-8") for headers in letters] == [*bad.values()]
    verified(service.output)


def test_a_server_that_is_away_is_waited_for_and_everybody_sees_it(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, web: Web
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [referring(f"http://{web.host}/{i}.jpg") for i in range(20)])
    service = make_service(
        dataset_name,
        fetch={"schemes": ["http"], "hosts": [web.host], "give_up_after": "3s"},
        dedup="off",
    )
    web.away = True
    replica = service.start("--until", "end")
    replica.wait_for(f"fetch: {web.host} answers nobody (status 503)")
    port = port_of(replica)
    assert 1 <= total(scrape(port), "streamer_fetch_held_records") <= 20
    status, body = ask(port, "/readyz")
    assert (status, json.loads(body)["phase"]) == (200, f"polling, waiting for {web.host}")
    assert replica.process.poll() is None
    web.away = False
    assert replica.end() == 0, replica.log
    output = read_output(service.output)
    assert len(output.of("accepted")) == len(output.rows) == 20


def test_a_replica_that_waits_for_a_server_gives_partitions_away_and_stops(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, web: Web
) -> None:
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, [referring(f"http://{web.host}/{i}.jpg") for i in range(20)])
    service = make_service(
        dataset_name,
        fetch={"schemes": ["http"], "hosts": [web.host], "give_up_after": "3s"},
        dedup="off",
    )
    web.away = True
    one = service.start("--until", "end")
    one.wait_for(f"fetch: {web.host} answers nobody")
    other = service.start("--until", "end", writer="w1")
    other.wait_for("partitions assigned", timeout=90)
    other.wait_for(f"fetch: {web.host}", timeout=90)
    for replica in (one, other):
        replica.kill(signal.SIGTERM)
        assert replica.end() == 75, replica.log
    web.away = False
    service.run("--until", "end")
    output = read_output(service.output)
    assert len(output.of("accepted")) == len(output.rows) == 20
    verified(service.output)
