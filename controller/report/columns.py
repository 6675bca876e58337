"""The columns of the report's tables: the same ones, from the same place, as `grid table` writes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from controller.noise import FEWEST_SEEDS, Comparison
from controller.table import POSITIONS, StageTable, Table, TableRow
from controller.table_text import (
    Column,
    by_importance,
    cells_of,
    columns_of,
    compared_texts,
    legend_of,
    majority_cells,
    mark_of,
)

TECHNICAL = frozenset(  # what neither a page's first sight nor a paper has room for
    {
        *(f"{part}_{name}" for part in ("validation", "test") for name in ("balanced_accuracy", "top5_accuracy")),
        *("num_parameters", "num_trainable_parameters", "wall_seconds", "images_per_second", "peak_memory_bytes"),
    }
)
ROOM = 53.5  # rem: what the page has for core columns, beside a row's name and its state
DIGIT, LETTER, PADDING, NARROWEST = 0.56, 0.53, 1.3, 4.0  # rem: of a cell, of a head, what is free beside, a column


_VERDICTS = {
    "cannot be told from it": "cannot be told from the best",
    "worse": "worse than the best",
    "too few seeds to say": "too few seeds to say",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as it is read, and as it is sorted."""

    text: str
    value: float | None


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row of a stage's table."""

    name: str
    cells: tuple[Cell, ...]  # one for each column
    mark: str  # best, kept, or the state in two words
    reason: str  # why numbers are missing
    beside_best: str  # whether it can be told from the best row; empty where nothing can be said
    notes: tuple[int, ...] = ()
    row: TableRow | None = None  # none for a majority row

    @property
    def is_best(self) -> bool:
        """Whether it is the best row of its stage."""
        return self.row is not None and self.row.best

    @property
    def has_learned(self) -> bool:
        """Whether it is better than the majority class, as far as that is known."""
        return self.row is None or self.row.beats_majority is not False


@dataclass(frozen=True, slots=True)
class ShownTable:
    """One stage's table, for people."""

    stage: StageTable
    columns: tuple[Column, ...]  # the most important first
    num_core: int  # how many of them fit a page; the others are shown when asked for, and never printed
    rows: tuple[ShownRow, ...]
    texts: tuple[str, ...]  # what stands below it
    legend: str | None  # what the best row is the best by

    @property
    def metric_column(self) -> int | None:
        """The column that rows are compared by."""
        keys = [column.key for column in self.columns]
        return keys.index((self.stage.metric, "ours")) if (self.stage.metric, "ours") in keys else None

    def number(self, row: ShownRow, number: str) -> str:
        """The row's own number of that name, as it is written; empty where there is none."""
        return next(
            (cell.text for column, cell in zip(self.columns, row.cells, strict=True) if column.key == (number, "ours")),
            "",
        )


def shown_tables(table: Table) -> tuple[ShownTable, ...]:
    """Every stage with all the columns that it has numbers for, the most important first."""
    return tuple(map(_shown, table.stages))


def _in_order(stage: StageTable) -> tuple[list[Column], int]:
    """The columns, the most important first, and how many of them are its core; what was published stays with ours."""
    found = {column.key: column for column in columns_of(stage)}
    groups: dict[str, list[Column]] = {}
    for key in by_importance(stage):
        if key in found:
            groups.setdefault(key[0], []).append(found[key])
    core: list[Column] = []
    rest: list[Column] = []
    room = ROOM
    for number, group in groups.items():
        if number in TECHNICAL:
            rest += group
            continue
        room -= sum(_rem(column, stage) for column in group)
        if room >= 0 or not core:
            core += group
        else:
            rest += group
    return core + rest, len(core)


def _rem(column: Column, stage: StageTable) -> float:
    """How wide the column is on the page, about."""
    head = max(map(len, column.long.split()))
    cells = max((len("".join(cell)) for cell in cells_of(column, stage)), default=0)
    return max(LETTER * head + PADDING, DIGIT * cells + PADDING, NARROWEST)


def _shown(stage: StageTable) -> ShownTable:
    columns, num_core = _in_order(stage)
    texts = [["".join(cell) for cell in cells_of(column, stage)] for column in columns]
    has_seeds = max((row.numbers.num_results for row in stage.rows), default=0) >= FEWEST_SEEDS
    rows = [
        ShownRow(
            row.experiment,
            tuple(Cell(text[index], _value(column, row)) for column, text in zip(columns, texts, strict=True)),
            mark_of(row, stage.is_final) or row.state,
            "" if row.state == "done" else row.reason or "",
            _beside_best(row.beside_best) if has_seeds and row.beside_best else "",
            row.notes,
            row,
        )
        for index, row in enumerate(stage.rows)
    ]
    majorities = [majority_cells(column, stage) for column in columns]
    rows += [
        ShownRow(
            name,
            tuple(Cell(texts[index], float(texts[index]) if texts[index] else None) for texts in majorities),
            "",
            "",
            "",
        )
        for index, name in enumerate(stage.majority_names)
    ]
    legend = legend_of(stage)
    told = [*([legend] if legend else []), *compared_texts(stage, with_intervals=True)]
    remarks = stage.remarks[bool(stage.decision) :]  # the decision stands in the path
    return ShownTable(stage, tuple(columns), num_core, tuple(rows), (*told, *remarks), legend)


def _beside_best(compared: Comparison) -> str:
    if compared.verdict == "best" or compared.num_seeds == 0:
        return ""
    verdict = _VERDICTS[compared.verdict]
    if compared.interval is None:
        return verdict
    low, high = compared.interval
    return f"{verdict}: by {low:+.3g} to {high:+.3g}"


def _value(column: Column, row: TableRow) -> float | None:
    if column.kind == "published":
        return row.published.get(column.number)
    if column.kind == "difference":
        return row.difference(column.number)
    mean, _ = row.numbers.at(POSITIONS[column.number])
    return mean if mean is not None and isfinite(mean) else None
