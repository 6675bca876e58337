"""Grids in a queue of the real Kueue: it says what starts and when, and the project leaves `suspend` to it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.grids import LONG, Bench, attempts, grid_text, is_ended, numbers
from cluster.real import Cluster
from trainer.failure import ExitCode

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent.parent
API = "kueue.x-k8s.io/v1beta1"
FIVE_RATES = "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.1, 0.05, 0.01, 0.005]}\n"
QUEUE = "runs"


@pytest.fixture(scope="session")
def kueue(cluster: Cluster) -> Iterator[str]:
    """A queue in the tests' namespace, with room for two of their runs; and two priorities, `low` and `high`."""
    if cluster.made is None:
        if cluster.attempt("get", "crd", "workloads.kueue.x-k8s.io").returncode != 0:
            pytest.skip("the cluster has no Kueue")
    else:
        ended = subprocess.run([sys.executable, "-m", "k8s.kind", "kueue"], cwd=ROOT, capture_output=True, text=True)
        if ended.returncode != 0:
            pytest.fail(ended.stderr, pytrace=False)
    quotas = {"cpu": "400m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    flavor = {
        "name": cluster.namespace,
        "resources": [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()],
    }
    objects: list[dict[str, Any]] = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": cluster.namespace}},
        {
            "apiVersion": API,
            "kind": "ClusterQueue",
            "metadata": {"name": cluster.namespace},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [{"coveredResources": list(quotas), "flavors": [flavor]}],
                "preemption": {"withinClusterQueue": "LowerPriority"},
            },
        },
        {
            "apiVersion": API,
            "kind": "LocalQueue",
            "metadata": {"name": QUEUE},
            "spec": {"clusterQueue": cluster.namespace},
        },
        *(
            {
                "apiVersion": API,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": f"{cluster.namespace}-{name}"},
                "value": value,
            }
            for name, value in (("low", 1), ("high", 100))
        ),
    ]
    for each in objects:
        take(cluster, each)
    yield QUEUE
    for each in reversed(objects):
        cluster.kubectl("delete", each["kind"], each["metadata"]["name"], "--ignore-not-found", "--wait=false")


def take(cluster: Cluster, made: dict[str, Any]) -> None:
    """Kueue has the object: its webhooks answer a little after its pod is ready."""
    cluster.until(
        f"Kueue takes a {made['kind']}",
        lambda: cluster.attempt("apply", "-f", "-", given=json.dumps(made)).returncode == 0,
        seconds=60,
    )


def suspenders(bench: Bench) -> set[str]:
    """Who wrote `suspend` of a Job after it was made."""
    found = set()
    for job in json.loads(bench.cluster.kubectl("get", "jobs", "--show-managed-fields", "-o", "json"))["items"]:
        for each in job["metadata"]["managedFields"]:
            if each["operation"] != "Apply" and "f:suspend" in each["fieldsV1"].get("f:spec", {}):
                found.add(each["manager"])
    return found


def test_a_queue_with_room_for_two_trains_five_runs_two_at_a_time(bench: Bench, kueue: str) -> None:
    said = bench.submit(grid_text("five", FIVE_RATES), queue={"name": kueue})
    assert (said["made"], said["started"]) == (5, 0)
    bench.cluster.until(
        "three that are queued",
        lambda: sum("queued in " in str(reason) for _, reason in bench.states("five").values()) == 3,
        seconds=60,
    )
    most: list[int] = []
    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            most.append(sum(not is_ended(pod) for pod in bench.pods()))
            over.wait(0.5)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        bench.grid("watch", "five")
    finally:
        over.set()
        counting.join()
    assert max(most) == 2
    assert {state for state, _ in bench.states("five").values()} == {"done"}
    assert suspenders(bench) == {"kueue"}


def test_a_run_that_is_preempted_in_the_middle_of_an_epoch_goes_on_to_the_same_numbers(
    bench: Bench, kueue: str, straight: dict[str, dict[str, Any]]
) -> None:
    namespace = bench.cluster.namespace
    wide = {"requests": {**bench.settings["resources"]["requests"], "cpu": "400m"}, "limits": {"memory": "2Gi"}}
    bench.submit(LONG, queue={"name": kueue, "priority_class": f"{namespace}-low"})
    (run,) = straight
    bench.until_trained_for(run, 2)
    urgent = grid_text("urgent", epochs=2, lr=0.001)
    said = bench.submit(urgent, queue={"name": kueue, "priority_class": f"{namespace}-high"}, resources=wide)
    (other,) = (each["run"] for each in said["runs"])
    bench.cluster.until("the urgent one's pod", lambda: bench.pods(other), seconds=120)
    state, reason = bench.states("long")[run]
    assert state == "waiting", reason
    bench.grid("watch", "urgent")
    bench.grid("watch", "long")
    assert numbers(bench.store)[run] == straight[run]
    assert len(attempts(bench.store, run)) == 2


def test_a_wrong_queue_is_told(bench: Bench, kueue: str) -> None:
    said = bench.submit(grid_text("lost"), queue={"name": "no-such-queue"})
    (run,) = (each["run"] for each in said["runs"])
    assert "no-such-queue" in bench.until_told("lost", run, "inadmissible", seconds=30)


def test_a_paused_grid_leaves_the_queue_and_comes_back(bench: Bench, kueue: str) -> None:
    said = bench.submit(grid_text("rest", FIVE_RATES, epochs=3), queue={"name": kueue})
    runs = {each["run"] for each in said["runs"]}
    bench.cluster.until("a pod", lambda: any(bench.pods(run) for run in runs))
    bench.grid("pause", "rest")
    bench.cluster.until("no Job", lambda: not bench.jobs(), seconds=60)
    assert {reason for _, reason in bench.states("rest").values()} == {"paused"}
    assert bench.attempt("watch", "rest").returncode == ExitCode.STOPPED
    bench.grid("resume", "rest")
    bench.grid("watch", "rest")
    assert {state for state, _ in bench.states("rest").values()} == {"done"}
