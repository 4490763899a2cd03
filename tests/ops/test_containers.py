"""The Dockerfile and the compose file. No image is built here: what can be checked without a Docker
daemon is."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from streamer.app import CLOSE_LIMIT_S, COMMIT_LIMIT_S, SNAPSHOT_LIMIT_S
from streamer.config import load
from streamer.replica import DRAIN_DEADLINE_S
from streamer.testing.jars import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "compose.yaml"


def hadolint(path):
    return subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def stages():
    """The instructions of each stage: [(name, argument), …]"""
    text = re.sub(
        r"\\\n",
        " ",
        "\n".join(
            line for line in DOCKERFILE.read_text().splitlines() if not line.strip().startswith("#")
        ),
    )
    found = []
    for line in text.splitlines():
        if line.strip():
            name, argument = line.split(maxsplit=1)
            if name == "FROM":
                found.append([])
            if found:
                found[-1].append((name, argument))
    return found


def test_the_dockerfile_has_no_finding(tmp_path):
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM python\nRUN cd /tmp && apt-get install curl\nENTRYPOINT streamer\n")
    assert hadolint(worse).returncode == 1


def test_the_image_runs_as_a_numeric_user_and_the_process_gets_the_signals():
    _, final = stages()
    of_final = dict(final)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", of_final["USER"])
    assert of_final["ENTRYPOINT"] == '["streamer"]'
    assert of_final["CMD"] == '["run"]'
    assert [name for name, _ in final].index("USER") < [name for name, _ in final].index(
        "ENTRYPOINT"
    )
    assert not any("apt-get" in argument or "pip install" in argument for _, argument in final)


def test_the_image_has_verified_packages_and_what_they_do_not_cover_ends_the_build():
    build, _ = stages()
    installs = [argument for _, argument in build if "pip install" in argument]
    assert len(installs) == 2
    assert '--require-hashes -r "locks/${VARIANT}.txt"' in installs[0]
    assert '--no-index --no-build-isolation ".[${VARIANT}]"' in installs[1]


def test_both_stages_are_of_one_base_image_by_its_digest():
    text = DOCKERFILE.read_text()
    froms = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert froms == ["${BASE}", "${BASE}"]
    base = r"^ARG BASE=python:[\d.]+-slim-\w+@sha256:[0-9a-f]{64}$"
    assert re.search(base, text, re.MULTILINE), "a tag alone can be moved"
    assert not re.search(r"^# *syntax=", text, re.MULTILINE), "one more image that is not pinned"


def test_the_user_is_the_one_of_the_manifests():
    pod = yaml.safe_load((ROOT / "k8s/base/statefulset.yaml").read_text())["spec"]["template"][
        "spec"
    ]
    [(_, user)] = [item for item in stages()[-1] if item[0] == "USER"]
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"


def test_what_the_image_copies_is_in_the_build_context_and_nothing_else_is():
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for stage in stages()
        for name, argument in stage
        if name == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    """What `pip install .` puts into the image; an editable install would hide a file that is
    missing there."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "streamer", source / "streamer", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("streamer-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("streamer/")}
    files = {
        str(path.relative_to(source)) for path in (source / "streamer").rglob("*") if path.is_file()
    }
    assert sorted(files - inside) == []


@pytest.fixture
def compose():
    return yaml.safe_load(COMPOSE.read_text())


def test_the_compose_file_is_valid():
    PyCompose = pytest.importorskip("compose_spec").PyCompose  # no wheel for Python 3.10 on macOS
    parsed = PyCompose.from_yaml(COMPOSE.read_text())
    parsed.validate()
    parsed.validate_configs()
    parsed.validate_volumes()
    with pytest.raises(ValueError, match="imag"):
        PyCompose.from_yaml(
            COMPOSE.read_text().replace("    image: streamer", "    imag: streamer")
        )


def test_every_name_in_the_compose_file_exists(compose):
    services = compose["services"]
    for service in services.values():
        assert service.get("depends_on", {}).keys() <= services.keys()
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= compose[
            "volumes"
        ].keys()
        assert {config["source"] for config in service.get("configs", ())} <= compose[
            "configs"
        ].keys()
    assert (ROOT / compose["configs"]["streamer"]["file"]).is_file()
    arguments = [argument.split("=")[0] for name, argument in stages()[0] if name == "ARG"]
    assert services["streamer"]["build"]["args"].keys() <= set(arguments)


def test_the_service_gets_a_config_that_loads_and_time_to_drain(compose):
    service = compose["services"]["streamer"]
    environ = {name: str(value) for name, value in service["environment"].items()}
    config = load(ROOT / compose["configs"]["streamer"]["file"], environ=environ)
    assert config.writer == "compose-0"
    assert config.output.path in {volume.split(":")[1] for volume in service["volumes"]}
    assert config.kafka.bootstrap_servers == "kafka:9092"
    assert service["ports"] == [f"127.0.0.1:{config.http.port}:{config.http.port}"]
    assert f"http://127.0.0.1:{config.http.port}/livez" in DOCKERFILE.read_text()
    assert config.kafka.topic in compose["services"]["topic"]["command"]
    [target] = [c["target"] for c in service["configs"]]
    assert f"STREAMER_CONFIG={target}" in DOCKERFILE.read_text()
    minutes = int(re.fullmatch(r"(\d+)m", service["stop_grace_period"])[1])
    assert minutes * 60 > DRAIN_DEADLINE_S + COMMIT_LIMIT_S + CLOSE_LIMIT_S + SNAPSHOT_LIMIT_S


def test_kafka_is_the_version_that_everything_is_tested_with(compose):
    images = {
        service["image"]
        for name, service in compose["services"].items()
        if name in ("kafka", "topic")
    }
    assert images == {f"apache/kafka:{KAFKA_VERSION}"}
    kafka = compose["services"]["kafka"]["environment"]
    assert kafka["KAFKA_ADVERTISED_LISTENERS"].startswith("INSIDE://kafka:9092,")
    names = {item.split(":")[0] for item in kafka["KAFKA_LISTENERS"].split(",")}
    assert names == {
        item.split(":")[0] for item in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    }
