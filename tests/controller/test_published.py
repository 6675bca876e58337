"""What others published stands beside what came of a row here, and changes nothing else."""

from __future__ import annotations

import csv
import io
import json
from typing import get_args

import pytest
from expansions import FACTS, HEAD, NOW, decided, result_of
from results import numerics
from tables import evaluated

from controller.grid import Grid, parse_grid
from controller.published import comparison
from controller.search import expand
from controller.selection import due_decisions
from controller.stages import PublishedMetric
from controller.standing import Known
from controller.table import NUMBERS, Table, build_table
from controller.table_data import to_csv, to_json
from controller.table_text import to_markdown, to_terminal
from trainer.failure import SpecError

RATE = """\
  - name: rate
    vary: {optimizer.lr: [0.1, 1]}
"""
FIGURES = """\
    published:
      note: from a course
      rows:
        - {this: {optimizer.lr: 0.1}, numbers: {validation_loss: 2.5, validation_accuracy: 0.40}, note: odd}
"""
GAMMA = """\
  - name: gamma
    vary: {schedule.gamma: [0.5, 0.25]}
    published:
      at: {optimizer.lr: 1}
      rows:
        - {this: {schedule.gamma: 0.5}, numbers: {validation_loss: 1.25}}
        - {this: {schedule.gamma: 0.25}, at: {schedule.step_size: 19}, numbers: {validation_loss: 1.5}}
"""
TEST = """\
  - name: test
    test: {best: 1}
    published:
      rows:
        - {stage: rate, this: {optimizer.lr: 1}, numbers: {test_accuracy: 0.5}}
        - {stage: gamma, this: {schedule.gamma: 0.25}, numbers: {test_accuracy: 0.6}}
"""
ALL = RATE + FIGURES + GAMMA + TEST


def parse(stages: str, *sets: str) -> Grid:
    return parse_grid(f"{HEAD}stages:\n{stages}", "g.yaml", sets)


def table_of(grid: Grid, losses: dict[str, float]) -> Table:
    decisions = decided(grid, losses)
    expansion = expand(grid, decisions, FACTS)
    rows = [row for stage in expansion.stages for row in stage.experiments]
    usual = numerics(micro_batch=256)
    results = {
        row.runs[0].id: result_of(row.runs[0].id, losses[row.name]).model_copy(update={"numerics": usual})
        for row in reversed(rows)  # the first home of a run says its loss
        if row.name in losses
    }
    tests = {row.runs[0].id: evaluated(row.runs[0], test_accuracy=0.55, numerics=usual) for row in rows}
    known = Known(decisions=decisions, results=results, tests=tests)
    return build_table(expansion, known, {}, compared=comparison(grid, expansion))


LOSSES = {"lr=0.1": 3.0, "lr=1": 2.0, "gamma=0.5": 1.0, "gamma=0.25": 4.0}


def test_a_figure_stands_beside_its_row_with_the_difference() -> None:
    rows = table_of(parse(ALL), LOSSES).stages[0].rows

    assert rows[0].published == {"validation_loss": 2.5, "validation_accuracy": 0.4}
    assert rows[0].difference("validation_loss") == 0.5
    assert rows[0].difference("train_loss") is None
    assert (rows[1].published, rows[1].difference("validation_loss")) == ({}, None)


def test_figures_of_other_values_are_left_out_and_it_says_so() -> None:
    right = table_of(parse(ALL), LOSSES).stages[1]
    wrong = table_of(parse(ALL), {**LOSSES, "lr=1": 9.0}).stages[1]

    assert [row.published for row in right.rows] == [{"validation_loss": 1.25}, {}]
    assert right.remarks[-1] == (
        "published: none for gamma=0.25: the figures are of schedule.step_size 19, here it is 20"
    )
    assert [row.published for row in wrong.rows] == [{}, {}]
    assert wrong.remarks[-1] == (
        "published: none for gamma=0.5, gamma=0.25: the figures are of optimizer.lr 1, here it is 0.1"
    )


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        pytest.param("epochs=3", ("from a course; figures of the grid without --set epochs=3",), id="other numbers"),
        pytest.param(
            "data.name=x",
            (
                "from a course; figures of the grid without --set data.name=x",
                "no difference is worked out: data.name not as published",
            ),
            id="data",
        ),
        pytest.param("model.architecture=alexnet", ("from a course",), id="what it was"),
        pytest.param("checkpoint.keep=all", ("from a course",), id="no number"),
        pytest.param("max_failed=3", ("from a course",), id="the grid's own"),
    ],
)
def test_what_the_command_line_sets_is_told_beside_figures_that_are_not_of_it(
    assignment: str, told: tuple[str, ...]
) -> None:
    grid = parse(RATE + FIGURES, assignment)
    found = comparison(grid, expand(grid, {}, FACTS))

    assert found.remarks == {"rate": told}
    assert [row for _, row in found.figures] == ["lr=0.1"]


FORM = """\
forms:
  small:
    set: {data.images_per_class: 4, epochs: 2}
  short:
    set: {epochs: 2}
"""


@pytest.mark.parametrize(
    ("form", "difference"), [pytest.param("small", None, id="data"), pytest.param("short", 0.5, id="epochs")]
)
def test_a_form_that_changes_the_data_shows_figures_and_no_difference(form: str, difference: float | None) -> None:
    grid = parse_grid(f"{HEAD}{FORM}stages:\n{RATE}{FIGURES}", "g.yaml", form=form)
    again = parse_grid(grid.text(), "again")
    for each in (grid, again):
        table = table_of(each, LOSSES)
        row = table.stages[0].rows[0]
        assert row.published == {"validation_loss": 2.5, "validation_accuracy": 0.4}
        assert row.difference("validation_loss") == difference
        assert ("| difference |" in to_markdown(table)) is (difference is not None)
        assert ("diff: ours less that" in to_terminal(table)) is (difference is not None)


@pytest.mark.parametrize("width", range(40, 120, 4))
def test_a_published_figure_stands_beside_ours_and_with_its_difference_or_not_at_all(width: int) -> None:
    lines = to_terminal(table_of(parse(RATE + FIGURES), LOSSES), width).splitlines()
    head = next(line for line in lines if "val loss" in line or "publ." in line).split("  ")
    words = [word.strip() for word in head if word.strip()]
    for place, word in enumerate(words):
        if word == "publ.":
            assert words[place - 1] in ("val loss", "val acc")
            assert words[place + 1 : place + 2] == ["diff"]
    assert words.count("publ.") == words.count("diff")


def test_a_test_stage_shows_the_figures_of_the_rows_that_it_tests() -> None:
    assert [row.published for row in table_of(parse(ALL), LOSSES).stages[2].rows] == [{}]
    best = table_of(parse(ALL), {**LOSSES, "gamma=0.5": 4.0, "gamma=0.25": 1.0}).stages[2].rows
    assert [(row.experiment, row.published) for row in best] == [("gamma/gamma=0.25", {"test_accuracy": 0.6})]
    assert best[0].difference("test_accuracy") == pytest.approx(-0.05)


def test_figures_change_no_run_and_no_decision() -> None:
    bare = "".join(part for part in (RATE, GAMMA.split("    published")[0], TEST.split("    published")[0]))
    with_figures, without = parse(ALL), parse(bare)
    decisions = [decided(grid, LOSSES) for grid in (with_figures, without)]

    assert decisions[0] == decisions[1]
    assert expand(with_figures, decisions[0], FACTS).runs() == expand(without, decisions[1], FACTS).runs()
    results = {run: result_of(run, 1.0) for run in expand(without, {}, FACTS).runs()}
    assert due_decisions(with_figures, expand(with_figures, {}, FACTS), results, {}, NOW) == due_decisions(
        without, expand(without, {}, FACTS), results, {}, NOW
    )


def test_csv_and_json_have_the_figures_and_the_exact_differences() -> None:
    table = table_of(parse(ALL), LOSSES)
    rows = list(csv.DictReader(io.StringIO(to_csv(table), newline=""), strict=True))
    read = json.loads(to_json(table))["stages"][0]["rows"]

    assert (rows[0]["published_validation_loss"], rows[0]["difference_validation_loss"]) == ("2.5", "0.5")
    assert (rows[1]["published_validation_loss"], rows[1]["difference_validation_loss"]) == ("", "")
    assert "published_test_accuracy" not in rows[0]
    assert read[0]["published"] == {"validation_loss": 2.5, "validation_accuracy": 0.4}
    assert read[0]["difference"] == {"validation_loss": 0.5, "validation_accuracy": 0.5 - 0.4}
    assert read[1]["published"] == {}


def test_a_table_without_figures_has_no_columns_for_them() -> None:
    table = table_of(parse(RATE), LOSSES)

    assert "publ" not in to_csv(table) + to_terminal(table) + to_markdown(table)


def test_the_terminal_shows_ours_theirs_and_the_difference() -> None:
    lines = to_terminal(table_of(parse(ALL), LOSSES), 80).splitlines()

    assert lines[3].split()[:7] == ["val", "loss", "publ.", "diff", "val", "acc", "publ."]
    assert lines[4].split()[:7] == ["lr=0.1", "[1]", "3.000", "2.50", "+0.500", "0.500", "0.40"]
    assert lines[5].split()[:3] == ["lr=1", "2.000", "0.500"]
    assert "  published: from a course" in lines
    assert "[1] published: odd: rate/lr=0.1" in lines
    assert "publ.: the figure that was published; diff: ours less that" in lines


@pytest.mark.parametrize("width", range(40, 130, 6))
def test_a_difference_never_stands_without_the_figure(width: int) -> None:
    head = to_terminal(table_of(parse(ALL), LOSSES), width).splitlines()[3]

    assert head.count("diff") <= head.count("publ.")


def test_markdown_has_a_column_for_each() -> None:
    lines = to_markdown(table_of(parse(ALL), LOSSES)).splitlines()

    assert "| validation loss | published | difference | validation accuracy | published | difference |" in lines[6]
    assert "| 3.000 | 2.50 | +0.500 | 0.500 | 0.40 | +0.100 |" in lines[8]
    assert "[^1]: published: odd: rate/lr=0.1" in lines


def test_figures_stand_there_before_anything_is_trained() -> None:
    grid = parse(RATE + FIGURES)
    expansion = expand(grid, {}, FACTS)
    text = to_terminal(build_table(expansion, Known(), {}, compared=comparison(grid, expansion)))

    assert text.splitlines()[3].split() == ["val", "loss", "publ.", "val", "acc", "publ."]
    assert "diff " not in text


@pytest.mark.parametrize(
    ("published", "shown"),
    [("0.4", "0.40"), ("1", "1.00"), ("0.7162", "0.7162"), ("0.001", "0.001")],
    ids=["a digit", "whole", "four digits", "three digits"],
)
def test_a_figure_has_the_digits_that_it_was_published_with(published: str, shown: str) -> None:
    table = table_of(parse(RATE + FIGURES.replace("0.40", published)), LOSSES)

    assert f"| 0.500 | {shown} |" in to_markdown(table)


def test_counts_are_compared_whole() -> None:
    figures = FIGURES.replace("validation_accuracy: 0.40", "num_trainable_parameters: 57417637")
    text = to_markdown(table_of(parse(RATE + figures), LOSSES))

    assert "| 1 | 57,417,637 | -57,417,636 |" in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("optimizer.lr: 0.1}, n", "optimizer.lr: 7}, n", "rows[0].this: got {optimizer.lr: 7}: no row fits"),
        ("this: {optimizer.lr: 0.1}", "this: {name: nobody}", "no row fits, expected one of stage 'rate': lr=0.1, lr="),
        ("validation_loss: 2.5", "validation_los: 2.5", "did you mean 'validation_loss'?"),
        ("validation_loss: 2.5", "test_loss: 2.5", "numbers.test_loss: stands in a stage that trains"),
        ("accuracy: 0.40", "accuracy: 40", "validation_accuracy: got 40, expected a number from 0 to 1"),
        ("accuracy: 0.40", "accuracy: much", "validation_accuracy: got 'much', expected a number"),
        ("numbers: {validation_loss: 2.5, validation_accuracy: 0.40}", "numbers: {}", "expected at least 1"),
        ("note: odd}", "at: {lr: 1}}", "rows[0].at.lr: unknown key"),
        ("note: odd}", "at: {optimizer: 1}}", "names a whole part, expected single values"),
        ("note: odd}", "stage: rate}", "no row fits"),
        ("stage: rate, this", "stage: rat, this", "no row fits, expected a row of stage 'rat'"),
        ("stage: rate, this: {optimizer.lr: 1}", "this: {name: lr=1}", "no row fits, expected a row of stage 'test'"),
        ("stage: gamma, this: {schedule.gamma: 0.25}", "stage: rate, this: {name: lr=1}", "got 'lr=1' a second time"),
    ],
    ids=[
        "row",
        "name",
        "metric",
        "test",
        "percent",
        "text",
        "none",
        "at",
        "part",
        "stage",
        "no stage",
        "label",
        "twice",
    ],
)
def test_figures_that_fit_nothing_are_refused(old: str, new: str, told: str) -> None:
    assert old in ALL
    with pytest.raises(SpecError) as caught:
        parse(ALL.replace(old, new))

    assert told in str(caught.value)


def test_only_numbers_that_tables_have_can_be_published() -> None:
    assert set(get_args(PublishedMetric)) < set(NUMBERS)
