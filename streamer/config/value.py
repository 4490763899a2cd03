"""Single values of the config as people write them, checked and read: sizes, durations, times,
names."""

from __future__ import annotations

from datetime import date, datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from streamer.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


def must_be(what: str) -> WrapValidator:
    """One error that names what is taken, in place of what pydantic says of patterns and of every
    type of a union."""

    def check(value: Any, types: ValidatorFunctionWrapHandler) -> Any:
        try:
            return types(value)
        except ValidationError:
            raise ValueError(f"must be {what} (got {value!r})") from None

    return WrapValidator(check)


# Checked before the types of a union are tried: one mistake, one error.


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{value!r} is neither a text, a number nor true or false")
    return value


def _start(value: Any) -> Any:
    if value in ("earliest", "latest") or isinstance(
        value, date
    ):  # YAML makes dates and times of what looks like one
        return value
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        raise ValueError(
            f"{value!r} is neither earliest, latest nor a time like 2026-01-31T12:00:00Z"
        ) from None


def _in_a_zone(value: str | datetime) -> str | datetime:
    return (
        value.replace(tzinfo=timezone.utc)
        if isinstance(value, datetime) and value.tzinfo is None
        else value
    )


_SIZE_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": SIZE_PATTERN}]}
)
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})

Size = Annotated[int, BeforeValidator(parse_size), _SIZE_SCHEMA]
Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(gt=0),
    PlainSerializer(_duration),
    _DURATION_SCHEMA,
]
Start = Annotated[
    Literal["earliest", "latest"] | datetime, BeforeValidator(_start), AfterValidator(_in_a_zone)
]
"""Where a new group begins. A time without a zone is UTC."""
Scalar = Annotated[
    str | int | float | bool,
    must_be("a text, a finite number, true or false"),
    BeforeValidator(_scalar),
]
PluginPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), must_be("auto, cpu, cuda or cuda:N")
]
