"""NVIDIA's JPEG engine, a unit of the GPU beside its processors, through nvImageCodec.

Its pixels differ from libjpeg's by one at most. CUDA's own decoder differs by up to three, and
takes as much CPU as libjpeg. So there is no second choice: what the engine does not take is decoded
on the CPU, and a GPU without an engine decodes nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch

from streamer.model.jpeg.source import Source

log = logging.getLogger(__name__)

_QUIET = "PYNVIMGCODEC_VERBOSITY"


class Engine:
    """One of any number on a device. One thread at a time."""

    def __init__(self, device: torch.device) -> None:
        """Raises ImportError where nvImageCodec is not installed, and RuntimeError where the GPU
        has no JPEG engine, or nvJPEG does not run."""
        self._codec = _library()
        kind = self._codec.BackendKind.HW_GPU_ONLY
        self._decoder = self._codec.Decoder(
            device_id=device.index, max_num_cpu_threads=1, backends=[self._codec.Backend(kind)]
        )
        self._params = self._codec.DecodeParams(
            apply_exif_orientation=False, color_spec=self._codec.ColorSpec.SRGB
        )

    def decode(self, jpegs: Sequence[bytes], stream: torch.cuda.Stream) -> list[Any | None]:
        """An image in the GPU's memory for each file, complete for what is queued on ``stream``
        from now on; None where the engine does not take it. Of a file that is not whole the pixels
        that are not in it are arbitrary, and nothing says so.

        Blocks without the GIL. Raises RuntimeError, also where memory is short.
        """
        streams = [self._codec.CodeStream(jpeg) for jpeg in jpegs]
        images: list[Any | None] = self._decoder.decode(
            streams, params=self._params, cuda_stream=stream.cuda_stream
        )
        return images


def source_of(image: Any, orientation: int) -> Source:
    """Where a decoded image lies; it must live for as long as that is used."""
    there = image.__cuda_array_interface__
    rows, columns, _ = there["shape"]
    strides = there["strides"]
    return Source(
        there["data"][0], strides[0] if strides else 3 * columns, rows, columns, orientation
    )


@cache
def _library() -> Any:
    """nvImageCodec. What its native code writes to stderr while it is loaded goes to the log; what
    it would write about each image is switched off, for the record's own detail says it."""
    os.environ.setdefault(_QUIET, "0")
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            return import_module("nvidia.nvimgcodec")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            if text := file.read().decode("utf-8", "replace").strip():
                log.debug("nvImageCodec: %s", text)
