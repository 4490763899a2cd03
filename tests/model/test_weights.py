"""Weights over a real (local) HTTP server: what is right is kept, what is wrong is named, nothing
half-way stays."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import timm
import torch

from streamer.errors import ConfigError, DependencyError, StreamerError, TemporaryError
from streamer.model import weights
from streamer.model.timm import TimmImageEmbedder

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Answer(NamedTuple):
    status: int = 200
    body: bytes = BODY
    headers: tuple[tuple[str, str], ...] = ()
    sent: int = -1
    """Bytes sent before the connection is closed; -1: all of them."""
    pause_s: float = 0.0
    """Between one byte and the next, where it is not 0."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        answer = self.server.answers.get(self.path, Answer(404, b"no such file"))
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        if answer.pause_s:
            with contextlib.suppress(OSError):  # the client has had enough
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(answer.pause_s)
        elif self.command == "GET":
            self.wfile.write(answer.body if answer.sent < 0 else answer.body[: answer.sent])
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMER_CACHE", str(tmp_path / "cache"))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_path_is_itself_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    assert weights.resolve(str(tmp_path / "w.pth"), "heads.0.weights") == tmp_path / "w.pth"
    with pytest.raises(ConfigError, match=r"heads\.0\.weights: .*gone\.pth: no such file"):
        weights.resolve(str(tmp_path / "gone.pth"), "heads.0.weights")
    with pytest.raises(ConfigError, match="is a folder"):
        weights.resolve(str(tmp_path), "heads.0.weights")


def test_fetched_once_verified_and_kept(server: Server, cache: Path) -> None:
    server.answers["/m/head+v1.pth"] = Answer()
    reference = f"{server.url}/m/head+v1.pth#sha256={SHA256.upper()}"
    path = weights.resolve(reference, "here")
    assert path == cache / "weights" / SHA256 / "head+v1.pth"
    assert path.read_bytes() == BODY
    assert weights.resolve(reference, "here") == path
    assert server.requests == ["GET /m/head+v1.pth"]
    assert files_in(cache) == ["head+v1.pth"]
    path.write_bytes(BODY[:-1] + b"!")  # what is in the cache is verified too
    assert weights.resolve(reference, "here").read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_redirect_is_followed(server: Server) -> None:
    server.answers["/old.pth"] = Answer(302, b"", (("Location", "/new.pth"),))
    server.answers["/new.pth"] = Answer()
    assert weights.resolve(f"{server.url}/old.pth#sha256={SHA256}", "here").read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            Answer(body=b"other"),
            ConfigError,
            rf"its sha256 is {hashlib.sha256(b'other').hexdigest()}, not {SHA256}.*Nothing was kept",
        ),
        (Answer(404), ConfigError, "the server answers 404; correct the address, or give a path"),
        (Answer(403), ConfigError, "the server answers 403"),
        (
            Answer(503),
            TemporaryError,
            r"the server answers 503\. Where there is no network, fetch the file elsewhere and give its path",
        ),
        (Answer(429), TemporaryError, "the server answers 429"),
        (
            Answer(sent=1000),
            TemporaryError,
            r"cannot be fetched: .*fetch the file elsewhere and give its path",
        ),
        (Answer(302, b"", (("Location", "/head.pth"),)), TemporaryError, "too many redirects"),
    ],
)
def test_what_goes_wrong_is_named_and_leaves_nothing(
    answer: Answer, error: type[StreamerError], message: str, server: Server, cache: Path
) -> None:
    server.answers["/head.pth"] = answer
    with pytest.raises(error, match=rf"heads\.0\.weights: {server.url}/head\.pth: .*{message}"):
        weights.resolve(f"{server.url}/head.pth#sha256={SHA256}", "heads.0.weights")
    assert files_in(cache) == []


def test_nobody_there(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(TemporaryError, match=r"cannot be fetched: .*give its path"):
            weights.resolve(
                f"http://127.0.0.1:{taken.getsockname()[1]}/w.pth#sha256={SHA256}", "here"
            )


def test_a_server_that_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STALL_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(TemporaryError, match=r"[Tt]imed out"):
            weights.resolve(
                f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth#sha256={SHA256}", "here"
            )
        assert time.monotonic() - started < 10


def test_a_download_that_trickles_for_ever_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(weights, "DEADLINE_S", 0.3)
    server.answers["/w.pth"] = Answer(pause_s=0.1)
    started = time.monotonic()
    with pytest.raises(TemporaryError, match="took longer than"):
        weights.resolve(f"{server.url}/w.pth#sha256={SHA256}", "here")
    assert time.monotonic() - started < 5
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("https://example.org/w.pth", "must end with #sha256= and 64 hex digits"),
        ("http://localhost:1/w.pth", "must end with #sha256="),
        ("https://example.org/w.pth#sha256=12ab", "must end with #sha256="),
        ("https://example.org/w.pth#md5=12ab", "must end with #sha256="),
        (
            f"http://example.org/w.pth#sha256={SHA256}",
            "http:// is for this machine only .* use https://",
        ),
        ("ftp://example.org/w.pth", "unknown scheme 'ftp'; use a path, hf:// or https://"),
        ("hf://just-a-file", "write it as hf://ORG/REPO/FILE"),
        ("hf://a/b/w.pth#sha256=zz", "must end with #sha256="),
    ],
)
def test_references_that_cannot_be_verified_or_read_are_refused(
    reference: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        weights.resolve(reference, "here")


def test_a_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    server.answers["/w.pth"] = Answer()
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        DependencyError, match=r"cannot be used: .*set STREAMER_CACHE to a writable folder"
    ):
        weights.resolve(f"{server.url}/w.pth#sha256={SHA256}", "here")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STREAMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "streamer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_dir() == Path.home() / ".cache" / "streamer"


def test_long_downloads_report_on_stderr(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["/w.pth"] = Answer()
    weights.resolve(f"{server.url}/w.pth#sha256={SHA256}", "here")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(weights, "QUIET_S", 0.0)
    server.answers["/w2.pth"] = Answer(body=BODY + b"2")
    weights.resolve(f"{server.url}/w2.pth#sha256={hashlib.sha256(BODY + b'2').hexdigest()}", "here")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"(fetching w2\.pth: [01] of 1 MB \(\d+%\)\n)+", err)


def test_the_environments_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.answers["http://localhost:9/w.pth"] = Answer()
    assert weights.resolve(f"http://localhost:9/w.pth#sha256={SHA256}", "here").read_bytes() == BODY


def test_two_at_once_do_not_meet(server: Server, cache: Path) -> None:
    server.answers["/w.pth"] = Answer()
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                weights.resolve(f"{server.url}/w.pth#sha256={SHA256}", "here")
            )
        )
        for _ in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8
    assert {p.read_bytes() for p in found} == {BODY}
    assert files_in(cache) == ["w.pth"]


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A hub of our own: the hub client's real requests, answered by the local server."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return server


def on_hub(path: str, body: bytes, hub: Server, revision: str = "main") -> None:
    headers = (
        ("ETag", f'"{hashlib.sha256(body).hexdigest()}"'),
        ("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest()),
    )
    repo, name = path.rsplit("/", 1)
    hub.answers[f"/{repo}/resolve/{revision}/{name}"] = Answer(body=body, headers=headers)


def test_from_the_hub_once(hub: Server) -> None:
    on_hub("org/repo/w.pth", BODY, hub)
    on_hub("org/repo/w.pth", BODY + b"!", hub, "v2")
    assert weights.resolve("hf://org/repo/w.pth", "here").read_bytes() == BODY
    asked = len(hub.requests)
    assert weights.resolve(f"hf://org/repo/w.pth#sha256={SHA256}", "here").read_bytes() == BODY
    assert len(hub.requests) == asked, "what is in the hub's cache is taken without a request"
    assert weights.resolve("hf://org/repo/w.pth@v2", "here").read_bytes() == BODY + b"!"
    with pytest.raises(ConfigError, match="the file's sha256 is"):
        weights.resolve(f"hf://org/repo/w.pth@v2#sha256={SHA256}", "here")


def test_missing_on_the_hub(hub: Server) -> None:
    hub.answers["/org/repo/resolve/main/w.pth"] = Answer(
        404, b"", (("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", "0" * 40))
    )
    with pytest.raises(ConfigError, match=r"heads\.0\.weights: hf://org/repo/w\.pth: no such file"):
        weights.resolve("hf://org/repo/w.pth", "heads.0.weights")
    hub.answers["/org/gone/resolve/main/w.pth"] = Answer(
        404, b"", (("X-Error-Code", "RepoNotFound"),)
    )
    with pytest.raises(ConfigError, match=r"the hub refuses it"):
        weights.resolve("hf://org/gone/w.pth", "heads.0.weights")


def test_a_hub_in_trouble(hub: Server) -> None:
    hub.answers["/org/repo/resolve/main/w.pth"] = Answer(502, b"")
    with pytest.raises(
        TemporaryError, match=r"here: hf://org/repo/w\.pth: .*the server answers 502"
    ):
        weights.resolve("hf://org/repo/w.pth", "here")


def test_no_network_is_found_out_at_once_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(
            TemporaryError,
            match=r"embedder\.model: hf://timm/resnet18.* cannot be reached: .*fetch the file elsewhere and give its path",
        ):
            TimmImageEmbedder("resnet18")
        assert time.monotonic() - started < 15


def test_pretrained_weights_come_from_the_hub_and_then_from_its_cache(
    hub: Server, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    net = timm.create_model("test_resnet")
    file = safetensors.torch.save(net.state_dict())
    on_hub("timm/test_resnet.r160_in1k/model.safetensors", file, hub)
    online = TimmImageEmbedder("test_resnet.r160_in1k")
    hub.answers.clear()
    offline = TimmImageEmbedder("test_resnet.r160_in1k")
    (tmp_path / "local.safetensors").write_bytes(file)
    local = TimmImageEmbedder(
        "test_resnet.r160_in1k", checkpoint=str(tmp_path / "local.safetensors")
    )
    assert online.fingerprint == offline.fingerprint == local.fingerprint


def test_a_model_repository_of_ones_own(hub: Server) -> None:
    net = timm.create_model("test_vit", num_classes=7)
    on_hub("me/mine/model.safetensors", safetensors.torch.save(net.state_dict()), hub)
    config = b'{"architecture": "test_vit", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 160, 160], "classifier": "head"}}'
    on_hub("me/mine/config.json", config, hub)
    assert TimmImageEmbedder("hf-hub:me/mine").dim == 64
    assert TimmImageEmbedder("hf-hub:me/mine", features="head").dim == 7


def test_read_state_refuses_what_is_no_state(tmp_path: Path) -> None:
    cases = {
        "noise.safetensors": (b"\xff" * 100, "not a safetensors file"),
        "noise.pth": (
            b"not a zip",
            "refused, because loading it could run code|not a PyTorch weights file",
        ),
        "empty.pth": (b"", "not a PyTorch weights file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"here: .*{name}: ({message})"):
            weights.read_state(tmp_path / name, "here")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no state_dict"):
        weights.read_state(tmp_path / "list.pth", "here")
    torch.save({"a": torch.zeros(2)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    with pytest.raises(ConfigError, match="not a PyTorch weights file"):
        weights.read_state(tmp_path / "cut.pth", "here")


def test_digest_sees_every_bit_and_every_name() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(12.0)[::2].div(2).contiguous()}
    assert weights.digest(base, "x") == weights.digest(same, "x")
    others = [
        weights.digest(base, "y"),
        weights.digest({**base, "a": torch.arange(6.0).view(2, 3)}, "x"),
        weights.digest({**base, "a": torch.arange(6.0).nextafter(torch.tensor(9.0))}, "x"),
        weights.digest({**base, "a": torch.arange(6.0).half()}, "x"),
        weights.digest({"a": base["a"], "c": base["b"]}, "x"),
    ]
    assert len({weights.digest(base, "x"), *others}) == 6
