"""``pkg.mod:Class`` from the working directory, and every way it can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import streamer
from streamer import cli, plugins
from streamer.errors import ConfigError, TemporaryError
from tests.integration.service import ROOT, SCRIPT
from tests.test_config import MINIMAL


class Base(ABC):
    @abstractmethod
    def keep(self) -> bool: ...

    @abstractmethod
    def drop(self) -> bool: ...


SOURCE = """
import test_plugins_base as base
from streamer.errors import TemporaryError

class Good(base.Base):
    def __init__(self, side, *, colour="red"):
        if side < 0:
            raise ValueError("side must not be negative")
        if side == 99:
            raise TemporaryError("later")
        self.side, self.colour = side, colour
    def keep(self): return True
    def drop(self): return False

class Half(base.Base):
    def keep(self): return True

class Stranger:
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with plugins in it, that is not on the import path yet."""
    (tmp_path / "my_plugins").mkdir()
    (tmp_path / "my_plugins" / "rules.py").write_text(SOURCE)
    (tmp_path / "my_plugins" / "broken.py").write_text("1 / 0\n")
    (tmp_path / "my_plugins" / "typo.py").write_text("def (:\n")
    (tmp_path / "my_plugins" / "needy.py").write_text("import something_that_is_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(sys.modules, "test_plugins_base", sys.modules[__name__])
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "my_plugins"]:
        del sys.modules[name]


def build(path: str, **args: object) -> object:
    return plugins.build(path, Base, args, "filters.3")  # type: ignore[type-abstract]


def test_a_class_of_the_working_directory_is_found_and_called_with_its_arguments(
    folder: Path,
) -> None:
    made = build("my_plugins.rules:Good", side=4, colour="blue")
    assert (made.side, made.colour) == (4, "blue")  # type: ignore[attr-defined]
    finders = list(sys.meta_path)
    build("my_plugins.rules:Good", side=5)
    assert sys.meta_path == finders
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        (
            "my_plugins.rules:Good",
            {},
            r"filters\.3\.args: .*missing a required argument: 'side'; it is called as Good\(side, \*, colour='red'\)",
        ),
        (
            "my_plugins.rules:Good",
            {"side": 1, "color": 2},
            r"filters\.3\.args: .*got an unexpected keyword argument 'color'",
        ),
        (
            "my_plugins.rules:Good",
            {"side": -1},
            r"filters\.3: .*could not be made: ValueError: side must not be negative",
        ),
        (
            "my_plugins.rules:Goood",
            {},
            r"filters\.3\.type: .*has no 'Goood'; did you mean 'Good'\?",
        ),
        (
            "my_plugins.rules:Xyzzy",
            {},
            r"has no 'Xyzzy'; classes there: TemporaryError, Good, Half, Stranger",
        ),
        (
            "my_plugins.rules:Half",
            {},
            r"filters\.3\.type: my_plugins\.rules:Half: lacks drop\(\); define what streamer\.Base declares",
        ),
        (
            "my_plugins.rules:Stranger",
            {},
            r"is not a subclass of streamer\.Base; write `class Stranger\(streamer\.Base\):`",
        ),
        ("my_plugins.rules:number", {}, r"is not a subclass of streamer\.Base"),
        (
            "my_plugins.nothing:Good",
            {},
            r"filters\.3\.type: .*no module 'my_plugins\.nothing' in .* or among the installed packages",
        ),
        ("nowhere:Good", {}, r"no module 'nowhere' in "),
        (
            "my_plugins.needy:Good",
            {},
            r"importing it failed: No module named 'something_that_is_not_installed'",
        ),
        ("my_plugins.broken:Good", {}, r"importing it failed: ZeroDivisionError"),
        ("my_plugins.typo:Good", {}, r"importing it failed: SyntaxError"),
        ("Good", {}, r"'Good' is no plugin; write it as pkg\.mod:Class"),
    ],
)
def test_every_mistake_names_place_and_fix(
    path: str, args: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(path, **args)


def test_an_error_with_an_exit_code_of_its_own_passes_through() -> None:
    with pytest.raises(TemporaryError, match="later"):
        build("my_plugins.rules:Good", side=99)


def test_required_attributes() -> None:
    class Thing:
        dim = True
        name = "x"
        size = 2.5

    plugins.require_attributes(Thing(), {"name": str, "size": (int, float)}, "here")
    with pytest.raises(
        ConfigError,
        match=r"here: Thing must set dim \(int, not True\), name \(int, not 'x'\), gone \(str or int\) in its class body",
    ):
        plugins.require_attributes(
            Thing(), {"dim": int, "name": int, "gone": (str, int), "size": float}, "here"
        )


def test_base_classes_are_importable_from_the_package() -> None:
    from streamer.judge.filters import Filter
    from streamer.model.embedder import ImageEmbedder
    from streamer.model.head import Head

    assert (streamer.Filter, streamer.Head, streamer.ImageEmbedder) == (Filter, Head, ImageEmbedder)
    with pytest.raises(AttributeError, match="has no attribute 'Heads'"):
        _ = streamer.Heads


WITH_M = (sys.executable, "-m", "streamer")


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A working directory where every module of Python and of the installed packages has a
    namesake, which leaves its name in the file ``ran`` and lets nothing go on."""
    for name in installed() - {"streamer"}:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit(99)\n"
        )
    return folder


def installed() -> set[str]:
    """What a fresh interpreter can import. This one can import more: setuptools, once it is
    imported, puts a folder of its own on the path."""
    names = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
names = sys.stdlib_module_names | packages_distributions().keys()
print(*(name for name in names if name.isidentifier() and PathFinder.find_spec(name)))
"""
    done = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def started(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    ran = folder / "ran"
    assert not ran.exists(), f"{command[1:]} ran {ran.read_text()}of the working directory"
    return done


@pytest.mark.parametrize("command", [(SCRIPT,), WITH_M], ids=["script", "-m"])
def test_no_verb_runs_what_happens_to_lie_in_the_working_directory(
    hostile: Path, command: tuple[str, ...]
) -> None:
    (hostile / "data").mkdir()
    for verb in cli.VERBS:
        assert started(hostile, *command, verb, "--help").returncode == 0
    assert started(hostile, *command, "check", "--schema").returncode == 0
    assert started(hostile, *command, "dataset", "stats", "data").returncode == 1
    assert started(hostile, *command, "dataset", "verify", "data").returncode == 1


@pytest.mark.parametrize("command", [(SCRIPT,), WITH_M], ids=["script", "-m"])
def test_a_plugin_of_the_working_directory_brings_none_of_its_neighbours(
    hostile: Path, command: tuple[str, ...]
) -> None:
    """Not even one that is named like a package which the replica imports afterwards."""
    (hostile / "lists.py").write_text(
        "from streamer import Filter\n"
        "class Listed(Filter):\n"
        "    def __init__(self): raise ValueError('mine')\n"
        "    def keep(self, row): return True\n"
    )
    filters = [{"type": "lists:Listed", "name": "listed"}]
    kafka = {"bootstrap_servers": "127.0.0.1:1", "topic": "t"}  # nobody is there
    config = {**MINIMAL, "filters": filters, "kafka": kafka, "dedup": "off"}
    (hostile / "streamer.yaml").write_text(yaml.safe_dump(config))
    done = started(hostile, *command, "check", "-c", "streamer.yaml")
    assert "lists:Listed: could not be made: ValueError: mine" in done.stdout
    assert done.returncode == 2
