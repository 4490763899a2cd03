"""Whether the brokers answer, and how long to wait for them while they do not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from streamer.config import Config
from streamer.errors import DependencyError, TemporaryError
from streamer.flow.worker import Failure, Worker
from streamer.kafka.admin import Admin, Unreachable
from streamer.kafka.patience import Patience

log = logging.getLogger("streamer")

PROBE_S = 4.0
"""So long a question may take that any broker answers in milliseconds."""
PROBES = 2
"""So many in a row without an answer, and the brokers are away: one may meet a broker that was just
lost, or a starved process."""
PAUSE_S = 1.0
STOP_S = 20.0
"""So long a replica that was told to stop still waits: a third of its drain's deadline."""


class Brokers(Patience):
    """Asks the cluster every second or two, on a thread of its own. *Away*: no broker answers, or
    one of the dataset's own topics has no leader.

    While they are away `clock` stands still: what is bounded by it (deadlines of calls, heartbeats,
    the watchdog's limits) is not to blame. After ``kafka.give_up_after``, or `STOP_S` after the
    process was told to stop, it goes on, `check` raises, and the process ends with exit code 75.

    Every other method belongs to any thread, and none blocks.
    """

    def __init__(self, config: Config, failure: Failure) -> None:
        """Raises ConfigError like `Admin`. Asks nobody until `start`."""
        self.give_up_after_s = config.kafka.give_up_after
        self._servers = config.kafka.bootstrap_servers
        self._topics = (config.claims_topic, config.commits_topic)
        self._admin = Admin(config.kafka, timeout_s=PROBE_S)
        self._failure = failure
        self._stop: Callable[[], bool] = lambda: False
        self._stopping_since: float | None = None
        self._closed = threading.Event()
        self._worker = Worker("brokers", self._watch, failure)
        self._lock = threading.Lock()
        self._missed = 0
        self._away_since: float | None = None
        self._stood_still = 0.0
        """Seconds that `clock` is behind, but for those since ``_away_since``."""
        self._why = ""
        self._error: TemporaryError | None = None

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Asks no more; `clock` goes on."""
        self._closed.set()
        with self._lock:
            self._resume(time.monotonic())

    def heed(self, stop: Callable[[], bool]) -> None:
        """From now on ``stop()`` ends a long wait."""
        self._stop = stop

    # For those who wait

    def clock(self) -> float:
        with self._lock:
            now = time.monotonic()
            since = now if self._away_since is None or self._error else self._away_since
            return since - self._stood_still

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    # For those who ask

    @property
    def away_s(self) -> float:
        """0 while they answer."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def said(self) -> str:
        """In words for `/readyz`; empty while they answer."""
        away_s = self.away_s
        return f"the Kafka brokers are away for {away_s:.0f} s ({self._why})" if away_s else ""

    # The thread

    def _watch(self) -> None:
        while not self._closed.is_set() and not self._failure.stop.is_set():
            self._hear(self._ask())
            self._closed.wait(PAUSE_S)
        self.close()  # what still hangs at the end is to be ended

    def _ask(self) -> str:
        """Why they are away; empty if they answer, whatever."""
        try:
            topic = self._admin.leaderless(self._topics)
        except Unreachable as error:
            return error.why
        except TemporaryError as error:
            return str(error)
        except DependencyError:
            return ""
        return f"{topic} has no leader" if topic else ""

    def _hear(self, why: str) -> None:
        now = time.monotonic()
        self._missed = self._missed + 1 if why else 0
        if self._closed.is_set():
            return
        if not why:
            if self._away_since is not None:
                log.warning("the Kafka brokers are back after %.0f s", now - self._away_since)
            with self._lock:
                self._resume(now)
            return
        self._why = why
        if self._away_since is None:
            if self._missed < PROBES:
                return
            with self._lock:
                self._away_since = now
            log.warning(
                "the Kafka brokers at %s are away (%s); waiting for them, up to %.0f s (kafka.give_up_after)",
                self._servers,
                why,
                self.give_up_after_s,
            )
        self._give_up_if_due(now)

    def _give_up_if_due(self, now: float) -> None:
        if self._stopping_since is None and self._stop():
            self._stopping_since = now
        if self._stopping_since is not None and now - self._stopping_since >= STOP_S:
            self._give_up("this process was told to stop")
        elif self.away_s >= self.give_up_after_s:
            self._give_up(f"no answer for {self.away_s:.0f} s (kafka.give_up_after)")

    def _give_up(self, cause: str) -> None:
        error = TemporaryError(
            f"the Kafka brokers at {self._servers} are away ({self._why}), and {cause}. Nothing is lost: start again when they are back."
        )
        with self._lock:
            self._resume(time.monotonic(), error)
        self._failure.report(error)

    def _resume(self, now: float, error: TemporaryError | None = None) -> None:
        """Under the lock."""
        if self._away_since is not None and self._error is None:
            self._stood_still += now - self._away_since
            if error is None:
                self._away_since = None
        self._error = self._error or error
