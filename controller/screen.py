"""The live view's lines: a grid's progress drawn for a terminal of some size. Values in, lines out.

1. `Screen.draw` leaves a quarter of the terminal's height to what happened, which scrolls away above the view.
2. The grid's own lines come first: counts, end, speed. A section for each of stages, runs, failures, waits and the
   table so far follows; `shares` gives each the lines that it needs, or its part of those left.
3. A section that gets too few shows what is most telling and says how many it does not show: of runs those with the
   most time left. A wide terminal has the table beside the others.
4. Every line is cut to the width, and every character is one that the terminal can show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from controller.live import GridProgress, RowProgress, RunProgress, StageProgress, number_text, run_words
from controller.wording import count_text, plain, seconds_text

T = TypeVar("T")

WIDE = 150  # columns, from which the table stands beside the rest
NARROW = 60  # columns, below which names have a third of them
ROOMY_WIDTH = 100  # columns, from which sparklines are long
ROOMY = 16  # lines, from which an empty one parts the sections
TABLE_LINES = 3  # that a stage of the table needs: its headings, a row, and how many more there are
BAR_WIDTH = 12  # of a run's bar at most
GRID_BAR_WIDTH = 30
SPARK_WIDTH = 16  # epochs that a sparkline shows at most
SPARK_SPAN = 0.02  # of accuracy that its height comes to at least: less is noise, and not to be drawn as a leap
SOON = timedelta(hours=20)  # in which a time of day alone is clear
WEEK = timedelta(days=6)


class Glyphs(NamedTuple):
    """The characters that are drawn with. Each stands for itself without colour."""

    done: str
    running: str
    failed: str
    waiting: str
    part: str  # of a cell of a bar: from least to most
    ramp: str  # of a sparkline: from least to most
    best: str
    spread: str
    between: str  # two words of a line
    beside: str  # two parts of the screen
    rule: str  # between what happened and the view
    cut: str  # in the place of what is left out of a line
    is_ascii: bool


UNICODE = Glyphs("█", "▒", "×", "·", "▏▎▍▌▋▊▉", "▁▂▃▄▅▆▇█", "★", "±", " · ", " │ ", "─", "…", is_ascii=False)
ASCII = Glyphs("#", "=", "x", ".", "", "_.-~=+*#", "*", "+-", ", ", " | ", "-", "~", is_ascii=True)


def shows_unicode(encoding: str | None, environment: Mapping[str, str]) -> bool:
    """Whether a terminal shows more than ASCII, by what Python writes to it and by the locale.

    In the locale C Python writes UTF-8 all the same, and says so by setting LC_CTYPE: https://peps.python.org/pep-0538/
    """
    if (encoding or "").lower().replace("-", "") != "utf8":
        return False
    if environment.get("LC_ALL"):
        return environment["LC_ALL"] not in ("C", "POSIX")
    if environment.get("LC_CTYPE", "C.UTF-8") not in ("C", "POSIX", "C.UTF-8"):
        return True
    return environment.get("LANG", "C") not in ("", "C", "POSIX")


def shares(room: int, wants: Sequence[int], least: Sequence[int]) -> list[int]:
    """How many of `room` lines each section gets that `wants` so many; those named first come first.

    Each gets one, then what it needs at `least`, then what it wants, as far as there is room.
    """
    given = [0] * len(wants)
    for goal in ([1] * len(wants), least, wants):
        for index, want in enumerate(wants):
            more = max(0, min(goal[index], want) - given[index])
            more = min(more, room)
            given[index] += more
            room -= more
    return given


@dataclass(frozen=True, slots=True)
class Screen:
    """Draws with certain characters."""

    glyphs: Glyphs = UNICODE

    def draw(self, progress: GridProgress, width: int, height: int, now: datetime) -> list[Text]:
        """The view's lines: fewer than `height`, unless that is 1, and none longer than `width`."""
        room = max(1, height - max(1, height // 4))
        lines = [Text(self.glyphs.rule * width, style="dim")] if room >= ROOMY else []
        lines += self._grid(progress, width, now)[: max(1, room // 3)]
        room -= len(lines)
        if width >= WIDE and _with_numbers(progress.stages):
            left = (width - len(self.glyphs.beside)) * 3 // 5
            right = width - left - len(self.glyphs.beside)
            body = self._body(progress, left, room, has_table=False)
            body = self._paired(body, self._table(progress.stages, room - 1, right), left)[:room]
        else:
            body = self._body(progress, width, room, has_table=True)
        return [self._fitted(line, width) for line in (*lines, *body)]

    # The sections

    def _grid(self, progress: GridProgress, width: int, now: datetime) -> list[Text]:
        """What there is to say of the whole grid."""
        num_later = sum(stage.num_runs for stage in progress.stages if stage.name in progress.later_stages)
        counts = [
            (progress.num_done, "done", "green"),
            (len(progress.running), "stopping" if progress.stopping else "running", "cyan"),
            (len(progress.elsewhere), "running elsewhere", "cyan"),
            (progress.num_waiting, "waiting", ""),
            (progress.num_failed, "failed", "bold red"),
            (num_later, "in later stages", "dim"),
        ]
        shown = [(f"{count:,} {word}", style) for count, word, style in counts if count or word == "done"]
        told = self._joined(shown)
        head = Text.assemble((self._clean(progress.grid), "bold"), "  ")
        num_running = len(progress.running) + len(progress.elsewhere)
        bar_width = min(GRID_BAR_WIDTH, width - cell_len(head.plain) - cell_len(told.plain) - 2)
        if bar_width >= 8:
            counted = (progress.num_done, num_running, progress.num_failed, progress.num_waiting + num_later)
            head.append_text(self._counts_bar(counted, bar_width)).append("  ")
        lines = self._flowed(shown, width, head)
        words: list[tuple[str, str]] = []
        if progress.loading:
            words.append(("loading torch", "dim"))
        if progress.seconds_left is not None:
            end = now + timedelta(seconds=progress.seconds_left)
            words.append((f"ends about {clock_text(end, now)}, in {seconds_text(progress.seconds_left)}", "bold"))
        if progress.deadline is not None:
            words.append(_told_deadline(progress.deadline, progress.seconds_left, now))
        speeds = [run.images_per_second for run in progress.running if run.images_per_second is not None]
        if speeds:
            on = f" on {self._clean(progress.machines)}" if progress.machines else ""
            words.append((f"{sum(speeds):,.0f} images/s{on}", ""))
        return lines + (self._flowed(words, width) if words else [])

    def _body(self, progress: GridProgress, width: int, room: int, *, has_table: bool) -> list[Text]:
        """All other sections, in as many lines as there is room for."""
        staged = _with_numbers(progress.stages) if has_table else []
        wants = [
            len(progress.running) + len(progress.elsewhere) + bool(progress.running),
            len(progress.failed),
            len(progress.stages),
            len(progress.waits),
            sum(2 + len(stage.rows) for stage in staged),
        ]
        gaps = sum(map(bool, wants))
        is_parted = room >= ROOMY or sum(wants) + gaps <= room
        gaps = gaps if is_parted else 0
        least = [room // 3, max(1, room // 6), max(1, room // 3), max(1, room // 8), 0]
        runs_room, failed_room, stages_room, waits_room, table_room = shares(room - gaps, wants, least)
        sections = [
            self._stages(progress.stages, stages_room, width),
            self._runs(progress.running, progress.elsewhere, runs_room, width),
            self._failed(progress.failed, failed_room),
            self._waits(progress.waits, waits_room),
            self._table(progress.stages, table_room, width) if has_table else [],
        ]
        body: list[Text] = []
        for section in filter(None, sections):
            body += [*([Text()] if is_parted else []), *section]
        return body[:room]

    def _stages(self, stages: Sequence[StageProgress], room: int, width: int) -> list[Text]:
        """The tree of stages: how much of each is done, what it kept, what it waits for."""
        shown = _chosen(stages, room, lambda stage: 2 * bool(stage.num_running) + (0 < stage.num_done < stage.num_runs))
        indents = [min(stage.depth * (1 if width < NARROW else 2), width // 8) for stage in shown]
        names = [self._clean(stage.name) for stage in shown]
        longest = max((indent + cell_len(name) for indent, name in zip(indents, names, strict=True)), default=0)
        name_width = min(longest, max(8, width // 3))
        bar_width = min(20, width // 5)
        number_width = max((len(_of(stage)) for stage in shown), default=0)
        lines = []
        for indent, name, stage in zip(indents, names, shown, strict=True):
            counts = (stage.num_done, stage.num_running, stage.num_failed, stage.num_waiting)
            line = Text(" " * indent + self._cell(name, name_width - indent) + "  ")
            line.append_text(self._counts_bar(counts, bar_width) if stage.num_runs else Text(" " * bar_width))
            line.append(f"  {_of(stage):>{number_width}}")
            words = [
                (f"{stage.num_running:,} running" if stage.num_running else "", "cyan"),
                (f"{stage.num_failed:,} failed" if stage.num_failed else "", "bold red"),
                (f"kept {self._clean(', '.join(stage.kept))}" if stage.kept else "", "green"),
                (f"waits {self._clean(stage.waiting)}" if stage.waiting else "", "dim"),
            ]
            if told := [(text, style) for text, style in words if text]:
                line.append("  ").append_text(self._joined(told))
            lines.append(line)
        return _folded(lines, len(stages), room, "stage")

    def _runs(self, runs: Sequence[RunProgress], elsewhere: Sequence[str], room: int, width: int) -> list[Text]:
        """A line for each run at work, below their headings; then those that others train."""
        has_head = room > 2 and bool(runs)
        room -= has_head
        num = len(runs) + len(elsewhere)
        num_shown = num if num <= room else max(0, room - 1)
        shown = _chosen(runs, num_shown, _slowness, has_fold=False)
        lines = self._run_lines(shown, width, has_head=has_head) if shown else []
        lines += [Text(self._clean(text), style="dim") for text in elsewhere[: num_shown - len(shown)]]
        return _folded(lines, num + has_head, room + has_head, "run at work", "runs at work")

    def _run_lines(self, runs: Sequence[RunProgress], width: int, *, has_head: bool) -> list[Text]:
        rows = [self._run_cells(run, width) for run in runs]
        heads = _HEADS if has_head else dict.fromkeys(_HEADS, "")
        widths = {
            name: max(cell_len(heads[name]), *(cell_len(row[name].plain) for row in rows))
            for name in _HEADS
            if any(row[name] for row in rows)
        }
        labels = [self._clean(run.label) for run in runs]
        label_width = min(max(map(cell_len, labels)), max(8, width // 3 if width < NARROW else width * 2 // 5))
        for name in _LEAVING:
            if label_width + sum(2 + cells for cells in widths.values()) <= width:
                break
            widths.pop(name, None)
        lines = []
        if has_head:
            head = [
                f"{heads[name]:>{cells}}" if name in _RIGHT else heads[name].ljust(cells)
                for name, cells in widths.items()
            ]
            lines.append(Text("  ".join([" " * label_width, *head]), style="dim"))
        for label, row in zip(labels, rows, strict=True):
            line = Text.assemble((self._cell(label, label_width), "bold"))
            for name, cells in widths.items():
                gap = " " * (cells - cell_len(row[name].plain))
                line.append("  " + (gap if name in _RIGHT else "")).append_text(row[name])
                line.append("" if name in _RIGHT else gap)
            lines.append(line)
        return lines

    def _run_cells(self, run: RunProgress, width: int) -> dict[str, Text]:
        words = run_words(run)
        accuracy = run.validation_accuracy if run.doing == "training" else None
        return {
            "progress": self._run_bar(run) if run.doing == "training" else Text(),
            "epoch": Text(words["epoch"].removeprefix("epoch ")),
            "accuracy": Text("" if accuracy is None else f"{accuracy:.3f}"),
            "spark": Text(
                self.spark(run.validation_accuracies, 8 if width < ROOMY_WIDTH else SPARK_WIDTH), style="cyan"
            ),
            "loss": Text(words["loss"].removeprefix("loss ")),
            "speed": Text(words["speed"].removesuffix(" images/s")),
            "left": Text(words["left"].removesuffix(" left")),
        }

    def _failed(self, failed: Sequence[tuple[str, str]], room: int) -> list[Text]:
        """The newest failures, with their reasons."""
        lines = [
            Text.assemble(("failed ", "bold red"), (self._clean(label), "bold"), ": ", self._clean(reason))
            for label, reason in _chosen(failed, room, lambda _: 0)
        ]
        return _folded(lines, len(failed), room, "failed run")

    def _waits(self, waits: Sequence[tuple[str, int, str]], room: int) -> list[Text]:
        """Why runs wait, that of the most runs first."""
        lines = []
        for reason, count, label in _chosen(waits, room, lambda _: 0):
            who = self._clean(label) if count == 1 else count_text(count, "run")
            lines.append(Text.assemble(("waits  ", "yellow"), f"{who}: {self._clean(reason)}"))
        return _folded(lines, len(waits), room, "reason to wait", "reasons to wait")

    def _table(self, stages: Sequence[StageProgress], room: int, width: int) -> list[Text]:
        """The table so far: the newest stages, as many as there is room for, in the order of the grid."""
        parts: list[list[Text]] = []
        for stage in reversed(_with_numbers(stages)):
            if room < TABLE_LINES:
                break
            parts.append(self._stage_table(stage, room, width))
            room -= len(parts[-1]) + 1
        return [line for part in reversed(parts) for line in (Text(), *part)][1:]

    def _stage_table(self, stage: StageProgress, room: int, width: int) -> list[Text]:
        rows = _chosen(stage.rows, room - 1, lambda row: (row.is_best, row.is_kept, row.accuracy or -1.0))
        numbers = [
            (self._accuracy(row), "" if row.loss is None else number_text(row.loss), f"{row.num_done}/{row.num_seeds}")
            for row in rows
        ]
        heads = ("test accuracy" if stage.is_test else "val accuracy", "loss", "seeds")
        widths = [max(map(len, column)) for column in zip(heads, *numbers, strict=True)]
        if 30 + sum(widths) > width:
            widths[1] = 0  # the loss leaves first
        names = [self._clean(text) for text in (stage.name, *(row.name for row in rows))]
        name_width = min(max(map(cell_len, names)), max(8, width - 2 - sum(2 + cells for cells in widths if cells)))
        marks = [" ", *(self.glyphs.best if row.is_best else " " for row in rows)]
        lines = []
        for mark, name, cells in zip(marks, names, [heads, *numbers], strict=True):
            told = "".join(f"  {cell:>{each}}" for cell, each in zip(cells, widths, strict=True) if each)
            style = "dim" if cells is heads else "green" if mark != " " else ""
            lines.append(Text(f"{mark} {self._cell(name, name_width)}{told}", style=style))
        return _folded(lines, len(stage.rows) + 1, room, "row")

    def _accuracy(self, row: RowProgress) -> str:
        if row.accuracy is None:
            return ""
        return f"{row.accuracy:.3f}" + ("" if row.spread is None else f" {self.glyphs.spread} {row.spread:.3f}")

    # Marks

    def spark(self, values: Sequence[float], width: int = SPARK_WIDTH) -> str:
        """The last `width` of `values` as heights, from the least of them to the most."""
        shown = [value for value in values[-width:] if isfinite(value)]
        if not shown:
            return ""
        low, ramp = min(shown), self.glyphs.ramp
        span = max(max(shown) - low, SPARK_SPAN)
        return "".join(ramp[min(len(ramp) - 1, int((value - low) / span * len(ramp)))] for value in shown)

    def _run_bar(self, run: RunProgress) -> Text:
        glyphs = self.glyphs
        cells = min(1.0, max(0.0, run.epochs_done / max(1, run.num_epochs))) * BAR_WIDTH
        part = int(cells % 1 * (len(glyphs.part) + 1))
        done = glyphs.done * int(cells) + (glyphs.part[part - 1] if part else "")
        return Text.assemble((done, "cyan"), (glyphs.waiting * (BAR_WIDTH - len(done)), "dim"))

    def _counts_bar(self, counts: Sequence[int], width: int) -> Text:
        """A bar of what is done, runs, has failed and waits; what is there at all has a cell."""
        glyphs = self.glyphs
        marks = (
            (glyphs.done, "green"),
            (glyphs.running, "cyan"),
            (glyphs.failed, "bold red"),
            (glyphs.waiting, "dim"),
        )
        cells = apportioned(counts, width)
        return Text.assemble(*((glyph * each, style) for (glyph, style), each in zip(marks, cells, strict=True)))

    # Lines

    def _joined(self, words: Sequence[tuple[str, str]]) -> Text:
        line = Text()
        for index, (text, style) in enumerate(words):
            line.append(self.glyphs.between if index else "", style="dim").append(text, style=style)
        return line

    def _flowed(self, words: Sequence[tuple[str, str]], width: int, head: Text | None = None) -> list[Text]:
        """The words after `head`, on as many lines as they need."""
        lines, is_first = [Text() if head is None else head], True
        for text, style in words:
            between = "" if is_first else self.glyphs.between
            if not is_first and cell_len(lines[-1].plain + between + text) > width:
                lines.append(Text())
                between = ""
            lines[-1].append(between, style="dim").append(text, style=style)
            is_first = False
        return lines

    def _paired(self, left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
        """Two parts of the screen beside each other, the right one below an empty line."""
        pairs = []
        for index, (one, other) in enumerate(zip_longest(left, [Text(), *right])):
            line = self._fitted(one, width) if one is not None else Text()
            line.append(" " * (width - cell_len(line.plain)))
            line.append(self.glyphs.beside if index else "", style="dim")
            pairs.append(line.append_text(other) if other is not None else line)
        return pairs

    def _clean(self, text: str) -> str:
        """`text` without what the terminal cannot show, or could be driven by."""
        text = plain(text)
        if self.glyphs.is_ascii and not text.isascii():
            text = text.replace("…", "~").replace("±", "+-").encode("ascii", "replace").decode()
        return text

    def _cell(self, text: str, width: int) -> str:
        """`text` in exactly so many columns; what it leaves out is marked, and no end: names differ there most."""
        if cell_len(text) > width > 0:
            head = set_cell_size(text, width // 4).rstrip()
            tail = text[1:]
            while cell_len(head) + 1 + cell_len(tail) > width:
                tail = tail[1:]
            text = head + self.glyphs.cut + tail
        return set_cell_size(text, width)

    def _fitted(self, line: Text, width: int) -> Text:
        """The line cut to `width`."""
        line.rstrip()
        if cell_len(line.plain) > width:
            line.truncate(max(0, width - 1))
            line.rstrip()
            line.append(self.glyphs.cut)
        line.no_wrap = True
        return line


_HEADS = {
    "progress": "",
    "epoch": "epoch",
    "accuracy": "val acc",
    "spark": "",
    "loss": "loss train/val",
    "speed": "images/s",
    "left": "left",
}
_RIGHT = ("epoch", "accuracy", "speed", "left")  # columns whose cells end below each other
_LEAVING = ("loss", "speed", "left", "progress", "spark", "accuracy", "epoch")  # as a narrow terminal goes without


def _slowness(run: RunProgress) -> float:
    """How much longer a run takes, as far as that is known; else how much of it is left."""
    return run.seconds_left if run.seconds_left is not None else 1 - run.epochs_done / max(1, run.num_epochs)


def _chosen(items: Sequence[T], room: int, interest: Callable[[T], Any], *, has_fold: bool = True) -> list[T]:
    """The most interesting of `items`, in their order: as many as there is room for, but for the line on the others."""
    if len(items) <= room:
        return list(items)
    ranked = sorted(range(len(items)), key=lambda index: interest(items[index]), reverse=True)
    return [items[index] for index in sorted(ranked[: max(0, room - has_fold)])]


def _folded(lines: list[Text], num: int, room: int, noun: str, plural: str | None = None) -> list[Text]:
    """The lines, and how many more of `num` there are, where there is room to say so."""
    left = num - len(lines)
    if left and len(lines) < room:
        more = count_text(left, noun, plural).replace(" ", " more ", 1)
        lines.append(Text(f"and {more}", style="dim"))
    return lines


def _with_numbers(stages: Sequence[StageProgress]) -> list[StageProgress]:
    return [stage for stage in stages if any(row.num_done for row in stage.rows)]


def _of(stage: StageProgress) -> str:
    """How many of how many; nothing where that is not known."""
    return f"{stage.num_done:,}/{stage.num_runs:,}" if stage.num_runs else ""


def apportioned(counts: Sequence[int], width: int) -> list[int]:
    """`width` cells by `counts`; each that is not 0 has one where there are enough."""
    total = sum(counts)
    if not total or width <= 0:
        return [0] * len(counts)
    bounds = [round(width * sum(counts[: index + 1]) / total) for index in range(len(counts))]
    cells = [bound - before for bound, before in zip(bounds, [0, *bounds], strict=False)]
    for index, count in enumerate(counts):
        if count and not cells[index] and max(cells) > 1:
            cells[cells.index(max(cells))] -= 1
            cells[index] = 1
    return cells


def clock_text(when: datetime, now: datetime) -> str:
    """The time of day, with the day where it is not near."""
    if abs(when - now) < SOON:
        return f"{when:%H:%M}"
    return f"{when:%a %H:%M}" if abs(when - now) < WEEK else f"{when:%Y-%m-%d %H:%M}"


def _told_deadline(deadline: datetime, seconds_left: float | None, now: datetime) -> tuple[str, str]:
    """The deadline, and whether it is met as things go; with the style of that."""
    told = f"deadline {clock_text(deadline.astimezone(now.tzinfo), now)}"
    spare = (deadline - now).total_seconds() - (seconds_left or 0.0)
    if spare < 0:
        return f"{told}, missed by {seconds_text(-spare)}", "bold red"
    return (told if seconds_left is None else f"{told}, {seconds_text(spare)} to spare"), "green"
