"""Tells what a SOURCE is, and yields its records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamer.errors import ConfigError, DependencyError
from streamer.produce import file, parquet, tar
from streamer.produce.caption import Caption, joined
from streamer.produce.captions import METADATA, Captions, imagefolder
from streamer.produce.entry import Columns, Entry, Unsendable, entry
from streamer.produce.file import Listing, id_of
from streamer.produce.left_out import AS_IT_IS, LeftOut, Why, advice
from streamer.produce.name import (
    TAR_SUFFIXES,
    extension,
    is_image,
    is_json,
    is_tar,
    is_text,
    printable,
)
from streamer.produce.pairing import Partners, pair
from streamer.produce.sidecar import caption_beside


@dataclass(slots=True)
class _Survey:
    """What is known about a folder before anything of it is sent."""

    metadata: dict[Path, list[Captions]] = field(default_factory=dict)
    """Folder → its imagefolder files."""
    has_images: bool = False
    """Or tars, or with ``all_files`` any files: Parquet is not looked at."""
    kinds: dict[str, None] = field(default_factory=dict)
    """Extensions of the other files."""


class Sources:
    """All that is to be sent."""

    def __init__(
        self, columns: Columns, captions: Captions | None, all_files: bool, limit: int
    ) -> None:
        """``limit``: bytes; what is bigger is reported instead of read."""
        self._columns = columns
        self._captions = captions
        self._all_files = all_files
        self._limit = limit
        self._in_folders: list[Captions] = []
        self.left_out = LeftOut()
        self._captions_match = False
        self._an_image = ""
        self.notes: dict[str, list[str]] = {}
        """What a person should know → the files it was found in; complete at the end."""

    def entries(self, source: Path) -> Iterator[Entry]:
        """Records of one source, in a fixed order.

        * a folder: its images (by extension) with their sidecars, and its tars; its Parquet files
          only if it has neither, because img2dataset writes Parquet beside tars and images about
          the same samples;
        * a tar, a Parquet file, an image.

        ``all_files`` makes every file, and every member of a tar given by itself, a record,
        sidecars, archives and hidden files too.

        Looks at the source at once, and reads captions in it; reads the rest when it is asked for.
        Raises ConfigError at once if it is nothing that can be sent.
        """
        try:
            if source.is_dir():
                return self._folder(source, self._survey(source))
            if not source.is_file():
                raise ConfigError(f"{source}: there is no such file or folder")
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror}") from None
        if is_tar(source.name):
            return self._tar(source, source.parent)
        if extension(source.name) == "parquet":
            return self._parquet(source, source.parent)
        if is_image(source.name) or self._all_files:
            return self._image(source)
        there = advice([extension(source.name)]) or [AS_IT_IS]
        raise ConfigError(
            f"{source}: is neither a folder, a tar, a Parquet file nor an image; {there[0]}"
        )

    def check_captions(self) -> None:
        """After `entries` was called for every source. Raises DependencyError if ``captions`` name
        no file of them at all: everything would be sent without its caption."""
        if self._captions is not None and not self._captions_match:
            paths = self._captions.unused()
            there = f"; the first file is {self._an_image}" if self._an_image else ""
            raise DependencyError(
                f"{self._captions.file}: no path in it matches a file in the sources; {paths[0]}, for "
                f"example, does not{there}. Nothing was sent. Paths are absolute, or relative to "
                "the SOURCE or to the folder of the captions"
            )

    def unread_rows(self) -> Iterator[Unsendable]:
        """Rows of captions that cannot be used, and that do not tell which image they are about."""
        own = [self._captions] if self._captions is not None else []
        for captions in (*own, *self._in_folders):
            for trouble in captions.unread:
                yield Unsendable(f"a row of {captions.file.name}", trouble)

    def unused_captions(self) -> list[str]:
        """Paths in captions that name no file; complete at the end."""
        own = self._captions.unused() if self._captions is not None else []
        return own + [
            f"{path} ({captions.file})"
            for captions in self._in_folders
            for path in captions.unused()
        ]

    def _survey(self, root: Path) -> _Survey:
        survey = _Survey()
        candidates = []
        for listing in file.walk(root, hidden=self._all_files):
            if listing.trouble and listing.path == root:
                raise ConfigError(f"{root}: {listing.trouble}")
            for name in listing.files:
                path = listing.path / name
                if self._all_files or is_image(name) or is_tar(name):
                    survey.has_images = True
                    self._match(path, root)
                else:
                    survey.kinds[extension(name)] = None
                    if name in METADATA and not self._is_captions(path):
                        candidates.append(path)
        if not survey.has_images and "parquet" not in survey.kinds:
            there = advice(survey.kinds) or ["--all-files sends whatever is in it"]
            raise ConfigError(f"{root}: has no images, tars or Parquet files; {'; '.join(there)}")
        for path in candidates if survey.has_images else []:
            self._read_metadata(path, root, survey)
        return survey

    def _read_metadata(self, path: Path, root: Path, survey: _Survey) -> None:
        try:
            file.check_inside(path, root)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        captions = imagefolder(path, self._columns)
        if captions is not None:
            survey.metadata.setdefault(path.parent, []).append(captions)
            self._in_folders.append(captions)
            if note := captions.without_text():
                self.notes.setdefault(note, []).append(id_of(path, root))

    def _match(self, path: Path, root: Path) -> None:
        self._an_image = self._an_image or id_of(path, root)
        if self._captions is not None and not self._captions_match:
            self._captions_match = self._captions.knows(path, root)

    def _is_captions(self, path: Path) -> bool:
        return self._captions is not None and path.resolve() == self._captions.file.resolve()

    def _folder(self, root: Path, survey: _Survey) -> Iterator[Entry]:
        used = {captions.file for found in survey.metadata.values() for captions in found}
        for listing in file.walk(root, hidden=self._all_files):
            if listing.trouble:
                yield Unsendable(id_of(listing.path, root), listing.trouble)
            for why, names in ((Why.HIDDEN, listing.hidden), (Why.LINK, listing.links)):
                for name in names:
                    id = f"{id_of(listing.path, root)}/{printable(name)}"
                    self.left_out.add(why, id.removeprefix("./"))
            if self._all_files:
                for name in listing.files:
                    yield self._file(listing.path / name, root, root, None, survey)
            else:
                yield from self._listed(listing, root, survey, used)

    def _listed(
        self, listing: Listing, root: Path, survey: _Survey, used: set[Path]
    ) -> Iterator[Entry]:
        pairing = pair(listing.files)
        for name in listing.files:
            path = listing.path / name
            partners = pairing.images.get(name)
            if name in pairing.further and self._has_row(path, root, survey):
                partners = Partners(None, None)
            if partners is not None:
                yield self._file(path, root, root, partners, survey)
            elif is_tar(name) or (extension(name) == "parquet" and not survey.has_images):
                yield from self._container(path, root)
            elif name in pairing.further:
                self.left_out.add(Why.FURTHER, id_of(path, root))
            elif name in pairing.unused:
                self.left_out.add(Why.TEXT, id_of(path, root))
            elif not (is_text(name) or is_json(name) or path in used or self._is_captions(path)):
                self.left_out.add(Why.OTHER, id_of(path, root))

    def _container(self, path: Path, root: Path) -> Iterator[Entry]:
        """A tar or a Parquet file in a folder: what is wrong with it costs only itself."""
        try:
            file.check_inside(path, root)
            file.check_regular(path)
            records = self._tar(path, root) if is_tar(path.name) else self._parquet(path, root)
        except (ValueError, ConfigError) as error:
            return iter([Unsendable(id_of(path, root), str(error))])
        return records

    def _image(self, path: Path) -> Iterator[Entry]:
        """One that is a SOURCE itself: it may be a link to anywhere."""
        self._match(path, path.parent)
        names = [] if self._all_files else next(file.walk(path.parent, hidden=False)).files
        partners = pair({*names, path.name}).images.get(path.name)
        return iter([self._file(path, path.parent, None, partners, _Survey())])

    def _tables(self, path: Path, survey: _Survey) -> Iterator[Captions]:
        """The captions files that may have a row about the file at ``path``, the nearest first."""
        if self._captions is not None:
            yield self._captions
        for folder in path.parents if survey.metadata else ():
            yield from survey.metadata.get(folder, ())

    def _has_row(self, path: Path, root: Path, survey: _Survey) -> bool:
        return any(captions.knows(path, root) for captions in self._tables(path, survey))

    def _file(
        self,
        path: Path,
        root: Path,
        within: Path | None,
        partners: Partners | None,
        survey: _Survey,
    ) -> Entry:
        def caption() -> Caption:
            captions = [c for found in self._tables(path, survey) for c in found.of(path, root)]
            if partners is not None:
                beside = caption_beside(
                    partners, lambda name: self._beside(path, name, root), self._columns.text
                )
                captions.append(beside)
            return joined(captions)

        return entry(
            id_of(path, root), path.name, lambda: file.read(path, within, self._limit), caption
        )

    def _beside(self, path: Path, name: str, root: Path) -> bytes:
        try:
            return file.read(path.parent / name, root, self._limit)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _tar(self, path: Path, root: Path) -> Iterator[Entry]:
        id = id_of(path, root)
        name = id[: -len(next(suffix for suffix in TAR_SUFFIXES if id.lower().endswith(suffix)))]
        if self._all_files:
            return tar.every_member(path, name, self._limit)
        return tar.samples(path, name, self._limit, self._columns.text, self.left_out)

    def _parquet(self, path: Path, root: Path) -> Iterator[Entry]:
        name = id_of(path, root)[: -len(".parquet")]
        roles = parquet.roles_of(path, name, self._columns)
        if isinstance(roles, Unsendable):
            return iter([roles])
        for note in roles.notes():
            self.notes.setdefault(note, []).append(id_of(path, root))
        return parquet.rows(path, root, name, roles, self._columns.separator, self._limit)
