"""Passes against a real kube-apiserver and the real Job controller; a thread of the test plays kubelet and trainer."""

from __future__ import annotations

import random
import threading
from collections import Counter
from itertools import count
from typing import Any

import pytest

from cluster.apiserver import NOBODY
from cluster.lab import THREE_STAGES, Ended, Kubelet, Lab
from controller.archive import set_intent
from controller.cluster import (
    JOBS,
    NAMESPACES,
    QUOTAS,
    ClusterError,
    Forbidden,
)
from controller.jobs import FAILURE_ANNOTATION
from controller.knowledge import read_decisions, read_failures
from controller.live import PlainView
from controller.local import retry
from controller.loops import settle
from controller.mirror import Mirror
from controller.passes import Passes
from controller.standing import Choice, Work
from controller.who_acts import Acting
from trainer.failure import ExitCode


def test_a_submit_makes_every_job_and_starts_as_many_as_the_window_holds(lab: Lab) -> None:
    lab.submit("small")
    with lab.acting("small") as passes:
        done = settle(passes).done
        assert (done["Create"], done["Resume"]) == (3, 2)
        states = [reason for _, reason in passes.states("small").values()]
        assert sum("parallelism" in str(reason) for reason in states) == 1
        assert passes.cluster.calls["create", "jobs", 201] == 3
    assert lab.settle("small") == Counter()  # a second one finds all as it should be
    assert [job["spec"]["suspend"] for job in lab.jobs().values()].count(True) == 1


def test_a_part_of_a_grid_is_made_alone_and_the_rest_is_made_later(lab: Lab) -> None:
    lab.submit("small")
    assert lab.settle("small", only=Choice(only="*lr=0.5*"))["Create"] == 1
    assert lab.settle("small")["Create"] == 2


def test_a_watched_grid_goes_through_its_stages_with_one_pod_for_each_piece_of_work(lab: Lab) -> None:
    lab.submit("small", THREE_STAGES)
    with Kubelet(lab) as kubelet:
        passes = lab.watch("small")
    assert set(read_decisions(lab.store, "small")) == {"lr", "smoothing", "final"}
    assert {state for state, _ in passes.states("small").values()} == {"done"}
    assert sum(work.is_test for work in kubelet.starts) == 1
    assert set(kubelet.starts.values()) == {1}
    assert kubelet.most_at_once <= 2
    told = lab.told.getvalue()
    assert told.count("done ") == 5
    assert told.count("kept ") == 3


@pytest.mark.parametrize(
    ("ended", "reason", "tries"),
    [
        pytest.param(Ended(ExitCode.SPEC), "spec", 1, id="the-spec-is-wrong"),
        pytest.param(Ended(ExitCode.DATA, failure="data"), "data", 1, id="data-is-wrong-and-the-trainer-says-so"),
        pytest.param(Ended(ExitCode.TRAINING), "training", 1, id="training-failed-for-good"),
        pytest.param(Ended(1), "crashed", 2, id="an-error-of-the-program"),
        pytest.param(Ended(ExitCode.STORE), "crashed", 2, id="no-store"),
        pytest.param(Ended(ExitCode.DEVICE), "crashed", 2, id="a-broken-device"),
        pytest.param(Ended(137, "OOMKilled"), "out-of-memory", 2, id="killed-for-its-memory"),
    ],
)
def test_a_pod_that_fails_is_tried_again_as_its_exit_code_says_and_no_more(
    lab: Lab, ended: Ended, reason: str, tries: int
) -> None:
    lab.submit("small", "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n", parallelism=1)
    with Kubelet(lab, lambda _work, _number: ended) as kubelet:
        passes = lab.watch("small")
    ((run, failure),) = read_failures(lab.store).items()
    assert (failure.final, failure.reason) == (True, reason)
    assert list(kubelet.starts.values()) == [tries]
    assert passes.told_failed == {run}
    assert passes.states("small")[Work(run, False)][0] == "failed"
    if reason == "out-of-memory":
        assert "its limit is 512Mi" in failure.message
    if tries == 1:
        assert lab.jobs()[run]["metadata"]["annotations"][FAILURE_ANNOTATION].startswith(reason)
    else:
        assert not lab.jobs()
    with lab.acting("small") as passes:  # what failed for good is not started again, until that is asked for
        assert settle(passes).done == Counter()
        retry(passes.grids["small"].grid, lab.store)
        passes.forget()
        assert settle(passes).done["Create"] == 1


def test_a_pod_that_was_stopped_is_replaced_and_not_counted(lab: Lab) -> None:
    lab.submit("small", "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n", max_tries=1)
    codes = {1: ExitCode.STOPPED, 2: 143}
    with Kubelet(lab, lambda _work, number: Ended(codes.get(number, 0))) as kubelet:
        passes = lab.watch("small")
    assert list(kubelet.starts.values()) == [3]
    assert {state for state, _ in passes.states("small").values()} == {"done"}


def test_a_job_that_was_deleted_by_hand_is_made_again(lab: Lab) -> None:
    lab.submit("small")
    lab.settle("small")
    name = next(iter(lab.jobs()))
    lab.cluster.delete(JOBS, name)
    assert lab.settle("small")["Create"] == 1
    assert len(lab.jobs()) == 3


def test_a_paused_grid_has_no_pod_and_goes_on_when_it_is_resumed(lab: Lab) -> None:
    lab.submit("small")
    lab.settle("small")
    set_intent(lab.grids["small"], lab.store, "paused")
    assert lab.settle("small")["Suspend"] == 2
    assert all(job["spec"]["suspend"] for job in lab.jobs().values())
    set_intent(lab.grids["small"], lab.store, "active")
    assert lab.settle("small")["Resume"] == 2


def test_a_cancelled_grid_leaves_the_jobs_that_another_grid_wants(lab: Lab) -> None:
    lab.submit("small")
    lab.submit("other", "  - name: lr\n    vary: {optimizer.lr: [0.05, 0.0001]}\n")
    lab.settle("small")
    assert lab.settle("other")["Create"] == 1
    set_intent(lab.grids["small"], lab.store, "cancelled")
    assert lab.settle("small")["Relabel"] == 1
    until = threading.Event()
    while len(lab.jobs()) > 2:  # those that were deleted go once their pods are gone
        until.wait(0.2)
    assert {key for job in lab.jobs().values() for key in job["metadata"]["labels"] if key.startswith("grid.")} == {
        "grid.experiment-grid.dev/other"
    }
    assert lab.settle("small") == Counter()  # what was cancelled stays so


def test_a_quota_that_refuses_jobs_is_waited_for(lab: Lab) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    lab.cluster.create(QUOTAS, {"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    until = threading.Event()
    while not lab.cluster.get(QUOTAS, "few").get("status", {}).get("hard"):
        until.wait(0.2)
    lab.submit("small")
    with lab.acting("small") as passes:
        assert settle(passes).done["Create"] == 1
        told = [reason for _, reason in passes.states("small").values() if reason and reason.startswith("quota: ")]
        assert len(told) == 2
        assert not read_failures(lab.store)
        lab.cluster.delete(QUOTAS, "few")
        until.wait(1)
        assert settle(passes).done["Create"] == 2


def test_a_refusal_is_told_once_and_ends_a_submit(lab: Lab) -> None:
    lab.submit("small")
    with lab.connect(NOBODY) as nobody, pytest.raises(Forbidden, match="apiGroups"), Mirror(nobody):
        pass
    lab.cluster.delete(NAMESPACES, lab.cluster.namespace)
    with lab.acting("small") as passes:
        report = settle(passes, seconds=1)
    assert len(report.refused) == 3
    assert isinstance(report.refused[0][1], ClusterError)
    assert lab.told.getvalue().count("is being terminated") == 1


class Crash(Exception):
    """The controller's process is gone."""


def test_a_controller_that_dies_at_any_request_loses_no_run_and_starts_none_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.submit("small", THREE_STAGES)
    draws = random.Random(7)
    act = Passes._do
    numbers = count()  # of what this controller does
    dies_at, is_before = 0, False

    def do(self: Passes, action: Any) -> bool:
        dies = next(numbers) == dies_at
        if dies and is_before:
            raise Crash
        done = act(self, action)
        if dies:
            raise Crash
        return done

    monkeypatch.setattr(Passes, "_do", do)
    num_crashes = 0
    with Kubelet(lab) as kubelet:
        while True:
            numbers, dies_at, is_before = count(), draws.randint(0, 2), draws.random() < 0.5
            try:
                passes = lab.watch("small")
                break
            except Crash:
                num_crashes += 1
    assert num_crashes > 3
    assert {state for state, _ in passes.states("small").values()} == {"done"}
    assert set(kubelet.starts.values()) == {1}
    assert kubelet.most_at_once <= 2


def test_one_process_at_a_time_acts_on_a_grid(lab: Lab) -> None:
    view = PlainView(lab.told)
    with lab.connect() as here, lab.connect() as there:
        with Acting(here, "small", ["s3://bucket"], view) as first:
            assert first.other() is None
            with Acting(there, "small", ["s3://bucket"], view) as second:
                assert second.other()
                assert not second()
            assert first()
        with Acting(there, "small", ["s3://bucket"], view) as third:
            assert third.other() is None  # it was given back
