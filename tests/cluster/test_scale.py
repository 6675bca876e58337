"""A thousand runs by the command line, from submit to table, on nodes that are not there: GRID_SCALE=10000 for more.

On the cluster of `make kind-up` the fake nodes stand beside the real one, and its scheduler and Job controller act. The
same is tried on an API server alone with the same programs: no container is needed for that, so it runs where kind
cannot, and what fails there is no matter of the cluster.
"""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import import_pictures
from results import result

from cluster.apiserver import ApiServer, api_server, missing
from cluster.crowd import SCHEDULING, Trainers, fake_nodes, wide_text
from cluster.grids import Bench
from cluster.minio import minio_server
from cluster.real import S3, Cluster
from controller.cluster import JOBS, NAMESPACES, NODES, PODS, open_cluster
from controller.jobs import SELECTOR
from controller.standing import Work
from trainer.store import S3Store

pytestmark = pytest.mark.long
NUM_RUNS = int(os.environ.get("GRID_SCALE", "1000"))
PARALLELISM = 100
CONTROLLERS = ("job-controller", "garbage-collector-controller", "node-lifecycle-controller")
PROGRAMS = ("kube-controller-manager", "kube-scheduler", "kwok", "minio")
SETTINGS = {
    "image": "none:1",
    "service_account": "default",
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi", "ephemeral_storage": "64Mi"}},
    "cache": {"size": "256Mi"},
    "parallelism": PARALLELISM,
    "progress": {"annotations": False},
    **SCHEDULING,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if reason := missing(*PROGRAMS):
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        server.start_controllers(*CONTROLLERS)
        server.start_scheduler()
        yield server


@pytest.fixture
def alone(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The command line, before an API server with its controllers and a scheduler, and an S3 server."""
    namespace = f"scale-{secrets.token_hex(4)}"
    with minio_server(tmp_path / "minio") as minio, open_cluster(kubeconfig=str(server.kubeconfig())) as cluster:
        cluster.create(NAMESPACES, {"metadata": {"name": namespace}})
        for name, value in minio.environment.items():
            monkeypatch.setenv(name, value)
        s3 = S3(minio.endpoint, minio.endpoint, minio.bucket, minio.access_key, minio.secret_key)
        kubeconfig = server.kubeconfig(namespace=namespace)
        real = Cluster(kubeconfig, Path("kubectl"), str(SETTINGS["image"]), namespace, s3, made=None)
        store = S3Store(f"s3://{minio.bucket}/scale")
        import_pictures(store, tmp_path / "pictures", per_class=3)
        yield Bench(real, store, tmp_path, {"namespace": namespace, "store": {"endpoint": s3.endpoint}})


def test_every_run_of_a_large_grid_has_one_pod_and_a_row_of_the_table(alone: Bench) -> None:
    _from_submit_to_table(alone)


@pytest.mark.usefixtures("made_here")  # nobody's own cluster gets nodes that are not there
def test_a_large_grid_goes_through_beside_a_real_node(bench: Bench) -> None:
    bench.settings = {"namespace": bench.cluster.namespace, "store": bench.settings["store"]}
    _from_submit_to_table(bench)


def _from_submit_to_table(bench: Bench) -> None:
    def leave(work: Work) -> None:
        bench.store.put(f"results/{work.run}.json", result(work.run).model_dump_json().encode())

    kubeconfig, namespace = bench.cluster.kubeconfig, bench.cluster.namespace
    with open_cluster(namespace, kubeconfig=str(kubeconfig)) as there:
        with fake_nodes(there, kubeconfig, bench.folder), Trainers(there, leave, is_kubelet=False) as trainers:
            said = bench.submit(wide_text("wide", NUM_RUNS), **SETTINGS)
            assert (said["made"], said["started"]) == (NUM_RUNS, min(NUM_RUNS, PARALLELISM))
            trainers.may_end.set()
            watching = bench.start("watch", "wide")
            assert watching.wait(timeout=900 + NUM_RUNS) == 0, bench.output()[-3000:]
            assert {state for state, _ in bench.states("wide").values()} == {"done"}
            rows = list(csv.DictReader(bench.grid("table", "wide", "--format", "csv").splitlines()))
            assert len({row["runs"] for row in rows if row["runs"] and row["state"] == "done"}) == NUM_RUNS
            bench.grid("cancel", "wide")
            bench.cluster.until(
                "the end of all Jobs and pods",
                lambda: not there.list(JOBS, _name).items and not there.list(PODS, _name, selector=SELECTOR).items,
                seconds=60 + NUM_RUNS / 10,
            )
        assert set(map(len, trainers.pods.values())) == {1}
        assert len(trainers.pods) == NUM_RUNS
        assert trainers.most_at_once <= PARALLELISM
        assert not [node for node in there.list(NODES, _name).items if node.startswith("fake-")]


def _name(found: dict[str, object]) -> str:
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["name"])
