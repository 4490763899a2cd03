"""The whole line with JPEGs that go to a decoder on the device, beside the one that decodes all on
the CPU: both datasets hold the same. The device's decoder computes on the CPU here; what surrounds
it is what runs beside a GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from streamer import app
from streamer.config import Config, parse
from streamer.model.jpeg.decoder import DECODERS
from streamer.model.lite0 import write_demo_checkpoint
from streamer.model.model import Model, load_model
from streamer.range import live_range
from tests.integration.service import read_output, streamer, verified
from tests.model.jpeg.conftest import without_cupy
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
