"""Kinds of objects as URLs and Roles name them, and what callers read of what the API gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

V = TypeVar("V")

Object = dict[str, Any]  # as the API gives it


class Resource(NamedTuple):
    """A kind of object, as URLs and Roles name it."""

    api: str  # group and version; the version alone for the core group
    name: str  # the plural
    kind: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group, as Roles name it: empty for the core group."""
        return self.api.rpartition("/")[0]

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The URL's path of the collection, or of one object."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.is_namespaced else ""
        rest = "".join(f"/{quote(part, safe='')}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.name}{rest}"


JOBS = Resource("batch/v1", "jobs", "Job")
PODS = Resource("v1", "pods", "Pod")
EVENTS = Resource("v1", "events", "Event")
CONFIG_MAPS = Resource("v1", "configmaps", "ConfigMap")
SECRETS = Resource("v1", "secrets", "Secret")
ACCOUNTS = Resource("v1", "serviceaccounts", "ServiceAccount")
CLAIMS = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
LIMIT_RANGES = Resource("v1", "limitranges", "LimitRange")
QUOTAS = Resource("v1", "resourcequotas", "ResourceQuota")
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
ACCESS_REVIEWS = Resource("authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
SELF_REVIEWS = Resource("authentication.k8s.io/v1", "selfsubjectreviews", "SelfSubjectReview", False)
PRIORITY_CLASSES = Resource("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", False)
PODS_EVERYWHERE = Resource("v1", "pods", "Pod", False)  # of all namespaces
NODES = Resource("v1", "nodes", "Node", False)
NAMESPACES = Resource("v1", "namespaces", "Namespace", False)
SYSTEM_CONFIG_MAPS = Resource("v1", "namespaces/kube-system/configmaps", "ConfigMap", False)
KUEUE_GROUP = "kueue.x-k8s.io"


class Kueue(NamedTuple):
    """Kueue's kinds of objects, in the version that a server prefers."""

    workloads: Resource
    local_queues: Resource
    cluster_queues: Resource
    priority_classes: Resource

    @staticmethod
    def of(api: str) -> Kueue:
        """The kinds, in that version of the group."""
        return Kueue(
            Resource(api, "workloads", "Workload"),
            Resource(api, "localqueues", "LocalQueue"),
            Resource(api, "clusterqueues", "ClusterQueue", False),
            Resource(api, "workloadpriorityclasses", "WorkloadPriorityClass", False),
        )


@dataclass(frozen=True)
class Listing(Generic[V]):
    """What a LIST found, and the version of the collection from which a watch goes on."""

    items: tuple[V, ...]
    resource_version: str


class Access(NamedTuple):
    """Whether this identity may do something, and what the server says about it."""

    is_allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, as far as scheduling a run goes by it."""

    name: str
    is_ready: bool
    is_schedulable: bool
    labels: Mapping[str, str]
    taints: tuple[str, ...]  # key=value:effect
    allocatable: Mapping[str, str]  # quantities in the API's own spelling


def node_view(node: Object) -> NodeView:
    """What the API gives of a node, as far as scheduling goes by it."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return NodeView(
        name=node["metadata"]["name"],
        is_ready=conditions.get("Ready") == "True",
        is_schedulable=not spec.get("unschedulable"),
        labels=node["metadata"].get("labels") or {},
        taints=tuple(f"{each['key']}={each.get('value', '')}:{each['effect']}" for each in spec.get("taints") or ()),
        allocatable=status.get("allocatable") or {},
    )
