"""What is known about an image beside its bytes, and how rows and JSON objects say it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATH_COLUMNS = ("path", "file", "file_name", "filename", "filepath", "image_path", "image")
TEXT_COLUMNS = ("text", "caption", "captions", "txt", "prompt")
URL_COLUMNS = ("url", "image_url", "source_url")


@dataclass(frozen=True, slots=True)
class Caption:
    """Texts, the best first; where the image comes from; and everything else that is known."""

    texts: tuple[str, ...] = ()
    url: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def first(names: Sequence[str], there: Iterable[str]) -> str | None:
    """The first of ``names`` that is ``there``, in this spelling or else in another case."""
    columns = list(there)
    folded = {column.lower(): column for column in reversed(columns)}
    for name in names:
        if name in columns:
            return name
        if name.lower() in folded:
            return folded[name.lower()]
    return None


def caption_of(
    row: Mapping[str, Any],
    text: str | None,
    url: str | None,
    separator: str = "",
    without: frozenset[str] = frozenset(),
) -> Caption:
    """The caption in a row or a JSON object: the columns ``text`` and ``url``, and everything else
    but ``without`` as metadata.

    ``text`` may hold several captions: a list, or parts between ``separator``. Raises ValueError if
    it holds what is no text, as an object is.
    """
    written = row.get(text) if text is not None else None
    link = decoded(row.get(url), url) if url is not None else None
    used = {text, *without} | ({url} if isinstance(link, str | None) else set())
    return Caption(
        tuple(_texts(written, text, separator)),
        link if isinstance(link, str) and link else None,
        {key: known for key, known in row.items() if key not in used and not _missing(known)},
    )


def decoded(cell: Any, column: str | None) -> Any:
    """A cell that is bytes as text (Parquet may lack the logical type string), any other as it is.
    Raises ValueError if it is not UTF-8."""
    if not isinstance(cell, bytes):
        return cell
    try:
        return cell.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{column!r} is not UTF-8") from None


def joined(captions: Sequence[Caption]) -> Caption:
    """One caption of all that different places say about one image.

    All texts, in order, each of them once. Where metadata of one name differ, they become the list
    of what differs; so do addresses, as the metadata ``url``, and the first one stays the address.
    """
    if len(captions) == 1:
        return captions[0]
    metadata: dict[str, list[Any]] = {}
    for caption in captions:
        for key, known in caption.metadata.items():
            values = metadata.setdefault(key, [])
            if known not in values:
                values.append(known)
    urls = list(dict.fromkeys(caption.url for caption in captions if caption.url))
    if len(urls) > 1:
        metadata.setdefault("url", []).extend(urls)
    return Caption(
        tuple(dict.fromkeys(text for caption in captions for text in caption.texts)),
        urls[0] if urls else None,
        {key: values[0] if len(values) == 1 else values for key, values in metadata.items()},
    )


def headers_of(caption: Caption) -> dict[str, str]:
    """The headers ``text``, ``url`` and ``meta-NAME`` of a record.

    Several texts are also the metadata ``captions``, a JSON list, before what they hold already.
    What is no text is written as JSON. JSON has no NaN and no infinity: null stands for them, and
    metadata that are null are left out. Raises ValueError if metadata cannot be written.
    """
    headers = {}
    if caption.texts:
        headers["text"] = caption.texts[0]
    if caption.url:
        headers["url"] = caption.url
    metadata = dict(caption.metadata)
    if len(caption.texts) > 1:
        own = metadata.get("captions", [])
        everything = [*caption.texts, *(own if isinstance(own, list) else [own])]
        metadata["captions"] = [t for i, t in enumerate(everything) if t not in everything[:i]]
    for key, known in metadata.items():
        if "\0" in key:  # a header's name is a C string for Kafka's client: it would end there
            raise ValueError(f"the metadata key {key!r} contains NUL")
        text = _written(key, known)
        if text is not None:
            headers[f"meta-{key}"] = text
    return headers


def _texts(written: Any, column: str | None, separator: str) -> Iterator[str]:
    written = decoded(written, column)
    if isinstance(written, str) and separator:
        written = written.split(separator)
    for part in written if isinstance(written, list) else [written]:
        if isinstance(part, bool | dict | list | tuple):
            kind = "a boolean" if isinstance(part, bool) else "an object or a list in a list"
            raise ValueError(f"{column!r} is {kind}, not text")
        if not _missing(part) and (text := str(decoded(part, column)).strip()):
            yield text


def _missing(value: Any) -> bool:
    """pandas writes NaN for what it does not have."""
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _written(key: str, known: Any) -> str | None:
    if isinstance(known, str):
        return known
    try:
        try:
            text = json.dumps(known, ensure_ascii=False, default=str, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(known), ensure_ascii=False, default=str, allow_nan=False)
    except RecursionError:
        raise ValueError(f"the metadata {key!r} is nested too deeply") from None
    return None if text == "null" else text


def _finite(known: Any) -> Any:
    """The same with None for NaN and the infinities."""
    if isinstance(known, float):
        return known if math.isfinite(known) else None
    if isinstance(known, dict):
        return {key: _finite(value) for key, value in known.items()}
    if isinstance(known, list | tuple):
        return [_finite(value) for value in known]
    return known
