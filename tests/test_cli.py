"""The command line: what each ending means to the shell, and that people's mistakes get one message
and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner

from streamer import cli, errors
from streamer.commands.replay import command as replay
from streamer.commands.run import command as run
from streamer.commands.run import parse_until
from tests.test_config import MINIMAL

ROOT = Path(__file__).parents[1]


def ending(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["streamer", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """``verb(body)``: makes ``streamer probe`` run ``body``."""

    def make(body: Callable[[], object]) -> None:
        @click.command()
        def command() -> None:
            body()

        monkeypatch.setitem(cli.VERBS, "probe", "For this test.")
        monkeypatch.setitem(
            sys.modules, "streamer.commands.probe", SimpleNamespace(command=command)
        )  # type: ignore[arg-type]

    return make


def _raise(error: BaseException) -> Callable[[], object]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StreamerError("it broke"), 1),
        (errors.DependencyError("it broke"), 1),
        (errors.ProtocolError("it broke"), 1),
        (errors.DeadLetterFuse("it broke"), 1),
        (errors.ConfigError("it broke"), 2),
        (errors.DatasetMismatch("it broke"), 2),
        (errors.TemporaryError("it broke"), 75),
        (errors.Fenced("it broke"), 75),
        (click.UsageError("it broke"), 2),
        (click.BadParameter("it broke"), 2),
        (click.ClickException("it broke"), 1),
    ],
)
def test_an_error_is_one_message_and_its_code(
    error: Exception,
    code: int,
    verb: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(_raise(error))
    assert ending(monkeypatch, "probe") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].endswith("it broke")
    assert "Traceback" not in err


def test_every_error_is_in_the_table_of_codes() -> None:
    assert (errors.EXIT_DONE, errors.EXIT_FAILED, errors.EXIT_USAGE, errors.EXIT_TRY_AGAIN) == (
        0,
        1,
        2,
        75,
    )
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.StreamerError):
            assert kind.exit_code in (1, 2, 75)


def test_a_verb_that_ends_well(verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    verb(lambda: print("fine"))
    assert ending(monkeypatch, "probe") == 0


def test_ctrl_c(
    verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(_raise(KeyboardInterrupt()))
    assert ending(monkeypatch, "probe") == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_process_ends_with_the_verbs_code_whatever_native_threads_do(code: int) -> None:
    """An Arrow thread that calls into Python while the interpreter is taken down aborts the
    process; here the taking down itself does."""
    script = f"""
import atexit, os, sys
atexit.register(os.abort)
from streamer import cli
def main():
    print("the end of it")
    sys.exit({code})
cli.main = main
cli.entry()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == "the end of it\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "streamer", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
    assert done.returncode == 1
    assert (
        done.stderr
        == "streamer: the output of this command could not be written: No space left on device\n"
    )


def test_a_bug_keeps_its_traceback(
    verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb(_raise(ZeroDivisionError("a bug")))
    monkeypatch.setattr(sys, "argv", ["streamer", "probe"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_words_of_a_bug_neither_steer_a_terminal_nor_forge_a_line() -> None:
    script = r"""
import threading
from streamer import cli
def main():
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    fail()
def fail():
    raise ValueError("a\x1b[2J\nok: all well")
cli.main = main
cli.entry()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if "ValueError" in line] == [r"  ValueError: a\u001b[2J"] * 2
    assert all(line.startswith("  ") and line.isprintable() for line in lines)


def test_help_names_every_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    for name, words in cli.VERBS.items():
        assert f"  {name} " in out
        assert words.split()[0] in out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.endswith(f", version {version('streamer')}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("rnu",),
        ("run", "--untl", "end"),
        ("run",),
        ("replay",),
        ("replay", "rnu"),
        ("dataset", "verify"),
        ("--no-such",),
    ],
)
def test_usage_errors(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STREAMER_CONFIG", raising=False)
    assert ending(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: " in err or "No such" in err
    assert "Traceback" not in err


def test_the_config_is_named_by_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "bacth": {}}))
    with pytest.raises(errors.ConfigError, match=r"wrong\.yaml: bacth: .*'batch'"):
        CliRunner().invoke(run, [], env={"STREAMER_CONFIG": str(path)}, catch_exceptions=False)


@pytest.mark.parametrize("until", ["soon", "2026-13-01", "start", ""])
def test_a_wrong_until(until: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(run, ["-c", str(tmp_path / "any.yaml"), "--until", until])
    assert done.exit_code == 2
    assert "neither `end` nor a time like 2026-01-31T12:00:00Z" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("end", "end"),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-02", 86400.0),
    ],
)
def test_until(text: str | None, expected: str | float | None) -> None:
    assert parse_until(text) == expected


def test_a_replay_needs_a_new_name(tmp_path: Path) -> None:
    path = tmp_path / "streamer.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    for name in ("cats-v1", "Not A Name"):
        with pytest.raises(errors.ConfigError, match="--dataset"):
            CliRunner().invoke(
                replay, ["run", "-c", str(path), "--dataset", name], catch_exceptions=False
            )
    assert CliRunner().invoke(replay, ["run", "-c", str(path)]).exit_code == 2


def test_a_person_sees_one_message_and_the_shell_the_code(tmp_path: Path) -> None:
    """The real process, from another folder: plugins are looked for there."""
    path = tmp_path / "streamer.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "kafka": {"topic": "t"}, "batch": {"size": 0}}))
    done = subprocess.run(
        [sys.executable, "-m", "streamer", "run", "-c", str(path)],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"streamer: {path}: kafka.bootstrap_servers: is missing; add it",
        f"{path}: batch.size: Input should be greater than or equal to 1 (got 0)",
    ]


def test_without_faiss_a_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert ending(monkeypatch, "check", "-c", "examples/laptop.yaml") == 2
    assert "pip install -c constraints/cpu.txt '.[cpu]'" in capsys.readouterr().err
