"""Texts, JSON objects and rows → headers: faithful, or refused with a reason."""

from __future__ import annotations

import codecs
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamer.produce.caption import TEXT_COLUMNS, Caption, caption_of, first, headers_of, joined
from streamer.produce.entry import Item, Unsendable, entry
from streamer.produce.sidecar import json_caption, json_object, text_caption
from streamer.records import Record
from streamer.wire.envelope import parse


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["a", "text"], "text"), (["Caption"], "Caption"), (["TEXT", "caption"], "TEXT"),
        (["TEXT", "text"], "text"), (["prompt"], "prompt"), (["prompt", "CAPTION"], "CAPTION"),
        (["Txt"], "Txt"), (["Captions", "url"], "Captions"), (["words"], None), ([], None),
    ],
)  # fmt: skip
def test_the_text_column_in_any_case(there, found):
    assert first(("text", "caption", "captions", "txt", "prompt"), there) == found


@pytest.mark.parametrize("key", ["text", "caption", "Caption", "CAPTIONS", "Prompt", "Text", "txt"])
def test_the_text_key_of_json_in_any_case(key):
    caption = json_caption(json.dumps({key: " ein Hund ", "n": 1}).encode(), "a.json")
    assert caption == Caption(("ein Hund",), None, {"n": 1})


def test_a_named_key_of_json_is_the_text():
    data = b'{"text": "no", "words": "yes"}'
    assert json_caption(data, "a.json", "words") == Caption(("yes",), None, {"text": "no"})
    assert json_caption(data, "a.json", "other") == Caption(("no",), None, {"words": "yes"})


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        ("a", ("a",)), ("", ()), ("  ", ()), (None, ()), (7, ("7",)), (0, ("0",)), (0.5, ("0.5",)),
        (math.nan, ()), (["a", " b "], ("a", "b")), (["a", None, "", 3], ("a", "3")), ([], ()),
        (b"\xc3\xa4", ("ä",)),
    ],
)  # fmt: skip
def test_texts_of_a_cell(written, texts):
    assert caption_of({"text": written}, "text", None).texts == texts


@pytest.mark.parametrize("written", [True, {"en": "a"}, [["a"]], [{"raw": "a"}], b"\xff"])
def test_a_cell_that_is_no_text_is_refused(written):
    with pytest.raises(ValueError, match="'text' is "):
        caption_of({"text": written}, "text", None)


def test_an_address_that_is_no_text_stays_metadata():
    assert caption_of({"url": ["a", "b"]}, None, "url") == Caption((), None, {"url": ["a", "b"]})
    assert caption_of({"url": b"http://h/1"}, None, "url") == Caption((), "http://h/1", {})


def test_all_that_different_places_say_is_kept():
    both = joined(
        [
            Caption(("a", "b"), "http://h/1", {"lang": "en", "n": 1}),
            Caption(("b", "c"), "http://h/2", {"lang": "de", "n": 1, "m": [1]}),
            Caption(),
        ]
    )
    assert both == Caption(
        ("a", "b", "c"),
        "http://h/1",
        {"lang": ["en", "de"], "n": 1, "m": [1], "url": ["http://h/1", "http://h/2"]},
    )


def test_several_texts_are_the_metadata_captions_beside_its_own():
    assert headers_of(Caption(("a", "b")))["meta-captions"] == '["a", "b"]'
    assert headers_of(Caption(("a",))) == {"text": "a"}
    own = Caption(("a", "b"), None, {"captions": ["b", "c"]})
    assert headers_of(own)["meta-captions"] == '["a", "b", "c"]'
    assert (
        headers_of(Caption(("a", "b"), None, {"captions": 7}))["meta-captions"] == '["a", "b", 7]'
    )


def test_metadata_are_valid_json():
    known = {"a": {"x": [1.5, math.nan, -math.inf]}, "b": math.nan, "c": math.inf, "d": [math.nan]}
    headers = headers_of(Caption((), None, known))
    assert headers == {"meta-a": '{"x": [1.5, null, null]}', "meta-d": "[null]"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a.json is not JSON"), (b"[1]", "is not a JSON object"), (b"7", "not a JSON object"),
        (b'"x"', "not a JSON object"), (b"null", "not a JSON object"), (b"{", "is not JSON"),
        (b'{"a": 1} x', "is not JSON"), (b'{"a": \xff}', "a.json is not UTF-8"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": -1e999}', "the number -1e999 is too large"),
        (b'{"a": ' + b"7" * 5000 + b"}", "a number of 5000 digits is too long"),
        (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        (b'{"m": {"a": 1, "a": 1}}', "duplicate key 'a'"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a.json is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "a.json is nested too deeply"),
        (b'{"text": {"en": "x"}}', "a.json: 'text' is an object or a list in a list, not text"),
        (b'{"text": true}', "'text' is a boolean, not text"), (b'{"caption": [["x"]]}', "list in a list"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_used_is_refused(data, reason):
    with pytest.raises(ValueError) as raised:
        json_caption(data, "a.json")
    assert reason in str(raised.value)


def test_nan_in_json_is_null():
    assert json_object('{"a": NaN, "b": [Infinity, -Infinity]}', "x") == {
        "a": None,
        "b": [None] * 2,
    }


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_marked_encodings_are_read(codec):
    def encoded(text: str) -> bytes:
        return (codecs.BOM_UTF16_LE if codec == "utf-16-le" else b"") + text.encode(codec)

    assert text_caption(encoded("Grüße 日本\r\n"), "a.txt").texts == ("Grüße 日本",)
    assert json_caption(encoded('{"text": "Grüße"}'), "a.json").texts == ("Grüße",)


@pytest.mark.parametrize(
    "data", [b"\xff", "Bücher".encode("latin-1"), b"\xff\xfea", b"\xed\xa0\x80"]
)
def test_other_encodings_are_refused(data):
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        text_caption(data, "a.txt")


def made(caption: Caption) -> Item | Unsendable:
    found = entry("a.jpg", "a.jpg", lambda: b"x", lambda: caption)
    assert isinstance(found, Item | Unsendable)
    return found


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (Caption((), None, {"k\0x": "v"}), "the metadata key 'k\\x00x' contains NUL"),
        (Caption(("\ud800",)), "text is not valid Unicode: it has a lone surrogate"),
        (Caption((), None, {"k": "\ud800"}), "meta-k is not valid Unicode"),
        (Caption((), None, {"k": ["\ud800"]}), "meta-k is not valid Unicode"),
        (Caption((), None, {"\ud800": "v"}), "meta-\\ud800 is not valid Unicode"),
        (Caption((), "http://\udfff"), "url is not valid Unicode"),
    ],
)
def test_what_no_header_can_hold_is_refused(caption, reason):
    found = made(caption)
    assert isinstance(found, Unsendable)
    assert reason in found.reason
    found.reason.encode()


def test_metadata_nested_too_deeply_are_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    found = made(Caption((), None, {"k": deep}))
    assert found == Unsendable("a.jpg", "the metadata 'k' is nested too deeply")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["text", "Caption", "url", "captions", "a", "b\0", "id", ""]) | st.text()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=6))
@example({"text": "\ud800"})
@example({"captions": ["a", "b"], "Captions": 3})
@example({"text": 0, "captions": False})
def test_any_json_is_a_faithful_record_or_a_reason(row):
    data = json.dumps(row).encode()
    try:
        caption = json_caption(data, "a.json")
    except ValueError as error:
        str(error).encode()
        return
    found = made(caption)
    if isinstance(found, Unsendable):
        found.reason.encode()
        return
    envelope = parse(Record(0, 0, 0, found.value, found.headers), "image/jpeg")
    assert envelope.id == "a.jpg"
    assert envelope.text == (caption.texts[0] if caption.texts else "")
    for key, known in caption.metadata.items():
        if isinstance(known, str) and key != "captions":
            assert envelope.metadata[key] == known
        elif key in envelope.metadata:
            json.loads(envelope.metadata[key], parse_constant=pytest.fail)
    captions = json.loads(envelope.metadata.get("captions", "[]")) if caption.texts else []
    many = captions if isinstance(captions, list) else []  # the record's own may be anything
    texts = {envelope.text, *(c for c in many if isinstance(c, str))}
    for key, known in row.items():  # nothing is lost
        if isinstance(known, str) and known.strip():
            kept = known.strip() in texts or known == envelope.url
            assert kept or envelope.metadata[key] == known
        elif isinstance(known, bool | int | dict | list):
            assert key in envelope.metadata or key == first(TEXT_COLUMNS, row)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
@example(codecs.BOM_UTF16_LE)
@example(codecs.BOM_UTF32_LE + b"\0")
@example(b"\xef\xbb\xbf")
def test_any_bytes_are_a_text_or_a_reason(data):
    for read in (text_caption, json_caption):
        try:
            found = made(read(data, "a"))
        except ValueError as error:
            str(error).encode()
        else:
            assert isinstance(found, Item)
