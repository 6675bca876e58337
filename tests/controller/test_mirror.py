"""The mirror of Jobs and pods, against a small API that lists, watches, forgets and breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_server import BREAK, Object, Reply, Request, ScriptedServer, event, refusal

from controller.cluster import ClusterError, Forbidden, open_cluster
from controller.jobs import RUN_LABEL, WORK_LABEL, job_view
from controller.mirror import Mirror, Snapshot
from controller.standing import Work

pytestmark = pytest.mark.server

A, B = Work("alexnet-a", False), Work("alexnet-b", False)
TIME = "2026-11-23T10:00:00Z"


class Api:
    """Objects of a namespace under versions, and the streams of those who watch them."""

    def __init__(self) -> None:
        self.version = 10
        self.oldest = 0  # versions before it are forgotten
        self.objects: dict[str, dict[str, Object]] = {"jobs": {}, "pods": {}, "events": {}, "workloads": {}}
        self.history: list[tuple[int, str, str, Object]] = []  # version, collection, what happened, object
        self.changed = threading.Condition()
        self.hang_up = 0  # counts up: every stream ends when it changes
        self.breaks = False  # and how: by a torn chunk
        self.is_deaf = False  # what happens is told to no watch
        self.before: Callable[[str, bool], Reply | None] = lambda collection, is_watch: None
        self.server = ScriptedServer(self.answer)

    def put(self, collection: str, found: Object) -> Object:
        with self.changed:
            self.version += 1
            name = found["metadata"]["name"]
            found["metadata"]["resourceVersion"] = str(self.version)
            what = "MODIFIED" if name in self.objects[collection] else "ADDED"
            self.objects[collection][name] = found
            self.history.append((self.version, collection, what, found))
            self.changed.notify_all()
        return found

    def remove(self, collection: str, name: str) -> None:
        with self.changed:
            self.version += 1
            gone = self.objects[collection].pop(name)
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, collection, "DELETED", gone))
            self.changed.notify_all()

    def end_streams(self, *, torn: bool = False, forget: bool = False) -> None:
        with self.changed:
            self.hang_up += 1
            self.breaks = torn
            if forget:
                self.version += 1
                self.oldest = self.version
            self.changed.notify_all()

    def answer(self, request: Request) -> Reply:
        collection = request.path.rpartition("/")[2]
        is_watch = "watch" in request.query
        early = self.before(collection, is_watch)
        if early is not None:
            return early
        if collection == "kueue.x-k8s.io":
            return Reply(body={"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}})
        with self.changed:
            if not is_watch:
                metadata = {"resourceVersion": str(self.version)}
                return Reply(body={"metadata": metadata, "items": list(self.objects[collection].values())})
            version = int(request.query["resourceVersion"])
            if version < self.oldest:
                return Reply(lines=[event("ERROR", {"kind": "Status", "code": 410, "message": "too old"})])
            return Reply(lines=self.stream(collection, version, self.hang_up), breaks=self.breaks)

    def stream(self, collection: str, version: int, until: int) -> Iterator[bytes]:
        told = 0
        while True:
            with self.changed:
                if self.hang_up != until or self.server.stopping.is_set():
                    return
                news = [] if self.is_deaf else [each for each in self.history[told:] if each[0] > version]
                told = len(self.history)
                if not news:
                    self.changed.wait(0.05)
            for _, where, what, found in news:
                if where == collection:
                    yield event(what, found)


def job(work: Work, uid: str = "u", **more: Any) -> Object:
    labels = {RUN_LABEL: work.run, WORK_LABEL: "test" if work.is_test else "training"}
    name = work.run + ("-test" if work.is_test else "")
    return {"metadata": {"name": name, "uid": uid, "labels": labels, "creationTimestamp": TIME}, **more}


def pod(work: Work, name: str, phase: str = "Pending", created: str = TIME) -> Object:
    return {
        "metadata": {"name": name, "uid": name, "labels": {RUN_LABEL: work.run}, "creationTimestamp": created},
        "status": {"phase": phase},
    }


def refused(work: Work, job_uid: str, message: str, time: str = TIME) -> Object:
    return {
        "metadata": {"name": f"{work.run}.{time}", "creationTimestamp": time},
        "involvedObject": {"kind": "Job", "name": work.run, "uid": job_uid},
        "reason": "FailedCreate",
        "message": f'Error creating: pods "{work.run}-x7k2p" is forbidden: {message}',
        "lastTimestamp": time,
    }


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    with api.server.running():
        yield api


@pytest.fixture
def open_mirror(api: Api, tmp_path: Path) -> Iterator[Callable[..., Mirror]]:
    clusters = []

    def open_one(*, patience_seconds: float = 20, **settings: Any) -> Mirror:
        path = str(api.server.kubeconfig(tmp_path))
        clusters.append(open_cluster(kubeconfig=path, patience_seconds=patience_seconds))
        return Mirror(clusters[-1], **settings)

    yield open_one
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def mirror(open_mirror: Callable[..., Mirror]) -> Iterator[Mirror]:
    with open_mirror() as mirror:
        yield mirror


def seen(mirror: Mirror, holds: Callable[[Snapshot], object]) -> Snapshot:
    """The first snapshot that `holds`; the mirror is given ten seconds for it."""
    changed: set[Work] = set()
    for _ in range(200):
        snapshot = mirror.snapshot()
        changed |= snapshot.changed
        if holds(snapshot):
            return replace(snapshot, changed=frozenset(changed))
        mirror.wait(0.05)
    raise AssertionError(f"not seen: {snapshot}")


def test_it_begins_with_what_is_there(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    api.put("jobs", job(A))
    api.put("jobs", {"metadata": {"name": "other", "uid": "x", "creationTimestamp": TIME}})
    api.put("pods", pod(A, "p2", created="2026-11-23T10:00:05Z"))
    api.put("pods", pod(A, "p1"))
    with open_mirror() as mirror:
        snapshot = mirror.snapshot()
    assert list(snapshot.jobs) == [A]
    assert [each.name for each in snapshot.pods[A]] == ["p1", "p2"]
    assert snapshot.changed == {A}


def test_it_follows_what_changes(api: Api, mirror: Mirror) -> None:
    assert mirror.snapshot().changed == frozenset()
    assert not mirror.wait(0.01)
    api.put("jobs", job(A))
    assert mirror.wait(10)
    assert mirror.snapshot().changed == {A}
    api.put("jobs", job(A, spec={"suspend": True}))
    api.put("jobs", job(B))
    snapshot = seen(mirror, lambda snapshot: B in snapshot.jobs)
    assert snapshot.jobs[A].is_suspended
    assert snapshot.changed == {A, B}
    api.remove("jobs", A.run)
    assert seen(mirror, lambda snapshot: A not in snapshot.jobs).changed == {A}


def test_pods_come_and_go_with_their_work(api: Api, mirror: Mirror) -> None:
    api.put("pods", pod(A, "p"))
    assert seen(mirror, lambda snapshot: A in snapshot.pods).pods[A][0].phase == "Pending"
    api.put("pods", pod(A, "p", "Running"))
    assert seen(mirror, lambda snapshot: snapshot.pods[A][0].phase == "Running").changed == {A}
    api.remove("pods", "p")
    assert seen(mirror, lambda snapshot: A not in snapshot.pods).changed == {A}


@pytest.mark.parametrize("torn", [pytest.param(False, id="ended"), pytest.param(True, id="torn")])
def test_a_watch_that_ends_goes_on_where_it_was(torn: bool, api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A))
    seen(mirror, lambda snapshot: A in snapshot.jobs)
    lists = [request for request in api.server.requests if "watch" not in request.query]
    api.breaks = torn
    api.end_streams(torn=torn)
    api.put("jobs", job(B))
    seen(mirror, lambda snapshot: B in snapshot.jobs)
    assert [request for request in api.server.requests if "watch" not in request.query] == lists
    assert mirror.restarts["jobs", "ended"] + mirror.restarts["jobs", "broken"] >= 1


def test_a_forgotten_version_is_listed_anew(api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A))
    api.put("jobs", job(B, uid="old"))
    seen(mirror, lambda snapshot: len(snapshot.jobs) == 2)
    api.is_deaf = True
    api.remove("jobs", A.run)
    api.put("jobs", job(B, uid="new"))
    api.end_streams(forget=True)
    api.is_deaf = False
    snapshot = seen(mirror, lambda snapshot: A not in snapshot.jobs)
    assert snapshot.jobs[B].uid == "new"
    assert snapshot.changed == {A, B}
    assert mirror.restarts["jobs", "expired"] == 1


def test_a_listing_anew_tells_only_what_differs(api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A))
    seen(mirror, lambda snapshot: A in snapshot.jobs)
    api.end_streams(forget=True)
    api.put("jobs", job(B))
    assert seen(mirror, lambda snapshot: B in snapshot.jobs).changed == {B}


def test_a_server_that_is_away_for_a_while_is_waited_for(api: Api, mirror: Mirror) -> None:
    faults = [BREAK, Reply(503), BREAK]
    api.before = lambda collection, is_watch: faults.pop() if faults and collection == "jobs" else None
    api.end_streams()
    api.put("jobs", job(A))
    assert A in seen(mirror, lambda snapshot: A in snapshot.jobs).jobs


def test_a_refusal_is_raised_where_the_mirror_is_asked(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    forbidden = refusal(403, "Forbidden", 'User "u" cannot list resource "pods" in API group ""')
    api.before = lambda collection, is_watch: forbidden if collection == "pods" else None
    with pytest.raises(Forbidden), open_mirror():
        pass
    api.before = lambda collection, is_watch: forbidden if collection == "pods" and is_watch else None
    with open_mirror() as mirror, pytest.raises(Forbidden):
        mirror.wait(10)


def test_an_own_write_is_seen_before_the_watch_tells_it(api: Api, mirror: Mirror) -> None:
    api.is_deaf = True
    view = job_view(api.put("jobs", job(A)))
    assert view is not None
    mirror.saw(view)
    snapshot = mirror.snapshot()
    assert snapshot.jobs[A] == view
    assert snapshot.changed == {A}


def test_an_old_answer_brings_nothing_back(api: Api, mirror: Mirror) -> None:
    view = job_view(api.put("jobs", job(A)))
    assert view is not None
    api.remove("jobs", A.run)
    api.put("jobs", job(B))
    seen(mirror, lambda snapshot: B in snapshot.jobs)
    mirror.saw(view)
    assert A not in mirror.snapshot().jobs


def test_works_whose_job_came_or_went_are_unlisted_until_all_pods_are_asked_for(api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A))
    api.put("jobs", job(B, uid="one"))
    assert seen(mirror, lambda snapshot: len(snapshot.jobs) == 2).unlisted == {A, B}
    api.is_deaf = True
    api.put("pods", pod(A, "orphan"))
    mirror.list_pods()
    snapshot = mirror.snapshot()
    assert snapshot.unlisted == frozenset()
    assert [each.name for each in snapshot.pods[A]] == ["orphan"]
    api.is_deaf = False
    api.put("jobs", job(A, spec={"suspend": True}))
    api.put("jobs", job(B, uid="two"))
    assert seen(mirror, lambda snapshot: snapshot.jobs[B].uid == "two").unlisted == {B}


def test_what_is_there_at_the_beginning_is_listed(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    api.put("jobs", job(A))
    with open_mirror() as mirror:
        assert mirror.snapshot().unlisted == frozenset()


def test_pods_that_succeeded_are_not_asked_for(api: Api, mirror: Mirror) -> None:
    asked = [request.query["fieldSelector"] for request in api.server.requests if request.path.endswith("/pods")]
    assert set(asked) == {"status.phase!=Succeeded"}


def test_a_job_of_another_name_is_not_taken_for_the_runs(api: Api, mirror: Mirror) -> None:
    foreign = job(A, uid="foreign")
    foreign["metadata"]["name"] = "mine"
    api.put("jobs", foreign)
    api.put("jobs", job(B))
    assert list(seen(mirror, lambda snapshot: B in snapshot.jobs).jobs) == [B]


def test_a_test_is_another_work_than_its_training(api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(Work(A.run, True)))
    api.put("jobs", job(A))
    assert set(seen(mirror, lambda snapshot: len(snapshot.jobs) == 2).jobs) == {A, Work(A.run, True)}


def test_a_quota_that_refuses_pods_is_told_until_there_is_one(api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A, uid="u"))
    api.put("events", refused(A, "u", "exceeded quota: q", "2026-11-23T10:00:01Z"))
    api.put("events", refused(A, "u", "exceeded quota: r", "2026-11-23T10:00:02Z"))
    assert seen(mirror, lambda snapshot: snapshot.quota.get(A) == "exceeded quota: r").quota == {A: "exceeded quota: r"}
    api.remove("events", f"{A.run}.2026-11-23T10:00:02Z")
    api.put("pods", pod(A, "p", created="2026-11-23T10:00:03Z"))
    assert seen(mirror, lambda snapshot: A in snapshot.pods).quota == {}


@pytest.mark.parametrize(
    ("more", "uid"),
    [
        pytest.param({"status": {"active": 1}}, "u", id="active"),
        pytest.param({"spec": {"suspend": True}}, "u", id="suspended"),
        pytest.param({}, "another", id="event-of-an-earlier-job"),
    ],
)
def test_a_refusal_that_is_over_is_not_told(more: Object, uid: str, api: Api, mirror: Mirror) -> None:
    api.put("jobs", job(A, uid="u", **more))
    api.put("events", refused(A, uid, "exceeded quota: q"))
    api.put("jobs", job(B))
    assert seen(mirror, lambda snapshot: B in snapshot.jobs).quota == {}


def test_a_refusal_that_comes_before_its_job_is_told_with_it(api: Api, mirror: Mirror) -> None:
    api.put("events", refused(A, "u", "exceeded quota: q"))
    until(lambda: mirror.events["events", "ADDED"] == 1)
    api.put("jobs", job(A, uid="u"))
    assert seen(mirror, lambda snapshot: A in snapshot.jobs).quota == {A: "exceeded quota: q"}


def test_a_refusal_of_a_job_that_is_not_ours_wakes_nobody_and_leaves_nothing(api: Api, mirror: Mirror) -> None:
    foreign = refused(Work("backup", False), "x", "exceeded quota: q")
    api.put("jobs", {"metadata": {"name": "backup", "uid": "x", "creationTimestamp": TIME}})
    api.put("events", foreign)
    until(lambda: mirror.events["events", "ADDED"] == 1)
    assert not mirror.wait(0)
    api.remove("events", foreign["metadata"]["name"])
    until(lambda: mirror.events["events", "DELETED"] == 1)
    assert not mirror.wait(0)
    assert not mirror._refusals
    assert not mirror._early_refusals


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workloads_are_followed_where_there_are_queues(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Inadmissible", "message": "no such queue"}
    workload = {
        "metadata": {
            "name": "job-a",
            "creationTimestamp": TIME,
            "ownerReferences": [{"kind": "Job", "name": A.run, "uid": "u"}],
        },
        "spec": {"queueName": "lab"},
        "status": {"conditions": [condition]},
    }
    with open_mirror(queues=True) as mirror:
        api.put("workloads", workload)
        view = seen(mirror, lambda snapshot: A in snapshot.workloads).workloads[A]
        assert (view.is_inadmissible, view.is_admitted, view.message, view.queue) == (
            True,
            False,
            "no such queue",
            "lab",
        )
        assert not mirror.wait(0)  # no Job of ours has it, as far as is known
        api.remove("workloads", "job-a")
        seen(mirror, lambda snapshot: A not in snapshot.workloads)


def test_queues_without_kueue_are_told(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    api.before = lambda collection, is_watch: refusal(404, "NotFound", "the server could not find it")
    with pytest.raises(ClusterError, match=r"got no API group kueue.x-k8s.io, expected Kueue to be installed"):
        open_mirror(queues=True)


def test_it_can_be_woken(mirror: Mirror) -> None:
    mirror.wake(A)
    assert mirror.wait(0)
    assert mirror.snapshot().changed == {A}


def test_closing_ends_its_threads_and_who_waits(api: Api, open_mirror: Callable[..., Mirror]) -> None:
    mirror = open_mirror()
    mirror.start()
    waited: list[bool] = []
    thread = threading.Thread(target=lambda: waited.append(mirror.wait()))
    thread.start()
    mirror.close()
    thread.join(10)
    assert waited == [False]
    assert not [each for each in threading.enumerate() if each.name.startswith("mirror-")]
