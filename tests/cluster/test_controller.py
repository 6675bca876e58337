"""The controller in the cluster: `grid serve` by the manifests of k8s/, with its own service account's rights alone."""

from __future__ import annotations

import re
import time
from pathlib import Path

from cluster.grids import STAGES, Bench, attempts, grid_text, runs_of_pods
from cluster.real import LEASE
from controller.knowledge import read_decisions
from trainer.failure import ExitCode

ROOT = Path(__file__).parent.parent.parent
ACCOUNT = "experiment-grid-controller"
SELF_REVIEWS = {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}  # everyone's
RIGHTS = {
    "jobs.batch": {"get", "list", "watch", "create", "patch", "delete"},
    "pods": {"list", "watch"},
    "events": {"list", "watch", "create", "patch"},
    "configmaps": {"list", "watch"},
}


def logs(bench: Bench) -> str:
    return bench.cluster.attempt("logs", "deployment/controller", "--tail=200").stdout


def until_done(bench: Bench, grid: str, number: int, *, seconds: float = 300) -> None:
    def look() -> bool:
        states = [state for state, _ in bench.states(grid).values()]
        return len(states) == number and set(states) == {"done"}

    bench.cluster.until(f"{grid} is done\n{logs(bench)}", look, seconds=seconds)


def test_a_submitted_grid_is_trained_to_its_end_without_anyone_watching(bench: Bench, controller: str) -> None:
    said = bench.submit(grid_text("served", STAGES, seeds=2, epochs=2))
    assert "controller" in str(said["acts"])
    runs_then = {each["run"] for each in said["runs"]}
    assert len(runs_then) == 4
    bench.cluster.until(
        "its table", lambda: any(e.key.endswith("table.csv") for e in bench.store.list("grids/served/")), seconds=400
    )
    states = bench.states("served")
    assert {state for state, _ in states.values()} == {"done"}
    assert list(read_decisions(bench.store, "served")) == ["final", "lr", "smoothing"]
    assert {len(attempts(bench.store, run)) for run in states if not run.endswith("-test")} <= {1, 2}
    assert runs_of_pods(bench) >= runs_then


def test_a_controller_whose_pod_is_killed_goes_on_where_it_was(bench: Bench, controller: str) -> None:
    bench.submit(grid_text("orphan", "stages:\n  - name: lr\n    vary: {optimizer.lr: [0.5, 0.1, 0.05, 0.01]}\n"))
    for _ in range(2):
        time.sleep(4)
        selector = "app.kubernetes.io/component=controller"
        bench.cluster.kubectl("delete", "pod", "-l", selector, "--force", "--grace-period=0")
    until_done(bench, "orphan", 4)
    assert {len(attempts(bench.store, run)) for run in bench.states("orphan")} == {1}


def test_pause_resume_and_cancel_are_obeyed_by_the_controller(bench: Bench, controller: str) -> None:
    said = bench.submit(grid_text("told", epochs=20))
    (run,) = (each["run"] for each in said["runs"])
    bench.until_trained_for(run, 1)
    bench.grid("pause", "told")
    bench.cluster.until("no pod", lambda: bench.jobs()[run]["spec"]["suspend"], seconds=30)
    time.sleep(8)
    assert bench.jobs()[run]["spec"]["suspend"]
    bench.grid("resume", "told")
    bench.cluster.until("a pod again", lambda: not bench.jobs()[run]["spec"]["suspend"], seconds=30)
    bench.grid("cancel", "told")
    bench.cluster.until("no Job", lambda: run not in bench.jobs(), seconds=60)
    time.sleep(8)
    assert run not in bench.jobs()


def test_a_watch_beside_the_controller_only_looks(bench: Bench, controller: str) -> None:
    bench.submit(grid_text("seen", epochs=4))
    watching = bench.start("watch", "seen")
    assert watching.wait(240) == ExitCode.OK, bench.output()
    assert "acts on it" in bench.output()


def test_the_controllers_account_may_do_what_it_needs_and_nothing_else(bench: Bench, controller: str) -> None:
    namespace = bench.cluster.namespace
    account = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    text = bench.cluster.kubectl("auth", "can-i", "--list", f"--as={account}", "--no-headers")
    rights: dict[str, set[str]] = {}
    leases: dict[str, set[str]] = {}
    for line in text.splitlines():
        resource, paths, names, verbs = _columns(line)
        if not resource or resource.partition(".")[0] in SELF_REVIEWS:
            assert not paths or verbs == {"get"}  # versions and health, which everyone may read
        elif resource == "leases.coordination.k8s.io":
            leases[names] = leases.get(names, set()) | verbs
        else:
            assert not names
            rights[resource] = rights.get(resource, set()) | verbs
    assert rights == RIGHTS
    assert leases == {"": {"create", "get", "list", "watch"}, "experiment-grid": {"update"}}
    for verb, what in [
        ("get", "secrets"),
        ("get", "pods/log"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("delete", "configmaps"),
    ]:
        answer = bench.cluster.attempt("auth", "can-i", verb, what, f"--as={account}")
        assert answer.stdout.strip() == "no", f"{verb} {what}"
    other = bench.cluster.attempt("auth", "can-i", "list", "jobs.batch", f"--as={account}", namespace="default")
    assert other.stdout.strip() == "no"


def _columns(line: str) -> tuple[str, str, str, set[str]]:
    """What one line of `kubectl auth can-i --list` says: resource, paths, names and verbs."""
    found = re.fullmatch(r"(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]\s*", line)
    assert found is not None, line
    resource, paths, names, verbs = found.groups()
    return resource, paths, names, set(verbs.split())


def test_pods_of_trainers_have_no_token_and_no_right(bench: Bench, controller: str) -> None:
    bench.submit(grid_text("bare"), service_account="experiment-grid-trainer")
    bench.cluster.until("a pod", lambda: runs_of_pods(bench))
    (pod,) = bench.cluster.get("pods", "-l", "app.kubernetes.io/component=trainer")["items"]
    mounts = [each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]]
    assert not any("serviceaccount" in mount for mount in mounts)
    account = f"system:serviceaccount:{bench.cluster.namespace}:experiment-grid-trainer"
    assert bench.cluster.attempt("auth", "can-i", "get", "pods", f"--as={account}").stdout.strip() == "no"


def test_the_controller_ends_at_once_when_it_is_told_to(bench: Bench, controller: str) -> None:
    (pod,) = bench.cluster.get("pods", "-l", "app.kubernetes.io/component=controller")["items"]
    began = time.monotonic()
    bench.cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=true")
    assert time.monotonic() - began < 15  # its grace is 30 s: it heard the signal
    lease = bench.cluster.get("lease", LEASE)["spec"]
    assert not (lease.get("holderIdentity") or "").startswith(f"{pod['metadata']['name']}_")  # it gave it back
