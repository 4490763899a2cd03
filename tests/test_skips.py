"""Which offsets a replica skips, and what the storage tells it of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.errors import StorageAway
from streamer.sink.storage import Storage
from streamer.skips import NO_LIMIT, Skip, Skips, read
from streamer.wire.seek import Seek, encode


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path), "d")


def test_nothing_is_skipped_unless_something_expired_or_somebody_said_so(storage: Storage) -> None:
    skips = Skips(storage, expired=False)
    skips.look()
    assert skips.limit(0) == 0
    assert skips.due({0: 5, 1: 0}, {0: 5, 1: 0}, {0: 9, 1: 9}) == []
    assert skips.due({0: 5, 1: 0}, {0: 7, 1: 0}, {0: 9, 1: 9}) == [Skip(0, 5, 7, "expired")]
    assert Skips(storage, expired=True).limit(3) == NO_LIMIT


@pytest.mark.parametrize(
    ("start", "begin", "end", "due"),
    [
        (5, 0, 99, [Skip(0, 5, 20, "seek")]),
        (5, 7, 99, [Skip(0, 5, 20, "seek")]),
        (5, 30, 99, [Skip(0, 5, 30, "expired")]),
        (5, 30, 22, [Skip(0, 5, 22, "expired")]),
        (5, 0, 12, [Skip(0, 5, 12, "seek")]),
        (20, 0, 99, []),
        (50, 0, 99, []),
    ],
)
def test_a_seek_goes_forward_and_to_the_end_at_most(
    start: int, begin: int, end: int, due: list[Skip], storage: Storage
) -> None:
    storage.write_seek(0, encode(Seek(0, 20, "now")))
    skips = Skips(storage, expired=False)
    skips.look()
    assert skips.limit(0) == 20
    assert skips.limit(1) == 0
    assert skips.due({0: start}, {0: begin}, {0: end}) == due


def test_what_is_damaged_is_passed_over(storage: Storage) -> None:
    storage.write_seek(0, encode(Seek(0, 20, "now")))
    storage.write_seek(1, encode(Seek(1, 20, "now"))[:-5])
    assert read(storage) == {0: Seek(0, 20, "now")}


def test_what_was_known_holds_while_the_storage_is_away(storage: Storage) -> None:
    class Places:
        is_away = False

        def seeks(self) -> Iterator[bytes]:
            if self.is_away:
                raise StorageAway("no answer", "timeout")
            return storage.seeks()

    storage.write_seek(0, encode(Seek(0, 20, "now")))
    places = Places()
    skips = Skips(places, expired=False)
    skips.look()
    places.is_away = True
    with pytest.raises(StorageAway):
        skips.look()
    assert skips.limit(0) == 20
