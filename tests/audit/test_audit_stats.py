"""`dataset stats` against DuckDB's own count of the same files."""

import json
import subprocess
import sys

import duckdb
import numpy as np
import pytest
from sink_data import make_dataset

from streamer.audit import stats
from streamer.audit.stats import statistics
from streamer.errors import DependencyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stats")
    make_dataset(str(root), shard_records=9)
    return root / "cats"


def query(folder, what, rest="group by all"):
    return dict(
        duckdb.sql(f"select {what}, count(*) from '{folder}/metadata/*.parquet' {rest}").fetchall()
    )


def test_counts(folder):
    found = statistics(str(folder)).as_json()
    assert found["outcomes"] == query(folder, "outcome")
    assert found["reasons"] == query(folder, "reason", "where reason is not null group by all")
    assert found["flags"] == query(folder, "f", ", unnest(flags) t(f) group by all")
    assert found["formats"] == query(folder, "format", "where outcome = 'accepted' group by all")
    assert found["records"] == 180
    assert found["epochs"] == 5
    assert {w: sum(c.values()) for w, c in found["writers"].items()} == {"w-0": 100, "w-1": 80}
    assert {p: sum(c.values()) for p, c in found["partitions"].items()} == {"0": 90, "1": 90}
    tars = list(folder.glob("shards/*/*.tar"))
    assert (found["shards"], found["shard_bytes"]) == (
        len(tars),
        sum(t.stat().st_size for t in tars),
    )
    assert found["table_bytes"] == sum(t.stat().st_size for t in folder.glob("metadata/*"))
    [[nbytes]] = duckdb.sql(
        f"select sum(bytes) from '{folder}/metadata/*.parquet' where outcome = 'accepted'"
    ).fetchall()
    assert found["image_bytes"] == nbytes


def test_quantiles(folder):
    scores = statistics(str(folder)).as_json()["scores"]["aesthetic"]
    rows = duckdb.sql(
        f"select aesthetic_score from '{folder}/metadata/*.parquet' where aesthetic_score is not null"
    ).fetchall()
    values = np.array(rows)[:, 0]
    assert scores["count"] == len(values)
    expected = {f"{q:g}": np.quantile(values, q) for q in stats.QUANTILES}
    assert scores["quantiles"] == pytest.approx(expected, abs=1e-6)


def test_many_scores_are_sampled_and_the_ends_stay_exact(folder, monkeypatch):
    monkeypatch.setattr(stats, "KEPT_SCORES", 30)
    scores = statistics(str(folder)).scores["aesthetic"]
    assert sum(v.size for v in scores.kept) <= 60
    assert scores.count > 100
    [[low, high, median]] = duckdb.sql(
        f"select min(aesthetic_score), max(aesthetic_score), median(aesthetic_score) from '{folder}/metadata/*.parquet'"
    ).fetchall()
    quantiles = scores.quantiles()
    assert (quantiles["0"], quantiles["1"]) == (
        pytest.approx(low, abs=1e-6),
        pytest.approx(high, abs=1e-6),
    )
    assert quantiles["0.5"] == pytest.approx(median, abs=0.25)


def test_a_broken_folder_is_an_error_that_says_where(tmp_path, folder):
    with pytest.raises(DependencyError, match="has no manifest"):
        statistics(str(tmp_path))
    make_dataset(str(tmp_path))
    (tmp_path / "cats/metadata/w-0-00000000.parquet").write_bytes(b"x")
    with pytest.raises(DependencyError, match=r"w-0-00000000\.parquet.*dataset verify"):
        statistics(str(tmp_path / "cats"))


def test_the_command(folder):
    run = [sys.executable, "-m", "streamer", "dataset", "stats", str(folder)]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True, timeout=100)
    assert json.loads(done.stdout) == statistics(str(folder)).as_json()
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=100)
    assert "records: 180, epochs: 5" in done.stdout
    assert "near_duplicate" in done.stdout
