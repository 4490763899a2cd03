"""Which files are given to the device, and how many at a time."""

from __future__ import annotations

import pytest

from streamer.model.jpeg import decoder as room
from streamer.model.jpeg.decoder import takes
from streamer.records import Jpeg
from tests.model.jpeg.files import as_jpeg, encoded, picture

DRAFT = (498, 498)


@pytest.mark.parametrize(
    ("rows", "columns", "nbytes", "wanted"),
    [
        (480, 640, 44_000, True),
        (15, 640, 900, False),
        (40, 641, 900, False),
        (40, 640, 900, True),
        (480, 640, 400_001, False),
        (995, 2_000, 300_000, True),
        (996, 2_000, 300_000, False),  # which the CPU decodes at half its size
        (1_100, 16_385, 300_000, False),
    ],
)
def test_takes(rows: int, columns: int, nbytes: int, wanted: bool) -> None:
    assert takes(rows, columns, nbytes, DRAFT) == wanted
    assert takes(columns, rows, nbytes, DRAFT) == wanted


def test_an_embedder_without_a_draft_has_no_such_bound() -> None:
    assert takes(4_000, 6_000, 300_000, (0, 0))


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(*jpegs: Jpeg) -> list[int]:
        return [len(group) for group in room._groups(jpegs)]

    small, large = Jpeg(b"x" * 100, 10, 10, 1), Jpeg(b"x" * 100, 9_000, 9_000, 1)
    assert sizes() == []
    assert sizes(small, small, large, small, large) == [4, 1]
    assert sizes(large, large, large) == [1, 1, 1]
    monkeypatch.setattr(room, "BYTES_AT_ONCE", 250)
    assert sizes(*[small] * 5) == [2, 2, 1]
    monkeypatch.setattr(room, "IMAGES_AT_ONCE", 1)
    assert sizes(small, small) == [1, 1]


@pytest.mark.parametrize("cut", ["twice a frame", "an end before the scan", "odd sampling"])
def test_what_is_odd_never_travels(cut: str) -> None:
    data = encoded(picture(3))
    frame = data.index(b"\xff\xc0")
    segment = data[frame : frame + 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")]
    odd = {
        "twice a frame": data[:frame] + segment + data[frame:],
        "an end before the scan": data[:frame] + b"\xff\xd9" + data[frame:],
        "odd sampling": data[: frame + 11] + b"\x41" + data[frame + 12 :],
    }[cut]
    assert as_jpeg(data) is not None
    assert as_jpeg(odd) is None
