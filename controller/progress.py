"""How far the runs at work on a cluster are, by the metrics that they leave in the store."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from controller.acted import ActedGrid
from controller.jobs import PodView, progress_values
from controller.live import GridProgress, RunProgress
from controller.overview import Overview
from controller.reconcile import Observation
from controller.standing import Work
from controller.wording import count_text
from trainer.failure import DataError
from trainer.history import read_metrics
from trainer.result import EpochMetrics
from trainer.store import Store

LOOK_SECONDS = 10.0  # between two looks at the metrics of the runs at work
FEW_RUNNING = 16  # runs at work, up to which that is little to read
READERS = 8  # runs read at once
MANY_TIMES = 6  # as long between two looks where they are more


class RunningMetrics:
    """The metrics of the runs at work, read now and then; they stay those of the last look."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, list[EpochMetrics]] = {}  # by run
        self._seen_at: dict[str, tuple[int, float]] = {}  # by run: its newest epoch, and when that was first seen
        self._overviews: dict[str, Overview] = {}  # by grid
        self._look_at = 0.0  # by the monotonic clock

    def look(self, runs: Collection[str]) -> None:
        """Read the metrics of these, if it is time for that, and forget those of all others. Raises StoreError."""
        self._rows = {run: rows for run, rows in self._rows.items() if run in runs}
        now = time.monotonic()
        if now < self._look_at or not runs:
            return
        self._look_at = now + LOOK_SECONDS * (1 if len(runs) <= FEW_RUNNING else MANY_TIMES)
        with ThreadPoolExecutor(READERS, thread_name_prefix="metrics") as pool:
            for run, rows in zip(runs, pool.map(self._read, runs), strict=True):
                if rows is not None:
                    self._rows[run] = rows
        newest = {run: rows[-1].epoch for run, rows in self._rows.items() if rows}
        before = self._seen_at
        self._seen_at = {
            run: before[run] if run in before and before[run][0] == epoch else (epoch, now)
            for run, epoch in newest.items()
        }

    def _read(self, run: str) -> list[EpochMetrics] | None:
        try:
            return read_metrics(self._store, run)
        except DataError:  # what is shown is not worth an end
            return None

    def annotations(self) -> dict[str, dict[str, str]]:
        """What to show of them on their Jobs, by run: epoch, best validation accuracy (0..1), images per second."""
        return {
            run: progress_values(
                rows[-1].epoch, max(row.validation_accuracy for row in rows), rows[-1].images_per_second
            )
            for run, rows in self._rows.items()
            if rows
        }

    def grid_progress(
        self, acted: ActedGrid, work: Collection[Work], seen: Observation | None, reasons: Mapping[str, str]
    ) -> GridProgress:
        """How far this part of the grid is; `reasons` say of runs why they wait, as `run_state` takes it."""
        known = acted.sight.known
        pods = {pod.work: pod for of_work in (seen.pods.values() if seen else ()) for pod in of_work}
        at_work = {w: pods[w] for w in work if w in pods and pods[w].phase == "Running" and not known.is_done(w)}
        nodes = {pod.node for pod in at_work.values()}
        overview = self._overviews.setdefault(acted.grid.name, Overview())
        return overview.progress(
            acted.grid,
            acted.sight,
            work,
            {each: self._run_progress(acted, each, pod) for each, pod in at_work.items()},
            reasons=reasons,
            machines=f"{'GPUs' if acted.settings.gpu else 'CPUs'} of {count_text(len(nodes), 'node')}",
        )

    def _run_progress(self, acted: ActedGrid, work: Work, pod: PodView) -> RunProgress:
        rows = self._rows.get(work.run, [])
        newest = rows[-1] if rows else None
        num_epochs = acted.sight.runs[work.run].hyperparameters.epochs
        doing: Literal["testing", "training", "starting"] = "training" if rows else "starting"
        return RunProgress(
            label=acted.sight.label(work),
            doing="stopping" if pod.is_deleting else "testing" if work.is_test else doing,
            num_epochs=num_epochs,
            epochs_done=newest.epoch if newest else 0,
            train_loss=newest.train_loss if newest else None,
            train_accuracy=newest.train_accuracy if newest else None,
            validation_loss=newest.validation_loss if newest else None,
            validation_accuracy=newest.validation_accuracy if newest else None,
            images_per_second=newest.images_per_second if newest else None,
            seconds_left=self._seconds_left(work.run, num_epochs) if rows and not work.is_test else None,
            validation_accuracies=tuple(row.validation_accuracy for row in rows),
        )

    def _seconds_left(self, run: str, num_epochs: int) -> float:
        """By how long its epochs took, from when the newest of them was seen."""
        rows = self._rows[run]
        mean = sum(row.seconds for row in rows) / len(rows)
        return max(0.0, (num_epochs - rows[-1].epoch) * mean - (time.monotonic() - self._seen_at[run][1]))


def training_runs(seen: Observation, *, is_shown: bool) -> list[str]:
    """The runs that are trained right now, and whose progress someone sees: on a view, or on their Jobs."""
    grids = [grid for grid in seen.grids.values() if is_shown or grid.progress_seconds is not None]
    at_work = {pod.work: None for pods in seen.pods.values() for pod in pods if pod.phase == "Running"}
    return [work.run for work in at_work if not work.is_test and any(work in grid.wants for grid in grids)]
