"""Whether who asks may do what the commands of a cluster do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from controller.cluster import KUEUE_GROUP, Access, Cluster, ClusterError
from controller.doctor import Check
from controller.jobs import MANAGED_BY

USER_ROLE, QUEUE_ROLE = f"{MANAGED_BY}-user", f"{MANAGED_BY}-controller-kueue"


class Right(NamedTuple):
    """One thing that commands do, and the Role that lets them."""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""
    used_for: str = "every command of a cluster"
    role: str = USER_ROLE
    is_vital: bool = True

    @property
    def target(self) -> str:
        """The resource as Roles name it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


RIGHTS = (
    *(Right(verb, "jobs", "batch") for verb in ("get", "list", "watch")),
    *(Right(verb, "jobs", "batch", used_for="submit, watch, pause, resume") for verb in ("create", "patch")),
    Right("delete", "jobs", "batch", used_for="cancel, and pause with a queue"),
    *(Right(verb, "pods") for verb in ("list", "watch")),
    Right("get", "pods", subresource="log", used_for="logs"),
    *(Right(verb, "events", used_for="hearing of quotas that refuse a pod") for verb in ("list", "watch")),
    *(
        Right(verb, "events", used_for="what `kubectl describe job` shows", is_vital=False)
        for verb in ("create", "patch")
    ),
    *(Right(verb, "leases", "coordination.k8s.io", used_for="acting on a grid") for verb in ("get", "create")),
    Right("update", "leases", "coordination.k8s.io", used_for="`grid watch` to act alone", is_vital=False),
    *(
        Right(verb, "configmaps", used_for="handing a grid to the controller", is_vital=False)
        for verb in ("create", "patch", "delete")
    ),
)
LOOKING_RIGHTS = (
    *(
        Right("list", resource, used_for="`grid doctor`, which says itself what it may not look at", is_vital=False)
        for resource in ("limitranges", "resourcequotas")
    ),
    *(
        Right("get", resource, used_for="`grid doctor`, likewise", is_vital=False)
        for resource in ("configmaps", "persistentvolumeclaims", "serviceaccounts")
    ),
    Right("create", "pods", used_for="`grid doctor` to ask by a dry run whether one is admitted", is_vital=False),
    Right("get", "pods", used_for="`kubectl describe pod`", is_vital=False),
)
"""What USER_ROLE has beside RIGHTS. It is not asked for: without it less is found, and that is told where it is."""
QUEUE_RIGHTS = (
    *(
        Right(verb, "workloads", KUEUE_GROUP, used_for="saying why a run waits in its queue", role=QUEUE_ROLE)
        for verb in ("list", "watch")
    ),
    Right("get", "localqueues", KUEUE_GROUP, used_for="looking at the queue", role=QUEUE_ROLE, is_vital=False),
)


def check_rights(cluster: Cluster, *, queues: bool) -> Iterator[Check]:
    """Whether this identity has every right that commands need. Raises ClusterError where nobody will say."""
    rights = [*RIGHTS, *(QUEUE_RIGHTS if queues else ())]
    lacking = []

    def ask(right: Right) -> Access:
        return cluster.can(right.verb, right.resource, group=right.group, subresource=right.subresource)

    for right, answer in cluster.perform(ask, rights):
        if isinstance(answer, ClusterError):
            raise answer
        if not answer.is_allowed:
            lacking.append(right)
    yield from judge_rights(sorted(lacking, key=rights.index), len(rights), cluster.user(), cluster.namespace)


def judge_rights(lacking: Iterable[Right], num_asked: int, user: str, namespace: str) -> Iterator[Check]:
    """One check for each kind of object that not all rights are there for, or one that says they all are."""
    kinds: dict[tuple[str, str, str, bool], list[str]] = {}
    for right in lacking:
        kinds.setdefault((right.group, right.target, right.used_for, right.is_vital), []).append(right.verb)
    roles = {(right.group, right.target, right.used_for, right.is_vital): right.role for right in lacking}
    who = user or "this identity"
    told: set[str] = set()  # the Roles whose binding was shown
    for kind, verbs in kinds.items():
        group, target, used_for, is_vital = kind
        found = f"{who} may not {', '.join(verbs)} {target}: needed for {used_for}"
        role = roles[kind]
        cure = f"{role} has it, too" if role in told else _cure(role, user, namespace, group, target, verbs)
        told.add(role)
        yield Check("rights", "wrong" if is_vital else "note", found, cure)
    if not kinds:
        yield Check("rights", "ok", f"{who} has all {num_asked} that commands use")


def _cure(role: str, user: str, namespace: str, group: str, target: str, verbs: list[str]) -> str:
    rule = f"apiGroups: [{group!r}], resources: [{target!r}], verbs: [{', '.join(map(repr, verbs))}]"
    bound = "--user=NAME" if not user else f"--user={user}"
    kind, _, account = user.rpartition(":")
    if kind.startswith("system:serviceaccount:"):
        bound = f"--serviceaccount={kind.removeprefix('system:serviceaccount:')}:{account}"
    return (
        f"the Role {role} has it: kubectl -n {namespace} create rolebinding grid-users --role={role} {bound}; "
        f"or one of yours with {rule}"
    )
