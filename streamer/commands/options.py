"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from streamer.config import Config, load
from streamer.errors import ConfigError


def with_config(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``-c`` and ``--set``; the function receives ``path`` and ``overrides``, for
    `read_config`."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="a.b=c",
        help="Overrides one key of the config.",
    )(function)
    return click.option(
        "-c",
        "--config",
        "path",
        envvar="STREAMER_CONFIG",
        required=True,
        metavar="FILE",
        help="The config (or STREAMER_CONFIG).",
    )(function)


def read_config(path: str, overrides: tuple[str, ...]) -> Config:
    """Raises ConfigError, also where the package lacks what every replica needs."""
    require_faiss()
    return load(path, overrides)


def require_faiss() -> None:
    """Raises ConfigError where the package was installed without the extra that brings it."""
    if find_spec("faiss") is None:
        raise ConfigError(
            "Faiss is not installed; it comes with the extra cpu or gpu: pip install -c constraints/cpu.txt '.[cpu]' (README.md)"
        )
