"""What differs between two runs, from records as a trainer would have left them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from results import numerics, result

from controller.difference import as_json, difference, gap
from controller.run_records import RunRecord
from trainer.identity import with_seed
from trainer.result import EpochMetrics, TestResult
from trainer.spec import ExperimentSpec


def epoch(number: int, **changes: Any) -> EpochMetrics:
    values: dict[str, Any] = {name: 0.5 for name, info in EpochMetrics.model_fields.items() if info.annotation is float}
    flags = {"best": True, "returned_to_best": False, "restarts": 0, "step": 10 * number}
    return EpochMetrics(**{**values, **flags, "epoch": number, **changes})


def scored(run: str, accuracy: float) -> TestResult:
    return TestResult(
        run=run,
        test_loss=1.0,
        test_accuracy=accuracy,
        test_balanced_accuracy=0.5,
        test_top5_accuracy=1.0,
        num_images=100,
        predictions=f"runs/{run}/test/predictions.npz",
        numerics=numerics(),
        data_fingerprint="a" * 64,
        wall_seconds=1.0,
    )


def record(run: str = "one-0123456789ab", seed: int = 0, spec: Any = None, **changes: Any) -> RunRecord:
    experiment = ExperimentSpec.model_validate(
        {"data": {"name": "x", "fingerprint": "a" * 64}, "model": {"architecture": "alexnet"}, **(spec or {})}
    )
    values: dict[str, Any] = {
        "run": run,
        "spec": with_seed(experiment, seed),
        "result": result(run),
        "test": None,
        "numerics": numerics(),
        "versions": {"torch": "2.11.0", "commit": "abc"},
        "epochs": (epoch(1), epoch(2)),
    }
    return RunRecord(**{**values, **changes})


def test_a_run_does_not_differ_from_itself() -> None:
    found = difference(record(), record())
    assert [found.spec, found.numerics, found.versions, found.results, found.tests, found.curves] == [{}] * 6
    assert found.parts_in is None
    assert found.num_keys > 30
    assert found.missing == {"one-0123456789ab": ("test",)}


def test_values_of_the_spec_are_told_by_dotted_key() -> None:
    other = record("two-0123456789ab", 3, {"optimizer": {"lr": 0.1}, "schedule": {"name": "constant"}})
    found = difference(record(), other)
    assert found.spec == {
        "optimizer.lr": (0.001, 0.1),
        "schedule.name": ("step", "constant"),
        "schedule.step_size": (20, None),
        "schedule.gamma": (0.1, None),
        "seed": (0, 3),
    }


def test_numerics_versions_and_numbers_are_told_with_their_difference() -> None:
    other = record(
        "two-0123456789ab",
        result=result("two-0123456789ab", validation_accuracy=0.5, wall_seconds=9.0),
        numerics=numerics(precision="bf16", threads=2),
        versions={"torch": "2.12.0", "commit": "abc"},
        test=scored("two-0123456789ab", 0.25),
    )
    found = difference(record(test=scored("one-0123456789ab", 0.5)), other)
    assert found.numerics == {"precision": ("fp32", "bf16"), "threads": (1, 2)}
    assert found.versions == {"torch": ("2.11.0", "2.12.0")}
    assert found.results == {"validation_accuracy": (0.75, 0.5), "wall_seconds": (5.0, 9.0)}
    assert as_json(found)["results"]["validation_accuracy"] == {"values": [0.75, 0.5], "difference": -0.25}
    assert as_json(found)["test"] == {"test_accuracy": {"values": [0.5, 0.25], "difference": -0.25}}


def test_curves_part_in_the_first_epoch_that_differs_and_most_in_another() -> None:
    one = (epoch(1), epoch(2, train_loss=2.0), epoch(3, train_loss=3.0, seconds=8.0), epoch(4))
    other = (epoch(1), epoch(2, train_loss=2.5), epoch(3, train_loss=1.0, validation_loss=0.25))
    found = difference(record(epochs=one), record("two-0123456789ab", epochs=other))
    assert (found.parts_in, found.epochs) == (2, (4, 3))
    told = as_json(found)["curves"]
    assert told["metrics"] == {
        "train_loss": {"first": 2, "largest": -2.0, "epoch": 3},
        "validation_loss": {"first": 3, "largest": -0.25, "epoch": 3},
    }


def test_numbers_that_are_not_finite_have_no_difference_and_are_null() -> None:
    one = record(result=result("one", train_loss=math.nan), epochs=(epoch(1, train_loss=math.nan),))
    same = record(result=result("one", train_loss=math.nan), epochs=(epoch(1, train_loss=math.nan),))
    assert not (found := difference(one, same)).results
    assert not found.curves
    told = as_json(difference(one, record()))
    assert told["results"]["train_loss"] == {"values": [None, 0.1], "difference": None}
    assert told["curves"]["metrics"]["train_loss"] == {"first": 1, "largest": None, "epoch": 1}


def test_what_a_run_does_not_have_yet_is_named_and_not_compared() -> None:
    unfinished = record("two-0123456789ab", result=None, numerics=None, versions={}, epochs=())
    found = difference(record(), unfinished)
    assert found.missing["two-0123456789ab"] == ("numerics", "result", "test", "epochs")
    assert [found.results, found.numerics, found.versions, found.curves] == [{}] * 4


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        pytest.param((1, 3), 2, id="whole numbers"),
        pytest.param((0.5, 0.25), -0.25, id="parts"),
        pytest.param((True, False), None, id="flags"),
        pytest.param(("a", "b"), None, id="words"),
        pytest.param((1, None), None, id="one is missing"),
        pytest.param((math.inf, 1.0), None, id="not finite"),
    ],
)
def test_only_numbers_have_a_gap(pair: tuple[Any, Any], expected: float | None) -> None:
    assert gap(pair) == expected
