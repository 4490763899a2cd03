"""Parquet with image bytes (Hugging Face, img2dataset) or with paths of image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError
from streamer.produce.entry import (
    PATH_COLUMNS,
    TEXT_COLUMNS,
    URL_COLUMNS,
    Absent,
    Caption,
    Columns,
    Entry,
    Unsendable,
    caption_of,
    first,
    item,
    too_big,
)

BYTES_COLUMNS = (
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "image_bytes",
    "img",
    "content",
    "data",
)
_BATCH_ROWS = 32


@dataclass(frozen=True, slots=True)
class _Roles:
    """Which column is what; None where there is none."""

    image: str | None
    path: str | None
    text: str | None
    id: str | None
    url: str | None
    unread: frozenset[str]
    """Other columns with bytes in them: no use as metadata."""


def rows(file: Path, name: str, columns: Columns, limit: int) -> Iterator[Entry]:
    """One record a row. Ids: the id column, else ``name/KEY`` where img2dataset's ``key`` is there,
    else the path, else ``name/ROW``.

    Paths are relative to the Parquet file's folder. Columns that are neither image, path, text, url
    nor id are metadata. A few dozen rows are in memory at a time. Raises ConfigError if no column
    has images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            roles = _roles(file, table.schema_arrow, columns)
            number = 0
            wanted = [n for n in table.schema_arrow.names if n not in roles.unread]
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield _entry(file, name, number, row, roles, columns.separator, limit)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        yield Unsendable(name, f"the Parquet file cannot be read: {error}")


def _roles(file: Path, schema: Any, columns: Columns) -> _Roles:
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(f.name == "bytes" and holds_bytes(f.type) for f in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names: list[str] = schema.names
    for option, chosen in (("--image-column", columns.image), ("--path-column", columns.path), ("--text-column", columns.text),
                           ("--id-column", columns.id), ("--url-column", columns.url)):  # fmt: skip
        if chosen and chosen not in names:
            raise ConfigError(
                f"{file}: {option}: there is no column {chosen!r}; its columns are: {', '.join(names)}"
            )
    binary = [n for n in names if holds_bytes(schema.field(n).type)]
    image = columns.image or (
        None
        if columns.path
        else first(BYTES_COLUMNS, binary) or (binary[0] if len(binary) == 1 else None)
    )
    textual = [
        n
        for n in names
        if pa.types.is_string(schema.field(n).type)
        or pa.types.is_large_string(schema.field(n).type)
    ]
    path = columns.path or (None if image else first(PATH_COLUMNS, textual))
    if image is None and path is None:
        raise ConfigError(
            f"{file}: no column has images or their paths; name one with --image-column or --path-column. Its columns are: {', '.join(names)}"
        )
    key = "key" if "key" in names else None
    text, url = (
        columns.text or first(TEXT_COLUMNS, names),
        columns.url or first(URL_COLUMNS, textual),
    )
    return _Roles(image, path, text, columns.id or key, url, frozenset(binary) - {image})


def _entry(
    file: Path,
    name: str,
    number: int,
    row: Mapping[str, Any],
    roles: _Roles,
    separator: str,
    limit: int,
) -> Entry:
    path = row[roles.path] if roles.path is not None else None
    own = row[roles.id] if roles.id is not None else None
    id = f"{name}/{number}"
    if own is not None:
        id = f"{name}/{own}" if roles.id == "key" else str(own)
    elif path is not None:
        id = str(path)
    used = frozenset(n for n in (roles.image, roles.path, roles.id) if n is not None)
    caption = caption_of(row, roles.text, roles.url, separator, used)
    if roles.image is None and path is not None:
        return _file(id, file.parent / str(path), caption, limit)
    cell: Any = row[roles.image] if roles.image is not None else None
    hint = f"x.{roles.image}"
    if isinstance(cell, dict):  # Hugging Face's Image feature
        cell, hint = cell.get("bytes"), str(cell.get("path") or hint)
    if cell is None:
        if row.get("status", "success") != "success":
            return Absent(id)
        return Unsendable(id, f"row {number} of {file.name} has no image")
    return too_big(id, len(cell), limit) if len(cell) > limit else item(id, cell, hint, caption)


def _file(id: str, path: Path, caption: Caption, limit: int) -> Entry:
    try:
        nbytes = path.stat().st_size
        return (
            too_big(id, nbytes, limit)
            if nbytes > limit
            else item(id, path.read_bytes(), path.name, caption)
        )
    except OSError as error:
        return Unsendable(id, f"{error.strerror or error} ({path})")
