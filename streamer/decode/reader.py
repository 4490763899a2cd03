"""One try to read what a ``uri`` leads to: from listed places only, bounded in bytes and time.

============  ====================================================================================
http, https   hosts as in `streamer.decode.address`; at most 3 redirects, each checked like the
              first URL; no proxies
file          absolute paths below the folders among ``fetch.hosts`` (they begin with "/"), links
              resolved
s3            ``s3://BUCKET/KEY``, buckets listed in ``fetch.hosts``; credentials, region and
              endpoint from the usual environment (AWS_ACCESS_KEY_ID …, AWS_REGION,
              AWS_ENDPOINT_URL)
============  ====================================================================================

What another try cannot change is an outcome: not listed, no URI, not found (404, 410), refused
(other 4xx), too long. What it can change is `Later`: time-outs, lost connections, 408, 425, 429 and
5xx, and a server that does not speak its protocol.
"""

from __future__ import annotations

import errno
import http.client
import os
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from streamer.config import Fetch
from streamer.decode.address import Hosts
from streamer.decode.download import HttpClient, Response, parse_url
from streamer.errors import DependencyError, InvalidRecord

MAX_REDIRECTS = 3
MAX_URI = 16_384
"""Characters. Web servers take 8 000 to 16 000, file systems 4 096 bytes."""
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY_4XX = (408, 425, 429)


def require_folders(config: Fetch) -> None:
    """Raises DependencyError for an allowed folder that is not there: it may not be mounted yet, and
    every record that refers into it would be invalid for good."""
    for host in config.hosts:
        if host.startswith("/") and "file" in config.schemes and not Path(host).is_dir():
            raise DependencyError(
                f"fetch.hosts: folder {host} does not exist. Mount it or correct the path."
            )


class Later(Exception):
    """Not now, perhaps soon; ``after_s`` is how long the server asks to wait, 0 where it does not
    say."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Reader:
    """Any thread."""

    def __init__(self, config: Fetch) -> None:
        self._config = config
        self._folders = {
            os.path.realpath(host): host for host in config.hosts if host.startswith("/")
        }
        self._hosts = Hosts(host for host in config.hosts if not host.startswith("/"))
        self._client = HttpClient()
        self._s3: Any = None
        self._s3_lock = threading.Lock()
        self._get: dict[str, Callable[[str], bytes]] = {
            "http": self._http,
            "https": self._http,
            "file": self._file,
            "s3": self._object,
        }

    def server(self, uri: str) -> str:
        """What answers for ``uri``, in the words of ``fetch.hosts``: host and port, folder, bucket.
        Does not block. Raises InvalidRecord: uri_not_allowed."""
        scheme = self._scheme(uri)
        with _understood(uri):
            if scheme == "s3":
                return uri[len("s3://") :].partition("/")[0]
            if scheme == "file":
                path = os.path.normpath(unquote(urlsplit(uri).path))
                named = [f for pair in self._folders.items() for f in pair if _is_in(path, f)]
                return max(named, key=len, default="file")
            target = parse_url(uri)
            return f"{target.host}:{target.port}"

    def read(self, uri: str) -> bytes:
        """Blocks for ``fetch.timeout`` at most, and as long as the system's resolver takes, or a
        file.

        Raises Later, and InvalidRecord: uri_not_allowed, not_found, fetch_refused, too_many_bytes.
        """
        scheme = self._scheme(uri)
        with _understood(uri):
            return self._get[scheme](uri)

    def close(self) -> None:
        self._client.close()

    def check_length(self, length: int) -> None:
        """Raises InvalidRecord: too_many_bytes."""
        if length > self._config.max_bytes:
            raise InvalidRecord(
                "too_many_bytes",
                f"{length} bytes, at most {self._config.max_bytes} (fetch.max_bytes)",
            )

    def _scheme(self, uri: str, redirected: str = "") -> str:
        if len(uri) > MAX_URI:
            raise InvalidRecord(
                "uri_not_allowed", f"{redirected}{len(uri)} characters, at most {MAX_URI}"
            )
        scheme = uri.partition(":")[0].lower()
        if scheme not in self._config.schemes:
            raise InvalidRecord(
                "uri_not_allowed",
                f"{redirected}the scheme {scheme[:40]!r} is not listed in fetch.schemes",
            )
        return scheme

    # http, https

    def _http(self, uri: str) -> bytes:
        deadline = time.monotonic() + self._config.timeout
        url = uri
        for _ in range(1 + MAX_REDIRECTS):
            answer = self._one_get(url, deadline)
            if answer.status in _REDIRECTS and answer.location:
                with _understood(f"redirected to {answer.location}"):
                    url = urljoin(url, answer.location)
                self._scheme(url, f"redirected to {url[:100]}: ")
                continue
            if answer.status == 200:
                if answer.body is None:
                    raise InvalidRecord(
                        "too_many_bytes",
                        f"more than {self._config.max_bytes} bytes (fetch.max_bytes)",
                    )
                return answer.body
            if answer.status in (404, 410):
                raise InvalidRecord("not_found", f"status {answer.status}")
            if answer.status >= 500 or answer.status in _TEMPORARY_4XX:
                raise Later(f"status {answer.status}", answer.retry_after_s)
            raise InvalidRecord("fetch_refused", f"status {answer.status}")
        raise InvalidRecord("fetch_refused", f"more than {MAX_REDIRECTS} redirects")

    def _one_get(self, url: str, deadline: float) -> Response:
        with _understood(url):
            target = parse_url(url)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Later("the time limit passed")
        try:
            return self._client.get(
                target,
                lambda: self._hosts.resolve(target.host, target.port),
                self._config.max_bytes,
                left_s,
            )
        except ssl.SSLCertVerificationError as error:
            raise InvalidRecord("fetch_refused", f"{target.host}: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Later(_said_by(error)) from None

    # file

    def _file(self, uri: str) -> bytes:
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise InvalidRecord("uri_not_allowed", "write a file as file:///absolute/path")
        real = os.path.realpath(path)
        folder = next((folder for folder in self._folders if _is_in(real, folder)), None)
        if folder is None:
            raise InvalidRecord(
                "uri_not_allowed", f"{path[:200]} is below none of the folders in fetch.hosts"
            )
        try:
            # the path is free of links now, so O_NOFOLLOW only fails where one was put there
            # meanwhile; a pipe must not block
            handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise InvalidRecord("not_found", "not a file")
                self.check_length(status.st_size)
                data = file.read(self._config.max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if not Path(folder).is_dir():
                raise Later(f"the folder {self._folders[folder]} is not there") from None
            raise InvalidRecord("not_found", str(error.strerror)) from None
        except PermissionError as error:
            raise InvalidRecord("fetch_refused", str(error.strerror)) from None
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise InvalidRecord("not_found", str(error.strerror)) from None
            raise Later(_said_by(error)) from None
        self.check_length(len(data))
        return data

    # s3

    def _object(self, uri: str) -> bytes:
        bucket, _, key = uri[len("s3://") :].partition("/")
        if uri[len("s3:") :][:2] != "//" or bucket not in self._config.hosts:
            raise InvalidRecord(
                "uri_not_allowed", f"the bucket {bucket[:80]!r} is not listed in fetch.hosts"
            )
        if not key or key.endswith("/") or "\0" in key:
            raise InvalidRecord("not_found", "not a key but a folder")
        store = self._bucket_store()
        try:
            with store.open_input_file(f"{bucket}/{key}") as file:
                self.check_length(file.size())
                data: bytes = file.read(self._config.max_bytes + 1)
        except (
            FileNotFoundError,
            IsADirectoryError,
            ValueError,
        ):  # ArrowInvalid is a ValueError: a key with // or such
            raise InvalidRecord("not_found", f"no such key in {bucket}") from None
        except PermissionError as error:
            raise InvalidRecord("fetch_refused", str(error)[:200]) from None
        except OSError as error:
            if "ACCESS_DENIED" in str(error) or "HTTP status 403" in str(error):
                raise InvalidRecord("fetch_refused", str(error)[:200]) from None
            raise Later(_said_by(error)) from None
        self.check_length(len(data))
        return data

    def _bucket_store(self) -> Any:
        with self._s3_lock:
            if self._s3 is None:
                from pyarrow import fs  # late: half a second that only s3 needs

                environment, endpoint = (
                    os.environ,
                    os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
                )
                self._s3 = fs.S3FileSystem(
                    region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
                    endpoint_override=endpoint,
                    connect_timeout=self._config.timeout,
                    request_timeout=self._config.timeout,
                    retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
                )
            return self._s3


def _is_in(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _said_by(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@contextmanager
def _understood(uri: str) -> Iterator[None]:
    """Makes ValueError, which libraries raise for what is no URI, no name and no number, the fault
    of that one reference."""
    try:
        yield
    except ValueError as error:
        raise InvalidRecord("uri_not_allowed", f"{uri[:200]}: {error}") from None
