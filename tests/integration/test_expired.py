"""Records that expire before they are decided, and datasets that are moved forward by hand."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.testing import create_topic, jpeg, produce
from streamer.wire.claim import Claims, decode
from tests.integration.service import (
    THUMBNAIL,
    Made,
    Service,
    check_exactly_once,
    read_claims,
    read_output,
    streamer,
    verified,
)
from tests.integration.watch import port_of, scrape, total

TAU = 0.97


class Story:
    """A topic of one partition, and a dataset that follows it."""

    def __init__(self, kafka: str, topic: str, service: Service) -> None:
        self._kafka = kafka
        self._topic = topic
        self.service = service
        self.images: dict[int, bytes] = {}
        service.settings["output"] |= {"epoch_records": 50, "seal_after": "1s"}
        create_topic(kafka, topic)

    def feed(self, images: list[bytes]) -> None:
        origins = produce(self._kafka, self._topic, [(image, {}) for image in images])
        self.images.update(zip((o for _, o in origins), images, strict=True))

    def expire(self, offset: int) -> None:
        """Retention takes what lies before it."""
        admin = AdminClient({"bootstrap.servers": self._kafka})
        for future in admin.delete_records([TopicPartition(self._topic, 0, offset)]).values():
            future.result(30)

    def wait_for_claims(self, rows: int) -> None:
        deadline = time.monotonic() + 60
        found = 0
        while found < rows:
            assert time.monotonic() < deadline
            entries = map(decode, read_claims(self._kafka, f"{self.service.dataset}.claims"))
            found = sum(len(e.offsets) for e in entries if isinstance(e, Claims))

    def kafka(self, **changes: Any) -> dict[str, Any]:
        return {**self.service.settings["kafka"], **changes}

    def check(self, *skipped: tuple[int, int]) -> None:
        """All is decided once but for these ranges, which the manifests name."""
        found: list[list[int]] = []
        for path in sorted((self.service.output / "manifests").glob("*.json")):
            found += json.loads(path.read_text())["skipped"].get("0", [])
        assert sorted(map(tuple, found)) == sorted(skipped)
        left = {
            (0, o): image
            for o, image in self.images.items()
            if not any(a <= o < b for a, b in skipped)
        }
        check_exactly_once(read_output(self.service.output), left, TAU)
        facts = verified(self.service.output)["partitions"]["0"]
        assert facts["skipped"] == sum(b - a for a, b in skipped)


@pytest.fixture
def story(kafka: str, topic_name: str, dataset_name: str, make_service: Made) -> Story:
    return Story(kafka, topic_name, make_service(dataset_name))


def pictures(first: int, following: int) -> list[bytes]:
    return [jpeg(i) for i in range(first, following)]


def slow(delay_ms: int) -> dict[str, Any]:
    return {**THUMBNAIL, "args": {"delay_ms": delay_ms}}


@pytest.mark.timeout(240)
def test_what_expires_before_the_first_commit_is_no_loss(story: Story) -> None:
    """`kafka.start: earliest` on a topic whose oldest records go while the replica starts."""
    story.feed(pictures(0, 100))
    replica = story.service.start(embedder=slow(2000))
    replica.wait_for("partitions assigned")
    replica.kill()
    story.expire(30)
    story.service.run("--until", "end")
    story.check((0, 30))


@pytest.mark.timeout(240)
def test_expired_records_stop_a_dataset_until_somebody_moves_it_forward(story: Story) -> None:
    story.feed(pictures(0, 60))
    story.service.run("--until", "end")
    story.feed(pictures(60, 120))
    story.expire(80)
    refused = story.service.run("--until", "end", expect=1)
    last = json.loads(refused.lines[-1])["message"]
    assert "the offsets 60 to 79 expired before they were processed" in last
    assert "streamer seek -c CONFIG --to earliest --execute" in last

    config = str(story.service.config())
    shown = streamer("seek", "-c", config, "--to", "earliest", "--json")
    moves = {"skips": [{"partition": 0, "first": 60, "following": 80}], "written": False}
    assert json.loads(shown.stdout) == moves
    assert "nothing was changed" in streamer("seek", "-c", config, "--to", "earliest").stderr
    assert story.service.run("--until", "end", expect=1).count("expired before") == 1
    streamer("seek", "-c", config, "--to", "earliest", "--execute")
    streamer("check", "-c", config)
    story.service.run("--until", "end")
    story.check((60, 80))
    assert "nothing to skip" in streamer("seek", "-c", config, "--to", "earliest").stdout


@pytest.mark.timeout(240)
def test_a_replica_goes_on_behind_what_expires_under_it(story: Story) -> None:
    story.feed(pictures(0, 50))
    replica = story.service.start(kafka=story.kafka(on_expired="skip"))
    replica.wait_for("epoch committed")
    replica.process.send_signal(signal.SIGSTOP)
    story.feed(pictures(50, 51))  # the answer to the fetch that is under way
    time.sleep(1)
    story.feed(pictures(51, 150))
    story.expire(110)
    replica.process.send_signal(signal.SIGCONT)
    replica.wait_for("offsets are skipped")
    replica.wait_for("epoch committed", count=2)
    skipped = int(total(scrape(port_of(replica)), "streamer_skipped_offsets_total"))
    assert skipped in (59, 60), "the answer to a fetch that was under way may have come"
    replica.kill(signal.SIGTERM)
    assert replica.end() == 0, replica.log
    story.service.run("--until", "end")
    story.check((110 - skipped, 110))


@pytest.mark.timeout(240)
def test_a_winner_that_expired_is_withdrawn_and_what_resembles_it_is_accepted(
    story: Story,
) -> None:
    """A replica dies when its claims are won, and nothing of them is committed."""
    story.feed(pictures(0, 40))
    replica = story.service.start(output={**story.service.settings["output"], "seal_after": "60s"})
    replica.wait_for("partitions assigned")
    story.wait_for_claims(40)
    replica.kill()
    story.feed(pictures(0, 40))
    story.expire(25)
    story.service.run("--until", "end", kafka=story.kafka(on_expired="skip"))
    story.check((0, 25))
    rows = read_output(story.service.output).by_origin
    assert all(rows[0, o]["outcome"] == "accepted" for o in range(25, 65))
    assert all(rows[0, o]["outcome"] == "duplicate" for o in range(65, 80))


@pytest.mark.timeout(240)
def test_a_run_with_an_end_commits_what_is_skipped_up_to_it(
    kafka: str, topic_name: str, dataset_name: str, make_service: Made
) -> None:
    create_topic(kafka, topic_name, partitions=4)
    service = make_service(dataset_name)
    produce(kafka, topic_name, [(image, {}) for image in pictures(0, 40)])
    service.run("--until", "end")
    produce(kafka, topic_name, [(image, {}) for image in pictures(40, 120)])
    streamer("seek", "-c", str(service.config()), "--to", "count:0", "--execute")
    service.run("--until", "end")
    report = verified(service.output)
    assert report["records"] == 40
    assert sum(facts["skipped"] for facts in report["partitions"].values()) == 80


@pytest.mark.timeout(240)
def test_a_replay_that_was_begun_goes_on_although_its_start_has_expired(story: Story) -> None:
    story.feed(pictures(0, 60))
    config = str(story.service.config(embedder=slow(1500)))
    words = ("replay", "run", "-c", config, "--dataset", "again", "--from", "offset:0")
    replica = story.service.launch(*words, "--until", "offset:50")
    replica.wait_for("partitions assigned")
    replica.kill()
    story.expire(20)
    streamer(*words, "--until", "offset:50")
    report = verified(story.service.output.parent / "again")
    facts = report["partitions"]["0"]
    assert (report["records"], facts["skipped"], facts["next"]) == (30, 20, 50)


@pytest.mark.timeout(240)
def test_seek_goes_forward_only_and_touches_no_running_group(story: Story) -> None:
    story.feed(pictures(0, 60))
    config = str(story.service.config())
    begun = streamer("seek", "-c", config, "--to", "offset:5", expect=2)
    assert "has not begun" in begun.stderr
    replica = story.service.start()
    replica.wait_for("epoch committed")
    replica.process.send_signal(signal.SIGSTOP)
    story.feed(pictures(60, 70))
    running = streamer("seek", "-c", config, "--to", "count:0", "--execute", expect=2)
    assert "has 1 member: stop all replicas first" in running.stderr
    replica.process.send_signal(signal.SIGCONT)
    replica.kill(signal.SIGTERM)
    assert replica.end() == 0
    story.service.run("--until", "end")
    story.feed(pictures(70, 100))
    back = streamer("seek", "-c", config, "--to", "offset:0=3", expect=2)
    assert "partition 0 is decided up to offset 70 and ends at 100; 3 is outside" in back.stderr
    beyond = streamer("seek", "-c", config, "--to", "offset:101", expect=2)
    assert "101 is outside" in beyond.stderr
    streamer("seek", "-c", config, "--to", "count:10", "--execute")
    story.service.run("--until", "end")
    story.check((70, 90))
