"""Rules that no record has passed so far: more likely a slip in the config than in the records."""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from streamer.records import Facts
from streamer.units import counted

log = logging.getLogger("streamer")

FIRST = 100
"""So many records that have all failed a rule cause a warning."""
LEAST = 10
"""At the end of a run so many are enough."""
_SHOWN = 12
_METADATA = "metadata."


class Watch:
    """One rule until the first record passes it, or `FIRST` have failed. Any thread."""

    def __init__(
        self,
        where: str,
        removes: bool,
        field: str = "",
        value: Callable[[Facts, Mapping[str, float]], Any] = lambda facts, scores: None,
    ) -> None:
        """``where``: the rule's place in the config. ``field`` and ``value``: what it looks at;
        empty for a class of the user's own."""
        self.is_done = False
        """Nothing more is to be seen; cheap to ask for each record."""
        self._where = where
        self._does, self._done = ("removes", "removed") if removes else ("flags", "flagged")
        self._field = field
        self._value = value
        self._lock = threading.Lock()
        self._failed = 0
        self._missing = 0
        self._last: Any = None
        self._keys: set[str] = set()

    def see(self, has_failed: bool, facts: Facts, scores: Mapping[str, float]) -> None:
        """One record's answer. Logs the warning when it is time for it; does not block."""
        if not has_failed:
            self.is_done = True
            return
        value = self._value(facts, scores)
        with self._lock:
            if self.is_done:
                return
            self._failed += 1
            self._missing += value is None
            self._last = value
            if self._field.startswith(_METADATA) and len(self._keys) < 1000:
                self._keys.update(facts.metadata or ())
            self.is_done = self._failed >= FIRST
        if self.is_done:
            log.warning(self._message())

    def finish(self) -> None:
        """At the end of a run: warns of a rule that all its records have failed."""
        if not self.is_done and self._failed >= LEAST:
            self.is_done = True
            log.warning(self._message())

    def _message(self) -> str:
        records = counted(self._failed, "record")
        if not self._field or self._missing < self._failed:
            shown = f"; the last one's {self._field} is {self._last!r:.80}" if self._field else ""
            return (
                f"{self._where}: all of the first {records} failed this rule and were "
                f"{self._done}{shown}"
            )
        told = (
            f"{self._where}: none of the first {records} has {self._field}, "
            f"so this rule {self._does} them all"
        )
        if not self._field.startswith(_METADATA):
            return told
        keys = sorted(self._keys)
        name = self._field.removeprefix(_METADATA)
        close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
        hint = f"; did you mean {_METADATA}{close[0]}?" if close else ""
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        there = (
            f"metadata has {', '.join(keys[:_SHOWN])}{more}" if keys else "they have no metadata"
        )
        return f"{told}; {there}{hint}"
