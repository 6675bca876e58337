from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from controller.grid import Grid, parse_grid, read_grid
from controller.plan import (
    Bounds,
    Plan,
    Sizes,
    Speed,
    SpeedKey,
    make_plan,
    plan_text,
    refuse_lacking,
    shapes_of,
    speeds_of,
)
from controller.search import DataFacts, Facts, expand
from controller.standing import Choice
from trainer.failure import DataError
from trainer.result import Result
from trainer.sizes import Size

HEAD = "grid: g\nbase:\n  data: {name: digits, resize: 32, crop: 32}\n  model: {architecture: alexnet}\n"
CHAIN = """\
stages:
  - name: rate
    vary: {optimizer.lr: [0.1, 1, 10]}
  - name: decay
    vary: {optimizer.weight_decay: [5e-5, 1e-3]}
  - name: again
    vary: {optimizer.lr: [1, 100], optimizer.weight_decay: [5e-5]}
  - {name: test, test: {best: 2}}
"""
PINNED_TEST = """\
stages:
  - {name: rate, vary: {optimizer.lr: [0.1, 1]}}
  - {name: test, test: {these: [{stage: rate, this: {optimizer.lr: 1}}], because: it is round}}
"""
FACTS = Facts(
    data={
        "digits": DataFacts(
            fingerprint="a" * 64,
            num_classes=2,
            class_counts={"train": (60, 40), "validation": (30, 20), "test": (10, 10)},
            aspect_sums={"train": 150.0, "validation": 50.0, "test": 20.0},
        )
    }
)


def plan_of(
    grid: Grid,
    existing: int = 0,
    speeds: dict[SpeedKey, Speed] | None = None,
    facts: Facts = FACTS,
    choice: Choice | None = None,
) -> Plan:
    """The plan when the first `existing` of the known runs have a result."""
    expansion = expand(grid, {}, facts)
    return make_plan(grid, expansion, facts, set(list(expansion.runs())[:existing]), speeds or {}, choice)


def parse(text: str, **changes: Any) -> Grid:
    return parse_grid(text, "g.yaml", **changes)


def test_open_stages_have_bounds_over_every_way_they_may_be_decided() -> None:
    plan = plan_of(parse(HEAD + CHAIN))
    rate, decay, again, test = plan.stages

    assert (rate.new, rate.shared) == (Bounds(3, 3), Bounds(0, 0))
    assert (decay.new, decay.shared) == (Bounds(1, 1), Bounds(1, 1))
    assert (again.new, again.shared) == (Bounds(1, 1), Bounds(1, 1))
    assert (test.new, test.num_rows) == (Bounds(0, 0), 2)
    assert (plan.distinct, plan.new_now) == (Bounds(5, 5), 3)


def test_bounds_differ_where_the_choice_matters() -> None:
    text = HEAD + "stages:\n  - {name: one, vary: {epochs: [30, 40]}}\n  - {name: two, set: {optimizer.lr: 1e-3}}\n"
    three = (
        text
        + "  - {name: three, from: one, vary: {epochs: [30, 50]}}\n  - {name: four, vary: {epochs: [40, 50, 60]}}\n"
    )
    by_name = {stage.name: stage for stage in plan_of(parse(three)).stages}

    assert by_name["two"].new == Bounds(0, 0)
    assert by_name["three"].new == Bounds(1, 1)
    assert by_name["four"].new == Bounds(1, 1)
    batches = "  - {name: three, set: {epochs: 40}}\n"
    first = text.replace("vary: {epochs: [30, 40]}", "points: [{epochs: 30}, {epochs: 40, batch_size: 8}]")
    assert plan_of(parse(first + batches)).stages[2].new == Bounds(0, 1)
    assert str(plan_of(parse(first + batches)).new) == "2-3"


@pytest.mark.parametrize(
    ("sets", "is_told"),
    [
        pytest.param([], True, id="as-published"),
        pytest.param(["data.images_per_class=2"], False, id="of-other-data-anyhow"),
    ],
)
def test_data_that_published_figures_are_not_of_is_told(sets: list[str], is_told: bool) -> None:
    grid = read_grid("from_scratch", sets)
    data = DataFacts("d" * 64, 101, {"train": (20,) * 101}, other_split="got another split")
    planned = plan_of(grid, facts=Facts({"caltech101": data}))
    assert planned.other_data == (("data set caltech101: got another split",) if is_told else ())
    assert ("note: data set caltech101: got another split" in plan_text(planned)) == is_told


def test_every_run_is_counted_once_for_each_seed() -> None:
    plan = plan_of(parse(HEAD + CHAIN, seeds=3))

    assert (plan.distinct, plan.stages[0].num_runs, plan.stages[3].num_runs) == (Bounds(15, 15), 9, 6)


@pytest.mark.parametrize(
    ("choice", "rows", "distinct", "new_now"),
    [
        pytest.param(Choice("lr=1"), [1, 0, 0, 2], "1", 1, id="by-the-experiment"),
        pytest.param(Choice("*=5e-5"), [0, 1, 2, 2], "2-3", 0, id="in-stages-that-wait"),
        pytest.param(Choice("alexnet-*"), [3, 2, 2, 2], "5", 3, id="by-ids"),
        pytest.param(Choice(stages=("decay", "again")), [2, 2], "3-4", 0, id="by-the-stage"),
        pytest.param(Choice("lr=1", ("rate",)), [1], "1", 1, id="by-both"),
        pytest.param(Choice("nothing"), [0, 0, 0, 2], "0", 0, id="none"),
    ],
)
def test_what_is_not_chosen_is_not_counted(choice: Choice, rows: list[int], distinct: str, new_now: int) -> None:
    plan = plan_of(parse(HEAD + CHAIN), choice=choice)

    assert [stage.num_rows for stage in plan.stages] == rows
    assert (str(plan.distinct), str(plan.new), plan.new_now) == (distinct, distinct, new_now)
    assert len([run for stage in plan.stages for row in stage.rows for run in row.runs]) == new_now


def test_a_plan_of_a_part_says_so() -> None:
    text = plan_text(plan_of(parse(HEAD + CHAIN), choice=Choice("lr=1", ("rate", "decay"))))

    assert text.splitlines()[1] == "only what --stage rate --stage decay --only 'lr=1' takes is counted"
    assert "total: 1 distinct run " in text


def test_one_run_may_be_planned_by_its_id() -> None:
    whole = plan_of(parse(HEAD + CHAIN, seeds=2))
    run = whole.stages[0].rows[1].runs[1]
    part = plan_of(parse(HEAD + CHAIN, seeds=2), choice=Choice(run, ("rate",)))

    assert [(row.experiment, row.runs) for row in part.stages[0].rows] == [(whole.stages[0].rows[1].experiment, (run,))]
    assert (part.stages[0].num_rows, part.stages[0].num_runs, part.new) == (1, 1, Bounds(1, 1))


def test_results_in_the_store_are_not_trained_again() -> None:
    plan = plan_of(parse(HEAD + CHAIN), existing=2)

    assert (plan.stages[0].new, plan.stages[0].stored) == (Bounds(1, 1), Bounds(2, 2))
    assert [row.states for row in plan.stages[0].rows] == [("stored",), ("stored",), ("new",)]
    assert (plan.new_now, plan.stored, plan.new) == (1, Bounds(2, 2), Bounds(3, 3))


def test_a_pinned_stage_lets_the_next_be_planned_row_by_row() -> None:
    pinned = CHAIN.replace("[0.1, 1, 10]}", "[0.1, 1, 10]}\n    keep: {this: {optimizer.lr: 10}, because: it is round}")
    plan = plan_of(parse(HEAD + pinned))

    assert [row.states for row in plan.stages[1].rows] == [("shared",), ("new",)]
    assert "rate: keeps lr=10 (pinned), because it is round" in plan_text(plan)


def test_too_many_outcomes_give_an_upper_bound() -> None:
    values = [number / 100 for number in range(1, 101)]
    stages = f"""stages:
  - {{name: one, vary: {{optimizer.lr: {values}}}}}
  - {{name: two, vary: {{optimizer.momentum: {[value / 2 for value in values]}}}}}
  - {{name: three, vary: {{schedule.gamma: [0.1, 0.2]}}}}
"""
    plan = plan_of(parse(HEAD + stages))

    assert plan.stages[1].new == Bounds(100, 100)
    assert plan.stages[2].new == Bounds(None, 2)
    assert str(plan.distinct) == "at most 202"


def test_images_and_the_decode_cache_follow_from_the_index() -> None:
    resources = plan_of(parse(HEAD + CHAIN)).resources

    assert resources.images_per_epoch == (("digits", 100, 50),)
    assert resources.cache_bytes == 3 * 32 * 32 * 220


def test_fewer_images_of_each_class_need_less() -> None:
    grid = parse(HEAD.replace("resize: 32", "images_per_class: 25, resize: 32") + CHAIN)
    resources = plan_of(grid).resources

    assert resources.images_per_epoch == (("digits, 25 a class", 50, 45),)
    assert resources.cache_bytes == 3 * 32 * 32 * (75 + 45 + 20)


def test_what_no_result_tells_is_said_to_be_unknown() -> None:
    plan = plan_of(parse(HEAD + CHAIN), facts=Facts(data={"digits": DataFacts("a" * 64, 2, {"train": (1, 1)}, {})}))

    assert (plan.resources.cache_bytes, plan.resources.seconds, plan.resources.checkpoint_bytes) == (None, None, None)
    text = plan_text(plan)
    assert "memory, checkpoint size, time: unknown until the first run of alexnet" in text
    assert "scratch: unknown, the index has no image sizes" in text


def test_earlier_results_tell_time_memory_and_checkpoint_size() -> None:
    speeds = {SpeedKey("alexnet", 256, 32, 32): Speed(50.0, 2_000_000_000, 1_000_000, 1_000_000)}
    resources = plan_of(parse(HEAD + CHAIN), existing=1, speeds=speeds).resources

    assert resources.seconds == pytest.approx(2 * 30 * 150 / 50)
    assert (resources.num_timed, resources.num_untimed) == (2, 0)
    assert resources.peak_memory_bytes == 2_000_000_000
    assert resources.checkpoint_bytes == 4 * 1_000_000 * 3


def test_speeds_come_from_results_of_like_runs() -> None:
    spec = {"model": {"architecture": "alexnet"}, "batch_size": 256, "data": {"resize": 32, "crop": 32}}
    results = [_result(spec, speed) for speed in (10, 30, 20)] + [_result({"another": "trainer"}, 1)]

    assert speeds_of(results) == {SpeedKey("alexnet", 256, 32, 32): Speed(20, 30, 7, 5)}


def _result(spec: dict[str, Any], speed: float) -> Result:
    return Result.model_construct(
        spec=spec,
        images_per_second=speed,
        peak_memory_bytes=int(speed),
        num_parameters=7,
        num_trainable_parameters=5,
    )


def test_the_text_is_a_table_with_totals() -> None:
    assert plan_text(plan_of(parse(HEAD + CHAIN, seeds=2))).splitlines()[:9] == [
        "grid g, seeds 0, 1",
        "",
        "stage  starts from  rows  runs  new  shared  in store",
        "─────  ───────────  ────  ────  ───  ──────  ────────",
        "rate   base            3     6    6       0         0",
        "decay  rate            2     4    2       2         0",
        "again  decay           2     4    2       2         0",
        "test   test part       2     4    0       4         0",
        "",
    ]
    text = " ".join(plan_text(plan_of(parse(HEAD + CHAIN, seeds=2))).split())
    assert (
        "total: 10 distinct runs (stages that wait included), 0 in the store, 10 to train, 6 of them known now" in text
    )


def test_a_long_stage_is_cut_short_in_the_text() -> None:
    grid = parse(f"{HEAD}stages:\n  - {{name: one, vary: {{batch_size: {list(range(1, 41))}}}}}\n")

    assert "  … and 28 more rows" in plan_text(plan_of(grid)).splitlines()


@pytest.mark.parametrize("name", ["demo", "from_scratch"])
def test_the_record_is_plain_json(name: str) -> None:
    facts = Facts(data={data: DataFacts("a" * 64, 2, {"train": (1, 1)}, {}) for data in ("digits", "caltech101")})
    grid = read_grid(name)
    plan = make_plan(grid, expand(grid, {}, facts), facts, set(), {})

    assert json.loads(json.dumps(plan.record()))["digest"] == grid.digest


def test_ten_thousand_points_come_to_ten_thousand_runs() -> None:
    lrs, decays = [n / 1000 for n in range(1, 101)], [n / 1e6 for n in range(1, 101)]
    stages = f"stages: [{{name: one, vary: {{optimizer.lr: {lrs}, optimizer.weight_decay: {decays}}}}}]\n"

    assert plan_of(parse(HEAD + stages)).new == Bounds(10_000, 10_000)


LONG = "because the report says so in its second section, where it compares these two with one another at length"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    chain = CHAIN.replace("name: rate", f"name: {'rate-of-learning-' * 3}x").replace("from: rate", "from: base")
    kept = f"    keep: {{this: {{optimizer.lr: 10}}, because: '{LONG}'}}"
    pinned = chain.replace("[0.1, 1, 10]}", f"[0.1, 1, 10]}}\n{kept}")
    text = plan_text(plan_of(parse(HEAD + pinned, seeds=9), choice=Choice("*", ())), width=width)

    assert max(map(len, text.splitlines())) <= width
    assert LONG in " ".join(text.split())


def test_a_tested_run_is_in_the_store() -> None:
    grid = parse(HEAD + PINNED_TEST)
    expansion = expand(grid, {}, FACTS)
    (row,) = expansion.stages[1].experiments
    plan = make_plan(grid, expansion, FACTS, set(), {}, existing_tests={row.runs[0].id})

    assert (plan.stages[1].shared, plan.stages[1].stored) == (Bounds(0, 0), Bounds(1, 1))
    assert plan.stages[1].rows[0].states == ("stored",)


def test_pinned_rows_that_are_not_known_yet_are_counted() -> None:
    later = "  - {name: decay, vary: {optimizer.weight_decay: [0, 1]}}\n  - {name: test, test: {these: ["
    pins = "{stage: rate, this: {optimizer.lr: 1}}, {stage: decay, this: {optimizer.weight_decay: 1}}"
    grid = parse(
        f"{HEAD}{PINNED_TEST.splitlines()[0]}\n{PINNED_TEST.splitlines()[1]}\n{later}{pins}], because: so}}}}\n"
    )
    stage = plan_of(grid, 0).stages[2]
    assert stage.waiting == "for the rows of decay to be known"
    assert (stage.num_rows, stage.num_runs) == (2, 2)


def test_a_test_stage_that_wants_more_rows_than_there_are_says_so() -> None:
    stages = """stages:
  - {name: rate, vary: {optimizer.lr: [0.1, 1, 10]}}
  - {name: test, test: {best: 9}}
"""
    plan = plan_of(parse(HEAD + stages))

    assert plan.stages[1].num_rows == 3
    assert "test: tests best 9 by validation_loss, 3 rows at most" in plan_text(plan)


SIZE = Size(
    num_parameters=1000,
    num_trainable_parameters=900,
    num_buffers=24,
    image_bytes=10_000,
    largest_bytes=1_000,
    process_bytes=500_000_000,
)


def test_a_network_that_never_ran_has_an_estimate_by_its_size() -> None:
    grid = parse(HEAD + CHAIN)
    expansion = expand(grid, {}, FACTS)
    (shape,) = shapes_of(expansion, FACTS)
    resources = make_plan(grid, expansion, FACTS, set(), {}, sizes=Sizes({shape.key: SIZE})).resources

    assert resources.checkpoint_bytes == 4 * (2 * 1024 + 900)
    assert resources.estimated_memory_bytes == 500_000_000 + 4 * 900 + 2 * 4 * (2 * 1024 + 900) + 256 * 12_000
    assert resources.peak_memory_bytes is None


def test_a_network_that_cannot_be_measured_says_why() -> None:
    grid = parse(HEAD + CHAIN)
    expansion = expand(grid, {}, FACTS)
    (shape,) = shapes_of(expansion, FACTS)
    text = plan_text(make_plan(grid, expansion, FACTS, set(), {}, sizes=Sizes({}, {shape.key: "no torch here"})))

    assert "memory, checkpoint size, time: unknown until the first run of alexnet" in text
    assert "alexnet: its size is not known: no torch here" in text


def test_networks_are_counted_once_however_many_rows_train_them() -> None:
    stages = "stages: [{name: one, vary: {optimizer.lr: [1, 2], model.architecture: [alexnet, resnet18]}}]\n"
    grid = parse(HEAD + stages)

    shapes = shapes_of(expand(grid, {}, FACTS), FACTS)
    assert [(shape.model.architecture, shape.num_classes) for shape in shapes] == [("alexnet", 2), ("resnet18", 2)]


LACKING = """\
stages:
  - name: start
    points:
      - {name: scratch}
      - {name: transferred, model.weights: alexnet-owt-7be5be79.pth}
  - {name: lr, vary: {optimizer.lr: [1, 10]}}
  - {name: test, test: {these: [{stage: start, this: {name: transferred}}], because: why not}}
"""


def lacking_plan(grid: Grid) -> Plan:
    facts = replace(FACTS, weights={"alexnet-owt-7be5be79.pth": "0" * 64})
    error = DataError("no weights/alexnet-owt-7be5be79.pth", hint="`grid weights import it`")
    return make_plan(grid, expand(grid, {}, facts), facts, set(), {}, lacking={"alexnet-owt-7be5be79.pth": error})


def test_runs_that_lack_their_weights_are_told_with_the_cure_and_without_ids() -> None:
    plan = lacking_plan(parse(HEAD + LACKING, seeds=2))
    start, _, test = plan.stages
    assert [(row.experiment, len(row.runs), row.states) for row in start.rows] == [
        ("scratch", 2, ("new", "new")),
        ("transferred", 0, ("lacking", "lacking")),
    ]
    assert (test.rows[0].runs, test.num_runs) == ((), 2)
    [lacking] = plan.lacking
    assert (lacking.experiments, lacking.num_runs) == (("start/transferred",), 2)
    text = plan_text(plan)
    assert "transferred  id known later" in text
    assert "alexnet-owt-7be5be79.pth is missing: 2 runs start from it: start/transferred" in text
    assert "  hint: `grid weights import it`" in text
    assert json.loads(json.dumps(plan.record()))["lacking"][0]["cure"] == "`grid weights import it`"
    with pytest.raises(DataError, match=r"no weights/alexnet-owt-7be5be79\.pth"):
        refuse_lacking(plan.lacking)


def test_a_plan_that_lacks_nothing_is_not_refused() -> None:
    plan = plan_of(parse(HEAD + CHAIN))
    assert plan.lacking == ()
    refuse_lacking(plan.lacking)


def test_weights_of_rows_that_are_not_known_yet_are_told_too() -> None:
    text = LACKING.replace(
        "vary: {optimizer.lr: [1, 10]}", "set: {model.weights: b.pth}, vary: {optimizer.lr: [1, 10]}"
    )
    grid = parse(
        HEAD + text.replace("{name: transferred, model.weights: alexnet-owt-7be5be79.pth}", "{name: transferred}")
    )
    facts = replace(FACTS, weights={"b.pth": "0" * 64})
    plan = make_plan(grid, expand(grid, {}, facts), facts, set(), {}, lacking={"b.pth": DataError("no b.pth")})
    assert "b.pth is missing: rows of stages that wait may start from it" in plan_text(plan)
