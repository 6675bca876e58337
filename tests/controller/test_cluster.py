"""The client of the Kubernetes API against a server that breaks on demand; the real one is met in tests/cluster."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from api_server import BREAK, Object, Reply, Request, ScriptedServer, event, refusal

from controller.cluster import (
    EVENTS,
    JOBS,
    LEASES,
    NODES,
    PODS,
    ApiRetry,
    Cluster,
    ClusterError,
    Expired,
    Forbidden,
    NotStarted,
    ObjectAbsent,
    ObjectChanged,
    ObjectExists,
    ObjectInvalid,
    QuotaExceeded,
    Resource,
    Unauthorized,
    Unreachable,
    open_cluster,
)
from controller.cluster.connection import SPARE
from trainer.failure import ExitCode

pytestmark = pytest.mark.server

JOBS_PATH = "/apis/batch/v1/namespaces/lab/jobs"
JOB: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"suspend": True}}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer().running() as running:
        yield running


@pytest.fixture
def connect(server: ScriptedServer, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    opened = []

    def open_one(**settings: Any) -> Cluster:
        opened.append(open_cluster(kubeconfig=str(server.kubeconfig(tmp_path)), **settings))
        return opened[-1]

    yield open_one
    for cluster in opened:
        cluster.close()


@pytest.fixture
def cluster(connect: Callable[..., Cluster]) -> Cluster:
    return connect(patience_seconds=20)


def named(found: Object) -> str:
    name: str = found["metadata"]["name"]
    return name


def page(names: list[str], following: str = "", version: str = "7") -> Reply:
    metadata = {"resourceVersion": version, **({"continue": following} if following else {})}
    items = [{"metadata": {"name": name, "resourceVersion": "1"}} for name in names]
    return Reply(body={"kind": "JobList", "apiVersion": "batch/v1", "metadata": metadata, "items": items})


# Finding the cluster


def test_opening_says_where_it_looked_for_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"got no kubeconfig at .*/none and no service account") as caught:
        open_cluster()
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert caught.value.exit_code.value == 72
    assert "KUBECONFIG" in str(caught.value.hint)


def test_a_wrong_context_is_told_with_those_there_are(server: ScriptedServer, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="context: got 'elsewhere', expected one of here, other"):
        open_cluster(kubeconfig=str(server.kubeconfig(tmp_path)), context="elsewhere")


def test_the_namespace_is_the_given_one_else_the_contexts_else_default(server: ScriptedServer, tmp_path: Path) -> None:
    path = str(server.kubeconfig(tmp_path))
    with open_cluster("mine", kubeconfig=path) as one, open_cluster(kubeconfig=path) as other:
        assert (one.namespace, other.namespace) == ("mine", "lab")
    with open_cluster(kubeconfig=path, context="other") as third:
        assert third.namespace == "default"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("{", "while parsing", id="no-yaml"),
        pytest.param("", "is empty|No configuration", id="empty"),
        pytest.param('{"apiVersion": "v1"}', "current-context", id="no-context"),
    ],
)
def test_a_kubeconfig_that_cannot_be_read_is_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ClusterError, match=told):
        open_cluster(kubeconfig=str(path))


def plugin(tmp_path: Path, code: str) -> Object:
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-c", code],
            "interactiveMode": "Never",
        }
    }


def test_a_command_for_credentials_that_fails_is_told_in_its_own_words(server: ScriptedServer, tmp_path: Path) -> None:
    user = plugin(tmp_path, "import sys; sys.exit('please log in')")
    with pytest.raises(Unauthorized, match="please log in"):
        open_cluster(kubeconfig=str(server.kubeconfig(tmp_path, user=user)))


def test_credentials_that_have_expired_are_renewed_once(server: ScriptedServer, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    code = (
        f"import json, pathlib; path = pathlib.Path({str(counter)!r}); "
        "number = len(path.read_text()) if path.exists() else 0; "
        "path.write_text('x' * (number + 1)); print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', "
        "'kind': 'ExecCredential', 'status': {'token': f'token-{number}'}}))"
    )

    def answer(request: Request) -> Reply:
        if request.headers["authorization"] == "Bearer token-0":
            return refusal(401, "Unauthorized", "Unauthorized")
        return Reply(body=JOB)

    server.answer = answer
    with open_cluster(kubeconfig=str(server.kubeconfig(tmp_path, user=plugin(tmp_path, code)))) as cluster:
        assert named(cluster.get(JOBS, "a")) == "a"
        assert named(cluster.get(JOBS, "a")) == "a"
    assert [request.headers["authorization"][-1] for request in server.requests] == ["0", "1", "1"]


def test_credentials_that_stay_wrong_are_told(server: ScriptedServer, cluster: Cluster) -> None:
    server.answer = lambda _: refusal(401, "Unauthorized", "Unauthorized")
    with pytest.raises(Unauthorized, match="got 401 Unauthorized, expected credentials that http://127") as caught:
        cluster.get(JOBS, "a")
    assert "log in again" in str(caught.value.hint)


def test_planning_does_not_load_the_kubernetes_client() -> None:
    code = (
        "import sys, controller.cli, controller.cluster, controller.mirror, controller.election; "
        "print('kubernetes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# What answers mean


@pytest.mark.parametrize(
    ("reply", "kind", "told", "hint"),
    [
        pytest.param(
            refusal(404, "NotFound", 'jobs.batch "a" not found', name="a", kind="jobs"),
            ObjectAbsent,
            "reading Job a: got 404",
            None,
            id="absent",
        ),
        pytest.param(
            refusal(404, "NotFound", 'namespaces "lab" not found', name="lab", kind="namespaces"),
            ObjectAbsent,
            "namespaces",
            "kubectl create namespace lab",
            id="no-namespace",
        ),
        pytest.param(
            Reply(404, b"404 page not found"), ObjectAbsent, "got 404 404 page not found", None, id="no-status-object"
        ),
        pytest.param(
            refusal(
                403,
                "Forbidden",
                'jobs.batch "a" is forbidden: User "system:serviceaccount:lab:x" cannot get resource "jobs" '
                'in API group "batch" in the namespace "lab"',
            ),
            Forbidden,
            "expected to be allowed to",
            r"the Role of system:serviceaccount:lab:x in lab needs apiGroups: \['batch'\], resources: \['jobs'\], "
            r"verbs: \['get'\]",
            id="role",
        ),
        pytest.param(
            refusal(403, "Forbidden", 'jobs.batch "a" is forbidden: exceeded quota: q, requested: count/jobs.batch=1'),
            QuotaExceeded,
            "exceeded quota: q",
            None,
            id="quota",
        ),
        pytest.param(
            refusal(403, "Forbidden", 'jobs.batch "a" is forbidden: status unknown for quota: q'),
            QuotaExceeded,
            "status unknown",
            None,
            id="quota-not-counted-yet",
        ),
        pytest.param(
            refusal(403, "Forbidden", "unable to create new content in namespace lab because it is being terminated"),
            Forbidden,
            "terminated",
            "the namespace lab is being deleted",
            id="terminating",
        ),
        pytest.param(
            refusal(409, "Conflict", "the object has been modified"), ObjectChanged, "modified", None, id="changed"
        ),
        pytest.param(
            refusal(422, "Invalid", "no", causes=[{"field": "spec.x"}, {"field": "spec.x"}, {"field": "y"}]),
            ObjectInvalid,
            "got 422 no",
            "correct spec.x, y;",
            id="invalid",
        ),
        pytest.param(
            refusal(422, "Invalid", "no", causes=[{"field": "metadata.uid"}]),
            ObjectChanged,
            "expected the object that was read",
            None,
            id="other-uid",
        ),
        pytest.param(
            refusal(400, "BadRequest", 'strict decoding error: unknown field "spec.y"'),
            ObjectInvalid,
            "strict decoding",
            "correct spec.y",
            id="unknown-field",
        ),
        pytest.param(Reply(418, b"<html>teapot"), ClusterError, "got 418 <html>teapot", "an API server", id="html"),
        pytest.param(Reply(200, b"<html>login"), ClusterError, "expected JSON", "an API server", id="html-success"),
    ],
)
def test_a_refusal_says_what_it_is(
    reply: Reply, kind: type[ClusterError], told: str, hint: str | None, server: ScriptedServer, cluster: Cluster
) -> None:
    server.script = [reply]
    with pytest.raises(kind, match=told) as caught:
        cluster.get(JOBS, "a")
    assert type(caught.value) is kind
    if hint is not None:
        caught.match(hint)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param(refusal(500, "InternalError", "oh"), "server-error", id="500"),
        pytest.param(Reply(503, b"starting"), "server-error", id="503"),
        pytest.param(refusal(504, "Timeout", "etcd"), "timeout", id="504"),
        pytest.param(refusal(429, "TooManyRequests", "later"), "throttled", id="429"),
        pytest.param(BREAK, "connection", id="reset"),
    ],
)
def test_a_fault_that_can_pass_is_met_with_another_try(
    reply: Reply, kind: str, server: ScriptedServer, connect: Callable[..., Cluster]
) -> None:
    told: list[ApiRetry] = []
    cluster = connect(on_retry=told.append)
    server.script = [reply, reply, Reply(body=JOB)]
    assert named(cluster.get(JOBS, "a")) == "a"
    assert [(each.kind, each.tries, each.target, each.server) for each in told] == [
        (kind, 1, "Job a", server.url),
        (kind, 2, "Job a", server.url),
    ]
    assert all(0 < each.remaining <= 60 for each in told)
    assert cluster.retries == {kind: 2}


def test_the_server_says_how_long_to_wait(server: ScriptedServer, connect: Callable[..., Cluster]) -> None:
    told: list[ApiRetry] = []
    cluster = connect(on_retry=told.append)
    throttled = refusal(429, "TooManyRequests", "later")
    throttled.headers["Retry-After"] = "1"
    server.script = [throttled, Reply(body=JOB)]
    cluster.get(JOBS, "a")
    assert told[0].delay >= 1


def test_what_does_not_pass_within_the_patience_is_told(
    server: ScriptedServer, connect: Callable[..., Cluster]
) -> None:
    cluster = connect(patience_seconds=0.3)
    server.answer = lambda _: Reply(503, b"starting")
    with pytest.raises(Unreachable, match=r"reading Job a failed \d+ times in 0 s: got 503 starting, expected"):
        cluster.get(JOBS, "a")


def test_a_server_that_refuses_connections_is_told_with_its_address(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server.kubeconfig(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else can listen there
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        path.write_text(path.read_text().replace(server.url, closed))
        with (
            open_cluster(kubeconfig=str(path), patience_seconds=0.2) as cluster,
            pytest.raises(Unreachable, match=f"refused.*expected an answer from {closed}") as caught,
        ):
            cluster.get(JOBS, "a")
    assert "is the cluster up" in str(caught.value.hint)
    assert cluster.calls["get", "jobs", 0] >= 1


def test_what_a_told_retry_raises_ends_the_request(server: ScriptedServer, connect: Callable[..., Cluster]) -> None:
    def stop(_: ApiRetry) -> None:
        raise KeyboardInterrupt

    cluster = connect(on_retry=stop)
    server.answer = lambda _: Reply(503)
    with pytest.raises(KeyboardInterrupt):
        cluster.get(JOBS, "a")
    assert len(server.requests) == 1


def test_closing_ends_the_wait_for_another_try(server: ScriptedServer, connect: Callable[..., Cluster]) -> None:
    waits = threading.Event()
    cluster = connect(on_retry=lambda _: waits.set())
    throttled = refusal(429, "TooManyRequests", "later")
    throttled.headers["Retry-After"] = "50"
    server.answer = lambda _: throttled
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            cluster.get(JOBS, "a")
        except Unreachable as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert waits.wait(10)
    cluster.close()
    thread.join(10)
    assert [type(error) for error in caught] == [Unreachable]


def test_calls_and_warnings_are_counted(server: ScriptedServer, cluster: Cluster) -> None:
    warned = Reply(201, JOB, headers={"Warning": '299 - "would violate PodSecurity \\"restricted\\""'})
    server.script = [warned, warned, refusal(404, "NotFound", "no")]
    cluster.create(JOBS, JOB)
    cluster.create(JOBS, JOB)
    with pytest.raises(ObjectAbsent):
        cluster.get(PODS, "a")
    assert cluster.calls == {("create", "jobs", 201): 2, ("get", "pods", 404): 1}
    assert cluster.warnings == {'would violate PodSecurity "restricted"': 2}


# Writing


def test_a_creation_is_strict_and_says_whose_it_is(server: ScriptedServer, cluster: Cluster) -> None:
    metadata = {"name": "a", "uid": "u"}
    server.script = [Reply(201, {"kind": "PartialObjectMetadata", "metadata": metadata}), Reply(201, {"kind": "Job"})]
    assert cluster.create(JOBS, JOB) == {**JOB, "metadata": metadata}
    assert cluster.create(JOBS, JOB, dry_run=True) == {"kind": "Job"}
    first, second = server.requests
    assert (first.method, first.path, first.body) == ("POST", JOBS_PATH, JOB)
    assert first.query == {"fieldManager": "experiment-grid", "fieldValidation": "Strict"}
    assert second.query == {**first.query, "dryRun": "All"}
    assert "as=PartialObjectMetadata" in first.headers["accept"]
    assert second.headers["accept"] == "application/json"


EXISTS = refusal(409, "AlreadyExists", 'jobs.batch "a" already exists')


def test_what_exists_already_is_told(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [EXISTS, refusal(409, "AlreadyExists", 'object is being deleted: jobs.batch "a" already exists')]
    with pytest.raises(ObjectExists) as here:
        cluster.create(JOBS, JOB)
    with pytest.raises(ObjectExists) as leaving:
        cluster.create(JOBS, JOB)
    assert (here.value.is_deleting, leaving.value.is_deleting) == (False, True)


def test_a_creation_whose_answer_was_lost_counts(server: ScriptedServer, cluster: Cluster) -> None:
    found = {**JOB, "spec": {"suspend": True, "completions": 1}, "status": {}}
    server.script = [BREAK, EXISTS, Reply(body=found)]
    assert cluster.create(JOBS, JOB) == found


def test_an_object_of_another_is_not_taken_for_the_lost_answer(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [BREAK, EXISTS, Reply(body={**JOB, "spec": {"suspend": False}})]
    with pytest.raises(ObjectExists):
        cluster.create(JOBS, JOB)


def test_creations_that_meet_at_a_quota_are_tried_again(server: ScriptedServer, cluster: Cluster) -> None:
    conflict = refusal(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "q"', kind="resourcequotas")
    server.script = [conflict, Reply(201, JOB)]
    assert cluster.create(JOBS, JOB) == JOB
    assert cluster.retries == {"conflict": 1}


def test_a_patch_may_be_bound_to_one_version_of_one_object(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(body=JOB), Reply(body=JOB)]
    cluster.patch(JOBS, "a", {"spec": {"suspend": False}})
    cluster.patch(JOBS, "a", {"metadata": {"labels": {"x": None}}}, uid="u", resource_version="5")
    free, bound = server.requests
    assert free.body == {"spec": {"suspend": False}}
    assert bound.body == {"metadata": {"labels": {"x": None}, "uid": "u", "resourceVersion": "5"}}
    assert bound.headers["content-type"] == "application/merge-patch+json"
    assert bound.path == f"{JOBS_PATH}/a"


def test_a_deletion_takes_what_the_object_owns_with_it(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(body=JOB)]
    cluster.delete(JOBS, "a", uid="u")
    assert server.requests[0].method == "DELETE"
    assert server.requests[0].body == {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "propagationPolicy": "Foreground",
        "preconditions": {"uid": "u"},
    }


def test_a_deletion_whose_answer_was_lost_counts(server: ScriptedServer, cluster: Cluster) -> None:
    gone = refusal(404, "NotFound", "no such job")
    server.script = [BREAK, gone, gone]
    assert cluster.delete(JOBS, "a")["status"] == "Success"
    with pytest.raises(ObjectAbsent):
        cluster.delete(JOBS, "a")


def test_the_same_event_again_is_counted(server: ScriptedServer, cluster: Cluster) -> None:
    gone = refusal(404, "NotFound", "forgotten")
    made = Reply(201, {"metadata": {"name": "a.1"}})
    server.script = [made, Reply(200), gone, made, made]
    for message in ("epoch 3", "epoch 3", "epoch 3", "epoch 4"):
        cluster.tell(JOBS, "a", "u", reason="Resumed", message=message)
    asked = [(request.method, request.body.get("count"), request.body.get("message")) for request in server.requests]
    assert asked == [
        ("POST", 1, "epoch 3"),
        ("PATCH", 2, None),
        ("PATCH", 3, None),
        ("POST", 1, "epoch 3"),
        ("POST", 1, "epoch 4"),
    ]
    first = server.requests[0].body
    about = {"apiVersion": "batch/v1", "kind": "Job", "name": "a", "uid": "u", "namespace": "lab"}
    assert (first["involvedObject"], first["reason"], first["type"]) == (about, "Resumed", "Normal")


def test_access_is_what_the_server_says(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(201, {"status": {"allowed": False, "reason": "no role"}})]
    assert cluster.can("create", "jobs", group="batch") == (False, "no role")
    assert server.requests[0].body["spec"]["resourceAttributes"] == {
        "namespace": "lab",
        "verb": "create",
        "group": "batch",
        "resource": "jobs",
    }


def test_nodes_that_may_not_be_seen_are_none(server: ScriptedServer, cluster: Cluster) -> None:
    node = {
        "metadata": {"name": "n", "resourceVersion": "1", "labels": {"gpu": "H100"}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": "8"}},
    }
    nodes = Reply(body={"metadata": {"resourceVersion": "3"}, "items": [node]})
    server.script = [nodes, refusal(403, "Forbidden", "no")]
    found = cluster.nodes()
    assert found is not None
    assert (found[0].is_ready, found[0].is_schedulable) == (True, True)
    assert found[0].taints == ("nvidia.com/gpu=:NoSchedule",)
    assert cluster.nodes() is None
    assert server.requests[0].path == "/api/v1/nodes"


# Many at once


def test_all_are_performed_and_each_says_how_it_ended(server: ScriptedServer, cluster: Cluster) -> None:
    def answer(request: Request) -> Reply:
        name = request.body["metadata"]["name"]
        return EXISTS if name.endswith("7") else Reply(201, request.body)

    server.answer = answer
    names = [f"job-{number}" for number in range(50)]
    outcomes = dict(cluster.perform(lambda name: cluster.create(JOBS, {"metadata": {"name": name}}), names))
    assert sorted(outcomes) == sorted(names)
    refused = [name for name, outcome in outcomes.items() if isinstance(outcome, ObjectExists)]
    assert sorted(refused) == [f"job-{number}" for number in (17, 27, 37, 47, 7)]


def test_no_more_requests_are_under_way_than_connections(
    server: ScriptedServer, connect: Callable[..., Cluster]
) -> None:
    lock, now, most = threading.Lock(), count(), [0]
    running: set[int] = set()

    def answer(_: Request) -> Reply:
        with lock:
            number = next(now)
            running.add(number)
            most[0] = max(most[0], len(running))
        threading.Event().wait(0.01)
        with lock:
            running.discard(number)
        return Reply(body=JOB)

    server.answer = answer
    cluster = connect(connections=3)
    assert len(list(cluster.perform(lambda _: cluster.get(JOBS, "a"), range(30), workers=10))) == 30
    assert most[0] <= 3 + SPARE


def test_leaving_early_begins_nothing_more(server: ScriptedServer, connect: Callable[..., Cluster]) -> None:
    server.answer = lambda _: Reply(body=JOB)
    cluster = connect(connections=2)
    outcomes = cluster.perform(lambda _: cluster.get(JOBS, "a"), range(1000))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined] # it is a generator
    assert len(server.requests) < 100


def test_what_would_meet_all_that_follow_is_raised(server: ScriptedServer, cluster: Cluster) -> None:
    server.answer = lambda _: refusal(401, "Unauthorized", "Unauthorized")
    with pytest.raises(Unauthorized):
        list(cluster.perform(lambda _: cluster.get(JOBS, "a"), range(1000)))
    assert len(server.requests) < 100


def test_requests_are_paced(server: ScriptedServer, connect: Callable[..., Cluster]) -> None:
    server.answer = lambda _: Reply(body=JOB)
    cluster = connect(per_second=1e-3, burst=2, patience_seconds=1)
    for _ in range(2):
        cluster.get(JOBS, "a")

    def ask() -> None:
        with pytest.raises(Unreachable):
            cluster.get(JOBS, "a")

    third = threading.Thread(target=ask)
    third.start()
    third.join(0.3)
    assert third.is_alive()
    assert len(server.requests) == 2
    cluster.close()
    third.join(10)
    assert not third.is_alive()


# Listing


def test_a_listing_is_read_page_by_page(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [page(["a", "b"], "next/1"), page(["c"], "next 2"), page(["d"])]
    found = cluster.list(JOBS, named, selector="x=y", page=2)
    assert found.items == ("a", "b", "c", "d")
    assert found.resource_version == "7"
    assert [request.query.get("continue") for request in server.requests] == [None, "next/1", "next 2"]
    assert all(request.query["limit"] == "2" and request.query["labelSelector"] == "x=y" for request in server.requests)


def test_what_the_view_leaves_out_is_not_listed(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [page(["a", "b"])]
    assert cluster.list(JOBS, lambda found: named(found) if named(found) == "b" else None).items == ("b",)


def test_a_page_whose_metadata_comes_last_is_understood(server: ScriptedServer, cluster: Cluster) -> None:
    body = page(["a"], "more").body
    assert isinstance(body, dict)
    server.script = [Reply(body={"items": body["items"] * 40, "metadata": body["metadata"]}), page(["b"])]
    assert cluster.list(JOBS, named).items == ("a",) * 40 + ("b",)


def test_a_listing_that_expires_between_its_pages_is_read_at_once(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [page(["a"], "next"), refusal(410, "Expired", "too old"), page(["a", "b"])]
    assert cluster.list(JOBS, named).items == ("a", "b")
    assert [request.query.get("limit") for request in server.requests] == ["500", "500", None]


def test_a_torn_page_is_asked_for_again(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(lines=[b'{"kind":'], breaks=True), page(["a"])]
    assert cluster.list(JOBS, named).items == ("a",)
    assert cluster.retries == {"connection": 1}


def test_a_huge_page_is_read_whole(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [page([f"job-{number}-{'x' * 1000}" for number in range(5000)])]
    assert len(cluster.list(JOBS, named).items) == 5000


# Watching


def job(name: str, version: int, **more: Any) -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, **more}


def test_a_watch_tells_each_change_as_it_comes(server: ScriptedServer, cluster: Cluster) -> None:
    sent = threading.Event()

    def lines() -> Iterator[bytes]:
        yield event("ADDED", job("a", 8))
        assert sent.wait(10)  # the first is read before the second is written
        yield event("BOOKMARK", job("", 9))
        half = event("DELETED", job("a", 10))
        yield half[:20]
        yield half[20:] + event("ADDED", job("b", 11))

    server.script = [Reply(lines=lines())]
    seen = []
    with cluster.watch(JOBS, "7", selector="x=y") as stream:
        for kind, changed in stream:
            seen.append((kind, changed["metadata"]["resourceVersion"]))
            sent.set()
    assert seen == [("ADDED", "8"), ("BOOKMARK", "9"), ("DELETED", "10"), ("ADDED", "11")]
    query = server.requests[0].query
    assert query["resourceVersion"] == "7"
    assert query["allowWatchBookmarks"] == "true"
    assert int(query["timeoutSeconds"]) > 0


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(refusal(410, "Expired", "too old"), id="status"),
        pytest.param(
            Reply(lines=[event("ERROR", {"kind": "Status", "code": 410, "message": "too old"})]), id="in-the-stream"
        ),
    ],
)
def test_a_version_that_is_too_old_is_told(reply: Reply, server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [reply]
    with pytest.raises(Expired, match="too old"):
        for _ in cluster.watch(JOBS, "7"):
            pass


def test_a_watch_that_breaks_in_a_chunk_tells_what_was_whole(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(lines=[event("ADDED", job("a", 8))], breaks=True)]
    seen = []

    def read() -> None:
        for kind, changed in cluster.watch(JOBS, "7"):
            seen.append((kind, named(changed)))

    with pytest.raises(Unreachable, match="expected the stream to go on"):
        read()
    assert seen == [("ADDED", "a")]


def test_a_silent_watch_is_taken_for_dead(server: ScriptedServer, cluster: Cluster) -> None:
    def lines() -> Iterator[bytes]:
        yield event("ADDED", job("a", 8))
        server.stopping.wait(20)

    server.script = [Reply(lines=lines())]
    with pytest.raises(Unreachable, match="timed out"):
        for _ in cluster.watch(JOBS, "7", silence_seconds=0.2):
            pass


def test_a_watch_is_closed_from_another_thread(server: ScriptedServer, cluster: Cluster) -> None:
    def lines() -> Iterator[bytes]:
        yield event("ADDED", job("a", 8))
        server.stopping.wait(20)

    server.script = [Reply(lines=lines())]
    first, seen = threading.Event(), []
    stream = cluster.watch(JOBS, "7")

    def read() -> None:
        for kind, _ in stream:
            seen.append(kind)
            first.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(10)
    stream.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == ["ADDED"]


# Logs


def stamped(*lines: tuple[int, str]) -> list[bytes]:
    return [f"2026-11-23T10:00:{second:02}.5Z {text}\n".encode() for second, text in lines]


def test_a_log_is_read_without_its_times(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [Reply(lines=stamped((1, "one"), (2, ""), (3, "three and more")))]
    assert list(cluster.logs("p")) == ["one", "", "three and more"]
    assert server.requests[0].path == "/api/v1/namespaces/lab/pods/p/log"
    assert server.requests[0].query == {"timestamps": "true"}


def test_a_log_that_breaks_goes_on_after_the_last_line(server: ScriptedServer, cluster: Cluster) -> None:
    server.script = [
        Reply(lines=stamped((1, "one"), (2, "two"), (2, "two again")), breaks=True),
        Reply(lines=stamped((2, "two"), (2, "two again"), (2, "two more"), (3, "three"))),
    ]
    assert list(cluster.logs("p", follow=True)) == ["one", "two", "two again", "two more", "three"]
    assert server.requests[1].query == {
        "timestamps": "true",
        "follow": "true",
        "sinceTime": "2026-11-23T10:00:02Z",
    }


def test_a_log_outlives_its_pod(server: ScriptedServer, cluster: Cluster) -> None:
    gone = refusal(404, "NotFound", 'pods "p" not found')
    server.script = [Reply(lines=stamped((1, "one")), breaks=True), gone]
    assert list(cluster.logs("p", follow=True)) == ["one"]
    server.script = [gone]
    with pytest.raises(ObjectAbsent):
        list(cluster.logs("p", follow=True))


def test_a_log_of_a_pod_that_waits_says_for_what(server: ScriptedServer, cluster: Cluster) -> None:
    message = 'container "trainer" in pod "p" is waiting to start: ContainerCreating'
    server.script = [refusal(400, "BadRequest", message)]
    with pytest.raises(NotStarted) as caught:
        list(cluster.logs("p", follow=True))
    assert caught.value.waiting_for == "ContainerCreating"


# Names


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        pytest.param(JOBS, "/apis/batch/v1/namespaces/a%2Fb/jobs/c%20d", id="group"),
        pytest.param(EVENTS, "/api/v1/namespaces/a%2Fb/events/c%20d", id="core"),
        pytest.param(NODES, "/api/v1/nodes/c%20d", id="cluster-wide"),
    ],
)
def test_paths_are_those_of_the_api(resource: Resource, path: str) -> None:
    assert resource.path("a/b", "c d") == path
    assert LEASES.group == "coordination.k8s.io"
    assert EVENTS.group == ""


def test_a_kubeconfig_in_two_files_is_one(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(server.kubeconfig(tmp_path).read_text())
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(json.dumps({**whole, "users": []}))
    second.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "users": whole["users"]}))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{tmp_path / 'none'}")
    server.answer = lambda _: Reply(body=JOB)
    with open_cluster() as cluster:
        cluster.get(JOBS, "a")
    assert server.requests[0].headers["authorization"] == "Bearer secret"


def test_a_server_that_was_away_may_forbid_for_a_moment(
    server: ScriptedServer, connect: Callable[..., Cluster]
) -> None:
    forbidden = refusal(403, "Forbidden", 'User "a" cannot get resource "jobs" in API group "batch"')
    server.script = [BREAK, forbidden, Reply(body=JOB)]
    cluster = connect()
    assert cluster.get(JOBS, "a") == JOB
    assert cluster.retries["starting"] == 1


def test_what_is_forbidden_by_a_server_that_was_there_is_told_at_once(
    server: ScriptedServer, connect: Callable[..., Cluster]
) -> None:
    server.script = [Reply(body=JOB), refusal(403, "Forbidden", 'User "a" cannot get resource "jobs"')]
    cluster = connect()
    cluster.get(JOBS, "a")
    with pytest.raises(Forbidden):
        cluster.get(JOBS, "a")
    assert not cluster.retries
