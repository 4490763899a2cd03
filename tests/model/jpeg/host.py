"""The decoder of the device, on a machine without one: nvImageCodec's CPU backend, Pillow's resize,
and the GPU's own walk through the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from streamer.decode.image import _TRANSPOSE
from streamer.model.jpeg.decoder import takes
from streamer.records import U8, Jpeg
from tests.model.jpeg.emulated import vouched

CPU_ONLY = -99999
"""A device number that needs no driver"""


class HostJpegDecoder:
    def __init__(self, transform: Callable[[Image.Image], U8]) -> None:
        codec: Any = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is for Linux")
        self._codec = codec
        backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
        self._decoder = codec.Decoder(device_id=CPU_ONLY, backends=backends, max_num_cpu_threads=1)
        self._params = codec.DecodeParams(apply_exif_orientation=False)
        self._transform = transform
        self.seen: list[Jpeg] = []
        self.refused = 0

    def takes(self, rows: int, columns: int, nbytes: int) -> bool:
        return takes(rows, columns, nbytes, (0, 0))

    def pictures(self, jpegs: Sequence[Jpeg]) -> list[U8 | None]:
        images = self._decoder.decode(
            [self._codec.CodeStream(jpeg.data) for jpeg in jpegs], params=self._params
        )
        # A copy: an array does not keep the image's memory alive
        return [None if image is None else np.array(image.cpu(), copy=True) for image in images]

    def decode(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        self.seen += jpegs
        pictures = self.pictures(jpegs)
        good = vouched(jpegs, pictures)
        made = [
            self._resized(picture, jpeg.orientation) if ok and picture is not None else None
            for picture, jpeg, ok in zip(pictures, jpegs, good, strict=True)
        ]
        self.refused += made.count(None)
        return made

    def _resized(self, picture: U8, orientation: int) -> torch.Tensor:
        image, method = Image.fromarray(picture), _TRANSPOSE.get(orientation)
        image = image if method is None else image.transpose(method)
        return torch.from_numpy(self._transform(image).copy())


class Liar(HostJpegDecoder):
    """Reports success for every file, and writes nothing."""

    def pictures(self, jpegs: Sequence[Jpeg]) -> list[U8 | None]:
        return [np.zeros((jpeg.rows, jpeg.columns, 3), np.uint8) for jpeg in jpegs]
