"""What is put side by side, what is marked and what is said of rows without numbers."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from tables import (
    COUNTS,
    NUMERICS,
    decision,
    evaluated,
    every_kind_of_row,
    experiment,
    failed,
    one_stage,
    result,
    spec,
    stage,
    stage_of_tests,
    table_of,
)

from controller.noise import Answers
from controller.table import Table, majority, mean_and_std
from controller.table_data import to_csv
from controller.table_text import to_terminal


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.fixture(name="every_kind")
def _every_kind() -> Table:
    return every_kind_of_row()


FLOATS = st.floats(min_value=-1e300, max_value=1e300)


@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_mean_and_std_are_those_of_the_statistics_module(values: list[float]) -> None:
    mean, std = mean_and_std(values)
    tolerance = max(1e-9 * max(map(abs, values)), 1e-300)
    assert math.isclose(mean, statistics.mean(values), rel_tol=1e-9, abs_tol=tolerance)
    if len(values) == 1:
        assert std is None
    else:
        assert std is not None
        assert math.isclose(std, statistics.stdev(values), rel_tol=1e-6, abs_tol=tolerance)


@given(FLOATS, st.integers(1, 50))
def test_equal_values_have_themselves_as_mean_exactly(value: float, count: int) -> None:
    assert mean_and_std([value] * count) == (value, None if count == 1 else 0.0)


@pytest.mark.parametrize(
    "values",
    [[math.inf, -math.inf], [math.inf, 1.0], [math.nan, 1.0], [1.7e308, 1.6e308]],
    ids=["opposite-infinities", "one-infinity", "nan", "overflowing-sum"],
)
def test_values_without_a_spread_give_no_error(values: list[float]) -> None:
    _mean, std = mean_and_std(values)
    assert std is not None
    assert not math.isfinite(std)


def test_a_whole_mean_of_whole_numbers_stays_an_int() -> None:
    assert repr(mean_and_std([3, 5])[0]) == "4"
    assert repr(mean_and_std([3, 4])[0]) == "3.5"


def test_the_majority_class_is_that_of_the_training_part() -> None:
    one = majority("caltech101", COUNTS)
    assert one.label == 1
    assert one.numbers["validation_accuracy"] == 5 / 20  # where class 0 is the most frequent
    assert one.numbers["test_accuracy"] == 6 / 20
    assert one.numbers["validation_balanced_accuracy"] == pytest.approx(1 / 3)
    assert one.numbers["test_top5_accuracy"] == 1


def test_the_majority_class_sees_only_the_images_that_the_spec_uses() -> None:
    one = majority("caltech101", COUNTS, images_per_class=3)
    assert one.label == 0
    assert one.numbers["validation_accuracy"] == pytest.approx(1 / 3)


def test_an_empty_part_has_no_majority_numbers() -> None:
    counts = {**COUNTS, "test": (0, 0, 0)}
    assert not [name for name in majority("caltech101", counts).numbers if name.startswith("test_")]


@pytest.mark.parametrize(
    ("metric", "best"),
    [("validation_loss", "a"), ("validation_accuracy", "b")],
    ids=["loss-is-lowest", "accuracy-is-highest"],
)
def test_the_best_row_is_marked_by_the_metric_of_the_stage(metric: str, best: str) -> None:
    a, b = experiment("a", seeds=(0,)), experiment("b", seeds=(0,))
    results = [
        result(a.runs[0], loss=1, validation_accuracy=0.2),
        result(b.runs[0], loss=2, validation_accuracy=0.3),
    ]
    table = table_of(stage(a, b), results=results, metrics={"learning_rate": metric})
    assert [row.experiment for row in table.stages[0].rows if row.best] == [best]


def test_the_test_part_never_marks_the_best_row() -> None:
    a, b = experiment("a", seeds=(0,)), experiment("b", seeds=(0,))
    table = table_of(
        stage(a, b, is_test=True),
        results=[result(a.runs[0], loss=1), result(b.runs[0], loss=2)],
        tests=[evaluated(a.runs[0], test_accuracy=0.1), evaluated(b.runs[0], test_accuracy=0.9)],
    )
    assert [row.experiment for row in table.stages[0].rows if row.best] == ["a"]
    with pytest.raises(AssertionError, match="never on test"):
        table_of(stage(a, b), metrics={"learning_rate": "test_accuracy"})


def test_numbers_of_a_test_stand_in_test_stages_alone() -> None:
    a = experiment("a", seeds=(0,))
    table = table_of(stage(a), results=[result(a.runs[0])], tests=[evaluated(a.runs[0])])
    assert "test_accuracy" not in table.stages[0].rows[0].numbers


def test_equal_rows_are_all_the_best() -> None:
    table = one_stage({"a": [1, 3], "b": [2, 2], "c": [3, 3]})
    assert [row.best for row in table.stages[0].rows] == [True, True, False]


def test_a_row_that_lacks_a_seed_is_not_the_best() -> None:
    a, b = experiment("a"), experiment("b")
    results = [result(a.runs[0], loss=0.1), *(result(run, loss=1) for run in b.runs)]
    table = table_of(stage(a, b), results=results)
    assert [row.best for row in table.stages[0].rows] == [False, True]
    assert "best so far" in to_terminal(table)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    table = one_stage({"a": [math.nan], "b": [5.0]})
    assert [row.best for row in table.stages[0].rows] == [False, True]


def test_a_late_result_changes_no_decision_but_is_told() -> None:
    table = one_stage({"a": [1], "b": [2]}, decided=decision("learning_rate", "b"))
    assert [(row.experiment, row.best, row.kept) for row in table.stages[0].rows] == [
        ("a", True, False),
        ("b", False, True),
    ]
    assert table.stages[0].remarks[1].startswith("since that decision a has become the best by validation_loss")


Progress = tuple[str, str]  # of the two seeds


@pytest.mark.parametrize(
    ("seeds", "state", "reason"),
    [
        (("done", "done"), "done", None),
        (("never", "never"), "waiting", "never started"),
        (("queued", "queued"), "waiting", "queued"),
        (("running", "running"), "running", "running on node-1:4711, epoch 3"),
        (("failed", "failed"), "failed", "diverged: loss nan at epoch 3 after 2 restarts"),
        (("done", "running"), "running", "1 of 2 seeds done; running on node-1:4711, epoch 3"),
        (
            ("running", "failed"),
            "failed",
            "seed 0 running on node-1:4711, epoch 3; seed 1 failed: diverged: loss nan at epoch 3 after 2 restarts",
        ),
        (("running", "never"), "running", "seed 0 running on node-1:4711, epoch 3; seed 1 never started"),
        (
            ("done", "retried"),
            "waiting",
            "1 of 2 seeds done; to be started again after diverged: loss nan at epoch 3 after 2 restarts",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_row_says_how_its_seeds_stand(seeds: Progress, state: str, reason: str | None) -> None:
    row = experiment("a")
    known = list(zip(row.runs, seeds, strict=True))
    table = table_of(
        stage(row),
        results=[result(run) for run, how in known if how == "done"],
        failures=[failed(run, final=how == "failed") for run, how in known if how in ("failed", "retried")],
        active={
            run.id: "running on node-1:4711, epoch 3" if how == "running" else "queued"
            for run, how in known
            if how in ("running", "queued")
        },
    )
    assert (table.stages[0].rows[0].state, table.stages[0].rows[0].reason) == (state, reason)


def test_a_trained_row_of_a_test_stage_waits_for_its_test() -> None:
    a = experiment("a", seeds=(0,))
    row = table_of(stage(a, is_test=True), results=[result(a.runs[0])]).stages[0].rows[0]
    assert (row.state, row.reason) == ("waiting", "trained, not tested yet")


def test_a_result_outweighs_an_earlier_failure() -> None:
    a = experiment("a", seeds=(0,))
    table = table_of(stage(a), results=[result(a.runs[0])], failures=[failed(a.runs[0])])
    assert table.stages[0].rows[0].state == "done"


@given(st.permutations(range(6)))
def test_rows_keep_the_order_of_the_grid_whatever_their_results(losses: list[int]) -> None:
    table = one_stage({f"row {index}": [loss] for index, loss in enumerate(losses)})
    assert [row.experiment for row in table.stages[0].rows] == [f"row {index}" for index in range(6)]
    assert [row["experiment"] for row in rows_of(to_csv(table))] == [f"row {index}" for index in range(6)]


def test_mixed_numerics_are_told_with_their_rows(every_kind: Table) -> None:
    note = next(note for note in every_kind.notes if "precision" in note)
    assert note == (
        "trained with other numerics, precision fp32 where others have bf16; threads 4 where others have 2; "
        "instruction_set AVX512 where others have AMX: learning_rate/lr=0.1, final/lr=0.1"
    )


def test_an_inexact_row_is_told(every_kind: Table) -> None:
    assert every_kind.notes[0].startswith("not exact")
    marked = [row.experiment for row in every_kind.stages[0].rows if 1 in row.notes]
    assert marked == ["lr=0.01"]


def test_numerics_that_the_specs_themselves_ask_for_are_no_footnote() -> None:
    a = experiment("a", seeds=(0,), of=spec(batch_size=16, precision="fp32"))
    b = experiment("b", seeds=(0,), of=spec(architecture="vgg16"))
    results = [
        result(a.runs[0], numerics=NUMERICS.model_copy(update={"precision": "fp32", "micro_batch": 16})),
        result(b.runs[0]),
    ]
    assert table_of(stage(a, b), results=results).notes == ()


def test_a_micro_batch_that_no_spec_asked_for_is_a_footnote() -> None:
    a = experiment("a", seeds=(0,))
    smaller = result(a.runs[0], numerics=NUMERICS.model_copy(update={"micro_batch": 64}))
    assert table_of(stage(a), results=[smaller]).notes == (
        "trained with other numerics, micro_batch 64, though its spec asks for 256: learning_rate/a",
    )


def test_other_numerics_of_a_test_are_a_footnote_of_their_own() -> None:
    rows = [experiment(name, seeds=(0,)) for name in "abc"]
    tests = [evaluated(row.runs[0]) for row in rows[:2]]
    tests.append(evaluated(rows[2].runs[0], numerics=NUMERICS.model_copy(update={"device": "cuda"})))
    table = table_of(stage(*rows, is_test=True), results=[result(row.runs[0]) for row in rows], tests=tests)
    assert table.notes == ("tested with other numerics, device cuda where others have cpu: learning_rate/c",)


FIVE_SEEDS = {
    "a": [2.61, 2.70, 2.58, 2.66, 2.63],
    "b": [2.65, 2.68, 2.66, 2.64, 2.69],
    "c": [3.2, 3.3, 3.1, 3.25, 3.22],
}


def test_rows_are_told_from_the_best_by_their_seeds() -> None:
    best, near, worse = one_stage(FIVE_SEEDS).stages[0].rows
    found = [row.beside_best for row in (best, near, worse)]

    assert [each and each.verdict for each in found] == ["best", "cannot be told from it", "worse"]
    assert [row.is_near_best for row in (best, near, worse)] == [False, True, False]
    assert near.beside_best is not None
    p_value = ttest_rel(FIVE_SEEDS["b"], FIVE_SEEDS["a"]).pvalue
    assert near.beside_best.p_value == pytest.approx(p_value)  # Holm's last step
    assert near.beside_best.difference == pytest.approx(0.028)


def test_rows_are_compared_by_the_metric_of_the_stage() -> None:
    rows = [experiment(name, seeds=range(3)) for name in "ab"]
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.3, 0.41, 0.5]}
    results = [
        result(run, loss=1.0, validation_accuracy=value)
        for row in rows
        for run, value in zip(row.runs, accuracies[row.name], strict=True)
    ]
    table = table_of(stage(*rows), results=results, metrics={"learning_rate": "validation_accuracy"})
    found = [row.beside_best for row in table.stages[0].rows]

    assert [each and each.verdict for each in found] == ["best", "worse"]
    assert found[1] is not None
    assert found[1].difference == pytest.approx(-0.59 / 3)


def test_seeds_without_a_result_are_left_out_of_the_comparison() -> None:
    a, b, c = (experiment(name, seeds=range(4)) for name in "abc")
    results = [result(run, loss=1.0 + run.seed / 10) for run in a.runs]
    results += [result(run, loss=[2.0, 2.2, 2.1][run.seed]) for run in b.runs[:3]]
    first, second, third = table_of(stage(a, b, c), results=results).stages[0].rows

    assert first.best
    assert second.beside_best is not None
    assert (second.beside_best.num_seeds, second.beside_best.verdict) == (3, "worse")
    assert third.beside_best is None


@pytest.mark.parametrize(
    "losses",
    [{"a": [1.0, 2.0, 3.0]}, {"a": [math.nan] * 3, "b": [math.nan] * 3}],
    ids=["one row", "no best row"],
)
def test_without_a_best_row_and_another_nothing_is_said(losses: dict[str, list[float]]) -> None:
    assert {row.beside_best for row in one_stage(losses).stages[0].rows} == {None}


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_losses_near_the_largest_number_are_no_error(num_seeds: int) -> None:
    rows = one_stage({"a": [-1.0] * num_seeds, "b": [1.7e308] * num_seeds}).stages[0].rows
    assert [row.best for row in rows] == [True, False]
    assert rows[1].beside_best is not None
    assert rows[1].beside_best.verdict != "worse"


HALF = [True, False] * 200


def test_tested_rows_are_compared_over_test_images() -> None:
    near, better = [*HALF[:-2], False, True], [True] * 20 + HALF[20:]
    rows = stage_of_tests({"a": HALF, "near": near, "worse": [False] * 400, "better": better}).stages[0].rows
    found = [row.test_beside_best for row in rows]

    assert [each and each.verdict for each in found] == [None, "cannot be told from it", "worse", "better"]
    assert [each and each.difference for each in found] == [None, 0, -0.5, 10 / 400]
    assert [each and each.num_images for each in found] == [None, 400, 400, 400]
    assert {row.beside_best.verdict for row in rows[1:] if row.beside_best} == {"too few seeds to say"}
    assert [row.is_near_best for row in rows] == [False, True, False, False]


def test_rows_that_lack_answers_are_named_and_not_compared() -> None:
    told = stage_of_tests({"a": HALF, "b": HALF, "c": HALF}, lacking=["c"]).stages[0]
    assert [row.test_beside_best is not None for row in told.rows] == [False, True, False]
    assert told.remarks == ("c: not compared over test images: predictions are missing, or cannot be read",)

    none = stage_of_tests({"a": HALF, "b": HALF}, lacking=["a", "b"]).stages[0]
    assert ([row.test_beside_best for row in none.rows], none.remarks) == ([None, None], ())


def test_rows_tested_on_different_versions_of_the_data_are_not_compared() -> None:
    a, b = experiment("a", seeds=(0,)), experiment("b", seeds=(0,))
    runs = [a.runs[0], b.runs[0]]
    tests = [
        evaluated(run).model_copy(update={"data_fingerprint": digit * 64})
        for run, digit in zip(runs, "ab", strict=True)
    ]
    answers = {run.id: Answers(np.arange(4), np.zeros(4, np.int64), np.ones(4, np.bool_)) for run in runs}
    table = table_of(stage(a, b, is_test=True), results=[result(run) for run in runs], tests=tests, answers=answers)
    assert [row.test_beside_best for row in table.stages[0].rows] == [None, None]


def test_a_table_of_one_seed_loads_no_library_of_numbers() -> None:
    code = (
        "import sys, tables\n"
        "table = tables.one_stage({'a': [1.0], 'b': [2.0]})\n"
        "print(table.stages[0].rows[1].beside_best.verdict)\n"
        "print(sorted({'numpy', 'scipy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["too few seeds to say", "[]"]
