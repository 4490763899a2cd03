"""No record ends replica after replica, and none keeps a process from its end: real processes that
crash and hang, on a real broker."""

from __future__ import annotations

import signal
import time

import pytest

from streamer.testing import create_topic, jpeg, produce, read_topic
from tests.integration.service import Made, read_output, verified

POISONED = {"type": "tests.plugins.thumbnail:PoisonedEmbedder"}
CRASHES, HANGS = (200, 40), (40, 200)
"""Sizes of images."""
STARTS = 7
"""So many a poison may cost at most: one with progress, one without, a window, alone as often as it
takes, and the one that goes on."""


def photos(count: int, poison: dict[int, tuple[int, int]]) -> list[bytes]:
    return [jpeg(i, size=poison.get(i, (64, 48))) for i in range(count)]


@pytest.mark.timeout(300)
def test_a_record_that_crashes_every_process_is_set_aside_and_nothing_else(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """Alternately in two replicas: the partitions move on to the next one, with what is known."""
    create_topic(kafka, topic_name, partitions=2)
    values = photos(160, {90: CRASHES})
    origins = produce(kafka, topic_name, ((value, {}) for value in values))
    service = make_service(dataset_name, embedder=POISONED, dedup="off")
    codes = []
    while 0 not in codes:
        replica = service.start("--until", "end", writer=f"w{len(codes) % 2}")
        codes.append(replica.end())
        assert len(codes) <= STARTS, f"{codes}\n{replica.log}"
    assert set(codes) == {-signal.SIGSEGV, 0}
    verified(service.output)
    by_origin = read_output(service.output).by_origin
    for i, origin in enumerate(origins):
        row = by_origin[origin]
        expected = ("invalid", "crashed") if i == 90 else ("accepted", None)
        assert (row["outcome"], row["reason"]) == expected
    (dead,) = read_topic(kafka, f"{dataset_name}.dead")
    assert dead.value == values[90]


@pytest.mark.timeout(300)
def test_a_decoder_that_hangs_ends_the_process_which_names_the_record(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, ((value, {}) for value in photos(40, {20: HANGS})))
    service = make_service(
        dataset_name, embedder=POISONED, dedup="off", decode={"timeout": "2s", "threads": 2}
    )
    for _ in range(2):
        replica = service.run("--until", "end", expect=75)
        assert "partition 0, offset 20: the image is being decoded for more than" in replica.log
        assert "it hangs in transform" in replica.log
    service.run("--until", "end")
    report = verified(service.output)
    assert report["outcomes"]["accepted"] == 39
    assert [r["offset"] for r in read_output(service.output).of("invalid")] == [20]


@pytest.mark.timeout(120)
def test_a_decoder_that_hangs_does_not_keep_a_process_from_its_end(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """SIGTERM: the line is drained as far as it can be."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, ((value, {}) for value in photos(10, {5: HANGS})))
    service = make_service(dataset_name, embedder=POISONED, dedup="off", decode={"threads": 1})
    replica = service.start()
    replica.wait_for("partitions assigned")
    time.sleep(1)
    replica.kill(signal.SIGTERM)
    assert replica.end(60) == 0, replica.log
    assert not (service.output / "metadata").exists(), "nothing was decided"
