"""How a grid's runs stand, and which of them a command is about. Values in, values out."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from controller.grid import Grid
from controller.search import Decision, Expansion, StageExpansion
from controller.wording import listed
from trainer.document import nearest
from trainer.failure import Failure, SpecError
from trainer.result import ResultNumbers, TestResult

State = Literal["done", "running", "failed", "waiting"]
Held = Literal["paused", "cancelled"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")
HELD: tuple[Held, ...] = ("paused", "cancelled")


class Work(NamedTuple):
    """One thing to start a process for: training a run, or testing it."""

    run: str
    is_test: bool

    @property
    def during(self) -> Literal["train", "test"]:
        """What a failure of it says that it failed during."""
        return "test" if self.is_test else "train"


@dataclass(frozen=True, slots=True)
class Known:
    """What the store says of a grid's runs."""

    decisions: Mapping[str, Decision] = field(default_factory=dict)
    results: Mapping[str, ResultNumbers] = field(default_factory=dict)
    tests: Mapping[str, TestResult] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)  # runs that are not to be trained, as someone has said

    def is_done(self, work: Work) -> bool:
        """Whether its numbers are there."""
        return work.run in (self.tests if work.is_test else self.results)

    def is_failed(self, work: Work) -> bool:
        """Whether it failed for good."""
        return not self.is_done(work) and work.run in self.failures and self.failures[work.run].final


def run_state(work: Work, known: Known, active: Mapping[str, str]) -> tuple[State, str | None]:
    """How the work stands, and why it is not done.

    `active` tells of unfinished runs (`running on host:pid, epoch 3`, `queued`): what begins with `running` runs.
    Numbers outweigh all else. What runs outweighs a final failure: someone trains it again by hand. Of other unfinished
    work, that its run is paused or cancelled says all.
    """
    told = active.get(work.run)
    failure = known.failures.get(work.run)
    if known.is_done(work):
        return "done", None
    if told is not None and told.startswith("running"):
        return "running", told
    if failure is not None and failure.final:
        return "failed", failure_text(failure)
    if (held := known.held.get(work.run)) is not None:
        return "waiting", held
    if told is not None:
        return "waiting", told
    if failure is not None:
        return "waiting", f"to be started again after {failure_text(failure)}"
    if work.is_test and work.run in known.results:
        return "waiting", "trained, not tested yet"
    return "waiting", "never started"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of a grid a command is about."""

    only: str | None = None  # pattern of an experiment's name, `stage/experiment`, or a run's id
    stages: tuple[str, ...] = ()  # none: all

    @property
    def is_all(self) -> bool:
        """Whether no part of the grid is left out."""
        return self.only is None and not self.stages

    def takes_stage(self, stage: str) -> bool:
        """Whether anything of the stage is meant."""
        return not self.stages or stage in self.stages

    def takes(self, stage: str, experiment: str, run: str) -> bool:
        """Whether the run is meant, at this home of it."""
        if not self.takes_stage(stage):
            return False
        names = (experiment, f"{stage}/{experiment}", run)
        return self.only is None or any(fnmatch.fnmatchcase(name, self.only) for name in names)


def chosen_work(expansion: Expansion, choice: Choice) -> tuple[Work, ...]:
    """All that the chosen part of the grid comes to as far as it is known, in the order of stages and rows."""
    return tuple(
        dict.fromkeys(
            Work(run.id, stage.is_test)
            for stage in expansion.stages
            for experiment in stage.experiments
            for run in experiment.runs
            if choice.takes(stage.name, experiment.name, run.id)
        )
    )


def refuse_no_fit(choice: Choice, grid: Grid, expansion: Expansion) -> None:
    """Raise SpecError where --only fits no run that is known, and no row of a stage whose runs are not known yet."""
    if choice.only is None:
        return
    stages = [stage for stage in expansion.stages if choice.takes_stage(stage.name)]
    named = {stage.name: list(_row_names(grid, stage)) for stage in stages}
    if chosen_work(expansion, choice) or any(
        choice.takes(stage, name, run="") for stage, names in named.items() for name in names
    ):
        return
    names = list(dict.fromkeys(name for each in named.values() for name in each))
    near = nearest(choice.only.strip("*"), names)
    where = f"grid {grid.name}" if not choice.stages else f"stage {' or '.join(choice.stages)} of grid {grid.name}"
    raise SpecError(
        f"--only: got {choice.only!r}, which fits no row of {where}: {listed(names, 10) or 'it has none yet'}",
        hint=f"did you mean {near!r}?" if near else "* stands for any text, as in '*lr=0.01*'; a run's id is taken too",
    )


def _row_names(grid: Grid, stage: StageExpansion) -> Iterator[str]:
    """Names of the stage's rows, also of those that wait for a decision, and of all that a test may come to."""
    if stage.experiments:
        yield from (experiment.name for experiment in stage.experiments)
    elif not stage.is_test:
        yield from (candidate.name for candidate in grid.candidates(grid.stage(stage.name)))
    else:
        for each in grid.stages:
            if each.test is None:
                yield from (f"{each.name}/{candidate.name}" for candidate in grid.candidates(each))


def startable(work: Sequence[Work], known: Known) -> list[Work]:
    """What of `work` has neither its numbers nor a final failure, nor is held; a test only of a run with a result."""
    return [
        each
        for each in work
        if not known.is_done(each)
        and not known.is_failed(each)
        and each.run not in known.held
        and (not each.is_test or each.run in known.results)
    ]


def excess_failures(work: Iterable[Work], is_failed: Callable[[Work], object], max_failed: int | None) -> int:
    """How many runs of `work` failed, where those are more than `max_failed`, so that nothing new starts; else 0."""
    if max_failed is None:
        return 0
    failed = {each.run for each in work if is_failed(each)}
    return len(failed) if len(failed) > max_failed else 0


def numbers_text(work: Work, known: Known) -> str:
    """What a piece of work that is done came to."""
    if work.is_test:
        tested = known.tests[work.run]
        return f"test accuracy {tested.test_accuracy:.4f}, loss {tested.test_loss:.4f}"
    result = known.results[work.run]
    return (
        f"validation accuracy {result.validation_accuracy:.4f}, loss {result.validation_loss:.4f} "
        f"in epoch {result.best_epoch}"
    )


def failure_text(failure: Failure, *, with_hint: bool = False) -> str:
    """Why a run failed, and of one that is trained that it was its test; with its hint on a line of its own."""
    what = "in its test: " if failure.during == "test" else ""
    hint = f"\nhint: {failure.hint}" if with_hint and failure.hint else ""
    return f"{what}{failure.reason}: {failure.message}{hint}"


def held_text(held: Collection[Held]) -> str:
    """How many of `held` are paused and how many cancelled: `2 paused, 1 cancelled`; nothing where there are none."""
    counts = Counter(held)
    return ", ".join(f"{counts[each]:,} {each}" for each in HELD if counts[each])


def told_held(work: Iterable[Work], known: Known) -> str | None:
    """Which unfinished runs of `work` nobody starts, and how they are let go on; none where there are none."""
    held = {each.run: known.held[each.run] for each in work if each.run in known.held and not known.is_done(each)}
    if not held:
        return None
    runs = listed(list(held), 3)
    return f"not started: {held_text(held.values())}: {runs}; `grid resume RUN` lets one go on"
