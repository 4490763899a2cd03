"""The contact sheet: every decision with its picture, as one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from streamer.demo.result import Result, Row
from streamer.demo.style import STYLE
from streamer.demo.thumbnail import thumbnail
from streamer.errors import INVALID_REASONS

CARDS = 240
"""Most cards in one section; the number of those left out is said."""
GROUP_CARDS = 24
RARE = 3
"""Reasons with no more records than this share one grid."""
_HEX_BYTES = 40

_OUTCOMES = {
    "accepted": "kept, and written to a shard",
    "duplicate": "too similar to an accepted record that came earlier",
    "filtered": "removed by a rule of the config",
    "invalid": "not usable; also in the dead-letter topic",
}


class Facts(NamedTuple):
    """What the sheet says above the pictures."""

    title: str
    model: str
    threshold: float
    rules: Mapping[str, str]
    """Filter name → its rule in words."""
    verified: str
    credits: Iterable[tuple[str, str]]
    """(picture, author and terms)"""


def write_sheet(path: Path, result: Result, facts: Facts) -> None:
    """Renders and writes; decodes every picture that it shows (about 4 ms each)."""
    path.write_text("".join(_page(result, facts)), "utf-8")


def _page(result: Result, facts: Facts) -> Iterator[str]:
    yield "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    yield f"<title>{escape(facts.title)}</title><style>{STYLE}</style></head><body>"
    yield from _head(result, facts)
    groups = result.groups()
    with_duplicates = {winner.key for winner, _ in groups}
    yield _section(
        "duplicate", "Near-duplicates, beside the record that came first",
        f"Each row begins with an accepted record; behind it are the records whose similarity to it is {facts.threshold:g} or more. "
        "Only the first is in a shard.",
        _groups(groups),
    )  # fmt: skip
    alone = [row for row in result.of("accepted") if row.key not in with_duplicates]
    yield _section(
        "accepted",
        "Accepted, and like no other",
        "Nothing that came later was as similar to them.",
        _grid(alone) if alone else "",
    )
    yield _section(
        "filtered", "Filtered", "Removed by the first rule they failed; rules on size and text run before the image is decoded.",
        "".join(_by_reason(result, "filtered", facts.rules)),
    )  # fmt: skip
    yield _section(
        "invalid", "Invalid", "Each costs nobody but itself; the raw message and the reason are in the dead-letter topic.",
        "".join(_by_reason(result, "invalid", INVALID_REASONS)),
    )  # fmt: skip
    credits = "".join(
        f"<li><b>{escape(name)}</b>: {escape(terms)}</li>" for name, terms in facts.credits
    )
    if credits:
        yield f"<section class=credits><h2>Photographs</h2><p>All from the Python package scikit-image.</p><ul>{credits}</ul></section>"
    yield "</body></html>\n"


def _head(result: Result, facts: Facts) -> Iterator[str]:
    total = len(result.rows)
    yield f"<header><h1>{escape(facts.title)}</h1><p>{escape(facts.model)} · near-duplicates from similarity {facts.threshold:g}"
    if scores := sorted({name for row in result.rows for name in row.scores}):
        yield f" · scores of the heads: {escape(', '.join(scores))}"
    yield f" · <span class=verdict>{escape(facts.verified)}</span></p>"
    yield f"<div class=tiles><div class=tile><b>{total}</b><span>records in</span></div>"
    for outcome, meaning in _OUTCOMES.items():
        yield f"<a class='tile {outcome}' href='#{outcome}'><b>{result.count(outcome)}</b><span>{outcome}</span><small>{meaning}</small></a>"
    yield "</div><div class=bar>"
    for outcome in _OUTCOMES:
        if count := result.count(outcome):
            yield f"<i class={outcome} style='flex:{count}' title='{count} {outcome}'></i>"
    yield "</div></header>"


def _section(outcome: str, title: str, says: str, content: str) -> str:
    """Nothing at all where there is nothing in it."""
    head = f"<section id={outcome} class={outcome}><h2>{escape(title)}</h2><p class=says>{escape(says)}</p>"
    return f"{head}{content}</section>" if content else ""


def _groups(groups: list[tuple[Row, list[Row]]]) -> str:
    rows: list[str] = []
    room = CARDS
    for winner, duplicates in groups:
        if room <= 0:
            break
        room -= 1 + min(len(duplicates), GROUP_CARDS)
        rows.append(_group(winner, duplicates))
    left_out = sum(1 + len(duplicates) for _, duplicates in groups[len(rows) :])
    return f"<div class=groups>{''.join(rows)}</div>{_more(left_out)}" if rows else ""


def _group(winner: Row, duplicates: list[Row]) -> str:
    cards = "".join(_card(row, f"{row.similarity:.3f}") for row in duplicates[:GROUP_CARDS])
    few = " few" if len(duplicates) <= 2 else ""  # several such groups fit beside each other
    return (
        f"<div class='group{few}'>{_card(winner, 'first')}<div class=behind>"
        f"<div class=count>{len(duplicates)} duplicate{'s' * (len(duplicates) != 1)}</div><div class=grid>{cards}</div>{_more(len(duplicates) - GROUP_CARDS)}</div></div>"
    )


def _by_reason(result: Result, outcome: str, meanings: Mapping[str, str]) -> Iterator[str]:
    rare: list[str] = []
    for reason, count in result.reasons(outcome):
        rows, meaning = result.of(outcome, reason), meanings.get(reason, "")
        if count <= RARE:
            rare += [_card(row, reason, meaning) for row in rows]
        else:
            yield f"<h3><code>{escape(reason)}</code> <b>{count}</b> <span>{escape(meaning)}</span></h3>{_grid(rows)}"
    if rare:
        yield f"<h3>For a rarer reason <b>{len(rare)}</b></h3><div class=grid>{''.join(rare)}</div>"


def _grid(rows: list[Row]) -> str:
    return f"<div class=grid>{''.join(_card(row) for row in rows[:CARDS])}</div>{_more(len(rows) - CARDS)}"


def _more(count: int) -> str:
    return f"<p class=more>and {count} more, in metadata/*.parquet</p>" if count > 0 else ""


def _card(row: Row, badge: str = "", why: str = "") -> str:
    data = row.record.picture()
    address = thumbnail(data)
    caption = row.record.caption or "no caption"
    # What a copy's caption says is beside it already; what matters is how it differs.
    text = row.record.made if row.outcome == "duplicate" and row.record.made else caption
    picture = (
        f"<img src='{address}' alt='{escape(caption, quote=True)}' loading=lazy>"
        if address
        else _bytes(data, row.nbytes)
    )
    size = (
        f"{row.width}\u00a0×\u00a0{row.height} {row.format} · {_size(row.nbytes)}"
        if row.width
        else _size(len(data))
    )
    scores = (
        ""
        if row.outcome == "duplicate"
        else "".join(
            f" · {escape(name)}\u00a0{round(value, 2) + 0.0:.2f}"
            for name, value in row.scores.items()
        )
    )
    notes = list(row.flags) if row.outcome == "accepted" else []
    if row.outcome == "accepted" and row.record.copy_of:
        notes.append("a copy, missed")
    flags = f"<em>{escape(', '.join(notes))}</em>" if notes else ""
    shown = f"<strong>{escape(badge)}</strong>" if badge else ""
    return (
        f"<figure class={row.outcome}><div class=frame>{picture}{shown}{flags}</div><figcaption>"
        f"<div class=id title='{escape(row.key)}'>{escape(row.record.id).replace('/', '/<wbr>')}</div>"
        f"<div class='text{'' if row.record.caption else ' none'}' title='{escape(caption, quote=True)}'>{escape(text)}</div>"
        f"<div class=size>{size}{scores}</div>{f'<div class=why>{escape(why)}</div>' if why else ''}</figcaption></figure>"
    )


def _bytes(data: bytes, expected: int) -> str:
    """Where there is no picture: what there is instead."""
    if not data:
        return f"<div class=raw>{'not at hand any more' if expected else 'no bytes at all'}</div>"
    start = data[:_HEX_BYTES]
    readable = all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start)
    text = escape(start.decode("ascii")) if readable else start.hex(" ")
    return f"<div class=raw>{text}{' …' if len(data) > _HEX_BYTES else ''}</div>"


def _size(nbytes: int) -> str:
    number, unit = (
        (nbytes, "B")
        if nbytes < 1_000
        else (nbytes / 1_000, "KB")
        if nbytes < 1_000_000
        else (nbytes / 1_000_000, "MB")
    )
    return f"{number:.{1 if unit == 'MB' else 0}f}\u00a0{unit}"
