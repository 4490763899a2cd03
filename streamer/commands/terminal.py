"""What several verbs show on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@contextmanager
def progress(doing: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on stderr, where a person looks at it; it stays away for what is done at once."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(doing, total=total)

        def advance(n: int, of: int | None = None) -> None:
            bar.update(task, advance=n, total=total if of is None else of)

        yield advance


def new_table(*names: str) -> Table:
    """Its first column is for words, the others for numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def size(n: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.4g} TB"
