"""Small grids, and the results and failures with which they are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from results import numerics

from controller.grid import Grid, parse_grid
from controller.search import (
    DataFacts,
    Decision,
    Expansion,
    Experiment,
    Facts,
    expand,
)
from controller.selection import due_decisions
from trainer.failure import ExitCode, Failure
from trainer.result import Result

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = Facts(
    data={name: DataFacts("a" * 64, 10, {"train": (6,) * 10, "validation": (3,) * 10}, {}) for name in ("digits", "x")},
    weights={"w.pth": "b" * 64},
    factories={"my.nets:Tiny": "c" * 64},
)
HEAD = "grid: g\nbase:\n  data: {name: digits}\n  model: {architecture: alexnet}\n"
NUMERICS = numerics()


def parse(stages: str, head: str = HEAD, **changes: Any) -> Grid:
    return parse_grid(f"{head}stages:\n{stages}", "g.yaml", **changes)


TWO = """\
  - name: rate
    vary: {optimizer.lr: [0.1, 1, 10]}
  - name: gamma
    vary: {schedule.gamma: [0.1, 0.5]}
"""
TEST = TWO + "  - {name: test, test: {best: 2}}\n"


def result_of(run: str, loss: float, accuracy: float = 0.5) -> Result:
    return Result(
        run=run,
        spec={},
        seed=0,
        best_epoch=1,
        train_loss=loss,
        train_accuracy=accuracy,
        validation_loss=loss,
        validation_accuracy=accuracy,
        validation_balanced_accuracy=accuracy,
        validation_top5_accuracy=accuracy,
        num_parameters=1,
        num_trainable_parameters=1,
        epochs_run=1,
        images_per_second=1,
        wall_seconds=1,
        peak_memory_bytes=1,
        numerics=NUMERICS,
        exact=True,
        data_fingerprint="a" * 64,
        weights_fingerprint=None,
        versions={},
        commit=None,
        best_weights=None,
        attempts=1,
        restarts=0,
        returns_to_best=0,
    )


def failure_of(run: str, exit_code: int = ExitCode.DATA, reason: str = "data", final: bool = True) -> Failure:
    return Failure(run=run, attempt="a", exit_code=exit_code, reason=reason, message="broken", final=final)


def results_of(expansion: Expansion, losses: Mapping[str, float | Sequence[float]]) -> dict[str, Result]:
    """Results of the named rows: one loss for all seeds, or one for each."""
    found = {}
    for row in rows_of(expansion):
        if row.name in losses:
            given_losses = losses[row.name]
            each = given_losses if isinstance(given_losses, Sequence) else [given_losses] * len(row.runs)
            found.update({run.id: result_of(run.id, loss) for run, loss in zip(row.runs, each, strict=True)})
    return found


def rows_of(expansion: Expansion) -> list[Experiment]:
    return [row for stage in expansion.stages if not stage.is_test for row in stage.experiments]


def decided(grid: Grid, losses: Mapping[str, float | Sequence[float]]) -> dict[str, Decision]:
    """Every decision that comes of these losses, taken stage after stage as a controller does."""
    decisions: dict[str, Decision] = {}
    while True:
        expansion = expand(grid, decisions, FACTS)
        said = due_decisions(grid, expansion, results_of(expansion, losses), {}, NOW)
        fresh = {name: decision for name, decision in said.items() if isinstance(decision, Decision)}
        if not fresh:
            return decisions
        decisions |= fresh


def names(expansion: Expansion, stage: int) -> list[str]:
    return [row.name for row in expansion.stages[stage].experiments]
