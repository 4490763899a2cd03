"""Tables and bars: rich, with `shown` in front of every text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box, console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from streamer.terminal import say, shown
from streamer.units import duration, size

LINE_S = 30.0
"""Where no person looks on, a line about what takes long comes so often."""


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


@contextmanager
def reading(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Bytes that were read of ``total``, with rate and time left, on stderr: a bar where a person
    looks at it, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(doing, total).advance
        return
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda n: bar.update(task, advance=n)


class _Lines:
    def __init__(self, doing: str, total: int) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._said < LINE_S:
            return
        self._said = now
        rate = self._done / (now - self._began)
        left = f", {duration((self._total - self._done) / rate)} left" if rate else ""
        say(
            f"{self._doing}: {size(self._done)} of {size(self._total)}, {size(rate)}/s{left}",
            err=True,
        )


def new_table(*names: str) -> Table:
    """Its first column is for words, the others for numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table
