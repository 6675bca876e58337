"""What each thing that a cluster shows of itself means for a grid's runs, judged without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grids import TEXT as GRID
from kubernetes_objects import check_schema, pod_of, restricted_problems

from controller.archive import write_settings
from controller.cli import main
from controller.cluster import NodeView, QuotaExceeded
from controller.cluster.errors import ClusterError, Forbidden
from controller.doctor import Check
from controller.election import Holder
from controller.jobs import DOMAIN, RUN_LABEL, SELECTOR, PodView, RefusalView, WorkloadView, job_view
from controller.manifest import JobTemplate
from controller.readiness.admission import judge_claim, judge_refusal, references
from controller.readiness.pod import (
    PROBE_SECONDS,
    WAITING_SECONDS,
    Seen,
    is_over,
    judge,
    probe_job,
)
from controller.readiness.queue import judge_absent_queue, judge_cluster_queue, judge_local_queue
from controller.readiness.rights import QUEUE_RIGHTS, RIGHTS, judge_rights
from controller.readiness.room import (
    applies,
    asked_of,
    judge_limits,
    judge_nodes,
    judge_quota,
    placed,
)
from controller.readiness.server import judge_holder, judge_namespace, judge_version
from controller.settings import Settings, parse_settings
from controller.standing import Work
from trainer.probe import Answer, StoreAnswer, TorchAnswer
from trainer.spec import Recipe
from trainer.store import FileStore

STORE = "s3://bucket/lab"
TEXT = """\
image: registry.lab/trainer:1
namespace: lab
resources: {requests: {cpu: 2, memory: 8Gi, ephemeral_storage: 10Gi}}
gpu: {product: [NVIDIA-A100]}
tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
store: {secret: keys, ca: {config_map: ca}}
"""
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def settings_of(more: str = "") -> Settings:
    return parse_settings(TEXT + more, "settings.yaml")


def pod_spec(more: str = "") -> dict[str, Any]:
    spec: dict[str, Any] = probe_job(JobTemplate(settings_of(more), STORE), "probe-1")["spec"]["template"]["spec"]
    return spec


def named(name: str, **rest: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, **rest}


# The server, the namespace


@pytest.mark.parametrize(
    ("version", "state"),
    [("v1.35.4", "ok"), ("v1.34.0-gke.100", "ok"), ("v1.33.1", "note"), ("v1.30.9", "wrong"), ("main", "note")],
)
def test_a_server_is_judged_by_its_version(version: str, state: str) -> None:
    assert judge_version(version, "https://here").state == state


def test_a_namespace_says_which_pods_it_admits() -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    found = judge_namespace({"metadata": {"name": "lab", "labels": labels}, "status": {"phase": "Active"}})
    assert (found.state, found.found) == ("ok", "lab, Pod Security enforces restricted")
    assert judge_namespace(named("lab", status={"phase": "Terminating"})).state == "wrong"


@pytest.mark.parametrize(
    ("holder", "state", "word"),
    [
        (None, "note", "none acts"),
        (Holder("controller-1", NOW, is_alive=True), "ok", "controller-1 acts here since 2026-05-01"),
        (Holder("controller-1", NOW, is_alive=False), "note", "renews it no more"),
    ],
    ids=["nobody", "alive", "dead"],
)
def test_it_is_told_who_acts_in_the_namespace(holder: Holder | None, state: str, word: str) -> None:
    found = judge_holder(holder)
    assert found.state == state
    assert word in found.found


# Rights


def test_each_right_that_is_missing_is_told_with_the_role_that_has_it() -> None:
    lacking = [right for right in [*RIGHTS, *QUEUE_RIGHTS] if right.target in ("jobs", "workloads", "configmaps")]
    found = list(judge_rights(lacking, 30, "ana", "lab"))
    assert [check.state for check in found].count("wrong") == 4
    texts = {f"{check.found} {check.cure}" for check in found}
    assert any(
        "may not get, list, watch jobs" in text and "--role=experiment-grid-user --user=ana" in text for text in texts
    )
    assert any("may not delete jobs" in text and "experiment-grid-user has it, too" in text for text in texts)
    assert any("list, watch workloads" in text and "experiment-grid-controller-kueue" in text for text in texts)
    assert any(
        "create, patch, delete configmaps" in text and "experiment-grid-user has it, too" in text for text in texts
    )


def test_a_service_account_is_bound_as_one() -> None:
    (found,) = judge_rights([RIGHTS[0]], 1, "system:serviceaccount:lab:robot", "lab")
    assert found.cure is not None
    assert "--serviceaccount=lab:robot" in found.cure


def test_all_rights_are_one_good_check() -> None:
    (found,) = judge_rights([], len(RIGHTS), "ana", "lab")
    assert found.state == "ok"


# What pods name, and admission


def test_a_pod_names_what_must_be_there_once_each() -> None:
    patch = """\
image_pull_secrets: [registry]
cache: {claim: decoded}
priority_class: low
pod_template_patch:
  spec:
    volumes:
    - name: more
      projected: {sources: [{secret: {name: projected}}, {configMap: {name: perhaps, optional: true}}]}
"""
    found = {(each.resource.kind, each.name): each.setting for each in references(pod_spec(patch))}
    assert found == {
        ("ServiceAccount", "experiment-grid-trainer"): "service_account",
        ("PriorityClass", "low"): "priority_class",
        ("Secret", "registry"): "image_pull_secrets",
        ("Secret", "keys"): "store.secret",
        ("ConfigMap", "ca"): "store.ca",
        ("PersistentVolumeClaim", "decoded"): "cache.claim",
        ("Secret", "projected"): "pod_template_patch",
    }


@pytest.mark.parametrize(
    ("phase", "modes", "state"),
    [("Bound", ["ReadWriteMany"], "ok"), ("Bound", ["ReadWriteOnce"], "note"), ("Lost", ["ReadWriteMany"], "wrong")],
    ids=["shared", "one node", "lost"],
)
def test_a_claim_is_judged_by_who_can_have_it(phase: str, modes: list[str], state: str) -> None:
    assert judge_claim(named("decoded", spec={"accessModes": modes}, status={"phase": phase})).state == state


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (QuotaExceeded("exceeded quota: two"), "note"),
        (Forbidden('pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath'), "wrong"),
        (ClusterError('serviceaccount "x" not found'), "wrong"),
    ],
    ids=["quota", "pod security", "anything else"],
)
def test_a_refusal_is_wrong_unless_it_passes(error: ClusterError, state: str) -> None:
    assert judge_refusal("pod", error).state == state


# Room


def test_a_pod_asks_for_its_containers_together_and_for_the_largest_before_them() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    sidecar = container("1", restartPolicy="Always")
    spec = {"containers": [container("2"), container("500m")], "initContainers": [container("3"), sidecar]}
    assert asked_of(spec) == {"requests.cpu": Decimal("3.5")}


def quota(used: dict[str, str] | None = None, **hard: str) -> dict[str, Any]:
    limits = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    return named("team", spec={"hard": limits}, status={"used": used or {}})


@pytest.mark.parametrize(
    ("limits", "used", "state", "word"),
    [
        ({"requests_cpu": "8", "pods": "10"}, {"requests.cpu": "2", "pods": "1"}, "ok", "room for 3 runs"),
        ({"requests_cpu": "8"}, {"requests.cpu": "7"}, "note", "full now"),
        ({"memory": "4Gi"}, {}, "wrong", "one run asks for 8Gi, all of it is 4Gi"),
        ({"requests_nvidia.com__gpu": "0"}, {}, "wrong", "one run asks for 1, all of it is 0"),
        ({"limits_cpu": "8"}, {}, "wrong", "of which runs say nothing"),
        ({"services": "1"}, {"services": "1"}, "ok", "bounds nothing"),
    ],
    ids=["room", "full", "too small", "no gpu", "must be said", "of other things"],
)
def test_a_quota_is_judged_by_what_one_run_asks_for(
    limits: dict[str, str], used: dict[str, str], state: str, word: str
) -> None:
    found = judge_quota(quota(used, **limits), asked_of(pod_spec()))
    assert found.state == state
    assert word in found.found


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ({}, True),
        ({"scopes": ["BestEffort"]}, False),
        ({"scopes": ["NotTerminating", "NotBestEffort"]}, True),
        (
            {
                "scopeSelector": {
                    "matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["a"]}]
                }
            },
            False,
        ),
    ],
    ids=["all", "best effort", "long", "another priority"],
)
def test_a_quota_of_other_pods_does_not_count(spec: dict[str, Any], counts: bool) -> None:
    assert applies(named("team", spec=spec), pod_spec()) == counts


@pytest.mark.parametrize(
    ("limit", "state", "word"),
    [
        ({"type": "Container", "max": {"memory": "4Gi"}}, "wrong", "the limit is 8Gi, at most 4Gi"),
        ({"type": "Container", "min": {"cpu": "4"}}, "wrong", "2 is asked for, at least 4"),
        ({"type": "Container", "default": {"cpu": "3"}}, "note", "cpu: 3"),
        ({"type": "Container", "default": {"cpu": "9"}, "maxLimitRequestRatio": {"cpu": "2"}}, "wrong", "4.5 times"),
        ({"type": "Pod", "max": {"memory": "64Gi"}}, "ok", ""),
        ({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}, "ok", ""),
    ],
    ids=["too much", "too little", "adds", "ratio", "fits", "of claims"],
)
def test_limits_of_a_namespace_are_judged_by_what_one_run_asks_for(
    limit: dict[str, Any], state: str, word: str
) -> None:
    found = judge_limits(named("limits", spec={"limits": [limit]}), pod_spec())
    assert found.state == state
    assert word in found.found


NODE = NodeView(
    name="gpu-1",
    is_ready=True,
    is_schedulable=True,
    labels={"nvidia.com/gpu.product": "NVIDIA-A100"},
    taints=("gpu=:NoSchedule",),
    allocatable={"cpu": "7900m", "memory": "64Gi", "ephemeral-storage": "100Gi", "nvidia.com/gpu": "4"},
)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"is_ready": False}, "not ready"),
        ({"is_schedulable": False}, "cordoned"),
        ({"labels": {"nvidia.com/gpu.product": "Tesla-T4"}}, "without the labels"),
        ({"taints": ("team=other:NoExecute",)}, "team=other:NoExecute"),
        ({"allocatable": {**NODE.allocatable, "nvidia.com/gpu": "0"}}, "too little nvidia.com/gpu"),
        ({"allocatable": {**NODE.allocatable, "memory": "4Gi"}}, "too little memory (4Gi, 8Gi is asked for)"),
    ],
    ids=["not ready", "cordoned", "another GPU", "a taint", "no GPU", "too small"],
)
def test_nodes_that_never_take_a_run_are_told_with_the_reason(change: dict[str, Any], word: str) -> None:
    found = judge_nodes([replace(NODE, **change)], [], pod_spec())
    assert found.state == "wrong"
    assert word in found.found


def test_nodes_say_how_many_runs_they_hold_and_how_many_now() -> None:
    idle = replace(NODE, name="gpu-2", taints=("gpu=:NoSchedule", "busy=:PreferNoSchedule"))
    taken = [("gpu-1", {"nvidia.com/gpu": Decimal(3), "cpu": Decimal(1)}), ("elsewhere", {"cpu": Decimal(9)})]
    assert judge_nodes([NODE, idle], taken, pod_spec()).found == "2 of 2 nodes fit, for 6 runs at once, 4 now"
    full = [(name, {"nvidia.com/gpu": Decimal(4)}) for name in ("gpu-1", "gpu-2")]
    assert judge_nodes([NODE, idle], full, pod_spec()).state == "note"
    assert "may not be looked at" in judge_nodes([NODE], None, pod_spec()).found


def test_a_pod_that_has_ended_takes_no_room() -> None:
    container = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    pod = {"spec": {"nodeName": "gpu-1", "containers": [container]}, "status": {"phase": "Running"}}
    assert placed(pod) == ("gpu-1", {"nvidia.com/gpu": Decimal(2)})
    assert placed({**pod, "status": {"phase": "Succeeded"}}) is None
    assert placed({"spec": {"containers": [container]}}) is None


# Queues


def test_an_absent_queue_is_told_with_those_that_are_there() -> None:
    found = judge_absent_queue("labb", "lab", ["lab", "other"])
    assert "expected one of lab, other" in found.found
    assert found.cure is not None
    assert "did you mean 'lab'?" in found.cure


def test_a_queue_that_takes_nothing_says_why() -> None:
    condition = {"type": "Active", "status": "False", "message": "Can't submit new workloads to clusterQueue"}
    found = judge_local_queue(named("lab", status={"conditions": [condition]}))
    assert found.state == "wrong"
    assert "Can't submit" in found.found
    active = {"conditions": [{"type": "Active", "status": "True"}], "pendingWorkloads": 2, "admittedWorkloads": 1}
    assert judge_local_queue(named("lab", status=active)).found == "lab: 2 workloads waiting, 1 admitted"


def flavour(**quotas: str) -> dict[str, Any]:
    names = {"gpu": "nvidia.com/gpu", "disk": "ephemeral-storage"}
    return {
        "name": "any",
        "resources": [{"name": names.get(key, key), "nominalQuota": each} for key, each in quotas.items()],
    }


PLENTY = {"cpu": "8", "memory": "64Gi", "disk": "1Ti", "gpu": "4"}


@pytest.mark.parametrize(
    ("spec", "state", "word"),
    [
        ({"resourceGroups": [{"flavors": [flavour(**PLENTY)]}]}, "ok", "has quota"),
        ({"resourceGroups": [{"flavors": [flavour(cpu="8", memory="9Gi", gpu="1")]}]}, "wrong", "ephemeral-storage"),
        ({"resourceGroups": [{"flavors": [flavour(**PLENTY | {"memory": "4Gi"})]}]}, "wrong", "memory: one run asks"),
        ({"cohortName": "all", "resourceGroups": [{"flavors": [flavour(**PLENTY | {"gpu": "0"})]}]}, "ok", "has quota"),
        ({"stopPolicy": "Hold", "resourceGroups": []}, "wrong", "stopped"),
    ],
    ids=["enough", "not covered", "too small", "borrows", "stopped"],
)
def test_a_cluster_queue_is_judged_by_what_one_run_asks_for(spec: dict[str, Any], state: str, word: str) -> None:
    active = {"conditions": [{"type": "Active", "status": "True"}]}
    found = judge_cluster_queue(named("all", spec=spec, status=active), asked_of(pod_spec()))
    assert found.state == state
    assert word in found.found


# The probe's pod


def test_a_probe_is_a_runs_job_but_of_no_run() -> None:
    template = JobTemplate(settings_of(), STORE)
    run = template.job(Work("alexnet-0123456789ab", is_test=False), 0, "", {"demo": "a"})
    job = probe_job(template, "probe-1")
    check_schema(job)
    pod = pod_of(job)
    assert pod is not None
    assert list(restricted_problems(pod)) == []
    own, theirs = pod["containers"][0], run["spec"]["template"]["spec"]["containers"][0]
    assert own == {**theirs, "command": ["python", "-m", "trainer.probe"], "args": ["--store", STORE]}
    assert pod["volumes"] == run["spec"]["template"]["spec"]["volumes"]
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"][f"{DOMAIN}/probe"] == "probe-1"
        assert metadata["labels"]["app.kubernetes.io/component"] == "trainer"  # by which network rules go
        assert not [key for key in metadata["labels"] if key.startswith("grid.")]
        assert RUN_LABEL not in metadata["labels"]
    assert RUN_LABEL in SELECTOR
    found = {**job, "metadata": {**job["metadata"], "uid": "u", "resourceVersion": "1"}}
    assert job_view(found) is None


def test_a_probe_goes_through_the_queue_that_runs_go_through() -> None:
    job = probe_job(JobTemplate(settings_of("queue: {name: lab}\n"), STORE), "probe-1")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "lab"


POD = PodView(
    name="probe-1-x",
    uid="u",
    work=Work("probe", is_test=False),
    phase="Pending",
    is_deleting=False,
    created=NOW,
    started=None,
    node=None,
    unschedulable=None,
    waiting_reason=None,
    waiting_message=None,
    exit_code=None,
    exit_reason=None,
    termination_message=None,
    finished=None,
    is_disrupted=False,
    reason=None,
    message=None,
)
PLACED = replace(POD, scheduled=NOW, node="gpu-1")
LATE = WAITING_SECONDS + 1
WORK = Work("probe-1", is_test=False)
REFUSED = RefusalView(WORK, "u", "exceeded quota: two, requested: pods=1", NOW)
QUEUED = WorkloadView(WORK, "w", NOW, "lab", is_admitted=False, is_inadmissible=False, is_evicted=False, message="full")


@pytest.mark.parametrize(
    ("seen", "state", "word"),
    [
        (Seen(2, replace(PLACED, waiting_reason="ErrImagePull", waiting_message="not found")), "wrong", "not found"),
        (Seen(2, replace(PLACED, waiting_reason="CreateContainerConfigError")), "wrong", "CreateContainerConfigError"),
        (Seen(LATE, replace(POD, unschedulable="0/3 nodes are available")), "note", "0/3 nodes are available"),
        (Seen(LATE, refusal=REFUSED), "note", "exceeded quota"),
        (Seen(LATE, refusal=replace(REFUSED, message="no such account")), "wrong", "no such account"),
        (Seen(LATE, workload=QUEUED), "note", "its queue: full"),
        (Seen(LATE, workload=replace(QUEUED, is_inadmissible=True, message="no queue")), "wrong", "no queue"),
        (Seen(LATE), "wrong", "its pod to be made"),
        (Seen(PROBE_SECONDS + 1, PLACED), "wrong", "still waits for its image"),
    ],
    ids=["image", "configuration", "no node", "quota", "refused", "queued", "inadmissible", "no pod", "no end"],
)
def test_a_probe_that_does_not_start_says_what_it_waits_for(seen: Seen, state: str, word: str) -> None:
    assert is_over(seen)
    (found,) = judge(seen, settings_of(), 0, 1)
    assert found.state == state
    assert word in found.found


@pytest.mark.parametrize(
    "seen",
    [
        Seen(1),
        Seen(WAITING_SECONDS - 1, replace(POD, unschedulable="0/3 nodes are available")),
        Seen(LATE, PLACED),
        Seen(LATE, replace(PLACED, waiting_reason="ContainerCreating")),
        Seen(LATE, replace(PLACED, phase="Running", started=NOW)),
    ],
    ids=["just made", "no node yet", "image being pulled", "being created", "running"],
)
def test_a_probe_that_may_still_answer_is_waited_for(seen: Seen) -> None:
    assert not is_over(seen)
    assert seen.waits_for


STORE_ANSWER = StoreAnswer(uri=STORE, stamp=1000.0, before=999.0, after=1001.0, is_conditional=True)
ANSWER = Answer(
    recipe=Recipe().version,
    commit="0123456789abcdef",
    python="3.13.5",
    threads=2,
    memory=8 << 30,
    time=1000.0,
    store=STORE_ANSWER,
    torch=TorchAnswer(version="2.11", cuda="12.8", num_gpus=1, gpu="NVIDIA A100", gpu_memory=80 << 30),
)


def judged(answer: Answer | str, *, exit_code: int = 0) -> dict[str, Check]:
    text = answer if isinstance(answer, str) else answer.model_dump_json()
    pod = replace(
        PLACED, phase="Succeeded" if exit_code == 0 else "Failed", exit_code=exit_code, termination_message=text
    )
    return {check.name: check for check in judge(Seen(5, pod), settings_of(), 990, 1010)}


def test_a_good_answer_is_nothing_but_good_checks() -> None:
    found = judged(ANSWER)
    assert {check.state for check in found.values()} == {"ok"}
    assert "torch 2.11 (CUDA 12.8), commit 0123456789ab" in found["image"].found
    assert found["gpu"].found == "NVIDIA A100, 85.9 GB computes in a pod"
    assert "no run is ever trained twice" in found["conditional writes from a pod"].found
    assert found["store's clock from a pod"].found == "the store's clock and the pod's agree"


@pytest.mark.parametrize(
    ("change", "name", "state", "word"),
    [
        ({"recipe": 99}, "image", "wrong", "version 99 of the recipe"),
        ({"torch": TorchAnswer(error="ImportError: libcuda")}, "image", "wrong", "libcuda"),
        ({"store": StoreAnswer(uri=STORE, error="got 403")}, "store from a pod", "wrong", "got 403"),
        ({"time": 5000.0}, "node's clock", "wrong", "3990 s ahead of"),
        ({"torch": ANSWER.torch.model_copy(update={"num_gpus": 0})}, "gpu", "wrong", "sees 0 of 1"),
        ({"torch": ANSWER.torch.model_copy(update={"error": "no kernel image"})}, "gpu", "wrong", "no kernel image"),
        ({"torch": TorchAnswer(version="2.11")}, "gpu", "wrong", "without CUDA"),
        (
            {"store": STORE_ANSWER.model_copy(update={"is_conditional": False})},
            "conditional writes from a pod",
            "note",
            "not honoured",
        ),
    ],
    ids=["recipe", "torch", "store", "clock", "no gpu", "driver", "cpu image", "conditional"],
)
def test_an_answer_tells_what_is_wrong_in_the_pod(change: dict[str, Any], name: str, state: str, word: str) -> None:
    found = judged(ANSWER.model_copy(update=change))[name]
    assert found.state == state
    assert word in found.found


def test_an_image_without_a_probe_is_told_apart_from_one_that_fails() -> None:
    assert judged("/usr/bin/python: No module named trainer.probe", exit_code=1)["image"].state == "note"
    found = judged("Traceback\nImportError: libfoo.so", exit_code=1)["image"]
    assert found.state == "wrong"
    assert "exit 1: ImportError: libfoo.so" in found.found


# The command


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    """A store, a grid and settings as files in the working directory, and no kubeconfig."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setenv("GRID_STORE", "file://./store")
    monkeypatch.delenv("GRID_SETTINGS", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    Path("small.yaml").write_text(GRID)
    Path("settings.yaml").write_text(f"{TEXT.replace('{secret', '{uri: s3://bucket, secret')}")
    return FileStore(tmp_path / "store")


def doctor(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
    """How `grid doctor` ended, and its checks by name."""
    ended = CliRunner().invoke(main, ["doctor", *words, "--json"])
    return ended.exit_code, {check["name"]: check for check in json.loads(ended.stdout)["checks"]}


def test_a_doctor_looks_at_a_cluster_where_one_is_named(store: FileStore) -> None:
    code, found = doctor("--settings", "settings.yaml")
    assert code == 1
    assert "got no kubeconfig" in found["cluster"]["found"]
    assert "torch" not in found  # runs are trained elsewhere


def test_a_doctor_looks_at_the_cluster_of_a_grid_that_was_submitted(store: FileStore) -> None:
    write_settings(store, "small", parse_settings(Path("settings.yaml").read_text(), "settings.yaml"))
    assert "got no kubeconfig" in doctor("small.yaml")[1]["cluster"]["found"]


def test_settings_that_cannot_be_read_are_one_of_the_checks(store: FileStore) -> None:
    code, found = doctor("--settings", "settings.yaml", "--setting", "image=")
    assert code == 1
    assert found["settings"]["state"] == "wrong"
    assert "cluster" not in found
    found = doctor("--settings", "settings.yaml", "--setting", "store.uri=null")[1]
    assert "which no pod has" in found["settings"]["found"]
