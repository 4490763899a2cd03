from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamer.demo.line import rules_in_words
from streamer.demo.photograph import photographs
from streamer.demo.place import make_place
from streamer.demo.record import DemoRecord, encoded, records
from streamer.demo.result import Result, Row, outcome_lines, read_result
from streamer.demo.setting import write_config
from streamer.demo.sheet import CARDS, Facts, write_sheet
from streamer.demo.thumbnail import thumbnail
from streamer.errors import ConfigError, ProtocolError

FACTS = Facts(
    "a <title>",
    "a model",
    0.9,
    {"min_side": "min_side must be ≥ 80"},
    "verified",
    [("coffee", "Rachel & others; CC0")],
)


@pytest.fixture(scope="module")
def made() -> dict[str, DemoRecord]:
    return {record.id: record for record in records(photographs()[:7])}


def row(
    record: DemoRecord,
    number: int,
    outcome: str = "accepted",
    reason: str = "",
    of: str = "",
    similarity: float = 0.0,
) -> Row:
    return Row(
        f"00000_{number:012d}",
        outcome,
        reason,
        (),
        of,
        similarity,
        {"page": 0.25},
        "jpg",
        640,
        480,
        12_345,
        record,
    )


class Page(HTMLParser):
    """Collects what a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        assert tag not in ("script", "link", "iframe", "object"), tag
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("img", "meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def sheet(tmp_path: Path, *rows: Row) -> Page:
    path = tmp_path / "sheet.html"
    write_sheet(path, Result(rows), FACTS)
    page = Page(path.read_text("utf-8"))
    assert page.open == []
    return page


def test_the_sheet_needs_no_other_file_and_shows_every_record(tmp_path, made) -> None:
    wicked = replace(made["coffee/half-size"], caption="<script>alert('\"&')</script>", made="")
    rows = (
        row(made["coffee/original"], 0),
        row(made["chelsea/original"], 1),
        row(
            made["coffee/jpeg-q60"], 2, "duplicate", "near_duplicate", "00000_000000000000", 0.97649
        ),
        row(wicked, 3, "duplicate", "near_duplicate", "00000_000000000000", 0.9912),
        row(made["chelsea/thumbnail"], 4, "filtered", "min_side"),
        row(made["damaged/astronaut-cut-short"], 5, "invalid", "truncated"),
        row(made["damaged/noise-1000"], 6, "invalid", "not_an_image"),
        row(made["damaged/no-value"], 7, "invalid", "empty_value")._replace(nbytes=0),
    )
    page = sheet(tmp_path, *rows)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert (
        sum(address.startswith("data:") for address in page.addresses) == 6
    )  # all but noise and nothing
    text = "".join(page.text)
    for shown in rows:
        assert text.count(shown.record.id) == 1, shown.record.id
    assert (
        text.index("coffee/original")
        < text.index("0.991")
        < text.index("0.976")
        < text.index("chelsea/original")
    )
    assert "<script>alert('\"&')</script>" in text
    assert "no bytes at all" in text
    assert "the image ends too early" in text
    assert "min_side must be ≥ 80" in text
    assert "Rachel & others; CC0" in text


def test_an_empty_section_is_left_out_and_a_file_that_has_gone_does_no_harm(tmp_path, made) -> None:
    page = sheet(tmp_path, row(replace(made["coffee/original"], data=tmp_path / "gone.jpg"), 0))
    text = "".join(page.text)
    assert "not at hand any more" in text
    assert "Accepted, and like no other" in text
    assert "Near-duplicates" not in text
    assert "Invalid" not in text


def test_a_long_section_is_cut_and_says_so(tmp_path, made) -> None:
    bare = replace(made["damaged/no-value"], kind="original")
    page = sheet(tmp_path, *(row(bare, number) for number in range(CARDS + 7)))
    assert "and 7 more" in "".join(page.text)


def test_a_thumbnail_is_small_and_shows_what_is_left_of_a_damaged_image(made) -> None:
    whole = made["coffee/jpeg-q85"].picture()
    assert thumbnail(whole).startswith("data:image/jpeg;base64,")
    assert len(thumbnail(whole)) < 60_000
    assert thumbnail(whole[: len(whole) * 2 // 3])
    assert thumbnail(made["damaged/header-60000"].picture()) == ""
    assert thumbnail(made["damaged/noise-40000"].picture()) == ""


def test_the_result_is_read_back_and_compared_with_what_is_known(tmp_path, made) -> None:
    sent = {
        (0, 0): made["coffee/original"],
        (1, 5): made["coffee/webp-q80"],
        (1, 6): made["coffee/mirrored"],
    }
    folder = tmp_path / "metadata"
    folder.mkdir()

    def write(name: str, *keys: tuple[str, str, str | None]) -> None:
        columns = {
            "key": [key for key, _, _ in keys], "outcome": [outcome for _, outcome, _ in keys],
            "reason": [None if outcome == "accepted" else "near_duplicate" for _, outcome, _ in keys],
            "flags": [["cup"] if outcome == "accepted" else [] for _, outcome, _ in keys], "duplicate_of": [of for _, _, of in keys],
            "similarity": [0.95 if of else None for _, _, of in keys], "format": ["png"] * len(keys), "width": [4] * len(keys),
            "height": [3] * len(keys), "bytes": [9] * len(keys), "cup_score": [0.5] * len(keys),
        }  # fmt: skip
        pq.write_table(pa.table(columns), folder / name)

    write("a.parquet", ("00001_000000000005", "duplicate", "00000_000000000000"))
    write(
        "b.parquet",
        ("00000_000000000000", "accepted", None),
        ("00001_000000000006", "accepted", None),
    )
    result = read_result(tmp_path, sent)
    assert [r.record.id for r in result.rows] == [
        "coffee/original",
        "coffee/webp-q80",
        "coffee/mirrored",
    ]
    assert result.truth()._asdict() == {
        "copies": 2,
        "found": 1,
        "filtered": 0,
        "crops": 0,
        "wrong_pairs": 0,
    }
    assert result.flagged() == 2
    assert [(a.record.id, b.record.id) for a, b in [result.telling_pair()]] == [
        ("coffee/original", "coffee/webp-q80")
    ]
    assert list(outcome_lines(result)) == [
        ("in", "", 3),
        ("accepted", "", 2),
        ("filtered", "", 0),
        ("duplicate", "", 1),
        ("invalid", "", 0),
    ]

    write("c.parquet", ("00000_000000000000", "accepted", None))
    with pytest.raises(ProtocolError, match="decided twice"):
        read_result(tmp_path, sent)
    (folder / "b.parquet").unlink()
    with pytest.raises(ProtocolError, match="1 records have no row, 00001_000000000006"):
        read_result(tmp_path, sent)


def test_a_second_demo_gets_a_folder_of_its_own(tmp_path) -> None:
    first = make_place(tmp_path / "demo")
    write_config(first, servers="127.0.0.1:1", http_port=1, threads=1, own_photographs=True)
    second = make_place(tmp_path / "demo")
    assert (first.folder, second.folder) == (tmp_path / "demo", tmp_path / "demo/run-2")
    assert make_place(tmp_path / "demo").folder == tmp_path / "demo/run-3"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(ConfigError, match="not of a demo"):
        make_place(tmp_path / "mine")


@pytest.mark.parametrize("own", [True, False])
def test_the_config_is_valid_wherever_it_lies(tmp_path, own) -> None:
    place = make_place(tmp_path / "a: {strange} # 'path' \"ü\"")
    write_config(place, servers="127.0.0.1:9092", http_port=9400, threads=2, own_photographs=own)
    words = rules_in_words(place.config)
    assert words["printed_page"] == "page_score must be ≤ 0.22"
    assert words["format"] == "one of output.formats: jpg, png, webp"
    assert ("language" in words) == own


def test_encoded_knows_the_demos_formats() -> None:
    from PIL import Image

    image = Image.new("RGB", (20, 10), "teal")
    assert [encoded(image, kind)[:3] for kind in ("jpg", "png", "webp", "gif")] == [
        b"\xff\xd8\xff",
        b"\x89PN",
        b"RIF",
        b"GIF",
    ]
