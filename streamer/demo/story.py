"""What the demo tells while it works, on standard error: a live line per step on a terminal, plain
lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from streamer.console import Console

_EVERY_S = 5.0
"""Without a terminal, a step that goes on says where it is so often."""


class Step:
    """One thing being done. ``outcome`` is what stays on the screen after it."""

    def __init__(self, story: Story, doing: str, total: int) -> None:
        self.outcome = doing
        self._story = story
        self._total = total
        self._began = self._told = time.monotonic()
        self._task = (
            story._progress.add_task(doing, total=total or None, count="")
            if story._live
            else TaskID(0)
        )

    def at(self, done: int, doing: str) -> None:
        """``done`` of the total, and what goes on just now."""
        count = f"{done} of {self._total}" if self._total else str(done)
        if self._story._live:
            self._story._progress.update(self._task, completed=done, description=doing, count=count)
        elif time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            self._story.say(f"… {doing}: {count}")

    def _end(self, ok: bool) -> None:
        if self._story._live:
            self._story._progress.remove_task(self._task)
        seconds = time.monotonic() - self._began
        self._story.say(
            f"{'✓' if ok else '✗'} {self.outcome} ({seconds:.1f} s)", "" if ok else "red"
        )


class Story:
    """Open it with ``with``; one thread."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = self.console.is_terminal
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
            console=self.console, transient=True,
        )  # fmt: skip

    def __enter__(self) -> Story:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def say(self, line: str, style: str = "") -> None:
        self.console.print(line, style=style)

    @contextmanager
    def step(self, doing: str, total: int = 0) -> Iterator[Step]:
        """Shows the body's work; it sets ``outcome``. ``total`` 0: not known."""
        step = Step(self, doing, total)
        ok = False
        try:
            yield step
            ok = True
        finally:
            step._end(ok)
