"""The columns of the report's tables: the same ones, from the same place, as `grid table` writes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from controller.noise import FEWEST_SEEDS, Comparison
from controller.table import POSITIONS, StageTable, Table, TableRow
from controller.table_text import Column, cells_of, columns_of, legend_of, majority_cells, mark_of

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


@dataclass(frozen=True, slots=True)
class ShownTable:
    """One stage's table, for people."""

    stage: StageTable
    columns: tuple[Column, ...]
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
    """Every stage with all the columns that it has numbers for."""
    return tuple(map(_shown, table.stages))


def _shown(stage: StageTable) -> ShownTable:
    columns = columns_of(stage)
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
    told = [legend] if legend else []
    if any(row.best for row in stage.rows) and has_seeds:
        told.append("Compared with the best: paired t intervals over seeds, corrected by Holm's method.")
    elif sum(row.numbers.num_results > 0 for row in stage.rows) > 1:
        told.append(
            f"Which rows cannot be told from the best is said from {FEWEST_SEEDS} seeds on: here are too few to say."
        )
    return ShownTable(stage, tuple(columns), tuple(rows), (*told, *stage.remarks[bool(stage.decision) :]), legend)


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
