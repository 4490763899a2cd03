"""``streamer replay``: backlog into a new dataset."""

from __future__ import annotations

from collections.abc import Callable

import click

from streamer.commands.options import require_faiss, with_config
from streamer.commands.run import be_replica


@click.group()
def command() -> None:
    """Backlog into a new dataset; the live group is not touched."""


@command.command("run")
@with_config
@click.option(
    "--dataset",
    required=True,
    metavar="NAME",
    help="The new dataset. Given again after a crash, the replay goes on.",
)
@click.option(
    "--from",
    "first",
    default="earliest",
    show_default=True,
    metavar="WHERE",
    help="earliest, a time, offset:N, offset:P=N,… or count:N (the last N).",
)
@click.option(
    "--until",
    "last",
    default="end",
    show_default=True,
    metavar="WHERE",
    help="end, a time, offset:N, offset:P=N,… or count:N (N from the start).",
)
def run(path: str, overrides: tuple[str, ...], dataset: str, first: str, last: str) -> None:
    """Runs a part of the topic through the pipeline into a new dataset and ends.

    The end is fixed when the replay starts, and written into the new dataset's first manifest:
    several replicas, and a replay that is started again, stop at the same offsets. Counts are
    offsets of each partition.
    """
    from streamer.replay import into

    require_faiss()
    config = into(path, overrides, dataset)

    def replay(stop: Callable[[], bool]) -> None:
        from streamer import app

        app.replay(config, stop, first, last)

    be_replica(config, True, replay)
