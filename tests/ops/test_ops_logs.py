"""Lines for people, lines for machines, and no secrets in either."""

import io
import json
import logging
import subprocess
import sys
import time
import warnings

import pytest
from confluent_kafka import Consumer, Producer

from streamer import plugins
from streamer.errors import ConfigError
from streamer.ops import logs
from streamer.redact import hide


@pytest.fixture
def spoken():
    root, ours, kafka = (
        logging.getLogger(),
        logging.getLogger("streamer"),
        logging.getLogger(logs.LIBRDKAFKA),
    )
    before = root.handlers[:], root.level, ours.level, kafka.filters[:]
    stream = io.StringIO()

    def setup(**environ):
        logs.setup(environ, stream)
        return stream

    yield setup
    logging.captureWarnings(False)
    root.handlers[:], kafka.filters[:] = before[0], before[3]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_machines_get_one_json_object_a_line(spoken):
    stream = spoken()
    logging.getLogger("streamer.sink").info(
        "committed epoch %d", 3, extra={"records": 12, "path": "a\nb"}
    )
    [line] = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["message"] == "committed epoch 3"
    assert said["records"] == 12
    assert said["path"] == "a\nb"
    assert (said["level"], said["logger"], said["thread"]) == (
        "info",
        "streamer.sink",
        "MainThread",
    )
    assert said["time"].endswith("Z")


def test_people_get_text(spoken):
    stream = spoken(STREAMER_LOG="text")
    logging.getLogger("streamer.sink").info("committed epoch", extra={"records": 12})
    assert stream.getvalue()[8:] == " INFO    MainThread: committed epoch  records=12\n"


def test_an_exception_stays_one_line_for_machines(spoken):
    stream = spoken()
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("streamer").exception("it broke")
    [line] = stream.getvalue().splitlines()
    assert "ValueError: boom" in json.loads(line)["exception"]


def test_levels(spoken):
    stream = spoken(STREAMER_LOG="text", STREAMER_LOG_LEVEL="warning")
    logging.getLogger("streamer.x").info("quiet")
    logging.getLogger("streamer.x").warning("loud")
    logging.getLogger("somebody.else").info("quiet")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()
    spoken(STREAMER_LOG="text", STREAMER_LOG_LEVEL="debug")
    logging.getLogger("streamer.x").debug("detail")
    logging.getLogger("somebody.else").debug("detail of others")
    assert "detail\n" in stream.getvalue()
    assert "detail of others" not in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "value"), [("STREAMER_LOG", "xml"), ("STREAMER_LOG_LEVEL", "loud")]
)
def test_a_wrong_setting_says_what_would_be_right(spoken, name, value):
    with pytest.raises(ConfigError, match=f"{name}: '{value}' is unknown; use one of"):
        spoken(**{name: value})


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_printed_whoever_prints_it(spoken, form):
    stream = spoken(STREAMER_LOG=form, AWS_SECRET_ACCESS_KEY="aws-very-secret")
    hide(
        {
            "sasl.username": "anna",
            "sasl.password": 'pass"word\\1',
            "ssl.key.password": "k3y-pass",
            "security.protocol": "SASL_SSL",
        }
    )
    log = logging.getLogger("streamer.x")
    log.info('sent pass"word\\1 and k3y-pass to anna over SASL_SSL', extra={"seen": 'pass"word\\1'})
    log.info("at https://anna:hunter2@registry.example/x and s3 with aws-very-secret")
    said = stream.getvalue()
    for secret in ("word", "k3y-pass", "hunter2", "aws-very-secret"):
        assert secret not in said
    assert "anna" in said
    assert "SASL_SSL" in said
    assert "@registry.example/x" in said


def test_librdkafka_does_not_repeat_itself(spoken):
    stream = spoken(STREAMER_LOG="text")
    log = logging.getLogger(logs.LIBRDKAFKA)
    for i in range(20):
        log.error("PARTCNT [rdkafka#consumer-1] topic cats changed (after %dms)", i)
    log.error("ERROR [rdkafka#consumer-1] another thing")
    assert len(stream.getvalue().splitlines()) == 2


def test_nor_in_a_command_without_a_log_of_its_own():
    code = (
        "import logging; from streamer.ops import logs; log = logging.getLogger(logs.LIBRDKAFKA)\n"
        "for i in range(20): log.error('PARTCNT [x] it changed (after %dms)', i)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["it changed (after 0ms)"]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_what_each_client_says_of_a_broker_that_goes_away_is_for_debugging(spoken, embedded, level):
    """Real clients and a real broker: a member of a group and a producer, with several threads
    each. That no broker is left is said once, for all of them."""
    stream = spoken(STREAMER_LOG="text", STREAMER_LOG_LEVEL=level)
    with embedded() as broker:
        given = {"bootstrap.servers": broker.bootstrap_servers}
        given["logger"] = logging.getLogger(logs.LIBRDKAFKA)
        consumer = Consumer({**given, "group.id": "g"})
        consumer.subscribe(["nothing"])
        producer = Producer(given)
        producer.list_topics(timeout=10)
        consumer.poll(1.0)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        consumer.poll(0.1)
        producer.poll(0)
    consumer.close()
    lines = [line for line in stream.getvalue().splitlines() if "Connect" in line]
    assert bool(lines) == (level == "debug")
    assert level != "debug" or f"[thrd:{broker.bootstrap_servers}" in "".join(lines)


def test_what_else_librdkafka_says_is_told_without_its_frame(spoken):
    stream = spoken(STREAMER_LOG="text")
    log = logging.getLogger(logs.LIBRDKAFKA)
    log.log(
        logging.WARNING, "%s [%s] %s", "GETPID", "rdkafka#producer-4",
        "[thrd:main]: Failed to acquire idempotence PID from broker 127.0.0.1:2/1: retrying",
    )  # fmt: skip
    assert "producer-4" not in stream.getvalue()
    assert (
        ": Failed to acquire idempotence PID from broker 127.0.0.1:2/1: retrying"
        in stream.getvalue()
    )


def test_librdkafka_does_not_complain_that_consumers_and_producers_share_properties(spoken):
    """Real clients, whose own words these are."""
    stream = spoken(STREAMER_LOG="text")
    log = logging.getLogger(logs.LIBRDKAFKA)
    shared = {"session.timeout.ms": 6_000, "linger.ms": 5, "logger": log}
    Producer(shared).poll(0.1)
    consumer = Consumer({**shared, "group.id": "g", "heartbeat.interval.ms": 7_000})
    consumer.poll(0.1)
    consumer.close()
    assert "ignored" not in stream.getvalue()
    log.warning("CONFWARN [rdkafka#consumer-1] another remark")
    assert "another remark" in stream.getvalue()


def test_a_plugin_that_fails_for_each_record_says_so_once(spoken):
    stream = spoken(STREAMER_LOG="text")
    for record in range(1_000):
        plugins.log.warning("filter sharp raised KeyError: %d; the record fails it", record)
    assert stream.getvalue().count("filter sharp raised") == 1


def test_a_repeat_is_said_again_later():
    repeats = logs.Repeats(0.0)
    record = logging.makeLogRecord({"msg": "away"})
    assert repeats.filter(record)
    assert repeats.filter(record)


def test_python_warnings_become_lines(spoken):
    stream = spoken(STREAMER_LOG="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old thing", stacklevel=1)
        logging.captureWarnings(False)
    assert "old thing" in json.loads(stream.getvalue().splitlines()[0])["message"]
