"""A real process that hangs, ended by its watchdog."""

import json
import os
import subprocess
import sys
import threading
import time

from streamer.ops.watchdog import Watchdog


def run(body, **environ):
    script = f"import logging, sys, threading, time\nfrom streamer.ops import logs\nfrom streamer.ops.watchdog import Watchdog\n{body}"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "STREAMER_LOG": "text", **environ},
    )
    return done, time.monotonic() - began


def test_an_overrun_ends_the_process_with_75_and_one_line_that_names_it():
    done, seconds = run(
        "watchdog = Watchdog()\n"
        "def commit_transaction():\n    threading.Event().wait()\n"
        "try:\n"
        "    with watchdog.limit('the commit of epoch 7', 0.5):\n        commit_transaction()\n"
        "finally:\n    print('cleanup ran')\n"
    )
    assert done.returncode == 75
    assert done.stdout == ""  # nothing is waited for, nothing is cleaned up
    [line] = done.stderr.splitlines()
    assert "the commit of epoch 7 did not end within 0.5 s" in line
    assert "it hangs in wait (" in line
    assert "exit 75" in line
    assert seconds < 20


def test_it_ends_the_process_while_logging_itself_is_stuck():
    done, _ = run(
        "logs.setup()\n"
        "watchdog = Watchdog()\n"
        "handler = logging.getLogger().handlers[0]\n"
        "handler.acquire()\n"
        "def hang():\n    with watchdog.limit('a log line', 0.3):\n        logging.getLogger('streamer').error('never said')\n"
        "threading.Thread(target=hang).start()\n"
        "time.sleep(30)\n",
        STREAMER_LOG="json",
    )
    assert done.returncode == 75
    [line] = done.stderr.splitlines()
    assert "a log line did not end within 0.3 s" in json.loads(line)["message"]


def test_of_several_limits_the_first_to_overrun_is_named():
    done, _ = run(
        "watchdog = Watchdog()\n"
        "def hang(what, s):\n    with watchdog.limit(what, s):\n        time.sleep(30)\n"
        "threading.Thread(target=hang, args=('slow', 20), daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "with watchdog.limit('outer', 25):\n    hang('quick', 0.3)\n"
    )
    assert done.returncode == 75
    assert "quick did not end" in done.stderr


def test_what_ends_in_time_is_left_alone():
    done, _ = run(
        "watchdog = Watchdog()\n"
        "for i in range(200):\n    with watchdog.limit('quick', 0.5):\n        pass\n"
        "try:\n    with watchdog.limit('raises', 0.3):\n        raise ValueError\nexcept ValueError:\n    pass\n"
        "time.sleep(0.8)\nwatchdog.close()\nprint('done')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_clock_that_stands_still_ends_nothing():
    done, _ = run(
        "still = [0.0]\n"
        "watchdog = Watchdog(lambda: time.monotonic() if still[0] is None else still[0])\n"
        "with watchdog.limit('what waits for brokers', 0.2):\n    time.sleep(0.8)\n    print('waited', flush=True)\n"
        "    still[0] = None\n    time.sleep(30)\n"
    )
    assert (done.returncode, done.stdout) == (75, "waited\n")


def test_close_ends_the_thread():
    before = threading.active_count()
    watchdog = Watchdog()
    assert threading.active_count() == before + 1
    watchdog.close()
    assert threading.active_count() == before
