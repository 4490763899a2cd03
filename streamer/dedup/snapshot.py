"""The whole meld state as a header and raw arrays: bytes ⇄ `State`. Where they are kept:
`streamer.sink.snapshots`.

The data are arrays one after the other, little-endian, without gaps, in the order the header names
them:

    winners.COLUMN      vectors, positions, partitions, offsets of the rows that were not evicted, in position order
    winners.removed     the rows of the withdrawn ones
    ledger.P.TABLE      the verdicts of partition P (`Ledger.tables`)
    index.NAME          the index's own (`WinnerIndex.state`)

The header is JSON, and the last thing written: a snapshot without one is unfinished. It has the
sha256 of the data, and its own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from streamer.dedup.ledger import Ledger
from streamer.dedup.meld import State
from streamer.dedup.store import BLOCK, WinnerStore
from streamer.wire import checked
from streamer.wire.checked import Unusable
from streamer.wire.claim import DatasetEntry, Open

FORMAT = 1
COLUMNS = ("vectors", "positions", "partitions", "offsets")


class Array(NamedTuple):
    name: str
    dtype: str
    """As numpy writes it: ``<f2``."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a snapshot says about itself."""

    created: float
    """UTC, seconds."""
    writer: str
    topic_id: str
    """Kafka's id of the claim log's topic."""
    offset: int
    """Where in the claim log to go on."""
    position: int
    dataset: DatasetEntry
    window: int
    capacity: int | None
    evicted: int
    """Rows below this are not here."""
    rows: int
    withdrawn: int
    losers: int
    ledgers: tuple[tuple[int, int, int, int, int, int], ...]
    """Of each partition: its latest open (partition, generation, term, from), its floor, its until."""
    arrays: tuple[Array, ...]
    bytes: int
    """Length of the data."""
    sha256: str
    """Of the data."""

    @property
    def winners(self) -> int:
        """Without the withdrawn ones."""
        return self.rows - self.evicted - self.withdrawn


def encode(header: Header) -> bytes:
    """JSON. Pure."""
    return checked.encode(asdict(header), FORMAT)


def decode(data: bytes) -> Header:
    """The inverse of `encode`. Pure. Raises Unusable."""
    body = checked.decode(data, FORMAT, "its header")
    try:
        body["dataset"] = DatasetEntry(**body["dataset"])
        body["ledgers"] = tuple(tuple(ledger) for ledger in body["ledgers"])
        body["arrays"] = tuple(
            Array(name, dtype, tuple(shape)) for name, dtype, shape in body["arrays"]
        )
        return Header(**body)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"its header has other fields than this streamer's: {error}") from None


def write(state: State, file: BinaryIO) -> tuple[Array, ...]:
    """Writes the data, a block at a time and without copies of the winners. Any thread. Raises what
    ``file`` does."""
    arrays = []
    for array, parts in _arrays(state):
        arrays.append(array)
        for part in parts:
            if part.size:
                file.write(_raw(np.ascontiguousarray(part)))
    return tuple(arrays)


def read(header: Header, file: BinaryIO, store: WinnerStore) -> State:
    """The state that `Meld.restore` takes, read straight into ``store``'s kind of blocks (the store
    itself stays as it is) and checked.

    A second thread computes the checksum meanwhile. Raises Unusable where the data are not what the
    header says; OSError as ``file`` does.
    """
    if header.evicted % BLOCK:
        raise Unusable(f"it was written with blocks of another size than {BLOCK}")
    winners = store.room(header.evicted, header.rows)
    ledgers: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    index: dict[str, np.ndarray] = {}
    removed = np.empty(0, np.int64)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1, "snapshot-checksum") as checksum:
        hashed: list[Future[None]] = []
        for array in header.arrays:
            room, _, name = array.name.partition(".")
            if room == "winners" and name in COLUMNS:
                targets = [
                    getattr(block, name)[here]
                    for _, block, here in winners.spans(header.evicted, header.rows)
                ]
            else:
                targets = [np.empty(array.shape, array.dtype)]
                if room == "ledger":
                    partition, _, table = name.partition(".")
                    ledgers[int(partition)][table] = targets[0]
                elif room == "index":
                    index[name] = targets[0]
                else:
                    removed = targets[0]
            for target in targets:
                if target.size:
                    _fill(file, _raw(target))
                    hashed.append(checksum.submit(digest.update, _raw(target)))
        if file.read(1):
            raise Unusable("its data are longer than its header says")
        for future in hashed:
            future.result()
    if digest.hexdigest() != header.sha256:
        raise Unusable("its data are damaged: the checksum differs")
    made = {
        partition: Ledger.from_tables(
            Open(partition, generation, term, start), floor, until, ledgers[partition]
        )
        for partition, generation, term, start, floor, until in header.ledgers
    }
    return State(
        header.position,
        header.dataset,
        header.window,
        header.capacity,
        made,
        winners,
        removed,
        index,
    )


def describe(state: State) -> dict[str, Any]:
    """What of the header follows from the state."""
    assert state.dataset is not None, "this is a bug: a snapshot of nothing"
    ledgers = tuple(
        (*(o.partition, o.generation, o.term, o.start), x.floor, x.until)
        for x in state.ledgers.values()
        for o in [x.opened]
    )
    return {
        "position": state.position, "dataset": state.dataset, "window": state.window, "capacity": state.capacity,
        "evicted": state.winners.first, "rows": state.winners.rows, "withdrawn": len(state.removed),
        "losers": sum(ledger.losers for ledger in state.ledgers.values()), "ledgers": ledgers,
    }  # fmt: skip


def _arrays(state: State) -> Iterator[tuple[Array, Iterable[np.ndarray]]]:
    view = state.winners
    dim, spans = view.sketch.basis.shape[0], view.spans(view.first, view.rows)
    for column in COLUMNS:
        dtype, below = ("<f2", (dim,)) if column == "vectors" else ("<i8", ())
        yield (
            Array(f"winners.{column}", dtype, (view.rows - view.first, *below)),
            (getattr(b, column)[here] for _, b, here in spans),
        )
    yield _single("winners.removed", state.removed)
    for partition, ledger in state.ledgers.items():
        for table, array in ledger.tables(dim).items():
            yield _single(f"ledger.{partition}.{table}", array)
    for name, array in state.index.items():
        yield _single(f"index.{name}", array)


def _single(name: str, array: np.ndarray) -> tuple[Array, Iterable[np.ndarray]]:
    return Array(name, array.dtype.str, array.shape), (array,)


def _raw(array: np.ndarray) -> memoryview:
    return memoryview(array.data).cast("B")


def _fill(file: BinaryIO, room: memoryview) -> None:
    while len(room):
        taken = file.readinto(room)  # type: ignore[attr-defined]
        if not taken:
            raise Unusable("its data end too early")
        room = room[taken:]
