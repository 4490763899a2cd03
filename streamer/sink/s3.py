"""A dataset folder on S3 and what speaks like it (MinIO, Ceph, …).

Reading, listing and removing are `RemoteFolder`'s. Writing goes through botocore, for Arrow's
client can neither send a part of a file again nor copy in parts.
"""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple, cast

from streamer.errors import DependencyError
from streamer.sink.folder import Drain
from streamer.sink.remote import RemoteFolder

PART_BYTES = 8 << 20
"""Of an upload, and what each open file holds in memory; twice as much after every `PARTS` parts,
for S3 takes 10 000 of them."""
PARTS = 1_000
COPY_BYTES = 64 << 20
"""What is larger is copied in parts of so much."""
COPIES = 6
"""Parts of one file that are copied at once."""
LOOK_S = 5.0
SLOWEST_BYTES_PER_S = 1_000_000
"""A store that copies slower than this counts as one that does not answer."""
_SOURCE = "streamer-source"
"""Metadata of a public object: the staged path, with the epoch's uuid, that it was copied from."""
_FULL = ("XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded")


class Clients(NamedTuple):
    """Any thread."""

    reading: Any
    """Arrow's, which tries again by itself: what is read from an open file is the caller's."""
    quick: Any
    """botocore's, as is the next; they try once."""
    looking: Any
    """Waits for an answer for `LOOK_S` at most: for a thread that others wait for."""
    copying: Any
    """Waits for an answer for longer, by as much as the store may take to copy `COPY_BYTES`."""


def connect(options: Mapping[str, Any], reading: Any, elsewhere: bool) -> Clients:
    """Clients beside Arrow's for the options of ``pyarrow.fs.S3FileSystem``. ``elsewhere``: it is
    not Amazon's service. Connects to nothing. Raises ValueError for an endpoint that is none."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import get_session

    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    style = "path" if elsewhere else "auto"
    if options.get("force_virtual_addressing"):
        style = "virtual"

    def client(read_timeout: float) -> Any:
        config = Config(
            connect_timeout=min(options["connect_timeout"], read_timeout), read_timeout=read_timeout, retries={"total_max_attempts": 1},
            max_pool_connections=2 * COPIES, s3={"addressing_style": style},
            # Content-MD5 does it, which every store knows
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
            signature_version=UNSIGNED if options.get("anonymous") else None,
        )  # fmt: skip
        return get_session().create_client(
            "s3", region_name=options["region"], endpoint_url=endpoint, verify=options.get("tls_ca_file_path"),
            aws_access_key_id=options.get("access_key"), aws_secret_access_key=options.get("secret_key"), config=config,
        )  # fmt: skip

    timeout = float(options["request_timeout"])
    copying_s = timeout + COPY_BYTES / SLOWEST_BYTES_PER_S
    return Clients(reading, *map(client, (timeout, min(timeout, LOOK_S), copying_s)))


class S3Folder(RemoteFolder):
    def __init__(self, filesystem: Any, clients: Clients, base: str, uri: str) -> None:
        super().__init__(filesystem, base, uri)
        self._clients = clients
        self._bucket, _, self._prefix = self._base.partition("/")

    def impatient(self) -> S3Folder:
        other = cast(S3Folder, super().impatient())
        other._clients = self._clients._replace(quick=self._clients.looking)
        return other

    def open(self, path: str) -> BinaryIO:
        reading = self._clients.reading
        return self._patiently(
            "open", path, lambda: cast(BinaryIO, reading.open_input_file(self._at(path)))
        )

    def _drain(self, path: str) -> Drain:
        return _Upload(self, path)

    def _size(self, path: str) -> int | None:
        try:
            return int(self.ask("head_object", path)["ContentLength"])
        except FileNotFoundError:
            return None

    def _copy(self, source: str, target: str, size: int) -> None:
        if self._is_copy(source, target, size):
            return  # an earlier try was done, but not answered in time
        if size <= COPY_BYTES:
            self.ask(
                "copy_object", target, client=self._clients.copying, CopySource=self._from(source),
                MetadataDirective="REPLACE", Metadata={_SOURCE: source},
            )  # fmt: skip
        else:
            self._copy_in_parts(source, target, size)

    def _is_copy(self, source: str, target: str, size: int) -> bool:
        try:
            found = self.ask("head_object", target)
        except FileNotFoundError:
            return False
        return bool(found["ContentLength"] == size and found["Metadata"].get(_SOURCE) == source)

    def _copy_in_parts(self, source: str, target: str, size: int) -> None:
        """One try of the whole, several of each part: what a store that is away for a moment has
        copied is not copied again."""
        upload = self.ask("create_multipart_upload", target, Metadata={_SOURCE: source})["UploadId"]

        def part(number: int) -> dict[str, Any]:
            first = (number - 1) * COPY_BYTES
            last = min(first + COPY_BYTES, size) - 1
            answer = self.patiently(
                "upload_part_copy", target, client=self._clients.copying, CopySource=self._from(source),
                CopySourceRange=f"bytes={first}-{last}", UploadId=upload, PartNumber=number,
            )  # fmt: skip
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        try:
            with ThreadPoolExecutor(COPIES, "copy") as pool:
                parts = list(pool.map(part, range(1, -(-size // COPY_BYTES) + 1)))
            self.complete(target, upload, parts, lambda: self._is_copy(source, target, size))
        except (OSError, DependencyError):
            self.give_up(target, upload)
            raise

    def _from(self, source: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(source)}

    def complete(
        self, path: str, upload: str, parts: list[dict[str, Any]], is_there: Callable[[], bool]
    ) -> None:
        """``is_there`` tells whether an earlier try, which was not answered, did it."""
        try:
            self.patiently(
                "complete_multipart_upload", path, client=self._clients.copying,
                UploadId=upload, MultipartUpload={"Parts": parts},
            )  # fmt: skip
        except FileNotFoundError:  # the upload
            if not is_there():
                raise

    def give_up(self, path: str, upload: str) -> None:
        """One try: what is left of an upload only costs room. Does not raise."""
        with suppress(OSError):
            self.ask("abort_multipart_upload", path, UploadId=upload)

    def remove(self, path: str) -> None:
        """With what a killed process had begun to upload there."""
        super().remove(path)
        with suppress(OSError):  # not every store lists them, and not everybody may
            prefix = f"{self._key(path)}/"
            with _translated():
                found = self._clients.quick.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=prefix
                )
            for upload in found.get("Uploads", ()):
                with _translated():
                    self._clients.quick.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    # Requests

    def patiently(self, operation: str, path: str, **arguments: Any) -> Mapping[str, Any]:
        """`ask`, tried again. Raises DependencyError, FileNotFoundError."""
        return self._patiently("write", path, lambda: self.ask(operation, path, **arguments))

    def ask(
        self, operation: str, path: str, client: Any = None, **arguments: Any
    ) -> Mapping[str, Any]:
        """One try. Raises OSError; FileNotFoundError where there is no such object or upload."""
        with _translated():
            do = getattr(client or self._clients.quick, operation)
            answer: Mapping[str, Any] = do(Bucket=self._bucket, Key=self._key(path), **arguments)
            return answer

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path


class _Upload:
    """A small file is one request when it is closed; a larger one an upload in parts, each of which
    is sent again while the store is away."""

    def __init__(self, folder: S3Folder, path: str) -> None:
        self._folder = folder
        self._path = path
        self._part = bytearray()
        self._nbytes = 0
        self._upload = ""
        self._parts: list[dict[str, Any]] = []

    def write(self, data: memoryview) -> int:
        self._part += data
        self._nbytes += len(data)
        if len(self._part) >= PART_BYTES << len(self._parts) // PARTS:
            self._send()
        return len(data)

    def finish(self) -> None:
        if not self._upload:
            self._folder.patiently("put_object", self._path, **_checked(self._part))
            return
        if self._part:
            self._send()
        self._folder.complete(self._path, self._upload, self._parts, self._is_there)

    def abandon(self) -> None:
        if self._upload:
            self._folder.give_up(self._path, self._upload)

    def _send(self) -> None:
        if not self._upload:
            self._upload = self._folder.patiently("create_multipart_upload", self._path)["UploadId"]
        number = len(self._parts) + 1
        answer = self._folder.patiently(
            "upload_part", self._path, UploadId=self._upload, PartNumber=number, **_checked(self._part)
        )  # fmt: skip
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._part = bytearray()

    def _is_there(self) -> bool:
        return self._folder.size(self._path) == self._nbytes


def _checked(data: bytearray) -> dict[str, Any]:
    body = bytes(data)
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    return {"Body": body, "ContentMD5": base64.b64encode(digest).decode()}


@contextmanager
def _translated() -> Iterator[None]:
    """botocore's errors as OSError, spelled as `streamer.sink.trouble` knows them."""
    from botocore import exceptions as problem

    try:
        yield
    except problem.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = f"{str(error).replace(' (reached max retries: 0)', '')} (HTTP status {status})"
        if code in ("NoSuchKey", "NoSuchUpload", "404") and status == 404:
            raise FileNotFoundError(text) from error
        if code in _FULL or status == 507:
            raise OSError(errno.ENOSPC, text) from error
        raise OSError(text) from error
    except (problem.ReadTimeoutError, problem.ConnectTimeoutError) as error:
        raise OSError(errno.ETIMEDOUT, str(error)) from error
    except (
        problem.ConnectionError,
        problem.HTTPClientError,
        problem.CredentialRetrievalError,  # from a service that may be away, too
    ) as error:
        raise OSError(errno.ECONNRESET, str(error)) from error
    except problem.BotoCoreError as error:
        raise OSError(str(error)) from error
