"""The whole line with JPEGs that go to a decoder on the device, beside the one that decodes all on
the CPU: both datasets hold the same. The device's decoder computes on the CPU here; what surrounds
it is what runs beside a GPU."""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from streamer import app
from streamer.config import Config, parse
from streamer.model.jpeg import decoder
from streamer.model.jpeg.decoder import DECODERS
from streamer.model.lite0 import write_demo_checkpoint
from streamer.model.model import Model, load_model
from streamer.range import live_range
from streamer.records import Jpeg
from streamer.testing import create_topic, produce
from tests.integration.conftest import make_service  # noqa: F401 - the fixture
from tests.integration.forked import CONTEXT
from tests.integration.service import (
    Made,
    check_exactly_once,
    read_output,
    streamer,
    verified,
)
from tests.model.jpeg.conftest import without_cupy
from tests.model.jpeg.files import encoded, picture
from tests.model.jpeg.host import HostJpegDecoder

__all__ = ["without_cupy"]
COLUMNS = ("id", "outcome", "reason", "sha256", "format", "width", "height")
pytestmark = pytest.mark.timeout(900)


def run(config: Config, device: bool) -> list[HostJpegDecoder]:
    decoders: list[HostJpegDecoder] = []

    def load(config: Config) -> Model:
        model = load_model(config)
        if device:
            decoders.extend(HostJpegDecoder(model.embedder.transform) for _ in range(DECODERS))
        model.jpeg_decoders = tuple(decoders)
        return model

    app.run_range(
        config,
        lambda admin, topic: live_range(config, admin, topic, "end"),
        threading.Event().is_set,
        app.Parts(load_model=load),
    )
    return decoders


def test_both_paths_make_the_same_dataset(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    data_set: Path,
    large: bool,
    tmp_path: Path,
    without_cupy: None,
) -> None:
    checkpoint = write_demo_checkpoint(tmp_path / "lite0.safetensors")
    for at, folder in enumerate(("hostile", "photos/coco" if large else "photos/skimage")):
        create = ("--create-topic", "--partitions", "2") if at == 0 else ()
        streamer(
            "produce", str(data_set / folder), "--topic", topic_name, "--bootstrap", kafka, *create,
        )  # fmt: skip

    def settings(name: str) -> dict[str, Any]:
        return {
            "dataset": name, "writer": "w0", "kafka": {"bootstrap_servers": kafka, "topic": topic_name},
            "embedder": {
                "type": "timm", "model": "tf_efficientnet_lite0", "pretrained": False,
                "checkpoint": str(checkpoint),
            },
            "dedup": "off", "dead_letters": {"max_ratio": 1}, "batch": {"size": 32},
            "output": {"path": str(tmp_path / name)}, "http": {"host": "127.0.0.1", "port": 0},
        }  # fmt: skip

    rows = {}
    for device in (False, True):
        name = f"{dataset_name}-{'device' if device else 'cpu'}"
        decoders = run(parse(settings(name)), device)
        folder = tmp_path / name / name
        verified(folder)
        rows[device] = {
            origin: [row[column] for column in COLUMNS]
            for origin, row in read_output(folder).by_origin.items()
        }
        if device:
            assert sum(len(decoder.seen) for decoder in decoders) > (100 if large else 5)
            assert sum(decoder.refused for decoder in decoders) >= (2 if large else 0)
    assert rows[True] == rows[False]


def live(arguments: tuple[str, ...], log: str) -> None:
    """The body of a process: `streamer` with a device that decodes."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.modules.setdefault("cupy", ModuleType("cupy"))

    class Telling(HostJpegDecoder):
        def decode(self, jpegs: Sequence[Jpeg]) -> list[torch.Tensor | None]:
            Path(f"{log}.decoded").touch()
            return super().decode(jpegs)

    decoder.choose_decoders = lambda config, embedder, device: (  # type: ignore[assignment]
        tuple(Telling(embedder.transform) for _ in range(DECODERS)),
        "decoded by a test",
    )
    sys.argv = ["streamer", *arguments]
    importlib.import_module("streamer.cli").entry()


def test_replicas_that_are_killed_lose_and_double_nothing(
    kafka: str,
    topic_name: str,
    dataset_name: str,
    make_service: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    create_topic(kafka, topic_name, partitions=4)
    service = make_service(dataset_name, dedup={"threshold": 0.97}, batch={"size": 16})
    service.settings["output"] |= {"epoch_records": 40, "seal_after": "500ms"}
    service.settings["dead_letters"] = {"max_ratio": 1}
    configs = {
        writer: str(
            service.config(
                writer=writer, kafka={**service.settings["kafka"], "group_instance_id": writer}
            )
        )
        for writer in ("w0", "w1")
    }
    produced: dict[tuple[int, int], bytes] = {}
    logs = count()

    def more(n: int) -> None:
        files = [encoded(picture(len(produced) + i, (64, 48))) for i in range(n)]
        files[::10] = [data[:-400] + b"\xff\xd9" for data in files[::10]]
        origins = produce(kafka, topic_name, [(data, {}) for data in files])
        produced.update(zip(origins, files, strict=True))

    def start(writer: str, *args: str) -> Any:
        arguments = ("run", "-c", configs[writer], *args)
        process = CONTEXT.Process(
            target=live, args=(arguments, str(tmp_path / f"{next(logs)}.log")), daemon=True
        )
        process.start()
        return process

    rng = random.Random(5)
    running = {writer: start(writer) for writer in configs}
    for _ in range(5):
        more(80)
        time.sleep(rng.uniform(3, 6))
        writer = rng.choice(list(running))
        running[writer].kill()
        running[writer].join()
        running[writer] = start(writer)
    for process in running.values():
        process.terminate()
        process.join(120)
        assert process.exitcode == 0
    last = start("w0", "--until", "end")
    last.join(200)
    assert last.exitcode == 0
    assert len(list(tmp_path.glob("*.decoded"))) >= 3
    output = read_output(service.output)
    reasons = Counter(row["reason"] for row in output.of("invalid"))
    assert reasons == {"truncated": len(produced) // 10}
    check_exactly_once(output, produced, 0.97)
    verified(service.output)
