"""Fixtures of the tests on a real cluster.

`make test-cluster` runs them: on the kind cluster of `make kind-up`, or, with CLUSTER=existing, on the one that the
current kubeconfig names, in a namespace of their own (IMAGE says what it can pull; S3_IMAGE an S3 server's image for
it, or S3_ENDPOINT, S3_ENDPOINT_IN_PODS, S3_BUCKET and the AWS keys a server that is there). Elsewhere they are skipped.

- `cluster` (session): a `real.Cluster`. `cluster.kubectl(…)`, `cluster.get(kind, name)`, `cluster.apply(object)`,
  `cluster.until(what, look)`; `cluster.image`, `cluster.namespace` (made for this run of the tests, Pod Security
  `restricted` enforced, removed at the end), `cluster.kubeconfig` (a path, for the Kubernetes client or KUBECONFIG),
  `cluster.s3` (endpoint for this machine, for pods, bucket, keys). The namespace has the secret `s3-credentials`
  with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for `envFrom`. `cluster.trainer_pod(arguments)` is a pod that is
  admitted there.
- `s3_store`: an empty `S3Store` for this test; `s3_store.uri` is the same for pods.
- `made_here`: what `python -m k8s.kind status` says of engine, nodes and registry; skips on an existing cluster.

    def test_a_finished_run_ends_at_once(cluster: Cluster, s3_store: S3Store) -> None:
        cluster.apply(pod := cluster.trainer_pod([run, "--store", s3_store.uri]))
        assert cluster.ended(pod["metadata"]["name"])["exitCode"] == 0
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import import_pictures

from cluster.apiserver import ApiServer, api_server, missing
from cluster.grids import LONG, Bench, numbers
from cluster.lab import Lab
from cluster.real import LEASE, S3, SECRET, Cluster
from controller.cluster import NAMESPACES, open_cluster
from trainer.store import FileStore, S3Store

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_NOTHING_KEPT = [{"op": "replace", "path": "/spec/template/spec/volumes/0", "value": {"name": "data", "emptyDir": {}}}]
NEED_CLUSTER = {"cluster", "server"}  # fixtures: a cluster, or an API server alone of the same programs
WANTED = os.environ.get("GRID_TEST_CLUSTER", "")  # `make test-cluster` sets it: kind or existing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEED_CLUSTER & set(getattr(item, "fixturenames", ())) and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.cluster)
            if not WANTED:
                item.add_marker(pytest.mark.skip(reason="needs a cluster: make test-cluster"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, with a namespace and a bucket's key for this run of the tests."""
    namespace = f"grid-test-{secrets.token_hex(4)}"
    found = _existing_cluster(namespace) if WANTED == "existing" else _kind_cluster(namespace)
    made = yaml.safe_load((ROOT / "k8s" / "base" / "namespace.yaml").read_text())
    made["metadata"]["name"] = namespace
    found.kubectl("create", "-f", "-", given=json.dumps(made))
    found.until("the namespace's service account", lambda: found.get("serviceaccount")["items"])
    try:
        if found.s3.endpoint:
            _put_secret(found)
            yield found
        else:
            with _own_s3(found) as complete:
                _put_secret(complete)
                yield complete
    finally:
        found.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="session")
def made_here(cluster: Cluster) -> dict[str, Any]:
    """Engine, nodes and registry that `make kind-up` made."""
    if cluster.made is None:
        pytest.skip("the cluster was there before: its nodes and registry are not ours")
    return cluster.made


@pytest.fixture
def s3_store(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """An empty store on the cluster's S3 server; the AWS environment of this process points there for the test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in cluster.s3.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(f"s3://{cluster.s3.bucket}/{cluster.namespace}/{secrets.token_hex(4)}")


@pytest.fixture
def bench(cluster: Cluster, s3_store: S3Store, tmp_path: Path) -> Iterator[Bench]:
    """All of the above, with nothing of another test's left in the namespace."""
    import_pictures(s3_store, tmp_path / "pictures", per_class=12)
    settings = {
        "image": cluster.image,
        "namespace": cluster.namespace,
        "service_account": "default",
        "resources": {
            "requests": {"cpu": "200m", "memory": "512Mi", "ephemeral_storage": "64Mi"},
            "limits": {"memory": "2Gi", "ephemeral_storage": "2Gi"},
        },
        "threads": 1,
        "shared_memory": "64Mi",
        "cache": {"size": "256Mi"},
        "parallelism": 2,
        "grace_period": 30,
        "pending_deadline": 600,
        "store": {"endpoint": cluster.s3.endpoint_in_pods, "secret": SECRET},
    }
    bench = Bench(cluster, s3_store, tmp_path, settings)
    yield bench
    for process in bench.started:
        process.kill()
        process.wait()
    cluster.kubectl("delete", "jobs", "--all", "--cascade=foreground", "--wait=true", "--timeout=120s")


@pytest.fixture
def controller(bench: Bench) -> Iterator[str]:
    """The name of the Deployment in the tests' namespace, its pod ready, for the test's own store."""
    cluster, s3 = bench.cluster, bench.cluster.s3
    name, _, digest = cluster.image.partition("@")
    keys = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}}
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    literals = [f"GRID_STORE={bench.store.uri}", f"AWS_ENDPOINT_URL={s3.endpoint_in_pods}"]
    environment = [{"op": "add", "path": "/spec/template/spec/containers/0/env", "value": keys}]
    no_policy = {"$patch": "delete", "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "experiment-grid"}}
    deployment = {"kind": "Deployment", "name": "controller"}
    customization = {
        "namespace": cluster.namespace,
        "resources": [os.path.relpath(ROOT / "k8s" / "base", bench.folder.resolve())],
        "images": [{"name": "experiment-grid", "newName": name, **({"digest": digest} if digest else {})}],
        "configMapGenerator": [{"name": "controller-environment", "behavior": "merge", "literals": literals}],
        "patches": [
            {"target": deployment, "patch": json.dumps(environment)},
            {"patch": json.dumps(no_policy)},  # the tests' own stands already
            {"target": {"kind": "NetworkPolicy"}, "patch": json.dumps(_anywhere())},  # the store is in another
        ],
    }
    (bench.folder / "kustomization.yaml").write_text(json.dumps(customization))
    cluster.kubectl("apply", "-k", bench.folder)
    try:
        cluster.kubectl("rollout", "status", "deployment/controller", "--timeout=180s")
        cluster.until("it to lead: the one of the test before may still have the lease", lambda: _is_leading(bench))
        yield "controller"
    finally:
        cluster.kubectl("delete", "-k", bench.folder, "--ignore-not-found", "--wait=true", "--timeout=120s")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The numbers of LONG's run, trained in one go on this machine."""
    folder = tmp_path_factory.mktemp("straight")
    store = FileStore(folder / "store")
    import_pictures(store, folder / "pictures", per_class=12)
    path = folder / "long.yaml"
    path.write_text(LONG)
    subprocess.run(
        [sys.executable, "-m", "controller.cli", "--store", store.uri, "run", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return numbers(store)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server alone, with the controllers that make pods of Jobs, count quotas and collect garbage."""
    if reason := missing():
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        server.start_controllers("job-controller", "resourcequota-controller", "garbage-collector-controller")
        yield server


@pytest.fixture
def lab(server: ApiServer, tmp_path: Path) -> Iterator[Lab]:
    """A namespace of that server, and a store with pictures."""
    namespace = f"test-{secrets.token_hex(4)}"
    with open_cluster(namespace, kubeconfig=str(server.kubeconfig())) as cluster:
        cluster.create(NAMESPACES, {"metadata": {"name": namespace}})
        store = FileStore(tmp_path / "store")
        import_pictures(store, tmp_path / "pictures", per_class=3)
        yield Lab(server, cluster, store)


def _kind_cluster(namespace: str) -> Cluster:
    ended = subprocess.run([sys.executable, "-m", "k8s.kind", "status"], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode != 0:
        pytest.fail(ended.stderr, pytrace=False)
    made = json.loads(ended.stdout)
    return Cluster(
        kubeconfig=Path(made["kubeconfig"]),
        kubectl_path=Path(made["kubectl"]),
        image=made["image"],
        namespace=namespace,
        s3=S3(**made["s3"]),
        made=made,
    )


def _existing_cluster(namespace: str) -> Cluster:
    kubectl = shutil.which("kubectl")
    lacking = [name for name in ("IMAGE",) if not os.environ.get(name)]
    if not (os.environ.get("S3_IMAGE") or os.environ.get("S3_ENDPOINT_IN_PODS")):
        lacking.append("S3_IMAGE, or S3_ENDPOINT and S3_ENDPOINT_IN_PODS")
    if kubectl is None:
        lacking.append("kubectl on the PATH")
    if lacking:
        pytest.fail(f"CLUSTER=existing: got no {' and no '.join(lacking)}", pytrace=False)
    assert kubectl is not None
    endpoint_in_pods = os.environ.get("S3_ENDPOINT_IN_PODS", "")
    s3 = S3(
        endpoint=os.environ.get("S3_ENDPOINT", endpoint_in_pods),  # empty: `_own_s3` makes a server and fills this in
        endpoint_in_pods=endpoint_in_pods,
        bucket=os.environ.get("S3_BUCKET", "experiment-grid"),
        access_key=os.environ.get("AWS_ACCESS_KEY_ID", "experiment-grid"),  # the server's of k8s/s3
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "experiment-grid-on-kind"),
    )
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    return Cluster(kubeconfig, Path(kubectl), os.environ["IMAGE"], namespace, s3, made=None)


def _put_secret(cluster: Cluster) -> None:
    keys = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys})


def _is_leading(bench: Bench) -> bool:
    pods = bench.cluster.get("pods", "-l", "app.kubernetes.io/component=controller")["items"]
    leases = [each["spec"] for each in bench.cluster.get("leases")["items"] if each["metadata"]["name"] == LEASE]
    holder = (leases[0].get("holderIdentity") or "") if leases else ""
    return any(holder.startswith(f"{pod['metadata']['name']}_") for pod in pods)


def _anywhere() -> list[dict[str, Any]]:
    return [{"op": "replace", "path": "/spec/egress", "value": [{}]}]


@contextmanager
def _own_s3(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with an S3 server in the tests' namespace, and a port of this machine that leads to it."""
    name, _, tag = os.environ["S3_IMAGE"].rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        base = os.path.relpath(ROOT / "k8s" / "s3", Path(folder).resolve())
        customization = {
            "namespace": cluster.namespace,
            "resources": [base],
            "images": [{"name": "localhost:5001/minio", "newName": name, "newTag": tag}],
            "patches": [
                {"patch": json.dumps(_without("v1", "PersistentVolumeClaim", "s3"))},
                {"patch": json.dumps(_without("batch/v1", "Job", "s3-bucket"))},
                {"target": {"kind": "Deployment"}, "patch": json.dumps(_NOTHING_KEPT)},
            ],
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(customization))
        cluster.kubectl("apply", "-k", folder)
    cluster.kubectl("rollout", "status", "deployment/s3", "--timeout=180s")
    line = [str(cluster.kubectl_path), "--namespace", cluster.namespace, "port-forward", "service/s3", ":9000"]
    environment = {**os.environ, **cluster.environment}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            told = forward.stdout.readline()  # Forwarding from 127.0.0.1:38475 -> 9000
            endpoint = f"http://{told.split()[2]}"
            s3 = replace(cluster.s3, endpoint=endpoint, endpoint_in_pods=f"http://s3.{cluster.namespace}.svc:9000")
            _make_bucket(s3)
            yield replace(cluster, s3=s3)
        finally:
            forward.terminate()


def _without(version: str, kind: str, name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "experiment-grid"}
    return {"$patch": "delete", "apiVersion": version, "kind": kind, "metadata": metadata}


def _make_bucket(s3: S3) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=s3.bucket)
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
