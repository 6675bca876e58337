"""Tables to test: of made-up runs, results, failures and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from results import numerics

from controller.noise import Answers
from controller.search import DataFacts, Decision, Expansion, Experiment, Facts, Run, StageExpansion
from controller.standing import Known
from controller.table import Table, build_table
from trainer.failure import Failure
from trainer.result import Result, TestResult
from trainer.spec import DataSpec, ExperimentSpec, ModelSpec, SgdSpec

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
    runs = tuple(Run(f"alexnet-{name}-{seed}", of, seed) for seed in seeds)
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


def one_stage(losses: Mapping[str, Sequence[float]], **further: Any) -> Table:
    rows = [experiment(name, seeds=range(len(values))) for name, values in losses.items()]
    results = [result(run, loss=loss) for row in rows for run, loss in zip(row.runs, losses[row.name], strict=True)]
    return table_of(stage(*rows, **further), results=results)


def stage_of_tests(right: Mapping[str, Sequence[bool]], lacking: Sequence[str] = ()) -> Table:
    """A test stage of one seed, its first row the best by validation; `right` says which test images a row told."""
    import numpy as np  # here: a test looks that tables of one seed are made without it

    rows = [experiment(name, stage="final", seeds=(0,)) for name in right]
    answers = {
        row.runs[0].id: Answers(np.arange(len(told)), np.zeros(len(told), np.int64), np.array(told))
        for row, told in zip(rows, right.values(), strict=True)
        if row.name not in lacking
    }
    return table_of(
        stage(*rows, name="final", is_test=True),
        results=[result(row.runs[0], loss=1.0 + index) for index, row in enumerate(rows)],
        tests=[evaluated(row.runs[0], test_accuracy=sum(right[row.name]) / len(right[row.name])) for row in rows],
        answers=answers,
    )


def every_kind_of_row() -> Table:
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
