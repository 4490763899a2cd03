"""What the process says, on standard error: lines for people on a terminal, one JSON object a line
for machines elsewhere.

``STREAMER_LOG=text|json`` and ``STREAMER_LOG_LEVEL=debug|info|warning|error`` override. Values for
machines go into ``extra``: ``log.info("committed epoch", extra={"epoch": 12, "records": 5000})``; a
text line ends with them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TextIO

from streamer import plugins
from streamer.errors import ConfigError
from streamer.redact import hide
from streamer.terminal import indented, shown

LIBRDKAFKA = "streamer.librdkafka"
"""Name of the logger that each Kafka client of ours speaks through."""

_LEVELS = ("debug", "info", "warning", "error")
_FORMS = ("text", "json")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_ENV = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
_REPEAT_S = 30.0
_CLIENT = re.compile(r"^\[[^]]*\] (\[thrd:.*?\]: )?(\S+: )*")
"""Before what librdkafka says: client, thread and address."""


def setup(environ: Mapping[str, str] | None = None, stream: TextIO | None = None) -> None:
    """Replaces the root logger's handlers. Call it once, before the first thread. Raises
    ConfigError for an unknown level or form."""
    env = os.environ if environ is None else environ
    out = sys.stderr if stream is None else stream
    level = _choice(env, "STREAMER_LOG_LEVEL", _LEVELS, "info")
    form = _choice(env, "STREAMER_LOG", _FORMS, "text" if out.isatty() else "json")
    hide_environment(env)
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(
        logging.WARNING
    )  # other libraries speak only when something is wrong
    logging.getLogger("streamer").setLevel(level.upper())
    _filter_librdkafka()
    plugins.log.filters[:] = [Repeats(_REPEAT_S)]
    logging.captureWarnings(True)


def _rewrite(record: logging.LogRecord) -> bool:
    """librdkafka's lines are for its developers: facility, client, thread, address, state. What
    they mean to a user is said instead; with ``debug`` they are shown as they are. False: nothing.

    Untold: that a consumer has no use for a producer's property (``kafka.client`` is for both), and
    that a connection to a broker failed or was closed, which it is when idle, too, or that a broker
    did not answer: when none does, the line says so in one place (`streamer.kafka.brokers`).
    """
    raw = record.getMessage()
    if "property and will be ignored by this" in raw:
        return False
    if logging.getLogger(LIBRDKAFKA).isEnabledFor(logging.DEBUG):
        return True
    facility, _, text = raw.partition(" ")
    words = _CLIENT.sub("", text)
    if facility in ("FAIL", "REQTMOUT"):
        return False
    record.msg, record.args = words, ()
    return True


def hide_environment(environ: Mapping[str, str]) -> None:
    """Keeps the secrets that libraries take from the environment out of every later text."""
    hide({name: environ.get(name, "") for name in _SECRET_ENV})


def say_now(message: str, level: int = logging.ERROR) -> None:
    """One line straight to the file descriptor, for a process that may be stuck in any lock,
    logging's own included."""
    record = logging.makeLogRecord(
        {
            "name": "streamer",
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
        }
    )
    handlers = logging.getLogger().handlers
    formatter = handlers[0].formatter if handlers else None
    os.write(2, (formatter or TextLines()).format(record).encode("utf-8", "replace") + b"\n")


class TextLines(logging.Formatter):
    """``12:00:31 INFO    main: committed epoch  epoch=12 records=5000``; below it a traceback,
    indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{clock} {record.levelname:<7} {record.threadName}: {record.getMessage()}"
        line += "".join(f"  {name}={value}" for name, value in _extra(record).items())
        line = shown(line)
        if record.exc_info:
            line += "\n" + indented(self.formatException(record.exc_info))
        return line


class JsonLines(logging.Formatter):
    """``{"time": "2025-01-31T12:00:31.042Z", "level": "info", "logger": …, "thread": …, "message":
    …, "epoch": 12}``"""

    def format(self, record: logging.LogRecord) -> str:
        when = (
            datetime.fromtimestamp(record.created, timezone.utc)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )
        line: dict[str, object] = {
            "time": when,
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return shown(json.dumps(line, default=str, ensure_ascii=False))


class PlainLines(logging.Formatter):
    """The message alone, for commands that keep no log."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(record.getMessage())


class Repeats(logging.Filter):
    """Lets one line through per text and ``seconds``: librdkafka repeats itself every second while
    a broker is away, and a plug-in may fail for each record. Numbers make no difference."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = re.sub(r"\d+", "", record.getMessage())
        now = time.monotonic()
        with self._lock:
            if now - self._said.get(text, -self._seconds) < self._seconds:
                return False
            self._said = {
                said: at for said, at in self._said.items() if now - at < self._seconds
            } | {text: now}
        return True


def _choice(environ: Mapping[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    value = environ.get(name, "").lower() or default
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is unknown; use one of {', '.join(known)}")
    return value


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and not name.startswith("_")
    }


def _filter_librdkafka() -> None:
    logging.getLogger(LIBRDKAFKA).filters[:] = [_rewrite, Repeats(_REPEAT_S)]


# Also for commands that never call `setup`
_filter_librdkafka()
if logging.lastResort is not None:
    logging.lastResort.setFormatter(PlainLines())
