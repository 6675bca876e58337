"""What goes wrong on a cluster: attempts that fail, nodes and servers that go away, two of what should be one."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.grids import LONG, Bench, attempts, grid_text, is_ended, numbers, runs_of_pods
from cluster.real import docker
from controller.knowledge import read_failures
from trainer.failure import ExitCode

THREE_RATES = "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.05, 0.005]}\n"
GPU = "example.com/gpu"  # nobody's: what a device plugin would offer is written into the node's status by hand


def only_run(said: dict[str, Any]) -> str:
    """The run of a submit of one."""
    (found,) = {each["run"] for each in said["runs"]}
    return str(found)


# --- attempts that fail


@pytest.mark.parametrize(
    ("exit_code", "num_pods", "reason"),
    [
        pytest.param(ExitCode.SPEC, 1, "spec", id="64 spec"),
        pytest.param(ExitCode.DATA, 1, "data", id="65 data"),
        pytest.param(ExitCode.TRAINING, 1, "training", id="70 training"),
        pytest.param(ExitCode.STORE, 2, "crashed", id="69 store"),
        pytest.param(ExitCode.DEVICE, 2, "crashed", id="71 device"),
        pytest.param(1, 2, "crashed", id="1"),
        pytest.param(139, 2, "crashed", id="139 SIGSEGV"),
    ],
)
def test_an_exit_code_decides_whether_a_run_is_tried_again(
    bench: Bench, exit_code: int, num_pods: int, reason: str
) -> None:
    # Python runs a module of this name before anything else; the trainer's own reasons for each code are tested below
    hook = {"sitecustomize.py": f"import os; os._exit({int(exit_code)})"}
    bench.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hook"}, "data": hook})
    patch = {
        "containers": [{"name": "trainer", "volumeMounts": [{"name": "hook", "mountPath": "/hook"}]}],
        "volumes": [{"name": "hook", "configMap": {"name": "hook"}}],
    }
    ends = {"env": {"PYTHONPATH": "/hook"}, "pod_template_patch": {"spec": patch}}
    run = only_run(bench.submit(grid_text("ends"), max_tries=2, **ends))
    assert bench.attempt("watch", "ends").returncode == ExitCode.TRAINING
    failure = read_failures(bench.store)[run]
    assert (failure.exit_code, failure.reason, failure.final) == (exit_code, reason, True)
    if num_pods == 1:
        assert len(bench.pods(run)) == 1
    else:  # its Job is deleted, and takes its pods with it
        assert f"({num_pods} attempts brought no newer checkpoint)" in failure.message
    assert bench.submit(grid_text("ends"))["made"] == 0


def test_data_that_vanished_fails_at_once_and_is_told(bench: Bench) -> None:
    (index,) = [entry.key for entry in bench.store.list("datasets/") if entry.key.endswith("index.json")]
    kept = bench.store.get(index)
    path = bench.settings_file(node_selector={"experiment-grid.dev/test": "later"})
    run = only_run(json.loads(bench.grid("submit", bench.write(grid_text("data")), "--settings", path, "--json")))
    bench.until_told("data", run, "unschedulable: ", seconds=30)
    bench.store.delete(index)
    node = bench.cluster.get("nodes")["items"][-1]["metadata"]["name"]
    bench.cluster.kubectl("label", "node", node, "experiment-grid.dev/test=later")
    try:
        bench.cluster.until("its failure", lambda: any(entry.key for entry in bench.store.list("failures/")))
        bench.store.put(index, kept)
        assert bench.attempt("watch", "data").returncode == ExitCode.TRAINING
    finally:
        bench.cluster.kubectl("label", "node", node, "experiment-grid.dev/test-")
    failure = read_failures(bench.store)[run]
    assert (failure.reason, failure.exit_code) == ("data", ExitCode.DATA)
    assert "pictures" in failure.message
    assert len(attempts(bench.store, run)) == 1


def test_a_loss_that_is_never_finite_fails_for_good_with_the_trainers_own_words(bench: Bench) -> None:
    run = only_run(bench.submit(grid_text("infinite", "stages:\n  - name: lr\n    vary: {optimizer.lr: [1.0e+30]}\n")))
    assert bench.attempt("watch", "infinite").returncode == ExitCode.TRAINING
    failure = read_failures(bench.store)[run]
    assert failure.exit_code == ExitCode.TRAINING
    assert "finite" in failure.message
    assert len(attempts(bench.store, run)) == 1
    (pod,) = bench.pods(run)
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert "finite" in ended["message"]  # `kubectl describe pod` says it too


def test_a_store_that_pods_cannot_reach_is_tried_again_and_then_told(bench: Bench) -> None:
    store = bench.settings["store"] | {"endpoint": "http://127.0.0.1:9"}
    run = only_run(bench.submit(grid_text("unreachable"), store=store, store_patience=2, max_tries=2))
    assert bench.attempt("watch", "unreachable").returncode == ExitCode.TRAINING
    failure = read_failures(bench.store)[run]
    assert failure.exit_code == ExitCode.STORE
    assert "127.0.0.1:9" in failure.message


def test_a_final_failure_is_not_trained_again_after_its_job_is_gone(bench: Bench) -> None:
    text = grid_text("gone", "stages:\n  - name: lr\n    vary: {optimizer.lr: [1.0e+30]}\n")
    run = only_run(bench.submit(text, ttl=1))
    assert bench.attempt("watch", "gone").returncode == ExitCode.TRAINING
    bench.grid("submit", "gone")  # in case the watch ended before the Job had its time to live
    bench.cluster.until("its Job is gone", lambda: run not in bench.jobs(), seconds=60)
    assert bench.submit(text, ttl=1)["made"] == 0
    assert bench.states("gone")[run][0] == "failed"


def test_a_resource_that_no_node_has_is_told(bench: Bench) -> None:
    run = only_run(bench.submit(grid_text("nowhere"), gpu={"resource": "example.com/absent", "count": 1}))
    assert "example.com/absent" in bench.until_told("nowhere", run, "unschedulable: ", seconds=30)


@pytest.fixture
def one_gpu(bench: Bench, made_here: dict[str, Any]) -> Iterator[str]:
    """A node with one GPU, as far as Kubernetes counts them."""
    node = made_here["nodes"][-1]
    path = f"/status/capacity/{GPU.replace('/', '~1')}"
    change = ("patch", "node", node, "--subresource=status", "--type=json", "-p")
    bench.cluster.kubectl(*change, json.dumps([{"op": "add", "path": path, "value": "1"}]))
    bench.cluster.until("a GPU", lambda: GPU in bench.cluster.get("node", node)["status"]["allocatable"])
    yield node
    bench.cluster.kubectl(*change, json.dumps([{"op": "remove", "path": path}]))


@pytest.mark.long
def test_a_gpu_is_asked_for_and_waited_for(bench: Bench, one_gpu: str) -> None:
    said = bench.submit(grid_text("gpu", THREE_RATES), gpu={"resource": GPU, "count": 1}, parallelism=3)
    runs = {each["run"] for each in said["runs"]}
    waiting = bench.cluster.until(
        "two that wait for the GPU",
        lambda: (
            found
            if len(found := [run for run, (_, why) in bench.states("gpu").items() if GPU in str(why)]) == 2
            else None
        ),
        seconds=60,
    )
    (running,) = runs.difference(waiting)
    assert {pod["spec"].get("nodeName") for pod in bench.pods(running)} == {one_gpu}
    # the trainer finds no device behind it and computes on the CPU: the same run, another device
    bench.grid("watch", "gpu")
    assert {state for state, _ in bench.states("gpu").values()} == {"done"}


# --- what goes away


def drain(bench: Bench, run: str) -> None:
    """Drain the run's node of trainers, and let it be used again."""
    node = bench.pods(run)[-1]["spec"]["nodeName"]
    label = f"experiment-grid.dev/run={run}"
    try:
        # runs have their cache and /tmp in such folders
        words = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
        bench.cluster.kubectl("drain", node, f"--pod-selector={label}", *words)
    finally:
        bench.cluster.kubectl("uncordon", node)


@pytest.mark.long
def test_a_run_whose_node_is_drained_saves_a_checkpoint_and_goes_on_to_the_same_numbers(
    bench: Bench, straight: dict[str, dict[str, Any]]
) -> None:
    bench.submit(LONG)
    (run,) = straight
    bench.until_trained_for(run, 2)
    drain(bench, run)
    bench.grid("watch", "long")
    assert numbers(bench.store) == straight
    assert len(attempts(bench.store, run)) == 2
    assert not any(entry.key.endswith("failure.json") for entry in bench.store.list(f"runs/{run}/attempts/"))
    assert not read_failures(bench.store)


@pytest.mark.long
def test_pods_that_are_stopped_while_they_start_count_as_no_attempt(bench: Bench) -> None:
    run = only_run(bench.submit(grid_text("early"), max_tries=1))
    for delay in (0, 0.3, 1.0, 2.0):
        bench.cluster.until("a running pod", lambda: alive(bench, run))
        time.sleep(delay)
        for name in alive(bench, run):
            bench.cluster.kubectl("delete", "pod", name, "--wait=true")
    bench.grid("watch", "early")
    assert bench.states("early")[run][0] == "done"
    assert not read_failures(bench.store)


def alive(bench: Bench, run: str) -> list[str]:
    """Names of the run's pods that run."""
    return [
        pod["metadata"]["name"]
        for pod in bench.pods(run)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]


@contextmanager
def no_api_server(made: dict[str, Any]) -> Iterator[None]:
    """The API server is stopped, as its node's kubelet does it when its manifest goes."""
    node = next(node for node in made["nodes"] if node.endswith("control-plane"))
    manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    docker(made, "exec", node, "mv", manifest, "/root/kube-apiserver.yaml")
    try:
        yield
    finally:
        docker(made, "exec", node, "mv", "/root/kube-apiserver.yaml", manifest)


@pytest.mark.long
def test_a_watch_outlives_an_api_server_that_is_away_for_half_a_minute(
    bench: Bench, made_here: dict[str, Any], straight: dict[str, dict[str, Any]]
) -> None:
    bench.submit(LONG)
    (run,) = straight
    bench.until_trained_for(run, 2)
    watching = bench.start("watch", "long")
    bench.cluster.until("the watch looks", bench.output, seconds=30)
    with no_api_server(made_here):
        time.sleep(30)
    assert watching.wait(240) == ExitCode.OK, bench.output()
    bench.cluster.until("the API server", lambda: bench.cluster.attempt("get", "nodes").returncode == 0)
    assert numbers(bench.store) == straight
    assert len(attempts(bench.store, run)) == 1  # the pod went on meanwhile


@pytest.mark.long
def test_runs_and_watch_outlive_a_store_that_is_away_for_a_minute(
    bench: Bench, made_here: dict[str, Any], straight: dict[str, dict[str, Any]]
) -> None:
    namespace = made_here["namespace"]
    bench.submit(LONG)
    (run,) = straight
    bench.until_trained_for(run, 2)
    watching = bench.start("watch", "long")
    bench.cluster.until("the watch looks", bench.output, seconds=30)
    bench.cluster.kubectl("scale", "deployment/s3", "--replicas=0", namespace=namespace)
    try:
        time.sleep(60)
    finally:
        bench.cluster.kubectl("scale", "deployment/s3", "--replicas=1", namespace=namespace)
        bench.cluster.kubectl("rollout", "status", "deployment/s3", "--timeout=120s", namespace=namespace)
    assert watching.wait(300) == ExitCode.OK, bench.output()
    assert numbers(bench.store) == straight
    assert len(attempts(bench.store, run)) == 1


# --- two of what should be one


def test_two_pods_of_one_run_come_to_one_correct_result(bench: Bench, straight: dict[str, dict[str, Any]]) -> None:
    bench.submit(LONG)
    (run,) = straight
    bench.until_trained_for(run, 2)
    (pod,) = bench.pods(run)
    metadata = {
        "name": "zombie",
        "labels": {"app.kubernetes.io/part-of": "experiment-grid"},
        "annotations": pod["metadata"]["annotations"],  # the spec is one of them
    }
    bench.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": unplaced(pod["spec"])})
    try:
        bench.grid("watch", "long")
        bench.cluster.until("the zombie's end", lambda: is_ended(bench.cluster.get("pod", "zombie")), seconds=300)
    finally:
        bench.cluster.kubectl("delete", "pod", "zombie", "--ignore-not-found", "--wait=true")
    assert numbers(bench.store) == straight


def unplaced(spec: dict[str, Any]) -> dict[str, Any]:
    """A pod's spec as its author wrote it, more or less: on no node yet."""
    return {key: value for key, value in spec.items() if key != "nodeName"}


@pytest.mark.long
def test_two_watches_at_once_make_and_start_everything_once(bench: Bench) -> None:
    said = bench.submit(grid_text("twice", THREE_RATES, seeds=2), parallelism=1)
    runs = {each["run"] for each in said["runs"]}
    most: list[int] = []
    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            most.append(sum(not is_ended(pod) for pod in bench.pods()))
            over.wait(0.3)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        first = bench.start("watch", "twice")
        second = bench.attempt("watch", "twice")
    finally:
        over.set()
        counting.join()
    assert (first.wait(60), second.returncode) == (ExitCode.OK, ExitCode.OK)
    assert max(most) == 1  # the window holds for both together
    assert {run: len(attempts(bench.store, run)) for run in runs} == dict.fromkeys(runs, 1)


@pytest.mark.long
def test_a_grid_that_shares_runs_with_a_cancelled_one_keeps_them(bench: Bench) -> None:
    one, two = (grid_text(name, THREE_RATES, epochs=3) for name in ("one", "two"))
    first, second = bench.submit(one), bench.submit(two)
    assert second["made"] == 0
    assert {each["run"] for each in first["runs"]} == {each["run"] for each in second["runs"]}
    bench.grid("cancel", "one")
    assert len(bench.jobs()) == 3
    bench.grid("watch", "two")
    assert {state for state, _ in bench.states("two").values()} == {"done"}
    assert {len(attempts(bench.store, each["run"])) for each in first["runs"]} == {1}


@pytest.mark.long
def test_a_grid_that_changed_since_is_taken_over_only_when_that_is_asked_for(bench: Bench) -> None:
    before = grid_text("changed", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.05]}\n")
    after = grid_text("changed", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.05, 0.005]}\n")
    said = bench.submit(before)
    path = bench.settings_file()
    refused = bench.attempt("submit", bench.write(after), "--settings", path)
    assert refused.returncode == ExitCode.SPEC
    assert "--update" in refused.stderr
    updated = bench.submit(after, "--update")
    assert updated["made"] == 1
    bench.grid("watch", "changed")
    states = bench.states("changed")
    assert {state for state, _ in states.values()} == {"done"}
    assert len(states) == 2
    assert len({each["run"] for each in said["runs"]} & states.keys()) == 1


@pytest.mark.long
def test_a_watch_that_is_killed_at_random_moments_starts_nothing_twice(bench: Bench) -> None:
    random.seed(11)
    bench.submit(grid_text("shaken", THREE_RATES, epochs=4), parallelism=2)
    for _ in range(8):
        watching = bench.start("watch", "shaken")
        time.sleep(random.uniform(0.5, 4))
        watching.send_signal(signal.SIGKILL)
        watching.wait()
    bench.grid("watch", "shaken")
    runs = bench.states("shaken")
    assert {state for state, _ in runs.values()} == {"done"}
    assert runs_of_pods(bench) == set(runs)
    assert {len(bench.pods(run)) for run in runs} == {1}
