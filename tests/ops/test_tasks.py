"""The task runner, run as a person runs it, on a project small enough to install in seconds and
without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "streamer"
version = "1.0"
"""
BACKEND = """
import zipfile
from pathlib import Path

METADATA = "Metadata-Version: 2.1\\nName: streamer\\nVersion: 1.0\\n" + "".join(f"Provides-Extra: {e}\\n" for e in ("cpu", "broker", "demo", "dev"))

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "streamer-1.0-py3-none-any.whl"
    with open("installs.log", "a") as log:
        log.write("installed\\n")
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("streamer.pth", str(Path.cwd()) + "\\n")
        wheel.writestr("streamer-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("streamer-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("streamer-1.0.dist-info/entry_points.txt", "[console_scripts]\\nstreamer = small:main\\n")
        wheel.writestr("streamer-1.0.dist-info/RECORD", "")
    return name
"""
SMALL = """
import os, sys
def main():
    print("small", sys.argv[1:], os.getcwd(), os.environ["VIRTUAL_ENV"])
    return 7
"""
BENCHMARK = "import sys\nif __name__ == '__main__':\n    print('spine', sys.argv[1:])"
NO_VENV = "import sys; print('ensurepip is not available'); sys.exit(1)"


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "constraints").mkdir(parents=True)
    (root / "benchmarks").mkdir()
    (root / "tests" / "faults").mkdir(parents=True)
    shutil.copy(ROOT / "tasks.py", root)
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "small.py": SMALL,
        "constraints/cpu.txt": "# none\n",
        "benchmarks/spine.py": BENCHMARK,
        "benchmarks/harness.py": "",
        "tests/faults/chaos.py": "import sys; print('chaos', sys.argv[1:]); sys.exit(3)",
    }.items():
        (root / name).write_text(text)
    return root


def run(project, *args, cwd=None, **environ):
    environ = {
        **{k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")},
        **environ,
    }
    return subprocess.run(
        [sys.executable, str(project / "tasks.py"), *args],
        cwd=cwd or project,
        env=environ,
        capture_output=True,
        text=True,
        timeout=250,
    )


def installs(project):
    log = project / "installs.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_one_command_makes_the_environment_once_and_runs_the_tool_in_it(project, tmp_path):
    done = run(project, "demo", "--images", "my photos", cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert f"small ['demo', '--images', 'my photos'] {tmp_path} {project / '.venv'}" in done.stdout
    assert "installing streamer" in done.stdout
    assert installs(project) == 1

    again = run(project, "demo")
    assert again.stdout.startswith("small ['demo']")
    assert installs(project) == 1

    (project / "constraints" / "cpu.txt").write_text("# changed\n")
    assert run(project, "bench", "spine", "--n", "3").stdout.endswith("spine ['--n', '3']\n")
    assert installs(project) == 2
    assert run(project, "bench").stdout == "spine\n"
    assert installs(project) == 2
    chaos = run(project, "chaos", "--seed", "7", cwd=tmp_path)
    assert (chaos.returncode, chaos.stdout) == (3, "chaos ['--seed', '7']\n")
    wrong = run(project, "bench", "nope")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "tasks.py: no benchmark is named 'nope'; there are spine\n",
    )

    (project / ".venv" / "bin" / "python").unlink()
    assert run(project, "setup").returncode == 0
    assert installs(project) == 3
    assert run(project, "clean").returncode == 0
    assert not (project / ".venv").exists()


def test_an_install_that_failed_is_tried_again(project):
    (project / "backend.py").write_text(
        "def build_editable(*a, **k): raise SystemExit('no room on the disk')"
    )
    failed = run(project, "setup")
    assert failed.returncode == 1
    assert "no room on the disk" in failed.stderr
    assert "tasks.py: pip could not install the packages" in failed.stderr
    (project / "backend.py").write_text(BACKEND)
    assert run(project, "setup").returncode == 0
    assert installs(project) == 1


@pytest.fixture
def without_venv(tmp_path):
    """An interpreter whose venv module does not work, as Debian's without python3-venv."""
    shadow = tmp_path / "shadow"
    (shadow / "venv").mkdir(parents=True)
    (shadow / "venv" / "__init__.py").touch()
    (shadow / "venv" / "__main__.py").write_text(NO_VENV)
    return shadow


def test_without_venv_and_pip_it_says_what_to_install(project, without_venv):
    (without_venv / "pip").mkdir()
    (without_venv / "pip" / "__init__.py").touch()
    (without_venv / "pip" / "__main__.py").write_text("import sys; sys.exit('No module named pip')")
    done = run(project, "demo", PYTHONPATH=str(without_venv))
    assert done.returncode == 1
    assert "ensurepip is not available" in done.stderr
    assert (
        f"sudo apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        in done.stderr
    )
    assert not (project / ".venv").exists()
    assert not (project / ".venv-bootstrap").exists()


def test_without_venv_pip_gets_virtualenv(project, without_venv, tmp_path):
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        str(tmp_path / "wheels"),
        "virtualenv",
    ]
    if subprocess.run(fetch, capture_output=True).returncode != 0 and "CI" not in os.environ:
        pytest.skip("the package index cannot be reached")
    done = run(
        project, "demo", PYTHONPATH=str(without_venv), PIP_FIND_LINKS=str(tmp_path / "wheels")
    )
    assert "small ['demo']" in done.stdout, done.stderr
    assert "trying virtualenv" in done.stdout
    assert not (project / ".venv-bootstrap").exists()


def test_two_first_runs_at_once_install_once(project):
    command = [sys.executable, str(project / "tasks.py"), "setup"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=250)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert installs(project) == 1


def test_wrong_names_are_told_what_there_is(project):
    done = run(project, "tets")
    assert done.returncode == 1
    assert "no task is named 'tets'; there are demo, test, check" in done.stderr
    assert run(project).returncode == 2
    assert "python3 tasks.py demo" in run(project, "--help").stdout
    unknown = run(project, "setup", STREAMER_VARIANT="tpu")
    assert "STREAMER_VARIANT=tpu: there is no constraints/tpu.txt; use cpu or gpu" in unknown.stderr
    assert not (project / ".venv").exists()
