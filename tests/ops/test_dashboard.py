"""Every query of the dashboard, evaluated by a real Prometheus that scrapes our own server while it
works."""

import json
import math
import re
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamer.config import Http
from streamer.errors import INVALID_REASONS
from streamer.flow.channel import Channel
from streamer.flow.worker import Failure
from streamer.ops.health import Health
from streamer.ops.http import OpsServer
from streamer.ops.metrics import DROP_CAUSES, FETCH_ERRORS, INDEX, REBALANCES, STAGES, Metrics
from streamer.ops.tally import EpochTally
from streamer.records import OUTCOMES, DecidedBatch, Decision, Facts, Record
from tests.ops.ops_prometheus import NoPrometheus, find_prometheus, prometheus

DASHBOARD = Path(__file__).parents[2] / "k8s/base/dashboard/streamer.json"
PARTITIONS = 3
INTERVAL_S = 10


def load():
    return json.loads(DASHBOARD.read_text("utf-8"))


def charts():
    return [panel for panel in load()["panels"] if panel["type"] != "row"]


def queries():
    """(name, PromQL as Grafana sends it)"""
    fill = {"$__rate_interval": f"{INTERVAL_S}s", "$job": ".+"}
    found = []
    for panel in charts():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, text in fill.items():
                expression = expression.replace(variable, text)
            assert "$" not in expression
            found.append(
                pytest.param(
                    expression,
                    target.get("legendFormat", ""),
                    id=f"{panel['title']}-{target['refId']}",
                )
            )
    return found


def work(metrics):
    """A second in the life of a replica that meets everything."""
    now_ms = int(time.time() * 1000)
    decisions = [
        Decision("accepted"),
        Decision("accepted"),
        Decision("filtered", "min_side"),
        Decision("duplicate", "near_duplicate", duplicate_of=(0, 1), similarity=0.97),
        *(Decision("invalid", reason) for reason in INVALID_REASONS),
    ]
    n = len(decisions)
    tally = EpochTally()
    tally.add(
        DecidedBatch(
            [Record(i % PARTITIONS, i, now_ms - 300 * i, b"x", ()) for i in range(n)],
            [Facts() for _ in range(n)],
            decisions,
            np.zeros((n, 4), np.float16),
            np.ones(n, np.bool_),
            {},
        )
    )
    for stage in STAGES:
        with metrics.stage(stage):
            pass
    metrics.batch_records.observe(n)
    metrics.claim_round_trip.observe(0.02)
    metrics.claims_void.inc()
    metrics.fetch_seconds.observe(0.2)
    for cause in FETCH_ERRORS:
        metrics.fetch_failed(cause)
    for cause in DROP_CAUSES:
        metrics.epoch_dropped(cause, 1)
    for event in REBALANCES:
        metrics.rebalanced(event, 1, PARTITIONS)
    metrics.watch_index(lambda: dict.fromkeys(INDEX, 2.0))
    metrics.epoch_open(n, 1000 * n, time.time())
    metrics.epoch_committed(tally, len(INVALID_REASONS))
    metrics.lag(dict.fromkeys(range(PARTITIONS), 7), now_ms)


@pytest.fixture(scope="module")
def scraped():
    """The port of a server whose metrics move while the tests look."""
    metrics = Metrics(["min_side"])
    metrics.watch_queue(Channel("decode", 4))
    metrics.watch_device_memory(lambda: {"allocated": 1.0, "free": 2.0})
    server = OpsServer(Http(host="127.0.0.1", port=0), metrics, Health(Failure()))
    server.start()
    stop = threading.Event()

    def live():
        while not stop.wait(0.25):
            work(metrics)

    worker = threading.Thread(target=live, name="device", daemon=True)
    worker.start()
    yield server.port
    stop.set()
    worker.join(5)
    server.close()


@pytest.fixture(scope="module")
def live_prometheus(scraped, tmp_path_factory):
    """A Prometheus with some seconds of history, or why there is none."""
    try:
        find_prometheus()
    except NoPrometheus as error:
        yield str(error)
        return
    with prometheus(tmp_path_factory.mktemp("prometheus"), scraped) as server:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            result = server.query(f"count_over_time(up[{INTERVAL_S}s])")
            if result and float(result[0]["value"][1]) >= 8:
                break
            time.sleep(0.25)
        yield server


@pytest.fixture
def evaluated(live_prometheus, without):
    return (
        without("Prometheus", live_prometheus)
        if isinstance(live_prometheus, str)
        else live_prometheus
    )


@pytest.mark.parametrize(("expression", "legend"), queries())
def test_every_query_has_an_answer_with_numbers_and_the_labels_of_its_legend(
    evaluated, expression, legend
):
    result = evaluated.query(expression)
    assert result, f"no data: {expression}"
    values = [float(series["value"][1]) for series in result]
    assert all(math.isfinite(v) for v in values), values
    for label in re.findall(r"{{(\w+)}}", legend):
        assert all(series["metric"].get(label) is not None for series in result), (label, result[0])


def test_numbers_that_can_be_known_beforehand_are_right(evaluated):
    expressions = {p.id: p.values[0] for p in queries()}
    by_outcome = {
        s["metric"]["outcome"]: float(s["value"][1])
        for s in evaluated.query(expressions["Decisions by outcome-A"])
    }
    assert by_outcome.keys() == set(OUTCOMES)
    assert by_outcome["accepted"] == pytest.approx(2 * by_outcome["filtered"])
    assert by_outcome["invalid"] == pytest.approx(len(INVALID_REASONS) * by_outcome["duplicate"])
    accepted = float(evaluated.query(expressions["Accepted-A"])[0]["value"][1])
    assert accepted == pytest.approx(2 / (4 + len(INVALID_REASONS)), rel=0.1)
    assert float(evaluated.query(expressions["Behind, records-A"])[0]["value"][1]) == 7 * PARTITIONS
    assert (
        0.1 < float(evaluated.query(expressions["From timestamp to commit-A"])[0]["value"][1]) < 10
    )


def test_a_wrong_query_is_refused(evaluated):
    with pytest.raises(AssertionError, match="parse error"):
        evaluated.query("sum by (outcome) (rate(streamer_decisions_total))[")
    assert evaluated.query("streamer_no_such_metric") == []


def test_the_variables_find_their_values(evaluated):
    definitions = [v["definition"] for v in load()["templating"]["list"] if v["type"] == "query"]
    assert definitions
    for definition in definitions:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", definition).groups()
        assert evaluated.ask(f"label/{label}/values", **{"match[]": metric}) == ["streamer"]


# What also holds where no Prometheus can be had


@pytest.fixture(scope="module")
def exposed(scraped):
    """Metric name → label names, of a live scrape."""
    time.sleep(0.6)
    with urllib.request.urlopen(f"http://127.0.0.1:{scraped}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        names = {}
        for family in families:
            for sample in family.samples:
                names.setdefault(sample.name, set()).update(sample.labels)
    return names


def selectors(node):
    """Every vector selector under a node of promql_parser's tree."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, (str, int, float)):
            yield from selectors(child)
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


@pytest.mark.parametrize(("expression", "legend"), queries())
def test_every_query_parses_and_names_what_a_scrape_shows(exposed, expression, legend):
    found = list(selectors(promql_parser.parse(expression)))
    assert found, expression
    grouped = {
        label.strip()
        for labels in re.findall(r"by \(([^)]*)\)", expression)
        for label in labels.split(",")
    }
    for selector in found:
        if selector.name == "up":
            continue
        assert selector.name in exposed, selector.name
        labels = exposed[selector.name] | {"job", "instance"}
        assert {m.name for m in selector.matchers.matchers} <= labels
        assert grouped <= labels


def test_the_contracts_metrics_are_all_on_the_dashboard():
    text = DASHBOARD.read_text("utf-8")
    for name in (
        "streamer_records_consumed_total", "streamer_decisions_total", "streamer_lag_records", "streamer_lag_seconds",
        "streamer_epochs_committed_total", "streamer_index_vectors", "streamer_end_to_end_seconds_bucket", "streamer_stage_seconds_total",
    ):  # fmt: skip
        assert name in text


def test_panels_are_complete_and_do_not_overlap():
    panels = load()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in charts():
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
