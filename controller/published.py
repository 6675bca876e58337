"""Which published figures stand beside which rows of a table. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.grid import Grid
from controller.rows import MISSING, matches, same
from controller.search import Expansion, Experiment, StageExpansion
from controller.stages import PublishedMetric, PublishedRow
from controller.wording import listed
from trainer.document import show_value
from trainer.spec import ExperimentSpec


class Figures(NamedTuple):
    """What someone published of one row."""

    numbers: Mapping[PublishedMetric, float]
    note: str | None
    is_apart: bool = False  # of other data or another model: no difference is worked out


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a grid's table compares with."""

    figures: Mapping[tuple[str, str], Figures] = field(default_factory=dict)  # by stage and experiment
    remarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by stage: what to know about all of them


def comparison(grid: Grid, expansion: Expansion) -> Comparison:
    """The grid's published figures at those rows that are what the figures are of; of the others it says why not."""
    figures: dict[tuple[str, str], Figures] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    for stage in expansion.stages:
        published = grid.stage(stage.name).published
        if published is None:
            continue
        texts = [] if published.note is None else [published.note]
        if published.apart:
            texts.append(f"no difference is worked out: {listed(published.apart)} not as published")
        others: dict[str, list[str]] = {}
        for row in published.rows:
            for experiment in _experiments(row, stage, expansion.stages):
                if other := _other_value(experiment.spec, {**published.at, **row.at}):
                    others.setdefault(other, []).append(experiment.name)
                else:
                    figures[stage.name, experiment.name] = Figures(row.numbers, row.note, bool(published.apart))
        texts += [f"none for {listed(names)}: the figures are of {other}" for other, names in others.items()]
        remarks[stage.name] = tuple(texts)
    return Comparison(figures, remarks)


def _experiments(row: PublishedRow, stage: StageExpansion, stages: Sequence[StageExpansion]) -> Iterator[Experiment]:
    """The stage's experiment that the figures name; none while it is not known, or where a rule chose others."""
    if row.stage is None:
        yield from (each for each in stage.experiments if matches(each.values, row.this, each.name))
        return
    source = next(each for each in stages if each.name == row.stage)
    named = [each.runs for each in source.experiments if matches(each.values, row.this, each.name)]
    yield from (each for each in stage.experiments if each.runs in named)


def _other_value(spec: ExperimentSpec, at: Mapping[str, Any]) -> str | None:
    """The first value of `at` that the spec has not, and what it has in its place; none where it has them all."""
    for key, wanted in at.items():
        value: Any = spec
        for part in key.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else getattr(value, part, MISSING)
        if not same(value, wanted):
            here = "nothing" if value is MISSING else show_value(value)
            return f"{key} {show_value(wanted)}, here it is {here}"
    return None
