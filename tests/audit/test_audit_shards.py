"""The look at a shard by columns never passes what the look member by member objects to."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sink_data import Maker

from streamer.audit import Audit, shards
from streamer.audit.report import Report
from streamer.audit.shards import ShardCheck, Strange
from streamer.sink.storage import Storage

Members = list[tuple[str, bytes]]
NAME = "w-0-00000000"
TAR = f"shards/jpg/{NAME}-000.tar"
TABLE = f"metadata/{NAME}.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    Maker(Storage(str(root), "cats"), formats=("jpg",), dim=4).commit("w-0", {0: 20})
    return root / "cats"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "cats")


def put(folder: Path, path: str, data: bytes) -> None:
    """The manifest says what the file is now, so that only a look inside can find something."""
    (folder / path).write_bytes(data)
    manifest = folder / f"manifests/{NAME}.json"
    raw = json.loads(manifest.read_bytes())
    for entry in raw["files"]:
        if entry["path"] == path:
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest.write_text(json.dumps(raw))


def members(folder: Path) -> Members:
    with tarfile.open(folder / TAR) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def packed(found: Members, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=kind) as tar:
        for name, content in found:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def report(folder: Path, slow: bool) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        if slow:
            patch.setattr(ShardCheck, "add", _strange)
        return Audit(str(folder)).run()


def _strange(*_: object) -> None:
    raise Strange("so that the other look is taken")


def agree(folder: Path) -> bool:
    """Both looks say the same. Whether all is well."""
    fast, slow = report(folder, slow=False), report(folder, slow=True)
    assert (fast.problems, fast.notes, fast.counts) == (slow.problems, slow.notes, slow.counts)
    return fast.ok


def test_a_sound_shard_is_proven_by_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the slow look")

    monkeypatch.setattr("streamer.audit.epoch.check_tar", never)
    monkeypatch.setattr(shards, "WINDOW", 1024)
    assert report(folder, slow=False).ok


def test_random_damage(folder: Path) -> None:
    data, rng = (folder / TAR).read_bytes(), random.Random(20261127)
    found = {True: 0, False: 0}
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del changed[rng.randrange(len(changed)) :]
        put(folder, TAR, bytes(changed))
        found[agree(folder)] += 1
    assert min(found.values()) > 5, "some of it must hit padding, which nobody looks at"


def in_json(change: Callable[[bytes], bytes], which: int = 0) -> Callable[[Members], Members]:
    def apply(found: Members) -> Members:
        at = [i for i, (name, _) in enumerate(found) if name.endswith(".json")][which]
        return [*found[:at], (found[at][0], change(found[at][1])), *found[at + 1 :]]

    return apply


def _two_in_one(found: Members) -> Members:
    """Together they are as many objects as there are members."""
    first, second = [i for i, (name, _) in enumerate(found) if name.endswith(".json")][:2]
    both = found[first][1] + b"\n" + found[second][1]
    found[first], found[second] = (found[first][0], both), (found[second][0], b"")
    return found


def _cut_in_two(end: bytes, begin: bytes) -> Callable[[Members], Members]:
    """Together they are two objects, of which the second has a field more."""

    def apply(found: Members) -> Members:
        first, second = [i for i, (name, _) in enumerate(found) if name.endswith(".json")][:2]
        found[first] = found[first][0], found[first][1] + b' {"more":' + end
        found[second] = found[second][0], begin + b"," + found[second][1][1:]
        return found

    return apply


def _field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), name: value}).encode()


FINE: dict[str, Callable[[Members], Members]] = {
    "members in another order": lambda found: [
        found[i] for at in range(0, len(found), 3) for i in (at + 2, at, at + 1)
    ],
    "a sample on another place": lambda found: [*found[3:], *found[:3]],
    "json with spaces": in_json(lambda data: json.dumps(json.loads(data), indent=1).encode()),
    "json with a field more": in_json(_field("more", [1, {"a": None}])),
    "a number with a fraction": in_json(lambda data: data.replace(b'"width":32', b'"width":32.0')),
    "json in another order": in_json(
        lambda data: json.dumps(dict(reversed(json.loads(data).items()))).encode()
    ),
}
WRONG: dict[str, Callable[[Members], Members]] = {
    "a json twice in one member": _two_in_one,
    "an object that ends in the next member": _cut_in_two(b"", b'{"x":1}'),
    "an object that began in the member before": _cut_in_two(b'{"x":1}', b""),
    "a sample too many": lambda found: [
        *found, *((f"00000_000000000999.{end}", b"{}") for end in ("jpg", "json", "txt"))
    ],
    "two jsons in one line": in_json(lambda data: data + data),
    "a field twice": in_json(lambda data: data[:-1] + b',"offset":99}'),
    "a field of another kind": in_json(_field("offset", "0")),
    "a number that is too large": in_json(_field("offset", 1 << 70)),
    "a null": in_json(_field("url", None)),
    "no json": in_json(lambda data: b""),
    "half a json": in_json(lambda data: data[:-9]),
    "json that is not UTF-8": in_json(lambda data: data.replace(b"photos", b"ph\xfft\xffs")),
    "a text that is longer": lambda found: [
        (name, data + b" " * name.endswith(".txt")) for name, data in found
    ],
    "a name with a path": lambda found: [(f"a/{found[0][0]}", found[0][1]), *found[1:]],
    "an image of another sample": lambda found: [
        (found[0][0], found[3][1]), *found[1:3], (found[3][0], found[0][1]), *found[4:]
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [*FINE, *WRONG])
def test_other_shards(folder: Path, name: str) -> None:
    change = {**FINE, **WRONG}[name]
    put(folder, TAR, packed(change(members(folder))))
    assert agree(folder) == (name in FINE)


def test_other_kinds_of_tars(folder: Path) -> None:
    found = members(folder)
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        put(folder, TAR, packed(found, kind))
        assert agree(folder)
    data = packed(found)
    end = len(data.rstrip(b"\0")) + 511 & -512
    put(folder, TAR, data[:end])  # without its end
    assert agree(folder)
    put(folder, TAR, data[:end] + bytes(512) + b"anything")
    assert agree(folder)
    put(folder, TAR, b"".join(_in_a_folder(data)))
    assert not agree(folder)
    link = tarfile.TarInfo(found[0][0])
    link.type, link.linkname = tarfile.LNKTYPE, "elsewhere"
    put(folder, TAR, link.tobuf(tarfile.USTAR_FORMAT) + data)
    assert not agree(folder)


def _in_a_folder(data: bytes) -> Iterator[bytes]:
    """Each header gets a prefix, and a checksum that fits."""
    at = 0
    while any(data[at : at + 512]):
        header = bytearray(data[at : at + 512])
        header[345:346], header[148:156] = b"a", b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        end = at + 512 + (int(header[124:135], 8) + 511 & -512)
        yield bytes(header) + data[at + 512 : end]
        at = end
    yield data[at:]


def test_a_sample_larger_than_a_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window grows, to its limit; then the other look is taken."""
    monkeypatch.setattr(shards, "WINDOW", 512)
    for limit in (1 << 20, 512):
        monkeypatch.setattr(shards, "MAX_WINDOW", limit)
        assert agree(folder)


def test_rows_out_of_their_shards_order(folder: Path) -> None:
    table = pq.read_table(folder / TABLE)
    order = pa.array(range(len(table) - 1, -1, -1))
    data = io.BytesIO()
    pq.write_table(table.take(order), data)
    put(folder, TABLE, data.getvalue())
    assert agree(folder)
