"""What became of the sources, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamer.kafka.sender import Tally
from streamer.produce.entry import Absent, Unsendable
from streamer.produce.left_out import Why
from streamer.produce.source import Sources
from streamer.units import counted

SHOWN_FAILURES = 50
SHOWN_CAPTIONS = 5


class Report:
    """Filled while records are sent, complete after `finish`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._tally = Tally()
        self._seconds = 0.0
        self.failed = [(entry.id, entry.reason) for entry in sources.unread_rows()]
        self._unusable_rows = len(self.failed)
        """(id, reason) of all that should have been sent and was not."""
        self.absent = 0
        """What a source says it does not have."""

    def add(self, entry: Unsendable | Absent) -> None:
        if isinstance(entry, Unsendable):
            self.failed.append((entry.id, entry.reason))
        else:
            self.absent += 1

    def finish(self, tally: Tally, limit: int, seconds: float) -> None:
        """``limit``: bytes of the topic's largest message."""
        self._tally, self._seconds = tally, seconds
        self.failed += [
            (id, f"{reason}; the topic takes at most {limit} bytes with headers")
            for id, reason in tally.refused
        ]

    def as_json(self) -> dict[str, Any]:
        left_out = self._sources.left_out
        return {
            "sent": self._tally.sent,
            "with_caption": self._tally.with_text,
            "with_metadata": self._tally.with_metadata,
            "failed": [{"id": id, "reason": reason} for id, reason in self.failed],
            "absent": self.absent,
            "left_out": left_out.count(Why.OTHER, Why.LINK, Why.REPLACED),
            "unused_texts": left_out.count(Why.TEXT),
            "further_images": left_out.count(Why.FURTHER),
            "hidden": left_out.count(Why.HIDDEN),
            "unused_captions": self._sources.unused_captions(),
            "bytes": self._tally.nbytes,
            "seconds": round(self._seconds, 3),
        }

    def summary(self, topic: str) -> str:
        tally = self._tally
        rate = tally.sent / self._seconds if self._seconds else 0.0
        parts = [
            f"sent {counted(tally.sent, 'record')}, {tally.with_text} with a caption, "
            f"{tally.with_metadata} with metadata ({tally.nbytes / 1e6:.1f} MB) to {topic} in "
            f"{self._seconds:.1f} s, {rate:.0f}/s"
        ]
        if failed := len(self.failed) - self._unusable_rows:
            parts.append(f"{failed} could not be sent")
        if self._unusable_rows:
            parts.append(f"{counted(self._unusable_rows, 'row')} of captions could not be used")
        if self.absent:
            parts.append(f"{self.absent} skipped because their download had failed")
        return "; ".join(parts)

    def remarks(self, listed: bool) -> Iterator[str]:
        """Lines about all that was not sent. ``listed``: all failures are listed elsewhere, so these
        lines need not say how many they leave out."""
        for note, files in self._sources.notes.items():
            more = f" and {counted(len(files) - 1, 'file')} more" if len(files) > 1 else ""
            yield f"{files[0]}{more}: {note}"
        yield from self._sources.left_out.lines()
        if unused := self._sources.unused_captions():
            more = ", …" if len(unused) > SHOWN_CAPTIONS else ""
            yield (
                f"no file for {counted(len(unused), 'path')} in the captions: "
                f"{', '.join(unused[:SHOWN_CAPTIONS])}{more}"
            )
        for id, reason in self.failed[:SHOWN_FAILURES]:
            yield f"not sent: {id}: {reason}"
        if len(self.failed) > SHOWN_FAILURES and not listed:
            yield f"… and {len(self.failed) - SHOWN_FAILURES} more; --json lists them all"
