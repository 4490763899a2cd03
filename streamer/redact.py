"""Secrets: which values are, and how a text loses them on its way out.

Values are made known once, where they come in (`hide`); `mask` takes them out of every text that
leaves the process, whoever wrote it: an error of ours, a line of a library, what a plug-in raised.
User names and passwords in URLs, and signed queries, are found by their form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

_SENSITIVE = re.compile(
    r"passw|passphrase|pwd|secret|token(?!i)|credential|bearer|auth(?!or)|key(?!word)|signature"
    r"|^sasl\.(?!mechanisms?$)",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"passw|passphrase|pwd|secret|token(?!i)|credential|bearer|authorization|basic\.auth"
    r"|oauthbearer\.config|key\.pem|(api|access|account|private|secret)[._-]?key|(^|[._-])key$",
    re.IGNORECASE,
)
"""Fewer: the value of `sasl.username` or `ssl.key.location` need not be shown, but without it other
lines would not say where they are."""
_USER_INFO = re.compile(
    r"""((?:[a-z][a-z0-9+.-]{0,20}:/{1,2}|(?:s3|gs|gcs|abfss?|hdfs|https?):))"""
    r"""([^\s/'"]{1,500}|[^\s/:@'"]{1,100}:(?!\d+[/?#])[^\s@'"]{1,500})@""",
    re.IGNORECASE,
)
"""A scheme, perhaps with a slash too few, and what stands before the @ of the authority, also where
a password has a slash that is not quoted."""
_QUERY = re.compile(
    r"""([?&][^\s=&#'"]{0,60}(?:passw|secret|token|credential|key|sig)[^\s=&#'"]{0,60}=)[^\s&#'"\\]+""",
    re.IGNORECASE,
)
_SHORTEST = 4
"""Of a value that is looked for in texts: shorter ones would blank out words that are no secrets."""

_known: tuple[str, ...] = ()
"""Longest first, in case one holds another."""


def is_sensitive(name: str) -> bool:
    """Whether nobody needs to see the value of the key or property ``name``."""
    return _SENSITIVE.search(name) is not None


def hide(tree: Any, name: str = "") -> None:
    """Keeps the secrets in ``tree`` out of every later text: every text below a key that names a
    secret, and the passwords in URLs. ``name`` is the key that ``tree`` itself stands under. Any
    thread."""
    global _known
    values = {value for value in _secrets(tree, name) if len(value) >= _SHORTEST}
    # As they are, and as texts quote them
    spelt = {
        form
        for value in values
        for form in (
            value,
            repr(value)[1:-1],
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
        )
    }
    _known = tuple(sorted(spelt.union(_known), key=len, reverse=True))


def mask(text: str) -> str:
    """``text`` without the secrets that are known and those of URLs. Valid JSON stays valid."""
    for value in _known:
        text = text.replace(value, HIDDEN)
    if "@" in text:
        text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def redacted(tree: Any, put: Callable[[str], str] = lambda secret: HIDDEN, name: str = "") -> Any:
    """A copy of a tree of JSON with ``put(secret)`` in the place of each text that may be one, by
    the name of its key, and of the user info and signed queries of URLs."""
    if isinstance(tree, Mapping):
        return {
            key: redacted(value, put, name if is_sensitive(name) else str(key))
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redacted(value, put, name) for value in tree]
    if not isinstance(tree, str):
        return tree
    if is_sensitive(name):
        return put(tree)
    plain = _USER_INFO.sub(lambda found: f"{found[1]}{put(found[2])}@", tree)
    return _QUERY.sub(lambda found: f"{found[1]}{put(found[0][len(found[1]) :])}", plain)


def digest(value: Any) -> str:
    """``sha256:`` and 16 hex digits of a value of JSON, in the place of one that is not to be seen:
    a change of it is."""
    text = json.dumps(value, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _secrets(tree: Any, name: str) -> Iterator[str]:
    secret = _SECRET.search(name) is not None
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _secrets(value, name if secret else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _secrets(value, name)
    elif isinstance(tree, str):
        if secret:
            yield tree
        for found in _USER_INFO.finditer(tree):
            password = found[2].partition(":")[2]
            yield from (password, unquote(password))
