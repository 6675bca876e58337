"""Tables for people fit where they stand and are not broken by any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tables import (
    evaluated,
    every_kind_of_row,
    experiment,
    failed,
    one_stage,
    result,
    stage,
    stage_of_tests,
    table_of,
)

from controller.table import Table
from controller.table_text import to_markdown, to_terminal

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(name="every_kind")
def _every_kind() -> Table:
    return every_kind_of_row()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("two\nlines", "two lines"),
        ("*a* _b_ `c`", r"\*a\* \_b\_ \`c\`"),
        ("weight_decay", "weight_decay"),
        ("[x](y)", r"\[x\](y)"),
    ],
    ids=["pipe", "html", "newline", "emphasis", "underscore", "link"],
)
def test_markdown_shows_a_name_as_it_is(name: str, shown: str) -> None:
    lines = to_markdown(one_stage({name: [1], "z": [2]})).splitlines()
    assert sum(line.startswith(f"| **{shown}** |") for line in lines) == 1


def unescaped_bars(line: str) -> int:
    return line.replace(r"\|", "").count("|")


@given(st.text(min_size=1))
def test_no_name_breaks_the_rows_of_a_markdown_table(name: str) -> None:
    a, b = experiment(name, seeds=(0,)), experiment("z", seeds=(0,))
    table = table_of(stage(a, b), results=[result(b.runs[0])], failures=[failed(a.runs[0], message=name)])
    lines = [line for line in to_markdown(table).split("\n") if line.startswith("|")]
    assert len(lines) == 4
    assert len({unescaped_bars(line.replace("\\\\", "")) for line in lines}) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_terminal_lines_fit_the_width(every_kind: Table, width: int) -> None:
    text = to_terminal(every_kind, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for name in ("lr=0.01", "lr=0.1", "lr=0.001", "lr=1", "lr=2", "lr=3", "majority class"):
        assert name in text


@given(st.text(min_size=1, max_size=100), st.integers(40, 120))
def test_no_name_drives_the_terminal_or_leaves_its_column(name: str, width: int) -> None:
    text = to_terminal(one_stage({name: [1, 2], "z": [2, 3]}), width)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    rows = text.split("learning_rate\n")[1].split("\n  best")[0]
    assert max(map(cell_len, rows.splitlines())) <= width


def test_the_metric_of_the_stage_is_the_last_column_to_go(every_kind: Table) -> None:
    lines = to_terminal(every_kind, 40).splitlines()
    assert lines[3].split() == ["val", "loss"]
    assert lines[4].split() == ["lr=0.01", "[1]", "2.731", "best", "so", "far"]


def test_a_narrow_terminal_shows_the_test_accuracy_of_a_test_stage_first() -> None:
    rows = [experiment(f"a rather long name of a row, {number}") for number in (1, 2)]
    runs = [run for row in rows for run in row.runs]
    tests = [evaluated(run, test_accuracy=number / 7) for number, run in enumerate(runs, start=1)]
    table = table_of(stage(*rows, is_test=True), results=[result(run) for run in runs], tests=tests)

    assert to_terminal(table, 40).splitlines()[3].split() == ["test", "acc"]
    assert to_terminal(table, 60).splitlines()[3].split() == ["val", "loss", "test", "acc"]


@pytest.mark.parametrize(
    ("losses", "shown"),
    [
        ([2.5, 2.6], ["2.500", "2.600"]),
        ([2.5001, 2.5003], ["2.5001", "2.5003"]),
        ([2.5, 2.5], ["2.500", "2.500"]),
        ([2.5, 2.5000001], ["2.500", "2.500"]),
        ([11.5001, 11.5003, 3.25], ["11.5001", "11.5003", "3.25000"]),
    ],
    ids=["told apart", "tied", "equal", "all but equal", "large"],
)
def test_rows_that_would_tie_are_shown_with_more_digits(losses: list[float], shown: list[str]) -> None:
    table = one_stage({f"row{index}": [loss] for index, loss in enumerate(losses)})
    lines = to_terminal(table, 40).splitlines()

    assert [line.split()[1] for line in lines if line.startswith("  row")] == shown
    assert all(f" {text} " in to_markdown(table).replace("*", "") for text in shown)


def test_a_long_table_tells_only_its_best_rows_apart() -> None:
    table = one_stage({"first": [1.00001], "second": [1.00004], **{f"row{n}": [2 + n * 1e-6] for n in range(30)}})
    text = to_terminal(table, 40)

    assert [line.split()[1] for line in text.splitlines() if line.startswith(("  first", "  second", "  row7 "))] == [
        "1.00001",
        "1.00004",
        "2.00001",
    ]


def test_a_long_name_goes_on_in_the_next_line() -> None:
    name = "optimizer.lr=0.01,optimizer.weight_decay=5e-5,schedule.step_size=20"
    text = to_terminal(one_stage({name: [1, 2]}), 60)
    lines = text.split("learning_rate\n")[1].splitlines()
    assert lines[1].startswith("  optimizer.lr=0.01,  ")
    parts = [lines[1].split()[0], *(line.strip() for line in lines[2:] if line.startswith("    "))]
    assert "".join(parts) == name


def test_colour_adds_nothing_but_colour(every_kind: Table) -> None:
    coloured = to_terminal(every_kind, colour=True)
    assert "\x1b[1m" in coloured
    plain = coloured
    for code in ("0", "1", "2", "31"):
        plain = plain.replace(f"\x1b[{code}m", "")
    assert plain == to_terminal(every_kind)


def test_a_grid_in_which_nothing_ran_says_why_in_every_row() -> None:
    table = table_of(stage(experiment("a")), stage(name="later", waiting="for stage learning_rate to be decided"))
    assert "a: waiting: never started" in to_terminal(table)
    assert "waiting: for stage learning_rate to be decided" in to_terminal(table)
    assert "| a | waiting: never started |" in to_markdown(table)


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("table.md", to_markdown),
        ("table-80.txt", to_terminal),
        ("table-160.txt", lambda table: to_terminal(table, 160)),
    ],
    ids=["markdown", "terminal-80", "terminal-160"],
)
def test_text_for_reading_is_as_it_was_looked_at(every_kind: Table, file: str, write: Any) -> None:
    assert write(every_kind) == (GOLDEN / file).read_text(encoding="utf-8")


FIVE_SEEDS = {
    "a": [2.61, 2.70, 2.58, 2.66, 2.63],
    "b": [2.65, 2.68, 2.66, 2.64, 2.69],
    "c": [3.2, 3.3, 3.1, 3.25, 3.22],
}


def test_rows_that_cannot_be_told_from_the_best_are_marked_and_the_method_named() -> None:
    lines = to_terminal(one_stage(FIVE_SEEDS), 40).splitlines()

    assert [line.split("  ")[-1] for line in lines[4:6]] == ["best", "≈ best"]
    assert "best" not in lines[6]
    text = " ".join(" ".join(lines).split())
    assert text.endswith("≈ best: not to be told from it over 5 seeds (paired t, Holm)")
    assert max(map(cell_len, lines)) <= 40


def test_intervals_are_told_where_there_is_room() -> None:
    told = "; validation_loss less the best's: b -0.0"
    table = one_stage(FIVE_SEEDS)
    assert told not in to_terminal(table, 79).replace("\n    ", " ")
    assert told in to_terminal(table, 80).replace("\n    ", " ")
    assert "| b | " in to_markdown(table)
    assert " | ≈ best |" in to_markdown(table)
    assert told in to_markdown(table)


@pytest.mark.parametrize(
    ("losses", "times"),
    [
        ({"a": [1, 2], "b": [2, 3], "c": [4, 5]}, 1),
        ({"a": [1, 2]}, 0),
        ({"a": [1, 2, 3], "b": [2, 4, 6]}, 0),
    ],
    ids=["two seeds", "one row", "three seeds"],
)
def test_too_few_seeds_are_told_once_for_a_stage(losses: dict[str, list[float]], times: int) -> None:
    assert to_terminal(one_stage(losses), 40).count("\n  too few seeds to say what differs\n") == times
    assert to_markdown(one_stage(losses)).count("\n- too few seeds to say what differs\n") == times


def test_a_stage_without_a_near_row_says_that_all_others_are_worse() -> None:
    losses = {name: FIVE_SEEDS[name] for name in ("a", "c")}
    text = to_terminal(one_stage(losses))
    assert "  all others are worse over 5 seeds (paired t, Holm)\n" in text
    assert "≈" not in text


def test_a_test_stage_says_what_its_images_tell() -> None:
    half = [True, False] * 200
    table = stage_of_tests({"a": half, "near": half, "worse": [False] * 400, "better": [True] * 20 + half[20:]})
    text = to_terminal(table, 60)
    marks = {line.split()[0]: line.split("0.")[-1][3:].strip() for line in text.splitlines()[4:8]}
    told = " ".join(text.split())

    assert marks == {"a": "best", "near": "≈ best", "worse": "", "better": ""}
    assert "≈ best: not to be told from it over 400 test images (paired bootstrap)" in told
    assert told.endswith("better than the best by validation over 400 test images (paired bootstrap): better")
    assert "; test_accuracy less the best's: better +0.0" in " ".join(to_terminal(table, 100).split())
