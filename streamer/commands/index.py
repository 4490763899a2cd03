"""``streamer index``: snapshots of the dedup state, and whether they say what the claim log says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from streamer.commands.options import read_config, with_config
from streamer.config import Config
from streamer.console import Console, new_table, progress
from streamer.errors import EXIT_DONE, EXIT_FAILED, ConfigError, DatasetMismatch
from streamer.terminal import say, tell
from streamer.units import counted, size

if TYPE_CHECKING:
    from streamer.dedup.meld import Meld
    from streamer.dedup.snapshot import Header
    from streamer.kafka.admin import Admin
    from streamer.kafka.claim_log import ClaimLog
    from streamer.sink.snapshots import Found, Snapshots
    from streamer.wire.claim import DatasetEntry

ABANDONED_S = 3600.0
"""An unfinished snapshot that is older is nobody's any more."""


@click.group()
def command() -> None:
    """Snapshots of the dedup state. No replica is disturbed, no model is needed: what the dataset
    is bound to stands in its claim log."""


@command.command(short_help="The snapshots that there are, and how much of the log a start reads.")
@with_config
@click.option("--verify", is_flag=True, help="Reads every snapshot to its end, and checks it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def info(path: str, overrides: tuple[str, ...], verify: bool, as_json: bool) -> None:
    """The snapshots that there are, which of them are good, and how much of the claim log a start
    has to read. Exit code 1 if --verify finds one that is not."""
    place = _open(path, overrides)
    end = place.end()
    found = place.snapshots.find()
    rows = [(f, place.trouble(f) if verify else f.trouble) for f in found]
    used = next((f.header for f, trouble in rows if f.header is not None and not trouble), None)
    bad = verify and any(trouble and not f.unfinished for f, trouble in rows)
    tail = end - (used.offset if used is not None else 0)
    if as_json:
        snapshots = [_told(f, trouble) for f, trouble in rows]
        uri = place.snapshots.folder.uri
        tell({"place": uri, "snapshots": snapshots, "end": end, "tail": tail})
        sys.exit(EXIT_FAILED if bad else EXIT_DONE)
    console = Console()
    console.print(f"{place.snapshots.folder.uri}: {counted(len(rows), 'snapshot')}")
    table = new_table("writer", "position", "winners", "size", "age", "state")
    for f, trouble in rows:
        winners = "" if f.header is None else str(f.header.winners)
        state = "good" if verify else "looks good"
        table.add_row(
            f.writer,
            str(f.position),
            winners,
            size(f.bytes),
            _age(f.age_s),
            trouble or state,
            style="red" if trouble else None,
        )
    if rows:
        console.print(table)
    console.print(f"the claim log has {end} entries; a start reads {tail} of them")
    if bad:
        sys.exit(EXIT_FAILED)


@command.command(short_help="Writes a new one.")
@with_config
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def snapshot(path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Reads the newest good snapshot and the rest of the claim log, and writes a new one, in the
    name of the config's writer."""
    place = _open(path, overrides)
    with place.claim_log() as log:
        used = log.resume(place.admin, place.snapshots)
        place.read(log, place.end())
        header = place.write(log)
    if as_json:
        tell(
            {
                "position": header.position,
                "offset": header.offset,
                "winners": header.winners,
                "bytes": header.bytes,
            }
        )
    else:
        start = "the log's beginning" if used is None else f"position {used.position}"
        say(
            f"snapshot written at position {header.position}: {counted(header.winners, 'winner')}, {size(header.bytes)}; read from {start}"
        )


@command.command(short_help="Checks them against the whole claim log, and writes a new one.")
@with_config
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def rebuild(path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Reads the whole claim log, compares the state with the one of the newest good snapshot and
    the rest of the log, and writes a new one.

    What cannot be used is removed; where the states differ, every snapshot is. Exit code 1 then.
    """
    place = _open(path, overrides)
    end = place.end()
    bad: list[Found] = []
    good: list[Found] = []
    restored = None
    for found in place.snapshots.find():
        trouble = place.trouble(found)
        if trouble:
            say(f"bad: {place.snapshots.folder.place(found.path)}: {trouble}", err=True)
            bad.append(found)
            continue
        good.append(found)
        if restored is None:
            restored = place.restored_digest(found, end)
    with place.claim_log() as log:
        place.read(log, end)
        whole = log.meld.digest()
        equal = restored in (None, whole)
        if not equal:
            bad += good
        for found in bad:
            if not found.unfinished or found.age_s > ABANDONED_S:
                place.snapshots.folder.remove(found.path)
        header = place.write(log)
    verdict = "nothing to compare" if restored is None else "equal" if equal else "different"
    if as_json:
        told = {
            "verdict": verdict,
            "digest": whole,
            "restored": restored,
            "position": header.position,
            "removed": [f.path for f in bad],
        }
        tell(told)
    else:
        words = {
            "equal": "the whole claim log says the same as the newest good snapshot with the rest of it",
            "different": "the whole claim log says something else than the newest good snapshot with the rest of it",
        }.get(verdict, "there is no good snapshot to compare with the claim log")
        say(f"{words}; new snapshot at position {header.position}")
    if not equal:
        say(
            "snapshots said something else than the claim log; they are removed. Restart the replicas, and report this.",
            err=True,
        )
        sys.exit(EXIT_FAILED)


@dataclass(frozen=True)
class Place:
    """A dataset's claim log and snapshots."""

    config: Config
    admin: Admin
    binding: DatasetEntry
    snapshots: Snapshots

    def end(self) -> int:
        return self.admin.end_offsets(self.config.claims_topic, [0], committed=False)[0]

    def meld(self) -> Meld:
        from streamer.dedup.choose import open_index
        from streamer.dedup.meld import Meld

        index = open_index(self.binding.dim, self.binding.threshold, "cpu")
        return Meld(
            self.binding.dim, self.binding.threshold, index, capacity=self.snapshots.wanted.capacity
        )

    @contextmanager
    def claim_log(self) -> Iterator[ClaimLog]:
        from streamer.kafka.claim_log import ClaimLog

        log = ClaimLog(
            self.config,
            self.meld(),
            self.binding,
            self.admin.message_limit(self.config.claims_topic),
        )
        try:
            yield log
        finally:
            log.close()

    def read(self, log: ClaimLog, end: int) -> None:
        """Applies what is left below ``end``."""
        with progress("reading the claim log", end - log.offset) as advance:
            at = log.offset

            def tell(now: int, _end: int) -> None:
                nonlocal at
                advance(now - at)
                at = now

            log.read_to(end, tell)

    def write(self, log: ClaimLog) -> Header:
        while log.meld.index.maintain():
            pass
        return self.snapshots.write(log.meld.state(), log.offset)

    def trouble(self, found: Found) -> str:
        """Why it cannot be used, after reading all of it; empty if it can."""
        from streamer.dedup.store import WinnerStore
        from streamer.wire.checked import Unusable

        try:
            self.snapshots.read(found, WinnerStore(self.binding.dim))
        except Unusable as error:
            return str(error)
        return ""

    def restored_digest(self, found: Found, end: int) -> str | None:
        """Of the snapshot with the rest of the log; None for one that is newer than ``end``, or
        that its writer took away meanwhile."""
        from streamer.wire.checked import Unusable

        if found.header is None or found.header.offset > end:
            return None
        with self.claim_log() as log:
            try:
                log.go_on(self.admin, found.header, self.snapshots.read(found, log.meld.store))
            except Unusable:
                return None
            self.read(log, end)
            return log.meld.digest()


def _open(path: str, overrides: tuple[str, ...]) -> Place:
    config = read_config(path, overrides)
    if config.dedup is None:
        raise ConfigError(f"{path}: dedup is off: there is no index")
    if config.dedup.snapshots == "off":
        raise ConfigError(f"{path}: dedup.snapshots is off: nothing is kept")

    from streamer.dedup.meld import VERSION
    from streamer.kafka.admin import Admin
    from streamer.kafka.claim_log import bound_to
    from streamer.sink.snapshots import open_snapshots

    admin = Admin(config.kafka)
    binding = bound_to(config, admin)
    if binding.meld_version != VERSION:
        raise DatasetMismatch(
            f"{config.claims_topic}: its meld version is {binding.meld_version}, this streamer's is {VERSION}"
        )
    snapshots = open_snapshots(config, binding, admin.topic_id(config.claims_topic))
    assert snapshots is not None
    return Place(config, admin, binding, snapshots)


def _told(found: Found, trouble: str) -> dict[str, Any]:
    header = found.header
    return {
        "path": found.path, "writer": found.writer, "position": found.position, "bytes": found.bytes, "age_seconds": round(found.age_s, 1),
        "ok": not trouble, "trouble": trouble, "offset": header and header.offset, "winners": header and header.winners,
        "losers": header and header.losers, "evicted": header and header.evicted,
    }  # fmt: skip


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
