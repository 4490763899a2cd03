import hashlib
import io
import json
import threading
import time
from concurrent.futures import CancelledError
from contextlib import nullcontext

import numpy as np
import pytest
from hostile import config
from PIL import Image

from benchmarks import costly
from streamer.config import Config, FieldRule
from streamer.decode import decoder as room
from streamer.decode.decoder import Decoder
from streamer.decode.reader import Later
from streamer.errors import DependencyError
from streamer.flow.worker import Failure
from streamer.judge.filters import Rules
from streamer.records import Claim, Decision, FailedRule, Record, Sample, Settled

CLAIM = Claim(7, True, None, None, np.ones(4, np.float16))


def photo(format: str = "JPEG", size: tuple[int, int] = (64, 48), color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format)
    return stream.getvalue()


def record(value: bytes | None, offset: int = 0, **headers: bytes) -> Record:
    return Record(
        0, offset, 5, value, [(name.replace("_", "-"), text) for name, text in headers.items()]
    )


class Line:
    """A decoder with its surroundings."""

    def __init__(
        self,
        settings: Config | None = None,
        filters: list[FieldRule] = (),
        own_decode=None,
        priors=None,
        transform=None,
        shape=None,  # type: ignore[assignment]
        condemned=(),
    ) -> None:
        self.stop = Failure()
        self.transformed: list[tuple[int, int]] = []
        settings = config(output={"path": "/x"}) if settings is None else settings
        self.decoder = Decoder(
            settings, transform or self._transform, own_decode, (0, 0), Rules(filters, settings.output.formats).header_rules,
            lambda partition, offset: (priors or {}).get((partition, offset)), lambda *origin: origin in condemned, self.stop,
            pixels_shape=shape,
        )  # fmt: skip

    def _transform(self, image: Image.Image) -> np.ndarray:
        self.transformed.append(image.size)
        return np.asarray(image.resize((8, 8)))

    def __call__(self, *records: Record) -> list[Sample | Settled]:
        return self.decoder.submit(list(records)).result(30)


@pytest.fixture
def line():
    lines: list[Line] = []

    def make(*args, **options) -> Line:
        lines.append(Line(*args, **options))
        return lines[-1]

    yield make
    for made in lines:
        made.decoder.close()


def test_a_condemned_record_is_not_looked_at(line):
    made = line(condemned={(0, 1)}, priors={(0, 2): CLAIM})
    first, second, third = made(record(photo()), record(photo(), 1), record(photo(), 2))
    assert isinstance(first, Sample)
    assert isinstance(third, Sample)
    assert isinstance(second, Settled)
    assert second.decision == Decision("invalid", "crashed")
    assert len(made.transformed) == 2


def test_an_image_that_is_decoded_for_long_is_named_and_not_one_that_waits_for_it(line):
    """It holds all the pixels that may be decoded at a time, so the other one waits."""
    held = threading.Event()
    large = photo(size=(9000, 8000))
    made = line(
        config(output={"path": "/x"}, decode={"threads": 2, "max_pixels": 72_000_000}),
        transform=lambda image: held.wait(30) and np.zeros((8, 8, 3), np.uint8),
    )
    results = [made.decoder.submit([record(large, offset)]) for offset in (0, 1)]
    try:
        found = set()
        for _ in range(20):
            found.add(made.decoder.overrun(3))
            time.sleep(0.1)
    finally:
        held.set()
    assert len([result.result(30) for result in results]) == 2
    assert len({overrun.offset for overrun in found if overrun}) == 1


def test_a_record_becomes_a_sample(line):
    data = photo()
    (row,) = line()(record(data, text=b"red", id=b"1", meta_lang=b"en"))
    assert isinstance(row, Sample)
    assert row.pixels.shape == (8, 8, 3)
    assert row.pixels.dtype == np.uint8
    assert row.pixels[0, 0].tolist() == [254, 0, 0]
    facts = row.facts
    assert (facts.id, facts.text, facts.metadata, facts.format, facts.width, facts.height) == (
        "1",
        "red",
        {"lang": "en"},
        "jpg",
        64,
        48,
    )
    assert facts.data is data
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert (row.failures, row.prior) == ([], None)


def test_order_is_kept_inside_and_between_chunks(line):
    def transform(image: Image.Image) -> np.ndarray:
        time.sleep(image.width % 7 / 1000)
        return np.zeros((8, 8, 3), np.uint8)

    ours = line(transform=transform)
    values = [photo("PNG", (1 + i % 20, 5)) if i % 5 else b"junk" for i in range(200)]
    futures = [
        ours.decoder.submit([record(values[i], i) for i in range(start, start + 8)])
        for start in range(0, 200, 8)
    ]
    rows = [row for future in futures for row in future.result(30)]
    assert [row.record.offset for row in rows] == list(range(200))
    assert [isinstance(row, Sample) for row in rows] == [i % 5 > 0 for i in range(200)]


def test_one_bad_record_costs_the_others_nothing(line):
    bad = [None, b"", b"junk", photo()[:-30], b"\x89PNG\r\n\x1a\n", photo("BMP"), b"%PDF-1.7"]
    rows = line()(*(record(value, i) for i, value in enumerate([photo(), *bad, photo()])))
    settled = [
        (row.decision.outcome, row.decision.reason) for row in rows if isinstance(row, Settled)
    ]
    assert settled == [
        ("invalid", "empty_value"), ("invalid", "empty_value"), ("invalid", "not_an_image"), ("invalid", "truncated"), ("invalid", "corrupt"),
        ("filtered", "format"), ("filtered", "format"),
    ]  # fmt: skip
    assert [isinstance(row, Sample) for row in rows] == [True] + [False] * 7 + [True]


def test_the_checksum_is_known_whenever_the_bytes_are(line):
    rows = line()(*(record(value) for value in (b"junk", photo()[:-30], photo("BMP"))))
    assert [row.facts.sha256 for row in rows] == [
        hashlib.sha256(v).hexdigest() for v in (b"junk", photo()[:-30], photo("BMP"))
    ]
    assert (rows[1].facts.format, rows[1].facts.width) == ("jpg", 64)


def test_header_rules_come_before_the_decode(line):
    ours = line(
        filters=[
            FieldRule(field="text_length", at_least=3, action="flag"),
            FieldRule(field="min_side", at_least=50),
            FieldRule(field="width", at_least=65),
        ]
    )
    (row,) = ours(record(photo(), text=b"a"))
    assert isinstance(row, Settled)
    assert row.decision == Decision("filtered", "min_side", ("text_length", "min_side", "width"))
    assert ours.transformed == []
    (row,) = ours(record(photo(size=(80, 60)), text=b"a"))
    assert isinstance(row, Sample)
    assert row.failures == [FailedRule("text_length", False)]


def test_a_prior_claim_wins_over_the_filters(line):
    ours = line(filters=[FieldRule(field="min_side", at_least=50)], priors={(0, 1): CLAIM})
    sample, filtered, invalid, unsupported = ours(
        record(photo(), 1), record(photo(), 2), record(photo()[:-30], 1), record(b"%PDF-1.7", 1)
    )
    assert isinstance(sample, Sample)
    assert (sample.prior, sample.failures) == (CLAIM, [FailedRule("min_side", True)])
    assert isinstance(filtered, Settled)
    assert filtered.decision.outcome == "filtered"
    assert (
        invalid.decision.outcome,
        invalid.decision.reason,
        invalid.decision.flags,
        invalid.prior,
    ) == (
        "invalid",
        "truncated",
        ("min_side",),
        CLAIM,
    )
    assert (unsupported.decision.reason, unsupported.prior) == ("unsupported_image", CLAIM)


def test_json(line):
    import base64

    body = json.dumps({"image": base64.b64encode(photo()).decode(), "text": "a"}).encode()
    (row,) = line()(record(body, content_type=b"application/json"))
    assert isinstance(row, Sample)
    assert row.facts.data == photo()
    small = config(decode={"max_bytes": 100})
    (row,) = line(small)(
        record(b'{"text": "' + b"x" * 1_000_200 + b'"}', content_type=b"application/json")
    )
    assert row.decision.reason == "too_many_bytes"


def test_the_embedders_own_decoder(line):
    def decode(data: bytes) -> np.ndarray:
        return np.full((8, 8, 3), data[-1], np.uint8)

    ours = line(
        config(output={"path": "/x", "formats": ["jpg", "jxl"]}, decode={"max_pixels": 10_000}),
        own_decode=decode,
    )
    good, jxl, pdf, big, cut = ours(
        record(photo() + b"\x07"),
        record(b"\xff\x0a\x09"),
        record(b"%PDF-1.7"),
        record(photo("PNG", (101, 100))),
        record(photo()[:400]),
    )
    assert good.pixels[0, 0, 0] == 7
    assert (good.facts.format, good.facts.width) == ("jpg", 64)
    assert jxl.pixels[0, 0, 0] == 9
    assert (jxl.facts.format, jxl.facts.width) == ("jxl", None)
    assert pdf.decision.reason == "format"
    assert big.decision.reason == "too_many_pixels"
    assert isinstance(cut, Sample), "it knows better than Pillow"
    assert ours.transformed == []


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("no"),
        MemoryError(),
        None,
        np.zeros((8, 8)),
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 4), np.uint8),
    ],
)
def test_an_embedder_that_fails_makes_one_record_invalid(line, answer):
    def fail(_: object) -> np.ndarray:
        if isinstance(answer, Exception):
            raise answer
        return answer

    for ours in (line(own_decode=fail), line(transform=fail)):
        (row,) = ours(record(photo()))
        assert (row.decision.outcome, row.decision.reason) == ("invalid", "decoder_failed")
        assert not ours.stop.stop.is_set()


def test_an_image_of_another_shape_than_the_others_is_invalid(line):
    """It could not be stacked with its batch-mates."""
    ours = line(
        transform=lambda image: np.zeros((image.height // 8, 8, 3), np.uint8), shape=(8, 8, 3)
    )
    good, bad = ours(record(photo("PNG", (64, 64))), record(photo("PNG", (64, 32))))
    assert isinstance(good, Sample)
    assert (bad.decision.reason, bad.decision.detail) == (
        "decoder_failed",
        "ValueError: gave (4, 8, 3), where every other image has (8, 8, 3)",
    )


def test_big_images_wait_for_one_another(line, monkeypatch):
    monkeypatch.setattr(room, "PIXELS_IN_FLIGHT", 10_000)
    now, most, lock = [0], [0], threading.Lock()

    def transform(image: Image.Image) -> np.ndarray:
        with lock:
            now[0] += image.width * image.height
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= image.width * image.height
        return np.zeros((8, 8, 3), np.uint8)

    ours = line(config(decode={"threads": 6, "max_pixels": 10_000}), transform=transform)
    futures = [ours.decoder.submit([record(photo("PNG", (60, 60)))]) for _ in range(18)]
    assert all(isinstance(row, Sample) for future in futures for row in future.result(30))
    assert most[0] == 2 * 3600


@pytest.mark.parametrize(
    "data",
    [
        costly.tiff((16, 16), 8, costly.zeros(100 * 100), tile=(100, 100)),
        costly.avif((16, 16), (100, 100)),
    ],
    ids=["tile", "frame"],
)
def test_what_is_decoded_beside_the_image_waits_for_room(line, data, monkeypatch):
    """The pixels that all threads may have in memory are those of tiles and frames, too."""
    held = []
    monkeypatch.setattr(
        room._PixelBudget, "hold", lambda _, pixels: nullcontext(held.append(pixels))
    )
    (row,) = line(config())(record(data))
    assert isinstance(row, Sample)
    assert held == [100 * 100]


def test_references(line, tmp_path):
    settings = config(fetch={"schemes": ["file"], "hosts": [str(tmp_path)]}, decode={"threads": 1})
    ours = line(settings)
    (tmp_path / "1.jpg").write_bytes(photo())
    here = f"file://{tmp_path}".encode()
    sha = hashlib.sha256(photo()).hexdigest().encode()
    rows = ours(
        record(photo("PNG")), record(None, uri=here + b"/1.jpg", text=b"a", sha256=sha), record(b"junk"), record(None, uri=here + b"/2.jpg"),
        record(None, uri=b"http://x/1.jpg"), record(None, uri=here + b"/1.jpg", sha256=b"0" * 64), record(photo()),
    )  # fmt: skip
    assert [row.decision.reason if isinstance(row, Settled) else row.facts.text for row in rows] == [
        "", "a", "not_an_image", "not_found", "uri_not_allowed", "sha256_mismatch", "",
    ]  # fmt: skip
    assert rows[1].facts.data == photo()


def test_fetches_hold_no_decode_thread(line, monkeypatch):
    ours = line(
        config(decode={"threads": 1}, fetch={"schemes": ["file"], "hosts": ["/"], "concurrency": 1})
    )
    arrive = threading.Event()
    monkeypatch.setitem(
        ours.decoder._fetcher._reader._get, "file", lambda uri: arrive.wait(10) and photo()
    )
    slow = ours.decoder.submit([record(None, uri=b"file:///1.jpg"), record(photo())])
    (row,) = ours(record(photo()))
    assert isinstance(row, Sample)
    assert not slow.done()
    arrive.set()
    assert [isinstance(row, Sample) for row in slow.result(10)] == [True, True]


def test_what_no_record_is_at_fault_for_stops_the_process(line, monkeypatch):
    ours = line(config(fetch={"schemes": ["file"], "hosts": ["/"]}))

    def broken(uri: str) -> bytes:
        raise DependencyError("away")

    monkeypatch.setitem(ours.decoder._fetcher._reader._get, "file", broken)
    future = ours.decoder.submit([record(photo()), record(None, uri=b"file:///1.jpg")])
    with pytest.raises(DependencyError):
        future.result(10)
    assert ours.stop.stop.wait(5)
    with pytest.raises(DependencyError):
        ours.stop.raise_if_any()


def test_what_is_forgotten_is_not_fetched_any_more(line, monkeypatch):
    """Records of an older run would wait for their server for ever, and more of them at each
    rebalance."""
    ours = line(config(fetch={"schemes": ["file"], "hosts": ["/"]}))
    tries: list[str] = []

    def away(uri: str) -> bytes:
        tries.append(uri)
        if uri == "file:///old.jpg":
            ours.decoder.forget()
        if len(tries) < 4:
            raise Later("away")
        return photo()

    monkeypatch.setitem(ours.decoder._fetcher._reader._get, "file", away)
    old = ours.decoder.submit([record(None, uri=b"file:///old.jpg")])
    while not tries:
        time.sleep(0.01)
    (row,) = ours(record(None, uri=b"file:///new.jpg"))
    assert isinstance(row, Sample)
    assert tries == ["file:///old.jpg"] + 3 * ["file:///new.jpg"]
    assert not old.done()


def test_a_bug_stops_the_process(line):
    ours = line()
    ours.decoder._rules = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        ours(record(photo()))
    assert ours.stop.stop.wait(5)
    assert ours.stop.thread.startswith("decode")


def test_close_does_not_wait_for_what_hangs(line, monkeypatch):
    monkeypatch.setattr("streamer.decode.decoder.CLOSE_S", 0.2)
    held, begun = threading.Event(), threading.Event()

    def hang(image: Image.Image) -> np.ndarray:
        begun.set()
        held.wait(60)
        return np.zeros((8, 8, 3), np.uint8)

    ours = line(transform=hang)
    future = ours.decoder.submit([record(photo())])
    assert begun.wait(30)
    closing = threading.Thread(target=ours.decoder.close, daemon=True)
    closing.start()
    closing.join(30)
    was_closed = not closing.is_alive()
    held.set()
    assert was_closed
    with pytest.raises(CancelledError):
        future.result(30)


def test_close_leaves_nobody_waiting(line, monkeypatch):
    ours = line(config(decode={"threads": 1}, fetch={"schemes": ["file"], "hosts": ["/"]}))
    arrive = threading.Event()
    monkeypatch.setitem(
        ours.decoder._fetcher._reader._get, "file", lambda uri: arrive.wait(10) and photo()
    )
    futures = [
        ours.decoder.submit([record(None, uri=b"file:///1.jpg")]),
        *(ours.decoder.submit([record(photo())]) for _ in range(50)),
    ]
    ours.decoder.close()
    arrive.set()
    with pytest.raises(CancelledError):
        futures[0].result(5)
    assert all(future.done() for future in futures)
    assert not ours.stop.stop.is_set()
