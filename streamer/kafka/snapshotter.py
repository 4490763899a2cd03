"""When the dedup state is taken, and the thread that writes it down meanwhile."""

from __future__ import annotations

import logging
import threading
import time

from streamer.dedup.meld import State
from streamer.dedup.snapshot import Header
from streamer.errors import DependencyError
from streamer.kafka.claim_log import ClaimLog
from streamer.ops.metrics import Metrics
from streamer.sink.snapshots import Snapshots

log = logging.getLogger("streamer")

SHARE = 10
"""A snapshot is due after a tenth of the winners, if that is more than ``dedup.snapshot_every``:
reading them again takes about as long as applying that many entries, and whatever the size, all
snapshots together write about eleven times the last one's bytes."""
PAUSE_S = 60.0
"""At least so long from one write to the next."""


class Snapshotter:
    """`offer` belongs to the claims thread, `run` to its own, `finish` to the main thread once the
    claims thread has ended.

    A write that fails costs a warning: the claim log has it all.
    """

    def __init__(
        self, snapshots: Snapshots, log: ClaimLog, every: int, metrics: Metrics, last: Header | None
    ) -> None:
        """``last``: the one that the start used."""
        self._snapshots = snapshots
        self._log = log
        self._every = every
        self._metrics = metrics
        self._last = 0
        if last is not None:
            self._last = last.position
            metrics.snapshot_known(last.position, last.bytes, last.created)
        self._not_before = 0.0
        self._changed = threading.Condition()
        self._taken: tuple[State, int] | None = None
        self._busy = False
        self._closed = False

    def offer(self) -> None:
        """Takes the state if a snapshot is due and none is being written. Does not wait; 0.03 s for
        a million verdicts still held."""
        if not self._busy and self._behind() >= 1 and time.monotonic() >= self._not_before:
            self._take()

    def run(self) -> None:
        """Writes what is taken, until `finish`."""
        while True:
            with self._changed:
                while self._taken is None and not self._closed:
                    self._changed.wait()
                if self._taken is None:
                    return
                (state, offset), self._taken = self._taken, None
            self._write(state, offset)
            del state
            self._not_before = time.monotonic() + PAUSE_S
            self._busy = False

    def finish(self) -> None:
        """A clean end: what is being written is finished, and half of what makes one due is worth
        another. Join the thread after it."""
        if not self._busy and self._behind() >= 0.5:
            self._take()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _behind(self) -> float:
        """1 and above: a snapshot is due."""
        return (self._log.meld.position - self._last) / max(
            self._every, len(self._log.meld) // SHARE
        )

    def _take(self) -> None:
        began = time.perf_counter()
        taken = self._log.meld.state(), self._log.offset
        log.debug("the dedup state was taken in %.1f ms", 1000 * (time.perf_counter() - began))
        with self._changed:
            self._last = taken[0].position
            self._busy = True
            self._taken = taken
            self._changed.notify_all()

    def _write(self, state: State, offset: int) -> None:
        began = time.monotonic()
        try:
            header = self._snapshots.write(state, offset)
        except DependencyError as error:
            self._metrics.snapshot_failed()
            log.warning(
                "no snapshot of the dedup state could be written; a start reads more of the claim log instead: %s",
                error,
            )
            return
        seconds = time.monotonic() - began
        self._metrics.snapshot_known(header.position, header.bytes, header.created, seconds)
        log.info("snapshot of the dedup state written", extra={
            "position": header.position, "winners": header.winners, "bytes": header.bytes, "seconds": round(seconds, 3),
        })  # fmt: skip
