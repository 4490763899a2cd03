"""The line with JPEGs that the device decodes, beside the one on which the CPU decodes all: the same
records have the same outcomes and pixels, in the same order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from host import HostJpegDecoder, Liar
from PIL import Image
from test_whole import encoded, picture

from streamer.config import Config, parse
from streamer.decode.decoder import Decoder
from streamer.decode.image import FORMATS
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Run, Span
from streamer.flow.worker import Failure, Worker
from streamer.judge.ahead import DecodeAhead
from streamer.judge.batcher import Batch, Batcher
from streamer.judge.filters import Rules
from streamer.ops.metrics import Metrics
from streamer.records import U8, Decoded, Record, Sample, Settled, Term

pytestmark = pytest.mark.usefixtures("without_cupy")
RUN = Run(1, 0)
SPAN = Span(RUN, {0: Term(0, 1, 1, 0)}, {})


def config() -> Config:
    return parse({
        "dataset": "d", "kafka": {"bootstrap_servers": "x", "topic": "t"}, "embedder": {"model": "m"},
        "output": {"path": "/x", "formats": FORMATS}, "decode": {"threads": 2},
    })  # fmt: skip


def transform(image: Image.Image) -> U8:
    return np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))


class Line:
    """Decoder and batcher, and between batcher and judge the decoder on the device, if any."""

    def __init__(self, device: HostJpegDecoder | None, *others: HostJpegDecoder) -> None:
        settings = config()
        self.failure, self.metrics = Failure(), Metrics()
        rules = Rules(settings.filters, settings.output.formats).header_rules
        self.decoder = Decoder(
            settings, transform, None, (0, 0), rules, lambda p, o: None, lambda p, o: False,
            self.failure, device_takes=None if device is None else device.takes,
            decoded=lambda: self.metrics.images_decoded("cpu"),
        )  # fmt: skip
        self.chunks: Channel[Chunk] = Channel("decode", 1000)
        batcher = Batcher(self.chunks, 16, 0.05, Fence(RUN))
        self.batches: Batcher | DecodeAhead = batcher
        if device is not None:
            self.batches = ahead = DecodeAhead(
                batcher, self.decoder.decode_here, self.failure, self.metrics
            )
            for decoder in (device, *others):
                run = partial(ahead.run, decoder, lambda: None)
                Worker("device decode", run, self.failure).start()

    def send(self, files: Sequence[bytes], chunk: int = 8) -> None:
        headers = [("content-type", b"image/x")]
        records = [Record(0, i, 0, data, headers) for i, data in enumerate(files)]
        for at in range(0, len(records), chunk):
            decoded = self.decoder.submit(records[at : at + chunk])
            assert self.chunks.put(Chunk(SPAN, decoded))

    def rows(self, count: int) -> list[Decoded]:
        rows: list[Decoded] = []
        deadline = time.monotonic() + 120
        while len(rows) < count and time.monotonic() < deadline:
            batch = self.batches.take(0.1)
            rows += [] if batch is None else batch.rows
            self.failure.raise_if_any()
        return rows

    def decoded_by(self, decoder: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "streamer_images_decoded_total", {"decoder": decoder}
        )
        assert value is not None
        return value

    def close(self) -> None:
        self.failure.stop.set()
        self.decoder.close()


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    made: list[Line] = []
    yield made
    for line in made:
        line.close()


def decided(
    lines: list[Line], files: Sequence[bytes], device: HostJpegDecoder | None
) -> list[Decoded]:
    lines.append(Line(device))
    lines[-1].send(files)
    return lines[-1].rows(len(files))


def require_same(cpu: Sequence[Decoded], gpu: Sequence[Decoded]) -> None:
    assert [row.record.offset for row in gpu] == list(range(len(cpu)))
    for one, other in zip(cpu, gpu, strict=True):
        assert type(one) is type(other), (one, other)
        assert one.facts == other.facts
        if isinstance(one, Settled) and isinstance(other, Settled):
            assert one.decision == other.decision
        elif isinstance(one, Sample) and isinstance(other, Sample):
            assert np.array_equal(np.asarray(one.pixels), np.asarray(other.pixels))


def test_outcomes_are_the_same_on_both_paths(
    lines: list[Line], data_set: Path, large: bool
) -> None:
    hostile = [p.read_bytes() for p in sorted((data_set / "hostile").rglob("*")) if p.is_file()]
    photographs = [p.read_bytes() for p in sorted((data_set / "photos").rglob("*.jpg"))][:200]
    files = [f for pair in zip(hostile, photographs * 9, strict=False) for f in pair]
    device = HostJpegDecoder(transform)

    gpu = decided(lines, files, device)

    require_same(decided(lines, files, None), gpu)
    assert len(device.seen) > (150 if large else 10)
    assert device.refused >= (2 if large else 0)
    assert lines[0].decoded_by("gpu") == len(device.seen) - device.refused
    assert lines[0].decoded_by("cpu") > 0


def test_a_decoder_that_writes_nothing_changes_nothing(lines: list[Line]) -> None:
    files = [encoded(picture(seed)) for seed in range(20)]
    liar = Liar(transform)

    require_same(decided(lines, files, None), decided(lines, files, liar))

    assert liar.refused == 20


def test_a_damaged_image_costs_only_itself(lines: list[Line]) -> None:
    files = [encoded(picture(seed)) for seed in range(24)]
    files[7] = files[7][: len(files[7]) // 2] + b"\xff\xd9"
    files[8] = files[8][:-2]

    rows = decided(lines, files, HostJpegDecoder(transform))

    assert [row.record.offset for row in rows if isinstance(row, Settled)] == [7, 8]
    assert {row.decision.reason for row in rows if isinstance(row, Settled)} == {"truncated"}
    require_same(decided(lines, files, None), rows)


def test_only_so_many_batches_wait_for_the_network(lines: list[Line]) -> None:
    lines.append(line := Line(HostJpegDecoder(transform)))
    line.send([encoded(picture(seed)) for seed in range(160)])
    ahead = line.batches
    assert isinstance(ahead, DecodeAhead)
    deadline = time.monotonic() + 30
    while len(ahead.ready) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    assert len(ahead.ready) == 2
    assert len(line.rows(160)) == 160


def test_the_end_of_the_process_ends_the_wait_for_the_cpu(lines: list[Line]) -> None:
    lines.append(line := Line(Liar(transform)))
    ahead = line.batches
    assert isinstance(ahead, DecodeAhead)
    ahead._decode_here = lambda sample: Future()  # it never answers
    line.send([encoded(picture(1))])
    time.sleep(0.5)
    line.failure.stop.set()
    deadline = time.monotonic() + 10
    while any(t.name == "device decode" and t.is_alive() for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_batch_without_jpegs_passes_as_it_is(lines: list[Line]) -> None:
    device = HostJpegDecoder(transform)
    pngs = [encoded(picture(3), progressive=True)]
    rows = decided(lines, pngs, device)
    assert isinstance(rows[0], Sample)
    assert isinstance(rows[0].pixels, np.ndarray)
    assert device.seen == []


def test_a_mark_travels_behind_the_batch_before_it(lines: list[Line]) -> None:
    lines.append(line := Line(HostJpegDecoder(transform)))
    line.send([encoded(picture(seed)) for seed in range(3)])
    done: Future[list[Decoded]] = Future()
    done.set_result([])
    assert line.chunks.put(Chunk(Span(RUN, SPAN.terms, {0: 3}, flush=9), done))
    seen: list[Batch] = []
    deadline = time.monotonic() + 30
    while not (seen and seen[-1].span.flush) and time.monotonic() < deadline:
        batch = line.batches.take(0.1)
        seen += [] if batch is None else [batch]
    assert [row.record.offset for batch in seen for row in batch.rows] == [0, 1, 2]
    assert seen[-1].span.flush == 9
    assert seen[-1].span.marks == {0: 3}


class Slow(HostJpegDecoder):
    """Takes longer for one batch than for the others."""

    def decode(self, jpegs):
        time.sleep(0.3 if len(self.seen) == 0 else 0.0)
        return super().decode(jpegs)


def test_several_decoders_hand_on_in_order(lines: list[Line]) -> None:
    files = [encoded(picture(seed % 40)) for seed in range(200)]
    decoders = [Slow(transform), HostJpegDecoder(transform), HostJpegDecoder(transform)]
    lines.append(line := Line(*decoders))
    line.send(files)
    rows = line.rows(200)
    assert [row.record.offset for row in rows] == list(range(200))
    assert sum(decoder.seen != [] for decoder in decoders) >= 2
