"""Which partitions are paused, whoever owns them and whatever the storage does."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from streamer.errors import DependencyError
from streamer.pauses import Pauses, read, resume
from streamer.wire.checked import Unusable
from streamer.wire.pause import Pause, decode, encode


class Folder:
    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}
        self.refuses = False
        self.is_read_only = False

    def pauses(self) -> Iterable[bytes]:
        self._check()
        return list(self.files.values())

    def write_pause(self, partition: int, data: bytes) -> None:
        self._check()
        if self.is_read_only:
            raise DependencyError("no right to write")
        self.files[partition] = data

    def _check(self) -> None:
        if self.refuses:
            raise DependencyError("the storage is away")


def flooded(folder: Folder, partition: int = 3) -> Pauses:
    pauses = Pauses("w0", folder)
    pauses.opened([1, partition])
    pauses.pause(partition, 50, "too many", "now")
    return pauses


def test_the_next_owner_knows_until_somebody_has_looked() -> None:
    folder = Folder()
    first = flooded(folder)
    second = Pauses("w1", folder)
    second.opened([2])
    assert not second.paused
    second.opened([3])
    assert second.paused.keys() == {3}
    (pause,) = read(folder)
    resume(folder, pause, 200)
    for pauses in (first, second):
        assert pauses.look()
        assert not pauses.paused
        assert pauses.allowed == {3: 200}
        assert not pauses.look()


def test_a_second_flood_pauses_again() -> None:
    folder = Folder()
    pauses = flooded(folder)
    resume(folder, read(folder)[0], 200)
    pauses.look()
    pauses.pause(3, 400, "again", "later")
    assert not pauses.look()
    assert pauses.paused.keys() == {3}


def test_storage_that_refuses_only_delays() -> None:
    folder = Folder()
    resume(folder, Pause(3, 0, "of old", "w9", "then"), 10)
    folder.refuses = True
    pauses = flooded(folder)
    assert pauses.is_due
    assert not pauses.look()
    assert pauses.paused.keys() == {3}
    folder.refuses = False
    assert not pauses.look()
    assert read(folder)[0].offset == 50, "it is written by now"
    resume(folder, read(folder)[0], 200)
    assert pauses.look()
    assert not pauses.paused


def test_what_could_not_be_read_at_the_assignment_is_looked_at_again() -> None:
    folder = Folder()
    flooded(folder)
    folder.refuses = True
    pauses = Pauses("w1", folder)
    pauses.opened([3])
    assert pauses.is_due
    folder.refuses = False
    assert pauses.look()
    assert pauses.paused.keys() == {3}
    pauses.released([3])
    assert not pauses.is_due


def test_a_pause_is_what_was_written() -> None:
    pause = Pause(3, 50, "too many", "w0", "now", 7)
    assert decode(encode(pause)) == pause
    with pytest.raises(Unusable):
        decode(b"{}")


def test_a_pause_that_cannot_be_written_holds_against_what_is_there() -> None:
    folder = Folder()
    resume(folder, Pause(3, 0, "of old", "w9", "then"), 10)
    folder.is_read_only = True
    pauses = flooded(folder)
    assert not pauses.look()
    assert pauses.paused.keys() == {3}
