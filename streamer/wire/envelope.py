"""Input records: a Kafka value and its headers → `Envelope`; docs/reference.md has the contract.

Three encodings, told apart by the header ``content-type`` (``kafka.default_content_type`` where it
is absent):

* ``image/*`` — the value is the image. Headers: ``text``, ``id``, ``url`` (UTF-8) and ``meta-NAME``
  for metadata.
* ``application/json`` — one object, see `streamer.wire.body`. What it leaves out is taken from the
  headers.
* anything else, and the Confluent wire format (first byte 0) — ``unsupported_encoding``.

An image by reference in the first encoding: the headers ``uri``, ``sha256``, ``length`` and an
empty value. Where a record brings both, the bytes win. The ``uri`` is the record's ``url`` where it
names no other: it says where the image is from.

Header names: the lower-case name wins; any other spelling is accepted where that is absent.
``NAME`` in ``meta-NAME`` keeps its case. The last of several headers with one name counts (as in
Kafka's ``lastHeader``); a header without a value is absent. ``caption`` is the text where there is
no ``text``, else metadata. The headers of a dead letter (``streamer-topic`` and the like) are
metadata under their names. All other headers are ignored.

CloudEvents (Kafka protocol binding 1.0.2, binary content mode): ``ce_id`` is the id where there is
no header ``id``, ``ce_datacontenttype`` the content type where there is no ``content-type``; the
other ``ce_NAME`` but ``ce_specversion`` become metadata under that very name. The structured mode
(``application/cloudevents+json``) is ``unsupported_encoding``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from streamer.config import Decode
from streamer.errors import InvalidRecord
from streamer.records import UNREADABLE_HEADERS, Envelope, Record, Reference
from streamer.wire.body import FIELDS, image_of, parse_body
from streamer.wire.limits import Limits

DEAD_LETTER = "streamer-"
"""How the headers begin that a dead letter has beside those of its record."""
_PLAIN = FIELDS | {"content-type"}
_USER_INFO = re.compile(r"(?<=://)[^/?#]*@")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ISO_BOXES = (b"ftyp", b"JXL ", b"jP  ")
"""Images whose first byte is 0: the type of the first box of AVIF and HEIC, JPEG XL, JPEG 2000."""
_NOTHING: Mapping[str, Any] = {}
_CONTENT_TYPE_BYTES = 100
"""of one that are looked at, and remembered"""
LIMITS = Limits.of(Decode())


def parse(record: Record, default_content_type: str, limits: Limits = LIMITS) -> Envelope:
    """Any thread; does not block.

    Raises InvalidRecord: empty_value, unsupported_encoding, bad_header, bad_json, bad_base64,
    no_image, too_many_bytes.
    """
    value = record.value
    if record.headers is UNREADABLE_HEADERS:
        raise InvalidRecord("bad_header", "the name of a header is not UTF-8")
    limits.check_headers(record.headers)
    fields: dict[str, bytes | None] = dict(record.headers)
    metadata = _NOTHING if fields.keys() <= _PLAIN else fold(fields, _decoded)
    content_type = fields.pop("content-type", None)
    kind = kind_of(content_type or default_content_type)
    if kind == "image":
        if value and not (value[0] == 0 and content_type is None and value[4:8] not in _ISO_BOXES):
            if not fields:
                return Envelope(None, "", None, metadata, value)
            metadata = caption_as_text(fields, metadata, _decoded)
            text, id, url = _text(fields, "text"), _text(fields, "id"), _text(fields, "url")
            url = url or source_of(_text(fields, "uri"))
            return Envelope(id, text or "", url, metadata, value)
        if value:
            raise InvalidRecord(
                "unsupported_encoding",
                "the value begins like the Confluent wire format, and there is no content-type header",
            )
        metadata = caption_as_text(fields, metadata, _decoded)
        return _from(_texts(fields), metadata, None, "bad_header", "empty_value")
    if not value:
        raise InvalidRecord("empty_value")
    if kind == "other":
        raise InvalidRecord(
            "unsupported_encoding", f"content-type {(content_type or default_content_type)[:100]!r}"
        )
    if value[0] == 0:
        raise InvalidRecord("unsupported_encoding", "application/json in the Confluent wire format")
    limits.check_value(value)
    body = parse_body(value)
    limits.check_body(value, body.fields, body.image)
    fields_of_both = {**_texts(fields), **body.fields}
    both = {**metadata, **body.metadata} if body.metadata else metadata
    both = caption_as_text(fields_of_both, both)
    return _from(fields_of_both, both, image_of(body), "bad_json", "no_image")


def kind_of(content_type: bytes | str) -> Literal["image", "json", "other"]:
    return _kind_of(content_type[:_CONTENT_TYPE_BYTES])


@functools.lru_cache(maxsize=256)
def _kind_of(content_type: bytes | str) -> Literal["image", "json", "other"]:
    text = content_type if isinstance(content_type, str) else content_type.decode("latin-1")
    media_type = text.partition(";")[0].strip().lower()
    return (
        "image"
        if media_type.startswith("image/")
        else "json"
        if media_type == "application/json"
        else "other"
    )


def fold(
    fields: dict[str, bytes | None], decoded: Callable[[str, bytes], str]
) -> Mapping[str, Any]:
    """Leaves only the plain fields and ``caption`` in ``fields``, by their lower-case names, and
    returns the metadata. ``decoded(name, value)`` makes text of a header."""
    metadata: dict[str, Any] = {}
    fallback: dict[str, bytes | None] = {}
    for name in [n for n in fields if n not in _PLAIN]:
        raw = fields.pop(name)
        lower = name.lower()
        if raw is None:
            continue
        if lower in _PLAIN:
            fields.setdefault(lower, raw)
        elif lower.startswith("meta-"):
            metadata[name[5:]] = decoded(name, raw)
        elif lower == "caption":
            fields.setdefault(lower, raw)
        elif lower == "ce_id":
            fallback["id"] = raw
        elif lower == "ce_datacontenttype":
            fallback["content-type"] = raw
        elif lower.startswith(DEAD_LETTER) or (
            lower.startswith("ce_") and lower != "ce_specversion"
        ):
            metadata[lower] = decoded(name, raw)
    for name, raw in fallback.items():
        if fields.get(name) is None:
            fields[name] = raw
    return metadata


def caption_as_text(
    fields: dict[str, Any],
    metadata: Mapping[str, Any],
    decoded: Callable[[str, Any], str] = lambda _, text: text,
) -> Mapping[str, Any]:
    """The header ``caption`` becomes the text in ``fields`` if there is none, else it becomes
    metadata, which are returned; a key of the record's JSON wins."""
    caption = fields.pop("caption", None)
    if caption is None:
        return metadata
    if fields.get("text") is None:
        fields["text"] = caption
        return metadata
    return {"caption": decoded("caption", caption), **metadata}


def _decoded(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRecord("bad_header", f"{name} is not UTF-8") from None


def _text(fields: Mapping[str, bytes | None], name: str) -> str | None:
    raw = fields.get(name)
    return None if raw is None else _decoded(name, raw)


def _texts(fields: Mapping[str, bytes | None]) -> dict[str, Any]:
    return {name: _decoded(name, raw) for name, raw in fields.items() if raw is not None}


def _from(
    fields: dict[str, Any],
    metadata: Mapping[str, Any],
    image: bytes | None,
    wrong: str,
    missing: str,
) -> Envelope:
    """The envelope of these fields; ``wrong`` and ``missing`` are the reasons for a malformed field
    and for no image at all."""
    id = fields.get("id")
    if isinstance(id, int) and not isinstance(id, bool):
        fields["id"] = str(id)
    for name in ("id", "text", "url", "uri", "sha256"):
        if not isinstance(fields.get(name, ""), str):
            raise InvalidRecord(wrong, f"{name} is not a string")
    if not image:
        uri = fields.get("uri")
        if not uri:
            raise InvalidRecord(missing)
        return _envelope(
            fields, metadata, Reference(uri, _sha256(fields, wrong), _length(fields, wrong))
        )
    return _envelope(fields, metadata, image)


def _envelope(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], image: bytes | Reference
) -> Envelope:
    url = fields.get("url") or source_of(fields.get("uri"))
    return Envelope(fields.get("id"), fields.get("text", ""), url, metadata, image)


def source_of(uri: str | None) -> str | None:
    """A reference as the ``url`` of its record, without a user and a password that it may hold."""
    return uri and _USER_INFO.sub("", uri, count=1)


def _sha256(fields: Mapping[str, Any], wrong: str) -> str | None:
    text = fields.get("sha256")
    if text is None:
        return None
    if not _SHA256.fullmatch(text):
        raise InvalidRecord(wrong, "sha256 is not 64 hexadecimal digits")
    return str(text).lower()


def _length(fields: Mapping[str, Any], wrong: str) -> int | None:
    length = fields.get("length")
    if length is None:
        return None
    if isinstance(length, str) and length.isascii() and length.isdigit() and len(length) < 20:
        return int(length)
    if isinstance(length, int) and not isinstance(length, bool) and length >= 0:
        return length
    raise InvalidRecord(wrong, "length is not a number of bytes")
