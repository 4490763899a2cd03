"""Parquet with image bytes (Hugging Face, img2dataset) or with paths of image files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError
from streamer.produce import arrow, file
from streamer.produce.caption import (
    PATH_COLUMNS,
    TEXT_COLUMNS,
    URL_COLUMNS,
    Caption,
    caption_of,
    decoded,
    first,
    joined,
)
from streamer.produce.captions import listed, no_text
from streamer.produce.entry import Absent, Columns, Entry, Unsendable, entry, too_big
from streamer.produce.name import printable

BYTES_COLUMNS = (
    "image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "content", "data",
)  # fmt: skip
ID_COLUMNS = ("id", "key")
_PATHS = {"path", "file_name", "filename", "filepath", "image_path"}
"""Columns with paths even if their cells are bytes."""
_BATCH_ROWS = 32
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column is what; None where there is none."""

    image: str | None
    path: str | None
    text: str | None
    id: str | None
    url: str | None
    unread: tuple[str, ...]
    """Further columns with bytes in them: no use as metadata."""
    columns: tuple[str, ...]
    """All."""

    def notes(self) -> list[str]:
        """What a person should know about the columns."""
        notes = [] if self.text is not None else [no_text(list(self.columns))]
        if self.unread:
            unread = listed(list(self.unread))
            notes.append(f"ignored binary columns: {unread}")
        return notes


def roles_of(path: Path, name: str, columns: Columns) -> Roles | Unsendable:
    """`Unsendable` if the file cannot be read. Raises ConfigError naming the file and its columns
    if a named column is missing or none has images."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
    except arrow.damage() as error:
        return Unsendable(name, f"{path.name} cannot be read: {error}")
    names: list[str] = schema.names
    try:
        arrow.check_names(schema)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    for option, chosen in (
        ("--image-column", columns.image), ("--path-column", columns.path),
        ("--text-column", columns.text), ("--id-column", columns.id),
        ("--url-column", columns.url),
    ):  # fmt: skip
        if chosen and chosen not in names:
            raise ConfigError(
                f"{path}: {option}: there is no column {chosen!r}; its columns are: {listed(names)}"
            )

    def usual(candidates: tuple[str, ...], fits: Callable[[Any], bool]) -> str | None:
        return first(candidates, [n for n in names if fits(schema.field(n).type)])

    text = columns.text or usual(TEXT_COLUMNS, arrow.is_texts)
    url = columns.url or usual(URL_COLUMNS, arrow.is_text)
    id = columns.id or usual(ID_COLUMNS, arrow.is_scalar)
    image = columns.image or None
    if not image and not columns.path:
        taken = {text, url, id} | {n for n in names if n.lower() in _PATHS}
        pictures = [n for n in names if arrow.is_image(schema.field(n).type) and n not in taken]
        image = first(BYTES_COLUMNS, pictures) or (pictures[0] if len(pictures) == 1 else None)
    where = columns.path or (None if image else usual(PATH_COLUMNS, arrow.is_text))
    if image is None and where is None:
        raise ConfigError(
            f"{path}: no column has images or their paths; name one with --image-column or "
            f"--path-column. Its columns are: {listed(names)}"
        )
    used = (image, where, text, id, url)
    unread = [n for n in names if n not in used and arrow.has_bytes(schema.field(n).type)]
    return Roles(image, where, text, id, url, tuple(unread), tuple(names))


def rows(
    path: Path, root: Path, name: str, roles: Roles, separator: str, limit: int
) -> Iterator[Entry]:
    """One record a row. Ids: the column `id`, else ``name/KEY`` where img2dataset's `key` is there,
    else the path of the image's file, else ``name/ROW``.

    Paths are relative to the Parquet file's folder and lead to files below ``root``. Columns that
    have no role are metadata. A few dozen rows are in memory at a time.
    """
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            wanted = [column for column in roles.columns if column not in roles.unread]
            for number, (row, trouble) in enumerate(arrow.rows_of(table, wanted, _BATCH_ROWS)):
                if trouble:
                    yield Unsendable(f"{name}/{number}", f"row {number} of {path.name}: {trouble}")
                else:
                    yield _entry(_Row(path, root, name, number, row), roles, separator, limit)
    except arrow.damage() as error:
        after = f" after row {number}" if number else ""
        yield Unsendable(name, f"{path.name} cannot be read{after}: {error}")


@dataclass(frozen=True, slots=True)
class _Row:
    file: Path
    root: Path
    name: str
    number: int
    """Counted from 0."""
    cells: Mapping[str, Any]


def _entry(row: _Row, roles: Roles, separator: str, limit: int) -> Entry:
    data, path = _picture(row.cells[roles.image or roles.path or ""], roles)
    id = _id(row, roles, path if data is None else "")
    if data is None and not path:
        if row.cells.get("status", "success") != "success":
            return Absent(id)
        return Unsendable(id, f"row {row.number} of {row.file.name} has no image")

    def value() -> bytes:
        if data is None:
            return _file(row, path, limit)
        if len(data) > limit:
            raise ValueError(too_big(len(data), limit))
        return data

    def caption() -> Caption:
        used = frozenset(n for n in (roles.image, roles.path, roles.id) if n is not None)
        found = caption_of(row.cells, roles.text, roles.url, separator, used)
        if data is None or not path:
            return found
        return joined([found, Caption(metadata={"path": path})])  # of Hugging Face's Image

    return entry(id, path or f"x.{roles.image}", value, caption)


def _picture(cell: Any, roles: Roles) -> tuple[bytes | None, str]:
    """(bytes, or None; path of a file, or empty)"""
    if isinstance(cell, dict):  # Hugging Face's Image
        return cell.get("bytes"), _text(cell.get("path"))
    if roles.image is not None and isinstance(cell, bytes):
        return cell, ""
    return None, _text(cell)


def _id(row: _Row, roles: Roles, path: str) -> str:
    own = _text(row.cells[roles.id]) if roles.id is not None else ""
    if own:
        is_key = roles.id is not None and roles.id.lower() == "key"  # unique within its file only
        return printable(f"{row.name}/{own}" if is_key else own)
    if not path:
        return f"{row.name}/{row.number}"
    there = os.path.relpath(row.file.parent / path, row.root)
    outside = there.startswith("..") or _ADDRESS.match(path)
    return printable(path if outside else Path(there).as_posix())


def _text(cell: Any) -> str:
    """A cell that stands for a name; bytes that are not UTF-8 as hexadecimal digits."""
    if cell is None or cell != cell:  # NaN
        return ""
    try:
        return str(decoded(cell, ""))
    except ValueError:
        return str(cell.hex())


def _file(row: _Row, path: str, limit: int) -> bytes:
    if _ADDRESS.match(path):
        raise ValueError(f"{path} is an address; only files are sent")
    there = row.file.parent / path
    try:
        file.check_inside(there, row.root)
    except ValueError as error:
        raise ValueError(
            f"{error}: give the images' folder as the SOURCE, and {row.file.name} as --captions"
        ) from None
    try:
        return file.read(there, None, limit)
    except ValueError as error:
        raise ValueError(f"{error} ({there})") from None
