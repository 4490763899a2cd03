"""Every error a user can meet, and the exit code it ends the process with.

    StreamerError                1   the process cannot go on
    ├── ConfigError              2   a wrong config, plugin, weight file or command line: nothing was started
    │   └── DatasetMismatch      2   the dataset was made with another topic, model, dimension or threshold
    ├── DependencyError          1   broker, topic, storage or a file is missing, wrong or refuses
    │   ├── DiskFull             1   the storage has no room
    │   └── StorageAway         75   the storage does not answer, or asks to be left alone
    ├── PluginError              1   a plugin is broken: it fails for all it is asked about, or gives another shape
    ├── ProtocolError            1   what was read contradicts the invariants; going on could write something wrong
    ├── DeadLetterFuse           1   too many records are invalid: more likely our fault than theirs
    └── TemporaryError          75   fenced, overrun or a dependency is away for now: start again
        ├── Fenced              75   another process runs under this writer's name
        ├── InDoubt             75   whether an epoch is committed is not known
        └── Unfinished          75   stopped before the end that was asked for

    InvalidRecord                    one record cannot be used; never leaves the line (it becomes an outcome)

A message names the place and the fix; the command line prints it as it is, without a traceback.
"""

from __future__ import annotations

from streamer.redact import mask

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TRY_AGAIN = 75


class StreamerError(Exception):
    """The process cannot go on. ``args`` is the whole message for the user, a line each."""

    exit_code = EXIT_FAILED
    args: tuple[str, ...]

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(StreamerError):
    """A wrong config, plugin, weight file or command line, found before anything was started."""

    exit_code = EXIT_USAGE


class DatasetMismatch(ConfigError):
    """The dataset exists and is bound to another topic, model, dimension, threshold or meld
    version."""


class DependencyError(StreamerError):
    """A broker, topic, storage or file is missing, wrongly set up or refuses."""


class DiskFull(DependencyError):
    """The storage has no room, or the quota is used up."""


class StorageAway(DependencyError):
    """The storage refuses connections, times out or is overloaded: what a later try may not meet.

    ``cause`` is one of `STORAGE_CAUSES`; ``given_up``: it was tried again, for long enough.
    """

    exit_code = EXIT_TRY_AGAIN

    def __init__(self, message: str, cause: str, given_up: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.given_up = given_up


STORAGE_CAUSES = ("no_connection", "timeout", "throttled", "server_error")
"""The closed list of causes of `StorageAway`."""


class PluginError(StreamerError):
    """A plugin fails for every image of a batch or every record so far, or returns a wrong type or
    shape."""


class ProtocolError(StreamerError):
    """Logs, offsets or files contradict each other; going on could write something wrong."""


class DeadLetterFuse(StreamerError):
    """The share of invalid records passed ``dead_letters.max_ratio``."""


class TemporaryError(StreamerError):
    """A dependency is away, or a deadline passed: the same command may succeed later."""

    exit_code = EXIT_TRY_AGAIN


class Fenced(TemporaryError):
    """Another process runs under this writer's name, or this one was away for too long."""


class InDoubt(TemporaryError):
    """A transaction took longer than it may: what became of it is not known, until its writer has
    fenced itself and read the commit log."""


class Unfinished(TemporaryError):
    """A run with an end was stopped before it: at ``committed`` of ``end`` offsets; 0 if the end was
    not known yet."""

    def __init__(self, committed: int = 0, end: int = 0) -> None:
        at = f"at {committed} of {end}" if end else "before its end"
        super().__init__(f"stopped {at}, start again to go on")


INVALID_REASONS: dict[str, str] = {
    "empty_value": "the Kafka value is null or has no bytes",
    "unsupported_encoding": "the content-type is neither image/* nor application/json, or the value is in the Confluent wire format",
    "bad_json": "the value is not a JSON object in UTF-8 with the fields of the contract",
    "bad_header": "a header that must be UTF-8 text is not, or the header sha256 or length is malformed",
    "bad_base64": "the field image is not base64",
    "no_image": "the JSON has neither image nor uri",
    "uri_not_allowed": "the reference's scheme, host or port is not on the allow-list (fetch.schemes, fetch.hosts), its address is private, or it is no URI",
    "not_found": "the reference leads to nothing (404, 410, no such file or key)",
    "fetch_refused": "the server refused the reference for good (another 4xx, too many redirects, bad certificate)",
    "unreachable": "the reference failed for fetch.give_up_after (time-outs, 5xx, 429, no connection), while its server answered others or never answered",
    "length_mismatch": "the fetched bytes are not as many as the record says",
    "sha256_mismatch": "the fetched bytes are not the ones the record names",
    "too_many_bytes": "more bytes than decode.max_bytes or fetch.max_bytes, or more text than decode.max_text_bytes or decode.max_metadata_bytes",
    "too_many_pixels": "more pixels than decode.max_pixels, in the image or in a tile or frame of it",
    "too_costly": "the image has few enough pixels, but would take a decoder too long: too many scans, for example",
    "not_an_image": "no decoder knows these bytes",
    "zero_size": "the image has no width or no height",
    "truncated": "the image ends too early",
    "corrupt": "the decoder found an error in the image",
    "unsupported_image": "the decoder does not support this kind of image",
    "decoder_failed": "the embedder's own transform() or decode() raised, or gave no (height, width, 3) uint8 array like the others'",
    "embedder_failed": "the embedder's embed() raised for this image, also alone",
    "head_failed": "a head's score() raised for this image's vector, also alone",
    "embedding_not_finite": "the model gave NaN, infinity or a zero vector for this image",
    "crashed": "processes crashed again and again while this record was the only one in the line, or its decoding took longer than decode.timeout more than once",
    "withdrawn": "its claim was won earlier, but its image can no longer be had (see the claim log's withdraw entries)",
}
"""The closed list of reasons of ``outcome = invalid``; docs/reference.md is checked against it."""
DEAD_LINKS = frozenset(("not_found", "unreachable"))
"""Reasons that say nothing about us: some references are dead wherever they come from."""


DETAIL_CHARACTERS = 300
"""A detail may quote the record, which may hold anything."""


class InvalidRecord(Exception):
    """One record cannot be used. ``reason`` is a key of `INVALID_REASONS`; ``detail``, a few words
    for the row and the dead letter, is cut to `DETAIL_CHARACTERS` and made valid Unicode, without
    secrets: it may quote what a plug-in raised."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in INVALID_REASONS, f"this is a bug: {reason!r} is not in INVALID_REASONS"
        plain = mask(detail[: 10 * DETAIL_CHARACTERS])[:DETAIL_CHARACTERS]
        detail = plain.encode("utf-8", "replace").decode()
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
