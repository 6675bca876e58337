"""The figures of a data set: how many images each class has, and what they look like. The report's figures 1 to 5."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from controller.figures.style import (
    BLUE,
    FAINT,
    INK,
    TITLE_POINTS,
    Picture,
    draw_title,
    fitting,
    page_svg,
    picture,
    printable,
    text_inches,
    title_inches,
)

MAX_NAMES = 150  # of classes below the bars: more would be too small to read
NAME_POINTS = 6.5
SHEET_COLUMNS = 8


def _bars(title: str, classes: Sequence[str], counts: Sequence[int], figure: Figure) -> None:
    width = max(4.2, min(16.0, 0.6 + 0.145 * len(classes)))
    names = [printable(name, 24) for name in classes] if len(classes) <= MAX_NAMES else []
    room = 0.2 + max((text_inches(name, NAME_POINTS) for name in names), default=0.25)  # the names stand upright
    lines = fitting(title, TITLE_POINTS, width - 0.16)
    height = 1.95 + title_inches(lines) + room
    figure.set_size_inches(width, height)
    draw_title(figure, lines, (width, height))
    axes = figure.add_axes((0.55 / width, room / height, 1 - 0.65 / width, 1.75 / height))
    axes.bar(range(len(counts)), counts, color=BLUE, width=0.8)
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_ylim(0, max([*counts, 1]) * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("images")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if counts:
        mean = sum(counts) / len(counts)
        axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(1, 1.03, f"dashed: the mean, {mean:,.1f}", transform=axes.transAxes, ha="right", fontsize=7)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=NAME_POINTS)
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_xlabel(f"{len(counts):,} classes, in the order of their labels")


def counts_picture(title: str, classes: Sequence[str], counts: Sequence[int]) -> Picture:
    """A bar for each class, as high as it has images."""
    return picture(lambda figure: _bars(title, classes, counts, figure), (8, 4))


def counts_svg(title: str, classes: Sequence[str], counts: Sequence[int], name: str) -> str:
    """The same for a page."""
    return page_svg(lambda figure: _bars(title, classes, counts, figure), (8, 4), name)


def sheet_picture(title: str, images: Sequence[tuple[str, Image.Image]]) -> Picture:
    """The images in rows of eight, each below its class's name."""

    def draw(figure: Figure) -> None:
        rows = max(1, math.ceil(len(images) / SHEET_COLUMNS))
        width = SHEET_COLUMNS * 1.1
        lines = fitting(title, TITLE_POINTS, width - 0.16)
        top = title_inches(lines)
        height = rows * 1.25 + top + 0.05
        figure.set_size_inches(width, height)
        draw_title(figure, lines, (width, height))
        for index, (name, image) in enumerate(images):
            row, column = divmod(index, SHEET_COLUMNS)
            box = ((column * 1.1 + 0.05) / width, 1 - (top + row * 1.25 + 1.2) / height, 1 / width, 1 / height)
            axes = figure.add_axes(box)
            axes.imshow(np.asarray(image), interpolation="none")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_edgecolor(FAINT)
            axes.set_title(fitting(name, NAME_POINTS, 1.0)[0], fontsize=NAME_POINTS, pad=2)

    return picture(draw, (SHEET_COLUMNS * 1.1, 4))
