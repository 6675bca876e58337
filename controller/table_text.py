"""A table for people: text as wide as a terminal, and Markdown. Numbers are rounded for reading."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite

from rich.cells import cell_len, chop_cells

from controller.table import POSITIONS, RESULT_NUMBERS, TEST_NUMBERS, StageTable, Table, TableRow
from controller.wording import bytes_text, count_text, listed, plain, seconds_text, wrapped
from trainer.spec import lower_is_better


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


_Cell = tuple[str, str]  # the part aligned right, and the part after it aligned left
_Form = Callable[[float, float | None], _Cell]


@cache
def _form(number: str) -> _Form:
    """How a number of that name is written: its mean and its ` ± std`, the latter empty where spread says little."""
    if number.endswith("_seconds"):
        return lambda mean, _std: (seconds_text(mean), "")
    if number.endswith("_bytes"):
        return lambda mean, _std: (bytes_text(mean), "")
    if number == "images_per_second":
        return lambda mean, _std: (f"{mean:,.1f}", "")
    if number.endswith("_accuracy"):
        return lambda mean, std: (f"{mean:.3f}", "" if std is None else f" ± {std:.3f}")
    if number.endswith("_loss"):
        return _loss
    return _count


def _loss(mean: float, std: float | None) -> _Cell:
    form = ".3f" if abs(mean) < 10 else ",.2f" if abs(mean) < 1e6 else ".3g"
    return f"{mean:{form}}", "" if std is None else f" ± {std:{form}}"


def _count(mean: float, std: float | None) -> _Cell:
    form = ",.0f" if not std and float(mean).is_integer() else ",.1f"
    return f"{mean:{form}}", f" ± {std:{form}}" if std or (std is not None and not isinstance(mean, int)) else ""


def _cells(number: str, rows: Sequence[TableRow]) -> list[_Cell]:
    """The column of that number, a cell for each row."""
    position, form = POSITIONS[number], _form(number)
    cells = []
    for row in rows:
        mean, std = row.numbers.at(position)
        cells.append(("", "") if mean is None else form(mean, std) if isfinite(mean) else (str(mean), ""))
    return cells


def _columns(stage: StageTable) -> list[_Column]:
    present: set[str] = set()
    if any(row.numbers.num_results for row in stage.rows):
        present.update(RESULT_NUMBERS)
    if any(row.numbers.num_tests for row in stage.rows):
        present.update(TEST_NUMBERS)
    return [column for column in _COLUMNS if column.number in present]


def _mark(row: TableRow, is_final: bool) -> str:
    """What is to be said of a row in two words: best, kept, or why its numbers are missing or not all there."""
    if row.state != "done":
        return f"{row.state} {row.num_done}/{len(row.runs)}" if row.num_done else row.state
    marks = [("best" if is_final else "best so far")] if row.best else []
    return ", ".join([*marks, *(["kept"] if row.kept else [])])


def _legend(stage: StageTable) -> str | None:
    if not any(row.best for row in stage.rows):
        return None
    over = " over seeds" if any(len(row.runs) > 1 for row in stage.rows) else ""
    mean = f"mean {stage.metric}{over}" if over else stage.metric
    return f"best: the {'lowest' if lower_is_better(stage.metric) else 'highest'} {mean}"


def to_terminal(table: Table, width: int = 80, *, colour: bool = False) -> str:
    """The table as lines of at most `width` cells, readable without colour; the least important columns give way.

    A name that is too long goes on in the next line; only below about 40 cells may lines grow longer than `width`.
    """
    seeds = f"seed{'s' if len(table.seeds) > 1 else ''} {', '.join(map(str, table.seeds))}"
    lines = wrapped(f"{table.grid}: {seeds}", width)
    for stage in table.stages:
        lines += ["", _styled(plain(stage.name), "1", colour)]
        if stage.rows:
            lines += _grid_lines(stage, width, colour)
        for text in _stage_texts(stage):
            lines += wrapped(text, width, indent=2)
    said = {one.meaning: None for stage in table.stages for one in stage.majorities}
    notes = [f"[{index}] {text}" for index, text in enumerate(table.notes, start=1)]
    if said or notes:
        lines.append("")
    for text in (*said, *notes):
        lines += wrapped(text, width)
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
    texts += [f"{listed(names)}: {text}" for text, names in groups.items()]
    texts += stage.remarks
    legend = _legend(stage)
    return [*texts, legend] if legend else texts


def _styled(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


@dataclass(frozen=True, slots=True)
class _Filled:
    """A column with its cells; each is a mean aligned right, and a spread after it aligned left."""

    column: _Column
    means: list[str]
    spreads: list[str]
    spread_width: int
    width: int

    def texts(self) -> list[str]:
        """The cells, all of one width."""
        if not self.spread_width:
            return [mean.rjust(self.width) for mean in self.means]
        return [
            (mean + spread.ljust(self.spread_width)).rjust(self.width)
            for mean, spread in zip(self.means, self.spreads, strict=True)
        ]


def _filled(column: _Column, cells: Sequence[_Cell]) -> _Filled:
    means, spreads = [mean for mean, _ in cells], [spread for _, spread in cells]
    spread_width = max(map(len, spreads))
    width = max(len(column.short), max(map(len, means)) + spread_width)
    return _Filled(column, means, spreads, spread_width, width)


def _grid_lines(stage: StageTable, width: int, colour: bool) -> list[str]:
    names = [plain(row.experiment) + "".join([f" [{note}]" for note in row.notes]) for row in stage.rows]
    names += stage.majority_names
    is_final = stage.is_final
    marks = [_mark(row, is_final) for row in stage.rows] + [""] * len(stage.majorities)
    styles = [{"failed": "31", "done": "1" if row.best else ""}.get(row.state, "") for row in stage.rows]
    styles += ["2"] * len(stage.majorities)
    columns = _columns(stage)
    natural = max(map(_width_of, names))
    room = width - 2 - (max(map(len, marks)) + 2)
    name_width = min(natural, max(12, room * 2 // 5))
    kept = _fitting(stage, columns, room - name_width)
    name_width = min(natural, max(name_width, room - sum(each.width + 2 for each in kept)))

    def line(name: str, texts: Iterable[str], mark: str) -> str:
        padded = name + " " * (name_width - _width_of(name))
        return "  ".join(["", padded, *texts, mark]).rstrip()

    lines = [line("", [each.column.short.rjust(each.width) for each in kept], "")] if kept else []
    texts = zip(*(each.texts() for each in kept), strict=True) if kept else ((),) * len(names)
    for name, cells, mark, style in zip(names, texts, marks, styles, strict=True):
        first, *rest = _broken(name, name_width)
        lines.append(_styled(line(first, cells, mark), style, colour))
        lines += [_styled(f"    {part}", style, colour) for part in rest]
    hidden = len(columns) - len(kept)
    if hidden:
        text = f"({count_text(hidden, 'more column')} in a wider terminal and in the files)"
        lines += wrapped(text, width, indent=2)
    return lines


def _fitting(stage: StageTable, columns: Sequence[_Column], room: int) -> list[_Filled]:
    """The columns that fit into `room`, the most important first to be taken."""
    by_name = {column.number: column for column in columns}
    taken: dict[str, _Filled] = {}
    for name in dict.fromkeys((stage.metric, *_BY_IMPORTANCE)):
        if name not in by_name or len(by_name[name].short) + 2 > room:
            continue
        cells = _cells(name, stage.rows)
        cells += [(f"{one.numbers[name]:.3f}" if name in one.numbers else "", "") for one in stage.majorities]
        filled = _filled(by_name[name], cells)
        if filled.width + 2 > room and name == stage.metric:  # what rows are compared by is the last to go
            filled = _filled(by_name[name], [(mean, "") for mean, _ in cells])  # its spread goes before it
        if filled.width + 2 <= room:
            taken[name] = filled
            room -= filled.width + 2
    return [taken[column.number] for column in columns if column.number in taken]


def _width_of(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _broken(name: str, width: int) -> list[str]:
    """`name` in parts of at most `width` cells (two fewer after the first), cut after a separator where one is near."""
    parts = []
    room = width
    while _width_of(name) > room:
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
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(plain(text).strip(), quote=False))


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
        texts += [one.meaning for one in stage.majorities]
        lines += [f"- {_markdown(text)}" for text in texts]
    if table.notes:
        lines.append("")
        lines += [f"[^{index}]: {_markdown(text)}" for index, text in enumerate(table.notes, start=1)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_rows(stage: StageTable) -> list[str]:
    columns = _columns(stage)
    cells_by_row = zip(*(_cells(column.number, stage.rows) for column in columns), strict=True) if columns else ()
    is_final = stage.is_final
    lines = [
        f"| experiment | {''.join(f'{column.long} | ' for column in columns)}state |",
        f"| :-- | {'--: | ' * len(columns)}:-- |",
    ]
    for row, row_cells in zip(stage.rows, cells_by_row or [()] * len(stage.rows), strict=True):
        cells = ["".join(cell) for cell in row_cells]
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
    for name, one in zip(stage.majority_names, stage.majorities, strict=True):
        cells = [f"{one.numbers[column.number]:.3f}" if column.number in one.numbers else "" for column in columns]
        lines.append(f"| {' | '.join([f'*{_markdown(name)}*', *cells, ''])} |")
    return lines
