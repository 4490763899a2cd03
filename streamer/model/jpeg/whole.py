"""Whether JPEGs are regular and whole, and whether they are what was decoded: `whole.cu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from streamer.model.jpeg.cuda import address, kernels, launching, uploaded, urgent_stream
from streamer.model.jpeg.source import Source
from streamer.records import Bools, Jpeg

FILE = np.dtype([("begin", np.int64), ("levels", np.int64), ("size", np.int32), ("rows", np.int32)])
PICTURE = np.dtype(
    [("pixels", np.int64), ("pitch", np.int64), ("rows", np.int32), ("file", np.int32)]
)
"""`File` and `Picture` of whole.cu"""
_WALKERS, _COMPARERS = 32, 128
"""Threads of a block"""

Table = np.ndarray[Any, np.dtype[np.void]]


def file_table(jpegs: Sequence[Jpeg]) -> Table:
    """(n,) of `FILE`: the files follow one another, and their levels do."""
    table = np.zeros(len(jpegs), FILE)
    table["size"] = [len(jpeg.data) for jpeg in jpegs]
    table["rows"] = [jpeg.rows for jpeg in jpegs]
    table["begin"] = np.cumsum(table["size"], dtype=np.int64) - table["size"]
    levels = (table["rows"].astype(np.int64) + 7) // 8
    table["levels"] = np.cumsum(levels) - levels
    return table


def picture_table(sources: Sequence[tuple[int, Source]]) -> Table:
    """(n,) of `PICTURE`, of what was decoded of some files, by their indices."""
    return np.array([(s.address, s.pitch, s.rows, file) for file, s in sources], PICTURE)


class Walk(NamedTuple):
    """What a walk through n files leaves in the GPU's memory."""

    files: torch.Tensor
    """Their table"""
    levels: torch.Tensor
    """Brightness of the first block of each row of MCUs, file by file"""
    whole: torch.Tensor
    """(n,) uint8"""


class Inspector:
    """One thread at a time. The walk is queued on a stream of its own, beside the engine's work;
    everything else on ``stream``."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._beside = urgent_stream(stream.device)
        self._walked = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._staged = torch.empty(0, dtype=torch.uint8)
        self._kernels = kernels("whole.cu", ("walk", "compare"), stream.device.index)

    def walk(self, jpegs: Sequence[Jpeg]) -> Walk:
        """Queues the walk through n ≥ 1 files and returns; the walk before has been fetched."""
        table = file_table(jpegs)
        # In one piece: each copy of a file by itself would let go of the GIL, and wait for it again
        joined = torch.frombuffer(
            bytearray().join([jpeg.data for jpeg in jpegs]), dtype=torch.uint8
        )
        size, device = len(joined), self._stream.device
        if self._staged.numel() < size:
            self._staged = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._staged[:size].copy_(joined)
        rows = int(table["levels"][-1]) + (jpegs[-1].rows + 7) // 8
        with torch.cuda.stream(self._beside):
            files = uploaded(table, device)
            data = self._staged[:size].to(device, non_blocking=True)
            levels = torch.empty(rows, dtype=torch.float32, device=device)
            whole = torch.zeros(len(jpegs), dtype=torch.uint8, device=device)
        with launching(self._beside):
            self._kernels[0](
                (len(jpegs),),
                (_WALKERS,),
                (address(files), address(data), address(levels), address(whole)),
            )
        self._walked.record(self._beside)
        return Walk(files, levels, whole)

    def compare(self, walk: Walk, sources: Sequence[tuple[int, Source]]) -> None:
        """Queues the comparison with what was decoded of some of the files, by their indices."""
        self._stream.wait_event(self._walked)
        with torch.cuda.stream(self._stream):
            table = uploaded(picture_table(sources), self._stream.device)
        with launching(self._stream):
            self._kernels[1](
                (len(sources),),
                (_COMPARERS,),
                (address(table), address(walk.files), address(walk.levels), address(walk.whole)),
            )

    def fetch(self, walk: Walk) -> Bools:
        """(n,) bool: which are whole, and what was decoded. Waits, without the GIL, until all that
        is queued is done."""
        self._stream.wait_event(self._walked)
        with torch.cuda.stream(self._stream):
            host = torch.empty(walk.whole.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(walk.whole, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        fetched: Bools = host.numpy() > 0
        return fetched
