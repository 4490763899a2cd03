import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import Decode
from streamer.errors import InvalidRecord
from streamer.records import Envelope, Facts, Headers, Record, Reference
from streamer.wire import envelope
from streamer.wire.body import MAX_DEPTH
from streamer.wire.envelope import LIMITS, kind_of, parse
from streamer.wire.limits import Limits, weight

JPEG = b"\xff\xd8\xff\xe0 and so on"
SHA = "ab" * 32
AS_JSON = ("content-type", b"application/json")


def of(
    value: bytes | None, *headers: tuple[str, bytes | None], default: str = "image/jpeg", **options
) -> Envelope:
    return parse(Record(0, 1, 2, value, headers), default, **options)


def of_json(*headers: tuple[str, bytes | None], **body) -> Envelope:
    return of(json.dumps(body).encode(), AS_JSON, *headers)


def reason(value: bytes | None, *headers: tuple[str, bytes | None], **options) -> str:
    with pytest.raises(InvalidRecord) as caught:
        of(value, *headers, **options)
    return caught.value.reason


# binary


def test_the_value_is_the_image():
    assert of(JPEG) == Envelope(None, "", None, {}, JPEG)
    headers: Headers = [
        ("content-type", b"image/png"),
        ("text", "eine Katze 🐈".encode()),
        ("id", b"1"),
        ("url", b"http://x/1"),
        ("meta-lang", b"de"),
    ]
    assert of(JPEG, *headers) == Envelope("1", "eine Katze 🐈", "http://x/1", {"lang": "de"}, JPEG)


@pytest.mark.parametrize(
    "content_type", [b"image/jpeg", b"IMAGE/Whatever", b" image/png ; q=1", None]
)
def test_content_types_of_images(content_type):
    assert of(JPEG, ("content-type", content_type)).image == JPEG


def test_header_names():
    assert of(
        JPEG,
        ("Content-Type", b"image/png"),
        ("TEXT", b"a"),
        ("Meta-Lang", b"en"),
        ("traceparent", b"\xff"),
    ) == Envelope(None, "a", None, {"Lang": "en"}, JPEG)
    assert of(JPEG, ("Text", b"loud"), ("text", b"exact")).text == "exact"
    assert of(JPEG, ("text", b"first"), ("text", b"last")).text == "last"
    assert of(JPEG, ("text", None), ("id", None), ("meta-a", None), ("x", None)) == Envelope(
        None, "", None, {}, JPEG
    )


def test_cloud_events():
    headers: Headers = [
        ("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_source", b"/camera/7"), ("ce_type", b"photo"), ("ce_datacontenttype", b"image/png"),
    ]  # fmt: skip
    assert of(JPEG, *headers, default="text/plain") == Envelope(
        "e-1", "", None, {"ce_source": "/camera/7", "ce_type": "photo"}, JPEG
    )
    assert of(JPEG, *headers, ("id", b"mine")).id == "mine"
    assert reason(JPEG, *headers, ("content-type", b"text/plain")) == "unsupported_encoding", (
        "content-type wins"
    )
    assert of_json(("ce_id", b"e-1"), image=base64.b64encode(JPEG).decode()).id == "e-1"
    assert (
        reason(b"{}", ("content-type", b"application/cloudevents+json")) == "unsupported_encoding"
    )


def test_by_reference():
    headers: Headers = [
        ("uri", b"s3://bucket/1.jpg"),
        ("sha256", SHA.upper().encode()),
        ("length", b"1234"),
        ("text", b"a"),
        ("meta-a", b"b"),
    ]
    for value in (None, b""):
        assert of(value, *headers) == Envelope(
            None, "a", "s3://bucket/1.jpg", {"a": "b"}, Reference("s3://bucket/1.jpg", SHA, 1234)
        )
    assert of(None, ("uri", b"file:///1.jpg")).image == Reference("file:///1.jpg", None, None)
    assert of(JPEG, *headers).image == JPEG, "bytes win"


@pytest.mark.parametrize("has_bytes", [False, True])
def test_the_reference_is_the_url_where_there_is_no_other(has_bytes):
    """Where an image is from must be known: to name its author, and to take it down."""
    uri = "https://user:word@images.example/1.jpg?a=b@c"
    shown = "https://images.example/1.jpg?a=b@c"
    image = {"image": base64.b64encode(JPEG).decode()} if has_bytes else {}
    value = JPEG if has_bytes else b""
    assert of(value, ("uri", uri.encode())).url == shown
    assert of_json(uri=uri, **image).url == shown
    for url in ("http://page", b"http://page"):
        named = (
            of_json(uri=uri, url=url, **image)
            if isinstance(url, str)
            else of(value, ("uri", uri.encode()), ("url", url))
        )
        assert named.url == "http://page"


@pytest.mark.parametrize(
    "header",
    [
        ("sha256", b"abc"),
        ("sha256", b"g" * 64),
        ("length", b"-1"),
        ("length", b"1e3"),
        ("length", "²".encode()),
    ],
)
def test_malformed_references(header):
    assert reason(None, ("uri", b"http://x/1"), header) == "bad_header"


@pytest.mark.parametrize("name", ["text", "id", "url", "meta-a", "ce_id", "ce_type", "Text"])
def test_headers_must_be_utf_8(name):
    assert reason(JPEG, (name, b"\xff\xfe")) == "bad_header"


def test_nothing():
    assert (
        reason(None)
        == reason(b"")
        == reason(None, AS_JSON)
        == reason(None, ("content-type", b"text/plain"))
        == "empty_value"
    )
    assert reason(None, ("uri", b"")) == "empty_value"


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/plain",
        b"application/octet-stream",
        b"application/vnd.kafka.avro.v2",
        b"avro/binary",
        b"\xff",
    ],
)
def test_other_encodings(content_type):
    assert reason(JPEG, ("content-type", content_type)) == "unsupported_encoding"


def test_confluent_wire_format():
    framed = b"\0" + (7).to_bytes(4, "big")
    assert reason(framed + b"avro") == "unsupported_encoding"
    assert reason(framed + b"{}", AS_JSON) == "unsupported_encoding"
    avif = b"\0\0\0\x1cftypavif"
    assert of(avif).image == avif, "an image may begin with 0 too"
    assert of(framed + b"avro", ("content-type", b"image/png")).image == framed + b"avro", (
        "who says image gets it looked at as one"
    )


# JSON


def test_json_with_bytes():
    body = {
        "id": "1",
        "text": "a",
        "url": "http://x",
        "metadata": {"n": 1, "deep": {"x": [1.5, None]}},
        "image": base64.b64encode(JPEG).decode(),
        "other": 1,
    }
    metadata = {**body["metadata"], "other": 1}
    assert of_json(**body) == Envelope("1", "a", "http://x", metadata, JPEG)
    assert of(json.dumps(body).encode(), default="application/json; charset=utf-8").image == JPEG


def test_json_by_reference():
    assert of_json(
        uri="file:///1.jpg", sha256=SHA.upper(), length=3, text=None, metadata=None
    ) == Envelope(None, "", "file:///1.jpg", {}, Reference("file:///1.jpg", SHA, 3))
    assert of_json(uri="http://x", image=base64.b64encode(JPEG).decode()).image == JPEG, "bytes win"


IMAGE = base64.b64encode(JPEG).decode()


@pytest.mark.parametrize(
    ("body", "text", "metadata"),
    [
        ({"caption": "a"}, "a", {}),
        ({"Caption": "a"}, "a", {}),
        ({"TEXT": "a"}, "a", {}),
        ({"text": None, "caption": "a"}, "a", {}),
        ({"text": "a", "caption": "b"}, "a", {"caption": "b"}),
        ({"text": "a", "TEXT": "b"}, "a", {"TEXT": "b"}),
        ({"caption": ["a", "b"]}, "", {"caption": ["a", "b"]}),
        ({"captions": ["a", "b"], "prompt": "c"}, "", {"captions": ["a", "b"], "prompt": "c"}),
        ({"Metadata": {"x": 1}, "y": 2}, "", {"x": 1, "y": 2}),
        ({"metadata": {"y": 1}, "y": 2}, "", {"y": 1}),
        ({"Id": ["x"], "Url": {"x": 1}}, "", {"Id": ["x"], "Url": {"x": 1}}),
    ],
)
def test_no_key_of_the_json_is_lost(body, text, metadata):
    found = of_json(**body, image=IMAGE)
    assert (found.text, found.metadata) == (text, metadata)


@pytest.mark.parametrize(
    ("headers", "text", "metadata"),
    [
        ([("caption", b"a")], "a", {}),
        ([("Caption", b"a")], "a", {}),
        ([("caption", b"b"), ("text", b"a")], "a", {"caption": "b"}),
        ([("caption", b"b"), ("Text", b"a")], "a", {"caption": "b"}),
        ([("Text", b"a"), ("Caption", b"b")], "a", {"caption": "b"}),
        ([("streamer-topic", b"t"), ("streamer-offset", b"7")], "",
         {"streamer-topic": "t", "streamer-offset": "7"}),
        ([("traceparent", b"00-1")], "", {}),
    ],
)  # fmt: skip
def test_a_caption_and_a_dead_letter_in_headers(headers, text, metadata):
    for found in (of(JPEG, *headers), of_json(*headers, image=IMAGE)):
        assert (found.text, found.metadata) == (text, metadata)


def test_a_caption_in_one_place_and_a_text_in_the_other():
    found = of_json(("text", b"header"), caption="body", image=IMAGE)
    assert (found.text, found.metadata) == ("header", {"caption": "body"})
    found = of_json(("Caption", b"header"), text="body", image=IMAGE)
    assert (found.text, found.metadata) == ("body", {"caption": "header"})


def deep(levels: int, kind: str) -> bytes:
    opening, closing = {"list": ("[", "]"), "object": ('{"a":', "}")}[kind]
    inner = opening * levels + "1" + closing * levels
    return f'{{"image": "{IMAGE}", "x": {inner}}}'.encode()


@pytest.mark.parametrize("kind", ["list", "object"])
def test_depth(kind):
    """What is deeper can be parsed in one thread and not be written in another."""
    assert of(deep(MAX_DEPTH - 1, kind), AS_JSON).image == JPEG
    for levels in (MAX_DEPTH, 500, 990, 5_000, 40_000):
        assert reason(deep(levels, kind), AS_JSON) == "bad_json"


def test_many_brackets_are_not_deep():
    found = of_json(image=IMAGE, metadata={"boxes": [[i, {}] for i in range(1000)]})
    assert len(found.metadata["boxes"]) == 1000


def test_json_is_completed_by_headers():
    found = of_json(
        ("text", b"header"),
        ("id", b"h"),
        ("meta-a", b"1"),
        ("meta-b", b"1"),
        uri="http://x",
        text="body",
        id=7,
        metadata={"a": 2},
    )
    assert (found.text, found.id, found.metadata) == ("body", "7", {"a": 2, "b": "1"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"{", "bad_json"), (b"\xff{}", "bad_json"), (b"[]", "bad_json"), (b"null", "bad_json"), (b"[" * 100_000, "bad_json"),
        (b'{"uri": "http://x", "metadata": {"a": NaN}}', "bad_json"), (b'{"uri": "http://x", "metadata": {"a": -Infinity}}', "bad_json"),
        (b'{"uri": "http://x", "metadata": {"a": 1e999}}', "bad_json"), (b'{"uri": "http://x", "metadata": {"a": ' + b"9" * 5000 + b"}}", "bad_json"),
        (b'{"uri": "http://x", "text": "\\ud800"}', "bad_json"), (b'{"uri": "http://x", "metadata": {"\\udfff": 1}}', "bad_json"),
        (b'{"uri": "http://x", "text": 1}', "bad_json"), (b'{"uri": "http://x", "id": true}', "bad_json"), (b'{"uri": 1}', "bad_json"),
        (b'{"uri": "http://x", "id": "a", "id": "b"}', "bad_json"), (b'{"uri": "http://x", "metadata": {"a": 1, "a": 2}}', "bad_json"),
        (b'{"uri": "http://x", "metadata": []}', "bad_json"), (b'{"uri": "http://x", "length": -1}', "bad_json"),
        (b'{"uri": "http://x", "sha256": "a"}', "bad_json"), (b'{"uri": "http://x", "sha256": 1}', "bad_json"), (b'{"uri": "http://x", "length": 1.5}', "bad_json"),
        (b'{"image": "****"}', "bad_base64"), (b'{"image": "AAA"}', "bad_base64"), (b'{"image": 1}', "bad_base64"), (b'{"image": ["A"]}', "bad_base64"),
        (b'{"image": "\xc3\xa4"}', "bad_base64"), (b"{}", "no_image"), (b'{"image": ""}', "no_image"), (b'{"image": null, "uri": ""}', "no_image"),
    ],
)  # fmt: skip
def test_bad_json(value, expected):
    assert reason(value, AS_JSON) == expected


def test_a_pair_of_surrogates_is_one_character():
    assert of(b'{"uri": "http://x", "text": "\\ud83d\\ude00"}', AS_JSON).text == "😀"


def test_json_has_a_limit_that_lets_the_largest_image_through():
    largest = json.dumps({"image": base64.b64encode(bytes(30_000)).decode()}).encode()
    limits = Limits.of(Decode(max_bytes=30_000, max_metadata_bytes=200))
    assert len(of(largest, AS_JSON, limits=limits).image) == 30_000
    limits = limits._replace(json=len(largest) - 1)
    assert reason(largest, AS_JSON, limits=limits) == "too_many_bytes"


LIMITED = LIMITS._replace(text=50, metadata=1_000)


@pytest.mark.parametrize("name", ["text", "caption", "id", "meta-a", "content-type", "traceparent"])
def test_one_header_has_a_limit(name):
    """Those that are not read are in memory, too."""
    value = b"image/jpeg" if name == "content-type" else b""
    assert of(JPEG, (name, value.ljust(50, b"x")), limits=LIMITED)
    assert reason(JPEG, (name, value.ljust(51, b"x")), limits=LIMITED) == "too_many_bytes"


def test_all_headers_have_a_limit():
    """Each counts for 100 bytes more than it has."""
    assert of(JPEG, *[("abcde", b"x" * 20)] * 8, limits=LIMITED)
    assert reason(JPEG, *[("abcde", b"x" * 21)] * 8, limits=LIMITED) == "too_many_bytes"
    assert reason(JPEG, *[("", b"")] * 11, limits=LIMITED) == "too_many_bytes"
    assert reason(JPEG, ("x" * 901, b""), limits=LIMITED) == "too_many_bytes"


@pytest.mark.parametrize("name", ["text", "caption", "id", "url"])
def test_a_field_of_json_has_the_limit_of_a_header(name):
    body = {"image": "AAAA", name: "x" * 48}
    assert of_json(**body, **{"a": 1})
    for text in ("x" * 51, "ä" * 26):
        value = json.dumps({**body, name: text}, ensure_ascii=False).encode()
        assert reason(value, AS_JSON, limits=LIMITED) == "too_many_bytes"


def test_a_json_value_without_its_image_has_the_limit_of_all_headers():
    image = base64.b64encode(bytes(30_000)).decode()
    value = json.dumps({"image": image, "a": "x" * 960}).encode()
    assert of(value, AS_JSON, limits=LIMITED)
    value = json.dumps({"image": image, "a": "x" * 990}).encode()
    assert reason(value, AS_JSON, limits=LIMITED) == "too_many_bytes"
    value = json.dumps({"image": image, "a": [[]] * 13}).encode()
    assert reason(value, AS_JSON, limits=LIMITED) == "too_many_bytes", "25 values and more"


def test_a_content_type_is_remembered_by_its_beginning():
    """A cache of whole headers would hold what anybody sends."""
    before = envelope._kind_of.cache_info().currsize
    for i in range(9):
        assert kind_of(b"image/jpeg; x=" + b"x" * 1_000 + b"%d" % i) == "image"
    assert envelope._kind_of.cache_info().currsize <= before + 1


@pytest.mark.parametrize(
    ("value", "headers", "least"),
    [
        (JPEG, [], len(JPEG)),
        (None, [("text", b"x" * 500)], 2 * 500),
        (b"", [("", None)] * 50, 50 * 200),
        (b'{"a":[' + b"[]," * 999 + b"[]]}", [], 1000 * 64),
        (b" \r\n{" + b'"a":{"b":1},' * 99 + b"}", [], 99 * 300),
        ('{"a":1}'.encode("utf-16"), [], 300),
    ],
)
def test_the_weight_of_a_record(value, headers, least):
    """At least what Python's objects take; of an image hardly more than its bytes."""
    assert weight(Record(0, 1, 2, value, headers)) >= least
    if value == JPEG:
        assert weight(Record(0, 1, 2, value, headers)) == len(JPEG)
        assert weight(Record(0, 1, 2, b"{}", []), Facts(data=JPEG)) >= len(JPEG) + 2


NAMES = st.sampled_from(
    [
        "content-type",
        "text",
        "id",
        "url",
        "uri",
        "sha256",
        "length",
        "meta-a",
        "Text",
        "ce_id",
        "ce_x",
        "x",
    ]
) | st.text(max_size=5)
HEADERS = st.lists(
    st.tuples(
        NAMES,
        st.none()
        | st.binary(max_size=8)
        | st.sampled_from([b"image/png", b"application/json", SHA.encode()]),
    ),
    max_size=5,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=8,
)
BODY = st.dictionaries(
    st.sampled_from(["id", "text", "url", "uri", "image", "sha256", "length", "metadata", "x"]),
    JSON,
)


@given(
    st.none() | st.binary(max_size=64) | BODY.map(lambda body: json.dumps(body).encode()),
    HEADERS,
    st.sampled_from(["image/jpeg", "application/json", "x"]),
)
def test_whatever_comes_is_an_envelope_or_invalid(value, headers, default):
    try:
        envelope = of(value, *headers, default=default)
    except InvalidRecord:
        return
    assert isinstance(envelope.image, Reference) or envelope.image
    for text in (envelope.id, envelope.text, envelope.url):
        assert text is None or text.encode().decode() == text
    assert (
        json.loads(json.dumps(envelope.metadata, allow_nan=False, ensure_ascii=False).encode())
        == envelope.metadata
    )
