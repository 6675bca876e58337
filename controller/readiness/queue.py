"""Whether Kueue is there, and the queue that runs are put into takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from controller.cluster import Cluster, Forbidden, Kueue, Object, ObjectAbsent
from controller.doctor import Check
from controller.quantities import quantity
from controller.readiness.room import asked_of
from controller.settings import Queue
from controller.wording import count_text
from trainer.document import nearest

UNSEEN = "may not be looked at"


def check_queue(cluster: Cluster, queue: Queue, pod_spec: Mapping[str, Any]) -> Iterator[Check]:
    """Whether Kueue takes runs into `queue`, as far as rights see. Raises ClusterError."""
    kueue = cluster.kueue()
    if kueue is None:
        cure = "install Kueue (https://kueue.sigs.k8s.io/docs/installation/), or set `queue: null`"
        yield Check("queue", "wrong", "Kueue is not installed in this cluster", cure)
        return
    try:
        found = cluster.get(kueue.local_queues, queue.name)
    except ObjectAbsent:
        yield judge_absent_queue(queue.name, cluster.namespace, cluster.list(kueue.local_queues, _name).items)
        return
    except Forbidden:
        yield Check("queue", "note", f"{queue.name} {UNSEEN}", "the Role experiment-grid-controller-kueue lets it be")
        return
    yield judge_local_queue(found)
    name = found["spec"].get("clusterQueue", "")
    try:
        yield judge_cluster_queue(cluster.get(kueue.cluster_queues, name), asked_of(pod_spec))
    except ObjectAbsent:
        cure = "who runs the cluster makes it, or names another in the LocalQueue"
        yield Check("cluster queue", "wrong", f"{name}, which {queue.name} leads to, is not there", cure)
    except Forbidden:
        yield Check("cluster queue", "note", f"{name} {UNSEEN}; what the queue says above has to do")
    if queue.priority_class is not None:
        yield from _check_priority(cluster, kueue, queue.priority_class)


def _check_priority(cluster: Cluster, kueue: Kueue, name: str) -> Iterator[Check]:
    try:
        value = cluster.get(kueue.priority_classes, name).get("value")
        yield Check("queue's priority class", "ok", f"{name}, {value}")
    except ObjectAbsent:
        cure = "correct `queue.priority_class`; `kubectl get workloadpriorityclasses` lists them"
        yield Check("queue's priority class", "wrong", f"there is no WorkloadPriorityClass {name}", cure)
    except Forbidden:
        yield Check("queue's priority class", "note", f"{name} {UNSEEN}")


def _name(found: Object) -> str:
    name: str = found["metadata"]["name"]
    return name


def judge_absent_queue(name: str, namespace: str, others: Sequence[str]) -> Check:
    """That there is no such queue, and which are there."""
    near = nearest(name, list(others))
    cure = f"did you mean {near!r}? `queue.name` says which" if near else "correct `queue.name`, or make a LocalQueue"
    there = f"expected one of {', '.join(sorted(others))}" if others else "there is none"
    return Check("queue", "wrong", f"got {name!r} in {namespace}, {there}", cure)


def judge_local_queue(queue: Object) -> Check:
    """Whether Kueue takes workloads from it, and how many wait there."""
    name, status = queue["metadata"]["name"], queue.get("status") or {}
    active = _condition(queue, "Active")
    if active.get("status") != "True":
        why = active.get("message") or "Kueue has not looked at it yet"
        return Check("queue", "wrong", f"{name} takes nothing: {why}", "see the cluster queue that it leads to")
    waiting, admitted = status.get("pendingWorkloads") or 0, status.get("admittedWorkloads") or 0
    return Check("queue", "ok", f"{name}: {count_text(waiting, 'workload')} waiting, {admitted} admitted")


def judge_cluster_queue(queue: Object, asked: Mapping[str, Decimal]) -> Check:
    """Whether it is active, and its quotas have what one run asks for at all."""
    name, spec = queue["metadata"]["name"], queue.get("spec") or {}
    active = _condition(queue, "Active")
    if active and active.get("status") != "True":
        why = active.get("message") or "no reason is given"
        return Check("cluster queue", "wrong", f"{name} is not active: {why}", "who runs the cluster has to mend it")
    if spec.get("stopPolicy", "None") != "None":
        return Check("cluster queue", "wrong", f"{name} is stopped: {spec['stopPolicy']}", "ask who runs the cluster")
    shares = bool(spec.get("cohortName") or spec.get("cohort"))  # named so before v1beta2
    most = _most_of_each(spec.get("resourceGroups") or (), shares=shares)
    requests = {key.removeprefix("requests."): value for key, value in asked.items() if key.startswith("requests.")}
    unknown = [resource for resource in requests if resource not in most]
    if unknown:
        # excludeResourcePrefixes of Kueue's own configuration, which cannot be seen from here, may except some
        cure = "who runs the cluster adds them to its resourceGroups, or excludes them from Kueue's reckoning"
        found = f"{name} has no quota of {', '.join(unknown)}, which each run asks for"
        return Check("cluster queue", "wrong", found, cure)
    too_much = [
        f"{resource}: one run asks for {value:f}, it has {limit:f}"
        for resource, value in requests.items()
        if (limit := most[resource]) is not None and value > limit
    ]
    if too_much:
        found = ", ".join(too_much)
        return Check("cluster queue", "wrong", f"{name}: {found}", "lower `resources`, or use another queue")
    return Check("cluster queue", "ok", f"{name} has quota for what a run asks for")


def _most_of_each(groups: Iterable[Mapping[str, Any]], *, shares: bool) -> dict[str, Decimal | None]:
    """What one workload may get of each resource, in the flavour that has most; none: no bound.

    A queue that `shares` a cohort's quota borrows without bound where none is set.
    """
    most: dict[str, Decimal | None] = {}
    for group in groups:
        for flavour in group.get("flavors") or ():
            for each in flavour.get("resources") or ():
                known, limit = most.get(each["name"], Decimal(0)), each.get("borrowingLimit")
                if known is None or (shares and limit is None):
                    most[each["name"]] = None
                else:
                    most[each["name"]] = max(known, quantity(each["nominalQuota"]) + quantity(limit or "0"))
    return most


def _condition(found: Object, kind: str) -> Mapping[str, Any]:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})
