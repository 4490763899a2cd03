"""What each kind of source yields: ids, bytes, headers, and what cannot be sent. No broker."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from streamer.errors import ConfigError
from streamer.produce.captions import Captions
from streamer.produce.entry import Absent, Columns, Item, Unsendable
from streamer.produce.source import Sources
from streamer.records import Record
from streamer.testing import jpeg
from streamer.wire.envelope import parse


def read(
    source: Path,
    captions: Path | None = None,
    all_files: bool = False,
    limit: int = 1_000_000,
    **columns: str,
) -> list:
    named = Columns(**columns)
    texts = Captions(captions, named) if captions else None
    return list(Sources(named, texts, all_files, limit).entries(source))


def by_id(entries: list) -> dict:
    assert len({e.id for e in entries}) == len(entries)
    return {e.id: e for e in entries}


def header(item: Item, name: str) -> str | None:
    return dict(item.headers)[name].decode() if name in dict(item.headers) else None


# Folders


def test_a_folder_with_sidecars(tmp_path):
    (tmp_path / "b/c.d").mkdir(parents=True)
    (tmp_path / "a.JPG").write_bytes(jpeg(1))
    (tmp_path / "a.txt").write_text("  eine Katze\n", "utf-8")
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "lang": "de",
                "n": 3,
                "tags": ["x", "ü"],
                "none": None,
                "url": "http://h/a",
                "caption": "unused",
            }
        )
    )
    (tmp_path / "b/c.d/e.f.png").write_bytes(b"not a png")
    (tmp_path / "b/x.webp").write_bytes(b"")
    (tmp_path / "b/x.json").write_text('{"text": "from the json"}')
    (tmp_path / "b/notes.md").write_text("no image")
    entries = read(tmp_path)
    assert [e.id for e in entries] == ["a.JPG", "b/x.webp", "b/c.d/e.f.png"]
    first, second, third = entries
    assert first.value == jpeg(1)
    assert dict(first.headers) == {
        "content-type": b"image/jpeg", "id": b"a.JPG", "text": b"eine Katze", "url": b"http://h/a",
        "meta-lang": b"de", "meta-n": b"3", "meta-tags": '["x", "ü"]'.encode(),
    }  # fmt: skip
    assert (second.value, header(second, "text"), header(second, "content-type")) == (
        b"",
        "from the json",
        "image/webp",
    )
    assert (third.value, header(third, "text"), header(third, "content-type")) == (
        b"not a png",
        None,
        "image/png",
    )


def test_the_consumer_understands_the_headers(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "a.txt").write_text("日本語")
    (tmp_path / "a.json").write_text('{"lang": "ja", "score": 0.5}')
    (item,) = read(tmp_path)
    envelope = parse(Record(0, 0, 0, item.value, item.headers), "image/jpeg")
    assert (envelope.id, envelope.text, envelope.metadata) == (
        "a.jpg",
        "日本語",
        {"lang": "ja", "score": "0.5"},
    )
    assert envelope.image == jpeg(1)


def test_what_cannot_be_sent_is_named(tmp_path):
    (tmp_path / "big.png").write_bytes(b"x" * 5000)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "latin.jpg").write_bytes(jpeg(1))
    (tmp_path / "latin.txt").write_bytes("Bücher".encode("latin-1"))
    (tmp_path / "list.jpg").write_bytes(jpeg(2))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "ok.jpg").write_bytes(jpeg(3))
    entries = by_id(read(tmp_path, limit=4000))
    assert entries["big.png"] == Unsendable(
        "big.png", "5000 bytes; the topic takes at most 4000 (its max.message.bytes)"
    )
    assert entries["gone.jpg"] == Unsendable("gone.jpg", "No such file or directory")
    assert entries["latin.jpg"] == Unsendable("latin.jpg", "latin.txt is not UTF-8")
    assert entries["list.jpg"] == Unsendable("list.jpg", "list.json is not a JSON object")
    assert isinstance(entries["ok.jpg"], Item)


def test_all_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "a.txt").write_bytes(b"T")
    (tmp_path / "none").write_bytes(b"N")
    (tmp_path / os.fsdecode(b"b\xff.bin")).write_bytes(b"B")
    entries = by_id(read(tmp_path, all_files=True))
    assert {e.id: e.value for e in entries.values()} == {
        "a.jpg": b"A",
        "a.txt": b"T",
        "none": b"N",
        "b\\xff.bin": b"B",
    }
    assert header(entries["a.jpg"], "text") is None
    assert header(entries["none"], "content-type") == "image/*"


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub/a.jpg").write_bytes(b"A")
    assert [e.id for e in read(tmp_path)] == ["sub/a.jpg"]


def test_nothing_to_send_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match="has no images, tars or Parquet files; --all-files"):
        read(tmp_path)
    with pytest.raises(
        ConfigError, match="is neither a folder, a tar, a Parquet file nor an image"
    ):
        read(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="there is no such file"):
        read(tmp_path / "b")


# Captions


def captions_in(folder: Path, name: str) -> Path:
    rows = [
        {
            "file": "one.jpg",
            "captions(|)": '"Quoted" at the start|second',
            "lang": "en",
            "source_url": "http://h/1",
        },
        {"file": "./sub/two.jpg", "captions(|)": "only", "lang": "", "source_url": ""},
        {"file": "three.jpg", "captions(|)": "nobody asks", "lang": "de", "source_url": ""},
    ]
    path = folder / name
    if name.endswith(".tsv"):
        path.write_text(
            "\n".join("\t".join(r) for r in [list(rows[0]), *[list(r.values()) for r in rows]])
        )
    elif name.endswith(".csv"):
        path.write_text(
            "﻿file,captions(|),lang,source_url\n"
            + "\n".join(
                ",".join(f'"{v.replace(chr(34), chr(34) * 2)}"' for v in r.values()) for r in rows
            )
        )
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["c.tsv", "c.csv", "c.jsonl", "c.parquet"])
def test_captions_from_one_file(tmp_path, name):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for path in ("one.jpg", "sub/two.jpg", "four.jpg"):
        (images / path).write_bytes(jpeg(1))
    named = Columns(text="captions(|)", separator="|")
    captions = Captions(captions_in(images, name), named)
    entries = by_id(list(Sources(named, captions, False, 1_000_000).entries(images)))
    assert header(entries["one.jpg"], "text") == '"Quoted" at the start'
    assert json.loads(header(entries["one.jpg"], "meta-captions")) == [
        '"Quoted" at the start',
        "second",
    ]
    assert (header(entries["one.jpg"], "meta-lang"), header(entries["one.jpg"], "url")) == (
        "en",
        "http://h/1",
    )
    two = dict(entries["sub/two.jpg"].headers)
    assert two.keys() == {"content-type", "id", "text"}
    assert header(entries["four.jpg"], "text") is None
    assert captions.unused() == ["three.jpg"]


def test_captions_beside_a_source_elsewhere(tmp_path):
    (tmp_path / "photos/coco").mkdir(parents=True)
    (tmp_path / "photos/coco/one.jpg").write_bytes(jpeg(1))
    (tmp_path / "photos/c.csv").write_text("file,caption\ncoco/one.jpg,found\n")
    (item,) = read(tmp_path / "photos/coco", captions=tmp_path / "photos/c.csv")
    assert (item.id, header(item, "text")) == ("one.jpg", "found")


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        (
            "c.csv",
            "a,b\n1,2\n",
            {},
            r"none of its columns is called path, file.*; name one with --path-column\. Its columns are: a, b",
        ),
        (
            "c.csv",
            "path,b\n1,2\n",
            {"text": "x"},
            r"there is no column 'x'; name one with --text-column",
        ),
        ("c.csv", "path,text\n,2\n", {}, r"row 1 has no path in its column 'path'"),
        ("c.jsonl", '{"path": "a", "text": "b"}\n7\n', {}, r"line 2 is not a JSON object"),
        ("c.jsonl", "{", {}, r"the captions cannot be read"),
        ("c.parquet", "nope", {}, r"the captions cannot be read"),
        ("c.xlsx", "nope", {}, r"captions come as \.csv, \.tsv, \.jsonl or \.parquet"),
    ],
)
def test_wrong_captions_are_named(tmp_path, name, text, columns, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        Captions(tmp_path / name, Columns(**columns))


# Tars


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_webdataset_tar(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        writer.write(
            {
                "__key__": "000000000",
                "jpg": jpeg(1),
                "txt": "eins",
                "json": {"lang": "de", "url": "http://h/1", "status": "success"},
            }
        )
        writer.write({"__key__": "sub/000000001", "png": b"png", "cls": 7})
        writer.write({"__key__": "000000002", "left.jpg": b"l", "right.jpg": b"r", "txt": "both"})
        writer.write({"__key__": "000000003", "txt": "no picture"})
        writer.write({"__key__": "000000004", "jpg": b"x" * 5000})
    for source in (tmp_path / "00000.tar", tmp_path):
        entries = by_id(read(source, limit=4000))
        first = entries["00000/000000000"]
        assert first.value == jpeg(1)
        assert (header(first, "text"), header(first, "url"), header(first, "meta-lang")) == (
            "eins",
            "http://h/1",
            "de",
        )
        assert (
            entries["00000/sub/000000001"].value,
            header(entries["00000/sub/000000001"], "content-type"),
        ) == (b"png", "image/png")
        assert entries["00000/000000002.left.jpg"].value == b"l"
        assert header(entries["00000/000000002.right.jpg"], "text") == "both"
        assert entries["00000/000000003"] == Unsendable(
            "00000/000000003", "the sample has no image"
        )
        assert "5000 bytes; the topic takes at most 4000" in entries["00000/000000004"].reason
        assert len(entries) == 6


def test_img2dataset_folders(tmp_path):
    tars, files, tables = tmp_path / "tars", tmp_path / "files", tmp_path / "tables"
    rows = [
        {
            "key": "000000000",
            "caption": "eins",
            "url": "http://h/1",
            "status": "success",
            "width": 96,
        },
        {
            "key": "000000001",
            "caption": "zwei",
            "url": "http://h/2",
            "status": "failed_to_download",
            "width": None,
        },
    ]
    for folder in (tars, files / "00000", tables):
        folder.mkdir(parents=True)
    write_tar(
        tars / "00000.tar",
        [
            ("000000000.jpg", jpeg(1)),
            ("000000000.json", json.dumps(rows[0]).encode()),
            ("000000000.txt", b"eins"),
        ],
    )
    pq.write_table(pa.Table.from_pylist(rows), tars / "00000.parquet")
    (tars / "00000_stats.json").write_text("{}")
    (files / "00000/000000000.jpg").write_bytes(jpeg(1))
    (files / "00000/000000000.json").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), files / "00000.parquet")
    pq.write_table(
        pa.Table.from_pylist([{**r, "jpg": jpeg(1) if r["width"] else None} for r in rows]),
        tables / "00000.parquet",
    )
    from_tars, from_files, from_tables = read(tars), read(files), read(tables)
    assert [e.id for e in from_tars] == ["00000/000000000"]
    assert [e.id for e in from_files] == ["00000/000000000.jpg"]
    assert from_tables[1:] == [Absent("00000/000000001")]
    for item in (from_tars[0], from_files[0], from_tables[0]):
        assert item.value == jpeg(1)
        assert (header(item, "text"), header(item, "url"), header(item, "meta-width")) == (
            "eins",
            "http://h/1",
            "96",
        )
        assert header(item, "content-type") == "image/jpeg"


def test_members_of_a_tar_with_all_files(tmp_path):
    path = write_tar(tmp_path / "x.tar.gz", [("a.jpg", b"A"), ("a.txt", b"T")])
    assert [(e.id, e.value) for e in read(path, all_files=True)] == [
        ("x/a.jpg", b"A"),
        ("x/a.txt", b"T"),
    ]
    assert [(e.id, header(e, "text")) for e in read(path)] == [("x/a", "T")]


@pytest.mark.parametrize(
    "damage", ["cut in a member", "cut in a header", "bad header", "gzip cut", "no tar"]
)
def test_a_damaged_tar_is_never_taken_for_its_end(tmp_path, damage):
    name = "x.tar.gz" if damage == "gzip cut" else "x.tar"
    path = write_tar(tmp_path / name, [(f"{i}.jpg", os.urandom(700)) for i in range(4)])
    data = bytearray(path.read_bytes())
    if damage == "bad header":
        data[3 * 1536 : 3 * 1536 + 300] = b"#" * 300
    else:
        data = data[
            : {
                "cut in a member": 2 * 1536 + 700,
                "cut in a header": 2 * 1536 + 100,
                "gzip cut": len(data) - 700,
                "no tar": 0,
            }[damage]
        ]
        data = data or bytearray(b"hello" * 300)
    path.write_bytes(data)
    entries = read(path)
    assert isinstance(entries[-1], Unsendable)
    assert entries[-1].id == "x"
    assert entries[-1].reason.startswith("the archive cannot be read")
    assert len([e for e in entries if isinstance(e, Item)]) == (
        0 if damage == "no tar" else 2 if "cut in" in damage else 3
    )


# Parquet


def test_parquet_with_hugging_face_images(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "image": pa.array([{"bytes": b"A", "path": "a.png"}, {"bytes": None, "path": "b.png"}], image),
        "text": ["one", "two"], "score": [0.5, None], "thumb": pa.array([b"t", b"t"]), "tags": [["x"], []],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")
    first, second = read(tmp_path / "train.parquet")
    assert (first.id, first.value) == ("train/0", b"A")
    assert dict(first.headers) == {
        "content-type": b"image/png", "id": b"train/0", "text": b"one", "meta-score": b"0.5", "meta-tags": b'["x"]',
    }  # fmt: skip
    assert second == Unsendable("train/1", "row 1 of train.parquet has no image")


def test_parquet_with_paths(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.webp").write_bytes(b"A")
    (tmp_path / "images/big.png").write_bytes(b"x" * 500)
    rows = [
        {"where": f"images/{n}", "words": n, "name": f"id-{n}"}
        for n in ("a.webp", "gone.jpg", "big.png")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    columns = {"path": "where", "text": "words"}
    first, second, third = read(tmp_path / "t.parquet", limit=400, **columns)
    assert (first.id, first.value, header(first, "text"), header(first, "content-type")) == (
        "images/a.webp",
        b"A",
        "a.webp",
        "image/webp",
    )
    assert second.id == "images/gone.jpg"
    assert second.reason.startswith("No such file or directory")
    assert third.reason.startswith("500 bytes; the topic takes at most 400")
    assert [e.id for e in read(tmp_path / "t.parquet", id="name", **columns)] == [
        "id-a.webp",
        "id-gone.jpg",
        "id-big.png",
    ]
    with pytest.raises(
        ConfigError,
        match=r"no column has images or their paths; .* Its columns are: where, words, name",
    ):
        read(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"--image-column: there is no column 'x'"):
        read(tmp_path / "t.parquet", image="x")


def test_a_damaged_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"jpg": [b"A" * 1000] * 50}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    (entry,) = read(tmp_path / "t.parquet")
    assert entry.reason.startswith("the Parquet file cannot be read")
