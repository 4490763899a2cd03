r"""How much of the network's own speed is left when the whole line runs around it?

Photographs through the embedded broker, the real decoder, model, claims, shards and commits, in
one process or in several on one GPU; against the same model without the line, before and after it:
the network alone (its pixels are on the device, nothing comes back) and `Model.submit` alone (from
pixels on the host to vectors on the host). Weights are random unless the model is the demo's:
speed does not depend on them. Pictures are parts of the demo's photographs, or of those of
`--photos DIR`; `--images DIR` takes the files as they are.

    python3 tasks.py bench end_to_end [--model tf_efficientnet_lite0] [--records 1000]
    python3 tasks.py bench end_to_end --model vit_base_patch16_224 --records 160
    python3 tasks.py bench end_to_end --model vit_base_patch32_clip_224.openai --precision bf16 \
        --device cuda:0 --decode gpu --batch 512 --replicas 3 --records 90000

Rates of the line: ``line_per_s`` is of all records but the first batch written, from the moment it
was written down as decided to the moment the last one was; ``steady_per_s`` from the moment when a
tenth of the records was decided to the moment when nine tenths were. All replicas count together,
and begin together, with their models loaded and warm. CPU is counted from a replica's first
assignment to its last commit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Watched, broker, emit, fill, run_line  # isort: skip - before numpy

import numpy as np
import torch
from PIL import Image

from benchmarks.nvml import GpuWatch
from benchmarks.pictures import photographs, pictures
from streamer import app
from streamer.config import parse as parse_config
from streamer.model.device import choose
from streamer.model.model import Model, load_model

READY, GO = "ready", "go"


def main() -> None:
    if sys.argv[1:2] == ["--replica"]:
        replica(json.loads(sys.argv[2]))
        return
    given = options()
    data = images(given)
    with broker() as servers, tempfile.TemporaryDirectory() as folder:
        name = f"end-to-end-{uuid.uuid4().hex[:8]}"
        topic = given.topic or f"{name}-in"
        if given.topic is None:
            fill(servers, topic, data, partitions=2 * given.replicas)
        checkpoint = write_weights(given, data, Path(folder) / "weights.safetensors")
        setting = settings(given, name, servers, topic, checkpoint, folder)
        with replicas(setting, given) as running:
            model = load_model(parse_config(setting))
            pixels = [model.embedder.transform(opened(jpeg)) for jpeg in data[: given.batch]]
            for process in running:
                expect(process, READY)
            before = alone(model, pixels, given.alone)
            with GpuWatch(model.device) as watch:
                results = together(running)
        after = alone(model, pixels, given.alone)
    asked = {key: str(v) if isinstance(v, Path) else v for key, v in vars(given).items()}
    used = {"device": str(model.device), "torch_threads": torch.get_num_threads()}
    emit("end_to_end", **(asked | used | report(results, before, after, watch)))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--records", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--decode", choices=("auto", "cpu", "gpu"), help="decode.device")
    parser.add_argument("--decode-threads", type=int, default=2, help="of each replica")
    parser.add_argument("--dedup", choices=("on", "off"), default="on")
    parser.add_argument("--replicas", type=int, default=1, help="processes on one device")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="what pictures are parts of")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs, taken as they are")
    parser.add_argument("--topic", help="one that is filled already: its first --records")
    parser.add_argument("--alone", type=float, default=5.0, metavar="S", help="0: the line only")
    return parser.parse_args()


def images(given: argparse.Namespace) -> list[bytes]:
    """What goes into the topic; where that is filled, what the model alone is measured with."""
    count = given.batch if given.topic else given.records
    if given.images is None:
        return pictures(photographs(given.photos), count)
    return list(itertools.islice(itertools.cycle(photographs(given.images)), count))


def settings(
    given: argparse.Namespace, name: str, servers: str, topic: str, checkpoint: Path, folder: str
) -> dict[str, Any]:
    decode = {"threads": given.decode_threads} | ({"device": given.decode} if given.decode else {})
    return {
        "dataset": name,
        "writer": "bench",
        "kafka": {"bootstrap_servers": servers, "topic": topic},
        "embedder": {
            "type": "timm",
            "model": given.model,
            "pretrained": False,
            "checkpoint": str(checkpoint),
            "precision": given.precision,
        },
        "dedup": {"threshold": 0.95} if given.dedup == "on" else "off",
        "output": {"path": folder},
        "batch": {"size": given.batch, "linger": "100ms"},
        "decode": decode,
        "http": {"host": "127.0.0.1", "port": 0},
        "device": given.device,
    }


# The replicas


@contextlib.contextmanager
def replicas(
    setting: dict[str, Any], given: argparse.Namespace
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that load the model and wait; they end with this one."""
    running = []
    try:
        for i in range(given.replicas):
            task = {
                "config": setting | {"writer": f"bench-{i}"},
                "records": given.records if given.topic else None,
            }
            command = [sys.executable, "-m", "benchmarks.end_to_end", "--replica", json.dumps(task)]
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def together(running: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    for process in running:
        assert process.stdin is not None
        print(GO, file=process.stdin)
    return [json.loads(expect(process, "{")) for process in running]


def expect(process: subprocess.Popen[str], start: str) -> str:
    """The process's next line that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise SystemExit(f"a replica ended with status {process.wait()}; its messages are above")


def replica(task: dict[str, Any]) -> None:
    """The child's side."""
    config = parse_config(task["config"])
    model = load_model(config)
    assert model.pixels_shape is not None
    model.submit([np.zeros(model.pixels_shape, np.uint8)] * config.batch.size).result()
    print(READY, flush=True)
    if sys.stdin.readline().strip() != GO:
        raise SystemExit("the benchmark ended before it began")
    parts = app.Parts(load_model=lambda _: model, metrics=Watched)
    result = run_line(config, parts, task["records"])
    print(json.dumps(result | {"decided": Watched.last.decided}), flush=True)


# The model alone


def alone(model: Model, pixels: list[np.ndarray], seconds: float) -> dict[str, float]:
    """Images per second of the network, and of `Model.submit`."""
    resident = torch.from_numpy(np.stack(pixels)).to(model.device)

    def network() -> None:
        with torch.inference_mode():
            vectors = model.embedder.embed(resident)
            for head in model.heads:
                head.score(vectors)

    def submit() -> None:
        model.submit(pixels).result()

    if not seconds:
        return {}
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    return {
        name: len(pixels) * per_second(work, wait, seconds)
        for name, work in (("network", network), ("submit", submit))
    }


def per_second(work: Callable[[], None], wait: Callable[[], None], seconds: float) -> float:
    """Calls, eight and more between two waits for the device, so that it never waits for us."""
    work()
    wait()
    began, calls = time.monotonic(), 0
    while calls == 0 or time.monotonic() - began < seconds:
        for _ in range(8 if wait is torch.cuda.synchronize else 1):
            work()
            calls += 1
        wait()
    return calls / (time.monotonic() - began)


# What came out


def report(
    results: list[dict[str, Any]],
    before: dict[str, float],
    after: dict[str, float],
    watch: GpuWatch,
) -> dict[str, Any]:
    events = sorted((at, n) for result in results for at, n in result.pop("decided"))
    times, done = np.array([at for at, _ in events]), np.cumsum([n for _, n in events])
    tenth, ninth = (int(np.searchsorted(done, share * done[-1])) for share in (0.1, 0.9))
    line = rate(times, done, 0, len(done) - 1)
    steady = rate(times, done, tenth, ninth)
    records = sum(result["records"] for result in results)
    threads: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    cores = 0.0
    for result in results:
        cores += sum(result["thread_cpu_s"].values()) / result["seconds"]
        threads.update(result.pop("thread_cpu_s"))
        outcomes.update(result["outcomes"])
    cpu_us = {name: round(1e6 * seconds / records, 1) for name, seconds in threads.most_common()}
    return compared(line, steady, before, after) | {
        "records_decided": records,
        "written_again": int(done[-1]) - records,
        "outcomes": dict(outcomes),
        "cpu_us_per_record": round(sum(cpu_us.values()), 1),
        "cpu_us_by_thread": cpu_us,
        "cores_busy": round(cores, 2),
        "stage_share": {
            stage: round(float(np.mean([result["stage_share"][stage] for result in results])), 3)
            for stage in results[0]["stage_share"]
        },
        "gpu": watch.between(times[tenth], times[ninth]),
        "by_replica": results,
    }


def compared(
    line: float, steady: float, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """The rates and their ratios."""
    told: dict[str, Any] = {"line_per_s": line, "steady_per_s": steady}
    speeds = {name: (before[name] + after[name]) / 2 for name in before}
    for name, speed in speeds.items():
        told[f"{name}_per_s"] = round(speed, 1)
        told[f"{name}_before_after"] = [round(before[name], 1), round(after[name], 1)]
        told[f"line_over_{name}"] = round(line / speed, 3)
        told[f"steady_over_{name}"] = round(steady / speed, 3)
    if speeds:
        told["submit_over_network"] = round(speeds["submit"] / speeds["network"], 3)
    return told


def rate(times: np.ndarray, done: np.ndarray, first: int, last: int) -> float:
    """Records per second between two events; 0 where there is no time between them."""
    seconds = times[last] - times[first]
    return round(float((done[last] - done[first]) / seconds), 1) if seconds else 0.0


# The model's weights


def write_weights(given: argparse.Namespace, data: Sequence[bytes], path: Path) -> Path:
    """The demo's real weights for its model, random ones for any other."""
    if given.model == "tf_efficientnet_lite0":
        from streamer.model.lite0 import write_demo_checkpoint

        return write_demo_checkpoint(path)
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(given.model).to(choose(given.device)).eval()
    if isinstance(getattr(model, "norm", None), torch.nn.LayerNorm):
        spread(model, data[:32])
    save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, path)
    return path


def spread(model: Any, data: Sequence[bytes]) -> None:
    """Takes the mean off what a transformer with random weights makes of images: without it their
    vectors differ so little that nearly all of them are each other's duplicates."""
    import timm.data

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(opened(jpeg)) for jpeg in data])
    images = images.to(next(model.parameters()).device)
    pooled = getattr(model, "fc_norm", None)
    last = pooled if isinstance(pooled, torch.nn.LayerNorm) else model.norm
    with torch.inference_mode():
        seen = model.forward_head(model.forward_features(images), pre_logits=True).mean(dim=0)
    with torch.no_grad():
        last.bias -= seen


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


if __name__ == "__main__":
    main()
