"""Images by reference: ``uri`` → bytes, from listed places only, bounded in bytes, time and number
(section 4.1).

============  ===========================================================================================================
http, https   hosts as in `streamer.decode.address`; at most 3 redirects, each checked like the first URL; no proxies
file          absolute paths below the folders among ``fetch.hosts`` (they begin with "/"), links resolved
s3            ``s3://BUCKET/KEY``, buckets listed in ``fetch.hosts``; credentials, region and endpoint from the usual environment
              (AWS_ACCESS_KEY_ID …, AWS_REGION, AWS_ENDPOINT_URL)
============  ===========================================================================================================

What cannot change is an outcome: not listed, not found (404, 410), refused (other 4xx), too long,
not the bytes that the record names. What can change is tried again, with pauses of 0.2 s doubling
to 5 s (or what Retry-After says): time-outs, lost connections, 408, 425, 429 and 5xx. After
`PATIENCE` time-outs' worth the process stops with exit 75, so that nothing temporary becomes a
decision.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import random
import ssl
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from streamer.config import Fetch
from streamer.decode.address import Hosts
from streamer.decode.download import HttpClient, Response, parse_url
from streamer.errors import DependencyError, InvalidRecord, TemporaryError
from streamer.records import Reference

PATIENCE = 6
"""A reference is tried for ``PATIENCE × fetch.timeout`` before the process stops: 60 s by default."""
MAX_REDIRECTS = 3
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
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
    """Not now, perhaps soon. Never leaves this module."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Fetcher:
    """At most ``config.concurrency`` fetches at a time, on threads of its own that start with the
    first one."""

    def __init__(
        self,
        config: Fetch,
        failed: Callable[[str], None] = lambda cause: None,
        fetched: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``failed`` is told the reason of every fetch that failed for good, and ``temporary`` for
        every try that will be made again.

        ``fetched`` is told the seconds of every fetch that brought its bytes, all its tries
        included.
        """
        self._config = config
        self._failed = failed
        self._fetched = fetched
        self._folders = tuple(
            os.path.realpath(host) for host in config.hosts if host.startswith("/")
        )
        self._hosts = Hosts(host for host in config.hosts if not host.startswith("/"))
        self._client = HttpClient()
        self._closing = threading.Event()
        self._s3: Any = None
        self._s3_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="fetch")
        self._get: dict[str, Callable[[str], bytes]] = {
            "http": self._http,
            "https": self._http,
            "file": self._file,
            "s3": self._object,
        }

    def submit(self, reference: Reference) -> Future[bytes]:
        """`fetch` on one of the fetch threads. Does not block."""
        return self._threads.submit(self.fetch, reference)

    def fetch(self, reference: Reference) -> bytes:
        """The bytes, verified against ``length`` and ``sha256`` where the record gives them.

        Blocks, up to ``PATIENCE × fetch.timeout`` and one more time-out. Raises TemporaryError
        after that, and InvalidRecord: uri_not_allowed, not_found, fetch_refused, too_many_bytes,
        length_mismatch, sha256_mismatch.
        """
        began = time.monotonic()
        try:
            data = self._fetch(reference)
        except InvalidRecord as error:
            self._failed(error.reason)
            raise
        self._fetched(time.monotonic() - began)
        return data

    def close(self) -> None:
        """Ends the pauses between tries, forgets what has not begun. Returns at once; a try on its
        way ends by its own time limit."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _fetch(self, reference: Reference) -> bytes:
        if reference.length is not None:
            self._check_length(reference.length)
        data = self._patiently(reference.uri)
        if reference.length is not None and len(data) != reference.length:
            raise InvalidRecord(
                "length_mismatch", f"{len(data)} bytes, the record says {reference.length}"
            )
        if (
            reference.sha256 is not None
            and (found := hashlib.sha256(data).hexdigest()) != reference.sha256
        ):
            raise InvalidRecord(
                "sha256_mismatch", f"sha256 is {found}, the record says {reference.sha256}"
            )
        return data

    def _patiently(self, uri: str) -> bytes:
        scheme = uri.partition(":")[0].lower()
        if scheme not in self._config.schemes:
            raise InvalidRecord(
                "uri_not_allowed", f"the scheme {scheme[:40]!r} is not listed in fetch.schemes"
            )
        patience_s = PATIENCE * self._config.timeout
        deadline = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._get[scheme](uri)
            except Later as later:
                self._failed("temporary")
                left_s = deadline - time.monotonic()
                wait_s = max(min(pause_s * random.uniform(0.5, 1.0), left_s), later.after_s)
                if left_s <= 0 or wait_s > left_s or self._closing.wait(wait_s):
                    raise TemporaryError(
                        f"cannot fetch {uri[:500]}: {later}. It was tried for {patience_s:g} s ({PATIENCE} × fetch.timeout). Nothing is decided about "
                        "its record: start again when the server answers, or take its host off fetch.hosts to make it invalid."
                    ) from later
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _check_length(self, length: int) -> None:
        if length > self._config.max_bytes:
            raise InvalidRecord(
                "too_many_bytes",
                f"{length} bytes, at most {self._config.max_bytes} (fetch.max_bytes)",
            )

    # http, https

    def _http(self, uri: str) -> bytes:
        deadline = time.monotonic() + self._config.timeout
        url = uri
        for _ in range(1 + MAX_REDIRECTS):
            answer = self._one_get(url, deadline)
            if answer.status in _REDIRECTS and answer.location:
                url = urljoin(url, answer.location)
                if (scheme := url.partition(":")[0].lower()) not in self._config.schemes:
                    raise InvalidRecord(
                        "uri_not_allowed",
                        f"redirected to {url[:200]}; {scheme[:40]!r} is not listed in fetch.schemes",
                    )
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
        try:
            target = parse_url(url)
        except ValueError as error:
            raise InvalidRecord("uri_not_allowed", f"{url[:200]}: {error}") from None
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
            raise Later(f"{type(error).__name__}: {error}") from None

    # file

    def _file(self, uri: str) -> bytes:
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise InvalidRecord("uri_not_allowed", "write a file as file:///absolute/path")
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(folder) for folder in self._folders):
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
                self._check_length(status.st_size)
                data = file.read(self._config.max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidRecord("not_found", str(error.strerror)) from None
        except PermissionError as error:
            raise InvalidRecord("fetch_refused", str(error.strerror)) from None
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise InvalidRecord("not_found", str(error.strerror)) from None
            raise Later(f"{type(error).__name__}: {error}") from None
        self._check_length(len(data))
        return data

    # s3

    def _object(self, uri: str) -> bytes:
        bucket, _, key = uri[len("s3://") :].partition("/")
        if bucket not in self._config.hosts:
            raise InvalidRecord(
                "uri_not_allowed", f"the bucket {bucket[:80]!r} is not listed in fetch.hosts"
            )
        if not key or key.endswith("/"):
            raise InvalidRecord("not_found", "not a key but a folder")
        try:
            with self._bucket_store().open_input_file(f"{bucket}/{key}") as file:
                self._check_length(file.size())
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
            raise Later(f"{type(error).__name__}: {str(error)[:200]}") from None
        self._check_length(len(data))
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
