"""The line with JPEGs that the device decodes, beside that on which the CPU decodes all: the same
records have the same outcomes and pixels, in the same order."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from streamer.flow.item import Chunk, Fence, Span
from streamer.judge.ahead import DecodeAhead
from streamer.judge.batcher import Batch
from streamer.records import Decoded, Sample, Settled
from tests.model.jpeg.files import encoded, picture
from tests.model.jpeg.host import HostJpegDecoder, Liar
from tests.model.jpeg.line import RUN, SPAN, Line, decided, require_same, transform

pytestmark = pytest.mark.usefixtures("without_cupy")


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


def test_what_travels_to_the_device_is_weighed(lines: list[Line]) -> None:
    file = encoded(picture(1))
    [cpu] = decided(lines, [file], None)
    [device] = decided(lines, [file], HostJpegDecoder(transform))
    assert device.nbytes - cpu.nbytes == len(file)


def test_nothing_of_a_run_that_is_over_is_decoded(lines: list[Line]) -> None:
    device = HostJpegDecoder(transform)
    lines.append(line := Line(device))
    line.fence.holds = lambda span: False  # from when the batch is taken on
    batcher = line.batches._batches
    batcher._fence = Fence(RUN)
    line.send([encoded(picture(seed)) for seed in range(3)])
    deadline = time.monotonic() + 30
    batch = None
    while batch is None and time.monotonic() < deadline:
        batch = line.batches.take(0.1)
    assert batch is not None
    assert batch.rows == []
    assert device.seen == []


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
