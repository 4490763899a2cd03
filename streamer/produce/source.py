"""Tells what a SOURCE is, and yields its records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamer.errors import ConfigError
from streamer.produce import folder, parquet, tar
from streamer.produce.captions import Captions
from streamer.produce.entry import Columns, Entry, is_image

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SIDECARS = (".txt", ".json")


@dataclass(frozen=True, slots=True)
class Sources:
    """How sources are read. ``limit``: bytes; what is bigger is reported instead of read."""

    columns: Columns
    captions: Captions | None
    all_files: bool
    limit: int
    left_out: list[str] = field(default_factory=list)
    """Ids of the files in folders that are neither sent nor beside one that is (`.txt`, `.json`,
    the captions)."""

    def entries(self, source: Path) -> Iterator[Entry]:
        """Records of one source, in a fixed order. Raises ConfigError if it is nothing that can be
        sent.

        * a folder: its images (by extension) with their sidecars, and its tars; its Parquet files
          only if it has neither, because img2dataset writes Parquet beside tars and images about
          the same samples;
        * a tar, a Parquet file, an image.

        ``all_files`` makes every file, and every member of a tar given by itself, a record,
        sidecars and archives too.
        """
        try:
            if source.is_dir():
                return self._folder(source)
            if not source.is_file():
                raise ConfigError(f"{source}: there is no such file or folder")
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror}") from None
        if _is_tar(source):
            return self._tar(source, source.parent)
        if source.suffix.lower() == ".parquet":
            return self._parquet(source, source.parent)
        if is_image(source.name) or self.all_files:
            return iter([self._file(source, source.parent)])
        raise ConfigError(
            f"{source}: is neither a folder, a tar, a Parquet file nor an image; --all-files sends it as it is"
        )

    def _folder(self, root: Path) -> Iterator[Entry]:
        empty = True
        others = []
        for path in folder.walk(root):
            if self.all_files or is_image(path.name):
                empty = False
                yield self._file(path, root)
            elif _is_tar(path):
                empty = False
                yield from self._tar(path, root)
            elif path.suffix.lower() not in _SIDECARS and not (
                self.captions is not None and path.resolve() == self.captions.file.resolve()
            ):
                others.append(path)
        tables = [path for path in others if empty and path.suffix.lower() == ".parquet"]
        self.left_out.extend(folder.id_of(path, root) for path in others if path not in tables)
        if empty:
            if not tables:
                raise ConfigError(
                    f"{root}: has no images, tars or Parquet files; --all-files sends whatever is in it"
                )
            for path in tables:
                yield from self._parquet(path, root)

    def _file(self, path: Path, root: Path) -> Entry:
        return folder.image_file(path, root, self.captions, not self.all_files, self.limit)

    def _tar(self, path: Path, root: Path) -> Iterator[Entry]:
        id = folder.id_of(path, root)
        name = id[: -len(next(suffix for suffix in _TARS if id.lower().endswith(suffix)))]
        return (
            tar.members(path, name, self.limit)
            if self.all_files
            else tar.samples(path, name, self.limit)
        )

    def _parquet(self, path: Path, root: Path) -> Iterator[Entry]:
        return parquet.rows(
            path, folder.id_of(path, root)[: -len(".parquet")], self.columns, self.limit
        )


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TARS)
