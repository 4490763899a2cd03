"""From ``output.path`` to a folder: a local path, ``s3://…``, or any other URI that ``pyarrow.fs``
knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from streamer.errors import ConfigError, DependencyError, StorageAway
from streamer.sink.folder import Folder
from streamer.sink.local import LocalFolder
from streamer.sink.patience import BRIEFLY, Patience
from streamer.sink.remote import RemoteFolder
from streamer.sink.s3 import Clients, S3Folder, connect
from streamer.sink.trouble import cause_of

_URI = re.compile(r"[a-z][a-z0-9+.-]*://")
_HALF_A_URI = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs|file|https?):/?(?!/)")
_S3_TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_S3_SWITCHES = ("allow_bucket_creation", "anonymous", "force_virtual_addressing")
_S3_SECONDS = {"connect_timeout": 10.0, "request_timeout": 30.0}
"""With their defaults; ``request_timeout`` ends a connection on which nothing moves."""
READ_ATTEMPTS = 3
"""Of Arrow's client, for bytes of a file that is open for reading; all else is tried once there,
and again by `Patience`."""


def open_folder(
    path: str, *below: str, setting: str = "output.path", patience: Patience = BRIEFLY
) -> Folder:
    """The folder at ``path``/``below``…, which need not exist. Raises ConfigError for a URI that
    says nothing we know; ``setting`` is the key of the config that its message names.

    May ask S3 for the bucket's region, and then raise DependencyError.
    """
    try:
        folder = _open(path, below, patience)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None
    folder.setting = setting
    folder.patience = patience
    return folder


def _open(path: str, below: tuple[str, ...], patience: Patience) -> Folder:
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
    if parts.scheme == "s3":
        filesystem, clients, base = _s3(path, patience)
        return S3Folder(filesystem, clients, "/".join([base.rstrip("/"), *below]), uri)
    filesystem, base = _any(path)
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


def _s3(path: str, patience: Patience) -> tuple[Any, Clients, str]:
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
        options["region"] = patience.call(lambda: _region(bucket))
    try:
        filesystem, reading = (
            fs.S3FileSystem(
                background_writes=False,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
                **options,
            )
            for attempts in (1, READ_ATTEMPTS)
        )
        clients = connect({**options, "region": filesystem.region}, reading, elsewhere)
    except ValueError as error:
        raise ConfigError(f"s3:// options do not fit together: {error}") from None
    return filesystem, clients, f"{bucket}{unquote(parts.path)}"


def _region(bucket: str) -> str:
    from pyarrow import fs

    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError as error:
        text = f"cannot find the region of bucket {bucket}: {error}. The fix: name it, as in ?region=eu-west-1."
        if (cause := cause_of(error)) is None:
            raise DependencyError(text) from error
        raise StorageAway(text, cause) from error
