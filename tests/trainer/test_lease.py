"""One attempt at a run at a time: on one host by a lock, between hosts by a lease that expires."""

from __future__ import annotations

import time

import pytest
from stores import Place

from trainer import lease as leases
from trainer.failure import Stopped
from trainer.lease import Lease, LeaseRecord, lease_key, run_lock
from trainer.stop import StopSignal
from trainer.store import Store


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1.5)


def record_of(store: Store, run: str = "run") -> LeaseRecord:
    return LeaseRecord.model_validate_json(store.get(lease_key(run)))


def held(store: Store) -> Lease:
    lease = Lease(store, "run", StopSignal())
    lease.acquire()
    return lease


def pretend_another_host(monkeypatch: pytest.MonkeyPatch, lease: Lease) -> None:
    """The lease stays, as if its holder were elsewhere: this host's lock is free and its name another."""
    lease._lock.release()
    monkeypatch.setattr(leases, "this_host", lambda: "elsewhere")


def test_attempts_count_up_and_a_released_lease_is_taken_at_once(store: Store) -> None:
    for number in (1, 2, 3):
        lease = held(store)
        assert lease.attempt.startswith(f"{number:04d}-")
        assert not record_of(store).released
        lease.release()
        assert record_of(store).released


def test_a_second_process_of_the_host_is_refused(file_store: Store) -> None:
    lease = held(file_store)
    with pytest.raises(Stopped, match="another process of this host"):
        Lease(file_store, "run", StopSignal()).acquire()
    lease.release()


def test_another_host_is_refused_while_the_holder_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = held(store)
    holder = record_of(store).holder
    pretend_another_host(monkeypatch, lease)
    with pytest.raises(Stopped, match=f"is being trained by {holder}"):
        Lease(store, "run", StopSignal()).acquire()
    lease.release()


def test_another_host_takes_over_once_the_holder_is_silent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.connect()
    dead = held(store)
    dead._done.set()  # its heartbeat ends, as that of a machine that lost its power
    pretend_another_host(monkeypatch, dead)
    successor = held(store)
    assert successor.attempt.startswith("0002-")
    successor.release()


def test_a_holder_that_lost_its_lease_is_told_to_stop_and_writes_nothing(place: Place) -> None:
    store = place.connect()
    if not store.is_conditional():
        pytest.skip("this server cannot tell a lost lease: double work is harmless there, not impossible")
    lease = held(store)
    thief = LeaseRecord(**{**record_of(store).model_dump(), "attempt": "0007-thief", "holder": "thief:1"})
    store.put(lease_key("run"), thief.model_dump_json().encode())
    deadline = time.monotonic() + 10
    while lease.stop.reason is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(Stopped, match="went to another attempt"):
        lease.check()
    lease.release()
    assert record_of(store).attempt == "0007-thief"


def test_a_lease_that_another_writes_right_after_this_one_is_lost(
    file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = file_store.create

    def beside(key: str, data: bytes) -> str:
        version = create(key, data)
        thief = LeaseRecord(**{**record_of(file_store).model_dump(), "attempt": "0001-thief", "holder": "thief:1"})
        file_store.put(key, thief.model_dump_json().encode())
        return version

    monkeypatch.setattr(file_store, "create", beside)
    lease = held(file_store)
    lease.release()  # writes, under the version that it knows
    assert lease.lost
    assert record_of(file_store).attempt == "0001-thief"


def test_a_lease_that_is_removed_while_it_is_waited_for_ends_the_attempt(
    file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = held(file_store)
    dead._done.set()
    pretend_another_host(monkeypatch, dead)
    monkeypatch.setattr(leases.time, "sleep", lambda _: file_store.delete(lease_key("run")))
    lease = Lease(file_store, "run", StopSignal())
    with pytest.raises(Stopped, match="someone removed its lease"):
        lease.acquire()
    monkeypatch.undo()
    assert run_lock(file_store, "run").acquire()


def test_a_stop_ends_the_wait_for_a_lease(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = held(file_store)
    dead._done.set()
    pretend_another_host(monkeypatch, dead)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 60)
    stop = StopSignal()
    stop.request("told to stop")
    with pytest.raises(Stopped, match="told to stop"):
        Lease(file_store, "run", stop).acquire()
