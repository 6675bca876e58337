"""What a stage keeps, and why it does not keep anything yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from expansions import (
    FACTS,
    HEAD,
    NOW,
    TEST,
    TWO,
    failure_of,
    parse,
    result_of,
    results_of,
)

from controller.search import (
    Decision,
    expand,
)
from controller.selection import Waiting, due_decisions, told_waiting
from controller.standing import Held
from trainer.failure import ExitCode


def test_the_best_is_by_the_mean_over_seeds_and_ties_go_to_the_first_row() -> None:
    grid = parse(TWO, seeds=2)
    expansion = expand(grid, {}, FACTS)
    results = results_of(expansion, {"lr=0.1": [1, 9], "lr=1": [4, 4], "lr=10": [3, 5]})

    decision = due_decisions(grid, expansion, results, {}, NOW)["rate"]

    assert isinstance(decision, Decision)
    assert decision.kept == ("lr=1",)
    assert decision.because == "lowest validation_loss, mean over 2 seeds: 4; lr=10 has the same, and comes later"
    assert [row.value for row in decision.saw] == [5, 4, 4]


def test_a_choice_is_told_with_as_many_digits_as_it_took() -> None:
    grid = parse(TWO)
    expansion = expand(grid, {}, FACTS)
    results = results_of(expansion, {"lr=0.1": [2.302439], "lr=1": [2.302438], "lr=10": [3]})

    decision = due_decisions(grid, expansion, results, {}, NOW)["rate"]

    assert isinstance(decision, Decision)
    assert decision.because == "lowest validation_loss: 2.302438; next 2.302439 (lr=0.1)"


def test_accuracies_are_best_when_high() -> None:
    grid = parse(TWO, head=HEAD.replace("base:", "base:\n  best: {metric: validation_accuracy}"))
    expansion = expand(grid, {}, FACTS)
    runs = [row.runs[0].id for row in expansion.stages[0].experiments]
    results = {run: result_of(run, 1, accuracy) for run, accuracy in zip(runs, (0.2, 0.3, 0.1), strict=True)}

    decision = due_decisions(grid, expansion, results, {}, NOW)["rate"]

    assert isinstance(decision, Decision)
    assert decision.kept == ("lr=1",)


def test_a_stage_waits_until_every_run_is_there() -> None:
    grid = parse(TWO, seeds=2)
    expansion = expand(grid, {}, FACTS)

    waiting = due_decisions(grid, expansion, results_of(expansion, {"lr=1": 1}), {}, NOW)

    assert waiting["rate"] == Waiting("for 4 of 6 runs")
    assert waiting["gamma"] == Waiting("for stage rate to be decided")


def test_a_stage_that_waits_for_runs_that_are_held_says_so() -> None:
    grid = parse(TWO, seeds=2)
    expansion = expand(grid, {}, FACTS)
    done, first, second, third, *_ = [run.id for row in expansion.stages[0].experiments[::-1] for run in row.runs]
    failures = {first: failure_of(first, ExitCode.TRAINING, "diverged")}
    held: dict[str, Held] = {
        done: "paused",
        first: "paused",
        second: "paused",
        third: "cancelled",
        "of-another": "paused",
    }

    waiting = due_decisions(grid, expansion, {done: result_of(done, 1)}, failures, NOW, held)

    assert waiting["rate"] == Waiting("for 4 of 6 runs, of which 1 paused, 1 cancelled")


def with_failure(on_failed: str, failure: Mapping[str, Any]) -> Decision | Waiting:
    grid = parse(TWO.replace("[0.1, 1, 10]}", f"[0.1, 1, 10]}}\n    on_failed: {on_failed}"))
    expansion = expand(grid, {}, FACTS)
    broken = expansion.stages[0].experiments[0].runs[0].id
    failures = {broken: failure_of(broken, **failure)}
    return due_decisions(grid, expansion, results_of(expansion, {"lr=1": 2, "lr=10": 1}), failures, NOW)["rate"]


@pytest.mark.parametrize("on_failed", ["stop", "wait"])
def test_a_failed_row_holds_the_choice_up(on_failed: str) -> None:
    waiting = with_failure(on_failed, {})

    assert waiting == Waiting("1 failed row: lr=0.1: data: broken", stopped=on_failed == "stop")


def test_a_failed_row_may_be_ignored() -> None:
    decision = with_failure("ignore", {})

    assert isinstance(decision, Decision)
    assert decision.kept == ("lr=10",)
    assert (decision.saw[0].value, decision.saw[0].reason) == (None, "data: broken")


SHARED = """\
  - {name: rate, vary: {optimizer.lr: [0.1, 1, 10]}, on_failed: ignore}
  - name: again
    from: base
    vary: {optimizer.lr: [0.1, 2]}
    on_failed: OTHER
  - {name: test, test: {best: 1, of: [STAGES]}}
"""


@pytest.mark.parametrize(
    ("stages", "other", "is_ignored"),
    [
        pytest.param("rate", "stop", True, id="by-the-only-stage-tested"),
        pytest.param("rate, again", "ignore", True, id="by-each-stage-that-has-it"),
        pytest.param("rate, again", "stop", False, id="not-by-all"),
    ],
)
def test_a_test_stage_ignores_a_failed_row_that_its_stages_ignore(stages: str, other: str, is_ignored: bool) -> None:
    grid = parse(SHARED.replace("STAGES", stages).replace("OTHER", other))
    expansion = expand(grid, {}, FACTS)
    results = results_of(expansion, {"lr=1": 2, "lr=10": 1, "lr=2": 3})
    broken = expansion.stages[0].experiments[0].runs[0].id

    said = due_decisions(grid, expansion, results, {broken: failure_of(broken)}, NOW)["test"]

    if is_ignored:
        assert isinstance(said, Decision)
        assert said.kept == ("rate/lr=10",)
        assert said.saw[0].reason == "data: broken"
    else:
        assert said == Waiting("1 failed row: rate/lr=0.1: data: broken", stopped=True)


def test_a_stage_is_told_to_wait_for_what_holds_it_up() -> None:
    grid = parse(TEST)
    expansion = expand(grid, {}, FACTS)

    told = told_waiting(expansion, {"rate": "for 3 of 3 runs", "test": "1 failed row"})

    assert [stage.waiting for stage in told.stages] == [None, "for stage rate to be decided", "1 failed row"]


@pytest.mark.parametrize("on_failed", ["stop", "wait", "ignore"])
def test_a_diverged_row_ranks_last_and_holds_nothing_up(on_failed: str) -> None:
    decision = with_failure(on_failed, {"exit_code": ExitCode.TRAINING, "reason": "diverged"})

    assert isinstance(decision, Decision)
    assert decision.kept == ("lr=10",)
    assert decision.saw[0].reason == "diverged"


def test_too_little_memory_says_nothing_about_a_row() -> None:
    waiting = with_failure("stop", {"exit_code": ExitCode.TRAINING, "reason": "out-of-device-memory"})

    assert isinstance(waiting, Waiting)
    assert waiting.stopped


def test_a_failure_that_is_not_final_leaves_the_run_open() -> None:
    assert with_failure("stop", {"exit_code": 1, "final": False}) == Waiting("for 1 of 3 runs")


def test_one_diverged_seed_makes_the_row_rank_last() -> None:
    grid = parse(TWO, seeds=2)
    expansion = expand(grid, {}, FACTS)
    results = results_of(expansion, {"lr=0.1": 0, "lr=1": 2, "lr=10": 3})
    lost = expansion.stages[0].experiments[0].runs[1].id
    del results[lost]

    decision = due_decisions(grid, expansion, results, {lost: failure_of(lost, ExitCode.TRAINING, "diverged")}, NOW)[
        "rate"
    ]

    assert isinstance(decision, Decision)
    assert decision.kept == ("lr=1",)
    assert decision.saw[0].reason == "diverged (1 of 2 seeds)"


def test_nothing_is_kept_when_every_row_diverged() -> None:
    grid = parse(TWO)
    expansion = expand(grid, {}, FACTS)
    failures = {run: failure_of(run, ExitCode.TRAINING, "diverged") for run in expansion.runs()}

    waiting = due_decisions(grid, expansion, {}, failures, NOW)["rate"]

    assert isinstance(waiting, Waiting)
    assert waiting.stopped
