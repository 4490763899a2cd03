"""Whatever a reference says, and whatever a server answers, is at most that one record's fault."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streamer.config import Fetch
from streamer.decode.fetch import Fetcher
from streamer.errors import InvalidRecord
from streamer.records import Reference

BODY = b"image"
MAX_BYTES = 10_000
FEW = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class RawServer:
    """Sends ``raw``, whatever it is asked, and closes the connection."""

    def __init__(self) -> None:
        self.raw = b""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(100_000)
                    connection.sendall(self.raw)
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    made = RawServer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("allowed")
    (made / "1.jpg").write_bytes(BODY)
    return made


@pytest.fixture(scope="module")
def fetcher(server: RawServer, folder: Path) -> Iterator[Fetcher]:
    """Gives up after the first try."""
    hosts = [f"{host}:{server.port}" for host in ("localhost", "127.0.0.1", "[::1]")]
    config = {
        "schemes": ["http", "https", "file"],
        "hosts": [*hosts, str(folder)],
        "max_bytes": MAX_BYTES,
        "timeout": "2s",
        "give_up_after": "1ms",
    }
    made = Fetcher(Fetch.model_validate(config))
    yield made
    made.close()


def outcome(fetcher: Fetcher, uri: str) -> str:
    """``bytes``, or the reason. Anything else that it raises would end the process."""
    try:
        data = fetcher.submit(Reference(uri, None, None)).result(60)
    except InvalidRecord as error:
        return error.reason
    assert len(data) <= MAX_BYTES
    return "bytes"


ODD = st.text(
    st.one_of(
        st.sampled_from("[]@:/\\?#%&;. \t\r\n\0\x7f\x85\u200b\u2100\uff0f\uff1a\u2488\udcff1a"),
        st.characters(),
    ),
    max_size=12,
)


@st.composite
def uris(draw: st.DrawFn) -> str:
    """PORT and FOLDER stand for those of the server and of the allowed folder."""
    scheme = draw(
        st.sampled_from(["http", "https", "file", "HTTP", "File", "ftp", "", "http ", "ｈttp"])
    )
    slashes = draw(st.sampled_from(["://", ":", ":/", ":///", ":////", ":\\\\", ""]))
    user = draw(st.sampled_from(["", "", "", "u@", "u:p@", "@", "[@"]) | ODD)
    host = draw(
        st.sampled_from(
            ["localhost", "127.0.0.1", "[::1]", "", "[", "]", "[::1", "[x]", "[v1.a]", "::1", "[::1%25lo]", "[fe80::1%]",
             "LOCALHOST.", "localhost..", ".", "xn--", "xn--a\x80", "a" * 300, "a." * 200, "１２７.0.0.1", "lo\ncalhost",
             "localhost%00", "%6cocalhost", "127.1", "0x7f.1", "1e3", "a℀"]
        ) | ODD
    )  # fmt: skip
    port = draw(
        st.sampled_from(
            ["", ":PORT", ":PORT", ":", ":0", ":-1", ":65536", ":８０", ":1e3", ":80:80"]
        )
        | st.sampled_from([":" + "9" * 5000, ":1", ":70000"])
        | ODD
    )
    path = draw(
        st.sampled_from(
            ["", "/", "/1.jpg", "FOLDER/1.jpg", "FOLDER/%00", "FOLDER/\0", "FOLDER/%ff", "FOLDER/../x", "FOLDER/" + "a" * 300,
             "FOLDER" + "/a" * 3000, "FOLDER" + "/.." * 3000, "/%zz", "/" + "%41" * 9000, "/?", "/#", "?x", "/\udcff"]
        ) | ODD
    )  # fmt: skip
    return scheme + slashes + user + host + port + path + draw(st.just("") | ODD)


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + BODY


@FEW
@given(uri=uris() | st.text(max_size=60))
@example("file://[x/y.jpg")
@example("file://a℀/x")
@example("http://[::1%25]:PORT/")
def test_any_uri(server: RawServer, folder: Path, fetcher: Fetcher, uri: str) -> None:
    server.raw = GOOD
    outcome(fetcher, uri.replace("PORT", str(server.port)).replace("FOLDER", str(folder)))


@FEW
@given(to=uris() | st.text(max_size=60) | st.binary(max_size=60))
@example("http://[/x")
@example("http://a℀/x")
@example("//[")
def test_any_redirect(server: RawServer, folder: Path, fetcher: Fetcher, to: str | bytes) -> None:
    if isinstance(to, str):
        to = to.replace("PORT", str(server.port)).replace("FOLDER", str(folder))
        to = to.encode("utf-8", "surrogatepass")
    server.raw = b"HTTP/1.1 302 x\r\nContent-Length: 0\r\nLocation: " + to + b"\r\n\r\n"
    found = outcome(fetcher, f"http://localhost:{server.port}/")
    assert found != "bytes", "it would have been a redirect to a redirect"


NUMBERS = st.sampled_from(
    [b"-1", b"-5", b"0", b"5", b"+5", b"5_0", b"0x5", b"1e3", b"", b"9" * 5000, b"\xb2", b"5;x=y", b"ffffffffffff"]
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9", b"HTTP/1.1\0", b"\xff"]))
    status = draw(
        st.sampled_from([b"200", b"302", b"429", b"100", b"204", b"304"])
        | NUMBERS
        | st.binary(max_size=5)
    )
    lines = draw(
        st.lists(
            st.one_of(
                st.just(b"Transfer-Encoding: chunked"),
                NUMBERS.map(lambda n: b"Content-Length: " + n),
                NUMBERS.map(lambda n: b"Retry-After: " + n),
                st.binary(max_size=20),
            ),
            max_size=5,
        )
    )
    chunks = draw(
        st.lists(st.tuples(NUMBERS, st.binary(max_size=20)).map(b"\r\n".join), max_size=4)
    )
    rest = draw(st.sampled_from([BODY, b"x" * 3 * MAX_BYTES, b""])) + b"\r\n".join(chunks)
    return b"\r\n".join([version + b" " + status + b" x", *lines, b"", rest])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@FEW
@given(raw=answers() | st.binary(max_size=100))
@example(CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n")
def test_any_answer(server: RawServer, fetcher: Fetcher, raw: bytes) -> None:
    server.raw = raw
    found = outcome(fetcher, f"http://localhost:{server.port}/")
    assert found in (
        "bytes",
        "not_found",
        "fetch_refused",
        "unreachable",
        "too_many_bytes",
        "uri_not_allowed",
    )


def test_a_chunk_of_less_than_nothing_is_not_read_for_ever(
    server: RawServer, fetcher: Fetcher
) -> None:
    """http.client takes a chunk of -1 bytes for all that comes."""
    server.raw = CHUNKED + b"-1\r\n" + bytes(50_000_000)
    config = Fetch.model_validate(
        {
            "schemes": ["http"],
            "hosts": [f"localhost:{server.port}"],
            "max_bytes": MAX_BYTES,
            "give_up_after": "1ms",
        }
    )
    one = Fetcher(config)
    with pytest.raises(InvalidRecord, match=r"unreachable: .*more bytes than"):
        one.submit(Reference(f"http://localhost:{server.port}/", None, None)).result(60)
    one.close()


def test_a_uri_may_have_so_many_characters(fetcher: Fetcher, folder: Path) -> None:
    """A path of megabytes would keep a thread busy for hours."""
    assert outcome(fetcher, f"file://{folder}" + "/a" * 8_000_000) == "uri_not_allowed"
    assert outcome(fetcher, f"file://{folder}/./" + "./" * 1000 + "1.jpg") == "bytes"
