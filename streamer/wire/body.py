"""The value of a JSON record: ``{"id", "text", "url", "metadata": {…}}`` and ``"image"`` (base64) or
``"uri"`` (with ``"sha256"``, ``"length"``).

A key in lower case wins; any other spelling counts where that is absent, as for headers. A
``caption`` is the text if there is no ``text``. Every other key is metadata, unless the object
``metadata`` has the same key. null is the same as an absent key; a duplicate key is an error.
"""

from __future__ import annotations

import binascii
import json
import math
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from streamer.errors import InvalidRecord

FIELDS = frozenset(("text", "id", "url", "uri", "sha256", "length"))
"""What is a field of the envelope, in a header and in JSON."""
_OWN = FIELDS | {"image", "metadata"}
MAX_DEPTH = 100
"""Objects and lists inside each other. Readers of the column ``metadata`` have limits of their own,
of some hundreds mostly; Python's depends on who calls."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a JSON value says, not checked any further."""

    fields: Mapping[str, Any]
    """Those of `FIELDS`, and ``caption``, that are there and not null."""
    image: Any
    """Base64; None where there is none."""
    metadata: Any
    """The object ``metadata``, and every key that is no other field; as it came if it is no object."""


def parse_body(value: bytes) -> Body:
    """Raises InvalidRecord, bad_json: what `load` refuses, metadata that is no object, half a
    surrogate pair."""
    found = sort(load(value))
    if not isinstance(found.metadata, dict):
        raise InvalidRecord("bad_json", "metadata is not an object")
    if b"\\" in value:
        _refuse_surrogates([found.fields, found.metadata])
    return found


def load(value: bytes) -> dict[str, Any]:
    """Raises InvalidRecord, bad_json: not a JSON object in UTF-8, -16 or -32, a number that is not
    finite, nesting deeper than `MAX_DEPTH`, or a duplicate key."""
    try:
        # json.loads itself would let half a surrogate pair in UTF-16 and -32 through
        text = value.decode(json.detect_encoding(value))
        body = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("bad_json", str(error)) from None
    if not isinstance(body, dict):
        raise InvalidRecord("bad_json", f"a JSON {type(body).__name__}, not an object")
    if text.count("{") + text.count("[") > MAX_DEPTH and _is_deep(body):
        raise InvalidRecord("bad_json", f"nested deeper than {MAX_DEPTH}")
    return body


def load_what_can_be(value: bytes) -> dict[str, Any]:
    """Of what `load` refuses. The last of duplicate keys counts, null stands for numbers that are
    not finite, and what is nested too deeply is left out. Raises InvalidRecord, bad_json, if there
    is nothing."""
    try:
        text = value.decode(json.detect_encoding(value), "replace")
        body = json.loads(text, parse_constant=lambda _: None, parse_float=_finite_or_none)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("bad_json", str(error)) from None
    if not isinstance(body, dict):
        raise InvalidRecord("bad_json")
    return {name: item for name, item in body.items() if not _is_deep({name: item})}


def image_of(body: Body) -> bytes | None:
    """The image's bytes; None where the record refers to it. Raises InvalidRecord, bad_base64."""
    if body.image is None:
        return None
    try:
        # ASCII is what b64decode wants of a str; a number or a list ends in TypeError
        return b64decode(body.image, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidRecord("bad_base64", str(error)) from None


def sort(body: Mapping[str, Any]) -> Body:
    """Tells fields, image and metadata apart. Raises nothing."""
    named = {name: value for name, value in body.items() if name in _OWN and value is not None}
    rest: dict[str, Any] = {}
    for name, value in body.items():
        lower = name.lower()
        if name in _OWN or value is None:
            continue
        if lower in _OWN and lower not in named and _fits(lower, value):
            named[lower] = value
        else:
            rest[name] = value
    caption = next((n for n in rest if n.lower() == "caption" and _fits("text", rest[n])), None)
    if caption is not None:
        named["caption"] = rest.pop(caption)
    image, metadata = named.pop("image", None), named.pop("metadata", {})
    return Body(named, image, {**rest, **metadata} if isinstance(metadata, dict) else metadata)


def _fits(field: str, value: Any) -> bool:
    """Whether a key in another spelling may be the field; what is not stays metadata."""
    if field == "metadata":
        return isinstance(value, dict)
    return isinstance(value, str) or (field in ("id", "length") and type(value) is int)


def _is_deep(tree: Any) -> bool:
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {max(names, key=names.count)!r}")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _finite_or_none(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _refuse_surrogates(tree: Any) -> None:
    """``"\\ud800"`` alone is valid JSON but no text: it could be written to neither Parquet nor a
    tar."""
    try:
        json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRecord(
            "bad_json", "a lone surrogate (\\ud800 … \\udfff) is not a character"
        ) from None
