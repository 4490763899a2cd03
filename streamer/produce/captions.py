"""Captions from one file for many images: ``--captions``, or ``metadata.csv`` in a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError
from streamer.produce import table
from streamer.produce.caption import (
    PATH_COLUMNS,
    TEXT_COLUMNS,
    URL_COLUMNS,
    Caption,
    caption_of,
    decoded,
    first,
)
from streamer.produce.entry import Columns
from streamer.produce.file import real_folder
from streamer.produce.name import printable

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of Hugging Face's imagefolder, whose column ``file_name`` is relative to the folder of the
file."""
_SHOWN_ROWS = 5
_SHOWN_COLUMNS = 20


class Captions:
    """Image → what the rows of a captions file say about it.

    Paths in the file are absolute, or relative to the source, or to the folder of the captions
    file. A row that cannot be used costs the image that it names; where it does not tell which that
    is, every image that no other row names, because it may be that one.
    """

    def __init__(self, file: Path, columns: Columns, imagefolder: bool = False) -> None:
        """Reads the whole file; its texts stay in memory. ``imagefolder``: paths are relative to
        the folder of the file only, and there may be no texts.

        Raises ConfigError naming the file, where it cannot be read, or lacks a column, or has no
        row that can be used.
        """
        self.file = file
        self._columns = columns
        self._imagefolder = imagefolder
        self._folder = os.path.realpath(file.parent)
        self._rows: dict[str, list[Caption]] = {}
        self._bad: dict[str, str] = {}
        """Key of an image → why a row about it cannot be used."""
        self.unread: list[str] = []
        """Reasons for unusable rows whose image is unknown; each begins with its place."""
        self._used: set[str] = set()
        self._has_text = False
        self._seen: dict[str, None] = {}
        self._read()

    def of(self, path: Path, root: Path) -> list[Caption]:
        """What the rows say about the file at ``path``, in their order. ``root``: its source.
        Raises ValueError where a row about it, or one that may be, cannot be used."""
        found = [k for k in self._keys(path, root) if k in self._rows or k in self._bad]
        self._used.update(found)
        if bad := [self._bad[key] for key in found if key in self._bad]:
            raise ValueError(f"{self.file.name}, {bad[0]}")
        if self.unread and not found:
            raise ValueError(
                f"its caption may be in an unusable row of {self.file.name}: {self.unread[0]}"
            )
        return [caption for key in found for caption in self._rows[key]]

    def knows(self, path: Path, root: Path) -> bool:
        """Whether a row names this file."""
        return any(k in self._rows or k in self._bad for k in self._keys(path, root))

    def unused(self) -> list[str]:
        """Paths that no file of the sources has asked for."""
        named = self._rows.keys() | self._bad.keys()
        return sorted(printable(key) for key in named - self._used)

    def without_text(self) -> str:
        """What to tell a person if no column is the caption; empty if one is."""
        return "" if self._has_text else no_text(list(self._seen))

    def _read(self) -> None:
        named = {self._columns.path, self._columns.text, self._columns.url}
        for row in table.rows(self.file, named):
            self._add(row)
        if self._seen:
            self._check_columns(list(self._seen))
        if not self._rows:
            bad = [*self.unread, *self._bad.values()]
            more = f"; and {len(bad) - _SHOWN_ROWS} rows more" if len(bad) > _SHOWN_ROWS else ""
            what = "; ".join(bad[:_SHOWN_ROWS]) + more if bad else "holds no captions"
            raise ConfigError(f"{self.file}: {what}")

    def _add(self, row: table.Row) -> None:
        cells = row.cells
        if not row.trouble:
            self._seen.update(dict.fromkeys(cells))
        path_column, text, url = _roles(self._columns, tuple(cells))
        self._has_text |= text is not None
        path, trouble = "", row.trouble
        try:
            path = _path(cells, path_column)
            if not trouble:
                without = frozenset((path_column or "",))
                caption = caption_of(cells, text, url, self._columns.separator, without)
                self._rows.setdefault(_key(path), []).append(caption)
        except ValueError as error:
            trouble = trouble or f"{row.where}: {error}"
        if trouble and path and not (row.is_shifted and next(iter(cells)) != path_column):
            self._bad.setdefault(_key(path), trouble)
        elif trouble:
            self.unread.append(trouble)

    def _check_columns(self, there: list[str]) -> None:
        for named, usual, option in (
            (self._columns.path, PATH_COLUMNS, "--path-column"),
            (self._columns.text, () if self._imagefolder else TEXT_COLUMNS, "--text-column"),
            (self._columns.url, (), "--url-column"),
        ):
            missing = ""
            if named and named not in there:
                missing = f"there is no column {named!r}"
            elif usual and not named and first(usual, there) is None:
                missing = f"none of its columns with text is called {', '.join(usual)}"
            if missing:
                only = there[0] if len(there) == 1 else ""
                cure = f"name one with {option}"
                if separator := next((s for s in ";|\t" if s in only), ""):
                    cure = f"its cells are separated by {separator!r}; use commas, or save a .tsv"
                raise ConfigError(
                    f"{self.file}: {missing}; {cure}. Its columns are: {listed(there)}"
                )

    def _keys(self, path: Path, root: Path) -> list[str]:
        whole = str(real_folder(path.parent) / path.name)
        below = os.path.relpath(whole, self._folder)
        if self._imagefolder:
            return [below]
        return list(dict.fromkeys((path.relative_to(root).as_posix(), below, whole)))


def imagefolder(file: Path, columns: Columns) -> Captions | None:
    """The captions in a file named like `METADATA`; None if it has no column ``file_name``, so is
    something else. Raises ConfigError as `Captions`."""
    head = next(table.rows(file), None)
    if head is None or ("file_name" not in head.cells and (head.cells or not head.trouble)):
        return None
    text, url = ((n if n in head.cells else "") for n in (columns.text, columns.url))
    named = Columns(path="file_name", text=text, url=url, separator=columns.separator)
    return Captions(file, named, imagefolder=True)


def no_text(columns: list[str]) -> str:
    """What to tell a person about columns among which none is the caption."""
    return f"no caption column among: {listed(columns)}; choose one with --text-column"


def listed(columns: list[str]) -> str:
    """The names, a few of them if they are many."""
    more = ["…"] if len(columns) > _SHOWN_COLUMNS else []
    return printable(", ".join(columns[:_SHOWN_COLUMNS] + more))


def _path(cells: Mapping[str, Any], column: str | None) -> str:
    """Raises ValueError where there is none."""
    path = decoded(cells.get(column), column) if column else None
    if isinstance(path, dict):  # Hugging Face's Image
        path = path.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"no path in its column {column or 'path'!r}")
    return path


@lru_cache(maxsize=64)
def _roles(columns: Columns, there: tuple[str, ...]) -> tuple[str | None, str | None, str | None]:
    """The columns with path, text and address. Cached: rows of one file have the same columns."""
    return (
        columns.path or first(PATH_COLUMNS, there),
        columns.text or first(TEXT_COLUMNS, there),
        columns.url or first(URL_COLUMNS, there),
    )


def _key(path: str) -> str:
    """Absolute paths without links to folders, so that they are found by whatever way the source
    is named."""
    whole = Path(os.path.normpath(path))
    return str(real_folder(whole.parent) / whole.name if whole.is_absolute() else whole)
