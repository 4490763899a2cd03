"""A mapping → the config, or one line for each mistake in it, which names the path and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from streamer.config.kind import (
    EMBEDDERS,
    HEADS,
    AestheticHead,
    CustomEmbedder,
    CustomHead,
    CustomRule,
    FieldRule,
    LinearHeadConfig,
    MlpHeadConfig,
    NsfwHead,
    TimmEmbedder,
)
from streamer.config.root import Config
from streamer.config.section import (
    BatchConfig,
    DeadLetters,
    Decode,
    Dedup,
    Fetch,
    Http,
    Kafka,
    Output,
)
from streamer.errors import ConfigError
from streamer.redact import HIDDEN, is_sensitive, redacted


def parse(raw: Mapping[str, Any], where: str = "config", origins: Mapping[str, str] = {}) -> Config:
    """Validates a mapping. Raises ConfigError: one line per mistake, ``WHERE: path.to.key: what is
    wrong; the fix``. ``origins``: dotted keys that something else than ``where`` set, and what."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        mistakes = error.errors()
        misspelt = {
            (*e["loc"][:-1], _closest(e["loc"])) for e in mistakes if e["type"] == "extra_forbidden"
        }
        told = [e for e in mistakes if e["type"] != "missing" or e["loc"] not in misspelt]
        raise ConfigError(
            *(f"{_origin(e, origins) or where}: {_explain(e)}" for e in told)
        ) from None


def _origin(error: Any, origins: Mapping[str, str]) -> str:
    """What set the key that is wrong, or a section or item that it is in; empty if the file did."""
    path = _path(error["loc"])
    names = [name for name in origins if path == name or path.startswith(f"{name}.")]
    return origins[max(names, key=len)] if names else ""


_TAG_AT = {"embedder": 1, "heads": 2, "filters": 2}
"""Where in an error's location pydantic names the kind that `type` chose, which is no key of the
file."""


def _path(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for i, part in enumerate(loc) if i != _TAG_AT.get(loc[0]))


def _explain(error: Any) -> str:
    loc, path = error["loc"], _path(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = _closest(loc)
        message = (
            f"unknown key; did you mean {close!r}?"
            if close
            else f"unknown key; known here are {', '.join(_known(loc))}"
        )
    elif error["type"] == "missing":
        message = "is missing; add it"
    elif error["type"] == "union_tag_not_found":
        path, message = f"{path}.type", _unknown_type(error)
    elif error["type"] != "value_error":
        name = str(loc[-1]) if loc else ""
        got = HIDDEN if name == "args" else redacted(error["input"], name=name)
        message = f"{message} (got {got!r})"
    if loc[:2] == ("kafka", "client") and (len(loc) == 2 or is_sensitive(str(loc[2]))):
        message = f"must be {'properties and their values' if len(loc) == 2 else 'a text, a number, true or false'} (got {HIDDEN})"
    return f"{path}: {message}" if path else message


def _unknown_type(error: Any) -> str:
    kinds = EMBEDDERS if error["loc"][0] == "embedder" else HEADS
    kind = error["input"].get("type") if isinstance(error["input"], Mapping) else None
    close = difflib.get_close_matches(str(kind), kinds, n=1)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"use one of {', '.join(kinds)}, or pkg.mod:Class"
    )
    return f"is missing; {hint}" if kind is None else f"unknown type {kind!r}; {hint}"


def _closest(loc: tuple[Any, ...]) -> str:
    """The nearest known key; empty if none is near."""
    return next(iter(difflib.get_close_matches(str(loc[-1]), _known(loc), n=1)), "")


def _known(loc: tuple[Any, ...]) -> list[str]:
    """The keys that may stand where the error's last one does, found by walking the schema along
    its path."""
    section: type[BaseModel] | None = Config
    custom: dict[str, type[BaseModel]] = {"embedder": CustomEmbedder, "filters": CustomRule}
    sections: dict[str, type[BaseModel]] = {
        "kafka": Kafka, "fetch": Fetch, "decode": Decode, "dedup": Dedup, "output": Output, "batch": BatchConfig,
        "dead_letters": DeadLetters, "http": Http, "timm": TimmEmbedder, "aesthetic": AestheticHead, "nsfw": NsfwHead,
        "linear": LinearHeadConfig, "mlp": MlpHeadConfig, "custom": custom.get(str(loc[0]), CustomHead), "field": FieldRule,
    }  # fmt: skip
    for part in loc[:-1]:
        section = sections.get(str(part), section)
    return [f.alias or n for n, f in section.model_fields.items()] if section else []
