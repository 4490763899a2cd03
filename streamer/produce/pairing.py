"""Which text and which JSON belong to which image, by their names in one folder.

1. The same name but for the last extension: ``a.b.txt`` belongs to ``a.b.jpg``.
2. Else the name of the image and one extension more: ``a.jpg.txt`` belongs to ``a.jpg``.
3. Else the sample, as WebDataset has it: ``a.txt`` belongs to ``a.left.jpg`` and ``a.right.jpg``,
   and ``a.vlm.txt`` to ``a.jpg``. The longer name of a sample wins (``a.1.txt`` over ``a.txt`` for
   ``a.1.left.jpg``), a text with one extension over one with several. Of several texts with several
   extensions (``a.vlm.txt``, ``a.blip.txt``) none is taken: nothing says which is meant.

An image with several extensions beside one with a single extension (``a.mask.png`` beside
``a.jpg``) is a further image of that sample, a mask or a depth map, unless it has a text of its own
by rule 1 or 2.

Extensions are compared without regard to case, names with regard to it. Texts and JSON are paired
apart from each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from streamer.produce.name import (
    JSON_EXTENSIONS,
    TEXT_EXTENSIONS,
    base_name,
    extension,
    is_image,
    is_json,
    is_text,
    split,
    stem,
)


@dataclass(frozen=True, slots=True)
class Partners:
    """The names of what belongs to one image."""

    text: str | None
    json: str | None


@dataclass(frozen=True, slots=True)
class Pairing:
    """Every image, text and JSON of a folder, by what it is used for; other names are in none."""

    images: Mapping[str, Partners]
    further: frozenset[str]
    """Further images of a sample."""
    unused: frozenset[str]
    """Texts and JSON that belong to no image."""


def pair(names: Iterable[str]) -> Pairing:
    """``names``: of one folder, without slashes. Their order does not matter. Any thread."""
    known = sorted(set(names))
    images = [name for name in known if is_image(name)]
    texts = _by_rank((name for name in known if is_text(name)), TEXT_EXTENSIONS)
    jsons = _by_rank((name for name in known if is_json(name)), JSON_EXTENSIONS)
    of_its_own = _named(images, texts)
    plain = {stem(name) for name in images}
    further = {
        name
        for name in images
        if name not in of_its_own and base_name(name) != stem(name) and base_name(name) in plain
    }
    text_of, json_of = _assigned(images, further, texts), _assigned(images, further, jsons)
    used = {*text_of.values(), *json_of.values()}
    return Pairing(
        {n: Partners(text_of.get(n), json_of.get(n)) for n in images if n not in further},
        frozenset(further),
        frozenset(name for name in (*texts, *jsons) if name not in used),
    )


def _by_rank(names: Iterable[str], extensions: tuple[str, ...]) -> list[str]:
    """The better of two texts of one name first: by its extension, ``.txt`` before ``.TXT``."""
    return sorted(
        names,
        key=lambda n: (extensions.index(extension(n)), not n.endswith(extension(n)), n),
    )


def _named(images: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Image → its text by rules 1 and 2."""
    by_stem: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for text in texts:
        by_stem.setdefault(stem(text), text)
        by_name.setdefault(_folded(stem(text)), text)
    found = ((image, by_stem.get(stem(image)) or by_name.get(_folded(image))) for image in images)
    return {image: text for image, text in found if text is not None}


def _assigned(images: Sequence[str], further: set[str], texts: Sequence[str]) -> dict[str, str]:
    """Image → its text, for all but the further images."""
    named = _named(images, texts)
    stems, whole = {stem(name) for name in images}, {_folded(name) for name in images}
    # A sample in which a longer name has a text of its own is no sample but a common beginning:
    # St.Mary.txt says nothing about St.Paul.jpg where St.Peter.jpg has St.Peter.txt.
    beginnings = {base_name(i) for i in named if i not in further and stem(i) != base_name(i)}
    one: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for text in texts:
        key = base_name(text)
        if stem(text) in stems or _folded(stem(text)) in whole:
            continue  # it is an image's own by rule 1 or 2, or that image has a better one
        if stem(text) == key:
            one.setdefault(key, text)
        elif key not in beginnings:
            several.setdefault(key, []).append(text)
    for image in images:
        if image in named:
            continue
        for key in _beginnings(stem(image)):
            if key in one or key in several:
                if key in one:
                    named[image] = one[key]
                elif len(several[key]) == 1:
                    named[image] = several[key][0]
                break
    return {image: text for image, text in named.items() if image not in further}


def _folded(name: str) -> str:
    """The name with its last extension in lower case."""
    return ".".join(split(name))


def _beginnings(name: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]
