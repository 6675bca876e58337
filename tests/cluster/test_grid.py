"""Whole grids on the real cluster by the command line, and what happens to them there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import import_pictures

from cluster.real import SECRET, Cluster
from controller.knowledge import read_decisions, read_failures, read_results, read_tests
from trainer.failure import ExitCode
from trainer.result import PASSING
from trainer.store import FileStore, S3Store, Store

STAGES = """\
stages:
  - name: lr
    vary: {optimizer.lr: [0.05, 0.005]}
  - name: smoothing
    vary: {label_smoothing: [0, 0.1]}
  - name: final
    test: {best: 1}
"""
ONE_STAGE = """\
stages:
  - name: lr
    vary: {optimizer.lr: [0.05]}
"""


def grid_text(name: str, stages: str = ONE_STAGE, *, seeds: int = 1, epochs: int = 1, lr: float = 0.05) -> str:
    """A grid of a small network on a handful of pictures."""
    return f"""\
grid: {name}
base:
  data: {{name: pictures, resize: 18, crop: 16}}
  model: {{architecture: resnet18}}
  batch_size: 8
  epochs: {epochs}
  optimizer: {{lr: {lr}}}
  checkpoint: {{every: 1}}
seeds: {seeds}
{stages}"""


@dataclass
class Bench:
    """A cluster, an empty store with pictures, and the command line that leads to both."""

    cluster: Cluster
    store: S3Store
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        s3 = self.cluster.s3.environment
        return {**os.environ, **self.cluster.environment, **s3, "GRID_STORE": self.store.uri, "COLUMNS": "200"}

    def write(self, text: str) -> Path:
        """The grid as a file."""
        path = self.folder / f"{yaml.safe_load(text)['grid']}.yaml"
        path.write_text(text)
        return path

    def line(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "controller.cli", *map(str, words)]

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """`grid` as a process that goes on beside the test, and writes to the file `output`."""
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(self.line(*words), env=self.environment, stdout=output, stderr=output)
        self.started.append(process)
        return process

    def attempt(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """How `grid` ended."""
        return subprocess.run(
            self.line(*words), env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def grid(self, *words: str | Path) -> str:
        """What `grid` printed; fails the test where it does not succeed."""
        ended = self.attempt(*words)
        assert ended.returncode == ExitCode.OK, f"grid {words}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def submit(self, text: str, *words: str, **settings: Any) -> dict[str, Any]:
        """What `grid submit` says of the grid; `settings` change those of the tests."""
        path = self.folder / "settings.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **settings}))
        found: dict[str, Any] = json.loads(self.grid("submit", self.write(text), "--settings", path, "--json", *words))
        return found

    def states(self, grid: str) -> dict[str, tuple[str, str | None]]:
        """How each run stands by `grid status`, and why."""
        told = json.loads(self.grid("status", grid, "--json"))
        return {
            run["run"]: (run["state"], run["reason"])
            for stage in told["stages"]
            for row in stage["experiments"]
            for run in row["runs"]
        }

    def until_told(self, grid: str, run: str, word: str, *, seconds: float = 60) -> str:
        """What `grid status` says of the run once `word` is in it."""

        def look() -> str | None:
            state, reason = self.states(grid)[run]
            return reason if reason is not None and word in f"{state} {reason}" else None

        found: str = self.cluster.until(f"{word!r} of {run}", look, seconds=seconds)
        return found

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The Jobs of the tests' namespace, by name."""
        return {job["metadata"]["name"]: job for job in self.cluster.get("jobs")["items"]}

    def pods(self, run: str) -> list[dict[str, Any]]:
        """The run's pods, the oldest first."""
        found: list[dict[str, Any]] = self.cluster.get("pods", "-l", f"experiment-grid.dev/run={run}")["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def epochs(self, run: str) -> int:
        """Epochs of the run that a checkpoint holds."""
        keys = [entry.key for entry in self.store.list(f"runs/{run}/") if entry.key.endswith("/checkpoint.json")]
        return int(json.loads(self.store.get(keys[0]))["progress"]["epoch"]) if keys else 0

    def until_trained_for(self, run: str, epochs: int) -> None:
        self.cluster.until(f"epoch {epochs} of {run}", lambda: self.epochs(run) >= epochs, seconds=240)

    def locally(self, text: str, **environment: str) -> FileStore:
        """The store in which the same grid was trained on this machine."""
        folder = self.folder / "local"
        store = FileStore(folder)
        import_pictures(store, self.folder / "local-pictures", per_class=12)
        ended = subprocess.run(
            self.line("--store", store.uri, "run", self.write(text)),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert ended.returncode == ExitCode.OK, ended.stderr
        return store


def numbers(store: Store) -> dict[str, dict[str, Any]]:
    """All results of the store, but for what passes with the attempt and the code that computed it.

    The key of the best weights, which are the same to the last bit, has their hash.
    """
    passing = {*PASSING, "commit", "versions"}  # the image has a Python of its own
    return {run: result.model_dump(exclude=passing) for run, result in read_results(store).items()}


def attempts(store: Store, run: str) -> set[str]:
    return {entry.key.split("/")[3] for entry in store.list(f"runs/{run}/attempts/")}


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


LONG = grid_text("long", epochs=25)


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


def is_ended(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


@pytest.mark.parametrize("interrupt", [delete_by_force, evict, pause_and_resume, delete_the_job])
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


def test_a_controller_that_is_killed_again_and_again_loses_no_run_and_starts_none_twice(bench: Bench) -> None:
    random.seed(4)
    text = grid_text("killed", STAGES.replace("final", "last"), seeds=1)
    path = bench.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(bench.settings))
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


def test_a_wrong_image_is_told_at_once_and_frees_its_place(bench: Bench) -> None:
    image = f"{bench.cluster.image.partition('@')[0]}:absent"
    said = bench.submit(grid_text("image"), image=image, pending_deadline=20)
    (run,) = (each["run"] for each in said["runs"])
    assert "image: " in bench.until_told("image", run, "image", seconds=30)
    assert bench.attempt("watch", "image").returncode == ExitCode.TRAINING
    assert read_failures(bench.store)[run].reason == "image"
    bench.cluster.until("its Job is gone", lambda: not bench.jobs())
    # with another image the failure is cleared and the run is trained
    path = bench.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(bench.settings))
    bench.grid("retry", "image", "--settings", path)
    bench.grid("watch", "image")
    assert bench.states("image")[run][0] == "done"


def test_a_run_that_finds_no_node_says_so_and_lets_others_pass(bench: Bench) -> None:
    text = grid_text("window", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.05, 0.005]}\n")
    said = bench.submit(text, "--only", "*lr=0.5*", node_selector={"no-such": "node"})
    (stuck,) = (each["run"] for each in said["runs"])
    bench.until_told("window", stuck, "unschedulable: ", seconds=30)
    (bench.folder / "plain.yaml").write_text(yaml.safe_dump(bench.settings))
    watching = bench.start("watch", "window", "--settings", bench.folder / "plain.yaml")

    def others_are_done() -> bool:
        states = bench.states("window")
        return len(states) == 3 and all(state == "done" for run, (state, _) in states.items() if run != stuck)

    bench.cluster.until("the others are done", others_are_done, seconds=240)
    assert "unschedulable" in str(bench.states("window")[stuck][1])
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == ExitCode.STOPPED
    assert "goes on without being watched" in (bench.folder / "output").read_text()
    assert stuck in bench.jobs()
    told = bench.grid("cancel", "window")
    assert "3 Jobs deleted" in told
    assert bench.states("window")[stuck] == ("waiting", "cancelled")


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


def runs_of_pods(bench: Bench) -> set[str]:
    """The runs that have a pod."""
    label = "experiment-grid.dev/run"
    return {pod["metadata"]["labels"][label] for pod in bench.cluster.get("pods", "-l", label)["items"]}


def test_a_run_that_is_killed_for_its_memory_says_its_limit(bench: Bench) -> None:
    requests = {"cpu": "200m", "memory": "64Mi", "ephemeral_storage": "64Mi"}
    resources = {"requests": requests, "limits": {"memory": "64Mi"}}
    said = bench.submit(grid_text("memory"), resources=resources, max_tries=1)
    (run,) = (each["run"] for each in said["runs"])
    assert bench.attempt("watch", "memory").returncode == ExitCode.TRAINING
    failure = read_failures(bench.store)[run]
    assert failure.reason == "out-of-memory"
    assert "its limit is 64Mi" in failure.message


def test_a_log_is_read_from_the_pod_and_from_the_store_when_that_is_gone(bench: Bench) -> None:
    said = bench.submit(grid_text("logged"))
    (run,) = (each["run"] for each in said["runs"])
    assert "epoch 1 of 1" in bench.grid("logs", "-f", run)
    bench.grid("watch", "logged")
    bench.cluster.kubectl("delete", "job", run, "--wait=true")
    ended = bench.attempt("logs", run)
    assert ended.returncode == ExitCode.OK
    assert "epoch 1 of 1" in ended.stdout
    assert "its pod is gone" in ended.stderr
