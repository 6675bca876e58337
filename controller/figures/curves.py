"""Loss and accuracy over epochs: of a run, and of all values that a stage tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from controller.figures.style import (
    BLUE,
    POINTS,
    TITLE_POINTS,
    VERMILLION,
    Look,
    Picture,
    draw_title,
    fitting,
    look,
    page_svg,
    picture,
    printable,
    title_inches,
)
from controller.table import mean_and_std
from trainer.result import EpochMetrics

Quantity = Literal["loss", "accuracy"]
QUANTITIES: tuple[Quantity, ...] = ("loss", "accuracy")

PANEL_INCHES = (4.2, 2.7)
BOX = (0.15, 0.15, 0.82, 0.745)  # left, bottom, width, height of the axes, as parts of the figure
LEAST_SPAN = 0.02  # of an axis, as a part of its values: below that a curve is flat, and is to look flat
LOG_RATIO = 50.0  # losses that differ by more than this factor stand on a logarithmic axis
MAX_LINES = 14  # of one figure: more are no longer told apart
BAND = "mean over the seeds; the band is one sample standard deviation to either side"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure. Values that are not finite are left out when it is drawn."""

    name: str
    look: Look
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    spreads: tuple[float, ...] = ()  # to either side of each value; none without a band


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over epochs."""

    quantity: Quantity
    lines: tuple[Line, ...]
    num_epochs: int  # that the axis reaches to
    best_epoch: int | None = None
    returns: tuple[int, ...] = ()  # epochs after which training went back to the best one
    label: str = field(default="")

    @property
    def is_log(self) -> bool:
        """Whether the values need a logarithmic axis."""
        values = [value for value in _finite(self.lines) if value > 0]
        return self.quantity == "loss" and bool(values) and max(values) > LOG_RATIO * min(values)

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value that the axis shows; those of accuracy begin at 0."""
        values = _finite(self.lines, with_spreads=not self.is_log)
        if self.quantity == "accuracy":
            return 0.0, min(1.0, math.ceil(10 * max(values, default=1.0) * 1.05) / 10 or 0.1) * 1.02
        if self.is_log:
            positive = [value for value in values if value > 0]
            return min(positive) / 1.3, max(positive) * 1.3
        low, high = min(values, default=0.0), max(values, default=1.0)
        least = LEAST_SPAN * max(abs(low), abs(high)) or 1.0
        if high - low < least:
            middle = (low + high) / 2
            low, high = middle - least / 2, middle + least / 2
        room = 0.06 * (high - low)
        return max(0.0, low - room), high + room


def _finite(lines: Iterable[Line], *, with_spreads: bool = False) -> list[float]:
    found = []
    for line in lines:
        spreads = line.spreads if with_spreads and line.spreads else (0.0,) * len(line.values)
        for value, spread in zip(line.values, spreads, strict=True):
            found += [value - spread, value + spread] if spread else [value]
    return [value for value in found if math.isfinite(value)]


def run_panels(rows: Sequence[EpochMetrics], best_epoch: int | None, num_epochs: int) -> tuple[Panel, Panel]:
    """A run's loss and accuracy, on training and validation part; `rows` as `read_metrics` merges all attempts'."""
    epochs = tuple(row.epoch for row in rows)
    returns = tuple(row.epoch for row in rows if row.returned_to_best)

    def panel(quantity: Quantity) -> Panel:
        parts = (("validation", Look(BLUE, (), "o")), ("train", Look(VERMILLION, (5, 2), "s")))
        return Panel(
            quantity,
            tuple(
                Line(part, seen, epochs, tuple(float(getattr(row, f"{part}_{quantity}")) for row in rows))
                for part, seen in parts
            ),
            max(num_epochs, *epochs, 1),
            best_epoch,
            returns,
            quantity,
        )

    return panel("loss"), panel("accuracy")


def stage_panels(runs_of_rows: Mapping[str, Sequence[Sequence[EpochMetrics]]], num_epochs: int) -> tuple[Panel, Panel]:
    """Validation loss and accuracy of all rows of a stage, by the row's name the epochs of each seed.

    A row of several seeds is their mean, up to the last epoch that all of them have, with a band: see BAND.
    """
    shown = [(name, [seed for seed in seeds if seed]) for name, seeds in runs_of_rows.items()]

    def panel(quantity: Quantity) -> Panel:
        lines = tuple(
            _mean_line(name, look(index), seeds, f"validation_{quantity}")
            for index, (name, seeds) in enumerate(shown)
            if seeds
        )
        last = max((epoch for line in lines for epoch in line.epochs), default=1)
        return Panel(quantity, lines, max(num_epochs, last), label=f"validation {quantity}")

    return panel("loss"), panel("accuracy")


def _mean_line(name: str, seen: Look, seeds: Sequence[Sequence[EpochMetrics]], number: str) -> Line:
    by_epoch = [{row.epoch: float(getattr(row, number)) for row in rows} for rows in seeds]
    epochs = tuple(sorted(set.intersection(*(set(one) for one in by_epoch))))
    told = [mean_and_std([one[epoch] for one in by_epoch]) for epoch in epochs]
    spreads = tuple(std or 0.0 for _, std in told) if len(seeds) > 1 else ()
    return Line(name, seen, epochs, tuple(mean for mean, _ in told), spreads)


def panels_picture(title: str, panels: Sequence[Panel]) -> Picture:
    """The panels side by side, with a legend below, as files."""

    def draw(figure: Figure) -> None:
        names = [line.name for line in panels[0].lines]
        columns = 1 if max(map(len, names), default=0) > 40 else 2 if len(names) > 4 else max(1, len(names))
        legend_inches = 0.2 * math.ceil(len(names) / columns) + 0.15
        total = PANEL_INCHES[0] * len(panels)
        lines = fitting(title, TITLE_POINTS, total - 0.16)
        height = PANEL_INCHES[1] + legend_inches + title_inches(lines)
        figure.set_size_inches(total, height)
        draw_title(figure, lines, (total, height))
        for index, panel in enumerate(panels):
            left, bottom, width, tall = BOX
            box = (
                (index + left) / len(panels),
                (legend_inches + bottom * PANEL_INCHES[1]) / height,
                width / len(panels),
                tall * PANEL_INCHES[1] / height,
            )
            _draw_panel(figure.add_axes(box), panel, "")
        if names:
            handles = figure.axes[0].get_lines()[: len(names)]
            told = [printable(name) for name in names]
            figure.legend(handles, told, loc="lower center", ncols=columns, handlelength=3.5)

    return picture(draw, PANEL_INCHES)


def panel_svg(panel: Panel, name: str) -> str:
    """The panel for a page, which has title and legend itself; ids of what belongs to line n begin `<name>-s<n>-`."""
    return page_svg(lambda figure: _draw_panel(figure.add_axes(BOX), panel, "s"), PANEL_INCHES, name)


def panel_box() -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the axes of `panel_svg`, in its own units."""
    left, bottom, width, height = BOX
    wide, tall = POINTS * PANEL_INCHES[0], POINTS * PANEL_INCHES[1]
    return left * wide, (1 - bottom - height) * tall, (left + width) * wide, (1 - bottom) * tall


def x_limits(panel: Panel) -> tuple[float, float]:
    """The first and the last epoch that the axis shows, with a little room."""
    return 1 - 0.02 * panel.num_epochs, panel.num_epochs * 1.02


def _draw_panel(axes: Axes, panel: Panel, mark: str) -> None:
    for index, line in enumerate(panel.lines):
        _draw_line(axes, line, f"{mark}{index}" if mark else None)
    _mark_epochs(axes, panel)
    if panel.is_log:
        axes.set_yscale("log")
        low, high = panel.limits
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1e3 * low else (1.0,), numticks=8))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_xlim(*x_limits(panel))
    axes.set_ylim(*panel.limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", labelpad=1)
    axes.annotate(  # upright at the top, where no number however long pushes it out
        panel.label or panel.quantity,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-BOX[0] * PANEL_INCHES[0] * POINTS + 4, 6),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=8.5,
    )
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _draw_line(axes: Axes, line: Line, gid: str | None) -> None:
    values = [value if math.isfinite(value) else math.nan for value in line.values]
    every = max(1, math.ceil(len(values) / 12))  # so many markers tell the line; more would hide it
    (drawn,) = axes.plot(
        line.epochs,
        values,
        color=line.look.color,
        linestyle=line.look.linestyle,
        marker=line.look.marker,
        markevery=every,
        markeredgewidth=0,
    )
    if gid is not None:
        drawn.set_gid(f"{gid}-line")
    if line.spreads:
        pairs = list(zip(values, line.spreads, strict=True))
        low, high = [value - spread for value, spread in pairs], [value + spread for value, spread in pairs]
        band = axes.fill_between(line.epochs, low, high, color=line.look.color, alpha=0.15, linewidth=0)
        if gid is not None:
            band.set_gid(f"{gid}-band")


def _mark_epochs(axes: Axes, panel: Panel) -> None:
    """A line through the best epoch, and a triangle at the foot of each epoch after which training went back to it."""
    foot = axes.get_xaxis_transform()
    for epoch in panel.returns:
        axes.plot([epoch], [0.03], transform=foot, color=VERMILLION, marker=7, markersize=6, linestyle="none")
    if panel.best_epoch is not None:
        axes.axvline(panel.best_epoch, color="#6b7178", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        is_late = panel.best_epoch > 0.7 * panel.num_epochs
        axes.annotate(
            f"best: {panel.best_epoch}",
            (panel.best_epoch, 0.985),
            xycoords=foot,
            xytext=(-3 if is_late else 3, 0),
            textcoords="offset points",
            ha="right" if is_late else "left",
            va="top",
            fontsize=7.5,
        )
    if panel.returns:
        times = "once" if len(panel.returns) == 1 else f"{len(panel.returns)} times"
        axes.annotate(
            f"\N{BLACK DOWN-POINTING TRIANGLE} back to best, {times}",
            (1, 1),
            xycoords="axes fraction",
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7,
        )
