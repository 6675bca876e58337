"""`grid submit` of one run to its first training step on a real cluster, against a bare pod that does the same.

It needs the cluster of `make kind-up`, whose nodes have this machine's clock: a step is timed by the stamp that the
kubelet gives to a line of the trainer's log.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.figures import Row, Target, divided, in_turn
from benchmarks.place import ROOT, Place, write_photographs
from controller.cluster import PODS, open_cluster
from controller.jobs import RUN_LABEL
from tests.cluster.real import S3, SECRET, Cluster
from trainer.importing import import_dataset
from trainer.store import S3Store

WHAT = "`grid submit` of one run to its first training step, image present"
BARE = "a bare pod of the same template, from its creation to the same line of its trainer"
MARK = " training and "  # in the line with which the trainer says what it computes with: the first step comes next
SETTINGS = ("service_account=default", "grace_period=1")


def submit_to_step(place: Place) -> list[Row]:
    """One row; every round has a run and a pod that never were."""
    row = Row("submit-to-step", WHAT, BARE, target=Target(1.3, 1.1, more_is_better=False))
    made, reason = _kind()
    if made is None:
        return [Row(row.name, row.what, row.against, skipped=reason)]
    with tempfile.TemporaryDirectory(dir=place.folder) as folder, _namespace(made) as cluster:
        starts = Starts(place, cluster, Path(folder))
        sides = {"ours": starts.submitted, "bare": starts.bare}
        seconds = in_turn(sides, place.rounds, lambda text: place.say(f"submit: {text}"))
    return [
        Row(
            row.name,
            row.what,
            row.against,
            divided(seconds["ours"], seconds["bare"]),
            f"{median(seconds['ours']):.2f} s",
            f"{median(seconds['bare']):.2f} s",
            row.target,
            "on the cluster of `make kind-up`, from the start of the command's process; ResNet18 on 72 small pictures",
        )
    ]


def _kind() -> tuple[dict[str, Any] | None, str]:
    """What `make kind-up` made; or why there is nothing."""
    ended = subprocess.run(
        [sys.executable, "-m", "k8s.kind", "status"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        return None, "no cluster of `make kind-up` is here"
    return json.loads(ended.stdout), ""


@contextmanager
def _namespace(made: dict[str, Any]) -> Iterator[Cluster]:
    """The cluster, with a namespace of this benchmark's own and the S3 server's keys in it."""
    name = f"grid-bench-{secrets.token_hex(4)}"
    cluster = Cluster(Path(made["kubeconfig"]), Path(made["kubectl"]), made["image"], name, S3(**made["s3"]), made=made)
    namespace = yaml.safe_load((ROOT / "k8s" / "base" / "namespace.yaml").read_text())
    namespace["metadata"]["name"] = name
    cluster.kubectl("create", "-f", "-", given=json.dumps(namespace))
    try:
        cluster.until("the namespace's service account", lambda: cluster.get("serviceaccount")["items"])
        keys = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}
        cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys})
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


class Starts:
    """Starts of runs that differ in their learning rate alone."""

    def __init__(self, place: Place, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._number = 0
        self._environment = {**place.environment(), **cluster.environment, **cluster.s3.environment}
        self._environment["GRID_STORE"] = f"s3://{cluster.s3.bucket}/{cluster.namespace}"
        write_photographs(folder / "pictures")
        before = dict(os.environ)
        os.environ.update(cluster.s3.environment)
        try:
            store = S3Store(self._environment["GRID_STORE"])
            import_dataset(folder / "pictures", "pictures", store, split="every-third")
        finally:
            os.environ.clear()
            os.environ.update(before)

    def submitted(self) -> float:
        """Seconds from the start of `grid submit` to the first step."""
        grid = self._next_grid()
        begun = time.time()
        (run,) = json.loads(self._grid("submit", grid, "--json"))["runs"]
        name = self._cluster.until("the run's pod", lambda: self._pod_of(run["run"]))
        seconds = self._first_step(name) - begun
        self._grid("cancel", grid.stem)
        self._cluster.until("the end of the pod", lambda: not self._pod_of(run["run"]))
        return seconds

    def bare(self) -> float:
        """Seconds from the creation of a pod to the first step."""
        job = yaml.safe_load(self._grid("render", self._next_grid()))
        template, name = job["spec"]["template"], f"bare-{self._number}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": template["metadata"]["annotations"]},
            "spec": template["spec"],
        }
        with open_cluster(self._cluster.namespace, kubeconfig=str(self._cluster.kubeconfig)) as there:
            begun = time.time()
            there.create(PODS, pod)
        seconds = self._first_step(name) - begun
        self._cluster.kubectl("delete", "pod", name, "--wait=true")
        return seconds

    def _next_grid(self) -> Path:
        """The file of a grid with one run."""
        self._number += 1
        path = self._folder / f"start-{self._number}.yaml"
        path.write_text(
            f"grid: {path.stem}\n"
            "base:\n"
            "  data: {name: pictures, resize: 36, crop: 32}\n"
            "  model: {architecture: resnet18}\n"
            "  batch_size: 8\n"
            "stages:\n"
            f"  - {{name: only, vary: {{optimizer.lr: [{0.001 * self._number:.3f}]}}}}\n"
        )
        return path

    def _grid(self, command: str, *words: str | Path) -> str:
        """What the command printed."""
        settings = ["--settings", "kind"] if command != "cancel" else []
        for each in (f"image={self._cluster.image}", f"namespace={self._cluster.namespace}", *SETTINGS):
            settings += ["--setting", each] if command != "cancel" else []
        line = [sys.executable, "-m", "controller.cli", command, *map(str, words), *settings]
        return subprocess.run(line, env=self._environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def _pod_of(self, run: str) -> str | None:
        found = self._cluster.get("pods", "-l", f"{RUN_LABEL}={run}")["items"]
        return str(found[0]["metadata"]["name"]) if found else None

    def _first_step(self, pod: str) -> float:
        """When the first step was about to begin, in seconds of the epoch."""

        def look() -> str | None:
            lines = self._cluster.attempt("logs", pod, "--timestamps").stdout.splitlines()
            return next((line.split()[0] for line in lines if MARK in line), None)

        stamp = str(self._cluster.until(f"the first step of {pod}", look, seconds=300))
        return datetime.fromisoformat(stamp).timestamp()
