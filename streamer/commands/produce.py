"""``streamer produce``: images and their captions as records, in binary mode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import yaml
from pydantic import ValidationError

from streamer.config import Kafka
from streamer.console import Console
from streamer.errors import EXIT_FAILED, ConfigError, DependencyError, StreamerError
from streamer.kafka.admin import Admin
from streamer.kafka.client import MESSAGE_BYTES
from streamer.kafka.sender import Sender, Tally
from streamer.produce.captions import Captions
from streamer.produce.entry import Columns, Item
from streamer.produce.report import Report
from streamer.produce.source import Sources
from streamer.redact import hide
from streamer.terminal import say, tell
from streamer.units import counted

_LINE_EVERY_S = 5.0


@click.command()
@click.argument(
    "sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE..."
)
@click.option("--topic", required=True, help="The topic to write to.")
@click.option("--bootstrap", required=True, metavar="HOST:PORT", help="Kafka's bootstrap servers.")
@click.option("--create-topic", is_flag=True, help="Makes the topic if it is missing.")
@click.option(
    "--partitions",
    type=click.IntRange(1),
    help="Of the topic that --create-topic makes; default: the broker's.",
)
@click.option(
    "--captions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV, TSV, JSON lines or Parquet with a path and a caption in each row.",
)
@click.option(
    "--path-column",
    default="",
    metavar="NAME",
    help="Column with the image's path. Default: path, file, file_name, …",
)
@click.option(
    "--text-column",
    default="",
    metavar="NAME",
    help="Column, or key of JSON, with the caption. Default: text, caption, captions, txt, prompt, in "
    "any case.",
)
@click.option(
    "--url-column",
    default="",
    metavar="NAME",
    help="Column with the image's address. Default: url, image_url, source_url, in any case.",
)
@click.option(
    "--id-column",
    default="",
    metavar="NAME",
    help="Parquet: column with the id. Default: id, key.",
)
@click.option(
    "--image-column", default="", metavar="NAME", help="Parquet: column with the image's bytes."
)
@click.option(
    "--separator",
    default="",
    help="Splits the text column: the first part is the caption, all are the metadata `captions`.",
)
@click.option(
    "--all-files",
    is_flag=True,
    help="Sends every file as a record of its own, images or not, hidden or not, without sidecars.",
)
@click.option(
    "--key",
    type=click.Choice(["none", "id"]),
    default="none",
    show_default=True,
    help="Message key. `id` sends records with equal ids to one partition.",
)
@click.option(
    "--client",
    "client",
    multiple=True,
    metavar="K=V",
    help="A librdkafka property, as in kafka.client of the config.",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def command(
    sources: tuple[Path, ...], topic: str, bootstrap: str, create_topic: bool, partitions: int | None, captions: Path | None, path_column: str,
    text_column: str, url_column: str, id_column: str, image_column: str, separator: str, all_files: bool, key: str, client: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Sends images to the input topic, with their captions and metadata as headers.

    A SOURCE is a folder of images (PHOTO.txt and PHOTO.json beside PHOTO.jpg are its text and
    metadata; metadata.csv of an imagefolder works too), a WebDataset tar, a Parquet file with bytes
    or paths, a folder of these (img2dataset's, too), or one image. Ids are paths relative to the
    source; in tars TAR/KEY. Keys of the JSON, or further columns, become metadata; what is no
    string is written as JSON.

    What is not sent is listed at the end. Exits 1 if anything was unreadable or too big for the
    topic. Exits 1 and sends nothing if no path in --captions matches a file.
    """
    begun = time.monotonic()
    with _in_words_of_this_command():
        try:
            kafka = Kafka(bootstrap_servers=bootstrap, topic=topic, client=_properties(client))
        except ValidationError as error:
            raise ConfigError(*map(_told, error.errors())) from None
        columns = Columns(
            path=path_column,
            text=text_column,
            image=image_column,
            id=id_column,
            url=url_column,
            separator=separator,
        )
        texts = Captions(captions, columns) if captions is not None else None
        for source in sources:
            if not source.exists():
                raise ConfigError(f"{source}: there is no such file or folder")
        admin = Admin(kafka)
        _ensure_topic(admin, kafka, create_topic, partitions)
        try:
            limit = admin.message_limit(topic)
        except DependencyError:
            limit = MESSAGE_BYTES  # a producer may be forbidden to ask; then the broker refuses what is too big
        reader = Sources(columns, texts, all_files, limit)
        found = [reader.entries(source) for source in sources]
        reader.check_captions()
        sender = Sender(kafka, limit)
        report = Report(reader)
        with Progress() as progress:
            for entry in chain.from_iterable(found):
                if isinstance(entry, Item):
                    sender.send(
                        entry.id,
                        entry.value,
                        entry.headers,
                        entry.id.encode() if key == "id" else None,
                    )
                else:
                    report.add(entry)
                progress.show(sender.tally, len(report.failed))
            sender.finish(lambda: progress.show(sender.tally, len(report.failed)))
    report.finish(sender.tally, limit, time.monotonic() - begun)
    for line in report.remarks(as_json):
        say(line, err=True)
    if as_json:
        tell(report.as_json())
    else:
        say(report.summary(topic))
    if report.failed:
        click.get_current_context().exit(EXIT_FAILED)


def _told(mistake: Any) -> str:
    """A mistake of an option, as pydantic has it."""
    words = str(mistake["msg"]).removeprefix("Value error, ")
    shown = "" if mistake["type"] == "value_error" else f" (got {mistake['input']!r})"
    return f"--{mistake['loc'][0]}: {words}{shown}"


def _properties(pairs: tuple[str, ...]) -> dict[str, str | int | float | bool]:
    properties: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--client {pair}: write it as property=value")
        scalar = yaml.safe_load(value)
        properties[name] = scalar if isinstance(scalar, bool | int | float) else value
    hide(properties)
    return properties


def _ensure_topic(admin: Admin, kafka: Kafka, create: bool, partitions: int | None) -> None:
    topic = admin.topic(kafka.topic)
    if topic is None:
        if not create:
            raise DependencyError(
                f"--topic: there is no topic {kafka.topic!r} at {kafka.bootstrap_servers}. Correct the name, or add --create-topic."
            )
        admin.create(kafka.topic, partitions or -1)
    elif partitions not in (None, topic.partitions):
        there = counted(topic.partitions, "partition")
        say(f"--partitions {partitions}: not used, {kafka.topic} exists with {there}", err=True)


@contextmanager
def _in_words_of_this_command() -> Iterator[None]:
    """The Kafka room names keys of the config; here they are options."""
    try:
        yield
    except StreamerError as error:
        error.args = tuple(map(_renamed, error.args))
        raise


def _renamed(line: str) -> str:
    words = line.replace("kafka.client.", "--client ").replace("kafka.client", "--client")
    return words.replace("kafka.bootstrap_servers", "--bootstrap")


class Progress:
    """On stderr: a live line on a terminal, else a plain line every few seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=False)
        self._live = self._console.status("starting") if self._console.is_terminal else None
        self._begun = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, tally: Tally, failed: int) -> None:
        """Cheap to call for every record."""
        now = time.monotonic()
        if now - self._shown < (0.1 if self._live is not None else _LINE_EVERY_S):
            return
        self._shown = now
        failed += len(tally.refused)
        line = (
            f"{tally.sent} sent, {tally.nbytes / 1e6:.1f} MB, {tally.sent / (now - self._begun):.0f}/s"
            + (f", {failed} failed" if failed else "")
        )
        if self._live is not None:
            self._live.update(line)
        else:
            say(line, err=True)
