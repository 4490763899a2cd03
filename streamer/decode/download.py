"""One GET over http or https to an address that was checked, bounded in bytes and in total time.

Why not a client library: their time limits hold for each read, so that a server that sends one byte
a second is never cut off, and they resolve the name themselves, after whoever checked it. Standard
library only; proxies are not used.
"""

from __future__ import annotations

import functools
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_IDLE_CONNECTIONS = 64
_IDLE_S = 20.0
"""Most servers close an idle connection after 5 s (Node) to 75 s (nginx); one that is found closed
costs nothing but a retry."""
_READ_BYTES = 65_536
_FRAME_BYTES = 1_000_000
"""Headers and the frames of chunks, beside the body: http.client takes a chunk of -1 bytes for
everything that comes."""
_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""What RFC 3986 lets stand in a URL besides letters, digits and -._; the rest (spaces, UTF-8) is
percent-encoded."""
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


class Target(NamedTuple):
    """A URL's parts, checked and encoded."""

    scheme: str
    host: str
    port: int
    path: str


class Response(NamedTuple):
    status: int
    location: str
    """Where a redirect leads, perhaps relative; empty where it does not say."""
    retry_after_s: float
    """0 where the server does not say."""
    body: bytes | None
    """None where it is longer than allowed; empty unless the status is 200."""


def parse_url(url: str) -> Target:
    """Raises ValueError for what is no http(s) URL, and for user names in it, which only ever serve
    to mislead."""
    parts = urlsplit(url)
    default_port = {"http": 80, "https": 443}.get(parts.scheme)
    if default_port is None or not parts.hostname:
        raise ValueError("not a URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name in the URL")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    if not _HOST.fullmatch(host):
        raise ValueError("not a host name")
    path = quote(parts.path or "/", safe=_SAFE) + (
        f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    )
    return Target(parts.scheme, host, default_port if parts.port is None else parts.port, path)


class HttpClient:
    """Keeps connections and uses them again. Any thread."""

    def __init__(self) -> None:
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._lock = threading.Lock()

    def get(
        self, target: Target, resolve: Callable[[], list[str]], max_bytes: int, timeout_s: float
    ) -> Response:
        """``resolve`` gives the addresses to try, and is asked only if a new connection is needed.

        Blocks for at most ``timeout_s`` (and what ``resolve`` takes). Raises OSError (TimeoutError,
        ssl.SSLError), http.client.HTTPException for what is no HTTP, and whatever ``resolve``
        raises.
        """
        deadline = time.monotonic() + timeout_s
        idle = self._take(target)
        if idle is not None:
            try:
                return self._exchange(idle, target, max_bytes, deadline)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                pass  # the server had closed it meanwhile, which is no failure: once more with a new one
        return self._exchange(_Connection(target, resolve()), target, max_bytes, deadline)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].shut()

    def _exchange(
        self, connection: _Connection, target: Target, max_bytes: int, deadline: float
    ) -> Response:
        keep = False
        try:
            connection.deadline = deadline
            connection.left_bytes = 2 * max_bytes + _FRAME_BYTES
            connection.request(
                "GET",
                target.path,
                headers={"Accept": "image/*,*/*;q=0.5", "User-Agent": "streamer"},
            )
            answer = connection.getresponse()
            body = _read(answer, max_bytes) if answer.status == 200 else b""
            keep = answer.isclosed() and not answer.will_close
            # header bytes come as Latin-1; some servers send UTF-8 in them
            location = quote(answer.getheader("Location", "").encode("latin-1"), safe=_SAFE)
            retry_after = answer.getheader("Retry-After", "")
            seconds = (
                min(float(retry_after), 3600.0)
                if retry_after.isascii() and retry_after.isdigit()
                else 0.0
            )
            return Response(answer.status, location, seconds, body)
        except OSError:  # a certificate's is a ValueError, too
            raise
        except ValueError as error:  # of numbers in what came: http.client checks some of them
            raise http.client.HTTPException(f"not HTTP: {error}") from None
        finally:
            if keep:
                self._give_back(connection)
            else:
                connection.shut()

    def _take(self, target: Target) -> _Connection | None:
        oldest = time.monotonic() - _IDLE_S
        with self._lock:
            while self._idle and self._idle[0][0] < oldest:
                self._idle.popleft()[1].shut()
            for i in range(len(self._idle) - 1, -1, -1):
                if self._idle[i][1].leads_to == target[:3]:
                    connection = self._idle[i][1]
                    del self._idle[i]
                    return connection
        return None

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), connection))
            if len(self._idle) > _IDLE_CONNECTIONS:
                self._idle.popleft()[1].shut()


def _read(answer: http.client.HTTPResponse, max_bytes: int) -> bytes | None:
    if answer.length is not None and answer.length > max_bytes:
        return None
    parts, total = [], 0
    while part := answer.read(min(_READ_BYTES, max_bytes + 1 - total)):
        parts.append(part)
        total += len(part)
        if total > max_bytes:
            return None
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(parts)


class _Connection(http.client.HTTPConnection):
    """Goes to one of the given addresses, whatever the name resolves to now; every wait ends at
    ``deadline`` (monotonic seconds), and nothing is read once ``left_bytes`` are used up."""

    deadline: float
    left_bytes: int

    def __init__(self, target: Target, addresses: list[str]) -> None:
        super().__init__(target.host, target.port)
        self.leads_to = target[:3]
        self.default_port = 443 if target.scheme == "https" else 80
        self._addresses = addresses
        self._raw: socket.socket | None = None

    def connect(self) -> None:
        self._raw = self._connected()
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.leads_to[0] == "https":
            self._raw.settimeout(_left(self.deadline))
            self._raw = _tls().wrap_socket(self._raw, server_hostname=self.host)
        self.sock = _DeadlineSocket(self._raw, self)

    def shut(self) -> None:
        """Closes the connection for good. (`close` is http.client's own: it calls it while a last
        body is still to be read.)"""
        self.close()
        if self._raw is not None:
            self._raw.close()

    def _connected(self) -> socket.socket:
        for address in self._addresses[:-1]:
            try:
                return self._dial(
                    address, _left(self.deadline) / 2
                )  # a dead one must leave time for the next
            except OSError:
                continue
        return self._dial(self._addresses[-1], _left(self.deadline))

    def _dial(self, address: str, timeout_s: float) -> socket.socket:
        raw = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            raw.settimeout(timeout_s)
            raw.connect((address, self.port))
        except OSError:
            raw.close()
            raise
        return raw


class _DeadlineSocket:
    """As much of a socket as http.client uses. Each read and write may last until the connection's
    deadline, and no longer."""

    def __init__(self, raw: socket.socket, connection: _Connection) -> None:
        self._raw = raw
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self._connection.deadline))
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineStream(self._raw, self._connection), _READ_BYTES)

    def close(self) -> None:
        """Nothing: see `_Connection.shut`."""


class _DeadlineStream(io.RawIOBase):
    def __init__(self, raw: socket.socket, connection: _Connection) -> None:
        self._raw = raw
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._raw.settimeout(_left(self._connection.deadline))
        count = self._raw.recv_into(buffer)
        self._connection.left_bytes -= count
        if self._connection.left_bytes < 0:
            raise http.client.HTTPException("more bytes than headers and an image can have")
        return count


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time limit passed")
    return left
