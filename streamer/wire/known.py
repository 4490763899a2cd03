"""What is known of a record that is invalid: for its row, so that somebody can find and mend it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from streamer.errors import InvalidRecord
from streamer.records import UNREADABLE_HEADERS, Facts, Record
from streamer.wire.body import Body, load_what_can_be, sort
from streamer.wire.envelope import caption_as_text, fold, kind_of, source_of
from streamer.wire.limits import Limits, utf8_bytes, within


def known(record: Record, default_content_type: str, limits: Limits) -> Facts:
    """Id, text, url and metadata as far as headers and JSON tell them, each by itself: what is wrong
    with one costs none of the others. Bytes that are no UTF-8, and half a surrogate pair, become
    replacement characters. What is beyond the limits is left out. Any thread; does not block;
    raises nothing."""
    headers = () if record.headers is UNREADABLE_HEADERS else record.headers
    raw = dict(within(headers, limits))
    metadata = dict(fold(raw, _decoded))
    fields: dict[str, Any] = {n: _decoded(n, v) for n, v in raw.items() if v is not None}
    is_json = kind_of(raw.get("content-type") or default_content_type) == "json"
    value = record.value
    if is_json and value is not None:
        with suppress(InvalidRecord):
            limits.check_value(value)
            body = sort(load_what_can_be(value))
            fields |= {n: field for n, field in body.fields.items() if _fits(field, limits)}
            limits.check_body(value, {}, body.image)
            metadata |= _metadata(body)
    metadata = dict(caption_as_text(fields, metadata))
    url = _text(fields.get("url")) or source_of(_text(fields.get("uri")))
    return Facts(_text(fields.get("id")), _text(fields.get("text")), url, metadata or None)


def _fits(field: Any, limits: Limits) -> bool:
    return not isinstance(field, str) or utf8_bytes(field) <= limits.text


def _decoded(_name: str, raw: bytes) -> str:
    return raw.decode(errors="replace")


def _text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _printable(value) if isinstance(value, str) else None


def _metadata(body: Body) -> dict[str, Any]:
    if not isinstance(body.metadata, dict):
        return {}
    whole: dict[str, Any] = json.loads(_printable(json.dumps(body.metadata, ensure_ascii=False)))
    return whole


def _printable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
