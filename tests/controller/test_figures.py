"""Figures: the same values give the same bytes, text is text, and what is drawn is what was given."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from reports import ATTACK, SCRIPT, epoch

from controller.figures.confusion import confusion_picture, confusion_svg
from controller.figures.curves import (
    Panel,
    panel_box,
    panel_svg,
    panels_picture,
    run_panels,
    stage_panels,
    x_limits,
)
from controller.figures.data import counts_picture, counts_svg, sheet_picture
from controller.figures.style import PALETTE, Picture, look

ROWS = [epoch(number, returned_to_best=number in (3, 5)) for number in range(1, 7)]
COUNTS = np.array([[5, 1], [0, 4]])


def stage() -> tuple[Panel, Panel]:
    return stage_panels({f"lr {ATTACK}": [ROWS, ROWS[:4]], "other": [ROWS]}, 6)


PICTURES: dict[str, Callable[[], Picture]] = {
    "run": lambda: panels_picture(f"run $x$ {ATTACK}", run_panels(ROWS, 6, 6)),
    "stage": lambda: panels_picture(f"stage {SCRIPT}", stage()),
    "counts": lambda: counts_picture(ATTACK, ["a", ATTACK], [3, 9]),
    "sheet": lambda: sheet_picture("sheet", [(ATTACK, Image.new("RGB", (9, 8), "red"))] * 9),
    "confusion": lambda: confusion_picture(ATTACK, ["a", ATTACK], COUNTS),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_figure_is_a_well_formed_svg_and_a_png(name: str) -> None:
    made = PICTURES[name]()
    root = ET.fromstring(made.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    with Image.open(io.BytesIO(made.png)) as image:
        assert image.width > 400
        assert "Software" not in image.info
    assert re.search(rb"<dc:date>|\d{4}-\d{2}-\d{2}T", made.svg) is None


def test_the_same_values_give_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys, hashlib; sys.path[:0] = ['tests', 'tests/controller']\n"
        "from test_figures import PICTURES\n"
        "made = PICTURES['stage']()\n"
        "print(hashlib.sha256(made.svg + made.png).hexdigest())"
    )
    found = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(found) == 1


def test_no_figure_is_made_by_pyplot() -> None:
    code = (
        "import sys, controller.figures.confusion, controller.figures.curves, controller.figures.data\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_the_first_lines_differ_in_more_than_their_colour() -> None:
    looks = [look(index) for index in range(28)]
    assert len(set(looks)) == 28
    assert len({(each.dashes, each.marker) for each in looks[: len(PALETTE)]}) == len(PALETTE)


def test_a_runs_panels_hold_its_epochs_its_best_one_and_its_returns() -> None:
    loss, accuracy = run_panels(ROWS, 6, 10)
    assert [line.name for line in loss.lines] == ["validation", "train"]
    assert loss.lines[0].values == tuple(row.validation_loss for row in ROWS)
    assert accuracy.lines[1].values == tuple(row.train_accuracy for row in ROWS)
    assert (loss.best_epoch, loss.returns, loss.num_epochs) == (6, (3, 5), 10)


def test_a_row_of_several_seeds_is_their_mean_as_far_as_all_have_come() -> None:
    seeds = [[epoch(1, 1.0), epoch(2, 1.0), epoch(3, 1.0)], [epoch(1, 3.0), epoch(2, 3.0)]]
    (line,) = stage_panels({"row": seeds}, 3)[0].lines
    assert line.epochs == (1, 2)
    assert line.values == pytest.approx((2.1, 1.1))
    assert line.spreads == pytest.approx((math.sqrt(2), math.sqrt(2) / 2))


def test_a_row_of_one_seed_has_no_band_and_one_without_epochs_no_line() -> None:
    (line,) = stage_panels({"one": [ROWS, []], "none": [[]]}, 6)[0].lines
    assert (line.name, line.spreads) == ("one", ())


@pytest.mark.parametrize(
    ("losses", "is_log"), [pytest.param((2.0, 1.0), False, id="near"), pytest.param((900.0, 1.0), True, id="far")]
)
def test_losses_far_apart_stand_on_a_logarithmic_axis(losses: tuple[float, float], is_log: bool) -> None:
    rows = [epoch(number, validation_loss=loss, train_loss=1.0) for number, loss in enumerate(losses, start=1)]
    panel = run_panels(rows, None, 2)[0]
    assert panel.is_log is is_log
    low, high = panel.limits
    assert low < 1.0
    assert high > losses[0]


def test_what_is_not_finite_is_left_out() -> None:
    rows = [epoch(1), epoch(2, validation_loss=math.nan, train_loss=math.inf), epoch(3)]
    loss = run_panels(rows, 3, 3)[0]
    assert all(map(math.isfinite, loss.limits))
    assert "nan" not in panel_svg(loss, "c")


def test_a_panel_for_a_page_names_all_of_it_after_itself() -> None:
    svg = panel_svg(stage()[0], "c7")
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("c7-") for each in ids)
    assert {"c7-s0-line", "c7-s0-band", "c7-s1-line"} <= set(ids)
    assert all(each in ids for each in re.findall(r'(?:href="|url\()#([^")]+)', svg))
    assert "style>" not in svg


FLAT = [epoch(n, validation_loss=2.302439 - 1e-6 * n, train_loss=2.3027, validation_accuracy=0.1) for n in range(1, 7)]
HIGH = [epoch(n, validation_loss=2.3e7 + 1e6 * n, train_loss=2.5e7, returned_to_best=n == 3) for n in range(1, 7)]
FAR = [epoch(n, validation_loss=10.0**n, train_loss=1e-4) for n in range(1, 7)]
LONG = "AlexNet - Transfer learning (finetuned), a name that goes on " * 4
LIKELY_TO_BE_CUT: dict[str, Callable[[], Picture]] = {
    "flat losses": lambda: panels_picture(LONG, run_panels(FLAT, 6, 6)),
    "high losses": lambda: panels_picture("W" * 300, run_panels(HIGH, 3, 6)),
    "losses far apart": lambda: panels_picture("far", run_panels(FAR, 3, 6)),
    "confusion with long names": lambda: confusion_picture(LONG, ["W" * 30, "b" * 30, "c"], np.eye(3, dtype=np.int64)),
    "confusion of many classes": lambda: confusion_picture("W" * 99, list("ab" * 51), np.eye(102, dtype=np.int64)),
    "few bars": lambda: counts_picture(LONG, ["W" * 40, "b"], [3, 1_000_000]),
    "sheet": lambda: sheet_picture(LONG, [("W" * 40, Image.new("RGB", (9, 8), "red"))] * 9),
}


@pytest.mark.parametrize("name", LIKELY_TO_BE_CUT)
def test_nothing_is_drawn_at_the_edge_where_it_would_be_cut(name: str) -> None:
    with Image.open(io.BytesIO(LIKELY_TO_BE_CUT[name]().png)) as image:
        pixels_HWC = np.asarray(image.convert("RGB"))
    for edge in (pixels_HWC[0], pixels_HWC[-1], pixels_HWC[:, 0], pixels_HWC[:, -1]):
        assert (edge == 255).all()


def test_losses_that_hardly_differ_look_flat_and_no_number_is_told_as_an_offset() -> None:
    loss = run_panels(FLAT, None, 6)[0]
    low, high = loss.limits
    assert high - low >= 0.02 * 2.3
    assert "+2.3" not in re.sub(r"<[^>]*>", " ", panel_svg(loss, "c"))


def test_a_letter_that_the_font_lacks_is_no_warning() -> None:
    name = "\u65e5\u672c\U0001f431"
    assert confusion_picture(name, [name, "b"], COUNTS).png
    assert name in counts_svg(name, ["a", name], [3, 9], "c1")


def test_the_box_is_where_the_axes_are_drawn() -> None:
    panel = run_panels(ROWS, None, 6)[0]
    svg = panel_svg(panel, "c")
    left, top, right, bottom = panel_box()
    path = re.search(r'id="c-s0-line"><path d="M ([\d.]+) ([\d.]+)', svg)
    assert path is not None
    low, high = x_limits(panel)
    assert float(path[1]) == pytest.approx(left + (1 - low) / (high - low) * (right - left), abs=0.01)
    bound, top_value = panel.limits
    height = (ROWS[0].validation_loss - bound) / (top_value - bound)
    assert float(path[2]) == pytest.approx(bottom - height * (bottom - top), abs=0.01)


def test_names_are_text_on_a_page_and_ink_takes_its_colour() -> None:
    svg = counts_svg(ATTACK, ["a", ATTACK], [3, 9], "c1") + confusion_svg([SCRIPT, ATTACK], COUNTS, "c2")
    assert "<img" not in svg
    assert "<script" not in svg
    assert "&lt;img" in svg
    assert "currentColor" in svg
    assert "#1b1f24" not in svg
