"""Rows of a captions file: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from streamer.errors import ConfigError
from streamer.produce.arrow import check_names, damage, readable, rows_of
from streamer.produce.file import check_regular
from streamer.produce.sidecar import clear_cells, encoding, json_object

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Row(NamedTuple):
    where: str
    """"row 3" or "line 3", counted from 1."""
    cells: Mapping[str, Any]
    trouble: str
    """Why the cells are not to be used, a sentence that begins with ``where``; empty if they are."""
    is_shifted: bool = False
    """The cells may stand in wrong columns."""


def rows(file: Path, named: Collection[str] = ()) -> Iterator[Row]:
    """A few rows are in memory at a time; ``named``: columns that are read even if they are bytes.
    Raises ConfigError naming the file if it cannot be read any further."""
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise ConfigError(f"{file}: captions come as .csv, .tsv, .jsonl or .parquet")
    try:
        check_regular(file)
        if kind == ".parquet":
            yield from _parquet(file, named)
            return
        with file.open("rb") as begin:
            code = encoding(begin.read(4))
        with file.open(encoding=code, errors="surrogateescape", newline="") as lines:
            yield from _json_lines(lines) if "json" in kind else _separated(lines, kind == ".tsv")
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{file}: the captions cannot be read: {error}") from None


def _separated(lines: IO[str], tabs: bool) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Tab-separated captions are not quoted in practice: a caption may begin with a quotation mark.
    reader = (
        csv.reader(_utf8(lines), delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.reader(_utf8(lines), skipinitialspace=True, strict=True)
    )
    number = 0
    header: list[str] = []
    try:
        names = next(reader, [])
        header = [name.strip() or f"unnamed_{i}" for i, name in enumerate(names, 1)]
        if twice := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"two columns are called {twice[0]!r}")
        for cells in reader:
            if not cells:
                continue
            number += 1
            trouble = ""
            if len(cells) > len(header):
                trouble = (
                    f"row {number} has {len(cells)} cells, but the header has {len(header)} (line "
                    f"{reader.line_num}): {_cure(tabs)}"
                )
            row = dict(zip(header, cells, strict=False))
            yield Row(f"row {number}", row, trouble, is_shifted=bool(trouble))
    except csv.Error as error:
        where = f"row {number + 1}"
        yield Row(where, {}, f"{where} (to line {reader.line_num}): {error}; {_cure(tabs)}")


def _cure(tabs: bool) -> str:
    return (
        "a cell cannot contain a tab; save the captions as .jsonl"
        if tabs
        else "quote any cell that contains a comma or a quotation mark, and double the quotation marks "
        "in it"
    )


def _json_lines(lines: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        where = f"line {number}"
        if line.strip():
            try:
                yield Row(where, json_object(_checked(line, number), where), "")
            except ValueError as error:
                yield Row(where, clear_cells(line), str(error))


def _parquet(file: Path, named: Collection[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            check_names(table.schema_arrow)
            columns = readable(table.schema_arrow, named)
            for number, (row, trouble) in enumerate(rows_of(table, columns, 1024), 1):
                yield Row(f"row {number}", row, trouble and f"row {number}: {trouble}")
    except damage() as error:
        raise ValueError(str(error)) from None


def _utf8(lines: IO[str]) -> Iterator[str]:
    return (_checked(line, number) for number, line in enumerate(lines, 1))


def _checked(line: str, number: int) -> str:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise ValueError(f"line {number} is not UTF-8") from None
    return line
