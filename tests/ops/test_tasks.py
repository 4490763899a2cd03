"""The task runner, run as a person runs it, on a project small enough to install in seconds and
without a network."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
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
UV = """#!python
import re, sys
from pathlib import Path
given = [argument.partition("=") for argument in sys.argv[1:]]
value = {name: value for name, _, value in given}
extras = [value for name, _, value in given if name == "--extra"]
output = Path(value["--output-file"])
source = Path(sys.argv[3])
if source.name == "pyproject.toml":
    wanted = ["numpy", *(name for name in ("faiss-cpu", "faiss-gpu") if name[-3:] in extras)]
    wanted += ["pytest"] if "dev" in extras else []
else:
    wanted = [source.read_text()]
known = Path(value["--constraint"]) if "--constraint" in value else output
with output.open("r+" if output.exists() else "w+") as file:
    versions = dict(re.findall("^([a-z-]+)==([0-9]+)", known.read_text(), re.M))
    file.truncate(0), file.seek(0)
    for name in wanted:
        version = "9" if "--upgrade" in value else versions[name]
        for marker in ("", " ; sys_platform == 'win32'", " ; x == '1' or sys_platform == 'win32'"):
            file.write(f"{name}=={version}{marker}")
            if "--generate-hashes" in value:
                file.write(f" \\\\\\n    --hash=sha256:{name}1 \\\\\\n    --hash=sha256:{name}2")
            file.write("\\n")
"""
NO_VENV = "import sys; print('ensurepip is not available'); sys.exit(1)"


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for folder in ("benchmarks", "constraints", "locks"):
        (root / folder).mkdir(parents=True)
    (root / "tests" / "faults").mkdir(parents=True)
    shutil.copy(ROOT / "tasks.py", root)
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "small.py": SMALL,
        "locks/cpu.txt": "# none\n",
        "locks/dev.txt": "# none\n",
        "benchmarks/spine.py": BENCHMARK,
        "benchmarks/harness.py": "",
        "tests/faults/chaos.py": "import sys; print('chaos', sys.argv[1:]); sys.exit(3)",
    }.items():
        (root / name).write_text(text)
    shutil.copy(ROOT / "locks" / "virtualenv.txt", root / "locks")
    return root


def wheel(folder, name, version="1", files=None):
    """A package in a folder that pip can be pointed to; gives the line for a lock."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        **(files or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            entry = zipfile.ZipInfo(inside)  # without the time of day: the same bytes each time
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def offline(wheels):
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}


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

    (project / "locks" / "dev.txt").write_text("# changed\n")
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
    assert "tasks.py: pip could not install streamer" in failed.stderr
    (project / "backend.py").write_text(BACKEND)
    assert run(project, "setup").returncode == 0
    assert installs(project) == 1


def test_a_package_whose_file_is_not_the_locked_one_is_not_installed(project, tmp_path):
    line = wheel(tmp_path / "wheels", "needed")
    (project / "locks" / "cpu.txt").write_text(line)
    wheel(tmp_path / "wheels", "needed", files={"needed.py": "'other code, same version'"})
    failed = run(project, "setup", **offline(tmp_path / "wheels"))
    assert failed.returncode == 1
    assert "DO NOT MATCH THE HASHES" in failed.stderr
    assert "tasks.py: pip could not install the packages" in failed.stderr
    assert installs(project) == 0

    assert wheel(tmp_path / "wheels", "needed") == line
    assert run(project, "setup", **offline(tmp_path / "wheels")).returncode == 0
    [there] = (project / ".venv").rglob("needed.py")
    assert there.read_text() == ""


def test_what_is_needed_and_not_locked_is_not_installed(project, tmp_path):
    wheel(tmp_path / "wheels", "forgotten")
    more = BACKEND.replace("Version: 1.0\\n", "Version: 1.0\\nRequires-Dist: forgotten\\n", 1)
    (project / "backend.py").write_text(more)
    failed = run(project, "setup", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert failed.returncode == 1
    assert "No matching distribution found for forgotten" in failed.stderr
    assert "python3 tasks.py lock" in failed.stderr
    assert not list((project / ".venv").rglob("forgotten.py"))


def test_lock_writes_one_choice_of_versions_with_and_without_hashes(project, tmp_path):
    line = wheel(tmp_path / "wheels", "uv", "7", {"uv-7.data/scripts/uv": UV})
    (project / "locks" / "uv.txt").write_text(line)
    (project / "locks" / "virtualenv.txt").write_text("virtualenv==5\n")
    (project / "constraints" / "cpu.txt").write_text("numpy==2\nfaiss-cpu==3\npytest==4\n")
    (project / "constraints" / "gpu.txt").write_text("numpy==2\nfaiss-gpu==3\npytest==4\n")
    (project / "backend.py").write_text("def build_editable(*a, **k): raise SystemExit('no lock')")

    done = run(project, "lock", **offline(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr
    assert pins(project / "constraints" / "cpu.txt") == ["numpy==2", "faiss-cpu==3", "pytest==4"]
    assert pins(project / "constraints" / "gpu.txt") == ["numpy==2", "faiss-gpu==3", "pytest==4"]
    assert pins(project / "locks" / "cpu.txt") == ["numpy==2", "faiss-cpu==3"]
    assert pins(project / "locks" / "gpu.txt") == ["numpy==2", "faiss-gpu==3"]
    assert pins(project / "locks" / "dev.txt") == ["pytest==4"]
    assert pins(project / "locks" / "virtualenv.txt") == ["virtualenv==5"]
    assert pins(project / "locks" / "uv.txt") == ["uv==7"]
    text = (project / "locks" / "dev.txt").read_text()
    assert text.endswith(
        "--only-binary :all:\n"
        "pytest==4 \\\n    --hash=sha256:pytest1 \\\n    --hash=sha256:pytest2\n"
        "pytest==4 ; x == '1' or sys_platform == 'win32' \\\n"
        "    --hash=sha256:pytest1 \\\n    --hash=sha256:pytest2\n"
    )
    assert "hash" not in "".join(
        line
        for line in (project / "constraints" / "cpu.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    assert not (project / ".venv-bootstrap").exists()

    (project / "locks" / "uv.txt").write_text(line)
    done = run(project, "lock", "--upgrade", **offline(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr
    assert pins(project / "constraints" / "gpu.txt") == ["numpy==9", "faiss-gpu==9", "pytest==9"]
    assert pins(project / "locks" / "cpu.txt") == ["numpy==9", "faiss-cpu==9"]
    assert pins(project / "locks" / "uv.txt") == ["uv==9"]


def pins(path):
    """Those that need no marker."""
    lines = [line.removesuffix(" \\") for line in path.read_text().splitlines()]
    return [line for line in lines if "==" in line and " ; " not in line and line[0] != "#"]


def test_a_lock_that_fails_changes_no_file(project, tmp_path):
    broken = "#!python\nimport sys\nsys.exit('no solution')\n"
    line = wheel(tmp_path / "wheels", "uv", "7", {"uv-7.data/scripts/uv": broken})
    (project / "locks" / "uv.txt").write_text(line)
    for variant in ("cpu", "gpu"):
        (project / "constraints" / f"{variant}.txt").write_text("numpy==2\n")
    before = {p: p.read_bytes() for f in ("locks", "constraints") for p in (project / f).iterdir()}
    failed = run(project, "lock", **offline(tmp_path / "wheels"))
    assert failed.returncode == 1
    assert "no solution" in failed.stderr
    assert "tasks.py: uv found no versions that go together" in failed.stderr
    assert {p: p.read_bytes() for p in before} == before


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
        "--require-hashes",
        "-r",
        str(project / "locks" / "virtualenv.txt"),
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
    assert "STREAMER_VARIANT=tpu: use cpu or gpu" in unknown.stderr
    assert not (project / ".venv").exists()
