"""The figures of a report as files, and what the page draws of them: the same values behind both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from controller.figures.confusion import confusion_picture
from controller.figures.curves import MAX_LINES, Panel, panels_picture, run_panels, stage_panels
from controller.figures.data import counts_picture, sheet_picture
from controller.figures.style import Picture
from controller.table import StageTable
from trainer.spec import lower_is_better

if TYPE_CHECKING:
    from controller.report.gather import DataSeen, Gathered, RunSeen, TestedRow


def curves_of_run(run: RunSeen) -> tuple[Panel, Panel] | None:
    """The run's loss and accuracy; none before its first epoch is done."""
    if not run.metrics:
        return None
    return run_panels(run.metrics, run.best_epoch, run.run.hyperparameters.epochs)


def curves_of_stage(gathered: Gathered, stage: StageTable) -> tuple[tuple[Panel, Panel], int] | None:
    """The stage's rows over one another, and how many are left out: the best MAX_LINES are shown, in their order."""
    rows = [row for row in stage.rows if any(gathered.runs[run.id].metrics for run in row.runs)]
    sign = 1 if lower_is_better(stage.metric) else -1
    ranked = sorted(
        rows, key=lambda row: sign * row.numbers[stage.metric].mean if stage.metric in row.numbers else np.inf
    )
    shown = [row for row in rows if any(row is each for each in ranked[:MAX_LINES])]
    if not shown:
        return None
    epochs = max(gathered.runs[row.runs[0].id].run.hyperparameters.epochs for row in shown)
    by_name = {row.experiment: [gathered.runs[run.id].metrics for run in row.runs] for row in shown}
    return stage_panels(by_name, epochs), len(rows) - len(shown)


def counts_of(data: DataSeen) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Name, title and images of each class: of the whole set, then of each part."""
    index = data.index
    by_part = [index.class_counts(part) for part in index.parts]
    whole = tuple(map(sum, zip(*by_part, strict=True)))
    yield "whole", f"{index.name}: {sum(whole):,} images of {index.num_classes} classes", whole
    for part, counts in zip(index.parts, by_part, strict=True):
        yield part, f"{index.name}, {part} part: {sum(counts):,} images", counts


def confusion_title(row: TestedRow) -> str:
    """What stands above its confusion matrix."""
    return f"{row.experiment.name}: answers by true class"


def figure_files(gathered: Gathered) -> Iterator[tuple[str, bytes]]:
    """File name and content of every figure, as SVG and PNG."""
    for name, made in _pictures(gathered):
        yield f"{name}.svg", made.svg
        yield f"{name}.png", made.png


def _pictures(gathered: Gathered) -> Iterator[tuple[str, Picture]]:
    for data in gathered.data:
        classes = data.index.classes
        for name, title, counts in counts_of(data):
            yield f"data-{data.index.name}-{name}", counts_picture(title, classes, counts)
        if data.sheet:
            title = f"{data.index.name}: training images, drawn at random"
            yield f"data-{data.index.name}-sheet", sheet_picture(title, data.sheet)
    for stage in gathered.table.stages:
        if (found := curves_of_stage(gathered, stage)) is not None:
            yield f"stage-{stage.name}", panels_picture(f"stage {stage.name}", found[0])
    for number, row in enumerate(gathered.tested, start=1):
        if row.scores is not None:
            made = confusion_picture(confusion_title(row), row.classes, row.scores.counts)
            yield f"confusion-{row.stage}-{number}", made
    for run in gathered.runs.values():
        if (panels := curves_of_run(run)) is not None:
            yield f"run-{run.run.id}", panels_picture(f"{run.homes[0]}, seed {run.run.seed}", panels)
