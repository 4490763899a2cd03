import math
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import CustomRule, FieldRule
from streamer.errors import ConfigError, PluginError
from streamer.judge.filters import Filter, FilterRow, Rules
from streamer.records import Facts, FailedRule

CAT = Facts(
    id="cats/1.jpg",
    text="a cat on a sofa",
    url="https://example.com/1.jpg",
    metadata={
        "lang": "en",
        "rank": "7",
        "score": 0.5,
        "nested": {"deep": {"x": 3}},
        "dotted.key": "yes",
        "checked": True,
        "flagged": "true",
    },
    data=b"x" * 1000,
    format="jpg",
    width=640,
    height=480,
)


def passes(facts: Facts = CAT, scores: dict[str, float] | None = None, **rule) -> bool:
    rules = Rules([FieldRule.model_validate(rule)], ["jpg"], ["aesthetic", "nsfw"])
    return not (rules.header_rules.check(facts) + rules.score_rules.check(facts, scores or {}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 640), ("height", 480), ("min_side", 480), ("max_side", 640), ("pixels", 307_200), ("aspect_ratio", 4 / 3),
        ("bytes", 1000), ("text_length", 15), ("metadata.score", 0.5), ("metadata.rank", 7), ("metadata.nested.deep.x", 3),
    ],
)  # fmt: skip
def test_numbers_have_inclusive_bounds(field, value):
    assert passes(field=field, at_least=value)
    assert passes(field=field, at_most=value)
    assert passes(field=field, at_least=value, at_most=value)
    assert not passes(field=field, at_least=math.nextafter(value, math.inf))
    assert not passes(field=field, at_most=math.nextafter(value, -math.inf))
    assert passes(field=field, equals=value)


def test_aspect_ratio_is_the_same_upright_and_lying():
    assert passes(Facts(format="jpg", width=100, height=301), field="aspect_ratio", at_most=3.01)
    assert passes(Facts(format="jpg", width=301, height=100), field="aspect_ratio", at_most=3.01)
    assert not passes(Facts(format="jpg", width=100, height=301), field="aspect_ratio", at_most=3)


def test_text():
    assert passes(field="metadata.lang", **{"in": ["en", "de"]})
    assert not passes(field="metadata.lang", **{"in": ["fr"]})
    assert passes(field="format", equals="jpg")
    assert passes(field="id", matches="^cats/")
    assert passes(field="url", matches=r"example\.com"), "matches searches, as grep does"
    assert not passes(field="text", matches="^cat")
    assert passes(field="metadata.dotted.key", equals="yes"), "a key with a dot wins over a path"


def test_a_pattern_is_of_characters_and_not_of_bytes():
    def found(text, pattern):
        return passes(Facts(text=text, format="jpg"), field="text", matches=pattern)

    assert found("ä", "^.$")
    assert found("GRÖSSE", "(?i)^größ?")
    assert found("größe 大", r"^\pL+ \p{Han}$")
    assert found("a \ud800 b", "^a . b$"), "what is no character counts as one"
    assert not found("größe", r"^\w+$"), "ASCII alone, as the reference says"
    assert not found("end\n", "end$")
    assert found("one\ntwo", "(?m)^one$")


def test_a_pattern_takes_no_longer_for_a_text_that_is_made_for_it():
    """A pattern that is matched by trying would not come back."""
    facts = Facts(text="a" * 1_000_000 + "!", format="jpg")
    assert not passes(facts, field="text", matches="(a+)+$")


def test_metadata_from_headers_is_text_and_still_compares_with_numbers_and_truth_values():
    assert passes(field="metadata.rank", **{"in": [6, 7]})
    assert passes(field="metadata.checked", equals=True)
    assert passes(field="metadata.flagged", equals=True)
    assert not passes(field="metadata.flagged", equals=False)
    assert not passes(field="metadata.checked", equals=1), "true is no number"
    assert not passes(field="metadata.lang", at_least=0)


@pytest.mark.parametrize(
    "rule",
    [
        {"field": "width", "at_least": 0}, {"field": "aspect_ratio", "at_most": 100}, {"field": "bytes", "at_least": 0}, {"field": "text", "matches": ""},
        {"field": "metadata.x", "at_most": 1e9}, {"field": "metadata.x.y", "equals": "a"}, {"field": "nsfw_score", "at_most": 1.0},
    ],
)  # fmt: skip
def test_missing_fails_every_rule(rule):
    assert not passes(Facts(format="jpg"), **rule)
    assert not passes(Facts(format="jpg", metadata={"x": None}), **rule)


def test_nan_fails_every_bound():
    nan = float("nan")
    assert not passes(scores={"aesthetic": nan}, field="aesthetic_score", at_least=-1e9)
    assert not passes(scores={"aesthetic": nan}, field="aesthetic_score", at_most=1e9)
    assert not passes(Facts(format="jpg", metadata={"x": "nan"}), field="metadata.x", at_least=0)
    assert not passes(Facts(format="jpg", metadata={"x": "inf"}), field="metadata.x", at_least=0)
    assert passes(scores={"aesthetic": 4.5}, field="aesthetic_score", at_least=4.5)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_metadata_value_makes_a_rule_raise(value):
    facts = Facts(format="jpg", metadata={"x": value})
    for rule in (
        {"at_least": 1},
        {"at_most": 1},
        {"equals": 1},
        {"equals": True},
        {"equals": "1"},
        {"matches": "1"},
        {"in": ["1", 2]},
        {"in": ["1"]},
    ):
        passes(facts, field="metadata.x", **rule)
        passes(facts, field="metadata.x.y", **rule)


def test_the_format_comes_first_and_all_failures_are_listed():
    rules = Rules(
        [
            FieldRule(field="min_side", at_least=1000, action="flag"),
            FieldRule(field="aesthetic_score", at_least=5),
            FieldRule(field="text_length", at_least=100, name="terse"),
            FieldRule(field="width", at_least=1),
        ],
        ["png"],
        ["aesthetic"],
    )
    assert rules.header_rules.check(CAT) == [
        FailedRule("format", True),
        FailedRule("min_side", False),
        FailedRule("terse", True),
    ]
    assert rules.score_rules.check(CAT, {"aesthetic": 4.0}) == [FailedRule("aesthetic_score", True)]
    assert rules.header_rules.check(Facts()) == [
        FailedRule("format", True),
        FailedRule("min_side", False),
        FailedRule("terse", True),
        FailedRule("width", True),
    ]


def test_no_score_rule_is_falsy():
    assert not Rules([FieldRule(field="width", at_least=1)], ["jpg"]).score_rules
    assert Rules([FieldRule(field="a_score", at_least=1)], ["jpg"], ["a"]).score_rules


class Even(Filter):
    def keep(self, row: FilterRow) -> bool | tuple[bool, str]:
        if row.facts.metadata["n"] % 2 == 0:  # type: ignore[index]
            return True
        return (False, "odd number!") if row.facts.text else False


class Good(Filter):
    needs = "scores"

    def __init__(self, least: float) -> None:
        self.least = least

    def keep(self, row: FilterRow) -> bool:
        return row.scores["aesthetic"] >= self.least


class Late(Good):
    needs = "pixels"  # type: ignore[assignment]


@pytest.fixture
def plugins(monkeypatch):
    module = types.ModuleType("some_filters")
    module.Even, module.Good, module.Late = Even, Good, Late  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_filters", module)


def test_custom_filters(plugins, caplog):
    rules = Rules(
        [
            CustomRule(type="some_filters:Even", name="even", action="flag"),
            CustomRule(type="some_filters:Good", name="good", args={"least": 5}),
        ],
        ["jpg"],
    )
    check = rules.header_rules.check
    assert check(Facts(format="jpg", metadata={"n": 2})) == []
    assert check(Facts(format="jpg", metadata={"n": 3})) == [FailedRule("even", False)]
    assert check(Facts(format="jpg", metadata={"n": 3}, text="a")) == [
        FailedRule("even", False),
        FailedRule("even:odd_number_", False),
    ]
    assert check(Facts(format="jpg", metadata={})) == [
        FailedRule("even", False),
        FailedRule("even:error_KeyError", False),
    ]
    assert "filter even raised KeyError" in caplog.text
    assert rules.score_rules.check(CAT, {"aesthetic": 5.0}) == []
    assert rules.score_rules.check(CAT, {"aesthetic": 4.9}) == [FailedRule("good", True)]


def test_a_custom_filter_that_only_raises_is_broken(plugins):
    even = CustomRule(type="some_filters:Even", name="even", action="flag")
    check = Rules([even], ["jpg"]).header_rules.check
    for _ in range(99):
        check(Facts(format="jpg", metadata={}))
    with pytest.raises(
        PluginError,
        match=r"filter even: Even\.keep\(\) raised for each of its first 100 records; the last: KeyError: 'n'",
    ):
        check(Facts(format="jpg", metadata={}))

    check = Rules([even], ["jpg"]).header_rules.check
    check(Facts(format="jpg", metadata={"n": 2}))
    for _ in range(200):  # one that has answered is not, whatever the records are like
        assert check(Facts(format="jpg", metadata={}))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (CustomRule(type="some_filters:Good", name="good"), "least"),
        (CustomRule(type="some_filters:Late", name="late", args={"least": 5}), "needs is 'pixels'"),
        (CustomRule(type="some_filters:Nope", name="nope"), "Nope"),
        (CustomRule(type="collections:Counter", name="counter"), "Filter"),
    ],
)
def test_a_wrong_custom_filter_is_a_config_error_that_names_its_place(plugins, rule, words):
    with pytest.raises(ConfigError, match=r"filters\.1") as caught:
        Rules([FieldRule(field="width", at_least=1), rule], ["jpg"])
    assert words in str(caught.value)
