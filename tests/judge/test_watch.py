"""A rule that every record fails is told in a warning; one that any record passes is not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from streamer.config import CustomRule, FieldRule
from streamer.judge.filters import Rules
from streamer.judge.watch import FIRST, LEAST
from streamer.records import Facts

PHOTO: dict[str, Any] = {"format": "jpg", "width": 640, "height": 480, "text": "a", "data": b"x"}


def rules(*filters: dict[str, Any], formats: Iterable[str] = ("jpg",)) -> Rules:
    made = [
        CustomRule.model_validate(f) if "type" in f else FieldRule.model_validate(f)
        for f in filters
    ]
    return Rules(made, tuple(formats), ["aesthetic"])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def check(made: Rules, number: int, **facts: Any) -> None:
    for _ in range(number):
        made.header_rules.check(Facts(**{**PHOTO, **facts}))


def test_a_misspelt_key_of_the_metadata(caplog: pytest.LogCaptureFixture) -> None:
    made = rules({"field": "metadata.lisence", "equals": "cc0"})
    check(made, FIRST - 1, metadata={"license": "cc0", "lang": "en"})
    assert warnings(caplog) == []
    check(made, 2 * FIRST, metadata={"license": "cc0"})
    assert warnings(caplog) == [
        "filters.0 (metadata.lisence): none of the first 100 records has metadata.lisence, so "
        "this rule removes them all; metadata has lang, license; did you mean metadata.license?"
    ]


@pytest.mark.parametrize(
    ("rule", "facts", "said"),
    [
        ({"field": "metadata.x", "at_least": 1}, {"metadata": {}}, "they have no metadata"),
        ({"field": "metadata.x", "at_least": 1}, {"metadata": None}, "they have no metadata"),
        ({"field": "url", "matches": "."}, {}, "none of the first 100 records has url"),
        (
            {"name": "big", "field": "min_side", "at_least": 4800, "action": "flag"},
            {},
            "filters.0 (big): all of the first 100 records failed this rule and were flagged; "
            "the last one's min_side is 480",
        ),
        (
            {"field": "metadata.lang", "in": ["EN"]},
            {"metadata": {"lang": "en"}},
            "and were removed; the last one's metadata.lang is 'en'",
        ),
        ({"field": "text", "matches": "b"}, {"text": "a" * 5000}, f"is '{'a' * 79}"),
        (
            {"type": "tests.plugins.thumbnail:Moody", "name": "moody", "args": {"share": 1.0}},
            {},
            "filters.0 (moody): all of the first 100 records failed this rule and were removed",
        ),
    ],
)
def test_other_rules_that_nothing_passes(
    caplog: pytest.LogCaptureFixture, rule: dict[str, Any], facts: dict[str, Any], said: str
) -> None:
    check(rules(rule), 2 * FIRST, **facts)
    [warning] = warnings(caplog)
    assert said in warning
    assert len(warning) < 400


def test_formats(caplog: pytest.LogCaptureFixture) -> None:
    check(rules(formats=["png"]), FIRST)
    [warning] = warnings(caplog)
    assert warning.startswith("output.formats: all of the first 100 records failed this rule")
    assert "'jpg'" in warning


def test_a_score_rule(caplog: pytest.LogCaptureFixture) -> None:
    made = rules({"field": "aesthetic_score", "at_least": 45})
    for _ in range(FIRST):
        made.score_rules.check(Facts(**PHOTO), {"aesthetic": 5.25})
    [warning] = warnings(caplog)
    assert "the last one's aesthetic_score is 5.25" in warning


def test_one_record_that_passes_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    made = rules({"field": "metadata.lang", "equals": "en"})
    check(made, FIRST - 1, metadata={"lang": "de"})
    check(made, 1, metadata={"lang": "en"})
    check(made, 10 * FIRST, metadata={"lang": "de"})
    made.finish()
    assert warnings(caplog) == []


@pytest.mark.parametrize(("number", "told"), [(LEAST - 1, 0), (LEAST, 1), (FIRST, 1)])
def test_the_end_of_a_short_run(caplog: pytest.LogCaptureFixture, number: int, told: int) -> None:
    made = rules({"field": "metadata.x", "at_least": 1})
    check(made, number)
    made.finish()
    made.finish()
    assert len(warnings(caplog)) == told


def test_several_threads_tell_it_once(caplog: pytest.LogCaptureFixture) -> None:
    made = rules({"field": "metadata.x", "at_least": 1})
    threads = [threading.Thread(target=check, args=(made, 200)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(warnings(caplog)) == 1
