"""What an error of a remote storage means: whether a later try may succeed, and what a person can
do where it cannot."""

from __future__ import annotations

import errno
import re

_ERRNOS = {
    errno.ECONNREFUSED: "no_connection",
    errno.ECONNRESET: "no_connection",
    errno.ECONNABORTED: "no_connection",
    errno.EPIPE: "no_connection",
    errno.EHOSTUNREACH: "no_connection",
    errno.ENETUNREACH: "no_connection",
    errno.EHOSTDOWN: "no_connection",
    errno.ETIMEDOUT: "timeout",
}
_SIGNS = (
    ("SLOW_DOWN", "throttled"),
    ("SlowDown", "throttled"),
    ("THROTTLING", "throttled"),
    ("Throttling", "throttled"),
    ("TooManyRequests", "throttled"),
    ("RequestLimit", "throttled"),
    ("curlCode: 28", "timeout"),
    ("REQUEST_TIMEOUT", "timeout"),
    ("RequestTimeout", "timeout"),
    ("NETWORK_CONNECTION", "no_connection"),
    ("INTERNAL_FAILURE", "server_error"),
    ("SERVICE_UNAVAILABLE", "server_error"),
    ("OperationAborted", "server_error"),
)
"""How clients spell them: Arrow's for S3 in its texts, botocore in its codes."""
_CERTIFICATES = ("curlCode: 60", "curlCode: 77", "CERTIFICATE_VERIFY_FAILED")
"""Another try meets the same certificate, although it counts as no connection."""
_STATUS = re.compile(r"HTTP status (\d{3})")
_FOR_GOOD = (501, 505, 507)
"""The server will say so again: not implemented, another HTTP, full."""


def cause_of(error: OSError) -> str | None:
    """One of `STORAGE_CAUSES` for what a later try may not meet; None for all else."""
    text = str(error)
    if any(sign in text for sign in _CERTIFICATES):
        return None
    for sign, cause in _SIGNS:
        if sign in text:
            return cause
    if match := _STATUS.search(text):
        return _cause_of_status(int(match[1]))
    return _ERRNOS.get(error.errno or 0)


def _cause_of_status(status: int) -> str | None:
    if status in (429, 503):
        return "throttled"
    if status == 408:
        return "timeout"
    return "server_error" if status >= 500 and status not in _FOR_GOOD else None


FIXES = {
    "NO_SUCH_BUCKET": "create the bucket, or correct output.path",
    "NoSuchBucket": "create the bucket, or correct output.path",
    "ACCESS_DENIED": "let these credentials list, read, write and delete there",
    "AccessDenied": "let these credentials list, read, write and delete there",
    "INVALID_ACCESS_KEY_ID": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this host a role",
    "SIGNATURE_DOES_NOT_MATCH": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SignatureDoesNotMatch": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "curlCode: 60": "name the authority's certificate: tls_ca_file_path in output.path",
    "CERTIFICATE_VERIFY_FAILED": "name the authority's certificate: tls_ca_file_path in output.path",
    "NETWORK_CONNECTION": "check endpoint_override and region in output.path, and the network",
    "Could not connect": "check endpoint_override and region in output.path, and the network",
    "imeout": "raise request_timeout in output.path if the store is only slow",
    "RequestTimeTooSkewed": "set this host's clock (NTP)",
    "REQUEST_TIME_TOO_SKEWED": "set this host's clock (NTP)",
    "HTTP status 403": "check the credentials, and what they may do there",
    "HTTP status 301": "check region in output.path",
    "PermanentRedirect": "check region in output.path",
    "HTTP status 507": "free space there, or point output.path elsewhere",
}
"""What a text contains → what to do."""
