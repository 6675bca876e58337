"""What a cluster would say of an object, found without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from kubernetes_validate.utils import all_versions

KNOWN = [each for each in all_versions() if tuple(map(int, each.split(".")[:2])) >= (1, 34)]
VERSIONS = (KNOWN[0], KNOWN[-1])
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"
}  # fmt: skip


def check_schema(thing: dict[str, Any]) -> None:
    """Raises where the API of the oldest or newest version would not know a field, or would want another type."""
    for version in VERSIONS:
        kubernetes_validate.validate(thing, version, strict=True)


def pod_of(thing: dict[str, Any]) -> dict[str, Any] | None:
    """The pod that a Job, Deployment or the like makes."""
    spec: dict[str, Any] | None = thing.get("spec", {}).get("template", {}).get("spec")
    return spec


def restricted_problems(pod: dict[str, Any]) -> Iterator[str]:
    """What Pod Security `restricted` would refuse.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    outer = pod.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", ()):
        if not volume.keys() - {"name"} <= RESTRICTED_VOLUMES:
            yield f"volume {volume['name']}"
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        inner, name = container.get("securityContext", {}), container["name"]
        if inner.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if inner.get("capabilities", {}).get("drop") != ["ALL"] or inner["capabilities"].get("add"):
            yield f"{name}: capabilities"
        if inner.get("runAsNonRoot", outer.get("runAsNonRoot")) is not True:
            yield f"{name}: runAsNonRoot"
        if inner.get("runAsUser", outer.get("runAsUser")) == 0:
            yield f"{name}: runAsUser"
        profile = inner.get("seccompProfile", outer.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile"
        if inner.get("privileged") or any("hostPort" in port for port in container.get("ports", ())):
            yield f"{name}: privileged"
