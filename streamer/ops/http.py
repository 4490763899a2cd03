"""`/metrics`, `/livez` and `/readyz` on one port, from one daemon thread of the standard library's
server."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
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
"""Requests answered at the same time; more are closed unanswered, so that a scanner cannot fill the
process with threads."""
_REQUEST_S = 5.0
"""A client that sends or reads nothing for this long is dropped."""


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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.metrics = metrics
        self.health = health
        self._room = threading.BoundedSemaphore(_AT_ONCE)
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
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._answer, args=(request, client_address), name="http", daemon=True
        ).start()

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
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
    timeout = _REQUEST_S

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
