"""Single values of the config as people write them, checked and read: sizes, durations, times,
names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date, datetime, timezone
from typing import Annotated, Any, Literal

import re2
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


_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


_WITH_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+(?:/\d+)?)\]|([^:\[\]]+)):(\d{1,9})")


def split_port(entry: str) -> tuple[str, int | None]:
    """``HOST:PORT``, an entry of ``fetch.hosts`` for http → both; ``[::1]:PORT`` without its
    brackets. The port is None where the entry names none."""
    match = _WITH_PORT.fullmatch(entry)
    return (match[1] or match[2], int(match[3])) if match else (entry, None)


def _host(entry: str) -> str:
    """As it is, unless no reference could ever match it."""
    if entry.startswith("/") or _is_host(entry):
        return entry
    raise ValueError(f"{entry!r} {_why_no_host(entry)}")


def _is_host(entry: str) -> bool:
    name, port = split_port(entry)
    fits = is_network(name) or _NAME.fullmatch(name) is not None
    return fits and (port is None or 0 < port < 65_536)


def is_network(entry: str) -> bool:
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
    return True


def _why_no_host(entry: str) -> str:
    if not entry.isascii():
        try:
            return f"must be written as it stands in a URL: {entry.encode('idna').decode()}"
        except UnicodeError:
            return "is not a host name"
    if re.fullmatch(r"[0-9a-fA-F.:]+/\d+(:\d+)?", entry):
        return "is not a network"
    name = entry.partition("://")[2] or entry
    name = re.sub(r"^[^/]*@|[/?#].*$|\s", "", name).rstrip(".")
    plain = re.sub(r"^\[(.*)\](:\d+)?$|:\d*$", r"\1", name).rstrip(".")
    for better in (name, plain):
        if better != entry and _is_host(better):
            return f"contains more than a host name and a port; write {better}"
    if "*" in entry:
        return "matches nothing: write *.example.com for every name below that one"
    return "is not a host name, an address, a network, a bucket or a folder (which begins with /)"


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text has ``pattern`` anywhere, in time that grows with its length and no faster:
    the pattern is the operator's, the text anybody's. Any thread. Raises ValueError."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        why = error.args[0]
        why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise ValueError(
            f"matches is not a regular expression of RE2 ({why}); it has no lookaround and no backreferences (got {pattern!r})"
        ) from None
    return lambda text: search(text.encode("utf-8", "replace")) is not None


KNOWN_FORMATS = (
    *("jpg", "png", "webp", "gif", "bmp", "tiff", "avif"),
    *("heic", "jxl", "jp2", "psd", "icns", "ico", "dds", "exr", "qoi", "hdr", "sgi", "pdf", "eps"),
    *("svg", "ppm"),
)
"""Every format that an image can be recognised as; the first seven are decoded."""
_ALIASES = {"jpeg": "jpg", "jpe": "jpg", "mpo": "jpg", "tif": "tiff", "heif": "heic"}


def check_format(name: object) -> object:
    """``name``, a format of an image as rows and shards spell it. Raises ValueError."""
    plain = str(name).lower().removeprefix(".")
    known = _ALIASES.get(plain, plain)
    if known not in KNOWN_FORMATS:
        raise ValueError(
            f"{name!r} is not a format of images; known are {', '.join(KNOWN_FORMATS)}"
        )
    if known != name:
        raise ValueError(f"{name!r} is written {known!r}")
    return name


def _formats(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("lists none, so nothing would be accepted")
    for name in names:
        check_format(name)
    return names


def _content_type(name: str) -> str:
    kind = name.partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"image/\S+", kind):
        raise ValueError(f"{name!r} is neither image/… nor application/json")
    return name


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
Formats = Annotated[tuple[str, ...], AfterValidator(_formats)]
ContentType = Annotated[str, AfterValidator(_content_type)]
Start = Annotated[
    Literal["earliest", "latest"] | datetime, BeforeValidator(_start), AfterValidator(_in_a_zone)
]
"""Where a new group begins. A time without a zone is UTC."""
Scalar = Annotated[
    str | int | float | bool,
    must_be("a text, a finite number, true or false"),
    BeforeValidator(_scalar),
]
PluginPath = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"),
    must_be("a class, written as pkg.mod:Class"),
]
Name = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]*$"),
    must_be("a name of a-z, 0-9 and _ that begins with a letter"),
]
DatasetName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,199}$"),
    must_be(
        "a name of a-z, 0-9, '.', '_' and '-', at most 200 characters, a letter or digit first"
    ),
]
TopicName = Annotated[
    str,
    Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$"),
    must_be("a topic's name: letters, digits, '.', '_' and '-', at most 249 characters"),
]
Host = Annotated[str, AfterValidator(_host)]
"""An entry of the allow-list: a name, ``*.NAME``, an address or network, a bucket or a folder."""
Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), must_be("auto, cpu, cuda or cuda:N")
]
