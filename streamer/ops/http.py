"""`/metrics`, `/livez` and `/readyz` on one port, from one daemon thread of the standard library's
server."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client.exposition import choose_encoder

from streamer.config import Http
from streamer.errors import DependencyError
from streamer.ops.health import Health, Report
from streamer.ops.metrics import Metrics

_log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Connections at the same time, a thread each. A new one takes the place of an old one."""
_REQUEST_S = 5.0
"""From the connection to the end of the answer; also of a client that sends or reads byte by
byte."""


def is_free(config: Http) -> bool:
    """Whether a server can listen at that address now. Raises DependencyError for one that cannot
    be had at all."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise DependencyError(_explain(config, error)) from None
    return True


class OpsServer:
    """Serves until `close`. Binds in the constructor, so that a port in use ends the start:
    DependencyError naming ``http.port``."""

    def __init__(self, config: Http, metrics: Metrics, health: Health) -> None:
        try:
            self._server = _Server(config.host, config.port, metrics, health)
        except OSError as error:
            raise DependencyError(_explain(config, error)) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="http",
            daemon=True,
        )

    @property
    def port(self) -> int:
        """The port in use; with ``http.port: 0`` the one the system chose."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Frees the port; blocks for at most about a second. Call it once, after `start`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    peer: str
    began: float

    def drop(self) -> None:
        """Its thread meets the end of the connection at once, wherever it waits."""
        with suppress(OSError):  # ended by itself
            self.socket.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    """Whoever is slow cannot keep the probes from an answer: a connection that takes longer than
    `_REQUEST_S` is dropped; where there is no room, the oldest one of the peer that has most of
    them. So somebody else's thousand connections never cost the kubelet its one."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.metrics = metrics
        self.health = health
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._open: dict[_Connection, None] = {}
        """In the order they came."""
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for this machine's full name: without one
        # that takes many seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self._make_room()
            self._room.acquire()
        connection = _Connection(request, str(client_address[0]), time.monotonic())
        with self._lock:
            self._open[connection] = None
        threading.Thread(
            target=self._answer, args=(connection, client_address), name="http", daemon=True
        ).start()

    def _make_room(self) -> None:
        with self._lock:
            share = Counter(c.peer for c in self._open)
            oldest = max(self._open, key=lambda c: share[c.peer], default=None)
        if oldest is not None:  # else one is ending just now
            oldest.drop()

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            left = list(self._open)
        for connection in left:
            connection.drop()

    def service_actions(self) -> None:
        """Called by the loop after every request, and five times a second."""
        now = time.monotonic()
        with self._lock:
            late = [c for c in self._open if now - c.began > _REQUEST_S]
        for connection in late:
            connection.drop()

    def _answer(self, connection: _Connection, client_address: Any) -> None:
        try:
            self.process_request_thread(connection.socket, client_address)
        finally:
            with self._lock:
                del self._open[connection]
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, (ConnectionError, TimeoutError)):
            _log.debug("http: %s went away: %s", client_address, error)
        else:
            _log.error("http: a request failed; this is a bug", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "streamer"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._send(200, content_type, encode(self.server.metrics.registry))
        elif path == "/livez":
            self._report(self.server.health.livez())
        elif path == "/readyz":
            self._report(self.server.health.readyz())
        else:
            self._send(404, "text/plain; charset=utf-8", b"here are /metrics, /livez and /readyz\n")

    do_HEAD = do_GET

    def _report(self, report: Report) -> None:
        body = json.dumps(report.as_json()).encode() + b"\n"
        self._send(200 if report.ok else 503, "application/json", body)

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("http: %s %s", self.client_address[0], format % args)


def _explain(config: Http, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"http.port: {config.port} on {config.host} is used by another process (another streamer on this machine?); "
            "set http.port to another port, or to 0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return f"http.port: this user may not listen on port {config.port}; set http.port to one above 1023"
    why = error.strerror or error
    return f"http.host: cannot listen on {config.host} port {config.port}: {why}; set http.host to an address of this machine"
