"""Grids on the real cluster, watched by a real Prometheus with the committed scrape config, dashboards and rules.

Its discovery alone is ours (monitoring/prometheus.py), and the rules' durations are a twentieth, so that what takes a
quarter of an hour fires within a minute. GridGPUIdle, and all that DCGM's exporter shows, wants a GPU in the cluster.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from monitoring.prometheus import Prometheus, Sample, Unavailable, fetched, prometheus_of
from test_monitoring import OF_PROMETHEUS, TARGET_LABELS, Asked, asked, known

from cluster.grids import Bench, grid_text
from cluster.real import docker
from controller.telemetry import DESCRIPTIONS as OF_CONTROLLER
from controller.telemetry import ENDED_DESCRIPTIONS
from trainer.telemetry import DESCRIPTIONS as OF_TRAINER
from trainer.telemetry import Metric

FACTOR = 20
GRID = "watched"
STAGES = """\
stages:
  - name: lr
    on_failed: ignore
    points:
      - name: usual
        best.patience: 1
      - name: begins again until its learning rate is small enough
        optimizer.lr: 1.0e+15
        restart: {times: 100}
      - name: diverges
        optimizer.lr: 1.0e+30
  - name: smoothing
    vary: {label_smoothing: [0, 0.1]}
  - name: final
    test: {best: 1}
"""
NEEDS_GPU = "needs DCGM's exporter, or a GPU"
NEEDS_ERRORS = "the store answers; test_a_store_that_is_away_is_told asks it"
JOBS = ("experiment-grid-trainer", "experiment-grid-controller")


def why_empty(each: Asked) -> str | None:
    """Why a query finds nothing while all is well but for one row that diverges; none where it should."""
    if "dcgm" in each.expression.lower() or "grid_run_device_memory" in each.expression:
        return NEEDS_GPU
    if each.where.startswith("rule Grid"):
        return "an alert: it finds something when something is wrong"
    if "_errors_total" in each.expression and each.expression.endswith("> 0"):
        return NEEDS_ERRORS
    return None


@dataclass
class Watched:
    """A namespace with a controller, and the Prometheus that scrapes what is in it."""

    bench: Bench
    prometheus: Prometheus
    proxy: str
    seen: dict[str, set[str]] = field(default_factory=dict)

    def until(self, what: str, look: Callable[[], Any], *, seconds: float = 180) -> Any:
        """As the cluster's, with what Prometheus knows beside it."""
        try:
            return self.bench.cluster.until(what, look, seconds=seconds)
        except AssertionError as error:
            alerts = [(each["state"], each["labels"]) for each in self.prometheus.get("alerts")["alerts"]]
            targets = [
                (each["labels"], each["health"], each["lastError"])
                for each in self.prometheus.get("targets")["activeTargets"]
            ]
            raise AssertionError(f"{error}\nalerts: {alerts}\ntargets: {targets}") from None

    def until_firing(self, alert: str, *, seconds: float = 180) -> list[dict[str, str]]:
        """The labels of the alert's series, once it fires."""
        found: list[dict[str, str]] = self.until(
            f"{alert} fires", lambda: self.prometheus.firing().get(alert), seconds=seconds
        )
        return found

    def until_quiet(self, *alerts: str, seconds: float = 180) -> None:
        self.until(f"{alerts} end", lambda: not set(alerts) & set(self.prometheus.firing()) or None, seconds=seconds)

    def scraped(self) -> dict[str, int]:
        """How many bytes each target's answer has, by job and pod."""
        found = {}
        for each in self.prometheus.get("targets")["activeTargets"]:
            with suppress(OSError), urllib.request.urlopen(each["scrapeUrl"], timeout=10) as answer:
                found[f"{each['labels']['job']} {each['labels']['pod']}"] = len(answer.read())
        return found

    def pod_of(self, run: str) -> dict[str, Any]:
        return self.bench.pods(run)[-1]


@contextmanager
def kubectl_proxy(bench: Bench) -> Iterator[str]:
    """The address of a `kubectl proxy`."""
    line = [str(bench.cluster.kubectl_path), "proxy", "--port=0"]
    environment = {**os.environ, **bench.cluster.environment}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]  # Starting to serve on 127.0.0.1:38475
        finally:
            process.terminate()


@pytest.fixture
def watched(bench: Bench, controller: str) -> Iterator[Watched]:
    try:
        program = fetched("prometheus")
    except Unavailable as error:
        pytest.skip(str(error))
    with (
        kubectl_proxy(bench) as proxy,
        prometheus_of(
            proxy, bench.cluster.namespace, bench.folder / "prometheus", factor=FACTOR, prometheus=program
        ) as prometheus,
    ):
        found = Watched(bench, prometheus, proxy)
        found.until("the controller is scraped", lambda: prometheus.query("grid_controller_leading == 1"), seconds=60)
        yield found


def told_by(found: list[Sample]) -> list[Sample]:
    """The samples that are numbers: the time of requests of a kind that nobody sent is none."""
    return [each for each in found if not math.isnan(each.value)]


def values_for(watched: Watched, run: str) -> dict[str, str]:
    return {
        "$__rate_interval": "20s",
        "$__range": "1h",
        "$namespace": watched.bench.cluster.namespace,
        "$grid": GRID,
        "$stage": ".*",
        "$run": run,
    }


def test_every_query_finds_something_while_a_grid_runs_and_no_alert_fires(watched: Watched) -> None:
    bench, prometheus = watched.bench, watched.prometheus
    deadline = datetime.now(UTC) + timedelta(hours=3)
    text = grid_text(GRID, STAGES, seeds=2, epochs=20) + f"deadline: {deadline:%Y-%m-%dT%H:%M:%SZ}\n"
    said = bench.submit(text)
    runs = [each["run"] for each in said["runs"]]
    left = {each.where for each in asked()}
    answers: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    series: dict[str, float] = {}
    firing: set[str] = set()

    def ask() -> bool:
        firing.update(prometheus.firing())
        for run in runs if any(where.startswith(("run", "grid")) for where in left) else runs[:1]:
            for each in asked(values_for(watched, run)):
                if each.where in left and (found := told_by(prometheus.query(each.expression))):
                    left.discard(each.where)
                    answers[each.where] = [f"{one.labels} {one.value:g}" for one in found[:3]]
        for sample in prometheus.query("count by (job, pod) ({job!=''})"):
            name = f"{sample.labels['job']} {sample.labels['pod']}"
            series[name] = max(series.get(name, 0), sample.value)
        for name, size in watched.scraped().items():
            sizes[name] = max(sizes.get(name, 0), size)
        return bool(prometheus.query(f'grid_stage_progress_ratio{{grid="{GRID}",stage="final"}} == 1')) and bool(
            prometheus.query(f'sum (grid_runs{{grid="{GRID}",state!~"done|failed"}}) == 0')
        )

    watched.until("the grid's end", ask, seconds=600)
    told = {"answers": answers, "left": sorted(left), "series": series, "bytes": sizes}
    (bench.folder / "told.json").write_text(json.dumps(told, indent=1))  # for who wants to read what each panel had
    unexplained = {each.where for each in asked() if each.where in left and why_empty(each) is None}
    assert unexplained == set()
    assert firing == set()
    assert_series_are_documented(prometheus)


# --- alerts, each provoked


@pytest.mark.long
def test_a_run_that_hangs_is_told_as_stalled_and_as_giving_no_metrics(
    watched: Watched, made_here: dict[str, Any]
) -> None:
    (run,) = submitted(watched, grid_text("hangs", epochs=1000))
    watched.bench.until_trained_for(run, 2)
    signal_trainer(watched, made_here, run, "STOP")
    (stalled,) = watched.until_firing("GridRunStalled")
    assert stalled["run"] == run
    (missing,) = watched.until_firing("GridMetricsMissing")
    assert missing["pod"] == watched.pod_of(run)["metadata"]["name"]
    signal_trainer(watched, made_here, run, "CONT")
    watched.until_quiet("GridRunStalled", "GridMetricsMissing")
    assert watched.prometheus.fired() == {"GridRunStalled", "GridMetricsMissing"}


@pytest.mark.long
def test_a_store_that_is_away_is_told_and_its_return_too(watched: Watched, made_here: dict[str, Any]) -> None:
    (run,) = submitted(watched, grid_text("away", epochs=1000))
    watched.bench.until_trained_for(run, 2)
    panels = [each for each in asked(values_for(watched, run)) if why_empty(each) == NEEDS_ERRORS]
    assert panels
    s3 = ("deployment/s3", made_here["namespace"])
    with scaled_to_nothing(watched, *s3):
        jobs = {each["job"] for each in watched.until_firing("GridStoreUnreachable")}
        assert jobs <= set(JOBS)
        for each in panels:
            watched.until(each.where, partial(watched.prometheus.query, each.expression), seconds=60)
    watched.until_quiet("GridStoreUnreachable")
    assert watched.prometheus.fired() == {"GridStoreUnreachable"}


@pytest.mark.long
def test_a_run_that_is_killed_for_its_memory_again_and_again_is_told(watched: Watched) -> None:
    requests = {"cpu": "200m", "memory": "64Mi", "ephemeral_storage": "64Mi"}
    resources = {"requests": requests, "limits": {"memory": "64Mi"}}
    submitted(watched, grid_text("memory"), resources=resources, max_tries=4)
    (killed,) = watched.until_firing("GridRunOutOfMemory")
    assert killed["grid"] == "memory"
    (failing,) = watched.until_firing("GridRunFailingRepeatedly")
    assert (failing["grid"], failing["reason"]) == ("memory", "oom")
    watched.until_quiet("GridRunOutOfMemory", "GridRunFailingRepeatedly", seconds=400)
    assert watched.prometheus.fired() == {"GridRunOutOfMemory", "GridRunFailingRepeatedly"}


@pytest.mark.long
def test_a_run_close_to_its_memory_limit_is_told(watched: Watched) -> None:
    (run,) = submitted(watched, grid_text("roomy", epochs=1000))
    watched.bench.until_trained_for(run, 2)
    (held,) = watched.until(
        "its memory", lambda: watched.prometheus.query(f'grid_run_resident_memory_peak_bytes{{run="{run}"}}')
    )
    watched.bench.grid("cancel", "roomy")
    limit = f"{held.value / 0.98 / 2**20:.0f}Mi"
    requests = {"cpu": "200m", "memory": "512Mi", "ephemeral_storage": "64Mi"}
    (run,) = submitted(
        watched, grid_text("tight", epochs=1000, lr=0.04), resources={"requests": requests, "limits": {"memory": limit}}
    )
    (near,) = watched.until_firing("GridRunMemoryNearLimit")
    assert near["run"] == run
    assert watched.prometheus.fired() == {"GridRunMemoryNearLimit"}


@pytest.mark.long
def test_a_grid_that_will_miss_its_deadline_is_told(watched: Watched) -> None:
    deadline = datetime.now(UTC) + timedelta(minutes=3)
    submitted(watched, grid_text("late", epochs=10000) + f"deadline: {deadline:%Y-%m-%dT%H:%M:%SZ}\n")
    (late,) = watched.until_firing("GridWillMissDeadline")
    assert late["grid"] == "late"
    assert datetime.now(UTC) < deadline  # told before it is past
    assert watched.prometheus.fired() == {"GridWillMissDeadline"}


@pytest.mark.long
def test_a_controller_that_is_gone_is_told_and_its_return_too(watched: Watched) -> None:
    with scaled_to_nothing(watched, "deployment/controller", watched.bench.cluster.namespace):
        (down,) = watched.until_firing("GridControllerDown")
        assert down["namespace"] == watched.bench.cluster.namespace
        watched.until_firing("GridMetricsMissing")
    watched.until_quiet("GridControllerDown", "GridMetricsMissing")
    assert watched.prometheus.fired() == {"GridControllerDown", "GridMetricsMissing"}


def submitted(watched: Watched, text: str, **settings: Any) -> list[str]:
    """The runs of the grid, submitted."""
    return [str(each["run"]) for each in watched.bench.submit(text, **settings)["runs"]]


@contextmanager
def scaled_to_nothing(watched: Watched, deployment: str, namespace: str) -> Iterator[None]:
    cluster = watched.bench.cluster
    cluster.kubectl("scale", deployment, "--replicas=0", namespace=namespace)
    try:
        yield
    finally:
        cluster.kubectl("scale", deployment, "--replicas=1", namespace=namespace)
        cluster.kubectl("rollout", "status", deployment, "--timeout=180s", namespace=namespace)


def signal_trainer(watched: Watched, made: dict[str, Any], run: str, signal: str) -> None:
    """Send a signal to the run's process, from its node: nothing within the pod may stop what is its first process."""
    pod = watched.pod_of(run)
    uid = pod["metadata"]["uid"]
    script = f"""
    for each in $(grep -l -e {uid} -e {uid.replace("-", "_")} /proc/[0-9]*/cgroup); do
      process=$(dirname $each)
      if tr '\\0' ' ' < $process/cmdline | grep -q -e '-m trainer'; then
        kill -{signal} $(basename $process) && echo sent
      fi
    done
    """
    assert "sent" in docker(made, "exec", pod["spec"]["nodeName"], "sh", "-c", script)


def assert_series_are_documented(prometheus: Prometheus) -> None:
    """Every metric of the docs was there, with its labels and values of them, and no other."""
    documented = known()
    for job, described in zip(JOBS, ((*OF_TRAINER,), (*OF_CONTROLLER, *ENDED_DESCRIPTIONS)), strict=True):
        found = prometheus.series(f'{{job="{job}"}}')
        own = [each for each in found if each["__name__"] not in OF_PROMETHEUS]
        labels: dict[str, set[str]] = {}
        for each in own:
            labels.setdefault(each["__name__"], set()).update(each.keys() - TARGET_LABELS - {"__name__"})
        labels = {name: each for name, each in labels.items() if not name.startswith(("ALERTS", "scrape_"))}
        expected = {name for metric in described for name in names_of(metric)}
        assert labels.keys() - expected == set(), job
        absent = {name for name in expected - labels.keys() if "device_memory" not in name}
        assert absent == set(), job
        assert {name: each for name, each in labels.items() if each != documented[name]} == {}
        for metric in described:
            if metric.values:
                shown = {each[metric.labels[-1]] for each in own if each["__name__"] in names_of(metric)}
                assert shown <= set(metric.values), metric.name


def names_of(metric: Metric) -> set[str]:
    """What the metric's series are called."""
    if metric.type != "histogram":
        return {metric.name}
    return {f"{metric.name}_{end}" for end in ("bucket", "count", "sum")}
