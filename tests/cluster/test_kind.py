"""The cluster of `make kind-up` is a real one, and is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.real import Cluster
from trainer.store import Conflict, NotFound, S3Store

ROOT = Path(__file__).parent.parent.parent


def identities(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """What would change if anything of the cluster were made anew."""
    nodes = cluster.get("nodes")["items"]
    pods = cluster.get("pods", "--selector=app.kubernetes.io/name=s3", namespace=namespace)["items"]
    secret = cluster.get("secret", "s3-credentials", namespace=namespace)
    return {
        "nodes": {node["metadata"]["name"]: node["metadata"]["uid"] for node in nodes},
        "s3": [(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods],
        "secret": secret["metadata"]["resourceVersion"],
    }


def test_every_node_is_ready_and_its_pods_have_names(cluster: Cluster, made_here: dict[str, Any]) -> None:
    nodes = cluster.get("nodes")["items"]
    assert sorted(node["metadata"]["name"] for node in nodes) == made_here["nodes"]
    for node in nodes:
        conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
    dns = cluster.get("deployment", "coredns", namespace="kube-system")["status"]
    assert dns["readyReplicas"] == dns["replicas"]


def test_the_namespace_admits_no_pod_with_more_rights_than_restricted_allows(cluster: Cluster) -> None:
    pod = cluster.trainer_pod(["--help"])
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    refused = cluster.attempt("apply", "-f", "-", given=json.dumps(pod))
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_the_s3_server_honours_conditional_writes(s3_store: S3Store) -> None:
    assert s3_store.is_conditional()
    s3_store.create("results/one.json", b"first")
    with pytest.raises(Conflict):
        s3_store.create("results/one.json", b"second")
    text, version = s3_store.get_versioned("results/one.json")
    assert text == b"first"
    s3_store.replace("results/one.json", b"third", version)
    with pytest.raises(Conflict):
        s3_store.replace("results/one.json", b"fourth", version)
    assert s3_store.get("results/one.json") == b"third"
    with pytest.raises(NotFound):
        s3_store.get("results/two.json")


def test_a_pod_reaches_the_s3_server_by_its_name_and_sees_what_this_machine_wrote(
    cluster: Cluster, s3_store: S3Store
) -> None:
    s3_store.put("greeting", b"from the machine")
    code = f"from trainer.store import open_store; print(open_store({s3_store.uri!r}).get('greeting').decode())"
    pod = cluster.trainer_pod([], command=["python", "-c", code])
    cluster.apply(pod)
    name = pod["metadata"]["name"]
    assert cluster.ended(name)["exitCode"] == 0, cluster.kubectl("logs", name)
    assert cluster.kubectl("logs", name) == "from the machine\n"


def test_the_registry_has_the_image_under_the_digest_that_pods_are_given(
    cluster: Cluster, made_here: dict[str, Any]
) -> None:
    name, digest = cluster.image.removeprefix(f"{made_here['registry']}/").split("@")
    request = urllib.request.Request(
        f"http://{made_here['registry']}/v2/{name}/manifests/{digest}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request) as answer:
        manifest = json.load(answer)
    assert manifest["layers"][-1]["size"] < 5e6  # the code; all else moves only when the lock file changes
    assert sum(layer["size"] for layer in manifest["layers"]) > 1e9


def test_people_and_their_tools_are_told_where_the_registry_is(cluster: Cluster, made_here: dict[str, Any]) -> None:
    hosting = cluster.get("configmap", "local-registry-hosting", namespace="kube-public")
    assert f'host: "{made_here["registry"]}"' in hosting["data"]["localRegistryHosting.v1"]


@pytest.mark.parametrize("kubeconfig_is", ["there", "lost"])
def test_a_second_start_makes_nothing_anew(kubeconfig_is: str, cluster: Cluster, made_here: dict[str, Any]) -> None:
    before = identities(cluster, made_here["namespace"])
    if kubeconfig_is == "lost":
        Path(made_here["kubeconfig"]).unlink()
    ended = subprocess.run(
        [sys.executable, "-m", "k8s.kind", "up"], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert "creating" not in ended.stderr
    assert ("pulling" in ended.stderr) == (answer["image"] != made_here["image"])
    assert identities(cluster, made_here["namespace"]) == before
    assert answer["nodes"] == made_here["nodes"]
