"""A grid of a thousand runs or ten without a machine for them: who plays their trainers, and their nodes.

Nothing is computed: kwok, or `Trainers` itself, says that a pod runs, and `Trainers` writes a result into the store and
ends it. To the API server, its controllers, the store and the product all of that is as ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.cluster import NODES, PODS, Cluster, NodeView, Object, ObjectAbsent, ObjectChanged, Unreachable, Watch
from controller.jobs import CONTAINER, SELECTOR, PodView, pod_view
from controller.standing import Work
from k8s.kind.binaries import program

from .apiserver import FOLLOWING_ITS_PARENT, programs

FAKE = "kwok.x-k8s.io/node"  # annotation, label and taint of fake nodes; kwok's own name for it
SCHEDULING = {
    "node_selector": {FAKE: "fake"},
    "tolerations": [{"key": FAKE, "operator": "Equal", "value": "fake", "effect": "NoSchedule"}],
}
"""The settings with which runs are placed on fake nodes, and nothing else is."""
ENDS = "crowd.test/ends"  # annotation of a pod whose result is in the store, for kwok
NUM_HANDS = 8
NODE_SECONDS = 120


def wide_text(name: str, num_runs: int) -> str:
    """A grid of so many rows with one run each."""
    rates = ", ".join(f"{0.0001 * (number + 1):.4f}" for number in range(num_runs))
    return (
        f"grid: {name}\n"
        "base: {data: {name: pictures}, model: {architecture: resnet18}}\n"
        "stages:\n"
        f"  - {{name: wide, vary: {{optimizer.lr: [{rates}]}}}}\n"
    )


class Trainers:
    """Plays the trainers of a namespace, and counts their pods: `leave` writes what one leaves in the store.

    With `is_kubelet` the kubelets too; else kwok says that a pod runs, and ends it where it `ends`.
    """

    def __init__(self, cluster: Cluster, leave: Callable[[Work], object], *, is_kubelet: bool) -> None:
        self.pods: dict[Work, set[str]] = {}  # uids of all that ever were
        self.most_at_once = 0  # pods that had not ended
        self.may_end = threading.Event()  # until it is set, what runs goes on running
        self._cluster = cluster
        self._leave = leave
        self._is_kubelet = is_kubelet
        self._alive: set[str] = set()
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._hands = ThreadPoolExecutor(NUM_HANDS, thread_name_prefix="trainer")
        self._failures: list[BaseException] = []
        self._is_closed = False
        self._stream: Watch | None = None
        self._thread = threading.Thread(target=self._follow, name="trainers", daemon=True)

    def __enter__(self) -> Trainers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self.may_end.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join()
        self._hands.shutdown()
        if self._failures:
            raise self._failures[0]

    def _follow(self) -> None:
        try:
            listing = self._cluster.list(PODS, lambda pod: pod, selector=SELECTOR)
            version = listing.resource_version
            for pod in listing.items:
                self._see("ADDED", pod)
            while not self._is_closed:
                with suppress(Unreachable):
                    for event, found in self._open(version):
                        version = found["metadata"]["resourceVersion"]
                        if event != "BOOKMARK":
                            self._see(event, found)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for the end
            self._failures.append(error)

    def _open(self, version: str) -> Watch:
        self._stream = self._cluster.watch(PODS, version, selector=SELECTOR, seconds=300)
        if self._is_closed:
            self._stream.close()
        return self._stream

    def _see(self, event: str, found: Object) -> None:
        pod = pod_view(found)
        assert pod is not None
        self.pods.setdefault(pod.work, set()).add(pod.uid)
        if event == "DELETED" or pod.is_terminal:
            self._alive.discard(pod.uid)
            return
        self._alive.add(pod.uid)
        self.most_at_once = max(self.most_at_once, len(self._alive))
        if pod.is_deleting:
            return
        if pod.phase == "Running" and pod.uid not in self._ended:
            self._ended.add(pod.uid)
            self._do(self._end, pod)
        elif pod.phase == "Pending" and self._is_kubelet and pod.uid not in self._begun:
            self._begun.add(pod.uid)
            self._do(self._begin, pod)

    def _do(self, act: Callable[[PodView], None], pod: PodView) -> None:
        self._hands.submit(act, pod).add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None and not isinstance(error, ObjectAbsent | ObjectChanged):  # who deletes pods may
            self._failures.append(error)

    def _begin(self, pod: PodView) -> None:
        self._put(pod, "Running", {"running": {"startedAt": _now()}})

    def _end(self, pod: PodView) -> None:
        self.may_end.wait()
        self._leave(pod.work)
        if self._is_kubelet:
            times = {"startedAt": _now(), "finishedAt": _now()}
            self._put(pod, "Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed", **times}})
        else:
            self._cluster.patch(PODS, pod.name, {"metadata": {"annotations": {ENDS: "yes"}}}, uid=pod.uid)

    def _put(self, pod: PodView, phase: str, state: dict[str, Any]) -> None:
        container = {"name": CONTAINER, "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": phase, "containerStatuses": [{**container, "state": state}]}
        self._cluster.patch(PODS, pod.name, {"status": status}, uid=pod.uid, subresource="status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Fake nodes


@contextmanager
def fake_nodes(cluster: Cluster, kubeconfig: Path, folder: Path, number: int = 4) -> Iterator[None]:
    """Nodes that run nothing, and kwok as a process that speaks for them; both are gone afterwards.

    They bear a taint: only what SCHEDULING places, and what tolerates every taint, gets there.
    """
    names = {f"fake-{number}" for number in range(number)}
    (folder / "kwok.yaml").write_text("\n---\n".join(json.dumps(stage) for stage in STAGES))
    line = [
        *(sys.executable, "-c", FOLLOWING_ITS_PARENT, str(programs().get("kwok") or program("kwok"))),
        f"--kubeconfig={kubeconfig}",
        f"--manage-nodes-with-annotation-selector={FAKE}=fake",
        "--node-lease-duration-seconds=40",
        f"--config={folder / 'kwok.yaml'}",
    ]
    with (folder / "kwok.log").open("wb") as log, subprocess.Popen(line, stdout=log, stderr=log) as process:

        def told(what: str) -> str:
            return f"{what}: {(folder / 'kwok.log').read_text()[-2000:]}"

        try:
            _remove_nodes(cluster, names)  # of a killed run
            for name in sorted(names):
                cluster.create(NODES, _node(name))
            deadline = time.monotonic() + NODE_SECONDS
            while not names <= {each.name for each in _nodes(cluster) if each.is_ready and not _is_shut(each)}:
                assert process.poll() is None, told("kwok ended")
                assert time.monotonic() < deadline, told(f"nodes are not ready within {NODE_SECONDS} s")
                time.sleep(0.2)
            yield
        finally:
            _remove_nodes(cluster, names)
            process.kill()


def _nodes(cluster: Cluster) -> Sequence[NodeView]:
    found = cluster.nodes()
    assert found is not None
    return found


def _remove_nodes(cluster: Cluster, names: Collection[str]) -> None:
    """Those of these names are gone, with what they own."""
    deadline = time.monotonic() + NODE_SECONDS
    while there := {each.name for each in _nodes(cluster)} & set(names):
        assert time.monotonic() < deadline, f"{', '.join(sorted(there))}: not gone within {NODE_SECONDS} s"
        for name in there:
            with suppress(ObjectAbsent):
                cluster.delete(NODES, name)
        time.sleep(0.2)


def _is_shut(node: NodeView) -> bool:
    """Whether Kubernetes itself keeps pods off the node."""
    return any(each.startswith("node.kubernetes.io/") for each in node.taints)


def _node(name: str) -> Object:
    resources = {"cpu": "1k", "memory": "10Ti", "ephemeral-storage": "100Ti", "pods": "20k"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE: "fake"},
            "labels": {FAKE: "fake", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "spec": {"taints": [{"key": FAKE, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"allocatable": resources, "capacity": resources},
    }


def _stage(name: str, kind: str, selector: list[dict[str, Any]], after: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": selector},
            "next": after,
            **more,
        },
    }


_IS_DELETED = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
_IS_NOT_DELETED = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
_READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
_CONDITIONS = """\
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
"""
_STARTS = """\
containerStatuses:
{{ range .spec.containers }}
- {image: {{ .image | Quote }}, imageID: "", name: {{ .name | Quote }}, ready: true, restartCount: 0,
   state: {running: {startedAt: {{ Now | Quote }}}}}
{{ end }}
phase: Running
startTime: {{ Now | Quote }}
"""
_SUCCEEDS = """\
containerStatuses:
{{ range .spec.containers }}
- {image: {{ .image | Quote }}, imageID: "", name: {{ .name | Quote }}, ready: false, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}}}}
{{ end }}
phase: Succeeded
"""
STAGES = [  # https://kwok.sigs.k8s.io/docs/user/stages-configuration/
    _stage("node-ready", "Node", [{"key": _READY, "operator": "NotIn", "values": ["True"]}],
           {"statusTemplate": _CONDITIONS}),
    _stage("pod-starts", "Pod", [_IS_NOT_DELETED, {"key": ".status.phase", "operator": "In", "values": ["Pending"]}],
           {"statusTemplate": _STARTS}),
    _stage(
        "pod-succeeds",
        "Pod",
        [
            _IS_NOT_DELETED,
            {"key": ".status.phase", "operator": "In", "values": ["Running"]},
            {"key": f'.metadata.annotations["{ENDS}"]', "operator": "Exists"},
        ],
        {"statusTemplate": _SUCCEEDS},
    ),
    _stage("pod-goes", "Pod", [_IS_DELETED], {"delete": True}),
]  # fmt: skip
"""What becomes of nodes and pods: kwok's own stages, but that a pod ends when it is told to and no sooner."""
