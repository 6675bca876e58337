"""What a grid has come to, for those who watch it: the same on this machine and on a cluster. Values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from controller.grid import Grid
from controller.live import GridProgress, RowProgress, RunProgress, StageProgress
from controller.observe import Sight
from controller.search import Experiment, StageExpansion
from controller.stages import Stage
from controller.standing import Known, Work, failure_text, run_state
from controller.table import best_of, compared_metric, mean_and_std

FAILED_SHOWN = 100  # failures that anything is made of: no terminal has room for more
UNTOLD = (None, "never started", "trained, not tested yet")  # waits that say nothing which the counts do not


@dataclass(frozen=True, slots=True)
class _Seen:
    """What follows from what is known of a grid, whatever is at work just now."""

    sight: Sight
    work: Collection[Work]
    stages: tuple[StageProgress, ...]
    stages_of: Mapping[Work, Sequence[int]]  # the numbers of those that name it
    num_done: int
    num_failed: int
    failed: tuple[tuple[str, str], ...]
    durations: tuple[float, ...]  # of the runs that have a result, seconds


class Overview:
    """How far a grid is, shown again and again: what it has come to is worked out anew where that is another."""

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def progress(
        self,
        grid: Grid,
        sight: Sight,
        work: Collection[Work],
        running: Mapping[Work, RunProgress],
        *,
        elsewhere: Mapping[Work, str] | None = None,
        reasons: Mapping[str, str] | None = None,
        durations: Sequence[float] = (),
        machines: str | None = None,
    ) -> GridProgress:
        """How far the part of the grid that comes to `work` is.

        `elsewhere` says of what other processes train how it is, `reasons` of runs why they wait, as `run_state` takes
        it. `durations` are seconds that runs took here; without any, those that results tell are taken.
        """
        if self._seen is None or self._seen.sight is not sight or self._seen.work != work:
            self._seen = _seen(grid, sight, work)
        seen, elsewhere = self._seen, elsewhere or {}
        at_work = Counter(index for each in {*running, *elsewhere} for index in seen.stages_of.get(each, ()))
        stages = tuple(
            replace(stage, num_running=at_work[index]) if at_work[index] else stage
            for index, stage in enumerate(seen.stages)
        )
        num_waiting = max(0, len(work) - seen.num_done - seen.num_failed - len(running) - len(elsewhere))
        later = [stage for stage in sight.expansion.stages if stage.waiting]
        num_later = sum(stages[index].num_runs for index, each in enumerate(sight.expansion.stages) if each.waiting)
        return GridProgress(
            grid=grid.name,
            num_done=seen.num_done,
            num_waiting=num_waiting,
            num_failed=seen.num_failed,
            running=tuple(running.values()),
            elsewhere=tuple(f"{sight.label(each)}: {told}" for each, told in elsewhere.items()),
            later_stages=tuple(stage.name for stage in later),
            seconds_left=time_left(tuple(running.values()), num_waiting + num_later, durations or seen.durations),
            stages=stages,
            failed=seen.failed,
            waits=_waits(sight, work, {*running, *elsewhere}, reasons or {}),
            machines=machines,
            deadline=grid.deadline,
        )


def time_left(running: Sequence[RunProgress], num_waiting: int, durations: Sequence[float]) -> float | None:
    """Seconds until all that is known is done; none where nothing would tell, or nothing is left.

    `durations` are seconds that runs took; without any, those at work tell by how far they are.
    """
    if not running and not num_waiting:
        return None
    left = [each.seconds_left for each in running if each.seconds_left is not None]
    durations = durations or [length for each in running if (length := _length(each)) is not None]
    if not durations:
        return max(left) if left and num_waiting == 0 and len(left) == len(running) else None
    mean = sum(durations) / len(durations)
    total = sum(left) + mean * (num_waiting + len(running) - len(left))
    return max([*left, total / max(1, len(running))])


def _length(run: RunProgress) -> float | None:
    """Seconds that a run at work takes as things go; none where it is not far enough to tell."""
    if run.seconds_left is None or not 0 < run.epochs_done < run.num_epochs:
        return None
    return run.seconds_left * run.num_epochs / (run.num_epochs - run.epochs_done)


def _seen(grid: Grid, sight: Sight, work: Collection[Work]) -> _Seen:
    known, chosen = sight.known, frozenset(work)
    stages, stages_of = [], dict[Work, list[int]]()
    for index, stage in enumerate(sight.expansion.stages):
        own = {
            each: None
            for row in stage.experiments
            for run in row.runs
            if (each := Work(run.id, stage.is_test)) in chosen
        }
        for each in own:
            stages_of.setdefault(each, []).append(index)
        stages.append(_stage(grid, stage, sight, list(own)))
    failed = [each for each in work if known.is_failed(each)]
    newest = sorted(failed, key=lambda each: known.failures[each.run].time, reverse=True)
    return _Seen(
        sight,
        work,
        tuple(stages),
        stages_of,
        sum(map(known.is_done, work)),
        len(failed),
        tuple((sight.label(each), failure_text(known.failures[each.run])) for each in newest[:FAILED_SHOWN]),
        tuple(known.results[each.run].wall_seconds for each in work if not each.is_test and known.is_done(each)),
    )


def _stage(grid: Grid, seen: StageExpansion, sight: Sight, work: Sequence[Work]) -> StageProgress:
    """The stage, with no run at work."""
    stage, known = grid.stage(seen.name), sight.known
    if seen.waiting is not None:
        num_runs = 0 if seen.is_test else len(grid.candidates(stage)) * len(grid.stage_seeds(stage))
    else:
        num_runs = len(work)
    said = sight.waiting.get(seen.name)
    return StageProgress(
        name=seen.name,
        is_test=seen.is_test,
        depth=_depth(grid, stage),
        num_runs=num_runs,
        num_done=sum(map(known.is_done, work)),
        num_failed=sum(map(known.is_failed, work)),
        kept=() if seen.is_test else seen.kept,
        waiting=said.reason if said is not None and said.stopped else seen.waiting,
        rows=_rows(stage, seen, known),
    )


def _depth(grid: Grid, stage: Stage) -> int:
    """How many stages it starts from, one from the other."""
    starts = {each.name: each.start for each in grid.stages}
    depth, name = 0, None if stage.test is not None else stage.start
    while name in starts:
        depth, name = depth + 1, starts[name]
    return depth


def _rows(stage: Stage, seen: StageExpansion, known: Known) -> tuple[RowProgress, ...]:
    """What the stage's rows have come to; the best is that of the table."""
    metric = compared_metric(seen, stage.rule_metric)
    means = [
        mean_and_std([getattr(known.results[run.id], metric) for run in each.runs])[0]
        if all(known.is_done(Work(run.id, seen.is_test)) and run.id in known.results for run in each.runs)
        else None
        for each in seen.experiments
    ]
    best = best_of(means, metric)
    return tuple(_row(each, seen, known, is_best=index in best) for index, each in enumerate(seen.experiments))


def _row(row: Experiment, stage: StageExpansion, known: Known, *, is_best: bool) -> RowProgress:
    if stage.is_test:
        tests = [known.tests[run.id] for run in row.runs if run.id in known.tests]
        numbers = [(each.test_accuracy, each.test_loss) for each in tests]
    else:
        results = [known.results[run.id] for run in row.runs if run.id in known.results]
        numbers = [(each.validation_accuracy, each.validation_loss) for each in results]
    accuracy, spread = mean_and_std([each for each, _ in numbers]) if numbers else (None, None)
    return RowProgress(
        name=row.name,
        num_done=len(numbers),
        num_seeds=len(row.runs),
        accuracy=accuracy,
        spread=spread,
        loss=mean_and_std([each for _, each in numbers])[0] if numbers else None,
        is_best=is_best,
        is_kept=not stage.is_test and row.name in stage.kept,
    )


def _waits(
    sight: Sight, work: Collection[Work], at_work: Collection[Work], reasons: Mapping[str, str]
) -> tuple[tuple[str, int, str], ...]:
    """Why runs wait, the reason of the most runs first: the reason, how many, and the first one's label."""
    found: dict[str, list[Work]] = {}
    for each in work:
        if each not in at_work:
            state, reason = run_state(each, sight.known, reasons)
            if state == "waiting" and reason not in UNTOLD:
                found.setdefault(str(reason), []).append(each)
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return tuple((reason, len(each), sight.label(each[0])) for reason, each in ranked)
