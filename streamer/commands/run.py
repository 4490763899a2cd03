"""``streamer run``: the consumer."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

import click

from streamer.commands.options import read_config, with_config
from streamer.config import Config
from streamer.errors import EXIT_DONE, EXIT_FAILED, StreamerError, Unfinished
from streamer.ops import logs
from streamer.terminal import tell_bug
from streamer.units import parse_time

log = logging.getLogger("streamer")


def parse_until(text: str | None) -> str | float | None:
    """``end`` or an ISO 8601 time (UTC where it names no zone) → "end" or UTC seconds. Raises
    click.BadParameter."""
    if text is None or text == "end":
        return text
    try:
        return parse_time(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither `end` nor a time like 2026-01-31T12:00:00Z"
        ) from None


def stop_on_signals(bounded: bool) -> Callable[[], bool]:
    """Whether to stop, which the first SIGTERM or SIGINT asks for; the second ends the process at
    once. Main thread only.

    As long as nobody has asked, nothing has been read: then the first signal exits 0 at once, or 75
    if the run is ``bounded``, because its end was not reached.
    """
    stopping, asked = threading.Event(), threading.Event()

    def stop(number: int, _frame: object) -> None:
        if not asked.is_set():
            if bounded:
                end_with(Unfinished())
            logs.say_now(
                f"{signal.Signals(number).name} before anything was read: leaving", logging.INFO
            )
            os._exit(EXIT_DONE)
        if stopping.is_set():
            logs.say_now(
                f"second signal ({signal.Signals(number).name}): leaving at once; the open epoch is read again at the next start"
            )
            os._exit(EXIT_FAILED)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def is_stopping() -> bool:
        asked.set()
        return stopping.is_set()

    return is_stopping


def be_replica(
    config: Config, bounded: bool, run: Callable[[Callable[[], bool]], None]
) -> NoReturn:
    """What is left of the process: logs, signals, ``run(stop)``, and the exit code. ``bounded``:
    the run has an end of its own, and is not done before it."""
    logs.setup()
    log.info("starting", extra={
        "version": version("streamer"), "dataset": config.dataset, "writer": config.writer, "topic": config.kafka.topic,
    })  # fmt: skip
    stop = stop_on_signals(bounded)
    try:
        run(stop)
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was; a thread may not keep it
        end_with(error)
    log.info("ended well: what was decided is committed")
    sys.stdout.flush()
    os._exit(EXIT_DONE)


def end_with(error: BaseException) -> NoReturn:
    """Ends the process with the error's message and exit code; a traceback only for what is a bug."""
    if isinstance(error, StreamerError):
        level = logging.WARNING if isinstance(error, Unfinished) else logging.ERROR
        for line in error.args:
            logs.say_now(line, level)
        code = error.exit_code
    else:
        logs.say_now(f"stopped by an unexpected {type(error).__name__}: {error}")
        tell_bug(error)
        code = EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a daemon thread may hang in a native call: it must not keep the process


@click.command()
@with_config
@click.option(
    "--until",
    metavar="end|TIME",
    help="Ends by itself at the end offsets found at the assignment, or at an ISO 8601 time.",
)
def command(path: str, overrides: tuple[str, ...], until: str | None) -> None:
    """The consumer. SIGTERM and SIGINT drain, seal, commit and exit 0, or 75 before the end that
    --until names; a second one exits at once."""
    bound = parse_until(until)
    config = read_config(path, overrides)

    def run(stop: Callable[[], bool]) -> None:
        from streamer import app

        app.run(config, stop, bound)

    be_replica(config, bound is not None, run)
