from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.wire import checked, checkpoint
from streamer.wire.checked import Unusable
from streamer.wire.checkpoint import Checkpoint, decode, encode
from streamer.wire.manifest import Manifest

WAITING = Manifest(
    version=1,
    dataset="cats",
    writer="w-1",
    epoch=3,
    uuid="13",
    previous_uuid="12",
    partitions={0: (5, 9)},
    skipped={},
    counts={"accepted": 4},
    files=(),
    claims_position=4,
    pipeline={"config": "ü"},
    started="2026-01-01T00:00:00.000+00:00",
    sealed="2026-01-01T00:01:00.000+00:00",
)
MADE = Checkpoint(
    dataset="cats",
    log_id="AAA",
    offset=17,
    uuid="13",
    tiles={0: (5, 9), 11: (0, 1 << 40)},
    last={"w-1": (3, "13"), "w-2": (0, "20")},
    ends={0: 100},
    claims_position=4,
    waiting=(WAITING,),
)


def test_it_comes_back_as_it_was() -> None:
    assert decode(encode(MADE)) == MADE
    assert decode(encode(replace(MADE, waiting=(), ends={}))).waiting == ()


@given(st.integers(0, len(encode(MADE)) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_noticed(at: int, by: int) -> None:
    data = bytearray(encode(MADE))
    data[at] ^= by
    with suppress(Unusable):
        assert decode(bytes(data)) == MADE, "white space is not looked at"


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", encode(MADE)[:-20]])
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Unusable):
        decode(data)


def test_another_format_is_told() -> None:
    with mock.patch.object(checkpoint, "FORMAT", 2):
        newer = encode(MADE)
    with pytest.raises(Unusable, match="its format is 2, this streamer reads 1"):
        decode(newer)


def test_other_fields_are_told() -> None:
    with pytest.raises(Unusable, match="other fields"):
        decode(checked.encode({"dataset": "cats"}, 1))
