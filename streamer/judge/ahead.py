"""Between batcher and judge, where the device decodes JPEGs: a batch is decoded while the one before
it is embedded. A thread of its own, "device decode".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Protocol

from streamer.flow.channel import Channel
from streamer.flow.worker import Failure
from streamer.judge.batcher import Batch
from streamer.ops.metrics import Metrics
from streamer.records import Decoded, Jpeg, OnDevice, Sample

BATCHES = 2
"""Decoded batches that may wait for the network: (n, H, W, 3) bytes of the device's memory each."""
_LOOK_S = 0.1


class Batches(Protocol):
    """Where batches come from: `streamer.judge.batcher.Batcher`, or `DecodeAhead` behind it."""

    def take(self, timeout: float) -> Batch | None: ...


class DeviceDecoder(Protocol):
    """`streamer.model.jpeg.decoder.JpegDecoder`."""

    def decode(self, jpegs: Sequence[Jpeg]) -> Sequence[OnDevice | None]: ...


class DecodeAhead:
    """`run` is the thread's body; `take` is the device thread's."""

    def __init__(
        self,
        batches: Batches,
        decoder: DeviceDecoder,
        decode_here: Callable[[Sample], Future[Decoded]],
        failure: Failure,
        metrics: Metrics,
        beat: Callable[[], None],
    ) -> None:
        """``decode_here`` decides what the device does not decode (`Decoder.decode_here`)."""
        self._batches = batches
        self._decoder = decoder
        self._decode_here = decode_here
        self._failure = failure
        self._metrics = metrics
        self._beat = beat
        self.ready: Channel[Batch] = Channel("embed", BATCHES)

    def run(self) -> None:
        while not self._failure.stop.is_set():
            self._beat()
            batch = self._batches.take(_LOOK_S)
            if batch is None:
                continue
            decoded = self._decode(batch)
            while not self._failure.stop.is_set() and not self.ready.put(decoded, timeout=_LOOK_S):
                self._beat()

    def take(self, timeout: float) -> Batch | None:
        """The next batch; None if none was ready within ``timeout`` seconds."""
        return self.ready.get(timeout)

    def _decode(self, batch: Batch) -> Batch:
        rows = list(batch.rows)
        waiting: list[tuple[int, Sample]] = []
        jpegs: list[Jpeg] = []
        for i, row in enumerate(rows):
            if isinstance(row, Sample) and isinstance(row.pixels, Jpeg):
                waiting.append((i, row))
                jpegs.append(row.pixels)
        if not waiting:
            return batch
        with self._metrics.stage("device_decode"):
            decoded = self._decoder.decode(jpegs)
        left: list[tuple[int, Future[Decoded]]] = []
        for (i, sample), pixels in zip(waiting, decoded, strict=True):
            if pixels is None:
                left.append((i, self._decode_here(sample)))
            else:
                sample.pixels = pixels
        self._metrics.images_decoded("gpu", len(waiting) - len(left))
        for i, answer in left:
            rows[i] = self._wait(answer) or rows[i]
        return replace(batch, rows=rows)

    def _wait(self, answer: Future[Decoded]) -> Decoded | None:
        """None: the process ends, and nothing more is decided."""
        while not self._failure.stop.is_set():
            self._beat()
            try:
                return answer.result(_LOOK_S)
            except FutureTimeoutError:
                continue
            except CancelledError:
                return None
        return None
