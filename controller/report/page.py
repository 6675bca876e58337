"""The report as one HTML page that needs nothing else: no network, no file beside it.

Whatever comes from grids, data sets and the store is text until Jinja2 has escaped it. Markup is only what this
project's own files hold, and the figures, whose text Matplotlib escapes. The page's own policy allows its one script by
its hash and no other, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from controller.figures.confusion import confusion_svg
from controller.figures.curves import BAND, Line, Panel, panel_box, panel_svg, x_limits
from controller.figures.data import counts_svg
from controller.figures.style import INK, Look
from controller.report import story
from controller.report.columns import ShownTable, shown_tables
from controller.report.files import counts_of, curves_of_run, curves_of_stage
from controller.wording import count_text, listed, plain
from trainer.identity import write_spec

if TYPE_CHECKING:
    from PIL.Image import Image

    from controller.report.gather import DataSeen, Gathered, RunSeen, TestedRow

MAX_RUNS = 300  # that are shown one by one: with more the page would grow beyond what a browser likes
FEW_STAGES = 8  # up to here curves lie open, beyond they are folded
FOLDER = "page"  # of the package: the template, its style and its script
LOG_TAIL_SHOWN = 8
JPEG_QUALITY = 72


@dataclass(frozen=True, slots=True)
class ShownPanel:
    """One panel of a chart."""

    name: str
    label: str
    summary: str  # what it shows, in words
    svg: Markup


@dataclass(frozen=True, slots=True)
class Chart:
    """Loss and accuracy side by side, with one legend."""

    name: str
    title: str
    caption: str
    panels: tuple[ShownPanel, ...]
    legend: tuple[tuple[Markup, str], ...]


class _Charts:
    """The charts of a page: each with a name of its own, and with its numbers for the script."""

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {}
        self._names = (f"c{number}" for number in count(1))

    def name(self) -> str:
        """A name that no other figure of the page has."""
        return next(self._names)

    def chart(self, panels: Sequence[Panel], title: str, caption: str) -> Chart:
        """The panels as a chart."""
        name = self.name()
        shown = []
        for panel in panels:
            own = f"{name}-{panel.quantity}"
            self.numbers[own] = _numbers(panel)
            svg = Markup(panel_svg(panel, own))
            shown.append(ShownPanel(own, panel.label, _summary(panel), svg))
        legend = tuple((key_svg(line.look), line.name) for line in panels[0].lines)
        return Chart(name, title, caption, tuple(shown), legend)


def _numbers(panel: Panel) -> dict[str, Any]:
    """What the script needs to tell the values under the pointer; coordinates are the drawing's own."""
    return {
        "label": panel.label,
        "box": panel_box(),
        "x": x_limits(panel),
        "y": panel.limits,
        "log": panel.is_log,
        "lines": [
            {"name": line.name, "epochs": line.epochs, "values": list(map(_short, line.values))}
            | ({"spreads": list(map(_short, line.spreads))} if line.spreads else {})
            for line in panel.lines
        ],
    }


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _summary(panel: Panel) -> str:
    """A panel in a sentence, for who does not see it."""
    ends = [f"{plain(line.name)} ends at {line.values[-1]:.3g}" for line in panel.lines if line.values]
    best = f"; the best epoch is {panel.best_epoch}" if panel.best_epoch is not None else ""
    return f"{panel.label} over {count_text(_last(panel.lines), 'epoch', 'epochs')}: {listed(ends)}{best}"


def _last(lines: Sequence[Line]) -> int:
    return max((epoch for line in lines for epoch in line.epochs), default=0)


_MARKERS = {
    "o": "M14 3a3 3 0 1 0 .01 0z",
    "s": "M11 3h6v6h-6z",
    "^": "M14 2.5l3.5 6.5h-7z",
    "v": "M14 9.5l3.5 -6.5h-7z",
    "D": "M14 2l4 4l-4 4l-4 -4z",
    "*": "M14 1.5l1.3 3.2l3.4 .2l-2.6 2.2l.8 3.4l-2.9 -1.8l-2.9 1.8l.8 -3.4l-2.6 -2.2l3.4 -.2z",
    "P": "M12.6 2.5h2.8v2.1h2.1v2.8h-2.1v2.1h-2.8v-2.1h-2.1v-2.8h2.1z",
}


def key_svg(look: Look) -> Markup:
    """A piece of a line, for a legend."""
    color = "currentColor" if look.color == INK else look.color
    dashes = f' stroke-dasharray="{" ".join(f"{each:g}" for each in look.dashes)}"' if look.dashes else ""
    return Markup(
        '<svg class="key" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        '<path d="M0 6h28" stroke="{}" stroke-width="1.8"{}/><path d="{}" fill="{}"/></svg>'
    ).format(color, Markup(dashes), _MARKERS[look.marker], color)


def page(gathered: Gathered) -> str:
    """The report of a grid, whole or not, as the text of an HTML file; the same value gives the same text."""
    charts = _Charts()
    tables = shown_tables(gathered.table)
    shown_runs = list(gathered.runs.values())[:MAX_RUNS]
    context: dict[str, Any] = {
        "grid": gathered.grid,
        "winner": story.winner(gathered, tables),
        "apart": story.apart(gathered),
        "missing": story.missing(gathered),
        "facts": story.facts(gathered),
        "machines": story.machines(gathered),
        "steps": story.steps(gathered),
        "tables": tables,
        "notes": gathered.table.notes,
        "majorities": dict.fromkeys(one.meaning for table in tables for one in table.stage.majorities),
        "has_seeds": any(len(row.runs) > 1 for table in tables for row in table.stage.rows),
        "stage_charts": (stage_charts := dict(_stage_charts(gathered, tables, charts))),
        "is_long": len(stage_charts) > FEW_STAGES,
        "tested": [_tested(rows, charts) for rows in _distinct(gathered.tested)],
        "beside_best": story.tests_beside_best(gathered),
        "data": [_data(each, charts) for each in gathered.data],
        "runs": [_run(run, charts) for run in shown_runs],
        "num_runs": len(gathered.runs),
        "shown_ids": {run.run.id for run in shown_runs},
        "reproduction": story.reproduction(gathered),
        "grid_text": gathered.grid.text(),
        "row_commands": [
            (f"{table.stage.name}/{row.name}", story.row_command(gathered, table.stage.name, row.name))
            for table in tables
            for row in table.rows
            if row.row is not None
        ],
        "numbers": htmlsafe_json_dumps(charts.numbers, separators=(",", ":"), ensure_ascii=False, allow_nan=False),
    }
    return render(context)


def render(context: dict[str, Any]) -> str:
    """The template filled in, its style and its script inside."""
    environment = Environment(
        loader=PackageLoader("controller.report", FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    own = files("controller.report").joinpath(FOLDER)
    style = own.joinpath("report.css").read_text(encoding="utf-8")
    script = own.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    template = environment.get_template("report.html.j2")
    own_files = {"style": Markup(style), "script": Markup(script)}
    return template.render(policy=f"{policy}; base-uri 'none'; form-action 'none'", **own_files, **context)


def _stage_charts(gathered: Gathered, tables: Sequence[ShownTable], charts: _Charts) -> Iterator[tuple[str, Chart]]:
    for table in tables:
        found = curves_of_stage(gathered, table.stage)
        if found is None:
            continue
        panels, num_left_out = found
        caption = "On the validation part, every row at each epoch."
        if any(line.spreads for line in panels[0].lines):
            caption += f" Each line is the {BAND}."
        if num_left_out:
            caption += f" {count_text(num_left_out, 'row')} of lower rank left out: more could not be told apart."
        yield table.stage.name, charts.chart(panels, f"Stage {table.stage.name}", caption)


def _distinct(tested: Sequence[TestedRow]) -> list[list[TestedRow]]:
    """The tested rows, those of the same runs together: they have the same answers."""
    groups: dict[tuple[str, ...], list[TestedRow]] = {}
    for row in tested:
        groups.setdefault(tuple(run.id for run in row.experiment.runs), []).append(row)
    return list(groups.values())


def _tested(rows: Sequence[TestedRow], charts: _Charts) -> dict[str, Any]:
    row = rows[0]
    shown: dict[str, Any] = {
        "row": row,
        "homes": [(each.stage, each.experiment.name) for each in rows],
        "name": rows[-1].experiment.name,  # the last table's: the one that was given to be read
        "mistakes": [(each, each.image and jpeg_uri(each.image)) for each in row.mistakes],
    }
    if row.scores is not None and row.scores.only_answer is None:
        svg = confusion_svg(row.classes, row.scores.counts, charts.name())
        shown["confusion"] = Markup(svg)
    return shown


def _data(data: DataSeen, charts: _Charts) -> dict[str, Any]:
    classes = data.index.classes
    return {
        "index": data.index,
        "figures": [
            (title, Markup(counts_svg(title, classes, counts, charts.name()))) for _, title, counts in counts_of(data)
        ],
        "sheet": [(name, jpeg_uri(image)) for name, image in data.sheet],
        "lacks": data.lacks,
    }


def _run(run: RunSeen, charts: _Charts) -> dict[str, Any]:
    panels = curves_of_run(run)
    caption = "Train values are running means in training mode."
    if panels is not None and panels[0].best_epoch is not None:
        caption += " The dotted line is the best epoch."
    if panels is not None and panels[0].returns:
        caption += " A triangle marks an epoch after which training went back to the best one."
    return {
        "run": run,
        "facts": list(story.told(run)),
        "spec": write_spec(run.run.spec),
        "command": story.run_command(run),
        "chart": charts.chart(panels, f"Run {run.run.id}", caption) if panels else None,
        "tail": (run.failure.log_tail if run.failure else [])[-LOG_TAIL_SHOWN:],
    }


def jpeg_uri(image: Image) -> str:
    """The image as a `data:` address."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
