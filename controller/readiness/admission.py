"""Whether the cluster would take a run's Job and pod, and has what they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from controller.cluster import (
    ACCOUNTS,
    CLAIMS,
    CONFIG_MAPS,
    JOBS,
    PODS,
    PRIORITY_CLASSES,
    SECRETS,
    Cluster,
    ClusterError,
    Forbidden,
    Object,
    ObjectAbsent,
    QuotaExceeded,
    Resource,
)
from controller.doctor import Check
from controller.wording import listed

VIOLATION = "violate PodSecurity"  # "would violate" as a warning about a Job, "violates" where a pod is refused
NOT_ALLOWED = "cannot create resource"


# What the pods name


class Reference(NamedTuple):
    """An object that must be there before a pod can start."""

    resource: Resource
    name: str
    setting: str  # which of the settings names it, most likely


def references(pod_spec: Mapping[str, Any]) -> list[Reference]:
    """The service account, secrets, config maps, claims and priority class that a pod names; each once."""
    found: list[Reference] = []

    def take(source: Mapping[str, Any] | None, resource: Resource, setting: str, key: str = "name") -> None:
        if source and source.get(key) and not source.get("optional"):
            found.append(Reference(resource, source[key], setting))

    take(pod_spec, ACCOUNTS, "service_account", "serviceAccountName")
    take(pod_spec, PRIORITY_CLASSES, "priority_class", "priorityClassName")
    for each in pod_spec.get("imagePullSecrets") or ():
        take(each, SECRETS, "image_pull_secrets")
    for container in [*(pod_spec.get("initContainers") or ()), *(pod_spec.get("containers") or ())]:
        for variable in container.get("env") or ():
            source = variable.get("valueFrom") or {}
            setting = "store.secret" if variable["name"].startswith("AWS_") else "pod_template_patch"
            take(source.get("secretKeyRef"), SECRETS, setting)
            take(source.get("configMapKeyRef"), CONFIG_MAPS, setting)
        for each in container.get("envFrom") or ():
            take(each.get("secretRef"), SECRETS, "pod_template_patch")
            take(each.get("configMapRef"), CONFIG_MAPS, "pod_template_patch")
    for volume in pod_spec.get("volumes") or ():
        setting = {"ca": "store.ca", "cache": "cache.claim"}.get(volume["name"], "pod_template_patch")
        take(volume.get("persistentVolumeClaim"), CLAIMS, setting, "claimName")
        for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            secret = source.get("secret")
            take(secret, SECRETS, setting, "name" if secret and "name" in secret else "secretName")
            take(source.get("configMap"), CONFIG_MAPS, setting)
    once = {(each.resource, each.name): each for each in reversed(found)}
    return [each for each in dict.fromkeys(found) if once[each.resource, each.name] is each]


def check_references(cluster: Cluster, pod_spec: Mapping[str, Any]) -> Iterator[Check]:
    """Whether what the pods name is there. Of secrets only their metadata is asked for."""
    there, unseen = [], []
    for each in references(pod_spec):
        called = f"{each.resource.kind} {each.name}"
        try:
            if each.resource is CLAIMS:
                yield judge_claim(cluster.get(CLAIMS, each.name))
            else:
                cluster.metadata(each.resource, each.name)
                there.append(called)
        except ObjectAbsent:
            cure = f"make it, or correct `{each.setting}` in the settings: pods cannot start without it"
            yield Check(
                called, "wrong", f"not in {cluster.namespace}" if each.resource.is_namespaced else "absent", cure
            )
        except Forbidden:
            unseen.append(called)
    if there:
        yield Check("named objects", "ok", f"{listed(there)}: there")
    if unseen:
        yield Check("named objects", "note", f"{listed(unseen)}: may not be looked at; a pod that starts shows them")


def judge_claim(claim: Object) -> Check:
    """Whether pods on several nodes can have the volume at once."""
    name = f"PersistentVolumeClaim {claim['metadata']['name']}"
    phase = (claim.get("status") or {}).get("phase", "Pending")
    modes = (claim.get("spec") or {}).get("accessModes") or ()
    if phase == "Lost":
        return Check(name, "wrong", "its volume is gone", "make the claim anew: it holds only what can be made again")
    if "ReadWriteMany" not in modes:
        cure = "use a claim with ReadWriteMany, or none: `cache.claim: null`"
        return Check(name, "note", f"{phase}, {listed(list(modes))}: runs on one node only, or one at a time", cure)
    return Check(name, "ok", f"{phase}, runs on all nodes share it")


# What admission says


def check_admission(cluster: Cluster, job: Object) -> Iterator[Check]:
    """Whether the API server takes the Job, and a pod of its making; nothing is kept of either."""
    before = cluster.warnings.copy()
    try:
        cluster.create(JOBS, job, dry_run=True)
    except ClusterError as error:
        if NOT_ALLOWED in error.message:
            yield Check("admission", "note", "Jobs are not yours to make, and none was tried")
        else:
            yield judge_refusal("job", error)
        return
    warned = [text for text in cluster.warnings - before if VIOLATION in text]
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": job["metadata"]["name"], "namespace": cluster.namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    try:
        cluster.create(PODS, pod, dry_run=True)
    except ClusterError as error:
        if NOT_ALLOWED not in error.message:
            yield judge_refusal("pod", error)
        elif warned:
            yield Check("admission", "wrong", warned[0], "see `pod_template_patch` in the settings")
        else:
            yield Check("admission", "ok", "the Job would be taken; its pod is not yours to make, and was not tried")
        return
    yield Check("admission", "ok", "the Job would be taken, and its pod admitted")


def judge_refusal(what: str, error: ClusterError) -> Check:
    """What it means that the server would not take the Job or the pod."""
    if isinstance(error, QuotaExceeded):
        return Check("admission", "note", f"a {what} would have to wait for a quota: {error.message}")
    if VIOLATION.removeprefix("violate ") in error.message and "violates" in error.message:
        cure = "take what it names out of `pod_template_patch`, or let the namespace's level allow it"
        return Check("admission", "wrong", error.message, cure)
    return Check("admission", "wrong", error.message, error.hint)
