"""What the controller may do to the cluster and the store, each action with the condition under which it still holds.

A decision rests on what was seen, which may be old by the time it is acted upon. So every write to a Job carries the
uid and the resourceVersion that were seen: where the Job has changed since, or another one has its name, the API server
refuses the write (409), and the next decision is made on what is there now. A refusal is no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from controller.jobs import (
    FAILURE_ANNOTATION,
    KEPT_ANNOTATION,
    OUTCOME_ANNOTATION,
    PROGRESS_ANNOTATIONS,
    RESUMED_ANNOTATION,
    TRANSITION_ANNOTATION,
    TRIES_ANNOTATION,
    JobView,
    grid_label,
)
from controller.standing import Work, failure_text
from trainer.failure import Failure


@dataclass(frozen=True, slots=True)
class Create:
    """Make the work's Job, suspended, so that nothing of it runs before its pods have been looked at.

    Refused by the API while a Job of that name is there, even one that is being deleted: that is the condition.
    """

    work: Work
    grid: str  # whose settings it is made by
    grids: Mapping[str, str]  # its labels: grid, and the stage in which the run stands first there


@dataclass(frozen=True, slots=True)
class Resume:
    """Let Kubernetes start the Job's pod. On the Job as it was seen."""

    job: JobView


@dataclass(frozen=True, slots=True)
class Suspend:
    """Let Kubernetes stop the Job's pod, which saves a checkpoint, and start none. On the Job as it was seen."""

    job: JobView
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the Job, `propagationPolicy: Foreground`: it stays until its pods are gone. The Job as it was seen."""

    job: JobView
    why: str


@dataclass(frozen=True, slots=True)
class Relabel:
    """Say on the Job which grids want it. On the Job as it was seen."""

    job: JobView
    add: Mapping[str, str]  # grid: stage
    remove: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordFailure:
    """Write the final failure into the store, unless there is one by then: the trainer knew more.

    Directly before, the Job is read from the API: where it is not as it was seen, nothing is written. A Delete of the
    same Job that follows it in a decision waits until it is written.
    """

    job: JobView
    failure: Failure


@dataclass(frozen=True, slots=True)
class MarkFailed:
    """Note on the finished Job that the store has its final failure. On the Job as it was seen.

    A Job that bears this mark when its failure is no longer in the store is one that `grid retry` wants started again.
    """

    job: JobView
    failure: Failure


@dataclass(frozen=True, slots=True)
class NoteTries:
    """Keep the count of failed attempts on the Job. On the Job as it was seen."""

    job: JobView
    text: str  # the annotation
    told: str  # for people


@dataclass(frozen=True, slots=True)
class NoteProgress:
    """Show on the Job how far its run is, by the keys of PROGRESS_ANNOTATIONS. On the Job as it was seen."""

    job: JobView
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NoteDone:
    """Say on the finished Job, once, what its work came to. On the Job as it was seen."""

    job: JobView
    told: str  # for people
    values: Mapping[str, str]  # as NoteProgress has them; a test has none


@dataclass(frozen=True, slots=True)
class NoteResumed:
    """Say on the Job, once for each pod, that the run goes on from a checkpoint. On the Job as it was seen."""

    job: JobView
    pod: str  # its uid
    told: str  # for people


@dataclass(frozen=True, slots=True)
class NoteKept:
    """Say on the Job which decisions kept its run. On the Job as it was seen."""

    job: JobView
    text: str | None  # the annotation; none without a decision
    told: str | None  # for people, of those that are new; none where there are only fewer


@dataclass(frozen=True, slots=True)
class SetTtl:
    """Let Kubernetes remove the finished Job so many seconds after its end. On the Job as it was seen."""

    job: JobView
    seconds: int


@dataclass(frozen=True, slots=True)
class ListPods:
    """Ask the API, and no cache, for the pods that have not ended, and decide again with them.

    Asked where something could start but for pods that may have been missed: those of an earlier Job of the same name.
    """

    works: tuple[Work, ...]  # those that wait for it


JobAction: TypeAlias = (
    Resume
    | Suspend
    | Delete
    | Relabel
    | RecordFailure
    | MarkFailed
    | NoteTries
    | NoteProgress
    | NoteDone
    | NoteResumed
    | NoteKept
    | SetTtl
)
Action: TypeAlias = Create | JobAction | ListPods


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event about a Job, for those who follow a grid by kubectl."""

    kind: Literal["Normal", "Warning"]
    reason: str  # one word, as Events have it
    message: str


def changes(action: Action) -> dict[str, Any] | None:
    """The JSON merge patch that `action` is, but for its conditions; none where it is no patch of a Job."""
    match action:
        case Resume():
            return _annotated({TRANSITION_ANNOTATION: "started"}) | {"spec": {"suspend": False}}
        case Suspend(why=why):
            return _annotated({TRANSITION_ANNOTATION: f"suspended: {why}"}) | {"spec": {"suspend": True}}
        case Relabel(add=add, remove=remove):
            labels = {grid_label(grid): stage for grid, stage in add.items()}
            return {"metadata": {"labels": labels | {grid_label(grid): None for grid in remove}}}
        case MarkFailed(failure=failure):
            told = failure_text(failure)
            return _annotated({FAILURE_ANNOTATION: told, TRANSITION_ANNOTATION: f"failed: {told}"})
        case NoteTries(text=text, told=told):
            return _annotated({TRIES_ANNOTATION: text, TRANSITION_ANNOTATION: told})
        case NoteProgress(values=values):
            return _annotated(_progress(values))
        case NoteDone(told=told, values=values):
            said = {OUTCOME_ANNOTATION: told, TRANSITION_ANNOTATION: f"done: {told}"}
            return _annotated(said | _progress(values))
        case NoteResumed(pod=pod, told=told):
            return _annotated({RESUMED_ANNOTATION: pod, TRANSITION_ANNOTATION: told})
        case NoteKept(text=text, told=None):
            return _annotated({KEPT_ANNOTATION: text})
        case NoteKept(text=text, told=told):
            return _annotated({KEPT_ANNOTATION: text, TRANSITION_ANNOTATION: told})
        case SetTtl(seconds=seconds):
            return {"spec": {"ttlSecondsAfterFinished": seconds}}
    return None


def notice(action: Action) -> Notice | None:
    """The Event to tell of `action` once it is done; none where Kubernetes tells it itself, or it is of no interest.

    Every Event is a request: a run that is trained at one go has none, unless a decision keeps it.
    """
    match action:
        case MarkFailed(failure=failure):
            return _failed(failure)
        case RecordFailure(job=job, failure=failure) if not job.is_finished:  # the others are marked next
            return _failed(failure)
        case NoteTries(told=told):
            return Notice("Warning", "AttemptFailed", told)
        case NoteResumed(told=told):
            return Notice("Normal", "RunResumed", told)  # `Resumed` is the Job controller's own, of `suspend`
        case NoteKept(told=str(told)):
            return Notice("Normal", "RunKept", told)
        case Delete(why=why):
            return Notice("Normal", "Deleting", why)
    return None


def _failed(failure: Failure) -> Notice:
    return Notice("Warning", "RunFailed", failure_text(failure))


def _progress(values: Mapping[str, str]) -> dict[str, str]:
    return {PROGRESS_ANNOTATIONS[key]: value for key, value in values.items()}


def _annotated(annotations: Mapping[str, str | None]) -> dict[str, Any]:
    return {"metadata": {"annotations": dict(annotations)}}
