"""The way out to people: every line and error of every verb (tables: `streamer.console`).

What is written may come from anybody: a caption, a foreign folder's file names, a broker's words.
`shown` makes it safe, for the log, too (`streamer.ops.logs`): a line stays one line, and no text
steers the terminal or shows a secret. Nothing else in the package prints; ruff sees to it.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from streamer.redact import mask


def shown(text: str) -> str:
    """One line: without secrets, and with what is no printable character (line breaks, escapes,
    marks that turn the direction, lone surrogates) written as JSON does, like ``\\u001b``. So it
    may also be used on JSON."""
    plain = mask(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in plain)


def say(line: str, *, err: bool = False) -> None:
    """Writes one line to standard output, or with ``err`` to standard error."""
    print(shown(line), file=sys.stderr if err else sys.stdout, flush=True)


def tell(value: Any) -> None:
    """Writes one JSON value to standard output, on one line."""
    print(shown(json.dumps(value)), flush=True)


def indented(trace: str) -> str:
    """A traceback, which has several lines: none of them can be taken for a line of ours."""
    return "\n".join(f"  {shown(line)}" for line in mask(trace).splitlines())


def tell_bug(error: BaseException) -> None:
    """Writes the traceback to standard error."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    print(indented(trace), file=sys.stderr, flush=True)
