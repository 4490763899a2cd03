"""What a process takes at most, whatever arrives beside images: its peak, as the kernel counts it."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from streamer.testing import create_topic, jpeg, produce
from streamer.testing.broker import MESSAGE_BYTES
from tests.integration.service import Made, read_output

BOUND_MB = 2_300
"""An idle process takes 550 MB, and the client's queue of messages some more."""
MB = 1_000_000
MEASURED = (
    sys.executable,
    "-c",
    "import resource, subprocess, sys;"
    "code = subprocess.call(sys.argv[1:]);"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
    "print('peak_kb', peak, file=sys.stderr, flush=True);"
    "sys.exit(code)",
)
"""A command that starts the one behind it and tells its peak."""

Value = tuple[bytes | None, dict[str, str | bytes | None]]


def captions(count: int, nbytes: int) -> Iterator[Value]:
    for i in range(count):
        yield jpeg(i), {"text": f"{i}".ljust(nbytes, "x")}


def content_types() -> Iterator[Value]:
    for i in range(150):
        yield jpeg(i), {"content-type": f"image/jpeg; i={i}".ljust(8 * MB, "x")}


def headers_of_invalid_ones() -> Iterator[Value]:
    for i in range(150):
        yield b"no image", {f"x{i}": bytes(8 * MB)}


def lists_in_json() -> Iterator[Value]:
    """25 MB each, of which Python makes 600 MB."""
    image = base64.b64encode(jpeg(1)).decode()
    lists = "[]," * 8 * MB + "[]"
    value = f'{{"image":"{image}","metadata":{{"a":[{lists}]}}}}'.encode()
    for _ in range(6):
        yield value, {"content-type": "application/json"}


ATTACKS = {
    "captions that are too long": (captions(150, 8 * MB), {"invalid too_many_bytes": 150}),
    "captions that are just short enough": (
        captions(1000, MB - 100),
        {"accepted None": 1000},
    ),
    "content types": (content_types(), {"invalid too_many_bytes": 150}),
    "headers of what is invalid": (headers_of_invalid_ones(), {"invalid too_many_bytes": 150}),
    "JSON of empty lists": (lists_in_json(), {"invalid too_many_bytes": 6}),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", ATTACKS)
def test_memory_has_a_bound_whatever_arrives(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made, attack: str
) -> None:
    records, expected = ATTACKS[attack]
    create_topic(kafka, topic_name, max_message_bytes=MESSAGE_BYTES)
    produce(kafka, topic_name, records)
    service = make_service(
        dataset_name,
        dedup={"threshold": 0.97 if "JSON" in attack else 0.999},
        batch={"size": 256, "linger": "200ms"},
        dead_letters={"max_ratio": 1},
    )
    replica = service.start("--until", "end", prefix=MEASURED)
    assert replica.end(500) == 0, replica.log
    peak = next(int(line.split()[1]) for line in replica.lines if line.startswith("peak_kb"))
    assert peak * 1024 < BOUND_MB * MB
    rows = read_output(service.output).rows
    assert Counter(f"{row['outcome']} {row['reason']}" for row in rows) == expected
