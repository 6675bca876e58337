"""The client of the Kubernetes API against a real kube-apiserver over a real etcd; no node is needed for any of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cluster.apiserver import NOBODY, ApiServer, api_server, connections_reset, missing
from controller.cluster import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    NAMESPACES,
    PODS,
    QUOTAS,
    Cluster,
    Expired,
    Forbidden,
    Object,
    ObjectAbsent,
    ObjectChanged,
    ObjectExists,
    ObjectInvalid,
    QuotaExceeded,
    Resource,
    open_cluster,
)
from controller.election import Leadership
from controller.jobs import RUN_LABEL, WORK_LABEL, job_view
from controller.mirror import Mirror, Snapshot
from controller.standing import Work

GOLDEN = Path(__file__).parent.parent / "controller" / "golden" / "jobs"
ROLES = Resource("rbac.authorization.k8s.io/v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding")
Open = Callable[..., Cluster]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if reason := missing():
        pytest.skip(reason)
    # ConfigMaps without the cache that keeps what etcd has forgotten
    with api_server(tmp_path_factory.mktemp("apiserver"), ["--watch-cache-sizes=configmaps#0"]) as server:
        yield server


@pytest.fixture(scope="session")
def controllers(server: ApiServer) -> None:
    """The controllers that make pods of Jobs and count what a quota counts."""
    server.start_controllers("job-controller", "resourcequota-controller", "garbage-collector-controller")


@pytest.fixture
def namespace(server: ApiServer) -> str:
    name = f"test-{secrets.token_hex(4)}"
    with open_cluster(kubeconfig=str(server.kubeconfig())) as cluster:
        cluster.create(NAMESPACES, {"metadata": {"name": name}})
    return name


@pytest.fixture
def connect(server: ApiServer, namespace: str) -> Iterator[Open]:
    opened = []

    def open_one(user: str = "admin", **settings: float) -> Cluster:
        opened.append(open_cluster(namespace, kubeconfig=str(server.kubeconfig(user)), **settings))  # type: ignore[arg-type] # numbers all
        return opened[-1]

    yield open_one
    for cluster in opened:
        cluster.close()


@pytest.fixture
def client(connect: Open) -> Cluster:
    return connect()


def job(name: str, *, suspend: bool = True) -> Object:
    labels = {RUN_LABEL: name, WORK_LABEL: "training", "app.kubernetes.io/managed-by": "experiment-grid"}
    container = {"name": "trainer", "image": "none", "resources": {"requests": {"cpu": "1"}}}
    pod = {"restartPolicy": "Never", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"suspend": suspend, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def named(found: Object) -> str:
    name: str = found["metadata"]["name"]
    return name


def seen(mirror: Mirror, holds: Callable[[Snapshot], object], seconds: float = 60) -> Snapshot:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        snapshot = mirror.snapshot()
        if holds(snapshot):
            return snapshot
        mirror.wait(0.5)
    raise AssertionError(f"not seen within {seconds} s: {snapshot}")


# Reading


def test_a_listing_follows_the_servers_pages(client: Cluster) -> None:
    names = [f"job-{number:02}" for number in range(25)]
    assert [named(outcome) for _, outcome in client.perform(lambda name: client.create(JOBS, job(name)), names)]  # type: ignore[arg-type] # a ClusterError has no items, and fails
    before = client.calls["list", "jobs", 200]
    found = client.list(JOBS, named, selector=RUN_LABEL, page=10)
    assert sorted(found.items) == names
    assert client.calls["list", "jobs", 200] == before + 3
    assert client.list(JOBS, named, selector=f"{RUN_LABEL}=job-07").items == ("job-07",)


def test_pages_that_etcd_has_forgotten_are_read_anew(client: Cluster, server: ApiServer) -> None:
    for number in range(25):
        client.create(CONFIG_MAPS, config_map(f"map-{number:02}"))
    compacted: list[bool] = []

    def view(found: Object) -> str:
        if not compacted:
            compacted.append(True)
            client.create(CONFIG_MAPS, config_map("one-more"))
            server.compact()
        return named(found)

    found = client.list(CONFIG_MAPS, view, page=5)
    assert client.calls["list", "configmaps", 410] == 1
    assert len([name for name in found.items if name.startswith("map-")]) == 25
    assert "one-more" in found.items


def test_a_watch_from_a_forgotten_version_is_told(client: Cluster, server: ApiServer) -> None:
    first = client.create(CONFIG_MAPS, config_map("first"))["metadata"]["resourceVersion"]
    for name in ("second", "third"):
        client.create(CONFIG_MAPS, config_map(name))
    server.compact()
    with pytest.raises(Expired):
        for _ in client.watch(CONFIG_MAPS, first, seconds=5):
            pass


def test_a_watch_tells_changes_and_where_it_is(client: Cluster) -> None:
    version = client.list(JOBS, named).resource_version
    client.create(JOBS, job("a"))
    marks: list[Object] = []
    for number in range(5):  # a server owes nobody a bookmark, and sends one shortly before it ends a watch
        later = threading.Timer(0.5, client.create, (JOBS, job(f"b{number}")))
        later.start()
        told = list(client.watch(JOBS, version, seconds=8))
        later.join()
        assert named(told[0][1]) == "a"
        marks = [found for kind, found in told if kind == "BOOKMARK"]
        if marks:
            break
    made = client.get(JOBS, f"b{number}")["metadata"]["resourceVersion"]
    assert int(marks[-1]["metadata"]["resourceVersion"]) >= int(made)


# Writing


def test_preconditions_keep_to_one_version_of_one_object(client: Cluster) -> None:
    made = client.create(JOBS, job("a"))["metadata"]
    with pytest.raises(ObjectChanged):
        client.patch(JOBS, "a", {"spec": {"suspend": False}}, resource_version="1")
    with pytest.raises(ObjectChanged):
        client.patch(JOBS, "a", {"spec": {"suspend": False}}, uid=secrets.token_hex(4))
    with pytest.raises(ObjectChanged):
        client.delete(JOBS, "a", uid=secrets.token_hex(4))
    resumed = client.patch(
        JOBS, "a", {"spec": {"suspend": False}}, uid=made["uid"], resource_version=made["resourceVersion"]
    )
    assert resumed["spec"]["suspend"] is False
    with pytest.raises(ObjectChanged):
        client.delete(JOBS, "a", resource_version=made["resourceVersion"])
    assert "foregroundDeletion" in client.delete(JOBS, "a", uid=made["uid"])["metadata"]["finalizers"]


def test_a_second_creation_is_told(client: Cluster) -> None:
    client.create(JOBS, job("a"))
    with pytest.raises(ObjectExists) as here:
        client.create(JOBS, job("a"))
    client.delete(JOBS, "a")
    with pytest.raises(ObjectExists) as leaving:
        client.create(JOBS, job("a"))
    assert (here.value.is_deleting, leaving.value.is_deleting) == (False, True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"activeDeadline": 5}, "spec.activeDeadline", id="unknown"),
        pytest.param({"backoffLimit": -1}, "spec.backoffLimit", id="out-of-range"),
    ],
)
def test_what_is_wrong_with_a_job_is_named(change: Object, field: str, client: Cluster) -> None:
    wrong = job("a")
    wrong["spec"] |= change
    with pytest.raises(ObjectInvalid) as caught:
        client.create(JOBS, wrong)
    assert caught.value.fields == (field,)


def test_a_namespace_that_is_not_there_is_told(server: ApiServer) -> None:
    with (
        open_cluster("nowhere", kubeconfig=str(server.kubeconfig())) as cluster,
        pytest.raises(ObjectAbsent, match='namespaces "nowhere" not found') as caught,
    ):
        cluster.create(JOBS, job("a"))
    assert "kubectl create namespace nowhere" in str(caught.value.hint)


def test_events_are_counted_up(client: Cluster) -> None:
    uid = client.create(JOBS, job("a"))["metadata"]["uid"]
    for _ in range(3):
        client.tell(JOBS, "a", uid, reason="Resumed", message="at epoch 3")
    (found,) = client.list(EVENTS, dict, fields=f"involvedObject.uid={uid}").items
    assert (found["count"], found["message"], found["type"]) == (3, "at epoch 3", "Normal")


def test_warnings_of_pod_security_are_kept(client: Cluster, namespace: str) -> None:
    client.patch(NAMESPACES, namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/warn": "restricted"}}})
    until = time.monotonic() + 30  # the server's admission learns of the label by a watch of its own
    while not client.warnings and time.monotonic() < until:
        client.create(JOBS, job("a"), dry_run=True)
    assert any("restricted" in text for text in client.warnings)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_server_would_take_the_golden_jobs(path: Path, client: Cluster, namespace: str) -> None:
    wanted = [each for each in yaml.safe_load_all(path.read_text()) if each]
    assert wanted
    for each in wanted:
        each["metadata"]["namespace"] = namespace
        made = client.create(JOBS, each, dry_run=True)
        assert made["metadata"]["labels"] == each["metadata"]["labels"]
        assert made["spec"]["podReplacementPolicy"] == "Failed"
    assert client.list(JOBS, named).items == ()


# Rights and quotas


def test_rights_are_those_of_the_role(client: Cluster, connect: Open, namespace: str) -> None:
    nobody = connect(NOBODY)
    with pytest.raises(Forbidden) as caught:
        nobody.create(JOBS, job("a"))
    assert f"{NOBODY} in {namespace} needs apiGroups: ['batch'], resources: ['jobs'], verbs: ['create']" in str(
        caught.value.hint
    )
    assert not nobody.can("create", "jobs", group="batch").is_allowed
    assert nobody.nodes() is None
    role = {"metadata": {"name": "r"}, "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}]}
    client.create(ROLES, role)
    subject = {"kind": "User", "name": NOBODY, "apiGroup": "rbac.authorization.k8s.io"}
    reference = {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"}
    client.create(ROLE_BINDINGS, {"metadata": {"name": "r"}, "roleRef": reference, "subjects": [subject]})
    until = time.monotonic() + 30
    while not nobody.can("create", "jobs", group="batch").is_allowed and time.monotonic() < until:
        time.sleep(0.1)  # the authorizer learns of it by a watch
    assert named(nobody.create(JOBS, job("a"))) == "a"
    assert not nobody.can("delete", "jobs", group="batch").is_allowed


def test_a_quota_refuses_what_it_has_no_room_for(client: Cluster) -> None:
    client.create(QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": {"count/jobs.batch": "30"}}})
    counted = {"hard": {"count/jobs.batch": "30"}, "used": {"count/jobs.batch": "0"}}
    client.patch(QUOTAS, "q", {"status": counted}, subresource="status")  # as the quota controller does
    until = time.monotonic() + 30
    while time.monotonic() < until:  # the admission learns of it by a watch
        try:
            client.create(JOBS, job("first"), dry_run=True)
            break
        except QuotaExceeded as error:
            assert "status unknown" in str(error)  # noqa: PT017 - only for as long as it is not known
    names = [f"job-{number}" for number in range(40)]
    outcomes = [outcome for _, outcome in client.perform(lambda name: client.create(JOBS, job(name)), names)]
    refused = [str(outcome) for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    assert len(client.list(JOBS, named).items) == 40 - len(refused) == 30
    assert all("count/jobs.batch=1" in each for each in refused)


def test_pods_that_a_quota_refuses_are_told_of_their_job(client: Cluster, controllers: None) -> None:
    client.create(QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}})
    until = time.monotonic() + 60
    while not client.get(QUOTAS, "q").get("status", {}).get("hard") and time.monotonic() < until:
        time.sleep(0.2)
    with Mirror(client) as mirror:
        for name in ("a", "b"):
            client.create(JOBS, job(name, suspend=False))
        snapshot = seen(mirror, lambda snapshot: snapshot.quota and snapshot.pods)
    (refused,), (pods,) = snapshot.quota.items(), snapshot.pods.values()
    assert refused[0] in (Work("a", False), Work("b", False))
    assert refused[1].startswith("exceeded quota: q, requested: pods=1")
    assert pods[0].work != refused[0]
    assert pods[0].job_uid == snapshot.jobs[pods[0].work].uid


# Mirror and Lease


def test_the_mirror_outlives_a_crash_of_the_server(client: Cluster, server: ApiServer) -> None:
    client.create(JOBS, job("before"))
    with connections_reset(), Mirror(client) as mirror:
        assert set(mirror.snapshot().jobs) == {Work("before", False)}
        server.stop()
        creates = threading.Thread(target=client.create, args=(JOBS, job("after")))  # it waits for the server
        creates.start()
        server.start()
        creates.join()
        snapshot = seen(mirror, lambda snapshot: Work("after", False) in snapshot.jobs)
        assert set(snapshot.jobs) == {Work("before", False), Work("after", False)}
        assert mirror.restarts["jobs", "broken"] + mirror.restarts["jobs", "ended"] >= 1


def test_a_job_leaves_the_mirror_when_it_is_gone(client: Cluster, controllers: None) -> None:
    work = Work("a", False)
    with Mirror(client) as mirror:
        view = job_view(client.create(JOBS, job("a")))
        assert view is not None
        mirror.saw(view)
        assert mirror.snapshot().jobs[work].uid == view.uid
        assert mirror.snapshot().unlisted == {work}
        mirror.list_pods()
        assert mirror.snapshot().unlisted == frozenset()
        client.delete(JOBS, "a", uid=view.uid)
        assert seen(mirror, lambda snapshot: work not in snapshot.jobs).unlisted == {work}


def test_pods_that_succeed_leave_the_mirror(client: Cluster) -> None:
    container = {"name": "trainer", "image": "none"}
    for name in ("p", "q"):
        labels = {RUN_LABEL: name, "app.kubernetes.io/managed-by": "experiment-grid"}
        client.create(PODS, {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}})
    with Mirror(client) as mirror:
        assert len(mirror.snapshot().pods) == 2
        client.patch(PODS, "p", {"status": {"phase": "Succeeded"}}, subresource="status")
        client.patch(PODS, "q", {"status": {"phase": "Failed", "reason": "Evicted"}}, subresource="status")
        work = Work("q", False)
        snapshot = seen(mirror, lambda snapshot: len(snapshot.pods) == 1 and snapshot.pods[work][0].is_terminal)
        assert snapshot.pods[work][0].reason == "Evicted"


def test_one_of_two_holds_the_lease_until_it_ends(client: Cluster, connect: Open) -> None:
    with (
        Leadership(client, identity="one", period_seconds=0.2) as one,
        Leadership(connect(), identity="two", period_seconds=0.2) as two,
    ):
        while not (one.is_held or two.is_held):
            time.sleep(0.05)
        first, second = (one, two) if one.is_held else (two, one)
        told = Leadership(connect(), identity="three").holder()
        assert told is not None
        assert (told.identity, told.is_alive) == (first.identity, True)
        assert not second.is_held
        first.__exit__()
        assert second.wait(10)
        assert not first.is_held


def test_the_server_says_its_version_and_time(client: Cluster) -> None:
    assert client.version().startswith("v1.")
    assert abs(client.clock_offset()) < 2
    assert client.preferred_api("batch") == "batch/v1"
    assert client.preferred_api("kueue.x-k8s.io") is None
