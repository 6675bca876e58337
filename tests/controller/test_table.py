"""What is put side by side, what is marked and what is said of rows without numbers."""

from __future__ import annotations

import csv
import io
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    table_of,
)

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
