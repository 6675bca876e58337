"""A real cluster as tests see it: kubectl, the image, a namespace of their own, and an S3 server."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "s3-credentials"  # in the tests' namespace: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
LEASE = "experiment-grid"  # of the controller that acts on a namespace
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class S3:
    """An S3 server with a bucket, as this process and as pods reach it."""

    endpoint: str
    endpoint_in_pods: str
    bucket: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process on this machine needs to reach the server and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes cluster that answers; every command goes to it and to no other."""

    kubeconfig: Path
    kubectl_path: Path
    image: str  # what pods run: by digest where the cluster is ours
    namespace: str  # made for this run of the tests, with Pod Security `restricted`
    s3: S3
    made: dict[str, Any] | None  # what `python -m k8s.kind status` says; None for a cluster that was there before

    @property
    def environment(self) -> dict[str, str]:
        """What kubectl, and programs that read kubeconfig files, need to talk to this cluster."""
        return {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *words: str | Path, given: str | None = None, namespace: str | None = None) -> str:
        """What kubectl printed, in the tests' namespace unless another is named. Raises CalledProcessError."""
        ended = self.attempt(*words, given=given, namespace=namespace)
        if ended.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(map(str, words))}: exit {ended.returncode}\n{ended.stderr}")
        return ended.stdout

    def attempt(
        self, *words: str | Path, given: str | None = None, namespace: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """How kubectl ended, whatever its exit code."""
        line = [str(self.kubectl_path), "--namespace", namespace or self.namespace, *map(str, words)]
        return subprocess.run(
            line, env={**os.environ, **self.environment}, input=given, capture_output=True, text=True, timeout=600
        )

    def apply(self, manifest: dict[str, Any]) -> None:
        """Make the cluster hold the object."""
        self.kubectl("apply", "-f", "-", given=json.dumps(manifest))

    def get(self, kind: str, name: str = "", *words: str, namespace: str | None = None) -> dict[str, Any]:
        """One object, or all of a kind."""
        found: dict[str, Any] = json.loads(
            self.kubectl("get", kind, *filter(None, [name]), *words, "-o", "json", namespace=namespace)
        )
        return found

    def until(self, what: str, look: Callable[[], Any], *, seconds: float = 180) -> Any:
        """The first answer of `look` that is true. Fails the test when none is within `seconds`."""
        deadline = time.monotonic() + seconds
        while not (answer := look()):
            if time.monotonic() > deadline:
                events = self.attempt("get", "events", "--sort-by=.lastTimestamp").stdout[-3000:]
                pods = self.attempt("get", "pods", "-o", "wide").stdout
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{pods}\n{events}")
            time.sleep(0.2)
        return answer

    def ended(self, pod: str, *, seconds: float = 300) -> dict[str, Any]:
        """How the pod's container ended: `exitCode`, `reason`, `message`, `startedAt`, `finishedAt`."""

        def look() -> dict[str, Any] | None:
            states = self.get("pod", pod)["status"].get("containerStatuses", [])
            found: dict[str, Any] | None = states[0]["state"].get("terminated") if states else None
            return found

        found: dict[str, Any] = self.until(f"the end of pod {pod}", look, seconds=seconds)
        return found

    def trainer_pod(self, arguments: list[str], *, name: str | None = None, **container: Any) -> dict[str, Any]:
        """A pod of the image under Pod Security `restricted`, with the S3 server's address and key.

        `arguments` go to the trainer, or to what `command` names; `container` adds to the container or replaces in it.
        """
        environment = {
            "AWS_ENDPOINT_URL": self.s3.endpoint_in_pods,
            "AWS_REGION": "us-east-1",
            "GRID_CACHE": "/cache",
            "OMP_NUM_THREADS": "1",
        }
        trainer = {
            "name": "trainer",
            "image": self.image,
            "args": arguments,
            "env": [{"name": key, "value": value} for key, value in environment.items()],
            "envFrom": [{"secretRef": {"name": SECRET}}],
            "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
            "securityContext": RESTRICTED,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": "/cache"}],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name or f"trainer-{secrets.token_hex(4)}", "namespace": self.namespace},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 30,
                "securityContext": {
                    "runAsNonRoot": True,
                    "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [trainer | container],
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}],
            },
        }


def docker(made: dict[str, Any], *words: str) -> str:
    """What Docker's client printed, asked of the engine that the cluster runs in."""
    environment = {**os.environ, **({"DOCKER_HOST": made["docker"]["host"]} if made["docker"]["host"] else {})}
    line = [made["docker"]["client"], *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
