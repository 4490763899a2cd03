"""Alive, ready, and the reason when not."""

import threading

from streamer.flow.worker import Failure, Worker
from streamer.ops.health import Health


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_starting_is_alive_but_not_ready_and_says_what_it_does():
    health = Health(Failure())
    health.enter("loading the model")
    assert health.livez().ok
    report = health.readyz()
    assert not report.ok
    assert "loading the model" in report.reason
    health.enter("polling", ready=True)
    assert health.readyz().as_json() == {
        "ok": True,
        "phase": "polling",
        "reason": "",
        "heartbeats": {},
    }
    health.enter("draining")
    assert not health.readyz().ok
    assert health.livez().ok


def test_a_heartbeat_older_than_its_limit_is_death_and_names_the_thread():
    clock = Clock()
    health = Health(Failure(), clock)
    health.enter("polling", ready=True)
    main, device = health.heartbeat("main", 60), health.heartbeat("device", 10)
    clock.now += 9
    assert health.livez().ok
    clock.now += 2
    main()
    report = health.livez()
    assert not report.ok
    assert report.reason == "thread device gave no sign for 11 s (limit 10 s)"
    assert report.heartbeats == {"main": 0.0, "device": 11.0}
    assert not health.readyz().ok
    assert "device" in health.readyz().reason
    device()
    assert health.livez().ok
    clock.now += 30
    health.forget(device)
    assert health.livez().ok


def test_a_failed_thread_is_death():
    failure = Failure()
    health = Health(failure)
    health.enter("polling", ready=True)

    def fail():
        raise ValueError("boom")

    worker = Worker("decode-1", fail, failure)
    worker.start()
    assert worker.join(5)
    assert not health.livez().ok
    assert "thread decode-1 failed" in health.livez().reason
    assert not health.readyz().ok


def test_a_stop_without_a_failure_is_no_death():
    failure = Failure()
    failure.stop.set()
    assert Health(failure).livez().ok


def test_threads_may_come_and_go_while_a_probe_looks():
    health = Health(Failure())
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            health.forget(health.heartbeat("passing", 60))

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert all(health.livez().ok for _ in range(500))
    stop.set()
    for thread in threads:
        thread.join(5)


def test_the_phase_names_the_servers_that_the_line_waits_for():
    held = {}
    health = Health(Failure())
    health.watch_held(lambda: held)
    health.enter("polling", ready=True)
    assert health.readyz().phase == "polling"
    held |= {"b.example:443": 1, "a.example:80": 30}
    assert health.readyz().ok
    assert health.readyz().phase == "polling, waiting for a.example:80, b.example:443"
    assert health.livez().ok
    health.enter("draining")
    assert "draining, waiting for a.example:80" in health.readyz().reason


def test_a_storage_that_is_away_is_named_and_makes_no_thread_late():
    clock, away = Clock(), [0.0]
    health = Health(Failure(), clock)
    health.watch_storage(lambda: away[0])
    health.enter("polling", ready=True)
    writer = health.heartbeat("writer", 300)
    clock.now += 299
    health.excuse()
    away[0] = 299.4
    clock.now += 299
    report = health.readyz()
    assert report.ok
    assert report.phase == "polling, waiting for the storage (299 s)"
    assert report.heartbeats == {"writer": 598.0}
    clock.now += 2
    assert not health.livez().ok, "nobody waits any more"
    with health.unwatched(writer):
        assert health.livez().ok
        clock.now += 900
    assert health.livez().ok
    clock.now += 301
    assert not health.livez().ok, "watched again"


def test_while_brokers_are_away_it_is_alive_and_not_ready():
    said = []
    health = Health(Failure())
    health.watch_brokers(lambda: "".join(said))
    health.enter("polling", ready=True)
    assert health.readyz().ok
    said.append("the brokers are away")
    assert health.livez().ok
    report = health.readyz()
    assert (report.ok, report.phase, report.reason) == (
        False,
        "polling; the brokers are away",
        "the brokers are away",
    )
