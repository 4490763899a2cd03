"""Fixtures of the integration tests: a dataset of the test's own and real processes that run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service import THUMBNAIL, Made, Service


@pytest.fixture
def make_service(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Made]:
    """``make_service(dataset, **settings)``: a service with the light test embedder unless the
    settings say otherwise."""
    made: list[Service] = []

    def make(dataset: str, **settings: Any) -> Service:
        base: dict[str, Any] = {
            "dataset": dataset,
            "writer": "w0",
            "kafka": {
                "bootstrap_servers": kafka,
                "topic": topic_name,
                "client": {"session.timeout.ms": 6000, "max.poll.interval.ms": 30000},
            },
            "embedder": THUMBNAIL,
            "dedup": {"threshold": 0.97},
            "decode": {"threads": 2},
            "output": {"path": str(tmp_path / "out")},
            "batch": {"size": 32, "linger": "20ms"},
            "http": {"host": "127.0.0.1", "port": 0},
            "device": "cpu",
        }
        service = Service(tmp_path, {**base, **settings})
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()
