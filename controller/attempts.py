"""What the end of an attempt means, on this machine and in a pod: how often to try again, and the failure it leaves."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from controller.jobs import JobView, PodView, read_time
from controller.standing import Work
from controller.wording import bytes_text, plain
from trainer.failure import FINAL_EXITS, LOG_TAIL_LINES, ExitCode, Failure
from trainer.logs import human_lines, read_line, read_lines

MAX_TRIES = 3  # attempts without a newer checkpoint
NOT_STARTED = 125  # exit code of a failure without a process, as container engines have it
SIGKILL, SIGTERM = 128 + signal.SIGKILL, 128 + signal.SIGTERM
STOPPED_EXITS = frozenset({ExitCode.STOPPED, SIGTERM})
"""Exits of an attempt that was told to stop; the second of one that was told before it could listen."""
START_ERRORS = frozenset({"StartError", "ContainerCannotRun"})  # of a container that has an exit code all the same
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIGURATION_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
JOB_BACKOFF_SECONDS, MAX_JOB_BACKOFF_SECONDS = 10, 600  # before a Job's second pod, and at most:
# https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-backoff-failure-policy


# On any machine


def tries_after(count: int, sequence_before: int, sequence: int, ended: int = 1) -> int:
    """Attempts without a newer checkpoint, after `ended` more have failed and the newest checkpoint is `sequence`.

    The bound is on those that brought no newer checkpoint: a run on a shaky machine may take many.
    """
    return 1 if sequence > sequence_before else count + ended


def show_exit(exit_code: int) -> str:
    """An exit code in words."""
    if exit_code > 128:
        with suppress(ValueError):
            return f"ended by {signal.Signals(exit_code - 128).name}"
    return f"ended with exit code {exit_code}"


def end_text(exit_code: int, recorded: Failure | None, tail: Sequence[str]) -> str:
    """Why an attempt ended: in its trainer's words, else its output's last line; of one that was killed, by what."""
    if recorded is not None:
        return f"{recorded.reason}: {recorded.message}"
    said = [
        plain(line.message)
        for line in read_lines(tail)
        if line.message.strip() and line.level != "info" and not line.message.startswith("hint:")
    ]
    return f"{show_exit(exit_code)}: {said[-1]}" if said and exit_code < 128 else show_exit(exit_code)


def given_up(failure: Failure, tries: int, now: datetime) -> Failure:
    """`failure`, made final because `tries` attempts brought no newer checkpoint; the last end speaks for all."""
    times = f"{tries} attempts brought no newer checkpoint"
    return failure.model_copy(update={"final": True, "message": f"{failure.message} ({times})", "time": now})


# On this machine


def crash_failure(
    work: Work, attempt: str | None, exit_code: int, recorded: Failure | None, tail: list[str], now: datetime
) -> Failure:
    """The final failure of work that ended MAX_TRIES times without a newer checkpoint."""
    if recorded is not None:
        return given_up(recorded, MAX_TRIES, now)
    hint = "`grid retry` tries again; the last lines of its output are in this failure"
    if exit_code == SIGKILL:
        hint = "killed: out of memory? Run fewer at once (--parallel), or set a smaller batch_size"
    message = f"{show_exit(exit_code)}; {MAX_TRIES} attempts brought no newer checkpoint"
    return _failure(now, work, exit_code, "crashed", message, hint, tail, attempt)


def unrecorded_failure(work: Work, attempt: str | None, exit_code: int, tail: list[str], now: datetime) -> Failure:
    """The final failure of work whose trainer said that it failed for good, and could not write why."""
    message = read_line(tail[-1]).message if tail else show_exit(exit_code)
    return _failure(now, work, exit_code, ExitCode(exit_code).name.lower(), message, None, tail, attempt)


def numbers_missing(work: Work, tail: list[str], now: datetime) -> Failure:
    """The final failure of work that ended well, and whose numbers are not in the store."""
    hint = "`grid retry` tries again; the last lines of its output are in this failure"
    return _failure(now, work, ExitCode.OK, "result-missing", "ended with exit code 0 and left no result", hint, tail)


# In pods


@dataclass(frozen=True, slots=True)
class Tries:
    """Attempts at a Job that failed, as its annotation keeps them, so that they outlive every controller."""

    count: int = 0  # without a newer checkpoint
    sequence: int = 0  # of the newest checkpoint when they were last counted
    until: datetime | None = None  # end of the last one counted

    def text(self) -> str:
        """The annotation."""
        until = self.until and self.until.isoformat()
        return json.dumps({"count": self.count, "sequence": self.sequence, "until": until})


def read_tries(annotation: str | None) -> Tries:
    """The tries that a Job's annotation tells of; none where it cannot be read: then they are counted anew."""
    if annotation is None:
        return Tries()
    try:
        said = json.loads(annotation)
        until = said["until"]
        return Tries(int(said["count"]), int(said["sequence"]), read_time(until) if until else None)
    except (ValueError, TypeError, KeyError):
        return Tries()


def ended_at(pod: PodView) -> datetime:
    """When the pod ended, as exactly as is known."""
    return pod.finished or pod.created


def has_failed_by_itself(pod: PodView) -> bool:
    """Whether the pod's end counts as a try: an attempt was under way, and nobody stopped it.

    A pod that is being deleted was stopped from outside whatever its exit code: a suspended Job's pod that had not
    started yet ends with 137 (ContainerStatusUnknown), without the condition of a disruption, and Kubernetes counts
    it among the failed ones. One that its node turned away has no exit code, and was no attempt.
    """
    if pod.phase != "Failed" or pod.is_deleting or pod.is_disrupted:
        return False
    if pod.exit_code is None:
        return pod.reason == "Evicted"  # beyond its own limit of scratch space
    return pod.exit_code not in STOPPED_EXITS and pod.exit_code not in FINAL_EXITS


def new_tries(job: JobView, pods: Sequence[PodView], tries: Tries) -> list[PodView]:
    """The job's pods that failed since its tries were last counted, the oldest first."""
    failed = [
        pod
        for pod in pods
        if pod.phase == "Failed"
        and pod.job_uid == job.uid
        and has_failed_by_itself(pod)
        and (tries.until is None or ended_at(pod) > tries.until)
    ]
    return sorted(failed, key=ended_at)


def last_ended(job: JobView, pods: Iterable[PodView]) -> PodView | None:
    """The job's pod that failed last, as far as it is still there."""
    return max((pod for pod in pods if pod.phase == "Failed" and pod.job_uid == job.uid), key=ended_at, default=None)


def restart_seconds(job: JobView, pods: Iterable[PodView], now: datetime) -> float:
    """Seconds until Kubernetes starts the job's next pod, by its failed pods that are still there; 0 when it is due."""
    failed = [pod for pod in pods if pod.phase == "Failed" and pod.job_uid == job.uid]
    if not failed:
        return 0.0
    delay = min(JOB_BACKOFF_SECONDS << min(len(failed) - 1, 16), MAX_JOB_BACKOFF_SECONDS)
    return max(0.0, delay - (now - max(map(ended_at, failed))).total_seconds())


def pending_problem(pod: PodView) -> str | None:
    """`image` or `configuration`, where the pod's container cannot start because of it."""
    if pod.phase != "Pending" or pod.waiting_reason is None:
        return None
    if pod.waiting_reason in IMAGE_REASONS:
        return "image"
    return "configuration" if pod.waiting_reason in CONFIGURATION_REASONS else None


def failure_of_pod(
    work: Work, job: JobView, pod: PodView | None, now: datetime, *, last_peak: int | None = None
) -> Failure:
    """The final failure that the end of `pod`, the job's last, or its wait comes to; none where no pod is left.

    What the trainer left in its termination message outweighs Kubernetes' own words. `last_peak` is the largest
    memory in bytes that the trainer reported.
    """
    if job.failed_reason == "DeadlineExceeded":
        exit_code = NOT_STARTED if pod is None or pod.exit_code is None else pod.exit_code
        hint = "the setting for the Job's deadline is too short for this run; `grid retry` goes on from its checkpoint"
        message = job.failed_message or "it was active for longer than its deadline"
        return _failure(now, work, exit_code, "deadline", message, hint)
    if pod is None:
        message = f"its pods are gone; {_kubernetes_says(job.failed_reason, job.failed_message)}"
        return _failure(now, work, NOT_STARTED, "lost", message, "`grid retry` tries again")
    if (told := _trainers_own(work, pod)) is not None:
        return told
    if (problem := pending_problem(pod)) is not None:
        return _pending_failure(work, pod, problem, now)
    if pod.exit_code is None:
        message = _kubernetes_says(pod.reason or job.failed_reason, pod.message or job.failed_message)
        if pod.reason == "Evicted":
            hint = "it went beyond a limit: the settings for memory and scratch space say what a pod may use"
            return _failure(now, work, NOT_STARTED, "evicted", message, hint)
        return _failure(now, work, NOT_STARTED, "lost", message, "`grid retry` tries again")
    return _exit_failure(work, pod, pod.exit_code, last_peak, now)


def result_missing(work: Work, now: datetime) -> Failure:
    """The final failure of a run whose Job is complete, and whose numbers are not in the store."""
    key = f"{'tests' if work.is_test else 'results'}/{work.run}.json"
    return _failure(
        now,
        work,
        ExitCode.OK,
        "result-missing",
        f"its pod ended with exit code 0 and {key} is not in the store",
        "does the pod write to the store that the controller reads? `grid doctor` compares; `grid retry` tries again",
    )


def _trainers_own(work: Work, pod: PodView) -> Failure | None:
    if not pod.termination_message:
        return None
    try:
        told = Failure.model_validate_json(pod.termination_message)
    except ValidationError:
        return None
    return told.model_copy(update={"final": True}) if told.run == work.run else None


def _pending_failure(work: Work, pod: PodView, problem: str, now: datetime) -> Failure:
    hints = {
        "image": "the settings name the image and its pull secret; then `grid retry`",
        "configuration": "a secret, a volume or a command that the pod names is missing; then `grid retry`",
    }
    message = _kubernetes_says(pod.waiting_reason, pod.waiting_message)
    return _failure(now, work, NOT_STARTED, problem, message, hints[problem])


def _exit_failure(work: Work, pod: PodView, exit_code: int, last_peak: int | None, now: datetime) -> Failure:
    tail = _last_lines(pod.termination_message or "")
    if pod.exit_reason == "OOMKilled":
        limit = f"its limit is {pod.memory_limit}" if pod.memory_limit else "it has no limit of its own"
        peak = f", the last peak it reported {bytes_text(last_peak)}" if last_peak else ", no peak of it is known"
        hint = "give its pods more memory in the settings, or set a smaller batch_size"
        return _failure(now, work, exit_code, "out-of-memory", f"killed for its memory: {limit}{peak}", hint, tail)
    if pod.exit_reason in START_ERRORS:
        message = _kubernetes_says(pod.exit_reason, pod.termination_message)
        hint = "the image lacks what the pod's command names, or the node what its container needs"
        return _failure(now, work, exit_code, "configuration", message, hint)
    hint = f"`grid logs {work.run}` shows its last lines; `grid retry` tries again"
    if exit_code in FINAL_EXITS:
        message = f"{show_exit(exit_code)} and left no message"
        return _failure(now, work, exit_code, ExitCode(exit_code).name.lower(), message, hint, tail)
    if exit_code == SIGKILL:
        hint = "killed from outside: memory of the node, or a grace period too short for a checkpoint?"
    return _failure(now, work, exit_code, "crashed", show_exit(exit_code), hint, tail)


def _last_lines(log: str) -> list[str]:
    """The end of a log as people read it, of which Kubernetes has the last 2 KiB, the first of its lines torn."""
    first, *rest = log.splitlines() or [""]
    is_torn = first.endswith("}") and not first.startswith("{") and rest
    lines = read_lines(rest if is_torn else filter(None, (first, *rest)))
    return [plain(text) for line in lines for text in human_lines(line)][-LOG_TAIL_LINES:]


def _kubernetes_says(reason: str | None, message: str | None) -> str:
    told = ": ".join(plain(text.strip()) for text in (reason, message) if text and text.strip())
    return told or "Kubernetes does not say why"


def _failure(
    now: datetime,
    work: Work,
    exit_code: int,
    reason: str,
    message: str,
    hint: str | None,
    tail: Sequence[str] = (),
    attempt: str | None = None,
) -> Failure:
    return Failure(
        run=work.run,
        attempt=attempt,
        exit_code=exit_code,
        reason=reason,
        message=message,
        hint=hint,
        during=work.during,
        final=True,
        log_tail=list(tail),
        time=now,
    )
