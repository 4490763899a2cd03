"""The command line: one lazily loaded module a verb, and the one place where errors become messages
and exit codes.

Data on stdout, talk on stderr; no traceback for a user's mistake. Exit codes: see
`streamer.errors`.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import threading
from typing import NoReturn

import click

from streamer.errors import EXIT_DONE, EXIT_FAILED, StreamerError
from streamer.ops import logs
from streamer.terminal import say, shown, tell_bug

VERBS = {
    "demo": "The whole line on this machine: embedded broker, real photos, real weights.",
    "broker": "A real one-node Apache Kafka as a child process.",
    "run": "The consumer: curates until it is stopped.",
    "produce": "Folders, WebDataset tars and Parquet as records.",
    "replay": "Backlog into a new dataset.",
    "leave": "Takes a replica that does not come back out of its group.",
    "lag": "Per partition: committed, end, records and seconds behind.",
    "check": "All that a start needs, from the config to the model: one line each.",
    "seek": "Moves a stopped dataset forward: what lies between is never decided.",
    "resume": "Partitions that are paused by a flood of invalid records, and on with them.",
    "index": "Snapshots of the dedup state: shows, writes and checks them.",
    "dataset": "Exactly-once audit and statistics of an output folder.",
}


class _Verbs(click.Group):
    """Imports a verb's module when it is used, so that ``--help`` never waits for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"streamer.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamer")
def command() -> None:
    """Curates image-text data as it arrives: Kafka in, WebDataset shards and Parquet out, exactly
    once."""


def limit_blas() -> None:
    """One thread for numpy's matrix products, unless the user says otherwise. Ours are small, and
    threads that spin for their next part take the cores from decoding. Torch has threads of its
    own. Before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def entry() -> NoReturn:
    """The console script: `main`, and an end that keeps its exit code.

    Arrow's thread pools may abort a process while the interpreter and the libraries are taken down
    (apache/arrow#34314: one `dataset verify` of 60 on a busy machine ended with 134 although all
    was well). By then everything of ours is closed, so nothing is taken down.
    """
    threading.excepthook = _tell_bug
    code = EXIT_FAILED
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception as error:  # noqa: BLE001 - a bug; its words may quote anything
        tell_bug(error)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, a closed pipe: whoever reads lacks the end of it
            code = code or 1
    os._exit(code)


def _tell_bug(of: threading.ExceptHookArgs) -> None:
    if of.exc_value is not None:
        tell_bug(of.exc_value)


def main() -> NoReturn:
    """Runs the verb and raises SystemExit with the exit code."""
    limit_blas()
    logs.hide_environment(os.environ)
    try:
        # Outside of its standalone mode click returns the code of `Context.exit` and raises nothing
        code = command.main(standalone_mode=False)
    except click.Abort:
        say("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.message = shown(error.message)  # type: ignore[misc]
        error.show()
        sys.exit(error.exit_code)
    except StreamerError as error:
        first, *more = error.args
        say(f"streamer: {first}", err=True)
        for line in more:
            say(line, err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # of a full disk where output is ours, streamer.sink says so; this is the output of the command itself
        if error.errno != errno.ENOSPC:
            raise
        say(
            f"streamer: the output of this command could not be written: {error.strerror}", err=True
        )
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else EXIT_DONE)
