"""What a controller tells Prometheus of its grids and of itself, and the one list of what each number is.

Each pass tells `ControllerTelemetry` what it saw and did. From that it counts what happened (pods that started,
attempts that failed), and puts how every grid stands into a `Shown`, which nothing changes any more: a scrape reads the
one that is there, in a thread of its own, so that it never waits for a pass and no pass for it. What counts counts what
this process has seen since it began: what a pod did before that is no news.

Every label is bounded: by the grids of one namespace, their stages and runs, or by a list in `DESCRIPTIONS`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from controller.acted import ActedGrid
from controller.attempts import NOT_STARTED, ended_at, failure_of_pod, has_failed_by_itself
from controller.jobs import PodView
from controller.reconcile import Observation
from controller.standing import Work
from trainer.failure import FINAL_EXITS, DataError, ExitCode, Failure, StoreError
from trainer.history import PROVENANCE, read_metrics
from trainer.result import EpochMetrics, ResultNumbers
from trainer.serving import Answer
from trainer.store import Request, Store
from trainer.telemetry import DESCRIPTIONS as OF_TRAINERS
from trainer.telemetry import (
    ERROR_KINDS,
    STORE_BUCKETS,
    STORE_OPERATIONS,
    Distribution,
    Key,
    Metric,
    Type,
    best_values,
    epoch_values,
    family,
    series_keys,
)

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

    from controller.cluster import Cluster
    from controller.mirror import Mirror

T = TypeVar("T")
State = Literal["waiting", "queued", "pending", "starting", "running", "done", "failed", "cancelled"]

STATES: tuple[State, ...] = ("waiting", "queued", "pending", "starting", "running", "done", "failed", "cancelled")
OVER: frozenset[State] = frozenset({"done", "failed", "cancelled"})
INTENTS = ("active", "paused", "cancelled")
REASONS = (
    "spec", "data", "store", "training", "diverged", "out-of-device-memory", "device", "numerics", "crashed", "oom",
    "evicted", "lost", "image", "configuration", "deadline", "result-missing", "other",
)  # fmt: skip
RESOURCES = ("jobs", "pods", "events", "configmaps", "leases", "workloads")
NO_ANSWER = "none"  # the code of a request to the API that no answer came to

SHOW_SECONDS = 2.0  # between two renderings of how grids stand, where passes follow one another faster
ENDED_SECONDS = 3600.0  # that a run's last values are shown after its end
MAX_ENDED = 2_000  # runs of which that is done at once, those that ended last
MAX_RUNS = 10_000  # runs that have series of their own, of the grids that are not over first
READ_AT_ONCE, READERS = 32, 8  # runs whose metrics are read after one pass, and of them side by side
ASKED_AT_ONCE = 16  # pods about whose first step the store is asked after one pass
ASK_AGAIN_SECONDS = 10.0
STAMP_SECONDS = 1.0  # the API tells times in whole seconds
PASS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAIT_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)


def _metric(
    name: str,
    kind: Type,
    unit: str,
    meaning: str,
    labels: Sequence[str] = (),
    values: Sequence[str] = (),
    buckets: tuple[float, ...] = (),
) -> Metric:
    return Metric(f"grid_{name}", kind, unit, tuple(labels), meaning, tuple(values), buckets)


DESCRIPTIONS: tuple[Metric, ...] = (
    _metric(
        "run_info",
        "gauge",
        "",
        "1 for each run of a grid, under the stage and the experiment that name it first: joins what trainers show by "
        f"run. Of at most {MAX_RUNS:,} runs, like all that is shown by run.",
        ("grid", "stage", "experiment", "seed", "run"),
    ),
    _metric(
        "run_state", "gauge", "", "1 for the state that a run is in, as grid_runs has them.", ("run", "state"), STATES
    ),
    _metric(
        "run_failure",
        "gauge",
        "",
        "1 for the reason for which a run failed for good, until it is tried again.",
        ("run", "reason"),
        REASONS,
    ),
    _metric(
        "runs",
        "gauge",
        "",
        "Runs of a grid by state, their test included. waiting: nothing of it stands in the cluster yet; queued: its "
        "Job waits for a place; pending: for a node, or for the next attempt; starting: for its image and container; "
        "running: its pod runs, or its numbers are not read yet.",
        ("grid", "state"),
        STATES,
    ),
    _metric(
        "stage_progress_ratio",
        "gauge",
        "ratio",
        "Share of a stage that is over: runs that are done or failed for good count whole, others by their epochs.",
        ("grid", "stage"),
    ),
    _metric(
        "completion_timestamp_seconds",
        "gauge",
        "seconds",
        "When the grid will be over, seconds since 1970, if it goes on as fast and with as many runs at once as now; "
        "absent while that is not known.",
        ("grid",),
    ),
    _metric(
        "deadline_timestamp_seconds",
        "gauge",
        "seconds",
        "The `deadline` of the grid's file, seconds since 1970; absent without one.",
        ("grid",),
    ),
    _metric(
        "queue_seconds",
        "histogram",
        "seconds",
        "Time from a Job's creation until its first pod's container started.",
        ("grid",),
        buckets=WAIT_BUCKETS,
    ),
    _metric(
        "start_delay_seconds",
        "histogram",
        "seconds",
        "Time from a pod's creation until its attempt was about to make its first step.",
        ("grid",),
        buckets=WAIT_BUCKETS,
    ),
    _metric("attempts_total", "counter", "", "Pods whose container started, of tests too.", ("grid",)),
    _metric(
        "failures_total",
        "counter",
        "",
        "Attempts that failed by themselves, tried again or not, and work that failed without an attempt, by reason: "
        "that of `failures/<run>.json`, where oom is out-of-memory.",
        ("grid", "reason"),
        REASONS,
    ),
    _metric(
        "gpu_seconds_total", "counter", "seconds", "Time for which pods ran, times the GPUs that each has.", ("grid",)
    ),
    _metric("grids", "gauge", "", "Grids that this process acts on, by what is wanted of them.", ("intent",), INTENTS),
    _metric(
        "reconcile_seconds",
        "histogram",
        "seconds",
        "Time of a pass: looking at cluster and store, deciding, and doing it.",
        buckets=PASS_BUCKETS,
    ),
    _metric(
        "reconcile_timestamp_seconds",
        "gauge",
        "seconds",
        "When the last pass ended, seconds since 1970; absent before the first.",
    ),
    _metric("pending_actions", "gauge", "", "What the last pass decided and did not do: the next one decides anew."),
    _metric("controller_leading", "gauge", "", "1 while this process may act, else 0."),
    _metric(
        "api_requests_total",
        "counter",
        "",
        f"Requests to the API server by verb, as Roles have it, and HTTP status; {NO_ANSWER} where no answer came.",
        ("verb", "code"),
    ),
    _metric(
        "watch_restarts_total",
        "counter",
        "",
        "Watches that were opened again, mostly since the server ends each after minutes.",
        ("resource",),
        RESOURCES,
    ),
    _metric(
        "store_request_seconds",
        "histogram",
        "seconds",
        "Time of one request to the store, whatever came of it.",
        ("operation",),
        STORE_OPERATIONS,
        STORE_BUCKETS,
    ),
    _metric(
        "store_errors_total",
        "counter",
        "",
        "Requests to the store that came to nothing, by what was wrong: refused where it cannot pass.",
        ("kind",),
        ERROR_KINDS,
    ),
)
"""Every metric that a controller has of its own; what the last label may be, where that is known, is in `values`."""

_OF_ENDED = (
    "epoch", "epochs", "loss_nats", "accuracy_ratio", "best_epoch", "best_validation_loss_nats",
    "best_validation_accuracy_ratio",
)  # fmt: skip
ENDED_DESCRIPTIONS: tuple[Metric, ...] = tuple(
    each for each in OF_TRAINERS if each.name in {f"grid_run_{name}" for name in _OF_ENDED}
)
"""What it shows of each run for ENDED_SECONDS after its end, under the trainer's own names."""


# How grids stand: values in, values out


class Place(NamedTuple):
    """Where a grid names a run first."""

    stage: str
    experiment: str
    seed: str
    run: str


@dataclass(frozen=True, slots=True)
class GridStanding:
    """How a grid stood at a pass."""

    intent: str
    places: tuple[Place, ...]  # of each run known so far, in the table's order
    states: Mapping[str, State]  # by run
    failures: Mapping[str, str]  # by run that failed for good: one of REASONS
    progress: Mapping[str, float]  # by stage, 0..1
    completion: float | None  # seconds since 1970
    deadline: float | None  # likewise

    @property
    def is_over(self) -> bool:
        """Whether nothing of what is known is left to do."""
        return OVER.issuperset(self.states.values())


@dataclass(frozen=True, slots=True)
class LastValues:
    """What a run came to in its last epoch and in its best one."""

    run: str
    ended: float  # seconds since 1970
    values: Mapping[Key, float]  # as a trainer shows them, but for the label run


@dataclass(frozen=True, slots=True)
class Shown:
    """What a scrape shows of grids and runs; nothing changes in it."""

    grids: Mapping[str, GridStanding] = field(default_factory=dict)
    ended: tuple[LastValues, ...] = ()
    passed: float | None = None  # when the last pass ended, seconds since 1970
    num_pending: int = 0
    leads: bool = False


def reason_of(failure: Failure) -> str:
    """The failure's reason, as one of REASONS."""
    reason = "oom" if failure.reason == "out-of-memory" else failure.reason
    return reason if reason in REASONS else "other"


def state_of(work: Work, acted: ActedGrid, seen: Observation) -> State:
    """How a piece of the grid's work stands."""
    known, job = acted.sight.known, seen.jobs.get(work)
    if known.is_done(work):
        return "done"
    alive = [pod for pod in seen.pods.get(work, ()) if not pod.is_terminal]
    if any(pod.phase == "Running" for pod in alive):
        return "running"
    if known.is_failed(work):
        return "failed"
    intent = acted.view().intent_for(work.run)
    if intent == "cancelled":
        return "cancelled"
    if job is None or job.is_deleting:
        return "waiting"
    if job.is_finished:  # what it came to is about to be read
        return "running"
    if intent == "paused":
        return "waiting"
    if job.is_suspended:
        return "queued"
    return "starting" if alive and alive[-1].node is not None else "pending"


def run_states(acted: ActedGrid, seen: Observation) -> dict[str, State]:
    """The state of each of the grid's runs: of its first work that is not done, in the order of stages."""
    states: dict[str, State] = {}
    for work in acted.sight.work:
        if states.get(work.run, "done") == "done":
            states[work.run] = state_of(work, acted, seen)
    return states


def standing_of(acted: ActedGrid, seen: Observation) -> GridStanding:
    """How the grid stands."""
    known, expansion = acted.sight.known, acted.sight.expansion
    places: dict[str, Place] = {}
    progress: dict[str, float] = {}
    parts = _Parts(acted, seen)
    for stage in expansion.stages:
        works = []
        for experiment in stage.experiments:
            for run in experiment.runs:
                works.append(Work(run.id, stage.is_test))
                if run.id not in places:
                    places[run.id] = Place(stage.name, experiment.name, str(run.seed), run.id)
        works = list(dict.fromkeys(works))
        progress[stage.name] = math.fsum(map(parts.part, works)) / len(works) if works else 0.0
    return GridStanding(
        intent=acted.intent,
        places=tuple(places.values()),
        states=run_states(acted, seen),
        failures={
            run: reason_of(known.failures[run])
            for run in places
            if run in known.failures and any(known.is_failed(Work(run, is_test)) for is_test in (False, True))
        },
        progress=progress,
        completion=parts.completion(),
        deadline=None if acted.grid.deadline is None else acted.grid.deadline.timestamp(),
    )


class _Parts:
    """How much of each piece of a grid's work is done, and how long the rest may take."""

    def __init__(self, acted: ActedGrid, seen: Observation) -> None:
        self._acted, self._seen = acted, seen
        self._running = seen.running()

    def part(self, work: Work) -> float:
        """How much of it is over, 0..1."""
        known = self._acted.sight.known
        if known.is_done(work) or known.is_failed(work):
            return 1.0
        return 0.0 if work.is_test else min(1.0, self._epoch(work) / self._epochs(work.run))

    def _epochs(self, run: str) -> int:
        return self._acted.sight.runs[run].hyperparameters.epochs

    def _epoch(self, work: Work) -> int:
        """Epochs that the run has done, as far as someone has told."""
        told = self._seen.progress.get(work.run)
        if told is None and (job := self._seen.jobs.get(work)) is not None:
            told = job.progress
        text = (told or {}).get("epoch", "")
        return int(text) if text.isdecimal() else 0

    def _pace(self, work: Work) -> float | None:
        """Seconds that the run's pod has taken for an epoch; none before the first one has ended."""
        pod = self._running.get(work.run)
        if pod is None or pod.work != work or pod.started is None or work.is_test:
            return None
        resumed = self._seen.resumed.get(work.run)
        num_done = self._epoch(work) - (resumed.epoch - 1 if resumed is not None else 0)
        seconds = (self._seen.now - pod.started).total_seconds()
        return seconds / num_done if num_done > 0 and seconds > 0 else None

    def completion(self) -> float | None:
        """When all of the grid is over, seconds since 1970; none where nothing runs, or no epoch's time is known.

        What is left, of stages whose rows wait for a decision too, is divided among as many runs as there are now.
        """
        sight, known = self._acted.sight, self._acted.sight.known
        left = [work for work in sight.work if not known.is_done(work) and not known.is_failed(work)]
        at_work = [work for work in left if (pod := self._running.get(work.run)) is not None and pod.work == work]
        paces = {work: pace for work in at_work if (pace := self._pace(work)) is not None}
        done = [known.results[run] for run in sight.runs if run in known.results]
        times = [each.wall_seconds / each.epochs_run for each in done if each.epochs_run > 0] or list(paces.values())
        if self._acted.intent != "active" or not at_work or not times:
            return None
        usual = math.fsum(times) / len(times)

        def seconds(work: Work) -> float:
            epochs = 1 if work.is_test else max(0, self._epochs(work.run) - self._epoch(work))
            return epochs * paces.get(work, usual)

        epochs = [run.hyperparameters.epochs for run in sight.runs.values()]
        later = self._num_later() * usual * math.fsum(epochs) / len(epochs)
        total = (math.fsum(map(seconds, left)) + later) / len(at_work)
        return self._seen.now.timestamp() + max(total, *map(seconds, at_work))

    def _num_later(self) -> int:
        """Runs of the stages whose rows are not known yet."""
        grid = self._acted.grid
        unknown = [each for each in self._acted.sight.expansion.stages if each.waiting and not each.is_test]
        stages = [grid.stage(each.name) for each in unknown]
        return sum(len(grid.candidates(stage)) * len(grid.stage_seeds(stage)) for stage in stages)


# What passes tell


class _Counts:
    """Numbers that only grow, and histograms, of which a scrape takes a copy. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Key, float] = {}
        self._spread: dict[Key, Distribution] = {}

    def begin(self, metric: Metric, *labels: str) -> None:
        """From now on there are series with these labels, for each of the metric's values: at 0, so that one is one."""
        with self._lock:
            for key in series_keys(metric, *labels):
                if metric.type == "histogram":
                    self._spread.setdefault(key, Distribution(metric.buckets))
                elif metric.type == "counter":
                    self._values.setdefault(key, 0.0)

    def forget(self, grid: str) -> None:
        """There are no series of that grid any more."""
        with self._lock:
            for held in (self._values, self._spread):
                for key in [key for key in held if key[1:2] == (grid,) and key[0] in _BY_GRID]:
                    del held[key]

    def add(self, *key: str, value: float = 1) -> None:
        """Count so many more."""
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + value

    def observe(self, *key: str, value: float) -> None:
        """Count a value in a histogram that has begun."""
        self._spread[key].observe(max(0.0, value))

    def read(self) -> tuple[dict[Key, float], dict[Key, Distribution]]:
        """All of it."""
        with self._lock:
            return dict(self._values), dict(self._spread)


_BY_GRID = {each.name: each for each in DESCRIPTIONS if each.labels[:1] == ("grid",) and each.type != "gauge"}
_OF_PROCESS = [each for each in DESCRIPTIONS if each.name not in _BY_GRID and each.name != "grid_api_requests_total"]


@dataclass(slots=True)
class _Noted:
    """What was noticed of a grid already."""

    results: Mapping[str, ResultNumbers]
    failures: Mapping[str, Failure]
    runs: frozenset[str]  # that were known of
    over: frozenset[str]  # of them those that are trained, or failed for good


class ControllerTelemetry:
    """Notes what passes see and do, and shows it to Prometheus: one thread makes passes, others scrape meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._since = math.floor(clock())  # what a pod did before is no news
        self._counts = _Counts()
        for metric in _OF_PROCESS:
            self._counts.begin(metric)
        self._shown = Shown()
        self._lock = threading.Lock()
        self._clusters: Sequence[Cluster] = ()
        self._mirror: Mirror | None = None
        self._calls_before: Counter[tuple[str, str]] = Counter()  # verb, code: of those that were followed before
        self._restarts_before: Counter[str] = Counter()
        self._show_at = float("-inf")  # by the clock, as all times here
        self._noted: dict[str, _Noted] = {}  # by grid
        self._started: set[str] = set()  # uids of pods whose start was noticed, of those that are there
        self._failed: set[str] = set()  # likewise their failure
        self._ask_at: dict[str, float] = {}  # by the uid of a pod whose first step is not known yet
        self._ran_until: dict[str, float] = {}  # by pod's uid: up to when its time was counted
        self._ended: dict[str, LastValues] = {}  # by run
        self._unread: dict[str, float] = {}  # by run whose last values are to be read: when it ended

    # Told by the process

    def follow(self, clusters: Sequence[Cluster], mirror: Mirror | None) -> None:
        """Count the requests of these and the restarts of that from now on, beside those of the ones before."""
        with self._lock:
            self._calls_before, self._restarts_before = self._calls(), self._restarts()
            self._clusters, self._mirror = clusters, mirror

    def asked(self, request: Request) -> None:
        """A request was sent to the store. In whichever thread."""
        self._counts.observe("grid_store_request_seconds", request.operation, value=request.seconds)
        if request.fault is not None:
            self._counts.add("grid_store_errors_total", request.fault)

    def lead(self, leads: bool) -> None:
        """Whether this process may act now: one that may not shows nothing of grids, for another one does."""
        if not leads:
            for name in list(self._noted):
                self._forget(name)
            self._ended, self._unread = {}, {}
        self._shown = replace(self._shown, leads=True) if leads else Shown()

    def forget(self, grid: str) -> None:
        """It is acted on no longer, by this process."""
        self._forget(grid)
        grids = {name: each for name, each in self._shown.grids.items() if name != grid}
        self._shown = replace(self._shown, grids=grids)

    def _forget(self, grid: str) -> None:
        self._noted.pop(grid, None)
        self._counts.forget(grid)

    # Told by passes

    def passed(
        self,
        grids: Mapping[str, ActedGrid],
        seen: Observation,
        store: Store,
        *,
        seconds: float,
        num_pending: int,
        acts: bool,
    ) -> None:
        """A pass has ended that saw this of these grids, in a process that `acts` on them or only looks."""
        now = self._clock()
        self._counts.observe("grid_reconcile_seconds", value=seconds)
        if acts != self._shown.leads:
            self.lead(acts)
        if not acts:
            return
        owners = _owners(grids, seen)
        for name, acted in grids.items():
            self._note_grid(name, acted, seen, now)
        self._note_pods(grids, owners, seen, now)
        with suppress(StoreError):  # what is shown is not worth an end; the next pass asks again
            self._ask_for_steps(owners, seen, store, now)
            self._read_ended(grids, store)
        self._show(grids, seen, now, num_pending)

    def rest(self, name: str, acted: ActedGrid, seen: Observation) -> None:
        """The grid rests from now on, and is shown as it stands."""
        grids = {**self._shown.grids, name: standing_of(acted, seen)}
        self._shown = replace(self._shown, grids=grids)

    def _note_grid(self, name: str, acted: ActedGrid, seen: Observation, now: float) -> None:
        """Count what failed without a pod since the pass before, and take note of the runs that ended."""
        known = acted.sight.known
        before = self._noted.get(name)
        if before is None:
            for metric in _BY_GRID.values():
                self._counts.begin(metric, name)
        elif before.results is known.results and before.failures is known.failures:
            return
        runs = [work for work in acted.sight.work if not work.is_test]
        over = frozenset(work.run for work in runs if known.is_done(work) or known.is_failed(work))
        failures = {run: failure for run, failure in known.failures.items() if failure.final}
        if before is not None:
            for run, failure in failures.items():
                if before.failures.get(run) != failure and _has_no_attempt(failure):
                    self._counts.add("grid_failures_total", name, reason_of(failure))
        for run in over - (before.over if before is not None else frozenset()):
            ended = self._end_of(run, seen)
            if ended is None and before is not None and run in before.runs:
                ended = now
            if ended is not None and ended > now - ENDED_SECONDS and run not in self._ended:
                self._unread[run] = ended
        for run in (before.over if before is not None else frozenset()) - over:  # to be tried again
            self._ended.pop(run, None)
            self._unread.pop(run, None)
        self._noted[name] = _Noted(known.results, known.failures, frozenset(work.run for work in runs), over)

    def _end_of(self, run: str, seen: Observation) -> float | None:
        job = seen.jobs.get(Work(run, False))
        ended = job and (job.complete_since or job.failed_since)
        return ended.timestamp() if ended else None

    def _note_pods(
        self, grids: Mapping[str, ActedGrid], owners: Mapping[Work, str], seen: Observation, now: float
    ) -> None:
        there: set[str] = set()
        for work, pods in seen.pods.items():
            name = owners.get(work)
            if name is None:
                continue
            gpu = grids[name].settings.gpu
            for pod in pods:
                there.add(pod.uid)
                if pod.started is not None and pod.uid not in self._started:
                    self._started.add(pod.uid)
                    if self._is_news(pod.started):
                        self._note_start(name, pod, pods, seen)
                if pod.phase == "Failed" and pod.uid not in self._failed:
                    self._failed.add(pod.uid)
                    if self._is_news(ended_at(pod)):
                        self._note_failure(name, pod, seen)
                if gpu is not None and pod.started is not None:
                    self._note_time(name, pod, gpu.count, now)
        self._started &= there
        self._failed &= there
        for held in (self._ran_until, self._ask_at):
            for uid in held.keys() - there:
                del held[uid]

    def _is_news(self, when: datetime) -> bool:
        return when.timestamp() >= self._since

    def _note_start(self, name: str, pod: PodView, pods: Sequence[PodView], seen: Observation) -> None:
        self._counts.add("grid_attempts_total", name)
        if not pod.work.is_test:
            self._ask_at[pod.uid] = 0.0
        job = seen.jobs.get(pod.work)
        is_first = job is not None and job.tries is None and job.resumed_pod is None and len(pods) == 1
        if job is not None and is_first and job.uid == pod.job_uid and pod.started is not None:
            self._counts.observe("grid_queue_seconds", name, value=(pod.started - job.created).total_seconds())

    def _note_failure(self, name: str, pod: PodView, seen: Observation) -> None:
        job = seen.jobs.get(pod.work)
        if job is not None and (has_failed_by_itself(pod) or pod.exit_code in FINAL_EXITS):
            reason = reason_of(failure_of_pod(pod.work, job, pod, seen.now))
            self._counts.add("grid_failures_total", name, reason)

    def _note_time(self, name: str, pod: PodView, num_gpus: int, now: float) -> None:
        assert pod.started is not None
        until = pod.finished.timestamp() if pod.finished is not None else now
        since = self._ran_until.get(pod.uid, max(pod.started.timestamp(), self._since))
        self._ran_until[pod.uid] = max(since, until)
        self._counts.add("grid_gpu_seconds_total", name, value=num_gpus * max(0.0, until - since))

    def _ask_for_steps(self, owners: Mapping[Work, str], seen: Observation, store: Store, now: float) -> None:
        """Ask the store when pods were about to make their first step, by the clock of the API server and the store's.

        An attempt leaves its provenance once its network and data are ready, right before it.
        """
        pods = {pod.uid: pod for of_work in seen.pods.values() for pod in of_work if pod.uid in self._ask_at}
        for uid, pod in islice(((uid, pod) for uid, pod in pods.items() if self._ask_at[uid] <= now), ASKED_AT_ONCE):
            assert pod.started is not None
            self._ask_at[uid] = now + ASK_AGAIN_SECONDS
            since = pod.started.timestamp() - STAMP_SECONDS
            entries = store.list(f"runs/{pod.work.run}/attempts/")
            times = [each.modified for each in entries if each.key.endswith(PROVENANCE) and each.modified >= since]
            if times:
                delay = min(times) - pod.created.timestamp()
                self._counts.observe("grid_start_delay_seconds", owners[pod.work], value=delay)
            if times or pod.is_terminal:
                del self._ask_at[uid]

    def _read_ended(self, grids: Mapping[str, ActedGrid], store: Store) -> None:
        """Read the last values of some of the runs that ended, those that ended last first."""
        newest = sorted(self._unread, key=self._unread.__getitem__, reverse=True)[:MAX_ENDED]
        self._unread = {run: self._unread[run] for run in newest}
        runs = newest[:READ_AT_ONCE]
        if not runs:
            return

        def rows_of(run: str) -> list[EpochMetrics]:
            try:
                return read_metrics(store, run)
            except DataError:
                return []

        with ThreadPoolExecutor(READERS, thread_name_prefix="ended") as pool:
            for run, rows in zip(runs, pool.map(rows_of, runs), strict=True):
                values = next(
                    (
                        _last_values(run, rows, each, self._unread[run])
                        for each in grids.values()
                        if run in each.sight.runs
                    ),
                    None,
                )
                if values is not None:
                    self._ended[run] = values
                del self._unread[run]

    def _show(self, grids: Mapping[str, ActedGrid], seen: Observation, now: float, num_pending: int) -> None:
        """Put what is known into a new `Shown`."""
        shown = self._shown
        standings = shown.grids
        if now >= self._show_at or not standings.keys() >= grids.keys():
            self._show_at = now + SHOW_SECONDS
            standings = {**standings, **{name: standing_of(acted, seen) for name, acted in grids.items()}}
            ended = sorted(self._ended.values(), key=lambda each: each.ended, reverse=True)
            kept = [each for each in ended[:MAX_ENDED] if each.ended > now - ENDED_SECONDS]
            self._ended = {each.run: each for each in kept}
        self._shown = Shown(standings, tuple(self._ended.values()), now, num_pending, shown.leads)

    # Scraped

    def _calls(self) -> Counter[tuple[str, str]]:
        """Requests to the API by verb and code; to be called with the lock."""
        found = self._calls_before.copy()
        for cluster in self._clusters:
            for (verb, _, status), number in dict(cluster.calls).items():  # copied at once: others count meanwhile
                found[verb, str(status) if status else NO_ANSWER] += number
        return found

    def _restarts(self) -> Counter[str]:
        found = self._restarts_before.copy()
        if self._mirror is not None:
            for (resource, _), number in dict(self._mirror.restarts).items():
                found[resource] += number
        return found

    def collect(self) -> Iterator[Family]:
        """Every metric that has a value by now, for prometheus_client."""
        shown = self._shown
        values, spread = self._counts.read()
        with self._lock:
            values |= {("grid_api_requests_total", *key): number for key, number in self._calls().items()}
            values |= {("grid_watch_restarts_total", key): number for key, number in self._restarts().items()}
        values.update(_values_of(shown))
        by_name, spread_by_name = _by_name(values), _by_name(spread)
        for metric in (*DESCRIPTIONS, *ENDED_DESCRIPTIONS):
            if metric.name in by_name or metric.name in spread_by_name:
                yield family(metric, by_name.get(metric.name, {}), spread_by_name.get(metric.name))

    def answer(self, accept: str) -> Answer:
        """What a scrape is answered with, in the format that its Accept header asks for."""
        from prometheus_client.exposition import choose_encoder

        encode, media_type = choose_encoder(accept)
        return Answer(200, encode(self).decode(), media_type)


def _by_name(series: Mapping[Key, T]) -> dict[str, dict[tuple[str, ...], T]]:
    """What there is of each metric, by the values of its labels."""
    found: dict[str, dict[tuple[str, ...], T]] = {}
    for (name, *labels), each in series.items():
        found.setdefault(name, {})[tuple(labels)] = each
    return found


def _owners(grids: Mapping[str, ActedGrid], seen: Observation) -> dict[Work, str]:
    """The grid to which what the pods of a piece of work do is counted: the first of those that want it."""
    owners = {
        work: next((name for name, each in grids.items() if work in each.view().wants), None) for work in seen.pods
    }
    return {work: name for work, name in owners.items() if name is not None}


def _has_no_attempt(failure: Failure) -> bool:
    """Whether no pod ended with it: its container never ran, or ran well, or too long."""
    codes = (ExitCode.OK, NOT_STARTED)
    return failure.reason == "deadline" or (failure.exit_code in codes and failure.reason != "evicted")


def _last_values(run: str, rows: Sequence[EpochMetrics], acted: ActedGrid, ended: float) -> LastValues:
    """What the run came to: by its epochs, else by its result; no epoch where it failed before the first had ended."""
    result = acted.sight.known.results.get(run)
    best = next((row for row in reversed(rows) if row.best), None)
    if best is not None:
        values = epoch_values(rows[-1]) | best_values(best.epoch, best.validation_loss, best.validation_accuracy)
    elif result is not None:
        values = {("grid_run_epoch",): result.epochs_run}
        values |= best_values(result.best_epoch, result.validation_loss, result.validation_accuracy)
    else:
        values = {("grid_run_epoch",): 0}
    epochs = acted.sight.runs[run].hyperparameters.epochs
    return LastValues(run, ended, values | {("grid_run_epochs",): epochs})


def _values_of(shown: Shown) -> Iterator[tuple[Key, float]]:
    """The gauges' series, as their names and labels, with the value of each."""
    yield ("grid_controller_leading",), shown.leads
    yield ("grid_pending_actions",), shown.num_pending
    if shown.passed is not None:
        yield ("grid_reconcile_timestamp_seconds",), shown.passed
    intents = Counter(each.intent for each in shown.grids.values())
    for intent in INTENTS:
        yield ("grid_grids", intent), intents[intent]
    for name, each in shown.grids.items():
        states = Counter(each.states.values())
        for state in STATES:
            yield ("grid_runs", name, state), states[state]
        for stage, ratio in each.progress.items():
            yield ("grid_stage_progress_ratio", name, stage), ratio
        for what, when in (("completion", each.completion), ("deadline", each.deadline)):
            if when is not None:
                yield (f"grid_{what}_timestamp_seconds", name), when
    yield from _values_of_runs(shown.grids)
    for ended in shown.ended:
        yield from (((name, ended.run, *labels), value) for (name, *labels), value in ended.values.items())


def _values_of_runs(grids: Mapping[str, GridStanding]) -> Iterator[tuple[Key, float]]:
    room = MAX_RUNS
    states: dict[str, State] = {}
    failures: dict[str, str] = {}
    for name, each in sorted(grids.items(), key=lambda item: item[1].is_over):
        places = each.places[:room]
        room -= len(places)
        for place in places:
            yield ("grid_run_info", name, *place), 1
            if states.get(place.run, "cancelled") == "cancelled":  # here, while another grid may want it
                states[place.run] = each.states[place.run]
            if place.run in each.failures:
                failures[place.run] = each.failures[place.run]
    yield from ((("grid_run_state", run, state), 1) for run, state in states.items())
    yield from ((("grid_run_failure", run, reason), 1) for run, reason in failures.items())
