"""References against real servers on this machine: http.server, TLS with a certificate made here,
and moto's S3."""

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamer.config import Fetch
from streamer.decode import download, fetch
from streamer.decode.address import Hosts
from streamer.decode.fetch import Fetcher
from streamer.decode.server import EVERYBODY, Server, Servers
from streamer.errors import InvalidRecord
from streamer.records import Reference

BODY = bytes(range(256)) * 16
SHA = hashlib.sha256(BODY).hexdigest()


class Site:
    """A web server whose pages are functions ``(handler) -> None``; ``seen`` counts requests and
    ``ports`` the clients' connections."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {"/1.jpg": give(BODY)}
        self.seen: Counter[str] = Counter()
        self.ports: set[int] = set()
        self.hosts: set[str | None] = set()
        self.stop = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.seen[self.path] += 1
                site.ports.add(self.client_address[1])
                site.hosts.add(self.headers["Host"])
                with contextlib.suppress(OSError):
                    site.pages.get(self.path, status(404))(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str, host: str = "localhost") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()


def give(
    body: bytes, *headers: tuple[str, str], code: int = 200, length: int | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return page


def status(code: int, *headers: tuple[str, str]) -> Callable[[BaseHTTPRequestHandler], None]:
    return give(b"sorry", *headers, code=code)


def redirect(to: str, code: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    return give(b"", ("Location", to), code=code)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def fetcher(monkeypatch, site) -> Iterator[Callable[..., Fetcher]]:
    """Makes fetchers for the site whose patience outlasts a busy machine."""
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(fetch, "_LONGEST_PAUSE_S", 0.1)
    made: list[Fetcher] = []

    def make(failed: Callable[[str], None] = lambda cause: None, **options: object) -> Fetcher:
        made.append(
            Fetcher(
                Fetch.model_validate(
                    {
                        "schemes": ["http"],
                        "hosts": [f"localhost:{site.port}"],
                        "timeout": "10s",
                        **options,
                    }
                ),
                failed,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def get(fetcher: Fetcher, uri: str, sha256: str | None = None, length: int | None = None) -> bytes:
    return fetcher.submit(Reference(uri, sha256, length)).result(60)


def reason(fetcher: Fetcher, uri: str, sha256: str | None = None, length: int | None = None) -> str:
    with pytest.raises(InvalidRecord) as caught:
        get(fetcher, uri, sha256, length)
    return caught.value.reason


# http


def test_bytes_come_verified(site, fetcher):
    assert get(fetcher(), site.url("/1.jpg")) == BODY
    assert get(fetcher(), site.url("/1.jpg"), SHA, len(BODY)) == BODY
    assert site.hosts == {f"localhost:{site.port}"}


def test_what_the_record_says_must_hold(site, fetcher):
    assert reason(fetcher(), site.url("/1.jpg"), "0" * 64) == "sha256_mismatch"
    assert reason(fetcher(), site.url("/1.jpg"), SHA, len(BODY) + 1) == "length_mismatch"


def test_connections_are_used_again(site, fetcher):
    one = fetcher()
    for _ in range(5):
        assert get(one, site.url("/1.jpg")) == BODY
    assert len(site.ports) == 1


def test_a_connection_that_was_closed_meanwhile_is_no_failure(site, fetcher):
    def give_and_close(handler: BaseHTTPRequestHandler) -> None:
        give(BODY)(handler)
        handler.close_connection = True

    site.pages["/close"] = give_and_close
    failures: list[str] = []
    one = fetcher(failures.append)
    for _ in range(3):
        assert get(one, site.url("/close")) == BODY
    assert failures == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (404, "not_found"),
        (410, "not_found"),
        (401, "fetch_refused"),
        (403, "fetch_refused"),
        (418, "fetch_refused"),
    ],
)
def test_final_answers(site, fetcher, code, expected):
    site.pages["/x"] = status(code)
    failures: list[str] = []
    assert reason(fetcher(failures.append), site.url("/x")) == expected
    assert site.seen["/x"] == 1
    assert failures == [expected]


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_temporary_answers_are_tried_again(site, fetcher, code):
    def twice(handler: BaseHTTPRequestHandler) -> None:
        (status(code) if site.seen["/x"] <= 2 else give(BODY))(handler)

    site.pages["/x"] = twice
    failures: list[str] = []
    assert get(fetcher(failures.append), site.url("/x")) == BODY
    assert site.seen["/x"] == 3
    assert failures == ["temporary", "temporary"]


def test_lost_and_cut_connections_are_tried_again(site, fetcher):
    def flaky(handler: BaseHTTPRequestHandler) -> None:
        if site.seen["/x"] == 1:
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif site.seen["/x"] == 2:
            give(BODY[:100], length=len(BODY))(handler)
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            give(BODY)(handler)

    site.pages["/x"] = flaky
    assert get(fetcher(), site.url("/x")) == BODY
    assert site.seen["/x"] == 3


def test_retry_after_is_honoured(site, fetcher):
    site.pages["/x"] = lambda handler: (
        status(429, ("Retry-After", "1")) if site.seen["/x"] == 1 else give(BODY)
    )(handler)
    began = time.monotonic()
    assert get(fetcher(), site.url("/x")) == BODY
    assert 1 <= time.monotonic() - began < 5
    site.pages["/y"] = status(503, ("Retry-After", "100"))
    assert reason(fetcher(give_up_after="1s"), site.url("/y")) == "unreachable"
    assert site.seen["/y"] == 2, "as late as may be, and no sooner"


# Whose fault it is


def urls(site: Site, count: int, path: str = "/away") -> list[str]:
    return [site.url(f"{path}/{i}") for i in range(count)]


def away(site: Site, *paths: str) -> None:
    for path in paths:
        site.pages[path] = status(503)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_image_that_its_server_does_not_give(site, fetcher):
    """What the server answered before it gives again, so it is this record's fault."""
    site.pages["/x"] = status(500)
    failures: list[str] = []
    one = fetcher(failures.append, give_up_after="1s")
    assert get(one, site.url("/1.jpg")) == BODY
    with pytest.raises(InvalidRecord, match=r"unreachable: status 500; tried \d+ times in \d+ s"):
        get(one, site.url("/x"))
    tries = site.seen["/x"]
    assert tries > 1
    assert failures == ["temporary"] * tries + ["unreachable"]
    assert site.seen["/1.jpg"] == 2
    assert not one.held()


def test_nobody_listens(site, fetcher):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    one = fetcher(hosts=[f"localhost:{port}"], give_up_after="50ms")
    with pytest.raises(InvalidRecord, match="unreachable: ConnectionRefusedError"):
        get(one, f"http://localhost:{port}/")


def test_others_go_on_meanwhile(site, fetcher):
    """A reference that waits for its next try takes no thread from the others."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    hosts = [f"localhost:{site.port}", f"localhost:{port}"]
    one = fetcher(hosts=hosts, concurrency=1)
    waiting = [
        one.submit(Reference(f"http://localhost:{port}/{i}", None, None))
        for i in range(2 * EVERYBODY)
    ]
    for _ in range(5):
        assert get(one, site.url("/1.jpg")) == BODY
    assert not any(future.done() for future in waiting)


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_answers_nobody_is_waited_for(site, fetcher, known, caplog):
    """One that answered before is known to be down when that cannot be had again; of another one,
    several references say so."""
    one = fetcher(give_up_after="50ms" if known else "3s")
    if known:
        assert get(one, site.url("/1.jpg")) == BODY
    site.pages["/1.jpg"] = status(503)
    count = 1 if known else EVERYBODY
    away(site, *(f"/away/{i}" for i in range(count)))
    futures = [one.submit(Reference(url, None, None)) for url in urls(site, count)]
    name = f"localhost:{site.port}"
    until(lambda: one.held() == {name: count})
    seen = site.seen.total()
    until(lambda: site.seen.total() > seen + 5)
    assert not any(future.done() for future in futures)
    assert f"{name} answers nobody (status 503)" in caplog.text

    for i in range(count):
        site.pages[f"/away/{i}"] = give(BODY)
    assert [future.result(60) for future in futures] == [BODY] * count
    assert not one.held()


def test_who_is_at_fault_is_seen_once_the_server_is_back(site, fetcher):
    one = fetcher(give_up_after="50ms")
    assert get(one, site.url("/1.jpg")) == BODY
    away(site, "/1.jpg", "/x")
    future = one.submit(Reference(site.url("/x"), None, None))
    until(one.held)
    site.pages["/1.jpg"] = give(BODY)
    with pytest.raises(InvalidRecord, match="unreachable"):
        future.result(60)


def test_what_is_asked_again_is_another_image(site, fetcher):
    """The one that fails may have been the last that was given."""
    one = fetcher(give_up_after="50ms")
    assert get(one, site.url("/1.jpg")) == BODY
    site.pages["/1.jpg"] = status(500)
    assert reason(one, site.url("/1.jpg")) == "unreachable"


def test_what_nobody_wants_any_more_is_not_tried_again(site, fetcher):
    away(site, "/x", "/y")
    one = fetcher(give_up_after="2s")
    future = one.submit(Reference(site.url("/x"), None, None), lambda: not site.seen["/x"])
    until(lambda: site.seen["/x"])
    assert reason(one, site.url("/y")) == "unreachable"
    assert site.seen["/y"] > 1
    assert site.seen["/x"] == 1
    assert not future.done()


@pytest.mark.parametrize("slow", ["header", "body", "silence"])
def test_one_byte_at_a_time_does_not_outlast_the_time_limit(site, fetcher, slow):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if slow == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        elif slow == "header":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not site.stop.wait(0.02):
            if slow != "silence":
                handler.wfile.write(b"x")

    site.pages["/x"] = drip
    began = time.monotonic()
    with pytest.raises(InvalidRecord, match=r"unreachable: .*time.*tried \d+ time"):
        get(fetcher(timeout="150ms", give_up_after="400ms"), site.url("/x"))
    assert time.monotonic() - began < 30


def test_too_many_bytes(site, fetcher):
    one = fetcher(max_bytes=len(BODY) - 1)
    assert reason(one, site.url("/1.jpg")) == "too_many_bytes"
    assert reason(one, site.url("/none"), length=len(BODY)) == "too_many_bytes", (
        "said by the record, so that nothing is asked"
    )
    assert site.seen["/none"] == 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while not site.stop.is_set():
            handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")

    site.pages["/endless"] = endless
    assert reason(one, site.url("/endless")) == "too_many_bytes"
    assert get(fetcher(max_bytes=len(BODY)), site.url("/1.jpg")) == BODY


def test_chunked_and_unbounded_bodies(site, fetcher):
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(
            b"800\r\n" + BODY[:2048] + b"\r\n" + b"800\r\n" + BODY[2048:] + b"\r\n0\r\n\r\n"
        )

    def until_closed(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
        handler.close_connection = True

    site.pages |= {"/chunked": chunked, "/until_closed": until_closed}
    one = fetcher()
    for _ in range(2):
        assert get(one, site.url("/chunked")) == BODY
        assert get(one, site.url("/until_closed")) == BODY


def test_odd_characters_in_a_url(site, fetcher):
    site.pages["/a%20b/%C3%A4?q=%C3%B6&x=a+b"] = give(BODY)
    assert get(fetcher(), site.url("/a b/ä?q=ö&x=a+b")) == BODY
    assert get(fetcher(), site.url("/a%20b/%C3%A4?q=%C3%B6&x=a+b")) == BODY


# Redirects and addresses


def test_redirects(site, fetcher):
    site.pages |= {
        "/a": redirect("/b", 301),
        "/b": redirect(site.url("/c"), 307),
        "/c": redirect("1.jpg", 303),
        "/loop": redirect("/loop"),
    }
    assert get(fetcher(), site.url("/a")) == BODY
    assert reason(fetcher(), site.url("/loop")) == "fetch_refused"
    assert site.seen["/loop"] == 4


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:{port}/1.jpg",
        "http://169.254.169.254/latest/meta-data/",
        "http://other.example/1.jpg",
        "file:///etc/passwd",
        "https://localhost:{port}/",
    ],
)
def test_a_redirect_is_checked_like_the_first_url(site, fetcher, to):
    site.pages["/x"] = redirect(to.format(port=site.port))
    assert reason(fetcher(), site.url("/x")) == "uri_not_allowed"
    assert site.seen["/1.jpg"] == 0


def test_nothing_is_allowed_unless_listed(site, fetcher):
    assert reason(fetcher(schemes=[]), site.url("/1.jpg")) == "uri_not_allowed"
    assert reason(fetcher(hosts=[]), site.url("/1.jpg")) == "uri_not_allowed"
    for uri in (
        "ftp://localhost/1",
        "1.jpg",
        "",
        "http:",
        "http:///1.jpg",
        "http://localhost:99999/",
        "http://u:p@localhost/",
        "http://localhost\\@x/",
        "http://lo cal/",
    ):
        assert reason(fetcher(), uri) == "uri_not_allowed", uri
    assert not site.seen


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "127.1",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
    ],
)
def test_an_address_must_be_listed_as_one(site, fetcher, host):
    assert reason(fetcher(), site.url("/1.jpg", host)) == "uri_not_allowed"
    assert not site.seen


def test_listed_addresses_and_networks(site, fetcher):
    for entry in (f"127.0.0.1:{site.port}", f"127.0.0.0/8:{site.port}"):
        assert get(fetcher(hosts=[entry]), site.url("/1.jpg", "127.0.0.1")) == BODY
        assert reason(fetcher(hosts=[entry]), site.url("/1.jpg")) == "uri_not_allowed", (
            "the name is not listed"
        )


PORTS = [
    ("images.example.com", ["images.example.com"], {80, 443}),
    ("images.example.com", ["images.example.com:8080"], {8080}),
    ("images.example.com", ["images.example.com", "images.example.com:8080"], {80, 443, 8080}),
    ("a.example.com", ["*.example.com:8080", "a.example.com:443"], {8080, 443}),
    ("10.1.2.3", ["10.0.0.0/8"], {80, 443}),
    ("10.1.2.3", ["10.0.0.0/8:8080", "10.1.2.3:9000"], {8080, 9000}),
    ("fd00::1", ["[fd00::/8]:8080"], {8080}),
    ("localhost", ["localhost"], {80, 443}),
    ("localhost", ["localhost:1"], {1}),
    # where a name leads into one's own network: that network is for the name's ports
    ("in.example.com", ["in.example.com", "10.0.0.0/8"], {80, 443}),
    ("in.example.com", ["in.example.com:8080", "10.0.0.0/8"], {8080}),
    ("in.example.com", ["in.example.com:8080", "10.0.0.0/8:9000"], set()),
    ("in.example.com", ["in.example.com", "10.1.2.3:80"], {80}),
]


@pytest.mark.parametrize(("host", "entries", "allowed"), PORTS)
def test_a_port_must_be_listed_too(monkeypatch, host, entries, allowed):
    asked = {"localhost": "127.0.0.1", "in.example.com": "10.1.2.3"}.get(host, "93.184.215.14")
    resolving(monkeypatch, asked)
    hosts = Hosts(entries)
    found = set()
    for port in (1, 22, 80, 443, 8080, 9000, 65535):
        with contextlib.suppress(InvalidRecord):
            hosts.resolve(host, port)
            found.add(port)
    assert found == allowed


def test_a_port_that_is_not_listed_is_not_asked(site, fetcher):
    with pytest.raises(InvalidRecord, match=f"port {site.port}, is not listed.*80 and 443"):
        get(fetcher(hosts=["localhost"]), site.url("/1.jpg"))
    site.pages["/x"] = redirect("http://localhost:1/1.jpg")
    assert reason(fetcher(), site.url("/x")) == "uri_not_allowed"
    assert reason(fetcher(hosts=["localhost"]), "http://localhost:0/") == "uri_not_allowed"


def resolving(monkeypatch, *answers: str) -> list[str]:
    """The system's resolver gives these answers, one a call, and then the last one again."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *args: object, **options: object) -> list[object]:
        asked.append(host)
        address = answers[min(len(asked), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
        ]

    monkeypatch.setattr("streamer.decode.address.socket.getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fd00:ec2::254",
     "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "::"],
)  # fmt: skip
def test_a_listed_name_that_leads_into_our_own_network_is_refused(monkeypatch, fetcher, address):
    resolving(monkeypatch, address)
    with pytest.raises(InvalidRecord, match="list that address or its network") as caught:
        get(fetcher(hosts=["images.example.com"]), "http://images.example.com/1.jpg")
    assert caught.value.reason == "uri_not_allowed"


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch, fetcher):
    monkeypatch.setattr(
        "streamer.decode.address.socket.getaddrinfo",
        lambda *a, **o: [(2, 1, 6, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")],
    )
    assert (
        reason(fetcher(hosts=["images.example.com"]), "http://images.example.com/1.jpg")
        == "uri_not_allowed"
    )


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch, site, fetcher):
    """DNS rebinding: the second answer would be another address, and is never asked for."""
    asked = resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    one = fetcher(hosts=[f"images.example.com:{site.port}", "127.0.0.1"])
    assert get(one, f"http://images.example.com:{site.port}/1.jpg") == BODY
    assert asked == ["images.example.com"]
    assert site.hosts == {f"images.example.com:{site.port}"}


def test_names(monkeypatch, site, fetcher):
    resolving(monkeypatch, "127.0.0.1")
    hosts = [f"*.Example.com:{site.port}", f"plain.example.org:{site.port}", "127.0.0.0/8"]
    one = fetcher(hosts=hosts)
    for host in ("a.example.com", "A.B.EXAMPLE.COM", "plain.example.org", "plain.example.org."):
        assert get(one, site.url("/1.jpg", host)) == BODY, host
    for host in (
        "example.com",
        "badexample.com",
        "a.example.com.evil.org",
        "sub.plain.example.org",
        "localhost",
    ):
        assert reason(one, site.url("/1.jpg", host)) == "uri_not_allowed", host


@pytest.mark.parametrize(
    ("error", "expected"),
    [(socket.EAI_NONAME, "not_found"), (socket.EAI_AGAIN, "unreachable")],
)
def test_a_name_that_does_not_exist_and_a_resolver_that_is_away(
    monkeypatch, fetcher, error, expected
):
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(error, "x")

    monkeypatch.setattr("streamer.decode.address.socket.getaddrinfo", fail)
    one = fetcher(hosts=["images.example.com"], give_up_after="20ms")
    assert reason(one, "http://images.example.com/") == expected


def test_a_dead_address_leaves_time_for_the_next(monkeypatch, site, fetcher):
    monkeypatch.setattr(
        "streamer.decode.address.socket.getaddrinfo",
        lambda host, port, **o: [
            (2, 1, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")
        ],
    )
    assert (
        get(
            fetcher(hosts=[f"images.example.com:{site.port}", "127.0.0.0/8"]),
            site.url("/1.jpg", "images.example.com"),
        )
        == BODY
    )


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A self-signed certificate for localhost, with its key."""
    from datetime import datetime, timedelta, timezone

    x509 = pytest.importorskip(
        "cryptography.x509", reason="cryptography comes with moto, extra dev"
    )
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_site(certificate) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Site(context)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _fresh_tls() -> Iterator[None]:
    download._tls.cache_clear()
    yield
    download._tls.cache_clear()


def test_https(monkeypatch, tls_site, certificate, fetcher):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    hosts = [f"{host}:{tls_site.port}" for host in ("localhost", "127.0.0.1")]
    one = fetcher(schemes=["https"], hosts=hosts, timeout="2s")
    assert get(one, f"https://localhost:{tls_site.port}/1.jpg", SHA) == BODY
    assert get(one, f"https://localhost:{tls_site.port}/1.jpg", SHA) == BODY
    assert len(tls_site.ports) == 1
    assert reason(one, f"https://127.0.0.1:{tls_site.port}/1.jpg") == "fetch_refused", (
        "the certificate is for another name"
    )


def test_an_unknown_certificate_is_refused(tls_site, fetcher):
    one = fetcher(schemes=["https"], hosts=[f"localhost:{tls_site.port}"], timeout="2s")
    assert reason(one, f"https://localhost:{tls_site.port}/1.jpg") == "fetch_refused"
    assert not tls_site.seen


# file


@pytest.fixture
def folder(tmp_path) -> Path:
    allowed = tmp_path / "allowed"
    (allowed / "sub").mkdir(parents=True)
    (allowed / "sub" / "a b.jpg").write_bytes(BODY)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "1.jpg").write_bytes(b"secret")
    return allowed


def test_files(folder, fetcher):
    one = fetcher(schemes=["file"], hosts=[str(folder)], max_bytes=len(BODY))
    assert get(one, f"file://{folder}/sub/a%20b.jpg", SHA) == BODY
    assert get(one, f"file://localhost{folder}/sub/a b.jpg", SHA) == BODY
    assert get(one, f"FILE://{folder}/sub/../sub/a b.jpg", SHA) == BODY
    assert (
        reason(one, f"file://{folder}/none.jpg")
        == reason(one, f"file://{folder}/sub")
        == "not_found"
    )
    assert (
        reason(one, f"file://{folder}/sub/a%20b.jpg/x")
        == reason(one, f"file://{folder}/{'x' * 300}/x")
        == "not_found"
    )
    assert (
        reason(
            fetcher(schemes=["file"], hosts=[str(folder)], max_bytes=10),
            f"file://{folder}/sub/a%20b.jpg",
        )
        == "too_many_bytes"
    )


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jpg",
        "%2e%2e/secret.jpg",
        "../allowed-not/1.jpg",
        "link.jpg",
        "links/secret.jpg",
        "\0",
        "%00",
    ],
)
def test_no_way_out_of_the_folder(folder, fetcher, path):
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "links").symlink_to(folder.parent)
    assert (
        reason(fetcher(schemes=["file"], hosts=[str(folder)]), f"file://{folder}/{path}")
        == "uri_not_allowed"
    )


def test_links_inside_the_folder_and_to_it(folder, fetcher):
    (folder / "link.jpg").symlink_to(folder / "sub" / "a b.jpg")
    (folder.parent / "other").symlink_to(folder)
    assert get(fetcher(schemes=["file"], hosts=[str(folder)]), f"file://{folder}/link.jpg") == BODY
    assert (
        get(
            fetcher(schemes=["file"], hosts=[str(folder.parent / "other")]),
            f"file://{folder.parent}/other/link.jpg",
        )
        == BODY
    )


def test_other_files(folder, fetcher):
    one = fetcher(schemes=["file"], hosts=[str(folder)])
    os.mkfifo(folder / "pipe")
    assert reason(one, f"file://{folder}/pipe") == "not_found"
    assert reason(one, f"file://elsewhere{folder}/sub/a%20b.jpg") == "uri_not_allowed"
    assert reason(one, "file:relative.jpg") == "uri_not_allowed"
    assert reason(one, "file:///etc/hostname") == "uri_not_allowed"


# s3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch) -> str:
    from pyarrow import fs

    environment = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = fs.S3FileSystem(endpoint_override=s3, allow_bucket_creation=True)
    store.create_dir("photos")
    with store.open_output_stream("photos/cats/1.jpg") as stream:
        stream.write(BODY)
    return "photos"


def test_s3(bucket, fetcher):
    one = fetcher(schemes=["s3"], hosts=[bucket], timeout="5s", max_bytes=len(BODY))
    assert get(one, f"s3://{bucket}/cats/1.jpg", SHA, len(BODY)) == BODY
    assert reason(one, f"s3://{bucket}/cats/2.jpg") == "not_found"
    assert reason(one, "s3://other/cats/1.jpg") == "uri_not_allowed"
    assert [
        reason(one, f"s3://{bucket}{rest}")
        for rest in ("", "/", "/cats/", "/cats", "//cats//1.jpg")
    ] == ["not_found"] * 5
    assert (
        reason(
            fetcher(schemes=["s3"], hosts=[bucket], timeout="5s", max_bytes=10),
            f"s3://{bucket}/cats/1.jpg",
        )
        == "too_many_bytes"
    )
    assert (
        reason(fetcher(schemes=["s3"], hosts=["nosuch"], timeout="5s"), "s3://nosuch/1.jpg")
        == "not_found"
    )


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3:{bucket}/cats/1.jpg", "uri_not_allowed"),
        ("s3:__{bucket}/cats/1.jpg", "uri_not_allowed"),
        ("s3://[{bucket}/cats/1.jpg", "uri_not_allowed"),
        ("s3://{bucket}/cats/\0", "not_found"),
        ("s3://{bucket}/\udcff", "not_found"),
        ("s3://{bucket}/../cats/1.jpg", "not_found"),
        ("s3://{bucket}/%zz?#[", "not_found"),
        ("s3://{bucket}/℀", "not_found"),
        ("s3://{bucket}/" + 2000 * "a", "not_found"),
    ],
)
def test_odd_keys(bucket, fetcher, uri, expected):
    one = fetcher(schemes=["s3"], hosts=[bucket], timeout="5s", give_up_after="1ms")
    assert reason(one, uri.format(bucket=bucket)) == expected


def test_s3_is_away(bucket, fetcher, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    one = fetcher(schemes=["s3"], hosts=[bucket], timeout="200ms", give_up_after="300ms")
    assert reason(one, f"s3://{bucket}/cats/1.jpg") == "unreachable"


# Concurrency


def test_so_many_at_a_time_and_no_more(site, fetcher):
    now, most, lock = [0], [0], threading.Lock()

    def busy(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        give(BODY)(handler)

    site.pages["/x"] = busy
    one = fetcher(concurrency=3, timeout="2s")
    futures = [one.submit(Reference(site.url("/x"), None, None)) for _ in range(12)]
    assert all(future.result(10) == BODY for future in futures)
    assert most[0] == 3
    assert len(site.ports) <= 3


def test_close_ends_the_waiting(site, fetcher):
    site.pages["/x"] = status(503, ("Retry-After", "60"))
    one = fetcher()
    future = one.submit(Reference(site.url("/x"), None, None))
    while not site.seen["/x"]:
        time.sleep(0.01)
    one.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        one._threads.submit(print)
    assert not future.done()
    assert not one.held()


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic() + seconds
    monkeypatch.setattr("streamer.decode.server.time.monotonic", lambda: now)


def test_time_in_which_a_server_was_down_does_not_count(monkeypatch):
    server = Server("a")
    server.answer("1")
    began = time.monotonic()
    assert server.over_at(began, 10) == began + 10
    server.fail("2")
    assert server.found_silent(asked=True)
    assert not server.answered_since(began - 1)
    later(monkeypatch, 1000)
    server.answer("1")
    assert server.over_at(began, 10) >= began + 1010
    assert server.answered_since(began)


def test_a_server_that_answers_nobody_is_asked_once_at_a_time():
    server = Server("a")
    for i in range(EVERYBODY - 1):
        server.fail(f"{i}")
    assert server.enter()
    assert server.enter()
    server.fail("0")
    assert server.enter(), "the same one again is not another one"
    server.fail("another")
    assert not server.enter()
    for _ in range(3):
        server.leave()
    assert server.enter()
    assert not server.enter()
    server.answer("1")
    assert server.enter()


def test_a_server_is_named_in_the_log_now_and_then(monkeypatch):
    server = Server("a")
    assert [server.is_due(30) for _ in range(3)] == [True, False, False]
    later(monkeypatch, 30)
    assert [server.is_due(30) for _ in range(2)] == [True, False]


def test_servers_are_forgotten_but_not_those_that_are_waited_for():
    servers = Servers()
    waited = servers.get("waited")
    waited.fail("1")
    gone = servers.get("gone")
    for i in range(3000):
        servers.get(f"{i}")
    assert servers.get("waited") is waited
    assert servers.get("gone") is not gone
    assert len(servers._known) <= 1024


def test_a_folder_that_is_gone_is_waited_for(tmp_path, fetcher):
    """It may be mounted again; its files are not dead for that."""
    folder = tmp_path / "mount"
    folder.mkdir()
    one = fetcher(schemes=["file"], hosts=[str(folder)], give_up_after="50ms")
    (folder / "1.jpg").write_bytes(BODY)
    assert get(one, f"file://{folder}/1.jpg") == BODY
    folder.rename(tmp_path / "away")
    future = one.submit(Reference(f"file://{folder}/2.jpg", None, None))
    until(lambda: one.held() == {str(folder): 1})
    (tmp_path / "away").rename(folder)
    with pytest.raises(InvalidRecord, match="not_found"):
        future.result(60)
