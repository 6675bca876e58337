"""The image is built, keeps no secret, and trains where Kubernetes allows least."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pictures import import_pictures, put_run

from cluster.real import Cluster, docker
from trainer.dataset import DatasetIndex
from trainer.failure import ExitCode
from trainer.result import Result
from trainer.store import S3Store

ROOT = Path(__file__).parent.parent.parent
GRACE_SECONDS = 30
PUBLIC_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"  # Debian's own, which are in the image
SMALL: dict[str, Any] = {
    "model": {"architecture": "resnet18"},
    "batch_size": 4,
    "epochs": 1,
    "optimizer": {"lr": 0.01},
}


@pytest.fixture
def index(s3_store: S3Store, tmp_path: Path) -> DatasetIndex:
    """A handful of pictures in the store, cropped to 16 pixels when they are used."""
    return import_pictures(s3_store, tmp_path / "pictures", per_class=4)


def small_run(store: S3Store, index: DatasetIndex, **spec: Any) -> str:
    data = {"name": index.name, "fingerprint": index.fingerprint, "resize": 18, "crop": 16}
    return put_run(store, index, **{**SMALL, "data": data, **spec})


@pytest.fixture(scope="module")
def image(made_here: dict[str, Any]) -> dict[str, Any]:
    """What Docker says of the image."""
    found: list[dict[str, Any]] = json.loads(
        docker(made_here, "image", "inspect", "experiment-grid-kind/experiment-grid")
    )
    return found[0]


def test_the_image_trains_in_a_pod_without_rights_and_with_a_root_that_cannot_be_written(
    cluster: Cluster, s3_store: S3Store, index: DatasetIndex
) -> None:
    run = small_run(s3_store, index)
    pod = cluster.trainer_pod([run, "--store", s3_store.uri])
    cluster.apply(pod)
    name = pod["metadata"]["name"]
    assert cluster.ended(name)["exitCode"] == ExitCode.OK, cluster.kubectl("logs", name)
    result = Result.model_validate_json(s3_store.get(f"results/{run}.json"))
    assert result.epochs_run == 1
    assert result.data_fingerprint == index.fingerprint
    assert "epoch 1 of 1" in cluster.kubectl("logs", name)
    again = cluster.trainer_pod([run, "--store", s3_store.uri])
    cluster.apply(again)
    assert cluster.ended(again["metadata"]["name"])["exitCode"] == ExitCode.OK
    assert "nothing to do" in cluster.kubectl("logs", again["metadata"]["name"])


@pytest.mark.parametrize("seconds", [0, 0.2, 1, 4], ids="{}s".format)
def test_a_pod_that_is_told_to_stop_while_it_starts_exits_75_within_its_grace(
    cluster: Cluster, s3_store: S3Store, index: DatasetIndex, seconds: float
) -> None:
    run = small_run(s3_store, index, epochs=1000)
    pod = cluster.trainer_pod([run, "--store", s3_store.uri])
    pod["metadata"]["finalizers"] = ["experiment-grid.dev/test"]  # so that the pod can still be read when it has ended
    name = pod["metadata"]["name"]
    cluster.apply(pod)
    try:
        cluster.until("a running container", lambda: _started(cluster, name))
        time.sleep(seconds)
        cluster.kubectl("delete", "pod", name, "--wait=false")
        ended = cluster.ended(name)
    finally:
        cluster.kubectl("patch", "pod", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert ended["exitCode"] == ExitCode.STOPPED, ended
    asked = cluster_time(ended["startedAt"])
    assert cluster_time(ended["finishedAt"]) - asked < GRACE_SECONDS + seconds + 5


def _started(cluster: Cluster, pod: str) -> bool:
    states = cluster.get("pod", pod)["status"].get("containerStatuses", [])
    return bool(states and states[0]["state"].get("running"))


def cluster_time(text: str) -> float:
    """Seconds since 1970, from a time as the API writes it."""
    return datetime.fromisoformat(text).timestamp()


def test_the_command_grid_is_in_the_image(cluster: Cluster) -> None:
    pod = cluster.trainer_pod([], command=["sh", "-c", "grid --version && grid --help"])
    cluster.apply(pod)
    name = pod["metadata"]["name"]
    assert cluster.ended(name)["exitCode"] == 0
    logs = cluster.kubectl("logs", name)
    assert f'version = "{logs.split()[1]}"' in (ROOT / "pyproject.toml").read_text()
    assert "Train a grid of image classifiers" in logs


def test_a_signal_reaches_the_trainer_itself_and_no_shell(image: dict[str, Any]) -> None:
    assert image["Config"]["Entrypoint"][-3:] == ["python", "-m", "trainer"]
    assert not {"sh", "bash", "/bin/sh", "-c"} & set(image["Config"]["Entrypoint"])
    assert image["Config"].get("StopSignal") in (None, "SIGTERM")


def test_nobody_in_the_image_is_root(image: dict[str, Any]) -> None:
    assert image["Config"]["User"] == "65532:65532"


def test_the_image_says_what_it_was_built_from(image: dict[str, Any]) -> None:
    labels = image["Config"]["Labels"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit.strip()
    assert f'version = "{labels["org.opencontainers.image.version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert labels["org.opencontainers.image.title"] == "experiment-grid"


@pytest.mark.long
def test_no_layer_keeps_the_companys_certificates(
    cluster: Cluster, image: dict[str, Any], made_here: dict[str, Any]
) -> None:
    secret = os.environ.get("CA_FILE") or os.environ.get("SSL_CERT_FILE") or ""
    public = docker(made_here, "run", "--rm", "--network=none", "--entrypoint=cat", image["Id"], PUBLIC_CERTIFICATES)
    lines = Path(secret).read_text().splitlines() if secret else []
    own = [line for line in lines if len(line) == 64 and line not in public]  # of a certificate, in base64
    if not own:
        pytest.skip("this machine has no certificate of its own that a build could have kept")
    theirs, ours = public.splitlines()[1].encode(), own[len(own) // 2].encode()
    assert found_in_layers([theirs, ours], cluster.image, made_here["registry"]) == [theirs]


def found_in_layers(needles: list[bytes], image: str, registry: str) -> list[bytes]:
    """Which of the byte strings are anywhere in the image's layers, searched as they stream from the registry."""
    name, digest = image.removeprefix(f"{registry}/").split("@")
    base = f"http://{registry}/v2/{name}"
    accepted = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/manifests/{digest}", headers=accepted)) as answer:
        layers = [layer["digest"] for layer in json.load(answer)["layers"]]
    assert len(layers) > 4
    found = set()
    for layer in layers:
        unpacked, end = zlib.decompressobj(zlib.MAX_WBITS | 16), b""
        with urllib.request.urlopen(f"{base}/blobs/{layer}") as blob:
            while piece := blob.read(1 << 22):
                end += unpacked.decompress(piece)
                found |= {needle for needle in needles if needle in end}
                end = end[-max(map(len, needles)) :]
        assert unpacked.eof
    return [needle for needle in needles if needle in found]
