"""A topic that is made again under a running replica."""

from __future__ import annotations

import signal
import time

import pytest
from confluent_kafka.admin import AdminClient

from streamer.testing import create_topic, jpeg, produce
from tests.integration.service import Made, read_output, verified


@pytest.mark.timeout(180)
@pytest.mark.parametrize("which", ["input", "commits"])
def test_nothing_is_committed_once_a_topic_was_made_again(
    which: str, kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    """While the process stands still, so that it hears of nothing else."""
    create_topic(kafka, topic_name)
    produce(kafka, topic_name, [(jpeg(i), {}) for i in range(60)])
    service = make_service(dataset_name)
    service.settings["kafka"]["client"] = {}
    service.settings["output"] |= {"epoch_records": 60, "seal_after": "1s"}
    replica = service.start()
    replica.wait_for("epoch committed")
    replica.process.send_signal(signal.SIGSTOP)
    name = topic_name if which == "input" else f"{dataset_name}.commits"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_topics([name])[name].result(30)
    time.sleep(1)
    create_topic(kafka, name)
    produce(kafka, topic_name, [(jpeg(100 + i), {}) for i in range(150)])
    replica.process.send_signal(signal.SIGCONT)
    assert replica.end(100) == 1, replica.log
    assert f"the topic {name} was deleted and made again" in replica.lines[-1]
    assert len(read_output(service.output).rows) == 60
    verified(service.output)
