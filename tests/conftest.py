"""What the tests share: a real broker, sets of data, and one loud last line about whatever could
not be had."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from streamer import redact
from streamer.errors import DependencyError
from streamer.testing import Broker, kafka_jars
from streamer.testing.jars import java

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
LARGE_SETS = (Path(__file__).parents[1] / "../shared/data").resolve()

BROKER = "Apache Kafka"
CUDA = "a CUDA device"
LARGE = (
    "on the large sets (../shared/data is not beside the repository: they ran on tests/data alone)"
)
_gaps: Counter[tuple[bool, str]] = Counter()
"""(whether it fails the run, what a test was without) → tests. A run on the small sets alone is
complete, in CI too: it is what a clone can do."""


def _without(thing: str, why: str) -> NoReturn:
    """Skips the test, or fails it in CI, where nothing but a GPU may be missing; the last line of
    the run counts them."""
    message = f"no {thing}: {why}"
    fatal = IN_CI and thing != CUDA
    outcome = (
        pytest.fail.Exception(message, pytrace=False) if fatal else pytest.skip.Exception(message)
    )
    outcome.gap = (fatal, f"without {thing} ({why})")
    raise outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The gap travels on the report, for a test may run in a process of its own."""
    report = yield
    gap = None if call.excinfo is None else getattr(call.excinfo.value, "gap", None)
    if gap is None and call.when == "call" and _uses_data(item) and not LARGE_SETS.is_dir():
        gap = False, LARGE
    report.gap = gap  # type: ignore[attr-defined]  # pytest keeps what is added to a report
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if gap := getattr(report, "gap", None):
        _gaps[tuple(gap)] += 1


@pytest.fixture(scope="session")
def without() -> Callable[[str, str], NoReturn]:
    """``without(thing, why)``: the test cannot run here. For what only one folder's tests need
    (tests/ops: Prometheus)."""
    return _without


@pytest.fixture(scope="session")
def _embedded_trouble() -> str:
    try:
        java()
        kafka_jars()
    except DependencyError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def _kafka_session(_embedded_trouble: str) -> Iterator[tuple[str, str]]:
    """(bootstrap servers, "") or ("", why there are none)."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given, ""
    elif _embedded_trouble:
        yield "", _embedded_trouble
    else:
        with (
            Broker() as broker
        ):  # a broker that can be had but does not start is an error, not a skip
            yield broker.bootstrap_servers, ""


@pytest.fixture
def kafka(_kafka_session: tuple[str, str]) -> str:
    """Bootstrap servers of a real Kafka: KAFKA_BOOTSTRAP_SERVERS, or one embedded broker for the
    whole run."""
    servers, why = _kafka_session
    return servers or _without(BROKER, why)


@pytest.fixture(scope="session")
def embedded(_embedded_trouble: str) -> Callable[..., Broker]:
    """`Broker`, for tests that stop, kill or configure one of their own."""
    return _without(BROKER, _embedded_trouble) if _embedded_trouble else Broker


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """A test that quiets our loggers quiets nobody else's."""
    yield
    logging.getLogger("streamer").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test hides is no secret in another."""
    monkeypatch.setattr(redact, "_known", ())


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> str:
    """A topic name of this test's own; nothing is created."""
    return f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')[:80]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def dataset_name() -> str:
    """A dataset name of this test's own; nothing is created."""
    return f"d{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def _small_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data.made import make_small_sets

    return make_small_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(
    params=["small", pytest.param("large", marks=pytest.mark.shared)][: 1 + LARGE_SETS.is_dir()]
)
def data_set(request: pytest.FixtureRequest) -> Path:
    """A folder with ``hostile``, ``photos``, ``heads`` and ``clip_preprocess_golden``, not to be
    changed. The test runs on the small sets of tests/data, and once more on the large sets where
    they are beside the repository."""
    if request.param == "large":
        return LARGE_SETS
    small: Path = request.getfixturevalue("_small_sets")
    return small


@pytest.fixture
def large(data_set: Path) -> bool:
    """Whether ``data_set`` is the large one: for what a test expects of its size or contents."""
    return data_set == LARGE_SETS


def _uses_data(item: pytest.Item) -> bool:
    return "data_set" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "_embedded_trouble" in getattr(item, "fixturenames", ()):
            item.add_marker("kafka")


_cuda_trouble: list[str] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        if not _cuda_trouble:  # torch takes seconds to import: only when a gpu test runs, and once
            _cuda_trouble.append(_look_for_cuda())
        if _cuda_trouble[0]:
            _without(CUDA, _cuda_trouble[0])


def _look_for_cuda() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "torch finds none on this machine"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield  # everything else that reports does so in here: the line below is the last of the run
    if not _gaps or hasattr(session.config, "workerinput"):
        return
    parts = [f"{count} test{'s' * (count > 1)} {gap}" for (_, gap), count in sorted(_gaps.items())]
    verb = "FAILED FOR WANT OF IT" if any(fatal for fatal, _ in _gaps) else "NOT TESTED"
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(
            f"!!! {verb}: {'; '.join(parts)}".replace("\n", " "), red=True, bold=True
        )
