"""What a grid will cost before anything trains: the plan as a value, and that value as text for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from controller.grid import Grid
from controller.search import Expansion, Experiment, Facts, Row, Run, StageExpansion, rows_of, wanted
from controller.stages import BASE, KeepBest, KeepThis, Stage, TestBest, TestThese
from controller.standing import Choice
from controller.wording import bytes_text, columns, count_text, elided, listed, plain, seconds_text, wrapped
from trainer.failure import DataError
from trainer.identity import Identifier
from trainer.result import Result
from trainer.sizes import Shape, Size, num_means, shape_of, state_bytes, training_bytes
from trainer.spec import DataSpec, ExperimentSpec, lower_is_better

MAX_OUTCOMES = 2_000  # ways in which open stages may be decided that are gone through
MAX_ROWS = 50_000  # rows that going through them may build
ROWS_SHOWN = 12
SPEED_SAMPLE = 100  # results of one network that are read to know its speed: ids are hashes, so any are a fair sample


class SpeedKey(NamedTuple):
    """What earlier results must share with a run to say how fast it will be."""

    architecture: str
    batch_size: int
    resize: int
    crop: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What earlier results of like runs measured."""

    images_per_second: float
    peak_memory_bytes: int
    num_parameters: int
    num_trainable_parameters: int


class Bounds(NamedTuple):
    """How many, as far as is known: `least` is none where only an upper bound was worked out."""

    least: int | None
    most: int

    def __str__(self) -> str:
        if self.least is None:
            return f"at most {self.most:,}"
        return f"{self.most:,}" if self.least == self.most else f"{self.least:,}-{self.most:,}"


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row whose values are known."""

    experiment: str
    runs: tuple[str, ...]  # empty where their ids hang on weights that are missing
    states: tuple[str, ...]  # of each run: new, shared (an earlier row has it), stored (its numbers are there), lacking


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage comes to."""

    name: str
    is_test: bool
    start: str | None  # the stage that it starts from, or base; none for a test stage
    num_rows: int
    num_runs: int  # rows times seeds
    new: Bounds  # runs to train that no earlier stage has
    shared: Bounds  # runs that an earlier row of the grid has already
    stored: Bounds  # runs, not shared, whose result is in the store; of a test stage those that are tested
    keeps: str
    because: str | None  # the reason of a decision or of the grid's author; none while a rule is to decide
    waiting: str | None  # why its rows are not known yet
    rows: tuple[RowPlan, ...]  # empty while they are not known


@dataclass(frozen=True, slots=True)
class LackingWeights:
    """A weights file that runs of the grid start from, and that the store has not, or not as it should be."""

    file: str
    found: str
    cure: str | None
    experiments: tuple[str, ...]  # `stage/row` of those that start from it and are known
    num_runs: int  # distinct ones of theirs; none known: rows of stages that wait may start from it


@dataclass(frozen=True, slots=True)
class Resources:
    """What to ask for, as far as the store's index, earlier results and the networks say; none where they do not."""

    images_per_epoch: tuple[tuple[str, int, int], ...]  # of each selection of data: its name, training, validation
    cache_bytes: int | None  # decoded images, uncropped, of every data set and resize together
    peak_memory_bytes: int | None  # the largest that earlier results of like runs had
    estimated_memory_bytes: int | None  # the largest by the size of its network, of runs without a like one's result
    checkpoint_bytes: int | None  # the largest run's state and best weights
    seconds: float | None  # of all new runs that are known and timed, one after another
    num_timed: int
    num_untimed: int
    unmeasured: tuple[str, ...]  # networks without an earlier result at this batch and image size
    unsized: Mapping[str, str]  # networks of unknown size, and why


@dataclass(frozen=True, slots=True)
class Plan:
    """A grid's stages and what they cost together."""

    grid: str
    digest: str
    seeds: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    distinct: Bounds
    stored: Bounds
    new: Bounds
    new_now: int  # distinct runs that are known and have no result
    resources: Resources
    choice: Choice = field(default_factory=Choice)  # nothing else is counted
    lacking: tuple[LackingWeights, ...] = ()  # no run of these is started before the weights are there
    other_data: tuple[str, ...] = ()  # data sets that are not those which the grid's published figures are of, and how

    def record(self) -> dict[str, Any]:
        """The plan as plain values for JSON."""
        return dataclasses.asdict(self) | {"bounds": "pairs of least (null: not worked out) and most"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of each network what it measures, or why that is not known; by the key of its shape."""

    known: dict[str, Size] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def shapes_of(expansion: Expansion, facts: Facts) -> list[Shape]:
    """The distinct networks that the grid trains as far as it is known."""
    shapes: dict[tuple[int, str, int], Shape] = {}
    for stage in expansion.stages:
        for experiment in stage.experiments:
            spec = experiment.spec
            if (place := _place(spec)) not in shapes:
                shapes[place] = shape_of(spec, facts.data[spec.data.name].num_classes)
    return list({shape.key: shape for shape in shapes.values()}.values())


def _place(spec: ExperimentSpec) -> tuple[int, str, int]:
    """What rows with the same network share, found faster than the network's shape: they have one model object."""
    return id(spec.model), spec.data.name, spec.data.crop


def runs_alike(expansion: Expansion, finished: Iterable[str]) -> list[str]:
    """Of the runs that are `finished`, some of each network that the grid trains: their results tell the speed."""
    networks = {_network(run) for run in expansion.runs()}
    alike: dict[str, list[str]] = {}
    for run in finished:
        if _network(run) in networks:
            alike.setdefault(_network(run), []).append(run)
    return [run for runs in alike.values() for run in runs[:SPEED_SAMPLE]]


def _network(run: str) -> str:
    """The part of a run's id that names its architecture."""
    return run.rpartition("-")[0]


def speeds_of(results: Iterable[Result]) -> dict[SpeedKey, Speed]:
    """What earlier results say of runs like theirs: the median speed, the largest memory."""
    alike: dict[SpeedKey, list[Result]] = {}
    for result in results:
        spec = result.spec
        try:
            key = SpeedKey(
                spec["model"]["architecture"], spec["batch_size"], spec["data"]["resize"], spec["data"]["crop"]
            )
        except (KeyError, TypeError):
            continue  # another trainer's spec, which need not be like ours
        alike.setdefault(key, []).append(result)
    return {
        key: Speed(
            images_per_second=median(result.images_per_second for result in found),
            peak_memory_bytes=max(result.peak_memory_bytes for result in found),
            num_parameters=max(result.num_parameters for result in found),
            num_trainable_parameters=max(result.num_trainable_parameters for result in found),
        )
        for key, found in alike.items()
    }


def lacking_weights(expansion: Expansion, lacking: Mapping[str, DataError]) -> tuple[LackingWeights, ...]:
    """What is wrong with weights, by file, with the rows of the grid that start from them."""
    found = []
    for file, error in lacking.items():
        rows = [
            each
            for stage in expansion.stages
            if not stage.is_test
            for each in stage.experiments
            if each.spec.model.weights == file
        ]
        homes = tuple(f"{row.stage}/{row.name}" for row in rows)
        num_runs = len({run.id for row in rows for run in row.runs})
        found.append(LackingWeights(file, error.message, error.hint, homes, num_runs))
    return tuple(found)


def published_data(grid: Grid) -> tuple[str, ...]:
    """The data sets of the grid where it has figures that were published for just these."""
    has_figures = any(
        stage.published is not None and not any(key.partition(".")[0] == "data" for key in stage.published.apart)
        for stage in grid.stages
    )
    return wanted(grid).data if has_figures else ()


def _other_data(grid: Grid, facts: Facts) -> tuple[str, ...]:
    told = {name: facts.data[name].other_split for name in published_data(grid)}
    return tuple(f"data set {name}: {text}" for name, text in told.items() if text)


def refuse_lacking(lacking: Sequence[LackingWeights]) -> None:
    """Nothing, when no weights are missing; raises DataError that names each file with its cure otherwise."""
    if lacking:
        told = [f"{each.found}\nhint: {each.cure}" for each in lacking[:-1]] + [lacking[-1].found]
        raise DataError("\n".join(told), hint=lacking[-1].cure)


def make_plan(
    grid: Grid,
    expansion: Expansion,
    facts: Facts,
    existing_results: AbstractSet[str],
    speeds: Mapping[SpeedKey, Speed],
    choice: Choice | None = None,
    *,
    existing_tests: AbstractSet[str] = frozenset(),
    sizes: Sizes | None = None,
    lacking: Mapping[str, DataError] | None = None,
) -> Plan:
    """The plan of `grid` as far as `expansion` knows it; the existing ones are ids of runs that have numbers.

    A stage that waits for others is counted for every way in which they may be decided, as far as MAX_OUTCOMES.
    What `choice` leaves out is counted nowhere, not even as what an earlier stage has. Of `lacking` weights, by file,
    `facts` have stand-ins: the ids of runs that start from them are not told.
    """
    choice = choice or Choice()
    lacking = lacking or {}
    expansion = _narrowed(expansion, choice)
    counts = _Outcomes(grid, expansion, facts, existing_results, choice)
    counts.go_through()
    seen: set[str] = set()
    stages = []
    for stage, known in zip(grid.stages, expansion.stages, strict=True):
        if not choice.takes_stage(stage.name):
            continue
        if known.is_test:
            stages.append(_test_plan(grid, stage, known, choice, existing_tests, lacking))
        else:
            stages.append(_stage_plan(grid, stage, known, counts, existing_results, seen, lacking))
    runs = expansion_runs(expansion)
    return Plan(
        grid=grid.name,
        digest=grid.digest,
        seeds=grid.seeds,
        stages=tuple(stages),
        distinct=counts.total("distinct"),
        stored=counts.total("stored"),
        new=counts.total("new"),
        new_now=sum(run not in existing_results for run in runs),
        resources=_resources(
            runs, facts, existing_results, speeds, sizes or Sizes(), any(stage.is_test for stage in stages)
        ),
        choice=choice,
        lacking=lacking_weights(expansion, lacking),
        other_data=_other_data(grid, facts),
    )


def _narrowed(expansion: Expansion, choice: Choice) -> Expansion:
    """`expansion` with all its stages, but only the experiments and runs that are chosen."""
    if choice.is_all:
        return expansion
    stages = []
    for stage in expansion.stages:
        experiments = (
            dataclasses.replace(
                each, runs=tuple(run for run in each.runs if choice.takes(stage.name, each.name, run.id))
            )
            for each in stage.experiments
        )
        stages.append(dataclasses.replace(stage, experiments=tuple(each for each in experiments if each.runs)))
    return dataclasses.replace(expansion, stages=tuple(stages))


def expansion_runs(expansion: Expansion) -> dict[str, Run]:
    """The runs that training stages know so far, by id; what a test stage names is among them."""
    stages = tuple(stage for stage in expansion.stages if not stage.is_test)
    return dataclasses.replace(expansion, stages=stages).runs()


def _stage_plan(
    grid: Grid,
    stage: Stage,
    known: StageExpansion,
    counts: _Outcomes,
    existing: AbstractSet[str],
    seen: set[str],
    lacking: Collection[str],
) -> StagePlan:
    rows = tuple(_row_plan(experiment, existing, seen, lacking) for experiment in known.experiments)
    return StagePlan(
        name=stage.name,
        is_test=False,
        start=stage.start,
        num_rows=counts.of(stage.name, "rows").most,
        num_runs=counts.of(stage.name, "runs").most,
        new=counts.of(stage.name, "new"),
        shared=counts.of(stage.name, "shared"),
        stored=counts.of(stage.name, "stored"),
        keeps=_keeps(stage, known, grid),
        because=_because(stage, known),
        waiting=known.waiting,
        rows=rows,
    )


def _row_plan(experiment: Experiment, existing: AbstractSet[str], seen: set[str], lacking: Collection[str]) -> RowPlan:
    if experiment.spec.model.weights in lacking:
        return _lacking_row(experiment)
    states = []
    for run in experiment.runs:
        states.append("shared" if run.id in seen else "stored" if run.id in existing else "new")
        seen.add(run.id)
    return RowPlan(experiment.name, tuple(run.id for run in experiment.runs), tuple(states))


def _lacking_row(experiment: Experiment) -> RowPlan:
    return RowPlan(experiment.name, (), ("lacking",) * len(experiment.runs))


def _test_plan(
    grid: Grid,
    stage: Stage,
    known: StageExpansion,
    choice: Choice,
    tested: AbstractSet[str],
    lacking: Collection[str],
) -> StagePlan:
    is_open = known.waiting is not None
    num_rows = len(known.experiments)
    if is_open and isinstance(stage.test, TestThese):
        num_rows = len(stage.test.these)
    elif is_open and isinstance(stage.test, TestBest):
        num_rows = min(stage.test.best, _num_testable(grid, stage.test))
    rows = tuple(
        _lacking_row(each)
        if each.spec.model.weights in lacking
        else RowPlan(
            each.name,
            tuple(run.id for run in each.runs),
            tuple("stored" if run.id in tested else "shared" for run in each.runs),
        )
        for each in known.experiments
    )
    num_runs = num_rows * len(grid.seeds) if is_open else sum(len(row.states) for row in rows)
    least = 0 if is_open and choice.only is not None else num_runs  # which rows they are is not known
    num_stored = sum(state == "stored" for row in rows for state in row.states)
    return StagePlan(
        name=stage.name,
        is_test=True,
        start=None,
        num_rows=num_rows,
        num_runs=num_runs,
        new=Bounds(0, 0),
        shared=Bounds(least - num_stored, num_runs - num_stored),
        stored=Bounds(num_stored, num_stored),
        keeps=_keeps(stage, known, grid),
        because=_because(stage, known),
        waiting=known.waiting,
        rows=rows,
    )


def _num_testable(grid: Grid, test: TestBest) -> int:
    """How many rows there are at most to choose from."""
    return sum(len(grid.candidates(grid.stage(name))) for name in test.of or ())


def _keeps(stage: Stage, known: StageExpansion, grid: Grid) -> str:
    if known.decision is not None:
        return ", ".join(known.kept)
    if isinstance(stage.test, TestBest):
        there_are = _num_testable(grid, stage.test)
        few = f", {count_text(there_are, 'row')} at most" if there_are < stage.test.best else ""
        return f"best {stage.test.best} by {stage.test.by}{few}"
    if isinstance(stage.keep, KeepBest):
        return f"{'lowest' if lower_is_better(stage.keep.best) else 'highest'} {stage.keep.best}"
    return f"{', '.join(known.kept)} (pinned)" if known.kept else "pinned rows"


def _because(stage: Stage, known: StageExpansion) -> str | None:
    if known.decision is not None:
        return known.decision.because
    choice = stage.test or stage.keep
    return choice.because if isinstance(choice, KeepThis | TestThese) else None


class _Outcomes:
    """Counts runs of each stage over every way in which the stages that are still open may be decided."""

    def __init__(
        self, grid: Grid, expansion: Expansion, facts: Facts, existing: AbstractSet[str], choice: Choice
    ) -> None:
        self._grid = grid
        self._choice = choice
        self._facts = facts
        self._existing = existing
        self._stages = [
            (stage, known) for stage, known in zip(grid.stages, expansion.stages, strict=True) if stage.test is None
        ]
        self._starts = {stage.start for stage, _ in self._stages}
        self._found: dict[tuple[str, str], Bounds] = {}
        self._ids: dict[tuple[str, int], list[list[str]]] = {}
        self._identifier = Identifier()
        self._num_counted = self._bounded()

    def of(self, stage: str, what: str) -> Bounds:
        """Bounds of the stage's `new`, `shared` or `stored` runs, or of all its `runs` and `rows`."""
        return self._found[stage, what]

    def total(self, what: str) -> Bounds:
        """Bounds of the whole grid's `new`, `stored` or `distinct` runs."""
        return self._found["", what]

    def go_through(self) -> None:
        """Count everything."""
        self._visit(0, {BASE: None}, set(), {"new": 0, "stored": 0, "distinct": 0})
        for stage, _ in self._stages[self._num_counted :]:
            rows = len(self._grid.candidates(stage)) if self._choice.takes_stage(stage.name) else 0
            most = rows * len(self._grid.stage_seeds(stage))
            self._found[stage.name, "rows"] = Bounds(None, rows)
            for what in ("new", "shared", "stored", "runs"):
                self._found[stage.name, what] = Bounds(None, most)
            for what in ("new", "stored", "distinct"):
                self._found["", what] = Bounds(None, self._found["", what].most + most)

    def _bounded(self) -> int:
        """How many stages can be counted before their outcomes become too many."""
        outcomes = 1
        for index, (stage, known) in enumerate(self._stages):
            rows = len(self._grid.candidates(stage))
            if known.waiting and (outcomes > MAX_OUTCOMES or outcomes * rows > MAX_ROWS):
                return index
            if not known.kept and stage.name in self._starts:
                outcomes *= rows
        return len(self._stages)

    def _visit(self, index: int, kept: dict[str, Row | None], seen: set[str], sums: dict[str, int]) -> None:
        if index == self._num_counted:
            for what, count in sums.items():
                self._note("", what, count)
            return
        stage, known = self._stages[index]
        assert stage.start is not None
        by_row = self._run_ids(stage, known, kept[stage.start])
        ids = [run for runs in by_row for run in runs]
        fresh = set(ids) - seen
        stored = len(fresh & self._existing)
        counts = {"new": len(fresh) - stored, "shared": len(ids) - len(fresh), "stored": stored}
        counts |= {"rows": sum(map(bool, by_row)), "runs": len(ids)}
        for what, count in counts.items():
            self._note(stage.name, what, count)
        sums = {
            "new": sums["new"] + counts["new"],
            "stored": sums["stored"] + stored,
            "distinct": sums["distinct"] + len(fresh),
        }
        seen = seen | fresh
        if stage.name not in self._starts:
            self._visit(index + 1, kept, seen, sums)
            return
        rows = rows_of(self._grid, stage, kept[stage.start], self._facts)
        choices = [row for row in rows if not known.kept or row.candidate.name in known.kept]
        if index + 1 == self._num_counted:
            choices = choices[:1]  # no stage that is counted hangs on the choice
        for row in choices:
            self._visit(index + 1, {**kept, stage.name: row}, seen, sums)

    def _run_ids(self, stage: Stage, known: StageExpansion, start: Row | None) -> list[list[str]]:
        """Ids of the chosen runs of each row."""
        if known.experiments:
            return [[run.id for run in experiment.runs] for experiment in known.experiments]
        rows = rows_of(self._grid, stage, start, self._facts)
        key = (stage.name, id(rows))  # search keeps the rows it built, so that their id() stays theirs
        if key not in self._ids:
            self._ids[key] = [self._chosen_ids(stage, row) for row in rows]
        return self._ids[key]

    def _chosen_ids(self, stage: Stage, row: Row) -> list[str]:
        if not self._choice.takes_stage(stage.name):
            return []
        found = self._identifier.run_ids(row.spec, self._grid.stage_seeds(stage))
        return [run for run in found if self._choice.takes(stage.name, row.candidate.name, run)]

    def _note(self, stage: str, what: str, count: int) -> None:
        before = self._found.get((stage, what))
        if before is None:
            self._found[stage, what] = Bounds(count, count)
        else:
            assert before.least is not None
            self._found[stage, what] = Bounds(min(before.least, count), max(before.most, count))


@dataclass(slots=True)
class _Alike:
    """Runs that differ in nothing that their cost hangs on."""

    spec: ExperimentSpec  # of one of them
    num_runs: int = 0
    num_new: int = 0


def _resources(
    runs: Mapping[str, Run],
    facts: Facts,
    existing: AbstractSet[str],
    speeds: Mapping[SpeedKey, Speed],
    sizes: Sizes,
    tests: bool,
) -> Resources:
    by_data: dict[tuple[str, int, int | None], DataSpec] = {}
    seconds, num_timed, num_untimed = 0.0, 0, 0
    state, measured, estimated = [], [], []
    unmeasured: dict[str, None] = {}
    unsized: dict[str, str] = {}
    earlier_sizes = {key.architecture: speed for key, speed in speeds.items()}
    for alike in _grouped(runs, existing):
        spec = alike.spec
        data, architecture = spec.data, spec.model.architecture
        by_data.setdefault((data.name, data.resize, data.images_per_class), data)
        shape = shape_of(spec, facts.data[data.name].num_classes).key
        size = sizes.known.get(shape)
        if size is not None:
            state.append(state_bytes(spec, size.num_parameters + size.num_buffers, size.num_trainable_parameters))
        elif (earlier := earlier_sizes.get(architecture)) is not None:
            state.append(state_bytes(spec, earlier.num_parameters, earlier.num_trainable_parameters))
        if not alike.num_new:
            continue
        speed = speeds.get(SpeedKey(architecture, spec.batch_size, data.resize, data.crop))
        if speed is not None:
            seconds += alike.num_new * spec.epochs * sum(_epoch_images(data, facts)) / speed.images_per_second
            num_timed += alike.num_new
            measured.append(speed.peak_memory_bytes)
            continue
        num_untimed += alike.num_new
        unmeasured[architecture] = None
        if size is not None:
            estimated.append(training_bytes(spec, size))
        else:
            unsized[architecture] = sizes.unknown.get(shape, "")
    selections = {(data.name, data.images_per_class): data for data in by_data.values()}
    return Resources(
        images_per_epoch=tuple(
            (data.name + (f", {limit} a class" if limit else ""), *_epoch_images(data, facts))
            for (_, limit), data in selections.items()
        ),
        cache_bytes=_cache_bytes(by_data.values(), facts, tests),
        peak_memory_bytes=max(measured, default=None),
        estimated_memory_bytes=max(estimated, default=None),
        checkpoint_bytes=max(state, default=None),
        seconds=seconds if num_timed else None,
        num_timed=num_timed,
        num_untimed=num_untimed,
        unmeasured=tuple(unmeasured),
        unsized=unsized,
    )


def _grouped(runs: Mapping[str, Run], existing: AbstractSet[str]) -> Iterable[_Alike]:
    """The runs, many of which cost the same, in groups that are few."""
    groups: dict[tuple[object, ...], _Alike] = {}
    for name, run in runs.items():
        spec = run.hyperparameters
        kind = (id(spec.model), id(spec.data), spec.batch_size, spec.micro_batch, spec.epochs, num_means(spec))
        if (group := groups.get(kind)) is None:
            group = groups[kind] = _Alike(spec)
        group.num_runs += 1
        group.num_new += name not in existing
    return groups.values()


def _epoch_images(data: DataSpec, facts: Facts) -> tuple[int, int]:
    known = facts.data[data.name]
    return known.num_images("train", data.images_per_class), known.num_images("validation", data.images_per_class)


def _cache_bytes(selections: Iterable[DataSpec], facts: Facts, tests: bool) -> int | None:
    """Three bytes for each pixel of every image once its shorter side is `resize`."""
    total = 0.0
    for data in selections:
        known = facts.data[data.name]
        for part in ("train", "validation", *(("test",) if tests else ())):
            count = known.num_images(part)
            if not count:
                continue
            if part not in known.aspect_sums:
                return None
            used = known.num_images(part, data.images_per_class) / count
            total += 3 * data.resize**2 * known.aspect_sums[part] * used
    return round(total)


# The text


def plan_text(plan: Plan, rows_shown: int = ROWS_SHOWN, width: int = 80) -> str:
    """The plan for a terminal: a table of stages, the rows that are known, totals, and what to ask for.

    Lines have at most `width` characters, from about 60 on.
    """
    lines = wrapped(f"grid {plan.grid}, {'seed' if len(plan.seeds) == 1 else 'seeds'} {_seeds(plan.seeds)}", width)
    if not plan.choice.is_all:
        lines += wrapped(f"only what {_choice_text(plan.choice)} takes is counted", width)
    lines += ["", *_stage_table(plan.stages, width)]
    for stage in plan.stages:
        lines += ["", *_stage_text(stage, rows_shown, width)]
    later = " (stages that wait included)" if any(stage.waiting for stage in plan.stages) else ""
    now = f", {plan.new_now:,} of them known now" if plan.new != Bounds(plan.new_now, plan.new_now) else ""
    total = (
        f"total: {plan.distinct} distinct {'run' if plan.distinct == Bounds(1, 1) else 'runs'}{later}, "
        f"{plan.stored} in the store, {plan.new} to train{now}"
    )
    lines.append("")
    for text in (total, *_resource_text(plan.resources)):
        lines += wrapped(text, width)
    for told in plan.other_data:
        lines += ["", *wrapped(f"note: {told}", width)]
    for each in plan.lacking:
        lines += ["", *wrapped(f"{each.file} is missing: {lacking_text(each)}", width)]
        lines += wrapped(f"hint: {each.cure}", width, indent=2) if each.cure else []
    return "\n".join(line.rstrip() for line in lines)


def lacking_text(lacking: LackingWeights) -> str:
    """Which runs start from the file."""
    if not lacking.experiments:
        return "rows of stages that wait may start from it"
    runs = count_text(lacking.num_runs, "run")
    return f"{runs} {'starts' if lacking.num_runs == 1 else 'start'} from it: {listed(lacking.experiments, 5)}"


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:8])) + (", …" if len(seeds) > 8 else "")


def _choice_text(choice: Choice) -> str:
    words = [f"--stage {stage}" for stage in choice.stages]
    return " ".join([*words, *([] if choice.only is None else [f"--only {choice.only!r}"])])


def _stage_table(stages: Sequence[StagePlan], width: int) -> list[str]:
    """A line for each stage with its counts; names give way where they are too long."""
    head = ("stage", "starts from", "rows", "runs", "new", "shared", "in store")
    counts = [
        (f"{stage.num_rows:,}", f"{stage.num_runs:,}", str(stage.new), str(stage.shared), str(stage.stored))
        for stage in stages
    ]
    taken = sum(max(map(len, cells)) + 2 for cells in zip(head[2:], *counts, strict=True))
    room = max((width - taken - 2) // 2, len(head[1]))
    names = [(stage.name, "test part" if stage.is_test else stage.start or "") for stage in stages]
    body = [
        (elided(name, room), elided(start, room), *cells) for (name, start), cells in zip(names, counts, strict=True)
    ]
    lengths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    return columns([head, tuple("─" * length for length in lengths), *body], right=range(2, len(head)))


def _stage_text(stage: StagePlan, rows_shown: int, width: int) -> list[str]:
    because = f", because {stage.because}" if stage.because else ""
    verb = "tests" if stage.is_test else "keeps"
    lines = wrapped(f"{stage.name}: {verb} {stage.keeps}{because}", width)
    if stage.waiting is not None:
        return lines + wrapped(f"rows known later, it waits {stage.waiting}", width, indent=2)
    words = {"shared": "shared with an earlier row", "stored": "in the store", "new": "new"}
    if stage.is_test:
        words = {"shared": "to be tested", "stored": "tested"}
    words["lacking"] = "lacks its weights"
    body = [
        (
            plain(row.experiment),
            listed(row.runs, 3) or "id known later",
            ", ".join(words[state] for state in dict.fromkeys(row.states)),
        )
        for row in stage.rows[:rows_shown]
    ]
    if all(sum(map(len, cells)) + 6 <= width for cells in body):
        aligned = columns(body)
        if all(len(line) + 2 <= width for line in aligned):
            return lines + [f"  {line}" for line in aligned] + _more_rows(stage, rows_shown)
    for name, runs, state in body:
        lines += wrapped(f"{name}: {state}", width, indent=2)
        lines += wrapped(runs, width, indent=4, hang=0)
    return lines + _more_rows(stage, rows_shown)


def _more_rows(stage: StagePlan, rows_shown: int) -> list[str]:
    hidden = len(stage.rows) - rows_shown
    return [f"  … and {count_text(hidden, 'more row')}"] if hidden > 0 else []


def _resource_text(resources: Resources) -> list[str]:
    lines = []
    for name, train, validation in resources.images_per_epoch:
        lines.append(f"images per epoch: {train:,} training and {validation:,} validation ({name})")
    if resources.cache_bytes is not None:
        lines.append(f"scratch: {bytes_text(resources.cache_bytes)} for decoded images")
    else:
        lines.append("scratch: unknown, the index has no image sizes")
    unknown = []
    memory = []
    if resources.peak_memory_bytes is not None:
        memory.append(f"{bytes_text(resources.peak_memory_bytes)} at most in earlier runs")
    if resources.estimated_memory_bytes is not None:
        others = "others " if memory else ""
        memory.append(
            f"{others}about {bytes_text(resources.estimated_memory_bytes)} a run at most, reckoned from the networks "
            "for training on a CPU in fp32; decoded images in use come on top"
        )
    if memory:
        lines.append(f"memory: {'; '.join(memory)}")
    elif resources.unmeasured:
        unknown.append("memory")
    if resources.checkpoint_bytes is not None:
        lines.append(f"checkpoint: {bytes_text(resources.checkpoint_bytes)} for the largest network")
    elif resources.unmeasured:
        unknown.append("checkpoint size")
    if resources.seconds is not None:
        rest = f"; {count_text(resources.num_untimed, 'further run')} without an earlier speed"
        known = count_text(resources.num_timed, "known run")
        lines.append(
            f"time: about {seconds_text(resources.seconds)} for {known} one after another"
            f"{rest if resources.num_untimed else ''}"
        )
    elif resources.num_untimed:
        unknown.append("time")
    if unknown:
        lines.append(f"{', '.join(unknown)}: unknown until the first run of {listed(resources.unmeasured)}")
    for architecture, why in resources.unsized.items():
        if why:
            lines.append(f"{architecture}: its size is not known: {why}")
    return lines
