import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from streamer.errors import DependencyError, ProtocolError
from streamer.wire.claim import Claims, DatasetEntry, Open, Withdraw, decode, encode, split

SMALL = [
    DatasetEntry("6UYYKKwGSOG2VJIxBZLRKQ", "sha256:ab", 512, 0.95, 1),
    Open(3, 17, 2**64 - 1, 2**40),
    Open(0, -1, 0, 0),
    Withdraw(2**31 - 1, 0, 5),
]


def some_claims(rows=3, dim=4, **fields):
    vectors = np.arange(rows * dim).reshape(rows, dim).astype(np.float16) / 7
    return Claims(
        **{
            "partition": 1,
            "term": 2**63,
            "seen": 5,
            "offsets": np.arange(rows) * 10,
            "vectors": vectors,
        }
        | fields
    )


def same(left, right):
    assert (left.partition, left.term, left.seen) == (right.partition, right.term, right.seen)
    np.testing.assert_array_equal(left.offsets, right.offsets)
    np.testing.assert_array_equal(left.vectors.view(np.uint16), right.vectors.view(np.uint16))
    assert (right.offsets.dtype, right.vectors.dtype) == (np.int64, np.float16)


@pytest.mark.parametrize("entry", SMALL)
def test_small_entries_are_json(entry):
    data = encode(entry)
    assert json.loads(data)["version"] == 1
    assert decode(data) == entry


def test_the_open_says_from_on_the_wire():
    assert json.loads(encode(Open(3, 17, 9, 40))) == {
        "entry": "open",
        "version": 1,
        "partition": 3,
        "generation": 17,
        "term": 9,
        "from": 40,
    }


@given(
    partition=st.integers(0, 2**31 - 1),
    term=st.integers(0, 2**64 - 1),
    seen=st.integers(0, 2**63 - 1),
    offsets=st_numpy.arrays(np.int64, st.integers(0, 5), elements=st.integers(0, 2**63 - 1)),
    dim=st.integers(1, 9),
    data=st.data(),
)
def test_claims_come_back_bit_for_bit(partition, term, seen, offsets, dim, data):
    bits = data.draw(st_numpy.arrays(np.uint16, (len(offsets), dim)))  # NaN payloads too
    entry = Claims(partition, term, seen, offsets, bits.view(np.float16))
    same(entry, decode(encode(entry)))


def test_the_bytes_of_claims_are_these():
    """The layout is a contract between replicas of different versions."""
    entry = Claims(
        7,
        0x1122334455667788,
        99,
        np.array([1, -2 & 0xFF]),
        np.array([[1, -2], [0.5, 0]], np.float16),
    )
    assert encode(entry).hex() == (
        "53434c4d" "0100" "0200" "07000000" "02000000" "8877665544332211" "6300000000000000"
        "0100000000000000" "fe00000000000000" "003c" "00c0" "0038" "0000"
    )  # fmt: skip


def test_decoding_copies_nothing():
    data = encode(some_claims(rows=100, dim=16))
    decoded = decode(data)
    raw = np.frombuffer(data, np.uint8)
    assert np.shares_memory(raw, decoded.vectors)
    assert np.shares_memory(raw, decoded.offsets)
    assert not decoded.vectors.flags.writeable
    assert decoded.vectors.flags.aligned
    assert decoded.offsets.flags.aligned


def test_big_endian_and_strided_arrays_are_written_little_endian():
    entry = some_claims()
    odd = Claims(
        1, 2**63, 5, entry.offsets.astype(">i8"), np.repeat(entry.vectors, 2, axis=1)[:, ::2]
    )
    assert encode(odd) == encode(entry)


@pytest.mark.parametrize(
    ("max_bytes", "rows"), [(48, [1] * 5), (63, [1] * 5), (64, [2, 2, 1]), (112, [5]), (10**6, [5])]
)
def test_split_by_rows(max_bytes, rows):
    entry = some_claims(rows=5)  # a header of 32 bytes, 16 bytes a row
    parts = split(entry, max_bytes)
    assert [len(part.offsets) for part in parts] == rows
    assert all(len(encode(part)) <= max_bytes for part in parts)
    same(
        entry,
        Claims(
            1,
            2**63,
            5,
            np.concatenate([p.offsets for p in parts]),
            np.concatenate([p.vectors for p in parts]),
        ),
    )
    assert {(p.partition, p.term, p.seen) for p in parts} == {(1, 2**63, 5)}


def test_split_of_what_fits_nowhere_names_the_fix():
    with pytest.raises(DependencyError, match=r"max\.message\.bytes .* at least 48"):
        split(some_claims(), 47)


GOOD = encode(some_claims())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\x00\x07avro",
        b"\xff\xd8\xff\xe0 a photograph",
        b"SCL",
        GOOD[:31],
        GOOD[:-1],
        GOOD + b"\x00",
        GOOD[:6] + b"\x05" + GOOD[7:],
        GOOD[:11] + b"\x80" + GOOD[12:],
        GOOD[:31] + b"\x80" + GOOD[32:],
        b"{",
        b"{}",
        b'{"a":' * 100_000,
        b'{"entry": "open"}',
        b'{"entry": "open", "version": 1}',
        b'{"entry": "close", "version": 1}',
        b'{"entry": ["open"], "version": 1}',
        b'{"entry": "open", "version": "1"}',
        b'{"entry": "withdraw", "version": 1, "partition": 1, "offset": 2, "term": 3, "why": 3}',
        b'{"entry": "withdraw", "version": 1, "partition": true, "offset": 2, "term": 3}',
        b'{"entry": "withdraw", "version": 1, "partition": -1, "offset": 2, "term": 3}',
        b'{"entry": "withdraw", "version": 1, "partition": 1, "offset": 2.0, "term": 3}',
        b'{"entry": "open", "version": 1, "partition": 1, "generation": 1, "term": 18446744073709551616, "from": 0}',
        b'{"entry": "dataset", "version": 1, "topic_id": "", "model": "m", "dim": 2, "threshold": 0.9, "meld_version": 1}',
        b'{"entry": "dataset", "version": 1, "topic_id": "t", "model": "m", "dim": 2, "threshold": NaN, "meld_version": 1}',
        b'{"entry": "dataset", "version": 1, "topic_id": "t", "model": "m", "dim": 0, "threshold": 0.9, "meld_version": 1}',
        b'{"entry": "\xff", "version": 1}',
    ],
)
def test_foreign_bytes_are_refused_with_a_way_out(data):
    with pytest.raises(
        ProtocolError, match=r"claim log: .* cannot be read: .* `streamer replay run`"
    ):
        decode(data)


@pytest.mark.parametrize(
    "data", [GOOD[:4] + b"\x02" + GOOD[5:], b'{"entry": "open", "version": 2, "lease": 9}']
)
def test_a_newer_version_asks_for_an_upgrade(data):
    with pytest.raises(ProtocolError, match="upgrade this replica"):
        decode(data)


@given(
    st.one_of(
        st.binary(),
        st.binary().map(lambda b: GOOD[: len(b)] + b),
        st.binary().map(lambda b: b"{" + b),
    )
)
def test_nothing_but_a_protocol_error(data):
    try:
        entry = decode(data)
    except ProtocolError:
        return
    assert encode(entry)


def test_an_array_of_another_dtype_is_a_bug_of_ours():
    with pytest.raises(AssertionError, match="this is a bug"):
        encode(some_claims(vectors=np.zeros((3, 4), np.float32)))
    with pytest.raises(AssertionError, match="this is a bug"):
        encode(some_claims(offsets=np.arange(4)))
