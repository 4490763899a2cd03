"""Hugging Face's imagefolder: metadata.csv, .jsonl or .parquet in a folder of images."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamer.errors import ConfigError
from tests.produce.reading import header, read, read_all, write_files


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_captions_of_an_imagefolder(tmp_path, name):
    names = ("a.jpg", "s/b.jpg", "gone.jpg")
    texts = ("one", "two", "three")
    rows = [
        {"file_name": name, "text": text, "n": str(i)}
        for i, (name, text) in enumerate(zip(names, texts, strict=True), 1)
    ]
    write_files(
        tmp_path, {"train/a.jpg": b"1", "train/s/b.jpg": b"2", "a.jpg": b"3", "s/b.jpg": b"4"}
    )
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train" / name)
    elif name.endswith(".csv"):
        lines = [",".join(row.values()) for row in rows]
        write_files(tmp_path, {f"train/{name}": "\n".join(["file_name,text,n", *lines])})
    else:
        write_files(tmp_path, {f"train/{name}": "\n".join(map(json.dumps, rows))})
    found = read_all(tmp_path)
    assert found.texts() == {
        "train/a.jpg": "one", "train/s/b.jpg": "two", "a.jpg": None, "s/b.jpg": None,
    }  # fmt: skip
    assert header(found.by_id()["train/a.jpg"], "meta-n") == "1"
    assert found.summary["unused_captions"] == [f"gone.jpg ({tmp_path / 'train' / name})"]
    assert found.summary["left_out"] == 0


def test_an_imagefolder_without_texts_is_told(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "metadata.csv": "file_name,label\na.jpg,cat\n"})
    found = read_all(tmp_path)
    assert header(found.entries[0], "meta-label") == "cat"
    assert found.remarks == [
        "metadata.csv: no caption column among: file_name, label; choose one with --text-column"
    ]
    assert read_all(tmp_path, text="label").texts() == {"a.jpg": "cat"}


def test_a_metadata_file_of_another_kind_is_left_out(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "metadata.csv": "name,value\nx,1\n"})
    found = read_all(tmp_path)
    assert found.summary["left_out"] == 1
    assert "--captions FILE" in found.remarks[1]


def test_a_broken_row_of_an_imagefolder_costs_the_images_below_it_without_a_row(tmp_path):
    rows = '{"file_name": "b.jpg", "text": "b"}\n['
    write_files(
        tmp_path, {"a.jpg": b"1", "s/b.jpg": b"2", "s/c.jpg": b"3", "s/metadata.jsonl": rows}
    )
    found = read_all(tmp_path)
    assert found.texts() == {"a.jpg": None, "s/b.jpg": "b"}
    assert (
        "its caption may be in an unusable row of metadata.jsonl: line 2 is not JSON"
        in found.reasons()["s/c.jpg"]
    )


def test_an_imagefolder_without_a_usable_row_is_an_error_before_anything_is_sent(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "metadata.jsonl": '{"file_name": 7}\n['})
    with pytest.raises(ConfigError, match=r"metadata\.jsonl: line 1: no path .*; line 2 is not"):
        read(tmp_path)


def test_what_a_captions_file_and_the_sidecars_say_is_joined(tmp_path):
    write_files(
        tmp_path,
        {
            "a.jpg": b"1", "a.txt": "from the text", "a.json": '{"lang": "en"}', "b.jpg": b"2",
            "b.txt": "only text", "metadata.csv": "file_name,text\na.jpg,from the table\n",
        },
    )  # fmt: skip
    first, second = read(tmp_path)
    assert (header(first, "text"), header(first, "meta-lang")) == ("from the table", "en")
    assert json.loads(header(first, "meta-captions")) == ["from the table", "from the text"]
    assert header(second, "text") == "only text"
