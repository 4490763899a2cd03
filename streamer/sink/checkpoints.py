"""Which checkpoint of the commit log to begin at, for a start as for those that only read."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from streamer.errors import ProtocolError
from streamer.wire.checked import Unusable
from streamer.wire.checkpoint import Checkpoint, decode

log = logging.getLogger("streamer")


def newest(
    found: Iterable[tuple[str, bytes]], dataset: str, log_id: str
) -> tuple[str, Checkpoint] | None:
    """The first good one of this commit log, and its path. ``found``: paths and contents, the
    newest first; ``log_id``: Kafka's id of the topic."""
    for path, data in found:
        try:
            checkpoint = decode(data)
            if (checkpoint.dataset, checkpoint.log_id) != (dataset, log_id):
                raise Unusable("it is of another commit log")
        except Unusable as error:
            log.warning("a checkpoint of the commit log is not used: %s: %s", path, error)
            continue
        return path, checkpoint
    return None


def require_entry(checkpoint: Checkpoint, place: str, first: tuple[int, str] | None) -> None:
    """``first``: offset and uuid of the entry that was read at the checkpoint's offset, if any is
    there. ``place``: of the checkpoint's file. Raises ProtocolError unless it is the one that the
    checkpoint ends with."""
    if first != (checkpoint.offset, checkpoint.uuid):
        raise ProtocolError(
            f"{checkpoint.dataset}.commits: offset {checkpoint.offset} is not the epoch "
            f"{checkpoint.uuid} that was committed there and that {place} names: the log lost "
            "entries. Restore the topic. If the log is right, remove that file."
        )
