"""Shards: byte for byte what plain TarWriter writes, the same twice, rolled at their limits."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sink_data import Maker, accepted_facts
from webdataset.writer import TarWriter

from streamer.records import DecidedBatch, Decision, Facts, Record
from streamer.sink.shards import ShardWriter, TarStream, compact
from streamer.sink.storage import Storage

SIZES = (0, 1, 511, 512, 513, 10_239, 65_535, 65_536, 65_537, 300_000)


def samples():
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        yield {
            "__key__": f"{i:05d}_{i:012d}",
            "jpg": rng.bytes(size),
            "txt": "señal".encode(),
            "json": b"{}",
        }


def test_tar_stream_writes_the_bytes_of_plain_tar_writer():
    plain, ours = io.BytesIO(), io.BytesIO()
    reference = TarWriter(plain, mtime=0, encoder=False)
    buffered = io.BufferedWriter(ours)
    writer = TarWriter(buffered, mtime=0, encoder=False)
    writer.tarstream = TarStream(buffered)
    for sample in samples():
        reference.write(sample)
        writer.write(sample)
    reference.close()
    writer.close()
    buffered.flush()
    assert ours.getvalue() == plain.getvalue()
    assert len(ours.getvalue()) % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("members", [0, 17, 18, 19])
def test_the_end_of_a_tar_is_filled_up_like_tar_does(members):
    plain, ours = io.BytesIO(), io.BytesIO()
    reference, buffered = TarWriter(plain, mtime=0, encoder=False), io.BufferedWriter(ours)
    writer = TarWriter(buffered, mtime=0, encoder=False)
    writer.tarstream = TarStream(buffered)
    for w in (reference, writer):
        for i in range(members):
            w.write({"__key__": str(i), "txt": b""})
        w.close()
    buffered.flush()
    assert ours.getvalue() == plain.getvalue()


def batch(facts, **decision):
    n = len(facts)
    records = [Record(3, 7 + i, 1_700_000_000_123, None, ()) for i in range(n)]
    decisions = [Decision("accepted", claim=5 + i, **decision) for i in range(n)]
    scores = {
        "aesthetic": np.full(n, 5.25, np.float32),
        "odd": np.array([np.nan, np.inf, 0.5, *[0.1] * n], np.float32)[:n],
    }
    return DecidedBatch(
        records, facts, decisions, np.ones((n, 4), np.float16), np.ones(n, bool), scores
    )


@pytest.fixture
def shards(tmp_path):
    storage = Storage(str(tmp_path), "cats")

    def make(**limits):
        return ShardWriter(
            storage.folder.create,
            "w-0-00000004",
            "photos",
            **{"shard_records": 100, "shard_bytes": 10**9, **limits},
        )

    make.root = tmp_path / "cats"
    return make


def written(root: Path, path: str) -> dict[str, bytes]:
    with tarfile.open(root / path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def test_members_of_a_sample(shards):
    writer = shards()
    facts = accepted_facts(1)
    assert writer.append(batch([facts]), [compact(facts.metadata)]) == [
        "shards/jpg/w-0-00000004-000.tar"
    ]
    [entry] = writer.close()
    members = written(shards.root, entry.path)
    assert list(members) == [
        "00003_000000000007.jpg",
        "00003_000000000007.json",
        "00003_000000000007.txt",
    ]
    assert members["00003_000000000007.jpg"] == facts.data
    assert members["00003_000000000007.txt"].decode() == facts.text
    described = json.loads(members["00003_000000000007.json"])
    assert described == {
        "key": "00003_000000000007", "topic": "photos", "partition": 3, "offset": 7, "timestamp": 1_700_000_000_123,
        "id": "photos/1.jpg", "url": facts.url, "format": "jpg", "width": 32, "height": 24, "bytes": len(facts.data),
        "sha256": facts.sha256, "scores": {"aesthetic": 5.25, "odd": 0.0}, "flags": "[]", "duplicate_of": "", "similarity": 0.0,
        "claim": 5, "metadata": compact(facts.metadata),
    }  # fmt: skip
    assert json.loads(described["metadata"]) == facts.metadata
    assert (entry.rows, entry.bytes) == (1, (shards.root / entry.path).stat().st_size)


def kinds(value):
    return {k: kinds(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


def test_the_json_has_the_same_keys_and_types_whatever_is_known(shards):
    writer = shards()
    data = accepted_facts(1).data
    bare = Facts(data=data, format="jpg", metadata=None)
    rich = accepted_facts(2, metadata={"deep": [None, {"x": float("inf")}], "🐈": "\u2028\x00"})
    odd = accepted_facts(3, text=None, id='"\\\n', url="\x7f")
    meta = [None if f.metadata is None else compact(f.metadata) for f in (bare, rich, odd)]
    flagged = batch(
        [bare, rich, odd], flags=("near_duplicate", 'quo"te'), duplicate_of=(3, 1), similarity=1.0
    )
    plain = batch([bare, rich, odd])
    for decided in (flagged, plain):
        writer.append(decided, meta)
    [entry] = writer.close()
    with tarfile.open(shards.root / entry.path) as tar:
        described = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]
    assert len(described) == 6
    assert all(kinds(d) == kinds(described[0]) for d in described)
    assert json.loads(described[0]["flags"]) == ["near_duplicate", 'quo"te']
    assert described[0]["duplicate_of"] == "00003_000000000001"
    assert described[2]["id"] == '"\\\n'


def test_headers_are_fixed(shards):
    writer = shards()
    writer.append(batch([accepted_facts(1)]), [None])
    [entry] = writer.close()
    with tarfile.open(shards.root / entry.path) as tar:
        assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname, m.isreg()) for m in tar} == {
            (0, 0o444, 0, 0, "bigdata", "bigdata", True)
        }


def test_tars_roll_at_records_and_count_per_format(shards):
    writer = shards(shard_records=2)
    facts = [accepted_facts(i, "png" if i == 1 else "jpg") for i in range(6)]
    where = writer.append(batch(facts), [None] * 6)
    assert [w.split("/")[1] + w[-7:-4] for w in where] == [
        "jpg000",
        "png000",
        "jpg000",
        "jpg001",
        "jpg001",
        "jpg002",
    ]
    entries = writer.close()
    assert [(e.path[-11:], e.rows) for e in entries if "jpg" in e.path] == [
        ("004-000.tar", 2),
        ("004-001.tar", 2),
        ("004-002.tar", 1),
    ]
    assert [e.path for e in entries] == sorted(e.path for e in entries)


def test_tars_roll_at_bytes(shards):
    writer = shards(shard_bytes=9_000)
    where = writer.append(batch([accepted_facts(i) for i in range(6)]), [None] * 6)
    assert len(set(where)) > 1
    assert all(
        (shards.root / e.path).stat().st_size <= 9_000 + 3 * tarfile.RECORDSIZE
        for e in writer.close()
    )


def test_what_is_not_accepted_has_no_member(shards):
    writer = shards()
    decided = batch([accepted_facts(i) for i in range(3)])
    decided.decisions[1] = Decision("filtered", "format")
    assert [bool(w) for w in writer.append(decided, [None] * 3)] == [True, False, True]
    [entry] = writer.close()
    assert entry.rows == 2


def test_no_accepted_record_no_tar(shards):
    writer = shards()
    assert writer.close() == []
    assert not shards.root.exists()


def test_the_same_input_gives_the_same_files(tmp_path):
    one, two = (
        Maker(Storage(str(tmp_path / n), "cats"), shard_records=5).seal(sizes={0: 60}) for n in "ab"
    )
    assert len(one.files) > 4
    assert one.files == two.files
