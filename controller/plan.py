"""What a grid will cost before anything trains: the plan as a value, and that value as text for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from controller.grid import BASE, Grid, KeepBest, KeepThis, Stage, TestBest, TestThese
from controller.search import Expansion, Experiment, Facts, Row, Run, StageExpansion, rows_of, with_facts
from controller.standing import Choice
from trainer.identity import Identifier
from trainer.result import Result
from trainer.spec import AdamWSpec, DataSpec, ExperimentSpec, RunSpec, lower_is_better

MAX_OUTCOMES = 2_000  # ways in which open stages may be decided that are gone through
MAX_ROWS = 50_000  # rows that going through them may build
BYTES_PER_NUMBER = 4  # parameters and optimiser state are fp32 at every precision
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
    runs: tuple[str, ...]
    states: tuple[str, ...]  # of each run: new, shared (an earlier row has it) or stored (its result is there)


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
    stored: Bounds  # runs, not shared, whose result is in the store
    keeps: str
    because: str | None  # the reason of a decision or of the grid's author; none while a rule is to decide
    waiting: str | None  # why its rows are not known yet
    rows: tuple[RowPlan, ...]  # empty while they are not known


@dataclass(frozen=True, slots=True)
class Resources:
    """What to ask for, as far as the store's index and earlier results say; none where they do not."""

    images_per_epoch: tuple[tuple[str, int, int], ...]  # of each selection of data: its name, training, validation
    cache_bytes: int | None  # decoded images, uncropped, of every data set and resize together
    peak_memory_bytes: int | None  # the largest that earlier results of like runs had
    checkpoint_bytes: int | None  # the largest run's state and best weights
    seconds: float | None  # of all new runs that are known and timed, one after another
    num_timed: int
    num_untimed: int
    unmeasured: tuple[str, ...]  # networks without an earlier result at this batch and image size


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

    def record(self) -> dict[str, Any]:
        """The plan as plain values for JSON."""
        return dataclasses.asdict(self) | {"bounds": "pairs of least (null: not worked out) and most"}


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


def make_plan(
    grid: Grid,
    expansion: Expansion,
    facts: Facts,
    existing_results: AbstractSet[str],
    speeds: Mapping[SpeedKey, Speed],
    choice: Choice | None = None,
) -> Plan:
    """The plan of `grid` as far as `expansion` knows it; `existing_results` are ids of runs that have a result.

    A stage that waits for others is counted for every way in which they may be decided, as far as MAX_OUTCOMES.
    What `choice` leaves out is counted nowhere, not even as what an earlier stage has.
    """
    choice = choice or Choice()
    expansion = _narrowed(expansion, choice)
    counts = _Outcomes(grid, expansion, facts, existing_results, choice)
    counts.go_through()
    seen: set[str] = set()
    stages = []
    for stage, known in zip(grid.stages, expansion.stages, strict=True):
        if not choice.takes_stage(stage.name):
            continue
        if known.is_test:
            stages.append(_test_plan(grid, stage, known, choice))
        else:
            stages.append(_stage_plan(stage, known, counts, existing_results, seen))
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
        resources=_resources(runs, facts, existing_results, speeds, any(stage.is_test for stage in stages)),
        choice=choice,
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
    stage: Stage, known: StageExpansion, counts: _Outcomes, existing: AbstractSet[str], seen: set[str]
) -> StagePlan:
    rows = tuple(_row_plan(experiment, existing, seen) for experiment in known.experiments)
    return StagePlan(
        name=stage.name,
        is_test=False,
        start=stage.start,
        num_rows=counts.of(stage.name, "rows").most,
        num_runs=counts.of(stage.name, "runs").most,
        new=counts.of(stage.name, "new"),
        shared=counts.of(stage.name, "shared"),
        stored=counts.of(stage.name, "stored"),
        keeps=_keeps(stage, known),
        because=_because(stage, known),
        waiting=known.waiting,
        rows=rows,
    )


def _row_plan(experiment: Experiment, existing: AbstractSet[str], seen: set[str]) -> RowPlan:
    states = []
    for run in experiment.runs:
        states.append("shared" if run.id in seen else "stored" if run.id in existing else "new")
        seen.add(run.id)
    return RowPlan(experiment.name, tuple(run.id for run in experiment.runs), tuple(states))


def _test_plan(grid: Grid, stage: Stage, known: StageExpansion, choice: Choice) -> StagePlan:
    is_open = known.waiting is not None and isinstance(stage.test, TestBest)
    num_rows = stage.test.best if is_open and isinstance(stage.test, TestBest) else len(known.experiments)
    ids = tuple(RowPlan(each.name, tuple(run.id for run in each.runs), ()) for each in known.experiments)
    num_runs = num_rows * len(grid.seeds) if is_open else sum(len(row.runs) for row in ids)
    least = 0 if is_open and choice.only is not None else num_runs  # which rows they are is not known
    none = Bounds(0, 0)
    return StagePlan(
        name=stage.name,
        is_test=True,
        start=None,
        num_rows=num_rows,
        num_runs=num_runs,
        new=none,
        shared=Bounds(least, num_runs),
        stored=none,
        keeps=_keeps(stage, known),
        because=_because(stage, known),
        waiting=known.waiting,
        rows=ids,
    )


def _keeps(stage: Stage, known: StageExpansion) -> str:
    if known.decision is not None:
        return ", ".join(known.kept)
    if isinstance(stage.test, TestBest):
        return f"best {stage.test.best} by {stage.test.by}"
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
        rows = rows_of(self._grid, stage, kept[stage.start])
        choices = [row for row in rows if not known.kept or row.candidate.name in known.kept]
        if index + 1 == self._num_counted:
            choices = choices[:1]  # no stage that is counted hangs on the choice
        for row in choices:
            self._visit(index + 1, {**kept, stage.name: row}, seen, sums)

    def _run_ids(self, stage: Stage, known: StageExpansion, start: Row | None) -> list[list[str]]:
        """Ids of the chosen runs of each row."""
        if known.experiments:
            return [[run.id for run in experiment.runs] for experiment in known.experiments]
        rows = rows_of(self._grid, stage, start)
        key = (stage.name, id(rows))  # the grid keeps the rows it built, so that their id() stays theirs
        if key not in self._ids:
            self._ids[key] = [self._chosen_ids(stage, row) for row in rows]
        return self._ids[key]

    def _chosen_ids(self, stage: Stage, row: Row) -> list[str]:
        if not self._choice.takes_stage(stage.name):
            return []
        found = self._identifier.run_ids(with_facts(row.spec, self._facts), self._grid.stage_seeds(stage))
        return [run for run in found if self._choice.takes(stage.name, row.candidate.name, run)]

    def _note(self, stage: str, what: str, count: int) -> None:
        before = self._found.get((stage, what))
        if before is None:
            self._found[stage, what] = Bounds(count, count)
        else:
            assert before.least is not None
            self._found[stage, what] = Bounds(min(before.least, count), max(before.most, count))


def _resources(
    runs: Mapping[str, Run],
    facts: Facts,
    existing: AbstractSet[str],
    speeds: Mapping[SpeedKey, Speed],
    tests: bool,
) -> Resources:
    by_data: dict[tuple[str, int, int | None], DataSpec] = {}
    networks: dict[SpeedKey, list[ExperimentSpec]] = {}
    seconds, num_timed, num_untimed = 0.0, 0, 0
    state_bytes = []
    parameters = {key.architecture: speed.num_parameters for key, speed in speeds.items()}
    for name, run in runs.items():
        spec = run.spec
        by_data.setdefault((spec.data.name, spec.data.resize, spec.data.images_per_class), spec.data)
        if spec.model.architecture in parameters:
            state_bytes.append(_state_bytes(spec, parameters[spec.model.architecture]))
        if name in existing:
            continue
        key = SpeedKey(spec.model.architecture, spec.batch_size, spec.data.resize, spec.data.crop)
        networks.setdefault(key, []).append(spec)
        speed = speeds.get(key)
        if speed is None:
            num_untimed += 1
        else:
            seconds += spec.epochs * sum(_epoch_images(spec.data, facts)) / speed.images_per_second
            num_timed += 1
    unmeasured = list(dict.fromkeys(key.architecture for key in networks if key not in speeds))
    measured = [speeds[key].peak_memory_bytes for key in networks if key in speeds]
    selections = {(data.name, data.images_per_class): data for data in by_data.values()}
    return Resources(
        images_per_epoch=tuple(
            (data.name + (f", {limit} a class" if limit else ""), *_epoch_images(data, facts))
            for (_, limit), data in selections.items()
        ),
        cache_bytes=_cache_bytes(by_data.values(), facts, tests),
        peak_memory_bytes=max(measured, default=None),
        checkpoint_bytes=max(state_bytes, default=None),
        seconds=seconds if num_timed else None,
        num_timed=num_timed,
        num_untimed=num_untimed,
        unmeasured=tuple(unmeasured),
    )


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


def _state_bytes(spec: RunSpec, num_parameters: int) -> int:
    """Parameters, the optimiser's running means of them, and the best epoch's parameters beside."""
    optimizer = spec.optimizer
    means = 2 if isinstance(optimizer, AdamWSpec) else 1 if optimizer.momentum else 0
    return BYTES_PER_NUMBER * num_parameters * (2 + means)


# The text


def plan_text(plan: Plan, rows_shown: int = ROWS_SHOWN) -> str:
    """The plan for a terminal: a table of stages, the rows that are known, totals, and what to ask for."""
    seeds = ", ".join(map(str, plan.seeds[:8])) + (", …" if len(plan.seeds) > 8 else "")
    lines = [f"grid {plan.grid}, {'seed' if len(plan.seeds) == 1 else 'seeds'} {seeds}", ""]
    if not plan.choice.is_all:
        lines[1:] = [f"only what {_choice_text(plan.choice)} takes is counted", ""]
    head = ("stage", "starts from", "rows", "runs", "new", "shared", "in store", "keeps")
    body = [
        (
            stage.name,
            "test part" if stage.is_test else stage.start or "",
            f"{stage.num_rows:,}",
            f"{stage.num_runs:,}",
            str(stage.new),
            str(stage.shared),
            str(stage.stored),
            stage.keeps,
        )
        for stage in plan.stages
    ]
    lines += _table(head, body, right=(2, 3, 4, 5, 6))
    for stage in plan.stages:
        lines += ["", *_stage_text(stage, rows_shown)]
    later = " (stages that wait included)" if any(stage.waiting for stage in plan.stages) else ""
    now = f", {plan.new_now:,} of them known now" if plan.new != Bounds(plan.new_now, plan.new_now) else ""
    lines += [
        "",
        f"total: {plan.distinct} distinct {_plural('run', plan.distinct)}{later}, {plan.stored} in the store, "
        f"{plan.new} to train{now}",
        *_resource_text(plan.resources),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _choice_text(choice: Choice) -> str:
    words = [f"--stage {stage}" for stage in choice.stages]
    return " ".join([*words, *([] if choice.only is None else [f"--only {choice.only!r}"])])


def _plural(word: str, count: Bounds) -> str:
    return word if count == Bounds(1, 1) else f"{word}s"


def _stage_text(stage: StagePlan, rows_shown: int) -> list[str]:
    if stage.waiting is not None:
        return [f"{stage.name}: rows known later, it waits {stage.waiting}"]
    words = {"shared": "shared with an earlier row", "stored": "in the store", "new": "new"}
    body = []
    for row in stage.rows[:rows_shown]:
        states = [words[state] for state in dict.fromkeys(row.states)]
        runs = ", ".join(row.runs[:3]) + (f" and {len(row.runs) - 3} more" if len(row.runs) > 3 else "")
        body.append((f"  {row.experiment}", runs, ", ".join(states)))
    kept = f" keeps {stage.keeps}, because {stage.because}" if stage.because else ""
    lines = [f"{stage.name}:{kept}", *_columns(body)]
    if len(stage.rows) > rows_shown:
        lines.append(f"  … and {len(stage.rows) - rows_shown:,} more rows")
    return lines


def _resource_text(resources: Resources) -> list[str]:
    lines = []
    for name, train, validation in resources.images_per_epoch:
        lines.append(f"images per epoch: {train:,} training and {validation:,} validation ({name})")
    if resources.cache_bytes is not None:
        lines.append(f"scratch: {_size(resources.cache_bytes)} for decoded images")
    else:
        lines.append("scratch: unknown, the index has no image sizes")
    unknown = []
    if resources.peak_memory_bytes is not None:
        more = f", but {', '.join(resources.unmeasured)} not yet measured" if resources.unmeasured else ""
        lines.append(f"memory: {_size(resources.peak_memory_bytes)} at most in earlier runs{more}")
    elif resources.unmeasured:
        unknown.append("memory")
    if resources.checkpoint_bytes is not None:
        lines.append(f"checkpoint: {_size(resources.checkpoint_bytes)} for the largest network seen so far")
    elif resources.unmeasured:
        unknown.append("checkpoint size")
    if resources.seconds is not None:
        rest = f"; {resources.num_untimed:,} further runs have no earlier speed" if resources.num_untimed else ""
        number = f"{resources.num_timed:,} known {'run' if resources.num_timed == 1 else 'runs'}"
        lines.append(f"time: {_duration(resources.seconds)} for {number} one after another{rest}")
    elif resources.num_untimed:
        unknown.append("time")
    if unknown:
        lines.append(f"{', '.join(unknown)}: unknown until the first run of {', '.join(resources.unmeasured)}")
    return lines


def _table(head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = []
    for row in [head, tuple("─" * width for width in widths), *body]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return lines


def _columns(body: Sequence[Sequence[str]]) -> list[str]:
    if not body:
        return []
    widths = [max(len(row[column]) for row in body) for column in range(len(body[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in body]


def _size(num_bytes: float) -> str:
    """`2.6 GB`, as disks and clusters count: powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
