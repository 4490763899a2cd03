"""Whether a start decodes on the device, what it says about that, and what one image may cost."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from streamer.config import Config, parse
from streamer.errors import ConfigError
from streamer.model.geometry import Geometry
from streamer.model.jpeg import decoder as room
from streamer.model.jpeg.decoder import GpuJpegDecoder, NoDecoder, choose_decoders
from streamer.records import U8, Jpeg
from tests.model.jpeg.test_resize import BASE

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Embedder:
    decode = None
    geometry = Geometry.of(BASE)
    draft_size = (0, 0)

    def transform(self, image: Image.Image) -> U8:
        return np.asarray(image.resize((4, 4)))


class Decoder:
    """As good as the embedder's transform, unless told otherwise."""

    off, decodes = 0, True

    def resized(self, images: list[U8]) -> U8:
        made = [Embedder().transform(Image.fromarray(image)) for image in images]
        return np.stack(made) + np.uint8(self.off)

    def decode(self, jpegs: list[Jpeg]) -> list[Any]:
        return [torch.zeros(4, 4, 3) if self.decodes else None for _ in jpegs]


def config(device: str, pixels: str = "exact") -> Config:
    return parse({
        "dataset": "d", "kafka": {"bootstrap_servers": "x", "topic": "t"},
        "embedder": {"model": "m"}, "output": {"path": "/x"},
        "decode": {"device": device, "pixels": pixels},
    })  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> type[Decoder]:
    """What is made in the place of decoders on a GPU."""
    made = type("Made", (Decoder,), {})
    monkeypatch.setattr(room, "GpuJpegDecoder", lambda *args: made())
    return made


def test_a_gpu_that_can_is_used_by_several(made: type[Decoder]) -> None:
    decoders, said = choose_decoders(config("auto"), Embedder(), GPU)  # type: ignore[arg-type]
    assert len(decoders) == room.DECODERS
    assert said == "decoded by the JPEG engine of cuda:0 where they are baseline"


def refused(embedder: Any, device: torch.device, why: str, pixels: str = "exact") -> None:
    """``auto`` goes on with the CPU, ``gpu`` ends the start; both say why."""
    decoders, said = choose_decoders(config("auto", pixels), embedder, device)
    assert decoders == ()
    assert said.startswith("decoded on the CPU: ")
    assert why in said
    with pytest.raises(ConfigError, match=r"^decode\.device: gpu: .*; use auto or cpu$") as caught:
        choose_decoders(config("gpu", pixels), embedder, device)
    assert why in str(caught.value)


def test_without_a_gpu() -> None:
    refused(Embedder(), CPU, "the embedder runs on cpu")


def test_embedders_that_do_it_themselves(made: type[Decoder]) -> None:
    own = Embedder()
    own.decode = lambda data: data  # type: ignore[assignment]
    refused(own, GPU, "the embedder decodes by itself")
    unlike = Embedder()
    unlike.geometry = {"theirs": 1}  # type: ignore[assignment]
    refused(unlike, GPU, "no plain resize and crop")


def test_a_transform_that_is_not_what_it_says(made: type[Decoder]) -> None:
    made.off = 1
    refused(Embedder(), GPU, "is not what its model's data config says")
    assert choose_decoders(config("auto", "fast"), Embedder(), GPU)[0]  # type: ignore[arg-type]
    made.off = 3
    refused(Embedder(), GPU, "is not what its model's data config says", "fast")


def test_a_file_that_comes_back_undecoded(made: type[Decoder]) -> None:
    made.decodes = False
    refused(Embedder(), GPU, "a first JPEG comes back undecoded")


@pytest.mark.parametrize("error", [ImportError("no cupy"), RuntimeError("no engine"), OSError("x")])
def test_whatever_is_missing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(*args: Any) -> None:
        raise error

    monkeypatch.setattr(room, "GpuJpegDecoder", missing)
    refused(Embedder(), GPU, f"it does not run here ({type(error).__name__}: {error})")


def test_the_cpu_is_not_asked_why() -> None:
    found = choose_decoders(config("cpu"), Embedder(), GPU)  # type: ignore[arg-type]
    assert found == ((), "decoded on the CPU (decode.device: cpu)")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA Runtime failure: '#2' at image.cpp:99"), False),
        (RuntimeError("Internal error"), False),
        (ValueError("a shape"), False),
        (RuntimeError("CUDA Runtime failure: '#700' at image.cpp:99"), True),
    ],
)
def test_what_one_image_raises_costs_that_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception, ends: bool
) -> None:
    """It is decoded on the CPU; only a device that failed ends the process."""
    for name in ("synchronize", "empty_cache", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: nullcontext())
    bad = Jpeg(b"bad", 16, 16, 1)

    class Failing(GpuJpegDecoder):
        def __init__(self) -> None:
            self._device = GPU

        def _attempt(self, jpegs: Any) -> Any:
            if bad in jpegs:
                raise error
            return [torch.zeros(1)] * len(jpegs)

    files = [Jpeg(b"good", 16, 16, 1)] * 5 + [bad] + [Jpeg(b"good", 16, 16, 1)] * 7
    if ends:
        with pytest.raises(RuntimeError, match="#700"):
            Failing().decode(files)
    else:
        made = Failing().decode(files)
        assert [i for i, pixels in enumerate(made) if pixels is None] == [5]


def test_a_start_without_a_gpu_refuses_it() -> None:
    with pytest.raises(NoDecoder):
        room._open(config("gpu"), Embedder(), CPU)  # type: ignore[arg-type]
