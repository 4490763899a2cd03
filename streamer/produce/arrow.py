"""Arrow type checks, and row reading for captions and images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from streamer.produce.caption import PATH_COLUMNS, TEXT_COLUMNS, URL_COLUMNS


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged Parquet file raises."""
    import pyarrow as pa

    return OSError, ValueError, LookupError, OverflowError, MemoryError, pa.ArrowException


def plain(kind: Any) -> Any:
    """The type of the values of a dictionary or an extension type."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def is_string(kind: Any) -> bool:
    import pyarrow as pa

    kind = plain(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_binary(kind: Any) -> bool:
    """Bytes of any length."""
    import pyarrow as pa

    kind = plain(kind)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def is_text(kind: Any) -> bool:
    """Strings, also where Parquet lacks the logical type string."""
    return is_string(kind) or is_binary(kind)


def is_scalar(kind: Any) -> bool:
    import pyarrow as pa

    return not pa.types.is_nested(plain(kind))


def is_image(kind: Any) -> bool:
    """Bytes, or the struct of bytes and path that is Hugging Face's Image."""
    import pyarrow as pa

    kind = plain(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind)
    return is_binary(kind)


def is_texts(kind: Any) -> bool:
    """Strings or lists of strings."""
    return is_text(getattr(plain(kind), "value_type", kind))


def has_bytes(kind: Any) -> bool:
    """Bytes at any depth: no use as metadata."""
    import pyarrow as pa

    kind = plain(kind)
    return (
        is_binary(kind)
        or bool(pa.types.is_fixed_size_binary(kind))
        or any(has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    )


def check_names(schema: Any) -> None:
    """Raises ValueError if two columns have one name: one would be lost."""
    names: list[str] = schema.names
    if len(set(names)) < len(names):
        raise ValueError(f"two columns are called {max(names, key=names.count)!r}")


def readable(schema: Any, named: Collection[str]) -> list[str]:
    """What is read of the columns of captions: those without bytes; bytes that stand for text, by
    their name or because they are ``named``; and of Hugging Face's Image only the path, where no
    other column is the path."""
    usual = {name for name in (*PATH_COLUMNS, *TEXT_COLUMNS, *URL_COLUMNS) if name != "image"}
    has_path = any(name.lower() in PATH_COLUMNS and name.lower() in usual for name in schema.names)
    chosen = []
    for field in schema:
        name = field.name
        known = name in named or name.lower() in usual
        if not has_bytes(field.type) or (is_binary(field.type) and known):
            chosen.append(name)
        elif name in named or (name.lower() == "image" and not has_path):
            chosen += [f"{name}.path"] if is_image(field.type) else []
    return chosen


def rows_of(
    table: Any, columns: Sequence[str], batch_rows: int
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """(cells, "") for each row of a ParquetFile, or ({}, why they cannot be read)."""
    for batch in table.iter_batches(batch_size=batch_rows, columns=list(columns)):
        try:
            rows = [(row, "") for row in batch.to_pylist()]
        except (ValueError, OverflowError):  # text that is not UTF-8, a time beyond Python's years
            rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        yield from rows


def _row(batch: Any) -> tuple[Mapping[str, Any], str]:
    for name in batch.schema.names:
        try:
            batch.column(name).to_pylist()
        except (ValueError, OverflowError) as error:
            return {}, f"the column {name!r} cannot be read: {error}"
    return batch.to_pylist()[0], ""
