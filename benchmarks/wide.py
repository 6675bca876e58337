"""A grid of 10,000 runs with their results on S3, and its Jobs on an API server, nearly all of them complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.bare import BareApi, Request
from benchmarks.grids import grid_text, result
from benchmarks.place import Place, write_photographs
from controller.acted import job_template
from controller.archive import gather_facts, write_settings
from controller.grid import Grid, parse_grid
from controller.jobs import CONTAINER
from controller.knowledge import runs_with_results
from controller.observe import take_up
from controller.search import Expansion, Facts, Run, expand, wanted
from controller.settings import Settings, parse_settings
from controller.standing import Choice, Work
from tests.cluster.apiserver import ApiServer, programs
from tests.cluster.minio import minio_server
from trainer.dataset import load_index
from trainer.failure import DataError
from trainer.identity import write_spec
from trainer.importing import import_dataset
from trainer.store import S3Store, Store

NAMED_STORE = "GRID_BENCH_STORE"
NAMESPACE = "wide"
STAGE = "wide"
SETTINGS = """\
image: none:1
namespace: wide
parallelism: 64
store: {endpoint: "http://s3:9000", secret: s3-credentials}
progress: {annotations: false}
"""


def lacking_store() -> str:
    """Why there is no S3 server here; empty where there is one."""
    if os.environ.get(NAMED_STORE) or "minio" in programs():
        return ""
    return f"no minio: `make kind-up` builds it; or {NAMED_STORE} names a store on S3, s3://bucket/prefix"


@contextmanager
def s3_store(place: Place) -> Iterator[S3Store]:
    """A store on an S3 server that runs on loopback, or the one that is named; the environment leads to it meanwhile.

    What is in it is still there the next time.
    """
    named = os.environ.get(NAMED_STORE)
    if named:
        yield S3Store(named)
        return
    with minio_server(place.folder / "minio") as minio:
        before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        for name in before:
            del os.environ[name]
        os.environ.update(minio.environment)
        try:
            yield S3Store(f"s3://{minio.bucket}/bench")
        finally:
            for name in minio.environment:
                del os.environ[name]
            os.environ.update(before)


@dataclass(frozen=True)
class Wide:
    """The grid, in a store that has its data set and is to have its results."""

    store: Store
    grid: Grid
    facts: Facts
    expansion: Expansion
    runs: Sequence[Run]

    def bodies(self, settings: Settings) -> list[dict[str, Any]]:
        """The Jobs of all runs, as they are created."""
        template = job_template(self.grid, self.expansion, self.facts, self.store, settings)
        return [
            template.job(Work(run.id, False), run.seed, write_spec(run.spec), {self.grid.name: STAGE})
            for run in self.runs
        ]

    def put_results(self, numbers: Sequence[int]) -> None:
        """Let the store have the results of the runs of these numbers, and no others of the grid."""
        there = set(runs_with_results(self.store))
        meant = {self.runs[number].id: number for number in numbers}
        with ThreadPoolExecutor(16) as pool:
            for run, number in meant.items():
                if run not in there:
                    pool.submit(self.put_result, number)
            for each in self.runs:
                if each.id in there and each.id not in meant:
                    pool.submit(self.store.delete, f"results/{each.id}.json")
        assert len(set(runs_with_results(self.store)) & {run.id for run in self.runs}) == len(meant)

    def put_result(self, number: int) -> None:
        """Let the store have that run's result."""
        run = self.runs[number]
        self.store.put(f"results/{run.id}.json", result(run, number).model_dump_json(indent=2).encode())


def wide_grid(place: Place, store: Store, side: int) -> Wide:
    """The grid of side x side runs, taken up and with its settings in the store."""
    pictures = place.folder / "grid-pictures"
    if not pictures.exists():
        write_photographs(pictures)
    try:
        load_index(store, "pictures")
    except DataError:
        import_dataset(pictures, "pictures", store, split="every-third")
    grid = parse_grid(grid_text(side, f"wide-{side}"), "wide")
    take_up(grid, store, Choice(), update=True)
    write_settings(store, grid.name, parse_settings(SETTINGS, "settings"))
    facts = gather_facts(store, wanted(grid))
    expansion = expand(grid, {}, facts)
    return Wide(store, grid, facts, expansion, list(expansion.runs().values()))


class Jobs:
    """The grid's Jobs on a server: the first has a pod that runs, `num_open` have none yet, the others are complete."""

    def __init__(self, server: ApiServer, wide: Wide, num_open: int) -> None:
        self.api = BareApi(server)
        self.path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
        self.grid = wide.grid.name
        self._open = list(range(1, num_open + 1))
        self._wide = wide
        self._num_changes = 0
        self._make()

    def _make(self) -> None:
        wide = self._wide
        self.api.send("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        bodies = wide.bodies(parse_settings(SETTINGS, "settings"))
        self._send_all([("POST", self.path, json.dumps(body).encode()) for body in bodies])
        self._send_all([self._status(number, _complete) for number in range(1 + len(self._open), len(wide.runs))])
        uid = self.api.send("GET", f"{self.path}/{self.name(0)}")["metadata"]["uid"]
        self._run(bodies[0]["spec"]["template"], uid)

    def _run(self, template: dict[str, Any], uid: str) -> None:
        """Give the first Job its pod, which runs."""
        name = f"{self.name(0)}-abcde"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self.name(0), "uid": uid, "controller": True}
        metadata = {**template["metadata"], "name": name, "ownerReferences": [owner]}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        self.api.send("POST", path, {"metadata": metadata, "spec": template["spec"]})
        container = {"name": CONTAINER, "image": "none:1", "imageID": "", "ready": True, "restartCount": 0}
        state = {"running": {"startedAt": _ago(60)}}
        status = {"phase": "Running", "containerStatuses": [{**container, "state": state}]}
        self.api.send("PATCH", f"{path}/{name}/status", {"status": status})
        self.api.send("PATCH", f"{self.path}/{self.name(0)}/status", {"status": {"active": 1, "startTime": _ago(60)}})

    def name(self, number: int) -> str:
        """The name of the run's Job."""
        return self._wide.runs[number].id

    def end_one(self) -> None:
        """One of the open runs has its result, and its Job is complete."""
        number = self._open.pop()
        self._wide.put_result(number)
        self._send_all([self._status(number, _complete)])

    def change_one(self) -> None:
        """The Job that runs has another status."""
        self._num_changes += 1
        self._send_all([self._status(0, lambda: {"ready": self._num_changes % 2})])

    def read(self) -> None:
        """Read and parse every page of them."""
        assert self.api.read_pages(self.path) == len(self._wide.runs)

    def _status(self, number: int, status: Callable[[], dict[str, Any]]) -> Request:
        body = json.dumps({"status": status()}).encode()
        return "PATCH", f"{self.path}/{self.name(number)}/status", body

    def _send_all(self, requests: Sequence[Request]) -> None:
        _, statuses = self.api.send_all(requests)
        assert all(status < 300 for status in statuses), sorted(set(statuses))


def _complete() -> dict[str, Any]:
    since = {"lastTransitionTime": _ago(1), "lastProbeTime": _ago(1), "status": "True", "message": "", "reason": ""}
    return {
        "active": 0,
        "succeeded": 1,
        "startTime": _ago(60),
        "completionTime": _ago(1),
        "conditions": [{"type": name, **since} for name in ("SuccessCriteriaMet", "Complete")],
    }


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
