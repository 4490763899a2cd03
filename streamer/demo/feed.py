"""Where the records come from: the demo's own photographs, or a folder of the user; and how they
get into the topic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from streamer.demo.photograph import photographs
from streamer.demo.record import PARTITIONS, DemoRecord, records
from streamer.errors import ConfigError
from streamer.produce.entry import Columns, Item, Unsendable
from streamer.produce.source import Sources
from streamer.testing import produce
from streamer.testing.broker import MESSAGE_BYTES

_HEADROOM = 1_000_000
"""What Kafka's framing and the headers may take of a message."""


@dataclass(frozen=True)
class Feed:
    """Records, ready to send. ``parts``: (partition, its records); partition −1: spread them."""

    own_photographs: bool
    parts: tuple[tuple[int, Iterable[DemoRecord]], ...]
    total: int
    """0: not known."""
    unreadable: list[str]
    """What could not be sent, with the reason; complete when everything is."""


def own_feed() -> Feed:
    """The demo's own records. Takes seconds. Raises ConfigError when the photographs are not
    installed."""
    made = records(photographs())
    parts = tuple(
        (partition, [record for record in made if record.partition == partition])
        for partition in range(PARTITIONS)
    )
    return Feed(True, parts, len(made), [])


def folder_feed(folder: Path) -> Feed:
    """Every image of ``folder``, with the captions beside them; read while they are sent. Raises
    ConfigError if there is none."""
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: there is no such folder")
    unreadable: list[str] = []
    entries = Sources(Columns(), None, all_files=False, limit=MESSAGE_BYTES - _HEADROOM).entries(
        folder
    )
    first = next(entries, None)  # a folder without images is found out before anything is started

    def found() -> Iterator[DemoRecord]:
        entry = first
        while entry is not None:
            if isinstance(entry, Item):
                headers: dict[str, str | bytes | None] = dict(entry.headers)
                text = headers.get("text") or b""
                caption = text.decode() if isinstance(text, bytes) else text
                yield DemoRecord(
                    entry.id,
                    "original",
                    "",
                    "",
                    caption,
                    "",
                    folder / entry.id,
                    entry.value,
                    headers,
                    -1,
                )
            elif isinstance(entry, Unsendable):
                unreadable.append(f"{entry.id}: {entry.reason}")
            entry = next(entries, None)

    return Feed(False, ((-1, found()),), 0, unreadable)


def send(
    feed: Feed, servers: str, topic: str, tell: Callable[[int], None]
) -> Mapping[tuple[int, int], DemoRecord]:
    """Writes all records and waits for their acknowledgements; ``tell`` gets the number so far.

    Returns origin → record, without its value. Raises DependencyError.
    """
    sent: dict[tuple[int, int], DemoRecord] = {}
    for partition, part in feed.parts:
        kept: list[DemoRecord] = []

        def passing(
            part: Iterable[DemoRecord] = part, kept: list[DemoRecord] = kept
        ) -> Iterator[tuple[bytes | None, Mapping[str, str | bytes | None]]]:
            for record in part:
                kept.append(replace(record, value=None))
                tell(len(sent) + len(kept))
                yield record.value, record.headers

        origins = produce(servers, topic, passing(), None if partition < 0 else partition)
        sent.update(zip(origins, kept, strict=True))
    return sent
