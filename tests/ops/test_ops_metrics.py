"""What a scrape shows, and that nothing shows as done before its commit."""

import time

import numpy as np
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from streamer.errors import INVALID_REASONS, STORAGE_CAUSES
from streamer.flow.channel import Channel
from streamer.ops.collector import BulkHistogram
from streamer.ops.metrics import DROP_CAUSES, STAGES, Metrics
from streamer.ops.tally import EpochTally
from streamer.records import DecidedBatch, Decision, Facts, Record


def samples(metrics):
    text = generate_latest(metrics.registry).decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def batch(decisions, timestamps_ms):
    n = len(decisions)
    return DecidedBatch(
        records=[Record(0, i, t, b"x", ()) for i, t in enumerate(timestamps_ms)],
        facts=[Facts() for _ in range(n)],
        decisions=decisions,
        embeddings=np.zeros((n, 4), np.float16),
        embedded=np.zeros(n, np.bool_),
        scores={},
    )


def tally_of(decisions, timestamps_ms):
    tally = EpochTally()
    tally.add(batch(decisions, timestamps_ms))
    return tally


CONTRACT = {
    "streamer_records_consumed_total": set(),
    "streamer_decisions_total": {"outcome", "reason"},
    "streamer_lag_records": {"partition"},
    "streamer_lag_seconds": set(),
    "streamer_epochs_committed_total": set(),
    "streamer_index_vectors": set(),
}


def test_the_contract_holds():
    metrics = Metrics()
    metrics.lag({0: 3}, 0)
    seen = {}
    for name, labels in samples(metrics):
        seen.setdefault(name, set()).add(frozenset(key for key, _ in labels))
    assert {name: seen.get(name) for name in CONTRACT} == {
        name: {frozenset(labels)} for name, labels in CONTRACT.items()
    }


def test_a_tally_counts_nothing_until_its_epoch_is_committed():
    metrics = Metrics(["min_side"])
    now_ms = int(time.time() * 1000)
    tally = EpochTally()
    tally.add(batch([Decision("accepted"), Decision("filtered", "min_side")], [now_ms, now_ms]))
    tally.add(
        batch(
            [Decision("duplicate", "near_duplicate"), Decision("invalid", "truncated")],
            [now_ms, now_ms],
        )
    )
    before = samples(metrics)
    assert before["streamer_records_consumed_total", ()] == 0
    metrics.epoch_committed(tally, dead_letters=1)
    assert value(metrics, "streamer_records_consumed_total") == 4
    assert value(metrics, "streamer_epochs_committed_total") == 1
    assert value(metrics, "streamer_dead_letters_total") == 1
    assert value(metrics, "streamer_end_to_end_seconds_count") == 4
    for outcome, reason in [
        ("accepted", ""),
        ("filtered", "min_side"),
        ("duplicate", "near_duplicate"),
        ("invalid", "truncated"),
    ]:
        assert value(metrics, "streamer_decisions_total", outcome=outcome, reason=reason) == 1


def test_no_record_can_create_a_series():
    metrics = Metrics(["sharp"])
    before = {key for key in samples(metrics) if key[0] == "streamer_decisions_total"}
    for i in range(500):
        metrics.epoch_committed(tally_of([Decision("filtered", f"made up {i}")], [0]), 0)
        metrics.epoch_dropped(f"cause {i}", rewound=2)
        metrics.fetch_failed(f"cause {i}")
    after = {key for key in samples(metrics) if key[0] == "streamer_decisions_total"}
    assert after - before == {
        ("streamer_decisions_total", (("outcome", "filtered"), ("reason", "other")))
    }
    assert value(metrics, "streamer_decisions_total", outcome="filtered", reason="other") == 500
    assert value(metrics, "streamer_epochs_dropped_total", cause="other") == 500
    assert value(metrics, "streamer_rewinds_total", cause="other") == 1000
    assert value(metrics, "streamer_fetch_errors_total", cause="other") == 500


def test_known_series_are_there_from_the_start():
    metrics = Metrics(["sharp"])
    assert value(metrics, "streamer_decisions_total", outcome="filtered", reason="sharp") == 0
    assert value(metrics, "streamer_decisions_total", outcome="filtered", reason="format") == 0
    assert {
        value(metrics, "streamer_decisions_total", outcome="invalid", reason=r)
        for r in INVALID_REASONS
    } == {0}
    assert {
        value(metrics, "streamer_epochs_dropped_total", cause=cause) for cause in DROP_CAUSES
    } == {0}
    assert {value(metrics, "streamer_stage_seconds_total", stage=stage) for stage in STAGES} == {0}


def test_ages_run_from_the_records_timestamp_and_leave_out_records_without_one():
    tally = tally_of([Decision("accepted")] * 4, [0, 1_000_000, 990_000, 1_500_000])
    assert tally.ages(1_001.0).tolist() == [1.0, 11.0, 0.0]
    assert EpochTally().ages(5.0).tolist() == []


def test_the_bulk_histogram_is_the_librarys_histogram():
    bounds = (0.5, 1, 5)
    values = np.array([0.0, 0.5, 0.500001, 1, 4.9, 5, 5.1, 1e9])
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = Histogram("h", "help", buckets=bounds, registry=theirs)
    for v in values:
        reference.observe(v)
    bulk = BulkHistogram("h", "help", bounds)
    bulk.observe(values[:3])
    bulk.observe(values[3:])
    bulk.observe(np.empty(0))
    ours.register(bulk)

    def comparable(registry):
        return sorted(
            (s.name, s.labels.get("le"), s.value)
            for f in registry.collect()
            for s in f.samples
            if not s.name.endswith("_created")
        )

    assert comparable(ours) == comparable(theirs)


def test_lag_forgets_partitions_that_went_away_and_grows_by_itself():
    metrics = Metrics()
    metrics.lag({0: 5, 1: 7}, oldest_ms=int(time.time() * 1000) - 10_000)
    metrics.lag({1: 6}, oldest_ms=int(time.time() * 1000) - 10_000)
    assert {k: v for k, v in samples(metrics).items() if k[0] == "streamer_lag_records"} == {
        ("streamer_lag_records", (("partition", "1"),)): 6
    }
    first = value(metrics, "streamer_lag_seconds")
    time.sleep(0.05)
    assert 10 <= first < value(metrics, "streamer_lag_seconds") < 20
    metrics.lag({1: 0}, oldest_ms=0)
    assert value(metrics, "streamer_lag_seconds") == 0


def test_the_open_epoch_shows_its_size_and_age():
    metrics = Metrics()
    metrics.epoch_open(12, 3456, opened_at=time.time() - 7)
    assert value(metrics, "streamer_epoch_records") == 12
    assert value(metrics, "streamer_epoch_bytes") == 3456
    assert 7 <= value(metrics, "streamer_epoch_age_seconds") < 17
    metrics.epoch_open(0, 0, opened_at=0)
    assert value(metrics, "streamer_epoch_age_seconds") == 0


def test_a_stage_counts_its_seconds_even_when_it_raises():
    metrics = Metrics()
    with metrics.stage("embed"):
        time.sleep(0.02)

    def fail():
        with metrics.stage("embed"):
            time.sleep(0.02)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert 0.04 <= value(metrics, "streamer_stage_seconds_total", stage="embed") < 1


def test_queues_are_read_at_scrape_time():
    metrics = Metrics()
    queue = Channel("decoded", 8)
    metrics.watch_queue(queue)
    queue.put([1, 2], nbytes=300)
    assert value(metrics, "streamer_queue_items", queue="decoded") == 1
    assert value(metrics, "streamer_queue_bytes", queue="decoded") == 300
    queue.get(0)
    assert value(metrics, "streamer_queue_items", queue="decoded") == 0


def test_records_that_wait_for_their_servers_are_counted():
    metrics = Metrics()
    assert value(metrics, "streamer_fetch_held_records") == 0
    metrics.watch_held(lambda: {"a.example:80": 3, "b.example:443": 4})
    assert value(metrics, "streamer_fetch_held_records") == 7


def test_a_storage_that_is_away_is_shown_with_every_cause():
    metrics = Metrics()
    for cause in STORAGE_CAUSES:
        assert value(metrics, "streamer_storage_retries_total", cause=cause) == 0
    assert value(metrics, "streamer_storage_away_seconds") == 0
    metrics.watch_storage(lambda: 42.0)
    metrics.storage_retried("throttled")
    assert value(metrics, "streamer_storage_retries_total", cause="throttled") == 1
    assert value(metrics, "streamer_storage_away_seconds") == 42


def test_brokers_that_are_away_are_timed():
    metrics = Metrics()
    assert value(metrics, "streamer_brokers_away_seconds") == 0
    metrics.watch_brokers(lambda: 12.5)
    assert value(metrics, "streamer_brokers_away_seconds") == 12.5


def test_rebalances_and_device_memory():
    metrics = Metrics()
    metrics.rebalanced("assigned", 4, owned=4)
    metrics.rebalanced("lost", 3, owned=1)
    metrics.watch_device_memory(lambda: {"allocated": 5.0, "free": 7.0})
    assert value(metrics, "streamer_rebalances_total", event="assigned") == 4
    assert value(metrics, "streamer_rebalances_total", event="lost") == 3
    assert value(metrics, "streamer_partitions_assigned") == 1
    assert value(metrics, "streamer_device_memory_bytes", kind="free") == 7


def test_two_processes_worth_of_metrics_share_nothing_and_leave_the_global_registry_alone():
    before = {family.name for family in prometheus_client.REGISTRY.collect()}
    one, two = Metrics(), Metrics()
    one.epoch_committed(tally_of([Decision("accepted")], [0]), 0)
    assert value(two, "streamer_records_consumed_total") == 0
    assert {family.name for family in prometheus_client.REGISTRY.collect()} == before


def test_every_metric_of_ours_says_what_it_means_in_both_formats():
    metrics = Metrics(["sharp"])
    metrics.lag({0: 1}, 1)
    metrics.epoch_committed(tally_of([Decision("accepted")] * 3, [1, 2, 3]), 0)
    families = list(parse_openmetrics(generate_openmetrics(metrics.registry).decode()))
    ours = [family for family in families if family.name.startswith("streamer_")]
    assert len(ours) >= 25
    assert [family.name for family in ours if len(family.documentation.split()) < 4] == []
    assert not any(name.endswith("_created") for name, _ in samples(metrics))
