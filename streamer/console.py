"""Tables and bars: rich, with `shown` in front of every text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box, console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from streamer.terminal import shown


class Console(console.Console):
    """Texts are taken as they are: no markup, no emoji codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"soft_wrap": True, "highlight": False, "markup": False, "emoji": False, **options}
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """What every text goes through, of a line as of a table's cell."""
        return super().render_str(shown(text), **options)


@contextmanager
def progress(doing: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on stderr, where a person looks at it; it stays away for what is done at once."""
    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(doing, total=total)

        def advance(n: int, of: int | None = None) -> None:
            bar.update(task, advance=n, total=total if of is None else of)

        yield advance


def new_table(*names: str) -> Table:
    """Its first column is for words, the others for numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table
