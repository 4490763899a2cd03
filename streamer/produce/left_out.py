"""What lies in the sources and is not sent: counted by why and by kind, with an example of each."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from streamer.produce.name import extension
from streamer.units import counted

SHOWN_KINDS = 6

_CAPTIONS = "captions of images: --captions FILE, with the images' folder as the SOURCE"
_TEXT = "a text goes beside its image (PHOTO.txt or PHOTO.json beside PHOTO.jpg)"
_PACKED = "unpack it, and send what is in it"
ADVICE = {
    "csv": _CAPTIONS, "tsv": _CAPTIONS, "jsonl": _CAPTIONS, "ndjson": _CAPTIONS,
    "txt": _TEXT, "text": _TEXT, "caption": _TEXT, "json": _TEXT,
    "arrow": "load the dataset (datasets.load_from_disk) and write it with Dataset.to_parquet",
    "parquet": "give it as a SOURCE of its own, if it has images",
    "zip": _PACKED, "7z": _PACKED, "rar": _PACKED, "gz": _PACKED, "bz2": _PACKED, "xz": _PACKED,
    "zst": _PACKED, "lz4": _PACKED,
}  # fmt: skip
"""Extension → what to do with such a file instead."""
AS_IT_IS = "--all-files sends it as it is"


class Why(Enum):
    """Value: what a person is told."""

    OTHER = "not an image, a text or a tar"
    TEXT = "texts and JSON without an image"
    FURTHER = "secondary images of a sample, such as masks"
    HIDDEN = "hidden or the system's own"
    LINK = "links to folders, which are not followed"
    REPLACED = "replaced by a later member of the same name"


_WITHOUT_KINDS = (Why.HIDDEN, Why.LINK)


class LeftOut:
    """Bounded by the number of extensions, not of files."""

    def __init__(self) -> None:
        self._kinds: dict[Why, dict[str, tuple[int, str]]] = {why: {} for why in Why}

    def add(self, why: Why, id: str) -> None:
        kinds = self._kinds[why]
        kind = "" if why in _WITHOUT_KINDS else extension(id)
        count, example = kinds.get(kind, (0, id))
        kinds[kind] = count + 1, example

    def count(self, *whys: Why) -> int:
        return sum(count for why in whys for count, _ in self._kinds[why].values())

    def lines(self) -> list[str]:
        """One line for each reason, and then what to do instead."""
        lines = []
        for why, kinds in self._kinds.items():
            if not kinds:
                continue
            by_count = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
            shown = [_kind(kind, *found) for kind, found in by_count[:SHOWN_KINDS]]
            more = ["…"] if len(by_count) > SHOWN_KINDS else []
            if why in _WITHOUT_KINDS:
                shown = [f"for example {example}" for _, example in kinds.values()]
            what = counted(self.count(why), "file")
            lines.append(f"left out: {what} ({why.value}): {'; '.join(shown + more)}")
        return lines + advice(self._kinds[Why.OTHER])


def advice(extensions: Iterable[str]) -> list[str]:
    """What to do about files of these kinds, one line for those with the same way out."""
    kinds: dict[str, list[str]] = {}
    for kind in sorted(extensions):
        if kind in ADVICE:
            kinds.setdefault(ADVICE[kind], []).append(f".{kind}")
    if len(kinds) > 1:
        kinds.pop(_TEXT, None)  # JSON is also beside datasets and archives, to describe them
    return [f"{', '.join(found)}: {way}" for way, found in kinds.items()]


def _kind(kind: str, count: int, example: str) -> str:
    return f"{count} {f'.{kind}' if kind else 'without extension'}, for example {example}"
