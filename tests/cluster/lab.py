"""Controllers on a bare API server: a namespace with a store for them, and a thread that plays kubelet and trainer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from typing import Any

from results import result, result_of_test

from cluster.apiserver import ApiServer
from controller.acted import ActedGrid
from controller.archive import gather_facts, write_settings
from controller.cluster import JOBS, PODS, Cluster, Object, ObjectAbsent, ObjectChanged, open_cluster
from controller.grid import parse_grid
from controller.jobs import PodView, pod_view
from controller.live import PlainView
from controller.loops import settle, watch
from controller.mirror import Mirror
from controller.observe import take_up
from controller.passes import Passes
from controller.search import wanted
from controller.settings import parse_settings
from controller.standing import Choice, Work
from trainer.failure import Failure
from trainer.store import FileStore, S3Store

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


@dataclass
class Lab:
    """A namespace and a store; every `acting` is a controller of its own, which knows nothing of those before."""

    server: ApiServer
    cluster: Cluster
    store: FileStore | S3Store

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
        left = result_of_test(work.run) if work.is_test else result(work.run)
        self.lab.store.put(f"{'tests' if work.is_test else 'results'}/{work.run}.json", left.model_dump_json().encode())

    def _put(self, pod: PodView, phase: str, state: Object) -> None:
        container = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": phase, "containerStatuses": [{**container, "state": state}]}
        self.lab.cluster.patch(PODS, pod.name, {"status": status}, uid=pod.uid, subresource="status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
