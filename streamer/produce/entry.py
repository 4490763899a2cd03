"""What a source yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamer.produce.caption import Caption, headers_of
from streamer.produce.name import content_type, printable


@dataclass(frozen=True, slots=True)
class Item:
    """One record to send."""

    id: str
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Unsendable:
    """Something that should have been a record: listed at the end, exit 1."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Absent:
    """Something that the source itself says it does not have (img2dataset's failed downloads):
    counted, no failure."""

    id: str


Entry = Item | Unsendable | Absent


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns, for captions files, Parquet and (``text``) JSON; empty: found by their
    usual names."""

    path: str = ""
    text: str = ""
    image: str = ""
    id: str = ""
    url: str = ""
    separator: str = ""
    """Splits a cell of the text column into several captions."""


def entry(id: str, name: str, value: Callable[[], bytes], caption: Callable[[], Caption]) -> Entry:
    """The record of one image; ``name``: the file's name, for the content type.

    `Unsendable` with the reason if ``value`` or ``caption`` raises ValueError, whose message is the
    reason, or if a text cannot be written as UTF-8.
    """
    try:
        texts = {"content-type": content_type(name), "id": id, **headers_of(caption())}
        return Item(id, value(), [(header, _utf8(header, text)) for header, text in texts.items()])
    except ValueError as error:
        return Unsendable(printable(id), printable(str(error)))
    except RecursionError:
        return Unsendable(printable(id), "its metadata are nested too deeply")


def too_big(nbytes: int, limit: int) -> str:
    return f"{nbytes} bytes; the topic takes at most {limit} (its max.message.bytes)"


def _utf8(header: str, text: str) -> bytes:
    try:
        header.encode()
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{header} is not valid Unicode: it has a lone surrogate") from None
