"""``streamer run`` as a child process, as somebody would deploy it, and what its HTTP port says
meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from streamer.errors import StreamerError, TemporaryError

STOP_S = 30.0
STILL_S = 240.0
"""A replica that shows no progress for so long is taken for stuck. Loading the model on a busy
machine takes a minute."""
_POLL_S = 0.25

# Asks the kernel to be told when this process dies, however it dies, then becomes the replica.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the demo ended before its replica started")
os.execv(sys.executable, [sys.executable, "-m", "streamer", *sys.argv[2:]])
"""


class Glance(NamedTuple):
    """What the replica's port says about itself."""

    phase: str
    decided: int
    """Records in committed epochs and in the open one."""
    epochs: int
    """Committed."""


class Replica:
    """Started by ``with``, stopped at its end: SIGTERM (it drains and commits), after 30 s SIGKILL.
    Main thread only."""

    def __init__(self, config: Path, log: Path, port: int) -> None:
        self._config = config
        self._log = log
        self._port = port

    def __enter__(self) -> Replica:
        command = [
            sys.executable,
            "-I",  # nothing of the working directory
            "-c",
            _LAUNCH,
            str(os.getpid()),
            "run",
            "-c",
            str(self._config),
            "--until",
            "end",
        ]
        environ = {**os.environ, "STREAMER_LOG": "text"}
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C in the terminal comes to the demo, which passes on one
            # signal and not two.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environ,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
            finally:  # also when a second Ctrl-C cuts the wait short
                self._process.kill()
                self._process.wait()

    def glance(self) -> Glance | None:
        """None while nobody answers. Blocks for a second at most."""
        try:
            phase = json.loads(self._get("/readyz"))["phase"]
            metrics = self._get("/metrics").decode()
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        numbers = dict(
            line.rsplit(" ", 1)
            for line in metrics.splitlines()
            if line and not line.startswith("#")
        )

        def count(name: str) -> int:
            return round(float(numbers.get(name, "0")))

        decided = count("streamer_records_consumed_total") + count("streamer_epoch_records")
        return Glance(str(phase), decided, count("streamer_epochs_committed_total"))

    def running(self) -> bool:
        """Waits a moment. Raises what ended the replica, if that was not the end of the topic."""
        try:
            status = self._process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return True
        if status:
            error = TemporaryError if status == TemporaryError.exit_code else StreamerError
            raise error(
                f"the replica ended with exit code {status}; its log is {self._log} and ends with:",
                *self.log_tail(),
            )
        return False

    def log_tail(self, lines: int = 12) -> list[str]:
        return self._log.read_text("utf-8", errors="replace").splitlines()[-lines:]

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()


class Patience:
    """Raises TemporaryError when what it is shown has not changed for `STILL_S` seconds."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._last: object = None
        self._since = time.monotonic()

    def see(self, glance: Glance | None) -> None:
        if glance != self._last:
            self._last, self._since = glance, time.monotonic()
        elif time.monotonic() - self._since > STILL_S:
            raise TemporaryError(
                f"the replica made no progress for {STILL_S:.0f} s; its log is {self._log}"
            )
