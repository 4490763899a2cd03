"""Parquet: image bytes and paths of images, columns of every type, rows that cannot be used."""

from __future__ import annotations

import datetime as dt
import json
import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamer.errors import ConfigError
from streamer.produce.entry import Absent, Item, Unsendable
from streamer.testing import jpeg
from tests.produce.reading import header, read, read_all, write_files, write_tar

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet_with_hugging_face_images(tmp_path):
    cells = [{"bytes": b"A", "path": "a.png"}, {"bytes": None, "path": None}, None]
    table = pa.table({
        "image": pa.array(cells, IMAGE), "text": ["one", "two", "three"], "score": [0.5, None, 1.0],
        "thumb": pa.array([b"t", b"t", b"t"]), "tags": [["x"], [], None],
        "pages": pa.array([[b"p"], [], []], pa.list_(pa.binary())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")
    found = read_all(tmp_path / "train.parquet")
    first, second, third = found.entries
    assert (first.id, first.value) == ("train/0", b"A")
    assert dict(first.headers) == {
        "content-type": b"image/png", "id": b"train/0", "text": b"one",
        "meta-path": b"a.png", "meta-score": b"0.5", "meta-tags": b'["x"]',
    }  # fmt: skip
    assert second == Unsendable("train/1", "row 1 of train.parquet has no image")
    assert third == Unsendable("train/2", "row 2 of train.parquet has no image")
    assert found.remarks[0] == ("train.parquet: ignored binary columns: thumb, pages")


@pytest.mark.parametrize("how", ["relative", "absolute", "in a folder"])
def test_hugging_face_images_that_are_only_paths(tmp_path, how):
    write_files(tmp_path, {"d/images/0.jpg": b"0", "d/images/1.jpg": b"1"})
    where = f"{tmp_path}/d/images" if how == "absolute" else "images"
    cells = pa.array([{"bytes": None, "path": f"{where}/{i}.jpg"} for i in range(2)], IMAGE)
    pq.write_table(pa.table({"image": cells, "text": ["a", "b"]}), tmp_path / "d/t.parquet")
    source = tmp_path / "d/t.parquet"
    if how == "in a folder":
        for i in range(2):  # without the images among its files it is a folder of Parquet
            (tmp_path / f"d/images/{i}.jpg").rename(tmp_path / f"d/{i}.bin")
        cells = pa.array([{"bytes": None, "path": f"./{i}.bin"} for i in range(2)], IMAGE)
        pq.write_table(pa.table({"image": cells, "text": ["a", "b"]}), source)
        source = tmp_path
    found = read_all(source)
    names = ["d/0.bin", "d/1.bin"] if how == "in a folder" else ["images/0.jpg", "images/1.jpg"]
    assert found.texts() == dict(zip(names, ["a", "b"], strict=True))
    assert [e.value for e in found.entries] == [b"0", b"1"]


def test_parquet_with_paths(tmp_path):
    write_files(tmp_path, {"images/a.webp": b"A", "images/big.png": b"x" * 500})
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


def test_paths_lead_nowhere_but_into_the_source(tmp_path):
    # Images with another extension: beside images a folder's Parquet is not looked at.
    write_files(tmp_path, {"out/s.bin": b"secret", "in/a.bin": b"1", "in/t/b.bin": b"2"})
    (tmp_path / "in/t/link.bin").symlink_to(tmp_path / "out/s.bin")
    (tmp_path / "in/t/linked").symlink_to(tmp_path / "out", target_is_directory=True)
    inside = ["../a.bin", "b.bin", str(tmp_path / "in/a.bin"), "linked/../b.bin"]
    outside = [
        "../../out/s.bin", "/etc/passwd", "link.bin", "linked/s.bin", str(tmp_path / "out/s.bin"),
    ]  # fmt: skip
    others = ["http://h/a.jpg", "a\0b", "", "linked"]
    pq.write_table(pa.table({"path": inside + outside + others}), tmp_path / "in/t/x.parquet")
    found = read_all(tmp_path / "in")
    sent = [(e.id, e.value) for e in found.entries if isinstance(e, Item)]
    assert sent == [("a.bin", b"1"), ("t/b.bin", b"2"), ("a.bin", b"1")]
    *refused, address, nul, empty, _ = [
        e.reason for e in found.entries if isinstance(e, Unsendable)
    ]
    assert len(refused) == 1 + len(outside)  # with linked/../b.bin, which is no file of the source
    for reason in refused[1:]:
        assert reason.startswith("leads out of the source, to /")
        assert reason.endswith("give the images' folder as the SOURCE, and x.parquet as --captions")
    assert address == "http://h/a.jpg is an address; only files are sent"
    assert "null byte" in nul
    assert empty == "row 11 of x.parquet has no image"
    # The source is the folder of a Parquet file that is given by itself.
    alone = read_all(tmp_path / "in/t/x.parquet")
    assert [e.id for e in alone.entries if isinstance(e, Item)] == ["b.bin"]


@pytest.mark.parametrize("column", ["Caption", "prompt", "TEXT", "Text", "CAPTIONS"])
def test_the_text_column_in_any_case(tmp_path, column):
    table = {"Image": [b"1"], column: ["one"], "ID": [7], "Url": ["http://h/1"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (item,) = read(tmp_path / "t.parquet")
    assert (item.id, header(item, "text"), header(item, "url")) == ("7", "one", "http://h/1")
    assert len(item.headers) == 4


def test_caption_comes_before_prompt(tmp_path):
    table = {"image": [b"1"], "prompt": ["p"], "Caption": ["c"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (item,) = read(tmp_path / "t.parquet")
    assert (header(item, "text"), header(item, "meta-prompt")) == ("c", "p")


def test_several_captions_in_a_list(tmp_path):
    captions = pa.array([["a", None, " b "], [], None], pa.large_list(pa.string_view()))
    table = {"image": [b"1", b"2", b"3"], "captions": captions}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = read_all(tmp_path / "t.parquet")
    assert found.texts() == {"t/0": "a", "t/1": None, "t/2": None}
    assert header(found.entries[0], "meta-captions") == '["a", "b"]'


TYPES = [
    pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()), pa.binary(), pa.large_binary(), pa.binary_view(),
]  # fmt: skip


def as_kind(value: str, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array([value], kind.value_type).dictionary_encode().cast(kind)
    return pa.array([value.encode() if "binary" in str(kind) else value], kind)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("column", ["text", "url", "id", "path"])
def test_every_arrow_type_of_text(tmp_path, kind, column):
    write_files(tmp_path, {"a.bin": b"1"})
    row = {"path": "a.bin", "text": "ä", "url": "http://h/1", "id": "x"}
    cells = {name: pa.array([value]) for name, value in row.items()}
    cells[column] = as_kind(row[column], kind)
    pq.write_table(pa.table(cells), tmp_path / "t.parquet")
    (item,) = read(tmp_path / "t.parquet")
    assert (item.id, item.value, header(item, "text"), header(item, "url")) == (
        "x",
        b"1",
        "ä",
        "http://h/1",
    )
    assert len(item.headers) == 4


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
    ids=str,
)
@pytest.mark.parametrize("struct", [False, True])
def test_every_arrow_type_of_bytes(tmp_path, kind, struct):
    cells = pa.array([b"1"], kind.value_type if pa.types.is_dictionary(kind) else kind)
    if pa.types.is_dictionary(kind):
        cells = cells.dictionary_encode()
    if struct:
        cells = pa.StructArray.from_arrays([cells, pa.array(["a.png"])], ["bytes", "path"])
    pq.write_table(pa.table({"picture": cells}), tmp_path / "t.parquet")
    (item,) = read(tmp_path / "t.parquet")
    assert (item.id, item.value) == ("t/0", b"1")


def test_ids(tmp_path):
    def ids(**columns: object) -> list[str]:
        table = {"image": [b"1", b"2"], **columns}
        pq.write_table(pa.table(table), tmp_path / "t.parquet")
        return [e.id for e in read(tmp_path / "t.parquet")]

    assert ids(id=["coco/1.jpg", "coco/2.jpg"]) == ["coco/1.jpg", "coco/2.jpg"]
    assert ids(id=[7, 8], key=["a", "b"]) == ["7", "8"]
    assert ids(key=["a", "b"]) == ["t/a", "t/b"]
    assert ids(id=["x", None]) == ["x", "t/1"]
    assert ids(id=[1.0, math.nan]) == ["1.0", "t/1"]
    assert ids(id=["x", ""]) == ["x", "t/1"]
    assert ids(id=pa.array([b"\xff\x00", b"ok"], pa.binary())) == ["ff00", "ok"]
    # image_id says which image it is, which several rows may be about: no id by itself
    assert ids(image_id=[5, 5]) == ["t/0", "t/1"]
    (first, _) = read(tmp_path / "t.parquet", id="image_id")
    assert first.id == "5"
    assert "meta-image_id" not in dict(first.headers)


def test_a_table_without_a_caption_is_told(tmp_path):
    pq.write_table(pa.table({"image": [b"1"], "words": ["one"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"1"], "words": ["one"], "n": [1]}), tmp_path / "b.parquet")
    note = "no caption column among: image, words, n; choose one with --text-column"
    assert read_all(tmp_path / "a.parquet").remarks == [f"a.parquet: {note}"]
    assert read_all(tmp_path).remarks == [f"a.parquet and 1 file more: {note}"]
    found = read_all(tmp_path, text="words")
    assert (found.texts(), found.remarks) == ({"a/0": "one", "b/0": "one"}, [])


def test_a_column_of_objects_is_no_caption(tmp_path):
    table = pa.table({"image": [b"1"], "text": [{"en": "x"}]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_all(tmp_path / "t.parquet")
    assert header(found.entries[0], "meta-text") == '{"en": "x"}'
    assert "no caption column among" in found.remarks[0]


def test_metadata_of_every_type_are_valid_json(tmp_path):
    now = dt.datetime(2026, 1, 2, 3, 4, 5)
    row = {
        "floats": [1.5, math.nan, math.inf], "nested": {"x": [math.nan]}, "nan": math.nan,
        "inf": -math.inf, "when": now, "yes": True, "n": 2**60, "d": dt.date(2026, 1, 2),
    }  # fmt: skip
    pq.write_table(
        pa.Table.from_pylist([{"image": b"1", "text": "t", **row}]), tmp_path / "t.parquet"
    )
    (item,) = read(tmp_path / "t.parquet")
    known = {k[5:]: v for k, v in item.headers if k.startswith("meta-")}
    assert {k: json.loads(v, parse_constant=pytest.fail) for k, v in known.items()} == {
        "floats": [1.5, None, None], "nested": {"x": [None]}, "when": "2026-01-02 03:04:05",
        "yes": True, "n": 2**60, "d": "2026-01-02",
    }  # fmt: skip


def test_a_row_that_cannot_be_read_costs_one_record(tmp_path):
    broken = pa.array([b"fine", b"\xff", b"good"]).view(pa.string())
    words = pa.array([b"\xff", b"a", b"b"])
    table = pa.table({"image": [b"1", b"2", b"3"], "text": broken})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_all(tmp_path / "t.parquet")
    assert found.texts() == {"t/0": "fine", "t/2": "good"}
    assert found.reasons()["t/1"].startswith("row 1 of t.parquet: the column 'text' cannot be read")
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "text": words}), tmp_path / "t.parquet")
    assert read_all(tmp_path / "t.parquet").reasons() == {"t/0": "'text' is not UTF-8"}
    late = pa.array([0, 2**62, 1], pa.int64()).view(pa.timestamp("us"))
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "when": late}), tmp_path / "t.parquet")
    assert read_all(tmp_path / "t.parquet").reasons().keys() == {"t/1"}


def test_two_columns_of_one_name_are_refused(tmp_path):
    schema = pa.schema([("image", pa.binary()), ("text", pa.string()), ("text", pa.string())])
    arrays = [pa.array([b"1"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"t\.parquet: two columns are called 'text'"):
        read(tmp_path / "t.parquet")


def test_a_damaged_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"jpg": [b"A" * 1000] * 50}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    (entry,) = read(tmp_path / "t.parquet")
    assert entry.reason.startswith("t.parquet cannot be read")


def test_a_parquet_in_a_folder_costs_only_itself(tmp_path):
    pq.write_table(pa.table({"image": [b"1"], "text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    write_files(tmp_path, {"c.parquet": b"nope", "d.parquet": b""})
    pq.write_table(pa.table({"image": [b"1"], "text": ["e"]}), tmp_path / "e.parquet")
    (tmp_path / "f.parquet").symlink_to(os.devnull)
    found = read_all(tmp_path)
    assert found.texts() == {"a/0": "a", "e/0": "e"}
    assert list(found.reasons()) == ["b.parquet", "c", "d", "f.parquet"]
    assert "no column has images or their paths" in found.reasons()["b.parquet"]


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
        assert "meta-captions" not in dict(item.headers)
    counts = read_all(tars).summary
    assert (counts["left_out"], counts["unused_texts"]) == (1, 1)
