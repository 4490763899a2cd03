"""`streamer` processes that are forked from one which has imported PyTorch and the rest already: a
start costs half a second instead of three. Whatever they do, they are processes like any other;
what the installed script itself does is tested in `test_exit_codes` and `test_outward`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["streamer.app", "streamer.commands.run"])
# What `streamer.cli.entry` would set before numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class Forked:
    """What the tests use of `subprocess.Popen`. The process writes its stderr into a pipe."""

    def __init__(self, args: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.args = args
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_live, args=(tuple(args), str(cwd), dict(env), writer), daemon=True
        )
        self._process.start()
        writer.close()
        self.stderr: IO[str] = os.fdopen(os.dup(reader.fileno()), "r")
        reader.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self.pid is not None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    args: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """One finished command. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        process = CONTEXT.Process(  # no daemon, for it may have children
            target=_live, args=(tuple(args), str(cwd), dict(env), out, err)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(args), timeout)
        return subprocess.CompletedProcess(
            list(args), process.exitcode, Path(out).read_text(), Path(err).read_text()
        )


def _live(args: tuple[str, ...], cwd: str, env: dict[str, str], *to: Connection | str) -> None:
    for target, name in zip((2,) if len(to) == 1 else (1, 2), to, strict=True):
        if isinstance(name, str):
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        else:
            opened = os.dup(name.fileno())
            name.close()
        os.dup2(opened, target)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.argv = ["streamer", *args]
    importlib.import_module("streamer.cli").entry()
