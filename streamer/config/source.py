"""Where the config comes from: the file, then the environment, then ``--set``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from streamer.config.mistake import parse
from streamer.config.root import Config
from streamer.errors import ConfigError
from streamer.redact import hide

ENV_PREFIX = "STREAMER__"


def load(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """The config at ``path``. Raises ConfigError naming every mistake and its place; see `merge`.
    From here on no text shows one of its secrets (`streamer.redact`)."""
    merged = merge(path, overrides, environ)
    return parse(merged.settings, str(path), merged.origins)


@dataclass(frozen=True, slots=True)
class Merged:
    """A config that is not validated."""

    settings: dict[str, Any]
    origins: dict[str, str]
    """Dotted key → what set it, of the keys that are not the file's."""


def merge(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Merged:
    """File, then environment, then ``section.key=value`` overrides. Raises ConfigError for what
    cannot be read or set.

    Values of the latter two are read as YAML, but those of single properties in ``kafka.client``
    are taken as they are written.
    """
    try:
        raw = _load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the config: {error.strerror}. Give its path with -c or STREAMER_CONFIG."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {_place(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the config must be a mapping; see README.md for an example")
    origins = {}
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            keys = name[len(ENV_PREFIX) :].lower().split("__")
            _set(raw, keys, value, name)
            origins[".".join(keys)] = name
    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {re.split('[:{ ]', override)[0]}: write it as section.key=value"
            )
        keys = (
            dotted.split(".", 2) if dotted.startswith("kafka.client.") else dotted.split(".")
        )  # names of properties have dots
        _set(raw, keys, value, f"--set {dotted}")
        origins[dotted] = "--set"
    hide(raw)
    return Merged(raw, origins)


def _set(raw: dict[str, Any], path: list[str], text: str, source: str) -> None:
    at: Any = raw
    section = raw.get(path[0])
    if len(path) > 1 and (
        section is False or section == "off"
    ):  # YAML 1.1 reads a bare `off` as false
        raise ConfigError(f"{source}: {path[0]} is off and has no keys")
    try:
        for key in path[:-1]:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        is_property = path[:-1] == ["kafka", "client"]  # a password may look like any kind of YAML
        at[int(path[-1]) if isinstance(at, list) else path[-1]] = (
            text if is_property else _load(text)
        )
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: cannot be set: not YAML: {_place(error)}") from None
    except IndexError:
        items = f"0 to {len(at) - 1}" if at else "and there are none"
        raise ConfigError(
            f"{source}: cannot be set: the list's items are numbered {items}"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source}: cannot be set: {error}") from None


class _Unique(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: YAML would take the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in seen:
                problem = f"duplicate key {key.value}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return node


def _load(text: str) -> Any:
    """Raises yaml.YAMLError."""
    return yaml.load(text, _Unique)


def _place(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong and where, without the text around it, which may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    said = re.sub(
        r"'[^']*'", lambda quoted: quoted[0] if _GRAMMAR.fullmatch(quoted[0]) else "'…'", said
    )
    return f"{said} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


_GRAMMAR = re.compile(r"'(.|\\.|<.*>)'")
"""What YAML's messages quote of its own grammar; everything else is a name of the file's: an alias,
an anchor, a tag."""
