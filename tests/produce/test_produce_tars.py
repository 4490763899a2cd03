"""Tars: which text goes with which image wherever they lie, links, damage, and what is left out."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
import webdataset

from streamer.produce.entry import Item, Unsendable
from streamer.testing import jpeg
from tests.produce.reading import by_id, header, link, read, read_all, write_files, write_tar


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
        found = read_all(source, limit=4000)
        entries = found.by_id()
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
        assert found.summary["left_out"] == 1
        assert "1 .cls, for example 00000/sub/000000001.cls" in found.remarks[0]


SCREENS = {f"Screenshot 2024-05-01 at 10.{m}": f"at {m}" for m in ("30.12", "31.44", "32.05")}
FRAMES = {f"frame.{i:04d}": f"frame {i}" for i in range(1, 4)}


@pytest.mark.parametrize("order", ["beside", "texts first", "images first", "backwards"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "txz"])
def test_texts_belong_to_the_image_of_the_same_name_wherever_they_lie(tmp_path, order, suffix):
    texts = {**SCREENS, **FRAMES, "x/y.z": "deep"}
    images = [(f"{name}.jpg", name.encode()) for name in texts]
    sidecars = [(f"{name}.txt", text.encode()) for name, text in texts.items()]
    members = {
        "beside": [m for pair in zip(images, sidecars, strict=True) for m in pair],
        "texts first": sidecars + images,
        "images first": images + sidecars,
        "backwards": (images + sidecars)[::-1],
    }[order]
    kind = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz", "txz": "xz"}.get(
        suffix.split(".")[-1], ""
    )
    with tarfile.open(tmp_path / f"t.{suffix}", f"w:{kind}") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = read_all(tmp_path / f"t.{suffix}")
    expected = {f"t/{name}": text for name, text in texts.items()}
    expected["t/x/y"] = expected.pop("t/x/y.z")
    assert found.texts() == expected
    assert found.remarks == []
    assert all(e.value.decode() in texts for e in found.entries if isinstance(e, Item))


def test_the_plain_text_wins_and_masks_are_not_sent(tmp_path):
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("a.jpg", b"1"), ("a.meta.json", b'{"n": 2}'), ("a.vlm.txt", b"long"),
            ("a.mask.png", b"m"),
            ("a.json", b'{"n": 1}'), ("a.seg.png", b"s"), ("a.txt", b"short"), ("b.jpg", b"2"),
            ("b.vlm.txt", b"only"), ("b.cls", b"7"), ("b.npy", b""),
        ],
    )  # fmt: skip
    found = read_all(path)
    assert found.texts() == {"t/a": "short", "t/b": "only"}
    assert header(found.by_id()["t/a"], "meta-n") == "1"
    counts = {k: found.summary[k] for k in ("unused_texts", "further_images", "left_out", "hidden")}
    assert counts == {"unused_texts": 2, "further_images": 2, "left_out": 2, "hidden": 0}
    assert len(found.remarks) == 3


@pytest.mark.parametrize("inner", ["", "./", "photos/", "./a.b/"])
def test_a_tar_of_a_folder_gives_what_the_folder_gives(tmp_path, inner):
    files: dict[str, bytes | str] = {
        "IMG_1.JPG": b"1", "IMG_1.TXT": "one", "IMG_2.jpg": b"2", "IMG_2.jpg.txt": "two",
        "IMG_3.jpg": b"3", "IMG_3.jpg.json": '{"Caption": "three"}', "a.1.jpg": b"4",
        "a.1.txt": "four", "a.2.jpg": b"5", "._a.1.jpg": b"junk", "._a.1.txt": "junk",
        "__MACOSX/a.jpg": b"junk", "e.jpg": b"6", "e.mask.png": b"junk", "e.other.txt": "six",
    }  # fmt: skip
    write_files(tmp_path / "f", files)
    members = [(inner + n, d if isinstance(d, bytes) else d.encode()) for n, d in files.items()]
    folder, tar = read_all(tmp_path / "f"), read_all(write_tar(tmp_path / "t.tar", members))

    def by_bytes(found):
        return {e.value: header(e, "text") for e in found.entries if isinstance(e, Item)}

    assert by_bytes(tar) == by_bytes(folder)
    assert b"junk" not in by_bytes(tar)
    assert tar.reasons() == folder.reasons() == {}
    assert (tar.summary["hidden"], folder.summary["hidden"]) == (3, 3)
    assert tar.summary["further_images"] == folder.summary["further_images"] == 1


def test_links_to_members_are_followed(tmp_path):
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("early.jpg", link("sub/a.jpg")), ("sub/a.jpg", b"1"), ("sub/a.txt", b"one"),
            ("hard.jpg", link("sub/a.jpg", hard=True)), ("sub/up.jpg", link("../chain.jpg")),
            ("chain.jpg", link("./hard.jpg")), ("blob.jpg", link(".blobs/77")), (".blobs/77", b"2"),
            ("sha/88", b"5"), ("sha.jpg", link("sha/88")),
            ("blob.txt", link("sub/a.txt")), ("out.jpg", link("/etc/passwd")),
            ("gone.jpg", link("nowhere.jpg")), ("round.jpg", link("about.jpg")),
            ("about.jpg", link("round.jpg")), ("b.jpg", b"3"), ("b.txt", link("/etc/passwd")),
            ("etc/passwd", b"x"),
            ("c.jpg", b"4"), ("c.txt", link(".blobs/77")),
        ],
    )  # fmt: skip
    found = read_all(path)
    values = {e.id: e.value for e in found.entries if isinstance(e, Item)}
    assert values == {
        "t/early": b"1", "t/sub/a": b"1", "t/hard": b"1", "t/sub/up": b"1", "t/chain": b"1",
        "t/blob": b"2", "t/sha": b"5",
    }  # fmt: skip
    assert {k for k, text in found.texts().items() if text} == {"t/sub/a", "t/blob"}
    assert found.reasons() == {
        "t/out": "out.jpg is a link to /etc/passwd, which the archive does not have",
        "t/gone": "gone.jpg is a link to nowhere.jpg, which the archive does not have",
        "t/round": "round.jpg is a link that leads to itself",
        "t/about": "about.jpg is a link that leads to itself",
        "t/b": "b.txt is a link to /etc/passwd, which the archive does not have",
        "t/c": "c.txt is a link to a file that is not text",
        "t/etc/passwd": "the sample has no image",
    }


def test_members_that_are_no_files_are_named(tmp_path):
    pipe, folder = tarfile.TarInfo(), tarfile.TarInfo()
    pipe.type, folder.type = tarfile.FIFOTYPE, tarfile.DIRTYPE
    members = [("d", folder), ("p.jpg", pipe), ("q.fifo", pipe), ("a.jpg", b"1")]
    found = read_all(write_tar(tmp_path / "t.tar", members))
    assert found.texts() == {"t/a": None}
    assert found.reasons().keys() == {"t/p", "t/q"}


def test_a_later_member_of_the_same_name_replaces_the_earlier(tmp_path):
    members = [("a.jpg", b"old"), ("a.txt", b"old"), ("./a.jpg", b"new"), ("a.txt", b"new")]
    found = read_all(write_tar(tmp_path / "t.tar", members))
    assert found.texts() == {"t/a": "new"}
    assert [e.value for e in found.entries if isinstance(e, Item)] == [b"new"]
    assert found.summary["left_out"] == 2


def test_sidecars_that_cannot_be_used_cost_one_record(tmp_path):
    members = [
        ("a.jpg", b"1"), ("a.json", b'{"n": ' + b"[" * 3000), ("b.jpg", b"2"), ("b.txt", b"\xff"),
        ("c.jpg", b"3"), ("c.txt", b"x" * 5000), ("d.jpg", b"4"), ("d.json", b"[]"),
        ("e.jpg", b"5"),
        ("f.jpg", b"6"), ("f.json", b'{"k\\u0000": 1}'),
    ]  # fmt: skip
    found = read_all(write_tar(tmp_path / "t.tar", members), limit=4000)
    assert found.texts() == {"t/e": None}
    assert found.reasons() == {
        "t/a": "a.json is nested too deeply",
        "t/b": "b.txt is not UTF-8",
        "t/c": "c.txt has 5000 bytes; the topic takes at most 4000 (its max.message.bytes)",
        "t/d": "d.json is not a JSON object",
        "t/f": r"the metadata key 'k\x00' contains NUL",
    }


def test_members_of_a_tar_with_all_files(tmp_path):
    members = [("a.jpg", b"A"), ("./a.txt", b"T"), ("._h", b"H"), ("l.jpg", link("a.txt"))]
    path = write_tar(tmp_path / "x.tar.gz", members)
    assert {e.id: e.value for e in read(path, all_files=True)} == {
        "x/a.jpg": b"A", "x/a.txt": b"T", "x/._h": b"H", "x/l.jpg": b"T",
    }  # fmt: skip
    assert header(by_id(read(path))["x/a"], "text") == "T"


FOUR = [(f"{i}.jpg", b"i" * 700) for i in range(4)]


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
    assert entries[-1].reason.startswith(f"{path.name} cannot be read")
    assert "\n" not in entries[-1].reason
    assert len([e for e in entries if isinstance(e, Item)]) == (
        0 if damage == "no tar" else 2 if "cut in" in damage else 3
    )


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", ["no end mark", "a block of zeros", "two blocks of zeros"])
def test_zeros_are_no_end_and_an_end_has_zeros(tmp_path, damage, compressed):
    data = bytearray(write_tar(tmp_path / "w.tar", FOUR).read_bytes())
    if damage == "no end mark":
        data = data[: 4 * 1536]
    else:
        data[1536 : 1536 + 512 * (2 if "two" in damage else 1)] = bytes(
            1024 if "two" in damage else 512
        )
    path = tmp_path / ("x.tgz" if compressed else "x.tar")
    path.write_bytes(gzip.compress(data) if compressed else data)
    found = read_all(path)
    if damage == "no end mark":  # nothing in it has a text
        assert found.texts().keys() == {"x/0", "x/1", "x/2", "x/3"}
        assert found.reasons().keys() == {"x"}
    else:  # a text of its one readable image may follow
        assert found.texts() == {}
        assert found.reasons().keys() == {"x", "x/0"}


@pytest.mark.parametrize("compressed", [False, True])
def test_archives_that_were_joined(tmp_path, compressed):
    parts = [
        write_tar(tmp_path / f"{n}.tar", [(f"{n}.jpg", b"i"), (f"{n}.txt", b"t")]) for n in "ab"
    ]
    packed = [gzip.compress(p.read_bytes()) if compressed else p.read_bytes() for p in parts]
    path = tmp_path / ("x.tgz" if compressed else "x.tar")
    path.write_bytes(b"".join(packed))
    assert read_all(path).texts() == {"x/a": "t", "x/b": "t"}


def test_a_gzip_with_a_wrong_checksum_is_told(tmp_path):
    path = write_tar(tmp_path / "x.tgz.gz", [("a.jpg", os.urandom(700))]).rename(tmp_path / "x.tgz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    *_, last = read(path)
    assert last.reason.startswith("x.tgz cannot be read after a.jpg: CRC check failed")


def test_hostile_headers_are_damage(tmp_path):
    names = tarfile.TarInfo("././@LongLink")
    names.type, names.size = tarfile.GNUTYPE_LONGNAME, 1
    longname = names.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 40
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n".ljust(40, b" ")
    image = write_tar(tmp_path / "good.tar", [("a.jpg", b"1"), ("b.jpg", b"2")]).read_bytes()
    for hostile in (longname * 3000, pax.tobuf(tarfile.GNU_FORMAT) + sparse.ljust(512, b"\0")):
        (tmp_path / "t.tar").write_bytes(image[:2048] + hostile + image[2048:])
        found = read_all(tmp_path / "t.tar")
        assert found.texts().keys() <= {"t/a", "t/b"}
        assert found.reasons()["t"].startswith("t.tar cannot be read after b.jpg: ")


@pytest.mark.parametrize("order", ["beside", "images first"])
def test_no_image_is_sent_without_the_text_that_the_damage_took(tmp_path, order):
    pairs = [[(f"{i}.jpg", b"i" * 700), (f"{i}.txt", f"text {i}".encode())] for i in range(4)]
    members = [m for pair in pairs for m in pair]
    if order == "images first":
        members = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    path = write_tar(tmp_path / "x.tar", members)
    with tarfile.open(path) as archive:
        at = archive.getmember("2.txt").offset
    path.write_bytes(path.read_bytes()[: at + 100])
    found = read_all(path)
    # The sample at which the damage begins may have more texts, as 1.json after 1.txt.
    sure = {"x/0", "x/1"} if order == "beside" else {"x/0"}
    assert found.texts() == {id: id.replace("x/", "text ") for id in sure}
    doubtful = {"x/2"} if order == "beside" else {"x/1", "x/2", "x/3"}
    assert found.reasons().keys() == doubtful | {"x"}
    assert found.reasons()["x/2"] == "its text may be in the unreadable part of the archive"


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs")
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_images_first_and_texts_far_later_need_no_more_memory(tmp_path, suffix):
    path = tmp_path / f"big.{suffix}"
    with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as archive:
        for i in range(40):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 8_000_000  # 320 MB in all
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for i in range(40):
            info = tarfile.TarInfo(f"{i}.json")
            data = json.dumps({"text": f"text {i}", "long": "x" * 900_000}).encode()  # 36 MB in all
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.produce.reading import header\n"
        "from streamer.produce.entry import Columns\nfrom streamer.produce.source import Sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "texts = []\n"
        "for entry in Sources(Columns(), None, False, 9_000_000).entries(Path(sys.argv[1])):\n"
        "    texts.append(header(entry, 'text'))\n"
        "assert texts == [f'text {i}' for i in range(40)], texts\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # kB
