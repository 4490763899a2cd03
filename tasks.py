#!/usr/bin/env python3
"""Every task of this repository, on any machine with Python 3.10 or newer and nothing else.

    python3 tasks.py demo [ARGS]     the whole line on this machine, with real photographs (arguments go to `streamer demo`)
    python3 tasks.py test [ARGS]     the tests, on up to four cores; with ARGS, which go to pytest, on one

    python3 tasks.py check           everything that must pass before a change lands: lint, types, imports, test
    python3 tasks.py lint            format and lint rules, without changing a file
    python3 tasks.py format          the same, changing the files
    python3 tasks.py types           mypy --strict
    python3 tasks.py imports         which module may import which
    python3 tasks.py bench NAME …    one script of benchmarks/; without a name: their list
    python3 tasks.py chaos [ARGS]    replicas on a Kafka cluster under random faults: --minutes 30 --faults 100 --seed N
    python3 tasks.py killpoints      a replica dies at every named step, and again in the recovery: half an hour
    python3 tasks.py setup           only the environment
    python3 tasks.py lock [ARGS]     writes constraints/ and locks/ anew, with the versions they have;
                                     newer ones with ARGS: --upgrade, or --upgrade-package NAME
    python3 tasks.py clean           removes the environment and every cache of this folder

The first task makes the environment `.venv` beside this file, with the versions pinned in locks/,
each verified by its sha256; it is made again only when pyproject.toml, the locks or the interpreter
change. pip is set up by its usual files and variables; what `lock` uses, uv, by its own.
STREAMER_VARIANT=gpu installs the GPU packages instead of the CPU ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "streamer-inputs"
BOOTSTRAP = ROOT / ".venv-bootstrap"
CONSTRAINTS = ROOT / "constraints"
LOCKS = ROOT / "locks"
VARIANTS = ("cpu", "gpu")
DEVELOPMENT = ("broker", "demo", "dev")
"""The extras that `.venv` has beside its variant."""
TOOLS = ("uv", "virtualenv")
"""Packages that only this file uses."""
PINS = """\
# Exact versions of every package, for Python 3.10 and newer on Linux and macOS
# (extras {0}, broker, demo and dev).
# A constraint installs nothing by itself: pip install -c constraints/{0}.txt "streamer[{0}]"
# locks/ has the same versions with their hashes. Made by: python3 tasks.py lock"""
HASHES = """\
# {0}, by sha256: pip install --require-hashes -r FILE
# Wheels only: what is built at an install would bring build tools that nothing verifies.
# Made by: python3 tasks.py lock
--only-binary :all:"""
CACHES = (
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".import_linter_cache",
    "build",
    "dist",
    "streamer.egg-info",
)
OLDEST = (3, 10)
IN_PARALLEL = ("--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile")
"""Much of a test's time is waiting for a broker. Each process has a broker of its own, and needs
about 3 GB."""


class Failed(Exception):
    """What a person must do; printed without a traceback."""


def main(args: list[str]) -> int:
    if sys.version_info < OLDEST:
        raise Failed(
            f"this is Python {sys.version.split()[0]} ({sys.executable}); run it with Python 3.10 or newer: python3.12 tasks.py …"
        )
    if not args or args[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return 0 if args else 2
    name, rest = args[0], args[1:]
    if name in WITHOUT_ENVIRONMENT:
        return WITHOUT_ENVIRONMENT[name](rest)
    task = TASKS.get(name)
    if task is None:
        known = ", ".join([*TASKS, *WITHOUT_ENVIRONMENT])
        raise Failed(f"no task is named {name!r}; there are {known}")
    set_up()
    return task(rest)


# The environment


def set_up() -> None:
    """Makes or renews .venv when its inputs changed. Two tasks started together wait for each
    other."""
    variant = os.environ.get("STREAMER_VARIANT", "cpu")
    if variant not in VARIANTS:
        raise Failed(f"STREAMER_VARIANT={variant}: use {' or '.join(VARIANTS)}")
    locks = (LOCKS / f"{variant}.txt", LOCKS / "dev.txt")
    with Path(__file__).open("rb") as file:
        exclusive(file)
        inputs = digest(variant, *locks)
        if STAMP.is_file() and STAMP.read_text() == inputs and PYTHON.exists():
            return
        began = time.monotonic()
        if not works(PYTHON):
            make_venv()
        STAMP.unlink(missing_ok=True)
        say(
            "installing streamer and its packages into .venv; the first time this takes minutes and several GB (PyTorch)"
        )
        install(variant, *locks)
        STAMP.write_text(inputs)
        say(f"the environment is ready after {time.monotonic() - began:.0f} s")


def digest(variant: str, *locks: Path) -> str:
    """Of everything that the environment follows from."""
    sha = hashlib.sha256(f"{variant} {sys.version} {sys.platform} {ROOT}".encode())
    for path in (ROOT / "pyproject.toml", *locks):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def exclusive(file: BinaryIO) -> None:
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX)
    except ImportError:
        raise Failed("streamer runs on Linux and macOS; on Windows use WSL") from None
    except OSError:
        pass  # a file system without locks: two set-ups at once are then the caller's affair


def works(python: Path) -> bool:
    """Whether there is an environment that runs, and of this interpreter's version."""
    if not python.exists():
        return False
    code = "import sys, pip; print(sys.version)"
    done = subprocess.run(
        [str(python), "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.returncode == 0 and done.stdout.strip() == sys.version.strip()


def make_venv() -> None:
    say(f"making .venv with Python {sys.version.split()[0]}")
    shutil.rmtree(str(VENV), ignore_errors=True)
    command = [sys.executable, "-m", "venv", str(VENV)]
    tried = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if tried.returncode == 0 and works(PYTHON):
        return
    shutil.rmtree(str(VENV), ignore_errors=True)  # Debian's venv leaves half of one behind
    if with_virtualenv():
        return
    shutil.rmtree(str(VENV), ignore_errors=True)
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    raise Failed(
        f"this Python ({sys.executable}) cannot make a virtual environment:\n{tried.stdout.strip()}\n"
        f"Install its venv package (Debian, Ubuntu: sudo apt-get install python{minor}-venv), or use another Python, then start again."
    )


def with_virtualenv() -> bool:
    """The way out where `venv` is missing but pip is there."""
    say("this Python has no working venv; trying virtualenv")
    with bootstrapped("virtualenv", Path(sys.executable)) as there:
        if not there:
            return False
        environ = {**os.environ, "PYTHONPATH": str(BOOTSTRAP)}
        made = subprocess.run(
            [sys.executable, "-m", "virtualenv", "--quiet", str(VENV)], env=environ, check=False
        )
        return made.returncode == 0 and works(PYTHON)


@contextmanager
def bootstrapped(name: str, python: Path) -> Iterator[bool]:
    """A tool that only this file uses, for as long as it takes: it is in no environment."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(BOOTSTRAP), "--require-hashes", "-r", str(LOCKS / f"{name}.txt")]
    try:
        yield subprocess.run(command, check=False).returncode == 0
    finally:
        shutil.rmtree(str(BOOTSTRAP), ignore_errors=True)


def install(variant: str, *locks: Path) -> None:
    """The locked packages first. Then streamer itself, from this folder alone: the locks hold all
    that it needs, setuptools to build it included, and what is not in them is not installed."""
    if pip("install", "--require-hashes", *(f"--requirement={path}" for path in locks)) != 0:
        raise Failed(
            "pip could not install the packages (its message is above). Run the same command again to go on where it stopped."
        )
    streamer = f".[{','.join((variant, *DEVELOPMENT))}]"
    if pip("--isolated", "install", "--no-index", "--no-build-isolation", "-e", streamer) != 0:
        raise Failed(
            "pip could not install streamer (its message is above). "
            "If it misses a package that is new in pyproject.toml: python3 tasks.py lock"
        )


def pip(*args: str) -> int:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *args]
    if sys.stdout.isatty():
        return subprocess.run(command, cwd=str(ROOT), check=False).returncode
    return quietly(command)


def quietly(command: list[str]) -> int:
    """pip without its thousand lines, and a sign of life every half minute."""
    began = time.monotonic()
    with subprocess.Popen([*command, "--quiet"], cwd=str(ROOT)) as pip:
        while True:
            try:
                return pip.wait(timeout=30)
            except subprocess.TimeoutExpired:
                say(f"still installing, {time.monotonic() - began:.0f} s")


# The tasks


def demo(args: list[str]) -> int:
    become(str(VENV / "bin" / "streamer"), "demo", *args)


def test(args: list[str]) -> int:
    os.chdir(str(ROOT))  # where pytest finds its settings; the demo's paths are the caller's
    become(str(PYTHON), "-m", "pytest", *(args or IN_PARALLEL))


def lint(args: list[str]) -> int:
    return max(module("ruff", "format", "--check", *args), module("ruff", "check", *args))


def format_(args: list[str]) -> int:
    return max(module("ruff", "check", "--fix", *args), module("ruff", "format", *args))


def types(args: list[str]) -> int:
    return module("mypy", *args)


def imports(args: list[str]) -> int:
    return run(str(VENV / "bin" / "lint-imports"), *args)


def bench(args: list[str]) -> int:
    scripts = [
        path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")
    ]
    names = sorted(path.stem for path in scripts)
    if not args:
        print("\n".join(names))
        return 0
    if args[0] not in names:
        raise Failed(f"no benchmark is named {args[0]!r}; there are {', '.join(names)}")
    os.chdir(str(ROOT))  # where `benchmarks` can be imported
    become(str(PYTHON), "-m", f"benchmarks.{args[0]}", *args[1:])


def chaos(args: list[str]) -> int:
    os.chdir(str(ROOT))  # where `tests` can be imported
    become(str(PYTHON), "-m", "tests.faults.chaos", *args)


def killpoints(args: list[str]) -> int:
    os.chdir(str(ROOT))
    os.environ["STREAMER_LONG"] = "1"
    become(str(PYTHON), "-m", "pytest", "tests/faults/test_killpoints.py", *args)


def check(args: list[str]) -> int:
    """All of them, also after one has failed: a person wants the whole list."""
    steps: dict[str, Callable[[], int]] = {
        "lint": lambda: lint([]),
        "types": lambda: types([]),
        "imports": lambda: imports([]),
        "test": lambda: module("pytest", *IN_PARALLEL, *args),
    }
    failed = []
    for name, step in steps.items():
        say(f"── {name}")
        began = time.monotonic()
        code = step()
        say(
            f"── {name}: {'passed' if code == 0 else f'FAILED (exit {code})'} after {time.monotonic() - began:.0f} s"
        )
        if code != 0:
            failed.append(name)
    say(f"FAILED: {', '.join(failed)}" if failed else "all of it passed")
    return 1 if failed else 0


def lock(args: list[str]) -> int:
    """Works without a complete environment: what is new in pyproject.toml has to be locked before
    it can be installed."""
    with Path(__file__).open("rb") as file, tempfile.TemporaryDirectory() as scratch:
        exclusive(file)
        if not works(PYTHON):
            make_venv()
        with bootstrapped("uv", PYTHON) as there:
            if not there:
                raise Failed("pip could not install uv (its message is above)")
            files = locked(Path(scratch), args)
    for path, text in files.items():
        path.write_text(text, "utf-8")
        say(f"wrote {path.relative_to(ROOT)}")
    return 0


def locked(scratch: Path, args: list[str]) -> dict[Path, str]:
    """The files and their texts. All versions are chosen at once, so that the files agree; then
    each file is a part of them."""
    say("choosing versions and collecting hashes; this takes some minutes")
    source = ROOT / "pyproject.toml"
    chosen = scratch / "chosen.txt"
    chosen.write_text("".join((CONSTRAINTS / f"{v}.txt").read_text("utf-8") for v in VARIANTS))
    resolved(source, chosen, *(f"--extra={name}" for name in VARIANTS + DEVELOPMENT), *args)

    def part(*extras: str) -> dict[str, str]:
        options = [f"--constraint={chosen}", *(f"--extra={name}" for name in extras)]
        return resolved(source, scratch / "-".join(extras), "--generate-hashes", *options)

    files = {}
    to_run = {variant: part(variant) for variant in VARIANTS}
    for variant, packages in to_run.items():
        pins = part(variant, *DEVELOPMENT)
        files[CONSTRAINTS / f"{variant}.txt"] = "\n".join((PINS.format(variant), *pins, ""))
        files[LOCKS / f"{variant}.txt"] = hashed(f"What streamer[{variant}] needs", packages)
    more = {pin: text for pin, text in part(*DEVELOPMENT).items() if pin not in to_run["cpu"]}
    what = f"What the extras {', '.join(DEVELOPMENT)} need beside cpu.txt or gpu.txt"
    files[LOCKS / "dev.txt"] = hashed(what, more)
    for name in TOOLS:
        wanted, output, path = scratch / f"{name}.in", scratch / name, LOCKS / f"{name}.txt"
        wanted.write_text(name)
        shutil.copyfile(path, output)
        packages = resolved(wanted, output, "--generate-hashes", *args)
        files[path] = hashed(f"The tool {name}, for tasks.py", packages)
    return files


def resolved(source: Path, output: Path, *options: str) -> dict[str, str]:
    """Pin → the pin with its hashes. Versions that ``output`` has are kept."""
    command = [str(BOOTSTRAP / "bin" / "uv"), "pip", "compile", str(source), "--quiet"]
    command += ["--universal", f"--python-version={OLDEST[0]}.{OLDEST[1]}", "--only-binary=:all:"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", f"--output-file={output}"]
    done = subprocess.run(
        [*command, *options], cwd=str(ROOT), stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise Failed("uv found no versions that go together (its message is above)")
    texts = re.findall(r"^\w.*(?:\n .*)*", output.read_text("utf-8"), re.MULTILINE)
    packages = {text.partition(" \\\n")[0]: text for text in texts}
    return {pin: text for pin, text in packages.items() if not elsewhere(pin)}


def elsewhere(pin: str) -> bool:
    """Whether no platform of this file needs it."""
    marker = pin.partition(" ; ")[2]
    return " or " not in marker and bool(re.search("== '(win32|emscripten)'", marker))


def hashed(what: str, packages: dict[str, str]) -> str:
    return "\n".join((HASHES.format(what), *packages.values(), ""))


def clean() -> int:
    for path in (VENV, *(ROOT / name for name in CACHES), *ROOT.rglob("__pycache__")):
        shutil.rmtree(str(path), ignore_errors=True)
    return 0


def module(name: str, *args: str) -> int:
    return run(str(PYTHON), "-m", name, *args)


def run(*command: str) -> int:
    return subprocess.run(command, cwd=str(ROOT), env=environment(), check=False).returncode


def become(*command: str) -> NoReturn:
    """Replaces this process, so that signals and the exit code are the tool's own."""
    sys.stdout.flush()
    os.execve(command[0], command, environment())


def environment() -> dict[str, str]:
    """As if `.venv` were activated: tools that start other tools find the right ones."""
    return {
        **os.environ,
        "VIRTUAL_ENV": str(VENV),
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def say(message: str) -> None:
    print(f"[tasks] {message}", flush=True)


TASKS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "test": test,
    "check": check,
    "lint": lint,
    "format": format_,
    "types": types,
    "imports": imports,
    "bench": bench,
    "chaos": chaos,
    "killpoints": killpoints,
    "setup": lambda args: 0,
}
WITHOUT_ENVIRONMENT: dict[str, Callable[[list[str]], int]] = {
    "lock": lock,
    "clean": lambda args: clean(),
}

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as error:
        sys.exit(f"tasks.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
