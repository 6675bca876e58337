"""Grids made of grids are what their parts are, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from expansions import FACTS

from controller.changes import describe_changes
from controller.grid import Grid, parse_grid, read_grid
from controller.search import expand
from trainer.failure import SpecError

ONE = """\
grid: one
base:
  data: {name: digits}
  model: {architecture: alexnet}
forms: {mini: {set: {epochs: 2}, map: {batch_size: {16: 4, 8: 2}}}}
stages:
  - {name: rate, vary: {optimizer.lr: [1, 2]}, keep: {this: {optimizer.lr: 2}, because: so}}
  - {name: batch, vary: {batch_size: [16, 8]}}
  - {name: test, test: {best: 1}}
"""
TWO = """\
grid: two
base:
  data: {name: x}
  model: {architecture: alexnet}
  best: {metric: validation_accuracy}
forms: {mini: {set: {epochs: 3}}}
seeds: 2
stages:
  - {name: rate, vary: {optimizer.lr: [1, 2]}}
  - {name: more, from: base, base: {data: {name: digits}, model: {architecture: resnet18}}}
"""
BOTH = "grid: both\ninclude: [one.yaml, two.yaml]\n"
LABELLED = """\
stages:
  - name: chosen
    test:
      these:
        - {name: The usual, stage: one.batch, this: {batch_size: 8}}
        - {stage: two.rate, this: {optimizer.lr: 1}}
        - {name: The same, stage: one.batch, this: {batch_size: 8}}
      because: so
    published: {rows: [{this: {name: The usual}, numbers: {test_accuracy: 0.5}}]}
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for name, text in (("one", ONE), ("two", TWO), ("both", BOTH)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def read(folder: Path, text: str = BOTH, name: str = "both", *sets: str) -> Grid:
    (folder / "both.yaml").write_text(text)
    return read_grid(folder / f"{name}.yaml", sets)


def test_the_stages_stand_under_the_names_of_their_grids(folder: Path) -> None:
    grid = read(folder)

    assert [(stage.name, stage.start) for stage in grid.stages] == [
        ("one.rate", "base"),
        ("one.batch", "one.rate"),
        ("one.test", None),
        ("two.rate", "base"),
        ("two.more", "base"),
    ]
    assert grid.base_of(grid.stages[3])["data"] == {"name": "x"}
    assert grid.base_of(grid.stages[4])["model"] == {"architecture": "resnet18"}


def test_each_stage_means_what_it_meant(folder: Path) -> None:
    grid = read(folder)
    dumped = [stage.model_dump() for stage in grid.stages]

    assert dumped[2]["test"] == {"best": 1, "by": "validation_loss", "of": ("one.rate", "one.batch")}
    assert dumped[3]["keep"] == {"best": "validation_accuracy"}
    assert [grid.stage_seeds(stage) for stage in grid.stages] == [(0,), (0,), (0,), (0, 1), (0, 1)]


@pytest.mark.parametrize("form", ["", ".mini"], ids=["whole", "mini"])
def test_its_runs_are_those_of_its_parts(folder: Path, form: str) -> None:
    parts = [expand(read_grid(folder / f"{name}{form}.yaml"), {}, FACTS).runs() for name in ("one", "two")]

    assert expand(read(folder, name=f"both{form}"), {}, FACTS).runs().keys() == parts[0].keys() | parts[1].keys()


def test_the_text_for_the_store_includes_nothing(folder: Path) -> None:
    grid = read(folder, BOTH + LABELLED)
    again = parse_grid(grid.text(), "the store's")

    assert "include" not in grid.text()
    assert again.digest == grid.digest
    assert describe_changes(grid, again) == []


def test_a_base_of_a_part_that_changes_is_told(folder: Path) -> None:
    before = read(folder)
    (folder / "two.yaml").write_text(TWO.replace("{name: x}", "{name: digits}"))

    assert describe_changes(before, read(folder)) == ["stage two.rate: base.data.name: 'x' becomes 'digits'"]


def test_seeds_of_the_whole_go_over_those_of_its_parts(folder: Path) -> None:
    grid = read(folder, f"seeds: 3\n{BOTH}")

    assert {grid.stage_seeds(stage) for stage in grid.stages} == {(0, 1, 2)}


def test_a_value_is_set_in_every_base(folder: Path) -> None:
    grid = read(folder, BOTH, "both", "epochs=5")

    assert {row.spec.epochs for stage in expand(grid, {}, FACTS).stages for row in stage.experiments} == {5}


def test_some_stages_of_a_grid_come_with_what_they_start_from(folder: Path) -> None:
    grid = read(folder, "grid: both\ninclude: [{grid: one.yaml, stages: [batch]}, two.yaml]\n")

    assert [stage.name for stage in grid.stages] == ["one.rate", "one.batch", "two.rate", "two.more"]


def test_a_grid_that_two_others_include_stands_once(folder: Path) -> None:
    (folder / "three.yaml").write_text("grid: three\ninclude: [one.yaml]\n" + LABELLED.replace("two.rate", "one.rate"))
    grid = read(folder, "grid: both\ninclude: [one.yaml, three.yaml]\n")

    assert [stage.name for stage in grid.stages] == ["one.rate", "one.batch", "one.test", "three.chosen"]


def test_rows_gathered_for_a_test_bear_their_own_names(folder: Path) -> None:
    rows = expand(read(folder, BOTH + LABELLED), {}, FACTS).stages[-1].experiments

    assert [each.name for each in rows] == ["The usual", "two.rate/lr=1", "The same"]
    assert rows[0].runs == rows[2].runs


def test_rows_that_the_whole_names_are_in_its_form(folder: Path) -> None:
    grid = read(folder, BOTH + LABELLED, "both.mini")

    assert (grid.name, grid.description) == ("both.mini", ": mini")
    assert [each.spec.batch_size for each in expand(grid, {}, FACTS).stages[-1].experiments] == [2, 256, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: both\ninclude: [non.yaml]\n", "both.yaml:2: include[0]: got 'non.yaml', expected one of augmentation"),
        ("grid: both\ninclude: []\n", "include: got [], expected at least 1 item"),
        ("grid: both\ninclude: [both.yaml]\n", "include[0]: got 'both.yaml', which includes this grid"),
        ("grid: both\ninclude: [{grid: one.yaml, stages: [rat]}]\n", "got 'rat', expected stages of grid one: rate"),
        ("grid: both\ninclude: [one.yaml]\nbase: {}\n", "base: unknown key"),
        ("grid: both\ninclude: [one.yaml, copy.yaml]\n", "include[1]: got a second grid named 'one'"),
        (BOTH + LABELLED.replace("one.batch", "one.bach"), "got 'one.bach', expected an earlier stage that trains"),
        (BOTH + LABELLED.replace("The same", "The usual"), "got 'The usual' 2 times, expected a name of its own"),
        (BOTH + LABELLED.replace("{name: The usual},", "{name: The unusual},"), "no row fits"),
    ],
    ids=["no grid", "none", "itself", "no stage", "base", "two of a name", "no such stage", "name twice", "no label"],
)
def test_what_does_not_fit_together_is_told(folder: Path, text: str, told: str) -> None:
    (folder / "copy.yaml").write_text(ONE)

    with pytest.raises(SpecError) as caught:
        read(folder, text)

    assert told in str(caught.value)


def test_a_fault_of_a_part_is_told_by_its_own_line(folder: Path) -> None:
    (folder / "two.yaml").write_text(TWO.replace("optimizer.lr: [1, 2]", "optimizer.lr: [1, -2]"))

    with pytest.raises(SpecError, match=r"two\.yaml:9: stages\[3\]\.vary\.optimizer\.lr\[1\]: got -2"):
        expand(read(folder), {}, FACTS)


def test_a_fault_of_a_base_is_told_where_that_stands(folder: Path) -> None:
    (folder / "two.yaml").write_text(TWO.replace("  best:", "  batch_size: -1\n  best:"))

    with pytest.raises(SpecError, match=r"two\.yaml:5: base\.batch_size: got -1"):
        read(folder)


def test_a_form_that_one_part_has_not_is_told(folder: Path) -> None:
    (folder / "two.yaml").write_text(TWO.replace("mini", "other"))

    with pytest.raises(SpecError, match="grid two: got form 'mini', expected one of other"):
        read(folder, BOTH, "both.mini")


def test_a_text_without_a_folder_includes_no_files() -> None:
    with pytest.raises(SpecError, match="expected one of augmentation"):
        parse_grid("grid: g\ninclude: [/etc/passwd]\n", "the store's")


def test_a_stage_with_a_base_of_its_own_starts_nowhere_else() -> None:
    text = ONE.replace("{name: batch,", "{name: batch, from: rate, base: {data: {name: x}, model: {architecture: a}},")

    with pytest.raises(SpecError, match=r"from: got 'rate', though the stage has a base of its own"):
        parse_grid(text, "one.yaml")
