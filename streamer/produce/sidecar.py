"""Texts and JSON that lie beside an image, as files or as members of an archive."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from streamer.produce.caption import (
    TEXT_COLUMNS,
    URL_COLUMNS,
    Caption,
    caption_of,
    first,
    joined,
)
from streamer.produce.pairing import Partners

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # it begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding(begin: bytes) -> str:
    """The encoding of a text by its first four bytes: UTF-16 and UTF-32 with a byte order mark,
    else UTF-8."""
    return next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")


def text_of(data: bytes, name: str) -> str:
    """Raises ValueError if it is neither UTF-8 nor marked as UTF-16 or UTF-32."""
    try:
        return data.decode(encoding(data[:4]))
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None


def caption_beside(partners: Partners, read: Callable[[str], bytes], text_key: str) -> Caption:
    """What the text and the JSON of an image say, the text first. ``read``: a name's bytes. Raises
    ValueError as `text_caption`, `json_caption` and ``read``."""
    captions = []
    if partners.text is not None:
        captions.append(text_caption(read(partners.text), partners.text))
    if partners.json is not None:
        captions.append(json_caption(read(partners.json), partners.json, text_key))
    return joined(captions)


def text_caption(data: bytes, name: str) -> Caption:
    """Raises ValueError as `text_of`."""
    text = text_of(data, name).strip()
    return Caption((text,) if text else ())


def json_caption(data: bytes, name: str, text_key: str = "") -> Caption:
    """Text, address and metadata from a JSON object. Raises ValueError.

    ``text_key``: the key with the text; where it is missing, one of `TEXT_COLUMNS`.
    """
    row = json_object(text_of(data, name), name)
    try:
        text = text_key if text_key and text_key in row else first(TEXT_COLUMNS, row)
        return caption_of(row, text, first(URL_COLUMNS, row))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def json_object(text: str, name: str) -> dict[str, Any]:
    """A JSON object, NaN and the infinities of it (which JSON has not) as None.

    Raises ValueError for anything else, and for what could not be read without loss: a key that
    is duplicate, a number that no float holds, more than 4300 digits.
    """
    try:
        row = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=lambda _: None,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"{name} is not JSON: {error.msg} at {line}column {error.colno}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"{name} is not a JSON object")
    return row


def clear_cells(text: str) -> dict[str, Any]:
    """Of a JSON object that `json_object` refuses: the keys that stand once, with values that are
    UTF-8; empty if it cannot be parsed at all. They may tell which image it is about."""
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in row.items() if _is_utf8(v)} if isinstance(row, dict) else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if counts[key] == 1}


def _is_utf8(value: Any) -> bool:
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {twice!r}")
    return row


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a number of {len(text)} digits is too long") from None
