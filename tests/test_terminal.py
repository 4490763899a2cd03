"""What leaves as text: one line stays one line, nothing steers a terminal, no secret is told."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import console
from streamer.console import Console, new_table, reading
from streamer.errors import InvalidRecord
from streamer.redact import digest, hide, mask, redacted
from streamer.terminal import indented, shown

ANY = st.text(st.characters(exclude_categories=(), exclude_characters="@="))
"""Without what makes a URL with a secret in it."""


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Größe 大小 ✓ ‘quoted’ C:\\new", "Größe 大小 ✓ ‘quoted’ C:\\new"),
        ("\x1b[31m", r"\u001b[31m"),
        ("\x9b2J\x7f\x07", r"\u009b2J\u007f\u0007"),
        ("a\r\nb\tc\x85d\u2028e", r"a\r\nb\tc\u0085d\u2028e"),
        ("\u202egpj.exe\u2069\u200f", r"\u202egpj.exe\u2069\u200f"),
        ("\ud800 \udcff \U000e0041", r"\ud800 \udcff \udb40\udc41"),
    ],
)
def test_what_is_no_printable_character_is_written_as_json_does(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert shown(safe) == safe


@given(ANY)
def test_whatever_it_is(text: str) -> None:
    assert shown(text).isprintable()
    shown(text).encode()
    as_json = json.dumps(text, ensure_ascii=False)
    assert json.loads(shown(as_json)) == json.loads(json.dumps(text))
    assert all(line.startswith("  ") for line in indented(text).split("\n") if line)


def test_a_table_takes_texts_as_they_are() -> None:
    out = io.StringIO()
    table = new_table("[bold]word", "n\x1b")
    table.add_row("a\n[/red] :smile:\x1b[2J", "1")
    Console(file=out).print(table)
    Console(file=out).print("[red]b\nc")
    said = out.getvalue()
    for text in ("[bold]word", r"n\u001b", r"a\n[/red] :smile:\u001b[2J", "[red]b\\nc\n"):
        assert text in said


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at https://anna:hunter2@host/x.", "at https://***@host/x."),
        ("https://ghp_token@host", "https://***@host"),
        ("s3://AKIA:se/cr/et@bucket/x", "s3://***@bucket/x"),
        ("'gs:/u:pw@b' (s3:u:pw@b)", "'gs:/***@b' (s3:***@b)"),
        ("https://u:p@ss@host/a@b", "https://***@host/a@b"),
        ("hf://ORG/REPO/FILE@main", "hf://ORG/REPO/FILE@main"),
        ("http://127.0.0.1:9000/bucket/a@2x.png", "http://127.0.0.1:9000/bucket/a@2x.png"),
        ("x?region=eu&secret_key=s&X-Amz-Signature=ab%2F#f", "x?region=eu&secret_key=***&X-Amz-Signature=***#f"),
        ("streamer@0.1.0, 12:00:31 INFO a@b", "streamer@0.1.0, 12:00:31 INFO a@b"),
    ],
)  # fmt: skip
def test_secrets_of_urls(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert json.loads(mask(json.dumps([text]))) == [masked]
    assert redacted({"weights": text}) == {"weights": masked}


def test_the_values_of_secret_keys_are_hidden_wherever_they_come_up() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMIIabc'\"\\\n-----END PRIVATE KEY-----\n"
    hide({
        "kafka": {"client": {"ssl.key.pem": pem, "sasl.username": "anna", "enable.ssl": "true", "sasl.password": "123"}},
        "heads": [{"args": {"api_token": "tok-1", "credentials": {"login": ["login-1"]}, "tokenizer": "bpe-1"}}],
        "output": {"path": "s3://AKIA:k%2Fey@bucket"},
    })  # fmt: skip
    for text in (pem, repr(pem), json.dumps(pem), "tok-1", "login-1", "k/ey", "k%2Fey"):
        assert mask(f"<{text}>").strip("<>'\"") == "***"
    plain = "anna 123 bpe-1 true"
    assert mask(plain) == plain
    assert InvalidRecord("corrupt", "with tok-1").detail == "with ***"


def test_what_stands_in_a_secrets_place_shows_that_it_changed() -> None:
    def told(token: str) -> object:
        return redacted({"a": [{"token": token}], "w": f"https://{token}@h", "n": 1}, digest)

    assert told("one") == told("one") != told("two")
    assert "one" not in json.dumps(told("one"))


def test_what_takes_long_says_so_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((0.0, 10.0, 40.0, 50.0, 100.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with reading("checking", 100_000_000) as advance:
        for _ in range(4):
            advance(10_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "checking: 20 MB of 100 MB, 500 KB/s, 3 min left",
        "checking: 40 MB of 100 MB, 400 KB/s, 2 min left",
    ]


def test_a_person_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with reading("checking", 100_000_000) as advance:
        advance(50_000_000)
    assert "checking" in shown.getvalue()
    assert "50.0/100.0 MB" in shown.getvalue()
