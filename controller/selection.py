"""What each stage of a grid keeps, by its rule and the results that are there. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import fsum, isfinite

from controller.grid import Grid
from controller.search import Decision, Expansion, Experiment, RowSeen, testable
from controller.stages import KeepBest, KeepThis, Stage, TestBest, TestThese
from controller.standing import Held, held_text
from trainer.failure import ExitCode, Failure, OutOfDeviceMemory
from trainer.result import ResultNumbers
from trainer.spec import lower_is_better


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stage that cannot be decided yet, and what would change that."""

    reason: str
    stopped: bool = False  # whether nothing comes of waiting: only `grid retry` or a changed grid helps


def due_decisions(
    grid: Grid,
    expansion: Expansion,
    results: Mapping[str, ResultNumbers],
    failures: Mapping[str, Failure],
    now: datetime,
    held: Mapping[str, Held] | None = None,
) -> dict[str, Decision | Waiting]:
    """For each stage without a decision: the decision to record, or why there is none yet.

    A decision may make further rows known: record it, expand anew, ask again.
    """
    said: dict[str, Decision | Waiting] = {}
    for index, seen in enumerate(expansion.stages):
        if seen.decision is not None:
            continue
        stage = grid.stage(seen.name)
        if not seen.is_test:
            experiments: tuple[Experiment, ...] | None = seen.experiments or None
        else:
            experiments = testable(stage, expansion.stages[:index])
        if experiments is None:
            said[seen.name] = Waiting(seen.waiting or "for its rows to be known")
        else:
            said[seen.name] = decide_stage(stage, experiments, results, failures, now, pinned=seen.kept, held=held)
    return said


def decide_stage(
    stage: Stage,
    experiments: Sequence[Experiment],
    results: Mapping[str, ResultNumbers],
    failures: Mapping[str, Failure],
    now: datetime,
    pinned: tuple[str, ...] = (),
    held: Mapping[str, Held] | None = None,
) -> Decision | Waiting:
    """What the stage keeps of `experiments`, or why that is not known yet; `pinned` names what the author keeps.

    Rows are ranked by the mean over seeds of a validation metric, ties by their order. A diverged row ranks last.
    Another failed row stops the choice, or with `on_failed: ignore` ranks last too. Selection never sees the test part.
    """
    choice = stage.test or stage.keep
    metric = choice.by if isinstance(choice, TestBest) else choice.best if isinstance(choice, KeepBest) else None
    if metric is None:
        assert isinstance(choice, KeepThis | TestThese)
        assert pinned
        saw = tuple(_seen(each, None, "chosen beforehand") for each in experiments)
        return Decision(stage=stage.name, kept=pinned, because=choice.because, metric=None, saw=saw, time=now)
    rows = [_judged(each, metric, results, failures) for each in experiments]
    failed = [row for row in rows if row.failed]
    if failed and stage.on_failed != "ignore":
        told = "; ".join(f"{row.seen.experiment}: {row.seen.reason}" for row in failed[:3])
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        word = "row" if len(failed) == 1 else "rows"
        return Waiting(f"{len(failed)} failed {word}: {told}{more}", stopped=stage.on_failed == "stop")
    if open_runs := sum(row.open for row in rows):
        total = sum(len(each.runs) for each in experiments)
        runs = {run.id for each in experiments for run in each.runs} if held else set()
        over = results.keys() | {run for run, failure in failures.items() if failure.final}
        some = [said for run, said in (held or {}).items() if run in runs and run not in over]
        return Waiting(f"for {open_runs} of {total} runs" + (f", of which {held_text(some)}" if some else ""))
    ranked = [row.seen for row in rows if row.seen.value is not None]
    if not ranked:
        return Waiting("every row failed or diverged: there is nothing to keep", stopped=True)
    down = lower_is_better(metric)
    ranked.sort(key=lambda seen: (seen.value if down else -seen.value) if seen.value is not None else 0.0)
    count = choice.best if isinstance(choice, TestBest) else 1
    return Decision(
        stage=stage.name,
        kept=tuple(seen.experiment for seen in ranked[:count]),
        because=_because(metric, ranked, count, max(len(each.runs) for each in experiments)),
        metric=metric,
        saw=tuple(row.seen for row in rows),
        time=now,
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    seen: RowSeen
    open: int  # runs that are neither trained nor failed for good
    failed: bool  # for another reason than a loss that diverged


def _seen(experiment: Experiment, value: float | None, reason: str | None) -> RowSeen:
    runs = tuple([run.id for run in experiment.runs])
    return RowSeen(experiment=experiment.name, runs=runs, value=value, reason=reason)


def _judged(
    experiment: Experiment, metric: str, results: Mapping[str, ResultNumbers], failures: Mapping[str, Failure]
) -> _Judged:
    values = [float(getattr(results[run.id], metric)) for run in experiment.runs if run.id in results]
    if len(values) == len(experiment.runs) and all(map(isfinite, values)):
        return _Judged(_seen(experiment, fsum(values) / len(values), None), 0, False)
    lost = [failures[run.id] for run in experiment.runs if run.id in failures and run.id not in results]
    final = [failure for failure in lost if failure.final]
    num_open = len(experiment.runs) - len(values) - len(final)
    count = f" ({len(final)} of {len(experiment.runs)} seeds)" if len(experiment.runs) > 1 else ""
    others = [failure for failure in final if not _diverged(failure)]
    if others:
        return _Judged(_seen(experiment, None, f"{others[0].reason}: {others[0].message}{count}"), num_open, True)
    if final or any(not isfinite(value) for value in values):
        return _Judged(_seen(experiment, None, f"diverged{count}"), num_open, False)
    return _Judged(_seen(experiment, None, "not trained yet"), num_open, False)


def _diverged(failure: Failure) -> bool:
    """Whether training failed for good by its own numbers; memory that is too small says nothing about a row."""
    return failure.exit_code == ExitCode.TRAINING and failure.reason != OutOfDeviceMemory.reason


def _because(metric: str, ranked: Sequence[RowSeen], count: int, num_seeds: int) -> str:
    over = f", mean over {num_seeds} seeds" if num_seeds > 1 else ""
    direction = "lowest" if lower_is_better(metric) else "highest"
    told = ", ".join(f"{seen.value:.4g}" for seen in ranked[:count])
    following = f"; next {ranked[count].value:.4g} ({ranked[count].experiment})" if len(ranked) > count else ""
    return f"{direction} {metric}{over}: {told}{following}"
