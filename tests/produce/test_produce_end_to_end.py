"""The console script in a process of its own, on real Kafka: exit codes, and what arrives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streamer.records import Record
from streamer.testing import read_topic
from streamer.wire.envelope import parse
from tests.produce.reading import link, write_files, write_tar


def streamer(*arguments: object) -> tuple[int, str, str]:
    """The console script in a process of its own."""
    command_line = [sys.executable, "-m", "streamer", "produce", *map(str, arguments)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_exit_codes_of_the_process(kafka, topic_name, tmp_path):
    to = ["--topic", topic_name, "--bootstrap", kafka, "--create-topic", "--partitions", 1]
    write_files(
        tmp_path, {"good/a.jpg": b"1", "bad/a.jpg": b"1", "bad/a.json": b"", "d/c.arrow": b""}
    )
    write_files(
        tmp_path, {"bad.csv": "path,text\na.jpg,a cat, sitting\n", "no.csv": "path,text\nx,y\n"}
    )
    write_files(tmp_path, {"deep.jsonl": '{"path": "a.jpg", "text": "x", "n": ' + "[" * 9000})
    code, out, err = streamer(tmp_path / "good", *to)
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"sent 1 record, 0 with a caption, 0 with metadata \(0\.0 MB\) to \S+ in \S+ s, \d+/s\n",
        out,
    )
    code, out, err = streamer(tmp_path / "bad", *to)
    assert code == 1
    assert out.endswith("; 1 could not be sent\n")
    assert err == "not sent: a.jpg: a.json is not JSON: Expecting value at column 1\n"
    for captions, expected, words in (
        ("bad.csv", 2, "bad.csv: row 1 has 3 cells"),
        ("no.csv", 1, "no path in it matches a file"),
        ("deep.jsonl", 2, "deep.jsonl: line 1 is nested too deeply"),
    ):  # fmt: skip
        code, out, err = streamer(tmp_path / "good", "--captions", tmp_path / captions, *to)
        assert (code, out) == (expected, "")
        assert words in err
    # What is wrong with the second source is found before the first one is sent.
    code, out, err = streamer(tmp_path / "good", tmp_path / "d", *to)
    assert (code, out) == (2, "")
    assert "Dataset.to_parquet" in err
    assert len(read_topic(kafka, topic_name)) == 1


def world(root: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Sources of every kind with all that people have in them: id → (text, metadata), as they
    should arrive. The bytes of each image are its id."""
    expected: dict[str, tuple[str, dict[str, str]]] = {}

    def image(id: str, text: str = "", **metadata: str) -> bytes:
        expected[id] = text, metadata
        return id.encode()

    screen = "Screenshot 2024-05-01 at 10"
    write_files(
        root / "folder",
        {
            "IMG_1.JPG": image("IMG_1.JPG", "upper case"), "IMG_1.TXT": "upper case",
            "IMG_2.jpg": image("IMG_2.jpg", "whole name"), "IMG_2.jpg.txt": "whole name",
            "IMG_3.jpg": image("IMG_3.jpg", "gallery", lang="en"),
            "IMG_3.jpg.json": '{"Caption": "gallery", "lang": "en"}',
            "IMG_5.jpg": image("IMG_5.jpg"), "IMG5.txt": "the name does not match",
            "._IMG_1.JPG": "junk", "__MACOSX/._IMG_3.jpg": "junk",
            ".ipynb_checkpoints/a.jpg": "junk",
            "five/0.jpg": image("five/0.jpg", "one", captions='["one", "two", "three"]'),
            "five/metadata.csv": 'file_name,text\n0.jpg,one\n0.jpg,two\n"0.jpg","three"\n',
            "deep/a.jpg": "not sent", "deep/a.json": '{"n": ' + "[" * 5000,
            "nan/a.jpg": image("nan/a.jpg", "", n='{"x": [1, null]}'),
            "nan/a.json": '{"n": {"x": [1, NaN]}, "top": Infinity}',
        },
    )  # fmt: skip
    (root / "folder/passwd.jpg").symlink_to("/etc/passwd")
    write_tar(
        root / "dots.tar",
        [
            (f"{screen}.30.12.jpg", image(f"dots/{screen}.30.12", "screen 0")),
            (f"{screen}.30.12.txt", b"screen 0"),
            (f"{screen}.31.44.jpg", image(f"dots/{screen}.31.44", "screen 1")),
            (f"{screen}.31.44.txt", b"screen 1"),
            ("frame.0001.jpg", image("dots/frame.0001", "", n="1")),
            ("frame.0001.json", b'{"n": 1}'),
            ("frame.0002.jpg", image("dots/frame.0002", "", n="2")),
            ("frame.0002.json", b'{"n": 2}'),
            ("._x.jpg", b"junk"), ("x.jpg", image("dots/x", "plain")), ("x.vlm.txt", b"longer"),
            ("x.mask.png", b"mask"), ("x.txt", b"plain"), ("./y.jpg", link("x.jpg")),
        ],
    )  # fmt: skip
    expected["dots/y"] = "", {}
    write_tar(
        root / "late.tar.gz",
        [(f"{i}.jpg", image(f"late/{i}", f"text {i}")) for i in range(9)]
        + [(f"{i}.txt", f"text {i}".encode()) for i in range(9)],
    )
    write_files(
        root / "tables", {"i/0.jpg": image("i/0.jpg", "a"), "i/1.jpg": image("i/1.jpg", "b")}
    )
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = pa.array([{"bytes": None, "path": f"i/{i}.jpg"} for i in range(2)], struct)
    pq.write_table(pa.table({"image": paths, "prompt": ["a", "b"]}), root / "tables/paths.parquet")
    views = pa.table({
        "id": pa.array(["coco/1", "coco/2"], pa.string_view()),
        "TEXT": pa.array(["c", "c"]).dictionary_encode(),
        "image": pa.array([image(f"coco/{n}", "c", n=n) for n in "12"], pa.binary_view()),
        "n": [1, 2],
    })  # fmt: skip
    pq.write_table(views, root / "tables/views.parquet")
    return expected


def test_everything_of_every_source_arrives(kafka, topic_name, tmp_path):
    expected = world(tmp_path)
    sources = ["folder", "dots.tar", "late.tar.gz", "tables/paths.parquet", "tables/views.parquet"]
    code, out, err = streamer(
        *(tmp_path / s for s in sources), "--topic", topic_name, "--bootstrap", kafka,
        "--create-topic", "--partitions", 1, "--json",
    )  # fmt: skip
    assert code == 1
    arrived = {}
    for stored in read_topic(kafka, topic_name):
        envelope = parse(Record(0, 0, 0, stored.value, stored.headers), "image/jpeg")
        arrived[envelope.id] = envelope.text, envelope.metadata
        assert stored.value == ("dots/x" if envelope.id == "dots/y" else envelope.id or "").encode()
    assert arrived == expected
    summary = json.loads(out)
    assert {f["id"]: f["reason"].partition(",")[0] for f in summary.pop("failed")} == {
        "deep/a.jpg": "a.json is nested too deeply",
        "passwd.jpg": "leads out of the source",
    }
    assert [summary.pop("seconds") > 0, summary.pop("bytes") > 0] == [True, True]
    assert summary == {
        "sent": len(expected), "with_caption": sum(1 for text, _ in expected.values() if text),
        "with_metadata": sum(1 for _, metadata in expected.values() if metadata), "absent": 0,
        "left_out": 0, "unused_texts": 2, "further_images": 1, "hidden": 4, "unused_captions": [],
    }  # fmt: skip
    assert "not sent: passwd.jpg: leads out of the source, to /etc/passwd" in err
