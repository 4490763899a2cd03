"""``streamer leave``: a replica that does not come back gives its partitions to the others."""

from __future__ import annotations

import click

from streamer.commands.options import read_config, with_config
from streamer.kafka.admin import Admin
from streamer.kafka.leave import leave
from streamer.terminal import say


@click.command()
@click.argument("instance")
@with_config
def command(instance: str, path: str, overrides: tuple[str, ...]) -> None:
    """After a scale-down: takes INSTANCE, the kafka.group_instance_id of a replica that has ended
    for good (on Kubernetes its pod's name), out of the group. The others get its partitions at
    once, and not only when its session ends. A replica that still runs under that name is fenced,
    and ends with exit 75."""
    config = read_config(path, overrides)
    if leave(config, Admin(config.kafka), instance):
        say(f"{instance} has left the group {config.group}")
    else:
        say(f"{instance} is no member of the group {config.group}: there is nothing to do")
