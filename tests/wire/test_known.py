"""What the row of an invalid record still tells."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import InvalidRecord
from streamer.records import UNREADABLE_HEADERS, Facts, Headers, Record
from streamer.wire.envelope import LIMITS, parse
from streamer.wire.known import known

AS_JSON = ("content-type", b"application/json")
LIMITED = LIMITS._replace(json=100_000, text=1_000, metadata=50_000)
IMAGE = base64.b64encode(b"\xff\xd8\xff").decode()
TOLD = {"id": "7", "text": "a", "url": "http://x", "metadata": {"n": 1}}


def of(value: bytes | None, *headers: tuple[str, bytes | None]) -> tuple[str, Facts]:
    """(why it is invalid, what is known)"""
    record = Record(0, 1, 2, value, headers)
    with pytest.raises(InvalidRecord) as caught:
        parse(record, "image/jpeg", LIMITED)
    return caught.value.reason, known(record, "image/jpeg", LIMITED)


def of_json(**body) -> tuple[str, Facts]:
    return of(json.dumps(body).encode(), AS_JSON)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"image": "data:image/jpeg;base64,x"}, "bad_base64"),
        ({"image": 7}, "bad_base64"),
        ({}, "no_image"),
        ({"uri": "http://x/1", "sha256": "abc"}, "bad_json"),
        ({"uri": "http://x/1", "length": -1}, "bad_json"),
    ],
)
def test_json_that_can_be_parsed(body, reason):
    assert of_json(**TOLD, **body) == (reason, Facts("7", "a", "http://x", {"n": 1}))


@pytest.mark.parametrize("field", ["id", "text", "url", "metadata"])
@pytest.mark.parametrize("wrong", [["x"], {"x": 1}, 1.5, True])
def test_each_field_by_itself(field, wrong):
    if field == "metadata" and isinstance(wrong, dict):
        return
    reason, found = of_json(**{**TOLD, field: wrong}, image=IMAGE)
    assert reason == "bad_json"
    expected = Facts("7", "a", "http://x", {"n": 1})
    setattr(expected, field, None)
    assert found == expected


def test_the_reference_is_the_url():
    reason, found = of_json(id=7, uri="http://u:p@x/1", sha256="abc")
    assert (reason, found) == ("bad_json", Facts("7", None, "http://x/1", None))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (b'"x": NaN', {"n": 1}), (b'"x": [1e999, 2]', {"n": 1, "x": [None, 2]}),
        (b'"x": ' + b"[" * 200 + b"]" * 200, {"n": 1}), (b'"id": "7"', {"n": 1}),
    ],
)  # fmt: skip
def test_a_key_that_nobody_may_send(wrong, found):
    value = json.dumps({**TOLD, "image": IMAGE}).encode()[:-1] + b", " + wrong + b"}"
    assert of(value, AS_JSON) == ("bad_json", Facts("7", "a", "http://x", found))


def test_half_a_surrogate_pair():
    body = b'{"id": "1", "text": "a\\ud800b", "metadata": {"\\udfff": ["\\ud83d\\ude00"]}}'
    reason, found = of(body, AS_JSON)
    assert reason == "bad_json"
    assert found == Facts("1", "a\ufffdb", None, {"\ufffd": ["\U0001f600"]})


HEADERS: Headers = [("id", b"1"), ("text", b"a"), ("url", b"http://x"), ("meta-lang", b"en")]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, (), "empty_value"),
        (b"", (AS_JSON,), "empty_value"),
        (b"x", (("content-type", b"text/plain"),), "unsupported_encoding"),
        (b"\0\0\0\0\1x", (), "unsupported_encoding"),
        (b"{", (AS_JSON,), "bad_json"),
        (b"[]", (AS_JSON,), "bad_json"),
        (b"\xff\xfe{", (AS_JSON,), "bad_json"),
        (b"{" + b" " * LIMITED.json + b"}", (AS_JSON,), "too_many_bytes"),
        (b'{"x": ' + b"[" * 500 + b"]" * 500 + b"}", (AS_JSON,), "bad_json"),
        (None, (("uri", b"http://u"), ("sha256", b"abc")), "bad_header"),
    ],
)
def test_headers_where_the_value_tells_nothing(value, headers, reason):
    expected = Facts("1", "a", "http://x", {"lang": "en"})
    assert of(value, *HEADERS, *headers) == (reason, expected)


def test_a_header_that_is_not_utf_8():
    found = of(b"x", ("text", b"caf\xe9"), ("id", b"1"), ("meta-a", b"\xff"), ("meta-b", b"ok"))
    assert found == ("bad_header", Facts("1", "caf\ufffd", None, {"a": "\ufffd", "b": "ok"}))


def test_what_is_too_long_is_left_out():
    long = ("meta-long", b"x" * 1_001)
    told = Facts("1", "a", "http://x", {"lang": "en"})
    assert of(b"x", *HEADERS, long) == ("too_many_bytes", told)
    many = [(f"meta-{i}", b"x" * 900) for i in range(80)]
    reason, found = of(b"x", *HEADERS, *many)
    assert (reason, found.text) == ("too_many_bytes", "a")
    assert 0 < len(found.metadata) < 60, "as many as fit"
    assert of_json(id="7", text="x" * 1_001) == ("too_many_bytes", Facts("7", None, None, None))
    assert of_json(id="7", text="a", more="x" * 50_000) == (
        "too_many_bytes",
        Facts("7", "a", None, None),
    )
    assert of_json(id="7", text="a", more=[[]] * 1_250)[1] == Facts(), "it is not even parsed"


def test_the_names_of_headers_that_are_not_utf_8():
    record = Record(0, 1, 2, json.dumps(TOLD).encode(), UNREADABLE_HEADERS)
    assert known(record, "application/json", LIMITED) == Facts("7", "a", "http://x", {"n": 1})
    assert known(record, "image/jpeg", LIMITED) == Facts()


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
trees = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = (
    st.sampled_from(("id", "text", "Text", "caption", "url", "uri", "metadata", "image")) | texts
)


@given(
    st.one_of(
        st.binary(max_size=60), st.dictionaries(names, trees).map(json.dumps).map(str.encode)
    ),
    st.lists(
        st.tuples(
            st.sampled_from(("id", "text", "meta-a", "ce_id", "uri", "caption", "streamer-topic")),
            st.none() | st.binary(max_size=5),
        ),
        max_size=4,
    ),
    st.sampled_from(("image/jpeg", "application/json", "text/plain")),
)
def test_whatever_comes_can_be_written(value, headers, default):
    found = known(Record(0, 1, 2, value, headers), default, LIMITED)
    for text in (found.id, found.text, found.url):
        assert text is None or text.encode() is not None
    json.dumps(found.metadata, ensure_ascii=False).encode()
