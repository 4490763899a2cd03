"""The demo from beginning to end: broker, weights, records, replica, audit, contact sheet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamer.config import FieldRule, load
from streamer.demo.child import Patience, Replica
from streamer.demo.feed import Feed, folder_feed, own_feed, send
from streamer.demo.photograph import photographs
from streamer.demo.place import TOPIC, Place
from streamer.demo.record import PARTITIONS, DemoRecord
from streamer.demo.result import Result, read_result
from streamer.demo.setting import THRESHOLD, write_config, write_weights
from streamer.demo.sheet import Facts, write_sheet
from streamer.demo.story import Story
from streamer.errors import DependencyError, ProtocolError
from streamer.testing import Broker, create_topic, free_port
from streamer.testing.broker import MESSAGE_BYTES
from streamer.testing.jars import KAFKA_VERSION, cache_folder
from streamer.units import counted

MODEL = "tf_efficientnet_lite0, ImageNet weights"
VERIFY_S = 300.0


@dataclass(frozen=True)
class Done:
    """What a finished demo has to show."""

    place: Place
    result: Result
    verdict: Mapping[str, Any]
    """What ``streamer dataset verify --json`` said."""
    unreadable: tuple[str, ...]
    """Files of the user's folder that could not be sent."""


def run(story: Story, place: Place, images: Path | None) -> Done:
    """Blocks for about a minute. Raises StreamerError; whatever happens, no child process is left
    behind."""
    broker = Broker(data=place.broker)
    with ThreadPoolExecutor(1, "demo") as pool:
        feed_later = pool.submit(own_feed) if images is None else pool.submit(folder_feed, images)
        weights_later = pool.submit(write_weights, place)  # torch is imported while Kafka starts
        try:
            if images is not None:
                feed_later.result()  # a wrong folder ends the demo before anything was started
            _start(story, broker)
            with story.step("photographs and weights") as step:
                feed = feed_later.result()
                weights_later.result()
                made = (
                    f"{feed.total} records from {len(photographs())} photographs"
                    if feed.own_photographs
                    else f"images of {images}"
                )
                step.outcome = f"{made}; {MODEL}"
            port = free_port()
            threads = max(2, min(6, os.cpu_count() or 2))
            write_config(
                place,
                servers=broker.bootstrap_servers,
                http_port=port,
                threads=threads,
                own_photographs=feed.own_photographs,
            )
            sent = _send(story, broker, feed)
            _consume(story, place, port, len(sent))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun need not begin
            raise
        finally:
            broker.close()
    return _show(story, place, feed, sent)


def _start(story: Story, broker: Broker) -> None:
    first = "" if cache_folder().is_dir() else " (43 MB are fetched, this once)"
    with story.step(f"starting Apache Kafka {KAFKA_VERSION}{first}") as step:
        broker.start()
        step.outcome = f"Apache Kafka {KAFKA_VERSION} on {broker.bootstrap_servers}"


def _send(story: Story, broker: Broker, feed: Feed) -> Mapping[tuple[int, int], DemoRecord]:
    with story.step("writing records to Kafka", feed.total) as step:
        create_topic(broker.bootstrap_servers, TOPIC, PARTITIONS, max_message_bytes=MESSAGE_BYTES)
        sent = send(
            feed,
            broker.bootstrap_servers,
            TOPIC,
            lambda count: step.at(count, "writing records to Kafka"),
        )
        step.outcome = f"{counted(len(sent), 'record')} in topic {TOPIC}, {PARTITIONS} partitions"
    return sent


def _consume(story: Story, place: Place, port: int, total: int) -> None:
    with (
        story.step("streamer run: starting", total) as step,
        Replica(place.config, place.log, port) as replica,
    ):
        patience = Patience(place.log)
        epochs = 0
        while replica.running():
            glance = replica.glance()
            patience.see(glance)
            if glance is not None:
                epochs = max(epochs, glance.epochs)
                committed = f", {epochs} epoch{'s' * (epochs > 1)} committed" if epochs else ""
                step.at(min(glance.decided, total), f"streamer run: {glance.phase}{committed}")
        step.outcome = f"streamer run --until end: {counted(total, 'record')} decided and committed"


def _show(
    story: Story, place: Place, feed: Feed, sent: Mapping[tuple[int, int], DemoRecord]
) -> Done:
    with story.step("streamer dataset verify") as step:
        verdict = verify(place.dataset)
        if not verdict["ok"]:
            raise ProtocolError(
                f"streamer dataset verify {place.dataset} found problems; this is a bug:",
                *json.dumps(verdict["problems"], indent=1).splitlines(),
            )
        verified = "verified: offsets tile, counts and checksums match"
        step.outcome = f"streamer dataset verify: {counted(verdict['records'], 'record')}, offsets tile, counts and checksums match"
    with story.step("contact sheet") as step:
        result = read_result(place.dataset, sent)
        credits = (
            [(photo.name, photo.credit) for photo in photographs()] if feed.own_photographs else []
        )
        title = "streamer demo: every record and its decision"
        write_sheet(
            place.sheet,
            result,
            Facts(title, MODEL, THRESHOLD, rules_in_words(place.config), verified, credits),
        )
        step.outcome = f"contact sheet of {counted(len(result.rows), 'record')}"
    return Done(place, result, verdict, tuple(feed.unreadable))


def verify(dataset: Path) -> dict[str, Any]:
    """``streamer dataset verify --json``, as a user would call it. Raises DependencyError if it
    cannot do its work."""
    command = [sys.executable, "-m", "streamer", "dataset", "verify", "--json", str(dataset)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERIFY_S,
            check=False,
        )
        verdict: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise DependencyError(
            f"streamer dataset verify {dataset} did not end within {VERIFY_S:.0f} s"
        ) from None
    except ValueError:
        raise DependencyError(
            f"streamer dataset verify {dataset} failed:", *done.stderr.strip().splitlines()
        ) from None
    return verdict


def rules_in_words(config: Path) -> dict[str, str]:
    """Filter name → the condition that a record must fulfil."""
    words = {"format": "one of output.formats"}
    loaded = load(config)
    words["format"] += ": " + ", ".join(loaded.output.formats)
    for rule in loaded.filters:
        if isinstance(rule, FieldRule):
            words[rule.name] = f"{rule.field} {_test(rule)}"
    return words


def _test(rule: FieldRule) -> str:
    bounds = [
        f"{sign} {value:g}"
        for sign, value in (("≥", rule.at_least), ("≤", rule.at_most))
        if value is not None
    ]
    if bounds:
        return "must be " + " and ".join(bounds)
    if rule.in_ is not None:
        return "must be one of " + ", ".join(map(str, rule.in_))
    return f"must match {rule.matches}" if rule.matches is not None else f"must be {rule.equals}"
