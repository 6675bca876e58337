"""Which experiments a grid comes to, stage by stage. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import Field, ValidationError

from controller.grid import Grid
from controller.rows import Candidate, assign, matches
from controller.stages import BASE, KeepThis, Stage, TestBest, TestThese
from trainer.document import MAX_ERRORS, Path, Problem, problems_of, show_value, spec_error
from trainer.failure import DataError, SpecError
from trainer.identity import Identifier, with_seed
from trainer.result import Record
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, RunSpec


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a store's index says of one data set; counts and sums by part (train, validation, test)."""

    fingerprint: str
    num_classes: int
    class_counts: Mapping[str, tuple[int, ...]]  # images of each class, in the order of the classes
    aspect_sums: Mapping[str, float] = field(default_factory=dict)  # longer by shorter side, summed over the images
    other_split: str | None = None  # how it differs from the one that published figures are of, where that is known

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


class Run(NamedTuple):
    """A spec with a seed under its id; many experiments may share it."""

    id: str
    hyperparameters: ExperimentSpec
    seed: int

    @property
    def spec(self) -> RunSpec:
        """What the trainer reads; built when it is asked for, since most runs of a large grid are only counted."""
        return with_seed(self.hyperparameters, self.seed)


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


class DecisionMismatch(SpecError):
    """A recorded decision does not fit the grid any more."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(
            f"decision of stage {stage!r}: {message}",
            hint="--update sets it aside, with what was decided after it, and decides anew; what is trained stays",
        )
        self.stage = stage


class Row(NamedTuple):
    """One row with what it starts from, and the spec that it comes to."""

    candidate: Candidate
    stage: str
    start: Row | None  # the kept row of an earlier stage; none for the grid's base
    common: Mapping[str, Any]  # what all rows of the stage begin with, as a grid file has it
    spec: ExperimentSpec  # with every fingerprint

    @property
    def written(self) -> Mapping[str, Any]:
        """The row's values without defaults, as a grid file has them."""
        return _written(self.common, self.candidate)


class _Memo:
    """What was built of one grid, for as long as the facts are the same: the next call finds it."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.rows: dict[tuple[str, ...], tuple[Row, ...]] = {}  # by stage and the rows that it starts from
        self.experiments: dict[tuple[str, ...], tuple[Experiment, ...]] = {}  # likewise


_needs: WeakKeyDictionary[Grid, Needs] = WeakKeyDictionary()
_memos: WeakKeyDictionary[Grid, _Memo] = WeakKeyDictionary()  # a grid never changes: what was built of it stays true


def _memo(grid: Grid, facts: Facts) -> _Memo:
    memo = _memos.get(grid)
    if memo is None or memo.facts != facts:
        memo = _memos[grid] = _Memo(facts)
    return memo


def wanted(grid: Grid) -> Needs:
    """What the facts given to `expand` must cover: whatever any row may name."""
    if grid not in _needs:
        _needs[grid] = _wanted(grid)
    return _needs[grid]


def _wanted(grid: Grid) -> Needs:
    found: dict[str, dict[str, list[Any]]] = {BASE: {key: [_at(grid.base, key)] for key in _NAMING}}
    for stage in grid.stages:
        if stage.test is None:
            assert stage.start is not None
            base = grid.base_of(stage)
            start = found[stage.start] if stage.start != BASE else {key: [_at(base, key)] for key in _NAMING}
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

    Asked again with the same grid and facts it builds only what a new decision makes known. Raises SpecError on a row
    with wrong values, by its line in the grid file; DataError on what `facts` lack; DecisionMismatch on a decision
    that was taken over other rows or by another rule.
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
            rows_of(grid, stage, _any_row(grid, stage.start, facts), facts)  # wrong values are told beforehand
            undecided.add(stage.name)
            waiting = f"for stage {stage.start} to be decided"
            stages.append(StageExpansion(stage.name, False, (), None, waiting))
            continue
        rows = rows_of(grid, stage, kept[stage.start], facts)
        experiments = _experiments_of(grid, stage, kept[stage.start], facts)
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


def rows_of(grid: Grid, stage: Stage, start: Row | None, facts: Facts) -> tuple[Row, ...]:
    """The stage's rows when it starts from `start`, the same object for the same grid and facts.

    Raises one SpecError for all wrong values, DataError where a spec asks for another fingerprint than `facts` have.
    """
    memo = _memo(grid, facts)
    key = (stage.name, *_lineage(start))
    if key not in memo.rows:
        memo.rows[key] = _rows(grid, stage, start, facts)
    return memo.rows[key]


def _experiments_of(grid: Grid, stage: Stage, start: Row | None, facts: Facts) -> tuple[Experiment, ...]:
    memo = _memo(grid, facts)
    key = (stage.name, *_lineage(start))
    if key not in memo.experiments:
        memo.experiments[key] = _experiments(stage, rows_of(grid, stage, start, facts), grid.stage_seeds(stage))
    return memo.experiments[key]


def _lineage(row: Row | None) -> tuple[str, ...]:
    return () if row is None else (*_lineage(row.start), row.stage, row.candidate.name)


def _any_row(grid: Grid, name: str, facts: Facts) -> Row | None:
    """A row that the stage may well keep: the pinned one, or the first."""
    if name == BASE:
        return None
    stage = grid.stage(name)
    assert stage.start is not None
    rows = rows_of(grid, stage, _any_row(grid, stage.start, facts), facts)
    pinned = pinned_name(grid, stage)
    return next((row for row in rows if row.candidate.name == pinned), rows[0])


def _written(common: Mapping[str, Any], candidate: Candidate) -> Mapping[str, Any]:
    """`common` with the candidate's values: those of whole objects first, then those inside them."""
    for key, path in _outermost_first(tuple(candidate.values)):
        common = assign(common, path, candidate.values[key])
    return common


@lru_cache(maxsize=1024)
def _outermost_first(keys: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The keys, taken apart, in the order in which they are assigned."""
    return [(key, key.split(".")) for key in sorted(keys, key=_depth)]


def _rows(grid: Grid, stage: Stage, start: Row | None, facts: Facts) -> tuple[Row, ...]:
    common: Mapping[str, Any] = grid.base_of(stage) if start is None else start.written
    for key, path in _outermost_first(tuple(stage.fixed)):
        common = assign(common, path, stage.fixed[key])
    candidates = grid.candidates(stage)
    touched = {key.partition(".")[0] for candidate in candidates for key in candidate.values}
    untouched = [name for name in ExperimentSpec.model_fields if name not in touched]
    shared: dict[str, Any] = {}  # what no row changes is checked and filled in once, and one object in all rows
    costly = sorted(touched & {"data", "model"})  # what else is worked out of these is found again by the object
    parts: dict[tuple[str, str], Any] = {}  # each of them as it is written: one object in all rows likewise
    rows: list[Row] = []
    problems: dict[tuple[Any, ...], Problem] = {}
    other: DataError | None = None  # told only where all values are right
    for candidate in candidates:
        written = _written(common, candidate)
        texts = [(name, repr(written[name])) for name in costly if name in written]
        known = {text[0]: parts[text] for text in texts if text in parts}
        try:
            spec = ExperimentSpec.model_validate({**written, **shared, **known}, strict=True)
        except ValidationError as error:
            for problem in problems_of(error, ExperimentSpec, written):
                moved = _moved(grid, stage, candidate, start, problem)
                problems.setdefault((moved.path, moved.message), moved)
            if len(problems) >= MAX_ERRORS:
                break
            continue
        try:
            spec = with_facts(spec, facts)
        except DataError as error:
            other = other or error
        rows.append(Row(candidate, stage.name, start, common, spec))
        if not shared:
            shared = {name: getattr(spec, name) for name in untouched}
        parts.update({text: getattr(spec, text[0]) for text in texts if text[0] not in known})
    if problems:
        raise spec_error(list(problems.values()), grid.document)
    if other is not None:
        raise other
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
    first = stage
    while start is not None:
        inherited += zip(start.candidate.values, start.candidate.origins, strict=True)
        first = earlier = grid.stage(start.stage)
        inherited += [(key, (*grid.path(earlier), "set", key)) for key in earlier.fixed]
        start = start.start
    path = _cause(inherited, problem.path) or (*grid.base_path(first), *problem.path)
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


def _experiments(stage: Stage, rows: Iterable[Row], seeds: Sequence[int]) -> tuple[Experiment, ...]:
    identifier = Identifier()
    found = []
    for row in rows:
        spec = row.spec
        runs = tuple([Run(name, spec, seed) for name, seed in zip(identifier.run_ids(spec, seeds), seeds, strict=True)])
        found.append(Experiment(stage.name, row.candidate.name, row.candidate.values, spec, runs))
    return tuple(found)


def with_facts(spec: ExperimentSpec, facts: Facts) -> ExperimentSpec:
    """`spec` with every fingerprint, itself where it has them. Raises DataError where it asks for another one."""
    data, model = _with_fingerprint(spec.data, facts), _with_hashes(spec.model, facts)
    if data is spec.data and model is spec.model:
        return spec
    return spec.model_copy(update={"data": data, "model": model})


def _with_fingerprint(data: DataSpec, facts: Facts) -> DataSpec:
    known = facts.data[data.name].fingerprint
    if data.fingerprint == known:
        return data
    if data.fingerprint is not None:
        raise _other("data.fingerprint", data.fingerprint, known, f"data set {data.name!r}")
    return data.model_copy(update={"fingerprint": known})


def _with_hashes(model: ModelSpec, facts: Facts) -> ModelSpec:
    known: dict[str, str] = {}
    if model.weights is not None:
        known["weights_fingerprint"] = facts.weights[model.weights]
    if model.is_factory:
        known["source_hash"] = facts.factories[model.architecture]
    lacking = {key: value for key, value in known.items() if getattr(model, key) != value}
    for key, value in lacking.items():
        if getattr(model, key) is not None:
            raise _other(f"model.{key}", getattr(model, key), value, model.weights or model.architecture)
    return model.model_copy(update=lacking) if lacking else model


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
    rule = stage.rule_metric
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
    choice = testable(stage, earlier)
    if choice is None:
        unknown = [each.name for each in earlier if each.name in tested_stages(stage) and each.waiting]
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
        rule = stage.rule_metric
        if decision.metric != rule:
            raise DecisionMismatch(stage.name, f"went by {_rule(decision.metric)}, but the grid goes by {_rule(rule)}")
        names = decision.kept
    if not names:
        return StageExpansion(stage.name, True, (), None, f"for all of {', '.join(tested_stages(stage))} to be trained")
    by_name = {each.name: each for each in choice}
    return StageExpansion(stage.name, True, tuple(by_name[name] for name in names), decision, None, names)


def tested_stages(stage: Stage) -> tuple[str, ...]:
    """Names of the stages that a test stage chooses from."""
    if isinstance(stage.test, TestThese):
        return tuple(dict.fromkeys(row.stage for row in stage.test.these))
    assert isinstance(stage.test, TestBest)
    assert stage.test.of is not None
    return stage.test.of


def testable(stage: Stage, earlier: Sequence[StageExpansion]) -> tuple[Experiment, ...] | None:
    """The distinct experiments that a test stage chooses from, first homes first; none while some are not known.

    Where it gives rows names of its own, just those that it names.
    """
    of = tested_stages(stage)
    sources = [each for each in earlier if each.name in of]
    if any(each.waiting for each in sources):
        return None
    if isinstance(stage.test, TestThese) and any(row.name for row in stage.test.these):
        return tuple(_labelled(stage, stage.test, sources))
    found: dict[str, Experiment] = {}
    for source in sources:
        for experiment, identity in zip(source.experiments, _identities(source.experiments), strict=True):
            if identity not in found:
                name = f"{source.name}/{experiment.name}"
                found[identity] = Experiment(stage.name, name, experiment.values, experiment.spec, experiment.runs)
    return tuple(found.values())


def _labelled(stage: Stage, test: TestThese, sources: Sequence[StageExpansion]) -> Iterator[Experiment]:
    """The rows that a test stage takes under names of its own, each of them, in its order."""
    for row in test.these:
        source = next(each for each in sources if each.name == row.stage)
        for each in source.experiments:
            if matches(each.values, row.this, each.name):
                name = row.name or f"{source.name}/{each.name}"
                yield Experiment(stage.name, name, each.values, each.spec, each.runs)


def _identities(experiments: Iterable[Experiment]) -> list[str]:
    """Of each what experiments of equal hyperparameters share, whatever their names and seeds: the id at seed 0."""
    identifier = Identifier()
    return [
        each.runs[0].id if each.runs and each.runs[0].seed == 0 else identifier.run_ids(each.spec, (0,))[0]
        for each in experiments
    ]


def _pinned_tests(grid: Grid, stage: Stage, earlier: Sequence[StageExpansion]) -> tuple[str, ...]:
    assert isinstance(stage.test, TestThese)
    choice = testable(stage, earlier) or ()
    is_labelled = any(row.name for row in stage.test.these)
    homes = dict(zip(_identities(choice), (each.name for each in choice), strict=True))
    names = []
    for index, row in enumerate(stage.test.these):
        path = (*grid.path(stage), "test", "these", index, "this")
        name = _the_row(grid, grid.stage(row.stage), row.this, path)
        if is_labelled:
            names.append(row.name or f"{row.stage}/{name}")
            continue
        source = next(each for each in earlier if each.name == row.stage)
        experiment = next(each for each in source.experiments if each.name == name)
        names.append(homes[_identities([experiment])[0]])
    return tuple(dict.fromkeys(names))
