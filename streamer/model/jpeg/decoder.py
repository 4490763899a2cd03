"""JPEGs as they came → the embedder's pixels, on the GPU."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from streamer.config import Config
from streamer.errors import ConfigError
from streamer.model.device import is_out_of_memory
from streamer.model.embedder import ImageEmbedder
from streamer.model.jpeg.geometry import Geometry
from streamer.records import U8, Jpeg

log = logging.getLogger(__name__)

LONGEST = 16
"""Aspect ratio beyond which an image is cut before it is resized, which the CPU does."""
SIDES = (16, 16_384)
"""Pixels of a side that the engine takes."""
MAX_BYTES = 400_000
"""A file is looked through by one thread of the GPU, at some 2 MB/s."""
_TRIALS = ((240, 320), (320, 240), (40, 60), (900, 301), (301, 900))
"""(rows, columns) of the images by which resize and transform are compared at a start."""
PIXELS_AT_ONCE, BYTES_AT_ONCE = 100_000_000, 64_000_000
"""Of the images that are decoded in one go: 3 bytes a pixel, and as much again in the engine."""


class JpegDecoder(Protocol):
    """What the line needs of a decoder on the device."""

    def takes(self, rows: int, columns: int, nbytes: int) -> bool:
        """Whether a baseline JPEG of that size may be given to `decode`. Any thread."""

    def decode(self, jpegs: Sequence[Jpeg]) -> list[Any | None]:
        """For each the pixels that `ImageEmbedder.transform` would give, within the decoder's own
        differences, as a tensor (H, W, 3) of uint8 on the device, complete; None where the CPU must
        decide. One thread at a time; blocks without the GIL."""

    def another(self) -> JpegDecoder:
        """One like it, for another thread."""


def takes(rows: int, columns: int, nbytes: int) -> bool:
    shorter, longer = sorted((rows, columns))
    return (
        SIDES[0] <= shorter and longer <= min(SIDES[1], LONGEST * shorter) and nbytes <= MAX_BYTES
    )


class GpuJpegDecoder:
    """`JpegDecoder` with the GPU's JPEG engine."""

    def __init__(self, geometry: Geometry, device: torch.device) -> None:
        """Raises NoEngine."""
        from streamer.model.jpeg.cuda import urgent_stream
        from streamer.model.jpeg.engine import Engine
        from streamer.model.jpeg.whole import Inspector

        self._geometry = geometry
        self._device = device
        with torch.cuda.device(device):
            self._stream = urgent_stream(device)
            self._inspector = Inspector(self._stream)
        self._engine = Engine(device)

    def takes(self, rows: int, columns: int, nbytes: int) -> bool:
        return takes(rows, columns, nbytes)

    def decode(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        """Out of memory, the batch is halved, down to single images, which the CPU then decodes."""
        pixels: list[torch.Tensor | None] = []
        for group in _groups(jpegs):
            pixels += self._decode(group)
        return pixels

    def another(self) -> GpuJpegDecoder:
        return GpuJpegDecoder(self._geometry, self._device)

    def resized(self, images: Sequence[U8]) -> U8:
        """n images (rows, columns, 3) uint8 on the host → (n, height, width, 3) on the host."""
        from streamer.model.jpeg.resize import Source, resize

        there = [torch.from_numpy(image).to(self._device) for image in images]
        torch.cuda.synchronize(self._device)
        sources = [Source(t.data_ptr(), 3 * t.shape[1], t.shape[0], t.shape[1], 1) for t in there]
        with torch.cuda.device(self._device):
            pixels = resize(sources, self._geometry, self._stream)
        self._stream.synchronize()
        made: U8 = pixels.cpu().numpy()
        return made

    def _decode(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        try:
            with torch.cuda.device(self._device):
                return self._attempt(jpegs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the tensors of the failed attempt live as long as its traceback
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        if len(jpegs) == 1:
            return [None]
        log.warning("device: out of memory decoding %d images; going on with half", len(jpegs))
        half = len(jpegs) // 2
        return [*self._decode(jpegs[:half]), *self._decode(jpegs[half:])]

    def _attempt(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        from streamer.model.jpeg.engine import source_of
        from streamer.model.jpeg.resize import resize

        walk = self._inspector.walk(jpegs)  # beside the engine
        images = self._engine.decode([jpeg.data for jpeg in jpegs], self._stream)
        sources = [
            (i, source_of(image, jpeg.orientation))
            for i, (image, jpeg) in enumerate(zip(images, jpegs, strict=True))
            if image is not None and tuple(image.shape) == (jpeg.rows, jpeg.columns, 3)
        ]
        pixels: list[torch.Tensor | None] = [None] * len(jpegs)
        if sources:
            self._inspector.compare(walk, sources)
            resized = resize([source for _, source in sources], self._geometry, self._stream)
            for (i, _), rows in zip(sources, resized.unbind(), strict=True):
                pixels[i] = rows
        vouched = self._inspector.fetch(walk)  # waits for the resize, too
        return [rows if good else None for rows, good in zip(pixels, vouched, strict=True)]


def _groups(jpegs: Sequence[Jpeg]) -> list[list[Jpeg]]:
    """As they come, each group within `PIXELS_AT_ONCE` and `BYTES_AT_ONCE`, or of one image."""
    groups: list[list[Jpeg]] = []
    pixels = nbytes = 0
    for jpeg in jpegs:
        pixels += jpeg.rows * jpeg.columns
        nbytes += len(jpeg.data)
        if not groups or pixels > PIXELS_AT_ONCE or nbytes > BYTES_AT_ONCE:
            groups.append([])
            pixels, nbytes = jpeg.rows * jpeg.columns, len(jpeg.data)
        groups[-1].append(jpeg)
    return groups


def choose_decoder(
    config: Config, embedder: ImageEmbedder, device: torch.device
) -> tuple[JpegDecoder | None, str]:
    """The decoder of a start with ``decode.device``, None for the CPU's, and why. Raises ConfigError
    where ``gpu`` is asked for and cannot be had."""
    wanted = config.decode.device
    if wanted == "cpu":
        return None, "the CPU: decode.device is cpu"
    why_not = ""
    if device.type != "cuda":
        why_not = f"the embedder runs on {device}"
    elif embedder.decode is not None:
        why_not = "the embedder decodes by itself"
    elif embedder.geometry is None:
        why_not = "the embedder has a transform that is no plain resize"
    else:
        from streamer.model.jpeg.engine import NoEngine

        try:
            decoder = GpuJpegDecoder(embedder.geometry, device)
            _try(decoder, embedder, config.decode.pixels)
        except (ImportError, NoEngine) as error:
            why_not = str(error)
        else:
            return decoder, f"baseline JPEGs by the JPEG engine of {device}"
    if wanted == "gpu":
        raise ConfigError(f"decode.device: gpu: {why_not}; use auto or cpu")
    return None, f"the CPU: {why_not}"


def _try(decoder: GpuJpegDecoder, embedder: ImageEmbedder, pixels: str) -> None:
    """One file through all of it, which also compiles it, and the embedder's own transform against
    the resize here: what a version of a library does otherwise must not change pixels. Raises
    NoEngine."""
    from streamer.model.jpeg.engine import NoEngine

    tolerance = 0 if pixels == "exact" else 2
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _TRIALS]
    expected = [embedder.transform(Image.fromarray(image)) for image in images]
    for size, one, other in zip(_TRIALS, decoder.resized(images), expected, strict=True):
        if np.abs(one.astype(np.int16) - other).max() > tolerance:
            raise NoEngine(
                f"transform() gives other pixels for an image of {size} than its geometry"
            )
    file, size = io.BytesIO(), (320, 240)
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    try:
        (made,) = decoder.decode([Jpeg(file.getvalue(), size[1], size[0], 1)])
    except (ImportError, OSError, RuntimeError) as error:
        raise NoEngine(f"a first JPEG cannot be decoded ({error})") from error
    if made is None:
        raise NoEngine("a first JPEG comes back undecoded")
