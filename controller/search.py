"""Which experiments a grid comes to, stage by stage, and what each stage keeps. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import fsum, isfinite
from typing import Any

from pydantic import Field, ValidationError

from controller.grid import (
    BASE,
    Candidate,
    Grid,
    KeepBest,
    KeepThis,
    Stage,
    TestBest,
    TestThese,
    assign,
    matches,
)
from trainer.document import MAX_ERRORS, Path, Problem, problems_of, show_value, spec_error
from trainer.failure import DataError, ExitCode, Failure, SpecError
from trainer.identity import Identifier, run_id, with_seed
from trainer.result import Record, ResultNumbers
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, RunSpec, lower_is_better


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a store's index says of one data set; counts and shares by part (train, validation, test)."""

    fingerprint: str
    num_classes: int
    class_counts: Mapping[str, tuple[int, ...]]  # images of each class, in the order of the classes
    majority_share: Mapping[str, float]  # accuracy of always answering with the training part's largest class
    aspect_sums: Mapping[str, float] = field(default_factory=dict)  # longer by shorter side, summed over the images

    def num_images(self, part: str, images_per_class: int | None = None) -> int:
        """Images of the part, at most so many of each class."""
        counts = self.class_counts.get(part, ())
        return sum(counts if images_per_class is None else (min(count, images_per_class) for count in counts))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store and this machine know of the things that specs name."""

    data: Mapping[str, DataFacts] = field(default_factory=dict)  # by name of the data set
    weights: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by file in the store's weights/
    factories: Mapping[str, str] = field(default_factory=dict)  # hash of the source by `package.module:function`


@dataclass(frozen=True, slots=True)
class Needs:
    """What facts must cover for a grid to expand."""

    data: tuple[str, ...]
    weights: tuple[str, ...]
    factories: tuple[str, ...]
    classifiers: tuple[str, ...] = ()  # torchvision's, by name


@dataclass(frozen=True, slots=True)
class Run:
    """A spec with a seed under its id; many experiments may share it."""

    id: str
    spec: RunSpec


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of a table: a complete set of hyperparameters under a name, and a run for each seed."""

    stage: str
    name: str
    values: Mapping[str, object]  # what the stage varies, by dotted key: {"optimizer.lr": 0.01}
    spec: ExperimentSpec
    runs: tuple[Run, ...]


class RowSeen(Record):
    """One row as a decision saw it."""

    experiment: str
    runs: tuple[str, ...]
    value: float | None = Field(description="mean over seeds of the decision's metric; none for a failed row")
    reason: str | None = Field(default=None, description="why there is no value")


class Decision(Record):
    """What a stage kept and why, as `grids/<grid>/decisions/<stage>.json` holds it: written once."""

    stage: str
    kept: tuple[str, ...] = Field(description="names of the experiments kept: one, or the best N for a test stage")
    because: str = Field(description="the rule with its numbers, or the reason the grid's author gives")
    metric: str | None = Field(description="the validation metric that was compared; none for a pinned choice")
    saw: tuple[RowSeen, ...]
    time: datetime


@dataclass(frozen=True, slots=True)
class StageExpansion:
    """One stage as far as decisions reach."""

    name: str
    is_test: bool  # its experiments are earlier ones, to be evaluated on the test part
    experiments: tuple[Experiment, ...]  # in the table's order; empty while they are not known
    decision: Decision | None
    waiting: str | None  # why the experiments are not known yet: "for stage learning_rate to be decided"
    kept: tuple[str, ...] = ()  # names of the experiments kept: of the decision, or pinned by the grid without one


@dataclass(frozen=True, slots=True)
class Expansion:
    """A grid with all that its decisions make known."""

    grid: str
    seeds: tuple[int, ...]
    stages: tuple[StageExpansion, ...]

    def runs(self) -> dict[str, Run]:
        """Every distinct run known so far by id, in the order in which stages and rows name it first."""
        return {run.id: run for stage in self.stages for experiment in stage.experiments for run in experiment.runs}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stage that cannot be decided yet, and what would change that."""

    reason: str
    stopped: bool = False  # whether nothing comes of waiting: only `grid retry` or a changed grid helps


class DecisionMismatch(SpecError):
    """A recorded decision does not fit the grid any more."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(
            f"decision of stage {stage!r}: {message}",
            hint="--update sets it aside, with what was decided after it, and decides anew; what is trained stays",
        )
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Row:
    """One row with what it starts from, complete but for the fingerprints."""

    candidate: Candidate
    stage: str
    start: Row | None  # the kept row of an earlier stage; none for the grid's base
    written: Mapping[str, Any]  # without defaults, as a grid file has it
    spec: ExperimentSpec


def wanted(grid: Grid) -> Needs:
    """What the facts given to `expand` must cover: whatever any row may name."""
    found: dict[str, dict[str, list[Any]]] = {BASE: {key: [_at(grid.base, key)] for key in _NAMING}}
    for stage in grid.stages:
        if stage.test is None:
            assert stage.start is not None
            start = found[stage.start]
            rows = [{**stage.fixed, **row.values} for row in grid.candidates(stage)]
            found[stage.name] = {key: _named_values(key, rows, start[key]) for key in _NAMING}
    used = {key: [v for name, each in found.items() if name != BASE for v in each[key]] for key in _NAMING}
    architectures = _distinct(used["model.architecture"])
    return Needs(
        data=_distinct(used["data.name"]),
        weights=_distinct(used["model.weights"]),
        factories=tuple(name for name in architectures if ":" in name),
        classifiers=tuple(name for name in architectures if ":" not in name),
    )


_NAMING = ("data.name", "model.weights", "model.architecture")


def _named_values(key: str, rows: Sequence[Mapping[str, Any]], start: Sequence[Any]) -> list[Any]:
    outer = key.partition(".")[0]
    values: list[Any] = []
    for row in rows:
        if key in row:
            values.append(row[key])
        elif outer in row:
            values.append(_at(row, key) if isinstance(row[outer], Mapping) else None)
        else:
            values += start
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _at(values: Mapping[str, Any], key: str) -> Any:
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return inner


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if isinstance(value, str)))


def expand(grid: Grid, decisions: Mapping[str, Decision], facts: Facts) -> Expansion:
    """The grid's stages with every row that `decisions` and pinned choices make known.

    Raises SpecError on a row with wrong values, by its line in the grid file; DataError on what `facts` lack;
    DecisionMismatch on a decision that was taken over other rows or by another rule.
    """
    _check_facts(grid, facts)
    stages: list[StageExpansion] = []
    kept: dict[str, Row | None] = {BASE: None}
    undecided: set[str] = set()
    for stage in grid.stages:
        decision = decisions.get(stage.name)
        if stage.test is not None:
            stages.append(_expand_test(grid, stage, stages, decision))
            continue
        assert stage.start is not None
        if stage.start in undecided:
            if decision is not None:
                raise DecisionMismatch(stage.name, f"stage {stage.start!r}, which it starts from, is not decided")
            rows_of(grid, stage, _any_row(grid, stage.start))  # wrong values are told before the stage's turn comes
            undecided.add(stage.name)
            waiting = f"for stage {stage.start} to be decided"
            stages.append(StageExpansion(stage.name, False, (), None, waiting))
            continue
        rows = rows_of(grid, stage, kept[stage.start])
        experiments = _experiments(grid, stage, rows, facts)
        names = _kept_names(grid, stage, experiments, decision)
        if names:
            kept[stage.name] = next(row for row in rows if row.candidate.name == names[0])
        else:
            undecided.add(stage.name)
        stages.append(StageExpansion(stage.name, False, experiments, decision, None, names))
    return Expansion(grid.name, grid.seeds, tuple(stages))


def fitting(grid: Grid, decisions: Mapping[str, Decision], facts: Facts) -> tuple[Expansion, tuple[str, ...]]:
    """The grid with those of `decisions` that fit it, and the stages of the others, sorted.

    Raises SpecError and DataError as `expand` does.
    """
    stages = {stage.name for stage in grid.stages}
    fit = {stage: decision for stage, decision in decisions.items() if stage in stages}
    while True:
        try:
            return expand(grid, fit, facts), tuple(sorted(decisions.keys() - fit.keys()))
        except DecisionMismatch as mismatch:
            del fit[mismatch.stage]  # those that rest on it are the next not to fit


def _check_facts(grid: Grid, facts: Facts) -> None:
    needs = wanted(grid)
    missing = [
        *(
            (f"data set {name!r}: not in the store", f"`grid data import {name} SRC` puts it there")
            for name in needs.data
            if name not in facts.data
        ),
        *(
            (f"weights {name!r}: not in the store's weights/", f"put the state dict there as weights/{name}")
            for name in needs.weights
            if name not in facts.weights
        ),
        *(
            (f"factory {name!r}: no source found", "add its folder to PYTHONPATH, or install its package")
            for name in needs.factories
            if name not in facts.factories
        ),
    ]
    if missing:
        told = [f"{message}\nhint: {hint}" for message, hint in missing[:-1]] + [missing[-1][0]]
        raise DataError("\n".join(told), hint=missing[-1][1])


def rows_of(grid: Grid, stage: Stage, start: Row | None) -> tuple[Row, ...]:
    """The stage's rows when it starts from `start`. Raises one SpecError for all wrong values."""
    key = (stage.name, _lineage(start))
    if key not in grid.memo:
        grid.memo[key] = _rows(grid, stage, start)
    found: tuple[Row, ...] = grid.memo[key]
    return found


def _lineage(row: Row | None) -> tuple[str, ...]:
    return () if row is None else (*_lineage(row.start), row.stage, row.candidate.name)


def _any_row(grid: Grid, name: str) -> Row | None:
    """A row that the stage may well keep: the pinned one, or the first."""
    if name == BASE:
        return None
    stage = grid.stage(name)
    assert stage.start is not None
    rows = rows_of(grid, stage, _any_row(grid, stage.start))
    pinned = pinned_name(grid, stage)
    return next((row for row in rows if row.candidate.name == pinned), rows[0])


def _rows(grid: Grid, stage: Stage, start: Row | None) -> tuple[Row, ...]:
    common: Mapping[str, Any] = grid.base if start is None else start.written
    for key in sorted(stage.fixed, key=_depth):
        common = assign(common, key.split("."), stage.fixed[key])
    touched = {key.partition(".")[0] for candidate in grid.candidates(stage) for key in candidate.values}
    untouched = [name for name in ExperimentSpec.model_fields if name not in touched]
    shared: dict[str, Any] = {}  # what no row changes is checked once, and one object in all rows
    rows: list[Row] = []
    problems: dict[tuple[Any, ...], Problem] = {}
    for candidate in grid.candidates(stage):
        written = common
        for key in sorted(candidate.values, key=_depth) if len(candidate.values) > 1 else candidate.values:
            written = assign(written, key.split("."), candidate.values[key])
        try:
            spec = ExperimentSpec.model_validate({**written, **shared}, strict=True)
        except ValidationError as error:
            for problem in problems_of(error, ExperimentSpec, written):
                moved = _moved(grid, stage, candidate, start, problem)
                problems.setdefault((moved.path, moved.message), moved)
            if len(problems) >= MAX_ERRORS:
                break
            continue
        rows.append(Row(candidate, stage.name, start, written, spec))
        if not shared:
            shared = {name: getattr(spec, name) for name in untouched}
    if problems:
        raise spec_error(list(problems.values()), grid.document)
    return tuple(rows)


def _depth(key: str) -> int:
    return key.count(".")


def _moved(grid: Grid, stage: Stage, candidate: Candidate, start: Row | None, problem: Problem) -> Problem:
    """`problem`, found at a place of a complete spec, at the place of the grid file that caused it."""
    own = list(zip(candidate.values, candidate.origins, strict=True))
    own += [(key, (*grid.path(stage), "set", key)) for key in stage.fixed]
    row = f"row {candidate.name!r} of stage {stage.name!r}"
    if (path := _cause(own, problem.path)) is not None:
        return problem._replace(path=path, hint=problem.hint or f"{row} has it")
    inherited: list[tuple[str, Path]] = []
    while start is not None:
        inherited += zip(start.candidate.values, start.candidate.origins, strict=True)
        earlier = grid.stage(start.stage)
        inherited += [(key, (*grid.path(earlier), "set", key)) for key in earlier.fixed]
        start = start.start
    path = _cause(inherited, problem.path) or (BASE, *problem.path)
    outer = str(problem.path[0]) if problem.path else ""
    switch = next((key for key in (*candidate.values, *stage.fixed) if key.startswith(f"{outer}.")), None)
    if switch is None:
        return problem._replace(path=path, hint=problem.hint or f"{row} has it")
    value = {**stage.fixed, **candidate.values}[switch]
    return problem._replace(
        path=path, hint=f"{row} has {switch} {show_value(value)}: let the stage give all of {outer!r} instead"
    )


def _cause(assigned: Iterable[tuple[str, Path]], path: Path) -> Path | None:
    """Where the value at `path` of a spec was given by one of `assigned`: keys with their places in the grid file."""
    found: tuple[int, Path] | None = None
    for key, origin in assigned:
        parts = tuple(key.split("."))
        if path[: len(parts)] == parts and (found is None or len(parts) > found[0]):
            found = (len(parts), (*origin, *path[len(parts) :]))
    if found is None and path:
        found = next(((0, origin) for key, origin in assigned if tuple(key.split("."))[: len(path)] == path), None)
    if found is None and not path:
        found = next(((0, origin) for _, origin in assigned), None)
    return None if found is None else found[1]


def _experiments(grid: Grid, stage: Stage, rows: Iterable[Row], facts: Facts) -> tuple[Experiment, ...]:
    seeds = grid.stage_seeds(stage)
    identifier = Identifier()
    filled = _Filler(facts)
    found = []
    for row in rows:
        spec = filled(row.spec)
        ids = identifier.run_ids(spec, seeds)
        runs = tuple(Run(name, with_seed(spec, seed)) for name, seed in zip(ids, seeds, strict=True))
        found.append(Experiment(stage.name, row.candidate.name, row.candidate.values, spec, runs))
    return tuple(found)


class _Filler:
    """Fills in fingerprints; what specs share, as the same object, they share afterwards."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._filled: dict[int, tuple[Any, Any]] = {}  # by id(); the part itself stands there so that it stays its own

    def __call__(self, spec: ExperimentSpec) -> ExperimentSpec:
        """`spec` with every fingerprint. Raises DataError where it asks for another one."""
        return spec.model_copy(
            update={"data": self._part(spec.data, self._data), "model": self._part(spec.model, self._model)}
        )

    def _part(self, part: Any, fill: Callable[[Any], Any]) -> Any:
        if id(part) not in self._filled:
            self._filled[id(part)] = (part, fill(part))
        return self._filled[id(part)][1]

    def _data(self, data: DataSpec) -> DataSpec:
        known = self._facts.data[data.name].fingerprint
        if data.fingerprint not in (None, known):
            raise _other("data.fingerprint", data.fingerprint, known, f"data set {data.name!r}")
        return data.model_copy(update={"fingerprint": known})

    def _model(self, model: ModelSpec) -> ModelSpec:
        known: dict[str, str] = {}
        if model.weights is not None:
            known["weights_fingerprint"] = self._facts.weights[model.weights]
        if model.is_factory:
            known["source_hash"] = self._facts.factories[model.architecture]
        for key, value in known.items():
            if getattr(model, key) not in (None, value):
                raise _other(f"model.{key}", getattr(model, key), value, model.weights or model.architecture)
        return model.model_copy(update=known)


def with_facts(spec: ExperimentSpec, facts: Facts) -> ExperimentSpec:
    """`spec` with every fingerprint filled in. Raises DataError where the spec asks for another one."""
    return _Filler(facts)(spec)


def _other(key: str, got: Any, known: str, what: str) -> DataError:
    return DataError(
        f"{key}: got {got!r}, expected {known!r}, which {what} has in the store",
        hint="leave it out of the grid: it is filled in",
    )


def pinned_name(grid: Grid, stage: Stage) -> str | None:
    """Name of the row that the grid's author keeps whatever the results; none where a rule chooses."""
    if not isinstance(stage.keep, KeepThis):
        return None
    return _the_row(grid, stage, stage.keep.this, (*grid.path(stage), "keep", "this"))


def _the_row(grid: Grid, stage: Stage, this: Mapping[str, Any], path: Path) -> str:
    names = [row.name for row in grid.candidates(stage) if matches(row.values, this, row.name)]
    if len(names) != 1:
        rows = ", ".join(row.name for row in grid.candidates(stage)[:10])
        fitting = f"{len(names)} rows fit" if names else "no row fits"
        problem = Problem(
            path, f"got {show_value(dict(this))}: {fitting}, expected one of stage {stage.name!r}: {rows}"
        )
        raise spec_error([problem], grid.document)
    return names[0]


def _kept_names(
    grid: Grid, stage: Stage, experiments: Sequence[Experiment], decision: Decision | None
) -> tuple[str, ...]:
    pinned = pinned_name(grid, stage)
    if decision is None:
        return () if pinned is None else (pinned,)
    _check_rows(stage.name, experiments, decision)
    if pinned is not None and decision.kept != (pinned,):
        raise DecisionMismatch(stage.name, f"kept {_quoted(decision.kept)}, but the grid pins {pinned!r}")
    rule = stage.keep.best if isinstance(stage.keep, KeepBest) else None
    if decision.metric != rule:
        raise DecisionMismatch(stage.name, f"went by {_rule(decision.metric)}, but the grid goes by {_rule(rule)}")
    return decision.kept


def _check_rows(stage: str, experiments: Sequence[Experiment], decision: Decision) -> None:
    saw = {row.experiment: row.runs for row in decision.saw}
    now = {each.name: tuple(run.id for run in each.runs) for each in experiments}
    if missing := [name for name in saw if name not in now]:
        raise DecisionMismatch(stage, f"saw {_quoted(missing)}, which the grid no longer has")
    if added := [name for name in now if name not in saw]:
        raise DecisionMismatch(stage, f"did not see {_quoted(added)}, which the grid has now")
    if changed := [name for name in now if now[name] != saw[name]]:
        raise DecisionMismatch(stage, f"saw other runs of {_quoted(changed)} than the grid has now")
    if unknown := [name for name in decision.kept if name not in now]:
        raise DecisionMismatch(stage, f"kept {_quoted(unknown)}, which is none of its rows")


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _rule(metric: str | None) -> str:
    return "a pinned choice" if metric is None else f"the best {metric}"


def _expand_test(
    grid: Grid, stage: Stage, earlier: Sequence[StageExpansion], decision: Decision | None
) -> StageExpansion:
    choice = _test_candidates(stage, earlier)
    if choice is None:
        unknown = [each.name for each in earlier if each.name in _tested_stages(stage) and each.waiting]
        if decision is not None:
            raise DecisionMismatch(stage.name, f"the rows of {_quoted(unknown)} are not known")
        return StageExpansion(stage.name, True, (), None, f"for the rows of {', '.join(unknown)} to be known")
    names: tuple[str, ...] = ()
    if isinstance(stage.test, TestThese):
        names = _pinned_tests(grid, stage, earlier)
    if decision is not None:
        _check_rows(stage.name, choice, decision)
        if names and set(decision.kept) != set(names):
            raise DecisionMismatch(stage.name, f"kept {_quoted(decision.kept)}, but the grid pins {_quoted(names)}")
        rule = stage.test.by if isinstance(stage.test, TestBest) else None
        if decision.metric != rule:
            raise DecisionMismatch(stage.name, f"went by {_rule(decision.metric)}, but the grid goes by {_rule(rule)}")
        names = decision.kept
    if not names:
        return StageExpansion(
            stage.name, True, (), None, f"for all of {', '.join(_tested_stages(stage))} to be trained"
        )
    by_name = {each.name: each for each in choice}
    return StageExpansion(stage.name, True, tuple(by_name[name] for name in names), decision, None, names)


def _tested_stages(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage.test, TestThese):
        return tuple(dict.fromkeys(row.stage for row in stage.test.these))
    assert isinstance(stage.test, TestBest)
    assert stage.test.of is not None
    return stage.test.of


def _test_candidates(stage: Stage, earlier: Sequence[StageExpansion]) -> tuple[Experiment, ...] | None:
    """The distinct experiments that a test stage chooses from, first homes first; none while some are not known."""
    of = _tested_stages(stage)
    sources = [each for each in earlier if each.name in of]
    if any(each.waiting for each in sources):
        return None
    seen: set[str] = set()
    found = []
    for source in sources:
        for experiment in source.experiments:
            identity = _identity(experiment)
            if identity not in seen:
                seen.add(identity)
                name = f"{source.name}/{experiment.name}"
                found.append(Experiment(stage.name, name, experiment.values, experiment.spec, experiment.runs))
    return tuple(found)


def _identity(experiment: Experiment) -> str:
    """What experiments of equal hyperparameters share, whatever their names and seeds."""
    return run_id(with_seed(experiment.spec, 0))


def _pinned_tests(grid: Grid, stage: Stage, earlier: Sequence[StageExpansion]) -> tuple[str, ...]:
    assert isinstance(stage.test, TestThese)
    choice = _test_candidates(stage, earlier) or ()
    homes = {_identity(each): each.name for each in choice}
    names = []
    for index, row in enumerate(stage.test.these):
        path = (*grid.path(stage), "test", "these", index, "this")
        name = _the_row(grid, grid.stage(row.stage), row.this, path)
        source = next(each for each in earlier if each.name == row.stage)
        experiment = next(each for each in source.experiments if each.name == name)
        names.append(homes[_identity(experiment)])
    return tuple(dict.fromkeys(names))


def decide(
    grid: Grid,
    expansion: Expansion,
    results: Mapping[str, ResultNumbers],
    failures: Mapping[str, Failure],
    now: datetime,
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
            experiments = _test_candidates(stage, expansion.stages[:index])
        if experiments is None:
            said[seen.name] = Waiting(seen.waiting or "for its rows to be known")
        else:
            said[seen.name] = decide_stage(stage, experiments, results, failures, now, pinned=seen.kept)
    return said


def decide_stage(
    stage: Stage,
    experiments: Sequence[Experiment],
    results: Mapping[str, ResultNumbers],
    failures: Mapping[str, Failure],
    now: datetime,
    pinned: tuple[str, ...] = (),
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
        return Waiting(f"for {open_runs} of {total} runs")
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
    runs = tuple(run.id for run in experiment.runs)
    return RowSeen(experiment=experiment.name, runs=runs, value=value, reason=reason)


def _judged(
    experiment: Experiment, metric: str, results: Mapping[str, ResultNumbers], failures: Mapping[str, Failure]
) -> _Judged:
    values = [float(getattr(results[run.id], metric)) for run in experiment.runs if run.id in results]
    lost = [failures[run.id] for run in experiment.runs if run.id in failures and run.id not in results]
    final = [failure for failure in lost if failure.final]
    num_open = len(experiment.runs) - len(values) - len(final)
    count = f" ({len(final)} of {len(experiment.runs)} seeds)" if len(experiment.runs) > 1 else ""
    others = [failure for failure in final if not _diverged(failure)]
    if others:
        return _Judged(_seen(experiment, None, f"{others[0].reason}: {others[0].message}{count}"), num_open, True)
    if final or any(not isfinite(value) for value in values):
        return _Judged(_seen(experiment, None, f"diverged{count}"), num_open, False)
    if num_open:
        return _Judged(_seen(experiment, None, "not trained yet"), num_open, False)
    return _Judged(_seen(experiment, fsum(values) / len(values), None), 0, False)


def _diverged(failure: Failure) -> bool:
    """Whether training failed for good by its own numbers; memory that is too small says nothing about a row."""
    return failure.exit_code == ExitCode.TRAINING and failure.reason != "out-of-device-memory"


def _because(metric: str, ranked: Sequence[RowSeen], count: int, num_seeds: int) -> str:
    over = f", mean over {num_seeds} seeds" if num_seeds > 1 else ""
    direction = "lowest" if lower_is_better(metric) else "highest"
    told = ", ".join(f"{seen.value:.4g}" for seen in ranked[:count])
    following = f"; next {ranked[count].value:.4g} ({ranked[count].experiment})" if len(ranked) > count else ""
    return f"{direction} {metric}{over}: {told}{following}"
