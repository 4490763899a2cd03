"""Filters: the rules of the config, compiled. Header rules run before an image is decoded, score
rules after the batch is scored.

A rule that fails a record either removes it or flags it; the first removing one is the reason, all
known failures become flags.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from streamer.config import CustomRule, FieldRule, RuleConfig, matcher
from streamer.errors import ConfigError, PluginError
from streamer.judge.watch import Watch
from streamer.plugins import build, log
from streamer.records import FORMAT_RULE, Facts, FailedRule

_NOT_A_WORD = re.compile(r"[^A-Za-z0-9_.-]+")
_METADATA = "metadata."
_BROKEN_AFTER = 100
"""A custom filter that raised for so many records, and has answered for none yet, is broken."""
_NO_SCORES: Mapping[str, float] = {}


@dataclass(frozen=True)
class FilterRow:
    """What a custom filter is asked about. Read only: the same objects travel on."""

    facts: Facts
    """Id, text, url, metadata, image bytes, format, width, height, sha256. A field that was never
    learnt is None."""
    scores: Mapping[str, float]
    """Head name → raw score; empty for a header filter."""


class Filter(ABC):
    """A rule of your own: subclass it and name it as ``type: pkg.mod:Class`` in ``filters``, with
    ``name`` and ``args``.

    Made once at start as ``Class(**args)``; do slow things (reading lists, compiling patterns)
    there. What that raises ends the start with exit code 2 and its words.
    """

    needs: Literal["header", "scores"] = "header"
    """``header``: asked before the image is decoded, which saves the decode of what you refuse.
    ``scores``: after the heads."""

    @abstractmethod
    def keep(self, row: FilterRow) -> bool | tuple[bool, str]:
        """True keeps the record, False fails the rule; ``(False, word)`` also says why, as a
        further flag ``NAME:word``.

        A header filter is called on the decode threads, by several at once; a score filter on the
        device thread, between two batches. It must not block (no network, no lock held for long),
        must not change the row, and must give the same answer for the same row: records are judged
        again after a crash. Whatever it raises fails the rule for this record only, with the flag
        ``NAME:error_TYPE``; a filter that raises for each of its first 100 records ends the process
        with exit code 1.
        """


class HeaderRules:
    """The implicit rule ``format`` and every rule that needs the header only. Any thread."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = tuple(rules)

    def check(self, facts: Facts) -> list[FailedRule]:
        """Every failure, in the order of the config; the first that removes is the reason. Does not
        block. Raises PluginError."""
        return [failure for rule in self._rules for failure in rule(facts, _NO_SCORES)]


class ScoreRules:
    """Every rule that needs a score. Falsy where there is none, so that a whole batch can be passed
    over. Device thread."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = tuple(rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def check(self, facts: Facts, scores: Mapping[str, float]) -> list[FailedRule]:
        """Every failure, in the order of the config. ``scores``: head name → raw score. Does not
        block. Raises PluginError."""
        return [failure for rule in self._rules for failure in rule(facts, scores)]


class Rules:
    """The rules of a config. Raises ConfigError for a custom filter that cannot be made.

    ``heads`` are the names of the heads: the field ``<head>_score`` needs that head's score.
    """

    def __init__(
        self, filters: Sequence[RuleConfig], formats: Sequence[str], heads: Iterable[str] = ()
    ) -> None:
        score_fields = {f"{head}_score": head for head in heads}
        self._watches = [Watch("output.formats", True, FORMAT_RULE, _FIELDS[FORMAT_RULE])]
        header = [_watched(_format_rule(formats), self._watches[0])]
        scored: list[_Rule] = []
        for i, rule in enumerate(filters):
            where, removes = f"filters.{i} ({rule.name})", rule.action == "remove"
            if isinstance(rule, FieldRule):
                head = score_fields.get(rule.field)
                get, stage = _getter(rule.field, head), header if head is None else scored
                check, watch = _field_rule(rule, get), Watch(where, removes, rule.field, get)
            else:
                plugin = _plugin(rule, f"filters.{i}")
                stage = header if plugin.needs == "header" else scored
                check = _custom_rule(plugin, FailedRule(rule.name, removes))
                watch = Watch(where, removes)
            stage.append(_watched(check, watch))
            self._watches.append(watch)
        self.header_rules = HeaderRules(header)
        self.score_rules = ScoreRules(scored)

    def finish(self) -> None:
        """At the end of a run: warns of the rules that every record has failed. Any thread."""
        for watch in self._watches:
            watch.finish()


_Rule = Callable[[Facts, Mapping[str, float]], tuple[FailedRule, ...]]
"""Empty for a record that passes."""
_Getter = Callable[[Facts, Mapping[str, float]], Any]


def _watched(check: _Rule, watch: Watch) -> _Rule:
    def watched(facts: Facts, scores: Mapping[str, float]) -> tuple[FailedRule, ...]:
        failures = check(facts, scores)
        if not watch.is_done:
            watch.see(bool(failures), facts, scores)
        return failures

    return watched


def _getter(field: str, head: str | None) -> _Getter:
    if head is not None:
        return _score(head)
    return _metadata(field) if field.startswith(_METADATA) else _FIELDS[field]


def _format_rule(formats: Iterable[str]) -> _Rule:
    allowed, failed = frozenset(formats), (FailedRule(FORMAT_RULE, True),)
    return lambda facts, scores: () if facts.format in allowed else failed


def _field_rule(rule: FieldRule, get: _Getter) -> _Rule:
    passes = _test(rule)
    failed = (FailedRule(rule.name, rule.action == "remove"),)
    return lambda facts, scores: () if passes(get(facts, scores)) else failed


def _custom_rule(plugin: Filter, failure: FailedRule) -> _Rule:
    answered, raised = False, 0

    def check(facts: Facts, scores: Mapping[str, float]) -> tuple[FailedRule, ...]:
        nonlocal answered, raised
        try:
            answer = plugin.keep(FilterRow(facts, scores))
            keep, why = answer if isinstance(answer, tuple) else (answer, "")
            keep, why = bool(keep), _NOT_A_WORD.sub("_", why)[:40]
            answered = True
        except (
            Exception
        ) as error:  # one record that a plugin cannot judge must not cost the others anything
            log.warning(
                "filter %s raised %s: %s; the record fails it",
                failure.name,
                type(error).__name__,
                error,
            )
            raised += 1
            if not answered and raised >= _BROKEN_AFTER:
                raise PluginError(
                    f"filter {failure.name}: {type(plugin).__name__}.keep() raised for each of its first {raised} records; the last: "
                    f"{type(error).__name__}: {error}. Mend the plugin; it is asked about row.facts and row.scores (docs/reference.md)."
                ) from error
            keep, why = False, f"error_{type(error).__name__}"
        if keep:
            return ()
        return (failure, FailedRule(f"{failure.name}:{why}", False)) if why else (failure,)

    return check


def _plugin(rule: CustomRule, where: str) -> Filter:
    plugin: Filter = build(rule.type, Filter, rule.args, where)  # type: ignore[type-abstract]
    if plugin.needs not in ("header", "scores"):
        raise ConfigError(
            f"{where}: {rule.type}.needs is {plugin.needs!r}; make it 'header' or 'scores'"
        )
    return plugin


# Fields. None stands for "missing", which fails every rule.


def _sides(pick: Callable[[int, int], float]) -> _Getter:
    return lambda facts, _: (
        None if facts.width is None or facts.height is None else pick(facts.width, facts.height)
    )


_FIELDS: dict[str, _Getter] = {
    "width": lambda facts, _: facts.width,
    "height": lambda facts, _: facts.height,
    "min_side": _sides(min),
    "max_side": _sides(max),
    "pixels": _sides(lambda width, height: width * height),
    "aspect_ratio": _sides(lambda width, height: max(width, height) / min(width, height)),
    "bytes": lambda facts, _: None if facts.data is None else len(facts.data),
    "format": lambda facts, _: facts.format,
    "text": lambda facts, _: facts.text,
    "text_length": lambda facts, _: None if facts.text is None else len(facts.text),
    "id": lambda facts, _: facts.id,
    "url": lambda facts, _: facts.url,
}


def _score(head: str) -> _Getter:
    return lambda _, scores: scores.get(head)


def _metadata(field: str) -> _Getter:
    """``metadata.a.b``: the key ``a.b`` if there is one, else ``b`` inside ``a``."""
    whole = field.removeprefix(_METADATA)
    path = whole.split(".")

    def get(facts: Facts, _: Mapping[str, float]) -> Any:
        at: Any = facts.metadata
        if not at:
            return None
        if whole in at:
            return at[whole]
        for name in path:
            if not isinstance(at, Mapping) or name not in at:
                return None
            at = at[name]
        return at

    return get


# Tests. Metadata from headers is always text, so where the rule names a number or a truth value,
# text that spells one counts as one.


def _test(rule: FieldRule) -> Callable[[Any], bool]:
    if rule.matches is not None:
        found = matcher(rule.matches)
        return lambda value: isinstance(value, str) and found(value)
    if rule.equals is not None:
        expected = rule.equals
        return lambda value: _same(value, expected)
    if rule.in_ is not None:
        allowed = rule.in_
        words = frozenset(allowed) if all(isinstance(item, str) for item in allowed) else None
        if words is not None:
            return lambda value: isinstance(value, str) and value in words
        return lambda value: any(_same(value, item) for item in allowed)
    low = -math.inf if rule.at_least is None else rule.at_least
    high = math.inf if rule.at_most is None else rule.at_most
    return lambda value: low <= (value if type(value) is int else _number(value)) <= high


def _same(value: Any, expected: str | int | float | bool) -> bool:
    if isinstance(expected, bool):
        return value is expected or (
            isinstance(value, str) and value.lower() == str(expected).lower()
        )
    if isinstance(expected, str):
        return isinstance(value, str) and value == expected
    return _number(value) == expected


def _number(value: Any) -> float:
    """The value as a number; NaN, which no bound and no equality lets pass, for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
