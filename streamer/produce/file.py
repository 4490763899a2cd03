"""Lists and reads the files of a source; never anything outside of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from streamer.produce.entry import too_big
from streamer.produce.name import is_hidden, printable


@dataclass(slots=True)
class Listing:
    """One folder; names are sorted."""

    path: Path
    files: list[str] = field(default_factory=list)
    """Also links, whatever they lead to, and what is neither file nor folder."""
    links: list[str] = field(default_factory=list)
    """Links to folders. They are not entered: they may lead in circles."""
    hidden: list[str] = field(default_factory=list)
    """Files and folders (with a slash) that are hidden or a system's own; not entered."""
    trouble: str = ""
    """Why the folder, or the rest of it, cannot be read."""


def walk(root: Path, hidden: bool) -> Iterator[Listing]:
    """``root`` and the folders below it, each before the ones in it. ``hidden``: what is hidden is
    listed among the others."""
    waiting = [root]
    while waiting:
        listing, folders = _list(waiting.pop(), hidden)
        yield listing
        waiting += reversed(folders)


def _list(path: Path, hidden: bool) -> tuple[Listing, list[Path]]:
    listing, folders = Listing(path), []
    try:
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            if not hidden and is_hidden(entry.name):
                listing.hidden.append(f"{entry.name}/" if is_folder else entry.name)
            elif is_folder:
                folders.append(path / entry.name)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - never raises
                listing.links.append(entry.name)
            else:
                listing.files.append(entry.name)
    except OSError as error:
        listing.trouble = error.strerror or str(error)
    return listing, folders


def id_of(path: Path, root: Path) -> str:
    """The path from ``root``, with slashes; bytes that are not UTF-8 as \\xNN."""
    return printable(path.relative_to(root).as_posix())


@lru_cache(maxsize=1024)
def real_folder(folder: Path) -> Path:
    """Without links and ``..``; cached, for the many files of one folder."""
    return Path(os.path.realpath(folder))


def check_inside(path: Path, root: Path) -> None:
    """Raises ValueError if ``path``, by a link or by ``..``, leads out of the folder ``root``."""
    real = real_folder(path.parent) / path.name
    if real.is_symlink():
        real = Path(os.path.realpath(real))
    if not real.is_relative_to(real_folder(root)):
        raise ValueError(
            f"leads out of the source, to {printable(str(real))}; only what lies below a SOURCE is "
            "sent"
        )


def check_regular(path: Path) -> None:
    """Raises ValueError for anything but a file: a pipe would block whoever opens it."""
    if path.exists() and not path.is_file():
        raise ValueError("is not a regular file")


def read(path: Path, root: Path | None, limit: int) -> bytes:
    """The bytes of a file inside of ``root``, if one is given.

    Raises ValueError with the reason: it leads out of ``root``, it is no file, it has more than
    ``limit`` bytes, or the system refuses.
    """
    try:
        if root is not None:
            check_inside(path, root)
        status = path.stat()
        check_regular(path)
        if status.st_size > limit:
            raise ValueError(too_big(status.st_size, limit))
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
