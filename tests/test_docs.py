"""The documentation against the code: every name in a table, every config, every command and every
query, both ways."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import promql_parser
import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from streamer import config as configs
from streamer import errors
from streamer.audit.report import NOTES, PROBLEMS
from streamer.cli import VERBS
from streamer.config import HEADER_FIELDS, Config, load, parse
from streamer.errors import INVALID_REASONS
from streamer.flow.channel import Channel
from streamer.judge.filters import Rules
from streamer.ops.metrics import DROP_CAUSES, STAGES, Metrics
from streamer.records import OUTCOMES, Decision, Facts, Record
from streamer.replay import into
from streamer.sink.shards import _describe
from streamer.sink.table import table_schema
from streamer.testing import create_topic
from streamer.units import parse_duration, parse_size
from streamer.wire import envelope
from streamer.wire.manifest import Manifest

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs/reference.md").read_text("utf-8")
PAGES = (
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{name}.md" for name in ("architecture", "deduplication", "operations", "reference")),
)
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def section(heading: str) -> str:
    """From the line ``heading`` to the next heading of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    lines = REFERENCE.splitlines()
    at = lines.index(heading)
    end = next(
        (i for i in range(at + 1, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[i])),
        len(lines),
    )
    return "\n".join(lines[at + 1 : end])


def rows(text: str, *header: str) -> list[list[str]]:
    """The cells of the tables in ``text`` that have this header."""
    found, inside = [], False
    for line in text.splitlines():
        cells = (
            [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        )
        cells = [cell.strip("| ") for cell in cells]
        if cells == list(header):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|- "):
            found.append(cells + [""] * (len(header) - len(cells)))
    assert found, f"no table {header}"
    return found


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^ *```{language}\n(.*?)^ *```",
        (ROOT / page).read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )


# Config

KINDS: dict[str, type[BaseModel]] = {
    "### top level": Config, "### kafka": configs.Kafka, "### fetch": configs.Fetch, "### decode": configs.Decode,
    "#### embedder, `type: timm`": configs.TimmEmbedder, "#### embedder, `type: pkg.mod:Class`": configs.CustomEmbedder,
    "#### head, `type: aesthetic`": configs.AestheticHead, "#### head, `type: nsfw`": configs.NsfwHead,
    "#### head, `type: linear`": configs.LinearHeadConfig, "#### head, `type: mlp`": configs.MlpHeadConfig,
    "#### head, `type: pkg.mod:Class`": configs.CustomHead, "#### rule over a field": configs.FieldRule,
    "#### rule of your own": configs.CustomRule, "### dedup": configs.Dedup, "### output": configs.Output, "### batch": configs.BatchConfig,
    "### dead_letters": configs.DeadLetters, "### http": configs.Http,
}  # fmt: skip


def default_of(model: type[BaseModel], key: str) -> Any:
    """`PydanticUndefined` where there is none."""
    [field] = [f for name, f in model.model_fields.items() if (f.alias or name) == key]
    return field.default


def equal(written: Any, kind: str, default: Any) -> bool:
    if kind == "size":
        return bool(parse_size(written) == default)
    if kind == "duration":
        return bool(parse_duration(written) == default)
    if isinstance(default, BaseModel):
        return bool(written == {} and default == type(default)())
    return bool((tuple(written) if isinstance(default, tuple) else written) == default)


@pytest.mark.parametrize("heading", KINDS)
def test_every_key_is_there_with_its_default(heading: str) -> None:
    model = KINDS[heading]
    table = {
        codes(row[0])[0].rpartition(".")[2]: row
        for row in rows(section(heading), "key", "type", "default", "meaning")
    }
    assert list(table) == [field.alias or name for name, field in model.model_fields.items()], (
        "the same keys in the same order"
    )
    for key, row in table.items():
        default = default_of(model, key)
        if row[2] == "required":
            assert default is PydanticUndefined, key
        else:
            assert equal(yaml.safe_load(codes(row[2])[0]), row[1], default), (
                f"{key}: {row[2]} is not {default!r}"
            )


def test_every_section_of_the_schema_has_its_table() -> None:
    assert set(Config.model_json_schema()["$defs"]) | {"Config"} == {
        model.__name__ for model in KINDS.values()
    }


def test_choices_are_those_of_the_schema() -> None:
    schema = Config.model_json_schema(by_alias=True)
    for heading, model in KINDS.items():
        properties = (schema if model is Config else schema["$defs"][model.__name__])["properties"]
        for row in rows(section(heading), "key", "type", "default", "meaning"):
            known = properties[codes(row[0])[0].rpartition(".")[2]]
            enum = known.get("enum") or known.get("items", {}).get("enum")
            if enum and len(enum) > 1:
                assert set(codes(row[1]) or codes(row[3])) >= set(enum), row


def test_every_field_of_a_rule_is_there() -> None:
    named = [name for row in rows(section("### filters"), "field", "is") for name in codes(row[0])]
    assert [name for name in named if name.islower()] == list(HEADER_FIELDS)
    assert [name for name in named if not name.islower()] == ["metadata.NAME", "NAME_score"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load_and_their_rules_compile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(path, environ={})
    Rules(config.filters, config.output.formats, (head.name for head in config.heads))


def test_what_is_commented_out_in_the_production_example_is_the_default() -> None:
    """Each `# key: value` there becomes a line of the config, and changes nothing."""
    text = (ROOT / "examples/streamer.yaml").read_text("utf-8")
    plain = parse(yaml.safe_load(text)).model_dump()
    given = [line for line in text.splitlines() if re.match(r" *# [a-z_]+: \S", line)]
    assert len(given) > 15
    filled = re.sub(r"(?m)^( *)# ([a-z_]+: \S)", r"\1\2", text)
    assert parse(yaml.safe_load(filled)).model_dump() == plain


def test_the_examples_between_them_show_every_section() -> None:
    shown = set().union(
        *(re.findall(r"(?m)^#? ?([a-z_]+):", path.read_text("utf-8")) for path in EXAMPLES)
    )
    assert shown >= set(Config.model_fields)


def test_the_readme_shows_the_laptop_example_and_a_core_that_loads() -> None:
    laptop, core = (yaml.safe_load(block) for block in blocks("README.md", "yaml"))
    assert laptop == yaml.safe_load((ROOT / "examples/laptop.yaml").read_text("utf-8"))
    production = parse({"dataset": "d", "kafka": {"bootstrap_servers": "b", "topic": "t"}, **core})
    assert [head.name for head in production.heads] == ["aesthetic", "nsfw"]


def test_check_finds_nothing_wrong_with_the_laptop_example(
    kafka: str, topic_name: str, tmp_path: Path
) -> None:
    from streamer.model.lite0 import write_demo_checkpoint

    create_topic(kafka, topic_name)
    checkpoint = write_demo_checkpoint(tmp_path / "lite0.safetensors")
    changes = {
        "dataset": topic_name,
        "kafka.bootstrap_servers": f'"{kafka}"',
        "kafka.topic": topic_name,
        "embedder.checkpoint": checkpoint,
        "output.path": tmp_path / "out",
    }
    command = [
        sys.executable,
        "-m",
        "streamer",
        "check",
        "--json",
        "-c",
        str(ROOT / "examples/laptop.yaml"),
    ]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["checks"][-1] == {"check": "dataset", "ok": True, "detail": f"{topic_name} is new"}


# Records, files, reasons


def test_the_json_records_are_records() -> None:
    inline, reference = re.findall(r"```json\n(.*?)```", section("## Input records"), re.DOTALL)
    first, second = (
        envelope.parse(
            Record(0, 0, 0, text.encode(), [("content-type", b"application/json")]), "image/jpeg"
        )
        for text in (inline, reference)
    )
    assert first.image == b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01"
    assert (first.id, first.metadata) == ("cats/0001", {"lang": "en", "likes": 3})
    assert second.image == envelope.Reference(
        "https://images.example.com/2.jpg", json.loads(reference)["sha256"], 48213
    )


def test_the_sample_is_what_the_shard_writer_writes() -> None:
    [shown] = (
        json.loads(text)
        for text in re.findall(r"```json\n(.*?)```", section("### Samples"), re.DOTALL)
    )
    facts = Facts("cats/0001.jpg", "", None, {}, b"x", "jpg", 640, 480, shown["sha256"])
    record, decision = Record(1, 42, shown["timestamp"], b"", ()), Decision("accepted", claim=17)
    written = json.loads(
        _describe(
            shown["key"],
            '"image-text"',
            record,
            facts,
            decision,
            '"aesthetic":5.25',
            '{"lang":"en"}',
        )
    )
    assert list(shown) == list(written)
    assert {**written, "bytes": shown["bytes"]} == shown


def test_columns_are_those_of_the_table() -> None:
    schema = table_schema(4, ["NAME"], {})
    table = rows(section("### Parquet columns"), "column", "type", "null where")
    named = {name: row for row in table for name in codes(row[0])}
    assert list(named) == schema.names
    for name, row in named.items():
        field = schema.field(name)
        assert (row[2].split(".")[0] == "never") == (not field.nullable), name
        word = row[1].split(" ")[0].split("[")[0]
        assert str(field.type).startswith(word) or (
            name == "embedding" and "halffloat" in str(field.type)
        ), (name, str(field.type))


def test_fields_of_the_manifest_are_there() -> None:
    named = [name for row in rows(section("### Manifest"), "field", "is") for name in codes(row[0])]
    assert named == [field.name for field in fields(Manifest)]


def test_reasons_are_those_of_the_code() -> None:
    table = {
        codes(row[0])[0]: row[1]
        for row in rows(section("## Outcomes and reasons"), "reason", "means")
    }
    assert table == INVALID_REASONS
    assert [
        codes(row[0])[0]
        for row in rows(section("## Outcomes and reasons"), "outcome", "reason", "where")
    ] == list(OUTCOMES)


def test_headers_of_dead_letters_are_those_of_the_code() -> None:
    named = {
        name
        for row in rows(section("## Topics and names"), "header", "is")
        for name in codes(row[0])
    }
    assert named == set(
        re.findall(r'"(streamer-[a-z]+)"', (ROOT / "streamer/kafka/commit.py").read_text("utf-8"))
    )


def test_problem_and_note_codes_are_those_of_the_audit() -> None:
    for kind, known in (("problem", PROBLEMS), ("note", NOTES)):
        assert {
            codes(row[0])[0]: row[1] for row in rows(section("## Audit"), kind, "means")
        } == known


# Metrics and queries


def scraped() -> dict[str, tuple[str, set[str], str]]:
    """Name → type, labels, help of every metric of ours, once everything has happened."""
    metrics = Metrics(["rule"])
    metrics.watch_queue(Channel("decode", 1))
    metrics.watch_device_memory(lambda: {"free": 1.0})
    metrics.lag({0: 1}, 1)
    suffix = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffix.get(family.type, ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
            family.documentation,
        )
        for family in metrics.registry.collect()
        if family.name.startswith("streamer_")
    }


def test_metrics_are_those_of_a_scrape() -> None:
    table = {
        codes(row[0])[0]: (row[1], set(codes(row[2])), f"{row[3]}.")
        for row in rows(section("## Metrics"), "metric", "type", "labels", "means")
    }
    assert table == scraped()


def test_closed_lists_of_labels_are_spelt_out() -> None:
    assert set(codes(section("## Metrics"))) >= {*STAGES, *DROP_CAUSES}


def queries() -> Iterator[str]:
    for block in blocks("docs/operations.md", "promql"):
        for line in block.splitlines():
            if line and not line.startswith("#"):
                yield line


@pytest.mark.parametrize("query", list(queries()))
def test_queries_parse_and_name_metrics_and_labels_that_exist(query: str) -> None:
    promql_parser.parse(query)
    known = scraped()
    for name, matchers in re.findall(r"(streamer_\w+)(\{[^}]*\})?", query):
        base = name if name in known else re.sub(r"_(bucket|count|sum)$", "", name)
        assert base in known, name
        assert set(re.findall(r"(\w+)=", matchers)) <= known[base][1], query
    grouped = {
        label for inside in re.findall(r"by \(([^)]*)\)", query) for label in inside.split(", ")
    }
    assert grouped <= {label for _, labels, _ in known.values() for label in labels} | {"le"}


def test_every_metric_that_is_worth_an_alert_is_in_the_runbook() -> None:
    runbook = (ROOT / "docs/operations.md").read_text("utf-8")
    contract = (
        "streamer_decisions_total",
        "streamer_lag_records",
        "streamer_lag_seconds",
        "streamer_epochs_committed_total",
    )
    assert [name for name in (*contract, "streamer_index_vectors") if name not in runbook] == []
    for name in re.findall(r"`(streamer_\w+)", runbook):
        assert name in scraped(), name


# Command line


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for verb in VERBS:
        command = importlib.import_module(f"streamer.commands.{verb}").command
        if isinstance(command, click.Group):
            found |= {f"{verb} {name}": below for name, below in command.commands.items()}
        else:
            found[verb] = command
    return found


def options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }


def test_every_verb_and_option_is_there() -> None:
    table = {
        codes(row[0])[0].removeprefix("streamer "): " ".join(codes(row[1]))
        for row in rows(section("## Command line"), "verb", "arguments and options")
    }
    known = commands()
    assert table.keys() == known.keys()
    for verb, text in table.items():
        named = {word for word in text.split() if word.startswith("-")}
        assert named == options(known[verb]) - {"--config"}, verb


def test_exit_codes_are_those_of_the_code() -> None:
    known = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {row[0] for row in rows(section("## Command line"), "exit code", "means")} == known | {
        "130"
    }


def shown_commands() -> Iterator[str]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("streamer "):
                    yield line.strip()


def test_commands_are_shown() -> None:
    assert len(set(shown_commands())) > 10


@pytest.mark.parametrize("line", sorted(set(shown_commands())))
def test_commands_that_are_shown_would_be_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    known = commands()
    verb = next(name for name in known if words[: len(name.split())] == name.split())
    with known[verb].make_context(verb, words[len(verb.split()) :]) as context:
        changes, path = context.params.get("overrides", ()), context.params.get("path")
        if verb == "replay run":
            into(str(ROOT / str(path)), changes, context.params["dataset"])
        elif path:
            load(ROOT / path, changes, {})


def test_every_variable_of_the_environment_is_there() -> None:
    named = {
        name
        for row in rows(section("## Environment variables"), "variable", "for")
        for name in codes(row[0])
    }
    sources = [
        path.read_text("utf-8")
        for path in [
            *(ROOT / "streamer").rglob("*.py"),
            ROOT / "tasks.py",
            ROOT / "tests/conftest.py",
        ]
    ]
    pattern = re.compile(
        r'(?:environ(?:ment)?(?:\.get|\.setdefault)?[\[(]|_choice\(env, )"([A-Z_]+)"|"([A-Z_]+)" in os\.environ|"(AWS_[A-Z_]+|HF_TOKEN)"'
    )
    used = {
        name for text in sources for match in pattern.findall(text) for name in match if name
    } - {"PATH"}
    assert {"STREAMER_LOG", "STREAMER_CACHE", "HF_ENDPOINT", "AWS_REGION"} <= used
    assert sorted(used - named) == []


# The pages themselves


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_modules_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    assert len(text.splitlines()) <= 265
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    assert len(named) > 15
    missing = [
        name
        for name in sorted(named)
        if not (ROOT / "streamer" / name).exists() and not (ROOT / name).exists()
    ]
    assert missing == []
    tests = set(re.findall(r"`(tests/[\w*./]+)`", text))
    assert [name for name in sorted(tests) if not list(ROOT.glob(name))] == []


def test_the_changelog_is_about_this_version() -> None:
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert version is not None
    assert (
        re.search(r"(?m)^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"))[1]
        == version[1]
    )  # type: ignore[index]


def test_numbers_that_the_runbook_gives_for_winners_are_those_of_the_store() -> None:
    from streamer.dedup.sketch import width_for
    from streamer.dedup.store import WinnerStore

    for dim, width in ((64, 64), (512, 64), (768, 96), (1280, 128)):
        assert width_for(dim) == width
        store = WinnerStore(dim)
        store.append(
            np.zeros((1, dim), np.float16),
            np.zeros((1, width), np.float32),
            np.zeros(1, np.int64),
            0,
            np.zeros(1, np.int64),
        )
        [block] = store.view.blocks
        per_row = sum(
            getattr(block, name)[0].nbytes
            for name in ("vectors", "codes", "positions", "partitions", "offsets", "removed")
        )
        assert per_row == 2 * dim + 4 * width + 25


def test_every_test_that_a_promise_names_is_there() -> None:
    """A row of the table names a folder, a file, or a file beside the one before."""
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    text = (ROOT / "docs/guarantees.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+|test_\w+\.py)`", text))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or name in there, name
