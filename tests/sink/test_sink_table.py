"""The Parquet table: the contract's columns, what is null, and that other tools read it."""

import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sink_data import Maker, accepted_facts

from streamer.records import DecidedBatch, Decision, Facts, Record
from streamer.sink import table
from streamer.sink.local import LocalFolder
from streamer.sink.storage import Storage
from streamer.sink.table import TableWriter, table_schema

CONTRACT = """
key shard topic partition offset timestamp id text url format width height bytes sha256 outcome reason detail flags duplicate_of similarity claim
embedding aesthetic_score nsfw_score metadata pipeline
"""


def decided(n=4, dim=8):
    facts = [
        accepted_facts(1),
        Facts(),
        accepted_facts(2, text="", metadata={}),
        Facts(data=b"xx", id="x"),
    ]
    decisions = [
        Decision("accepted", flags=("a", "b"), claim=11),
        Decision("invalid", "empty_value", detail="neither bytes nor a uri"),
        Decision(
            "duplicate", "near_duplicate", duplicate_of=(4, 5), similarity=0.1 + 0.2, claim=12
        ),
        Decision("filtered", "min_side", ("min_side",)),
    ]
    records = [
        Record(65_535, 2**40 + i, 0 if i == 1 else 1_700_000_000_123, b"v", ()) for i in range(4)
    ]
    vectors = np.random.default_rng(0).standard_normal((4, dim)).astype(np.float16)
    scores = {
        "aesthetic": np.array([11.3, np.nan, -2.46, np.nan], np.float32),
        "nsfw": np.array([0, np.nan, 1, np.nan], np.float32),
    }
    some = slice(0, n)
    return DecidedBatch(
        records[some], facts[some], decisions[some], vectors[some], np.array([True, False, True, False])[some], {k: v[some] for k, v in scores.items()}
    )  # fmt: skip


def writer(tmp_path, dim=8, **facts):
    schema = table_schema(dim, ("aesthetic", "nsfw"), facts)
    return TableWriter(
        LocalFolder(tmp_path).create, "metadata/x.parquet", schema, dim, "photos", "0123"
    )


FORMS = [
    pytest.param(
        True, marks=pytest.mark.skipif(not table.FIXED_SIZE, reason="this pyarrow cannot read it")
    ),
    False,
]
"""Of the embedding column: a fixed-size list, and what pyarrow before 26 gets instead."""


@pytest.mark.parametrize("fixed_size", FORMS)
def test_every_column_of_the_contract_with_its_value(tmp_path, monkeypatch, fixed_size):
    monkeypatch.setattr(table, "FIXED_SIZE", fixed_size)
    writing = writer(tmp_path, threshold=0.95, model="sha256:aa", heads={"nsfw": "sha256:bb"})
    batch = decided()
    writing.append(batch, ["shards/jpg/x.tar", None, None, None], ['{"a":1}', None, "{}", None])
    entry = writing.close()
    assert (entry.path, entry.rows, entry.bytes) == (
        "metadata/x.parquet",
        4,
        (tmp_path / "metadata/x.parquet").stat().st_size,
    )
    read = pq.read_table(tmp_path / "metadata/x.parquet")
    assert read.column_names == CONTRACT.split()
    assert read.schema.field("embedding").type == (
        pa.list_(pa.float16(), 8) if fixed_size else pa.list_(pa.float16())
    )
    assert read.schema.field("timestamp").type == pa.timestamp("ms", "UTC")
    first, second, third, fourth = read.drop_columns(["embedding"]).to_pylist()
    facts = batch.facts[0]
    timestamp = first.pop("timestamp")
    assert timestamp.isoformat() == "2023-11-14T22:13:20.123000+00:00"
    assert first == {
        "key": f"65535_{2**40:012d}", "shard": "shards/jpg/x.tar", "topic": "photos", "partition": 65_535, "offset": 2**40, "id": facts.id,
        "text": facts.text, "url": facts.url, "format": "jpg", "width": 32, "height": 24, "bytes": len(facts.data), "sha256": facts.sha256,
        "outcome": "accepted", "reason": None, "detail": None, "flags": ["a", "b"], "duplicate_of": None, "similarity": None, "claim": 11,
        "aesthetic_score": pytest.approx(11.3), "nsfw_score": 0.0, "metadata": '{"a":1}', "pipeline": "0123",
    }  # fmt: skip
    known = {
        "key",
        "topic",
        "partition",
        "offset",
        "outcome",
        "reason",
        "detail",
        "flags",
        "pipeline",
    }
    assert {k for k, v in second.items() if v is not None} == known
    assert second["detail"] == "neither bytes nor a uri"
    assert (third["text"], third["duplicate_of"], third["similarity"]) == (
        None,
        "00004_000000000005",
        0.1 + 0.2,
    )
    assert (fourth["bytes"], fourth["flags"], fourth["metadata"]) == (2, ["min_side"], None)
    embeddings = read["embedding"].to_pylist()
    assert [e is None for e in embeddings] == [False, True, False, True]
    assert np.array_equal(np.array(embeddings[2], np.float16), batch.embeddings[2])
    assert json.loads(read.schema.metadata[b"streamer.heads"]) == {"nsfw": "sha256:bb"}
    assert read.schema.metadata[b"streamer.threshold"] == b"0.95"
    assert read.schema.metadata[b"streamer.model"] == b"sha256:aa"
    assert read.schema.metadata[b"streamer.dim"] == b"8"


def test_row_groups_bound_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "GROUP_ROWS", 10)
    writing = writer(tmp_path)
    for _ in range(7):
        writing.append(decided(), [None] * 4, [None] * 4)
        assert writing._waiting_rows < 10
    assert writing.close().rows == 28
    parquet = pq.ParquetFile(tmp_path / "metadata/x.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [
        12,
        12,
        4,
    ]


def test_no_row_no_file(tmp_path):
    assert writer(tmp_path).close() is None
    assert list(tmp_path.iterdir()) == []


def test_rows_keep_the_order_of_the_line(tmp_path):
    manifest = Maker(Storage(str(tmp_path), "cats")).commit(sizes={0: 40, 1: 40})
    [path] = [f.path for f in manifest.files if f.path.endswith(".parquet")]
    rows = pq.read_table(tmp_path / "cats" / path, columns=["partition", "offset"]).to_pylist()
    assert [(r["partition"], r["offset"]) for r in rows] == [
        (p, o) for p in (0, 1) for o in range(40)
    ]


def test_duckdb_reads_it(tmp_path):
    maker = Maker(Storage(str(tmp_path), "cats"))
    manifests = [maker.commit(sizes={0: 60}) for _ in range(3)]
    glob = f"'{tmp_path}/cats/metadata/*.parquet'"
    counts = dict(duckdb.sql(f"select outcome, count(*) from {glob} group by all").fetchall())
    expected = {}
    for manifest in manifests:
        for outcome, n in manifest.counts.items():
            expected[outcome] = expected.get(outcome, 0) + n
    assert counts == expected
    assert len(counts) == 4
    # A duplicate's similarity, computed again by somebody else's engine from the stored vectors
    again = duckdb.sql(
        f"select d.similarity, list_inner_product(d.embedding::double[], w.embedding::double[]) from {glob} d join {glob} w on d.duplicate_of = w.key"
    ).fetchall()
    assert len(again) == counts["duplicate"]
    assert all(stored == computed for stored, computed in again)
    assert duckdb.sql(
        f"select metadata->>'$.lang' from {glob} where outcome = 'accepted' limit 1"
    ).fetchall() == [("es",)]


def test_texts_of_more_than_2_gib_in_one_batch(tmp_path):
    """Where a column of Arrow's ends."""
    n, text = 240, "x" * 9_500_000
    assert n * len(text) > 1 << 31
    writing = writer(tmp_path)
    writing.append(
        DecidedBatch(
            [Record(0, i, 0, b"v", ()) for i in range(n)],
            [Facts(text=text, data=b"v") for _ in range(n)],
            [Decision("filtered", "text_length")] * n,
            np.zeros((n, 8), np.float16),
            np.zeros(n, bool),
            {"aesthetic": np.zeros(n, np.float32), "nsfw": np.zeros(n, np.float32)},
        ),
        [None] * n,
        [None] * n,
    )
    assert writing.close().rows == n
    read = pq.ParquetFile(tmp_path / "metadata/x.parquet")
    offsets = [
        offset
        for group in range(read.num_row_groups)
        for offset in read.read_row_group(group, columns=["offset"])["offset"].to_pylist()
    ]
    assert offsets == list(range(n))
    last = read.read_row_group(read.num_row_groups - 1, columns=["text"])["text"]
    assert {len(value.as_py()) for value in last} == {len(text)}
