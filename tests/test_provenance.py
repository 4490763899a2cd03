"""What decides and does not stand in the config leaves a trace: weights, and classes of the user's
own with the files that they read. All of it may be replaced in place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamer.config import parse
from streamer.model.model import load_model
from streamer.provenance import describe, fingerprints
from tests.test_config import MINIMAL

PLUGINS = """
import torch
from streamer import Filter, Head

class Bright(Head):
    dim = 256
    def __init__(self, weights):
        self.vector = torch.load(weights, weights_only=True)["vector"]
    def score(self, embeddings):
        return embeddings @ self.vector

class Plain(Head):
    dim = 256
    def score(self, embeddings):
        return embeddings[:, 0]

class Hosts(Filter):
    def __init__(self, paths):
        self.words = [open(path).read() for path in paths]
    def keep(self, row):
        return True
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "traced_plugins.py"
    path.write_text(PLUGINS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def described(**settings: Any) -> dict[str, Any]:
    sys.modules.pop("traced_plugins", None)
    embedder = {"type": "tests.plugins.thumbnail:ThumbnailEmbedder"}
    config = parse({**MINIMAL, "embedder": embedder, "dedup": "off", "device": "cpu", **settings})
    return describe(config, load_model(config))


def write_linear(path: Path, value: float) -> None:
    save_file({"weight": torch.full((1, 256), value)}, path)


def write_vector(path: Path, value: float) -> None:
    torch.save({"vector": torch.full((256,), value)}, path)


def write_text(path: Path, value: float) -> None:
    path.write_text(str(value))


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (write_linear, {"heads": [{"type": "linear", "name": "x", "weights": "FILE"}]}),
        (write_linear, {"heads": [{"type": "mlp", "name": "x", "weights": "FILE"}]}),
        (
            write_vector,
            {"heads": [{"type": "traced_plugins:Bright", "name": "x", "args": {"weights": "FILE"}}]},
        ),
        (
            write_text,
            {"filters": [
                {"type": "traced_plugins:Hosts", "name": "x", "args": {"paths": ["FILE"]}}
            ]},
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_replaced_in_place(
    tmp_path: Path, plugins: Path, write: Callable[[Path, float], None], settings: dict[str, Any]
) -> None:
    file = tmp_path / ("it.pt" if write is write_vector else "it.safetensors")
    settings = _with(settings, str(file))
    write(file, 0.5)
    first, again = described(**settings), described(**settings)
    write(file, 0.25)
    other = described(**settings)
    assert first == again
    assert other["config"] != first["config"]
    assert other["model"] == first["model"]
    changed = {key for key in first if first[key] != other[key]} - {"config"}
    assert changed
    assert changed <= {"heads", "plugins"}
    write(file, 0.5)
    assert described(**settings) == first


def _with(tree: Any, file: str) -> Any:
    if isinstance(tree, dict):
        return {key: _with(value, file) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with(value, file) for value in tree]
    return file if tree == "FILE" else tree


def test_the_code_of_a_plugin(plugins: Path) -> None:
    settings = {"heads": [{"type": "traced_plugins:Plain", "name": "plain"}]}
    first = described(**settings)
    assert first["heads"][0]["fingerprint"] == "", "it has no weights"
    plugins.write_text(PLUGINS.replace("embeddings[:, 0]", "embeddings[:, 17] + 0.0"))
    assert described(**settings)["config"] != first["config"]


def test_what_the_files_say(tmp_path: Path, plugins: Path) -> None:
    write_linear(tmp_path / "w.safetensors", 0.5)
    heads = [{"type": "linear", "name": "x", "weights": str(tmp_path / "w.safetensors")}]
    pipeline = described(heads=heads)
    [head] = pipeline["heads"]
    assert head["weights"] == heads[0]["weights"]
    assert head["fingerprint"].startswith("sha256:")
    assert pipeline["plugins"].keys() == {"tests.plugins.thumbnail:ThumbnailEmbedder"}
    told = fingerprints(parse(MINIMAL), pipeline)
    assert told["heads"] == {"x": head["fingerprint"]}
    assert told["config"] == pipeline["config"]
