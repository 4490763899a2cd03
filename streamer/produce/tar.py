"""Tars, WebDataset's and others: their images with the texts that belong to them.

An archive is read twice, because a text may come long after its image: first its names and texts
(`Index`), then its images, in the order of the archive and one at a time. A compressed archive is
decompressed twice.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streamer.produce.entry import Entry, Unsendable, entry, too_big
from streamer.produce.left_out import LeftOut, Why
from streamer.produce.name import base_name, is_hidden, is_image, is_json, is_text, printable
from streamer.produce.pairing import Pairing, Partners, pair
from streamer.produce.sidecar import caption_beside
from streamer.produce.tar_index import DAMAGE, Index, content, in_words, members

_NONE = Partners(None, None)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One record to make of a member."""

    id: str
    name: str
    partners: Partners


def samples(path: Path, name: str, limit: int, text_key: str, left_out: LeftOut) -> Iterator[Entry]:
    """One record per image; ids are ``name/KEY``, or ``name/FILE`` where several images have one
    KEY (the member's name without its extensions).

    Links are followed to members of the same archive. A sample of WebDataset that has no image is
    `Unsendable`; other members without a use are added to ``left_out``.
    """
    with closing(Index(path, limit, texts=True)) as index:
        pairing = _pairing(index)
        yield from _strays(index, pairing, name, left_out)
        wanted = [
            _Wanted(f"{name}/{key}", image, pairing.images[image])
            for image, key in _keys(pairing.images).items()
        ]
        doubtful = _doubtful(index, pairing)
        for record in wanted:
            if record.name in doubtful:
                yield Unsendable(record.id, "its text may be in the unreadable part of the archive")
        certain = [record for record in wanted if record.name not in doubtful]
        yield from _entries(path, name, limit, text_key, index, certain)


def every_member(path: Path, name: str, limit: int) -> Iterator[Entry]:
    """Every member as a record of its own; ids are ``name/FILE``."""
    with closing(Index(path, limit, texts=False)) as index:
        for special in index.special:
            yield Unsendable(f"{name}/{special}", "is not a regular file")
        wanted = [_Wanted(f"{name}/{member}", member, _NONE) for member in index.names()]
        yield from _entries(path, name, limit, "", index, wanted)


def _pairing(index: Index) -> Pairing:
    """Over all folders of the archive."""
    folders = defaultdict(list)
    for name in index.names():
        if not is_hidden(name):
            folder, base = posixpath.split(name)
            folders[folder].append(base)
    images: dict[str, Partners] = {}
    further: list[str] = []
    unused: list[str] = []
    for folder, names in folders.items():
        here = pair(names)

        def whole(base: str | None, folder: str = folder) -> str | None:
            return base and posixpath.join(folder, base)

        for image, partners in here.images.items():
            images[posixpath.join(folder, image)] = Partners(
                whole(partners.text), whole(partners.json)
            )
        further += [posixpath.join(folder, base) for base in here.further]
        unused += [posixpath.join(folder, base) for base in here.unused]
    return Pairing(images, frozenset(further), frozenset(unused))


def _keys(images: Iterable[str]) -> dict[str, str]:
    """Image → what stands for it in its id."""

    def key(image: str) -> str:
        folder, base = posixpath.split(image)
        return posixpath.join(folder, base_name(base))

    keys = {image: key(image) for image in images}
    users = Counter(keys.values())
    return {image: key if users[key] == 1 else image for image, key in keys.items()}


def _sample(name: str) -> str:
    """WebDataset's own key: up to the first dot."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _strays(index: Index, pairing: Pairing, name: str, left_out: LeftOut) -> Iterator[Unsendable]:
    """Samples without an image; and into ``left_out`` whatever else is of no use."""
    with_image = {_sample(image) for image in (*pairing.images, *pairing.further)}
    without: dict[str, None] = {}
    linked = index.linked()
    for member in (*index.names(), *index.special):
        other = not (is_image(member) or is_text(member) or is_json(member))
        if other and member in linked:
            continue  # the bytes of an image by another name
        if is_hidden(member):
            left_out.add(Why.HIDDEN, f"{name}/{member}")
        elif _sample(member) not in with_image:
            without[_sample(member)] = None
        elif member in pairing.further:
            left_out.add(Why.FURTHER, f"{name}/{member}")
        elif member in pairing.unused:
            left_out.add(Why.TEXT, f"{name}/{member}")
        elif other:
            left_out.add(Why.OTHER, f"{name}/{member}")
    for member in index.replaced:
        left_out.add(Why.REPLACED, f"{name}/{member}")
    for key in without:
        yield Unsendable(f"{name}/{key}", "the sample has no image")


def _doubtful(index: Index, pairing: Pairing) -> set[str]:
    """Images that may have lost a text, if the archive is damaged: all without one, and those of
    the sample at which the damage begins. None if what can be read are other images without
    texts."""
    if not index.damage:
        return set()
    at_the_damage = {image for image in pairing.images if _sample(image) == _sample(index.last)}
    without = {image for image, partners in pairing.images.items() if partners == _NONE}
    if without == pairing.images.keys() != at_the_damage and not pairing.unused:
        return set()
    return without | at_the_damage


def _entries(
    path: Path, name: str, limit: int, text_key: str, index: Index, wanted: list[_Wanted]
) -> Iterator[Entry]:
    plan: dict[int, list[_Wanted]] = {}
    for record in wanted:
        try:
            plan.setdefault(index.target(record.name), []).append(record)
        except ValueError as error:
            yield Unsendable(record.id, str(error))
    last, damage = "", index.damage
    try:
        with members(path) as found:
            for number, member, archive in found:
                records = plan.get(number, ())
                big = member.size > limit
                data = content(archive, member) if records and not big else b""
                for record in records:
                    if big:
                        yield Unsendable(record.id, too_big(member.size, limit))
                    else:
                        caption = partial(caption_beside, record.partners, index.text, text_key)
                        yield entry(record.id, record.name, partial(bytes, data), caption)
                last = member.name
    except DAMAGE as error:
        damage = in_words(error)
    if damage:
        after = f" after {printable(last)}" if last else ""
        yield Unsendable(name, f"{path.name} cannot be read{after}: {damage}")
