"""What a cluster may have beside the project: Kueue, from its own module's manifests, by an image made here."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from k8s.kind.binaries import module_folder
from k8s.kind.cluster import kubectl
from k8s.kind.engine import get_engine
from k8s.kind.images import push_program
from k8s.kind.process import SCRATCH, alone, step

KUEUE_NAMESPACE = "kueue-system"
KUEUE_IMAGE = "us-central1-docker.pkg.dev/k8s-staging-images/kueue/kueue"  # what its manifests name
KUEUE_SETTINGS = """\
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
health: {healthProbeBindAddress: ":8081"}
metrics: {bindAddress: ":8443"}
webhook: {port: 9443}
leaderElection: {leaderElect: false}
clientConnection: {qps: 50, burst: 100}
integrations: {frameworks: [batch/job]}
"""


def install_kueue() -> None:
    """Kueue answers in the cluster of `up`, for Jobs alone; where it is there already nothing changes.

    Raises Failed.
    """
    with alone(), step("installing Kueue"):
        image = push_program(get_engine(), "kueue")
        manifests = module_folder("kueue", "sigs.k8s.io/kueue") / "config" / "default"
        with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
            (Path(folder) / "kustomization.yaml").write_text(json.dumps(_kueue(manifests, Path(folder), image)))
            # by the server: the definitions are too large for the annotation in which kubectl keeps what it applied
            kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)
        wait = ("rollout", "status", "deployment/kueue-controller-manager", "--timeout=180s")
        kubectl("--namespace", KUEUE_NAMESPACE, *wait)


def _kueue(manifests: Path, folder: Path, image: str) -> dict[str, object]:
    name, _, digest = image.partition("@")
    deployment = {"kind": "Deployment", "name": "kueue-controller-manager"}
    container = "/spec/template/spec/containers/0"
    changes = [
        {"op": "replace", "path": f"{container}/command", "value": ["/kueue"]},
        {"op": "replace", "path": f"{container}/imagePullPolicy", "value": "IfNotPresent"},
        # half a processor is a quarter of a small machine, and Kueue is idle nearly always
        {"op": "replace", "path": f"{container}/resources/requests", "value": {"cpu": "50m", "memory": "128Mi"}},
    ]
    settings = {"kind": "ConfigMap", "name": "kueue-manager-config"}
    value = [{"op": "replace", "path": "/data/controller_manager_config.yaml", "value": KUEUE_SETTINGS}]
    return {
        "resources": [os.path.relpath(manifests, folder.resolve())],
        "images": [{"name": KUEUE_IMAGE, "newName": name, "digest": digest}],
        "patches": [
            {"target": deployment, "patch": json.dumps(changes)},
            {"target": settings, "patch": json.dumps(value)},
        ],
    }
