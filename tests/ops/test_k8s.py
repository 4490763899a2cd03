"""The manifests as kustomize builds them: valid Kubernetes, restricted, and every name in them
exists."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from streamer import replica
from streamer.app import CLOSE_LIMIT_S, COMMIT_LIMIT_S, HEARTBEAT_S, SNAPSHOT_LIMIT_S
from streamer.cli import VERBS
from streamer.config import load
from streamer.replica import DRAIN_DEADLINE_S

K8S = Path(__file__).parents[2] / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"
VERSIONS = ("1.30", "1.37")


def build(folder):
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def base():
    return build(K8S / "base")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    overlay = tmp_path_factory.mktemp("overlay")
    k8s = os.path.relpath(K8S, overlay.resolve())
    (overlay / "kustomization.yaml").write_text(
        f"resources: [{k8s}/base]\ncomponents: [{k8s}/components/gpu]\nnamespace: curation\n"
    )
    return build(overlay)


def the(objects, kind, name="streamer"):
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name)]
    return found


def pod(objects):
    return the(objects, "StatefulSet")["spec"]["template"]


def container(objects):
    [one] = pod(objects)["spec"]["containers"]
    return one


def environment(objects):
    return {item["name"]: item for item in container(objects)["env"]}


def config_of(objects, tmp_path, environ):
    """What the pod would load."""
    volumes = {v["name"]: v for v in pod(objects)["spec"]["volumes"]}
    name = volumes["config"]["configMap"]["name"]
    [config_map] = [
        o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == name
    ]
    path = tmp_path / "streamer.yaml"
    path.write_text(config_map["data"]["streamer.yaml"])
    return load(path, environ=environ)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", ["base", "gpu"])
def test_every_object_is_valid_to_the_letter(request, which, version):
    objects = request.getfixturevalue(which)
    assert {o["kind"] for o in objects} == {
        "StatefulSet",
        "Service",
        "ConfigMap",
        "PodDisruptionBudget",
    }
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_validation_would_see_a_typo(base):
    wrong = json.loads(json.dumps(the(base, "StatefulSet")))
    wrong["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_config_loads_and_the_ordinal_is_the_writer(base, tmp_path):
    assert (
        environment(base)["STREAMER__WRITER"]["valueFrom"]["fieldRef"]["fieldPath"]
        == "metadata.name"
    )
    config = config_of(base, tmp_path, {"STREAMER__WRITER": "streamer-1"})
    assert config.writer == "streamer-1"
    assert config.transactional_id == "streamer.curated-v1.streamer-1"
    mount = {m["name"]: m["mountPath"] for m in container(base)["volumeMounts"]}["config"]
    assert environment(base)["STREAMER_CONFIG"]["value"] == f"{mount}/streamer.yaml"


def test_a_changed_config_changes_the_pod_template(base):
    name = {v["name"]: v for v in pod(base)["spec"]["volumes"]}["config"]["configMap"]["name"]
    assert re.fullmatch(r"streamer-[a-z0-9]{10}", name)
    assert name in {o["metadata"]["name"] for o in base if o["kind"] == "ConfigMap"}


def test_ports_and_probes_are_those_of_the_config_and_the_server(base, tmp_path):
    config = config_of(base, tmp_path, {})
    one = container(base)
    assert {p["name"]: p["containerPort"] for p in one["ports"]} == {"http": config.http.port}
    annotations = pod(base)["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(config.http.port)
    assert annotations["prometheus.io/path"] == "/metrics"
    assert annotations["prometheus.io/scrape"] == "true"
    [service_port] = the(base, "Service")["spec"]["ports"]
    assert service_port["targetPort"] == "http"
    paths = {
        name: one[name]["httpGet"]["path"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {one[name]["httpGet"]["port"] for name in paths} == {"http"}
    startup = one["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_times_fit_together(base):
    grace = pod(base)["spec"]["terminationGracePeriodSeconds"]
    assert grace > replica.DRAIN_DEADLINE_S + COMMIT_LIMIT_S + CLOSE_LIMIT_S + SNAPSHOT_LIMIT_S
    assert (
        COMMIT_LIMIT_S < HEARTBEAT_S
    )  # the watchdog, not the liveness probe, ends a commit that hangs


def test_the_command_exists(base):
    assert container(base)["args"] == ["run"]
    assert "run" in VERBS
    assert "command" not in container(base)  # the image's entry point: streamer


def test_selectors_select_the_pods_and_nothing_else(base):
    labels = pod(base)["metadata"]["labels"]
    selected = the(base, "StatefulSet")["spec"]["selector"]["matchLabels"]
    assert selected
    assert selected.items() <= labels.items()
    assert the(base, "Service")["spec"]["selector"] == selected
    assert the(base, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selected
    spread = pod(base)["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    assert spread == selected
    assert the(base, "Service")["spec"]["clusterIP"] == "None"
    assert (
        the(base, "StatefulSet")["spec"]["serviceName"] == the(base, "Service")["metadata"]["name"]
    )
    assert the(base, "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


@pytest.mark.parametrize("which", ["base", "gpu"])
def test_the_pod_is_restricted(request, which):
    """Kubernetes' Pod Security Standard `restricted`, and a root file system that cannot be
    written."""
    objects = request.getfixturevalue(which)
    spec, one = pod(objects)["spec"], container(objects)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 10000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {key for v in spec["volumes"] for key in v} <= {"name", "configMap", "emptyDir"}


def test_what_is_written_goes_to_a_volume_that_can_be_written(base):
    mounts = {m["name"]: m for m in container(base)["volumeMounts"]}
    volumes = {v["name"]: v for v in pod(base)["spec"]["volumes"]}
    assert mounts.keys() == volumes.keys()
    writable = {
        m["mountPath"]
        for m in mounts.values()
        if not m.get("readOnly") and "emptyDir" in volumes[m["name"]]
    }
    assert "/tmp" in writable
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        value = environment(base)[name]["value"]
        assert any(value == path or value.startswith(f"{path}/") for path in writable), name


def test_every_setting_in_the_environment_is_one_of_the_config(base, gpu, tmp_path):
    for objects in (base, gpu):
        names = [name for name in environment(objects) if name.startswith("STREAMER__")]
        environ = {name: environment(objects)[name].get("value", "streamer-0") for name in names}
        config_of(objects, tmp_path, environ)  # an unknown one raises


def test_a_batch_on_cpus_is_over_before_a_shutdowns_deadline(base, tmp_path):
    """Two batches may be on the device, at 2.5 CPU seconds an image."""
    config = config_of(base, tmp_path, {})
    assert (
        2 * config.batch.size * 2.5 / float(container(base)["resources"]["requests"]["cpu"])
        < DRAIN_DEADLINE_S
    )


def test_the_gpu_component(base, gpu, tmp_path):
    assert container(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(gpu)["image"] == f"{container(base)['image']}-gpu"
    assert "nvidia.com/gpu" not in container(base)["resources"]["limits"]
    environ = {
        n: item["value"]
        for n, item in environment(gpu).items()
        if n.startswith("STREAMER__") and "value" in item
    }
    config = config_of(gpu, tmp_path, environ)
    assert (config.device, config.embedder.precision, config.batch.size) == ("cuda:0", "bf16", 256)
    assert {o["metadata"]["namespace"] for o in gpu} == {"curation"}


def test_grafana_finds_the_dashboard(base):
    dashboard = the(base, "ConfigMap", "streamer-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["metadata"]["name"] == "streamer-dashboard"
    assert json.loads(dashboard["data"]["streamer.json"])["uid"] == "streamer"


def test_the_image_is_the_one_that_the_dockerfile_names(base, gpu):
    dockerfile = (K8S.parent / "Dockerfile").read_text()
    for objects in (base, gpu):
        assert f"-t {container(objects)['image']} " in dockerfile
