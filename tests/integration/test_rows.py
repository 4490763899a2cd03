"""What a row tells: of records that are invalid, that came by reference, that have no date; and that
readers of the dataset can read it all."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import pyarrow.dataset as pads
import pytest
import torch
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from safetensors.torch import save_file

from streamer.testing import create_topic, jpeg, produce
from tests.integration.service import Made, Replica, read_output, streamer, verified

AS_JSON = {"content-type": "application/json"}
ALL = {"max_ratio": 1}


def rows_by_id(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_output(folder).rows}


def test_an_invalid_record_keeps_what_is_known(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    told = {"text": "a cat", "url": "http://page", "metadata": {"lang": "en"}}
    bodies: dict[str, tuple[dict[str, Any], str, str]] = {
        "dataurl": ({**told, "image": "data:image/jpeg;base64,x"}, "bad_base64", "base64"),
        "urlonly": ({**told}, "no_image", ""),
        "textlist": ({**told, "text": ["a", "b"], "image": "/9j/"}, "bad_json", "text is not"),
        "cut": ({**told, "image": base64.b64encode(jpeg(1)[:900]).decode()}, "truncated", ""),
        "no": ({**told, "uri": "ftp://x/1.jpg"}, "uri_not_allowed", "'ftp'"),
    }
    records = [(json.dumps({"id": id, **b}).encode(), AS_JSON) for id, (b, _, _) in bodies.items()]
    records.append((b"\xff\xd8\xff", {"id": "binary", "text": "a cat", "meta-lang": "en"}))
    records.append((jpeg(1), {"id": "latin", "text": "caf\xe9".encode("latin-1")}))
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, records)
    service = make_service(dataset_name, dead_letters=ALL)
    service.run("--until", "end")
    rows = rows_by_id(service.output)
    for id, (_, reason, said) in bodies.items():
        row = rows[id]
        assert (row["outcome"], row["reason"]) == ("invalid", reason)
        assert said in (row["detail"] or ""), row
        assert row["url"] == "http://page"
        assert json.loads(row["metadata"]) == {"lang": "en"}
        assert row["text"] == (None if id == "textlist" else "a cat")
    assert rows["binary"]["text"] == "a cat"
    assert rows["binary"]["detail"]
    assert (rows["latin"]["reason"], rows["latin"]["text"]) == ("bad_header", "caf\ufffd")
    verified(service.output)


class _Image(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.startswith("/1.jpg")
        self.send_response(200 if found else 404)
        body = jpeg(4) if found else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        logging.getLogger(__name__).debug("asked for %s", self.path)


def test_where_a_fetched_image_is_from(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Image)
    Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_address[1]}"
    create_topic(kafka, topic_name)
    records: list[tuple[bytes | None, dict[str, str]]] = [
        (None, {"id": "got", "uri": f"{site}/1.jpg?size=7"}),
        (None, {"id": "gone", "uri": f"{site}/2.jpg"}),
        (
            json.dumps({"id": "named", "uri": f"{site}/1.jpg", "url": "http://page"}).encode(),
            AS_JSON,
        ),
    ]
    produce(kafka, topic_name, records)
    service = make_service(
        dataset_name,
        dead_letters=ALL,
        fetch={"schemes": ["http"], "hosts": [site.removeprefix("http://")]},
    )
    try:
        service.run("--until", "end")
    finally:
        server.shutdown()
        server.server_close()
    output = read_output(service.output)
    rows = {row["id"]: row for row in output.rows}
    assert (rows["got"]["outcome"], rows["got"]["url"]) == ("accepted", f"{site}/1.jpg?size=7")
    assert json.loads(output.members[rows["got"]["key"]]["json"])["url"] == f"{site}/1.jpg?size=7"
    assert (rows["gone"]["reason"], rows["gone"]["url"]) == ("not_found", f"{site}/2.jpg")
    assert rows["named"]["url"] == "http://page"


def write_at(kafka: str, topic: str, stamps: dict[str, int]) -> None:
    """Records with these timestamps, as a producer may write any number; −1 is Kafka's word for
    none."""
    producer = Producer({"bootstrap.servers": kafka})
    for seed, (id, stamp) in enumerate(stamps.items()):
        producer.produce(topic, jpeg(seed), headers=[("id", id.encode())], timestamp=stamp)
    assert producer.flush(10) == 0


FOREVER = {
    "message_timestamp_after_max_ms": 2**63 - 1,
    "message_timestamp_before_max_ms": 2**63 - 1,
}


def test_a_timestamp_that_no_reader_can_show(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    now = time.time()
    create_topic(kafka, topic_name, **FOREVER)
    stamps = {
        "ms": int(now * 1e3), "us": int(now * 1e6), "ns": int(now * 1e9), "none": -1,
        "last": (2**63 - 1) // 10**6, "later": (2**63 - 1) // 10**6 + 1, "most": 2**63 - 1,
    }  # fmt: skip
    write_at(kafka, topic_name, stamps)
    service = make_service(dataset_name)
    service.run("--until", "end")
    verified(service.output)
    dated = {"ms", "last"}
    pattern = str(service.output / "metadata/*.parquet")
    asked = duckdb.sql(f"select id, epoch_ms(timestamp) from '{pattern}'").fetchall()
    assert {id for id, stamp in asked if stamp is not None} == dated
    table = pads.dataset(service.output / "metadata").to_table(columns=["id", "timestamp"])
    assert {r["id"] for r in table.to_pylist() if r["timestamp"] is not None} == dated
    frame = table.to_pandas(coerce_temporal_nanoseconds=True)
    assert set(frame[frame["timestamp"].notna()]["id"]) == dated
    output = read_output(service.output)
    samples = [json.loads(sample["json"]) for sample in output.members.values()]
    assert {s["id"] for s in samples if s["timestamp"]} <= dated


def _metric(replica: Replica, name: str) -> float:
    [port] = [json.loads(line)["port"] for line in replica.lines if "serving /metrics" in line]
    page = subprocess.run(
        [sys.executable, "-c", f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"],
        capture_output=True, text=True, check=True, timeout=20,
    ).stdout  # fmt: skip
    [line] = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_the_lag_in_seconds_leaves_out_what_has_no_timestamp(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """They neither are 57 years old nor hide the age of the others."""
    create_topic(kafka, topic_name, **FOREVER)
    hour_ago = int((time.time() - 3600) * 1000)
    write_at(kafka, topic_name, {"a": -1, "b": int(time.time() * 1e6), "c": hour_ago, "d": -1})
    service = make_service(dataset_name, output=_never_sealed(make_service))

    def lag() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            streamer("lag", "--json", "-c", str(service.config())).stdout
        )
        return found

    assert 3590 < lag()["seconds"] < 3900
    replica = service.start()
    replica.wait_for("partitions assigned", timeout=90)
    deadline = time.monotonic() + 30
    while (seen := _metric(replica, "streamer_lag_seconds")) == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert 3590 < seen < 3900
    replica.kill()


def test_the_lag_of_records_none_of_which_has_a_timestamp(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name, **FOREVER)
    write_at(kafka, topic_name, {"a": -1, "b": -1})
    path = str(make_service(dataset_name).config())
    told = json.loads(streamer("lag", "--json", "-c", path).stdout)
    assert (told["records"], told["seconds"], told["partitions"][0]["seconds"]) == (2, None, None)
    assert "no timestamp" in streamer("lag", "-c", path).stdout


def _never_sealed(make_service: Made) -> dict[str, Any]:
    return {**make_service("unused").settings["output"], "seal_after": "1h"}


def test_a_head_that_is_added_later_and_one_whose_weights_are_replaced(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    weights = tmp_path / "bright.safetensors"
    heads = [{"type": "linear", "name": "bright", "weights": str(weights)}]
    create_topic(kafka, topic_name)
    service = make_service(dataset_name)
    pipelines = []
    for n, settings in enumerate(({}, {"heads": heads}, {"heads": heads})):
        save_file({"weight": torch.full((1, 256), 0.5 + n)}, weights)
        produce(kafka, topic_name, [(jpeg(10 * n + i), {}) for i in range(4)])
        service.run("--until", "end", **settings)
        newest = max((service.output / "manifests").iterdir())
        pipelines.append(json.loads(newest.read_text())["pipeline"])
    assert pipelines[0]["heads"] == []
    [first], [second] = pipelines[1]["heads"], pipelines[2]["heads"]
    assert first["fingerprint"] != second["fingerprint"]
    assert {**first, "fingerprint": ""} == {**second, "fingerprint": ""}
    assert len({p["config"] for p in pipelines}) == 3
    verified(service.output)
    rows = duckdb.read_parquet(str(service.output / "metadata/*.parquet"), union_by_name=True)
    by_pipeline = dict(rows.aggregate("pipeline, count(bright_score)").fetchall())
    assert by_pipeline == {p["config"]: n for p, n in zip(pipelines, (0, 4, 4), strict=True)}
    samples = [json.loads(s["json"]) for s in read_output(service.output).members.values()]
    assert sorted("scores" in sample for sample in samples) == [False] * 4 + [True] * 8


FILTER = """
from streamer import Filter
class Wide(Filter):
    def keep(self, row):
        return row.facts.width > {width}
"""


def test_the_code_of_a_filter_is_recorded(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, tmp_path: Path
) -> None:
    create_topic(kafka, topic_name)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    service = make_service(dataset_name, filters=[{"type": "wide_filter:Wide", "name": "wide"}])
    missing = service.start("--until", "end", env={"PYTHONPATH": path})
    assert missing.end() == 2, missing.log
    topics = AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=30).topics
    assert [name for name in topics if name.startswith(dataset_name)] == [], "nothing was begun"
    pipelines = []
    for n, width in enumerate((1, 2)):
        (tmp_path / "wide_filter.py").write_text(FILTER.format(width=width))
        produce(kafka, topic_name, [(jpeg(n), {})])
        replica = service.start("--until", "end", env={"PYTHONPATH": path})
        assert replica.end() == 0, replica.log
        newest = max((service.output / "manifests").iterdir())
        pipelines.append(json.loads(newest.read_text())["pipeline"])
    first, second = (p["plugins"]["wide_filter:Wide"] for p in pipelines)
    assert first.keys() == second.keys() == {"wide_filter"}
    assert first != second
    assert pipelines[0]["config"] != pipelines[1]["config"]


def test_a_misspelt_rule_is_told(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(i), {"meta-license": "cc0"}) for i in range(20)])
    rule = {"field": "metadata.lisence", "equals": "cc0"}
    service = make_service(dataset_name, filters=[rule])
    replica = service.run("--until", "end")
    [line] = [json.loads(line) for line in replica.lines if '"warning"' in line]
    assert line["message"] == (
        "filters.0 (metadata.lisence): none of the first 20 records has metadata.lisence, so "
        "this rule removes them all; metadata has license; did you mean metadata.license?"
    )
    replica = make_service(
        f"{dataset_name}-2", filters=[{**rule, "field": "metadata.license"}]
    ).run("--until", "end")
    assert replica.count('"warning"') == 0


@pytest.mark.timeout(400)
def test_dead_letters_are_replayed_while_the_live_dataset_runs(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """The command of the runbook: into a new name, from the dead letters' topic, with the live
    replica holding its port."""
    create_topic(kafka, topic_name)
    [_, (partition, offset)] = produce(
        kafka, topic_name, [(jpeg(1), {}), (jpeg(2, size=(640, 480)), {"id": "big", "text": "a"})]
    )
    service = make_service(
        dataset_name,
        decode={"threads": 1, "max_pixels": 100_000},
        dead_letters=ALL,
        output={**make_service("unused").settings["output"], "seal_after": "1s"},
        http={"host": "127.0.0.1", "port": 0},
    )
    path = str(service.config())
    live = service.start()
    live.wait_for("epoch committed", timeout=90)
    [port] = [json.loads(line)["port"] for line in live.lines if "serving /metrics" in line]
    name = f"{dataset_name}-mended"
    replay = service.launch(
        "replay", "run", "-c", path, "--dataset", name, "--set", f"kafka.topic={dataset_name}.dead",
        "--set", "decode.max_pixels=1000000", "--set", f"http.port={port}",
    )  # fmt: skip
    assert replay.end() == 0, replay.log
    assert replay.count(f"http.port {port} is in use; this replay takes a free one") == 1
    assert live.process.poll() is None
    live.kill()
    [row] = read_output(service.output.parent / name).rows
    assert (row["outcome"], row["id"], row["text"]) == ("accepted", "big", "a")
    metadata = json.loads(row["metadata"])
    assert metadata.pop("streamer-detail").startswith("640 × 480")
    assert metadata == {
        "streamer-reason": "too_many_pixels",
        "streamer-topic": topic_name,
        "streamer-partition": str(partition),
        "streamer-offset": str(offset),
    }
