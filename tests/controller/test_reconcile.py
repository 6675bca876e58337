"""What is decided about runs on a cluster, rule by rule; test_reconcile_model.py has what holds in every history."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from kubernetes_model import START as NOW
from kubernetes_views import job_view_of, pod_view_of
from results import result, result_of_test

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
    Notice,
    RecordFailure,
    Relabel,
    Resume,
    SetTtl,
    Suspend,
    changes,
    notice,
)
from controller.attempts import NOT_STARTED, Tries, failure_of_pod, read_tries, restart_seconds, result_missing
from controller.jobs import JobView, PodView, WorkloadView
from controller.reconcile import GridView, Kept, Observation, Resumption, decide, failed_anew, told
from controller.standing import Known, Work, run_state
from trainer.failure import Failure

A, B, C = (Work(run, False) for run in "abc")
A_TEST = Work("a", True)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def job(work: Work = A, **values: Any) -> JobView:
    """A Job of grid x, resumed, without a pod."""
    return job_view_of(work, **{"grids": {"x": "lr"}, "created": ago(3600), **values})


def suspended(work: Work = A, **values: Any) -> JobView:
    return job(work, is_suspended=True, **values)


def ended(work: Work = A, **values: Any) -> JobView:
    return job(work, failed_since=ago(5), failed_reason="PodFailurePolicy", **values)


def pod(work: Work = A, **values: Any) -> PodView:
    """The Job's pod, which runs."""
    return pod_view_of(work, **{"created": ago(3600), "scheduled": ago(3599), "memory_limit": "4Gi", **values})


def failed_pod(exit_code: int | None, work: Work = A, **values: Any) -> PodView:
    return pod(work, phase="Failed", exit_code=exit_code, **{"finished": ago(5), **values})


def pending(reason: str | None = None, message: str | None = None, **values: Any) -> PodView:
    return pod(phase="Pending", waiting_reason=reason, waiting_message=message, **values)


def grid(*works: Work, name: str = "x", **values: Any) -> GridView:
    return GridView(name, values.pop("intent", "active"), dict.fromkeys(works or (A,), "lr"), **values)


def seen(*things: JobView | PodView | GridView, **values: Any) -> Observation:
    grids = [each for each in things if isinstance(each, GridView)] or [grid()]
    pods: dict[Work, list[PodView]] = {}
    for each in things:
        if isinstance(each, PodView):
            pods.setdefault(each.work, []).append(each)
    jobs = {each.work: each for each in things if isinstance(each, JobView)}
    return Observation(NOW, {each.name: each for each in grids}, jobs, pods, **values)


def failure(run: str = "a", exit_code: int = 70, **values: Any) -> Failure:
    known: dict[str, Any] = {"attempt": None, "reason": "diverged", "message": "not finite", "final": True, "time": NOW}
    return Failure(run=run, exit_code=exit_code, **{**known, **values})


def kinds(actions: tuple[Action, ...]) -> list[type]:
    return [type(action) for action in actions]


# What is made


def test_a_wanted_run_gets_a_job_with_the_labels_of_all_its_grids() -> None:
    observed = seen(grid(A), grid(A, name="y", intent="paused"), grid(A, name="z", intent="cancelled"))
    assert decide(observed) == (Create(A, "x", {"x": "lr", "y": "lr"}),)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"results": {"a"}}, id="its-result-is-there"),
        pytest.param({"failures": {"a": failure()}}, id="it-failed-for-good"),
    ],
)
def test_nothing_is_made_for_a_run_that_has_ended_though_its_job_is_gone(values: dict[str, Any]) -> None:
    assert decide(seen(**values)) == ()


def test_a_job_deleted_by_hand_is_made_again() -> None:
    assert kinds(decide(seen())) == [Create]


def test_a_failure_that_is_not_final_does_not_keep_a_run_from_starting() -> None:
    assert kinds(decide(seen(failures={"a": failure(final=False)}))) == [Create]


@pytest.mark.parametrize("intent", ["paused", "cancelled"])
def test_nothing_is_made_for_a_grid_that_is_not_active(intent: str) -> None:
    assert decide(seen(grid(intent=intent))) == ()


def test_nothing_outside_the_wants_is_made() -> None:
    assert [action.work for action in decide(seen(grid(B, C))) if isinstance(action, Create)] == [B, C]


def test_no_job_is_made_beside_a_pod_that_has_not_ended() -> None:
    orphan = pod(job_uid=None)
    assert decide(seen(orphan)) == ()
    assert told(seen(replace(orphan, phase="Pending"))) == {"a": "waits for pod a-x1 to end"}


def test_no_job_is_made_while_the_old_one_is_being_deleted() -> None:
    observed = seen(job(is_deleting=True), pod(is_deleting=True))
    assert decide(observed) == ()
    assert told(observed) == {"a": "deleting its Job, whose pod a-x1 has not ended"}


def test_a_test_starts_only_once_its_run_is_trained() -> None:
    observed = seen(grid(A_TEST))
    assert decide(observed) == ()
    assert told(observed) == {"a": "for its training"}
    assert kinds(decide(replace(observed, results={"a"}))) == [Create]
    assert decide(seen(grid(A_TEST), suspended(A_TEST))) == ()


def test_a_test_waits_for_the_pod_that_trained_its_run() -> None:
    observed = seen(grid(A, A_TEST), job(), pod(), suspended(A_TEST), results={"a"})
    assert decide(observed) == ()
    assert told(observed) == {"a": "waits for pod a-x1 to end"}
    trained = seen(grid(A, A_TEST), job(complete_since=NOW), suspended(A_TEST), results={"a"})
    assert kinds(decide(trained)) == [Resume]


def test_more_failures_than_allowed_hold_back_what_has_not_started() -> None:
    observed = seen(grid(A, B, C, max_failed=0), ended(failure="told"), suspended(B), failures={"a": failure()})
    assert decide(observed) == ()
    assert told(observed)["c"] == "held back: 1 run of grid x failed, max_failed is 0"
    assert told(observed)["b"] == told(observed)["c"]


def test_a_grid_that_is_held_back_does_not_hold_back_another_one() -> None:
    held = grid(A, B, max_failed=0)
    actions = decide(seen(held, grid(B, name="y"), ended(failure="told"), failures={"a": failure()}))
    assert actions == (Create(B, "y", {"x": "lr", "y": "lr"}),)


# The window


def test_a_job_is_resumed_once_it_is_there() -> None:
    assert decide(seen(suspended())) == (Resume(suspended()),)


def test_a_job_is_not_resumed_before_its_runs_pods_were_asked_for() -> None:
    assert decide(seen(suspended(), unlisted={A})) == (ListPods((A,)),)


def test_the_window_is_filled_in_the_order_of_rows() -> None:
    observed = seen(grid(A, B, C, parallelism=2), suspended(A), suspended(B), suspended(C))
    assert [action.job.work for action in decide(observed) if isinstance(action, Resume)] == [A, B]


@pytest.mark.parametrize(
    "holder",
    [
        pytest.param((job(A), pod(A)), id="it-runs"),
        pytest.param((job(A), pending(unschedulable="0/1 nodes")), id="it-cannot-be-scheduled"),
        pytest.param((job(A),), id="it-has-no-pod"),
        pytest.param((suspended(A), pod(A, is_deleting=True), grid(A, intent="paused", name="y")), id="it-still-ends"),
        pytest.param((job(A, is_deleting=True), pod(A, is_deleting=True)), id="it-is-being-deleted"),
    ],
)
def test_a_place_in_the_window_is_held_until_its_pod_has_ended(holder: tuple[Any, ...]) -> None:
    observed = seen(grid(A, B, parallelism=1), *holder, suspended(B))
    assert not [action for action in decide(observed) if isinstance(action, Resume) and action.job.work == B]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param({"complete_since": ago(5)}, id="complete"),
        pytest.param({"failed_since": ago(5), "failure": "told"}, id="failed"),
    ],
)
def test_a_finished_job_frees_its_place(before: dict[str, Any]) -> None:
    observed = seen(grid(A, B, parallelism=1), job(A, **before), suspended(B), failures={"a": failure()})
    assert [action.job.work for action in decide(observed) if isinstance(action, Resume)] == [B]


def test_a_shared_run_needs_room_in_every_active_grid_that_wants_it() -> None:
    both = {"x": "lr", "y": "lr"}
    full = grid(B, C, name="y", parallelism=1)
    observed = seen(grid(A, B), full, suspended(B, grids=both), job(C, grids={"y": "lr"}), pod(C), job(A), pod(A))
    assert decide(observed) == ()
    assert told(observed)["b"] == "queued: 1 of grid y are at work, which is its parallelism"
    paused = replace(observed, grids={"x": grid(A, B), "y": grid(B, C, name="y", parallelism=1, intent="paused")})
    assert [type(action) for action in decide(paused) if getattr(action, "job", None) == observed.jobs[B]] == [Resume]


def test_a_run_that_cannot_be_scheduled_leaves_the_rest_of_the_window_to_others() -> None:
    stuck = pending(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu")
    observed = seen(grid(A, B, C, parallelism=2), job(A), stuck, job(B), pod(B), suspended(C))
    assert decide(observed) == ()
    assert told(observed)["a"] == "unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    after = replace(observed, results={"b"}, jobs={**observed.jobs, B: job(B, complete_since=NOW)}, pods={A: [stuck]})
    assert [action.job.work for action in decide(after) if isinstance(action, Resume)] == [C]


# Pausing, cancelling, changing


def test_a_paused_grids_jobs_are_suspended_and_stay() -> None:
    observed = seen(grid(A, B, intent="paused"), job(A), pod(A), suspended(B))
    assert decide(observed) == (Suspend(job(A), "paused"),)
    assert told(observed)["b"] == "paused"


def test_a_paused_job_that_ends_is_told_so_and_then_resumed_in_its_own_place() -> None:
    stopping = pod(A, is_deleting=True)
    assert told(seen(grid(A, intent="paused"), suspended(A), stopping)) == {"a": "terminating: pod a-x1 saves and ends"}
    assert decide(seen(grid(A, parallelism=1), suspended(A), stopping)) == (Resume(suspended(A)),)


def test_a_pod_whose_node_does_not_say_that_it_ended_is_told_with_its_cure() -> None:
    leaving = [replace(pod(), is_deleting=True, gone_by=ago(seconds)) for seconds in (30, 90)]
    early, late = (told(seen(grid(A), job(A), each))["a"] for each in leaving)
    assert early == "terminating: pod a-x1 saves and ends"
    assert late.startswith("stuck: pod a-x1 should have ended by ")
    assert late.endswith("once that node is surely off: kubectl delete pod a-x1 --force")


def test_a_shared_run_goes_on_while_one_grid_is_paused() -> None:
    both = job(A, grids={"x": "lr", "y": "lr"})
    assert decide(seen(grid(A, intent="paused"), grid(A, name="y"), both, pod(A))) == ()


def test_a_cancelled_grids_jobs_are_deleted_and_not_made_again() -> None:
    observed = seen(grid(A, B, C, intent="cancelled"), job(A), pod(A), suspended(B), job(C, complete_since=ago(5)))
    assert kinds(decide(observed)) == [Delete, Delete, Delete]
    assert decide(seen(grid(A, B, C, intent="cancelled"))) == ()


def test_a_cancelled_grid_leaves_the_jobs_that_another_one_wants() -> None:
    both = job(A, grids={"x": "lr", "y": "lr"})
    observed = seen(grid(A, intent="cancelled"), grid(A, name="y"), both, pod(A))
    assert decide(observed) == (Relabel(both, {}, ("x",)),)


def test_a_second_grid_adds_its_label_to_a_shared_job() -> None:
    observed = seen(grid(A), grid(A, name="y"), job(A), pod(A))
    assert decide(observed) == (Relabel(job(A), {"y": "lr"}, ()),)


def test_a_row_that_left_may_end_if_it_runs() -> None:
    assert decide(seen(grid(B), job(A), pod(A), job(B), pod(B))) == ()


@pytest.mark.parametrize(
    ("things", "prune"),
    [
        pytest.param((job(A), pod(A)), True, id="it-runs-and-is-pruned"),
        pytest.param((suspended(A),), False, id="it-has-not-started"),
        pytest.param((job(A), pending("ImagePullBackOff")), False, id="its-pod-waits"),
        pytest.param((job(A, complete_since=ago(5)),), False, id="it-has-ended"),
    ],
)
def test_a_row_that_left_takes_its_job_with_it(things: tuple[Any, ...], prune: bool) -> None:
    actions = decide(seen(grid(B, prune=prune), *things, job(B), pod(B)))
    assert [(type(action), action.job.work) for action in actions] == [(Delete, A)]  # type: ignore[union-attr]


def test_a_job_of_a_grid_that_is_not_known_is_left_alone() -> None:
    by_hand = job(A, grids={"rendered": "lr"})
    assert decide(seen(grid(B), by_hand, pod(A), job(B), pod(B))) == ()


# One run said otherwise than its grid


def held(*works: Work, how: str = "paused", **values: Any) -> GridView:
    """A grid of which run a is paused, or cancelled, by itself."""
    return grid(*works, held={"a": how}, **values)


def test_of_a_paused_run_the_job_is_suspended_and_the_others_go_on_in_its_place() -> None:
    observed = seen(held(A, B, C, parallelism=1), job(A), pod(A), suspended(B))
    assert decide(observed) == (Suspend(job(A), "paused"), Create(C, "x", {"x": "lr"}))
    gone = seen(held(A, B, parallelism=1), suspended(A), suspended(B))
    assert decide(gone) == (Resume(suspended(B)),)
    assert told(gone)["a"] == "paused"
    assert decide(seen(held(A, B, parallelism=1), suspended(A), job(B), pod(B))) == ()


@pytest.mark.parametrize("how", ["paused", "cancelled"])
def test_no_job_is_made_for_a_run_that_is_held_nor_for_its_test(how: str) -> None:
    assert decide(seen(held(A, how=how))) == ()
    assert decide(seen(held(A_TEST, how=how), results={"a"})) == ()
    assert told(seen(held(A, how=how))) == {"a": how}
    assert told(seen(held(A, A_TEST, how=how), results={"a"})) == {"a": how}


def test_a_paused_run_with_a_queue_loses_its_job_and_gets_none() -> None:
    queued = job(queue="team")
    observed = seen(held(A, queue="team"), queued, pod())
    assert decide(observed) == (Delete(queued, "paused: its checkpoint stands"),)
    assert decide(seen(held(A, queue="team"))) == ()


def test_a_cancelled_runs_job_is_deleted_and_not_made_again() -> None:
    observed = seen(held(A, B, how="cancelled"), job(A), pod(A), job(B), pod(B))
    assert [(type(action), action.job.work) for action in decide(observed)] == [(Delete, A)]  # type: ignore[union-attr]
    assert decide(seen(held(A, B, how="cancelled"), job(B), pod(B))) == ()
    assert told(seen(held(A, B, how="cancelled"), job(B), pod(B)))["a"] == "cancelled"


def test_a_run_that_another_grid_wants_goes_on_there_though_it_is_cancelled_here() -> None:
    both = job(A, grids={"x": "lr", "y": "lr"})
    assert decide(seen(held(A, how="cancelled"), grid(A, name="y"), both, pod(A))) == (Relabel(both, {}, ("x",)),)
    assert decide(seen(held(A), grid(A, name="y"), both, pod(A))) == ()
    everywhere = seen(held(A, how="cancelled"), held(A, how="cancelled", name="y"), both, pod(A))
    assert kinds(decide(everywhere)) == [Delete]


@pytest.mark.parametrize(
    ("intent", "how", "expected"),
    [
        pytest.param("active", "paused", "paused", id="the-run-is-paused"),
        pytest.param("paused", "cancelled", "cancelled", id="the-run-is-cancelled-in-a-paused-grid"),
        pytest.param("cancelled", "paused", "cancelled", id="the-grid-is-cancelled"),
        pytest.param("active", None, "active", id="nothing-is-said-of-the-run"),
    ],
)
def test_the_least_of_what_is_said_of_run_and_grid_counts(intent: str, how: str | None, expected: str) -> None:
    assert grid(intent=intent, held={"a": how} if how else {}).intent_for("a") == expected


def test_a_run_says_what_its_training_waits_for_before_what_its_test_does() -> None:
    assert told(seen(grid(A, A_TEST), job(), pod())) == {"a": "running on node-1"}


def test_deciding_on_ten_thousand_runs_of_which_many_are_held_does_nothing_twice() -> None:
    works = [Work(f"run-{number}", False) for number in range(10_000)]
    said = {work.run: "paused" if number % 2 else "cancelled" for number, work in enumerate(works[:5000])}
    jobs = [suspended(work) for work in works[1:5000:2]] + [job(work, complete_since=ago(5)) for work in works[5000:]]
    observed = seen(grid(*works, held=said), *jobs, results={work.run for work in works[5000:]})
    assert decide(observed) == ()
    assert set(told(observed).values()) == {"paused", "cancelled"}


# With a queue


def test_with_a_queue_suspend_is_never_written() -> None:
    queued = suspended(queue="team")
    assert decide(seen(grid(queue="team"), queued)) == ()
    paused = grid(queue="team", intent="paused")
    assert kinds(decide(seen(paused, queued))) == [Delete]
    assert kinds(decide(seen(paused, job(queue="team"), pod()))) == [Delete]
    assert decide(seen(paused)) == ()


def test_with_a_queue_the_pods_are_asked_for_before_the_job_is_made() -> None:
    queue = grid(queue="team")
    assert decide(seen(queue, unlisted={A})) == (ListPods((A,)),)
    assert kinds(decide(seen(queue))) == [Create]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        pytest.param({}, "queued in team: no quota left", id="queued"),
        pytest.param({"is_inadmissible": True}, "inadmissible in queue team: no quota left", id="inadmissible"),
        pytest.param({"is_evicted": True}, "queued in team, put back by Kueue: no quota left", id="preempted"),
        pytest.param({"is_admitted": True}, "starting: admitted by queue team", id="admitted"),
        pytest.param({"job_uid": "another"}, "queued in team: Kueue has not said anything of it", id="of-another-job"),
    ],
)
def test_what_kueue_says_is_told(values: dict[str, Any], text: str) -> None:
    known: dict[str, Any] = dict.fromkeys(WorkloadView.__dataclass_fields__) | {
        "work": A,
        "job_uid": "uid-a",
        "queue": "team",
        "is_admitted": False,
        "is_inadmissible": False,
        "is_evicted": False,
        "message": "no quota left",
    }
    workload = WorkloadView(**{**known, **values})
    observed = seen(grid(queue="team"), suspended(queue="team"), workloads={A: workload})
    assert told(observed) == {"a": text}


def test_a_quota_that_refuses_pods_is_a_wait_without_end() -> None:
    observed = seen(job(), quota={A: "exceeded quota: gpus"})
    assert decide(observed) == ()
    assert told(observed) == {"a": "quota: exceeded quota: gpus"}


def test_a_quota_that_refuses_jobs_is_tried_by_one_creation_at_a_time() -> None:
    observed = seen(grid(A, B, C), quota=dict.fromkeys((A, B, C), "exceeded quota: count/jobs.batch"))
    assert kinds(decide(observed)) == [Create]
    assert told(observed)["c"] == "quota: exceeded quota: count/jobs.batch"


# Ends


def test_numbers_in_the_store_end_a_job_that_has_not_started() -> None:
    assert kinds(decide(seen(suspended(), results={"a"}))) == [Delete]
    assert kinds(decide(seen(job(), pending("ImagePullBackOff"), results={"a"}))) == [Delete]


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_a_pod_that_wrote_its_result_ends_by_itself(phase: str) -> None:
    assert decide(seen(job(), pod(phase=phase), results={"a"})) == ()


def test_a_finished_grid_needs_nothing() -> None:
    assert decide(seen(job(complete_since=ago(5000)), pod(phase="Succeeded"), results={"a"})) == ()


def test_a_job_gets_its_ttl_once_its_numbers_are_in_the_store() -> None:
    kept = grid(ttl_seconds=60)
    complete = job(complete_since=ago(5))
    assert decide(seen(kept, complete)) == ()
    assert decide(seen(kept, complete, results={"a"})) == (SetTtl(complete, 60),)
    assert decide(seen(kept, job(complete_since=ago(5), ttl_seconds=60), results={"a"})) == ()
    assert decide(seen(kept, ended(failure="told"), failures={"a": failure()})) == (SetTtl(ended(failure="told"), 60),)


def test_a_shared_job_stays_where_one_of_its_grids_sets_no_ttl() -> None:
    both = job(complete_since=ago(5), grids={"x": "lr", "y": "lr"})
    assert decide(seen(grid(ttl_seconds=60), grid(name="y"), both, results={"a"})) == ()


def test_completion_without_a_result_is_a_failure_after_five_minutes() -> None:
    early, late = job(complete_since=ago(299)), job(complete_since=ago(300))
    assert decide(seen(early)) == ()
    assert told(seen(early)) == {"a": "ended, its result is not in the store yet: a failure in 1 s"}
    (action,) = decide(seen(late))
    assert isinstance(action, RecordFailure)
    assert (action.failure.reason, action.failure.exit_code, action.failure.final) == ("result-missing", 0, True)


def test_a_failed_jobs_failure_is_recorded_then_marked_then_left() -> None:
    pods = failed_pod(70, termination_message=failure(reason="diverged").model_dump_json())
    (action,) = decide(seen(ended(), pods))
    assert isinstance(action, RecordFailure)
    assert action.failure.reason == "diverged"
    assert decide(seen(ended(), pods, failures={"a": failure()})) == (MarkFailed(ended(), failure()),)
    assert decide(seen(ended(failure="diverged"), pods, failures={"a": failure()})) == ()


def test_a_failure_that_was_cleared_starts_the_run_again() -> None:
    (action,) = decide(seen(ended(failure="diverged")))
    assert isinstance(action, Delete)
    assert told(seen(ended(failure="diverged"))) == {"a": "to be started again: its failure was cleared"}
    assert kinds(decide(seen())) == [Create]


def test_a_failure_that_the_trainer_recorded_lets_kubernetes_end_the_job() -> None:
    by_trainer = {"a": failure(exit_code=65)}
    assert decide(seen(job(), pod(), failures=by_trainer)) == ()
    assert decide(seen(job(), failed_pod(65), failures=by_trainer)) == ()
    assert kinds(decide(seen(suspended(), failures=by_trainer))) == [Delete]


def test_a_run_that_was_given_up_is_ended_where_kubernetes_would_go_on() -> None:
    given_up = {"a": failure(exit_code=137, reason="crashed")}
    assert kinds(decide(seen(job(), pod(), failures=given_up))) == [Delete]
    assert kinds(decide(seen(suspended(), failures=given_up))) == [Delete]


# Attempts


@pytest.mark.parametrize("exit_code", [1, 69, 71, 137])
def test_a_failed_attempt_is_counted_on_the_job(exit_code: int) -> None:
    observed = seen(job(), failed_pod(exit_code), checkpoints={"a": 0})
    (action,) = decide(observed)
    assert isinstance(action, NoteTries)
    assert read_tries(action.text) == Tries(1, 0, ago(5))
    assert list(failed_anew(observed)) == ["a"]
    counted = seen(job(tries=action.text), failed_pod(exit_code))
    assert decide(counted) == ()
    assert failed_anew(counted) == {}


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(failed_pod(75), id="stopped"),
        pytest.param(failed_pod(143), id="stopped-before-it-listened"),
        pytest.param(failed_pod(137, is_disrupted=True), id="evicted"),
        pytest.param(failed_pod(137, is_deleting=True), id="deleted-or-suspended"),
        pytest.param(failed_pod(None, reason="UnexpectedAdmissionError"), id="turned-away-by-its-node"),
        pytest.param(failed_pod(70), id="failed-for-good"),
        pytest.param(failed_pod(1, job_uid="an-earlier-job"), id="of-an-earlier-job"),
    ],
)
def test_what_is_no_fault_of_the_run_is_not_counted(end: PodView) -> None:
    assert failed_anew(seen(job(), end)) == {}
    assert decide(seen(job(), end, checkpoints={"a": 0})) == ()


def test_nothing_is_counted_before_the_checkpoint_is_known() -> None:
    assert decide(seen(job(), failed_pod(1))) == ()


def test_attempts_without_a_newer_checkpoint_end_the_run() -> None:
    before = Tries(2, 4, ago(100)).text()
    actions = decide(seen(job(tries=before), failed_pod(1), checkpoints={"a": 4}))
    assert kinds(actions) == [RecordFailure, Delete]
    recorded = actions[0]
    assert isinstance(recorded, RecordFailure)
    assert recorded.failure.message == "ended with exit code 1 (3 attempts brought no newer checkpoint)"


def test_a_newer_checkpoint_starts_the_count_again() -> None:
    before = Tries(2, 4, ago(100)).text()
    (action,) = decide(seen(job(tries=before), failed_pod(1), checkpoints={"a": 5}))
    assert isinstance(action, NoteTries)
    assert read_tries(action.text).count == 1


def test_attempts_that_failed_unseen_are_counted_together() -> None:
    ends = [failed_pod(1, name=f"a-{age}", finished=ago(age)) for age in (90, 50, 10)]
    assert kinds(decide(seen(job(), *ends, checkpoints={"a": 0}))) == [RecordFailure, Delete]


def test_more_tries_are_granted_where_the_settings_say_so() -> None:
    before = Tries(2, 4, ago(100)).text()
    observed = seen(grid(max_tries=4), job(tries=before), failed_pod(1), checkpoints={"a": 4})
    assert kinds(decide(observed)) == [NoteTries]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"count": "x", "sequence": 1, "until": null}', '{"count": 1}'])
def test_tries_that_cannot_be_read_are_counted_anew(text: str) -> None:
    assert read_tries(text) == Tries()


def test_tries_are_read_as_they_were_written() -> None:
    assert read_tries(Tries(2, 7, NOW).text()) == Tries(2, 7, NOW)


@pytest.mark.parametrize(
    ("num_failed", "seconds"), [(0, 0), (1, 5), (2, 15), (3, 35), (7, 595), (60, 595)], ids=lambda value: str(value)
)
def test_kubernetes_waits_longer_after_each_failed_pod(num_failed: int, seconds: float) -> None:
    ends = [failed_pod(1, name=f"a-{index}") for index in range(num_failed)]
    assert restart_seconds(job(), ends, NOW) == seconds


def test_a_restart_says_when_and_after_what() -> None:
    noted = job(tries=Tries(1, 0, ago(5)).text())
    killed = failed_pod(137, exit_reason="OOMKilled")
    assert told(seen(noted, killed)) == {
        "a": "restarts in 5 s: killed for its memory at its limit of 4Gi, 1 of 3 attempts without a newer checkpoint"
    }
    assert told(seen(job(), failed_pod(75, finished=ago(60)))) == {"a": "restarts now: ended with exit code 75"}


# Waiting for an image, a configuration, a node


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ErrImagePull", "image"),
        ("ImagePullBackOff", "image"),
        ("InvalidImageName", "image"),
        ("CreateContainerConfigError", "configuration"),
        ("CreateContainerError", "configuration"),
        ("RunContainerError", "configuration"),
    ],
)
def test_an_image_or_a_configuration_that_stays_wrong_is_a_failure(reason: str, kind: str) -> None:
    waiting = pending(reason, "no such thing", scheduled=ago(60))
    assert told(seen(job(), waiting)) == {"a": f"{kind}: {reason}: no such thing"}
    assert decide(seen(grid(pending_seconds=61), job(), waiting)) == ()
    actions = decide(seen(grid(pending_seconds=60), job(), waiting))
    assert kinds(actions) == [RecordFailure, Delete]
    recorded = actions[0]
    assert isinstance(recorded, RecordFailure)
    assert (recorded.failure.reason, recorded.failure.exit_code) == (kind, NOT_STARTED)
    assert recorded.failure.message == f"{reason}: no such thing"


def test_the_wait_for_a_node_does_not_count_as_one_for_the_image() -> None:
    waiting = pending("ImagePullBackOff", created=ago(9000), scheduled=ago(10))
    assert decide(seen(grid(pending_seconds=60), job(), waiting)) == ()


def test_the_wait_for_a_node_has_no_end() -> None:
    waiting = pending(unschedulable="no node", created=ago(900000), scheduled=None)
    assert decide(seen(grid(pending_seconds=60), job(), waiting)) == ()


@pytest.mark.parametrize(
    ("things", "text"),
    [
        pytest.param((), "queued: its Job is not made yet", id="no-job"),
        pytest.param((suspended(),), "queued: about to start", id="about-to-be-resumed"),
        pytest.param((job(),), "starting: no pod yet", id="no-pod"),
        pytest.param((job(), pending(node=None)), "starting: waits for a node", id="not-placed"),
        pytest.param((job(), pending("ContainerCreating")), "starting on node-1", id="placed"),
        pytest.param((job(), pod()), "running on node-1", id="running"),
        pytest.param((job(progress={"epoch": "3"}), pod()), "running on node-1, epoch 3", id="running-with-epoch"),
        pytest.param((ended(),), "failed: PodFailurePolicy, to be recorded", id="failed"),
    ],
)
def test_a_run_says_how_it_stands(things: tuple[Any, ...], text: str) -> None:
    assert told(seen(*things)) == {"a": text}


def test_what_is_told_gives_a_run_its_state() -> None:
    observed = seen(grid(A, B, C), job(), pod(), job(B), failures={"c": failure("c")})
    active = told(observed)
    known = Known(failures=observed.failures)
    assert [run_state(work, known, active)[0] for work in (A, B, C)] == ["running", "waiting", "failed"]


def test_what_is_done_is_not_told_of() -> None:
    assert told(seen(job(), pod(), results={"a"})) == {}


# Failures


def trainers(run: str = "a") -> str:
    return failure(run, reason="data", message="no such shard", final=False).model_dump_json()


@pytest.mark.parametrize(
    ("end", "peak", "reason", "message"),
    [
        pytest.param(failed_pod(65, termination_message=trainers()), None, "data", "no such shard", id="trainers-own"),
        pytest.param(
            failed_pod(65, termination_message=trainers("b")),
            None,
            "data",
            "ended with exit code 65 and left no message",
            id="another-runs-message",
        ),
        pytest.param(failed_pod(64), None, "spec", "ended with exit code 64 and left no message", id="64"),
        pytest.param(failed_pod(70), None, "training", "ended with exit code 70 and left no message", id="70"),
        pytest.param(
            failed_pod(137, exit_reason="OOMKilled"),
            3_900_000_000,
            "out-of-memory",
            "killed for its memory: its limit is 4Gi, the last peak it reported 3.9 GB",
            id="out-of-memory",
        ),
        pytest.param(
            failed_pod(137, exit_reason="OOMKilled", memory_limit=None),
            None,
            "out-of-memory",
            "killed for its memory: it has no limit of its own, no peak of it is known",
            id="out-of-memory-without-limit",
        ),
        pytest.param(failed_pod(137), None, "crashed", "ended by SIGKILL", id="killed"),
        pytest.param(failed_pod(143), None, "crashed", "ended by SIGTERM", id="terminated"),
        pytest.param(failed_pod(1), None, "crashed", "ended with exit code 1", id="crashed"),
        pytest.param(
            failed_pod(128, exit_reason="StartError", termination_message='exec: "trainer": not found'),
            None,
            "configuration",
            'StartError: exec: "trainer": not found',
            id="no-such-command",
        ),
        pytest.param(
            failed_pod(None, reason="Evicted", message="beyond its limit of scratch space"),
            None,
            "evicted",
            "Evicted: beyond its limit of scratch space",
            id="evicted",
        ),
        pytest.param(failed_pod(None), None, "lost", "PodFailurePolicy: why", id="no-exit-code"),
        pytest.param(None, None, "lost", "its pods are gone; PodFailurePolicy: why", id="no-pod"),
    ],
)
def test_a_pods_end_becomes_a_failure(end: PodView | None, peak: int | None, reason: str, message: str) -> None:
    found = failure_of_pod(A, ended(failed_message="why"), end, NOW, last_peak=peak)
    assert (found.run, found.reason, found.message, found.final, found.time) == ("a", reason, message, True, NOW)


def test_the_last_lines_of_a_pod_are_kept_where_it_left_no_record() -> None:
    found = failure_of_pod(A, ended(), failed_pod(1, termination_message="first\nlast \x1b[31mwords"), NOW)
    assert found.log_tail == ["first", "last \N{REPLACEMENT CHARACTER}[31mwords"]


def test_the_last_lines_of_a_pod_that_wrote_json_are_kept_for_people() -> None:
    said = '{"time": "2026-11-23T08:00:00.000Z", "level": "info", "run": "a", "message": "epoch 1 of 2"}'
    found = failure_of_pod(A, ended(), failed_pod(137, termination_message=f'ch 0"}}\n{said}\nKilled'), NOW)
    assert found.log_tail == ["2026-11-23T08:00:00.000Z info    epoch 1 of 2", "Killed"]


def test_a_job_beyond_its_deadline_failed_for_that() -> None:
    over = job(failed_since=NOW, failed_reason="DeadlineExceeded", failed_message="it was active too long")
    found = failure_of_pod(A, over, failed_pod(75), NOW)
    assert (found.reason, found.message, found.exit_code) == ("deadline", "it was active too long", 75)


def test_a_failed_test_is_one_of_the_test() -> None:
    assert failure_of_pod(A_TEST, job(A_TEST), failed_pod(1, A_TEST), NOW).during == "test"
    assert result_missing(A_TEST, NOW).message == "its pod ended with exit code 0 and tests/a.json is not in the store"


# Progress and notices


def test_progress_is_shown_once_a_minute() -> None:
    values = {"epoch": "3", "images_per_second": "812"}
    observed = seen(job(), pod(), progress={"a": values})
    (action,) = decide(observed)
    assert isinstance(action, NoteProgress)
    assert action.values == {**values, "time": NOW.isoformat(timespec="seconds")}
    for age, expected in ((59, []), (60, [NoteProgress])):
        shown = job(progress={"epoch": "2", "time": ago(age).isoformat()})
        assert kinds(decide(seen(shown, pod(), progress={"a": values}))) == expected


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        pytest.param({"progress_seconds": None}, {}, id="switched-off"),
        pytest.param({}, {"epoch": "3", "time": ago(600).isoformat()}, id="nothing-new"),
    ],
)
def test_progress_costs_nothing_where_there_is_none_to_show(values: dict[str, Any], shown: dict[str, str]) -> None:
    assert decide(seen(grid(**values), job(progress=shown), pod(), progress={"a": {"epoch": "3"}})) == ()


@pytest.mark.parametrize(
    ("work", "told", "values"),
    [
        pytest.param(
            A,
            "validation accuracy 0.5000, loss 1.2500 in epoch 3",
            {"epoch": "4", "validation_accuracy": "0.5000", "images_per_second": "800.0", "time": NOW.isoformat()},
            id="training",
        ),
        pytest.param(Work("a", is_test=True), "test accuracy 0.2500, loss 2.0000", {}, id="test"),
    ],
)
def test_a_finished_job_says_once_what_its_work_came_to(work: Work, told: str, values: dict[str, str]) -> None:
    numbers = {"best_epoch": 3, "epochs_run": 4, "validation_accuracy": 0.5, "validation_loss": 1.25}
    known = Known(
        results={"a": result("a", images_per_second=800, **numbers)},
        tests={"a": result_of_test("a", test_accuracy=0.25, test_loss=2)},
    )
    ended_job = job(work, complete_since=ago(5), progress={"epoch": "1", "time": ago(3).isoformat()})
    store = {"results": {"a"}, "tests": {"a"}, "known": [known]}
    (action,) = decide(seen(grid(A, work), ended_job, **store))
    assert action == NoteDone(ended_job, told, values)
    assert decide(seen(grid(A, work), replace(ended_job, outcome=told), **store)) == ()
    assert decide(seen(grid(A, work, progress_seconds=None), ended_job, **store)) == ()


def test_that_a_run_went_on_is_told_once_for_each_pod() -> None:
    went_on = {"a": Resumption("pod-a", 4)}
    observed = seen(job(), pod(), resumed=went_on)
    assert decide(observed) == (NoteResumed(job(), "pod-a", "resumed at epoch 4"),)
    assert decide(seen(job(resumed_pod="pod-a"), pod(), resumed=went_on)) == ()
    assert kinds(decide(seen(job(resumed_pod="an-earlier-one"), pod(), resumed=went_on))) == [NoteResumed]
    assert decide(seen(job(), pod(job_uid="an-earlier-job"), resumed=went_on)) == ()


def kept(stage: str = "lr", time: str = "12:00", name: str = "x") -> Kept:
    return Kept(stage, time, f"kept as best of stage {stage} of grid {name}: lowest")


def test_that_a_decision_kept_a_run_is_told_once_on_its_finished_job() -> None:
    keeping = grid(A, B, kept={"a": [kept()]})
    complete = job(complete_since=ago(5)), job(B, complete_since=ago(5))
    (action,) = decide(seen(keeping, *complete, results={"a", "b"}))
    assert action == NoteKept(complete[0], '{"x/lr": "12:00"}', "kept as best of stage lr of grid x: lowest")
    noted = job(complete_since=ago(5), kept_by='{"x/lr": "12:00"}')
    assert decide(seen(keeping, noted, complete[1], results={"a", "b"})) == ()
    assert decide(seen(keeping, job(), pod(), job(B), pod(B))) == ()  # not before it has ended


@pytest.mark.parametrize(
    ("grids", "before", "text", "told_of"),
    [
        pytest.param([grid(A)], '{"x/lr": "12:00"}', None, None, id="it-is-reopened"),
        pytest.param(
            [grid(A, kept={"a": [kept(time="13:00")]})],
            '{"x/lr": "12:00"}',
            '{"x/lr": "13:00"}',
            ["x"],
            id="taken-anew",
        ),
        pytest.param(
            [grid(A, kept={"a": [kept()]})],
            '{"z/lr": "11:00"}',
            '{"z/lr": "11:00", "x/lr": "12:00"}',
            ["x"],
            id="of-another-grid-that-is-not-known",
        ),
        pytest.param(
            [grid(A, kept={"a": [kept()]}), grid(A, name="y", kept={"a": [kept(name="y")]})],
            "damaged",
            '{"x/lr": "12:00", "y/lr": "12:00"}',
            ["x", "y"],
            id="of-two-grids-and-a-damaged-note",
        ),
    ],
)
def test_a_job_says_which_decisions_keep_its_run_now(
    grids: list[GridView], before: str, text: str | None, told_of: list[str] | None
) -> None:
    complete = job(complete_since=ago(5), kept_by=before, grids={each.name: "lr" for each in grids})
    (action,) = decide(seen(*grids, complete, results={"a"}))
    assert isinstance(action, NoteKept)
    assert action.text == text
    assert action.told == (told_of and "; ".join(kept(name=name).told for name in told_of))
    assert decide(seen(*grids, replace(complete, kept_by=text), results={"a"})) == ()


def test_what_frees_a_place_comes_first() -> None:
    observed = seen(grid(A, B, C), suspended(A), suspended(B), results={"b"})
    assert kinds(decide(observed)) == [Delete, Resume, Create]


@pytest.mark.parametrize(
    ("action", "patch"),
    [
        pytest.param(
            Resume(job()),
            {
                "metadata": {"annotations": {"experiment-grid.dev/last-transition": "started"}},
                "spec": {"suspend": False},
            },
            id="resume",
        ),
        pytest.param(SetTtl(job(), 60), {"spec": {"ttlSecondsAfterFinished": 60}}, id="ttl"),
        pytest.param(
            Relabel(job(), {"y": "lr"}, ("x",)),
            {"metadata": {"labels": {"grid.experiment-grid.dev/y": "lr", "grid.experiment-grid.dev/x": None}}},
            id="relabel",
        ),
        pytest.param(
            Suspend(job(), "paused"),
            {
                "metadata": {"annotations": {"experiment-grid.dev/last-transition": "suspended: paused"}},
                "spec": {"suspend": True},
            },
            id="suspend",
        ),
        pytest.param(
            NoteProgress(job(), {"epoch": "3"}),
            {"metadata": {"annotations": {"experiment-grid.dev/epoch": "3"}}},
            id="progress",
        ),
        pytest.param(
            NoteDone(job(), "loss 0.5000", {"epoch": "3"}),
            {
                "metadata": {
                    "annotations": {
                        "experiment-grid.dev/outcome": "loss 0.5000",
                        "experiment-grid.dev/last-transition": "done: loss 0.5000",
                        "experiment-grid.dev/epoch": "3",
                    }
                }
            },
            id="done",
        ),
        pytest.param(
            NoteResumed(job(), "uid-1", "resumed at epoch 4"),
            {
                "metadata": {
                    "annotations": {
                        "experiment-grid.dev/resumed-pod": "uid-1",
                        "experiment-grid.dev/last-transition": "resumed at epoch 4",
                    }
                }
            },
            id="resumed",
        ),
        pytest.param(
            NoteKept(job(), None, None),
            {"metadata": {"annotations": {"experiment-grid.dev/kept-by": None}}},
            id="kept-no-longer",
        ),
        pytest.param(Delete(job(), "paused"), None, id="no-patch"),
    ],
)
def test_an_action_on_a_job_is_one_merge_patch(action: Action, patch: dict[str, Any] | None) -> None:
    assert changes(action) == patch
    assert json.loads(json.dumps(patch)) == patch


def test_only_what_is_out_of_the_ordinary_is_worth_an_event() -> None:
    quiet: list[Action] = [
        Create(A, "x", {}),
        Resume(job()),
        Suspend(job(), "paused"),
        SetTtl(job(), 1),
        ListPods((A,)),
    ]
    quiet.append(NoteKept(job(), None, None))
    assert [notice(action) for action in quiet] == [None] * len(quiet)
    assert notice(NoteResumed(job(), "uid-1", "resumed at epoch 4")) == Notice(
        "Normal", "RunResumed", "resumed at epoch 4"
    )
    assert notice(NoteKept(job(), "{}", "kept as best")) == Notice("Normal", "RunKept", "kept as best")
    assert notice(RecordFailure(ended(), failure())) is None  # it is marked next, and told then
    for action in (MarkFailed(ended(), failure()), RecordFailure(job(), failure())):
        said = notice(action)
        assert said is not None
        assert (said.kind, said.reason, said.message) == ("Warning", "RunFailed", "diverged: not finite")
