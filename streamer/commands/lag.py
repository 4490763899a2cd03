"""``streamer lag``: how far a dataset is behind its topic."""

from __future__ import annotations

import dataclasses

import click
from rich.table import Table

from streamer.commands.options import read_config, with_config
from streamer.console import Console
from streamer.kafka.admin import Admin
from streamer.kafka.lag import PartitionLag, measure
from streamer.terminal import say, tell


@click.command()
@with_config
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Per partition: committed, end, records and seconds behind. Seconds: the age of the first
    record that is not committed, of those that have a timestamp.

    Records are offsets up to the end, so those that only mark transactions count, too. The running
    group is not touched.
    """
    config = read_config(path, overrides)
    admin = Admin(config.kafka)
    rows = measure(config, admin)
    group = admin.group_state(config.group)
    if as_json:
        summary = {
            "group": config.group, "state": group.state, "members": group.members,
            "records": sum(row.records for row in rows), "seconds": _oldest(rows),
            "partitions": [dataclasses.asdict(row) for row in rows],
        }  # fmt: skip
        tell(summary)
        return
    say(f"group {config.group}: {group.state}, members: {group.members}", err=True)
    if group.state == "dead":
        say(f"no replica of dataset {config.dataset} has committed anything", err=True)
    Console(soft_wrap=False).print(_table(config.kafka.topic, rows))


def _table(topic: str, rows: list[PartitionLag]) -> Table:
    table = Table(title=topic, title_justify="left", show_footer=True)
    total = sum(row.records for row in rows)
    for name, footer in (
        ("partition", "all"),
        ("committed", ""),
        ("end", ""),
        ("records behind", str(total)),
        ("seconds behind", _seconds(_oldest(rows))),
    ):
        table.add_column(name, footer, justify="right")
    if any(row.note for row in rows):
        table.add_column("note")
    for row in rows:
        committed = "none yet" if row.committed is None else str(row.committed)
        table.add_row(
            str(row.partition),
            committed,
            str(row.end),
            str(row.records),
            _seconds(row.seconds),
            *([row.note] if row.note else []),
        )
    return table


def _oldest(rows: list[PartitionLag]) -> float | None:
    """The greatest age that is known; None where records wait and no age is."""
    known = [row.seconds for row in rows if row.seconds is not None]
    return max(known, default=0.0) if any(known) or len(known) == len(rows) else None


def _seconds(age: float | None) -> str:
    return "no timestamp" if age is None else f"{age:.1f}"
