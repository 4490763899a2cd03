"""Decoder and batcher, and between batcher and judge the decoder on the device, if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from streamer.config import Config, parse
from streamer.decode.decoder import Decoder
from streamer.decode.image import FORMATS
from streamer.flow.channel import Channel
from streamer.flow.item import Chunk, Fence, Run, Span
from streamer.flow.worker import Failure, Worker
from streamer.judge.ahead import DecodeAhead
from streamer.judge.batcher import Batcher
from streamer.judge.filters import Rules
from streamer.model.jpeg.decoder import JpegDecoder
from streamer.ops.metrics import Metrics
from streamer.records import U8, Decoded, Record, Sample, Settled, Term

RUN = Run(1, 0)
SPAN = Span(RUN, {0: Term(0, 1, 1, 0)}, {})


def config() -> Config:
    return parse({
        "dataset": "d", "kafka": {"bootstrap_servers": "x", "topic": "t"},
        "embedder": {"model": "m"},
        "output": {"path": "/x", "formats": FORMATS}, "decode": {"threads": 2},
    })  # fmt: skip


def transform(image: Image.Image) -> U8:
    return np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))


class Line:
    """Decoder and batcher, and between batcher and judge the decoder on the device, if any."""

    def __init__(
        self,
        device: JpegDecoder | None,
        *others: JpegDecoder,
        transform: Callable[[Image.Image], U8] = transform,
    ) -> None:
        settings = config()
        self.failure, self.metrics = Failure(), Metrics()
        rules = Rules(settings.filters, settings.output.formats).header_rules
        self.decoder = Decoder(
            settings, transform, None, (0, 0), rules, lambda p, o: None, lambda p, o: False,
            self.failure, device_takes=None if device is None else device.takes,
            decoded=lambda: self.metrics.images_decoded("cpu"),
        )  # fmt: skip
        self.chunks: Channel[Chunk] = Channel("decode", 1000)
        self.fence = Fence(RUN)
        batcher = Batcher(self.chunks, 16, 0.05, self.fence)
        self.batches: Batcher | DecodeAhead = batcher
        if device is not None:
            self.batches = ahead = DecodeAhead(
                batcher, self.decoder.decode_here, self.fence, self.failure, self.metrics
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


def decided(
    lines: list[Line],
    files: Sequence[bytes],
    device: JpegDecoder | None,
    transform: Callable[[Image.Image], U8] = transform,
) -> list[Decoded]:
    lines.append(Line(device, transform=transform))
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
