"""Batches that the client library cannot read: damaged in the broker's log, or packed in a way that
it does not know. No reader gets past one, so the process says where it stands, or skips it where it
may."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.testing import Broker, create_topic, jpeg, produce
from tests.integration.service import THUMBNAIL, Service, read_output, streamer, verified

CRC_AT, ATTRIBUTES_AT = 17, 21
"""In a record batch of Kafka's format 2: offset (8 bytes), length (4), epoch (4), format (1),
CRC-32C (4) over all that follows, attributes (2), …"""


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def flip(batch: bytearray) -> None:
    batch[-1] ^= 0xFF


def packed_with(codec: int) -> Callable[[bytearray], None]:
    def change(batch: bytearray) -> None:
        struct.pack_into(">H", batch, ATTRIBUTES_AT, codec)
        struct.pack_into(">I", batch, CRC_AT, crc32c(bytes(batch[ATTRIBUTES_AT:])))

    return change


def damage(broker: Broker, topic: str, offset: int, change: Callable[[bytearray], None]) -> None:
    """In place, the batch of partition 0 that begins at ``offset``: a broker that runs looks at it
    no more, while one that starts might cut it off."""
    path = broker.data / "log" / f"{topic}-0" / f"{0:020d}.log"
    log = bytearray(path.read_bytes())
    at = 0
    while struct.unpack_from(">q", log, at)[0] != offset:
        at += 12 + struct.unpack_from(">i", log, at + 8)[0]
    end = at + 12 + struct.unpack_from(">i", log, at + 8)[0]
    batch = log[at:end]
    change(batch)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(batch)


@pytest.mark.timeout(300)
def test_a_batch_that_cannot_be_read_ends_the_process_with_its_place(
    embedded: type[Broker], tmp_path: Path
) -> None:
    broken = {"damaged": flip, "zstd": packed_with(4)}
    with embedded() as broker:
        services = {}
        for name in (*broken, "claims"):
            create_topic(broker.bootstrap_servers, name)
            for first in (0, 10, 20):
                images = [(jpeg(i, size=(24, 16)), {}) for i in range(first, first + 10)]
                produce(broker.bootstrap_servers, name, images)
            services[name] = Service(
                tmp_path,
                {
                    "dataset": f"d-{name}",
                    "writer": "w0",
                    "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic": name},
                    "embedder": THUMBNAIL,
                    "output": {"path": str(tmp_path / "out")},
                    "http": {"host": "127.0.0.1", "port": 0},
                    "device": "cpu",
                },
            )
        services["claims"].run("--until", "end")
        for name, change in broken.items():
            damage(broker, name, 10, change)
        damage(broker, "d-claims.claims", 1, flip)
        for name, place in (
            *((name, f"{name} partition 0: the records from offset 10 on") for name in broken),
            ("claims", "d-claims.claims partition 0: the records from offset 1 on"),
        ):
            replica = services[name].run(expect=1)
            last = json.loads(replica.lines[-1])["message"]
            assert last.startswith(f"{place} cannot be read ("), last
            assert ("kafka.on_unreadable: skip" if name in broken else "Restore the topic") in last
        for name in broken:
            service = services[name]
            config = str(service.config())
            shown = streamer("seek", "-c", config, "--to", "offset:0=20", "--json").stdout
            assert json.loads(shown)["skips"] == [{"partition": 0, "first": 0, "following": 20}]
            before = ("--dataset", f"before-{name}", "--from", "earliest", "--until", "offset:10")
            for on_unreadable in ("stop", "skip"):
                own = (*before[:1], f"{before[1]}-{on_unreadable}", *before[2:])
                setting = f"kafka.on_unreadable={on_unreadable}"
                streamer("replay", "run", "-c", config, "--set", setting, *own)
                report = verified(Path(service.settings["output"]["path"]) / own[1])
                assert (report["records"], report["partitions"]["0"]["skipped"]) == (10, 0)
            kafka = {**service.settings["kafka"], "on_unreadable": "skip"}
            service.run("--until", "end", kafka=kafka)
            rows = read_output(service.output).rows
            assert sorted(row["offset"] for row in rows) == [*range(10), *range(20, 30)]
            report = verified(service.output)
            assert report["partitions"]["0"]["skipped"] == 10
