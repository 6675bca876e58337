"""Where the pods at work began their runs, by what their attempts left in the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from results import numerics

from controller import beginnings
from controller.beginnings import Beginnings
from controller.jobs import PodView
from controller.reconcile import Resumption
from controller.standing import Work
from trainer.lease import LeaseRecord, lease_key
from trainer.result import Provenance, ResumedFrom
from trainer.store import FileStore

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = "alexnet-0123456789ab"


def pod(uid: str = "pod-2", *, is_test: bool = False, started: datetime | None = START) -> PodView:
    known: dict[str, Any] = dict.fromkeys(PodView.__dataclass_fields__)
    return PodView(**{**known, "uid": uid, "work": Work(RUN, is_test), "phase": "Running", "started": started})


def leave_checkpoint(store: FileStore) -> None:
    store.put(f"runs/{RUN}/checkpoint.json", json.dumps({"sequence": 4, "progress": {"epoch": 3}}).encode())


def leave_attempt(store: FileStore, attempt: str, *, seconds: float, resumed_at: int | None) -> None:
    """The lease and provenance of an attempt that began so many seconds after the pod."""
    lease = LeaseRecord(holder="a:1", host="a", attempt=attempt, heartbeat=START)
    went_on = resumed_at and ResumedFrom(attempt="0001", sequence=4, epoch=resumed_at - 1, step=9)
    said = Provenance(
        run=RUN,
        attempt=attempt,
        host="a",
        started=START + timedelta(seconds=seconds),
        numerics=numerics(),
        versions={},
        commit=None,
        resumed_from=went_on or None,
    )
    store.put(lease_key(RUN), lease.model_dump_json().encode())
    store.put(f"runs/{RUN}/attempts/{attempt}/provenance.json", said.model_dump_json().encode())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "LOOK_AGAIN_SECONDS", 0.0)


def looked(found: Beginnings, *pods: PodView) -> Beginnings:
    found.look(pods)
    return found


def test_a_pod_of_a_run_without_a_checkpoint_begins_it(file_store: FileStore) -> None:
    found = looked(Beginnings(file_store), pod())
    assert found.is_known(pod())
    assert found.resumed(pod()) is None


def test_a_pod_of_a_run_with_a_checkpoint_is_known_once_its_attempt_has_said_where_it_goes_on(
    file_store: FileStore,
) -> None:
    leave_checkpoint(file_store)
    found = looked(Beginnings(file_store), pod())
    assert not found.is_known(pod())
    leave_attempt(file_store, "0001", seconds=-60, resumed_at=2)  # the one before
    assert not looked(found, pod()).is_known(pod())
    leave_attempt(file_store, "0002", seconds=0.2, resumed_at=4)
    assert looked(found, pod()).resumed(pod()) == Resumption("pod-2", 4)


def test_a_checkpoint_that_the_pod_itself_wrote_is_no_resumption(file_store: FileStore) -> None:
    leave_checkpoint(file_store)
    leave_attempt(file_store, "0001", seconds=5, resumed_at=None)
    found = looked(Beginnings(file_store), pod())  # of a controller that was not there when the pod began
    assert found.is_known(pod())
    assert found.resumed(pod()) is None


def test_what_is_known_is_not_asked_for_again_and_forgotten_with_its_pod(file_store: FileStore) -> None:
    found = looked(Beginnings(file_store), pod())
    leave_checkpoint(file_store)
    leave_attempt(file_store, "0002", seconds=5, resumed_at=4)
    assert looked(found, pod()).resumed(pod()) is None
    assert looked(found, pod("pod-3")).resumed(pod("pod-3")) == Resumption("pod-3", 4)
    assert not found.is_known(pod())


def test_a_test_goes_on_from_nowhere(file_store: FileStore) -> None:
    leave_checkpoint(file_store)
    leave_attempt(file_store, "0002", seconds=5, resumed_at=4)
    test = pod(is_test=True)
    found = looked(Beginnings(file_store), test)
    assert found.is_known(test)
    assert found.resumed(test) is None


def test_what_cannot_be_read_is_asked_for_again(file_store: FileStore) -> None:
    leave_checkpoint(file_store)
    leave_attempt(file_store, "0002", seconds=5, resumed_at=4)
    file_store.put(lease_key(RUN), b"damaged")
    assert not looked(Beginnings(file_store), pod()).is_known(pod())
    leave_attempt(file_store, "0002", seconds=5, resumed_at=4)
    assert not looked(Beginnings(file_store), pod(started=None)).is_known(pod())
    assert looked(Beginnings(file_store), pod()).is_known(pod())
