"""Captions in one file: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamer.errors import EXIT_FAILED, ConfigError, DependencyError
from streamer.produce.captions import Captions
from streamer.produce.entry import Columns
from tests.produce.reading import by_id, header, read, read_all, write_files


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
            "\ufefffile,captions(|),lang,source_url\n"
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
    write_files(tmp_path, {"one.jpg": b"1", "sub/two.jpg": b"2", "four.jpg": b"4"})
    found = read_all(
        tmp_path, captions=captions_in(tmp_path, name), text="captions(|)", separator="|"
    )
    entries = found.by_id()
    assert header(entries["one.jpg"], "text") == '"Quoted" at the start'
    assert json.loads(header(entries["one.jpg"], "meta-captions") or "") == [
        '"Quoted" at the start',
        "second",
    ]
    assert (header(entries["one.jpg"], "meta-lang"), header(entries["one.jpg"], "url")) == (
        "en",
        "http://h/1",
    )
    assert dict(entries["sub/two.jpg"].headers).keys() == {"content-type", "id", "text"}
    assert header(entries["four.jpg"], "text") is None
    assert (found.summary["unused_captions"], found.summary["left_out"]) == (["three.jpg"], 0)
    assert found.remarks == ["no file for 1 path in the captions: three.jpg"]


def test_captions_beside_a_source_elsewhere(tmp_path):
    write_files(
        tmp_path,
        {"photos/coco/one.jpg": b"1", "photos/c.csv": "file,caption\ncoco/one.jpg,found\n"},
    )
    (item,) = read(tmp_path / "photos/coco", captions=tmp_path / "photos/c.csv")
    assert (item.id, header(item, "text")) == ("one.jpg", "found")


def test_several_rows_of_one_image_are_all_its_captions(tmp_path):
    rows = [
        ("0.jpg", "a", 0, "en"),
        ("1.jpg", "b", 1, "en"),
        ("./0.jpg", "c", 2, "en"),
        ("0.jpg", "a", 3, "de"),
    ]
    lines = ["image,caption,caption_id,lang", *(",".join(map(str, row)) for row in rows)]
    write_files(tmp_path, {"0.jpg": b"0", "1.jpg": b"1", "c.csv": "\n".join(lines)})
    first, second = read(tmp_path, captions=tmp_path / "c.csv")
    assert header(first, "text") == "a"
    assert json.loads(header(first, "meta-captions") or "") == ["a", "c"]
    assert json.loads(header(first, "meta-caption_id") or "") == ["0", "2", "3"]
    assert json.loads(header(first, "meta-lang") or "") == ["en", "de"]
    assert dict(second.headers) == {
        "content-type": b"image/jpeg", "id": b"1.jpg", "text": b"b", "meta-caption_id": b"1",
        "meta-lang": b"en",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["plain", "by a link to the folder", "source by a link"])
def test_absolute_paths_match_files_of_the_source(tmp_path, how):
    write_files(tmp_path, {"in/sub/a.jpg": b"1", "in/b.jpg": b"2"})
    (tmp_path / "link").symlink_to("in", target_is_directory=True)
    folder = tmp_path / ("link" if how == "by a link to the folder" else "in")
    source = tmp_path / ("link" if how == "source by a link" else "in")
    rows = [f"{folder}/sub/a.jpg,one", f"{folder}/sub/../b.jpg,two"]
    write_files(tmp_path, {"elsewhere/c.csv": "\n".join(["path,text", *rows])})
    found = read_all(source, captions=tmp_path / "elsewhere/c.csv")
    assert found.texts() == {"b.jpg": "two", "sub/a.jpg": "one"}
    assert found.summary["unused_captions"] == []


def test_captions_of_one_image_alone(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "c.csv": "path,text\na.jpg,one\n"})
    assert read_all(tmp_path / "a.jpg", captions=tmp_path / "c.csv").texts() == {"a.jpg": "one"}


@pytest.mark.parametrize("path", ["/data/a.jpg", "x/a.jpg", "../a.jpg", "a.JPG", "/etc/passwd"])
def test_captions_that_match_nothing_are_an_error_before_anything_is_sent(tmp_path, path):
    write_files(tmp_path, {"in/a.jpg": b"1", "c.csv": f"path,text\n{path},one\n"})
    with pytest.raises(DependencyError) as raised:
        read(tmp_path / "in", captions=tmp_path / "c.csv")
    assert raised.value.exit_code == EXIT_FAILED
    assert f"no path in it matches a file in the sources; {path}, for example, does not; " in str(
        raised.value
    )
    assert "the first file is a.jpg. Nothing was sent" in str(raised.value)


def test_captions_match_no_member_of_a_tar_and_no_row_of_parquet(tmp_path):
    pq.write_table(pa.table({"image": [b"1"], "text": ["x"]}), tmp_path / "t.parquet")
    write_files(tmp_path, {"c.csv": "path,text\nt/0,one\n"})
    with pytest.raises(DependencyError, match="Nothing was sent"):
        read(tmp_path / "t.parquet", captions=tmp_path / "c.csv")


@pytest.mark.parametrize("column", ["Caption", "TEXT", "Text", "prompt", "Prompt", "CAPTIONS"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_text_column_in_any_case(tmp_path, column, kind):
    row = {"File_Name": "a.jpg", column: "one", "URL": "http://h/1"}
    write_files(tmp_path, {"a.jpg": b"1"})
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    else:
        csv = f"{','.join(row)}\n{','.join(row.values())}\n"
        write_files(tmp_path, {f"c.{kind}": csv if kind == "csv" else json.dumps(row)})
    (item,) = read(tmp_path, captions=tmp_path / f"c.{kind}")
    assert (header(item, "text"), header(item, "url")) == ("one", "http://h/1")
    assert len(item.headers) == 4


def test_rows_of_json_lines_have_columns_of_their_own(tmp_path):
    rows = [
        {"path": "a.jpg", "lang": "en"},
        {"file": "b.jpg", "caption": "two"},
        {"path": "c.jpg", "text": "three"},
    ]
    write_files(
        tmp_path,
        {"a.jpg": b"", "b.jpg": b"", "c.jpg": b"", "c.jsonl": "\n".join(map(json.dumps, rows))},
    )
    found = read_all(tmp_path, captions=tmp_path / "c.jsonl")
    assert found.texts() == {"a.jpg": None, "b.jpg": "two", "c.jpg": "three"}


def test_bytes_stand_for_text_where_parquet_lacks_the_type(tmp_path):
    image = pa.array([{"bytes": b"junk", "path": "nobody"}])
    table = {
        "path": pa.array([b"a.jpg"]), "caption": pa.array(["ä".encode()]), "image": image,
        "thumb": pa.array([b"\xff"]), "hash": pa.array([b"ab"], pa.binary(2)),
        "url": pa.array([b"http://h/1"]),
    }  # fmt: skip
    write_files(tmp_path, {"a.jpg": b"1"})
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    (item,) = read(tmp_path, captions=tmp_path / "c.parquet")
    assert dict(item.headers) == {
        "content-type": b"image/jpeg", "id": b"a.jpg", "text": "ä".encode(), "url": b"http://h/1",
    }  # fmt: skip


def test_the_path_may_be_in_the_image_of_hugging_face(tmp_path):
    write_files(tmp_path, {"in/a.jpg": b"1"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": str(tmp_path / "in/a.jpg")}], kind)
    pq.write_table(pa.table({"image": cells, "text": ["one"]}), tmp_path / "c.parquet")
    found = read_all(tmp_path / "in", captions=tmp_path / "c.parquet")
    assert found.texts() == {"a.jpg": "one"}
    assert len(found.entries[0].headers) == 3


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (pa.string_view(), "text"), (pa.large_string(), "text"), (pa.string_view(), "path"),
        (pa.dictionary(pa.int32(), pa.string()), "text"), (pa.large_string(), "path"),
        (pa.dictionary(pa.int8(), pa.large_string()), "path"), (pa.string_view(), "url"),
        (pa.binary_view(), "text"), (pa.large_binary(), "path"), (pa.binary_view(), "url"),
    ],
)  # fmt: skip
def test_every_arrow_type_of_text(tmp_path, kind, column):
    row = {"path": "a.jpg", "text": "one", "url": "http://h/1"}
    cells = {name: pa.array([value]) for name, value in row.items()}
    value = row[column].encode() if "binary" in str(kind) else row[column]
    cells[column] = (
        pa.array([value], kind.value_type).dictionary_encode().cast(kind)
        if pa.types.is_dictionary(kind)
        else pa.array([value], kind)
    )
    write_files(tmp_path, {"a.jpg": b"1"})
    pq.write_table(pa.table(cells), tmp_path / "c.parquet")
    (item,) = read(tmp_path, captions=tmp_path / "c.parquet")
    assert (header(item, "text"), header(item, "url")) == ("one", "http://h/1")


def test_csv_as_people_write_it(tmp_path):
    text = 'file_name, caption,\na.jpg, "a cat, on a wall",\n\nb.jpg, plain 12" pipe,x\nc.jpg\n'
    write_files(tmp_path, {"a.jpg": b"", "b.jpg": b"", "c.jpg": b"", "c.csv": text})
    found = read_all(tmp_path, captions=tmp_path / "c.csv")
    assert found.texts() == {"a.jpg": "a cat, on a wall", "b.jpg": 'plain 12" pipe', "c.jpg": None}
    assert header(found.by_id()["b.jpg"], "meta-unnamed_3") == "x"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl"])
def test_marked_encodings_are_read(tmp_path, codec, name):
    text = {
        "c.csv": "path,text\r\na.jpg,Grüße",
        "c.tsv": "path\ttext\r\na.jpg\tGrüße",
        "c.jsonl": '{"path":"a.jpg","text":"Grüße"}',
    }
    write_files(tmp_path, {"a.jpg": b"1", name: text[name].encode(codec)})
    assert read_all(tmp_path, captions=tmp_path / name).texts() == {"a.jpg": "Grüße"}


DEEP = '{"path": "a", "n": ' + "[" * 50_000 + "]" * 50_000 + "}"


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        (
            "c.csv",
            "a,b\n1,2\n",
            {},
            r"none of its columns with text is called path, .*; name one with --path-column\. .* are: a, b",
        ),
        (
            "c.csv",
            "path,b\n1,2\n",
            {},
            r"none of its columns with text is called text, .* with --text-column",
        ),
        (
            "c.csv",
            "path,b\n1,2\n",
            {"text": "x"},
            r"there is no column 'x'; name one with --text-column",
        ),
        ("c.csv", "path,text\n1,2\n", {"url": "x"}, r"there is no column 'x'; .* --url-column"),
        ("c.csv", "path,text\n,2\n", {}, r"row 1: no path in its column 'path'"),
        (
            "c.csv",
            "path,text\nb,a cat, on a wall, at dusk\n",
            {},
            r"row 1 has 4 cells, but the header has 2 \(line 2\): quote any cell",
        ),
        (
            "c.csv",
            'path,text\nb,"open\nc,d\n',
            {},
            r"row 1 \(to line 3\): unexpected end .*; quote any cell",
        ),
        (
            "c.csv",
            'path,text\na,"Oh" she said\n',
            {},
            r"row 1 \(to line 2\): ',' expected after '\"'",
        ),
        ("c.csv", "path,text,text\na,x,y\n", {}, r"two columns are called 'text'"),
        ("c.csv", b"path,text\na,x\nb,B\xfccher\n", {}, r"line 3 is not UTF-8"),
        ("c.csv", "", {}, r"holds no captions"),
        ("c.csv", "path,text\n", {}, r"holds no captions"),
        (
            "c.tsv",
            "path\ttext\na\tx\ty\n",
            {},
            r"row 1 has 3 cells, .* save the captions as \.jsonl",
        ),
        ("c.jsonl", "\n7\n", {}, r"line 2 is not a JSON object"),
        ("c.jsonl", "\n\n[]\n", {}, r"line 3 is not a JSON object"),
        ("c.jsonl", "{", {}, r"c\.jsonl: line 1 is not JSON"),
        ("c.jsonl", "\n" + DEEP, {}, r"line 2 is nested too deeply"),
        ("c.jsonl", '{"path": "a", "text": {}}', {}, r"line 1: 'text' is an object"),
        (
            "c.jsonl",
            '{"path": "a", "text": "b", "n": 1e999}',
            {},
            r"line 1: the number 1e999 is too",
        ),
        (
            "c.jsonl",
            '{"path": "a", "text": "b", "text": "c"}',
            {},
            r"line 1: duplicate key 'text'",
        ),
        ("c.jsonl", '{"path": 7, "text": "b"}', {}, r"line 1: no path in its column 'path'"),
        ("c.jsonl", b'{"path": "a", "text": "\xff"}', {}, r"line 1 is not UTF-8"),
        ("c.jsonl", "[]\n" * 9, {}, r"line 1 is not .*; line 5 is not [^;]*; and 4 rows more"),
        ("c.parquet", "nope", {}, r"the captions cannot be read"),
        ("c.xlsx", "nope", {}, r"captions come as \.csv, \.tsv, \.jsonl or \.parquet"),
    ],
)
def test_wrong_captions_are_named(tmp_path, name, text, columns, message):
    write_files(tmp_path, {name: text})
    with pytest.raises(ConfigError, match=message) as raised:
        Captions(tmp_path / name, Columns(**columns))
    assert str(raised.value).startswith(f"{tmp_path / name}: ")


ROWS = {f"{n}.jpg": b"1" for n in "abc"}
GOOD = '{"path": "a.jpg", "text": "a"}'


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("c.jsonl", f'{GOOD}\n{{"path": "b.jpg", "text": {{}}}}\n', "line 2: 'text' is an object"),
        ("c.jsonl", f'{GOOD}\n{{"path": "b.jpg", "text": true}}\n', "line 2: 'text' is"),
        ("c.jsonl", GOOD.encode() + b'\n{"path": "b.jpg", "text": "\xff"}', "line 2 is not UTF-8"),
        ("c.jsonl", f'{GOOD}\n{{"path": "b.jpg", "n": 1, "n": 2}}\n', "line 2: duplicate key 'n'"),
        ("c.csv", "path,text\na.jpg,a\nb.jpg,x, y\n", "row 2 has 3 cells, but the header has 2"),
        ("c.tsv", "path\ttext\na.jpg\ta\nb.jpg\tx\ty\n", "row 2 has 3 cells"),
    ],
)
def test_a_row_that_cannot_be_used_costs_the_image_that_it_names(tmp_path, name, text, why):
    write_files(tmp_path, {**ROWS, name: text})
    found = read_all(tmp_path, captions=tmp_path / name)
    assert found.texts() == {"a.jpg": "a", "c.jpg": None}
    [(id, reason)] = found.reasons().items()
    assert (id, reason[: len(name) + 2 + len(why)]) == ("b.jpg", f"{name}, {why}")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("c.jsonl", f"{GOOD}\n{DEEP}\n", "line 2 is nested too deeply"),
        ("c.jsonl", f"{GOOD}\n[]\n", "line 2 is not a JSON object"),
        ("c.jsonl", f'{GOOD}\n{{"path": 7, "text": "x"}}\n', "line 2: no path in its column"),
        ("c.jsonl", f'{GOOD}\n{{"text": "x", "n": 1e999}}\n', "line 2: the number 1e999"),
        ("c.jsonl", f'{GOOD}\n{{"path": "b.jpg", "path": "c.jpg"}}\n', "line 2: duplicate key"),
        ("c.jsonl", GOOD.encode() + b'\n{"path": "\xff.jpg", "text": "b"}', "line 2 is not UTF-8"),
        ("c.csv", "text,path\na,a.jpg\nx, y,b.jpg\n", "row 2 has 3 cells"),
        ("c.csv", 'path,text\na.jpg,a\nb.jpg,"x\nc.jpg,c\n', "row 2 (to line 4): "),
    ],
)
def test_a_row_that_does_not_tell_its_image_costs_those_that_no_other_names(
    tmp_path, name, text, why
):
    """One of them is the image of that row: sent without its caption, it would be decided so."""
    write_files(tmp_path, {**ROWS, name: text})
    found = read_all(tmp_path, captions=tmp_path / name)
    assert found.texts() == {"a.jpg": "a"}
    for id in ("b.jpg", "c.jpg"):
        assert found.reasons()[id].startswith(
            f"its caption may be in an unusable row of {name}: {why}"
        )
    assert [f["id"] for f in found.summary["failed"]] == [f"a row of {name}", "b.jpg", "c.jpg"]
    assert any(line.startswith(f"not sent: a row of {name}: {why}") for line in found.remarks)


def test_a_row_that_cannot_be_used_about_an_image_that_is_not_there(tmp_path):
    rows = f'{GOOD}\n{{"path": "gone.jpg", "text": {{}}}}\n'
    write_files(tmp_path, {**ROWS, "c.jsonl": rows})
    found = read_all(tmp_path, captions=tmp_path / "c.jsonl")
    assert len(found.texts()) == 3
    assert found.summary["unused_captions"] == ["gone.jpg"]


def test_cells_of_parquet_that_cannot_be_read_are_named(tmp_path):
    broken = pa.array([b"fine", b"\xff"]).view(pa.string())
    table = pa.table({"path": ["a.jpg", "b.jpg"], "text": broken})
    pq.write_table(table, tmp_path / "c.parquet")
    write_files(tmp_path, {"a.jpg": b"1", "b.jpg": b"2"})
    found = read_all(tmp_path, captions=tmp_path / "c.parquet")
    assert found.texts() == {"a.jpg": "fine"}
    assert "c.parquet: row 2: the column 'text' cannot be read" in found.reasons()["b.jpg"]
    schema = pa.schema([("path", pa.string()), ("path", pa.string())])
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], schema=schema)
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"two columns are called 'path'"):
        Captions(tmp_path / "c.parquet", Columns())


def test_a_lone_surrogate_costs_one_record(tmp_path):
    rows = [
        r'{"path": "a.jpg", "text": "\ud800"}',
        '{"path": "b.jpg", "text": "b"}',
        r'{"path": "\udcff", "text": ""}',
    ]
    write_files(tmp_path, {"a.jpg": b"", "b.jpg": b"", "c.jsonl": "\n".join(rows)})
    found = read_all(tmp_path, captions=tmp_path / "c.jsonl")
    assert found.texts() == {"b.jpg": "b"}
    assert found.reasons() == {"a.jpg": "text is not valid Unicode: it has a lone surrogate"}
    "".join(found.remarks).encode()


@pytest.mark.parametrize("captions", ["c.csv", "metadata.csv"])
def test_a_row_makes_an_image_a_picture_of_its_own(tmp_path, captions):
    text = "file_name,text\na.edited.jpg,edited\na.jpg,plain\n"
    images = {"a.jpg": b"1", "a.edited.jpg": b"2", "a.mask.png": b"3"}
    write_files(tmp_path, {**images, captions: text})
    named = tmp_path / captions if captions == "c.csv" else None
    found = read_all(tmp_path, captions=named)
    assert found.texts() == {"a.jpg": "plain", "a.edited.jpg": "edited"}
    assert (found.summary["further_images"], found.summary["unused_captions"]) == (1, [])


def test_captions_and_sidecars_are_joined(tmp_path):
    write_files(
        tmp_path,
        {"a.jpg": b"", "a.json": '{"lang": "en", "text": "two"}', "b.jpg": b"", "b.txt": "b",
         "c.csv": "path,text\na.jpg,one\n"},
    )  # fmt: skip
    entries = by_id(read(tmp_path, captions=tmp_path / "c.csv"))
    assert header(entries["a.jpg"], "meta-captions") == '["one", "two"]'
    assert header(entries["a.jpg"], "meta-lang") == "en"
    assert header(entries["b.jpg"], "text") == "b"
