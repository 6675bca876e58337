"""One run said otherwise than its grids, and what is told of runs, on a real kube-apiserver with its Job controller."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from results import numerics

from cluster.lab import STAGES, Ended, Kubelet, Lab
from controller.archive import read_held
from controller.cli import main
from controller.cluster import EVENTS, Object
from controller.jobs import KEPT_ANNOTATION, RESUMED_ANNOTATION, TRANSITION_ANNOTATION
from controller.loops import settle, watch
from controller.standing import Choice, Work
from trainer.failure import ExitCode
from trainer.lease import LeaseRecord, lease_key
from trainer.result import Provenance, ResumedFrom

OTHER = "  - name: lr\n    vary: {optimizer.lr: [0.05, 0.0001]}\n"


@pytest.fixture(autouse=True)
def here(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(lab.server.kubeconfig()))
    monkeypatch.setenv("GRID_STORE", lab.store.uri)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("GRID_SETTINGS", raising=False)


def said(*words: str) -> dict[str, Any]:
    """The JSON that the command prints."""
    ended = CliRunner().invoke(main, [*words, "--json"])
    assert ended.exit_code == ExitCode.OK, ended.output
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def grids_of(job: Object) -> set[str]:
    return {key.partition("/")[2] for key in job["metadata"]["labels"] if key.startswith("grid.")}


def suspended(lab: Lab) -> dict[str, bool]:
    return {name: job["spec"]["suspend"] for name, job in lab.jobs().items()}


def events(lab: Lab, reason: str) -> list[str]:
    found = lab.cluster.list(EVENTS, lambda event: event).items
    return [event["message"] for event in found if event["reason"] == reason]


def test_a_shared_run_is_paused_resumed_and_cancelled_in_both_its_grids(lab: Lab) -> None:
    lab.submit("small")
    lab.submit("other", OTHER)
    lab.settle("small", only=Choice(only="*lr=0.05*"))
    lab.settle("other", only=Choice(only="*lr=0.05*"))
    ((run, job),) = lab.jobs().items()
    assert grids_of(job) == {"small", "other"}

    answer = said("pause", run)
    assert (answer["grids"], answer["did"]) == (["other", "small"], {"Suspend": 1})  # no Job of the others was made
    assert suspended(lab) == {run: True}
    with lab.acting("small") as passes:
        assert settle(passes).done["Create"] == 2  # those are started, and this one is not
        assert passes.states("small")[Work(run, False)] == ("waiting", "paused")
    assert suspended(lab)[run]
    assert list(suspended(lab).values()).count(False) == 2

    assert said("resume", run)["did"] == {}  # the grid's window is full by now
    assert lab.settle("small") == {}
    assert said("cancel", run)["did"] == {"Delete": 1}
    until = threading.Event()
    while run in lab.jobs():
        until.wait(0.2)
    assert lab.settle("small") == {}  # what was cancelled stays so
    assert lab.settle("other")["Create"] == 1
    assert run not in lab.jobs()
    assert read_held(lab.store, "small") == read_held(lab.store, "other") == {run: "cancelled"}
    assert said("resume", run)["did"] == {"Create": 1}


def test_a_resumed_run_starts_at_once_where_there_is_room(lab: Lab) -> None:
    lab.submit("small", parallelism=3)
    lab.settle("small")
    run = next(iter(lab.jobs()))
    assert said("pause", run)["did"] == {"Suspend": 1}
    assert said("resume", run)["did"] == {"Resume": 1}


def test_that_a_decision_kept_a_run_is_told_once_on_its_job(lab: Lab) -> None:
    lab.submit("small", STAGES)
    with Kubelet(lab):
        lab.watch("small")
        lab.watch("small")  # another controller, which knows nothing of what the first has told
    (told,) = events(lab, "RunKept")
    assert told.startswith("kept as best of stage lr of grid small: ")
    (kept,) = [job for job in lab.jobs().values() if KEPT_ANNOTATION in job["metadata"].get("annotations", {})]
    assert list(json.loads(kept["metadata"]["annotations"][KEPT_ANNOTATION])) == ["small/lr"]
    assert kept["metadata"]["annotations"][TRANSITION_ANNOTATION] == told


def test_that_a_run_went_on_is_told_once_for_each_pod(lab: Lab) -> None:
    lab.submit("small", "  - name: lr\n    vary: {optimizer.lr: [0.5]}\n")
    goes_on = threading.Event()

    def end(work: Work, number: int) -> Ended:
        """The first attempt leaves a checkpoint and is stopped; the second says that it goes on from there."""
        if number == 1:
            lab.store.put(f"runs/{work.run}/checkpoint.json", b'{"sequence": 4, "progress": {"epoch": 3}}')
            return Ended(ExitCode.STOPPED)
        leave_attempt(lab, work.run)
        goes_on.wait(30)
        return Ended()

    def controllers() -> None:
        with lab.acting("small") as first:
            until = threading.Event()
            while not events(lab, "RunResumed"):
                settle(first, seconds=0.1)
                until.wait(0.2)
        with lab.acting("small") as second:
            settle(second)
            goes_on.set()
            watch(second, "small")

    with Kubelet(lab, end):
        controllers()
    assert events(lab, "RunResumed") == ["resumed at epoch 4"]
    (job,) = lab.jobs().values()
    assert RESUMED_ANNOTATION in job["metadata"]["annotations"]
    assert " from epoch 4" in lab.told.getvalue()


def leave_attempt(lab: Lab, run: str) -> None:
    """What a trainer leaves that goes on from the checkpoint."""
    now = datetime.now(UTC) + timedelta(seconds=1)
    lease = LeaseRecord(holder="pod:1", host="pod", attempt="0002", heartbeat=now)
    provenance = Provenance(
        run=run,
        attempt="0002",
        host="pod",
        started=now,
        numerics=numerics(),
        versions={},
        commit=None,
        resumed_from=ResumedFrom(attempt="0001", sequence=4, epoch=3, step=9),
    )
    lab.store.put(f"runs/{run}/attempts/0002/provenance.json", provenance.model_dump_json().encode())
    lab.store.put(lease_key(run), lease.model_dump_json().encode())
