"""A checkpoint of the commit log: what its entries up to one of them say together, so that a start
reads only what came after. Nothing here is needed: the log has all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamer.errors import ProtocolError
from streamer.wire import checked
from streamer.wire import manifest as wire
from streamer.wire.checked import Unusable
from streamer.wire.manifest import Manifest, Range

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    dataset: str
    log_id: str
    """Kafka's id of the commit log's topic: another one when it was deleted and made again."""
    offset: int
    """Of the last entry that it knows."""
    uuid: str
    """Of that entry's manifest."""
    tiles: Mapping[int, Range]
    """Partition → first offset of the dataset, and where the next epoch begins."""
    last: Mapping[str, tuple[int, str]]
    """Writer → its last epoch, by number and uuid."""
    ends: Mapping[int, int]
    """A replay's fixed ends; empty for a live dataset."""
    claims_position: int
    """The claim log was at least so long."""
    waiting: tuple[Manifest, ...]
    """Epochs that nobody has been seen to project. All others are projected."""


def encode(checkpoint: Checkpoint) -> bytes:
    """Pure."""
    body: dict[str, Any] = {
        "dataset": checkpoint.dataset,
        "log_id": checkpoint.log_id,
        "offset": checkpoint.offset,
        "uuid": checkpoint.uuid,
        "tiles": {str(p): list(tile) for p, tile in sorted(checkpoint.tiles.items())},
        "last": {writer: list(last) for writer, last in sorted(checkpoint.last.items())},
        "ends": {str(p): end for p, end in sorted(checkpoint.ends.items())},
        "claims_position": checkpoint.claims_position,
        "waiting": [wire.encode(manifest).decode() for manifest in checkpoint.waiting],
    }
    return checked.encode(body, FORMAT)


def decode(data: bytes) -> Checkpoint:
    """The inverse of `encode`. Pure. Raises Unusable."""
    body = checked.decode(data, FORMAT, "it")
    try:
        return Checkpoint(
            dataset=body["dataset"],
            log_id=body["log_id"],
            offset=body["offset"],
            uuid=body["uuid"],
            tiles={int(p): (first, following) for p, (first, following) in body["tiles"].items()},
            last={writer: (epoch, uuid) for writer, (epoch, uuid) in body["last"].items()},
            ends={int(p): end for p, end in body["ends"].items()},
            claims_position=body["claims_position"],
            waiting=tuple(wire.decode(entry.encode()) for entry in body["waiting"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ProtocolError) as error:
        raise Unusable(f"it has other fields than this streamer's: {error}") from None
