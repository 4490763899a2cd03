"""A partition that floods the dead letters waits for somebody to look, and the others do not."""

from __future__ import annotations

import json
import signal

import pytest

from streamer.testing import create_topic, produce, read_topic
from tests.integration.service import Made, photographs, streamer, verified
from tests.integration.watch import ask, port_of, scrape, total, wait_until


@pytest.mark.timeout(300)
def test_a_partition_with_too_many_invalid_records_is_paused_and_the_others_go_on(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    good, bad = photographs(200, seed=68, invalid=0), [b"no image"] * 150
    create_topic(kafka, topic_name, partitions=2)
    for partition, values in ((0, [*good[:50], *bad]), (1, good[50:])):
        produce(kafka, topic_name, [(value, {}) for value in values], partition=partition)
    service = make_service(dataset_name)
    service.settings["output"] |= {"epoch_records": 40, "seal_after": "1s"}
    config = str(service.config())

    def paused() -> bool:
        return total(scrape(port_of(replica)), "streamer_partitions_paused") == 1

    def behind(partition: str) -> float:
        return total(scrape(port_of(replica)), "streamer_lag_records", partition=partition)

    for n in range(2):  # the next process does not read it either
        replica = service.start()
        wait_until(paused, replica)
        produce(kafka, topic_name, [(good[n], {})], partition=1)
        wait_until(lambda: behind("1") == 0, replica)
        wait_until(lambda: behind("0") >= 150, replica)
        status, text = ask(port_of(replica), "/readyz")
        assert status == 200
        assert "paused partitions: 0 (too many invalid records)" in json.loads(text)["phase"]
        replica.kill(signal.SIGTERM)
        assert replica.end() == 0, replica.log
        assert replica.count("is paused") == 1 - n, "the second one knew"
    assert read_topic(kafka, f"{dataset_name}.dead") == []

    (pause,) = json.loads(streamer("resume", "-c", config, "--json").stdout)["paused"]
    assert pause["partition"] == 0
    assert "not_an_image" in pause["why"]
    replica = service.start()
    wait_until(paused, replica)
    streamer("resume", "-c", config, "--partition", "0", "--execute")
    wait_until(lambda: not paused() and behind("0") == 0, replica)
    replica.kill(signal.SIGTERM)
    assert replica.end() == 0, replica.log
    assert verified(service.output)["records"] == 352
    assert len(read_topic(kafka, f"{dataset_name}.dead")) == 150
    assert json.loads(streamer("resume", "-c", config, "--json").stdout)["paused"] == []
