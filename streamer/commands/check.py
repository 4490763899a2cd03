"""``streamer check``: everything a start needs, one line each, nothing written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click
import yaml

from streamer.commands.options import read_config, with_config
from streamer.config import HIDDEN, Config, is_secret
from streamer.errors import EXIT_DONE, StreamerError


def _print_schema(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps(Config.model_json_schema(by_alias=True), indent=2))
        ctx.exit()


@click.command()
@with_config
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Prints the config's JSON Schema and ends; needs no config.",
)
@click.option("--print", "show", is_flag=True, help="Prints the config as it is understood, overrides included, and ends.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(path: str, overrides: tuple[str, ...], show: bool, as_json: bool) -> None:
    """Config, plugins, weights, device, broker, topics, output: one line each. Exit code: that of the first thing that is wrong."""
    config = read_config(path, overrides)
    if show:
        shown = config.model_dump(mode="json", by_alias=True)
        client = shown["kafka"]["client"]
        shown["kafka"]["client"] = {name: HIDDEN if is_secret(name) else value for name, value in client.items()}
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
        return
    sys.exit(_report(config, as_json))


def _report(config: Config, as_json: bool) -> int:
    code = EXIT_DONE
    lines: list[dict[str, object]] = []
    for name, probe in PROBES.items():
        try:
            found, ok = probe(config), True
        except StreamerError as error:
            found, ok = str(error), False
            code = code or error.exit_code
        lines.append({"check": name, "ok": ok, "detail": found})
        if not as_json:
            mark = click.style("ok   ", fg="green") if ok else click.style("WRONG", fg="red")
            click.echo(f"{mark}  {name:<8} {found}")
    if as_json:
        print(json.dumps({"ok": code == EXIT_DONE, "checks": lines}))
    return code


def _config(config: Config) -> str:
    return f"dataset {config.dataset}, writer {config.writer}, {len(config.heads)} heads, {len(config.filters)} filters, digest {config.digest()}"


def _filters(config: Config) -> str:
    from streamer.judge.filters import Rules

    Rules(config.filters, config.output.formats, (head.name for head in config.heads))
    return ", ".join(rule.name for rule in config.filters) or "none"


def _model(config: Config) -> str:
    from streamer.model.model import load_model

    model = load_model(config)
    scores = ", ".join(model.score_names) or "none"
    return f"{model.embedder.family}, {model.dim} dimensions on {model.device}; heads: {scores}; {model.embedder.fingerprint[:23]}…"


def _broker(config: Config) -> str:
    from streamer.kafka.admin import Admin
    from streamer.kafka.topics import input_topic

    topic = input_topic(Admin(config.kafka), config)
    return f"{config.kafka.bootstrap_servers}: topic {topic.name} with {topic.partitions} partitions, id {topic.id}"


def _output(config: Config) -> str:
    from streamer.sink.storage import Storage

    storage = Storage(config.output.path, config.dataset)
    storage.check_writable()
    return f"{storage.root_uri} can be written"


PROBES: dict[str, Callable[[Config], str]] = {
    "config": _config, "filters": _filters, "broker": _broker, "output": _output, "model": _model,
}  # fmt: skip
