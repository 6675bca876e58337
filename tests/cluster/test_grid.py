"""Whole grids on the real cluster by the command line, and what happens to them there."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.grids import LONG, STAGES, Bench, attempts, grid_text, is_ended, numbers, runs_of_pods
from controller.knowledge import read_decisions, read_failures, read_tests
from trainer.failure import ExitCode


def test_a_whole_grid_comes_to_the_numbers_of_the_local_backend(bench: Bench) -> None:
    text = grid_text("whole", STAGES, seeds=2, epochs=2)
    said = bench.submit(text)
    assert (said["made"], said["started"]) == (4, 2)
    assert bench.submit(text)["made"] == 0
    watched = bench.grid("watch", "whole", "--json")
    assert json.loads(watched)["counts"]["done"] == 8
    assert list(read_decisions(bench.store, "whole")) == ["final", "lr", "smoothing"]
    local = bench.locally(text)
    assert numbers(bench.store) == numbers(local)
    tests, tests_here = read_tests(bench.store), read_tests(local)
    assert {run: test.test_loss for run, test in tests.items()} == {
        run: test.test_loss for run, test in tests_here.items()
    }
    table = [bench.grid("table", "whole", "--format", "csv")]
    bench.cluster.kubectl("delete", "jobs", "--all", "--wait=true")
    table.append(bench.grid("table", "whole", "--format", "csv"))
    assert table[0] == table[1]
    assert {state for state, _ in bench.states("whole").values()} == {"done"}
    assert json.loads(bench.grid("submit", "whole", "--json"))["made"] == 0  # results are there without any Job


# --- interrupted


def delete_by_force(bench: Bench, run: str) -> None:
    name = bench.pods(run)[-1]["metadata"]["name"]
    bench.cluster.kubectl("delete", "pod", name, "--force", "--grace-period=0")


def evict(bench: Bench, run: str) -> None:
    name = bench.pods(run)[-1]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{bench.cluster.namespace}/pods/{name}/eviction"
    bench.cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


def pause_and_resume(bench: Bench, run: str) -> None:
    bench.grid("pause", "long")
    bench.cluster.until("no pod", lambda: all(is_ended(pod) for pod in bench.pods(run)))
    assert bench.states("long")[run] == ("waiting", "paused")
    assert bench.jobs()[run]["spec"]["suspend"]
    bench.grid("resume", "long")


def delete_the_job(bench: Bench, run: str) -> None:
    bench.cluster.kubectl("delete", "job", run)


@pytest.mark.parametrize(
    "interrupt",
    [
        evict,
        *(pytest.param(each, marks=pytest.mark.long) for each in (delete_by_force, pause_and_resume, delete_the_job)),
    ],
)
def test_a_run_that_is_interrupted_goes_on_to_the_same_numbers(
    bench: Bench, straight: dict[str, dict[str, Any]], interrupt: Callable[[Bench, str], None]
) -> None:
    bench.submit(LONG)
    (run,) = straight
    bench.until_trained_for(run, 2)
    interrupt(bench, run)
    bench.grid("watch", "long")
    assert numbers(bench.store) == straight
    assert len(attempts(bench.store, run)) >= 2


@pytest.mark.long
def test_a_controller_that_is_killed_again_and_again_loses_no_run_and_starts_none_twice(bench: Bench) -> None:
    random.seed(4)
    text = grid_text("killed", STAGES.replace("final", "last"), seeds=1)
    path = bench.settings_file()
    file = bench.write(text)
    for number in range(20):
        words = ("submit", file, "--settings", path) if number % 3 == 0 else ("watch", "killed")
        process = bench.start(*words)
        time.sleep(random.uniform(0.5, 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.grid("submit", file, "--settings", path)
    bench.grid("watch", "killed")
    states = bench.states("killed")
    assert {state for state, _ in states.values()} == {"done"}
    for run in states:
        kinds = [pod["metadata"]["labels"]["experiment-grid.dev/work"] for pod in bench.pods(run)]
        assert len(kinds) == len(set(kinds)), f"{run} had pods {kinds}"
        assert len(attempts(bench.store, run)) == len(kinds)


# --- waiting and failing


@pytest.mark.long
def test_a_wrong_image_is_told_at_once_and_frees_its_place(bench: Bench) -> None:
    image = f"{bench.cluster.image.partition('@')[0]}:absent"
    said = bench.submit(grid_text("image"), image=image, pending_deadline=20)
    (run,) = (each["run"] for each in said["runs"])
    assert "image: " in bench.until_told("image", run, "image", seconds=30)
    assert bench.attempt("watch", "image").returncode == ExitCode.TRAINING
    assert read_failures(bench.store)[run].reason == "image"
    bench.cluster.until("its Job is gone", lambda: not bench.jobs())
    # with another image the failure is cleared and the run is trained
    path = bench.settings_file()
    bench.grid("retry", "image", "--settings", path)
    bench.grid("watch", "image")
    assert bench.states("image")[run][0] == "done"


@pytest.mark.long
def test_a_run_that_finds_no_node_says_so_and_lets_others_pass(bench: Bench) -> None:
    text = grid_text("window", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.05, 0.005]}\n")
    said = bench.submit(text, "--only", "*lr=0.5*", node_selector={"no-such": "node"})
    (stuck,) = (each["run"] for each in said["runs"])
    bench.until_told("window", stuck, "unschedulable: ", seconds=30)
    watching = bench.start("watch", "window", "--settings", bench.settings_file())

    def others_are_done() -> bool:
        states = bench.states("window")
        return len(states) == 3 and all(state == "done" for run, (state, _) in states.items() if run != stuck)

    bench.cluster.until("the others are done", others_are_done, seconds=240)
    assert "unschedulable" in str(bench.states("window")[stuck][1])
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == ExitCode.STOPPED
    assert "goes on without being watched" in bench.output()
    assert stuck in bench.jobs()
    told = bench.grid("cancel", "window")
    assert "3 Jobs deleted" in told
    assert bench.states("window")[stuck] == ("waiting", "cancelled")


@pytest.mark.long
def test_a_quota_is_waited_for(bench: Bench) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}}
    bench.cluster.apply(quota)
    bench.cluster.until("the quota", lambda: "hard" in bench.cluster.get("resourcequota", "two").get("status", {}))
    try:
        text = grid_text("quota", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.05, 0.005]}\n", seeds=1)
        said = bench.submit(text, parallelism=5)
        assert said["started"] == 3
        refused = {each["run"] for each in said["runs"]}.difference(runs_of_pods(bench))
        assert len(refused) == 1
        bench.until_told("quota", refused.pop(), "quota: ", seconds=30)
        bench.grid("watch", "quota")
        assert {state for state, _ in bench.states("quota").values()} == {"done"}
        assert not read_failures(bench.store)
    finally:
        bench.cluster.kubectl("delete", "resourcequota", "two")


def test_a_run_that_is_killed_for_its_memory_says_its_limit(bench: Bench) -> None:
    requests = {"cpu": "200m", "memory": "64Mi", "ephemeral_storage": "64Mi"}
    resources = {"requests": requests, "limits": {"memory": "64Mi"}}
    said = bench.submit(grid_text("memory"), resources=resources, max_tries=1)
    (run,) = (each["run"] for each in said["runs"])
    assert bench.attempt("watch", "memory").returncode == ExitCode.TRAINING
    failure = read_failures(bench.store)[run]
    assert failure.reason == "out-of-memory"
    assert "its limit is 64Mi" in failure.message


@pytest.mark.long
def test_a_log_is_read_from_the_pod_and_from_the_store_when_that_is_gone(bench: Bench) -> None:
    said = bench.submit(grid_text("logged"))
    (run,) = (each["run"] for each in said["runs"])
    assert "epoch 1 of 1" in bench.grid("logs", "-f", run)
    bench.grid("watch", "logged")
    said_by_pod = [json.loads(line) for line in bench.cluster.kubectl("logs", f"job/{run}").splitlines()]
    assert {each.get("run", run) for each in said_by_pod} == {run}
    bench.cluster.kubectl("delete", "job", run, "--wait=true")
    ended = bench.attempt("logs", run)
    assert ended.returncode == ExitCode.OK
    assert "epoch 1 of 1" in ended.stdout
    assert "done: the result is in the store <==" in ended.stdout
