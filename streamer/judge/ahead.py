"""Between batcher and judge, where the device decodes JPEGs: batches are decoded while those before
them are embedded. The threads "device decode" do that side by side, each with a decoder of its own;
they hand on in the order of the line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from streamer.flow.channel import Channel
from streamer.flow.item import Fence
from streamer.flow.worker import Failure
from streamer.judge.batcher import Batch
from streamer.ops.metrics import Metrics
from streamer.records import Decoded, Jpeg, Sample

if TYPE_CHECKING:
    from streamer.model.jpeg.decoder import JpegDecoder

BATCHES = 2
"""Decoded batches that may wait for the network: (n, H, W, 3) bytes of the device's memory each."""
_LOOK_S = 0.1


class Batches(Protocol):
    """Where batches come from: `streamer.judge.batcher.Batcher`, or `DecodeAhead` behind it."""

    def take(self, timeout: float) -> Batch | None: ...


class DecodeAhead:
    """`run` is the body of any number of threads; `take` is the device thread's."""

    def __init__(
        self,
        batches: Batches,
        decode_here: Callable[[Sample], Future[Decoded]],
        fence: Fence,
        failure: Failure,
        metrics: Metrics,
    ) -> None:
        """``decode_here`` decides what the device does not decode (`Decoder.decode_here`)."""
        self._batches = batches
        self._decode_here = decode_here
        self._fence = fence
        self._failure = failure
        self._metrics = metrics
        self.ready: Channel[Batch] = Channel("embed", BATCHES)
        self._taking = threading.Lock()
        self._taken = 0
        """Batches that were taken; the number of the next one."""
        self._turn = threading.Condition()
        self._handed_on = 0

    def run(self, decoder: JpegDecoder, beat: Callable[[], None]) -> None:
        """Until the process ends; ``decoder`` is this thread's own. Raises what it raises."""
        while not self._failure.stop.is_set():
            beat()
            with self._taking:
                batch, number = self._batches.take(_LOOK_S), self._taken
                self._taken += batch is not None
            if batch is None:
                continue
            if not self._fence.holds(batch.span):  # its run is over: nobody decides it any more
                batch = replace(batch, rows=[])
            decoded = self._decode(batch, decoder, beat)
            if decoded is not None:
                self._hand_on(number, decoded, beat)

    def take(self, timeout: float) -> Batch | None:
        """The next batch; None if none was ready within ``timeout`` seconds."""
        return self.ready.get(timeout)

    def _hand_on(self, number: int, batch: Batch, beat: Callable[[], None]) -> None:
        """Once all before it are, and there is room."""
        with self._turn:
            while not self._turn.wait_for(lambda: self._handed_on == number, _LOOK_S):
                beat()
                if self._failure.stop.is_set():
                    return
        nbytes = sum(row.nbytes for row in batch.rows)
        while not self._failure.stop.is_set() and not self.ready.put(batch, nbytes, _LOOK_S):
            beat()
        with self._turn:
            self._handed_on += 1
            self._turn.notify_all()

    def _decode(self, batch: Batch, decoder: JpegDecoder, beat: Callable[[], None]) -> Batch | None:
        """None: the process ends, and nothing more is decided."""
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
            decoded = decoder.decode(jpegs)
        left: list[tuple[int, Future[Decoded]]] = []
        for (i, sample), pixels in zip(waiting, decoded, strict=True):
            if pixels is None:
                left.append((i, self._decode_here(sample)))
            else:
                sample.pixels = pixels
        self._metrics.images_decoded("gpu", len(waiting) - len(left))
        for i, future in left:
            answer = self._wait(future, beat)
            if answer is None:
                return None
            rows[i] = answer
        return replace(batch, rows=rows)

    def _wait(self, answer: Future[Decoded], beat: Callable[[], None]) -> Decoded | None:
        """None: the process ends, and nothing more is decided."""
        while not self._failure.stop.is_set():
            beat()
            try:
                return answer.result(_LOOK_S)
            except FutureTimeoutError:
                continue
            except CancelledError:
                return None
        return None
