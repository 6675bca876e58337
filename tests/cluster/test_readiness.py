"""What `grid doctor` finds on a real kube-apiserver, where a thread plays kubelet, and in pods of a real cluster."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.apiserver import NOBODY, ApiServer, api_server, missing
from cluster.grids import Bench, grid_text
from controller.cluster import (
    ACCOUNTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    QUOTAS,
    SECRETS,
    SYSTEM_CONFIG_MAPS,
    Cluster,
    ClusterError,
    Object,
    Resource,
    open_cluster,
)
from controller.doctor import Check
from controller.interrupts import Interrupted
from controller.jobs import PROBE_LABEL
from controller.manifest import JobTemplate
from controller.readiness import check_cluster, pod
from controller.readiness.rights import RIGHTS, USER_ROLE
from controller.settings import parse_settings
from trainer.failure import ExitCode
from trainer.probe import Answer, StoreAnswer, TorchAnswer
from trainer.spec import Recipe

BASE = Path(__file__).parent.parent.parent / "k8s" / "base"
STORE = "s3://bucket/lab"
SETTINGS = "image: none:1\nstore: {secret: keys}\nresources: {requests: {memory: 512Mi}}\n"
ROLES = Resource("rbac.authorization.k8s.io/v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding")
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if reason := missing():
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        server.start_controllers("job-controller", "resourcequota-controller", "garbage-collector-controller")
        yield server


@dataclass
class Kubelet:
    """Gives every probe's pod a node and an end, as `answer` says; with none it leaves them as they are."""

    cluster: Cluster
    answer: Object | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.1):
            if self.answer is None:
                continue
            for name in self.cluster.list(PODS, lambda pod: pod["metadata"]["name"], selector=PROBE_LABEL).items:
                with suppress(ClusterError):  # it is gone
                    self.cluster.patch(PODS, name, {"status": self.answer}, subresource="status")


@dataclass
class Lab:
    """A namespace of the server, as an administrator made it."""

    server: ApiServer
    cluster: Cluster
    kubelet: Kubelet

    def connect(self, user: str) -> Cluster:
        return open_cluster(self.cluster.namespace, kubeconfig=str(self.server.kubeconfig(user)), patience_seconds=10)

    def checks(self, more: str = "", *, user: str = "admin", probes: bool = False) -> dict[str, list[Check]]:
        text = f"{SETTINGS}namespace: {self.cluster.namespace}\n{more}"
        template = JobTemplate(parse_settings(text, "settings.yaml"), STORE)
        found: dict[str, list[Check]] = {}
        with self.connect(user) as cluster:
            for check in check_cluster(cluster, template, probes=probes):
                found.setdefault(check.name, []).append(check)
        return found

    def jobs(self) -> list[str]:
        return list(self.cluster.list(JOBS, lambda job: str(job["metadata"]["name"])).items)

    def until_no_job(self) -> None:
        until = time.monotonic() + 30
        while self.jobs():
            assert time.monotonic() < until, f"still there: {self.jobs()}"
            time.sleep(0.2)


@pytest.fixture
def lab(server: ApiServer) -> Iterator[Lab]:
    name = f"test-{secrets.token_hex(4)}"
    with open_cluster(name, kubeconfig=str(server.kubeconfig()), patience_seconds=10) as cluster:
        cluster.create(NAMESPACES, {"metadata": {"name": name, "labels": ENFORCED}})
        cluster.create(ACCOUNTS, {"metadata": {"name": "experiment-grid-trainer"}})
        cluster.create(SECRETS, {"metadata": {"name": "keys"}, "stringData": {"AWS_ACCESS_KEY_ID": "unseen"}})
        kubelet = Kubelet(cluster)
        thread = threading.Thread(target=kubelet.run)
        thread.start()
        yield Lab(server, cluster, kubelet)
        kubelet.stop.set()
        thread.join()


@pytest.fixture
def node(lab: Lab) -> Iterator[str]:
    """A node that nothing runs on."""
    name = f"node-{secrets.token_hex(4)}"
    lab.cluster.create(NODES, {"metadata": {"name": name}})
    size = {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "100Gi", "pods": "10"}
    ready = {"type": "Ready", "status": "True"}
    status = {"capacity": size, "allocatable": size, "conditions": [ready]}
    lab.cluster.patch(NODES, name, {"status": status, "spec": {"taints": None}}, subresource="status")
    lab.cluster.patch(NODES, name, {"spec": {"taints": None}})
    yield name
    lab.cluster.delete(NODES, name)


def ended(answer: Answer, exit_code: int = 0) -> Object:
    """A pod's status once its container has ended with that answer."""
    end = {"exitCode": exit_code, "message": answer.model_dump_json(), "startedAt": STAMP, "finishedAt": STAMP}
    container = {"name": "trainer", "image": "none:1", "imageID": "", "ready": False, "restartCount": 0}
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": STAMP}],
        "containerStatuses": [{**container, "state": {"terminated": end}}],
    }


STAMP = "2026-05-01T12:00:00Z"


def answer(**change: Any) -> Answer:
    now = time.time()
    return Answer(
        recipe=Recipe().version,
        commit=None,
        python="3.13.5",
        threads=1,
        memory=1 << 30,
        time=now,
        store=StoreAnswer(uri=STORE, stamp=now, before=now, after=now, is_conditional=True),
        torch=TorchAnswer(version="2.11"),
    ).model_copy(update=change)


def states(checks: dict[str, list[Check]]) -> dict[str, str]:
    return {name: each.state for name, found in checks.items() for each in found}


def test_a_cluster_that_has_all_is_found_ready(lab: Lab, node: str) -> None:
    lab.kubelet.answer = ended(answer())
    found = lab.checks(probes=True)
    assert states(found) == {
        "cluster": "ok",
        "cluster's clock": "ok",
        "namespace": "ok",
        "rights": "ok",
        "named objects": "ok",
        "admission": "ok",
        "quota": "ok",
        "nodes": "ok",
        "controller": "note",
        "image": "ok",
        "store from a pod": "ok",
        "store's clock from a pod": "ok",
        "conditional writes from a pod": "ok",
        "node's clock": "ok",
    }
    assert found["admission"][0].found == "the Job would be taken, and its pod admitted"
    assert found["nodes"][0].found == "1 of 1 node fits, for 4 runs at once, 4 now"
    lab.until_no_job()


def test_who_may_do_nothing_is_told_so_and_the_projects_role_mends_it(lab: Lab) -> None:
    before = lab.checks(user=NOBODY)["rights"]
    assert any("nobody may not get, list, watch jobs" in check.found for check in before)
    assert f"--role={USER_ROLE} --user={NOBODY}" in str(before[0].cure)
    roles = [each for each in yaml.safe_load_all((BASE / "rights.yaml").read_text()) if each["kind"] == "Role"]
    role = next(each for each in roles if each["metadata"]["name"] == USER_ROLE)
    lab.cluster.create(ROLES, role)
    subject = {"kind": "User", "name": NOBODY, "apiGroup": "rbac.authorization.k8s.io"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]}
    lab.cluster.create(ROLE_BINDINGS, {"metadata": {"name": "users"}, "roleRef": reference, "subjects": [subject]})
    found = lab.checks(user=NOBODY)
    assert "wrong" not in states(found).values()
    assert [(check.state, check.found) for check in found["rights"]] == [
        ("ok", f"{NOBODY} has all {len(RIGHTS)} that commands use")
    ]
    assert found["admission"][0].found == "the Job would be taken, and its pod admitted"
    assert found["quota"][0].state == "ok"
    assert found["nodes"][0].state == "note"
    seen, unseen = found["named objects"]
    assert (seen.state, seen.found) == ("ok", "ServiceAccount experiment-grid-trainer: there")
    assert (unseen.state, unseen.found.partition(":")[0]) == ("note", "Secret keys")


def test_what_pods_name_and_is_not_there_is_told(lab: Lab) -> None:
    found = lab.checks("service_account: nobody-made-it\nimage_pull_secrets: [registry]\npriority_class: urgent\n")
    assert found["Secret registry"][0].cure is not None
    assert "`image_pull_secrets`" in found["Secret registry"][0].cure
    assert found["ServiceAccount nobody-made-it"][0].state == "wrong"
    assert found["PriorityClass urgent"][0].state == "wrong"
    assert "no PriorityClass with name urgent" in found["admission"][0].found


def test_a_namespace_that_is_not_there_ends_the_checks(lab: Lab) -> None:
    with open_cluster("elsewhere", kubeconfig=str(lab.server.kubeconfig())) as cluster:
        template = JobTemplate(parse_settings(SETTINGS, "settings.yaml"), STORE)
        found = list(check_cluster(cluster, template))
    assert [(check.name, check.state) for check in found][-1] == ("namespace", "wrong")


def test_a_pod_that_pod_security_refuses_is_told_before_any_is_made(lab: Lab) -> None:
    found = lab.checks("pod_template_patch: {spec: {volumes: [{name: home, nfs: {server: nas, path: /}}]}}\n")
    assert found["admission"][0].state == "wrong"
    assert "restricted volume types" in found["admission"][0].found


def test_a_quota_that_is_too_small_is_told_before_any_pod_is_made(lab: Lab) -> None:
    lab.cluster.create(QUOTAS, {"metadata": {"name": "small"}, "spec": {"hard": {"requests.memory": "256Mi"}}})
    found = lab.checks()
    assert found["quota small"][0].found == "requests.memory: one run asks for 512Mi, all of it is 256Mi"


def test_that_no_node_fits_is_wrong_unless_nodes_are_made_on_demand(lab: Lab, node: str) -> None:
    more = "gpu: {resource: example.com/none}\n"
    assert lab.checks(more)["nodes"][0].state == "wrong"
    name = "cluster-autoscaler-status"
    lab.cluster.create(SYSTEM_CONFIG_MAPS, {"metadata": {"name": name}})
    found = lab.checks(more)["nodes"][0]
    lab.cluster.delete(SYSTEM_CONFIG_MAPS, name)
    assert found.state == "note"
    assert "1 with too little example.com/none" in found.found
    assert f"the ConfigMap kube-system/{name} says that nodes are made on demand" in found.found


def test_a_queue_where_there_is_no_kueue_is_told(lab: Lab) -> None:
    assert "not installed" in lab.checks("queue: {name: lab}\n")["queue"][0].found


def test_a_probe_that_a_quota_refuses_says_so_and_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "WAITING_SECONDS", 4.0)
    lab.cluster.create(QUOTAS, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    until = time.monotonic() + 30
    while "hard" not in lab.cluster.get(QUOTAS, "none").get("status", {}):
        assert time.monotonic() < until
        time.sleep(0.1)
    found = lab.checks(probes=True)["probe"][0]
    assert found.state == "note"
    assert "exceeded quota: none" in found.found
    lab.until_no_job()


@pytest.mark.parametrize("failing", [Interrupted, ClusterError], ids=["Ctrl-C", "error"])
def test_a_probe_that_is_left_early_leaves_nothing(lab: Lab, failing: type[BaseException]) -> None:
    template = JobTemplate(parse_settings(f"{SETTINGS}namespace: {lab.cluster.namespace}\n", "settings.yaml"), STORE)
    seen: list[list[str]] = []

    def tell(_text: str) -> None:
        seen.append(lab.jobs())
        raise failing("stop")

    with pytest.raises(failing):
        list(pod.check_in_pod(lab.cluster, template, tell))
    assert len(seen[0]) == 1
    lab.until_no_job()


def test_a_probe_that_was_left_behind_is_removed_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    template = JobTemplate(parse_settings(f"{SETTINGS}namespace: {lab.cluster.namespace}\n", "settings.yaml"), STORE)
    lab.cluster.create(JOBS, pod.probe_job(template, "probe-1"))
    assert pod.remove_leftovers(lab.cluster) == 0
    monkeypatch.setattr(pod, "KEPT_SECONDS", -pod.PROBE_SECONDS - 60)
    assert pod.remove_leftovers(lab.cluster) == 1
    lab.until_no_job()


# On a real cluster


def doctor(bench: Bench, *words: str, **settings: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """How `grid doctor` ended, and its checks by name; of several of one name the last."""
    path = bench.folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**bench.settings, **settings}))
    done = bench.attempt("doctor", *words, "--settings", path, "--json")
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_pod_of_the_runs_making_tries_image_store_and_clock(bench: Bench) -> None:
    code, found = doctor(bench)
    assert code == ExitCode.OK, found
    for name in (
        "image",
        "store from a pod",
        "store's clock from a pod",
        "conditional writes from a pod",
        "node's clock",
    ):
        assert found[name]["state"] == "ok", found[name]
    assert found["nodes"]["state"] in ("ok", "note")
    assert found["admission"]["found"] == "the Job would be taken, and its pod admitted"
    bench.cluster.until("no probe is left", lambda: not bench.jobs(), seconds=60)


def test_a_submitted_grid_is_checked_with_its_settings(bench: Bench) -> None:
    bench.submit(grid_text("checked"))
    ended = bench.attempt("doctor", "checked", "--no-probe", "--json")
    names = [check["name"] for check in json.loads(ended.stdout)["checks"]]
    assert "admission" in names
    assert "image" not in names


def test_an_image_that_cannot_be_pulled_is_told_within_half_a_minute(bench: Bench) -> None:
    wrong = f"{bench.cluster.image.partition('@')[0].rpartition(':')[0]}:none-such"
    started = time.monotonic()
    code, found = doctor(bench, image=wrong)
    assert code == 1
    assert found["image"]["state"] == "wrong"
    assert "none-such" in found["image"]["found"]
    assert time.monotonic() - started < 60  # that of starting the program and of the other checks among it


def test_a_gpu_that_no_node_has_is_told_and_waited_for_half_a_minute(bench: Bench) -> None:
    code, found = doctor(bench, gpu={"resource": "example.com/none"})
    assert code == 1
    assert "too little example.com/none" in found["nodes"]["found"]
    assert "example.com/none" in found["probe"]["found"]


def test_a_store_that_pods_do_not_reach_is_told_from_a_pod(bench: Bench) -> None:
    namespace = bench.cluster.namespace
    code, found = doctor(bench, store={**bench.settings["store"], "endpoint": f"http://nowhere.{namespace}.svc:9000"})
    assert code == 1
    assert found["store"]["state"] == "ok"  # from here
    assert found["store from a pod"]["state"] == "wrong"
