"""The table as a value and in its four forms, over a grid with every kind of row."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import numerics
from rich.cells import cell_len

from controller.search import DataFacts, Decision, Expansion, Experiment, Facts, Run, StageExpansion
from controller.standing import Known
from controller.table import (
    CSV_HEAD,
    NUMBERS,
    Table,
    build_table,
    majority,
    mean_and_std,
    to_csv,
    to_json,
    to_markdown,
    to_terminal,
)
from trainer.failure import Failure
from trainer.identity import with_seed
from trainer.result import Result, TestResult
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, SgdSpec

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NUMERICS = numerics(
    precision="bf16", threads=2, micro_batch=256, device_model="Xeon", instruction_set="AMX", torch_version="2.11.0"
)
COUNTS = {"train": (20, 60, 10), "validation": (12, 5, 3), "test": (10, 6, 4)}
FACTS = Facts({"caltech101": DataFacts("a" * 64, 3, COUNTS, {})})
ACCURACIES = ("validation_accuracy", "validation_balanced_accuracy", "validation_top5_accuracy")


def spec(lr: float = 0.01, architecture: str = "alexnet", **values: Any) -> ExperimentSpec:
    data = values.pop("data", DataSpec(name="caltech101", fingerprint="a" * 64))
    return ExperimentSpec(
        data=data, model=ModelSpec(architecture=architecture), optimizer=SgdSpec(lr=lr), **{"epochs": 30, **values}
    )


def experiment(
    name: str, *, stage: str = "learning_rate", seeds: Sequence[int] = (0, 1), of: ExperimentSpec | None = None
) -> Experiment:
    of = of or spec()
    runs = tuple(Run(f"alexnet-{name}-{seed}", with_seed(of, seed)) for seed in seeds)
    return Experiment(stage, name, {"optimizer.lr": of.optimizer.lr}, of, runs)


def result(run: Run, **numbers: Any) -> Result:
    loss = numbers.pop("loss", 1.0)
    values: dict[str, Any] = {
        "best_epoch": 7,
        "train_loss": loss / 2,
        "train_accuracy": 0.5,
        "validation_loss": loss,
        **dict.fromkeys(ACCURACIES, 0.5),
        "num_parameters": 57_417_637,
        "num_trainable_parameters": 2_469_696,
        "epochs_run": 30,
        "images_per_second": 105.25,
        "wall_seconds": 900.0,
        "peak_memory_bytes": 3 << 30,
        "numerics": NUMERICS.model_copy(update={"micro_batch": run.spec.batch_size}),
        "exact": True,
        **numbers,
    }
    return Result(
        run=run.id,
        spec={},
        seed=run.spec.seed,
        data_fingerprint="a" * 64,
        weights_fingerprint=None,
        versions={},
        commit=None,
        best_weights=None,
        attempts=1,
        restarts=0,
        returns_to_best=0,
        **values,
    )


def evaluated(run: Run, **numbers: Any) -> TestResult:
    values: dict[str, Any] = {"test_accuracy": 0.4, "numerics": NUMERICS, **numbers}
    return TestResult(
        run=run.id,
        test_loss=2.0,
        test_balanced_accuracy=0.3,
        test_top5_accuracy=0.7,
        num_images=20,
        predictions="p.npz",
        data_fingerprint="a" * 64,
        wall_seconds=3.0,
        **values,
    )


def failed(run: Run, *, final: bool = True, message: str = "loss nan at epoch 3 after 2 restarts") -> Failure:
    return Failure(run=run.id, attempt="0001", exit_code=70, reason="diverged", message=message, final=final, time=NOW)


def decision(stage: str, *kept: str, metric: str | None = "validation_loss", because: str = "the rule") -> Decision:
    return Decision(stage=stage, kept=kept, because=because, metric=metric, saw=(), time=NOW)


def stage(
    *experiments: Experiment,
    name: str = "learning_rate",
    is_test: bool = False,
    decided: Decision | None = None,
    waiting: str | None = None,
) -> StageExpansion:
    return StageExpansion(name, is_test, experiments, decided, waiting)


def table_of(
    *stages: StageExpansion,
    results: Sequence[Result] = (),
    tests: Sequence[TestResult] = (),
    failures: Sequence[Failure] = (),
    **further: Any,
) -> Table:
    return build_table(
        Expansion("from_scratch", (0, 1), stages),
        Known(
            results={one.run: one for one in results},
            tests={one.run: one for one in tests},
            failures={one.run: one for one in failures},
        ),
        further.pop("active", {}),
        **further,
    )


def one_stage(losses: dict[str, Sequence[float]], **further: Any) -> Table:
    rows = [experiment(name, seeds=range(len(values))) for name, values in losses.items()]
    results = [result(run, loss=loss) for row in rows for run, loss in zip(row.runs, losses[row.name], strict=True)]
    return table_of(stage(*rows, **further), results=results)


@pytest.fixture(name="every_kind")
def _every_kind() -> Table:
    """A grid in which each kind of row stands once."""
    rows = {
        "lr=0.01": experiment("lr=0.01", of=spec(0.01)),
        "lr=0.1": experiment("lr=0.1", of=spec(0.1)),
        "lr=0.001": experiment("lr=0.001", of=spec(0.001)),
        "lr=1": experiment("lr=1", of=spec(1.0)),
        "lr=2": experiment("lr=2", of=spec(2.0)),
        "lr=3": experiment("lr=3", of=spec(3.0)),
    }
    best, second, partial, diverged, queued, _never = rows.values()
    other = NUMERICS.model_copy(update={"precision": "fp32", "threads": 4, "instruction_set": "AVX512"})
    results = [
        result(best.runs[0], loss=2.611, validation_accuracy=0.4012),
        result(best.runs[1], loss=2.85, validation_accuracy=0.49, exact=False),
        result(second.runs[0], loss=3.2, validation_accuracy=0.31),
        result(second.runs[1], loss=3.25, validation_accuracy=0.305, numerics=other),
        result(partial.runs[0], loss=1.5),
    ]
    stages = (
        stage(*rows.values(), decided=decision("learning_rate", "lr=0.1", metric=None, because="no saw-tooth | <b>")),
        stage(best, second, name="final", is_test=True),
        stage(name="step_size", waiting="for stage final to be decided"),
    )
    return table_of(
        *stages,
        results=results,
        tests=[evaluated(run) for run in best.runs],
        failures=[failed(run) for run in diverged.runs],
        active={partial.runs[1].id: "running on node-1:4711, epoch 3", queued.runs[0].id: "queued"},
        facts=FACTS,
    )


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


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
        result(b.runs[0], numerics=NUMERICS.model_copy(update={"memory_format": "contiguous"})),
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


def test_a_grid_in_which_nothing_ran_has_a_table_in_every_form() -> None:
    table = table_of(stage(experiment("a")), stage(name="later", waiting="for stage learning_rate to be decided"))
    assert "a: waiting: never started" in to_terminal(table)
    assert "waiting: for stage learning_rate to be decided" in to_terminal(table)
    assert "| a | waiting: never started |" in to_markdown(table)
    assert rows_of(to_csv(table))[0]["validation_loss"] == ""
    assert json.loads(to_json(table))["stages"][0]["rows"][0]["numbers"] == {}


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
