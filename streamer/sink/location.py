"""From ``output.path`` to a folder: a local path, ``s3://…``, or any other URI that ``pyarrow.fs``
knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from streamer.errors import ConfigError, DependencyError
from streamer.sink.folder import Folder
from streamer.sink.local import LocalFolder
from streamer.sink.remote import RemoteFolder

_URI = re.compile(r"[a-z][a-z0-9+.-]*://")
_HALF_A_URI = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs|file|https?):/?(?!/)")
_S3_TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_S3_SWITCHES = ("allow_bucket_creation", "anonymous", "force_virtual_addressing")
_S3_SECONDS = {"connect_timeout": 10.0, "request_timeout": 30.0}
"""With their defaults; ``request_timeout`` ends a connection on which nothing moves. Three attempts
are made."""


def open_folder(path: str, *below: str, setting: str = "output.path") -> Folder:
    """The folder at ``path``/``below``…, which need not exist. Raises ConfigError for a URI that
    says nothing we know; ``setting`` is the key of the config that its message names.

    May ask S3 for the bucket's region, and then raise DependencyError.
    """
    try:
        folder = _open(path, below)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None
    folder.setting = setting
    return folder


def _open(path: str, below: tuple[str, ...]) -> Folder:
    if half := _HALF_A_URI.match(path):
        raise ConfigError(f"{path!r} is not a URI; write {half[1]}://… (or ./{path} for a folder)")
    if not _URI.match(path):
        return LocalFolder(Path(path).expanduser().absolute().joinpath(*below))
    parts = urlsplit(path)
    if parts.scheme == "file":
        return LocalFolder(Path(unquote(parts.path)).joinpath(*below))
    query = f"?{parts.query}" if parts.query else ""
    host = parts.netloc.rpartition("@")[2]
    uri = "/".join([f"{parts.scheme}://{host}{parts.path.rstrip('/')}", *below]) + query
    filesystem, base = _s3(path) if parts.scheme == "s3" else _any(path)
    return RemoteFolder(filesystem, "/".join([base.rstrip("/"), *below]), uri)


def _any(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        filesystem, base = fs.FileSystem.from_uri(path)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"{path.partition('?')[0]} is no path and no URI that pyarrow can open: {error}"
        ) from None
    return filesystem, str(base)


def _s3(path: str) -> tuple[Any, str]:
    """Not ``from_uri``: that cannot set time-outs, and queues uploads without a bound in memory."""
    from pyarrow import fs

    parts = urlsplit(path)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = (*_S3_TEXTS, *_S3_SWITCHES, *_S3_SECONDS)
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"s3:// does not know {unknown[0]!r}; known are {', '.join(known)}")
    if not parts.hostname:
        raise ConfigError("s3:// needs a bucket, as in s3://bucket/prefix")
    options: dict[str, Any] = {name: given[name] for name in _S3_TEXTS if name in given}
    options |= {
        name: given[name].lower() in ("1", "true", "yes") for name in _S3_SWITCHES if name in given
    }
    try:
        options |= {name: float(given.get(name, default)) for name, default in _S3_SECONDS.items()}
    except ValueError as error:
        raise ConfigError(f"connect_timeout and request_timeout are seconds: {error}") from None
    if parts.username:
        options |= {
            "access_key": unquote(parts.username),
            "secret_key": unquote(parts.password or ""),
        }
    bucket = parts.netloc.rpartition("@")[2]
    elsewhere = "endpoint_override" in given or any(
        n in os.environ for n in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    )
    if "region" not in given and not elsewhere:
        try:
            options["region"] = fs.resolve_s3_region(bucket)
        except OSError as error:
            raise DependencyError(
                f"cannot find the region of bucket {bucket}: {error}. The fix: name it, as in ?region=eu-west-1."
            ) from error
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=3)
    try:
        filesystem = fs.S3FileSystem(
            background_writes=False, allow_delayed_open=True, retry_strategy=retries, **options
        )
    except ValueError as error:
        raise ConfigError(f"s3:// options do not fit together: {error}") from None
    return filesystem, f"{bucket}{unquote(parts.path)}"
