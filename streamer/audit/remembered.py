"""What earlier audits of a folder have proven, in a file of the user's: epochs, by the sha256 of
their manifest.

It is worth something only for a folder to which epochs are added and nothing else happens, so the
audit forgets all of it at the first sign of anything else (`Remembered.forget`). One SQLite file:
an entry is written as soon as it is known, and is there whole or not at all, whenever the process
is killed.
"""

from __future__ import annotations

import base64
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from streamer.audit.epoch import Checked
from streamer.audit.manifests import Epoch
from streamer.errors import ConfigError, DependencyError
from streamer.records import I64
from streamer.wire import checked as wire
from streamer.wire.checked import Unusable

FORMAT = 1
COMMIT_S = 5.0
"""A kill loses what was proven in so many seconds at most."""
_APPLICATION = 0x73747276
"""In the file's header: which program's it is."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS epochs (path TEXT PRIMARY KEY, manifest TEXT NOT NULL,"
    " body BLOB NOT NULL)",
)


class Remembered:
    """One thread; a context manager, which writes down what is left. Blocks for the file.

    Raises DependencyError where it cannot be used, ConfigError where it is of another folder.
    """

    def __init__(self, path: Path, uri: str) -> None:
        """``uri``: of the dataset folder."""
        self._path = path
        self._written = time.monotonic()
        with self._explained():
            self._file = sqlite3.connect(path, timeout=2)
        try:
            self._open(uri)
        except BaseException:
            self._file.close()
            raise

    def _open(self, uri: str) -> None:
        with self._explained():
            self._file.execute("BEGIN IMMEDIATE")  # two audits would undo each other's work
            [(application,)] = self._file.execute("PRAGMA application_id")
            [(tables,)] = self._file.execute("SELECT count(*) FROM sqlite_master")
            if tables and application != _APPLICATION:
                raise self._refused("it is not of `dataset verify`")
            for statement in (*_SCHEMA, f"PRAGMA application_id = {_APPLICATION}"):
                self._file.execute(statement)
        known = self.fact("folder", uri)
        if known != uri:
            raise ConfigError(
                f"--remember: {self._path} is of the folder {known}; what was proven there says nothing "
                f"of {uri}. Name another file."
            )
        self.set_fact("folder", uri)

    def __enter__(self) -> Remembered:
        return self

    def __exit__(self, *_: object) -> None:
        with self._explained():
            self._file.commit()
            self._file.close()

    # Epochs

    def manifests(self) -> Iterator[tuple[str, str]]:
        """Path and sha256 of the manifests that are remembered."""
        with self._explained():
            yield from self._file.execute("SELECT path, manifest FROM epochs")

    def get(self, epoch: Epoch) -> tuple[Checked, bool] | None:
        """What it says for itself, and whether its duplicates were compared, too; None where
        neither is known."""
        with self._explained():
            query = "SELECT body FROM epochs WHERE path = ? AND manifest = ?"
            rows = self._file.execute(query, (epoch.path, epoch.sha256)).fetchall()
        for (body,) in rows:
            try:
                found = wire.decode(body, FORMAT, epoch.path)
                if found["manifest"] == epoch.sha256:
                    return _checked(found), bool(found["whole"])
            except (Unusable, KeyError, TypeError, ValueError, zlib.error):
                continue
        return None

    def add(self, epoch: Epoch, checked: Checked, whole: bool) -> None:
        """``whole``: its duplicates were compared, too. Nothing was found in either."""
        body = wire.encode({"manifest": epoch.sha256, "whole": whole, **_fields(checked)}, FORMAT)
        with self._explained():
            query = "INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)"
            self._file.execute(query, (epoch.path, epoch.sha256, body))
        self._commit_now_and_then()

    def add_whole(self, epoch: Epoch) -> None:
        """Of an epoch that is known: its duplicates were compared, and nothing was found."""
        found = self.get(epoch)
        if found is not None:
            self.add(epoch, found[0], whole=True)

    def forget(self) -> None:
        with self._explained():
            self._file.execute("DELETE FROM epochs")
            self._file.execute("DELETE FROM facts WHERE name <> 'folder'")

    # Other facts

    def fact(self, name: str, default: Any = None) -> Any:
        """A value of JSON; ``default`` where there is none that is whole."""
        with self._explained():
            rows = self._file.execute("SELECT body FROM facts WHERE name = ?", (name,)).fetchall()
        for (body,) in rows:
            try:
                return wire.decode(body, FORMAT, name)["value"]
            except (Unusable, KeyError):
                continue
        return default

    def set_fact(self, name: str, value: Any) -> None:
        with self._explained():
            body = wire.encode({"value": value}, FORMAT)
            self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, body))

    def _commit_now_and_then(self) -> None:
        if time.monotonic() - self._written > COMMIT_S:
            self._written = time.monotonic()
            with self._explained():
                self._file.commit()
                self._file.execute("BEGIN IMMEDIATE")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refused(str(error)) from error

    def _refused(self, why: str) -> DependencyError:
        return DependencyError(
            f"--remember: {self._path} cannot be used: {why}. Name a file in a folder that can be "
            "written, which no other audit uses now; if it is damaged, remove it: all is checked "
            "again."
        )


def _fields(checked: Checked) -> dict[str, Any]:
    report = checked.report
    return {
        "records": report.records,
        "outcomes": dict(report.outcomes),
        "rows": {str(partition): n for partition, n in report.rows.items()},
        "bound": checked.bound,
        "certified": checked.certified,
        "claims": _packed(checked.claims),
    }


def _checked(found: dict[str, Any]) -> Checked:
    checked = Checked(
        bound=found["bound"], certified=found["certified"], claims=_unpacked(found["claims"])
    )
    checked.report.records = found["records"]
    checked.report.outcomes.update(found["outcomes"])
    checked.report.rows.update({int(partition): n for partition, n in found["rows"].items()})
    return checked


def _packed(claims: I64) -> str:
    """Sorted numbers that are close together: about a byte each. First the lowest byte of each
    distance, then all the next ones, which are mostly 0."""
    planes = np.diff(claims, prepend=0).view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 1)).decode()


def _unpacked(text: str) -> I64:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(8, -1)
    return np.cumsum(np.ascontiguousarray(planes.T).view(np.int64).reshape(-1))
