"""``streamer check``: everything a start needs, one line each; it leaves nothing behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

import click
import yaml

from streamer.commands.options import read_config, with_config
from streamer.config import Config
from streamer.console import Console
from streamer.errors import EXIT_DONE, DependencyError, ProtocolError, StreamerError
from streamer.redact import redacted
from streamer.terminal import say, tell
from streamer.units import counted

if TYPE_CHECKING:
    from streamer.kafka.admin import TopicInfo
    from streamer.model.model import Model
    from streamer.sink.ledger import Ledger
    from streamer.wire.checkpoint import Checkpoint


def _print_schema(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        for line in json.dumps(Config.model_json_schema(by_alias=True), indent=2).splitlines():
            say(line)
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
@click.option(
    "--print",
    "show",
    is_flag=True,
    help="Prints the config as it is understood, overrides included, and ends.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(path: str, overrides: tuple[str, ...], show: bool, as_json: bool) -> None:
    """Config, plugins, broker, topic, output, weights, device, index, what the dataset is bound to:
    one line each. Exit code: that of the first wrong one."""
    config = read_config(path, overrides)
    if show:
        for line in _as_yaml(config):
            say(line)
        return
    sys.exit(_report(config, as_json))


def _as_yaml(config: Config) -> list[str]:
    settings = redacted(config.model_dump(mode="json", by_alias=True))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if not text.replace("\n", "").isprintable():  # then YAML writes such characters as \u001b
        text = yaml.safe_dump(settings, sort_keys=False)
    return text.splitlines()


class Skipped(Exception):
    """A probe did not run, or would have to do more than look; says what that leaves open."""


def _report(config: Config, as_json: bool) -> int:
    code = EXIT_DONE
    lines: list[dict[str, object]] = []
    probed, console = Probed(config), Console()
    for name, probe in PROBES.items():
        ok: bool | None = True
        try:
            found = probe(probed)
        except Skipped as why:
            found, ok = str(why), None
        except StreamerError as error:
            found, ok = str(error), False
            code = code or error.exit_code
        lines.append({"check": name, "ok": ok, "detail": found})
        if not as_json:
            mark, style = _MARKS[ok]
            console.print(f"{mark:<5}  {name:<8} {found}", style=style)
    if as_json:
        tell({"ok": code == EXIT_DONE, "checks": lines})
    return code


_MARKS = {True: ("ok", ""), False: ("WRONG", "red"), None: ("?", "yellow")}


class Probed:
    """What the probes have found so far; None if it is wrong."""

    topic: TopicInfo | None = None
    committed: Ledger | None = None
    claims_position: int = 0
    model: Model | None = None

    def __init__(self, config: Config) -> None:
        self.config = config


def _config(probed: Probed) -> str:
    config = probed.config
    return (
        f"dataset {config.dataset}, writer {config.writer}, heads: {len(config.heads)}, "
        f"filters: {len(config.filters)}"
    )


def _filters(probed: Probed) -> str:
    from streamer.judge.filters import Rules

    config = probed.config
    Rules(config.filters, config.output.formats, (head.name for head in config.heads))
    return ", ".join(rule.name for rule in config.filters) or "none"


def _fetch(probed: Probed) -> str:
    from streamer.decode.reader import require_folders

    fetch = probed.config.fetch
    require_folders(fetch)
    if not fetch.schemes:
        return "references are not fetched"
    return f"{', '.join(fetch.schemes)} from {', '.join(fetch.hosts)}; no host was asked"


def _http(probed: Probed) -> str:
    from streamer.ops.http import is_free

    http = probed.config.http
    if not is_free(http):
        raise Skipped(
            f"http.port: {http.host}:{http.port} is in use. If this replica is not running, a start "
            "will fail"
        )
    return f"{http.host}:{http.port} is free" if http.port else f"any free port of {http.host}"


def _broker(probed: Probed) -> str:
    from streamer.kafka.admin import Admin
    from streamer.kafka.topics import input_topic

    kafka = probed.config.kafka
    probed.topic = topic = input_topic(Admin(kafka), probed.config)
    partitions = counted(topic.partitions, "partition")
    return f"{kafka.bootstrap_servers}: topic {topic.name}, {partitions}, id {topic.id}"


def _topics(probed: Probed) -> str:
    from streamer.kafka.admin import Admin

    if probed.topic is None:
        raise Skipped("skipped: needs the input topic")
    missing = Admin(probed.config.kafka).check_dataset_topics(probed.config)
    there = [name for name in probed.config.own_topics() if name not in missing]
    parts = [f"{', '.join(there)}: settings correct"] if there else []
    parts += [f"a start will create {', '.join(missing)}"] if missing else []
    return "; ".join(parts)


def _rights(probed: Probed) -> str:
    from streamer.kafka.admin import Admin
    from streamer.kafka.rights import look_up

    if probed.topic is None:
        raise Skipped("skipped: needs the input topic")
    found = look_up(probed.config, Admin(probed.config.kafka))
    if found.denied:
        raise DependencyError(
            f"the brokers deny {', '.join(found.denied)}. Grant it (kafka-acls.sh), or change "
            "kafka.client"
        )
    if found.unknown:
        raise Skipped(
            f"all that can be looked at; not Read, Write and DescribeConfigs on what a start will "
            f"create: {', '.join(found.unknown)}"
        )
    return "all that a replica needs"


def _output(probed: Probed) -> str:
    from streamer.kafka.admin import Admin
    from streamer.kafka.log import LogReader, from_checkpoint
    from streamer.sink.agreement import Comparison
    from streamer.sink.ledger import Ledger
    from streamer.sink.storage import Storage
    from streamer.wire.manifest import decode

    config = probed.config
    storage = Storage(config.output.path, config.dataset)
    storage.check_writable()
    if probed.topic is None:
        raise Skipped(
            f"{storage.root_uri} is writable. Skipped, needs the input topic: whether the dataset's "
            "epochs are there"
        )
    admin = Admin(config.kafka)
    with LogReader(config, admin, config.commits_topic) as log:
        checkpoint = from_checkpoint(log, config, admin, storage)
        # As at a start: a checkpoint's epochs were all projected, but for those that it names
        projected = storage.projected() if checkpoint is None else None
        comparison = Comparison(config.commits_topic, storage, projected)
        ledger, since = Ledger(), 0
        if checkpoint is not None:
            ledger = Ledger.restored(checkpoint)
            probed.claims_position = checkpoint.claims_position
            for manifest in checkpoint.waiting:
                comparison.add(manifest)
        for message in log.read(whole=True):
            manifest = decode(message.value() or b"")
            comparison.add(manifest)
            ledger.apply(manifest)
            probed.claims_position = max(probed.claims_position, manifest.claims_position)
            since += 1
    comparison.unprojected()
    probed.committed = ledger
    count = sum(epoch + 1 for epoch, _ in ledger.last.values())
    return f"{storage.root_uri} is writable{_found(count, since, checkpoint)}"


def _found(epochs: int, since: int, checkpoint: Checkpoint | None) -> str:
    if not epochs:
        return ""
    if checkpoint is None:
        return f"; all of {counted(epochs, 'epoch')} are there"
    after = f"the {since} after the checkpoint at offset {checkpoint.offset}"
    return f"; of {counted(epochs, 'epoch')} {after} are there"


def _offsets(probed: Probed) -> str:
    from streamer.kafka.admin import Admin
    from streamer.sink.agreement import contradiction, require_no_offsets
    from streamer.sink.storage import Storage
    from streamer.skips import Skips

    config, topic = probed.config, probed.topic
    if topic is None or probed.committed is None:
        raise Skipped("skipped: needs the input topic and the output")
    admin, ledger = Admin(config.kafka), probed.committed
    committed = admin.committed(config.group, topic.name, range(topic.partitions))
    partitions = [p for p in range(topic.partitions) if ledger.end(p) is not None]
    if not partitions:
        require_no_offsets(config.dataset, {p: found.offset for p, found in committed.items()})
        return "none is committed"
    begins = admin.begin_offsets(topic.name, partitions)
    ends = admin.end_offsets(topic.name, partitions, committed=False)
    skips = Skips(Storage(config.output.path, config.dataset), config.kafka.on_expired == "skip")
    skips.look()
    for p in partitions:
        start = ledger.end(p) or 0
        offset = committed[p].offset if p in committed else None
        limit = ends[p] if ledger.is_new else skips.limit(p)
        if why := contradiction(config.dataset, p, start, offset, begins[p], ends[p], limit):
            raise ProtocolError(why)
    behind = sum(ends[p] - (ledger.end(p) or 0) for p in partitions)
    return f"{counted(len(partitions), 'partition')} committed, {counted(behind, 'offset')} behind"


def _model(probed: Probed) -> str:
    from streamer.model.model import load_model
    from streamer.provenance import describe

    probed.model = model = load_model(probed.config)
    scores = ", ".join(model.score_names) or "none"
    pipeline = describe(probed.config, model)["config"]
    return (
        f"{model.embedder.family}, {model.dim} dimensions on {model.device}; heads: {scores}; "
        f"{model.embedder.fingerprint[:23]}…; pipeline {pipeline}"
    )


def _decode(probed: Probed) -> str:
    if probed.model is None:
        raise Skipped("skipped: needs the model")
    decode = probed.config.decode
    threads = counted(decode.threads, "thread")
    return f"JPEGs are {probed.model.decoding}; all else is decoded on the CPU, by {threads}"


def _index(probed: Probed) -> str:
    from streamer.sink.snapshots import snapshot_folder
    from streamer.start import make_index

    dedup = probed.config.dedup
    if dedup is None:
        return "none: dedup is off"
    folder = snapshot_folder(probed.config)
    if folder is not None:
        folder.probe(f".probe-{uuid4().hex}")
    snapshots = "no snapshots" if folder is None else f"snapshots in {folder.place('')}"
    if probed.model is None:
        raise Skipped(f"skipped: needs the model; {snapshots}")
    make_index(probed.config, probed.model)
    where = probed.model.device if dedup.device == "auto" else dedup.device
    return f"{dedup.probe} on {where}, threshold {dedup.threshold}; {snapshots}"


def _dataset(probed: Probed) -> str:
    from streamer.dedup.choose import open_index
    from streamer.dedup.meld import Meld
    from streamer.kafka.admin import Admin
    from streamer.kafka.claim_log import ClaimLog, bound_to
    from streamer.provenance import binding
    from streamer.sink.agreement import require_claims
    from streamer.start import threshold_of

    config, topic, model = probed.config, probed.topic, probed.model
    if topic is None or model is None:
        raise Skipped("skipped: needs the topic and the model")
    admin = Admin(config.kafka)
    if (
        admin.topic(config.claims_topic) is None
        or not admin.end_offsets(config.claims_topic, [0], committed=False)[0]
    ):
        if config.dedup is not None:
            require_claims(0, probed.claims_position, config.claims_topic)
        return f"{config.dataset} is new"
    bound_to(config, admin)
    meld = Meld(model.dim, threshold_of(config), open_index(model.dim, threshold_of(config), "cpu"))
    log = ClaimLog(
        config, meld, binding(config, topic, model), admin.message_limit(config.claims_topic)
    )
    try:
        log.read_to(1, lambda at, end: None)  # the first entry, which must be ours
    finally:
        log.close()
    return f"{config.dataset} exists, with the same topic, embedder and threshold"


PROBES: dict[str, Callable[[Probed], str]] = {
    "config": _config,
    "filters": _filters,
    "fetch": _fetch,
    "http": _http,
    "broker": _broker,
    "topics": _topics,
    "rights": _rights,
    "output": _output,
    "offsets": _offsets,
    "model": _model,
    "decode": _decode,
    "index": _index,
    "dataset": _dataset,
}
