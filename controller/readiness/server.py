"""The API server, the namespace, and who acts there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from controller.cluster import NAMESPACES, Cluster, Forbidden, Object, ObjectAbsent
from controller.doctor import Check, judge_clock
from controller.election import Holder, Leadership

WANTED_VERSION = (
    1,
    34,
)  # podReplacementPolicy is stable: https://kubernetes.io/docs/concepts/workloads/controllers/job/
OLDEST_VERSION = (1, 31)  # podFailurePolicy is
ENFORCE_LABEL = "pod-security.kubernetes.io/enforce"


def check_server(cluster: Cluster) -> Iterator[Check]:
    """Whether the API server answers, is new enough, and has this machine's time. Raises ClusterError."""
    yield judge_version(cluster.version(), cluster.server)
    ahead = cluster.clock_offset()
    yield judge_clock("cluster's clock", ahead, "the API server's clock", "this machine's", "waits and deadlines")


def judge_version(version: str, server: str) -> Check:
    """Whether that version of Kubernetes has what Jobs of runs are made of."""
    found = re.match(r"v(\d+)\.(\d+)", version)
    at = f"{server}, Kubernetes {version}"
    if found is None:
        return Check("cluster", "note", at, "its version is not understood: 1.34 or later is wanted")
    number = (int(found[1]), int(found[2]))
    if number < OLDEST_VERSION:
        return Check("cluster", "wrong", at, "runs need 1.31 at least, and are tested with 1.34 and later")
    if number < WANTED_VERSION:
        return Check("cluster", "note", at, "tested with 1.34 and later")
    return Check("cluster", "ok", at)


def check_namespace(cluster: Cluster) -> Iterator[Check]:
    """Whether the namespace is there, and which pods it admits."""
    name = cluster.namespace
    try:
        yield judge_namespace(cluster.get(NAMESPACES, name))
    except ObjectAbsent:
        cure = f"make it: `make deploy`, or kubectl create namespace {name}; or name another in the settings"
        yield Check("namespace", "wrong", f"there is no {name}", cure)
    except Forbidden:
        yield Check("namespace", "note", f"{name} may not be looked at; what is asked of it below tells the rest")


def judge_namespace(namespace: Object) -> Check:
    """Whether Jobs can be made in it, and what Pod Security holds pods to."""
    name = namespace["metadata"]["name"]
    if (namespace.get("status") or {}).get("phase") == "Terminating":
        return Check("namespace", "wrong", f"{name} is being deleted", "wait until it is gone, and make it anew")
    level = (namespace["metadata"].get("labels") or {}).get(ENFORCE_LABEL)
    return Check("namespace", "ok", f"{name}, Pod Security {f'enforces {level}' if level else 'enforces nothing'}")


def check_controller(cluster: Cluster) -> Iterator[Check]:
    """Who holds the namespace's Lease, and whether it is alive."""
    try:
        yield judge_holder(Leadership(cluster).holder())
    except Forbidden:
        yield Check("controller", "note", "its lease may not be read: who acts here is not known")


def judge_holder(holder: Holder | None) -> Check:
    """Whether somebody goes on with grids while no command is watching."""
    cure = "`make deploy` brings one; without it `grid watch GRID` goes on with a grid while it runs"
    if holder is None:
        return Check("controller", "note", "none acts in this namespace", cure)
    since = f" since {holder.since:%Y-%m-%d %H:%M} UTC" if holder.since else ""
    if not holder.is_alive:
        return Check("controller", "note", f"{holder.identity} held the lease{since}, and renews it no more", cure)
    return Check("controller", "ok", f"{holder.identity} acts here{since}")
