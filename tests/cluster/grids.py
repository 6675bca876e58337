"""Whole grids on a real cluster by the command line, as tests need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pictures import import_pictures

from cluster.real import Cluster
from controller.knowledge import read_results
from trainer.failure import ExitCode
from trainer.result import PASSING
from trainer.store import FileStore, S3Store, Store

STAGES = """\
stages:
  - name: lr
    vary: {optimizer.lr: [0.05, 0.005]}
  - name: smoothing
    vary: {label_smoothing: [0, 0.1]}
  - name: final
    test: {best: 1}
"""
ONE_STAGE = """\
stages:
  - name: lr
    vary: {optimizer.lr: [0.05]}
"""


def grid_text(name: str, stages: str = ONE_STAGE, *, seeds: int = 1, epochs: int = 1, lr: float = 0.05) -> str:
    """A grid of a small network on a handful of pictures."""
    return f"""\
grid: {name}
base:
  data: {{name: pictures, resize: 18, crop: 16}}
  model: {{architecture: resnet18}}
  batch_size: 8
  epochs: {epochs}
  optimizer: {{lr: {lr}}}
  checkpoint: {{every: 1}}
seeds: {seeds}
{stages}"""


LONG = grid_text("long", epochs=25)
"""One run that takes long enough to be interrupted."""


@dataclass
class Bench:
    """A cluster, an empty store with pictures, and the command line that leads to both."""

    cluster: Cluster
    store: S3Store
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        s3 = self.cluster.s3.environment
        return {**os.environ, **self.cluster.environment, **s3, "GRID_STORE": self.store.uri, "COLUMNS": "200"}

    def write(self, text: str) -> Path:
        """The grid as a file."""
        path = self.folder / f"{yaml.safe_load(text)['grid']}.yaml"
        path.write_text(text)
        return path

    def line(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "controller.cli", *map(str, words)]

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """`grid` as a process that goes on beside the test, and writes to the file `output`."""
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(self.line(*words), env=self.environment, stdout=output, stderr=output)
        self.started.append(process)
        return process

    def attempt(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """How `grid` ended."""
        return subprocess.run(
            self.line(*words), env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def grid(self, *words: str | Path) -> str:
        """What `grid` printed; fails the test where it does not succeed."""
        ended = self.attempt(*words)
        assert ended.returncode == ExitCode.OK, f"grid {words}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def settings_file(self, **settings: Any) -> Path:
        """The tests' settings as a file; `settings` change them."""
        path = self.folder / "settings.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **settings}))
        return path

    def submit(self, text: str, *words: str, **settings: Any) -> dict[str, Any]:
        """What `grid submit` says of the grid; `settings` change those of the tests."""
        path = self.settings_file(**settings)
        found: dict[str, Any] = json.loads(self.grid("submit", self.write(text), "--settings", path, "--json", *words))
        return found

    def output(self) -> str:
        """What the last process of `start` has printed so far."""
        return (self.folder / "output").read_text()

    def states(self, grid: str) -> dict[str, tuple[str, str | None]]:
        """How each run stands by `grid status`, and why."""
        told = json.loads(self.grid("status", grid, "--json"))
        return {
            run["run"]: (run["state"], run["reason"])
            for stage in told["stages"]
            for row in stage["experiments"]
            for run in row["runs"]
        }

    def until_told(self, grid: str, run: str, word: str, *, seconds: float = 60) -> str:
        """What `grid status` says of the run once `word` is in it."""

        def look() -> str | None:
            state, reason = self.states(grid)[run]
            return reason if reason is not None and word in f"{state} {reason}" else None

        found: str = self.cluster.until(f"{word!r} of {run}", look, seconds=seconds)
        return found

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The Jobs of the tests' namespace, by name."""
        return {job["metadata"]["name"]: job for job in self.cluster.get("jobs")["items"]}

    def pods(self, run: str | None = None) -> list[dict[str, Any]]:
        """The pods of the run, or of all as one moment has them, the oldest first."""
        selector = "experiment-grid.dev/run" + (f"={run}" if run is not None else "")
        found: list[dict[str, Any]] = self.cluster.get("pods", "-l", selector)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def epochs(self, run: str) -> int:
        """Epochs of the run that a checkpoint holds."""
        keys = [entry.key for entry in self.store.list(f"runs/{run}/") if entry.key.endswith("/checkpoint.json")]
        return int(json.loads(self.store.get(keys[0]))["progress"]["epoch"]) if keys else 0

    def until_trained_for(self, run: str, epochs: int) -> None:
        self.cluster.until(f"epoch {epochs} of {run}", lambda: self.epochs(run) >= epochs, seconds=240)

    def locally(self, text: str, **environment: str) -> FileStore:
        """The store in which the same grid was trained on this machine."""
        folder = self.folder / "local"
        store = FileStore(folder)
        import_pictures(store, self.folder / "local-pictures", per_class=12)
        ended = subprocess.run(
            self.line("--store", store.uri, "run", self.write(text)),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert ended.returncode == ExitCode.OK, ended.stderr
        return store


def numbers(store: Store) -> dict[str, dict[str, Any]]:
    """All results of the store, but for what passes with the attempt and the code that computed it.

    The key of the best weights, which are the same to the last bit, has their hash.
    """
    passing = {*PASSING, "commit", "versions"}  # the image has a Python of its own
    return {run: result.model_dump(exclude=passing) for run, result in read_results(store).items()}


def attempts(store: Store, run: str) -> set[str]:
    return {entry.key.split("/")[3] for entry in store.list(f"runs/{run}/attempts/")}


def is_ended(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def runs_of_pods(bench: Bench) -> set[str]:
    """The runs that have a pod."""
    label = "experiment-grid.dev/run"
    return {pod["metadata"]["labels"][label] for pod in bench.cluster.get("pods", "-l", label)["items"]}
