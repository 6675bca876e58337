"""What `kubectl apply -k` would send is valid, least in rights, and fits the Jobs that the controller makes.

Needs kubectl, for its kustomize: KUBECTL names one, else one on PATH or one that `make kind-up` built.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_objects import check_schema, pod_of, restricted_problems

from controller.manifest import JobTemplate
from controller.readiness.rights import LOOKING_RIGHTS, QUEUE_RIGHTS, QUEUE_ROLE, RIGHTS, USER_ROLE
from controller.settings import read_settings
from controller.standing import Work

K8S = Path(__file__).parent.parent / "k8s"
PLACES = ("base", "overlays/kind", "overlays/gpu", "s3")
CLUSTER_WIDE = {"Namespace"}


@functools.cache
def kubectl() -> str | None:
    """A kubectl that can render, if there is one."""
    cache = Path(os.environ.get("KIND_CACHE") or Path.home() / ".cache" / "experiment-grid-kind")
    found = [os.environ.get("KUBECTL"), shutil.which("kubectl"), *map(str, cache.glob("bin/*/kubectl"))]
    for each in filter(None, found):
        done = subprocess.run([each, "kustomize", "--help"], capture_output=True, check=False)
        if done.returncode == 0:
            return each
    return None


pytestmark = pytest.mark.skipif(kubectl() is None, reason="no kubectl on PATH, in KUBECTL or built by make kind-up")


@functools.cache
def rendered(folder: Path) -> tuple[dict[str, Any], ...]:
    program = kubectl()
    assert program is not None
    text = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return tuple(yaml.safe_load_all(text))


def of_kind(place: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in rendered(K8S / place) if each["kind"] == kind]


def with_components(tmp_path: Path) -> Path:
    """An overlay of both components over the GPU overlay."""
    where = os.path.relpath(K8S, tmp_path)
    components = [f"{where}/components/{each.name}" for each in sorted((K8S / "components").iterdir())]
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"{where}/overlays/gpu"], "components": components})
    )
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_the_api_takes_every_object(place: str) -> None:
    things = rendered(K8S / place)
    assert things
    for each in things:
        check_schema(each)


def test_components_can_be_added_to_an_overlay(tmp_path: Path) -> None:
    things = rendered(with_components(tmp_path))
    for each in things:
        check_schema(each)
    names = {(each["kind"], each["metadata"]["name"]) for each in things}
    assert {("Role", "experiment-grid-controller-kueue"), ("NetworkPolicy", "workload-identity")} <= names


@pytest.mark.parametrize("place", PLACES)
def test_everything_is_in_the_namespace(place: str) -> None:
    for each in rendered(K8S / place):
        where = each["metadata"].get("namespace") or each["metadata"]["name"]
        assert where == "experiment-grid"
        assert ("namespace" in each["metadata"]) == (each["kind"] not in CLUSTER_WIDE)


@pytest.mark.parametrize("place", PLACES)
def test_restricted_admits_every_pod_and_each_says_what_it_needs(place: str) -> None:
    pods = [pod for each in rendered(K8S / place) if (pod := pod_of(each))]
    assert pods
    for pod in pods:
        assert list(restricted_problems(pod)) == []
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys()
            assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()


def test_the_namespace_enforces_restricted() -> None:
    (namespace,) = of_kind("base", "Namespace")
    labels = namespace["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_only_the_kind_clusters_own_server_has_secrets_in_files() -> None:
    assert [place for place in PLACES if of_kind(place, "Secret")] == ["s3"]


def test_the_controller_has_these_rights_and_no_others(tmp_path: Path) -> None:
    found = {
        (group, resource): sorted(rule["verbs"])
        for role in rendered(with_components(tmp_path))
        if role["kind"] == "Role" and role["metadata"]["name"].startswith("experiment-grid-controller")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in (f"{each}{rule.get('resourceNames', '')}" for each in rule["resources"])
    }
    assert found == {
        ("batch", "jobs"): ["create", "delete", "get", "list", "patch", "watch"],
        ("", "pods"): ["list", "watch"],
        ("", "events"): ["create", "list", "patch", "watch"],
        ("", "configmaps"): ["list", "watch"],
        ("coordination.k8s.io", "leases"): ["create", "get", "list", "watch"],
        ("coordination.k8s.io", "leases['experiment-grid']"): ["update"],
        ("kueue.x-k8s.io", "workloads"): ["get", "list", "watch"],
        ("kueue.x-k8s.io", "localqueues"): ["get", "list", "watch"],
    }


def granted(name: str, folder: Path) -> set[tuple[str, str, str]]:
    """Group, resource and verb of all that the Role of that name allows."""
    (role,) = (each for each in rendered(folder) if each["kind"] == "Role" and each["metadata"]["name"] == name)
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_a_person_may_do_what_commands_do_and_nothing_else() -> None:
    wanted = {(right.group, right.target, right.verb) for right in (*RIGHTS, *LOOKING_RIGHTS)}
    assert {right.role for right in (*RIGHTS, *LOOKING_RIGHTS)} == {USER_ROLE}
    assert granted(USER_ROLE, K8S / "base") == wanted


def test_a_person_with_a_queue_is_told_a_role_that_lets_its_waits_be_seen(tmp_path: Path) -> None:
    wanted = {(right.group, right.target, right.verb) for right in QUEUE_RIGHTS}
    assert wanted <= granted(QUEUE_ROLE, with_components(tmp_path))


@pytest.mark.parametrize("place", ["base", "overlays/kind", "overlays/gpu"])
def test_nobody_has_rights_in_the_whole_cluster(place: str) -> None:
    assert of_kind(place, "ClusterRole") == of_kind(place, "ClusterRoleBinding") == []
    for binding in of_kind(place, "RoleBinding"):
        assert [each["name"] for each in binding["subjects"]] == ["experiment-grid-controller"]


@pytest.mark.parametrize("name", ["kind", "gpu"])
def test_the_overlay_fits_the_settings_of_its_name(name: str) -> None:
    settings = read_settings(name, () if name == "kind" else ("image=registry.example.org/experiment-grid:0.1.0",))
    (controller,) = of_kind(f"overlays/{name}", "Deployment")
    (container,) = controller["spec"]["template"]["spec"]["containers"]
    (environment,) = of_kind(f"overlays/{name}", "ConfigMap")
    accounts = {each["metadata"]["name"] for each in of_kind(f"overlays/{name}", "ServiceAccount")}
    secrets = {each["valueFrom"]["secretKeyRef"]["name"] for each in container["env"] if "valueFrom" in each}
    assert controller["metadata"]["namespace"] == settings.namespace
    assert container["image"] == settings.image
    assert settings.service_account in accounts
    assert secrets == {settings.store.secret}
    assert environment["data"].get("AWS_ENDPOINT_URL") == settings.store.endpoint
    assert container["envFrom"] == [{"configMapRef": {"name": environment["metadata"]["name"]}}]


def test_trainers_have_no_token() -> None:
    for account in of_kind("base", "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def _selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ()))


@pytest.mark.parametrize(
    ("place", "reached"),
    [
        pytest.param("base", [53, 53], id="base"),
        pytest.param("overlays/kind", [53, 53, 9000], id="kind"),
        pytest.param("overlays/gpu", [53, 53, 443], id="gpu"),
    ],
)
def test_trainers_reach_names_and_the_store_and_only_their_numbers_are_reached(place: str, reached: list[int]) -> None:
    settings = read_settings("kind")
    job = JobTemplate(settings, "s3://lab").job(Work("alexnet-0123456789ab", False), 0, "", {})
    labels = job["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for each in of_kind(place, "NetworkPolicy") if _selects(each, labels)]
    out = [port["port"] for each in policies for rule in each.get("egress", ()) for port in rule["ports"]]
    into = [rule for each in policies for rule in each.get("ingress", ())]
    assert {kind for each in policies for kind in each["policyTypes"]} == {"Ingress", "Egress"}
    assert sorted(out) == reached
    assert into == [{"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "telemetry"}]}]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["ports"]] == ["telemetry"]


def test_the_controller_is_asked_how_it_is_on_the_port_where_it_answers() -> None:
    (controller,) = of_kind("base", "Deployment")
    (container,) = controller["spec"]["template"]["spec"]["containers"]
    assert controller["spec"]["replicas"] == 1
    assert container["command"] == ["grid", "serve"]
    assert container["ports"] == [{"name": "health", "containerPort": 9090}]
    probes = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {
        "startupProbe": {"path": "/healthz", "port": "health"},
        "livenessProbe": {"path": "/healthz", "port": "health"},
        "readinessProbe": {"path": "/readyz", "port": "health"},
    }


def test_the_s3_servers_image_is_a_parameter(tmp_path: Path) -> None:
    where = os.path.relpath(K8S / "s3", tmp_path)
    images = [{"name": "localhost:5001/minio", "newName": "registry.lab/s3", "newTag": "2"}]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [where], "images": images}))
    (server,) = (each for each in rendered(tmp_path) if each["kind"] == "Deployment")
    assert server["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.lab/s3:2"


def test_the_bucket_and_its_credentials_are_those_of_the_kind_overlay() -> None:
    (environment,) = of_kind("overlays/kind", "ConfigMap")
    (bucket,) = of_kind("s3", "ConfigMap")
    secrets = {each["metadata"]["name"]: each["data"] for each in of_kind("s3", "Secret")}
    assert environment["data"]["GRID_STORE"] == f"s3://{bucket['data']['BUCKET']}"
    assert secrets["s3-credentials"]["AWS_ACCESS_KEY_ID"] == secrets["s3-root"]["MINIO_ROOT_USER"]
    assert secrets["s3-credentials"]["AWS_SECRET_ACCESS_KEY"] == secrets["s3-root"]["MINIO_ROOT_PASSWORD"]
