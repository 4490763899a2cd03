"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from streamer.config import Config, load


def with_config(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``-c`` and ``--set``; the function receives ``path`` and ``overrides``, for `read_config`."""
    function = click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Overrides one key of the config.")(function)
    return click.option(
        "-c", "--config", "path", envvar="STREAMER_CONFIG", required=True, metavar="FILE", help="The config (or STREAMER_CONFIG)."
    )(function)


def read_config(path: str, overrides: tuple[str, ...]) -> Config:
    """Raises ConfigError."""
    return load(path, overrides)
