"""Results side by side: the table of a grid as a value, and that value as terminal text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from rich.cells import cell_len, chop_cells

from controller.search import Decision, Expansion, Experiment, Facts, StageExpansion
from controller.standing import Known, State, Work, run_state
from trainer.result import Numerics, ResultNumbers, TestResult
from trainer.spec import ExperimentSpec, lower_is_better

MAJORITY = "majority class"
NAMES_SHOWN = 5  # rows that a footnote or a reason names before it counts the rest

RESULT_NUMBERS = tuple(
    name for name, info in ResultNumbers.model_fields.items() if info.annotation in (int, float) and name != "seed"
)
TEST_FIELDS = tuple(name for name, info in TestResult.model_fields.items() if info.annotation in (int, float))
TEST_NUMBERS = tuple(name if name.startswith("test_") else f"test_{name}" for name in TEST_FIELDS)
NUMBERS = RESULT_NUMBERS + TEST_NUMBERS
"""Every number of a row, in the order of table.csv: those of the result, then those of the test."""
_POSITIONS = {name: position for position, name in enumerate(NUMBERS)}

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
        position = _POSITIONS[name]
        mean = self.means[position] if position < len(self.means) else None
        if mean is None:
            raise KeyError(name)
        is_result = position < len(RESULT_NUMBERS)
        return Number(mean, self.stds[position], self.num_results if is_result else self.num_tests)

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
) -> Table:
    """The table of `expansion` with all that is known of its runs; `active` is as `run_state` takes it.

    `facts` gives the majority rows. `metrics` names the validation metric that a stage's `keep` rule compares;
    without it the decision's counts, then the one that chooses the best epoch.
    """
    stages = []
    notes = _Notes()
    for stage in expansion.stages:
        metric = _metric(stage, metrics or {})
        rows = [_row(experiment, stage.is_test, known, active) for experiment in stage.experiments]
        best = _best(rows, metric)
        kept = set(stage.decision.kept) if stage.decision and not stage.is_test else set()
        _note_inexact(notes, stage, known.results)
        stages.append((stage, metric, rows, best, kept))
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
                    _marked(row, index in best, row.experiment in kept, notes.of.get((stage.name, row.experiment), ()))
                    for index, row in enumerate(rows)
                ),
                decision=stage.decision,
                waiting=stage.waiting,
                majorities=_majorities(stage.experiments, facts or Facts()),
                remarks=_remarks(stage, rows, best),
            )
            for stage, metric, rows, best, kept in stages
        ),
        notes=notes.texts(),
    )


def _marked(row: TableRow, best: bool, kept: bool, notes: Sequence[int]) -> TableRow:
    if not (best or kept or notes):
        return row
    return TableRow(
        row.experiment, row.values, row.runs, row.state, row.reason, row.numbers, best, kept, row.exact, tuple(notes)
    )


def _metric(stage: StageExpansion, metrics: Mapping[str, str]) -> str:
    if stage.name in metrics:
        metric = metrics[stage.name]
        assert metric.startswith("validation_"), f"selection by {metric}: it is on validation, never on test"
        return metric
    if stage.decision and stage.decision.metric:
        return stage.decision.metric
    return stage.experiments[0].spec.best.metric if stage.experiments else "validation_loss"


def _row(experiment: Experiment, is_test: bool, known: Known, active: Mapping[str, str]) -> TableRow:
    runs = tuple(
        [RunState(run.id, run.spec.seed, *run_state(Work(run.id, is_test), known, active)) for run in experiment.runs]
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
    sign = 1 if lower_is_better(metric) else -1
    means = {
        index: sign * value.mean
        for index, row in enumerate(rows)
        if row.num_done == len(row.runs) and (value := row.numbers.get(metric)) and not math.isnan(value.mean)
    }
    lowest = min(means.values(), default=None)
    return {index for index, mean in means.items() if mean == lowest}


def _majorities(experiments: Sequence[Experiment], facts: Facts) -> tuple[Majority, ...]:
    seen = {(experiment.spec.data.name, experiment.spec.data.images_per_class): None for experiment in experiments}
    return tuple(
        majority(name, facts.data[name].class_counts, limit)
        for name, limit in seen
        if name in facts.data and any(facts.data[name].class_counts.get("train", ()))
    )


def _remarks(stage: StageExpansion, rows: Sequence[TableRow], best: set[int]) -> tuple[str, ...]:
    remarks = []
    decision = stage.decision
    if decision:
        verb = "tested" if stage.is_test else "kept"
        remarks.append(f"{verb} {', '.join(decision.kept)}: {decision.because}")
        best_names = [rows[index].experiment for index in sorted(best)]
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
            f"{text}: {_listed([f'{stage}/{experiment}' for stage, experiment in rows])}"
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


def _note_numerics(
    notes: _Notes, expansion: Expansion, results: Mapping[str, ResultNumbers], tests: Mapping[str, TestResult]
) -> None:
    """Add a note for each way in which rows were computed otherwise than most, or otherwise than their spec asks."""
    trained = []
    tested = []
    for stage in expansion.stages:
        for experiment in stage.experiments:
            for run in experiment.runs:
                if run.id in results:
                    trained.append((stage.name, experiment, results[run.id].numerics))
                if stage.is_test and run.id in tests:
                    tested.append((stage.name, experiment, tests[run.id].numerics))
    for what, seen in (("trained", trained), ("tested", tested)):
        usual = _usual(seen)
        texts: dict[tuple[object, ...], str] = {}
        for stage_name, experiment, numerics in seen:
            asked = tuple(ask(experiment.spec) for ask in _ASKED.values())
            architecture = experiment.spec.model.architecture
            key = (architecture, *asked, *vars(numerics).values())
            if key not in texts:
                texts[key] = _difference(numerics, dict(zip(_ASKED, asked, strict=True)), architecture, usual)
            if texts[key]:
                notes.add(f"{what} with other numerics, {texts[key]}", stage_name, experiment.name)


def _usual(seen: Sequence[tuple[str, Experiment, Numerics]]) -> dict[tuple[str, str], object]:
    """The most frequent value of each settled field; of the memory format within each architecture, by whose layers
    it is chosen, under (field, architecture)."""
    groups = Counter(
        (experiment.spec.model.architecture, experiment.spec.precision == "auto", *attrgetter(*_SETTLED)(numerics))
        for _, experiment, numerics in seen
    )
    counters: dict[tuple[str, str], Counter[object]] = {}
    for (architecture, is_open, *values), count in groups.items():
        for name, value in zip(_SETTLED, values, strict=True):
            if name == "precision" and not is_open:
                continue
            within = architecture if name == "memory_format" else ""
            counters.setdefault((name, within), Counter())[value] += count
    return {key: counter.most_common(1)[0][0] for key, counter in counters.items()}


def _difference(
    numerics: Numerics, asked: Mapping[str, object], architecture: str, usual: Mapping[tuple[str, str], object]
) -> str:
    parts = []
    for name in type(numerics).model_fields:
        got: object = getattr(numerics, name)
        if asked.get(name) is not None:
            if got != asked[name]:
                parts.append(f"{name} {got}, though its spec asks for {asked[name]}")
        elif name in _SETTLED:
            most = usual[name, architecture if name == "memory_format" else ""]
            if got != most:
                parts.append(f"{name} {got} where others have {most}")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= NAMES_SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN:,} more"


# Text for reading


@dataclass(frozen=True, slots=True)
class _Column:
    number: str
    short: str
    long: str


_COLUMNS = (
    _Column("train_loss", "train loss", "train loss"),
    _Column("train_accuracy", "train acc", "train accuracy"),
    _Column("validation_loss", "val loss", "validation loss"),
    _Column("validation_accuracy", "val acc", "validation accuracy"),
    _Column("validation_balanced_accuracy", "val bal acc", "validation balanced accuracy"),
    _Column("validation_top5_accuracy", "val top-5", "validation top-5 accuracy"),
    _Column("test_loss", "test loss", "test loss"),
    _Column("test_accuracy", "test acc", "test accuracy"),
    _Column("test_balanced_accuracy", "test bal acc", "test balanced accuracy"),
    _Column("test_top5_accuracy", "test top-5", "test top-5 accuracy"),
    _Column("best_epoch", "best epoch", "best epoch"),
    _Column("num_trainable_parameters", "trained", "trainable parameters"),
    _Column("num_parameters", "parameters", "parameters"),
    _Column("wall_seconds", "time", "time"),
    _Column("images_per_second", "images/s", "images/s"),
    _Column("peak_memory_bytes", "memory", "peak memory"),
)
_BY_IMPORTANCE = (  # after the stage's own metric; what does not fit a terminal's width is left to the other formats
    "test_accuracy",
    "validation_accuracy",
    "validation_loss",
    "test_balanced_accuracy",
    "validation_balanced_accuracy",
    "test_loss",
    "train_loss",
    "train_accuracy",
    "validation_top5_accuracy",
    "test_top5_accuracy",
    "best_epoch",
    "num_trainable_parameters",
    "wall_seconds",
    "images_per_second",
    "num_parameters",
    "peak_memory_bytes",
)


def _rounded(name: str, value: Number) -> tuple[str, str]:
    """`value` for reading, as its mean and its ` ± std`; the latter empty for one seed and where spread says little."""
    mean = value.mean
    if not math.isfinite(mean):
        return str(mean), ""
    if name.endswith("_seconds"):
        unit, size = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if mean >= s), ("s", 1))
        return f"{mean / size:.1f} {unit}", ""
    if name.endswith("_bytes"):
        return (f"{mean / 2**30:,.1f} GiB" if mean >= 2**30 else f"{mean / 2**20:,.1f} MiB"), ""
    if name == "images_per_second":
        return f"{mean:,.1f}", ""
    if name.endswith(("_loss", "_accuracy")):
        if abs(mean) >= 1e6:
            return f"{mean:.3g}", "" if value.std is None else f" ± {value.std:.3g}"
        digits = 3 if name.endswith("_accuracy") or abs(mean) < 10 else 2
    else:
        digits = 0 if not value.std and float(mean).is_integer() else 1
    spread = value.std is not None and (value.std or not isinstance(mean, int))
    return f"{mean:,.{digits}f}", f" ± {value.std:,.{digits}f}" if spread else ""


def _columns(stage: StageTable) -> list[_Column]:
    present: set[str] = set()
    if any(row.numbers.num_results for row in stage.rows):
        present.update(RESULT_NUMBERS)
    if any(row.numbers.num_tests for row in stage.rows):
        present.update(TEST_NUMBERS)
    return [column for column in _COLUMNS if column.number in present]


def _printable(text: str) -> str:
    """`text` on one line, without the characters that could drive a terminal or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)


def _mark(row: TableRow, is_final: bool) -> str:
    """What is to be said of a row in two words: best, kept, or why its numbers are missing or not all there."""
    if row.state != "done":
        return f"{row.state} {row.num_done}/{len(row.runs)}" if row.num_done else row.state
    marks = [("best" if is_final else "best so far")] if row.best else []
    return ", ".join([*marks, *(["kept"] if row.kept else [])])


def _majority_name(stage: StageTable, index: int) -> str:
    return MAJORITY if len(stage.majorities) == 1 else f"{MAJORITY} ({stage.majorities[index].data})"


def _majority_text(one: Majority) -> str:
    return f"{MAJORITY}: always answers with the most frequent class of {one.data}'s training part"


def _legend(stage: StageTable) -> str | None:
    if not any(row.best for row in stage.rows):
        return None
    over = " over seeds" if any(len(row.runs) > 1 for row in stage.rows) else ""
    mean = f"mean {stage.metric}{over}" if over else stage.metric
    return f"best: the {'lowest' if lower_is_better(stage.metric) else 'highest'} {mean}"


_Cell = tuple[str, str]  # the part aligned right, and the part after it aligned left


def to_terminal(table: Table, width: int = 80, *, colour: bool = False) -> str:
    """The table as lines of at most `width` cells, readable without colour; the least important columns give way.

    A name that is too long goes on in the next line; only below about 40 cells may lines grow longer than `width`.
    """
    seeds = f"seed{'s' if len(table.seeds) > 1 else ''} {', '.join(map(str, table.seeds))}"
    lines = _wrapped(f"{_printable(table.grid)}: {seeds}", width)
    for stage in table.stages:
        lines += ["", _styled(_printable(stage.name), "1", colour)]
        if stage.rows:
            lines += _grid_lines(stage, width, colour)
        for text in _stage_texts(stage):
            lines += _wrapped(text, width, indent=2)
    said = {_majority_text(one): None for stage in table.stages for one in stage.majorities}
    notes = [f"[{index}] {text}" for index, text in enumerate(table.notes, start=1)]
    if said or notes:
        lines.append("")
    for text in (*said, *notes):
        lines += _wrapped(text, width)
    return "\n".join(lines) + "\n"


def _stage_texts(stage: StageTable) -> list[str]:
    """What stands below a stage's rows: why some have no numbers, what was kept, and what `best` means."""
    texts = [f"waiting: {stage.waiting}"] if stage.waiting else []
    groups: dict[str, list[str]] = {}
    for row in stage.rows:
        if row.state != "done":
            reason = row.reason or ""
            text = reason if reason.startswith(row.state) else f"{row.state}: {reason}"
            groups.setdefault(text, []).append(row.experiment)
    texts += [f"{_listed(names)}: {text}" for text, names in groups.items()]
    texts += stage.remarks
    legend = _legend(stage)
    return [*texts, legend] if legend else texts


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        _printable(text),
        max(width, 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    )


def _styled(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def _grid_lines(stage: StageTable, width: int, colour: bool) -> list[str]:
    names = [_printable(row.experiment) + "".join(f" [{note}]" for note in row.notes) for row in stage.rows]
    names += [_majority_name(stage, index) for index in range(len(stage.majorities))]
    is_final = stage.is_final
    marks = [_mark(row, is_final) for row in stage.rows] + [""] * len(stage.majorities)
    styles = [{"failed": "31", "done": "1" if row.best else ""}.get(row.state, "") for row in stage.rows]
    styles += ["2"] * len(stage.majorities)
    columns = _columns(stage)
    natural = max(map(cell_len, names))
    room = width - 2 - (max(map(len, marks)) + 2)
    name_width = min(natural, max(12, room * 2 // 5))
    cells = _fitting(stage, columns, room - name_width)
    tails = {name: max(len(tail) for _, tail in column) for name, column in cells.items()}
    widths = {column.number: _width(column, cells[column.number]) for column in columns if column.number in cells}
    name_width = min(natural, max(name_width, room - sum(widths.values()) - 2 * len(widths)))

    def line(name: str, texts: Iterable[str], mark: str) -> str:
        padded = name + " " * (name_width - cell_len(name))
        return "  ".join(["", padded, *texts, mark]).rstrip()

    kept = [column for column in columns if column.number in cells]
    lines = [line("", (column.short.rjust(widths[column.number]) for column in kept), "")] if kept else []
    for index, (name, mark, style) in enumerate(zip(names, marks, styles, strict=True)):
        first, *rest = _broken(name, name_width)
        texts = []
        for column in kept:
            mean, tail = cells[column.number][index]
            texts.append((mean + tail.ljust(tails[column.number])).rjust(widths[column.number]))
        lines.append(_styled(line(first, texts, mark), style, colour))
        lines += [_styled(f"    {part}", style, colour) for part in rest]
    hidden = len(columns) - len(kept)
    if hidden:
        text = f"({hidden} more column{'s' if hidden > 1 else ''} in a wider terminal and in the files)"
        lines += _wrapped(text, width, indent=2)
    return lines


def _cell(name: str, value: Number | None) -> _Cell:
    return ("", "") if value is None else _rounded(name, value)


def _fitting(stage: StageTable, columns: Sequence[_Column], room: int) -> dict[str, list[_Cell]]:
    """The cells of the columns that fit into `room`, the most important first."""
    by_name = {column.number: column for column in columns}
    cells: dict[str, list[_Cell]] = {}
    for name in dict.fromkeys((stage.metric, *_BY_IMPORTANCE)):
        if name not in by_name or len(by_name[name].short) + 2 > room:
            continue
        column = [_cell(name, row.numbers.get(name)) for row in stage.rows]
        column += [(f"{one.numbers[name]:.3f}" if name in one.numbers else "", "") for one in stage.majorities]
        needed = _width(by_name[name], column) + 2
        if needed > room and name == stage.metric:  # what rows are compared by is the last to go, its spread before it
            column = [(mean, "") for mean, _ in column]
            needed = _width(by_name[name], column) + 2
        if needed <= room:
            cells[name] = column
            room -= needed
    return cells


def _width(column: _Column, cells: Sequence[_Cell]) -> int:
    return max(len(column.short), max(len(mean) for mean, _ in cells) + max(len(tail) for _, tail in cells))


def _broken(name: str, width: int) -> list[str]:
    """`name` in parts of at most `width` cells (two fewer after the first), cut after a separator where one is near."""
    parts = []
    room = width
    while cell_len(name) > room:
        head = chop_cells(name, room)[0]
        cut = max(head.rfind(char) for char in " ,;/_") + 1
        head = head[:cut] if cut > len(head) // 2 else head
        parts.append(head.rstrip())
        name = name[len(head) :].lstrip()
        room = max(width - 2, 4)
    return [*parts, name]


_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^#|^[-+](?=\s)|^\d+[.)](?=\s))")


def _markdown(text: str) -> str:
    """`text` as Markdown that shows it as it is, in one line: no HTML, no emphasis, no new cell."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(_printable(text).strip(), quote=False))


def to_markdown(table: Table) -> str:
    """The table as a GitHub table for each stage, with footnotes."""
    lines = [f"# {_markdown(table.grid)}", "", f"Seeds: {', '.join(map(str, table.seeds))}."]
    if any(row.numbers.num_results > 1 for stage in table.stages for row in stage.rows):
        lines[-1] += " Numbers are mean ± sample standard deviation over seeds."
    for stage in table.stages:
        lines += ["", f"## {_markdown(stage.name)}", ""]
        lines += _markdown_rows(stage) if stage.rows else []
        if stage.rows:
            lines.append("")
        texts = [f"waiting: {stage.waiting}"] if stage.waiting else []
        texts += stage.remarks
        texts += [text] if (text := _legend(stage)) else []
        texts += [_majority_text(one) for one in stage.majorities]
        lines += [f"- {_markdown(text)}" for text in texts]
    if table.notes:
        lines.append("")
        lines += [f"[^{index}]: {_markdown(text)}" for index, text in enumerate(table.notes, start=1)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_rows(stage: StageTable) -> list[str]:
    columns = _columns(stage)
    is_final = stage.is_final
    lines = [
        f"| experiment | {''.join(f'{column.long} | ' for column in columns)}state |",
        f"| :-- | {'--: | ' * len(columns)}:-- |",
    ]
    for row in stage.rows:
        cells = ["".join(_cell(column.number, row.numbers.get(column.number))) for column in columns]
        name = _markdown(row.experiment)
        if row.best:
            name = f"**{name}**"
            cells = [
                f"**{cell}**" if column.number == stage.metric else cell
                for column, cell in zip(columns, cells, strict=True)
            ]
        name += "".join(f"[^{note}]" for note in row.notes)
        state = _mark(row, is_final) or "done"
        if row.state != "done":
            reason = row.reason or ""
            state = _markdown(reason if reason.startswith(row.state) else f"{row.state}: {reason}")
        lines.append(f"| {' | '.join([name, *cells, state])} |")
    for index, one in enumerate(stage.majorities):
        cells = [f"{one.numbers[column.number]:.3f}" if column.number in one.numbers else "" for column in columns]
        lines.append(f"| {' | '.join([f'*{_markdown(_majority_name(stage, index))}*', *cells, ''])} |")
    return lines


# Exact forms, for programs

CSV_HEAD = ("grid", "stage", "experiment", "runs", "seeds", "state", "reason")
CSV_TAIL = ("seeds_done", "best", "kept", "exact", "notes")


def to_csv(table: Table) -> str:
    """The table by RFC 4180, a row per experiment, every number exact; empty where there is none.

    After `CSV_HEAD` come the means and `_std` of all numbers, then `CSV_TAIL`, then what the stages vary by dotted
    key. Majority rows have no runs; a stage whose rows are not known yet has one row without an experiment. Text that
    a spreadsheet would take for a formula begins with an apostrophe.
    """
    varied = sorted({key for stage in table.stages for row in stage.rows for key in row.values})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    head = [*CSV_HEAD, *(name for one in NUMBERS for name in (one, f"{one}_std")), *CSV_TAIL, *varied]
    num_fixed = len(CSV_HEAD) + 2 * len(NUMBERS)
    writer.writerow(head)

    def write(cells: list[str]) -> None:
        writer.writerow(cells + [""] * (len(head) - len(cells)))

    for stage in table.stages:
        home = [_csv_text(table.grid), _csv_text(stage.name)]
        if not stage.rows:
            write([*home, "", "", "", "waiting", _csv_text(stage.waiting or "")])
        for row in stage.rows:
            cells = [
                *home,
                _csv_text(row.experiment),
                " ".join([run.id for run in row.runs]),
                " ".join([str(run.seed) for run in row.runs]),
                row.state,
                _csv_text(row.reason or ""),
            ]
            for pair in zip(row.numbers.means, row.numbers.stds, strict=True):
                cells += ["" if value is None else repr(value) for value in pair]
            cells += [""] * (num_fixed - len(cells))
            cells += (str(row.num_done), _csv_value(row.best), _csv_value(row.kept), _csv_value(row.exact))
            cells.append(" ".join(map(str, row.notes)))
            cells += [_csv_value(row.values.get(key)) for key in varied]
            write(cells)
        for index, one in enumerate(stage.majorities):
            numbers = [cell for name in NUMBERS for cell in (_csv_value(one.numbers.get(name)), "")]
            write([*home, _majority_name(stage, index), "", "", "done", _csv_text(_majority_text(one)), *numbers])
    return out.getvalue()


def _csv_text(text: str) -> str:
    """`text` so that no spreadsheet takes it for a formula: https://owasp.org/www-community/attacks/CSV_Injection"""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _csv_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return _csv_text(value if isinstance(value, str) else json.dumps(_plain(value)))


def to_json(table: Table) -> str:
    """The table as one line of JSON, every number exact; null where there is none, or none that JSON can write."""
    return json.dumps(_json(table), ensure_ascii=False, allow_nan=False, check_circular=False) + "\n"


def _json(table: Table) -> dict[str, Any]:
    return {
        "grid": table.grid,
        "seeds": table.seeds,
        "stages": [
            {
                "stage": stage.name,
                "is_test": stage.is_test,
                "metric": stage.metric,
                "waiting": stage.waiting,
                "decision": stage.decision.model_dump(mode="json") if stage.decision else None,
                "rows": [_json_row(row) for row in stage.rows],
                "majority": [
                    {"data": one.data, "label": one.label, "numbers": dict(one.numbers)} for one in stage.majorities
                ],
                "remarks": stage.remarks,
            }
            for stage in table.stages
        ],
        "notes": table.notes,
    }


def _json_row(row: TableRow) -> dict[str, Any]:
    return {
        "experiment": row.experiment,
        "values": _plain(row.values),
        "runs": [{"run": run.id, "seed": run.seed, "state": run.state, "reason": run.reason} for run in row.runs],
        "state": row.state,
        "reason": row.reason,
        "best": row.best,
        "kept": row.kept,
        "exact": row.exact,
        "notes": row.notes,
        "num_results": row.numbers.num_results,
        "num_tests": row.numbers.num_tests,
        "numbers": {
            name: {"mean": _finite(mean), "std": _finite(std)}
            for name, mean, std in zip(NUMBERS, row.numbers.means, row.numbers.stds, strict=False)
            if mean is not None
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: object) -> object:
    """`value` of plain JSON types; what is none of them (a model, say) by its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
