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
    stage_of_tests,
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


def test_what_is_said_beside_the_best_is_exact() -> None:
    table = one_stage(
        {"a": [2.61, 2.70, 2.58, 2.66, 2.63], "b": [2.65, 2.68, 2.66, 2.64, 2.69], "c": [3.2, 3.3, 3.1, 3.25, 3.22]}
    )
    near = table.stages[0].rows[1].beside_best
    assert near is not None
    assert near.interval is not None
    cells = rows_of(to_csv(table))
    rows = json.loads(to_json(table))["stages"][0]["rows"]

    assert [row["compared"] for row in cells] == ["best", "cannot be told from it", "worse"]
    assert tuple(float(cells[1][f"difference_{end}"]) for end in ("low", "high")) == near.interval
    assert (cells[0]["difference_low"], cells[1]["test_compared"]) == ("", "")
    assert rows[1]["compared"] == {
        "verdict": "cannot be told from it",
        "difference": near.difference,
        "low": near.interval[0],
        "high": near.interval[1],
        "num_seeds": 5,
        "p_value": near.p_value,
    }
    assert rows[1]["test_compared"] is None


def test_what_test_images_say_is_exact() -> None:
    table = stage_of_tests({"a": [True, False] * 50, "b": [False] * 100})
    found = table.stages[0].rows[1].test_beside_best
    assert found is not None
    cells = rows_of(to_csv(table))
    row = json.loads(to_json(table))["stages"][0]["rows"][1]

    assert [each["test_compared"] for each in cells] == ["", "worse"]
    assert tuple(float(cells[1][f"test_difference_{end}"]) for end in ("low", "high")) == found.interval
    assert (cells[1]["compared"], cells[1]["kept"], cells[1]["exact"]) == ("too few seeds to say", "false", "true")
    assert row["compared"]["verdict"] == "too few seeds to say"
    assert row["test_compared"] == {
        "verdict": "worse",
        "difference": -0.5,
        "low": found.interval[0],
        "high": found.interval[1],
        "num_images": 100,
    }


@pytest.mark.parametrize("losses", [[1.7e308] * 2, [1.7e308] * 3], ids=["two seeds", "three seeds"])
def test_a_difference_that_no_number_holds_is_null_in_json(losses: list[float]) -> None:
    read = json.loads(to_json(one_stage({"a": [-loss for loss in losses], "b": losses})))
    assert read["stages"][0]["rows"][1]["compared"]["difference"] is None
