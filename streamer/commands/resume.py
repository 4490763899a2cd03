"""``streamer resume``: which partitions are paused, and on with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamer.commands.options import read_config, with_config
from streamer.console import Console, new_table
from streamer.errors import ConfigError
from streamer.terminal import say, tell

if TYPE_CHECKING:
    from streamer.wire.pause import Pause


@click.command()
@with_config
@click.option(
    "--partition", "wanted", type=int, multiple=True, help="Only this one; may be repeated."
)
@click.option("--execute", is_flag=True, help="Lets their replicas go on. Else it only shows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    path: str, overrides: tuple[str, ...], wanted: tuple[int, ...], execute: bool, as_json: bool
) -> None:
    """Partitions that are paused because too many of their records are invalid
    (dead_letters.on_flood), and why. With --execute they go on: what is in them by now is decided
    as it is, and the invalid ones go to the dead-letter topic. What comes later may pause them
    again."""
    from streamer import pauses
    from streamer.kafka.admin import Admin
    from streamer.kafka.topics import input_topic
    from streamer.sink.storage import Storage

    config = read_config(path, overrides)
    storage = Storage(config.output.path, config.dataset)
    paused = {p.partition: p for p in pauses.read(storage) if p.resumed_to is None}
    if missing := sorted(set(wanted) - paused.keys()):
        raise ConfigError(f"--partition {missing[0]}: is not paused; paused are {sorted(paused)}")
    chosen = [pause for partition, pause in paused.items() if not wanted or partition in wanted]
    if execute and chosen:
        admin = Admin(config.kafka)
        topic = input_topic(admin, config)
        ends = admin.end_offsets(topic.name, [p.partition for p in chosen], committed=False)
        for pause in chosen:
            pauses.resume(storage, pause, ends[pause.partition])
    if as_json:
        tell({"paused": [_told(pause) for pause in chosen], "resumed": execute})
        return
    if not chosen:
        say(f"no partition of dataset {config.dataset} is paused")
        return
    table = new_table("partition", "offset", "since", "by", "why")
    for pause in chosen:
        table.add_row(str(pause.partition), str(pause.offset), pause.since, pause.writer, pause.why)
    Console().print(table)
    say(
        "they go on within seconds, where a replica runs"
        if execute
        else "nothing was changed; --execute lets them go on",
        err=True,
    )


def _told(pause: Pause) -> dict[str, object]:
    return {
        "partition": pause.partition, "offset": pause.offset, "since": pause.since, "writer": pause.writer, "why": pause.why,
    }  # fmt: skip
