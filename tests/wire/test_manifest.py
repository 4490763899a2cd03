"""wire.manifest: equal manifests are equal bytes, and nothing wrong gets through."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ProtocolError
from streamer.wire.manifest import FileEntry, Manifest, decode, encode

FILE = FileEntry("shards/jpg/w-0-00000003-000.tar", 10240, "ab" * 32, 7)
GOOD = Manifest(
    version=1,
    dataset="cats",
    writer="w-0",
    epoch=3,
    uuid="0f-1",
    previous_uuid=None,
    partitions={10: (5, 9), 2: (0, 0)},
    skipped={10: ((6, 7),)},
    counts={"accepted": 7, "invalid": 1},
    files=(FILE,),
    claims_position=12,
    pipeline={"config": "aa", "heads": {"nsfw": "sha256:1"}},
    started="2026-01-01T00:00:00Z",
    sealed="2026-01-01T00:01:00Z",
)
ranges = st.tuples(st.integers(0, 2**62), st.integers(0, 2**40)).map(lambda t: (t[0], t[0] + t[1]))


def test_contract_fields_and_one_line():
    data = encode(GOOD)
    assert data.index(b"\n") == len(data) - 1
    raw = json.loads(data)
    assert raw["partitions"] == {"2": [0, 0], "10": [5, 9]}
    assert raw["skipped"] == {"10": [[6, 7]]}
    assert raw["files"] == [{"path": FILE.path, "bytes": 10240, "sha256": "ab" * 32, "rows": 7}]
    assert GOOD.path == "manifests/w-0-00000003.json"


@given(
    st.dictionaries(st.integers(0, 99_999), ranges),
    st.integers(0, 2**40),
    st.sampled_from([None, "aa-bb"]),
)
def test_round_trip(partitions, epoch, previous):
    manifest = replace(
        GOOD,
        epoch=epoch,
        previous_uuid=previous,
        partitions=partitions,
        skipped={p: ((a, a), (a, b)) for p, (a, b) in partitions.items()},
    )
    again = decode(encode(manifest))
    assert again == manifest
    assert encode(again) == encode(manifest)


def test_the_order_of_partitions_does_not_change_the_bytes():
    assert encode(replace(GOOD, partitions={2: (0, 0), 10: (5, 9)})) == encode(GOOD)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("version", 2, "version 2"),
        ("epoch", -1, "epoch"),
        ("epoch", True, "epoch"),
        ("writer", "../x", "writer"),
        ("uuid", "a/b", "uuid"),
        ("previous_uuid", 5, "previous_uuid"),
        ("partitions", {"0": [5, 4]}, "backwards"),
        ("partitions", {"0": [5]}, "first, next"),
        ("partitions", {"x": [5, 6]}, "partitions"),
        ("partitions", [], "not an object"),
        ("skipped", {"10": [[4, 6]]}, "outside its range"),
        ("skipped", {"11": [[5, 6]]}, "outside its range"),
        ("counts", {"lost": 1}, "outcomes are"),
        ("counts", {"accepted": 1.5}, "counts"),
        ("files", [{"path": "x"}], "file entry"),
        (
            "files",
            [{"path": "../../etc/x.tar", "bytes": 1, "sha256": "ab" * 32, "rows": 1}],
            "dataset folder",
        ),
        (
            "files",
            [{"path": "/shards/jpg/a.tar", "bytes": 1, "sha256": "ab" * 32, "rows": 1}],
            "dataset folder",
        ),
        ("files", [{"path": "shards/jpg/a.tar", "bytes": 1, "sha256": "zz", "rows": 1}], "sha256"),
    ],
)
def test_a_wrong_field_is_named(field, value, says):
    raw = json.loads(encode(GOOD))
    raw[field] = value
    with pytest.raises(ProtocolError, match=says):
        decode(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"{}", b'{"version":1}', b'{"version":1,"x":2}']
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ProtocolError):
        decode(data)


def test_encode_refuses_what_decode_would_refuse():
    with pytest.raises(ProtocolError, match="outcomes are"):
        encode(replace(GOOD, counts={"kept": 1}))
