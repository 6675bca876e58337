"""What a pod of the runs' own making finds: image, store, clock and GPU, asked of `trainer.probe` in it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from controller.attempts import CONFIGURATION_REASONS, IMAGE_REASONS
from controller.cluster import (
    EVENTS,
    JOBS,
    PODS,
    Cluster,
    ClusterError,
    Forbidden,
    Kueue,
    Object,
    ObjectAbsent,
)
from controller.doctor import Check, judge_clock, judge_store, skew_seconds
from controller.jobs import (
    CONTAINER,
    PROBE_LABEL,
    PROBE_SELECTOR,
    REFUSAL_FIELDS,
    RUN_LABEL,
    SEED_LABEL,
    SPEC_ANNOTATION,
    WORK_LABEL,
    PodView,
    RefusalView,
    WorkloadView,
    pod_view,
    read_time,
    refusal_view,
    workload_view,
)
from controller.manifest import JobTemplate
from controller.settings import Settings
from controller.standing import Work
from controller.wording import bytes_text, seconds_text
from trainer.probe import Answer
from trainer.spec import Recipe

PROBE_COMMAND = ["python", "-m", "trainer.probe"]
NO_PROBE = "No module named trainer.probe"
PROBE_SECONDS = 600  # an image of gigabytes is pulled for minutes
WAITING_SECONDS = 25.0  # for a node, a quota or a queue
POLL_SECONDS = 1.0
GRACE_SECONDS = 5  # it has no checkpoint to write
KEPT_SECONDS = 120  # where it could not be deleted
WORKLOAD_JOB_LABEL = "kueue.x-k8s.io/job-uid"  # of a Workload, as Kueue sets it


def probe_name() -> str:
    """A name that no other probe has."""
    return f"probe-{secrets.token_hex(5)}"


def probe_job(template: JobTemplate, name: str) -> Object:
    """A Job as runs have it, whose pod says what it finds and ends. It is of no run and of no grid.

    Kubernetes ends and removes it by itself, should whoever made it be killed.
    """
    job = template.job(Work(name, is_test=False), 0, "", {})
    metadata, spec = job["metadata"], job["spec"]
    pod: Object = spec["template"]
    labels = {PROBE_LABEL: name}
    own = (RUN_LABEL, SEED_LABEL, WORK_LABEL)
    annotations = {
        key: value for key, value in pod["metadata"].get("annotations", {}).items() if key != SPEC_ANNOTATION
    }
    containers = [_asking(each, template.store_uri) for each in pod["spec"]["containers"]]
    return {
        **job,
        "metadata": {**metadata, "name": name, "labels": _without(metadata["labels"], own) | labels},
        "spec": {
            "suspend": spec["suspend"],
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "activeDeadlineSeconds": PROBE_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {
                    **pod["metadata"],
                    "labels": _without(pod["metadata"]["labels"], own) | labels,
                    "annotations": annotations,
                },
                "spec": {**pod["spec"], "terminationGracePeriodSeconds": GRACE_SECONDS, "containers": containers},
            },
        },
    }


def _asking(container: dict[str, Any], store_uri: str) -> dict[str, Any]:
    if container["name"] != CONTAINER:
        return container
    return {**container, "command": PROBE_COMMAND, "args": ["--store", store_uri]}


def _without(labels: dict[str, str], keys: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key not in keys}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a probe, so many seconds after it was made."""

    seconds: float
    pod: PodView | None = None
    refusal: RefusalView | None = None
    workload: WorkloadView | None = None

    @property
    def waits_for(self) -> str:
        """What the probe waits for now, in a few words."""
        if self.pod is not None:
            if self.pod.started is not None:
                return "its answer"
            if self.pod.unschedulable is not None:
                return f"a node: {self.pod.unschedulable}"
            return "its image, and to be started" if self.pod.scheduled else "a node"
        if self.refusal is not None:
            return f"a quota: {self.refusal.message}"
        if self.workload is not None and not self.workload.is_admitted:
            return f"its queue: {self.workload.message or 'Kueue has not said why'}"
        return "its pod to be made"


def check_in_pod(cluster: Cluster, template: JobTemplate, tell: Callable[[str], None]) -> Iterator[Check]:
    """Start a pod as a run's, and say what it finds; it is gone at the end, however that comes.

    What it waits for is told to `tell` as it changes.
    """
    remove_leftovers(cluster)
    name = probe_name()
    began = time.time()
    try:
        try:
            made = cluster.create(JOBS, probe_job(template, name))
        except ClusterError as error:
            yield Check("probe", "wrong", error.message, error.hint)
            return
        uid = made["metadata"]["uid"] if template.settings.queue is not None else None
        seen = _watched(cluster, name, tell, queued_uid=uid)
    finally:
        _remove(cluster, name)
    yield from judge(seen, template.settings, began, time.time())


def _watched(cluster: Cluster, name: str, tell: Callable[[str], None], *, queued_uid: str | None) -> Seen:
    """The probe when it has come to something, or is given up; `queued_uid` is its Job's where a queue is set."""
    began = time.monotonic()
    told = ""
    kueue = cluster.kueue() if queued_uid is not None else None
    while True:
        seen = _look(cluster, name, time.monotonic() - began, kueue, f"{WORKLOAD_JOB_LABEL}={queued_uid}")
        if is_over(seen):
            return seen
        if seen.waits_for != told:
            told = seen.waits_for
            tell(f"the probe waits for {told}")
        time.sleep(POLL_SECONDS)


def _look(cluster: Cluster, name: str, seconds: float, kueue: Kueue | None, selector: str) -> Seen:
    pods = cluster.list(PODS, _as_of_a_run, selector=f"{PROBE_LABEL}={name}").items
    if pods:
        return Seen(seconds, pods[-1])
    refusals: tuple[RefusalView, ...] = ()
    with suppress(Forbidden):
        refusals = cluster.list(EVENTS, refusal_view, fields=f"{REFUSAL_FIELDS},involvedObject.name={name}").items
    if refusals or kueue is None:
        return Seen(seconds, refusal=max(refusals, key=lambda each: each.time, default=None))
    with suppress(Forbidden):
        if found := cluster.list(kueue.workloads, workload_view, selector=selector).items:
            return Seen(seconds, workload=found[0])
    return Seen(seconds)


def _as_of_a_run(pod: Object) -> PodView | None:
    """The pod as a run's would be read."""
    metadata = pod["metadata"]
    return pod_view({**pod, "metadata": {**metadata, "labels": {**metadata["labels"], RUN_LABEL: "probe"}}})


def _remove(cluster: Cluster, name: str) -> None:
    with suppress(ClusterError):  # Kubernetes removes it by itself, or the next doctor does
        cluster.delete(JOBS, name)


def remove_leftovers(cluster: Cluster) -> int:
    """Delete probes that their makers left behind; how many. Those that may still be asked for are let be."""
    oldest = datetime.now(UTC) + timedelta(seconds=cluster.clock_offset() - PROBE_SECONDS - KEPT_SECONDS)
    num_removed = 0

    def old(job: Object) -> str | None:
        metadata = job["metadata"]
        return metadata["name"] if read_time(metadata["creationTimestamp"]) < oldest else None

    for name in cluster.list(JOBS, old, selector=PROBE_SELECTOR).items:
        with suppress(ObjectAbsent):
            cluster.delete(JOBS, name)
            num_removed += 1
    return num_removed


# What it comes to


def is_over(seen: Seen) -> bool:
    """Whether waiting on shows no more."""
    if seen.seconds > PROBE_SECONDS:
        return True
    pod = seen.pod
    if pod is None or pod.scheduled is None:
        is_terminal = pod is not None and pod.is_terminal
        return is_terminal or seen.seconds > WAITING_SECONDS
    return pod.is_terminal or pod.waiting_reason in IMAGE_REASONS | CONFIGURATION_REASONS


def judge(seen: Seen, settings: Settings, began: float, ended: float) -> Iterator[Check]:
    """What a probe has shown that lived between two times of this machine."""
    pod = seen.pod
    if pod is None or (pod.scheduled is None and not pod.is_terminal):
        yield _judge_wait(seen)
    elif pod.waiting_reason in IMAGE_REASONS:
        found = f"{settings.image}: {pod.waiting_reason}: {pod.waiting_message or 'no reason is given'}"
        cure = "correct `image`, or `image_pull_secrets`; the node, not this machine, must reach its registry"
        yield Check("image", "wrong", found, cure)
    elif pod.waiting_reason in CONFIGURATION_REASONS:
        found = f"{pod.waiting_reason}: {pod.waiting_message or 'no reason is given'}"
        yield Check("probe", "wrong", found, "what the message names is in the settings: correct it, or make it")
    elif not pod.is_terminal:
        found = f"no answer within {seconds_text(PROBE_SECONDS)}: it still waits for {seen.waits_for}"
        yield Check("probe", "wrong", found, "`kubectl describe pod` of a run says more")
    else:
        yield from _judge_end(pod, settings, began, ended)


def _judge_wait(seen: Seen) -> Check:
    """What it means that no node runs the probe."""
    found = f"after {seconds_text(seen.seconds)} the probe waits for {seen.waits_for}: image and store are not tried"
    if seen.workload is not None and seen.workload.is_inadmissible:
        return Check("probe", "wrong", found, "as things are, Kueue never admits it: see the queue above")
    if seen.pod is not None or seen.workload is not None:
        return Check("probe", "note", found, "runs wait as it does: try again when there is room, or see nodes above")
    if seen.refusal is not None and "exceeded quota" in seen.refusal.message:
        return Check("probe", "note", found, "runs wait as it does, until the quota has room")
    return Check("probe", "wrong", found, "is the cluster's Job controller well, and does nothing forbid the pod?")


def _judge_end(pod: PodView, settings: Settings, began: float, ended: float) -> Iterator[Check]:
    text = pod.termination_message or ""
    try:
        answer = Answer.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        yield _judge_silence(pod, text, settings)
        return
    yield judge_image(answer, settings)
    if answer.store is not None:
        yield from judge_store(answer.store, place=" from a pod", own_clock="the pod's")
    skew = skew_seconds(answer.time, began, ended)
    yield judge_clock("node's clock", skew, "the node's clock", "this machine's", "signatures and leases")
    if settings.gpu is not None:
        yield judge_gpus(answer, settings.gpu.count)


def _judge_silence(pod: PodView, text: str, settings: Settings) -> Check:
    """What it means that the pod ended without an answer."""
    last = (text.strip().splitlines() or [pod.message or "no message"])[-1]
    ended = f"exit {pod.exit_code}" if pod.exit_code is not None else str(pod.reason or pod.phase)
    if NO_PROBE in text:
        found = f"{settings.image} starts, but has no trainer.probe: store and device are not tried from it"
        return Check("image", "note", found, "build it from this version, with `make image`")
    found = f"{settings.image}: ended with {ended}{f' ({pod.exit_reason})' if pod.exit_reason else ''}: {last}"
    return Check("image", "wrong", found, "is it an image of this project? `make image` builds one")


def judge_image(answer: Answer, settings: Settings) -> Check:
    """Whether the image is one that trains what this program asks for."""
    wanted = Recipe().version
    if answer.recipe != wanted:
        found = f"{settings.image} trains by version {answer.recipe} of the recipe, this program asks for {wanted}"
        return Check("image", "wrong", found, "build it from this version, with `make image`, and set `image`")
    torch = answer.torch
    if torch.version is None:
        return Check("image", "wrong", f"{settings.image}: torch does not load: {torch.error}", "build it anew")
    commit = f", commit {answer.commit[:12]}" if answer.commit else ""
    built = f"CUDA {torch.cuda}" if torch.cuda else "without CUDA"
    found = (
        f"{settings.image} runs: Python {answer.python}, torch {torch.version} ({built}){commit}; "
        f"{answer.threads} threads, {bytes_text(answer.memory)} of memory"
    )
    return Check("image", "ok", found)


def judge_gpus(answer: Answer, count: int) -> Check:
    """Whether torch sees as many GPUs as were asked for, and computes on the first."""
    torch = answer.torch
    if torch.cuda is None:
        return Check(
            "gpu", "wrong", f"torch {torch.version} of the image is built without CUDA", "use an image with it"
        )
    if torch.num_gpus < count:
        found = f"torch sees {torch.num_gpus} of {count} that the pod asked for"
        cure = "is the node's driver new enough for the image's CUDA, and its container runtime NVIDIA's?"
        return Check("gpu", "wrong", f"{found}{f': {torch.error}' if torch.error else ''}", cure)
    if torch.error is not None:
        return Check("gpu", "wrong", f"the first cannot compute: {torch.error}", "the node needs attention")
    memory = f", {bytes_text(torch.gpu_memory)}" if torch.gpu_memory else ""
    return Check("gpu", "ok", f"{torch.gpu}{memory} computes in a pod")
