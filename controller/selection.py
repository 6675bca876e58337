"""What each stage of a grid keeps, by its rule and the results that are there. Values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import fsum, isfinite

from controller.grid import Grid
from controller.search import Decision, Expansion, Experiment, RowSeen, StageExpansion, testable, tested_stages
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
            said[seen.name] = decide_stage(
                stage,
                experiments,
                results,
                failures,
                now,
                pinned=seen.kept,
                held=held,
                ignored=_ignored(grid, stage, experiments, expansion.stages[:index]),
            )
    return said


def _ignored(
    grid: Grid, stage: Stage, experiments: Sequence[Experiment], earlier: Sequence[StageExpansion]
) -> Collection[str]:
    """Names of the stage's rows that hold nothing up should they fail.

    A test stage ignores a failed row, too, where each stage of those it chooses from that has the row does.
    """
    if stage.on_failed == "ignore":
        return {each.name for each in experiments}
    if stage.test is None:
        return set()
    of = tested_stages(stage)
    strict = [each for each in earlier if each.name in of and grid.stage(each.name).on_failed != "ignore"]
    minded = {run.id for each in strict for experiment in each.experiments for run in experiment.runs}
    return {each.name for each in experiments if not any(run.id in minded for run in each.runs)}


def told_waiting(expansion: Expansion, reasons: Mapping[str, str]) -> Expansion:
    """`expansion`, the stages whose rows are not known waiting for these `reasons`, by stage, where they are there."""
    return replace(
        expansion,
        stages=tuple(
            each if each.waiting is None else replace(each, waiting=reasons.get(each.name, each.waiting))
            for each in expansion.stages
        ),
    )


def decide_stage(
    stage: Stage,
    experiments: Sequence[Experiment],
    results: Mapping[str, ResultNumbers],
    failures: Mapping[str, Failure],
    now: datetime,
    pinned: tuple[str, ...] = (),
    held: Mapping[str, Held] | None = None,
    ignored: Collection[str] = (),
) -> Decision | Waiting:
    """What the stage keeps of `experiments`, or why that is not known yet; `pinned` names what the author keeps.

    Rows are ranked by the mean over seeds of a validation metric, ties by their order. A diverged row ranks last.
    Another failed row stops the choice, unless it is among the names `ignored`: then it ranks last too. Selection never
    sees the test part.
    """
    choice = stage.test or stage.keep
    metric = choice.by if isinstance(choice, TestBest) else choice.best if isinstance(choice, KeepBest) else None
    if metric is None:
        assert isinstance(choice, KeepThis | TestThese)
        assert pinned
        saw = tuple(_seen(each, None, "chosen beforehand") for each in experiments)
        return Decision(stage=stage.name, kept=pinned, because=choice.because, metric=None, saw=saw, time=now)
    rows = [_judged(each, metric, results, failures) for each in experiments]
    if failed := [row for row in rows if row.failed and row.seen.experiment not in ignored]:
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
    ranked = _ranked(metric, [row.seen for row in rows])
    if not ranked:
        return Waiting("every row failed or diverged: there is nothing to keep", stopped=True)
    count = choice.best if isinstance(choice, TestBest) else 1
    return Decision(
        stage=stage.name,
        kept=tuple(seen.experiment for seen in ranked[:count]),
        because=rule_reason(metric, ranked, count),
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


def _ranked(metric: str, seen: Sequence[RowSeen]) -> list[RowSeen]:
    """The rows that have a value, the best first; equal ones in their order."""
    valued = [(each.value if lower_is_better(metric) else -each.value, each) for each in seen if each.value is not None]
    return [each for _, each in sorted(valued, key=lambda pair: pair[0])]


FEWEST_DIGITS, MOST_DIGITS = 4, 17  # significant ones of a value: as many as tell it from the next


def rule_reason(metric: str, seen: Sequence[RowSeen], count: int) -> str:
    """Why a rule by that metric takes the first `count` of the rows that it saw."""
    ranked = _ranked(metric, seen)
    num_seeds = max(len(each.runs) for each in ranked)
    over = f", mean over {num_seeds} seeds" if num_seeds > 1 else ""
    best = f"{'lowest' if lower_is_better(metric) else 'highest'} {metric}{over}: "
    values = [each.value for each in ranked[: count + 1] if each.value is not None]
    digits = FEWEST_DIGITS
    if len(values) <= count:
        return best + ", ".join(f"{value:.{digits}g}" for value in values)
    last, following = values[-2:]
    if last == following:
        told = f"; {ranked[count].experiment} has the same, and comes later"
        return best + ", ".join(f"{value:.{digits}g}" for value in values[:count]) + told
    digits = next(n for n in range(FEWEST_DIGITS, MOST_DIGITS + 1) if f"{last:.{n}g}" != f"{following:.{n}g}")
    *kept, other = (f"{value:.{digits}g}" for value in values)
    return f"{best}{', '.join(kept)}; next {other} ({ranked[count].experiment})"
