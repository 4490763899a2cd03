"""The config: every check, every mistake named with its path and the way out, overrides, and what
follows from the names."""

from __future__ import annotations

import copy
import json
import re
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from streamer.commands.check import command as check
from streamer.config import (
    BatchConfig,
    Config,
    CustomEmbedder,
    CustomRule,
    Fetch,
    FieldRule,
    Output,
    TimmEmbedder,
    load,
    parse,
)
from streamer.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "dataset": "cats-v1",
    "writer": "w0",
    "kafka": {"bootstrap_servers": "kafka:9092", "topic": "image-text"},
    "embedder": {"type": "timm", "model": "vit_tiny_patch16_224"},
    "output": {"path": "/data/curated"},
}
FULL = """
dataset: cats-v1
writer: streamer-0
kafka:
  bootstrap_servers: kafka:9092
  topic: image-text
  start: 2026-01-31T12:00:00Z
  default_content_type: image/jpeg
  group_instance_id: auto
  client: {security.protocol: SSL, socket.keepalive.enable: true, session.timeout.ms: 6000}
fetch:    {schemes: [file, https], hosts: [images.example, /mnt/images], max_bytes: 20MB, timeout: 10s, concurrency: 16}
decode:   {threads: 6, max_bytes: 20MB, max_pixels: 64000000}
embedder: {type: timm, model: vit_large_patch14_clip_quickgelu_224.openai, pretrained: true, checkpoint: null, features: auto, precision: bf16, normalize: true, compile: false}
heads:
  - {type: aesthetic, weights: /models/sac+logos+ava1-l14-linearMSE.pth}
  - {type: nsfw, weights: /models/clip_ViT-L-14_openai_binary_nsfw_head.pth, variant: port}
  - {type: linear, name: cat, weights: c.safetensors}
  - {type: mlp, name: dog, weights: d.safetensors, activation: gelu, output: sigmoid}
  - {type: "mypkg.heads:Watermark", name: watermark, args: {weights: w.safetensors}}
filters:
  - {field: min_side, at_least: 200}
  - {field: aspect_ratio, at_most: 3}
  - {field: metadata.lang, in: [en, de]}
  - {field: text, matches: "^[^#]"}
  - {field: metadata.checked, equals: true}
  - {field: aesthetic_score, at_least: 4.5}
  - {name: unsafe, field: nsfw_score, at_most: 0.2, action: flag}
  - {field: watermark_score, at_most: 0.5}
  - {type: "mypkg.rules:Blocklist", name: blocked, args: {hosts: [a.example]}}
dedup:    {threshold: 0.95, action: remove, probe: certified, capacity: null, train_at: auto, device: auto}
output:   {path: "s3://bucket/curated", formats: [jpg, png, webp], shard_records: 10000, shard_bytes: 1GB, epoch_records: 50000, seal_after: 60s}
batch:    {size: 256, linger: 50ms}
dead_letters: {max_ratio: 0.2}
http:     {host: 0.0.0.0, port: 9400}
device: auto
"""


def changed(**sections: Any) -> dict[str, Any]:
    raw = copy.deepcopy(MINIMAL)
    for name, value in sections.items():
        raw[name] = (
            {**raw[name], **value}
            if isinstance(value, dict) and isinstance(raw.get(name), dict)
            else value
        )
    return raw


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "streamer.yaml"
    path.write_text(text)
    return path


def rules(*filters: Any, heads: tuple[Any, ...] = ()) -> dict[str, Any]:
    return changed(filters=list(filters), heads=list(heads))


def test_the_documented_config_is_one(tmp_path: Path) -> None:
    config = load(file(tmp_path, FULL), environ={})
    assert config.kafka.start == datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    assert config.kafka.client == {
        "security.protocol": "SSL",
        "socket.keepalive.enable": True,
        "session.timeout.ms": 6000,
    }
    assert config.fetch.max_bytes == 20_000_000
    assert config.fetch.timeout == 10.0
    assert isinstance(config.embedder, TimmEmbedder)
    assert [type(f) for f in config.filters] == [FieldRule] * 8 + [CustomRule]
    assert [f.name for f in config.filters][-3:] == ["unsafe", "watermark_score", "blocked"]
    assert isinstance(config.filters[2], FieldRule)
    assert config.filters[2].in_ == ("en", "de")
    assert config.dedup is not None
    assert config.dedup.threshold == 0.95
    assert config.output.shard_bytes == 10**9
    assert (config.batch.linger, config.output.seal_after) == (0.05, 60.0)


def test_defaults() -> None:
    config = parse(MINIMAL)
    assert (
        config.kafka.start,
        config.kafka.default_content_type,
        config.kafka.group_instance_id,
    ) == ("earliest", "image/jpeg", "auto")
    assert (config.fetch.schemes, config.fetch.hosts) == ((), ())
    assert config.dedup is not None
    assert (config.dedup.threshold, config.dedup.action, config.dedup.probe) == (
        0.95,
        "remove",
        "certified",
    )
    assert (config.output.formats, config.output.shard_records, config.output.epoch_records) == (
        ("jpg", "png", "webp"),
        10_000,
        50_000,
    )
    assert (config.batch.size, config.http.port, config.device, config.dead_letters.max_ratio) == (
        256,
        9400,
        "auto",
        0.2,
    )


def test_names_that_follow_from_the_dataset() -> None:
    config = parse(MINIMAL)
    assert config.group == "streamer.cats-v1"
    assert config.own_topics() == ("cats-v1.claims", "cats-v1.commits", "cats-v1.dead")
    assert (config.claims_topic, config.commits_topic, config.dead_topic) == config.own_topics()
    assert config.transactional_id == "streamer.cats-v1.w0"


@pytest.mark.parametrize(
    ("host", "writer"),
    [
        ("streamer-3", "streamer-3"),
        ("Node.Example_7", "node-example-7"),
        ("--", "writer"),
        ("ÄÖ", "writer"),
    ],
)
def test_writer_auto_is_the_host_name(
    host: str, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert parse(changed(writer="auto")).writer == writer
    without = {name: value for name, value in MINIMAL.items() if name != "writer"}
    assert parse(without).writer == writer


@pytest.mark.parametrize(
    ("given", "on_kubernetes", "expected"),
    [("auto", False, None), ("auto", True, "w0"), (None, True, None), ("me", False, "me")],
)
def test_group_instance_id(
    given: str | None, on_kubernetes: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if on_kubernetes:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert parse(changed(kafka={"group_instance_id": given})).group_instance_id == expected


@pytest.mark.parametrize("off", ["off", False])
def test_dedup_off(off: object) -> None:
    assert parse(changed(dedup=off)).dedup is None


def test_dedup_off_as_yaml_reads_it(tmp_path: Path) -> None:
    for text in ("off", "Off", '"off"', "false"):
        assert (
            load(file(tmp_path, yaml.safe_dump(MINIMAL) + f"\ndedup: {text}\n"), environ={}).dedup
            is None
        )


def test_an_epoch_is_never_smaller_than_its_shards() -> None:
    assert parse(changed(output={"epoch_records": 100})).output.shard_records == 100
    assert (
        parse(changed(output={"epoch_records": 100, "shard_records": 30})).output.shard_records
        == 30
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("latest", "latest"),
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=timezone.utc)),
        ("2026-01-31T12:00:00", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=timezone.utc)),
        (datetime(2026, 1, 31, 12), datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
    ],
)
def test_start(start: object, expected: object) -> None:
    got = parse(changed(kafka={"start": start})).kafka.start
    assert got == expected
    assert isinstance(got, str) or got.tzinfo is not None


def test_start_as_a_bare_yaml_date(tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL).replace(
        "topic: image-text", "topic: image-text\n  start: 2026-01-31"
    )
    assert load(file(tmp_path, text), environ={}).kafka.start == datetime(
        2026, 1, 31, tzinfo=timezone.utc
    )


WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    # name: (config, the path that the one error names, words of its message)
    "unknown section": (changed(bacth={"size": 3}), "bacth", ("unknown key", "did you mean 'batch'")),
    "unknown section, near nothing": (changed(xyz=1), "xyz", ("unknown key", "dataset, writer, kafka")),
    "unknown key": (changed(batch={"sise": 3}), "batch.sise", ("did you mean 'size'",)),
    "unknown key of the embedder": (changed(embedder={"precison": "bf16"}), "embedder.precison", ("did you mean 'precision'",)),
    "unknown key of a head": (rules(heads=({"type": "nsfw", "varant": "port"},)), "heads.0.varant", ("did you mean 'variant'",)),
    "unknown key of a rule": (rules({"field": "width", "at_lest": 3}), "filters.0.at_lest", ("did you mean 'at_least'",)),
    "unknown key of a custom rule": (
        rules({"type": "a.b:C", "name": "x", "acton": "flag"}), "filters.0.acton", ("did you mean 'action'",),
    ),
    "unknown key of a custom rule, near nothing": (
        rules({"type": "a.b:C", "name": "x", "zzz": 1}), "filters.0.zzz", ("known here are type, name, action, args",),
    ),
    "unknown key of a custom embedder": (
        {**MINIMAL, "embedder": {"type": "a.b:C", "nam": "x"}}, "embedder.nam", ("unknown key; known here are type, args",),
    ),
    "unknown key of a custom head": (rules(heads=({"type": "a.b:C", "name": "x", "arg": {}},)), "heads.0.arg", ("did you mean 'args'",)),
    "misspelt required key": (rules({"feild": "width", "at_least": 3}), "filters.0.feild", ("did you mean 'field'",)),
    "misspelt required key of the embedder": (
        {**MINIMAL, "embedder": {"modle": "vit"}}, "embedder.modle", ("unknown key", "did you mean 'model'"),
    ),
    "misspelt required section": (
        {("ouput" if k == "output" else k): v for k, v in MINIMAL.items()}, "ouput", ("did you mean 'output'",),
    ),
    "missing section": ({k: v for k, v in MINIMAL.items() if k != "output"}, "output", ("is missing",)),
    "missing field of a rule": (rules({"at_least": 3}), "filters.0.field", ("is missing",)),
    "missing name of a custom rule": (rules({"type": "a.b:C"}), "filters.0.name", ("is missing",)),
    "dataset name": (changed(dataset="Cats"), "dataset", ("'Cats'", "must be a name of a-z, 0-9")),
    "schemes without hosts": (changed(fetch={"schemes": ["http"]}), "fetch.hosts", ("no entry applies to http",)),
    "hosts without schemes": (changed(fetch={"hosts": ["a.example"]}), "fetch.schemes", ("has no effect",)),
    "files without a folder": (
        changed(fetch={"schemes": ["file"], "hosts": ["a.example"]}), "fetch.hosts", ("to file; add the folders",),
    ),
    "s3 with a port": (changed(fetch={"schemes": ["s3"], "hosts": ["a:80"]}), "fetch.hosts", ("to s3; add the buckets",)),
    "s3 without a bucket": (changed(fetch={"schemes": ["s3"], "hosts": ["10.0.0.0/8"]}), "fetch.hosts", ("to s3; add the buckets",)),
    "http with folders": (changed(fetch={"schemes": ["http"], "hosts": ["/mnt"]}), "fetch.hosts", ("host names, addresses",)),
    "dataset name with a slash": (changed(dataset="a/b"), "dataset", ("'a/b'",)),
    "writer name": (changed(writer="Pod_1"), "writer", ("a-z, 0-9 and -",)),
    "empty writer": (changed(writer=""), "writer", ("a-z, 0-9 and -",)),
    "no servers": (changed(kafka={"bootstrap_servers": ""}), "kafka.bootstrap_servers", ("at least 1",)),
    "topic name": (changed(kafka={"topic": "a b"}), "kafka.topic", ("'a b'",)),
    "own topic": (changed(kafka={"topic": "cats-v1.claims"}), "kafka.topic", ("'cats-v1.claims'", "another dataset name")),
    "start": (changed(kafka={"start": "earlist"}), "kafka.start", ("'earlist'", "earliest, latest nor a time")),
    "start null": (changed(kafka={"start": None}), "kafka.start", ("earliest, latest nor a time",)),
    "start is a bare number": (changed(kafka={"start": 5}), "kafka.start", ("earliest, latest nor a time",)),
    "client property is a list": (changed(kafka={"client": {"a.b": [1]}}), "kafka.client.a.b", ("[1]",)),
    "client property is NaN": (
        changed(kafka={"client": {"a.b": float("nan")}}), "kafka.client.a.b", ("must be a text, a finite number, true or false (got nan)",),
    ),
    "client property is null": (changed(kafka={"client": {"a.b": None}}), "kafka.client.a.b", ("None",)),
    "section is null": (changed(kafka=None), "kafka", ("None",)),
    "scheme": (changed(fetch={"schemes": ["ftp"]}), "fetch.schemes.0", ("'ftp'", "'file', 'http', 'https' or 's3'")),
    "duration without a unit": (changed(fetch={"timeout": 10}), "fetch.timeout", ("10 is not a duration", "60s")),
    "duration of nothing": (changed(batch={"linger": "0s"}), "batch.linger", ("greater than 0",)),
    "size": (changed(decode={"max_bytes": "20 XB"}), "decode.max_bytes", ("not a size", "20MB")),
    "no threads": (changed(decode={"threads": 0}), "decode.threads", ("greater than or equal to 1",)),
    "embedder type": (changed(embedder={"type": "tim"}), "embedder.type", ("unknown type 'tim'", "did you mean 'timm'")),
    "head type": (rules(heads=({"type": "aestetic"},)), "heads.0.type", ("did you mean 'aesthetic'",)),
    "head type, near nothing": (rules(heads=({"type": "zzz"},)), "heads.0.type", ("aesthetic, nsfw, linear, mlp, or pkg.mod:Class",)),
    "no head type": (rules(heads=({"name": "x"},)), "heads.0.type", ("is missing", "pkg.mod:Class")),
    "head name": (rules(heads=({"type": "linear", "name": "Cat", "weights": "w"},)), "heads.0.name", ("'Cat'",)),
    "custom head path": (rules(heads=({"type": "a.b:", "name": "x"},)), "heads.0.type", ("'a.b:'",)),
    "two heads of one name": (rules(heads=({"type": "nsfw"}, {"type": "nsfw"})), "heads", ("'nsfw'", "another name")),
    "unknown field": (rules({"field": "min_size", "at_least": 3}), "filters.0.field", ("'min_size'", "did you mean 'min_side'")),
    "unknown field, near nothing": (rules({"field": "zzz", "at_least": 3}), "filters.0.field", ("known are width, height", "metadata.NAME")),
    "score of a head that is not there": (
        rules({"field": "nsfw_scor", "at_most": 1}, heads=({"type": "nsfw"},)), "filters.0.field", ("did you mean 'nsfw_score'",),
    ),
    "no test": (rules({"field": "width"}), "filters.0", ("exactly one test",)),
    "two tests": (rules({"field": "width", "equals": 3, "at_least": 2}), "filters.0", ("exactly one test",)),
    "nothing is allowed": (rules({"field": "text", "in": []}), "filters.0.in", ("at least 1",)),
    "bounds that nothing meets": (rules({"field": "width", "at_least": 5, "at_most": 3}), "filters.0", ("at_least 5", "at_most 3")),
    "pattern": (rules({"field": "text", "matches": "("}), "filters.0", ("not a regular expression of RE2 (missing ): ()",)),
    "pattern with lookahead": (rules({"field": "text", "matches": "a(?!b)"}), "filters.0", ("(?!", "no lookaround")),
    "pattern with lookbehind": (rules({"field": "text", "matches": "(?<=a)b"}), "filters.0", ("(?<", "no lookaround")),
    "bound is no number": (rules({"field": "width", "at_least": "x"}), "filters.0.at_least", ("'x'",)),
    "bound is NaN": (rules({"field": "width", "at_least": float("nan")}), "filters.0.at_least", ("finite",)),
    "equals a list": (rules({"field": "width", "equals": [1]}), "filters.0.equals", ("[1]",)),
    "equals NaN": (
        rules({"field": "width", "equals": float("nan")}), "filters.0.equals", ("must be a text, a finite number, true or false (got nan)",),
    ),
    "in a list of lists": (rules({"field": "width", "in": [1, [2]]}), "filters.0.in.1", ("[2]",)),
    "action": (rules({"field": "width", "at_least": 1, "action": "drop"}), "filters.0.action", ("'remove' or 'flag'",)),
    "dedup null": (changed(dedup=None), "dedup", ("dedup: off",)),
    "dedup on": (changed(dedup=True), "dedup", ("must be a section, for example {threshold: 0.9}, or off (got True)",)),
    "dedup is a number": (changed(dedup=0.9), "dedup", ("must be a section, for example {threshold: 0.9}, or off (got 0.9)",)),
    "few winners to train at": (changed(dedup={"train_at": 500}), "dedup.train_at", ("must be auto or a number of at least 1024 (got 500)",)),
    "a word to train at": (changed(dedup={"train_at": "abc"}), "dedup.train_at", ("must be auto or a number of at least 1024 (got 'abc')",)),
    "nothing to train at": (changed(dedup={"train_at": None}), "dedup.train_at", ("must be auto or a number of at least 1024 (got None)",)),
    "device of dedup": (changed(dedup={"device": "gpu"}), "dedup.device", ("must be auto, cpu, cuda or cuda:N (got 'gpu')",)),
    "snapshots on": (changed(dedup={"snapshots": True}), "dedup.snapshots", ("must be dataset, off, a path or a URI (got True)",)),
    "threshold above what fp16 carries": (changed(dedup={"threshold": 1.0}), "dedup.threshold", ("0.999",)),
    "threshold 0": (changed(dedup={"threshold": 0}), "dedup.threshold", ("greater than 0",)),
    "no path": (changed(output={"path": ""}), "output.path", ("at least 1",)),
    "no formats": (changed(output={"formats": []}), "output.formats", ("nothing would be accepted",)),
    "format in capitals": (changed(output={"formats": ["png", ".JPG"]}), "output.formats", ("'.JPG' is written 'jpg'",)),
    "unknown format": (changed(output={"formats": ["jpge"]}), "output.formats", ("'jpge' is not a format of images; known are jpg, png",)),
    "a rule for a format": (rules({"field": "format", "in": ["png", "tif"]}), "filters.0", ("'tif' is written 'tiff'",)),
    "no content type": (changed(kafka={"default_content_type": "text/plain"}), "kafka.default_content_type", ("'text/plain' is neither image/… nor application/json",)),
    "half a content type": (changed(kafka={"default_content_type": "jpeg"}), "kafka.default_content_type", ("neither image/…",)),
    "no epoch": (changed(output={"epoch_records": 0}), "output.epoch_records", ("greater than or equal to 1",)),
    "batch of nothing": (changed(batch={"size": 0}), "batch.size", ("greater than or equal to 1",)),
    "ratio": (changed(dead_letters={"max_ratio": 1.1}), "dead_letters.max_ratio", ("less than or equal to 1",)),
    "port": (changed(http={"port": 70_000}), "http.port", ("65535",)),
    "device": (changed(device="gpu"), "device", ("must be auto, cpu, cuda or cuda:N (got 'gpu')",)),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_mistake_is_one_error_with_its_path(case: str) -> None:
    raw, path, words = WRONG[case]
    with pytest.raises(ConfigError) as raised:
        parse(raw, "s.yaml")
    [line] = str(raised.value).splitlines()
    assert line.startswith(f"s.yaml: {path}: "), line
    assert all(word in line for word in words), line


def test_every_mistake_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        parse(changed(batch={"size": 0}, http={"port": -1}, devise="cpu"), "s.yaml")
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "batch.size",
        "http.port",
        "devise",
    ]


def test_fields_of_heads_and_metadata_are_known() -> None:
    config = parse(
        rules(
            {"field": "cat_score", "at_least": 0.5},
            {"field": "metadata.a.b", "equals": "x"},
            heads=({"type": "a.b:C", "name": "cat"},),
        )
    )
    assert [f.name for f in config.filters] == ["cat_score", "metadata.a.b"]


def test_a_plugin_needs_no_more_than_its_path() -> None:
    config = parse({**MINIMAL, "embedder": {"type": "my_pkg.mod:Class"}})
    assert config.embedder == CustomEmbedder(type="my_pkg.mod:Class")


def test_nothing_can_be_changed_afterwards() -> None:
    config = parse(MINIMAL)
    with pytest.raises(ValueError):
        config.batch.size = 3  # type: ignore[misc]


# Files, environment, overrides


def test_file_then_environment_then_overrides(tmp_path: Path) -> None:
    path = file(
        tmp_path, yaml.safe_dump(changed(batch={"size": 1, "linger": "10ms"}, http={"port": 1}))
    )
    environ = {
        "STREAMER__BATCH__SIZE": "2",
        "STREAMER__HTTP__PORT": "2",
        "STREAMER_CONFIG": "x",
        "STREAMER_LOG": "text",
        "PATH": "/bin",
    }
    config = load(path, ["http.port=3"], environ)
    assert (config.batch.size, config.batch.linger, config.http.port) == (2, 0.01, 3)


def test_the_process_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER__BATCH__SIZE", "77")
    assert load(file(tmp_path, yaml.safe_dump(MINIMAL))).batch.size == 77


@pytest.mark.parametrize(
    ("override", "attribute", "expected"),
    [
        ("batch.size=64", "batch.size", 64),
        ("dedup=off", "dedup", None),
        ("dedup.threshold=0.9", "dedup.threshold", 0.9),
        ("output.path=/a=b", "output.path", "/a=b"),
        ("output.formats=[jpg]", "output.formats", ("jpg",)),
        ("filters.0.at_least=300", "filters.0.at_least", 300.0),
        ("kafka.client={session.timeout.ms: 6000}", "kafka.client", {"session.timeout.ms": 6000}),
        ("kafka.client.session.timeout.ms=6000", "kafka.client", {"session.timeout.ms": "6000"}),
        ("kafka.client.sasl.password=*x: 0123 #", "kafka.client", {"sasl.password": "*x: 0123 #"}),
        ("fetch.timeout=5s", "fetch.timeout", 5.0),
    ],
)
def test_overrides(override: str, attribute: str, expected: object, tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(rules({"field": "min_side", "at_least": 200})))
    at: Any = load(path, [override], {})
    for name in attribute.split("."):
        at = at[int(name)] if name.isdigit() else getattr(at, name)
    assert at == expected


def test_a_merge_key_may_be_overridden(tmp_path: Path) -> None:
    text = yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "output"})
    config = load(file(tmp_path, text + "output: {<<: {path: /a}, path: /b}\n"), (), {})
    assert config.output.path == "/b"


def test_environment_reaches_lists_and_client_properties(tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(rules({"field": "min_side", "at_least": 200})))
    environ = {
        "STREAMER__KAFKA__CLIENT__SESSION.TIMEOUT.MS": "6000",
        "STREAMER__KAFKA__CLIENT__SASL.PASSWORD": "0123",
    }
    config = load(path, (), {"STREAMER__FILTERS__0__AT_LEAST": "300", **environ})
    assert isinstance(config.filters[0], FieldRule)
    assert config.filters[0].at_least == 300
    assert config.kafka.client == {"session.timeout.ms": "6000", "sasl.password": "0123"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: {b: c\n",
            "while parsing a flow mapping, expected ',' or '}', but got '<stream end>' in line 2, column 1",
        ),
        ("a:\n\tb: c\n", r"found character '\t' that cannot start any token in line 2, column 1"),
        ("a: *hunter2\n", "found undefined alias '…' in line 1, column 4"),
        ("a: !hunter2 b\n", "for the tag '…' in line 1, column 4"),
        ("a: &hunter2 b\nc: &hunter2 d\n", "found duplicate anchor '…'"),
        ("a: !hunter2!x b\n", "found undefined tag handle '…'"),
        ("a: 1\nb: {c: 1, c: 2}\n", "duplicate key c in line 2, column 11"),
        ("filters: []\na: 1\nfilters: []\n", "duplicate key filters in line 3, column 1"),
    ],
)
def test_what_is_no_yaml_is_explained_without_the_names_in_it(
    text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(file(tmp_path, text), (), {})
    assert said in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch.size", ("--set batch.size", "section.key=value")),
        ("filters.3.field=width", ("--set filters.3.field", "numbered 0 to 0")),
        ("filters.x=1", ("--set filters.x",)),
        ("dataset.x=1", ("--set dataset.x",)),
        ("batch.size=[", ("--set batch.size",)),
        ("batch.sise=3", ("batch.sise", "did you mean 'size'")),
        ("batch.size=0", ("batch.size",)),
    ],
)
def test_wrong_overrides(override: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(rules({"field": "min_side", "at_least": 200})))
    with pytest.raises(ConfigError) as raised:
        load(path, [override], {})
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("off", ["off", '"off"', "false"])
@pytest.mark.parametrize("key", ["threshold", "a.b"])
def test_what_is_off_has_no_keys(off: str, key: str, tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError) as raised:
        load(path, [f"dedup={off}", f"dedup.{key}=0.8"], {})
    assert str(raised.value) == f"--set dedup.{key}: dedup is off and has no keys"
    assert load(path, ["dedup.threshold=0.8", f"dedup={off}"], {}).dedup is None


@pytest.mark.parametrize(
    "name", ["sasl.password", "sasl.username", "ssl.key.pem", "my.token", "X.SECRET"]
)
def test_no_error_echoes_a_secret_of_the_client(name: str, tmp_path: Path) -> None:
    good, listed = (
        yaml.safe_dump(MINIMAL),
        yaml.safe_dump(changed(kafka={"client": {name: ["hunter2"]}})),
    )
    cases: list[tuple[str, list[str], dict[str, str]]] = [
        (listed, [], {}),
        (f"{good}client: {{{name}: *hunter2}}\n", [], {}),
        (f"{good}client: {{{name}: !hunter2 x}}\n", [], {}),
        (f"{good}client: {{{name}: 'a' hunter2}}\n", [], {}),
        (good, [f"kafka.client.{name}:hunter2"], {}),
        (good, [f"kafka.client={{{name}: *hunter2}}"], {}),
        (good, ["kafka.client=hunter2"], {}),
        (good, [], {"STREAMER__KAFKA__CLIENT": f"{{{name}: [hunter2]}}"}),
        (good, [], {"STREAMER__KAFKA": f"{{client: {{{name}: *hunter2}}}}"}),
    ]
    for text, overrides, environ in cases:
        with pytest.raises(ConfigError) as raised:
            load(file(tmp_path, text), overrides, environ)
        assert "hunter2" not in str(raised.value)


def test_a_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match="STREAMER__DATASET__X"):
        load(path, (), {"STREAMER__DATASET__X": "1"})
    with pytest.raises(ConfigError, match=r"bach: unknown key; did you mean 'batch'"):
        load(path, (), {"STREAMER__BACH": "1"})


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "a: [", "\t x: 1", "a: b: c"])
def test_what_is_no_config_file(text: str, tmp_path: Path) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path, (), {})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"dataset: \xff")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            load(path, (), {})


# What is written out again


@pytest.mark.parametrize(
    "raw",
    [
        MINIMAL,
        yaml.safe_load(FULL),
        changed(dedup="off"),
        changed(
            batch={"linger": "0.4ms"}, output={"seal_after": "1h30m"}, fetch={"timeout": "1.0005s"}
        ),
    ],
)
def test_what_check_prints_is_the_same_config(raw: dict[str, Any], tmp_path: Path) -> None:
    path = file(tmp_path, yaml.safe_dump(raw))
    done = CliRunner().invoke(check, ["-c", str(path), "--print"], catch_exceptions=False)
    assert done.exit_code == 0
    assert parse(yaml.safe_load(done.stdout)) == parse(raw)
    config = parse(raw)
    assert Config.model_validate(config.model_dump(by_alias=True)) == config


def test_check_prints_no_secret_of_the_client(tmp_path: Path) -> None:
    client = {
        "sasl.password": "hunter2",
        "sasl.username": "hunter2",
        "ssl.key.location": "hunter2",
        "sasl.mechanism": "PLAIN",
    }
    path = file(tmp_path, yaml.safe_dump(changed(kafka={"client": client})))
    done = CliRunner().invoke(check, ["-c", str(path), "--print"], catch_exceptions=False)
    shown = yaml.safe_load(done.stdout)["kafka"]["client"]
    assert shown == {**dict.fromkeys(client, "***"), "sasl.mechanism": "PLAIN"}
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("Fetch", "max_bytes"),
        ("Fetch", "timeout"),
        ("Fetch", "give_up_after"),
        ("Output", "shard_bytes"),
        ("BatchConfig", "linger"),
    ],
)
def test_the_schema_takes_what_the_loader_takes(section: str, key: str) -> None:
    field = Config.model_json_schema(by_alias=True)["$defs"][section]["properties"][key]
    kinds = {kind["type"]: kind for kind in field.get("anyOf", [field])}
    model = {"Fetch": Fetch, "Output": Output, "BatchConfig": BatchConfig}[section]
    texts = [
        "",
        "20",
        "20MB",
        " 20 mib ",
        "1.5GB",
        "20XB",
        "5iB",
        "10s",
        "50ms",
        "1h30m",
        " 1.5h ",
        "1h 30m",
        "0s",
        "0.0m",
        "0B",
        "٣s",
        "1s\n",
        "s",
    ]
    for value in (20, -1, 1.5, *texts):
        try:
            model.model_validate(
                {"path": "/x", key: value} if section == "Output" else {key: value}
            )
            taken = True
        except ValueError:
            taken = False
        if isinstance(value, str):
            assert bool(re.search(kinds["string"]["pattern"], value)) == taken, value
        else:
            assert (
                isinstance(value, int)
                and "integer" in kinds
                and value >= kinds["integer"]["minimum"]
            ) == taken, value


def test_the_schema_is_printed_without_a_config_and_accepts_the_documented_one() -> None:
    done = CliRunner().invoke(
        check, ["--schema"], catch_exceptions=False, env={"STREAMER_CONFIG": None}
    )
    assert done.exit_code == 0
    schema = json.loads(done.stdout)
    assert set(schema["required"]) == {"dataset", "kafka", "embedder", "output"}
    assert set(yaml.safe_load(FULL)) <= set(schema["properties"])
    assert "in" in schema["$defs"]["FieldRule"]["properties"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["dedup"]["anyOf"] == [
        {"$ref": "#/$defs/Dedup"},
        {"enum": ["off", False]},
    ]


def test_the_digest_is_about_what_decides_an_outcome() -> None:
    base = parse(MINIMAL).digest()
    assert re.fullmatch(r"[0-9a-f]{16}", base)
    for same in (
        changed(writer="w1"),
        changed(batch={"size": 3}),
        changed(http={"port": 1}),
        changed(output={"path": "/other"}),
    ):
        assert parse(same).digest() == base
    others = [
        changed(dedup="off"), changed(dedup={"threshold": 0.9}), changed(embedder={"model": "other"}), changed(output={"formats": ["jpg"]}),
        rules({"field": "width", "at_least": 3}), changed(decode={"max_pixels": 5}), changed(fetch={"schemes": ["file"], "hosts": ["/"]}),
        rules(heads=({"type": "nsfw"},)),
    ]  # fmt: skip
    assert len({parse(raw).digest() for raw in others} | {base}) == len(others) + 1


@pytest.mark.parametrize(
    "entry",
    [
        "a", "images.example.com", "*.example.com", "my_bucket", "My-Bucket.1", "localhost", "10.1.2.3", "10.0.0.0/8",
        "10.1.2.3/8", "::1", "fd00::/8", "/mnt/images", "/", "/mnt:80", "xn--bcher-kva.example", "images.example.com:8080",
        "*.example.com:8080", "localhost:1", "10.1.2.3:65535", "10.0.0.0/8:8080", "[::1]:8080", "[fd00::/8]:8080",
    ],
)  # fmt: skip
def test_what_an_allow_list_may_hold(entry: str) -> None:
    fetch = {"schemes": ["http", "s3", "file"], "hosts": [entry, "a.example", "/mnt"]}
    assert parse(changed(fetch=fetch)).fetch.hosts[0] == entry


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("http://127.0.0.1:8765/", "write 127.0.0.1:8765"),
        ("https://images.example.com", "write images.example.com"),
        ("http://user:word@images.example.com/a/b?c#d", "write images.example.com"),
        ("https://images.example.com:8765/cats", "write images.example.com:8765"),
        ("images.example.com:", "write images.example.com"),
        ("images.example.com:http", "is not a host name"),
        ("images.example.com:0", "write images.example.com"),
        ("images.example.com:65536", "write images.example.com"),
        ("[images.example.com]:80", "write images.example.com"),
        ("10.0.0.0/33:80", "is not"),
        ("images.example.com/cats", "write images.example.com"),
        ("images.example.com.", "write images.example.com"),
        (" images.example.com", "write images.example.com"),
        ("s3://bucket/prefix", "write bucket"),
        ("[::1]", "write ::1"),
        ("http://[::1]:80/", "write [::1]:80"),
        ("http://x.com/", "write x.com"),
        ("*", "write *.example.com"),
        ("a.*.example.com", "write *.example.com"),
        ("*example.com", "write *.example.com"),
        ("http://*/", "write *.example.com"),
        ("bücher.example", "must be written as it stands in a URL: xn--bcher-kva.example"),
        ("10.0.0.0/33", "is not a network"),
        ("-x", "is not a host name"),
        ("", "is not a host name"),
        ("~/images", "is not a host name"),
        ("images/cats", "write images"),
    ],
)
def test_an_allow_list_that_allows_nothing(entry: str, said: str) -> None:
    """Every record would be uri_not_allowed, and that for good."""
    with pytest.raises(ConfigError) as caught:
        parse(changed(fetch={"schemes": ["http"], "hosts": [entry]}))
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"config: fetch.hosts.0: {entry!r} ")
    assert said in line


@pytest.mark.parametrize("name", WRONG)
def test_nobody_is_shown_a_regular_expression(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(WRONG[name][0])
    assert "should match" not in str(caught.value)
    assert "\\" not in str(caught.value)
    assert "^" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "environ", "line"),
    [
        (("dedup.threshold=7",), {}, "--set: dedup.threshold: "),
        (("filters.0.at_lest=7",), {}, "--set: filters.0.at_lest: "),
        (("batch={sise: 3}",), {}, "--set: batch.sise: "),
        ((), {"STREAMER__DEDUP__THRESHOLD": "7"}, "STREAMER__DEDUP__THRESHOLD: dedup.threshold: "),
        (("batch.size=3",), {"STREAMER__HTTP__PORT": "-1"}, "STREAMER__HTTP__PORT: http.port: "),
    ],
)
def test_a_value_that_is_wrong_is_told_where_it_was_set(
    overrides: tuple[str, ...], environ: dict[str, str], line: str, tmp_path: Path
) -> None:
    path = file(tmp_path, yaml.safe_dump(rules({"field": "width", "at_least": 1})))
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("pattern", "why"), [(r"(a)\1", r"\\1"), (r"a\Z", r"\\Z"), ("\ud800", "surrogates")]
)
def test_a_pattern_that_is_none_of_re2(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"config: filters\.0: .*{why}"):
        parse(rules({"field": "text", "matches": pattern}))
