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
    make_dataset(str(root), shard_records=7, score_names=())
    later = Maker(
        Storage(str(root), "cats"), formats=("webp",), seed=9, score_names=("aesthetic", "bright")
    )
    later.next = {7: 0}
    later.commit("w-9", {7: 20})
    later.seal("w-9", {7: 20})
    later.last["w-8"] = (-1, None)
    later.formats, later.score_names = ("jpg", "png"), ("aesthetic",)
    later.next = {8: 0}
    later.commit("w-8", {8: 60})
    snapshot = root / "cats/.index/w-9/000000000123-0a1b2c3d"
    snapshot.mkdir(parents=True)
    (snapshot / "state.bin").write_bytes(b"x" * 99)
    (snapshot / "header.json").write_text('{"format": 1}')
    return root / "cats"


def accepted(dataset: Path, extension: str) -> dict[str, tuple[str, str]]:
    """key → (sha256, text), by DuckDB from the Parquet files."""
    rows = duckdb.read_parquet(f"{dataset}/metadata/*.parquet", union_by_name=True)
    wanted = rows.filter(f"outcome = 'accepted' and format = '{extension}'")
    found = wanted.project("key, sha256, text").fetchall()
    assert len(found) > 5
    return {key: (sha256, text) for key, sha256, text in found}


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
    rows = duckdb.read_parquet(f"{dataset}/metadata/*.parquet", union_by_name=True)
    by_outcome = dict(rows.aggregate("outcome, count(*)").fetchall())
    counts = dict.fromkeys(OUTCOMES, 0)
    for path in dataset.glob("manifests/*.json"):
        for outcome, n in json.loads(path.read_bytes())["counts"].items():
            counts[outcome] += n
    assert by_outcome == {o: n for o, n in counts.items() if n}
    manifests = duckdb.sql(
        f"select writer, count(*), sum(counts.accepted) from read_json('{dataset}/manifests/*.json') group by 1"
    ).fetchall()
    assert sorted(w for w, _, _ in manifests) == ["w-0", "w-1", "w-8", "w-9"]


def test_a_head_that_was_added_later(dataset):
    """The rows of the first epochs have no such column; every recipe that is written down shows
    both."""
    rows = duckdb.read_parquet(f"{dataset}/metadata/*.parquet", union_by_name=True)
    scored = dict(rows.aggregate("split_part(key, '_', 1), count(aesthetic_score)").fetchall())
    bright = dict(rows.aggregate("split_part(key, '_', 1), count(bright_score)").fetchall())
    assert scored["00000"] == scored["00001"] == bright["00000"] == bright["00008"] == 0
    assert min(scored["00007"], scored["00008"], bright["00007"]) > 5
    frame = rows.project("key, bright_score").df()
    assert frame["bright_score"].notna().sum() == bright["00007"]
    with pytest.raises(duckdb.Error, match="bright_score"):
        duckdb.sql(f"select bright_score from '{dataset}/metadata/*.parquet'").fetchall()


def test_the_recipes_of_the_dataset_s_own_page(dataset, tmp_path):
    """Every line of its code, in the dataset's folder."""
    code = (dataset / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(dataset))
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=dataset, env=env,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout


@pytest.mark.parametrize("score_names", [(), ("aesthetic",)])
def test_hugging_face_writes_it_to_parquet(tmp_path, score_names):
    """An object without a field has no type there."""
    maker = Maker(Storage(str(tmp_path), "cats"), formats=("jpg",), score_names=score_names)
    maker.commit("w-0", {0: 30})
    code = """if True:
        import sys, datasets
        loaded = datasets.load_dataset(sys.argv[1], split="train")
        loaded.to_parquet(sys.argv[2])
        print(loaded.features["json"])
    """
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cats"), str(tmp_path / "x.parquet")],
        env=env, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("scores" in done.stdout) == bool(score_names)


def test_the_bytes_are_real_images(dataset):
    [tar, *_] = sorted((dataset / "shards" / "png").glob("*.tar"))
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        with Image.open(io.BytesIO(sample["png"])) as image:
            image.load()
            assert image.format == "PNG"
