"""``pkg.mod:Class`` in the config → an object, checked against its base class before anything is
started."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from streamer.errors import ConfigError, DependencyError
from streamer.files import file_sha256

log = logging.getLogger(__name__)
"""Of what plug-ins cannot judge or embed, perhaps for each record: the same line is let through
every half minute (`streamer.ops.logs`)."""

T = TypeVar("T")

PLUGIN_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
"""What a plugin's own code may raise at start-up; turned into ConfigError with its cause. Anything
else is not a user's mistake."""


def build(path: str, base: type[T], args: Mapping[str, Any], where: str) -> T:
    """Imports ``pkg.mod:Class``, checks it and calls ``Class(**args)``. ``where`` is the place in
    the config, like ``heads.2``.

    Raises ConfigError naming the place, what is wrong and the fix. Runs the plugin's own code,
    which may take its time.
    """
    cls = load_class(path, base, where)
    try:
        inspect.signature(cls).bind(**args)
    except TypeError as error:
        raise ConfigError(
            f"{where}.args: {path}: {error}; it is called as {cls.__name__}{_shown(cls)}"
        ) from None
    try:
        return cls(**args)
    except PLUGIN_ERRORS as error:
        raise ConfigError(
            f"{where}: {path}: could not be made: {type(error).__name__}: {error}"
        ) from error


def load_class(path: str, base: type[T], where: str) -> type[T]:
    """The class at ``pkg.mod:Class``, a concrete subclass of ``base``. From here on a module is
    looked for in the working directory, too, after everything that is installed. Raises
    ConfigError."""
    module_name, colon, class_name = path.partition(":")
    if not (colon and module_name and class_name):
        raise ConfigError(f"{where}.type: {path!r} is no plugin; write it as pkg.mod:Class")
    module = _import(module_name, f"{where}.type: {path}")
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [n for n, v in vars(module).items() if inspect.isclass(v)]
        close = difflib.get_close_matches(class_name, classes, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"classes there: {', '.join(classes) or 'none'}"
        )
        raise ConfigError(
            f"{where}.type: {path}: module {module_name!r} has no {class_name!r}; {hint}"
        )
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ConfigError(
            f"{where}.type: {path}: is not a subclass of streamer.{base.__name__}; write `class {class_name}(streamer.{base.__name__}):`"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(f"{n}()" for n in sorted(getattr(cls, "__abstractmethods__", ())))
        raise ConfigError(
            f"{where}.type: {path}: lacks {missing}; define what streamer.{base.__name__} declares"
        )
    return cls


def require_attributes(
    plugin: object, kinds: Mapping[str, type | tuple[type, ...]], where: str
) -> None:
    """Raises ConfigError naming every attribute that ``plugin`` lacks or that is of another type."""
    wrong = []
    for name, kind in kinds.items():
        value = getattr(plugin, name, None)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            wrong.append(f"{name} ({names}{'' if value is None else f', not {value!r}'})")
    if wrong:
        raise ConfigError(
            f"{where}: {type(plugin).__name__} must set {', '.join(wrong)} in its class body or __init__"
        )


def files_of(path: str, args: Mapping[str, Any]) -> dict[str, str]:
    """The files that make a plugin what it is → ``sha256:…``: that of its module, under the
    module's name, and every file that a text among ``args`` names, under that text.

    Reads them. Raises DependencyError for a file that is there and cannot be read.
    """
    module = sys.modules.get(path.partition(":")[0])
    source = getattr(module, "__file__", None)
    named = {path.partition(":")[0]: source} if source else {}
    named |= {text: text for text in _texts(args) if _is_file(text)}
    try:
        return {
            name: f"sha256:{file_sha256(Path(file).expanduser())}" for name, file in named.items()
        }
    except OSError as error:
        raise DependencyError(
            f"{path}: {error.filename} cannot be read: {error.strerror}"
        ) from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _import(name: str, where: str) -> Any:
    here = Path.cwd()
    finder = _WorkingDirectory(here)
    if finder not in sys.meta_path:
        sys.meta_path.append(finder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{where}: no module {error.name!r} in {here} or among the installed packages; install it or start there"
            ) from None
        raise ConfigError(f"{where}: importing it failed: {error}") from error
    except PLUGIN_ERRORS as error:
        raise ConfigError(
            f"{where}: importing it failed: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class _WorkingDirectory(MetaPathFinder):
    """Finds what nobody else does. On ``sys.path``, even last, a file there would still take the
    place of a package without an ``__init__`` (``nvidia``, ``google``)."""

    folder: Path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if path is not None else PathFinder.find_spec(fullname, [str(self.folder)])


def _shown(cls: type) -> str:
    return str(inspect.signature(cls)).split(" -> ")[0]
