"""What an attempt tells Prometheus of itself while it trains, and the one list of what each number is.

Off unless GRID_TELEMETRY_PORT names a port. The training loop tells a `Telemetry` either way: `SILENT` passes all of it
over, `Instruments` notes each number where it can be read at any moment. Whoever scrapes adds up in a thread of his
own, so nothing is formatted, sent or waited for between two steps. prometheus_client is loaded with the first scrape.

Epochs, losses and accuracies go on where the attempt before ended; what counts (`counter`, `histogram`) counts what
this attempt does, from nothing.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from trainer.machine import memory_limit, peak_memory, resident_memory

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

    from trainer.checkpoint import Progress
    from trainer.result import EpochMetrics
    from trainer.serving import Answer, PathServer
    from trainer.store import Request, Retry

PORT_VARIABLE = "GRID_TELEMETRY_PORT"
PATH = "/metrics"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/"""

Phase = Literal["data", "forward", "backward", "optimizer", "device", "validation", "checkpoint", "store", "other"]
PartSeen = Literal["train", "validation"]
Type = Literal["gauge", "counter", "histogram"]

PHASES: tuple[Phase, ...] = (
    "data", "forward", "backward", "optimizer", "device", "validation", "checkpoint", "store", "other",
)  # fmt: skip
STEP_PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "device")
PARTS: tuple[PartSeen, ...] = ("train", "validation")
STORE_OPERATIONS = ("reading", "writing", "replacing", "listing", "deleting")
RETRY_KINDS = ("throttled", "server-error", "connection", "timeout", "conflict")
ERROR_KINDS = (*RETRY_KINDS, "refused")
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORE_BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One metric as it is documented: what a scrape shows is this and no more."""

    name: str  # as queries have it: a counter's ends with _total
    type: Type
    unit: str  # seconds, bytes, nats, ratio (0..1); empty: a number of what the name says
    labels: tuple[str, ...]
    help: str
    values: tuple[str, ...] = ()  # all that the last label may have, where they are few; empty: they are names or ids
    buckets: tuple[float, ...] = ()  # upper bounds of a histogram's, the last of all (+Inf) left out


def _metric(
    name: str,
    kind: Type,
    unit: str,
    meaning: str,
    label: str | None = None,
    values: Sequence[str] = (),
    buckets: tuple[float, ...] = (),
) -> Metric:
    labels = ("run", label) if label else ("run",)
    return Metric(f"grid_run_{name}", kind, unit, labels, meaning, tuple(values), buckets)


DESCRIPTIONS: tuple[Metric, ...] = (
    _metric("epoch", "gauge", "", "Epochs done."),
    _metric("epochs", "gauge", "", "Epochs that the run is to have."),
    _metric("steps_total", "counter", "", "Optimiser steps that this attempt did."),
    _metric("images_total", "counter", "", "Images that this attempt looked at, by part of the data.", "part", PARTS),
    _metric("loss_nats", "gauge", "nats", "Mean loss per image of the last whole epoch, by part.", "part", PARTS),
    _metric("accuracy_ratio", "gauge", "ratio", "Share of right answers in the last whole epoch.", "part", PARTS),
    _metric("learning_rate", "gauge", "", "Learning rate of the last optimiser step."),
    _metric("best_epoch", "gauge", "", "Best epoch so far, counted from 1; absent before the first has ended."),
    _metric("best_validation_loss_nats", "gauge", "nats", "Validation loss of the best epoch so far."),
    _metric("best_validation_accuracy_ratio", "gauge", "ratio", "Validation accuracy of the best epoch so far."),
    _metric(
        "step_seconds",
        "histogram",
        "seconds",
        "Time of an optimiser step, waiting for its images included: of the up to 16 steps between two looks at the "
        "loss each counts with their mean, since only a look waits for a GPU.",
        buckets=STEP_BUCKETS,
    ),
    _metric(
        "phase_seconds_total",
        "counter",
        "seconds",
        "The training thread's time, all of it: waiting for images; forward, backward and optimizer, which on a GPU is "
        "the host's time to ask for them; device, waiting until a GPU has done it; validation; checkpoint, copying the "
        "state (its writing goes on beside); store, waiting for it; other, mostly start-up.",
        "phase",
        PHASES,
    ),
    _metric("checkpoint_bytes", "gauge", "bytes", "Size of the newest checkpoint; absent before the first."),
    _metric("checkpoint_seconds", "gauge", "seconds", "Time to write the newest checkpoint, beside the training."),
    _metric(
        "checkpoint_timestamp_seconds",
        "gauge",
        "seconds",
        "When this attempt's newest checkpoint was whole in the store, seconds since 1970; absent before.",
    ),
    _metric("checkpoints_total", "counter", "", "Checkpoints that this attempt wrote."),
    _metric(
        "store_requests_total",
        "counter",
        "",
        "Requests to the store, repeated ones each; an object read as a stream counts once for each piece.",
        "operation",
        STORE_OPERATIONS,
    ),
    _metric(
        "store_retries_total", "counter", "", "Requests that were sent again, by what was wrong.", "kind", RETRY_KINDS
    ),
    _metric(
        "store_errors_total",
        "counter",
        "",
        "Requests that came to nothing, by what was wrong: those that were sent again, those given up, and those that "
        "cannot pass (refused: no bucket, no right, disk full). What is not there, or has changed, is an answer.",
        "kind",
        ERROR_KINDS,
    ),
    _metric(
        "store_request_seconds",
        "histogram",
        "seconds",
        "Time of one request to the store, whatever came of it.",
        "operation",
        STORE_OPERATIONS,
        STORE_BUCKETS,
    ),
    _metric("device_memory_bytes", "gauge", "bytes", "GPU memory in use by tensors; absent on a CPU."),
    _metric("device_memory_peak_bytes", "gauge", "bytes", "Most of it that this attempt has used; absent on a CPU."),
    _metric("device_memory_limit_bytes", "gauge", "bytes", "Memory that the GPU has; absent on a CPU."),
    _metric("resident_memory_bytes", "gauge", "bytes", "Memory of the host that the process holds."),
    _metric("resident_memory_peak_bytes", "gauge", "bytes", "Most of it that the process has held."),
    _metric(
        "memory_limit_bytes",
        "gauge",
        "bytes",
        "Memory of the host at which the process is killed: its control group's limit; absent where it has none.",
    ),
    _metric("returns_to_best_total", "counter", "", "Returns to the best epoch in this attempt."),
    _metric("restarts_total", "counter", "", "Epochs begun again in this attempt because the loss was not finite."),
    _metric("attempt", "gauge", "", "Number of this attempt, from 1."),
    _metric("started_timestamp_seconds", "gauge", "seconds", "When this attempt began, seconds since 1970."),
    _metric(
        "last_step_timestamp_seconds",
        "gauge",
        "seconds",
        "When the last optimiser step was done or the last batch validated, seconds since 1970; absent before.",
    ),
)
"""Every metric of a trainer. Each series carries `run`; what a label may be besides is in `values`."""


class DeviceMemory(NamedTuple):
    """Memory of a GPU, bytes."""

    used: int
    peak: int
    limit: int


class Telemetry:
    """What an attempt tells of itself. This one passes all of it over: what trains never asks whether anyone listens.

    The training thread alone calls these, but for `checkpointed` and what the store calls.
    """

    @property
    def on_request(self) -> Callable[[Request], None] | None:
        """What a store is to call after each request; none where nobody wants to know."""
        return None

    def retried(self, retry: Retry) -> None:
        """A request to the store will be sent again."""

    def begin(self, run: str, epochs: int) -> None:
        """It is this run, which is to have so many epochs."""

    def begin_attempt(self, number: int) -> None:
        """It is the run's attempt of that number, from 1."""

    def watch_device(self, memory: Callable[[], DeviceMemory]) -> None:
        """It trains on a GPU whose memory `memory` reads, in any thread and without waiting for it."""

    def go_on(self, progress: Progress, best: EpochMetrics | None, last: Callable[[], EpochMetrics | None]) -> None:
        """It goes on from there; `last` reads the last whole epoch's numbers, if they can be found."""

    def lap(self, phase: Phase) -> None:
        """The time since the last lap went there."""

    def begin_steps(self) -> None:
        """Steps follow: what was before is no part of their time."""

    def stepped(self, num_images: int, learning_rate: float) -> None:
        """An optimiser step over so many images was done, or asked of a GPU."""

    def caught_up(self) -> None:
        """The device has done all steps so far."""

    def validated(self, num_images: int) -> None:
        """So many validation images were looked at."""

    def restarted(self) -> None:
        """An epoch begins again, since its loss was not finite."""

    def ended(self, epoch: EpochMetrics) -> None:
        """An epoch has ended."""

    def checkpointed(self, num_bytes: int, seconds: float) -> None:
        """A checkpoint is whole in the store; writing it took so long."""

    def serve(self) -> None:
        """Let the numbers be scraped from now on."""

    def close(self) -> None:
        """End that."""


SILENT = Telemetry()
"""Tells nobody."""


class Distribution:
    """A histogram's counts: how many values were at most each bound, and their sum. For any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or as many equal ones."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += times
            self._sum += value * times

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Each bound as its label is written, with how many values were at most that; and the sum of all."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        return [(bound, sum(counts[: index + 1])) for index, bound in enumerate(bounds)], total


Key = tuple[str, ...]  # a metric's name, and the values of its labels; a trainer's without that of run


def series_keys(metric: Metric, *labels: str) -> list[Key]:
    """The metric's series with these labels: one for each value that its last label may have, where those are few."""
    return [(metric.name, *labels, value) for value in metric.values] or [(metric.name, *labels)]


def epoch_values(epoch: EpochMetrics) -> dict[Key, float]:
    """What is shown of a run's last whole epoch."""
    return {
        ("grid_run_epoch",): epoch.epoch,
        ("grid_run_loss_nats", "train"): epoch.train_loss,
        ("grid_run_loss_nats", "validation"): epoch.validation_loss,
        ("grid_run_accuracy_ratio", "train"): epoch.train_accuracy,
        ("grid_run_accuracy_ratio", "validation"): epoch.validation_accuracy,
    }


def best_values(epoch: int, validation_loss: float, validation_accuracy: float) -> dict[Key, float]:
    """What is shown of a run's best epoch, by its number and its numbers."""
    return {
        ("grid_run_best_epoch",): epoch,
        ("grid_run_best_validation_loss_nats",): validation_loss,
        ("grid_run_best_validation_accuracy_ratio",): validation_accuracy,
    }


def _labels(run: str, key: Key) -> tuple[str, ...]:
    return run, *key[1:]


class Instruments(Telemetry):
    """Notes what an attempt tells, and serves it to Prometheus from `port`, 0 for any free one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._run: str | None = None
        self._server: PathServer | None = None
        self._device: Callable[[], DeviceMemory] | None = None
        self._lock = threading.Lock()  # for what several threads count
        self._values: dict[Key, float] = {}  # a counter begins at 0, so that its first increase is one
        self._distributions: dict[Key, Distribution] = {}
        for metric in DESCRIPTIONS:
            for key in series_keys(metric):
                if metric.type == "counter":
                    self._values[key] = 0.0
                elif metric.type == "histogram":
                    self._distributions[key] = Distribution(metric.buckets)
        self._set("grid_run_started_timestamp_seconds", value=time.time())
        self._phases: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._lapped = time.perf_counter()
        self._steps_since_look = 0
        self._stepping_at_look = 0.0

    # What is told

    def _set(self, *key: str, value: float) -> None:
        self._values[key] = value

    def _add(self, *key: str, value: float = 1) -> None:
        with self._lock:
            self._values[key] += value

    @property
    def on_request(self) -> Callable[[Request], None]:
        """What a store is to call after each request, in any thread."""
        return self._asked

    def _asked(self, request: Request) -> None:
        self._add("grid_run_store_requests_total", request.operation)
        self._distributions["grid_run_store_request_seconds", request.operation].observe(request.seconds)
        if request.fault is not None:
            self._add("grid_run_store_errors_total", request.fault)

    def retried(self, retry: Retry) -> None:
        """A request to the store will be sent again."""
        self._add("grid_run_store_retries_total", retry.kind)

    def begin(self, run: str, epochs: int) -> None:
        """It is this run: only from now on is there anything to scrape, for a series carries its run."""
        self._set("grid_run_epoch", value=0)
        self._set("grid_run_epochs", value=epochs)
        self._run = run

    def begin_attempt(self, number: int) -> None:
        """It is the run's attempt of that number, from 1."""
        self._set("grid_run_attempt", value=number)

    def watch_device(self, memory: Callable[[], DeviceMemory]) -> None:
        """It trains on a GPU whose memory `memory` reads."""
        self._device = memory

    def go_on(self, progress: Progress, best: EpochMetrics | None, last: Callable[[], EpochMetrics | None]) -> None:
        """It goes on from there: what its epochs came to is shown as it was, though this attempt did not see it."""
        self._set("grid_run_epoch", value=progress.epoch)
        self._set_best(best)
        self._set_epoch(best if best is not None and best.epoch == progress.epoch else last())

    def lap(self, phase: Phase) -> None:
        """The time since the last lap went there."""
        now = time.perf_counter()
        self._phases[phase] += now - self._lapped
        self._lapped = now

    def _stepping(self) -> float:
        return math.fsum(self._phases[phase] for phase in STEP_PHASES)

    def begin_steps(self) -> None:
        """Steps follow: what was before is no part of their time."""
        self._steps_since_look, self._stepping_at_look = 0, self._stepping()

    def stepped(self, num_images: int, learning_rate: float) -> None:
        """An optimiser step over so many images was done, or asked of a GPU."""
        self._steps_since_look += 1
        values = self._values  # without the lock: no other thread changes these
        values["grid_run_steps_total",] += 1
        values["grid_run_images_total", "train"] += num_images
        values["grid_run_learning_rate",] = learning_rate
        values["grid_run_last_step_timestamp_seconds",] = time.time()

    def caught_up(self) -> None:
        """The device has done all steps so far: how long they took is known now."""
        self.lap("device")
        if self._steps_since_look:
            seconds = (self._stepping() - self._stepping_at_look) / self._steps_since_look
            self._distributions["grid_run_step_seconds",].observe(seconds, self._steps_since_look)
        self.begin_steps()

    def validated(self, num_images: int) -> None:
        """So many validation images were looked at."""
        self._add("grid_run_images_total", "validation", value=num_images)
        self._set("grid_run_last_step_timestamp_seconds", value=time.time())

    def restarted(self) -> None:
        """An epoch begins again, since its loss was not finite."""
        self._add("grid_run_restarts_total")

    def ended(self, epoch: EpochMetrics) -> None:
        """An epoch has ended."""
        self._set_epoch(epoch)
        if epoch.best:
            self._set_best(epoch)
        self._add("grid_run_returns_to_best_total", value=epoch.returned_to_best)

    def _set_epoch(self, epoch: EpochMetrics | None) -> None:
        if epoch is not None:
            self._values.update(epoch_values(epoch))
            self._set("grid_run_learning_rate", value=epoch.lr)

    def _set_best(self, best: EpochMetrics | None) -> None:
        if best is not None:
            self._values.update(best_values(best.epoch, best.validation_loss, best.validation_accuracy))

    def checkpointed(self, num_bytes: int, seconds: float) -> None:
        """A checkpoint is whole in the store; writing it took so long."""
        self._add("grid_run_checkpoints_total")
        self._set("grid_run_checkpoint_bytes", value=num_bytes)
        self._set("grid_run_checkpoint_seconds", value=seconds)
        self._set("grid_run_checkpoint_timestamp_seconds", value=time.time())

    # What is scraped

    def collect(self) -> Iterator[Family]:
        """Every metric that has a value by now, for prometheus_client. In any thread."""
        if (run := self._run) is None:
            return
        values = dict(self._values)  # in one go: the interpreter lets no other thread in between
        values |= {("grid_run_phase_seconds_total", phase): seconds for phase, seconds in self._phases.items()}
        values |= {(f"grid_run_{name}",): value for name, value in self._memory().items()}
        for metric in DESCRIPTIONS:
            keys = series_keys(metric)
            found = {_labels(run, key): values[key] for key in keys if key in values}
            spread = {_labels(run, key): self._distributions[key] for key in keys if key in self._distributions}
            if found or spread:
                yield family(metric, found, spread)

    def _memory(self) -> dict[str, float]:
        found: dict[str, float] = {
            "resident_memory_bytes": resident_memory(),
            "resident_memory_peak_bytes": peak_memory(),
        }
        if (limit := memory_limit()) is not None:
            found["memory_limit_bytes"] = limit
        if self._device is not None:
            used, peak, limit = self._device()
            found |= {
                "device_memory_bytes": used,
                "device_memory_peak_bytes": peak,
                "device_memory_limit_bytes": limit,
            }
        return found

    def _answer(self) -> Answer:
        from prometheus_client import generate_latest

        from trainer.serving import Answer

        return Answer(200, generate_latest(self).decode(), MEDIA_TYPE)

    def serve(self) -> None:
        """Let the numbers be scraped from now on; a port that is not to be had is told in the log, and ends nothing."""
        from trainer.serving import PathServer

        try:
            self._server = PathServer(self._port, {PATH: self._answer}, name="telemetry")
        except OSError as error:
            log.warning(
                "%s: got %d, which is not to be had (%s): training goes on without telemetry",
                PORT_VARIABLE,
                self._port,
                error.strerror or error,
            )
            return
        self._server.start()
        log.info("telemetry on port %d, path %s", self._server.port, PATH)

    @property
    def port(self) -> int | None:
        """Where it is served; none where it is not."""
        return None if self._server is None else self._server.port

    def close(self) -> None:
        """End that."""
        if self._server is not None:
            self._server.close()
            self._server = None


def family(
    metric: Metric,
    values: Mapping[tuple[str, ...], float],
    distributions: Mapping[tuple[str, ...], Distribution] | None = None,
) -> Family:
    """A described metric with its series, by the values of its labels, in prometheus_client's own form."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.type == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, distribution in (distributions or {}).items():
            buckets, total = distribution.read()
            histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    made = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        made.add_metric(labels, value)
    return made


def asked_port(environment: Mapping[str, str] = os.environ) -> int | None:
    """The port that GRID_TELEMETRY_PORT names, 0 for any free one; none where it names none, which the log says."""
    text = environment.get(PORT_VARIABLE, "")
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    if text:
        log.warning("%s: got %r, expected a port: training goes on without telemetry", PORT_VARIABLE, text)
    return None
