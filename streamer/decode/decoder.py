"""The decode pool: chunks of records → samples and settled records, in parallel and yet in order.

Per record: its prior claim is looked up · value and headers become an envelope · the image is
fetched if it is a reference · header · header rules · pixels. The first step that fails settles the
record, and nothing of it reaches its neighbours.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image as Pil

from streamer.config import Config
from streamer.decode.failure import Undecodable
from streamer.decode.fetch import Fetcher
from streamer.decode.image import (
    FORMATS,
    Header,
    decode_prepared,
    prepare,
    set_up,
    sniff,
)
from streamer.decode.prepared import Prepared
from streamer.decode.stopwatch import Overrun, Stopwatch
from streamer.errors import InvalidRecord
from streamer.flow.worker import Failure
from streamer.records import (
    U8,
    Claim,
    Decision,
    Decoded,
    Facts,
    FailedRule,
    Jpeg,
    Record,
    Reference,
    Sample,
    Settled,
)
from streamer.wire.envelope import parse
from streamer.wire.known import known
from streamer.wire.limits import Limits, weight

CLOSE_S = 5.0
"""So long an image that is being decoded may keep a process that ends."""
PIXELS_IN_FLIGHT = 64_000_000
"""Pixels that all threads together may be decoding (or one image's, where ``decode.max_pixels`` is
more): 11 to 17 bytes each at their peak (WebP the most)."""

T = TypeVar("T")
_File = tuple[Header, Prepared]

_LIMITS = frozenset(("too_many_bytes", "too_many_pixels", "too_costly", "zero_size"))
"""Reasons that also stand in the way of an embedder's own decoder."""

Transform = Callable[[Pil.Image], U8]
Prior = Callable[[int, int], Claim | None]
Condemns = Callable[[int, int], bool]
Takes = Callable[[int, int, int], bool]
"""(rows, columns, bytes) of a baseline JPEG, as stored"""


class HeaderRules(Protocol):
    """`streamer.judge.filters.HeaderRules`."""

    def check(self, facts: Facts) -> list[FailedRule]: ...


@dataclass(slots=True)
class _Opened:
    """A record whose value and headers made sense."""

    record: Record
    prior: Claim | None
    facts: Facts
    image: bytes | Future[bytes]
    """The bytes, or the fetch that brings them; it is done before `_decode` looks."""


class Decoder:
    """A pool of ``decode.threads`` threads, and one for fetches that starts with the first
    reference."""

    def __init__(
        self,
        config: Config,
        embedder_transform: Transform,
        embedder_decode: Callable[[bytes], U8] | None,
        draft_size: tuple[int, int],
        rules: HeaderRules,
        prior: Prior,
        condemns: Condemns,
        failure: Failure,
        busy: Callable[[], AbstractContextManager[None]] = nullcontext,
        fetch_failed: Callable[[str], None] = lambda cause: None,
        fetched: Callable[[float], None] = lambda seconds: None,
        pixels_shape: tuple[int, ...] | None = None,
        device_takes: Takes | None = None,
        decoded: Callable[[], None] = lambda: None,
    ) -> None:
        """``prior(partition, offset)`` is the verdict of an earlier claim; called on the pool's
        threads, like the rules and the embedder's functions. What ``condemns`` names is invalid
        and not looked at (`streamer.quarantine`).

        ``busy`` wraps the work on each chunk, for its time; ``fetch_failed`` and ``fetched`` are
        `Fetcher`'s ``failed`` and ``fetched``. What is no single record's fault (a bug) is reported
        to ``failure`` and raised from the chunk's future.
        ``pixels_shape``: (H, W, 3) that every image must have in the end; None: any.
        ``device_takes`` names the JPEGs that are left to the device; None: none are. What it cannot
        decode comes back (`decode_here`). ``decoded`` counts what is decoded here.
        """
        set_up(config.decode.max_pixels)
        self._content_type = config.kafka.default_content_type
        self._limits = config.decode
        self._record_limits = Limits.of(config.decode)
        self._transform = embedder_transform
        self._own_decode = embedder_decode
        self._draft_size = draft_size
        self._pixels_shape = pixels_shape
        self._device_takes = device_takes
        self._decoded = decoded
        self._rules = rules
        self._prior = prior
        self._condemns = condemns
        self._failure = failure
        self._busy = busy
        self._pixels = _PixelBudget(max(PIXELS_IN_FLIGHT, config.decode.max_pixels))
        self._fetcher = Fetcher(config.fetch, fetch_failed, fetched)
        self._threads = ThreadPoolExecutor(config.decode.threads, thread_name_prefix="decode")
        self._unfinished: set[Future[list[Decoded]]] = set()
        """What somebody still waits for."""
        self._working: set[Future[Any]] = set()
        self._stopwatch = Stopwatch()

    def submit(self, records: list[Record]) -> Future[list[Decoded]]:
        """One answer for each record, in their order. Does not block; take the futures in the order
        of the calls to keep the line's.

        How many chunks are on their way is the caller's to bound: their references' bytes are known
        only once they are fetched.
        """
        result: Future[list[Decoded]] = Future()
        result.set_running_or_notify_cancel()  # so that nobody else cancels it
        self._unfinished.add(result)
        result.add_done_callback(self._unfinished.discard)
        self._work(self._start, records, result)
        return result

    def _work(self, step: Callable[..., T], *args: Any) -> Future[T]:
        working = self._threads.submit(step, *args)
        self._working.add(working)
        working.add_done_callback(self._working.discard)
        return working

    def decode_here(self, sample: Sample) -> Future[Decoded]:
        """The answer for a JPEG that the device could not decode. Does not block; the future is
        cancelled when the decoder is closed before. Raises RuntimeError once it is closed."""
        return self._work(self._decode_here, sample)

    def forget(self) -> None:
        """Nobody waits any more for what was submitted before: its futures are never done. Does not
        block."""
        self._unfinished.clear()

    def held(self) -> Counter[str]:
        """Server → records that wait for it because it answers nobody. Any thread."""
        return self._fetcher.held()

    def overrun(self, limit: float) -> Overrun | None:
        """An image whose decoding was met here more than ``limit`` times. To be called in even
        intervals, by one thread; does not block."""
        return self._stopwatch.look(limit)

    def close(self) -> None:
        """Forgets what has not begun and waits for the images being decoded, `CLOSE_S` at most.
        Futures left over raise CancelledError."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        concurrent.futures.wait(list(self._working), CLOSE_S)
        self._fetcher.close()
        for result in list(self._unfinished):
            result.set_exception(CancelledError("the decoder was closed"))

    def _start(self, records: list[Record], result: Future[list[Decoded]]) -> None:
        def wanted() -> bool:
            return result in self._unfinished

        if not wanted():
            return
        with _Carry(result, self._failure):
            with self._busy():
                opened = [self._open(record, wanted) for record in records]
            fetches = [
                row.image
                for row in opened
                if isinstance(row, _Opened) and isinstance(row.image, Future)
            ]
            if not fetches:
                self._finish(opened, result)
                return
            # No decode thread waits for the network: the last fetch to arrive puts the chunk into
            # the pool's queue again.
            arrived = _Countdown(len(fetches), lambda: self._go_on(opened, result))
            for fetch in fetches:
                fetch.add_done_callback(arrived)

    def _go_on(self, opened: list[_Opened | Settled], result: Future[list[Decoded]]) -> None:
        # RuntimeError: the pool was closed while the fetches were on their way, and `close` settles
        # the result
        with suppress(RuntimeError):
            self._work(self._finish, opened, result)

    def _finish(self, opened: list[_Opened | Settled], result: Future[list[Decoded]]) -> None:
        with _Carry(result, self._failure):
            with self._busy():
                decoded = [row if isinstance(row, Settled) else self._decode(row) for row in opened]
                for row in decoded:
                    row.nbytes = weight(row.record, row.facts)
                    if isinstance(row, Sample) and isinstance(row.pixels, Jpeg):
                        row.nbytes += len(row.pixels.data)
            result.set_result(decoded)

    def _open(self, record: Record, wanted: Callable[[], bool]) -> _Opened | Settled:
        prior = self._prior(record.partition, record.offset)
        if self._condemns(record.partition, record.offset):
            return _invalid(record, Facts(), InvalidRecord("crashed"), [], prior)
        try:
            envelope = parse(record, self._content_type, self._record_limits)
        except InvalidRecord as error:
            facts = known(record, self._content_type, self._record_limits)
            return _invalid(record, facts, error, [], prior)
        facts = Facts(envelope.id, envelope.text, envelope.url, envelope.metadata)
        image = envelope.image
        return _Opened(
            record,
            prior,
            facts,
            self._fetcher.submit(image, wanted) if isinstance(image, Reference) else image,
        )

    def _decode(self, row: _Opened) -> Decoded:
        record, facts, prior = row.record, row.facts, row.prior
        failures: list[FailedRule] = []
        try:
            data = facts.data = row.image if isinstance(row.image, bytes) else row.image.result(0)
            with self._stopwatch.measure(record.partition, record.offset):
                facts.sha256 = hashlib.sha256(data).hexdigest()
                prepared = self._prepare(data, facts)
                failures = self._rules.check(facts)
            if prior is None:
                reason = next((f.name for f in failures if f.removes), None)
                if reason is not None:
                    return Settled(record, facts, Decision("filtered", reason, _names(failures)))
            if isinstance(prepared, InvalidRecord):
                raise prepared
            jpeg = self._for_device(prepared)
            pixels = self._decode_pixels(record, data, prepared) if jpeg is None else jpeg
            return Sample(record, facts, pixels, failures, prior)
        except InvalidRecord as error:
            return _invalid(record, facts, error, failures, prior)

    def _for_device(self, prepared: _File | None) -> Jpeg | None:
        """What travels on as it came."""
        if self._device_takes is None or prepared is None:
            return None
        header, file = prepared
        if not file.baseline or file.size is None:
            return None
        columns, rows = file.size
        if not self._device_takes(rows, columns, sum(map(len, file.parts))):
            return None
        return Jpeg(b"".join(file.parts), rows, columns, header.orientation)

    def _decode_here(self, sample: Sample) -> Decoded:
        record, facts, data = sample.record, sample.facts, sample.facts.data
        assert data is not None, "this is a bug: a sample has its image's bytes"
        try:
            with self._busy():
                pixels = self._decode_pixels(record, data, prepare(data, self._limits))
        except InvalidRecord as error:
            settled = _invalid(record, facts, error, sample.failures, sample.prior)
            settled.nbytes = sample.nbytes
            return settled
        return Sample(record, facts, pixels, sample.failures, sample.prior, sample.nbytes)

    def _prepare(self, data: bytes, facts: Facts) -> _File | InvalidRecord | None:
        """Header and file, or None where the embedder's own decoder may read what Pillow cannot.

        A known format that is not decoded is handed back instead of raised: it is `filtered` by
        ``output.formats`` in the first place.
        """
        try:
            prepared = prepare(data, self._limits)
        except InvalidRecord as error:
            facts.format = sniff(data)
            if self._own_decode is not None and error.reason not in _LIMITS:
                return None
            if error.reason == "unsupported_image" and facts.format not in FORMATS:
                return error
            raise
        header, _ = prepared
        facts.format, facts.width, facts.height = header.format, header.width, header.height
        return prepared

    def _decode_pixels(self, record: Record, data: bytes, prepared: _File | None) -> U8:
        self._decoded()
        with (
            self._pixels.hold(0 if prepared is None else prepared[0].pixels),
            self._stopwatch.measure(record.partition, record.offset),
        ):
            if self._own_decode is not None:
                with _EMBEDDER:
                    return self._checked(self._own_decode(data))
            assert prepared is not None, (
                "this is a bug: an unreadable header goes no further without an embedder's decode"
            )
            header, file = prepared
            with closing(decode_prepared(file, header, self._draft_size)) as image, _EMBEDDER:
                return self._checked(self._transform(image))

    def _checked(self, pixels: U8) -> U8:
        if not (
            isinstance(pixels, np.ndarray)
            and pixels.dtype == np.uint8
            and pixels.ndim == 3
            and pixels.shape[2] == 3
        ):
            raise TypeError(
                f"gave {type(pixels).__name__} {getattr(pixels, 'dtype', '')} {getattr(pixels, 'shape', '')}, not (height, width, 3) uint8"
            )
        if self._pixels_shape not in (None, pixels.shape):
            raise ValueError(
                f"gave {pixels.shape}, where every other image has {self._pixels_shape}"
            )
        return pixels


_EMBEDDER = Undecodable("decoder_failed")


def _names(failures: list[FailedRule]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(failure.name for failure in failures))


def _invalid(
    record: Record,
    facts: Facts,
    error: InvalidRecord,
    failures: list[FailedRule],
    prior: Claim | None,
) -> Settled:
    return Settled(
        record,
        facts,
        Decision("invalid", error.reason, _names(failures), detail=error.detail),
        prior,
    )


class _Carry:
    """Hands what a step raises to the chunk's future, and stops the process: no single record's
    fault ends here."""

    def __init__(self, result: Future[list[Decoded]], failure: Failure) -> None:
        self._result = result
        self._failure = failure

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        self._failure.report(error)
        self._result.set_exception(error)
        return True


class _PixelBudget:
    """Bounds the memory of the decode threads together: big images wait for one another, small ones
    do not notice."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Waits until ``pixels`` (at most the whole budget) are free. Whoever holds them is
        decoding, and so gives them back."""
        with self._freed:
            while self._left < pixels:
                self._freed.wait()
            self._left -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._left += pixels
                self._freed.notify_all()


class _Countdown:
    """A done-callback for several futures: calls ``then`` in the thread that finishes the last one."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count = count
        self._then = then
        self._lock = threading.Lock()

    def __call__(self, done: Future[bytes]) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._then()
