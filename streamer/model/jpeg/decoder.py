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
from streamer.model.device import is_of_device, is_out_of_memory
from streamer.model.embedder import ImageEmbedder
from streamer.model.geometry import LONGEST, Geometry
from streamer.records import U8, Jpeg

log = logging.getLogger(__name__)

DECODERS = 3
"""Batches that are decoded at a time: one takes longer than the GPU needs for it, for each file is
walked through by one of its threads, and the host waits in between."""
SIDES = (16, 16_384)
"""Pixels of a side that the engine takes."""
MAX_BYTES = 400_000
"""A file is walked through by one thread of the GPU, at some 2 MB/s."""
IMAGES_AT_ONCE, PIXELS_AT_ONCE, BYTES_AT_ONCE = 4096, 100_000_000, 64_000_000
"""Of what is decoded in one go: 3 bytes a pixel, and as much again in the engine."""
_TRIALS = ((240, 320), (320, 240), (40, 60), (900, 301), (301, 900))
"""(rows, columns) of the images by which resize and transform are compared at a start."""


class JpegDecoder(Protocol):
    """What the line needs of a decoder on the device."""

    def takes(self, rows: int, columns: int, nbytes: int) -> bool:
        """Whether a baseline JPEG of that size may be given to `decode`. Any thread."""

    def decode(self, jpegs: Sequence[Jpeg]) -> list[Any | None]:
        """For each the pixels that `ImageEmbedder.transform` would give, within the engine's own
        differences, as a tensor (H, W, 3) of uint8 on the device, complete; None where the CPU must
        decide. One thread at a time; blocks without the GIL. Raises only what is the device's
        fault."""


class NoDecoder(Exception):
    """This machine, or this embedder, cannot have JPEGs decoded on the GPU; says why."""


def takes(rows: int, columns: int, nbytes: int, draft_size: tuple[int, int]) -> bool:
    """Pixels and bytes of a file. What the CPU would decode at a part of its size it shall: the
    engine cannot, and the pixels would be others."""
    shorter, longer = sorted((rows, columns))
    is_drafted = draft_size[0] > 0 and shorter >= 2 * min(draft_size)
    return (
        shorter >= SIDES[0]
        and longer <= min(SIDES[1], LONGEST * shorter)
        and nbytes <= MAX_BYTES
        and not is_drafted
    )


class GpuJpegDecoder:
    """`JpegDecoder` with the GPU's JPEG engine."""

    def __init__(
        self, geometry: Geometry, draft_size: tuple[int, int], device: torch.device
    ) -> None:
        """Compiles what it needs, once in a process. Raises NoDecoder, and what CuPy and CUDA
        raise."""
        from streamer.model.jpeg.cuda import urgent_stream
        from streamer.model.jpeg.engine import Engine
        from streamer.model.jpeg.whole import Inspector

        self._geometry = geometry
        self._draft_size = draft_size
        self._device = device
        with torch.cuda.device(device):
            self._stream = urgent_stream(device)
            self._inspector = Inspector(self._stream)
        self._engine = Engine(device)

    def takes(self, rows: int, columns: int, nbytes: int) -> bool:
        return takes(rows, columns, nbytes, self._draft_size)

    def decode(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        """Out of memory, or where the engine raises, the batch is halved, down to single images,
        which the CPU then decodes."""
        pixels: list[torch.Tensor | None] = []
        for group in _groups(jpegs):
            pixels += self._decode(group)
        return pixels

    def resized(self, images: Sequence[U8]) -> U8:
        """n images (rows, columns, 3) uint8 on the host → (n, height, width, 3) on the host.
        Blocks."""
        from streamer.model.jpeg.resize import resize
        from streamer.model.jpeg.source import Source

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
        except (RuntimeError, ValueError, MemoryError) as error:
            if is_of_device(error) and not is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {error}"
        # Outside the handler: the tensors of the failed attempt live as long as its traceback
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        if len(jpegs) == 1:
            log.debug("device: an image is left to the CPU: %s", why)
            return [None]
        log.warning("device: decoding %d images again in halves: %s", len(jpegs), why)
        half = len(jpegs) // 2
        return [*self._decode(jpegs[:half]), *self._decode(jpegs[half:])]

    def _attempt(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        from streamer.model.jpeg.engine import source_of
        from streamer.model.jpeg.resize import resize

        walk = self._inspector.walk(jpegs)  # beside the engine
        images = self._engine.decode([jpeg.data for jpeg in jpegs], self._stream)
        sources = []
        for i, (image, jpeg) in enumerate(zip(images, jpegs, strict=True)):
            source = None if image is None else source_of(image, jpeg.orientation)
            if source is not None and (source.rows, source.columns) == (jpeg.rows, jpeg.columns):
                sources.append((i, source))
        pixels: list[torch.Tensor | None] = [None] * len(jpegs)
        if sources:
            # The resize first: it need not wait for the walk
            resized = resize([source for _, source in sources], self._geometry, self._stream)
            self._inspector.compare(walk, sources)
            for (i, _), rows in zip(sources, resized.unbind(), strict=True):
                pixels[i] = rows
        vouched = self._inspector.fetch(walk)  # waits for all that is queued
        return [rows if good else None for rows, good in zip(pixels, vouched, strict=True)]


def _groups(jpegs: Sequence[Jpeg]) -> list[list[Jpeg]]:
    """As they come, each group within the bounds above, or of one image."""
    groups: list[list[Jpeg]] = []
    pixels = nbytes = 0
    for jpeg in jpegs:
        pixels += jpeg.rows * jpeg.columns
        nbytes += len(jpeg.data)
        is_full = pixels > PIXELS_AT_ONCE or nbytes > BYTES_AT_ONCE
        if not groups or is_full or len(groups[-1]) == IMAGES_AT_ONCE:
            groups.append([])
            pixels, nbytes = jpeg.rows * jpeg.columns, len(jpeg.data)
        groups[-1].append(jpeg)
    return groups


def choose_decoders(
    config: Config, embedder: ImageEmbedder, device: torch.device
) -> tuple[Sequence[JpegDecoder], str]:
    """`DECODERS` of them for a start with ``decode.device``, or none, for the CPU's; and what
    decodes JPEGs, in words. Blocks while it is compiled and tried.

    Raises ConfigError where ``gpu`` is asked for and cannot be had.
    """
    wanted = config.decode.device
    if wanted == "cpu":
        return (), "decoded on the CPU (decode.device: cpu)"
    try:
        decoders = _open(config, embedder, device)
    except NoDecoder as error:
        if wanted == "gpu":
            raise ConfigError(f"decode.device: gpu: {error}; use auto or cpu") from error
        return (), f"decoded on the CPU: {error}"
    return decoders, f"decoded by the JPEG engine of {device} where they are baseline"


def _open(
    config: Config, embedder: ImageEmbedder, device: torch.device
) -> Sequence[GpuJpegDecoder]:
    """Raises NoDecoder."""
    if device.type != "cuda":
        raise NoDecoder(f"the embedder runs on {device}")
    if embedder.decode is not None:
        raise NoDecoder("the embedder decodes by itself")
    geometry = embedder.geometry
    if not isinstance(geometry, Geometry):
        raise NoDecoder("the embedder's transform is no plain resize and crop")
    try:
        decoders = [GpuJpegDecoder(geometry, embedder.draft_size, device) for _ in range(DECODERS)]
        for decoder in decoders:
            _try(decoder, embedder, 0 if config.decode.pixels == "exact" else 2)
    except NoDecoder:
        raise
    except Exception as error:  # whatever a driver, a compiler or a library lacks: the CPU can
        raise NoDecoder(f"it does not run here ({type(error).__name__}: {error})") from error
    return decoders


def _try(decoder: GpuJpegDecoder, embedder: ImageEmbedder, tolerance: int) -> None:
    """One file through all of it, and the embedder's own transform against the resize here: what a
    version of a library does otherwise must not change pixels. Raises NoDecoder."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _TRIALS]
    for image, made in zip(images, decoder.resized(images), strict=True):
        expected = embedder.transform(Image.fromarray(image))
        if expected.shape != made.shape or _difference(made, expected) > tolerance:
            raise NoDecoder(
                f"the embedder's transform of {image.shape[1]} × {image.shape[0]} pixels is not "
                "what its model's data config says"
            )
    file, size = io.BytesIO(), (320, 240)
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    (pixels,) = decoder.decode([Jpeg(file.getvalue(), size[1], size[0], 1)])
    if pixels is None:
        raise NoDecoder("a first JPEG comes back undecoded")


def _difference(one: U8, other: U8) -> int:
    return int(np.abs(one.astype(np.int16) - other).max())
