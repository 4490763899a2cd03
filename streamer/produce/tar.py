"""WebDataset tars: members that share a name up to the first dot are one sample."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamer.produce.entry import (
    Caption,
    Entry,
    Unsendable,
    extension,
    is_image,
    item,
    printable,
    too_big,
)
from streamer.produce.folder import json_caption, text_of

_TEXTS = ("txt", "text", "caption")
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(slots=True)
class _Sample:
    key: str = ""
    images: list[tuple[str, bytes]] = field(default_factory=list)
    """(extensions, bytes)"""
    caption: Caption = field(default_factory=Caption)
    text: str | None = None
    trouble: str = ""
    members: int = 0


def samples(path: Path, name: str, limit: int) -> Iterator[Entry]:
    """One record per image; ids are ``name/key``, or ``name/key.ext`` where a sample has several
    images.

    Members that are neither image, text nor ``.json`` are left out. One sample is in memory at a
    time.
    """
    sample = _Sample()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # or the index of a big tar fills the memory
                if not member.isfile():
                    continue
                key, extensions = split(printable(member.name))
                if key != sample.key:
                    yield from _entries(sample, name)
                    sample = _Sample(key)
                _add(sample, archive, member, extensions, limit)
            yield from _entries(sample, name)
            _check_end(archive)
    except _DAMAGE as error:
        yield Unsendable(
            name,
            f"the archive cannot be read{f' after {sample.key}' if sample.key else ''}: {error}",
        )


def members(path: Path, name: str, limit: int) -> Iterator[Entry]:
    """Every member as a record of its own; ids are ``name/member``."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]
                if not member.isfile():
                    continue
                id = f"{name}/{printable(member.name)}"
                yield (
                    too_big(id, member.size, limit)
                    if member.size > limit
                    else item(id, _read(archive, member), member.name, Caption())
                )
            _check_end(archive)
    except _DAMAGE as error:
        yield Unsendable(name, f"the archive cannot be read to its end: {error}")


def split(name: str) -> tuple[str, str]:
    """``a/b.left.jpg`` → (``a/b``, ``left.jpg``), as webdataset does."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extensions = base.partition(".")
    return f"{folder}{slash}{stem}", extensions


def _add(
    sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, extensions: str, limit: int
) -> None:
    sample.members += 1
    kind = extension(f"x.{extensions}")
    is_picture = is_image(f"x.{extensions}")
    if not (is_picture or kind in _TEXTS or kind == "json"):
        return
    if member.size > limit:
        sample.trouble = too_big(member.name, member.size, limit).reason
        return
    data = _read(archive, member)
    try:
        if is_picture:
            sample.images.append((extensions, data))
        elif kind == "json":
            sample.caption = json_caption(data, member.name)
        else:
            sample.text = text_of(data, member.name)
    except ValueError as error:
        sample.trouble = str(error)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None, "this is a bug: only regular files are read"
    return content.read()


def _entries(sample: _Sample, name: str) -> Iterator[Entry]:
    if not sample.members:
        return
    id = f"{name}/{sample.key}"
    if sample.trouble:
        yield Unsendable(id, sample.trouble)
        return
    if not sample.images:
        yield Unsendable(id, "the sample has no image")
    known = sample.caption
    caption = Caption(known.text if sample.text is None else sample.text, known.url, known.metadata)
    for extensions, data in sample.images:
        yield item(
            id if len(sample.images) == 1 else f"{id}.{extensions}",
            data,
            f"x.{extensions}",
            caption,
        )


def _check_end(archive: tarfile.TarFile) -> None:
    """Python's tarfile takes a damaged header for the end: the block after the last member must be
    empty, or the file's end."""
    if not isinstance(archive.fileobj, io.BufferedReader):
        return  # compressed: a checksum covers it
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("a header is damaged; what comes after it is lost")
