"""What a report says in words: what won and why, the way there stage by stage, what is missing, and what it took."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.noise import LEVEL
from controller.search import StageExpansion
from controller.selection import rule_reason
from controller.stages import BASE, KeepThis, Stage, TestThese
from controller.table import CHOSEN_BEFOREHAND, MAJORITY, StageTable, TableRow
from controller.table_text import number_text, reason_of
from controller.wording import count_text, listed, seconds_text
from trainer.spec import lower_is_better

if TYPE_CHECKING:
    from controller.report.columns import ShownRow, ShownTable
    from controller.report.gather import DataSeen, Gathered, RunSeen

AUTHOR = CHOSEN_BEFOREHAND
RULE = "chosen by the rule"
DEFAULT_VALIDATION = 0.5  # of `grid data import`
HEADLINE_NUMBERS = ("test_accuracy", "validation_accuracy", "validation_loss")  # of the winner, as far as it has them


@dataclass(frozen=True, slots=True)
class Winner:
    """The row that a report names first."""

    stage: str
    experiment: str
    because: str
    numbers: tuple[tuple[str, str], ...]  # name and text
    doubt: str  # why it is nothing to be glad of; empty where nothing speaks against it
    is_final: bool  # whether no later stage can change it


@dataclass(frozen=True, slots=True)
class Tried:
    """One value on the way."""

    name: str
    is_kept: bool
    state: str


@dataclass(frozen=True, slots=True)
class Step:
    """One stage on the way to the winner."""

    name: str
    start: str  # what it starts from, in words
    is_test: bool
    tried: tuple[Tried, ...]
    kept: tuple[str, ...]
    chosen: str  # by whom, in words; empty while nothing is
    because: str
    here: str  # what these numbers say of an author's choice; empty where that was the rule's, or nothing is known
    waiting: str | None
    remarks: tuple[str, ...]


def winner(gathered: Gathered, tables: tuple[ShownTable, ...]) -> Winner | None:
    """The best row of the last test stage that has numbers; else what the last decided stage kept; none before that."""
    order = sorted(range(len(tables)), key=lambda n: (tables[n].stage.is_test, n), reverse=True)
    is_over = not gathered.waiting and all(table.stage.is_final and table.stage.rows for table in tables)
    for number in order:
        table = tables[number]
        row = _winning(table.stage)
        if row is None:
            continue
        shown = next(each for each in table.rows if each.row is row)
        numbers = [(name.replace("_", " "), text) for name in HEADLINE_NUMBERS if (text := table.number(shown, name))]
        is_pinned = table.stage.decision is not None and table.stage.decision.metric is None
        because = _because(gathered, table.stage.name)
        if table.stage.is_test and table.legend:
            because = f"{table.legend.removeprefix('best: ')}, of the rows that were tested"
        elif is_pinned:
            because = f"{AUTHOR}: {because}"
        doubt = _doubt(shown, table)
        return Winner(table.stage.name, row.experiment, because, tuple(numbers), doubt, is_over)
    return None


def _doubt(shown: ShownRow, table: ShownTable) -> str:
    if shown.has_learned:
        return ""
    number = "test_accuracy" if table.number(shown, "test_accuracy") else "validation_accuracy"
    scores = [text for row in table.rows if row.row is None and (text := table.number(row, number))]
    least = f", which scores {listed(scores)}" if scores else ""
    return f"it is not better than the {MAJORITY} in {number.replace('_', ' ')}{least}: it has learned nothing"


def apart(gathered: Gathered) -> str | None:
    """What a reader must know before any number, where data or models are none that the figures were published for."""
    keys = {key for stage in gathered.grid.stages if stage.published for key in stage.published.apart}
    if not keys:
        return None
    specs = [run.run.hyperparameters for run in gathered.runs.values()]
    data = dict.fromkeys(
        spec.data.name
        + (f" ({count_text(spec.data.images_per_class, 'image')} a class)" if spec.data.images_per_class else "")
        for spec in specs
    )
    weights = dict.fromkeys(spec.model.weights or "random weights" for spec in specs)
    epochs = sorted({spec.epochs for spec in specs})
    many = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else listed([str(number) for number in epochs])
    told = f"{listed(list(data))}, {listed(list(weights))} and {many} {'epoch' if many == '1' else 'epochs'}"
    trained = f": they come from {told}" if specs else ""
    return (
        f"These numbers are not of what was published{trained}. They show how such a report looks, say nothing about "
        "the published figures, and are not subtracted from them"
    )


def _winning(stage: StageTable) -> TableRow | None:
    if stage.is_test:
        return next((row for row in stage.rows if row.best and row.numbers.num_tests), None)
    return next((row for row in stage.rows if row.kept), None)


def _because(gathered: Gathered, name: str) -> str:
    decision = gathered.known.decisions.get(name)
    if decision is not None:
        # Worked out anew from what it saw: an older one may tell too few digits.
        return (
            decision.because
            if decision.metric is None
            else rule_reason(decision.metric, decision.saw, len(decision.kept))
        )
    stage = gathered.grid.stage(name)
    rule = stage.keep or stage.test
    return rule.because if isinstance(rule, KeepThis | TestThese) else ""


def steps(gathered: Gathered) -> tuple[Step, ...]:
    """The stages in their order."""
    return tuple(
        _step(gathered, seen, table)
        for seen, table in zip(gathered.expansion.stages, gathered.table.stages, strict=True)
    )


def _step(gathered: Gathered, seen: StageExpansion, table: StageTable) -> Step:
    stage = gathered.grid.stage(seen.name)
    is_pinned = isinstance(stage.keep or stage.test, KeepThis | TestThese)
    kept = set(seen.kept)
    return Step(
        seen.name,
        _start(stage),
        seen.is_test,
        tuple(Tried(row.experiment, row.experiment in kept and not seen.is_test, row.state) for row in table.rows),
        seen.kept,
        (AUTHOR if is_pinned else RULE) if seen.kept else "",
        _because(gathered, seen.name) if seen.kept else "",
        _here(table) if is_pinned and not seen.is_test else "",
        seen.waiting or (None if seen.kept else gathered.waiting.get(seen.name)),
        tuple(remark for remark in table.remarks if remark.startswith("since that decision")),
    )


def _here(table: StageTable) -> str:
    """What the stage's own numbers say of the row that its author chose."""
    best = [row for row in table.rows if row.best]
    kept = [row for row in table.rows if row.kept and table.metric in row.numbers]
    if not best or not kept or len(table.rows) < 2:
        return ""
    direction = "lowest" if lower_is_better(table.metric) else "highest"
    kept_text, best_text = (number_text(table.metric, row, table.rows) for row in (kept[0], best[0]))
    if kept[0].best:
        others = [row.experiment for row in best if row is not kept[0]]
        return f"here it has the {direction} {table.metric}, {best_text}" + (
            f", as {listed(others)} {'has' if len(others) == 1 else 'have'}" if others else ""
        )
    names = listed([row.experiment for row in best])
    return f"here its {table.metric} is {kept_text}; the {direction} is {best_text} ({names})"


def _start(stage: Stage) -> str:
    if stage.test is not None:
        return "evaluates rows of earlier stages on the test part"
    return "starts from the base" if stage.start == BASE else f"starts from what {stage.start} keeps"


def tests_beside_best(gathered: Gathered) -> dict[tuple[str, str], str]:
    """Of each tested row, by stage and name, what its test says beside the best row's; nothing of the best itself."""
    told = {}
    for stage in gathered.table.stages:
        best = next((row.experiment for row in stage.rows if row.best), None)
        for row in stage.rows:
            if (compared := row.test_beside_best) is not None:
                low, high = compared.interval
                told[stage.name, row.experiment] = (
                    f"Beside {best}: {compared.verdict}, test accuracy "
                    f"{compared.difference:+.4f} ({low:+.4f} to {high:+.4f}; "
                    f"paired bootstrap over {compared.num_images:,} images, "
                    f"{1 - LEVEL:.0%} for all comparisons together)"
                )
    return told


def missing(gathered: Gathered) -> tuple[str, ...]:
    """What the report lacks, and why, a line each; none where the grid is complete."""
    lines = [f"stage {stage} is not decided: waiting {reason}" for stage, reason in gathered.waiting.items()]
    lines += [
        f"stage {seen.name} has no rows yet: waiting {seen.waiting}"
        for seen in gathered.expansion.stages
        if seen.waiting and seen.name not in gathered.waiting
    ]
    groups: dict[str, list[str]] = {}
    for stage in gathered.table.stages:
        for row in stage.rows:
            if row.state != "done":
                groups.setdefault(reason_of(row), []).append(f"{stage.name}/{row.experiment}")
    lines += [f"{listed(names)}: {told}" for told, names in groups.items()]
    lines += [f"{row.stage}/{row.experiment.name}: {text}" for row in gathered.tested for text in row.lacks]
    lines += [f"data set {each.index.name}: {text}" for each in gathered.data for text in each.lacks]
    return tuple(dict.fromkeys(lines))


def facts(gathered: Gathered) -> tuple[tuple[str, str], ...]:
    """The grid in numbers: what there is, and what it took."""
    runs = list(gathered.runs.values())
    done = sum(run.state == "done" for run in runs)
    failed = sum(run.state == "failed" for run in runs)
    num_tests = sum(run.test is not None for run in runs)
    gpu = sum(run.gpu_seconds for run in runs)
    seconds = sum(run.seconds for run in runs)
    attempts = sum(len(run.attempts) for run in runs)
    trained = f"{done:,} of {len(runs):,}" + (f", {failed:,} failed" if failed else "")
    return (
        ("distinct runs trained", trained),
        ("runs tested", f"{num_tests:,}"),
        ("seeds", f"{len(gathered.expansion.seeds)} ({listed([str(seed) for seed in gathered.expansion.seeds])})"),
        ("attempts", f"{attempts:,}"),
        ("time of all runs", seconds_text(seconds)),
        ("GPU-hours", hours_text(gpu)),
    )


def hours_text(gpu_seconds: float) -> str:
    """GPU-hours: one GPU for each run."""
    return f"{gpu_seconds / 3600:,.2f}" if gpu_seconds else "0 (trained on processors)"


def machines(gathered: Gathered) -> tuple[str, ...]:
    """The devices that trained, with torch's version, each once."""
    found = [
        f"{each.provenance.numerics.device_model}, {each.provenance.numerics.precision}, torch "
        f"{each.provenance.numerics.torch_version}"
        for run in gathered.runs.values()
        for each in run.attempts
        if each.provenance
    ]
    return tuple(dict.fromkeys(found))


def reproduction(gathered: Gathered) -> tuple[tuple[str, str], ...]:
    """What makes all of it anew, from nothing: in words, and the command, step by step."""
    made = [each.provenance for run in gathered.runs.values() for each in run.attempts if each.provenance]
    commits = list(dict.fromkeys(each.commit for each in made if each.commit))
    code = f"the code; {count_text(len(commits), 'commit')} trained it" if len(commits) > 1 else "the code"
    specs = [run.run.hyperparameters for run in gathered.runs.values()]
    weights = {spec.model.weights: spec.model.weights_fingerprint for spec in specs if spec.model.weights}
    return (
        *((code, f"git checkout {commit}") for commit in commits[-1:]),
        ("where data, weights and results lie: a folder, or s3://bucket/prefix", "export GRID_STORE=file:///FOLDER"),
        *(
            (
                f"data set {each.index.name}, SRC is its class folders; its fingerprint is {each.index.fingerprint}",
                _import_command(each),
            )
            for each in gathered.data
        ),
        *(
            (f"weights; their SHA-256 is {fingerprint}", f"grid weights import FILE --name {shlex.quote(name)}")
            for name, fingerprint in sorted(weights.items())
        ),
        ("the grid; what the store has already is not trained again", grid_command(gathered)),
        ("this page", f"grid report {shlex.quote(gathered.grid.name)}"),
    )


def _import_command(data: DataSeen) -> str:
    index, split = data.index, data.index.split
    rule = split.rule if split.test_fraction is None else f"{split.rule}={split.test_fraction:g}"
    words = ["grid", "data", "import", shlex.quote(index.name), "SRC", "--split", rule]
    words += ["--list", "PART=FILE"] if split.rule == "lists" else []
    if split.validation_fraction not in (None, DEFAULT_VALIDATION):
        words += ["--validation", f"{split.validation_fraction:g}"]
    words += ["--seed", str(split.seed)] if split.seed else []
    words += [word for name in index.excluded for word in ("--exclude", shlex.quote(name))]
    return " ".join(words)


def grid_command(gathered: Gathered) -> str:
    """What trains all of the grid."""
    return f"grid run {shlex.quote(gathered.grid.name)}"


def row_command(gathered: Gathered, stage: str, experiment: str) -> str:
    """What trains one row of it, where the stages before it are decided."""
    pattern = glob.escape(f"{stage}/{experiment}")
    return f"{grid_command(gathered)} --only {shlex.quote(pattern)}"


def run_command(run: RunSeen) -> str:
    """What trains one run by itself, from its spec and the data set alone."""
    return f'python -m trainer {run.run.id}.yaml --store "$GRID_STORE"'


def told(run: RunSeen) -> Iterator[tuple[str, str]]:
    """A run in words: name and text of each fact."""
    yield "seed", str(run.run.seed)
    yield "rows", ", ".join(run.homes)
    yield "state", run.state if run.reason is None or run.state == "done" else f"{run.state}: {run.reason}"
    if (result := run.result) is not None:
        yield "best epoch", f"{result.best_epoch} of {result.epochs_run}"
        yield "validation", f"accuracy {result.validation_accuracy:.4f}, loss {result.validation_loss:.4f}"
        yield "train", f"accuracy {result.train_accuracy:.4f}, loss {result.train_loss:.4f}"
    if run.test is not None:
        yield "test", f"accuracy {run.test.test_accuracy:.4f}, loss {run.test.test_loss:.4f}"
    if run.seconds:
        yield "time", seconds_text(run.seconds)
        yield "GPU-hours", hours_text(run.gpu_seconds)
    if result is not None:
        yield "speed", f"{result.images_per_second:,.1f} images/s"
        if result.restarts or result.returns_to_best:
            went = f"{count_text(result.returns_to_best, 'return')} to the best epoch"
            yield "course", f"{went}, {count_text(result.restarts, 'restart')} after a loss that was not finite"
        yield "exact", "yes" if result.exact else "no: an attempt went on with other numerics"
