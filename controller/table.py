"""Results side by side: the table of a grid, as a value. Other modules write it for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from controller import noise
from controller.published import Comparison, Figures
from controller.search import Decision, Expansion, Experiment, Facts, StageExpansion
from controller.standing import Known, State, Work, run_state
from controller.wording import listed
from trainer.result import Numerics, ResultNumbers, TestResult
from trainer.spec import ExperimentSpec, lower_is_better

MAJORITY = "majority class"
NEAR: noise.Verdict = "cannot be told from it"
CHOSEN_BEFOREHAND = "chosen by the grid's author and not by these numbers"

RESULT_NUMBERS = tuple(
    name for name, info in ResultNumbers.model_fields.items() if info.annotation in (int, float) and name != "seed"
)
TEST_FIELDS = tuple(name for name, info in TestResult.model_fields.items() if info.annotation in (int, float))
TEST_NUMBERS = tuple(name if name.startswith("test_") else f"test_{name}" for name in TEST_FIELDS)
NUMBERS = RESULT_NUMBERS + TEST_NUMBERS
"""Every number of a row, in the order of table.csv: those of the result, then those of the test."""
POSITIONS = {name: position for position, name in enumerate(NUMBERS)}

_result_values: Callable[[ResultNumbers], tuple[float, ...]] = attrgetter(*RESULT_NUMBERS)
_test_values: Callable[[TestResult], tuple[float, ...]] = attrgetter(*TEST_FIELDS)


class Number(NamedTuple):
    """A mean over seeds."""

    mean: float
    std: float | None  # sample standard deviation; none for a single seed
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Numbers(Mapping[str, Number]):
    """The numbers of a row by name; flat, since a table may have 10,000 rows of more than 20 numbers."""

    means: tuple[float | None, ...] = ()  # in the order of NUMBERS; none, or cut short, where there is no number
    stds: tuple[float | None, ...] = ()
    num_results: int = 0
    num_tests: int = 0

    def __getitem__(self, name: str) -> Number:
        position = POSITIONS[name]
        mean, std = self.at(position)
        if mean is None:
            raise KeyError(name)
        is_result = position < len(RESULT_NUMBERS)
        return Number(mean, std, self.num_results if is_result else self.num_tests)

    def at(self, position: int) -> tuple[float | None, float | None]:
        """Mean and standard deviation of the number at `position` of NUMBERS; none where there is none."""
        return (self.means[position], self.stds[position]) if position < len(self.means) else (None, None)

    def __iter__(self) -> Iterator[str]:
        return (name for name, mean in zip(NUMBERS, self.means, strict=False) if mean is not None)

    def __len__(self) -> int:
        return sum(mean is not None for mean in self.means)


_NO_NUMBERS = Numbers()


class RunState(NamedTuple):
    """How far one seed of a row is."""

    id: str
    seed: int
    state: State
    reason: str | None  # why there is no number yet; none when done


@dataclass(frozen=True, slots=True)
class TableRow:
    """One experiment: its numbers over the seeds that have them, and why those that lack them do."""

    experiment: str
    values: Mapping[str, object]  # what the stage varies, by dotted key
    runs: tuple[RunState, ...]
    state: State
    reason: str | None
    numbers: Numbers
    best: bool = False
    kept: bool = False
    exact: bool | None = None  # none without a result
    notes: tuple[int, ...] = ()  # numbers of the table's notes that concern this row
    published: Mapping[str, float] = field(default_factory=dict)  # what someone published of it, by metric
    is_apart: bool = False  # from what was published, in data or model: the figures are none to compare with
    beats_majority: bool | None = None  # in accuracy, of the test where it is tested; none where that is not known
    beside_best: noise.Comparison | None = None  # over seeds, by the stage's metric; none where nothing is to be said
    test_beside_best: noise.TestComparison | None = None  # over test images, in a test stage; none likewise

    @property
    def is_near_best(self) -> bool:
        """Whether it is whole, and over seeds or over test images cannot be told from the best row."""
        found = (self.beside_best, self.test_beside_best)
        return self.state == "done" and any(each is not None and each.verdict == NEAR for each in found)

    def difference(self, metric: str) -> float | None:
        """Our mean less the published figure; none where one is missing, or they are of other data or models."""
        ours = None if self.is_apart else self.numbers.get(metric)
        return ours.mean - self.published[metric] if ours is not None and metric in self.published else None

    @property
    def num_done(self) -> int:
        """How many seeds have all their numbers."""
        return sum(run.state == "done" for run in self.runs)


@dataclass(frozen=True, slots=True)
class Majority:
    """What always answering the most frequent class of the training part scores: a row at it has learned nothing."""

    data: str  # name of the data set
    label: int  # that class
    numbers: Mapping[str, float]

    @property
    def meaning(self) -> str:
        """What its row in a table means."""
        return f"{MAJORITY}: always answers with the most frequent class of {self.data}'s training part"


@dataclass(frozen=True, slots=True)
class StageTable:
    """One stage's rows in the order of its grid."""

    name: str
    is_test: bool
    metric: str  # the validation metric by which the best is marked
    rows: tuple[TableRow, ...]
    decision: Decision | None
    waiting: str | None  # why there are no rows yet
    majorities: tuple[Majority, ...]
    remarks: tuple[str, ...]

    @property
    def majority_names(self) -> tuple[str, ...]:
        """What the majority rows are called."""
        if len(self.majorities) == 1:
            return (MAJORITY,)
        return tuple(f"{MAJORITY} ({one.data})" for one in self.majorities)

    @property
    def published(self) -> tuple[str, ...]:
        """The metrics that someone published of any of the rows, in the order of NUMBERS."""
        found = {metric for row in self.rows for metric in row.published}
        return tuple(name for name in NUMBERS if name in found) if found else ()

    @property
    def is_final(self) -> bool:
        """Whether no row can get further numbers by itself, so that the best so far is the best."""
        return all(row.state in ("done", "failed") for row in self.rows)


@dataclass(frozen=True, slots=True)
class Table:
    """All stages of a grid, and the footnotes that their rows point to by number, counted from 1."""

    grid: str
    seeds: tuple[int, ...]
    stages: tuple[StageTable, ...]
    notes: tuple[str, ...]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, none for a single value; a whole mean of whole numbers stays an int."""
    first = values[0]
    if len(values) == 1:
        return first, None
    if not math.isnan(first) and values.count(first) == len(values):
        return first, 0.0
    try:
        mean = math.fsum(values) / len(values)
        std = math.hypot(*[value - mean for value in values]) / math.sqrt(len(values) - 1)  # squares would overflow
    except (OverflowError, ValueError):  # ValueError: fsum of inf and -inf
        return math.nan, math.nan
    if mean.is_integer() and all(isinstance(value, int) for value in values):
        mean = int(mean)
    return mean, std


def majority(data: str, class_counts: Mapping[str, Sequence[int]], images_per_class: int | None = None) -> Majority:
    """What the most frequent class of the training part, the first of equals, scores on every part as sole answer.

    `class_counts` has the images of each class by part, of which `images_per_class` at most are used. Its top-5
    answers are the five most frequent classes. A part without images gets no numbers.
    """
    used = {
        part: [count if images_per_class is None else min(count, images_per_class) for count in counts]
        for part, counts in class_counts.items()
    }
    labels = sorted(range(len(used["train"])), key=lambda label: -used["train"][label])
    numbers = {}
    for part, counts in used.items():
        total = sum(counts)
        if not total:
            continue
        numbers[f"{part}_accuracy"] = counts[labels[0]] / total
        if part != "train":
            present = sum(count > 0 for count in counts)
            numbers[f"{part}_balanced_accuracy"] = (counts[labels[0]] > 0) / present
            numbers[f"{part}_top5_accuracy"] = sum(counts[label] for label in labels[:5]) / total
    return Majority(data, labels[0], numbers)


def build_table(
    expansion: Expansion,
    known: Known,
    active: Mapping[str, str],
    *,
    facts: Facts | None = None,
    metrics: Mapping[str, str] | None = None,
    compared: Comparison | None = None,
    answers: Mapping[str, noise.Answers] | None = None,
) -> Table:
    """The table of `expansion` with all that is known of its runs; `active` is as `run_state` takes it.

    `facts` gives the majority rows. `metrics` names the validation metric that a stage's `keep` rule compares;
    without it the decision's counts, then the one that chooses the best epoch. `compared` has what was published.
    `answers` has what runs answered on the test part: test stages are compared by it too, as far as it goes.
    """
    compared = compared or Comparison()
    stages = []
    notes = _Notes()
    for stage in expansion.stages:
        metric = compared_metric(stage, (metrics or {}).get(stage.name))
        majorities = _majorities(stage.experiments, facts or Facts())
        rows = [
            _beside_majority(_row(experiment, stage.is_test, known, active), experiment.spec, majorities)
            for experiment in stage.experiments
        ]
        best = _best(rows, metric)
        kept = set(stage.decision.kept) if stage.decision and not stage.is_test else set()
        _note_inexact(notes, stage, known.results)
        _note_figures(notes, stage, compared)
        rows = _beside_best(rows, stage, metric, best, known, answers or {})
        stages.append((stage, metric, rows, best, kept, majorities))
    _note_numerics(notes, expansion, known.results, known.tests)
    return Table(
        grid=expansion.grid,
        seeds=expansion.seeds,
        stages=tuple(
            StageTable(
                name=stage.name,
                is_test=stage.is_test,
                metric=metric,
                rows=tuple(
                    _marked(
                        row,
                        index in best,
                        row.experiment in kept,
                        notes.of.get((stage.name, row.experiment), ()),
                        compared.figures.get((stage.name, row.experiment)),
                    )
                    for index, row in enumerate(rows)
                ),
                decision=stage.decision,
                waiting=stage.waiting,
                majorities=tuple(majorities.values()),
                remarks=(
                    *_remarks(stage, rows, best, metric),
                    *_told_majority(rows),
                    *_told_unread(rows, known.tests, answers or {}),
                    *_told_published(compared, stage.name),
                ),
            )
            for stage, metric, rows, best, kept, majorities in stages
        ),
        notes=notes.texts(),
    )


def _marked(row: TableRow, best: bool, kept: bool, notes: Sequence[int], figures: Figures | None) -> TableRow:
    if not (best or kept or notes or figures):
        return row
    published = {} if figures is None else {str(metric): value for metric, value in figures.numbers.items()}
    is_apart = figures is not None and figures.is_apart
    return replace(row, best=best, kept=kept, notes=tuple(notes), published=published, is_apart=is_apart)


def _told_published(compared: Comparison, stage: str) -> tuple[str, ...]:
    return tuple(f"published: {text}" for text in compared.remarks.get(stage, ()))


def _note_figures(notes: _Notes, stage: StageExpansion, compared: Comparison) -> None:
    for experiment in stage.experiments:
        figures = compared.figures.get((stage.name, experiment.name))
        if figures is not None and figures.note is not None:
            notes.add(f"published: {figures.note}", stage.name, experiment.name)


def compared_metric(stage: StageExpansion, rule_metric: str | None) -> str:
    """The validation metric that compares the stage's rows: that of its rule, if that has one."""
    if rule_metric is not None:
        assert rule_metric.startswith("validation_"), f"selection by {rule_metric}: it is on validation, never on test"
        return rule_metric
    if stage.decision and stage.decision.metric:
        return stage.decision.metric
    return stage.experiments[0].spec.best.metric if stage.experiments else "validation_loss"


def _row(experiment: Experiment, is_test: bool, known: Known, active: Mapping[str, str]) -> TableRow:
    runs = tuple(
        [RunState(run.id, run.seed, *run_state(Work(run.id, is_test), known, active)) for run in experiment.runs]
    )
    done_results = [known.results[run.id] for run in experiment.runs if run.id in known.results]
    # A test that another stage asked for is no number of this stage: whoever compares rows here must not see it.
    done_tests = [known.tests[run.id] for run in experiment.runs if run.id in known.tests] if is_test else []
    state, reason = _row_state(runs)
    exact = all(result.exact for result in done_results) if done_results else None
    return TableRow(
        experiment.name, experiment.values, runs, state, reason, _numbers(done_results, done_tests), exact=exact
    )


def _numbers(results: Sequence[ResultNumbers], tests: Sequence[TestResult]) -> Numbers:
    if not results and not tests:
        return _NO_NUMBERS
    means, stds = _over_seeds([_result_values(result) for result in results], len(RESULT_NUMBERS))
    if tests:
        test_means, test_stds = _over_seeds([_test_values(test) for test in tests], len(TEST_NUMBERS))
        means, stds = means + test_means, stds + test_stds
    return Numbers(means, stds, len(results), len(tests))


def _over_seeds(
    seeds: Sequence[tuple[float, ...]], num_columns: int
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    nothing = (None,) * num_columns
    if len(seeds) <= 1:
        return (seeds[0] if seeds else nothing), nothing
    means, stds = zip(*map(mean_and_std, zip(*seeds, strict=True)), strict=True)
    return means, stds


def _row_state(runs: tuple[RunState, ...]) -> tuple[State, str | None]:
    """The state of a row is the one that keeps it from being done: failed before running before waiting."""
    unfinished = [run for run in runs if run.state != "done"]
    if not unfinished:
        return "done", None
    states = {run.state for run in unfinished}
    state: State = "failed" if "failed" in states else "running" if "running" in states else "waiting"
    if len({(run.state, run.reason) for run in unfinished}) == 1:
        reason = unfinished[0].reason or ""
    else:
        reason = "; ".join(
            f"seed {run.seed} {run.reason if run.reason and run.state != 'failed' else f'failed: {run.reason}'}"
            for run in unfinished
        )
    if len(unfinished) < len(runs):
        reason = f"{len(runs) - len(unfinished)} of {len(runs)} seeds done; {reason}"
    return state, reason


def _best(rows: Sequence[TableRow], metric: str) -> set[int]:
    """Indices of the rows with the best mean of `metric`: one, or several equal ones; only rows with every seed."""
    position = POSITIONS[metric]
    return best_of([row.numbers.at(position)[0] if row.num_done == len(row.runs) else None for row in rows], metric)


def best_of(means: Sequence[float | None], metric: str) -> set[int]:
    """Indices of the best of the rows' means of `metric`, several where they are equal; none stands for no mean."""
    sign = 1 if lower_is_better(metric) else -1
    signed = {index: sign * mean for index, mean in enumerate(means) if mean is not None and not math.isnan(mean)}
    lowest = min(signed.values(), default=None)
    return {index for index, mean in signed.items() if mean == lowest}


def _beside_best(
    rows: Sequence[TableRow],
    stage: StageExpansion,
    metric: str,
    best: set[int],
    known: Known,
    answers: Mapping[str, noise.Answers],
) -> list[TableRow]:
    """The rows with what is to be said of each beside the best: nothing where there is no best row, or no other."""
    value = attrgetter(metric)
    values = [
        {run.seed: float(value(known.results[run.id])) for run in experiment.runs if run.id in known.results}
        for experiment in stage.experiments
    ]
    if not best or sum(map(bool, values)) < 2:
        return list(rows)
    compared = noise.compare(values, lower_is_better=lower_is_better(metric), best=best)
    tests = _compare_tests(rows, best, known.tests, answers) if stage.is_test and answers else (None,) * len(rows)
    return [
        replace(row, beside_best=found if has else None, test_beside_best=test)
        for row, has, found, test in zip(rows, values, compared, tests, strict=True)
    ]


def _compare_tests(
    rows: Sequence[TableRow], best: set[int], tests: Mapping[str, TestResult], answers: Mapping[str, noise.Answers]
) -> Sequence[noise.TestComparison | None]:
    """What the test images say of each row beside the first of the best; nothing of rows whose answers lack in part."""
    first = min(best)
    tested = [[run.id for run in row.runs if run.id in tests] for row in rows]
    data = {tests[run].data_fingerprint for run in tested[first]}  # another version has other images at the same place
    read = [
        [answers[run] for run in runs]
        if all(run in answers and {tests[run].data_fingerprint} == data for run in runs)
        else []
        for runs in tested
    ]
    return noise.compare_tests(read, first)


def _told_unread(
    rows: Sequence[TableRow], tests: Mapping[str, TestResult], answers: Mapping[str, noise.Answers]
) -> tuple[str, ...]:
    """Which rows lack answers, in a stage where some have them."""
    tested = [
        (row.experiment, run.id in answers)
        for row in rows
        if row.numbers.num_tests
        for run in row.runs
        if run.id in tests
    ]
    names = list(dict.fromkeys(name for name, is_read in tested if not is_read))
    if not names or not any(is_read for _, is_read in tested):
        return ()
    return (f"{listed(names)}: not compared over test images: predictions are missing, or cannot be read",)


_Majorities = Mapping[tuple[str, int | None], Majority]  # by data set, and how many images of a class are used


def _majorities(experiments: Sequence[Experiment], facts: Facts) -> _Majorities:
    seen = {(experiment.spec.data.name, experiment.spec.data.images_per_class): None for experiment in experiments}
    return {
        (name, limit): majority(name, facts.data[name].class_counts, limit)
        for name, limit in seen
        if name in facts.data and any(facts.data[name].class_counts.get("train", ()))
    }


def _beside_majority(row: TableRow, spec: ExperimentSpec, majorities: _Majorities) -> TableRow:
    """The row with whether it has learned more than which class is the most frequent."""
    found = majorities.get((spec.data.name, spec.data.images_per_class))
    number = _judged_by(row)
    mean, _ = row.numbers.at(POSITIONS[number])
    if found is None or mean is None or number not in found.numbers:
        return row
    return replace(row, beats_majority=mean > found.numbers[number])


def _judged_by(row: TableRow) -> str:
    return "test_accuracy" if row.numbers.num_tests else "validation_accuracy"


def _told_majority(rows: Sequence[TableRow]) -> Iterator[str]:
    """Which rows have learned nothing, by the accuracy that says so."""
    for number in ("test_accuracy", "validation_accuracy"):
        judged = [row for row in rows if row.beats_majority is not None and _judged_by(row) == number]
        names = [row.experiment for row in judged if not row.beats_majority]
        told = f"better than the {MAJORITY} in {number.replace('_', ' ')}"
        if len(judged) == len(names) > 1:
            yield f"no row is {told}"
        elif names:
            yield f"not {told}: {listed(names)}"


def _remarks(stage: StageExpansion, rows: Sequence[TableRow], best: set[int], metric: str) -> tuple[str, ...]:
    remarks = []
    decision = stage.decision
    if decision:
        verb = "tested" if stage.is_test else "kept"
        best_names = [rows[index].experiment for index in sorted(best)]
        if decision.metric:
            remarks.append(f"{verb} {', '.join(decision.kept)}: {decision.because}")
        else:  # of the author's numbers, maybe: those here may say something else
            remarks.append(f"{verb} {', '.join(decision.kept)}, {CHOSEN_BEFOREHAND}: {decision.because}")
            if best_names and not stage.is_test and not set(best_names) & set(decision.kept):
                so_far = "" if all(row.state in ("done", "failed") for row in rows) else " so far"
                remarks[0] += f"; here {listed(best_names)} is the best{so_far} by {metric}"
        if decision.metric and best_names and not stage.is_test and not set(best_names) & set(decision.kept):
            remarks.append(
                f"since that decision {', '.join(best_names)} has become the best by {decision.metric}; "
                "the decision stands until it is discarded"
            )
    return tuple(remarks)


@dataclass(slots=True)
class _Notes:
    """Footnotes as they are collected: one per text, each with the rows it concerns."""

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    of: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, text: str, stage: str, experiment: str) -> None:
        rows = self.rows.setdefault(text, [])
        if (stage, experiment) not in rows[-1:]:  # the seeds of one row come one after another
            rows.append((stage, experiment))
            self.of.setdefault((stage, experiment), []).append(list(self.rows).index(text) + 1)

    def texts(self) -> tuple[str, ...]:
        return tuple(
            f"{text}: {listed([f'{stage}/{experiment}' for stage, experiment in rows])}"
            for text, rows in self.rows.items()
        )


def _note_inexact(notes: _Notes, stage: StageExpansion, results: Mapping[str, ResultNumbers]) -> None:
    for experiment in stage.experiments:
        if any(run.id in results and not results[run.id].exact for run in experiment.runs):
            notes.add(
                "not exact, an attempt went on with other numerics than the first one's", stage.name, experiment.name
            )


_SETTLED = ("precision", "threads", "memory_format", "device", "device_model", "instruction_set", "torch_version")
_ASKED: dict[str, Callable[[ExperimentSpec], object]] = {  # what the spec says itself; none where it leaves it open
    "precision": lambda spec: None if spec.precision == "auto" else spec.precision,
    "micro_batch": lambda spec: spec.micro_batch or spec.batch_size,
    "compile": lambda spec: spec.compile,
    "deterministic": lambda spec: spec.deterministic,
}
_asked_fields = attrgetter("precision", "micro_batch", "batch_size", "compile", "deterministic")
_numerics_fields = attrgetter(*Numerics.model_fields)

_Groups = dict[tuple[object, ...], list[tuple[str, Experiment, Numerics]]]


def _note_numerics(
    notes: _Notes, expansion: Expansion, results: Mapping[str, ResultNumbers], tests: Mapping[str, TestResult]
) -> None:
    """Add a note for each way in which rows were computed otherwise than most, or otherwise than their spec asks."""
    trained: _Groups = {}
    tested: _Groups = {}
    for stage in expansion.stages:
        for experiment in stage.experiments:
            asked = _asked_fields(experiment.spec)
            for run in experiment.runs:
                if run.id in results:
                    numerics = results[run.id].numerics
                    alike = trained.setdefault((asked, _numerics_fields(numerics)), [])
                    alike.append((stage.name, experiment, numerics))
                if stage.is_test and run.id in tests:
                    numerics = tests[run.id].numerics
                    alike = tested.setdefault((asked, _numerics_fields(numerics)), [])
                    alike.append((stage.name, experiment, numerics))
    for what, groups in (("trained", trained), ("tested", tested)):
        usual = _usual(groups)
        odd = []
        for alike in groups.values():
            _, experiment, numerics = alike[0]
            if text := _difference(numerics, {name: ask(experiment.spec) for name, ask in _ASKED.items()}, usual):
                odd += [(text, stage, each.name) for stage, each, _ in alike]
        for text, stage_name, name in _in_order(odd, expansion):
            notes.add(f"{what} with other numerics, {text}", stage_name, name)


def _in_order(odd: Sequence[tuple[str, str, str]], expansion: Expansion) -> list[tuple[str, str, str]]:
    """What is odd by stage and row, in the order of the table."""
    if not odd:
        return []
    places = {
        (stage.name, experiment.name): (number, index)
        for number, stage in enumerate(expansion.stages)
        for index, experiment in enumerate(stage.experiments)
    }
    return sorted(odd, key=lambda each: places[each[1:]])


def _usual(groups: _Groups) -> dict[str, object]:
    """The most frequent value of each settled field, over the runs whose spec leaves it open."""
    counters: dict[str, Counter[object]] = {}
    for alike in groups.values():
        _, experiment, numerics = alike[0]
        for name in _SETTLED:
            if name != "precision" or experiment.spec.precision == "auto":
                counters.setdefault(name, Counter())[getattr(numerics, name)] += len(alike)
    return {name: counter.most_common(1)[0][0] for name, counter in counters.items()}


def _difference(numerics: Numerics, asked: Mapping[str, object], usual: Mapping[str, object]) -> str:
    parts = []
    for name in type(numerics).model_fields:
        got: object = getattr(numerics, name)
        if asked.get(name) is not None:
            if got != asked[name]:
                parts.append(f"{name} {got}, though its spec asks for {asked[name]}")
        elif name in _SETTLED and got != usual[name]:
            parts.append(f"{name} {got} where others have {usual[name]}")
    return "; ".join(parts)
