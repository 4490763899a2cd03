"""What is in a tar, read once from its begin to its end: names, links, and the small texts."""

from __future__ import annotations

import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from streamer.produce.entry import too_big
from streamer.produce.name import is_hidden, is_json, is_text, printable

DAMAGE = (
    *(tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError),
    *(ValueError, LookupError, OverflowError, RecursionError),  # of tarfile, for hostile headers
)
_SPOOL_BYTES = 16_000_000
"""Texts beyond it lie in a temporary file."""
_MOST_LINKS = 40
"""As many links in a row as Linux follows."""


@contextmanager
def members(path: Path) -> Iterator[Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]]:
    """The members of a tar with their numbers, in the order of the archive; compressed or not.
    Archives that were joined into one file are read one after the other.

    Raises one of `DAMAGE`, also where the archive ends too early.
    """
    header = _header_of()
    with tarfile.open(path, "r:*", tarinfo=header, ignore_zeros=True) as archive:
        yield _members(archive, header)


class _Header(tarfile.TarInfo):
    """tarfile takes a damaged header, and one that is cut, for the end of the archive."""

    ends_well = False
    """The last block that was read as a header is an end mark."""


def _header_of() -> type[_Header]:
    """A class for one archive: tarfile makes headers by itself, and keeps nothing of the end."""

    class Header(_Header):
        @classmethod
        def frombuf(cls, buf: Any, encoding: Any, errors: str) -> Any:
            if buf:
                cls.ends_well = not any(buf)
            try:
                return super().frombuf(buf, encoding, errors)
            except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            except tarfile.HeaderError:
                words = "a header is damaged; what comes after it is lost"
                raise tarfile.ReadError(words) from None

    return Header


def _members(
    archive: tarfile.TarFile, header: type[_Header]
) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    for number, member in enumerate(archive):
        # Or tarfile's own index of a big archive fills the memory.
        archive.members.clear()  # type: ignore[attr-defined]
        yield number, member, archive
    if not header.ends_well:
        raise tarfile.ReadError("it has no end mark: it may have been cut")


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "this is a bug: only regular members are read"
    return file.read()


def in_words(error: BaseException) -> str:
    """One line; tarfile adds a line for every compression that it tried."""
    return str(error).partition("\n")[0].rstrip(":")


class Index:
    """Names are normalised (``./a.jpg`` is ``a.jpg``); a later member replaces an earlier one of
    the same name, as it does when the archive is unpacked.

    Memory: about half a kilobyte for each member, and at most 16 MB of texts; further texts lie in
    a temporary file.
    """

    def __init__(self, path: Path, limit: int, texts: bool) -> None:
        """``texts``: those of at most ``limit`` bytes are kept. Never raises for a damaged
        archive."""
        self.files: dict[str, int] = {}
        """Name → number of the member."""
        self.links: dict[str, str] = {}
        """Name → name of what it leads to."""
        self.special: list[str] = []
        """Names of what is neither file, folder nor link."""
        self.replaced: list[str] = []
        self.last = ""
        """The name of the last member that could be read."""
        self.damage = ""
        """Why the archive could not be read to its end; empty if it could."""
        self._keeps_texts = texts
        self._limit = limit
        self._texts: dict[int, tuple[int, int]] = {}  # number → (position in the spool, size)
        self._spool = SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - lives with the index
        try:
            with members(path) as found:
                for number, member, archive in found:
                    self._add(number, member, archive)
        except DAMAGE as error:
            self.damage = in_words(error)

    def close(self) -> None:
        self._spool.close()

    def names(self) -> list[str]:
        """Of files and links, hidden ones too."""
        return [*self.files, *self.links]

    def target(self, name: str) -> int:
        """The number of the member with the bytes of ``name``. Raises ValueError for a link that
        leads to none."""
        there = name
        for _ in range(_MOST_LINKS):
            if there in self.files:
                return self.files[there]
            if there not in self.links:
                raise ValueError(f"{name} is a link to {there}, which the archive does not have")
            there = self.links[there]
        raise ValueError(f"{name} is a link that leads to itself")

    def linked(self) -> set[str]:
        """Names of files that a link leads to at once."""
        return {target for target in self.links.values() if target in self.files}

    def text(self, name: str) -> bytes:
        """The bytes of a text or JSON. Raises ValueError if it is a link to something else, or too
        big."""
        number = self.target(name)
        if number not in self._texts:
            raise ValueError(f"{name} is a link to a file that is not text")
        position, nbytes = self._texts[number]
        if nbytes > self._limit:
            raise ValueError(f"{name} has {too_big(nbytes, self._limit)}")
        self._spool.seek(position)
        return self._spool.read(nbytes)

    def _add(self, number: int, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = _normal(member.name)
        if member.isdir():
            return
        if name in self.files or name in self.links:
            self.replaced.append(name)
            self.files.pop(name, None)
            self.links.pop(name, None)
        if member.issym():
            # An absolute one leads out of the archive, whatever the names of members are.
            target = posixpath.join(posixpath.dirname(name), member.linkname)
            self.links[name] = printable(posixpath.normpath(target))
        elif member.islnk():
            self.links[name] = _normal(member.linkname)
        elif member.isreg():
            if self._keeps_texts and (is_text(name) or is_json(name)) and not is_hidden(name):
                self._keep(number, member, archive)
            self.files[name] = number
        else:
            self.special.append(name)
        self.last = name

    def _keep(self, number: int, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        self._spool.seek(0, io.SEEK_END)
        position = self._spool.tell()
        if member.size <= self._limit:
            self._spool.write(content(archive, member))
        self._texts[number] = position, member.size


def _normal(name: str) -> str:
    return printable(posixpath.normpath(name).lstrip("/"))
