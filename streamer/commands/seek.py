"""``streamer seek``: a dataset is moved forward by hand."""

from __future__ import annotations

import time
from typing import NamedTuple

import click

from streamer.commands.options import read_config, with_config
from streamer.console import Console, new_table
from streamer.errors import ConfigError
from streamer.terminal import say, tell
from streamer.units import counted


class Move(NamedTuple):
    """Offsets of one partition that are to be skipped: from ``first`` to ``following``."""

    partition: int
    first: int
    following: int


@click.command()
@with_config
@click.option(
    "--to",
    "place",
    required=True,
    help="earliest (past what expired), a time, offset:N, offset:P=N,P=N, or count:N (up to the "
    "last N offsets of each partition).",
)
@click.option("--execute", is_flag=True, help="Writes it down. Else it only shows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    path: str, overrides: tuple[str, ...], place: str, execute: bool, as_json: bool
) -> None:
    """Moves a dataset forward whose replicas are stopped: past records that expired, or that it is
    not to have. The next start skips them, and a manifest says so: they are lost to the dataset.
    Backwards goes only by `streamer replay`, into a new one."""
    from streamer.kafka.admin import Admin
    from streamer.kafka.lag import decided
    from streamer.kafka.topics import input_topic
    from streamer.replay import forward_offsets
    from streamer.sink.engine import iso
    from streamer.sink.storage import Storage
    from streamer.wire.seek import Seek, encode

    config = read_config(path, overrides)
    admin = Admin(config.kafka)
    topic = input_topic(admin, config)
    at = decided(config, admin, range(topic.partitions))
    if not at:
        raise ConfigError(
            f"dataset {config.dataset} has not begun: kafka.start says where it begins"
        )
    wanted = forward_offsets(place, admin, topic.name, at)
    moves = [Move(p, at[p], to) for p, to in sorted(wanted.items())]
    if execute and moves:
        if members := admin.group_state(config.group).members:
            raise ConfigError(
                f"the group {config.group} has {counted(members, 'member')}: stop all replicas "
                "first (a static member leaves when its session has ended, or by `streamer leave`)"
            )
        storage = Storage(config.output.path, config.dataset)
        now = iso(time.time())
        for move in moves:
            seek = Seek(move.partition, move.following, now)
            storage.write_seek(move.partition, encode(seek))
    _show(moves, execute, as_json)


def _show(moves: list[Move], execute: bool, as_json: bool) -> None:
    if as_json:
        tell({"skips": [move._asdict() for move in moves], "written": execute})
        return
    if not moves:
        say("there is nothing to skip")
        return
    table = new_table("partition", "from", "to", "offsets")
    for move in moves:
        first, following = move.first, move.following
        table.add_row(str(move.partition), str(first), str(following), str(following - first))
    Console().print(table)
    say(
        "the next start skips them"
        if execute
        else "nothing was changed; --execute has the next start skip them",
        err=True,
    )
