"""How runs stand, the same for every command, and which of them a command is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from grids import FACTS, NOW, TEXT, runs_of

from controller.grid import parse_grid
from controller.search import Decision, Expansion, RowSeen, expand
from controller.standing import (
    Choice,
    Known,
    State,
    Work,
    chosen_work,
    excess_failures,
    failure_text,
    refuse_no_fit,
    run_state,
    startable,
    told_held,
)
from trainer.failure import Failure, SpecError
from trainer.result import Result


def expanded(text: str = TEXT, **kept: str) -> Expansion:
    grid = parse_grid(text, "small.yaml")
    decisions: dict[str, Decision] = {}
    for stage, row in kept.items():
        rows = next(each for each in expand(grid, decisions, FACTS).stages if each.name == stage).experiments
        seen = [RowSeen(experiment=each.name, runs=tuple(run.id for run in each.runs), value=1.0) for each in rows]
        decisions[stage] = Decision(
            stage=stage, kept=(row,), because="", metric="validation_loss", saw=tuple(seen), time=NOW
        )
    return expand(grid, decisions, FACTS)


def known(results: tuple[str, ...] = (), failures: tuple[str, ...] = (), tests: tuple[str, ...] = ()) -> Known:
    values: dict[str, Any] = {"attempt": None, "exit_code": 70, "reason": "diverged", "message": "", "final": True}
    return Known(
        {},
        dict.fromkeys(results, Result.model_construct()),
        dict.fromkeys(tests),  # type: ignore[arg-type]  # only the keys are looked at
        {run: Failure(run=run, **values) for run in failures},
    )


def test_work_comes_in_the_order_of_stages_and_rows_each_run_once() -> None:
    expansion = expanded(lr="lr=0.05", smoothing="label_smoothing=0")
    trained = dict.fromkeys([*runs_of(expansion, "lr"), *runs_of(expansion, "smoothing")])
    tested = runs_of(expansion, "final")
    assert not tested  # its own decision is still missing
    assert chosen_work(expansion, Choice()) == tuple(Work(run, False) for run in trained)
    assert len(trained) == 6  # label_smoothing=0 is lr=0.05 again


@pytest.mark.parametrize(
    ("only", "count"),
    [
        pytest.param("lr=0.05", 2, id="experiment"),
        pytest.param("lr/*", 4, id="stage-and-experiment"),
        pytest.param("*0.1", 2, id="pattern"),
        pytest.param("usual-*", 6, id="all-ids"),
        pytest.param("nothing", 0, id="none"),
    ],
)
def test_only_takes_runs_by_experiment_or_id(only: str, count: int) -> None:
    expansion = expanded(lr="lr=0.05")
    assert len(chosen_work(expansion, Choice(only))) == count


def test_one_run_may_be_chosen_by_its_id() -> None:
    expansion = expanded()
    run = runs_of(expansion, "lr")[2]
    assert chosen_work(expansion, Choice(run)) == (Work(run, False),)


def test_a_stage_may_be_chosen_alone() -> None:
    expansion = expanded(lr="lr=0.05")
    chosen = chosen_work(expansion, Choice(stages=("smoothing",)))
    assert [work.run for work in chosen] == runs_of(expansion, "smoothing")


@pytest.mark.parametrize(
    ("only", "stages"),
    [
        pytest.param("lr=0.05", (), id="a-row-that-is-known"),
        pytest.param("smoothing/*", (), id="a-row-that-waits"),
        pytest.param("*=0.1", ("smoothing",), id="a-row-of-a-stage-that-waits"),
        pytest.param("final/lr/lr=0.05", (), id="what-a-test-may-come-to"),
        pytest.param("usual-*", (), id="runs-by-id"),
    ],
)
def test_a_pattern_that_may_fit_is_taken(only: str, stages: tuple[str, ...]) -> None:
    expansion = expanded()
    refuse_no_fit(Choice(only, stages), parse_grid(TEXT, "small.yaml"), expansion)
    assert not expansion.stages[1].experiments


@pytest.mark.parametrize(
    ("only", "stages", "hint"),
    [
        pytest.param("zzz*", (), "* stands for any text", id="nothing-near"),
        pytest.param("lr=0.5", (), "did you mean 'lr=0.05'?", id="nearly"),
        pytest.param("lr=0.05", ("smoothing",), "* stands for", id="of-another-stage"),
    ],
)
def test_a_pattern_that_fits_nothing_is_told_with_the_rows_there_are(
    only: str, stages: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(SpecError, match="which fits no row of") as caught:
        refuse_no_fit(Choice(only, stages), parse_grid(TEXT, "small.yaml"), expanded())
    assert ("label_smoothing=0" if stages else "lr=0.005") in caught.value.message
    assert hint in str(caught.value.hint)


def test_what_is_done_or_failed_for_good_does_not_start() -> None:
    work = [Work(name, False) for name in ("a", "b", "c")]
    assert startable(work, known(results=("a",), failures=("b",))) == [Work("c", False)]


def test_a_result_counts_more_than_a_failure() -> None:
    assert not known(results=("a",), failures=("a",)).is_failed(Work("a", False))


def test_a_test_waits_for_its_runs_result() -> None:
    test = Work("a", True)
    assert startable([test], known()) == []
    assert startable([test], known(results=("a",))) == [test]
    assert startable([test], known(results=("a",), tests=("a",))) == []
    assert startable([test], known(results=("a",), failures=("a",))) == []


RUNS = {"a": "running on node-1:4711, epoch 3"}
QUEUED = {"a": "queued"}


@pytest.mark.parametrize(
    ("is_test", "known_of", "active", "state", "reason"),
    [
        pytest.param(False, {"results": ("a",), "failures": ("a",)}, RUNS, "done", None, id="numbers-outweigh-all"),
        pytest.param(False, {"failures": ("a",)}, RUNS, "running", RUNS["a"], id="trained-again-by-hand"),
        pytest.param(False, {"failures": ("a",)}, QUEUED, "failed", "diverged: ", id="failed-for-good"),
        pytest.param(False, {}, QUEUED, "waiting", "queued", id="queued"),
        pytest.param(False, {}, {}, "waiting", "never started", id="never-started"),
        pytest.param(True, {}, {}, "waiting", "never started", id="test-of-a-run-that-never-started"),
        pytest.param(True, {"results": ("a",)}, {}, "waiting", "trained, not tested yet", id="test-to-come"),
        pytest.param(True, {"results": ("a",)}, RUNS, "running", RUNS["a"], id="test-at-work"),
        pytest.param(True, {"results": ("a",), "failures": ("a",)}, {}, "failed", "diverged: ", id="test-failed"),
        pytest.param(True, {"results": ("a",), "tests": ("a",)}, {}, "done", None, id="tested"),
    ],
)
def test_a_run_has_one_state_and_its_reason(
    is_test: bool, known_of: dict[str, Any], active: dict[str, str], state: State, reason: str | None
) -> None:
    assert run_state(Work("a", is_test), known(**known_of), active) == (state, reason)


@pytest.mark.parametrize(
    ("is_test", "known_of", "active", "state", "reason"),
    [
        pytest.param(False, {}, {}, "waiting", "paused", id="nothing-was-done"),
        pytest.param(False, {}, QUEUED, "waiting", "paused", id="it-waited"),
        pytest.param(False, {}, RUNS, "running", RUNS["a"], id="it-has-not-ended-yet"),
        pytest.param(True, {"results": ("a",)}, {}, "waiting", "paused", id="its-test"),
        pytest.param(False, {"results": ("a",)}, {}, "done", None, id="done-before"),
        pytest.param(False, {"failures": ("a",)}, {}, "failed", "diverged: ", id="failed-before"),
    ],
)
def test_a_run_that_is_held_waits_for_no_other_reason(
    is_test: bool, known_of: dict[str, Any], active: dict[str, str], state: State, reason: str | None
) -> None:
    held = replace(known(**known_of), held={"a": "paused"})
    assert run_state(Work("a", is_test), held, active) == (state, reason)


def test_what_is_held_does_not_start_and_is_told() -> None:
    work = [Work("a", False), Work("b", False), Work("a", True), Work("c", False), Work("d", False)]
    held = replace(known(results=("d",)), held={"a": "paused", "b": "cancelled", "d": "paused", "gone": "paused"})
    assert startable(work, held) == [Work("c", False)]
    assert told_held(work, held) == "not started: 1 paused, 1 cancelled: a, b; `grid resume RUN` lets one go on"
    assert told_held(work, known()) is None


def test_a_failed_test_is_told_as_one() -> None:
    failure = Failure(
        run="a", attempt=None, exit_code=137, reason="crashed", message="killed", hint="why?", during="test", final=True
    )
    trained = replace(known(results=("a",)), failures={"a": failure})
    assert run_state(Work("a", True), trained, {}) == ("failed", "in its test: crashed: killed")
    assert failure_text(failure, with_hint=True) == "in its test: crashed: killed\nhint: why?"


@pytest.mark.parametrize(
    ("max_failed", "excess"),
    [(None, 0), (0, 2), (1, 2), (2, 0)],
    ids=["without a limit", "none allowed", "one allowed", "two allowed"],
)
def test_failed_runs_count_once_each_and_only_beyond_the_limit(max_failed: int | None, excess: int) -> None:
    work = [Work("a", False), Work("a", True), Work("b", True), Work("c", False)]
    seen = known(results=("c",), failures=("a", "b", "c"))
    assert excess_failures(work, seen.is_failed, max_failed) == excess


def test_a_failure_that_is_not_final_is_tried_again() -> None:
    failure = Failure(run="a", attempt=None, exit_code=1, reason="crashed", message="it broke", final=False)
    assert run_state(Work("a", False), Known(failures={"a": failure}), {}) == (
        "waiting",
        "to be started again after crashed: it broke",
    )
