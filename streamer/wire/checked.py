"""JSON with its format and a checksum: for files that a start can do without, and must not use when
they are damaged or of another version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


class Unusable(Exception):
    """A start must not use this. ``str(error)`` says why; it never leaves the process: a log of
    Kafka's has all of it."""


def encode(body: Mapping[str, Any], version: int) -> bytes:
    """Pure."""
    whole = {"format": version, **body}
    return json.dumps({**whole, "checksum": _checksum(whole)}, indent=1).encode()


def decode(data: bytes, version: int, what: str) -> dict[str, Any]:
    """The inverse of `encode`. Pure. Raises Unusable; its message begins with ``what``."""
    try:
        body: dict[str, Any] = json.loads(data)
        checksum, found = body.pop("checksum"), body["format"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Unusable(f"{what} cannot be read ({type(error).__name__})") from None
    if checksum != _checksum(body):
        raise Unusable(f"{what} is damaged: the checksum differs")
    if found != version:
        raise Unusable(f"its format is {found}, this streamer reads {version}")
    del body["format"]
    return body


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
