"""``streamer demo``: the whole line on this machine, with nothing but Python."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from streamer.errors import EXIT_FAILED
from streamer.terminal import say, tell

if TYPE_CHECKING:
    from streamer.demo.line import Done

_FOLDER = click.Path(file_okay=False, path_type=Path)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # the way out that stops all children, as for Ctrl-C


@click.command()
@click.option(
    "--images",
    type=_FOLDER,
    metavar="DIR",
    help="Your own images instead, captions in .txt or .json beside them.",
)
@click.option(
    "--out",
    type=_FOLDER,
    metavar="DIR",
    default=Path("demo"),
    show_default=True,
    help="Everything the demo makes is in here.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object on stdout.")
def command(images: Path | None, out: Path, as_json: bool) -> None:
    """The whole line on this machine: embedded broker, real photos, real weights (extras `broker`
    and `demo`).

    Starts a real Apache Kafka, writes over 300 records to it, runs `streamer run --until end` on
    them, checks the result with `streamer dataset verify` and makes a contact sheet of every
    decision. Takes a minute or two; Ctrl-C stops everything.
    """
    from streamer.demo.line import run
    from streamer.demo.place import make_place
    from streamer.demo.story import Story

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    place = make_place(out)
    with Story() as story:
        if place.folder != out.resolve():
            story.say(f"{out} holds an earlier demo; this one goes to {place.folder}")
        done = run(story, place, images)
    if as_json:
        tell(_as_json(done))
    else:
        _print(done)
    for line in done.unreadable:
        say(f"not sent: {line}", err=True)
    if done.unreadable:
        sys.exit(EXIT_FAILED)


def _print(done: Done) -> None:
    from rich.table import Table

    from streamer.console import Console
    from streamer.demo.result import outcome_lines

    console = Console()
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("outcome")
    table.add_column("reason")
    table.add_column("records", justify="right")
    for outcome, reason, count in outcome_lines(done.result):
        table.add_row(outcome, reason, str(count), style="bold" if outcome else "")
    console.print()
    console.print(table)
    for head, *lines in _paragraphs(done):
        console.print()
        console.print(head, style="bold")
        for line in lines:
            console.print(line)


def _paragraphs(done: Done) -> list[tuple[str, ...]]:
    """A heading and its lines each."""
    place, result = done.place, done.result
    lines: list[tuple[str, ...]] = []
    if (pair := result.telling_pair()) is not None:
        first, second = pair
        lines.append(
            (
                "One pair found",
                f"{second.record.id} duplicates {first.record.id}, similarity {second.similarity:.4f}",
            )
        )
    if (truth := result.truth()).copies:
        lines.append((
            "Against what is known",
            f"of {truth.copies} copies made for this, {truth.found} were found, {truth.filtered} removed by a filter before, "
            f"{truth.copies - truth.found - truth.filtered} missed (less similar than the threshold).",
            f"{truth.crops} crops were taken for duplicates of the whole or of each other (grass looks like grass), "
            f"{truth.wrong_pairs} records for duplicates of another scene",
        ))  # fmt: skip
    lines.append((f"Shards, {result.count('accepted')} samples", str(place.dataset / "shards")))
    lines.append(("Open them", open_line(place.dataset)))
    lines.append(("See every decision", place.sheet.as_uri()))
    port = (
        done.place.config.read_text("utf-8")
        .partition("bootstrap_servers: ")[2]
        .partition("\n")[0]
        .rpartition(":")[2]
    )
    broker, config = shlex.quote(str(place.broker)), shlex.quote(str(place.config))
    streamer = f"{shlex.quote(sys.executable)} -m streamer"
    lines.append(
        (
            "Go on with it: its broker again, and in another terminal how far the dataset is",
            f"{streamer} broker --port {port} --data {broker}",
            f"{streamer} lag -c {config}",
        )
    )
    return lines


def open_line(dataset: Path) -> str:
    """One line for a shell that reads every sample of every shard."""
    code = (
        "import glob, webdataset as wds; "
        f"[print(s['__key__'], s['txt']) for s in wds.WebDataset(sorted(glob.glob({str(dataset / 'shards/*/*.tar')!r})), shardshuffle=False).decode()]"
    )
    return (
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
        if "'" not in code
        else f'{shlex.quote(sys.executable)} -c "{code}"'
    )


def _as_json(done: Done) -> dict[str, object]:
    pair = done.result.telling_pair()
    return {
        **done.result.as_json(),
        "pair": None
        if pair is None
        else {
            "id": pair[1].record.id,
            "duplicate_of": pair[0].record.id,
            "similarity": pair[1].similarity,
        },
        "dataset": str(done.place.dataset),
        "config": str(done.place.config),
        "contact_sheet": str(done.place.sheet),
        "verified": bool(done.verdict["ok"]),
        "unreadable": list(done.unreadable),
    }
