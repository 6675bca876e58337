"""A confusion matrix: what a network answers for each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from controller.figures.style import (
    FAINT,
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

MAX_NAMES = 30  # of classes beside the rows: more would be too small to read
MAX_NUMBERS = 12  # of classes up to which each cell tells its number
NAME_POINTS = 6.5


def _draw(title: str, classes: Sequence[str], counts_KK: npt.NDArray[np.int64], figure: Figure) -> None:
    """Rows are the true classes, as parts of all their images; the darker, the more."""
    names = [printable(name, 20) for name in classes] if len(classes) <= MAX_NAMES else []
    room = 0.45 + max((text_inches(name, NAME_POINTS) for name in names), default=0.2)
    side = 3.4
    width = side + room + 0.15
    lines = fitting(title, TITLE_POINTS, width - 0.16) if title else []
    height = side + room + (title_inches(lines) if lines else 0.1)
    figure.set_size_inches(width, height)
    draw_title(figure, lines, (width, height))
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    parts_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts_KK, cmap="Blues", vmin=0, vmax=1, interpolation="none", aspect="auto")
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    axes.xaxis.set_label_coords(0.5, 0.06 / height, figure.transFigure)
    axes.yaxis.set_label_coords(0.06 / width, 0.5, figure.transFigure)
    axes.xaxis.label.set(verticalalignment="bottom", x=(room + side / 2) / width)
    axes.yaxis.label.set(verticalalignment="top", y=(room + side / 2) / height)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_edgecolor(FAINT)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=NAME_POINTS)
        axes.set_yticks(range(len(names)), names, fontsize=NAME_POINTS)
    if len(classes) <= MAX_NUMBERS:
        for row, column in np.ndindex(*counts_KK.shape):
            if counts_KK[row, column]:
                color = "#ffffff" if parts_KK[row, column] > 0.6 else "#10141a"  # on the cell, whatever the page's ink
                text = str(counts_KK[row, column])
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)


def confusion_picture(title: str, classes: Sequence[str], counts_KK: npt.NDArray[np.int64]) -> Picture:
    """The matrix as files; `counts_KK[true, answer]` are numbers of images."""
    return picture(lambda figure: _draw(title, classes, counts_KK, figure), (4, 4))


def confusion_svg(classes: Sequence[str], counts_KK: npt.NDArray[np.int64], name: str) -> str:
    """The same for a page, which has the title itself."""
    return page_svg(lambda figure: _draw("", classes, counts_KK, figure), (4, 4), name)
