"""A running replica as its watchers see it: the metrics agree with what was written, the probes
with what it does."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

from streamer.testing import create_topic, jpeg, produce
from tests.integration.service import Made, photographs, read_output
from tests.integration.watch import ask, port_of, scrape, total

DASHBOARD = Path(__file__).parents[2] / "k8s/base/dashboard/streamer.json"
ONLY_ON_A_GPU = {"streamer_device_memory_bytes"}


def test_metrics_and_probes_of_a_real_run(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    images = photographs(398, seed=11)
    (tmp_path / "there.jpg").write_bytes(jpeg(77))
    references = [
        (b"", {"uri": f"file://{tmp_path}/{name}"}) for name in ("there.jpg", "not-there.jpg")
    ]
    records = [*((image, {"text": f"picture {i}"}) for i, image in enumerate(images)), *references]
    create_topic(kafka, topic_name, partitions=2)
    produce(kafka, topic_name, records)
    service = make_service(
        dataset_name,
        fetch={"schemes": ["file"], "hosts": [str(tmp_path)]},
        filters=[{"name": "tiny", "field": "min_side", "at_least": 40}],
        output={
            "path": str(tmp_path / "out"),
            "epoch_records": 100,
            "shard_records": 100,
            "seal_after": "1s",
        },
    )
    replica = service.start()
    port = port_of(replica)
    status, body = ask(port, "/readyz")
    if status == 503:  # on a fast machine it may be polling already
        assert json.loads(body)["reason"].startswith("not consuming yet or any more: ")
    assert ask(port, "/livez")[0] == 200

    deadline = time.monotonic() + 120
    while (
        total(seen := scrape(port), "streamer_records_consumed_total") < len(records)
        and time.monotonic() < deadline
    ):
        time.sleep(0.3)
    status, body = ask(port, "/readyz")
    assert status == 200, body
    assert json.loads(body)["phase"] == "polling"
    assert json.loads(body)["heartbeats"].keys() >= {"kafka", "device", "writer"}

    output = read_output(service.output)
    assert len(output.rows) == len(records)
    rows = Counter((row["outcome"], row["reason"] or "") for row in output.rows)
    counted = {
        key: n
        for key in rows
        if (n := int(total(seen, "streamer_decisions_total", outcome=key[0], reason=key[1])))
    }
    assert counted == rows
    assert (
        total(seen, "streamer_decisions_total")
        == total(seen, "streamer_records_consumed_total")
        == len(records)
    )
    assert ("filtered", "tiny") in rows
    manifests = [
        json.loads(path.read_text()) for path in (service.output / "manifests").glob("*.json")
    ]
    assert total(seen, "streamer_epochs_committed_total") == sum(
        1 for m in manifests if sum(m["counts"].values())
    )
    assert total(seen, "streamer_end_to_end_seconds_count") == len(records)
    assert total(seen, "streamer_dead_letters_total") == len(output.of("invalid"))
    assert total(seen, "streamer_index_vectors") == len(output.of("accepted"))
    assert total(seen, "streamer_partitions_assigned") == 2
    assert total(seen, "streamer_rebalances_total", event="assigned") == 2
    for stage in ("decode", "embed", "filter", "claim", "write", "seal", "commit", "project"):
        assert total(seen, "streamer_stage_seconds_total", stage=stage) > 0, stage
    assert total(seen, "streamer_batch_records_count") > 0
    assert total(seen, "streamer_claim_round_trip_seconds_count") > 0
    assert total(seen, "streamer_fetch_seconds_count") == 1
    assert total(seen, "streamer_fetch_errors_total", cause="not_found") == 1
    for thread in ("MainThread", "decode", "device", "writer", "claims"):
        assert total(seen, "streamer_thread_cpu_seconds_total", thread=thread) > 0, thread
    assert {
        dict(labels)["partition"] for name, labels in seen if name == "streamer_lag_records"
    } == {"0", "1"}
    assert total(seen, "streamer_lag_records") == 0
    assert total(seen, "streamer_lag_seconds") == 0
    assert 0 < total(seen, "process_resident_memory_bytes") < 3e9

    named = set(re.findall(r"\b((?:streamer|process)_\w+)\{", DASHBOARD.read_text("utf-8")))
    assert named - {name for name, _ in seen} == ONLY_ON_A_GPU

    replica.process.send_signal(signal.SIGTERM)
    assert replica.end() == 0, replica.log


def test_slow_clients_keep_no_probe_from_an_answer(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    replica = make_service(dataset_name).start()
    port = port_of(replica)
    slow = []
    try:
        for _ in range(100):
            slow.append(socket.create_connection(("127.0.0.1", port), timeout=60))
            slow[-1].sendall(b"GET /livez HTTP/1.1\r\nX: ")
        assert ask(port, "/livez")[0] == 200
        assert json.loads(ask(port, "/readyz")[1])["phase"]
        assert scrape(port)
    finally:
        for client in slow:
            client.close()
    replica.kill(signal.SIGTERM)
    assert replica.end() == 0


def test_a_text_that_is_made_for_the_pattern_does_not_stop_the_replica(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """Where a pattern is matched by trying, one such text takes longer than the sun will shine."""
    create_topic(kafka, topic_name)
    made = "a" * 100_000 + "b"
    produce(kafka, topic_name, [(jpeg(1), {"text": made}), (jpeg(2), {"text": "caption"})])
    pattern = {"name": "odd", "field": "text", "matches": "^((a+)+|caption.*)$"}
    service = make_service(dataset_name, filters=[pattern])
    service.run("--until", "end")
    outcomes = {
        row["text"]: (row["outcome"], row["reason"]) for row in read_output(service.output).rows
    }
    assert outcomes == {made: ("filtered", "odd"), "caption": ("accepted", None)}


def test_lag_is_seen_before_the_first_commit(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    """A replica that never commits must not look as if nothing were behind."""
    create_topic(kafka, topic_name, partitions=1)
    produce(kafka, topic_name, [(image, {}) for image in photographs(50, seed=12)])
    service = make_service(dataset_name, output={"path": str(tmp_path / "out"), "seal_after": "1h"})
    replica = service.start()
    port = port_of(replica)
    deadline = time.monotonic() + 60
    while (
        total(seen := scrape(port), "streamer_epoch_records") < 50 and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    time.sleep(3)
    later = scrape(port)
    assert total(later, "streamer_records_consumed_total") == 0
    assert total(later, "streamer_lag_records") == 50
    assert total(later, "streamer_lag_seconds") > 3
    assert (
        total(later, "streamer_epoch_age_seconds") > total(seen, "streamer_epoch_age_seconds") > 0
    )
    replica.kill()
