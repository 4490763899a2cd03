"""What a source yields, and how text and metadata become headers (contract, section 4.1)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE_TYPES: dict[str, str] = {
    "avif": "image/avif", "bmp": "image/bmp", "dds": "image/vnd-ms.dds", "dib": "image/bmp", "gif": "image/gif", "heic": "image/heic",
    "heif": "image/heif", "icns": "image/icns", "ico": "image/x-icon", "j2k": "image/j2k", "jfif": "image/jpeg", "jp2": "image/jp2",
    "jpe": "image/jpeg", "jpeg": "image/jpeg", "jpg": "image/jpeg", "jxl": "image/jxl", "mpo": "image/mpo", "pbm": "image/x-portable-bitmap",
    "pgm": "image/x-portable-graymap", "png": "image/png", "pnm": "image/x-portable-anymap", "ppm": "image/x-portable-pixmap",
    "psd": "image/vnd.adobe.photoshop", "qoi": "image/qoi", "svg": "image/svg+xml", "tga": "image/x-tga", "tif": "image/tiff",
    "tiff": "image/tiff", "webp": "image/webp",
}  # fmt: skip
"""File extensions that make a file an image, whatever is in it, and the content type that is sent
with them."""

UNKNOWN_TYPE = "image/*"
"""The consumer sniffs the bytes anyway."""


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
class Caption:
    """What is known about an image beside its bytes."""

    text: str = ""
    url: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns, for captions files and Parquet; empty: found by `TEXT_COLUMNS` and the
    like."""

    path: str = ""
    text: str = ""
    image: str = ""
    id: str = ""
    url: str = ""
    separator: str = ""
    """Splits a cell of the text column into several captions."""


PATH_COLUMNS = ("path", "file", "file_name", "filename", "filepath", "image_path", "image")
TEXT_COLUMNS = ("text", "caption", "captions", "TEXT", "txt")
URL_COLUMNS = ("url", "URL", "image_url", "source_url")


def extension(name: str) -> str:
    """The last extension, lower-case, without the dot; empty if there is none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return last.lower() if dot and stem else ""


def is_image(name: str) -> bool:
    return extension(name) in IMAGE_TYPES


def item(id: str, value: bytes, name: str, caption: Caption) -> Entry:
    """The record; ``name``: the file's name, for the content type. `Unsendable` if a text cannot be
    written as UTF-8."""
    texts = {"content-type": IMAGE_TYPES.get(extension(name), UNKNOWN_TYPE), "id": id}
    if caption.text:
        texts["text"] = caption.text
    if caption.url:
        texts["url"] = caption.url
    for key, known in caption.metadata.items():
        if known is not None and not (isinstance(known, float) and math.isnan(known)):
            texts[f"meta-{key}"] = (
                known
                if isinstance(known, str)
                else json.dumps(known, ensure_ascii=False, default=str)
            )
    try:
        for header in texts:
            header.encode()
        return Item(id, value, [(header, text.encode()) for header, text in texts.items()])
    except UnicodeEncodeError:
        return Unsendable(printable(id), "a text or metadata of it is not valid Unicode")


def printable(name: str) -> str:
    """A file name as UTF-8: bytes of it that are not, as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def too_big(id: str, nbytes: int, limit: int) -> Unsendable:
    return Unsendable(
        id, f"{nbytes} bytes; the topic takes at most {limit} (its max.message.bytes)"
    )


def caption_of(
    row: Mapping[str, Any],
    text: str | None,
    url: str | None,
    separator: str,
    without: frozenset[str],
) -> Caption:
    """A caption from a row or a JSON object: the columns ``text`` and ``url``, everything else but
    ``without`` is metadata.

    With ``separator`` the first part of the text is the caption, and all of them are the metadata
    ``captions``.
    """
    written = row.get(text) if text is not None else None
    metadata = {
        k: v
        for k, v in row.items()
        if k not in (text, url)
        and k not in without
        and v not in (None, "")
        and not isinstance(v, bytes)
    }
    if isinstance(written, list):
        parts = [str(part).strip() for part in written]
    elif separator and isinstance(written, str):
        parts = [part.strip() for part in written.split(separator)]
    else:
        parts = ["" if written is None else str(written).strip()]
    parts = [part for part in parts if part]
    if len(parts) > 1:
        metadata["captions"] = parts
    link = row.get(url) if url is not None else None
    return Caption(parts[0] if parts else "", str(link) if link else None, metadata)


def first(
    names: tuple[str, ...], there: Mapping[str, object] | tuple[str, ...] | list[str]
) -> str | None:
    return next((name for name in names if name in there), None)
