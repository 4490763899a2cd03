"""A folder of images with ``.txt`` and ``.json`` beside them, or with captions in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamer.produce.captions import Captions
from streamer.produce.entry import (
    TEXT_COLUMNS,
    URL_COLUMNS,
    Caption,
    Entry,
    Unsendable,
    caption_of,
    first,
    item,
    printable,
    too_big,
)


def walk(root: Path) -> Iterator[Path]:
    """Regular files below ``root``, sorted by name folder by folder; links to folders are not
    followed (they may lead in circles)."""
    folders = []
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            folders.append(Path(entry.path))
        elif (
            entry.is_file() or entry.is_symlink()
        ):  # a link that leads nowhere is reported when it is read
            yield Path(entry.path)
    for folder in folders:
        yield from walk(folder)


def id_of(path: Path, root: Path) -> str:
    """The path from ``root``, with slashes; bytes that are not UTF-8 as \\xNN."""
    return printable(path.relative_to(root).as_posix())


def image_file(
    path: Path, root: Path, captions: Captions | None, sidecars: bool, limit: int
) -> Entry:
    """The record of one file. ``sidecars``: ``.txt`` and ``.json`` of the same stem are its text
    and metadata."""
    id = id_of(path, root)
    try:
        nbytes = path.stat().st_size
        if nbytes > limit:
            return too_big(id, nbytes, limit)
        caption = (
            captions.take(id, path)
            if captions is not None
            else _sidecars(path)
            if sidecars
            else Caption()
        )
        return item(id, path.read_bytes(), path.name, caption)
    except OSError as error:
        return Unsendable(
            id,
            f"{error.strerror or error}"
            + (f" ({error.filename})" if str(error.filename) != str(path) else ""),
        )
    except ValueError as error:
        return Unsendable(id, str(error))


def _sidecars(path: Path) -> Caption:
    json_path, text_path = path.with_suffix(".json"), path.with_suffix(".txt")
    caption = Caption()
    if json_path.is_file():
        caption = json_caption(json_path.read_bytes(), json_path.name)
    if text_path.is_file():
        caption = Caption(
            text_of(text_path.read_bytes(), text_path.name), caption.url, caption.metadata
        )
    return caption


def text_of(data: bytes, name: str) -> str:
    """Raises ValueError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None


def json_caption(data: bytes, name: str) -> Caption:
    """Text, url and metadata from a JSON object (text: one of its keys `TEXT_COLUMNS`). Raises
    ValueError."""
    try:
        row: Any = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{name} is not a JSON object")
    return caption_of(row, first(TEXT_COLUMNS, row), first(URL_COLUMNS, row), "", frozenset())
