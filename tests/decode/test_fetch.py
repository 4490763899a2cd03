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
from streamer.decode.fetch import Fetcher
from streamer.errors import InvalidRecord, TemporaryError
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
def fetcher(monkeypatch) -> Iterator[Callable[..., Fetcher]]:
    """Makes fetchers for localhost whose patience outlasts a busy machine."""
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.02)
    made: list[Fetcher] = []

    def make(failed: Callable[[str], None] = lambda cause: None, **options: object) -> Fetcher:
        made.append(
            Fetcher(
                Fetch.model_validate(
                    {"schemes": ["http"], "hosts": ["localhost"], "timeout": "10s", **options}
                ),
                failed,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def get(fetcher: Fetcher, uri: str, sha256: str | None = None, length: int | None = None) -> bytes:
    return fetcher.fetch(Reference(uri, sha256, length))


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
    with pytest.raises(TemporaryError):
        get(fetcher(timeout="300ms"), site.url("/y"))
    assert site.seen["/y"] == 1, "so long the record is not waited for"


def test_in_the_end_the_process_is_to_stop(site, fetcher):
    site.pages["/x"] = status(500)
    began = time.monotonic()
    with pytest.raises(
        TemporaryError, match=r"cannot fetch http://localhost.*status 500.*1\.8 s.*start again"
    ):
        get(fetcher(timeout="300ms"), site.url("/x"))
    assert time.monotonic() - began < 5
    assert site.seen["/x"] > 3


def test_nobody_listens(fetcher):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TemporaryError, match="ConnectionRefusedError"):
        get(fetcher(timeout="50ms"), f"http://localhost:{port}/")


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
    with pytest.raises(TemporaryError, match="time"):
        get(fetcher(timeout="150ms"), site.url("/x"))
    assert time.monotonic() - began < 6 * 0.15 + 0.15 + 0.5
    assert site.seen["/x"] >= 3


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
    for entry in ("127.0.0.1", "127.0.0.0/8"):
        assert get(fetcher(hosts=[entry]), site.url("/1.jpg", "127.0.0.1")) == BODY
        assert reason(fetcher(hosts=[entry]), site.url("/1.jpg")) == "uri_not_allowed", (
            "the name is not listed"
        )


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
    one = fetcher(hosts=["images.example.com", "127.0.0.1"])
    assert get(one, f"http://images.example.com:{site.port}/1.jpg") == BODY
    assert asked == ["images.example.com"]
    assert site.hosts == {f"images.example.com:{site.port}"}


def test_names(monkeypatch, site, fetcher):
    resolving(monkeypatch, "127.0.0.1")
    one = fetcher(hosts=["*.Example.com", "plain.example.org", "127.0.0.0/8"])
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
    ("error", "expected"), [(socket.EAI_NONAME, InvalidRecord), (socket.EAI_AGAIN, TemporaryError)]
)
def test_a_name_that_does_not_exist_and_a_resolver_that_is_away(
    monkeypatch, fetcher, error, expected
):
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(error, "x")

    monkeypatch.setattr("streamer.decode.address.socket.getaddrinfo", fail)
    with pytest.raises(expected):
        get(fetcher(hosts=["images.example.com"], timeout="20ms"), "http://images.example.com/")


def test_a_dead_address_leaves_time_for_the_next(monkeypatch, site, fetcher):
    monkeypatch.setattr(
        "streamer.decode.address.socket.getaddrinfo",
        lambda host, port, **o: [
            (2, 1, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")
        ],
    )
    assert (
        get(
            fetcher(hosts=["images.example.com", "127.0.0.0/8"]),
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
    one = fetcher(schemes=["https"], hosts=["localhost", "127.0.0.1"], timeout="2s")
    assert get(one, f"https://localhost:{tls_site.port}/1.jpg", SHA) == BODY
    assert get(one, f"https://localhost:{tls_site.port}/1.jpg", SHA) == BODY
    assert len(tls_site.ports) == 1
    assert reason(one, f"https://127.0.0.1:{tls_site.port}/1.jpg") == "fetch_refused", (
        "the certificate is for another name"
    )


def test_an_unknown_certificate_is_refused(tls_site, fetcher):
    assert (
        reason(fetcher(schemes=["https"], timeout="2s"), f"https://localhost:{tls_site.port}/1.jpg")
        == "fetch_refused"
    )
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


def test_s3_is_away(bucket, fetcher, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(TemporaryError, match=f"s3://{bucket}"):
        get(fetcher(schemes=["s3"], hosts=[bucket], timeout="200ms"), f"s3://{bucket}/cats/1.jpg")


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
    one = fetcher(timeout="100s")
    future = one.submit(Reference(site.url("/x"), None, None))
    while not site.seen["/x"]:
        time.sleep(0.01)
    one.close()
    with pytest.raises(TemporaryError):
        future.result(5)
