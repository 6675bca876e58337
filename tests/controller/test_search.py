"""Which experiments and runs a grid comes to, as its stages are decided."""

from __future__ import annotations

import pytest
from expansions import (
    FACTS,
    HEAD,
    NOW,
    TEST,
    TWO,
    decided,
    names,
    parse,
    results_of,
    rows_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.grid import parse_grid, read_grid
from controller.search import (
    DataFacts,
    Decision,
    DecisionMismatch,
    Facts,
    expand,
    fitting,
    wanted,
)
from controller.selection import due_decisions
from trainer.failure import DataError, SpecError
from trainer.identity import run_id


def test_a_stage_is_known_only_once_the_one_it_starts_from_is_decided() -> None:
    grid = parse(TWO)
    first = expand(grid, {}, FACTS)
    then = expand(grid, decided(grid, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2}), FACTS)

    assert first.stages[1].waiting == "for stage rate to be decided"
    assert names(then, 1) == ["gamma=0.1", "gamma=0.5"]
    assert {row.spec.optimizer.lr for row in then.stages[1].experiments} == {1}


def test_every_run_has_its_fingerprints_its_seed_and_its_own_id() -> None:
    model = "\n  model: {architecture: 'my.nets:Tiny', weights: w.pth}\n"
    grid = parse(TWO, head=HEAD.replace("\n  model: {architecture: alexnet}\n", model), seeds=2)

    for run in expand(grid, {}, FACTS).runs().values():
        assert run.spec.data.fingerprint == "a" * 64
        assert run.spec.model.weights_fingerprint == "b" * 64
        assert run.spec.model.source_hash == "c" * 64
        assert run.id == run_id(run.spec)
    assert [run.spec.seed for row in rows_of(expand(grid, {}, FACTS)) for run in row.runs] == [0, 1] * 3


def test_equal_rows_of_different_stages_share_their_runs() -> None:
    grid = parse(TWO)
    expansion = expand(grid, decided(grid, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2}), FACTS)

    assert expansion.stages[1].experiments[0].runs == expansion.stages[0].experiments[1].runs
    assert len(expansion.runs()) == 4


def test_a_pinned_choice_is_known_before_anything_trains() -> None:
    pinned = TWO.replace("[0.1, 1, 10]}", "[0.1, 1, 10]}\n    keep: {this: {optimizer.lr: 10}, because: so}")
    grid = parse(pinned)
    expansion = expand(grid, {}, FACTS)
    decision = due_decisions(grid, expansion, {}, {}, NOW)["rate"]

    assert expansion.stages[0].kept == ("lr=10",)
    assert expansion.stages[1].experiments[0].spec.optimizer.lr == 10
    assert isinstance(decision, Decision)
    assert (decision.kept, decision.because, decision.metric) == (("lr=10",), "so", None)
    assert expand(grid, {"rate": decision}, FACTS).runs() == expansion.runs()


@pytest.mark.parametrize(
    ("this", "told"),
    [("{optimizer.lr: 7}", "no row fits"), ("{optimizer: {lr: 1}}", "expected a key that stage")],
    ids=["no such value", "whole part"],
)
def test_a_pinned_choice_that_fits_no_row_is_told(this: str, told: str) -> None:
    stages = TWO.replace("[0.1, 1, 10]}", f"[0.1, 1, 10]}}\n    keep: {{this: {this}, because: so}}")

    with pytest.raises(SpecError, match=told):
        expand(parse(stages), {}, FACTS)


def test_stages_form_a_tree() -> None:
    grid = parse(TWO + "  - {name: freeze, from: base, vary: {model.freeze: [none, convolutional]}}\n")

    expansion = expand(grid, {}, FACTS)

    assert names(expansion, 2) == ["freeze=none", "freeze=convolutional"]
    assert expansion.stages[2].experiments[0].spec.optimizer.lr == 1e-3


def test_a_test_stage_takes_the_best_distinct_experiments_of_all_stages() -> None:
    grid = parse(TEST)
    losses = {"lr=0.1": 3, "lr=1": 1, "lr=10": 2, "gamma=0.5": 4}
    decisions = decided(grid, losses)
    expansion = expand(grid, decisions, FACTS)

    assert decisions["test"].kept == ("rate/lr=1", "rate/lr=10")
    assert [row.experiment for row in decisions["test"].saw] == [
        "rate/lr=0.1",
        "rate/lr=1",
        "rate/lr=10",
        "gamma/gamma=0.5",
    ]
    assert names(expansion, 2) == ["rate/lr=1", "rate/lr=10"]
    assert expansion.stages[2].experiments[0].runs == expansion.stages[0].experiments[1].runs


def test_a_test_stage_waits_for_what_it_chooses_from() -> None:
    grid = parse(TEST)

    waiting = expand(grid, {}, FACTS).stages[2].waiting

    assert waiting == "for the rows of gamma to be known"


def test_a_test_stage_may_be_pinned() -> None:
    grid = parse(
        TWO + "  - {name: test, test: {these: [{stage: rate, this: {name: lr=10}}], because: the report tests it}}\n"
    )

    assert names(expand(grid, {}, FACTS), 2) == ["rate/lr=10"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[0.1, 1, 10]", "[0.1, 1]", "saw 'lr=10', which the grid no longer has"),
        ("[0.1, 1, 10]", "[0.1, 1, 10, 100]", "did not see 'lr=100', which the grid has now"),
        ("alexnet", "resnet18", "saw other runs of 'lr=0.1', 'lr=1', 'lr=10' than the grid has now"),
        ("10]}", "10]}\n    keep: {best: validation_accuracy}", "but the grid goes by the best validation_accuracy"),
        ("10]}", "10]}\n    keep: {this: {optimizer.lr: 10}, because: so}", "but the grid pins 'lr=10'"),
    ],
    ids=["row gone", "row added", "other values", "other rule", "pinned"],
)
def test_a_decision_over_other_rows_is_refused_with_the_cure(old: str, new: str, told: str) -> None:
    before = parse(TWO)
    after = parse_grid(before_text().replace(old, new), "g.yaml")
    decisions = decided(before, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2})

    with pytest.raises(DecisionMismatch) as caught:
        expand(after, decisions, FACTS)

    assert told in str(caught.value)
    assert "--update" in str(caught.value)
    assert caught.value.stage == "rate"


def before_text() -> str:
    return f"{HEAD}stages:\n{TWO}"


def test_a_decision_whose_ancestor_was_reopened_is_refused() -> None:
    grid = parse(TWO)
    decisions = decided(grid, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2, "gamma=0.5": 4})
    del decisions["rate"]

    with pytest.raises(DecisionMismatch, match="'rate', which it starts from, is not decided"):
        expand(grid, decisions, FACTS)


def test_a_late_result_changes_no_decision() -> None:
    grid = parse(TWO)
    decisions = decided(grid, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2})
    expansion = expand(grid, decisions, FACTS)

    assert "rate" not in due_decisions(grid, expansion, results_of(expansion, {"lr=0.1": 0, "lr=1": 9}), {}, NOW)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(
            "vary:\n      optimizer.lr: [1,\n        -1]\n",
            "g.yaml:9: stages[0].vary.optimizer.lr[1]: got -1",
            id="vary",
        ),
        pytest.param(
            "points:\n      - {name: a, optimizer: {lr: 0}}\n",
            "g.yaml:8: stages[0].points[0].optimizer.lr: got 0",
            id="point",
        ),
        pytest.param(
            "zip: {epochs: [x]}\n", "g.yaml:7: stages[0].zip.epochs[0]: got 'x', expected a whole number", id="zip"
        ),
        pytest.param("set: {epochs: 0}\n", "g.yaml:7: stages[0].set.epochs: got 0", id="set"),
        pytest.param(
            "vary: {data.crop: [300]}\n",
            "g.yaml:7: stages[0].vary.data.crop[0]: crop 300 is larger than resize 256",
            id="across keys",
        ),
        pytest.param(
            "vary: {optimizer.name: [adam]}\n",
            "stages[0].vary.optimizer.name[0]: got 'adam', expected sgd or adamw",
            id="member",
        ),
        pytest.param(
            "vary: {optimizer.betas: [[0.1, 0.2]]}\n",
            "stages[0].vary.optimizer.betas[0]: unknown key; got 'betas'",
            id="another member's key",
        ),
        pytest.param("vary: {augmentation: [repot_1]}\n", "hint: did you mean 'report_1'?", id="pipeline"),
    ],
)
def test_a_row_with_wrong_values_is_told_by_its_line_in_the_grid(body: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(parse(f"  - name: one\n    {body}"), {}, FACTS)

    assert told in str(caught.value)


def test_wrong_values_of_a_later_stage_are_told_before_its_turn() -> None:
    with pytest.raises(SpecError, match=r"g\.yaml:9: stages\[1\]\.vary\.schedule\.gamma\[1\]: got 5"):
        expand(parse(TWO.replace("[0.1, 0.5]", "[0.1, 5]")), {}, FACTS)


def test_another_optimizer_drops_the_defaults_of_the_first_but_nothing_that_was_written() -> None:
    body = "  - {name: one, vary: {optimizer.name: [sgd, adamw]}}\n"
    rows = expand(parse(body), {}, FACTS).stages[0].experiments

    assert [row.spec.optimizer.name for row in rows] == ["sgd", "adamw"]
    with pytest.raises(SpecError) as caught:
        expand(parse(body, head=HEAD.replace("base:", "base:\n  optimizer: {momentum: 0.8}")), {}, FACTS)
    assert "g.yaml:3: base.optimizer.momentum: unknown key; got 'momentum'" in str(caught.value)
    assert "row 'optimizer=adamw' of stage 'one' has optimizer.name 'adamw'" in str(caught.value)


def test_a_key_reaches_into_a_named_pipeline() -> None:
    head = HEAD.replace("base:", "base:\n  augmentation: report_2")
    rows = expand(parse("  - {name: one, vary: {augmentation.hue: [0, 0.2]}}\n", head=head), {}, FACTS)

    assert [(row.spec.augmentation.hue, row.spec.augmentation.rotation) for row in rows_of(rows)] == [
        (0, 30),
        (0.2, 30),
    ]


def test_what_the_facts_must_cover_is_what_rows_may_name() -> None:
    grid = parse(
        "  - {name: one, vary: {model: [{architecture: alexnet, weights: w.pth}, {architecture: 'my.nets:Tiny'}]}}\n"
        "  - {name: two, set: {data.name: x}}\n"
    )

    found = wanted(grid)

    assert (found.data, found.weights, found.factories) == (("digits", "x"), ("w.pth",), ("my.nets:Tiny",))


def test_everything_that_is_missing_is_told_at_once() -> None:
    grid = parse("  - {name: one, vary: {model.weights: [a.pth, b.pth]}}\n")

    with pytest.raises(DataError) as caught:
        expand(grid, {}, Facts())

    assert str(caught.value).count("not in the store") == 3
    assert "`grid data import digits SRC`" in str(caught.value)


def test_a_fingerprint_that_the_store_does_not_have_is_refused() -> None:
    head = HEAD.replace("{name: digits}", f"{{name: digits, fingerprint: '{'9' * 64}'}}")

    with pytest.raises(DataError, match=r"data\.fingerprint: got '999"):
        expand(parse(TWO, head=head), {}, FACTS)


# Ids that must never change; see tests/trainer/test_identity.py.
GOLDEN = ["alexnet-afe9530cc64a", "alexnet-569eca1fe8c8", "alexnet-9cf9005c4da1"]


def test_a_grid_comes_to_the_runs_it_always_came_to() -> None:
    facts = Facts(data={"caltech101": DataFacts("0" * 64, 101, {}, {})})

    assert list(expand(read_grid("from_scratch"), {}, facts).runs())[:3] == GOLDEN


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
)
def test_a_product_comes_to_as_many_distinct_runs_as_it_has_rows_times_seeds(
    lrs: list[float], epochs: list[int], seeds: int
) -> None:
    body = f"  - {{name: one, vary: {{optimizer.lr: {lrs}, epochs: {epochs}}}}}\n"
    expansion = expand(parse(body, seeds=seeds), {}, FACTS)

    assert len(expansion.runs()) == len(lrs) * len(epochs) * seeds
    assert expand(parse(body, seeds=seeds), {}, FACTS).runs().keys() == expansion.runs().keys()
    assert [(row.spec.optimizer.lr, row.spec.epochs) for row in rows_of(expansion)] == [
        (a, b) for a in lrs for b in epochs
    ]


@pytest.mark.parametrize(
    ("stages", "misfits"),
    [
        pytest.param(TWO, (), id="unchanged"),
        pytest.param(TWO.replace("[0.1, 0.5]", "[0.1, 0.2]"), ("gamma",), id="the-last-changed"),
        pytest.param(TWO.replace("[0.1, 1, 10]", "[0.1, 1]"), ("gamma", "rate"), id="what-rests-on-it-goes-too"),
        pytest.param(TWO[: TWO.index("  - name: gamma")], ("gamma",), id="a-stage-that-is-gone"),
    ],
)
def test_decisions_that_do_not_fit_are_left_out(stages: str, misfits: tuple[str, ...]) -> None:
    losses = {"lr=0.1": 3.0, "lr=1": 1.0, "lr=10": 2.0, "gamma=0.1": 1.0, "gamma=0.5": 2.0}
    decisions = decided(parse(TWO), losses)
    expansion, left_out = fitting(parse(stages), decisions, FACTS)
    assert left_out == misfits
    assert {each.name for each in expansion.stages if each.decision} == decisions.keys() - set(misfits)
    assert decisions.keys() == {"rate", "gamma"}  # what was given is as it was


def test_what_was_expanded_once_is_not_built_again() -> None:
    grid = parse(TEST)
    first, second = expand(grid, {}, FACTS), expand(grid, {}, FACTS)
    decision = due_decisions(grid, first, results_of(first, {"lr=0.1": 3, "lr=1": 1, "lr=10": 2}), {}, NOW)["rate"]
    assert isinstance(decision, Decision)
    third = expand(grid, {"rate": decision}, FACTS)

    assert second.stages[0].experiments is first.stages[0].experiments
    assert third.stages[0].experiments is first.stages[0].experiments
    assert third.stages[1].experiments
    assert second == first != third


def test_other_facts_are_expanded_anew() -> None:
    grid = parse(TWO)
    other = Facts(data={"digits": DataFacts("d" * 64, 10, {}, {})})

    assert not expand(grid, {}, FACTS).runs().keys() & expand(grid, {}, other).runs().keys()
    assert expand(grid, {}, FACTS).runs().keys() == expand(parse(TWO), {}, FACTS).runs().keys()


def test_equal_parts_of_rows_are_one_object() -> None:
    grid = parse("  - {name: one, vary: {model.architecture: [alexnet, resnet18], epochs: [1, 2]}}\n")
    specs = [experiment.spec for experiment in expand(grid, {}, FACTS).stages[0].experiments]

    assert specs[0].model is specs[1].model
    assert specs[0].optimizer is specs[3].optimizer
    assert [spec.model.architecture for spec in specs] == ["alexnet", "alexnet", "resnet18", "resnet18"]
