"""A table for people: text as wide as a terminal, and Markdown. Numbers are rounded for reading."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Literal

from rich.cells import cell_len, chop_cells

from controller.noise import Comparison, TestComparison
from controller.table import NEAR, POSITIONS, RESULT_NUMBERS, TEST_NUMBERS, StageTable, Table, TableRow
from controller.wording import bytes_text, count_text, listed, plain, seconds_text, wrapped
from trainer.spec import lower_is_better

Kind = Literal["ours", "published", "difference"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a stage's table: a number of ours, what someone published of it, or the difference."""

    number: str  # of controller.table.NUMBERS
    short: str  # its head in a terminal
    long: str  # and where there is room
    kind: Kind = "ours"

    @property
    def key(self) -> tuple[str, Kind]:
        """What tells it from the stage's other columns."""
        return self.number, self.kind


_COLUMNS = (
    Column("train_loss", "train loss", "train loss"),
    Column("train_accuracy", "train acc", "train accuracy"),
    Column("validation_loss", "val loss", "validation loss"),
    Column("validation_accuracy", "val acc", "validation accuracy"),
    Column("validation_balanced_accuracy", "val bal acc", "validation balanced accuracy"),
    Column("validation_top5_accuracy", "val top-5", "validation top-5 accuracy"),
    Column("test_loss", "test loss", "test loss"),
    Column("test_accuracy", "test acc", "test accuracy"),
    Column("test_balanced_accuracy", "test bal acc", "test balanced accuracy"),
    Column("test_top5_accuracy", "test top-5", "test top-5 accuracy"),
    Column("best_epoch", "best epoch", "best epoch"),
    Column("num_trainable_parameters", "trained", "trainable parameters"),
    Column("num_parameters", "parameters", "parameters"),
    Column("wall_seconds", "time", "time"),
    Column("images_per_second", "images/s", "images/s"),
    Column("peak_memory_bytes", "memory", "peak memory"),
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
DIGITS, MOST_DIGITS = 3, 6  # behind the point of an accuracy or a loss: more only where rows could not be told apart
FEW_ROWS = 20  # up to here every two rows are told apart, above only the first from the next
WIDE = 80  # cells: from here on, intervals are told
MOST_PUBLISHED = 4  # digits that are shown of a published figure


def cells_of(column: Column, stage: StageTable) -> list[_Cell]:
    """The column's cells, one for each row of the stage; empty where there is no number."""
    if column.kind == "published":
        return [(_as_published(column.number, row.published.get(column.number)), "") for row in stage.rows]
    if column.kind == "difference":
        return [(_signed(column.number, row.difference(column.number)), "") for row in stage.rows]
    return _cells(column.number, stage.rows)


def number_text(number: str, row: TableRow, rows: Sequence[TableRow]) -> str:
    """The row's mean of that number, with as many digits as tell it from those of `rows`."""
    mean, _ = row.numbers.at(POSITIONS[number])
    return "" if mean is None else _written(number, mean, None, _digits(number, rows))[0]


def majority_cells(column: Column, stage: StageTable) -> list[str]:
    """The column's cells of the stage's majority rows."""
    if column.kind != "ours":
        return [""] * len(stage.majorities)
    digits = _digits(column.number, stage.rows)
    found = [one.numbers.get(column.number) for one in stage.majorities]
    return ["" if value is None else f"{value:.{digits}f}" for value in found]


def _cells(number: str, rows: Sequence[TableRow]) -> list[_Cell]:
    position, digits = POSITIONS[number], _digits(number, rows)
    cells = []
    for row in rows:
        mean, std = row.numbers.at(position)
        cells.append(("", "") if mean is None else _written(number, mean, std, digits))
    return cells


def _written(number: str, mean: float, std: float | None, digits: int = DIGITS) -> _Cell:
    """The mean of a number of that name and its ` ± std`, the latter empty where spread says little."""
    if not isfinite(mean):
        return str(mean), ""
    if number.endswith("_seconds"):
        return seconds_text(mean), ""
    if number.endswith("_bytes"):
        return bytes_text(mean), ""
    if number == "images_per_second":
        return f"{mean:,.1f}", ""
    if number.endswith("_accuracy"):
        form = f".{digits}f"
    elif number.endswith("_loss"):
        form = f".{digits}f" if abs(mean) < 10 else f",.{digits - 1}f" if abs(mean) < 1e6 else ".3g"
    else:
        form = ",.0f" if not std and float(mean).is_integer() else ",.1f"
        return f"{mean:{form}}", f" ± {std:{form}}" if std or (std is not None and not isinstance(mean, int)) else ""
    return f"{mean:{form}}", "" if std is None else f" ± {std:{form}}"


def _digits(number: str, rows: Sequence[TableRow]) -> int:
    """How many digits tell rows apart that differ in that number, where MOST_DIGITS can: in a long table its first."""
    if not number.endswith(("_accuracy", "_loss")):
        return DIGITS
    position = POSITIONS[number]
    means = {mean for row in rows if (mean := row.numbers.at(position)[0]) is not None and isfinite(mean)}
    ordered = sorted(means, reverse=not lower_is_better(number))
    pairs = list(pairwise(ordered))
    told = pairs if len(rows) <= FEW_ROWS else pairs[:1]
    return max((_digits_between(number, *pair) for pair in told), default=DIGITS)


def _digits_between(number: str, one: float, other: float) -> int:
    for digits in range(DIGITS, MOST_DIGITS + 1):
        if _written(number, one, None, digits) != _written(number, other, None, digits):
            return digits
    return DIGITS


def _as_published(number: str, value: float | None) -> str:
    """A published figure with the digits that it was published with: two at least."""
    if value is None:
        return ""
    if not number.endswith(("_accuracy", "_loss")):
        return f"{value:,.10g}"
    digits = len(f"{value:.{MOST_PUBLISHED}f}".rstrip("0").partition(".")[2])
    return f"{value:.{max(2, digits)}f}"


def _signed(number: str, difference: float | None) -> str:
    if difference is None or not isfinite(difference):
        return ""
    if not number.endswith(("_accuracy", "_loss")):
        return f"{difference:+,.10g}" if difference else "0"
    text = f"{difference:+.{DIGITS}f}"
    return text if float(text) else f"{0:.{DIGITS}f}"


def columns_of(stage: StageTable) -> list[Column]:
    """The stage's columns in order; beside what was published of a number stand the figure and the difference."""
    ours, published = {column.number for column in _columns(stage)}, stage.published
    columns = []
    for column in _COLUMNS:
        number, short, long = column.number, "publ.", "published"
        if number in ours:
            columns.append(column)
        else:
            short, long = f"{column.short} publ.", f"{column.long}, published"
        if number in published:
            columns.append(Column(number, short, long, "published"))
            if any(row.difference(number) is not None for row in stage.rows):
                columns.append(Column(number, "diff", "difference", "difference"))
    return columns


def _columns(stage: StageTable) -> list[Column]:
    """Those of our own numbers."""
    present: set[str] = set()
    if any(row.numbers.num_results for row in stage.rows):
        present.update(RESULT_NUMBERS)
    if any(row.numbers.num_tests for row in stage.rows):
        present.update(TEST_NUMBERS)
    return [column for column in _COLUMNS if column.number in present]


def _lead(stage: StageTable) -> tuple[str, ...]:
    """What the stage's rows are there for."""
    return ("test_accuracy", stage.metric) if stage.is_test else (stage.metric,)


def by_importance(stage: StageTable) -> list[tuple[str, Kind]]:
    """Which columns matter first: what rows are there for, then what can be compared with others."""
    lead = _lead(stage)
    names = list(dict.fromkeys((*lead, *_BY_IMPORTANCE)))
    first = [name for name in names if name in lead or name in stage.published]
    kinds: tuple[Kind, ...] = ("ours", "published", "difference")
    return [(name, kind) for name in first for kind in kinds] + [(name, "ours") for name in names if name not in first]


def mark_of(row: TableRow, is_final: bool) -> str:
    """What is to be said of a row in two words: best, kept, or why its numbers are missing or not all there."""
    if row.state != "done":
        return f"{row.state} {row.num_done}/{len(row.runs)}" if row.num_done else row.state
    marks = [("best" if is_final else "best so far")] if row.best else ["≈ best"] if row.is_near_best else []
    return ", ".join([*marks, *(["kept"] if row.kept else [])])


def reason_of(row: TableRow) -> str:
    """Why a row that is not done has no numbers, or not all: its state, and the reason for that."""
    reason = row.reason or ""
    return reason if reason.startswith(row.state) else f"{row.state}: {reason}"


def legend_of(stage: StageTable) -> str | None:
    """What the best row of the stage is the best by; none where there is no best row."""
    if not any(row.best for row in stage.rows):
        return None
    over = " over seeds" if any(len(row.runs) > 1 for row in stage.rows) else ""
    mean = f"mean {stage.metric}{over}" if over else stage.metric
    return f"best: the {'lowest' if lower_is_better(stage.metric) else 'highest'} {mean}"


def compared_texts(stage: StageTable, *, with_intervals: bool) -> list[str]:
    """What `≈ best` means in the stage, and by which method; with the intervals where there is room for them."""
    others = [row for row in stage.rows if not row.best]
    over_seeds = [(row, row.beside_best) for row in others if row.beside_best is not None]
    over_images = [(row, row.test_beside_best) for row in others if row.test_beside_best is not None]
    texts = []
    numbers = sorted({found.num_seeds for _, found in over_seeds if found.p_value is not None})
    if numbers:
        many = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        method = f"over {many} seeds (paired t, Holm)"
        near = [(row, found) for row, found in over_seeds if row.is_near_best and found.verdict == NEAR]
        if near:
            texts.append(f"≈ best: not to be told from it {method}{_intervals(near, stage.metric, with_intervals)}")
        elif len(over_seeds) == len(others) and all(found.verdict == "worse" for _, found in over_seeds):
            texts.append(f"all others are worse {method}")
    elif over_seeds:
        texts.append(f"too few seeds to say what differs{' over seeds' if over_images else ''}")
    if over_images:
        method = f"over {count_text(over_images[0][1].num_images, 'test image')} (paired bootstrap)"
        near_test = [(row, found) for row, found in over_images if row.is_near_best and found.verdict == NEAR]
        if near_test:
            told = _intervals(near_test, "test_accuracy", with_intervals)
            texts.append(f"≈ best: not to be told from it {method}{told}")
        better = [(row, found) for row, found in over_images if found.verdict == "better"]
        if better:
            names = f": {listed([row.experiment for row, _ in better])}"
            told = _intervals(better, "test_accuracy", with_intervals) or names
            texts.append(f"better than the best by validation {method}{told}")
    return texts


def _intervals(rows: Sequence[tuple[TableRow, Comparison | TestComparison]], metric: str, with_intervals: bool) -> str:
    """Between which bounds each row's number lies, less the best row's."""
    told = [
        f"{row.experiment} {_bound(found.interval[0])} to {_bound(found.interval[1])}"
        for row, found in rows
        if found.interval is not None
    ]
    return f"; {metric} less the best's: {listed(told)}" if told and with_intervals else ""


def _bound(value: float) -> str:
    return f"{value:+.{DIGITS + 1}f}" if abs(value) < 10 else f"{value:+.3g}"


PUBLISHED_MEANING = "publ.: the figure that was published"
DIFFERENCE_MEANING = "diff: ours less that"


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
        for text in _stage_texts(stage, with_intervals=width >= WIDE):
            lines += wrapped(text, width, indent=2)
    said = {one.meaning: None for stage in table.stages for one in stage.majorities}
    if any(stage.published for stage in table.stages):
        told = [row.difference(number) for stage in table.stages for row in stage.rows for number in row.published]
        has_differences = any(each is not None for each in told)
        said[f"{PUBLISHED_MEANING}; {DIFFERENCE_MEANING}" if has_differences else PUBLISHED_MEANING] = None
    notes = [f"[{index}] {text}" for index, text in enumerate(table.notes, start=1)]
    if said or notes:
        lines.append("")
    for text in (*said, *notes):
        lines += wrapped(text, width)
    return "\n".join(lines) + "\n"


def _stage_texts(stage: StageTable, *, with_intervals: bool) -> list[str]:
    """What stands below a stage's rows: why some have no numbers, what was kept, and what the marks mean."""
    texts = [f"waiting: {stage.waiting}"] if stage.waiting else []
    groups: dict[str, list[str]] = {}
    for row in stage.rows:
        if row.state != "done":
            groups.setdefault(reason_of(row), []).append(row.experiment)
    texts += [f"{listed(names)}: {text}" for text, names in groups.items()]
    texts += stage.remarks
    legend = legend_of(stage)
    return [*texts, *([legend] if legend else []), *compared_texts(stage, with_intervals=with_intervals)]


def _styled(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


@dataclass(frozen=True, slots=True)
class _Filled:
    """A column with its cells; each is a mean aligned right, and a spread after it aligned left."""

    column: Column
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


def _filled(column: Column, cells: Sequence[_Cell]) -> _Filled:
    means, spreads = [mean for mean, _ in cells], [spread for _, spread in cells]
    spread_width = max(map(len, spreads))
    width = max(len(column.short), max(map(len, means)) + spread_width)
    return _Filled(column, means, spreads, spread_width, width)


def _grid_lines(stage: StageTable, width: int, colour: bool) -> list[str]:
    names = [plain(row.experiment) + "".join([f" [{note}]" for note in row.notes]) for row in stage.rows]
    names += stage.majority_names
    is_final = stage.is_final
    marks = [mark_of(row, is_final) for row in stage.rows] + [""] * len(stage.majorities)
    styles = [{"failed": "31", "done": "1" if row.best else ""}.get(row.state, "") for row in stage.rows]
    styles += ["2"] * len(stage.majorities)
    columns = columns_of(stage)
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


def _fitting(stage: StageTable, columns: Sequence[Column], room: int) -> list[_Filled]:
    """The columns that fit into `room`, the most important first to be taken."""
    by_key = {column.key: column for column in columns}
    lead = [(name, "ours") for name in _lead(stage)]
    taken: dict[tuple[str, Kind], _Filled] = {}

    def take(*keys: tuple[str, Kind]) -> None:
        nonlocal room
        cells = [_all_cells(by_key[key], stage) for key in keys]
        filled = [_filled(by_key[key], each) for key, each in zip(keys, cells, strict=True)]
        if _room_of(filled) > room and keys[0] in lead:  # what rows are there for is the last to go
            filled = [_filled(by_key[keys[0]], [(mean, "") for mean, _ in cells[0]])]  # its spread goes before it
        if _room_of(filled) <= room:
            taken.update(zip(keys, filled, strict=True))
            room -= _room_of(filled)

    for number, kind in by_importance(stage):
        if (number, kind) not in by_key:
            continue
        if kind == "ours":
            take((number, kind))
        elif kind == "published" and ((number, "ours") in taken or (number, "ours") not in by_key):
            beside = (number, "difference")
            take((number, kind), *([beside] if beside in by_key else []))  # never one without the other
    return [taken[column.key] for column in columns if column.key in taken]


def _all_cells(column: Column, stage: StageTable) -> list[_Cell]:
    return cells_of(column, stage) + [(text, "") for text in majority_cells(column, stage)]


def _room_of(filled: Sequence[_Filled]) -> int:
    return sum(each.width + 2 for each in filled)


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


def markdown_of(text: str) -> str:
    """`text` as Markdown that shows it as it is, in one line: no HTML, no emphasis, no new cell."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(plain(text).strip(), quote=False))


def to_markdown(table: Table) -> str:
    """The table as a GitHub table for each stage, with footnotes."""
    lines = [f"# {markdown_of(table.grid)}", "", f"Seeds: {', '.join(map(str, table.seeds))}."]
    if any(row.numbers.num_results > 1 for stage in table.stages for row in stage.rows):
        lines[-1] += " Numbers are mean ± sample standard deviation over seeds."
    for stage in table.stages:
        lines += ["", f"## {markdown_of(stage.name)}", ""]
        lines += _markdown_rows(stage) if stage.rows else []
        if stage.rows:
            lines.append("")
        texts = [f"waiting: {stage.waiting}"] if stage.waiting else []
        texts += stage.remarks
        texts += [text] if (text := legend_of(stage)) else []
        texts += compared_texts(stage, with_intervals=True)
        texts += [one.meaning for one in stage.majorities]
        lines += [f"- {markdown_of(text)}" for text in texts]
    if table.notes:
        lines.append("")
        lines += [f"[^{index}]: {markdown_of(text)}" for index, text in enumerate(table.notes, start=1)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_rows(stage: StageTable) -> list[str]:
    columns = columns_of(stage)
    cells_by_row = zip(*(cells_of(column, stage) for column in columns), strict=True) if columns else ()
    is_final = stage.is_final
    lines = [
        f"| experiment | {''.join(f'{column.long} | ' for column in columns)}state |",
        f"| :-- | {'--: | ' * len(columns)}:-- |",
    ]
    for row, row_cells in zip(stage.rows, cells_by_row or [()] * len(stage.rows), strict=True):
        cells = ["".join(cell) for cell in row_cells]
        name = markdown_of(row.experiment)
        if row.best:
            name = f"**{name}**"
            cells = [
                f"**{cell}**" if column.key == (stage.metric, "ours") else cell
                for column, cell in zip(columns, cells, strict=True)
            ]
        name += "".join(f"[^{note}]" for note in row.notes)
        state = (mark_of(row, is_final) or "done") if row.state == "done" else markdown_of(reason_of(row))
        lines.append(f"| {' | '.join([name, *cells, state])} |")
    by_majority = zip(*(majority_cells(column, stage) for column in columns), strict=True) if columns else ()
    for name, majority in zip(stage.majority_names, by_majority or [()] * len(stage.majorities), strict=True):
        cells = list(majority)
        lines.append(f"| {' | '.join([f'*{markdown_of(name)}*', *cells, ''])} |")
    return lines
