"""How much a record may hold beside its image, and what it weighs: the bytes that it takes in memory
from the poll to the row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from streamer.config import Decode
from streamer.errors import InvalidRecord
from streamer.records import Facts, Headers, Record

_HEADER_BYTES = 100
"""What a header takes beside its name and value."""
_LEAST_BYTES = 40
"""What a JSON value counts for at least, where there is a limit on all together."""
_VALUE_BYTES = 150
"""What a key or a value of JSON takes as an object of Python, at most."""
_BLANKS = b"\0 \t\r\n\xef\xbb\xbf\xff\xfe"
"""What may stand before a JSON object: white space and the marks of UTF-8, -16 and -32."""


class Limits(NamedTuple):
    """In bytes."""

    json: int
    """of a JSON value"""
    text: int
    """of a caption, and of one header or field"""
    metadata: int
    """of all headers, and of a JSON value without its image"""

    @classmethod
    def of(cls, decode: Decode) -> Limits:
        """An image of ``decode.max_bytes`` fits into a JSON value as base64."""
        json = decode.max_bytes * 4 // 3 + decode.max_metadata_bytes
        return cls(json, decode.max_text_bytes, decode.max_metadata_bytes)

    def check_headers(self, headers: Headers) -> None:
        """Raises InvalidRecord, too_many_bytes."""
        nbytes = headers_bytes(headers)
        if nbytes <= min(self.text, self.metadata):  # then so is each of them
            return
        for name, value in headers:
            self.check_text(f"the header {name[:40]!r}", len(value or b""))
        self._check(nbytes, self.metadata, "of headers", "metadata")

    def check_text(self, what: str, nbytes: int) -> None:
        """Raises InvalidRecord, too_many_bytes."""
        self._check(nbytes, self.text, f"in {what}", "text")

    def check_value(self, value: bytes) -> None:
        """A JSON value before it is parsed. Raises InvalidRecord, too_many_bytes."""
        if len(value) > self.json:
            raise InvalidRecord(
                "too_many_bytes", f"{len(value)} bytes of JSON, at most {self.json}"
            )
        self._check(
            _values(value) * _LEAST_BYTES,
            self.metadata,
            "of keys and values in the JSON",
            "metadata",
        )

    def check_body(self, value: bytes, fields: Mapping[str, Any], image: Any) -> None:
        """A JSON value after it is parsed. Raises InvalidRecord, too_many_bytes."""
        for name, field in fields.items():
            if isinstance(field, str):
                self.check_text(name, utf8_bytes(field))
        rest = len(value) - (len(image) if isinstance(image, str) else 0)
        self._check(rest, self.metadata, "of JSON beside the image", "metadata")

    def _check(self, nbytes: int, limit: int, what: str, option: str) -> None:
        if nbytes > limit:
            raise InvalidRecord(
                "too_many_bytes",
                f"{nbytes} bytes {what}, at most {limit} (decode.max_{option}_bytes)",
            )


def within(headers: Headers, limits: Limits) -> Iterator[tuple[str, bytes | None]]:
    """The headers that are within the limits, from the first one on."""
    left = limits.metadata
    for name, value in headers:
        nbytes = headers_bytes([(name, value)])
        if len(value or b"") <= limits.text and nbytes <= left:
            left -= nbytes
            yield name, value


def weight(record: Record, facts: Facts | None = None) -> int:
    """The bytes that a record takes: those of Kafka, its headers and JSON once more as objects, and,
    once they are known, those of its image elsewhere."""
    value = record.value
    nbytes = 2 * headers_bytes(record.headers)
    if value is not None:
        nbytes += len(value)
        if value[:8].lstrip(_BLANKS)[:1] in (b"", b"{"):
            nbytes += len(value) + _VALUE_BYTES * _values(value)
    if facts is not None and facts.data is not None and facts.data is not value:
        nbytes += len(facts.data)
    return nbytes


def headers_bytes(headers: Headers) -> int:
    return sum(len(name) + len(value or b"") + _HEADER_BYTES for name, value in headers)


def utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _values(value: bytes) -> int:
    """Keys and values of JSON, at most."""
    return value.count(b",") + value.count(b"[") + value.count(b"{") + value.count(b":")
