"""What a watcher asks of a running replica."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.service import Replica


def port_of(replica: Replica) -> int:
    replica.wait_for("serving /metrics", timeout=60)
    [line] = [line for line in list(replica.lines) if "serving /metrics" in line]
    return int(json.loads(line)["port"])


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, text = ask(port, "/metrics")
    assert status == 200
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }


def total(scraped: dict[Any, float], name: str, **labels: str) -> float:
    return sum(
        v for (n, have), v in scraped.items() if n == name and labels.items() <= dict(have).items()
    )


def wait_until(done: Callable[[], object], replica: Replica, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, replica.log
        time.sleep(0.05)
