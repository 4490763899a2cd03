"""What is written opens, as it is, in the tools that people train with."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import webdataset
from PIL import Image
from sink_data import Maker, make_dataset

from streamer.records import OUTCOMES
from streamer.sink.storage import Storage

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
"""webdataset leaves the tars that it read to the garbage collector."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two formats in the first epochs, a third that comes later, a head that the first epochs did
    not have, staging left over, and a snapshot."""
    root = tmp_path_factory.mktemp("loaders")
    make_dataset(str(root), shard_records=7)
    later = Maker(Storage(str(root), "cats"), formats=("webp",), seed=9)
    later.next = {7: 0}
    later.commit("w-9", {7: 20})
    later.seal("w-9", {7: 20})
    snapshot = root / "cats/.index/w-9/000000000123-0a1b2c3d"
    snapshot.mkdir(parents=True)
    (snapshot / "state.bin").write_bytes(b"x" * 99)
    (snapshot / "header.json").write_text('{"format": 1}')
    return root / "cats"


def accepted(dataset: Path, extension: str) -> dict[str, tuple[str, str]]:
    """key → (sha256, text), by DuckDB from the Parquet files."""
    rows = duckdb.sql(
        f"select key, sha256, text from '{dataset}/metadata/*.parquet' where outcome = 'accepted' and format = '{extension}'"
    ).fetchall()
    assert len(rows) > 5
    return {key: (sha256, text) for key, sha256, text in rows}


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_webdataset(dataset, extension):
    tars = sorted(str(p) for p in (dataset / "shards" / extension).glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert {s["__key__"]: (s["json"]["sha256"], s["txt"]) for s in samples} == accepted(
        dataset, extension
    )
    assert all(s[extension].size == (32, 24) for s in samples)
    assert all(s["json"]["key"] == s["__key__"] for s in samples)


HUGGING_FACE = """if True:
    import hashlib, json, sys
    import datasets
    datasets.disable_progress_bars()
    folder, config, streaming = sys.argv[1], sys.argv[2], sys.argv[3] == "streaming"
    configs = datasets.get_dataset_config_names(folder)
    loaded = datasets.load_dataset(folder, *([] if config == "default" else [config]), split="train", streaming=streaming)
    features = loaded.features
    loaded = loaded.cast_column("jpg" if config == "default" else config, datasets.Image(decode=False))
    samples = {}
    for sample in loaded:
        image = sample["jpg" if config == "default" else config]["bytes"]
        samples[sample["__key__"]] = (hashlib.sha256(image).hexdigest(), sample["txt"])
        assert sample["json"]["sha256"] == samples[sample["__key__"]][0]
    print(json.dumps({"configs": configs, "features": {k: repr(v) for k, v in features.items()}, "samples": samples}))
"""


@pytest.mark.parametrize("streaming", ["streaming", "whole"])
@pytest.mark.parametrize("config", ["default", "png", "webp"])
def test_hugging_face_datasets(dataset, tmp_path, config, streaming):
    """In a process of its own: `datasets` reads its environment when it is imported."""
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    run = [sys.executable, "-c", HUGGING_FACE, str(dataset), config, streaming]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(loaded["configs"]) == {"jpg", "png", "webp"}
    extension = "jpg" if config == "default" else config
    assert {k: tuple(v) for k, v in loaded["samples"].items()} == accepted(dataset, extension)
    assert loaded["features"].keys() == {extension, "txt", "json", "__key__", "__url__"}
    assert loaded["features"][extension].startswith("Image")


def test_duckdb(dataset):
    by_outcome = dict(
        duckdb.sql(
            f"select outcome, count(*) from '{dataset}/metadata/*.parquet' group by all"
        ).fetchall()
    )
    counts = dict.fromkeys(OUTCOMES, 0)
    for path in dataset.glob("manifests/*.json"):
        for outcome, n in json.loads(path.read_bytes())["counts"].items():
            counts[outcome] += n
    assert by_outcome == {o: n for o, n in counts.items() if n}
    manifests = duckdb.sql(
        f"select writer, count(*), sum(counts.accepted) from read_json('{dataset}/manifests/*.json') group by 1"
    ).fetchall()
    assert sorted(w for w, _, _ in manifests) == ["w-0", "w-1", "w-9"]


def test_the_bytes_are_real_images(dataset):
    [tar, *_] = sorted((dataset / "shards" / "png").glob("*.tar"))
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        with Image.open(io.BytesIO(sample["png"])) as image:
            image.load()
            assert image.format == "PNG"
