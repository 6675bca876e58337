"""Whether a cluster is ready for a grid's runs: each thing looked at, with what was found and what to do about it.

Every part asks in one function, and judges what came back in pure ones beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controller.cluster import Cluster
from controller.doctor import Check, guarded
from controller.manifest import JobTemplate
from controller.readiness.admission import check_admission, check_references
from controller.readiness.pod import check_in_pod, probe_job, probe_name
from controller.readiness.queue import check_queue
from controller.readiness.rights import check_rights
from controller.readiness.room import check_nodes, check_quotas
from controller.readiness.server import check_controller, check_namespace, check_server

__all__ = ["check_cluster"]


def check_cluster(
    cluster: Cluster, template: JobTemplate, *, probes: bool = True, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """All that runs of `template` need of the cluster. With `probes` a pod of their making looks around there.

    `tell` hears what that pod waits for. Nothing is left behind, also where the loop is left early.
    """
    settings = template.settings
    for check in guarded("cluster", lambda: check_server(cluster)):
        yield check
        if check.state == "wrong" and check.name == "cluster":
            return
    there = True
    for check in guarded("namespace", lambda: check_namespace(cluster)):
        there = there and check.state != "wrong"
        yield check
    if not there:
        return
    yield from guarded("rights", lambda: check_rights(cluster, queues=settings.queue is not None))
    job = probe_job(template, probe_name())
    pod = job["spec"]["template"]
    yield from guarded("references", lambda: check_references(cluster, pod["spec"]))
    yield from guarded("admission", lambda: check_admission(cluster, job))
    yield from guarded("quotas", lambda: check_quotas(cluster, pod["spec"]))
    if settings.queue is not None:
        queue = settings.queue
        yield from guarded("queue", lambda: check_queue(cluster, queue, pod["spec"]))
    yield from guarded("nodes", lambda: check_nodes(cluster, pod["spec"]))
    yield from guarded("controller", lambda: check_controller(cluster))
    if probes:
        yield from guarded("probe", lambda: check_in_pod(cluster, template, tell))
