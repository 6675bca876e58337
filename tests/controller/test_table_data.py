"""Tables for programs lose nothing."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import (
    every_kind_of_row,
    experiment,
    failed,
    one_stage,
    result,
    stage,
    table_of,
)

from controller.table import NUMBERS, Table
from controller.table_data import CSV_HEAD, to_csv, to_json


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.fixture(name="every_kind")
def _every_kind() -> Table:
    return every_kind_of_row()


def test_csv_gives_every_number_back_exactly() -> None:
    rows = [experiment("a"), experiment("b", seeds=(0,))]
    results = [
        result(run, loss=(index + 1) / 3, wall_seconds=1e22 / 7)
        for index, run in enumerate([*rows[0].runs, *rows[1].runs])
    ]
    table = table_of(stage(*rows), results=results)
    read = rows_of(to_csv(table))
    assert list(read[0])[: len(CSV_HEAD)] == list(CSV_HEAD)
    for row, cells in zip(table.stages[0].rows, read, strict=True):
        for name in NUMBERS:
            value = row.numbers.get(name)
            assert cells[name] == ("" if value is None else repr(value.mean))
            assert cells[f"{name}_std"] == ("" if value is None or value.std is None else repr(value.std))
            assert value is None or float(cells[name]) == value.mean
    assert read[0]["optimizer.lr"] == "0.01"
    assert read[0]["num_parameters"] == "57417637"
    assert read[0]["runs"] == "alexnet-a-0 alexnet-a-1"
    assert read[0]["seeds"] == "0 1"


@given(st.floats(allow_nan=False))
def test_csv_and_json_hold_any_float(loss: float) -> None:
    table = one_stage({"a": [loss]})
    assert float(rows_of(to_csv(table))[0]["validation_loss"]) == loss
    read = json.loads(to_json(table))["stages"][0]["rows"][0]["numbers"]["validation_loss"]["mean"]
    assert read == (loss if math.isfinite(loss) else None)


def test_csv_has_every_row_and_only_whole_lines(every_kind: Table) -> None:
    text = to_csv(every_kind)
    lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert text.count("\r\n") == len(lines)
    assert [(row["stage"], row["experiment"], row["state"]) for row in rows_of(text)] == [
        ("learning_rate", "lr=0.01", "done"),
        ("learning_rate", "lr=0.1", "done"),
        ("learning_rate", "lr=0.001", "running"),
        ("learning_rate", "lr=1", "failed"),
        ("learning_rate", "lr=2", "waiting"),
        ("learning_rate", "lr=3", "waiting"),
        ("learning_rate", "majority class", "done"),
        ("final", "lr=0.01", "done"),
        ("final", "lr=0.1", "waiting"),
        ("final", "majority class", "done"),
        ("step_size", "", "waiting"),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-x", "@sum", "\tx"])
def test_csv_text_is_no_formula_and_numbers_stay_numbers(name: str) -> None:
    table = one_stage({name: [-1.5]})
    row = rows_of(to_csv(table))[0]
    assert row["experiment"] == f"'{name}"
    assert row["validation_loss"] == "-1.5"


def test_csv_quotes_what_rfc_4180_wants_quoted() -> None:
    a = experiment("a", seeds=(0,))
    message = 'a "quoted", comma\r\nand line'
    table = table_of(stage(a), failures=[failed(a.runs[0], message=message)])
    assert rows_of(to_csv(table))[0]["reason"] == f"diverged: {message}"


def test_json_says_all_that_the_table_holds(every_kind: Table) -> None:
    read = json.loads(to_json(every_kind))
    assert [stage["stage"] for stage in read["stages"]] == ["learning_rate", "final", "step_size"]
    row = read["stages"][0]["rows"][0]
    assert row["numbers"]["validation_loss"] == {"mean": 2.7305, "std": pytest.approx(0.16899850)}
    assert (row["num_results"], row["num_tests"]) == (2, 0)
    assert row["runs"][1] == {"run": "alexnet-lr=0.01-1", "seed": 1, "state": "done", "reason": None}
    assert (row["best"], row["kept"], row["exact"], row["notes"]) == (True, False, False, [1])
    assert read["stages"][0]["decision"]["kept"] == ["lr=0.1"]
    assert read["stages"][0]["majority"][0]["label"] == 1


def test_a_grid_in_which_nothing_ran_has_no_numbers() -> None:
    table = table_of(stage(experiment("a")), stage(name="later", waiting="for stage learning_rate to be decided"))
    assert rows_of(to_csv(table))[0]["validation_loss"] == ""
    assert json.loads(to_json(table))["stages"][0]["rows"][0]["numbers"] == {}
