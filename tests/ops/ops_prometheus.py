"""A real Prometheus for the tests: from the PATH, or Debian's package unpacked into the cache,
without root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "streamer"
    / "prometheus-debian"
)


class NoPrometheus(Exception):
    """Why there is none, in words."""


def find_prometheus() -> Path:
    """The binary. Raises NoPrometheus. Blocks for up to some minutes the first time (20 MB); then
    it is cached."""
    if on_path := shutil.which("prometheus"):
        return Path(on_path)
    binary = CACHE / "usr/bin/prometheus"
    if not binary.exists():
        _unpack_debian_package()
    return binary


def _unpack_debian_package() -> None:
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise NoPrometheus(
            "it is not on the PATH, and this is no Debian or Ubuntu to take its package from"
        )
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="prometheus-") as name:
        folder = Path(name)
        download = [apt, "download", "prometheus"]
        if (
            _run(download, folder).returncode != 0
        ):  # no package lists yet, and to fetch the system's takes root: into our own folder
            (folder / "state/lists/partial").mkdir(parents=True)
            (folder / "cache/archives/partial").mkdir(parents=True)
            own = [
                "-o",
                f"Dir::State={folder}/state",
                "-o",
                f"Dir::Cache={folder}/cache",
                "-o",
                "Dir::State::status=/var/lib/dpkg/status",
            ]
            for step in ([apt, *own, "update"], [apt, *own, "download", "prometheus"]):
                done = _run(step, folder)
                if done.returncode != 0:
                    raise NoPrometheus(
                        f"{' '.join(step[-2:])} failed: {done.stderr.strip().splitlines()[-1:]}"
                    )
        [package] = folder.glob("prometheus_*.deb")
        subprocess.run(
            [dpkg, "-x", str(package), str(folder / "unpacked")], check=True, timeout=120
        )
        try:
            (folder / "unpacked").rename(CACHE)
        except OSError:  # another test run was faster
            if not (CACHE / "usr/bin/prometheus").exists():
                raise


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer. Raises AssertionError with Prometheus' own message for a query
        it refuses."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error).get('error')}") from None

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.ask("query", query=expression)["result"]
        return result


@contextmanager
def prometheus(folder: Path, target_port: int) -> Iterator[Prometheus]:
    """Scrapes 127.0.0.1:``target_port`` twice a second, as job ``streamer``, until the block ends."""
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 400ms}\n"
        "scrape_configs:\n"
        f"  - {{job_name: streamer, static_configs: [{{targets: ['127.0.0.1:{target_port}']}}]}}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(find_prometheus()), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.min-block-duration=2h", "--log.level=warn",
    ]  # fmt: skip
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            server = Prometheus(f"http://127.0.0.1:{port}")
            _wait_until_ready(server, process, folder / "prometheus.log")
            yield server
        finally:
            process.kill()


def _wait_until_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Prometheus was not ready after 60 s: {log.read_text()}")
