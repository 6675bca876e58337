"""A form of a grid changes what it says, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expansions import FACTS

from controller.grid import is_shipped, parse_grid, read_grid
from controller.search import expand
from trainer.failure import SpecError

GRID = """\
grid: g
description: whole
base:
  data: {name: digits}
  model: {architecture: alexnet}
  epochs: 30
  schedule: {step_size: 20}
forms:
  mini:
    description: small
    set: {epochs: 3, data.images_per_class: 2}
    map: {schedule.step_size: {20: 2, 5: 1}, batch_size: {256: 32}}
  many: {seeds: 3}
stages:
  - name: step
    vary: {schedule.step_size: [20, 5]}
    keep: {this: {schedule.step_size: 5}, because: so}
    published:
      at: {epochs: 30}
      rows: [{this: {schedule.step_size: 20}, numbers: {validation_loss: 1}}]
  - name: data
    from: base
    seeds: 2
    set: {epochs: 9}
    points: [{name: other, data: {name: x, resize: 32, crop: 32}}]
  - name: epochs
    from: step
    vary: {epochs: [1, 2]}
    exclude: [{epochs: 2}]
  - name: test
    test: {these: [{stage: step, this: {schedule.step_size: 20}}], because: so}
"""


def in_form(form: str | None, text: str = GRID) -> Any:
    return parse_grid(text, "g.yaml", form=form)


def rows(form: str | None) -> list[Any]:
    return [row.spec for stage in expand(in_form(form), {}, FACTS).stages for row in stage.experiments]


def test_a_form_is_a_grid_of_its_own() -> None:
    grid = in_form("mini")

    assert (grid.name, grid.description) == ("g.mini", "small")
    assert in_form("many").description == "whole"
    assert grid.digest != in_form(None).digest
    assert describe(grid) == describe(parse_grid(grid.text(), "again"))


def describe(grid: Any) -> list[Any]:
    return [(stage.name, [row.name for row in grid.rows.get(stage.name, ())]) for stage in grid.stages]


def test_a_form_sets_the_base_and_what_stages_set() -> None:
    whole, mini = rows(None), rows("mini")

    assert [spec.data.images_per_class for spec in whole] == [None] * len(whole)
    assert {spec.data.images_per_class for spec in mini} == {2}
    assert [spec.epochs for spec in mini] == [3, 3, 3, 1, 3]
    assert [spec.data.name for spec in mini] == ["digits", "digits", "x", "digits", "digits"]


def test_what_a_stage_compares_stays_unless_the_form_maps_it() -> None:
    grid = in_form("mini")

    assert [row.name for row in grid.rows["step"]] == ["step_size=2", "step_size=1"]
    assert [row.name for row in grid.rows["epochs"]] == ["epochs=1"]
    assert grid.stages[0].model_dump(by_alias=True)["keep"]["this"] == {"schedule.step_size": 1}
    assert grid.stages[0].published.rows[0].this == {"schedule.step_size": 2}
    assert grid.stages[0].published.at == {"epochs": 30}
    assert grid.stages[3].test.these[0].this == {"schedule.step_size": 2}


def test_a_form_may_set_the_base_and_map_what_is_compared() -> None:
    grid = in_form("mini", GRID.replace("batch_size: {256: 32}", "epochs: {1: 5, 2: 6}"))

    assert grid.base["epochs"] == 3
    assert [row.name for row in grid.rows["epochs"]] == ["epochs=5"]


def test_seeds_of_a_form_go_over_those_of_stages() -> None:
    grid = in_form("many")

    assert {grid.stage_seeds(stage) for stage in grid.stages} == {(0, 1, 2)}
    assert in_form(None).stage_seeds(in_form(None).stages[1]) == (0, 1)


def test_what_the_command_line_sets_goes_over_the_form() -> None:
    grid = parse_grid(GRID.replace("set: {epochs: 9}", "set: {batch_size: 9}").replace("vary: {epochs: [1, 2]}",
        "vary: {batch_size: [1, 2]}").replace("{epochs: 2}]", "{batch_size: 2}]"), "g.yaml", ["epochs=7"],
        form="mini")  # fmt: skip

    assert grid.base["epochs"] == 7


def test_a_form_changes_no_run_of_the_grid_itself() -> None:
    without = GRID[: GRID.index("forms:")] + GRID[GRID.index("stages:") :]

    assert in_form(None).text() == in_form(None, without).text()


@pytest.mark.parametrize(
    ("old", "new", "form", "told"),
    [
        ("", "", "mimi", "grid g: got form 'mimi', expected one of mini, many\nhint: did you mean 'mini'?"),
        ("set: {epochs: 3,", "set: {epocs: 3,", None, "g.yaml:11: forms.mini.set.epocs: unknown key"),
        ("map: {schedule.step_size", "map: {schedule.step", None, "forms.mini.map.schedule.step: unknown key"),
        ("set: {epochs: 3,", "set: {epochs: -3,", "mini", "g.yaml:11: base.epochs: got -3"),
        ("{20: 2, 5: 1}", "{20: 1, 5: 1}", "mini", "got 1 a second time"),
        ("many: {seeds: 3}", "many: {seeds: [1, 1]}", None, "forms.many.seeds[1]: got 1 a second time"),
        ("many:", "a.b:", None, "forms"),
    ],
    ids=["no such", "key", "mapped key", "value", "equal rows", "seeds", "name"],
)
def test_a_wrong_form_is_told(old: str, new: str, form: str | None, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(in_form(form, GRID.replace(old, new)), {}, FACTS)

    assert told in str(caught.value)


def test_a_form_is_asked_for_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GRID)
    (tmp_path / "mine.many.yaml").write_text(GRID.replace("grid: g", "grid: own"))

    assert read_grid(tmp_path / "mine.mini.yaml").name == "g.mini"
    assert read_grid(str(tmp_path / "mine.mini.yaml")).base["epochs"] == 3
    assert read_grid(tmp_path / "mine.many.yaml").name == "own"  # a file of that name is the grid
    assert read_grid("from_scratch.mini").name == "from_scratch.mini"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("demo", True), ("report.mini", True), ("demo.mini", False), ("report.maxi", False), ("mine.mini", False)],
)
def test_a_shipped_grid_is_known_by_its_name_and_form(name: str, is_one: bool) -> None:
    assert is_shipped(name) is is_one


def test_a_form_that_a_shipped_grid_has_not_is_told() -> None:
    with pytest.raises(SpecError, match="grid from_scratch: got form 'mimi', expected one of mini"):
        read_grid("from_scratch.mimi")
