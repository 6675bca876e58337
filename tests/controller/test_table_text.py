"""Tables for people fit where they stand and are not broken by any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tables import (
    every_kind_of_row,
    experiment,
    failed,
    one_stage,
    result,
    stage,
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
