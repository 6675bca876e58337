"""What Kubernetes says of a run's Job and pods, in the few fields that the controller goes by; and the names it uses.

Read from the API's own JSON, so that ten thousand Jobs stay small in memory: https://kubernetes.io/docs/reference/kubernetes-api/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controller.standing import Work

DOMAIN = "experiment-grid.dev"
RUN_LABEL = f"{DOMAIN}/run"
SEED_LABEL = f"{DOMAIN}/seed"
WORK_LABEL = f"{DOMAIN}/work"  # training | test
GRID_LABEL_PREFIX = f"grid.{DOMAIN}/"  # + the grid's name: the stage in which the run stands first
MANAGED_BY = "experiment-grid"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
OWN_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"  # whatever this project makes by itself
SELECTOR = f"{OWN_SELECTOR},{RUN_LABEL}"  # Jobs and pods of runs
GRID_COMPONENT = "grid"  # a ConfigMap that stands for a grid
GRID_SELECTOR = f"{OWN_SELECTOR},{COMPONENT_LABEL}={GRID_COMPONENT}"
PROBE_LABEL = f"{DOMAIN}/probe"  # and none of a run: the controller passes such a Job by
PROBE_SELECTOR = f"{OWN_SELECTOR},{PROBE_LABEL}"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"

TRIES_ANNOTATION = f"{DOMAIN}/tries"  # JSON: attempts without a newer checkpoint, as `Tries` of attempts.py
TRANSITION_ANNOTATION = f"{DOMAIN}/last-transition"  # what happened last, when Events have forgotten it
FAILURE_ANNOTATION = f"{DOMAIN}/failure"  # the final failure that the store has, or had until it was cleared
RESUMED_ANNOTATION = f"{DOMAIN}/resumed-pod"  # uid of the last pod of which it was told that it went on
KEPT_ANNOTATION = (
    f"{DOMAIN}/kept-by"  # JSON: "grid/stage" and time of each decision of which it was told that it kept it
)
OUTCOME_ANNOTATION = f"{DOMAIN}/outcome"  # for people: the numbers that the store has of a finished Job's work
SPEC_ANNOTATION = f"{DOMAIN}/spec"  # the run's spec.yaml, which the pod reads through the downward API
PROGRESS_ANNOTATIONS = {
    "epoch": f"{DOMAIN}/epoch",
    "validation_accuracy": f"{DOMAIN}/best-validation-accuracy",
    "images_per_second": f"{DOMAIN}/images-per-second",
    "time": f"{DOMAIN}/progress-time",
}
TEST_SUFFIX = "-test"
CONTAINER = "trainer"  # the pod's container that trains; a pod template patch, or a mesh, may put others beside it


def progress_values(epoch: int, validation_accuracy: float, images_per_second: float) -> dict[str, str]:
    """What a Job shows of its run, by the keys of PROGRESS_ANNOTATIONS; the accuracy, 0..1, is the best so far."""
    return {
        "epoch": str(epoch),
        "validation_accuracy": f"{validation_accuracy:.4f}",
        "images_per_second": f"{images_per_second:.1f}",
    }


def job_name(work: Work) -> str:
    """Name of the work's Job: the same work, the same name, so that a second creation is refused by the API."""
    return work.run + TEST_SUFFIX if work.is_test else work.run


def named_work(name: str) -> Work:
    """The work whose Job has that name."""
    return Work(name.removesuffix(TEST_SUFFIX), name.endswith(TEST_SUFFIX))


def standard_labels(component: str) -> dict[str, str]:
    """What every object of this project's making is labelled with, by its part in it.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
    """
    return {
        "app.kubernetes.io/name": MANAGED_BY,
        COMPONENT_LABEL: component,
        "app.kubernetes.io/part-of": MANAGED_BY,
        MANAGED_BY_LABEL: MANAGED_BY,
    }


def grid_label(grid: str) -> str:
    """Key of the label that says a Job is wanted by `grid`."""
    return GRID_LABEL_PREFIX + grid


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job as the controller sees it."""

    name: str
    uid: str
    resource_version: str
    work: Work
    grids: Mapping[str, str]  # grid: the stage in which the run stands first there
    created: datetime
    is_suspended: bool
    is_deleting: bool
    num_active: int  # pods pending or running
    complete_since: datetime | None
    failed_since: datetime | None
    failed_reason: str | None  # the Failed condition's: PodFailurePolicy, BackoffLimitExceeded, DeadlineExceeded
    failed_message: str | None
    queue: str | None  # Kueue's local queue: then Kueue alone writes `suspend`
    tries: str | None  # the annotation's text
    progress: Mapping[str, str] = field(default_factory=dict)  # by the keys of PROGRESS_ANNOTATIONS
    ttl_seconds: int | None = None  # None: stays until someone deletes it
    failure: str | None = None  # the annotation's text: the store has, or had, a final failure of this very Job
    resumed_pod: str | None = None  # likewise
    kept_by: str | None = None  # likewise
    outcome: str | None = None  # likewise

    @property
    def is_finished(self) -> bool:
        """Whether Kubernetes starts no further pod for it."""
        return self.complete_since is not None or self.failed_since is not None


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of a run as the controller sees it."""

    name: str
    uid: str
    work: Work
    phase: str  # Pending, Running, Succeeded, Failed, Unknown
    is_deleting: bool
    created: datetime
    started: datetime | None  # when its container started
    node: str | None
    unschedulable: str | None  # the scheduler's words, while it finds no node
    waiting_reason: str | None  # of the container: ImagePullBackOff, CreateContainerConfigError, …
    waiting_message: str | None
    exit_code: int | None
    exit_reason: str | None  # of the container: Error, OOMKilled, …
    termination_message: str | None
    finished: datetime | None
    is_disrupted: bool  # evicted, preempted or drained: it has the condition DisruptionTarget
    reason: str | None  # the pod's own: Evicted, …
    message: str | None
    job_uid: str | None = None  # of the Job that owns it: one made anew has the same name and another uid
    scheduled: datetime | None = None  # when it got its node
    memory_limit: str | None = None  # of the container, as the API writes it: 4Gi
    gone_by: datetime | None = None  # while it is being deleted: the end of its grace period

    @property
    def is_terminal(self) -> bool:
        """Whether nothing of it runs any more, and nothing will."""
        return self.phase in ("Succeeded", "Failed")


REFUSAL_FIELDS = "involvedObject.kind=Job,reason=FailedCreate"
"""Selects the Events that `refusal_view` reads."""


@dataclass(frozen=True, slots=True)
class RefusalView:
    """Why a Job could not make its pod, as the Job controller's Event has it."""

    work: Work
    job_uid: str
    message: str
    time: datetime  # when it was said last


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """What Kueue says of a Job: https://kueue.sigs.k8s.io/docs/concepts/workload/"""

    work: Work
    job_uid: str
    created: datetime
    queue: str
    is_admitted: bool
    is_inadmissible: bool  # as things are it never will be: no such queue, or more than the whole quota
    is_evicted: bool  # preempted, or its time was up; it waits again
    message: str  # Kueue's own words for why it waits


def job_view(job: Mapping[str, Any]) -> JobView | None:
    """What `job`, the API's JSON, says; none where it is no Job of a run."""
    metadata, spec, status = job["metadata"], job.get("spec", {}), job.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    work = _work(labels)
    if work is None:
        return None
    conditions = {each["type"]: each for each in status.get("conditions") or () if each.get("status") == "True"}
    failed, complete = conditions.get("Failed"), conditions.get("Complete")
    return JobView(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        work=work,
        grids={
            key.removeprefix(GRID_LABEL_PREFIX): value
            for key, value in labels.items()
            if key.startswith(GRID_LABEL_PREFIX)
        },
        created=read_time(metadata["creationTimestamp"]),
        is_suspended=bool(spec.get("suspend")),
        is_deleting="deletionTimestamp" in metadata,
        num_active=status.get("active") or 0,
        complete_since=read_time(complete["lastTransitionTime"]) if complete else None,
        failed_since=read_time(failed["lastTransitionTime"]) if failed else None,
        failed_reason=failed.get("reason") if failed else None,
        failed_message=failed.get("message") if failed else None,
        queue=labels.get(QUEUE_LABEL),
        tries=annotations.get(TRIES_ANNOTATION),
        progress={name: annotations[key] for name, key in PROGRESS_ANNOTATIONS.items() if key in annotations},
        ttl_seconds=spec.get("ttlSecondsAfterFinished"),
        failure=annotations.get(FAILURE_ANNOTATION),
        resumed_pod=annotations.get(RESUMED_ANNOTATION),
        kept_by=annotations.get(KEPT_ANNOTATION),
        outcome=annotations.get(OUTCOME_ANNOTATION),
    )


def pod_view(pod: Mapping[str, Any]) -> PodView | None:
    """What `pod`, the API's JSON, says; none where it is no pod of a run."""
    metadata, status = pod["metadata"], pod.get("status", {})
    work = _work(metadata.get("labels") or {})
    if work is None:
        return None
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    container = _named(status.get("containerStatuses"))
    state = container.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    started = (state.get("running") or ended).get("startedAt")
    owner: dict[str, Any] = next((each for each in metadata.get("ownerReferences") or () if each["kind"] == "Job"), {})
    limits = (_named(pod.get("spec", {}).get("containers")).get("resources") or {}).get("limits") or {}
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        work=work,
        phase=status.get("phase", "Pending"),
        is_deleting="deletionTimestamp" in metadata,
        created=read_time(metadata["creationTimestamp"]),
        started=read_time(started) if started else None,
        node=pod.get("spec", {}).get("nodeName"),
        unschedulable=(
            scheduled.get("message", "")
            if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
            else None
        ),
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message"),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason"),
        termination_message=ended.get("message"),
        finished=read_time(ended["finishedAt"]) if ended.get("finishedAt") else None,
        is_disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        reason=status.get("reason"),
        message=status.get("message"),
        job_uid=owner.get("uid"),
        scheduled=read_time(scheduled["lastTransitionTime"]) if scheduled.get("status") == "True" else None,
        memory_limit=limits.get("memory"),
        gone_by=read_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
    )


def refusal_view(event: Mapping[str, Any]) -> RefusalView | None:
    """What an Event of REFUSAL_FIELDS says; none where it is no Job's."""
    about = event.get("involvedObject") or {}
    if about.get("kind") != "Job" or "uid" not in about:
        return None
    series = event.get("series") or {}
    time = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return RefusalView(
        work=named_work(about["name"]),
        job_uid=about["uid"],
        # Error creating: pods "name-x7k2p" is forbidden: exceeded quota: …
        message=re.sub(r"^.*?pods? \"[^\"]*\" is forbidden: ", "", event.get("message") or ""),
        time=read_time(time or event["metadata"]["creationTimestamp"]),
    )


def workload_view(workload: Mapping[str, Any]) -> WorkloadView | None:
    """What Kueue's Workload says; none where it is no Job's."""
    metadata, spec = workload["metadata"], workload.get("spec") or {}
    owner = next((each for each in metadata.get("ownerReferences") or () if each["kind"] == "Job"), None)
    if owner is None:
        return None
    conditions = {each["type"]: each for each in (workload.get("status") or {}).get("conditions") or ()}
    reserved, evicted = conditions.get("QuotaReserved") or {}, conditions.get("Evicted") or {}
    return WorkloadView(
        work=named_work(owner["name"]),
        job_uid=owner["uid"],
        created=read_time(metadata["creationTimestamp"]),
        queue=spec.get("queueName") or "",
        is_admitted=(conditions.get("Admitted") or {}).get("status") == "True",
        is_inadmissible=reserved.get("status") == "False" and reserved.get("reason") == "Inadmissible",
        is_evicted=evicted.get("status") == "True",
        message=reserved.get("message") or evicted.get("message") or "",
    )


def read_time(text: str) -> datetime:
    """The API's time, RFC 3339 in UTC."""
    return datetime.fromisoformat(text)


def _named(containers: Iterable[dict[str, Any]] | None) -> dict[str, Any]:
    """The trainer's, of a pod's containers or of their statuses."""
    return next((each for each in containers or () if each["name"] == CONTAINER), {})


def _work(labels: Mapping[str, str]) -> Work | None:
    run = labels.get(RUN_LABEL)
    return Work(run, labels.get(WORK_LABEL) == "test") if run else None
