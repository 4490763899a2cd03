"""What the name of a file, or of a member of an archive, says about it."""

from __future__ import annotations

import re

IMAGE_TYPES: dict[str, str] = {
    "avif": "image/avif", "bmp": "image/bmp", "dds": "image/vnd-ms.dds", "dib": "image/bmp", "gif": "image/gif", "heic": "image/heic",
    "heif": "image/heif", "icns": "image/icns", "ico": "image/x-icon", "j2k": "image/j2k", "jfif": "image/jpeg", "jp2": "image/jp2",
    "jpe": "image/jpeg", "jpeg": "image/jpeg", "jpg": "image/jpeg", "jxl": "image/jxl", "mpo": "image/mpo", "pbm": "image/x-portable-bitmap",
    "pgm": "image/x-portable-graymap", "png": "image/png", "pnm": "image/x-portable-anymap", "ppm": "image/x-portable-pixmap",
    "psd": "image/vnd.adobe.photoshop", "qoi": "image/qoi", "svg": "image/svg+xml", "tga": "image/x-tga", "tif": "image/tiff",
    "tiff": "image/tiff", "webp": "image/webp",
}  # fmt: skip
"""File extensions that make a file an image, whatever is in it, and the content type that is sent
with them."""

UNKNOWN_TYPE = "image/*"
"""The consumer sniffs the bytes anyway."""

TEXT_EXTENSIONS = ("txt", "text", "caption")
JSON_EXTENSIONS = ("json",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")

_SYSTEM = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
    "system volume information",
}  # fmt: skip
_EXTENSIONS = re.compile(r"(?:\.[^\W\d_][^.\s]*)+$")


def split(name: str) -> tuple[str, str]:
    """(the name without its last extension, that extension in lower case without the dot);
    ``("a", "")`` if there is none."""
    before, dot, last = name.rpartition(".")
    if not dot or not before or before.endswith("/") or "/" in last:
        return name, ""
    return before, last.lower()


def extension(name: str) -> str:
    return split(name)[1]


def stem(name: str) -> str:
    return split(name)[0]


def base_name(name: str) -> str:
    """The name without any of its extensions: ``0001.left.jpg`` → ``0001``.

    An extension is a dot and a word that begins with a letter, so that the numbers, dates and
    sentences in names stay: ``frame.0001.jpg`` → ``frame.0001``.
    """
    return name[:1] + _EXTENSIONS.sub("", name[1:])


def content_type(name: str) -> str:
    return IMAGE_TYPES.get(extension(name), UNKNOWN_TYPE)


def is_image(name: str) -> bool:
    return extension(name) in IMAGE_TYPES


def is_text(name: str) -> bool:
    return extension(name) in TEXT_EXTENSIONS


def is_json(name: str) -> bool:
    return extension(name) in JSON_EXTENSIONS


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def is_hidden(path: str) -> bool:
    """Whether a name in the path (with slashes) begins with a dot, as ``._a.jpg`` of macOS does, or
    is a system's own, as ``Thumbs.db`` and ``__MACOSX`` are."""
    return any(
        (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM
        for name in path.split("/")
    )


def printable(name: str) -> str:
    """The name as text that can be written as UTF-8: what in it is no character, as \\xNN or
    \\uNNNN."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return name.encode("utf-8", "backslashreplace").decode("utf-8")
