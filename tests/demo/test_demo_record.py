import io
from collections import Counter

import pytest
from PIL import Image

from streamer.config import Decode
from streamer.decode.image import decode_rgb, read_header
from streamer.demo.feed import folder_feed, own_feed
from streamer.demo.photograph import photographs
from streamer.demo.record import COPIES, CROPS, PARTITIONS, DemoRecord, records
from streamer.errors import ConfigError, InvalidRecord
from streamer.records import Record, Reference
from streamer.wire.envelope import parse


@pytest.fixture(scope="module")
def made() -> list[DemoRecord]:
    return records(photographs())


def envelope(record: DemoRecord):
    headers = [
        (name, value.encode() if isinstance(value, str) else value)
        for name, value in record.headers.items()
    ]
    return parse(Record(record.partition, 0, 0, record.value, headers), "image/jpeg")


def look(record: DemoRecord) -> str:
    """What the line does with a record up to the filters: empty, or the reason it is invalid."""
    try:
        data = envelope(record).image
        if isinstance(data, Reference):
            return "uri_not_allowed"
        decode_rgb(data, read_header(data, Decode()), (0, 0))
    except InvalidRecord as error:
        return error.reason
    return ""


def test_the_photographs_are_at_least_12_different_ones() -> None:
    fingerprints = set()
    for photograph in photographs():
        with Image.open(io.BytesIO(photograph.data)) as image:
            fingerprints.add(image.convert("L").resize((8, 8)).tobytes())
            assert min(image.size) > 150
    assert len(fingerprints) == len(photographs()) >= 12
    assert len({photograph.scene for photograph in photographs()}) >= 12
    assert all(photograph.credit for photograph in photographs())


def test_the_same_records_are_made_every_time(made: list[DemoRecord]) -> None:
    assert records(photographs()) == made


def test_at_least_300_records_of_every_kind(made: list[DemoRecord]) -> None:
    kinds = Counter(record.kind for record in made)
    photos = len(photographs())
    assert len(made) >= 300
    assert kinds["original"] == photos
    assert kinds["crop"] == photos * len(CROPS)
    assert kinds["copy"] >= photos * len(COPIES)
    assert kinds["unwanted"] >= 40
    assert kinds["damaged"] >= 20
    assert len({record.id for record in made}) == len(made)
    assert {record.partition for record in made} == set(range(PARTITIONS))


def test_a_copy_is_of_other_bytes_and_comes_after_what_it_repeats_in_the_same_partition(
    made: list[DemoRecord],
) -> None:
    at = {record.id: number for number, record in enumerate(made)}
    for record in made:
        if record.copy_of:
            source = made[at[record.copy_of]]
            assert at[source.id] < at[record.id]
            assert (source.partition, source.scene) == (record.partition, record.scene)
            assert source.data != record.data


def test_a_scene_lies_in_one_partition(made: list[DemoRecord]) -> None:
    places = {(record.scene, record.partition) for record in made if record.scene}
    assert len(places) == len({scene for scene, _ in places})


def test_the_damaged_ones_and_no_others_are_invalid(made: list[DemoRecord]) -> None:
    reasons = {record.id: look(record) for record in made}
    assert {record.id for record in made if record.kind == "damaged"} == {
        id for id, reason in reasons.items() if reason
    }
    assert {
        *(
            "truncated",
            "corrupt",
            "too_many_pixels",
            "not_an_image",
            "empty_value",
            "bad_json",
            "no_image",
            "bad_base64",
        ),
        *("uri_not_allowed", "unsupported_encoding", "bad_header"),
    } == {reason for reason in reasons.values() if reason}


def test_json_and_cloud_events_are_among_them_and_say_the_same(made: list[DemoRecord]) -> None:
    pictures = [record for record in made if record.kind != "damaged"]
    types = Counter(str(record.headers["content-type"]) for record in pictures)
    assert types["application/json"] >= 10
    assert sum("ce_id" in record.headers for record in pictures) >= 10
    for record in pictures:
        parsed = envelope(record)
        assert (parsed.id, parsed.text, parsed.image) == (record.id, record.caption, record.data)
        assert parsed.metadata["lang"] in ("en", "fr")


def test_own_feed_has_them_all() -> None:
    feed = own_feed()
    assert feed.total == sum(len(list(part)) for _, part in feed.parts) >= 300
    assert all(record.partition == partition for partition, part in feed.parts for record in part)


def test_a_folder_gives_its_images_with_their_captions(tmp_path) -> None:
    for name, colour in (("a.png", "red"), ("sub/b.jpg", "blue")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (90, 90), colour).save(path)
    (tmp_path / "a.txt").write_text("Ein Rot, größer als die anderen", "utf-8")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    feed = folder_feed(tmp_path)
    found = [record for _, part in feed.parts for record in part]
    assert [(record.id, record.caption) for record in found] == [
        ("a.png", "Ein Rot, größer als die anderen"),
        ("sub/b.jpg", ""),
    ]
    assert found[1].picture() == found[1].value == (tmp_path / "sub/b.jpg").read_bytes()
    assert feed.unreadable == ["bad.jpg: bad.txt is not UTF-8"]


def test_a_folder_without_images_is_a_users_mistake(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        folder_feed(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        folder_feed(tmp_path / "missing")
