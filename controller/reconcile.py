"""What to do about the runs that grids want, by what Kubernetes and the store say of them. Values in, values out.

1. `Claim`: which grids want a piece of work; work that none wants any more goes.
2. A Job is made suspended, its run's pods are looked at, then it is resumed: so no pod of it stands beside another.
3. Each grid without a queue has a window: so many of its Jobs are resumed at once. With a queue, Kueue resumes them.
4. An end without numbers is a failure: counted while Kubernetes tries again, recorded when nothing more comes of it.

What holds, whatever is seen late, in part, or by two controllers at once, since every action has its condition
(actions.py): one Job has one pod that has not ended, and no other Job of that name has one. The window holds for one
controller that sees its own writes, which the driver must grant (`Mirror.saw`); with k controllers that do not know of
each other it is at most k windows, which is why one holds the lease. What Kueue resumes takes places too, unasked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from controller.actions import (
    Action,
    Create,
    Delete,
    ListPods,
    MarkFailed,
    NoteDone,
    NoteKept,
    NoteProgress,
    NoteResumed,
    NoteTries,
    RecordFailure,
    Relabel,
    Resume,
    SetTtl,
    Suspend,
)
from controller.attempts import (
    MAX_TRIES,
    Tries,
    ended_at,
    failure_of_pod,
    given_up,
    last_ended,
    new_tries,
    pending_problem,
    read_tries,
    restart_seconds,
    result_missing,
    show_exit,
    tries_after,
)
from controller.jobs import JobView, PodView, WorkloadView, progress_values, read_time
from controller.settings import PENDING_SECONDS, PROGRESS_SECONDS
from controller.standing import Held, Known, Work, excess_failures, failure_text, numbers_text
from controller.wording import count_text, plain, seconds_text
from trainer.failure import FINAL_EXITS, Failure

LATE_SECONDS = 60.0  # after its grace period that a pod may take to be seen to have ended
RESULT_PATIENCE_SECONDS = 300.0  # between a Job's completion and its numbers in the store


class Resumption(NamedTuple):
    """Where a pod's attempt went on from."""

    pod: str  # its uid
    epoch: int  # the first that it computed, counted from 1


class Kept(NamedTuple):
    """A decision that kept a run."""

    stage: str
    time: str  # when it was taken
    told: str  # for people


@dataclass(frozen=True, slots=True, eq=False)
class GridView:
    """A grid as the controller acts on it: what it comes to, what is wanted of it, and its submission's settings."""

    name: str
    intent: Literal["active", "paused", "cancelled"]
    wants: Mapping[Work, str]  # by its decisions, in the order of stages and rows: the stage where each stands first
    parallelism: int | None = None  # Jobs at work at once, without a queue; none: all
    queue: str | None = None  # Kueue's local queue
    max_failed: int | None = None  # failed runs after which nothing new starts
    max_tries: int = MAX_TRIES
    pending_seconds: float = PENDING_SECONDS
    ttl_seconds: int | None = None  # of finished Jobs; none: they stay
    prune: bool = False  # whether running work that left the grid is ended
    progress_seconds: float | None = PROGRESS_SECONDS  # none: progress is not shown on Jobs
    held: Mapping[str, Held] = field(default_factory=dict)  # runs of which something else is wanted than of the grid
    kept: Mapping[str, Sequence[Kept]] = field(default_factory=dict)  # by run: the decisions that kept it

    def intent_for(self, run: str) -> Literal["active", "paused", "cancelled"]:
        """What is wanted of a run of the grid: the least of what is said of either."""
        held = self.held.get(run)
        return held if held is not None and (self.intent == "active" or held == "cancelled") else self.intent


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a decision rests on.

    The store is read after the Jobs, so that what ended has left its numbers. The Jobs are never older than the
    controller's own writes to them. Everything may be older than the truth otherwise, each part by itself.
    """

    now: datetime
    grids: Mapping[str, GridView]
    jobs: Mapping[Work, JobView]
    pods: Mapping[Work, Sequence[PodView]] = field(default_factory=dict)
    unlisted: Collection[Work] = frozenset()
    """Work whose Job came or went since the API was last asked for all pods: there may be others than `pods` says."""
    results: Collection[str] = frozenset()  # runs
    tests: Collection[str] = frozenset()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    checkpoints: Mapping[str, int] = field(default_factory=dict)  # newest sequence, of the runs of `failed_anew`
    peaks: Mapping[str, int] = field(default_factory=dict)  # last reported memory in bytes, of the same runs
    progress: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by run, then PROGRESS_ANNOTATIONS' keys
    resumed: Mapping[str, Resumption] = field(default_factory=dict)  # by run whose pod went on from a checkpoint
    quota: Mapping[Work, str] = field(default_factory=dict)  # why a pod, or the Job itself, was refused
    workloads: Mapping[Work, WorkloadView] = field(default_factory=dict)
    known: Collection[Known] = ()  # what the store says of each grid, its numbers too
    refused: Collection[str] = frozenset()  # grids by whose settings the API made no Job when it was last asked

    def is_done(self, work: Work) -> bool:
        """Whether its numbers are there."""
        return work.run in (self.tests if work.is_test else self.results)

    def running(self) -> dict[str, PodView]:
        """The pods that run, by run."""
        return {pod.work.run: pod for pods in self.pods.values() for pod in pods if pod.phase == "Running"}

    def failure(self, work: Work) -> Failure | None:
        """Its final failure."""
        failure = self.failures.get(work.run)
        return failure if failure is not None and failure.final and not self.is_done(work) else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The grids that want a piece of work; one object for all the work that the same ones want alike."""

    grids: tuple[GridView, ...]  # active or paused, as to this work
    active: tuple[GridView, ...]
    maker: GridView | None  # of those that may start anything new the one by whose settings Jobs are made
    halted: str | None  # why there is none, though some are active

    @property
    def max_tries(self) -> int:
        """Attempts without a newer checkpoint: the most that any of them grants, as with all the limits."""
        return max(grid.max_tries for grid in self.grids)

    @property
    def pending_seconds(self) -> float:
        """How long an image or a configuration is waited for."""
        return max(grid.pending_seconds for grid in self.grids)

    @property
    def ttl_seconds(self) -> int | None:
        """How long a finished Job stays; none where one of them wants it to stay."""
        asked = [grid.ttl_seconds for grid in self.grids if grid.ttl_seconds is not None]
        return max(asked) if len(asked) == len(self.grids) else None

    @property
    def progress_seconds(self) -> float | None:
        """Seconds between notes of progress; none where nobody asks for them."""
        return min((grid.progress_seconds for grid in self.active if grid.progress_seconds is not None), default=None)


def decide(seen: Observation) -> tuple[Action, ...]:
    """What to do now, the most urgent first; nothing where all is as it should be.

    At most one action for a Job, but that a failure is recorded before its Job is deleted.
    """
    scene = _Scene(seen)
    actions: list[Action] = []
    for work, claim in scene.claims.items():
        job = seen.jobs.get(work)
        if job is None:
            actions += scene.on_absent(work, claim)
        elif not job.is_deleting:
            actions += scene.on_finished(job, claim) if job.is_finished else scene.on_unfinished(job, claim)
    for work, job in seen.jobs.items():
        if work not in scene.claims and not job.is_deleting:
            actions += scene.on_unwanted(job)
    if scene.waiting_for_pods:
        actions.append(ListPods(tuple(scene.waiting_for_pods)))
    return tuple(sorted(actions, key=_urgency)) if len(actions) > 1 else tuple(actions)


_URGENCY = {Delete: 0, Suspend: 0, RecordFailure: 0, Resume: 1, ListPods: 2, Create: 3}
"""What frees a place comes before what takes one; a Job that is there before those still to be made."""


def _urgency(action: Action) -> int:
    return _URGENCY.get(type(action), 4)


def failed_anew(seen: Observation) -> dict[str, PodView]:
    """The runs with attempts that are not counted yet, and the last of each: what `checkpoints` is to tell of."""
    found = {}
    for work, pods in seen.pods.items():
        job = seen.jobs.get(work)
        if job is not None and not job.is_finished and (failed := new_tries(job, pods, read_tries(job.tries))):
            found[work.run] = failed[-1]
    return found


def told(seen: Observation) -> dict[str, str]:
    """How each unfinished run stands, as `standing.run_state` takes it: what runs begins with `running`."""
    scene = _Scene(seen)
    texts: dict[str, str] = {}
    for work, claim in scene.claims.items():
        if not seen.is_done(work):  # of a run that is trained, what its test says
            texts.setdefault(work.run, scene.told(work, claim))
    for grid in seen.grids.values():
        for work in _cancelled(grid):
            if work not in scene.claims and not seen.is_done(work):
                texts.setdefault(work.run, scene.told(work, NOBODYS))
    return texts


class _Scene:
    """What follows from an observation for all runs at once."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.claims = _claims(seen)
        self.alive: dict[str, list[PodView]] = {}  # by run: its pods that have not ended
        for pods in seen.pods.values():
            for pod in pods:
                if pod.phase != "Succeeded" and pod.phase != "Failed":
                    self.alive.setdefault(pod.work.run, []).append(pod)
        self.at_work = {  # what holds a place in a window
            *(work for work, job in seen.jobs.items() if not job.is_suspended and not job.is_finished),
            *(pod.work for pods in self.alive.values() for pod in pods),
        }
        self.used = dict.fromkeys(seen.grids, 0)
        for work in self.at_work:
            job, claim = seen.jobs.get(work), self.claims.get(work)
            names = {grid.name for grid in claim.grids} if claim is not None else set()
            for name in names.union(job.grids) if job is not None else names:
                if name in self.used:
                    self.used[name] += 1
        self.kept_runs = {run for grid in seen.grids.values() for run in grid.kept}
        self.waiting_for_pods: list[Work] = []
        self.has_probed = False

    # One piece of work

    def on_absent(self, work: Work, claim: Claim) -> Iterator[Action]:
        """Work without a Job."""
        seen = self.seen
        grid = claim.maker
        if grid is None or seen.is_done(work) or seen.failure(work) is not None:
            return
        if (work.is_test and work.run not in seen.results) or self.blocker(work, None) is not None:
            return
        if grid.queue is not None and self.is_unlisted(work):  # Kueue may resume it at once
            self.waiting_for_pods.append(work)
            return
        if work in seen.quota:  # while it refuses, one creation a decision tries whether it still does
            if self.has_probed:
                return
            self.has_probed = True
        yield Create(work, grid.name, {each.name: each.wants[work] for each in claim.grids})

    def on_unfinished(self, job: JobView, claim: Claim) -> Iterator[Action]:
        """A Job that may start pods, now or once it is resumed."""
        seen, work = self.seen, job.work
        pods = seen.pods.get(work, ())
        if seen.is_done(work):
            if self.is_idle(job):
                yield Delete(job, "the store has its numbers")
            return
        if (failure := seen.failure(work)) is not None:
            if not self.is_ending(job, failure):
                yield Delete(job, f"it failed for good: {failure.reason}")
            return
        if not claim.active and not self.is_held_elsewhere(job):
            if job.queue is not None:
                yield Delete(job, "paused: its checkpoint stands")
                return
            if not job.is_suspended:
                yield Suspend(job, "paused")
                return
        if (problem := self.stuck(job, pods, claim)) is not None:
            yield RecordFailure(job, problem)
            yield Delete(job, f"{problem.reason}: its place is free for others")
            return
        if failed := new_tries(job, pods, tries := read_tries(job.tries)):
            yield from self.on_failed_attempts(job, failed, tries, claim)
            return
        if (relabel := self.relabel(job, claim)) is not None:
            yield relabel
        elif job.is_suspended:
            if job.queue is None and self.may_resume(job, claim):
                yield Resume(job)
        elif (resumed := seen.resumed.get(work.run)) is not None and self.is_news(job, resumed):
            yield NoteResumed(job, resumed.pod, f"resumed at epoch {resumed.epoch}")
        elif (values := self.progress(job, claim)) is not None:
            yield NoteProgress(job, values)

    def on_failed_attempts(
        self, job: JobView, failed: Sequence[PodView], tries: Tries, claim: Claim
    ) -> Iterator[Action]:
        """Attempts have failed that are not counted yet."""
        seen, work, last = self.seen, job.work, failed[-1]
        sequence = seen.checkpoints.get(work.run)
        if sequence is None:  # not read from the store yet
            return
        count = tries_after(tries.count, tries.sequence, sequence, len(failed))
        failure = failure_of_pod(work, job, last, seen.now, last_peak=seen.peaks.get(work.run))
        if count >= claim.max_tries:
            yield RecordFailure(job, given_up(failure, count, seen.now))
            yield Delete(job, f"{failure.reason}: {count_text(count, 'attempt')} brought no newer checkpoint")
            return
        noted = Tries(count, sequence, ended_at(last))
        said = f"attempt failed: {failure_text(failure)}; {count} of {claim.max_tries} without a newer one"
        yield NoteTries(job, noted.text(), f"{said} than checkpoint {sequence}" if sequence else f"{said} checkpoint")

    def on_finished(self, job: JobView, claim: Claim) -> Iterator[Action]:
        """A Job that starts no further pod."""
        seen, work = self.seen, job.work
        failure = None
        if not seen.is_done(work) and (failure := seen.failure(work)) is None:
            if job.failure is not None:
                yield Delete(job, "its failure was cleared: to be started again")
            elif job.failed_since is not None:
                last = last_ended(job, seen.pods.get(work, ()))
                yield RecordFailure(job, failure_of_pod(work, job, last, seen.now))
            elif job.complete_since is not None and _seconds(seen.now, job.complete_since) >= RESULT_PATIENCE_SECONDS:
                yield RecordFailure(job, result_missing(work, seen.now))
            return
        if failure is not None and job.failure is None:
            yield MarkFailed(job, failure)
        elif job.ttl_seconds is None and (seconds := claim.ttl_seconds) is not None:
            yield SetTtl(job, seconds)
        elif (relabel := self.relabel(job, claim)) is not None:
            yield relabel
        elif (done := self.done(job, claim)) is not None:
            yield done
        elif (job.kept_by is not None or work.run in self.kept_runs) and (kept := self.kept(job)) is not None:
            yield kept

    def on_unwanted(self, job: JobView) -> Iterator[Action]:
        """A Job that no grid wants, as far as grids are known: it goes unless one that it names may want it yet."""
        left = tuple(grid for grid in job.grids if self.has_left(job, grid))
        if len(left) == len(job.grids):
            yield Delete(job, "no grid wants it any more")
        elif left:
            yield Relabel(job, {}, left)

    # What it rests on

    def relabel(self, job: JobView, claim: Claim) -> Relabel | None:
        """What to change in the labels that say who wants the Job."""
        wanted = {grid.name: grid.wants[job.work] for grid in claim.grids}
        if wanted == job.grids:
            return None
        add = {grid: stage for grid, stage in wanted.items() if job.grids.get(grid) != stage}
        remove = tuple(grid for grid in job.grids if grid not in wanted and self.has_left(job, grid))
        return Relabel(job, add, remove) if add or remove else None

    def has_left(self, job: JobView, name: str) -> bool:
        """Whether the Job's run has left the grid that it names; a pod that runs may end first."""
        grid = self.seen.grids.get(name)
        if grid is None:  # submitted a moment ago, or of Jobs that someone made by hand
            return False
        intent = grid.intent_for(job.work.run)
        if intent != "cancelled" and job.work in grid.wants:
            return False
        return intent != "active" or grid.prune or job.is_suspended or not self.is_running(job.work)

    def is_running(self, work: Work) -> bool:
        """Whether a pod of it runs."""
        return any(pod.phase == "Running" and pod.work == work for pod in self.alive.get(work.run, ()))

    def is_held_elsewhere(self, job: JobView) -> bool:
        """Whether a grid that is not known, or one that the run has left but lets it end, keeps the Job."""
        grids, run = self.seen.grids, job.work.run
        return any(
            not self.has_left(job, name) and (name not in grids or grids[name].intent_for(run) == "active")
            for name in job.grids
        )

    def is_idle(self, job: JobView) -> bool:
        """Whether the Job only waits: it is suspended, or its pod has not started."""
        pods = [pod for pod in self.alive.get(job.work.run, ()) if pod.work == job.work]
        return job.is_suspended or (bool(pods) and all(pod.phase == "Pending" for pod in pods))

    def is_ending(self, job: JobView, failure: Failure) -> bool:
        """Whether the trainer itself has recorded the failure, so that Kubernetes is about to end the Job."""
        if job.is_suspended or failure.exit_code not in FINAL_EXITS:
            return False
        last = last_ended(job, self.seen.pods.get(job.work, ()))
        return self.is_running(job.work) or (last is not None and last.exit_code in FINAL_EXITS)

    def stuck(self, job: JobView, pods: Sequence[PodView], claim: Claim) -> Failure | None:
        """The failure of a Job whose pod has waited too long for what will not come by itself."""
        for pod in pods:
            if pod.phase != "Pending" or pod.is_deleting or pending_problem(pod) is None:
                continue
            if _seconds(self.seen.now, pod.scheduled or pod.created) >= claim.pending_seconds:
                return failure_of_pod(job.work, job, pod, self.seen.now)
        return None

    def blocker(self, work: Work, job: JobView | None) -> str | None:
        """Why nothing of `work` may start beside what is there: a run has one pod, be it to train or to test."""
        for pod in self.alive.get(work.run, ()):
            if job is None or pod.job_uid != job.uid:
                return f"waits for pod {pod.name} to end"
        other = self.seen.jobs.get(Work(work.run, not work.is_test))
        if other is not None and not other.is_finished and not other.is_suspended:
            return f"waits for Job {other.name} to end"
        return None

    def is_unlisted(self, work: Work) -> bool:
        """Whether there may be pods of the run that are not known."""
        unlisted = self.seen.unlisted
        return bool(unlisted) and (work in unlisted or Work(work.run, not work.is_test) in unlisted)

    def may_resume(self, job: JobView, claim: Claim) -> bool:
        """Whether the Job may be resumed now; if so it holds its places from here on."""
        work = job.work
        if claim.maker is None or (work.is_test and work.run not in self.seen.results):
            return False
        holds_place = work in self.at_work  # its pod has not ended since it was suspended
        if not holds_place and not all(self.has_room(grid) for grid in claim.active):
            return False
        if self.blocker(work, job) is not None:
            return False
        if self.is_unlisted(work):
            self.waiting_for_pods.append(work)
            return False
        if not holds_place:
            self.at_work.add(work)
            for name in {grid.name for grid in claim.grids}.union(job.grids):
                if name in self.used:
                    self.used[name] += 1
        return True

    def has_room(self, grid: GridView) -> bool:
        """Whether one more of the grid's Jobs may be at work."""
        return grid.parallelism is None or self.used[grid.name] < grid.parallelism

    def progress(self, job: JobView, claim: Claim) -> Mapping[str, str] | None:
        """What to show of a running Job's progress, where that is due."""
        values = self.seen.progress.get(job.work.run)
        if not values or (every := claim.progress_seconds) is None:
            return None
        if all(job.progress.get(key) == value for key, value in values.items()):
            return None
        before = job.progress.get("time")
        if before is not None and _seconds(self.seen.now, read_time(before)) < every:
            return None
        return {**values, "time": self.seen.now.isoformat(timespec="seconds")}

    def done(self, job: JobView, claim: Claim) -> NoteDone | None:
        """What to say, where progress is shown, of what a finished Job's work came to."""
        if job.outcome is not None or claim.progress_seconds is None:
            return None
        known = next((each for each in self.seen.known if each.is_done(job.work)), None)
        if known is None:
            return None
        values: dict[str, str] = {}
        if not job.work.is_test:
            result = known.results[job.work.run]
            values = progress_values(result.epochs_run, result.validation_accuracy, result.images_per_second)
            values["time"] = self.seen.now.isoformat(timespec="seconds")
        return NoteDone(job, numbers_text(job.work, known), values)

    def is_news(self, job: JobView, resumed: Resumption) -> bool:
        """Whether it is a pod of this very Job that went on, and nobody has told so yet."""
        pods = self.seen.pods.get(job.work, ())
        is_its_own = any(pod.uid == resumed.pod and pod.job_uid == job.uid for pod in pods)
        return not job.work.is_test and is_its_own and job.resumed_pod != resumed.pod

    def kept(self, job: JobView) -> NoteKept | None:
        """What is to be said on the Job of the decisions that kept its run, where it says something else."""
        if job.work.is_test:
            return None
        grids = [grid for grid in self.seen.grids.values() if grid.intent != "cancelled"]
        decisions = {f"{grid.name}/{each.stage}": each for grid in grids for each in grid.kept.get(job.work.run, ())}
        before, known = _read_kept(job.kept_by), {grid.name for grid in grids}
        others = {key: time for key, time in before.items() if key.partition("/")[0] not in known}
        after = {**others, **{key: each.time for key, each in decisions.items()}}
        if after == before:
            return None
        new = [each.told for key, each in decisions.items() if before.get(key) != each.time]
        return NoteKept(job, json.dumps(after) if after else None, "; ".join(new) or None)

    # Telling

    def told(self, work: Work, claim: Claim) -> str:
        """How unfinished work stands; what begins with `running` runs."""
        seen = self.seen
        job = seen.jobs.get(work)
        alive = [pod for pod in self.alive.get(work.run, ()) if pod.work == work]
        for pod in alive:
            if pod.phase == "Running" and not pod.is_deleting:
                epoch = job.progress.get("epoch") if job is not None else None
                return f"running on {pod.node}" + (f", epoch {epoch}" if epoch is not None else "")
        if job is not None and job.is_deleting:
            return "deleting its Job" + (f", whose pod {alive[0].name} has not ended" if alive else "")
        if leaving := [pod for pod in alive if pod.is_deleting]:
            return _told_leaving(leaving[0], seen.now)
        if not claim.active:
            return "paused" if claim.grids else "cancelled"
        if job is None:
            return self.told_absent(work, claim)
        if job.is_finished:
            return _told_finished(job, seen.now)
        if job.is_suspended:
            return self.told_suspended(job, claim)
        if alive:
            return _told_pending(alive[-1])
        if work in seen.quota:
            return f"quota: {plain(seen.quota[work])}"
        return self.told_restart(job, claim)

    def told_absent(self, work: Work, claim: Claim) -> str:
        """Why there is no Job."""
        if work.is_test and work.run not in self.seen.results:
            return "for its training"
        if claim.halted is not None:
            return claim.halted
        if (blocker := self.blocker(work, None)) is not None:
            return blocker
        if work in self.seen.quota:
            return f"quota: {plain(self.seen.quota[work])}"
        return "queued: its Job is not made yet"

    def told_suspended(self, job: JobView, claim: Claim) -> str:
        """Why the Job is not resumed."""
        if job.queue is not None:
            return _told_queued(job.queue, self.seen.workloads.get(job.work), job)
        if claim.halted is not None:
            return claim.halted
        if (blocker := self.blocker(job.work, job)) is not None:
            return blocker
        full = next((grid for grid in claim.active if not self.has_room(grid)), None)
        if full is not None:
            return f"queued: {full.parallelism} of grid {full.name} are at work, which is its parallelism"
        return "queued: about to start"

    def told_restart(self, job: JobView, claim: Claim) -> str:
        """When Kubernetes starts the next pod, and after what."""
        pods = self.seen.pods.get(job.work, ())
        last = last_ended(job, pods)
        if last is None:
            return "starting: no pod yet"
        left = restart_seconds(job, pods, self.seen.now)
        when = f"restarts in {seconds_text(left)}" if left else "restarts now"
        why = _told_end(last)
        count = read_tries(job.tries).count
        again = f", {count} of {claim.max_tries} attempts without a newer checkpoint" if count else ""
        return f"{when}: {why}{again}"


NOBODYS = Claim((), (), None, None)
"""Of work that is cancelled in every grid that would want it."""


def _claims(seen: Observation) -> dict[Work, Claim]:
    """Who wants what, in the order of grids, stages and rows."""
    claims: dict[Work, Claim] = {}
    shared: dict[tuple[tuple[str, bool], ...], Claim] = {}
    halted = {name: _halted(seen, grid) for name, grid in seen.grids.items()}

    def claim_of(before: Claim | None, grid: GridView, is_active: bool) -> Claim:
        grids = (grid,) if before is None else (*before.grids, grid)
        active = () if before is None else before.active
        active = (*active, grid) if is_active else active
        key = tuple([(each.name, each in active) for each in grids])
        if key not in shared:
            makers = [each for each in active if halted[each.name] is None]
            maker = next((each for each in makers if each.name not in seen.refused), makers[0] if makers else None)
            shared[key] = Claim(grids, active, maker, halted[active[0].name] if active and maker is None else None)
        return shared[key]

    for grid in seen.grids.values():
        if grid.intent == "cancelled":
            continue
        is_active = grid.intent == "active"
        if not claims and not grid.held:
            claims = dict.fromkeys(grid.wants, claim_of(None, grid, is_active))
            continue
        for work in grid.wants:
            held = grid.held.get(work.run)
            if held != "cancelled":
                claims[work] = claim_of(claims.get(work), grid, is_active and held is None)
    return claims


def _cancelled(grid: GridView) -> Iterator[Work]:
    """What of the grid is cancelled: all of it, or single runs."""
    if grid.intent == "cancelled":
        yield from grid.wants
    elif "cancelled" in grid.held.values():
        yield from (work for work in grid.wants if grid.held.get(work.run) == "cancelled")


def _read_kept(annotation: str | None) -> dict[str, str]:
    """The decisions that a Job's annotation tells of; none where it cannot be read: then they are told again."""
    try:
        found = json.loads(annotation or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _halted(seen: Observation, grid: GridView) -> str | None:
    """Why nothing new of the grid starts."""
    wanted = (work for run in seen.failures for work in (Work(run, False), Work(run, True)) if work in grid.wants)
    num_failed = excess_failures(wanted, seen.failure, grid.max_failed)
    if not num_failed:
        return None
    return f"held back: {count_text(num_failed, 'run')} of grid {grid.name} failed, max_failed is {grid.max_failed}"


def _told_leaving(pod: PodView, now: datetime) -> str:
    if pod.gone_by is None or _seconds(now, pod.gone_by) < LATE_SECONDS:
        return f"terminating: pod {pod.name} saves and ends"
    since = pod.gone_by.astimezone(UTC).strftime("%H:%M")
    return (
        f"stuck: pod {pod.name} should have ended by {since} UTC, and node {pod.node} does not say that it has; once "
        f"that node is surely off: kubectl delete pod {pod.name} --force"
    )


def _told_finished(job: JobView, now: datetime) -> str:
    if job.failure is not None:
        return "to be started again: its failure was cleared"
    if job.failed_since is not None:
        return f"failed: {job.failed_reason}, to be recorded"
    assert job.complete_since is not None
    left = max(0.0, RESULT_PATIENCE_SECONDS - _seconds(now, job.complete_since))
    return f"ended, its result is not in the store yet: a failure in {seconds_text(left)}"


def _told_queued(queue: str, workload: WorkloadView | None, job: JobView) -> str:
    if workload is None or workload.job_uid != job.uid:
        return f"queued in {queue}: Kueue has not said anything of it"
    if workload.is_inadmissible:
        return f"inadmissible in queue {queue}: {plain(workload.message)}"
    if workload.is_admitted:
        return f"starting: admitted by queue {queue}"
    evicted = ", put back by Kueue" if workload.is_evicted else ""
    return f"queued in {queue}{evicted}" + (f": {plain(workload.message)}" if workload.message else "")


def _told_pending(pod: PodView) -> str:
    if pod.unschedulable is not None:
        return f"unschedulable: {plain(pod.unschedulable) or 'the scheduler does not say why'}"
    if (problem := pending_problem(pod)) is not None:
        return f"{problem}: {plain(': '.join(filter(None, (pod.waiting_reason, pod.waiting_message))))}"
    if pod.node is None:
        return "starting: waits for a node"
    return f"starting on {pod.node}"


def _told_end(pod: PodView) -> str:
    if pod.exit_reason == "OOMKilled":
        limit = f" at its limit of {pod.memory_limit}" if pod.memory_limit else ""
        return f"killed for its memory{limit}"
    if pod.exit_code is not None:
        return f"disrupted, {show_exit(pod.exit_code)}" if pod.is_disrupted else show_exit(pod.exit_code)
    return plain(": ".join(filter(None, (pod.reason, pod.message)))) or "its pod failed"


def _seconds(now: datetime, since: datetime) -> float:
    return (now - since) / timedelta(seconds=1)
