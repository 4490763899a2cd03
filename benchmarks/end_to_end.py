"""How much of the model's own speed is left when the whole line runs around it?

Photographs through the embedded broker, the real decoder, model, claims, shards and commits;
against the bare forward of the same model, on pixels that are ready, in the same process and run,
before and after the line. Pictures: `--images DIR`, or the ones of the demo. Weights are random
unless the model is the demo's: speed does not depend on them.

    python3 tasks.py bench end_to_end [--model tf_efficientnet_lite0] [--records 1000]
    python3 tasks.py bench end_to_end --model vit_base_patch16_224 --records 160
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Watched, broker, emit, fill, run_line
from streamer import app
from streamer.config import parse as parse_config
from streamer.model.model import Model, load_model

BARE_S = 10.0


def pictures(folder: Path | None, records: int) -> list[bytes]:
    """``records`` different JPEGs: files of the folder, or the demo's photographs, each cropped
    differently where they repeat."""
    if folder is not None:
        originals = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    else:
        import skimage

        originals = [
            path.read_bytes()
            for path in sorted((Path(skimage.__file__).parent / "data").glob("*.[jp][pn]g"))
        ]
    rng = np.random.default_rng(3)
    made: list[bytes] = []
    for i, data in enumerate(itertools.islice(itertools.cycle(originals), records)):
        if i < len(originals) and folder is not None:
            made.append(data)
            continue
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((640, 480))
        x, y = int(rng.integers(0, 200)), int(rng.integers(0, 140))
        buffer = io.BytesIO()
        image.crop((x, y, x + 440, y + 340)).resize((640, 480)).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def bare(model: Model, pixels: list[np.ndarray], seconds: float) -> float:
    """Images per second of `Model.submit` alone."""
    model.submit(pixels).result()
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        model.submit(pixels).result()
        done += len(pixels)
    return done / (time.monotonic() - began)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="tf_efficientnet_lite0")
    options.add_argument("--records", type=int, default=1_000)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--decode-threads", type=int, default=2)
    options.add_argument("--device", default="auto")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--images", type=Path)
    given = options.parse_args()
    data = pictures(given.images, given.records)
    with broker() as servers, tempfile.TemporaryDirectory() as folder:
        checkpoint = write_weights(given.model, Path(folder) / "weights.safetensors")
        name = f"end-to-end-{uuid.uuid4().hex[:8]}"
        fill(servers, f"{name}-in", data, partitions=2)
        config = parse_config({
            "dataset": name, "writer": "bench", "kafka": {"bootstrap_servers": servers, "topic": f"{name}-in"},
            "embedder": {"type": "timm", "model": given.model, "pretrained": False, "checkpoint": str(checkpoint), "precision": given.precision},
            "dedup": {"threshold": 0.95}, "output": {"path": folder}, "batch": {"size": given.batch, "linger": "100ms"},
            "decode": {"threads": given.decode_threads}, "http": {"host": "127.0.0.1", "port": 0}, "device": given.device,
        })  # fmt: skip
        model = load_model(config)
        pixels = [
            model.embedder.transform(Image.open(io.BytesIO(d)).convert("RGB"))
            for d in data[: given.batch]
        ]
        before = bare(model, pixels, BARE_S)
        result = run_line(config, app.Parts(load_model=lambda _: model, metrics=Watched))
        after = bare(model, pixels, BARE_S)
    forward = (before + after) / 2
    emit(
        "end_to_end", model=given.model, device=str(model.device), precision=given.precision, batch=given.batch, torch_threads=torch.get_num_threads(),
        images_per_s=result["records_per_s"], bare_forward_per_s=round(forward, 2), bare_before_after=[round(before, 2), round(after, 2)],
        ms_per_image_bare=round(1000 / forward, 2), ratio=round(result["records_per_s"] / forward, 3), **result,
    )  # fmt: skip


def write_weights(name: str, path: Path) -> Path:
    """The demo's real weights for its model, random ones for any other."""
    if name == "tf_efficientnet_lite0":
        from streamer.model.lite0 import write_demo_checkpoint

        return write_demo_checkpoint(path)
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state: dict[str, Any] = {
        key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()
    }
    save_file(state, path)
    return path


if __name__ == "__main__":
    main()
