"""A proxy on loopback before an S3 server, which can be away in every way a real one is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
DENIED = SLOW_DOWN.replace(b"SlowDown", b"AccessDenied")
STALL_S = 3600.0
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


class UnreliableStore:
    """Forwards to ``endpoint`` (``http://host:port``) as long as ``mode`` is "there".

    The others: "refused" (nobody listens), "slow down" (503 to everything), "stalled" (requests are
    taken and never answered), "denied" (403). ``slow_copies_s``: a copy is done at once, and
    answered so much later.
    """

    def __init__(self, endpoint: str) -> None:
        self._upstream = urlsplit(endpoint).netloc
        self._lock = threading.Lock()
        self._back = threading.Event()
        self._mode = "there"
        self.slow_copies_s = 0.0
        self._break: tuple[str, str] = ("", "")
        self.answered: Counter[str] = Counter()
        """Operations that the server carried out, by name."""
        self.failed: Counter[str] = Counter()
        """Operations that the proxy did not let through."""
        self._server = self._listen(0)
        self.port = int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        before, self._mode = self._mode, mode
        if mode == "there":
            self._back.set()
        else:
            self._back.clear()
        if mode == "refused":
            self._close()
        elif before == "refused":
            self._server = self._listen(self.port)

    def break_at(self, operation: str, mode: str) -> None:
        """The next such operation finds the store in ``mode``, as does all that follows."""
        self._break = (operation, mode)

    def wait_for_failures(self, count: int, timeout: float = 60.0) -> None:
        """Until the proxy has let down ``count`` more requests than now, in a mode that it counts
        (all but "refused")."""
        wanted = self.failed.total() + count
        deadline = time.monotonic() + timeout
        while self.failed.total() < wanted:
            assert time.monotonic() < deadline, f"nobody asked: {self.failed}"
            time.sleep(0.02)

    def close(self) -> None:
        self._back.set()
        if self._mode != "refused":
            self._close()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _listen(self, port: int) -> ThreadingHTTPServer:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = b""
                with suppress(OSError):
                    self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                with suppress(OSError):
                    store._handle(self)

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        if self._mode == "refused":  # a connection from before
            request.close_connection = True
            request.connection.close()
            return
        if request.headers.get("Expect", "").lower() == "100-continue":
            request.send_response_only(100)
            request.end_headers()
        body = _body(request)
        name = operation(request)
        if name == self._break[0]:
            self.mode, self._break = self._break[1], ("", "")
        if self._mode == "stalled":
            self._count(self.failed, name)
            self._back.wait(STALL_S)
            request.close_connection = True
        elif self._mode in ("slow down", "denied"):
            self._count(self.failed, name)
            status, text = (503, SLOW_DOWN) if self._mode == "slow down" else (403, DENIED)
            self._answer(request, status, [("Content-Type", "application/xml")], text)
        else:
            status, headers, answer = self._forward(request, body)
            self._count(self.answered, name)
            if name.endswith("Copy"):
                time.sleep(self.slow_copies_s)
            self._answer(request, status, headers, answer)

    def _count(self, counter: Counter[str], name: str) -> None:
        with self._lock:
            counter[name] += 1

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = HTTPConnection(self._upstream, timeout=60)
        kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        kept.pop("Expect", None)
        kept["Content-Length"] = str(len(body))
        upstream.request(request.command, request.path, body, kept)
        response = upstream.getresponse()
        answer = response.read()
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP]
        upstream.close()
        return response.status, headers, answer

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> None:
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or request.command == "HEAD":
                request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        parts = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(parts)
    return request.rfile.read(int(request.headers.get("Content-Length") or 0))


def operation(request: BaseHTTPRequestHandler) -> str:
    """PUT, PUT part, PUT Copy, PUT part Copy, POST uploads …: the method with what tells the
    operations of S3 apart."""
    query = dict(parse_qsl(urlsplit(request.path).query, keep_blank_values=True))
    words = [request.command]
    words += ["part"] if "partNumber" in query else []
    words += [word for word in ("uploads", "delete", "list-type") if word in query]
    words += ["complete"] if request.command == "POST" and "uploadId" in query else []
    words += ["Copy"] if request.headers.get("x-amz-copy-source") else []
    return " ".join(words)


@contextmanager
def unreliable(query: str) -> Iterator[tuple[UnreliableStore, str]]:
    """A proxy before the server that ``query`` leads to (`sink_data.s3_server`), and the query that
    leads to the proxy."""
    given = dict(parse_qsl(query.lstrip("?")))
    store = UnreliableStore(given["endpoint_override"])
    try:
        yield store, f"?endpoint_override={store.endpoint}&region={given['region']}"
    finally:
        store.close()
