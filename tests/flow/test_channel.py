"""`Channel`: bounded in items and bytes, first in first out, and no wait without an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.flow.channel import Channel

SHORT, LONG = 0.05, 20.0


def timed(call: Callable[[], object]) -> tuple[object, float]:
    before = time.monotonic()
    return call(), time.monotonic() - before


def test_first_in_first_out() -> None:
    channel: Channel[int] = Channel("c", 10)
    for i in range(10):
        assert channel.put(i, nbytes=i)
    assert len(channel) == 10
    assert channel.nbytes == 45
    assert [channel.get(0) for _ in range(10)] == list(range(10))
    assert channel.get(0) is None
    assert (len(channel), channel.nbytes) == (0, 0)


def test_full_by_items() -> None:
    channel: Channel[str] = Channel("c", 2)
    assert channel.put("a")
    assert channel.put("b")
    assert not channel.put("c")
    assert not channel.wait_room(0)
    assert channel.get(0) == "a"
    assert channel.wait_room(0)
    assert channel.put("c")
    assert [channel.get(0), channel.get(0)] == ["b", "c"]


def test_full_by_bytes_but_one_item_of_any_size_goes_in() -> None:
    channel: Channel[str] = Channel("c", 100, max_bytes=10)
    assert channel.put("huge", nbytes=1000)
    assert not channel.put("tiny", nbytes=1)
    assert not channel.put("empty", nbytes=0)
    assert channel.get(0) == "huge"
    assert channel.put("a", nbytes=9)
    assert channel.put("b", nbytes=9)
    assert not channel.put("c", nbytes=1)
    assert channel.nbytes == 18


@pytest.mark.parametrize("timeout", [0.0, SHORT])
def test_get_and_put_wait_as_long_as_they_were_told(timeout: float) -> None:
    empty: Channel[int] = Channel("empty", 1)
    full: Channel[int] = Channel("full", 1)
    full.put(1)
    calls: list[tuple[Callable[[], object], object]] = [
        (lambda: empty.get(timeout), None),
        (lambda: full.put(2, timeout=timeout), False),
        (lambda: full.wait_room(timeout), False),
    ]
    for call, expected in calls:
        answer, seconds = timed(call)
        assert answer is expected
        assert timeout <= seconds < timeout + 5
    assert len(full) == 1


def test_a_waiting_get_takes_what_comes() -> None:
    channel: Channel[str] = Channel("c", 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(timed, lambda: channel.get(LONG))
        time.sleep(SHORT)
        assert channel.put("late")
        answer, seconds = waiting.result(LONG)
    assert answer == "late"
    assert seconds < LONG


def test_a_waiting_put_goes_in_when_something_leaves() -> None:
    channel: Channel[str] = Channel("c", 10, max_bytes=5)
    channel.put("first", nbytes=5)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(timed, lambda: channel.put("second", 5, LONG))
        time.sleep(SHORT)
        assert not waiting.done()
        assert channel.get(0) == "first"
        answer, seconds = waiting.result(LONG)
    assert answer is True
    assert seconds < LONG
    assert channel.get(0) == "second"


def test_many_threads_lose_and_repeat_nothing_and_never_pass_the_bound() -> None:
    channel: Channel[tuple[int, int]] = Channel("c", 3)
    each, threads = 300, 4
    taken: list[tuple[int, int]] = []
    lock = threading.Lock()
    most = 0

    def feed(number: int) -> None:
        for i in range(each):
            assert channel.put((number, i), timeout=LONG)

    def drain() -> None:
        nonlocal most
        while True:
            seen = len(channel)
            item = channel.get(LONG)
            assert item is not None
            with lock:
                most = max(most, seen)
                if item[0] < 0:
                    return
                taken.append(item)

    with ThreadPoolExecutor(2 * threads) as pool:
        drains = [pool.submit(drain) for _ in range(threads)]
        for feeding in [pool.submit(feed, n) for n in range(threads)]:
            feeding.result(LONG)
        for _ in range(threads):
            assert channel.put((-1, 0), timeout=LONG)
        for draining in drains:
            draining.result(LONG)
    assert sorted(taken) == [(n, i) for n in range(threads) for i in range(each)]
    assert most <= 3


def test_one_reader_sees_each_writers_items_in_order() -> None:
    channel: Channel[tuple[int, int]] = Channel("c", 2)

    def feed(number: int) -> None:
        for i in range(200):
            assert channel.put((number, i), timeout=LONG)

    with ThreadPoolExecutor(2) as pool:
        feeding = [pool.submit(feed, n) for n in range(2)]
        items = [channel.get(LONG) for _ in range(400)]
        for done in feeding:
            done.result(LONG)
    for number in range(2):
        assert [i for n, i in filter(None, items) if n == number] == list(range(200))
