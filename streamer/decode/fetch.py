"""Images by reference: ``uri`` → bytes, tried until it is clear whose fault it is that they do not
come.

What another try cannot change is an outcome at once (`streamer.decode.reader`), and so are bytes
that are not the ones that the record names. What it can change is tried again, with pauses of 0.2 s
doubling to 10 s (or what Retry-After says), until ``fetch.give_up_after`` is over. Then the server
is asked again for what it answered last:

* it answers: the record is at fault, and becomes ``invalid``, reason ``unreachable``;
* it does not: an incident, which is waited out. The record is *held*, and the line behind it, until
  the server answers; only from then on its time counts again;
* it never answered: it is taken to be down where several references fail, else the record is at
  fault.

Nothing waits on a thread: a reference that pauses leaves its thread to the others.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from streamer.config import Fetch
from streamer.decode.reader import Later, Reader
from streamer.decode.server import Server, Servers
from streamer.errors import InvalidRecord
from streamer.flow.alarm import Alarm
from streamer.records import Reference
from streamer.units import counted

log = logging.getLogger("streamer")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_SAY_EVERY_S = 30.0
"""A reference that failed for so long is worth a line in the log, and so often its server."""


@dataclass(slots=True, eq=False)
class _Fetch:
    reference: Reference
    wanted: Callable[[], bool]
    pause_s: float
    result: Future[bytes] = field(default_factory=Future)
    server: Server | None = None
    began: float = 0.0
    """Its first try; monotonic seconds."""
    tries: int = 0


class Fetcher:
    """At most ``config.concurrency`` tries at a time, on threads of its own that start with the
    first one."""

    def __init__(
        self,
        config: Fetch,
        failed: Callable[[str], None] = lambda cause: None,
        fetched: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``failed`` is told the reason of every fetch that failed for good, and ``temporary`` for
        every try that will be made again.

        ``fetched`` is told the seconds of every fetch that brought its bytes, all its tries
        included.
        """
        self._patience_s = config.give_up_after
        self._failed = failed
        self._fetched = fetched
        self._reader = Reader(config)
        self._servers = Servers()
        self._open: set[_Fetch] = set()
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="fetch")
        self._pauses = Alarm("fetch-pauses")

    def submit(
        self, reference: Reference, wanted: Callable[[], bool] = lambda: True
    ) -> Future[bytes]:
        """The bytes, verified against ``length`` and ``sha256`` where the record gives them. Does
        not block.

        Once ``wanted()`` is false no further try is made, and the future is never done. It may
        raise InvalidRecord: uri_not_allowed, not_found, fetch_refused, unreachable, too_many_bytes,
        length_mismatch, sha256_mismatch.
        """
        fetch = _Fetch(reference, wanted, _FIRST_PAUSE_S)
        self._open.add(fetch)
        self._begin(fetch)
        return fetch.result

    def held(self) -> Counter[str]:
        """Server → references that wait for it because it answers nobody. Any thread."""
        return Counter(
            f.server.name for f in list(self._open) if f.server and f.server.is_down and f.wanted()
        )

    def close(self) -> None:
        """Makes no further try; futures that are not done stay so. Returns at once; a try on its way
        ends by its own time limit."""
        self._open.clear()
        self._pauses.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    def _begin(self, fetch: _Fetch) -> None:
        with suppress(RuntimeError):  # closed meanwhile
            self._threads.submit(self._turn, fetch).add_done_callback(partial(self._end, fetch))

    def _end(self, fetch: _Fetch, turn: Future[bytes | None]) -> None:
        """Settles the fetch, unless there will be another try."""
        if fetch not in self._open or turn.cancelled():
            return
        error = turn.exception()
        data = None if error is not None else turn.result()
        if error is None and data is None:
            return
        self._open.discard(fetch)
        if fetch.server is not None:
            fetch.server.forget(fetch.reference.uri)
        if data is not None:
            self._fetched(time.monotonic() - fetch.began)
            fetch.result.set_result(data)
        else:
            if isinstance(error, InvalidRecord):
                self._failed(error.reason)
            fetch.result.set_exception(error)

    def _turn(self, fetch: _Fetch) -> bytes | None:
        """One try, on a fetch thread. None: there will be another one, or nobody wants it."""
        reference = fetch.reference
        if reference.length is not None:
            self._reader.check_length(reference.length)
        if fetch.server is None:
            fetch.server = self._servers.get(self._reader.server(reference.uri))
        server = fetch.server
        if not fetch.wanted():
            self._open.discard(fetch)
            server.forget(reference.uri)
            return None
        if not server.enter():
            self._pause(fetch, 0.0)
            return None
        try:
            fetch.began = fetch.began or time.monotonic()
            fetch.tries += 1
            data = self._ask(server, reference.uri)
        except Later as later:
            self._failed("temporary")
            server.fail(reference.uri)
            self._go_on(fetch, server, later)
            return None
        finally:
            server.leave()
        _verify(data, reference)
        return data

    def _ask(self, server: Server, uri: str) -> bytes:
        try:
            data = self._reader.read(uri)
        except InvalidRecord as error:
            if error.reason != "uri_not_allowed":  # for that one nobody was asked
                server.answer(uri)
            raise
        server.answer(uri)
        return data

    def _go_on(self, fetch: _Fetch, server: Server, later: Later) -> None:
        """Another try after a pause, or InvalidRecord, unreachable."""
        over_at = server.over_at(fetch.began, self._patience_s)
        is_over = time.monotonic() >= over_at
        is_down = is_over and not self._answers_others(server, fetch.reference.uri, over_at)
        waited_s = time.monotonic() - fetch.began
        # a server that was down until now gives its references their whole time again
        if is_over and not is_down and server.over_at(fetch.began, self._patience_s) <= over_at:
            raise InvalidRecord(
                "unreachable",
                f"{later}; tried {counted(fetch.tries, 'time')} in {waited_s:.0f} s",
            )
        if (is_down or waited_s >= _SAY_EVERY_S) and server.is_due(_SAY_EVERY_S):
            self._say(server, later, is_down)
        self._pause(fetch, later.after_s, None if is_over else over_at)

    def _answers_others(self, server: Server, uri: str, since: float) -> bool:
        """Whether what failed is ``uri`` alone. Asks the server again for what it answered last."""
        if server.answered_since(since):
            return True
        others = server.others(uri)
        for other in others:
            with suppress(Later):
                with suppress(InvalidRecord):
                    self._ask(server, other)
                return True
        return not server.found_silent(bool(others))

    def _pause(self, fetch: _Fetch, after_s: float, until: float | None = None) -> None:
        """The next try comes after a pause, which the server may ask to be longer, but not later
        than ``until`` (monotonic seconds)."""
        pause_s = max(fetch.pause_s * random.uniform(0.5, 1.0), min(after_s, self._patience_s))
        if until is not None:
            pause_s = min(pause_s, until - time.monotonic())
        fetch.pause_s = min(2 * fetch.pause_s, _LONGEST_PAUSE_S)
        self._pauses.after(max(pause_s, 0.0), partial(self._begin, fetch))

    def _say(self, server: Server, why: Later, is_down: bool) -> None:
        began = [f.began for f in list(self._open) if f.server is server and f.tries]
        seconds = time.monotonic() - min(began, default=time.monotonic())
        if is_down:
            log.warning(
                "fetch: %s answers nobody (%s). References that wait until it does: %d, for %.0f s "
                "so far, and the line behind them. If it never will, take it off fetch.hosts: they "
                "become invalid, uri_not_allowed", server.name, why, len(began), seconds,
            )  # fmt: skip
        else:
            log.warning(
                "fetch: %s fails (%s). References that wait for it: %d, for %.0f s so far, and the "
                "line behind them. Each becomes invalid, unreachable, after %g s "
                "(fetch.give_up_after), if the server answers others",
                server.name, why, len(began), seconds, self._patience_s,
            )  # fmt: skip


def _verify(data: bytes, reference: Reference) -> None:
    if reference.length is not None and len(data) != reference.length:
        raise InvalidRecord(
            "length_mismatch", f"{len(data)} bytes, the record says {reference.length}"
        )
    if (
        reference.sha256 is not None
        and (found := hashlib.sha256(data).hexdigest()) != reference.sha256
    ):
        raise InvalidRecord(
            "sha256_mismatch", f"sha256 is {found}, the record says {reference.sha256}"
        )
