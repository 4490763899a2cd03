"""The decoder on a real GPU, with its JPEG engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamer.decode.image import _TRANSPOSE, set_up
from streamer.model.geometry import Geometry
from streamer.model.jpeg.decoder import GpuJpegDecoder
from streamer.model.timm import _geometry
from streamer.records import U8, Jpeg, Sample, Settled
from tests.model.jpeg.emulated import vouched
from tests.model.jpeg.files import KINDS, as_jpeg, encoded, picture, stored
from tests.model.jpeg.line import Line, decided
from tests.model.jpeg.test_resize import BASE, CONFIGS, SIZES, config_of

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def decoder() -> GpuJpegDecoder:
    geometry = Geometry.of(BASE)
    assert geometry is not None
    return GpuJpegDecoder(geometry, (0, 0), DEVICE)


@pytest.fixture(autouse=True)
def _set_up() -> None:
    set_up(64_000_000)


def jpegs_of(files: list[bytes]) -> list[Jpeg]:
    found = [as_jpeg(data) for data in files]
    return [jpeg for jpeg in found if jpeg is not None]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_resize_is_pillows(name: str) -> None:
    from streamer.model.jpeg.resize import resize
    from streamer.model.jpeg.source import Source

    data_config = config_of(name)
    geometry = Geometry.of(data_config)
    assert geometry is not None
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES]
    there = [torch.from_numpy(image).to(DEVICE) for image in images]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(DEVICE)
    sources = [
        Source(t.data_ptr(), 3 * t.shape[1], *t.shape[:2], i % 8 + 1) for i, t in enumerate(there)
    ]

    pixels = resize(sources, geometry, stream)
    stream.synchronize()

    transform = _geometry(data_config)
    for i, (image, got) in enumerate(zip(images, pixels.cpu().numpy(), strict=True)):
        method = _TRANSPOSE.get(i % 8 + 1)
        upright = Image.fromarray(image)
        upright = upright if method is None else upright.transpose(method)
        assert np.array_equal(got, np.asarray(transform(upright))), image.shape


def test_pixels_are_the_cpus_but_for_single_steps(decoder: GpuJpegDecoder) -> None:
    transform = _geometry(BASE)
    kinds = [options for name, options in KINDS.items() if name != "comment"]
    files = [encoded(picture(seed, (640, 480)), **kinds[seed % len(kinds)]) for seed in range(64)]
    made = decoder.decode(jpegs_of(files))
    for data, pixels in zip(files, made, strict=True):
        assert pixels is not None
        want = np.asarray(transform(Image.fromarray(stored(data)))).astype(int)
        difference = np.abs(pixels.cpu().numpy() - want)
        assert difference.max() <= 2
        assert difference.mean() < 0.05


def test_damage_is_never_vouched_for(decoder: GpuJpegDecoder) -> None:
    """A cut file decodes into what the memory held before."""
    good = [encoded(picture(seed, (320, 240))) for seed in range(20)]
    decoder.decode(jpegs_of(good))
    for share in (0.3, 0.6, 0.9, 0.99):
        for end in (b"", b"\xff\xd9"):
            cut = [data[: int(share * len(data))] + end for data in good]
            mixed = [x for pair in zip(cut, good, strict=True) for x in pair]
            made = decoder.decode(jpegs_of(mixed))
            assert [pixels is None for pixels in made] == [True, False] * 20


def test_the_gpu_walks_as_its_emulation_does(decoder: GpuJpegDecoder, data_set: Path) -> None:
    files = [p.read_bytes() for p in sorted((data_set / "hostile").rglob("*")) if p.is_file()]
    jpegs = jpegs_of([data for data in files if data.startswith(b"\xff\xd8\xff")])
    walk = decoder._inspector.walk(jpegs)
    assert decoder._inspector.fetch(walk).tolist() == vouched(jpegs, [None] * len(jpegs))


@pytest.mark.parametrize("lie", ["zeros", "another's"])
def test_an_engine_that_lies(
    decoder: GpuJpegDecoder, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    files = [encoded(picture(seed, (320, 240))) for seed in range(8)]
    decode = decoder._engine.decode

    def lying(jpegs, stream):
        images = decode(jpegs, stream)
        if lie == "zeros":
            stream.synchronize()
            for image in images:
                torch.from_dlpack(image).zero_()
            return images
        return images[1:] + images[:1]

    monkeypatch.setattr(decoder._engine, "decode", lying)
    assert decoder.decode(jpegs_of(files)) == [None] * 8


def test_outcomes_are_the_same_on_both_paths(
    lines: list[Line],
    decoder: GpuJpegDecoder,
    data_set: Path,
    large: bool,
) -> None:
    geometry = _geometry(BASE)

    def transform(image: Image.Image) -> U8:
        return np.asarray(geometry(image))

    hostile = [p.read_bytes() for p in sorted((data_set / "hostile").rglob("*")) if p.is_file()]
    hostile = [data for data in hostile if data.startswith(b"\xff\xd8\xff")]
    photographs = [p.read_bytes() for p in sorted((data_set / "photos").rglob("*.jpg"))][:300]
    files = hostile + photographs
    gpu, cpu = (decided(lines, files, device, transform) for device in (decoder, None))
    assert [row.record.offset for row in gpu] == list(range(len(files)))
    for one, other in zip(cpu, gpu, strict=True):
        assert type(one) is type(other)
        assert one.facts == other.facts
        if isinstance(one, Settled) and isinstance(other, Settled):
            assert one.decision == other.decision
        elif isinstance(one, Sample) and isinstance(other, Sample):
            pixels = torch.as_tensor(other.pixels).cpu().numpy().astype(int)
            assert np.abs(pixels - np.asarray(one.pixels)).max() <= 3
    assert lines[0].decoded_by("gpu") > (200 if large else 5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA Runtime failure: '#2' at image.cpp:99"),
        RuntimeError("Internal error"),
    ],
)
def test_what_raises_is_decoded_in_parts(
    decoder: GpuJpegDecoder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    files = [encoded(picture(seed, (320, 240))) for seed in range(8)]
    attempt, one = decoder._attempt, as_jpeg(files[3])

    def failing(jpegs):
        if len(jpegs) > 2 or one in jpegs:
            raise error
        return attempt(jpegs)

    monkeypatch.setattr(decoder, "_attempt", failing)
    made = decoder.decode(jpegs_of(files))
    assert [i for i, pixels in enumerate(made) if pixels is None] == [3]


def test_other_threads_run_while_the_gpu_decodes(decoder: GpuJpegDecoder) -> None:
    jpegs = jpegs_of([encoded(picture(seed, (640, 480))) for seed in range(32)]) * 16
    longest, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        while not stop.is_set():
            began = time.monotonic()
            time.sleep(0.0005)
            longest = max(longest, time.monotonic() - began)

    watcher = threading.Thread(target=watch)
    decoder.decode(jpegs)
    watcher.start()
    for _ in range(5):
        decoder.decode(jpegs)
    stop.set()
    watcher.join()
    assert longest < 0.02, "somebody held the lock while the device worked"
