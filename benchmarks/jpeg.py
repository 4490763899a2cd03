"""JPEGs decoded on the GPU: how fast, and how near to the CPU's pixels and embeddings?

Rates: the engine alone, the walk through each file, the resize, all of it together; at 640 × 480, at
photographs of many sizes, and at 12 megapixels. Pixels: the difference from Pillow's path for eight
of timm's data configs. Embeddings: the cosine between both paths, with real weights where the
demo's are installed, else with random ones of the same network.

    python3 tasks.py bench jpeg [--images DIR] [--seconds 2]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import emit
from streamer.config import Decode
from streamer.decode.image import decode_rgb, prepare, read_header, set_up
from streamer.errors import ConfigError
from streamer.model.geometry import Geometry
from streamer.model.jpeg.decoder import GpuJpegDecoder
from streamer.model.lite0 import write_demo_checkpoint
from streamer.model.timm import TimmImageEmbedder, _geometry
from streamer.records import Jpeg

LIMITS = Decode()
BASE: dict[str, Any] = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28),
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bicubic 0.9": {},
    "bilinear 0.875": {"interpolation": "bilinear", "crop_pct": 0.875},
    "bicubic 1.0": {"crop_pct": 1.0},
    "squash 0.9": {"crop_mode": "squash"},
    "squash 1.0 bilinear": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"},
    "border 1.0": {"crop_mode": "border", "crop_pct": 1.0},
    "336 1.0": {"input_size": (3, 336, 336), "crop_pct": 1.0},
    "448 0.95": {"input_size": (3, 448, 448), "crop_pct": 0.95},
}


def as_jpeg(data: bytes) -> Jpeg | None:
    header, file = prepare(data, LIMITS)
    if not file.baseline or file.size is None:
        return None
    return Jpeg(b"".join(file.parts), file.size[1], file.size[0], header.orientation)


def crops(photographs: list[bytes], count: int, size: tuple[int, int]) -> list[bytes]:
    """``count`` different JPEGs of ``size``, of about 0.15 bytes a pixel."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(count):
        image = Image.open(io.BytesIO(photographs[i % len(photographs)])).convert("RGB")
        x, y = (int(rng.integers(0, max(1, side // 5))) for side in image.size)
        image = image.crop((x, y, x + 4 * image.width // 5, y + 4 * image.height // 5))
        buffer = io.BytesIO()
        image.resize(size).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def rate(step: Callable[[], object], images: int, seconds: float) -> dict[str, float]:
    """Images a second, and µs of this thread's CPU an image."""
    step()
    torch.cuda.synchronize()
    began, cpu, done = time.monotonic(), time.thread_time(), 0
    while time.monotonic() - began < seconds:
        step()
        done += images
    torch.cuda.synchronize()
    took = time.monotonic() - began
    return {
        "images_per_s": round(done / took),
        "thread_us": round((time.thread_time() - cpu) / done * 1e6, 1),
    }


def rates(decoder: GpuJpegDecoder, name: str, files: list[bytes], seconds: float) -> None:
    from streamer.model.jpeg.engine import source_of
    from streamer.model.jpeg.resize import resize

    jpegs = [jpeg for jpeg in map(as_jpeg, files) if jpeg is not None]
    data = [jpeg.data for jpeg in jpegs]
    stream, inspector = decoder._stream, decoder._inspector
    images = decoder._engine.decode(data, stream)
    sources = [source_of(image, 1) for image in images if image is not None]
    n = len(jpegs)
    emit(
        "jpeg", what="rates", images=name, batch=n, bytes_per_image=sum(map(len, data)) // n,
        decode=rate(lambda: decoder.decode(jpegs), n, seconds),
        engine=rate(lambda: decoder._engine.decode(data, stream), n, seconds),
        walk=rate(lambda: inspector.fetch(inspector.walk(jpegs)), n, seconds),
        resize=rate(
            lambda: (resize(sources, decoder._geometry, stream), stream.synchronize()), n, seconds
        ),
        refused=sum(pixels is None for pixels in decoder.decode(jpegs)),
    )  # fmt: skip


def on_cpu(data: bytes, transform: Callable[[Image.Image], Any], draft: tuple[int, int]) -> Any:
    return np.asarray(transform(decode_rgb(data, read_header(data, LIMITS), draft)))


def pixels(name: str, photographs: list[bytes], device: torch.device) -> None:
    data_config = {**BASE, **CONFIGS[name]}
    geometry = Geometry.of(data_config)
    assert geometry is not None
    decoder, transform = GpuJpegDecoder(geometry, (0, 0), device), _geometry(data_config)
    kept = [(data, jpeg) for data in photographs if (jpeg := as_jpeg(data)) is not None]
    made = decoder.decode([jpeg for _, jpeg in kept])
    differences = [
        np.abs(rows.cpu().numpy().astype(int) - on_cpu(data, transform, (0, 0)))
        for (data, _), rows in zip(kept, made, strict=True)
        if rows is not None
    ]
    flat = np.concatenate([d.ravel() for d in differences])
    emit(
        "jpeg", what="pixels", data_config=name,
        photographs=len(differences), refused=made.count(None),
        mean=round(float(flat.mean()), 6), p99=float(np.percentile(flat, 99)), max=int(flat.max()),
        differ=round(float((flat > 0).mean()), 6),
    )  # fmt: skip


def embeddings(photographs: list[bytes], device: torch.device, checkpoint: Path | None) -> None:
    """Of what the line gives to the device."""
    embedder, weights = network(checkpoint)
    embedder.place(device)
    assert embedder.geometry is not None
    decoder = GpuJpegDecoder(embedder.geometry, embedder.draft_size, device)
    kept = [
        (data, jpeg)
        for data in photographs
        if (jpeg := as_jpeg(data)) is not None
        and decoder.takes(jpeg.rows, jpeg.columns, len(jpeg.data))
    ]
    made = decoder.decode([jpeg for _, jpeg in kept])
    both = [
        (on_cpu(data, embedder.transform, embedder.draft_size), rows)
        for (data, _), rows in zip(kept, made, strict=True)
        if rows is not None
    ]
    cosines = []
    with torch.inference_mode():
        for at in range(0, len(both), 64):
            cpu = torch.from_numpy(np.stack([one for one, _ in both[at : at + 64]])).to(device)
            gpu = torch.stack([other for _, other in both[at : at + 64]])
            one, other = (
                torch.nn.functional.normalize(embedder.embed(x).double(), dim=1) for x in (cpu, gpu)
            )
            cosines += (one * other).sum(1).tolist()
    emit(
        "jpeg", what="embeddings", model=embedder.model, weights=weights, photographs=len(cosines),
        smallest_cosine=round(min(cosines), 7), mean_cosine=round(float(np.mean(cosines)), 8),
        below_0_9995=sum(cosine < 0.9995 for cosine in cosines),
    )  # fmt: skip


def network(checkpoint: Path | None) -> tuple[TimmImageEmbedder, str]:
    name = "tf_efficientnet_lite0"
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            try:
                checkpoint = write_demo_checkpoint(Path(folder) / "weights.safetensors")
            except ConfigError:
                return TimmImageEmbedder(name, pretrained=False), "random"
        return TimmImageEmbedder(name, checkpoint=str(checkpoint)), "real"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--images", type=Path, help="a folder of photographs; the demo's if not given"
    )
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--weights", type=Path, help="of tf_efficientnet_lite0, as safetensors")
    given = options.parse_args()
    if given.images is None:
        import skimage

        given.images = Path(skimage.__file__).parent / "data"
    photographs = [p.read_bytes() for p in sorted(given.images.rglob("*.jp*g"))]
    set_up(LIMITS.max_pixels)
    device = torch.device("cuda", 0)
    geometry = Geometry.of(BASE)
    assert geometry is not None
    decoder = GpuJpegDecoder(geometry, (0, 0), device)
    rates(decoder, "640 × 480", crops(photographs, 256, (640, 480)), given.seconds)
    rates(decoder, "photographs", (photographs * 256)[:256], given.seconds)
    rates(decoder, "4000 × 3000", crops(photographs, 8, (4000, 3000)) * 2, given.seconds)
    for name in CONFIGS:
        pixels(name, photographs[:100], device)
    embeddings(photographs, device, given.weights)


if __name__ == "__main__":
    main()
