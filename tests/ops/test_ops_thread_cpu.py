"""CPU seconds by thread, measured on threads that burn some."""

import sys
import threading
import time

import pytest

from streamer.ops.thread_cpu import ThreadCpu

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def burning_thread(name, seconds, hold):
    def run():
        burn(seconds)
        hold.wait(10)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def test_threads_are_summed_by_name_and_never_fall():
    cpu = ThreadCpu()
    hold = threading.Event()
    threads = [
        burning_thread("decode-1", 0.15, hold),
        burning_thread("decode-2", 0.15, hold),
        burning_thread("device", 0.05, hold),
    ]
    deadline = time.monotonic() + 20
    while (seen := cpu.read()).get("decode", 0) < 0.25 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen["decode"] >= 0.25
    assert 0.03 <= seen["device"] < 0.2
    hold.set()
    for thread in threads:
        thread.join(5)
    later = cpu.read()
    assert later["decode"] >= seen["decode"]
    assert later["device"] >= seen["device"]
    assert cpu.read() == pytest.approx(later, abs=0.2)


def test_the_metric_has_one_series_a_name():
    [family] = ThreadCpu().collect()
    names = [sample.labels["thread"] for sample in family.samples]
    assert "MainThread" in names
    assert len(names) == len(set(names))
