"""Captions from one file for a whole folder: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError
from streamer.produce.entry import (
    PATH_COLUMNS,
    TEXT_COLUMNS,
    URL_COLUMNS,
    Caption,
    Columns,
    caption_of,
    first,
)


class Captions:
    """path → `Caption`. Paths are relative to the source, or to the folder of the captions file."""

    def __init__(self, file: Path, columns: Columns) -> None:
        """Reads the whole file; its texts stay in memory. Raises ConfigError naming the file and
        what is wrong in it."""
        self.file = file
        self._folder = file.parent
        self._captions: dict[str, Caption] = {}
        self._unused: set[str] = set()
        path_column = text_column = url_column = ""
        for number, row in enumerate(_rows(file), 1):
            if number == 1:
                path_column = _choose(file, row, columns.path, PATH_COLUMNS, "--path-column")
                text_column = _choose(file, row, columns.text, TEXT_COLUMNS, "--text-column")
                url_column = columns.url or first(URL_COLUMNS, row) or ""
            path = row.get(path_column)
            if not isinstance(path, str) or not path:
                raise ConfigError(f"{file}: row {number} has no path in its column {path_column!r}")
            key = os.path.normpath(path)
            self._captions[key] = caption_of(
                row, text_column, url_column or None, columns.separator, frozenset((path_column,))
            )
        self._unused.update(self._captions)

    def take(self, relative: str, path: Path) -> Caption:
        """The caption of the file at ``path``, ``relative`` to its source; an empty one if there is
        none."""
        for key in (relative, os.path.relpath(path, self._folder)):
            found = self._captions.get(key)
            if found is not None:
                self._unused.discard(key)
                return found
        return Caption()

    def unused(self) -> list[str]:
        """Paths that no file of the source has asked for."""
        return sorted(self._unused)


def _choose(
    file: Path, row: Mapping[str, Any], named: str, usual: tuple[str, ...], option: str
) -> str:
    chosen = named or first(usual, row)
    if chosen is None or chosen not in row:
        missing = (
            f"there is no column {chosen!r}"
            if chosen
            else f"none of its columns is called {', '.join(usual)}"
        )
        raise ConfigError(
            f"{file}: {missing}; name one with {option}. Its columns are: {', '.join(map(str, row))}"
        )
    return chosen


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    kind = file.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
            with file.open(encoding="utf-8-sig", newline="") as lines:
                # Tab-separated captions are not quoted in practice: a caption may begin with a
                # quotation mark.
                yield from (
                    csv.DictReader(lines, dialect="excel")
                    if kind == ".csv"
                    else csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                )
        elif kind in (".jsonl", ".ndjson"):
            with file.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ConfigError(f"{file}: line {number} is not a JSON object")
                        yield row
        elif kind == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=1024):
                    yield from batch.to_pylist()
        else:
            raise ConfigError(f"{file}: captions come as .csv, .tsv, .jsonl or .parquet")
    except (
        OSError,
        ValueError,
        csv.Error,
    ) as error:  # ArrowInvalid, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{file}: the captions cannot be read: {error}") from None
