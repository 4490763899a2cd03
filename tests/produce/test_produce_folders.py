"""Folders and single images: ids, bytes, headers, what is left out and what cannot be sent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.errors import ConfigError
from streamer.records import Record
from streamer.testing import jpeg
from streamer.wire.envelope import parse
from tests.produce.reading import by_id, header, read, read_all, write_files, write_tar


def test_a_folder_with_sidecars(tmp_path):
    known = {
        "lang": "de",
        "n": 3,
        "tags": ["x", "ü"],
        "none": None,
        "url": "http://h/a",
        "caption": "Tom",
    }
    write_files(
        tmp_path,
        {
            "a.JPG": jpeg(1), "a.txt": "  eine Katze\n", "a.json": json.dumps(known),
            "b/c.d/e.f.png": b"not a png", "b/x.webp": b"", "b/x.json": '{"text": "from the json"}',
            "b/notes.md": "no image",
        },
    )  # fmt: skip
    entries = read(tmp_path)
    assert [e.id for e in entries] == ["a.JPG", "b/x.webp", "b/c.d/e.f.png"]
    first, second, third = entries
    assert first.value == jpeg(1)
    assert dict(first.headers) == {
        "content-type": b"image/jpeg", "id": b"a.JPG", "text": b"eine Katze", "url": b"http://h/a",
        "meta-lang": b"de", "meta-n": b"3", "meta-tags": '["x", "ü"]'.encode(),
        "meta-captions": b'["eine Katze", "Tom"]',
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
    write_files(
        tmp_path, {"a.jpg": jpeg(1), "a.txt": "日本語", "a.json": '{"lang": "ja", "score": 0.5}'}
    )
    (item,) = read(tmp_path)
    envelope = parse(Record(0, 0, 0, item.value, item.headers), "image/jpeg")
    assert (envelope.id, envelope.text, envelope.metadata) == (
        "a.jpg",
        "日本語",
        {"lang": "ja", "score": "0.5"},
    )
    assert envelope.image == jpeg(1)


def test_texts_are_found_by_every_usual_name(tmp_path):
    write_files(
        tmp_path,
        {
            "IMG_1.JPG": b"1", "IMG_1.TXT": "one", "IMG_2.jpg": b"2", "IMG_2.jpg.txt": "two",
            "IMG_3.jpg": b"3", "IMG_3.jpg.json": '{"Caption": "three", "lang": "en"}',
            "IMG_4.jpg": b"4", "IMG_4.caption": "four", "IMG_5.jpg": b"5", "IMG5.txt": "no",
            "frame.0001.jpg": b"6", "frame.0001.JSON": '{"prompt": "six"}', "list.json": "[1]",
        },
    )  # fmt: skip
    found = read_all(tmp_path)
    assert found.texts() == {
        "IMG_1.JPG": "one", "IMG_2.jpg": "two", "IMG_3.jpg": "three", "IMG_4.jpg": "four",
        "IMG_5.jpg": None, "frame.0001.jpg": "six",
    }  # fmt: skip
    assert header(found.by_id()["IMG_3.jpg"], "meta-lang") == "en"
    assert (found.summary["unused_texts"], found.summary["left_out"]) == (2, 0)
    assert found.remarks == [
        "left out: 2 files (texts and JSON without an image): 1 .json, for example list.json; 1 .txt, "
        "for example IMG5.txt"
    ]


def test_an_empty_text_leaves_the_caption_of_the_json(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "a.txt": " \n", "a.json": '{"caption": "x"}'})
    assert read_all(tmp_path).texts() == {"a.jpg": "x"}


def test_a_text_is_repeated_in_the_json_of_img2dataset(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "a.txt": "x", "a.json": '{"caption": "x"}'})
    (item,) = read(tmp_path)
    assert dict(item.headers).keys() == {"content-type", "id", "text"}


def test_masks_beside_an_image_are_left_out_and_counted(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1", "a.mask.png": b"2", "a.1.jpg": b"3", "b.left.jpg": b"4"})
    found = read_all(tmp_path)
    assert found.texts().keys() == {"a.jpg", "a.1.jpg", "b.left.jpg"}
    assert found.summary["further_images"] == 1
    assert "1 .png, for example a.mask.png" in found.remarks[0]


def test_hidden_files_are_left_out_and_counted(tmp_path):
    write_files(
        tmp_path,
        {
            "a.jpg": b"1", "a.txt": "one", "._a.jpg": b"junk", "._a.txt": "junk", ".b.jpg": b"junk",
            "__MACOSX/a.jpg": b"junk", "sub/.ipynb_checkpoints/a-checkpoint.jpg": b"junk",
            "Thumbs.db": b"junk", "@eaDir/a.jpg/T.jpg": b"junk",
        },
    )  # fmt: skip
    found = read_all(tmp_path)
    assert found.texts() == {"a.jpg": "one"}
    assert (found.summary["hidden"], found.summary["left_out"]) == (7, 0)
    [line] = found.remarks
    assert line.startswith("left out: 7 files (hidden or the system's own): for example ")


def test_a_hidden_folder_or_image_can_be_named(tmp_path):
    write_files(tmp_path / ".photos", {"a.jpg": b"1", "._b.jpg": b"2"})
    assert read_all(tmp_path / ".photos").texts() == {"a.jpg": None}
    assert read_all(tmp_path / ".photos/._b.jpg").texts() == {"._b.jpg": None}


def test_what_cannot_be_sent_is_named(tmp_path):
    write_files(
        tmp_path,
        {
            "big.png": b"x" * 5000, "latin.jpg": b"1", "latin.txt": "Bücher".encode("latin-1"),
            "list.jpg": b"2", "list.json": "[1]", "ok.jpg": b"3", "deep.jpg": b"4",
            "deep.json": '{"a": ' + "[" * 3000, "nul.jpg": b"5", "nul.json": '{"k\\u0000x": 1}',
            "long.jpg": b"6", "long.txt": "x" * 5000, "twice.jpg": b"7",
            "twice.json": '{"a":1,"a":2}',
            "no.jpg": b"8", "no.json": "", "dict.jpg": b"9", "dict.json": '{"text": {}}',
        },
    )  # fmt: skip
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = read_all(tmp_path, limit=4000)
    assert found.texts() == {"ok.jpg": None}
    assert found.reasons() == {
        "big.png": "5000 bytes; the topic takes at most 4000 (its max.message.bytes)",
        "gone.jpg": "No such file or directory",
        "loop.jpg": "Too many levels of symbolic links",
        "pipe.jpg": "is not a regular file",
        "latin.jpg": "latin.txt is not UTF-8",
        "list.jpg": "list.json is not a JSON object",
        "deep.jpg": "deep.json is nested too deeply",
        "nul.jpg": r"the metadata key 'k\x00x' contains NUL",
        "long.jpg": "long.txt: 5000 bytes; the topic takes at most 4000 (its max.message.bytes)",
        "twice.jpg": "twice.json: duplicate key 'a'",
        "no.jpg": "no.json is not JSON: Expecting value at column 1",
        "dict.jpg": "dict.json: 'text' is an object or a list in a list, not text",
    }


def test_links_lead_nowhere_but_into_the_source(tmp_path):
    secret = write_files(
        tmp_path / "outside", {"s.jpg": b"secret", "s.txt": "secret", "t.tar": b""}
    )
    source = write_files(tmp_path / "in", {"a.jpg": b"1", "b.jpg": b"2", "sub/c.jpg": b"3"})
    (source / "link.jpg").symlink_to(secret / "s.jpg")
    (source / "relative.jpg").symlink_to("../outside/s.jpg")
    (source / "passwd.jpg").symlink_to("/etc/passwd")
    (source / "b.txt").symlink_to(secret / "s.txt")
    (source / "shard.tar").symlink_to(secret / "t.tar")
    (source / "good.jpg").symlink_to("sub/c.jpg")
    (source / "chain.jpg").symlink_to(source / "link.jpg")
    found = read_all(source)
    assert found.by_id().keys() - found.reasons().keys() == {"a.jpg", "good.jpg", "sub/c.jpg"}
    assert found.by_id()["good.jpg"].value == b"3"
    out = "leads out of the source, to {}; only what lies below a SOURCE is sent"
    assert found.reasons() == {
        "link.jpg": out.format(secret / "s.jpg"),
        "relative.jpg": out.format(secret / "s.jpg"),
        "chain.jpg": out.format(secret / "s.jpg"),
        "passwd.jpg": out.format("/etc/passwd"),
        "b.jpg": "b.txt: " + out.format(secret / "s.txt"),
        "shard.tar": out.format(secret / "t.tar"),
    }


def test_a_link_that_is_the_source_itself_is_followed(tmp_path):
    write_files(tmp_path / "real", {"a.jpg": b"1", "a.txt": "one"})
    (tmp_path / "folder").symlink_to("real", target_is_directory=True)
    (tmp_path / "image.jpg").symlink_to("real/a.jpg")
    assert read_all(tmp_path / "folder").texts() == {"a.jpg": "one"}
    assert read_all(tmp_path / "image.jpg").texts() == {"image.jpg": None}


def test_links_to_folders_are_not_followed_and_counted(tmp_path):
    write_files(tmp_path, {"sub/a.jpg": b"A"})
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    found = read_all(tmp_path)
    assert found.texts().keys() == {"sub/a.jpg"}
    assert found.summary["left_out"] == 1
    assert found.remarks == [
        "left out: 1 file (links to folders, which are not followed): for example sub/up"
    ]


@contextmanager
def nested(root: Path, name: str, depth: int) -> Iterator[None]:
    """Folders called ``name`` in each other, an image in the last of them."""
    code = (
        f"import os; os.chdir({str(root)!r})\n"
        f"for _ in range({depth}): os.mkdir({name!r}); os.chdir({name!r})\n"
        "open('a.jpg', 'w').close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", root / name], check=True)


def test_folders_may_be_nested_deeper_than_the_interpreter_calls(tmp_path):
    with nested(tmp_path, "d", 1_200):
        assert read_all(tmp_path).texts().keys() == {"d/" * 1_200 + "a.jpg"}


def test_a_folder_that_cannot_be_read_costs_only_itself(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1"})
    with nested(tmp_path, "d" * 200, 25):  # the system refuses paths of more than 4096 bytes
        found = read_all(tmp_path)
    assert found.texts().keys() == {"a.jpg"}
    assert list(found.reasons().values()) == ["File name too long"]


def test_all_files(tmp_path):
    write_files(
        tmp_path, {"a.jpg": b"A", "a.txt": b"T", "none": b"N", ".h": b"H", "metadata.csv": b"C"}
    )
    (tmp_path / os.fsdecode(b"b\xff.bin")).write_bytes(b"B")
    entries = by_id(read(tmp_path, all_files=True))
    assert {e.id: e.value for e in entries.values()} == {
        "a.jpg": b"A", "a.txt": b"T", "none": b"N", "b\\xff.bin": b"B", ".h": b"H",
        "metadata.csv": b"C",
    }  # fmt: skip
    assert header(entries["a.jpg"], "text") is None
    assert header(entries["none"], "content-type") == "image/*"


def test_one_image_has_the_texts_it_has_in_its_folder(tmp_path):
    write_files(
        tmp_path, {"a.left.jpg": b"1", "a.right.jpg": b"2", "a.txt": "both", "a.json": '{"n": 1}'}
    )
    (item,) = read(tmp_path / "a.left.jpg")
    assert (item.id, header(item, "text"), header(item, "meta-n")) == ("a.left.jpg", "both", "1")


def test_nothing_to_send_is_an_error_with_the_way_out(tmp_path):
    write_files(tmp_path, {"e/x": b"", "t/a.txt": b"x", "h/._a.jpg": b"", "a.txt": b"x"})
    with pytest.raises(ConfigError, match="has no images, tars or Parquet files; --all-files"):
        read(tmp_path / "e")
    with pytest.raises(ConfigError, match="has no images, tars or Parquet files"):
        read(tmp_path / "h")
    with pytest.raises(ConfigError, match=r"Parquet files; \.txt: a text goes beside its image"):
        read(tmp_path / "t")
    with pytest.raises(ConfigError, match="there is no such file"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.csv", "--captions FILE, with the images' folder as the SOURCE"),
        ("a.TSV", "--captions FILE"), ("a.jsonl", "--captions FILE"), ("a.ndjson", "--captions"),
        ("a.json", "a text goes beside its image"), ("a.txt", "beside its image"),
        ("data-00000-of-00001.arrow", "Dataset.to_parquet"), ("a.zip", "unpack it"),
        ("a.jpg.gz", "unpack it"), ("a.tar.zst", "unpack it"), ("a.pdf", "--all-files sends it"),
        ("Makefile", "--all-files sends it"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_an_error_with_the_way_out(tmp_path, name, advice):
    write_files(tmp_path, {name: b"x"})
    with pytest.raises(ConfigError) as raised:
        read(tmp_path / name)
    assert "is neither a folder, a tar, a Parquet file nor an image; " in str(raised.value)
    assert advice in str(raised.value)
    assert ("--all-files" in advice) == ("--all-files" in str(raised.value))


def test_what_is_left_out_is_shown_by_kind_with_the_way_out(tmp_path):
    names = [f"{i}.md" for i in range(12)] + [
        "a.csv",
        "b.zip",
        "c.pdf",
        "d.mp4",
        "e.docx",
        "Makefile",
        "f.x",
    ]
    write_files(tmp_path, dict.fromkeys(["a.jpg", *names], b""))
    found = read_all(tmp_path)
    assert found.summary["left_out"] == len(names)
    first, *ways = found.remarks
    assert first.startswith(
        "left out: 19 files (not an image, a text or a tar): 12 .md, for example 0.md; "
        "1 without extension, for example Makefile; 1 .csv, for example a.csv"
    )
    assert first.endswith("; …")
    assert [way.partition(":")[0] for way in ways] == [".csv", ".zip"]


def test_a_socket_is_no_image(tmp_path):
    write_files(tmp_path, {"a.jpg": b"1"})
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket may have 108 bytes only
        try:
            server.bind("s.jpg")
        finally:
            os.chdir(here)
        found = read_all(tmp_path)
    assert found.reasons() == {"s.jpg": "is not a regular file"}


def test_names_that_are_not_utf_8_can_be_told(tmp_path):
    names = [
        b"a\xff.jpg",
        b"a\xff.mask.png",
        b"b\xff.txt",
        b".c\xff",
        b"d\xff.md",
        b"e\xff.json",
        b"e\xff.jpg",
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"[]")
    (tmp_path / os.fsdecode(b"f\xff.jpg")).symlink_to(os.fsdecode(b"/g\xff"))
    write_tar(tmp_path / "t.tar", [(os.fsdecode(name), b"[]") for name in names])
    found = read_all(tmp_path)
    "\n".join([*found.remarks, json.dumps(found.summary, ensure_ascii=False)]).encode()
    assert found.texts().keys() == {r"a\xff.jpg", r"t/a\xff"}
    assert found.reasons().keys() == {
        r"e\xff.jpg",
        r"f\xff.jpg",
        r"t/e\xff",
        r"t/b\xff",
        r"t/d\xff",
    }
