"""Every kind of input record through one real run: each has its row with the right outcome and
reason, and its place."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from streamer.testing import create_topic, jpeg, produce, read_topic
from tests.decode.images import chunk, segment, turned
from tests.integration.service import Made, read_output, verified

Value = tuple[bytes | None, dict[str, str | bytes | None]]
SERVED = {"/a.jpg": jpeg(900), "/b.png": b"", "/secret.jpg": jpeg(901)}


class _Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = SERVED.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Images)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def png(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    return _encoded(seed, size, "PNG")


def with_chunk(png: bytes, chunk: bytes, before: bool = False) -> bytes:
    """``chunk`` in front of the pixels, or of everything."""
    at = 8 if before else 33
    return png[:at] + chunk + png[at:]


def _encoded(seed: int, size: tuple[int, int], format: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed, size))).save(buffer, format)
    return buffer.getvalue()


def leaning(share: float) -> bytes:
    """A picture whose left half is brighter than its right one."""
    halves = Image.new("RGB", (96, 64), "black")
    halves.paste("white", (0, 0, 48, 64))
    buffer = io.BytesIO()
    Image.blend(Image.open(io.BytesIO(jpeg(50))), halves, share).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def in_json(**fields: Any) -> Value:
    return json.dumps(fields).encode(), {"content-type": "application/json"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.timeout(300)
def test_every_kind_of_record(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path, web: str
) -> None:
    allowed, other = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "f.jpg").write_bytes(jpeg(910))
    (allowed / "g.jpg").write_bytes(jpeg(911))
    (allowed / "link.jpg").symlink_to(other / "f.jpg")
    file = f"file://{allowed}"
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(
        noise, "PNG"
    )

    ok = ("accepted", None)
    cases: dict[str, tuple[Value, tuple[str, str | None]]] = {
        # the image is the value
        "plain": ((jpeg(1), {}), ok),
        "described": ((jpeg(2), {"text": "ein Bär", "id": "bear-1", "url": "https://example/b.jpg", "meta-lang": "de"}), ok),
        "other spelling": ((jpeg(3), {"Content-Type": "image/jpeg", "TEXT": "capitals"}), ok),
        "the sniffed format counts": ((png(4), {"content-type": "image/jpeg"}), ok),
        "webp": ((_encoded(5, (96, 64), "WEBP"), {}), ok),
        "null": ((None, {}), ("invalid", "empty_value")),
        "empty": ((b"", {}), ("invalid", "empty_value")),
        "no image": ((b"hello, I am no image", {}), ("invalid", "not_an_image")),
        "truncated": ((jpeg(6)[:700], {}), ("invalid", "truncated")),
        "too many bytes": ((noise.getvalue(), {}), ("invalid", "too_many_bytes")),
        "too many pixels": ((jpeg(7, (1000, 700)), {}), ("invalid", "too_many_pixels")),
        "bad header": ((jpeg(8), {"text": b"\xff\xfe"}), ("invalid", "bad_header")),
        "another format": ((_encoded(9, (96, 64), "GIF"), {}), ("filtered", "format")),
        # whatever a decoder makes of it
        "a damaged colour profile": ((with_chunk(png(10), chunk(b"iCCP", b"a\0\0?", damaged=True)), {}), ok),
        "a comment of 2 MB": ((with_chunk(png(11), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))), {}), ok),
        "Apple's PNG": ((with_chunk(png(12), chunk(b"CgBI", bytes(4)), before=True), {}), ("invalid", "unsupported_image")),
        "half of it, and an end": ((jpeg(13)[: len(jpeg(13)) // 2] + b"\xff\xd9", {}), ("invalid", "truncated")),
        "turned by a long": ((jpeg(14)[:2] + segment(0xE1, b"Exif\0\0" + turned(6, kind=4)) + jpeg(14)[2:], {}), ok),
        # JSON
        "base64": (in_json(id="j1", image=b64(jpeg(20)), text="from JSON", metadata={"lang": "en", "n": 3}), ok),
        "base64 broken": (in_json(image="%%%"), ("invalid", "bad_base64")),
        "not JSON": ((b"{", {"content-type": "application/json"}), ("invalid", "bad_json")),
        "no image in it": (in_json(text="alone"), ("invalid", "no_image")),
        "charset": ((in_json(image=b64(jpeg(21)))[0], {"content-type": "application/json; charset=utf-8"}), ok),
        # CloudEvents, and what is not read
        "cloud event": ((jpeg(30), {"ce_id": "e-1", "ce_specversion": "1.0", "ce_source": "/cam", "ce_type": "image"}), ok),
        "cloud event with JSON": (
            (in_json(image=b64(jpeg(31)))[0], {"ce_id": "e-2", "ce_specversion": "1.0", "ce_datacontenttype": "application/json"}), ok,
        ),
        "structured cloud event": ((b"{}", {"content-type": "application/cloudevents+json"}), ("invalid", "unsupported_encoding")),
        "text": ((b"hello", {"content-type": "text/plain"}), ("invalid", "unsupported_encoding")),
        "Confluent wire format": ((b"\0\0\0\0\1avro", {}), ("invalid", "unsupported_encoding")),
        # references
        "file": (in_json(uri=f"{file}/f.jpg", sha256=sha(jpeg(910)), length=len(jpeg(910)), id="by-reference"), ok),
        "file in a header": ((b"", {"uri": f"{file}/g.jpg", "text": "header"}), ok),
        "wrong sha256": (in_json(uri=f"{file}/f.jpg", sha256="0" * 64), ("invalid", "sha256_mismatch")),
        "wrong length": (in_json(uri=f"{file}/f.jpg", length=3), ("invalid", "length_mismatch")),
        "no such file": (in_json(uri=f"{file}/none.jpg"), ("invalid", "not_found")),
        "another folder": (in_json(uri=f"file://{other}/f.jpg"), ("invalid", "uri_not_allowed")),
        "out of the folder": (in_json(uri=f"{file}/../elsewhere/f.jpg"), ("invalid", "uri_not_allowed")),
        "a link out of it": (in_json(uri=f"{file}/link.jpg"), ("invalid", "uri_not_allowed")),
        "http": (in_json(uri=f"http://{web}/a.jpg"), ok),
        "http 404": (in_json(uri=f"http://{web}/none.jpg"), ("invalid", "not_found")),
        "http, nothing there": (in_json(uri=f"http://{web}/b.png"), ("invalid", "not_an_image")),
        "a host that is not listed": (in_json(uri="http://169.254.169.254/latest/meta-data"), ("invalid", "uri_not_allowed")),
        "the same server by a name": (in_json(uri=f"http://localhost:{web.split(':')[1]}/secret.jpg"), ("invalid", "uri_not_allowed")),
        "another scheme": (in_json(uri="s3://bucket/key.jpg"), ("invalid", "uri_not_allowed")),
        # header rules
        "too small": ((jpeg(40, (30, 200)), {}), ("filtered", "tiny")),
        "small and long": ((jpeg(41, (30, 200)), {"text": "x" * 300}), ("filtered", "tiny")),
        "text too long": ((jpeg(42), {"text": "x" * 300}), ("filtered", "text_length")),
        "not the text we want": ((jpeg(43), {"text": "<b>markup</b>"}), ("filtered", "markup")),
        # score rules, before anything is anybody's duplicate
        "leaning": ((leaning(0.1), {"text": "a little"}), ok),
        "too far": ((leaning(0.9), {"text": "too far"}), ("filtered", "too_far")),
        "too far again": ((leaning(0.9), {}), ("filtered", "too_far")),
        # near-duplicates
        "again": ((jpeg(2, quality=60), {"id": "bear-2"}), ("duplicate", "near_duplicate")),
        "as a PNG": ((png(2), {}), ("duplicate", "near_duplicate")),
    }  # fmt: skip
    save_file(
        {"weight": _left_minus_right(), "bias": np.zeros(1, np.float32)},
        tmp_path / "left.safetensors",
    )
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [value for value, _ in cases.values()])
    service = make_service(
        dataset_name,
        fetch={"schemes": ["file", "http"], "hosts": [str(allowed), web], "timeout": "2s"},
        decode={"threads": 2, "max_bytes": "200KB", "max_pixels": 400_000},
        heads=[{"type": "linear", "name": "left", "weights": str(tmp_path / "left.safetensors")}],
        filters=[
            {"name": "tiny", "field": "min_side", "at_least": 40},
            {"field": "text_length", "at_most": 200},
            {"name": "markup", "field": "text", "matches": "^[^<]*$"},
            {"field": "metadata.lang", "in": ["de", "en"], "action": "flag"},
            {"name": "leaning", "field": "left_score", "at_most": 0.3, "action": "flag"},
            {"name": "too_far", "field": "left_score", "at_most": 0.6},
        ],
        dead_letters={"max_ratio": 1},
    )
    service.run("--until", "end")
    output = read_output(service.output)
    rows = {name: output.by_origin[0, i] for i, name in enumerate(cases)}
    assert len(output.rows) == len(cases)

    assert {name: (r["outcome"], r["reason"]) for name, r in rows.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }
    left = {name: row["left_score"] for name, row in rows.items()}
    for name, row in rows.items():
        if row["embedding"] is None:
            assert left[name] is None or np.isnan(left[name])
        else:
            exact = np.array(row["embedding"], np.float64) @ _left_minus_right()[0].astype(
                np.float64
            )
            assert left[name] == pytest.approx(exact, abs=2e-3)
            assert ("leaning" in row["flags"]) == (left[name] > 0.3)
            assert ("too_far" in row["flags"]) == (left[name] > 0.6)
    assert [name for name in rows if "leaning" in rows[name]["flags"]] == [
        "leaning",
        "too far",
        "too far again",
    ]

    described = rows["described"]
    assert (described["id"], described["text"], described["url"]) == (
        "bear-1",
        "ein Bär",
        "https://example/b.jpg",
    )
    assert json.loads(described["metadata"]) == {"lang": "de"}
    assert (described["format"], described["width"], described["height"], described["bytes"]) == (
        "jpg",
        96,
        64,
        len(jpeg(2)),
    )
    assert described["sha256"] == sha(jpeg(2))
    assert rows["other spelling"]["text"] == "capitals"
    assert (
        rows["the sniffed format counts"]["format"],
        rows["webp"]["format"],
        rows["another format"]["format"],
    ) == ("png", "webp", "gif")
    assert (
        rows["base64"]["id"],
        rows["base64"]["text"],
        json.loads(rows["base64"]["metadata"]),
    ) == (
        "j1",
        "from JSON",
        {"lang": "en", "n": 3},
    )
    assert rows["cloud event"]["id"] == "e-1"
    assert json.loads(rows["cloud event"]["metadata"]) == {"ce_source": "/cam", "ce_type": "image"}
    assert (rows["file"]["id"], rows["file"]["sha256"]) == ("by-reference", sha(jpeg(910)))
    assert (rows["file in a header"]["text"], rows["file in a header"]["sha256"]) == (
        "header",
        sha(jpeg(911)),
    )
    assert rows["http"]["sha256"] == sha(SERVED["/a.jpg"])
    assert (rows["turned by a long"]["width"], rows["turned by a long"]["height"]) == (64, 96)
    assert rows["again"]["duplicate_of"] == described["key"]
    for name, flagged in (("described", False), ("base64", False), ("plain", True)):
        assert ("metadata.lang" in rows[name]["flags"]) == flagged
    assert rows["small and long"]["flags"] == [
        "tiny",
        "text_length",
        "metadata.lang",
    ]  # all that is known, the first is the reason
    assert rows["too small"]["embedding"] is None

    for name, data in {
        "described": jpeg(2),
        "base64": jpeg(20),
        "file": jpeg(910),
        "http": SERVED["/a.jpg"],
        "the sniffed format counts": png(4),
    }.items():
        row = rows[name]
        members = output.members[row["key"]]
        assert members[row["format"]] == data
        assert members["txt"].decode() == (row["text"] or "")
        assert row["shard"] == output.shard_of[row["key"]]
        assert row["shard"].startswith(f"shards/{row['format']}/")

    dead = {
        int(dict(d.headers)["streamer-offset"] or b""): d
        for d in read_topic(kafka, f"{dataset_name}.dead")
    }
    names = list(cases)
    assert {
        names[o]: (dict(d.headers)["streamer-reason"] or b"").decode() for o, d in dead.items()
    } == {name: reason for name, (_, (outcome, reason)) in cases.items() if outcome == "invalid"}
    for offset, letter in dead.items():
        value, headers = cases[names[offset]][0]
        assert letter.value == value
        assert (
            dict(letter.headers).items()
            >= {k: v.encode() if isinstance(v, str) else v for k, v in headers.items()}.items()
        )
        assert dict(letter.headers)["streamer-topic"] == topic_name.encode()
    report = verified(service.output)
    assert report["records"] == len(cases)


def _left_minus_right() -> np.ndarray:
    """Weights of a head: how much brighter the left half of the thumbnail is."""
    weight = np.ones((16, 16), np.float32) / 16
    weight[:, 8:] *= -1
    return weight.reshape(1, -1)
