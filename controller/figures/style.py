"""How every figure looks, and how it becomes bytes: the same values give the same bytes, on every machine.

Colours are Okabe's and Ito's, which the colour-blind tell apart (https://jfly.uni-koeln.de/color/). No line is told by
its colour alone: each has a dash and a marker of its own, so that a figure printed grey still reads.

Nothing here touches pyplot: a Figure is made, drawn and let go.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from controller.wording import plain

INK = "#1b1f24"
FAINT = "#8a9099"  # of lines that only guide the eye
POINTS = 72  # an inch, in the units of an SVG figure
FONT = "DejaVu Sans"  # Matplotlib ships it
PNG_DPI = 150
MOST_LINES = 3  # of a title
TITLE_POINTS = 9
HINTED = 1.06  # letters that are set to whole pixels are wider than their outlines by so much, at most
LINE_INCHES = 0.17  # that a line of a title is high
SALT = "experiment-grid"  # the SVG's ids are hashes: with a fixed salt they are the same in every process

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    INK,
)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
MARKERS = "os^Dv*P"


class Look(NamedTuple):
    """How one line is drawn."""

    color: str
    dashes: tuple[float, ...]  # points on and off; none for a solid line
    marker: str

    @property
    def linestyle(self) -> str | tuple[float, tuple[float, ...]]:
        """The dashes as Matplotlib wants them."""
        return (0.0, self.dashes) if self.dashes else "-"


def look(index: int) -> Look:
    """The look of line `index`, another one for each of the first 28."""
    return Look(PALETTE[index % len(PALETTE)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as files: letters are drawn as shapes, so that it looks the same where its font is missing."""

    svg: bytes
    png: bytes


Draw = Callable[[Figure], None]


@contextmanager
def _styled(fonttype: str) -> Iterator[None]:
    with mpl.rc_context(), warnings.catch_warnings():
        # A letter that the font lacks is an empty box in a file, and on a page the browser's own fonts have it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        mpl.rcdefaults()  # whatever a matplotlibrc of this machine says
        mpl.rcParams.update(
            {
                "axes.edgecolor": FAINT,
                "axes.labelcolor": INK,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlesize": TITLE_POINTS,
                "axes.titlelocation": "left",
                "axes.unicode_minus": False,
                "font.family": [FONT],
                "font.size": 8,
                "grid.color": FAINT,
                "grid.alpha": 0.35,
                "grid.linewidth": 0.6,
                "legend.fontsize": 7.5,
                "legend.frameon": False,
                "lines.linewidth": 1.5,
                "lines.markersize": 4,
                "svg.fonttype": fonttype,
                "svg.hashsalt": SALT,
                "text.color": INK,
                "text.parse_math": False,  # a name with two dollar signs is a name
                "xtick.color": INK,
                "ytick.color": INK,
            }
        )
        yield


def picture(draw: Draw, inches: tuple[float, float]) -> Picture:
    """What `draw` makes of an empty figure, which it may resize, as files."""
    with _styled("path"):
        figure = Figure(figsize=inches)
        draw(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "experiment-grid"})
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return Picture(svg.getvalue(), png.getvalue())


def page_svg(draw: Draw, inches: tuple[float, float], name: str) -> str:
    """The same as an element for an HTML page, without the frame of a file of its own.

    Letters are text, the ground is transparent, and what is drawn in INK has the page's colour. Every id begins with
    `name`, so that two figures of one page do not meet. The element is `aria-hidden`: what holds it has to say what it
    shows.
    """
    with _styled("none"):
        figure = Figure(figsize=inches, facecolor="none")
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        width, height = (f"{POINTS * inch:g}" for inch in figure.get_size_inches())
    text = out.getvalue().decode()
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]  # after root tag and style sheet
    body = re.sub(r"\n\s*(?=<)", "", _TAG.sub(lambda tag: _for_page(tag[0], name), body))
    return f'<svg viewBox="0 0 {width} {height}" width="{width}pt" height="{height}pt" aria-hidden="true">{body}</svg>'


_TAG = re.compile(r"<[^>]*>", re.DOTALL)  # text has no `<`: Matplotlib escapes it, and `>` within attributes too


def _for_page(tag: str, name: str) -> str:
    """A tag of an SVG file as it is on a page; text between tags, which may hold anybody's names, stays as it is."""
    if tag.startswith("<!--"):
        return ""
    tag = tag.replace(INK, "currentColor")
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r"url\(#", f"url(#{name}-", tag)
    tag = tag.replace('xlink:href="#', f'href="#{name}-')
    return re.sub(r"'DejaVu Sans'", "inherit", tag) if tag.startswith("<text") else tag


def text_inches(text: str, points: float) -> float:
    """How wide `text` is drawn at that size of its letters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(family=FONT, size=points), False)
    return float(width) / POINTS * HINTED


def fitting(text: str, points: float, inches: float) -> list[str]:
    """`text` in lines of at most that width, broken after blanks where that can be; at most three, the last one cut."""
    lines = [""]
    for word in _pieces(printable(text, 200), points, inches):
        if not lines[-1] or text_inches(lines[-1] + word.rstrip(), points) <= inches:
            lines[-1] += word
        else:
            lines.append(word)
    told = [line.rstrip() for line in lines]
    return told if len(told) <= MOST_LINES else [*told[: MOST_LINES - 1], f"{told[MOST_LINES - 1][:-1]}…"]


def _pieces(text: str, points: float, inches: float) -> Iterator[str]:
    """The words of the text with the blank after each; one that is too wide in parts."""
    for word in re.findall(r"\S+\s*|\s+", text):
        while text_inches(word.rstrip(), points) > inches and len(word) > 1:
            room = max(1, int(len(word) * inches / text_inches(word, points)))
            while room > 1 and text_inches(word[:room], points) > inches:
                room -= 1
            yield word[:room]
            word = word[room:]
        yield word


def printable(text: str, width: int = 60) -> str:
    """`text` fit for a figure: on one line, and no longer than `width` characters."""
    shown = plain(text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def draw_title(figure: Figure, lines: list[str], inches: tuple[float, float]) -> None:
    """The title's lines at the figure's upper left edge; the figure is so many inches wide and high."""
    width, height = inches
    for number, line in enumerate(lines):
        place = 1 - (0.1 + LINE_INCHES * (number + 0.5)) / height
        figure.text(0.08 / width, place, line, fontsize=TITLE_POINTS, va="center")


def title_inches(lines: list[str]) -> float:
    """How high the title is, with the room around it."""
    return LINE_INCHES * len(lines) + 0.2
