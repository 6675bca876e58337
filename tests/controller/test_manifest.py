"""A Job is what the API takes, whatever the run, the grids and the settings; and it keeps the trainer's contract.

GRID_GOLDEN=write writes the golden Jobs anew.
"""

from __future__ import annotations

import copy
import json
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_objects import check_schema, restricted_problems

from controller.jobs import CONTAINER, SPEC_ANNOTATION, job_view
from controller.manifest import (
    FAILURE_RULES,
    SPEC_LIMIT,
    Footprint,
    JobTemplate,
    first_stages,
    to_yaml,
)
from controller.patch import MERGE_KEYS, OWN_ENV
from controller.search import Expansion, Experiment, Run, StageExpansion
from controller.settings import DEFAULT_STORE_PATIENCE, Settings, parse_settings, read_settings
from controller.stages import SAFE_NAME
from controller.standing import Work
from trainer.__main__ import parser
from trainer.failure import TERMINATION_LOG, SpecError
from trainer.identity import ID_DIGITS, NAME_LIMIT, read_spec, run_id, with_seed, write_spec
from trainer.spec import ExperimentSpec
from trainer.store import STORE_PATIENCE_SECONDS
from trainer.telemetry import asked_port

GOLDEN = Path(__file__).parent / "golden" / "jobs"
WORK = Work("alexnet-0123456789ab", is_test=False)
TEST = Work("alexnet-0123456789ab", is_test=True)
SPEC = "# One run, complete\nrun: alexnet-0123456789ab\noptimizer:\n  lr: 1.0e-05\n"
IMAGE = "image=registry.lab/experiment-grid:7"
LAB = "image: registry.lab/experiment-grid:7\n"
STORE = "s3://lab/grids"


def settings_of(text: str = "", *assignments: str) -> Settings:
    return parse_settings(LAB + text, "lab.yaml", assignments)


def made(settings: Settings, work: Work = WORK, footprint: Footprint | None = None, **given: Any) -> dict[str, Any]:
    grids = given.pop("grids", {"demo": "network"})
    return JobTemplate(settings, STORE, footprint).job(work, 0, SPEC, grids, **given)


def trainer_of(job: dict[str, Any]) -> dict[str, Any]:
    containers = job["spec"]["template"]["spec"]["containers"]
    return next(each for each in containers if each["name"] == CONTAINER)


def environment_of(job: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in trainer_of(job)["env"]}


PATCH = """
pod_template_patch:
  metadata:
    annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: "false"}
  spec:
    securityContext: {runAsUser: null, fsGroup: 1000660000}
    hostAliases: [{ip: 10.0.0.9, hostnames: [store.lab]}]
    topologySpreadConstraints:
      - {topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway,
         labelSelector: {matchLabels: {app.kubernetes.io/component: trainer}}}
    containers:
      - name: trainer
        env:
          - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}
        resources: {limits: {cpu: 3}}
        volumeMounts: [{name: lab, mountPath: /lab, readOnly: true}]
    initContainers:
      - {name: tail, image: registry.lab/tail:1, restartPolicy: Always, command: [tail],
         securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
    volumes:
      - {name: lab, nfs: null, persistentVolumeClaim: {claimName: lab}}
"""

CASES: dict[str, tuple[Settings, Work, Footprint, bool]] = {
    "kind": (read_settings("kind"), WORK, Footprint(), False),
    "gpu": (
        read_settings("gpu", (IMAGE, "gpu.product=[NVIDIA-A100-SXM4-40GB, NVIDIA-A100-SXM4-80GB]")),
        WORK,
        Footprint(700 << 20, 2_600_000_000),
        True,
    ),
    "mig": (
        settings_of(
            "gpu: {resource: nvidia.com/mig-1g.5gb}\nresources: {requests: {memory: auto}, limits: {cpu: 2}}\n"
        ),
        TEST,
        Footprint(),
        False,
    ),
    "queue": (
        settings_of("queue: {name: lab, priority_class: low}\npriority_class: batch\nactive_deadline: 86400\n"),
        WORK,
        Footprint(1_500 << 20, 2_600_000_000),
        False,
    ),
    "claim": (
        settings_of(
            "cache: {claim: images}\nstore: {endpoint: 'https://s3.lab:9000', region: eu-1, secret: s3, "
            "ca: {config_map: lab-ca}}\nimage_pull_secrets: [registry]\nnode_selector: {disk: ssd}\n"
            "resume: inexact\nstore_patience: 600\nenv: {TORCH_LOGS: '0o17'}\n"
        ),
        TEST,
        Footprint(1_500 << 20, 2_600_000_000),
        False,
    ),
    "patch": (settings_of(PATCH), WORK, Footprint(), False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_as_it_was(name: str) -> None:
    settings, work, footprint, suspended = CASES[name]
    job = made(settings, work, footprint, suspended=suspended, grids={"demo": "network", "a.b": "base"})
    text = to_yaml([job]).replace(f"version: '{version('experiment-grid')}'", "version: VERSION")
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("GRID_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert list(yaml.safe_load_all(to_yaml([job]))) == [json.loads(json.dumps(job))]


@pytest.mark.parametrize("name", CASES)
def test_the_api_takes_the_job(name: str) -> None:
    settings, work, footprint, suspended = CASES[name]
    check_schema(made(settings, work, footprint, suspended=suspended))


@pytest.mark.parametrize("name", CASES)
def test_pod_security_restricted_admits_the_pod(name: str) -> None:
    settings, work, footprint, _ = CASES[name]
    pod = made(settings, work, footprint)["spec"]["template"]["spec"]
    assert list(restricted_problems(pod)) == []
    assert pod["automountServiceAccountToken"] is False


def test_a_pod_that_restricted_refuses_is_found() -> None:
    pod = copy.deepcopy(made(settings_of())["spec"]["template"]["spec"])
    pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    pod["containers"][0]["securityContext"] = {}
    assert list(restricted_problems(pod)) == [
        "volume host",
        "trainer: allowPrivilegeEscalation",
        "trainer: capabilities",
    ]


# The contract with the trainer


@pytest.mark.parametrize("name", CASES)
def test_the_trainer_understands_its_command_line(name: str) -> None:
    settings, work, footprint, _ = CASES[name]
    given = parser().parse_args(trainer_of(made(settings, work, footprint))["args"])
    assert given.spec == "/etc/experiment/spec.yaml"
    assert given.store == STORE
    assert given.test == work.is_test
    assert given.resume == settings.resume
    assert given.store_patience == settings.store_patience


def test_a_patience_that_goes_without_saying_is_the_trainers_own() -> None:
    assert DEFAULT_STORE_PATIENCE == STORE_PATIENCE_SECONDS


def test_the_spec_is_mounted_where_the_trainer_is_told() -> None:
    job = made(settings_of())
    pod = job["spec"]["template"]
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "spec")
    (mount,) = (each for each in trainer_of(job)["volumeMounts"] if each["name"] == "spec")
    (item,) = volume["downwardAPI"]["items"]
    assert f"{mount['mountPath']}/{item['path']}" == trainer_of(job)["args"][0]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{SPEC_ANNOTATION}']"
    assert pod["metadata"]["annotations"][SPEC_ANNOTATION] == SPEC


def test_a_real_spec_travels_through_the_rendered_job() -> None:
    values = {
        "data": {"name": "birds", "fingerprint": "ab" * 32, "resize": 32, "crop": 32},
        "model": {"architecture": "alexnet"},
        "epochs": 2,
    }
    run = with_seed(ExperimentSpec.model_validate(values, strict=False), 3)
    job = JobTemplate(settings_of(), STORE).job(Work(run_id(run), False), 3, write_spec(run), {"demo": "a"})
    (read,) = yaml.safe_load_all(to_yaml([job]))
    text = read["spec"]["template"]["metadata"]["annotations"][SPEC_ANNOTATION]
    assert text == write_spec(run)
    assert read_spec(text, "spec.yaml") == run


def test_a_spec_too_large_for_a_job_is_refused() -> None:
    with pytest.raises(SpecError, match="got a spec of 100,001 bytes, expected at most 100,000"):
        JobTemplate(settings_of(), STORE).job(WORK, 0, "x" * (SPEC_LIMIT + 1), {})


@pytest.mark.parametrize(
    ("settings", "work", "port"),
    [
        (settings_of(), WORK, 9100),
        (settings_of("telemetry: {port: 9200}"), WORK, 9200),
        (settings_of("telemetry: {enabled: false}"), WORK, None),
        (settings_of(), TEST, None),
    ],
    ids=["default", "another-port", "off", "a-test"],
)
def test_a_training_listens_on_the_port_that_its_container_names(
    settings: Settings, work: Work, port: int | None
) -> None:
    job = made(settings, work)
    assert asked_port(environment_of(job)) == port
    assert trainer_of(job).get("ports", []) == ([] if port is None else [{"name": "telemetry", "containerPort": port}])


def test_failure_rules_are_in_the_order_that_matters() -> None:
    told = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in FAILURE_RULES]
    assert told == [("FailJob", [64, 65, 70]), ("Ignore", [75, 143]), ("Ignore", None)]
    assert FAILURE_RULES[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_the_last_words_are_looked_for_where_the_trainer_writes_them() -> None:
    assert trainer_of(made(settings_of()))["terminationMessagePath"] == str(TERMINATION_LOG)


def test_two_pods_of_a_run_never_overlap() -> None:
    spec = made(settings_of())["spec"]
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_no_time_to_live_is_in_a_new_job() -> None:
    assert "ttlSecondsAfterFinished" not in made(settings_of("ttl: 60\n"))["spec"]


# What settings do


@pytest.mark.parametrize(("queue", "suspended"), [("null", False), ("{name: lab}", True)], ids=["none", "queue"])
def test_a_queued_job_is_suspended_until_kueue_says_otherwise(queue: str, suspended: bool) -> None:
    assert made(settings_of(f"queue: {queue}\n"))["spec"]["suspend"] is suspended
    assert made(settings_of(f"queue: {queue}\n"), suspended=True)["spec"]["suspend"] is True


def test_the_controller_reads_of_a_job_what_was_written() -> None:
    job = made(settings_of("queue: {name: lab}\n"), TEST, grids={"demo": "network"})
    job = {**job, "metadata": {**job["metadata"], "uid": "u", "resourceVersion": "1",
                               "creationTimestamp": "2026-01-01T00:00:00Z"}}  # fmt: skip
    view = job_view(job)
    assert view is not None
    assert (view.work, view.grids, view.queue, view.is_suspended) == (TEST, {"demo": "network"}, "lab", True)
    assert view.name == "alexnet-0123456789ab-test"


def test_pods_bear_the_labels_that_never_change() -> None:
    job = made(settings_of(), grids={"demo": "network"})
    pods = job["spec"]["template"]["metadata"]["labels"]
    assert pods.items() <= job["metadata"]["labels"].items()
    assert job["metadata"]["labels"].keys() - pods.keys() == {"grid.experiment-grid.dev/demo"}


@pytest.mark.parametrize(("known", "label"), [("1.0+lab", "1.0_lab"), (None, None)], ids=["local", "not installed"])
def test_the_version_is_a_valid_label_or_none(
    known: str | None, label: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str) -> str:
        if known is None:
            raise PackageNotFoundError(name)
        return known

    monkeypatch.setattr("controller.manifest.version", of)
    assert made(settings_of())["metadata"]["labels"].get("app.kubernetes.io/version") == label


def test_only_a_named_secret_gives_credentials() -> None:
    assert "AWS_ACCESS_KEY_ID" not in environment_of(made(settings_of()))
    env = {each["name"]: each for each in trainer_of(made(settings_of("store: {secret: s3}\n")))["env"]}
    reference = env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"}
    assert env["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize("name", CASES)
def test_no_variable_stands_twice_and_the_manifests_own_are_known(name: str) -> None:
    settings, work, footprint, _ = CASES[name]
    names = [each["name"] for each in trainer_of(made(settings, work, footprint))["env"]]
    own = [each for each in names if each not in (*settings.env, "HF_TOKEN")]
    assert len(names) == len(set(names))
    assert set(own) <= set(OWN_ENV)


@pytest.mark.parametrize(
    ("text", "footprint", "memory"),
    [
        pytest.param("", Footprint(), "4Gi", id="nothing known"),
        pytest.param("", Footprint(memory_bytes=1_500 << 20), "1920Mi", id="measured"),
        pytest.param("", Footprint(memory_bytes=100 << 20), "1Gi", id="small"),
        pytest.param("", Footprint(memory_bytes=100 << 20, is_partial=True), "4Gi", id="some measured"),
        pytest.param("", Footprint(memory_bytes=8 << 30, is_partial=True), "10Gi", id="some measured, large ones"),
        pytest.param("gpu: {}", Footprint(memory_bytes=100 << 20), "8Gi", id="measured on a GPU"),
        pytest.param("resources: {requests: {memory: 3G}}", Footprint(memory_bytes=1 << 40), "3G", id="said"),
    ],
)
def test_memory_is_what_like_runs_needed(text: str, footprint: Footprint, memory: str) -> None:
    resources = trainer_of(made(settings_of(text), footprint=footprint))["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == memory


def test_a_limit_is_never_below_what_auto_comes_to() -> None:
    resources = trainer_of(made(settings_of("resources: {limits: {memory: 2Gi}}")))["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == "4Gi"


def test_limits_can_be_left_out() -> None:
    text = "resources: {limits: {memory: null, ephemeral_storage: null}}"
    assert "limits" not in trainer_of(made(settings_of(text)))["resources"]


@pytest.mark.parametrize(
    ("text", "disk", "limit"),
    [
        pytest.param("", "11Gi", "10Gi", id="nothing known"),
        pytest.param("cache: {size: 20Gi}", "21Gi", "20Gi", id="said"),
        pytest.param("cache: {claim: images}", "1Gi", None, id="claim"),
    ],
)
def test_disk_is_what_the_cache_takes_and_a_little_more(text: str, disk: str, limit: str | None) -> None:
    job = made(settings_of(text))
    (cache,) = (each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "cache")
    assert trainer_of(job)["resources"]["requests"]["ephemeral-storage"] == disk
    assert cache.get("emptyDir", {}).get("sizeLimit") == limit


def test_a_gpu_is_asked_for_in_requests_and_limits_alike() -> None:
    resources = trainer_of(made(settings_of("gpu: {resource: nvidia.com/gpu.shared, count: 2}")))["resources"]
    assert resources["requests"]["nvidia.com/gpu.shared"] == resources["limits"]["nvidia.com/gpu.shared"] == "2"


def test_a_pod_without_a_gpu_is_given_none() -> None:
    assert environment_of(made(settings_of()))["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment_of(made(settings_of("gpu: {}")))


def test_a_run_writes_its_event_file_unless_the_settings_say_no() -> None:
    assert "GRID_TENSORBOARD" not in environment_of(made(settings_of()))
    assert environment_of(made(settings_of("tensorboard: false")))["GRID_TENSORBOARD"] == "off"


def test_the_number_of_threads_is_the_same_on_every_node() -> None:
    job = made(settings_of("resources: {requests: {cpu: 2500m}}"))
    assert environment_of(job)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("text", "store", "fits"),
    [
        pytest.param("", "file:///lab/store", False, id="folder of the client"),
        pytest.param(PATCH, "file:///lab/store", True, id="folder that is mounted"),
        pytest.param(PATCH, "file:///laboratory", False, id="folder beside it"),
        pytest.param("", "file:///tmp/store", False, id="folder of one pod"),
        pytest.param("store: {uri: 's3://lab'}", "file:///lab/store", True, id="settings name another"),
    ],
)
def test_a_folder_that_no_pod_has_is_refused_as_store(text: str, store: str, fits: bool) -> None:
    told = ""
    try:
        JobTemplate(settings_of(text), store)
    except SpecError as error:
        told = error.message
    assert bool(told) is not fits
    assert fits or f"got {store}, which no pod has" in told


def test_a_patch_comes_last_and_keeps_the_rest() -> None:
    pod = made(settings_of(PATCH))["spec"]["template"]
    plain = made(settings_of())["spec"]["template"]
    assert pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert "runAsUser" not in pod["spec"]["securityContext"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (trainer,), (before,) = pod["spec"]["containers"], plain["spec"]["containers"]
    assert trainer["args"] == before["args"]
    assert trainer["resources"]["limits"] == {**before["resources"]["limits"], "cpu": 3}
    assert [each["name"] for each in trainer["env"]] == [*(each["name"] for each in before["env"]), "HF_TOKEN"]
    assert [each["name"] for each in pod["spec"]["volumes"]] == ["spec", "tmp", "cache", "shm", "lab"]


def test_lists_are_merged_as_the_api_merges_them() -> None:
    """The API's own types say by which key: k8s.io/api/core/v1, `patchMergeKey`, seen in v0.35.4."""
    ports = {"ports": [{"containerPort": 9090, "name": "metrics"}]}
    text = f"pod_template_patch: {json.dumps({'spec': {'containers': [{'name': 'trainer', **ports}]}})}\n"
    own = {"name": "telemetry", "containerPort": 9100}
    assert trainer_of(made(settings_of(text)))["ports"] == [own, *ports["ports"]]
    assert "tolerations" not in MERGE_KEYS
    taints = [{"key": "spot", "operator": "Exists"}]
    text = f"pod_template_patch: {json.dumps({'spec': {'tolerations': taints}})}\n"
    assert (
        made(settings_of("tolerations: [{key: a, operator: Exists}]\n" + text))["spec"]["template"]["spec"][
            "tolerations"
        ]
        == taints
    )


# Any run, any grid


names = st.from_regex(SAFE_NAME, fullmatch=True).filter(lambda name: len(name) <= 63 and name.isascii())
runs = st.builds(
    "{}-{}".format,
    st.from_regex(rf"[a-z0-9]([a-z0-9-]{{0,{NAME_LIMIT - 2}}}[a-z0-9])?", fullmatch=True),
    st.from_regex(rf"[0-9a-f]{{{ID_DIGITS}}}", fullmatch=True),
)
TEMPLATE = JobTemplate(settings_of(), STORE)
LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@settings(deadline=None)
@given(runs, st.booleans(), st.integers(0, 2**63), st.dictionaries(names, names, max_size=4))
def test_names_and_labels_are_valid_whatever_the_run(run: str, is_test: bool, seed: int, grids: dict[str, str]) -> None:
    metadata = TEMPLATE.job(Work(run, is_test), seed, SPEC, grids)["metadata"]
    assert DNS_LABEL.fullmatch(metadata["name"])
    for key, value in metadata["labels"].items():
        domain, slash, name = key.rpartition("/")
        assert slash
        assert all(DNS_LABEL.fullmatch(part) for part in domain.split("."))
        assert LABEL_NAME.fullmatch(name)
        assert LABEL_VALUE.fullmatch(value)


@settings(deadline=None)
@given(
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=80),
    st.text("0123456789abefox._+-:E", max_size=9),
)
def test_any_text_comes_through_yaml_as_it_was(text: str, number: str) -> None:
    things = [{"a": text, "b": number, "c": f"{text}\n{number}\n", "d": [text, True, 3]}]
    assert list(yaml.safe_load_all(to_yaml(things))) == things


def test_the_label_of_a_grid_says_where_a_run_stands_first() -> None:
    values = {"data": {"name": "birds"}, "model": {"architecture": "alexnet"}}
    spec = ExperimentSpec.model_validate(values, strict=False)
    run = Run("alexnet-0123456789ab", spec, 0)

    def stage(name: str, *, is_test: bool = False) -> StageExpansion:
        return StageExpansion(name, is_test, (Experiment(name, "a", {}, spec, (run,)),), None, None)

    expansion = Expansion("demo", (0,), (stage("one"), stage("two"), stage("test", is_test=True)))
    assert first_stages(expansion) == {WORK: "one", TEST: "test"}


def test_a_thousand_jobs_share_what_is_the_same() -> None:
    one, other = (TEMPLATE.job(Work(f"alexnet-{n:012x}", False), n, SPEC, {}) for n in (1, 2))
    assert one["spec"]["template"]["spec"] is other["spec"]["template"]["spec"]
    assert one["metadata"]["name"] != other["metadata"]["name"]
