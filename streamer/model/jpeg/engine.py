"""NVIDIA's JPEG engine, a unit of the GPU beside its processors, through nvImageCodec.

Its pixels are libjpeg's but for single steps of one, where CUDA's own decoder is off by up to three
and takes as much CPU as libjpeg. So there is no second choice: what the engine does not take is
decoded on the CPU, and a GPU without one decodes nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from streamer.model.jpeg.resize import Source

log = logging.getLogger(__name__)

_QUIET = "PYNVIMGCODEC_VERBOSITY"


class NoEngine(Exception):
    """This machine cannot decode JPEGs on the GPU; says why."""


class Engine:
    """One thread at a time."""

    def __init__(self, device: torch.device) -> None:
        """Raises NoEngine."""
        with _messages_logged():
            try:
                from nvidia import nvimgcodec
            except ImportError as error:
                raise NoEngine(
                    f"nvImageCodec is not installed ({error}); install streamer[gpu]"
                ) from None
            self._codec = nvimgcodec
            backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)]
            try:
                self._decoder = nvimgcodec.Decoder(
                    device_id=device.index, max_num_cpu_threads=1, backends=backends
                )
            except RuntimeError as error:
                name = torch.cuda.get_device_name(device)
                raise NoEngine(
                    f"{name} has no JPEG engine, or nvJPEG does not run ({error})"
                ) from None
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
        )

    def decode(self, jpegs: Sequence[bytes], stream: torch.cuda.Stream) -> list[Any | None]:
        """An image in the GPU's memory for each file, complete for what is queued on ``stream`` from
        now on; None where the engine does not take it. Of a file that is not whole the pixels that
        are not in it are arbitrary, and nothing says so. Blocks without the GIL."""
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


@contextmanager
def _messages_logged() -> Iterator[None]:
    """What native code writes to stderr while it is loaded goes to the log; what it would write
    about each image is switched off, for the record's own detail says it."""
    os.environ.setdefault(_QUIET, "0")
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            if text := file.read().decode("utf-8", "replace").strip():
                log.debug("nvImageCodec: %s", text)
