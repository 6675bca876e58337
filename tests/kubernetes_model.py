"""A small model of what Kubernetes does with a run's Job, and the store beside it, for tests of what is decided on it.

As far as it goes it is faithful: names are unique until an object is gone, every change has a version, writes may carry
one; the Job controller makes the one pod, applies the failure policy in its order, replaces a pod only once it has
ended, and backs off; a suspended Job's pods are told to stop and end by and by; deletion in the foreground waits for
the pods, deletion in the background does not. Each step is called for by the test, in whatever order it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.jobs import (
    FAILURE_ANNOTATION,
    GRID_LABEL_PREFIX,
    KEPT_ANNOTATION,
    OUTCOME_ANNOTATION,
    PROGRESS_ANNOTATIONS,
    RESUMED_ANNOTATION,
    TRIES_ANNOTATION,
    JobView,
    PodView,
    job_name,
)
from controller.standing import Work
from trainer.failure import Failure

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BACKOFF_LIMIT = 50
ENDED = ("Succeeded", "Failed")


class Conflict(Exception):
    """The API server refuses: another version, another object, or the name is taken."""


@dataclass
class Job:
    """A Job with the fields that matter."""

    work: Work
    uid: str
    version: int
    labels: dict[str, str]
    created: datetime
    queue: str | None = None
    suspended: bool = True
    deleting: bool = False
    num_failed: int = 0
    complete: datetime | None = None
    failed: datetime | None = None
    reason: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    ttl: int | None = None

    @property
    def is_finished(self) -> bool:
        return self.complete is not None or self.failed is not None

    def view(self, num_active: int) -> JobView:
        """What the controller sees of it."""
        prefix = len(GRID_LABEL_PREFIX)
        shown = {key: self.annotations[name] for key, name in PROGRESS_ANNOTATIONS.items() if name in self.annotations}
        return JobView(
            name=job_name(self.work),
            uid=self.uid,
            resource_version=str(self.version),
            work=self.work,
            grids={key[prefix:]: stage for key, stage in self.labels.items()},
            created=self.created,
            is_suspended=self.suspended,
            is_deleting=self.deleting,
            num_active=num_active,
            complete_since=self.complete,
            failed_since=self.failed,
            failed_reason=self.reason,
            failed_message=None,
            queue=self.queue,
            tries=self.annotations.get(TRIES_ANNOTATION),
            progress=shown,
            ttl_seconds=self.ttl,
            failure=self.annotations.get(FAILURE_ANNOTATION),
            resumed_pod=self.annotations.get(RESUMED_ANNOTATION),
            kept_by=self.annotations.get(KEPT_ANNOTATION),
            outcome=self.annotations.get(OUTCOME_ANNOTATION),
        )


@dataclass
class Pod:
    """A pod with the fields that matter."""

    name: str
    work: Work
    owner: str | None  # uid of its Job
    version: int
    created: datetime
    phase: str = "Pending"
    waiting: str | None = None
    unschedulable: str | None = None
    deleting: bool = False
    disrupted: bool = False
    exit_code: int | None = None
    message: str | None = None
    finished: datetime | None = None
    counted: bool = False  # by the Job controller, whose finalizer keeps it until then
    resumed_from: int = 0  # the checkpoint that its trainer went on from; 0 without one

    @property
    def has_ended(self) -> bool:
        return self.phase in ENDED

    def view(self) -> PodView:
        """What the controller sees of it."""
        is_placed = self.unschedulable is None
        values: dict[str, Any] = {"resource_version": str(self.version)}
        known = PodView.__dataclass_fields__
        return PodView(
            name=self.name,
            uid=self.name,
            work=self.work,
            phase=self.phase,
            is_deleting=self.deleting,
            created=self.created,
            started=self.created if self.phase != "Pending" else None,
            node="node-1" if is_placed else None,
            unschedulable=self.unschedulable,
            waiting_reason=self.waiting,
            waiting_message=None,
            exit_code=self.exit_code,
            exit_reason=None if self.exit_code is None else "Error" if self.exit_code else "Completed",
            termination_message=self.message,
            finished=self.finished,
            is_disrupted=self.disrupted,
            reason=None,
            message=None,
            job_uid=self.owner,
            scheduled=self.created if is_placed else None,
            memory_limit="4Gi",
            **{key: value for key, value in values.items() if key in known},
        )


@dataclass(frozen=True)
class Moment:
    """All Jobs and pods at one version, as the API would list them."""

    jobs: Mapping[Work, JobView]
    pods: Mapping[Work, tuple[PodView, ...]]


class World:
    """A namespace and a store."""

    def __init__(self) -> None:
        self.now = START
        self.jobs: dict[Work, Job] = {}
        self.pods: dict[str, Pod] = {}
        self.results: dict[str, datetime] = {}  # by run: from when on the store shows it
        self.tests: dict[str, datetime] = {}
        self.failures: dict[str, Failure] = {}
        self.checkpoints: dict[str, int] = {}
        self.refuses_pods = False  # a quota without room
        self.broken_images: set[str] = set()  # runs
        self.unschedulable: set[str] = set()
        self.history: list[Moment] = [Moment({}, {})]
        self._serial = 0

    @property
    def version(self) -> int:
        """Of the newest change."""
        return len(self.history) - 1

    def _commit(self) -> None:
        pods: dict[Work, list[PodView]] = {}
        for pod in self.pods.values():
            pods.setdefault(pod.work, []).append(pod.view())
        active = {job.uid: 0 for job in self.jobs.values()}
        for pod in self.pods.values():
            if not pod.has_ended and not pod.deleting and pod.owner in active:
                active[pod.owner] += 1
        jobs = {work: job.view(active[job.uid]) for work, job in self.jobs.items()}
        self.history.append(Moment(jobs, {work: tuple(each) for work, each in pods.items()}))

    def _touch(self, *changed: Job | Pod) -> None:
        for each in changed:
            each.version = self.version + 1
        self._commit()

    def _name(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}-{self._serial}"

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.now += timedelta(seconds=seconds)

    # The API server

    def create(self, work: Work, grids: Mapping[str, str], queue: str | None) -> JobView:
        """POST of the work's Job, suspended."""
        if work in self.jobs:
            raise Conflict
        labels = {GRID_LABEL_PREFIX + grid: stage for grid, stage in grids.items()}
        job = Job(work, self._name("uid"), self.version + 1, labels, self.now, queue)
        self.jobs[work] = job
        self._touch(job)
        return self.history[-1].jobs[work]

    def read(self, seen: JobView) -> Job:
        """The very Job that was seen, unchanged."""
        job = self.jobs.get(seen.work)
        if job is None or job.uid != seen.uid or str(job.version) != seen.resource_version:
            raise Conflict
        return job

    def patch(self, seen: JobView, changes: Mapping[str, Any]) -> JobView:
        """A merge patch of the Job that was seen."""
        job = self.read(seen)
        spec, metadata = changes.get("spec", {}), changes.get("metadata", {})
        job.suspended = spec.get("suspend", job.suspended)
        job.ttl = spec.get("ttlSecondsAfterFinished", job.ttl)
        annotations, labels = metadata.get("annotations", {}), metadata.get("labels", {})
        for held, patched in ((job.labels, labels), (job.annotations, annotations)):
            for key, value in patched.items():
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value
        self._touch(job)
        return self.history[-1].jobs[seen.work]

    def delete(self, seen: JobView) -> JobView | None:
        """DELETE of the Job that was seen, in the foreground; the Job while it is still there."""
        job = self.read(seen)
        if not job.deleting:
            job.deleting = True
            self._stop_pods(job)
            self._touch(job)
        return self.history[-1].jobs.get(seen.work)

    def delete_by_hand(self, work: Work, how: str) -> None:
        """What kubectl does: its default is the background."""
        job = self.jobs[work]
        if how == "foreground":
            job.deleting = True
            self._stop_pods(job)
        else:
            del self.jobs[work]
            for pod in self._pods_of(job):
                pod.owner = None if how == "orphan" else pod.owner
                pod.counted = True  # nobody counts it any more
                if how == "background":
                    self._stop_pod(pod)
        self._commit()

    # The Job controller and the garbage collector

    def sync(self, work: Work) -> None:
        """One look of the Job controller at one Job."""
        job = self.jobs[work]
        self._count(job)
        pods = self._pods_of(job)
        if job.deleting:
            self._stop_pods(job)
            if not self._pods_of(job):
                del self.jobs[work]
            self._commit()
            return
        if job.is_finished:
            ended = job.complete or job.failed
            assert ended is not None
            if job.ttl is not None and self.now >= ended + timedelta(seconds=job.ttl):
                job.deleting = True
                self._stop_pods(job)
        elif job.suspended:
            self._stop_pods(job)
        elif all(pod.has_ended for pod in pods) and not self._backs_off(job, pods) and not self.refuses_pods:
            pod = Pod(self._name(job_name(work)), work, job.uid, self.version + 1, self.now)
            pod.waiting = "ImagePullBackOff" if work.run in self.broken_images else None
            pod.unschedulable = "0/1 nodes are available" if work.run in self.unschedulable else None
            self.pods[pod.name] = pod
        self._touch(job)

    def _count(self, job: Job) -> None:
        for pod in self._pods_of(job):
            if not pod.has_ended or pod.counted:
                continue
            pod.counted = True
            if not job.is_finished:
                self._judge(job, pod)
            if pod.deleting:
                del self.pods[pod.name]

    def _judge(self, job: Job, pod: Pod) -> None:
        """The failure policy: https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy"""
        if pod.phase == "Succeeded":
            job.complete = self.now
        elif pod.exit_code in (64, 65, 70):
            job.failed, job.reason = self.now, "PodFailurePolicy"
        elif pod.exit_code not in (75, 143) and not pod.disrupted:
            job.num_failed += 1
            if job.num_failed > BACKOFF_LIMIT:
                job.failed, job.reason = self.now, "BackoffLimitExceeded"

    def _backs_off(self, job: Job, pods: list[Pod]) -> bool:
        failed = [pod.finished for pod in pods if pod.phase == "Failed" and pod.finished is not None]
        return bool(failed) and self.now < max(failed) + timedelta(seconds=min(600, 10 * 2 ** (len(failed) - 1)))

    def _pods_of(self, job: Job) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.owner == job.uid]

    def _stop_pods(self, job: Job) -> None:
        for pod in self._pods_of(job):
            if job.deleting or not pod.has_ended:
                self._stop_pod(pod)

    def _stop_pod(self, pod: Pod) -> None:
        pod.deleting = True
        pod.version = self.version + 1
        if pod.has_ended and pod.counted:
            self.pods.pop(pod.name, None)

    # Kueue

    def admit(self, work: Work) -> None:
        """Kueue resumes a Job that has its label."""
        job = self.jobs[work]
        assert job.queue is not None
        job.suspended = False
        self._touch(job)

    def preempt(self, work: Work) -> None:
        """Kueue suspends it again."""
        job = self.jobs[work]
        assert job.queue is not None
        job.suspended = True
        self._touch(job)

    # The kubelet and the trainer

    def start(self, name: str) -> None:
        """The pod's container starts, where it can."""
        pod = self.pods[name]
        run = pod.work.run
        pod.waiting = "ImagePullBackOff" if run in self.broken_images else None
        pod.unschedulable = "0/1 nodes are available" if run in self.unschedulable else None
        if pod.waiting is None and pod.unschedulable is None and not pod.deleting:
            pod.phase = "Running"
            pod.resumed_from = self.checkpoints.get(run, 0)
        self._touch(pod)

    def checkpoint(self, name: str) -> None:
        """The trainer saves one."""
        run = self.pods[name].work.run
        self.checkpoints[run] = self.checkpoints.get(run, 0) + 1

    def end(self, name: str, exit_code: int, *, message: bool = True, stored: bool = True, delay: float = 0.0) -> None:
        """The pod ends; with 0 it leaves its numbers, which the store may show only later (or never: not `stored`)."""
        pod = self.pods[name]
        run = pod.work.run
        if pod.phase == "Pending":
            exit_code, message = 137, False  # told to stop before it started: ContainerStatusUnknown
        numbers = self.tests if pod.work.is_test else self.results
        if exit_code == 0 and stored:
            numbers[run] = min(numbers.get(run, datetime.max.replace(tzinfo=UTC)), self.now + timedelta(seconds=delay))
        if exit_code in (64, 65, 70):
            values: dict[str, Any] = {"reason": "told", "message": "by the trainer", "final": True}
            failure = Failure(run=run, attempt="a", exit_code=exit_code, **values)
            pod.message = failure.model_dump_json() if message else None
            if stored:
                self.failures.setdefault(run, failure)
        pod.phase = "Succeeded" if exit_code == 0 else "Failed"
        pod.exit_code, pod.finished, pod.waiting = exit_code, self.now, None
        if pod.deleting and (pod.counted or pod.owner is None):
            del self.pods[name]
        self._touch(pod)

    def evict(self, name: str) -> None:
        """By the eviction API, as a drain does it: the pod has the condition, and is told to stop."""
        pod = self.pods[name]
        pod.disrupted = pod.deleting = True
        self._touch(pod)

    # The store

    def shown(self, numbers: Mapping[str, datetime]) -> frozenset[str]:
        """Runs whose numbers the store shows by now."""
        return frozenset(run for run, since in numbers.items() if since <= self.now)

    def record(self, failure: Failure) -> None:
        """The controller's write, which leaves what is there."""
        self.failures.setdefault(failure.run, failure)
