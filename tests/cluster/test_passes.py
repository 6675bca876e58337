"""Passes against a real kube-apiserver and the real Job controller; a thread of the test plays kubelet and trainer."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pictures import import_pictures
from results import numerics, result

from cluster.apiserver import NOBODY, ApiServer, api_server, missing
from controller.archive import gather_facts, set_intent, write_settings
from controller.cluster import (
    JOBS,
    NAMESPACES,
    PODS,
    QUOTAS,
    Cluster,
    ClusterError,
    Forbidden,
    Object,
    ObjectAbsent,
    ObjectChanged,
    open_cluster,
)
from controller.grid import parse_grid
from controller.jobs import FAILURE_ANNOTATION, PodView, pod_view
from controller.knowledge import read_decisions, read_failures
from controller.live import PlainView
from controller.local import retry
from controller.mirror import Mirror
from controller.observe import take_up
from controller.passes import ActedGrid, Lead, Passes, settle, watch
from controller.search import wanted
from controller.settings import parse_settings
from controller.standing import Choice, Work
from trainer.failure import ExitCode, Failure
from trainer.result import TestResult
from trainer.store import FileStore

SETTINGS = """\
image: none:1
service_account: default
resources: {requests: {memory: 512Mi}}
store: {uri: "s3://bucket"}
parallelism: 2
max_tries: 2
progress: {annotations: false}
"""
STAGES = """\
  - name: lr
    vary: {optimizer.lr: [0.5, 0.05, 0.005]}
"""
THREE_STAGES = f"""\
{STAGES}
  - name: smoothing
    vary: {{label_smoothing: [0, 0.1]}}
  - name: final
    test: {{best: 1}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if reason := missing():
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        server.start_controllers("job-controller", "resourcequota-controller", "garbage-collector-controller")
        yield server


@dataclass
class Lab:
    """A namespace and a store; every `acting` is a controller of its own, which knows nothing of those before."""

    server: ApiServer
    cluster: Cluster
    store: FileStore

    def submit(self, name: str, stages: str = STAGES, **settings: Any) -> None:
        text = f"grid: {name}\nbase: {{data: {{name: pictures}}, model: {{architecture: resnet18}}}}\nstages:\n{stages}"
        grid = parse_grid(text, name)
        take_up(grid, self.store, Choice())
        lines = [f"{key}={value}" for key, value in settings.items()]
        namespace = f"namespace={self.cluster.namespace}"
        write_settings(self.store, name, parse_settings(SETTINGS, "settings", [namespace, *lines]))
        self.grids[name] = grid

    def __post_init__(self) -> None:
        self.grids: dict[str, Any] = {}
        self.told = StringIO()

    def connect(self, user: str = "admin") -> Cluster:
        return open_cluster(self.cluster.namespace, kubeconfig=str(self.server.kubeconfig(user)), patience_seconds=10)

    @contextmanager
    def acting(self, name: str, **more: Any) -> Iterator[Passes]:
        grid = self.grids[name]
        facts = gather_facts(self.store, wanted(grid))
        with self.connect() as cluster, Mirror(cluster) as mirror:
            yield Passes(
                cluster, mirror, self.store, [ActedGrid(grid, self.store, facts)], PlainView(self.told), **more
            )

    def settle(self, name: str, **more: Any) -> Counter[str]:
        with self.acting(name, **more) as passes:
            return settle(passes).done

    def watch(self, name: str) -> Passes:
        with self.acting(name) as passes:
            watch(passes, name)
        return passes

    def jobs(self) -> dict[str, Object]:
        return {job["metadata"]["name"]: job for job in self.cluster.list(JOBS, lambda job: job).items}

    def pods(self) -> list[PodView]:
        return list(self.cluster.list(PODS, pod_view).items)


@pytest.fixture
def lab(server: ApiServer, tmp_path: Path) -> Iterator[Lab]:
    namespace = f"test-{secrets.token_hex(4)}"
    with open_cluster(namespace, kubeconfig=str(server.kubeconfig())) as cluster:
        cluster.create(NAMESPACES, {"metadata": {"name": namespace}})
        store = FileStore(tmp_path / "store")
        import_pictures(store, tmp_path / "pictures", per_class=3)
        yield Lab(server, cluster, store)


End = Callable[[Work, int], "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a container ends, and whether the trainer in it left its numbers, or its failure."""

    exit_code: int = 0
    reason: str = "Error"
    failure: str | None = None  # reason of the failure that it writes into the store


class Kubelet:
    """Starts and ends pods as `end` says for each attempt at a piece of work, and leaves what a trainer would."""

    def __init__(self, lab: Lab, end: End = lambda _work, _number: Ended()) -> None:
        self.lab = lab
        self.end = end
        self.starts: Counter[Work] = Counter()
        self.most_at_once = 0
        self._running: dict[str, int] = {}  # by pod: rounds that it has run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            pods = [pod for pod in self.lab.pods() if not pod.is_terminal and not pod.is_deleting]
            self.most_at_once = max(self.most_at_once, len(pods))
            for pod in pods:
                try:
                    self._step(pod)
                except (ObjectAbsent, ObjectChanged):
                    continue

    def _step(self, pod: PodView) -> None:
        if pod.name not in self._running:
            self.starts[pod.work] += 1
            self._running[pod.name] = 0
            self._put(pod, "Running", {"running": {"startedAt": _now()}})
        elif self._running[pod.name] < 3:
            self._running[pod.name] += 1
        else:
            ended = self.end(pod.work, self.starts[pod.work])
            self._leave(pod.work, ended)
            state = {"exitCode": ended.exit_code, "startedAt": _now(), "finishedAt": _now()}
            if ended.exit_code:
                state["reason"] = ended.reason
            self._put(pod, "Failed" if ended.exit_code else "Succeeded", {"terminated": state})

    def _leave(self, work: Work, ended: Ended) -> None:
        if ended.failure is not None:
            failure = Failure(
                run=work.run, attempt="1", exit_code=ended.exit_code, reason=ended.failure, message="said", final=True
            )
            self.lab.store.put(f"failures/{work.run}.json", failure.model_dump_json().encode())
        if ended.exit_code:
            return
        if work.is_test:
            left: Any = TestResult(
                run=work.run,
                test_loss=1.0,
                test_accuracy=0.5,
                test_balanced_accuracy=0.5,
                test_top5_accuracy=1.0,
                num_images=3,
                predictions="none",
                numerics=numerics(),
                data_fingerprint="f" * 64,
                wall_seconds=1.0,
            )
        else:
            left = result(work.run)
        self.lab.store.put(f"{'tests' if work.is_test else 'results'}/{work.run}.json", left.model_dump_json().encode())

    def _put(self, pod: PodView, phase: str, state: Object) -> None:
        container = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": phase, "containerStatuses": [{**container, "state": state}]}
        self.lab.cluster.patch(PODS, pod.name, {"status": status}, uid=pod.uid, subresource="status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_submit_makes_every_job_and_starts_as_many_as_the_window_holds(lab: Lab) -> None:
    lab.submit("small")
    with lab.acting("small") as passes:
        done = settle(passes).done
        assert (done["Create"], done["Resume"]) == (3, 2)
        states = [reason for _, reason in passes.states("small").values()]
        assert sum("parallelism" in str(reason) for reason in states) == 1
        assert passes.cluster.calls["create", "jobs", 201] == 3
    assert lab.settle("small") == Counter()  # a second one finds all as it should be
    assert [job["spec"]["suspend"] for job in lab.jobs().values()].count(True) == 1


def test_a_part_of_a_grid_is_made_alone_and_the_rest_is_made_later(lab: Lab) -> None:
    lab.submit("small")
    assert lab.settle("small", only=Choice(only="*lr=0.5*"))["Create"] == 1
    assert lab.settle("small")["Create"] == 2


def test_a_watched_grid_goes_through_its_stages_with_one_pod_for_each_piece_of_work(lab: Lab) -> None:
    lab.submit("small", THREE_STAGES)
    with Kubelet(lab) as kubelet:
        passes = lab.watch("small")
    assert set(read_decisions(lab.store, "small")) == {"lr", "smoothing", "final"}
    assert {state for state, _ in passes.states("small").values()} == {"done"}
    assert sum(work.is_test for work in kubelet.starts) == 1
    assert set(kubelet.starts.values()) == {1}
    assert kubelet.most_at_once <= 2
    told = lab.told.getvalue()
    assert told.count("done ") == 5
    assert told.count("kept ") == 3


@pytest.mark.parametrize(
    ("ended", "reason", "tries"),
    [
        pytest.param(Ended(ExitCode.SPEC), "spec", 1, id="the-spec-is-wrong"),
        pytest.param(Ended(ExitCode.DATA, failure="data"), "data", 1, id="data-is-wrong-and-the-trainer-says-so"),
        pytest.param(Ended(ExitCode.TRAINING), "training", 1, id="training-failed-for-good"),
        pytest.param(Ended(1), "crashed", 2, id="an-error-of-the-program"),
        pytest.param(Ended(ExitCode.STORE), "crashed", 2, id="no-store"),
        pytest.param(Ended(ExitCode.DEVICE), "crashed", 2, id="a-broken-device"),
        pytest.param(Ended(137, "OOMKilled"), "out-of-memory", 2, id="killed-for-its-memory"),
    ],
)
def test_a_pod_that_fails_is_tried_again_as_its_exit_code_says_and_no_more(
    lab: Lab, ended: Ended, reason: str, tries: int
) -> None:
    lab.submit("small", "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n", parallelism=1)
    with Kubelet(lab, lambda _work, _number: ended) as kubelet:
        passes = lab.watch("small")
    ((run, failure),) = read_failures(lab.store).items()
    assert (failure.final, failure.reason) == (True, reason)
    assert list(kubelet.starts.values()) == [tries]
    assert passes.told_failed == {run}
    assert passes.states("small")[Work(run, False)][0] == "failed"
    if reason == "out-of-memory":
        assert "its limit is 512Mi" in failure.message
    if tries == 1:
        assert lab.jobs()[run]["metadata"]["annotations"][FAILURE_ANNOTATION].startswith(reason)
    else:
        assert not lab.jobs()
    with lab.acting("small") as passes:  # what failed for good is not started again, until that is asked for
        assert settle(passes).done == Counter()
        retry(passes.grids["small"].grid, lab.store)
        passes.forget()
        assert settle(passes).done["Create"] == 1


def test_a_pod_that_was_stopped_is_replaced_and_not_counted(lab: Lab) -> None:
    lab.submit("small", "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n", max_tries=1)
    codes = {1: ExitCode.STOPPED, 2: 143}
    with Kubelet(lab, lambda _work, number: Ended(codes.get(number, 0))) as kubelet:
        passes = lab.watch("small")
    assert list(kubelet.starts.values()) == [3]
    assert {state for state, _ in passes.states("small").values()} == {"done"}


def test_a_job_that_was_deleted_by_hand_is_made_again(lab: Lab) -> None:
    lab.submit("small")
    lab.settle("small")
    name = next(iter(lab.jobs()))
    lab.cluster.delete(JOBS, name)
    assert lab.settle("small")["Create"] == 1
    assert len(lab.jobs()) == 3


def test_a_paused_grid_has_no_pod_and_goes_on_when_it_is_resumed(lab: Lab) -> None:
    lab.submit("small")
    lab.settle("small")
    set_intent(lab.grids["small"], lab.store, "paused")
    assert lab.settle("small")["Suspend"] == 2
    assert all(job["spec"]["suspend"] for job in lab.jobs().values())
    set_intent(lab.grids["small"], lab.store, "active")
    assert lab.settle("small")["Resume"] == 2


def test_a_cancelled_grid_leaves_the_jobs_that_another_grid_wants(lab: Lab) -> None:
    lab.submit("small")
    lab.submit("other", "  - name: lr\n    vary: {optimizer.lr: [0.05, 0.0001]}\n")
    lab.settle("small")
    assert lab.settle("other")["Create"] == 1
    set_intent(lab.grids["small"], lab.store, "cancelled")
    assert lab.settle("small")["Relabel"] == 1
    until = threading.Event()
    while len(lab.jobs()) > 2:  # those that were deleted go once their pods are gone
        until.wait(0.2)
    assert {key for job in lab.jobs().values() for key in job["metadata"]["labels"] if key.startswith("grid.")} == {
        "grid.experiment-grid.dev/other"
    }
    assert lab.settle("small") == Counter()  # what was cancelled stays so


def test_a_quota_that_refuses_jobs_is_waited_for(lab: Lab) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    lab.cluster.create(QUOTAS, {"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    until = threading.Event()
    while not lab.cluster.get(QUOTAS, "few").get("status", {}).get("hard"):
        until.wait(0.2)
    lab.submit("small")
    with lab.acting("small") as passes:
        assert settle(passes).done["Create"] == 1
        told = [reason for _, reason in passes.states("small").values() if reason and reason.startswith("quota: ")]
        assert len(told) == 2
        assert not read_failures(lab.store)
        lab.cluster.delete(QUOTAS, "few")
        until.wait(1)
        assert settle(passes).done["Create"] == 2


def test_a_refusal_is_told_once_and_ends_a_submit(lab: Lab) -> None:
    lab.submit("small")
    with lab.connect(NOBODY) as nobody, pytest.raises(Forbidden, match="apiGroups"), Mirror(nobody):
        pass
    lab.cluster.delete(NAMESPACES, lab.cluster.namespace)
    with lab.acting("small") as passes:
        report = settle(passes, seconds=1)
    assert len(report.refused) == 3
    assert isinstance(report.refused[0][1], ClusterError)
    assert lab.told.getvalue().count("is being terminated") == 1


class Crash(Exception):
    """The controller's process is gone."""


def test_a_controller_that_dies_at_any_request_loses_no_run_and_starts_none_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.submit("small", THREE_STAGES)
    draws = random.Random(7)
    act = Passes._do
    numbers = count()  # of what this controller does
    dies_at, is_before = 0, False

    def do(self: Passes, action: Any) -> bool:
        dies = next(numbers) == dies_at
        if dies and is_before:
            raise Crash
        done = act(self, action)
        if dies:
            raise Crash
        return done

    monkeypatch.setattr(Passes, "_do", do)
    num_crashes = 0
    with Kubelet(lab) as kubelet:
        while True:
            numbers, dies_at, is_before = count(), draws.randint(0, 2), draws.random() < 0.5
            try:
                passes = lab.watch("small")
                break
            except Crash:
                num_crashes += 1
    assert num_crashes > 3
    assert {state for state, _ in passes.states("small").values()} == {"done"}
    assert set(kubelet.starts.values()) == {1}
    assert kubelet.most_at_once <= 2


def test_one_process_at_a_time_acts_on_a_grid(lab: Lab) -> None:
    view = PlainView(lab.told)
    with lab.connect() as here, lab.connect() as there:
        with Lead(here, "small", view) as first:
            assert first.other() is None
            with Lead(there, "small", view) as second:
                assert second.other()
                assert not second()
            assert first()
        with Lead(there, "small", view) as third:
            assert third.other() is None  # it was given back
