"""The shipped grids of the report come to its runs, and every figure that it published stands beside the right row."""

from __future__ import annotations

from typing import Any

import pytest

from controller.grid import parse_grid, read_grid, shipped_forms, shipped_grids
from controller.published import comparison
from controller.search import DataFacts, Expansion, Experiment, Facts, expand, wanted
from controller.stages import TestBest, TestThese

CALTECH101 = "f4baa6f672dd16780b8bd31ff645946cfea6566ac30a68eacdce15f602ce8f3a"
WEIGHTS = ("alexnet-owt-7be5be79.pth", "resnet50-0676ba61.pth", "vgg16-397923af.pth")
FACTS = Facts(
    data={"caltech101": DataFacts(CALTECH101, 101, {}, {}), "digits": DataFacts("d" * 64, 10, {}, {})},
    weights={name: digit * 64 for name, digit in zip(WEIGHTS, "abc", strict=True)},
)
GRIDS = {
    "from_scratch": 11,
    "transfer_learning": 9,
    "freeze_layers": 3,
    "augmentation": 4,
    "networks": 2,
    "final": 16,
    "report": 28,
}
SINGLE = ("from_scratch", "transfer_learning", "freeze_layers", "augmentation", "networks")


def expanded(name: str, *sets: str) -> Expansion:
    return expand(read_grid(name, sets), {}, FACTS)


def row(expansion: Expansion, stage: str, name: str) -> Experiment:
    rows = next(each for each in expansion.stages if each.name == stage).experiments
    return next(each for each in rows if each.name == name)


@pytest.mark.parametrize("form", ["", ".mini"], ids=["whole", "mini"])
@pytest.mark.parametrize(("name", "count"), GRIDS.items(), ids=GRIDS)
def test_each_grid_comes_to_its_distinct_runs_before_anything_is_decided(name: str, count: int, form: str) -> None:
    expansion = expanded(name + form)

    assert len(expansion.runs()) == count
    assert [stage.waiting for stage in expansion.stages if stage.waiting] == []


def test_the_report_has_27_runs_and_one_for_the_second_reading() -> None:
    expansion = expanded("report")
    second_reading = row(expansion, "augmentation.pipeline", "augmentation=report_3b").runs[0].id

    assert len(expansion.runs().keys() - {second_reading}) == 27


@pytest.mark.parametrize("form", ["", ".mini"], ids=["whole", "mini"])
def test_the_report_shares_its_runs_with_the_single_grids(form: str) -> None:
    singles: set[str] = set().union(*(expanded(name + form).runs() for name in SINGLE))
    whole = expanded(f"report{form}").runs().keys()

    assert singles == whole
    assert expanded(f"final{form}").runs().keys() < whole


def test_the_runs_of_the_first_stage_are_those_that_were_trained_already() -> None:
    stage = expanded("from_scratch").stages[0]

    assert {each.name: each.runs[0].id for each in stage.experiments} == {
        "lr=0.001": "alexnet-3ba6f337a6f4",
        "lr=0.01": "alexnet-ca297bf80e35",
        "lr=0.1": "alexnet-147c9f34a5cf",
    }


def test_frozen_and_augmented_rows_start_from_the_defaults() -> None:
    expansion = expanded("report")
    default = row(expansion, "transfer_learning.default", "default")

    assert row(expansion, "freeze_layers.frozen", "freeze=none").runs == default.runs
    assert row(expansion, "augmentation.pipeline", "augmentation=report_1").spec.optimizer.lr == 1e-3
    assert default.spec.data.normalize.mean == (0.485, 0.456, 0.406)
    assert row(expansion, "from_scratch.gamma", "gamma=0.5").spec.data.normalize.mean == (0.5, 0.5, 0.5)


def test_the_batches_of_the_two_networks_are_the_reports() -> None:
    rows = expanded("networks").stages[0].experiments

    assert [(each.name, each.spec.batch_size, each.spec.model.weights) for each in rows] == [
        ("resnet50", 16, "resnet50-0676ba61.pth"),
        ("vgg16", 8, "vgg16-397923af.pth"),
    ]


def test_keep_best_runs_the_rule_in_the_place_of_every_choice_of_the_author() -> None:
    grid = read_grid("report", ["keep=best"])
    trained = [stage for stage in grid.stages if stage.test is None]
    tests = {stage.name: stage.test for stage in grid.stages if isinstance(stage.test, TestBest)}

    assert {stage.keep.model_dump()["best"] for stage in trained if stage.keep} == {"validation_loss"}
    assert {name: (test.best, len(test.of or ())) for name, test in tests.items()} == {
        "from_scratch.test": (2, 4),
        "transfer_learning.test": (2, 4),
        "freeze_layers.test": (1, 1),
        "augmentation.test": (2, 1),
        "networks.test": (2, 1),
    }
    assert [stage.name for stage in grid.stages if isinstance(stage.test, TestThese)] == ["final.types", "final.nets"]


def test_every_mini_form_takes_the_digits_that_need_no_download() -> None:
    minis = [f"{name}.mini" for name, _ in shipped_grids() if "mini" in shipped_forms(name)]

    assert "transfer_lite.mini" in minis
    assert {name: wanted(read_grid(name)).data for name in minis} == dict.fromkeys(minis, ("digits",))


@pytest.mark.parametrize("name", GRIDS)
def test_a_mini_form_is_small_and_has_every_row(name: str) -> None:
    whole, mini = expanded(name), expanded(f"{name}.mini")
    specs = [run.hyperparameters for run in mini.runs().values()]

    assert shipped_forms(name) == ("mini",)
    assert mini.grid == f"{name}.mini"
    assert [(stage.name, len(stage.experiments)) for stage in mini.stages] == [
        (stage.name, len(stage.experiments)) for stage in whole.stages
    ]
    assert {(spec.epochs, spec.data.name, spec.data.images_per_class, spec.data.crop) for spec in specs} == {
        (4, "digits", 20, 64)
    }
    assert {spec.model.weights for spec in specs} == {None}  # it is to be tried without a download
    assert not mini.runs().keys() & whole.runs().keys()


@pytest.mark.parametrize("name", [f"{name}{form}" for name in GRIDS for form in ("", ".mini")])
def test_the_stored_text_of_a_grid_stands_on_its_own(name: str) -> None:
    grid = read_grid(name)
    again = parse_grid(grid.text(), "the store's")

    assert again.digest == grid.digest
    assert list(expand(again, {}, FACTS).runs()) == list(expand(grid, {}, FACTS).runs())
    assert not {"forms", "include"} & again.document.value.keys()


def two(loss: float, accuracy: float, test: float | None = None, **further: float) -> dict[str, float]:
    tested = {} if test is None else {"test_accuracy": test}
    return {"validation_loss": loss, "validation_accuracy": accuracy, **tested, **further}


def net(train_loss: float, train: float, loss: float, accuracy: float, test: float) -> dict[str, float]:
    return two(loss, accuracy, test, train_loss=train_loss, train_accuracy=train)


PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "from_scratch.learning_rate": {"lr=0.001": two(4.55, 0.09), "lr=0.01": two(3.24, 0.31), "lr=0.1": two(2.85, 0.40)},
    "from_scratch.step_size": {
        "step_size=20": two(3.24, 0.31),
        "step_size=15": two(3.49, 0.26),
        "step_size=10": two(4.18, 0.15),
        "step_size=5": two(4.24, 0.09),
    },
    "from_scratch.weight_decay": {
        "weight_decay=0.0005": two(3.34, 0.28),
        "weight_decay=5e-5": two(3.24, 0.31),
        "weight_decay=5e-6": two(3.35, 0.29),
    },
    "from_scratch.gamma": {
        "gamma=0.1": two(3.24, 0.31),
        "gamma=0.2": two(3.31, 0.30),
        "gamma=0.3": two(3.16, 0.30),
        "gamma=0.5": two(2.95, 0.35),
    },
    "from_scratch.test": {
        "from_scratch.learning_rate/lr=0.1": two(2.85, 0.40, 0.41),
        "from_scratch.gamma/gamma=0.5": two(2.95, 0.35, 0.37),
    },
    "transfer_learning.default": {"default": two(0.7162, 0.82, train_loss=0.0997, train_accuracy=0.95)},
    "transfer_learning.learning_rate": {
        "lr=0.1": two(0.72, 0.82),
        "lr=0.01": two(0.75, 0.82),
        "lr=0.001": two(0.75, 0.81),
    },
    "transfer_learning.step_size": {
        "step_size=20": two(0.75, 0.82),
        "step_size=15": two(0.77, 0.82),
        "step_size=5": two(0.74, 0.84),
    },
    "transfer_learning.weight_decay": {
        "weight_decay=0.0005": two(0.73, 0.81),
        "weight_decay=5e-5": two(0.75, 0.82),
        "weight_decay=5e-6": two(0.75, 0.81),
    },
    "transfer_learning.gamma": {
        "gamma=0.1": two(0.75, 0.82),
        "gamma=0.3": two(0.75, 0.82),
        "gamma=0.5": two(0.83, 0.78),
    },
    "transfer_learning.test": {
        "transfer_learning.learning_rate/lr=0.01": two(0.71, 0.82, 0.81),
        "transfer_learning.step_size/step_size=5": two(0.74, 0.84, 0.82),
    },
    "freeze_layers.frozen": {
        "freeze=none": two(0.72, 0.82, num_trainable_parameters=57_417_637),
        "freeze=convolutional": two(0.60, 0.84, num_trainable_parameters=54_947_941),
        "freeze=fully_connected": two(2.03, 0.56, num_trainable_parameters=2_469_696),
    },
    "freeze_layers.test": {
        "freeze_layers.frozen/freeze=convolutional": two(0.60, 0.84, 0.84, num_trainable_parameters=54_947_941)
    },
    "augmentation.pipeline": {
        "augmentation=report_1": two(1.21, 0.69),
        "augmentation=report_2": two(1.27, 0.69),
        "augmentation=report_3": two(0.76, 0.81),
        "augmentation=report_3b": two(0.76, 0.81),
    },
    "augmentation.test": {
        "augmentation.pipeline/augmentation=report_3": two(0.76, 0.81, 0.82),
        "augmentation.pipeline/augmentation=report_3b": two(0.76, 0.81, 0.82),
    },
    "networks.architecture": {
        "resnet50": two(0.34, 0.92, train_loss=0.001, train_accuracy=1.0),
        "vgg16": two(0.66, 0.84, train_loss=0.05, train_accuracy=0.98),
    },
    "networks.test": {
        "networks.architecture/resnet50": net(0.001, 1.0, 0.34, 0.92, 0.91),
        "networks.architecture/vgg16": net(0.05, 0.98, 0.66, 0.84, 0.84),
    },
    "final.types": {
        "AlexNet": {"test_accuracy": 0.09},
        "AlexNet (finetuned)": {"test_accuracy": 0.41},
        "AlexNet - Transfer learning": {"test_accuracy": 0.81},
        "AlexNet - Transfer learning (finetuned)": {"test_accuracy": 0.82},
        "AlexNet - Freeze layers": {"test_accuracy": 0.84},
        "AlexNet - Data augmentation": {"test_accuracy": 0.82},
    },
    "final.nets": {"ResNet50": net(0.001, 1.0, 0.34, 0.92, 0.91), "VGG16": net(0.05, 0.98, 0.66, 0.84, 0.84)},
}
"""Every figure of the report, by the stage and row of the grid `report` that it is of."""


def figures_of(name: str) -> dict[str, dict[str, Any]]:
    grid = read_grid(name)
    found: dict[str, dict[str, Any]] = {}
    for (stage, experiment), figures in comparison(grid, expand(grid, {}, FACTS)).figures.items():
        found.setdefault(stage, {})[experiment] = figures.numbers
    return found


def test_every_published_figure_stands_beside_its_row() -> None:
    assert figures_of("report") == PUBLISHED


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_grid_has_its_figures_too(name: str) -> None:
    wanted = {
        stage.removeprefix(f"{name}."): {row.removeprefix(f"{name}."): numbers for row, numbers in rows.items()}
        for stage, rows in PUBLISHED.items()
        if stage.startswith(f"{name}.")
    }

    assert figures_of(name) == wanted


def test_the_rows_that_the_tables_show_are_the_experiments_of_the_report() -> None:
    expansion = expanded("report")
    for stage, rows in PUBLISHED.items():
        for name in rows:
            spec = row(expansion, stage, name).spec
            assert spec.epochs == 30
            assert spec.batch_size == {"resnet50": 16, "vgg16": 8}.get(spec.model.architecture, 256)
    tested = row(expansion, "final.types", "AlexNet - Transfer learning (finetuned)").spec
    assert (tested.optimizer.lr, getattr(tested.schedule, "step_size", None)) == (1e-2, 5)
    assert row(expansion, "from_scratch.gamma", "gamma=0.5").spec.optimizer.weight_decay == 5e-5


@pytest.mark.parametrize(
    ("stage", "name", "told"),
    [
        ("transfer_learning.learning_rate", "lr=0.1", "whose learning rate is 1e-3"),
        ("transfer_learning.test", "transfer_learning.learning_rate/lr=0.01", "0.75 / 0.82 everywhere in the search"),
        ("augmentation.pipeline", "augmentation=report_3", "reads in two ways"),
        ("augmentation.pipeline", "augmentation=report_3b", "reads in two ways"),
        ("final.types", "AlexNet - Data augmentation", "the first of its two readings"),
    ],
    ids=["default's rate", "two baselines", "third pipeline", "its second reading", "final"],
)
def test_what_is_odd_about_a_figure_is_told(stage: str, name: str, told: str) -> None:
    grid = read_grid("report")

    assert told in str(comparison(grid, expand(grid, {}, FACTS)).figures[stage, name].note)


def test_a_form_says_that_the_figures_are_not_its_own() -> None:
    grid = read_grid("report.mini")
    remarks = comparison(grid, expand(grid, {}, FACTS)).remarks

    assert remarks.keys() == PUBLISHED.keys()
    assert all(any("not of its form mini" in text for text in texts) for texts in remarks.values())
