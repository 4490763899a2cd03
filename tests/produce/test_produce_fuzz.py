"""Whatever lies in a file: records and reasons come of it, never another error."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamer.errors import ConfigError, DependencyError
from streamer.produce.entry import Item
from tests.produce.reading import header, read_all, write_files, write_tar

CELLS = st.text(alphabet='a1 ,;"\t\n\r\0\\é😀', max_size=8)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=4)
DEEP = '{"path": "a.jpg", "n": ' + "[" * 5000


def sent(folder: Path, captions: str) -> None:
    try:
        found = read_all(folder, captions=folder / captions)
    except (ConfigError, DependencyError) as error:
        str(error).encode()
    else:
        "\n".join(found.remarks).encode()
        json.dumps(found.summary, ensure_ascii=False).encode()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
    st.binary(max_size=50)
    | ROWS.map(lambda rows: "\n".join(",".join(r) for r in [["path", "text"], *rows]).encode())
    | ROWS.map(lambda rows: "\n".join("\t".join(r) for r in [["path", "text"], *rows]).encode())
    | st.lists(
        st.dictionaries(st.sampled_from(["path", "text", "n"]), st.just("a.jpg") | CELLS)
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)
@example("jsonl", DEEP.encode())
@example("csv", b"path,text\na.jpg,x,y\n")
@example("csv", b'path,text\n"a.jpg\n')
@example("csv", b"path,text\na.jpg\0,x\n")
@example("jsonl", b'{"path": "a.jpg", "text": "\\ud800"}')
@example("jsonl", b'{"path": "\\ud800", "text": ""}\n{"path": "a.jpg"}')
@example("jsonl", b'{"path": "a.jpg", "text": ' + b"7" * 5000 + b"}")
@example("csv", b"\xff\xfep\0a\0t\0h\0,\0t\0e\0x\0t\0\n\0a")
def test_any_captions_file(kind, data):
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), {"a.jpg": b"1", f"c.{kind}": data})
        sent(Path(folder), f"c.{kind}")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_a_tar(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suffix = data.draw(st.sampled_from(["tar", "tar.gz", "tar.xz"]))
        members = [(f"{i}.{e}", f"{i}.{e}".encode() * 9) for i in range(3) for e in ("jpg", "txt")]
        path = write_tar(folder / f"t.{suffix}", members)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        found = read_all(path)
        for entry in found.entries:
            if isinstance(entry, Item) and entry.id in ("t/0", "t/1", "t/2"):
                assert header(entry, "text") is not None  # sent with its text or not at all
        "\n".join(found.remarks).encode()


@pytest.fixture(scope="module")
def parquet() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        table = {
            "image": [b"1" * 50, b"2", None],
            "text": ["a", "b" * 40, None],
            "n": [[1], None, []],
        }
        pq.write_table(pa.table(table), Path(folder) / "t.parquet")
        return (Path(folder) / "t.parquet").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_to_a_parquet_file(parquet, data):
    content = bytearray(parquet)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), {"t.parquet": bytes(content), "a.jpg": b"1"})
        try:
            found = read_all(Path(folder) / "t.parquet")
        except ConfigError as error:  # damage to the names of the columns
            str(error).encode()
        else:
            "\n".join(found.remarks).encode()
        sent(Path(folder), "t.parquet")
