from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import controller.grid
from controller.changes import describe_changes
from controller.grid import Grid, parse_grid, read_grid, shipped_grids
from controller.reference import files, grid_schema
from controller.search import DataFacts, Facts, expand
from trainer.document import read_document
from trainer.failure import SpecError

HEAD = "grid: g\nbase:\n  data: {name: digits}\n  model: {architecture: alexnet}\n"
FOLDER = Path(controller.grid.__file__).parent / "grids"
ONE = HEAD + "stages:\n  - name: one\n"


def parse(text: str, **changes: Any) -> Grid:
    return parse_grid(text, "g.yaml", **changes)


def names_of(text: str, stage: str = "one") -> list[str]:
    grid = parse(text)
    return [row.name for row in grid.candidates(grid.stage(stage))]


def error_of(text: str, **changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        pytest.param("vary: {optimizer.lr: [1e-3, 1E-2]}", ["lr=0.001", "lr=0.01"], id="vary"),
        pytest.param(
            "vary: {optimizer.lr: [0.1, 1], schedule.gamma: [0.5, 0.25]}",
            ["lr=0.1 gamma=0.5", "lr=0.1 gamma=0.25", "lr=1 gamma=0.5", "lr=1 gamma=0.25"],
            id="product",
        ),
        pytest.param(
            "zip: {optimizer.lr: [0.1, 1], batch_size: [8, 16]}",
            ["lr=0.1 batch_size=8", "lr=1 batch_size=16"],
            id="zip",
        ),
        pytest.param(
            "points: [{name: plain, epochs: 2}, {optimizer.lr: 1e-5, epochs: 3}]\n    vary: {batch_size: [8, 16]}",
            [
                "plain batch_size=8",
                "plain batch_size=16",
                "lr=1e-5 epochs=3 batch_size=8",
                "lr=1e-5 epochs=3 batch_size=16",
            ],
            id="points times vary",
        ),
        pytest.param(
            "vary: {augmentation: [none, report_2]}", ["augmentation=none", "augmentation=report_2"], id="presets"
        ),
        pytest.param("vary: {optimizer.name: [sgd, adamw]}", ["optimizer=sgd", "optimizer=adamw"], id="union member"),
        pytest.param(
            "vary: {schedule.name: [cosine]}",
            ["schedule=cosine"],
            id="name of a part",
        ),
        pytest.param(
            "vary: {best.optimizer: [keep], optimizer: [{lr: 1}, {name: adamw}]}",
            ["best.optimizer=keep optimizer={lr: 1}", "best.optimizer=keep optimizer={name: adamw}"],
            id="ambiguous ends",
        ),
        pytest.param(
            "vary: {micro_batch: [null, 8], compile: [true]}",
            ["micro_batch=null compile=true", "micro_batch=8 compile=true"],
            id="null and true",
        ),
        pytest.param("set: {epochs: 3}", ["epochs=3"], id="set alone"),
        pytest.param("keep: {best: validation_accuracy}", ["default"], id="nothing varied"),
        pytest.param(
            "vary: {optimizer.lr: [1, 2], epochs: [3, 4]}\n    exclude: [{optimizer.lr: 1.0, epochs: 3}]",
            ["lr=1 epochs=4", "lr=2 epochs=3", "lr=2 epochs=4"],
            id="exclude",
        ),
        pytest.param(
            "vary: {optimizer: [{lr: 1}, {lr: 2}]}\n    exclude: [{optimizer.lr: 2}]",
            ["optimizer={lr: 1}"],
            id="exclude inside a part",
        ),
    ],
)
def test_rows_are_named_by_what_they_vary(body: str, names: list[str]) -> None:
    assert names_of(f"{ONE}    {body}\n") == names


def test_a_very_long_value_gives_a_short_name_that_stays_its_own() -> None:
    patterns = [
        f"[features.{number}.*, classifier.{number}.*, avgpool.{number}.*, x.{number}.*]" for number in (10, 11)
    ]
    names = names_of(f"{ONE}    vary: {{model.freeze: [{', '.join(patterns)}]}}\n")

    assert len(set(names)) == 2
    assert all(len(name) < 80 for name in names)


def test_a_further_value_renames_no_row() -> None:
    before = names_of(f"{ONE}    vary: {{optimizer.lr: [0.1, 1]}}\n")

    assert set(before) < set(names_of(f"{ONE}    vary: {{optimizer.lr: [1, 0.1, 7]}}\n"))


VALUES = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@settings(deadline=None)
@given(VALUES, VALUES, VALUES, st.data())
def test_a_product_has_every_combination_once_but_for_those_excluded(
    lrs: list[int], batches: list[int], epochs: list[int], data: st.DataObject
) -> None:
    gone = (data.draw(st.sampled_from(lrs)), data.draw(st.sampled_from(epochs)))
    excluded = len(lrs) * len(epochs) > 1
    text = f"{ONE}    vary: {{optimizer.lr: {lrs}, batch_size: {batches}, epochs: {epochs}}}\n"
    if excluded:
        text += f"    exclude: [{{optimizer.lr: {gone[0]}, epochs: {gone[1]}}}]\n"
    grid = parse(text)
    rows = grid.candidates(grid.stages[0])
    combinations = [tuple(row.values.values()) for row in rows]

    wanted = [(a, b, c) for a in lrs for b in batches for c in epochs if not excluded or (a, c) != gone]
    assert combinations == wanted
    assert len({row.name for row in rows}) == len(rows)
    assert rows == parse(text).candidates(parse(text).stages[0])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(
            "vary:\n      optimizer.lrr: [1]\n",
            "g.yaml:8: stages[0].vary.optimizer.lrr: unknown key; got 'lrr'\nhint: did you mean 'lr'?",
            id="key",
        ),
        pytest.param("vary: {lr: [1]}\n", "hint: did you mean 'optimizer.lr'?", id="short key"),
        pytest.param("vary: {optimiser.lr: [1]}\n", "did you mean 'optimizer'?", id="part"),
        pytest.param(
            "vary: {optimizer.lr: []}\n",
            "stages[0].vary.optimizer.lr: got [], expected at least 1 item",
            id="no values",
        ),
        pytest.param("vary: {optimizer.lr: 1}\n", "stages[0].vary.optimizer.lr: got 1, expected a list", id="no list"),
        pytest.param("vary: {optimizer.lr: [1e-3, 0.001]}\n", "got 0.001 a second time", id="value twice"),
        pytest.param(
            "zip: {optimizer.lr: [1, 2], epochs: [1]}\n",
            "optimizer.lr has 2, epochs has 1; expected one length",
            id="zip",
        ),
        pytest.param(
            "set: {epochs: 1}\n    vary: {epochs: [2]}\n", "is set here and varied in the same stage", id="set and vary"
        ),
        pytest.param("zip: {epochs: [1]}\n    vary: {epochs: [2]}\n", "stands in vary too", id="zip and vary"),
        pytest.param(
            "points: [{name: a, epochs: 1}, {name: a, epochs: 2}]\n", "got 'a' 2 times", id="point's name twice"
        ),
        pytest.param("points: [{epochs: 1}, {epochs: 1.0}]\n", "two rows are named 'epochs=1'", id="row twice"),
        pytest.param(
            "points: [{name: 3}]\n", "stages[0].points[0].name: got 3, expected text", id="name that is a number"
        ),
        pytest.param(
            "vary: {epochs: [1]}\n    exclude: [{epochs: 2}]\n",
            "stages[0].exclude[0]: got {epochs: 2}, which fits no row",
            id="idle exclude",
        ),
        pytest.param("vary: {epochs: [1]}\n    exclude: [{epochs: 1}]\n", "excludes every row", id="all excluded"),
        pytest.param(
            "vary: {epochs: [1]}\n    exclude: [{epoch: 1}]\n", "did you mean 'epochs'?", id="exclude of another key"
        ),
        pytest.param(
            "keep: {this: {epochs: 1}}\n    vary: {epochs: [1]}\n",
            "stages[0].keep.because: missing key; expected the reason",
            id="no reason",
        ),
        pytest.param(
            "keep: {best: test_accuracy}\n", "got 'test_accuracy', expected validation_loss", id="keep by the test part"
        ),
        pytest.param(
            "keep: {bset: validation_loss}\n",
            "stages[0].keep.bset: unknown key; got 'bset'\nhint: did you mean 'best'?",
            id="keep misspelt",
        ),
        pytest.param(
            "keep: {this: {lr: 1}, because: x}\n    vary: {optimizer.lr: [1]}\n",
            "expected a key that stage 'one' varies",
            id="pinned by another key",
        ),
        pytest.param("from: two\n", "got 'two', expected base or an earlier stage", id="from nowhere"),
        pytest.param("on_failed: ignored\n", "did you mean 'ignore'?", id="on_failed"),
        pytest.param(
            "varry: {}\n", "stages[0].varry: unknown key; got 'varry'\nhint: did you mean 'vary'?", id="stage key"
        ),
        pytest.param("seeds: [1, 1]\n", "stages[0].seeds[1]: got 1 a second time", id="seed twice"),
        pytest.param("test: {best: 2}\n", "got no stage before it", id="nothing to test"),
    ],
)
def test_a_wrong_stage_is_told_with_line_and_cure(body: str, told: str) -> None:
    assert told in error_of(f"{ONE}    {body}")


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        pytest.param("- {name: one}\n  - {name: one}", "got 'one' a second time", id="name twice"),
        pytest.param("- {name: base}", "got 'base', expected another name", id="base"),
        pytest.param("- {name: a/b}", "stages[0].name: got 'a/b', expected text that matches", id="unsafe name"),
        pytest.param(
            "- {name: one}\n  - {name: t, test: {best: 1}}\n  - {name: two}",
            "add `from:` with one of one, base",
            id="after a test",
        ),
        pytest.param(
            "- {name: one}\n  - {name: t, test: {best: 1}}\n  - {name: two, from: t}",
            "got 't', expected base or",
            id="from a test",
        ),
        pytest.param(
            "- {name: one}\n  - {name: t, test: {best: 1, of: [ome]}}", "did you mean 'one'?", id="test of nothing"
        ),
        pytest.param(
            "- {name: one}\n  - {name: t, test: {best: 0}}", "got 0, expected a number greater than 0", id="best 0"
        ),
        pytest.param(
            "- {name: one}\n  - {name: t, test: {best: 1}, vary: {epochs: [1]}}",
            "stages[1].vary: not in a test stage",
            id="test with rows",
        ),
        pytest.param("[]", "stages: got [], expected at least 1 item", id="none"),
    ],
)
def test_stages_that_do_not_fit_together_are_told(stages: str, told: str) -> None:
    assert told in error_of(f"{HEAD}stages:\n  {stages}\n")


def test_what_a_stage_leaves_out_is_filled_in() -> None:
    text = HEAD.replace("base:", "base:\n  best: {metric: validation_accuracy}")
    grid = parse(text + "stages: [{name: a}, {name: b}, {name: c, from: base}, {name: t, test: {best: 2}}]\n")

    assert [stage.start for stage in grid.stages] == ["base", "a", "base", None]
    assert grid.stages[1].model_dump()["keep"] == {"best": "validation_accuracy"}
    assert grid.stages[3].model_dump()["test"] == {"best": 2, "by": "validation_accuracy", "of": ("a", "b", "c")}


@pytest.mark.parametrize(("seeds", "wanted"), [("3", (0, 1, 2)), ("[5, 1]", (5, 1))])
def test_seeds_are_a_number_or_a_list(seeds: str, wanted: tuple[int, ...]) -> None:
    assert parse(f"seeds: {seeds}\n{ONE}").seeds == wanted


def test_set_changes_the_base_and_the_grids_own_keys() -> None:
    grid = parse(
        ONE, sets=["optimizer.lr=1e-2", "augmentation=report_1", "seeds=[3, 4]", "max_failed=2", "base.epochs=3"]
    )

    assert grid.base["optimizer"] == {"lr": 0.01}
    assert (grid.base["augmentation"], grid.base["epochs"]) == ("report_1", 3)
    assert (grid.seeds, grid.max_failed) == ((3, 4), 2)


def test_a_deadline_is_a_moment_that_changes_no_run() -> None:
    moment = datetime(2026, 12, 1, 8, tzinfo=UTC)
    grid = parse("deadline: 2026-12-01T09:00:00+01:00\n" + ONE)
    assert grid.deadline == parse(grid.text()).deadline == moment
    assert parse(ONE, sets=["deadline=2026-12-01T08:00:00Z"]).deadline == moment
    facts = Facts({"digits": DataFacts("a" * 64, 10, {}, {})}, {}, {})
    assert expand(grid, {}, facts).runs().keys() == expand(parse(ONE), {}, facts).runs().keys()
    assert parse(ONE).deadline is None


@pytest.mark.parametrize("text", ["2026-12-01", "2026-12-01T08:00:00", "2026-13-01T08:00:00Z", "soon"])
def test_a_deadline_that_names_no_moment_is_told(text: str) -> None:
    told = f"g.yaml:1: deadline: got '{text}', expected a moment with its offset from UTC, YYYY-MM-DDThh:mm:ssZ"
    assert error_of(f"deadline: {text}\n{ONE}") == told


def test_set_reaches_into_a_named_pipeline() -> None:
    grid = parse(ONE, sets=["augmentation=report_1", "augmentation.rotation=10"])

    assert grid.base["augmentation"] == {
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "rotation": 10,
        "perspective": {},
    }


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("lr=1", "did you mean 'optimizer.lr'?"),
        ("epocs=1", "did you mean 'epochs'?"),
        ("seed=1", "did you mean 'seeds'?"),
        ("optimizer.lr", "expected key=value"),
        ("epochs=-1", "--set epochs=-1: base.epochs: got -1, expected a number greater than 0"),
        ("epochs=[", "--set epochs=[:1: not YAML"),
        ("batch_size=8", "stage 'one' gives batch_size its own values, which win over the base"),
        ("keep=worst", "got 'worst', expected best"),
    ],
)
def test_a_wrong_set_is_told(assignment: str, told: str) -> None:
    assert told in error_of(f"{ONE}    vary: {{batch_size: [1, 2]}}\n", sets=[assignment])


PINNED = f"""{HEAD}stages:
  - name: one
    vary: {{optimizer.lr: [1, 2]}}
    keep: {{this: {{optimizer.lr: 2}}, because: so}}
  - name: t
    test: {{these: [{{stage: one, this: {{optimizer.lr: 1}}}}], because: so}}
"""


def test_keep_best_puts_the_rule_in_the_place_of_every_pinned_choice() -> None:
    grid = parse(PINNED, sets=["keep=best"])

    assert grid.stages[0].model_dump()["keep"] == {"best": "validation_loss"}
    assert grid.stages[1].model_dump()["test"] == {"best": 1, "by": "validation_loss", "of": ("one",)}


def test_the_number_of_seeds_goes_over_those_of_stages() -> None:
    grid = parse(f"{ONE}    seeds: [7]\n", seeds=2)

    assert grid.stage_seeds(grid.stages[0]) == grid.seeds == (0, 1)


@pytest.mark.parametrize("sets", [(), ("keep=best",), ("epochs=3", "seeds=[4, 2]", "augmentation.hue=0.1")])
def test_the_canonical_text_reads_back_as_the_same_grid(sets: tuple[str, ...]) -> None:
    grid = parse(PINNED, sets=sets)
    again = parse(grid.text())

    assert again.text() == grid.text()
    assert again.digest == grid.digest
    assert describe_changes(grid, again) == []


def test_order_of_keys_spelling_and_defaults_change_no_digest() -> None:
    one = parse(f"{ONE}    vary: {{optimizer.lr: [1e-3]}}\n")
    two = parse(
        "# a comment\nseeds: 1\nstages: [{on_failed: stop, vary: {optimizer.lr: [0.001]}, name: one}]\n"
        "base: {model: {architecture: alexnet}, data: {name: digits}}\ngrid: g\n"
    )

    assert one.digest == two.digest
    assert parse(ONE, sets=["epochs=4"]).digest != parse(ONE).digest


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("alexnet", "resnet18", "base.model.architecture: 'alexnet' becomes 'resnet18'"),
        ("grid: g", "seeds: 2\ngrid: g", "seeds: 0 becomes 0, 1"),
        (
            "grid: g",
            "deadline: 2026-12-01T08:00:00Z\ngrid: g",
            "deadline: null becomes 2026-12-01T08:00:00+00:00",
        ),
        ("[1, 2]", "[1, 3, 4]", "stage one: loses row lr=2"),
        ("[1, 2]", "[1, 3, 4]", "stage one: gains rows lr=3, lr=4"),
        ("[1, 2]", "[2, 1]", "stage one: rows in another order"),
        ("because: so}\n  -", "because: else}\n  -", "stage one: keep.because: 'so' becomes 'else'"),
        (
            "{this: {name: lr=1}, because: so}\n  -",
            "{best: validation_loss}\n  -",
            "stage one: keep: the row with name 'lr=1' becomes the best by validation_loss",
        ),
        (
            "{these: [{stage: one, this: {optimizer.lr: 1}}], because: so}",
            "{best: 1}",
            "stage t: test: the row of one with optimizer.lr 1 becomes the best 1 by validation_loss",
        ),
        ("name: t", "name: u", "stage t: removed"),
        ("name: t", "name: u", "stage u: added"),
        ("    vary", "    on_failed: ignore\n    vary", "stage one: on_failed: 'stop' becomes 'ignore'"),
    ],
)
def test_changes_are_told_in_words(old: str, new: str, told: str) -> None:
    text = PINNED.replace("{optimizer.lr: 2}, because", "{name: lr=1}, because")

    changes = describe_changes(parse(text), parse(text.replace(old, new)))

    assert any(told in line for line in changes), changes


def test_a_pinned_row_that_changes_is_told_by_its_values() -> None:
    pins = "keep: {this: {optimizer.lr: 0.01}, because: the best of three seeds over all the rows that there were}\n"
    test = "  - name: t\n    test: {these: [{stage: one, this: {optimizer.lr: 0.01}}], because: so}\n"
    text = f"{ONE}    vary: {{optimizer.lr: [0.01, 0.1]}}\n    set: {{epochs: 3}}\n    {pins}{test}"
    other = text.replace("lr: 0.01", "lr: 0.1").replace("epochs: 3", "epochs: 4")

    assert describe_changes(parse(text), parse(other)) == [
        "stage one: set.epochs: 3 becomes 4",
        "stage one: keep.this.optimizer.lr: 0.01 becomes 0.1",
        "stage t: test.these[0].this.optimizer.lr: 0.01 becomes 0.1",
    ]


def test_a_point_whose_values_change_is_told() -> None:
    text = f"{ONE}    points: [{{name: a, epochs: 1}}]\n"

    assert describe_changes(parse(text), parse(text.replace("1}", "2}"))) == ["stage one: changes the values of row a"]


@pytest.mark.parametrize("name", [name for name, _ in shipped_grids()])
def test_shipped_grids_are_read_by_name_and_say_what_they_are(name: str) -> None:
    grid = read_grid(name)

    assert grid.name == name
    assert grid.description


def test_a_grid_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(ONE)

    assert read_grid(str(path)).text() == read_grid(path).text() == parse(ONE).text()


@pytest.mark.parametrize(
    ("name", "told"),
    [("dmo", "did you mean 'demo'?"), ("nowhere.yaml", "nowhere.yaml: no such file"), ("a/b", "a/b: no such file")],
)
def test_a_grid_that_is_not_there_is_told(name: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_grid(name)

    assert told in str(caught.value)


def test_a_grid_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(SpecError, match="not readable as UTF-8"):
        read_grid(path)


def test_the_references_are_what_the_models_come_to() -> None:
    docs = Path(__file__).parents[2] / "docs"

    assert {name: (docs / name).read_text() for name in files()} == files()


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (PINNED, True),
        (f"{ONE}    vary: {{augmentation.hue: [0.1], data.normalize: [half, {{mean: [0, 0, 0]}}]}}\n", True),
        (f"{ONE}    points: [{{name: a, model.arguments.dropout: 0.1}}]\n", True),
        (f"{ONE}    vary: {{augmentation.hoo: [0.1]}}\n", False),
        (f"{ONE}    vary: {{optimizer.lr: [-1]}}\n", False),
        (f"{ONE}    keep: {{best: test_accuracy}}\n", False),
        ("grid: g\ninclude: [demo, {grid: report, stages: [a]}]\n", True),
        ("grid: g\ninclude: [demo]\nbase: {}\n", False),
        (f"forms: {{mini: {{set: {{epochs: 1}}, map: {{batch_size: {{8: 4}}}}}}}}\n{ONE}", True),
        (f"forms: {{mini: {{set: {{epoch: 1}}}}}}\n{ONE}", False),
        (f"{ONE}    published: {{rows: [{{this: {{name: a}}, numbers: {{validation_loss: 1}}}}]}}\n", True),
        (f"{ONE}    published: {{rows: [{{this: {{name: a}}, numbers: {{los: 1}}}}]}}\n", False),
    ],
    ids=[
        *("pinned", "parts", "arguments", "unknown key", "wrong value", "wrong rule", "including", "including a base"),
        *("a form", "a form's wrong key", "published", "an unknown metric"),
    ],
)
def test_the_schema_takes_what_the_reader_takes(text: str, fits: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    plain = json.loads(json.dumps(read_document(text, "g.yaml").value))
    jsonschema.Draft202012Validator.check_schema(grid_schema())

    assert jsonschema.Draft202012Validator(grid_schema()).is_valid(plain) is fits


@pytest.mark.parametrize("name", [name for name, _ in shipped_grids()])
def test_the_schema_takes_shipped_grids(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    written = read_document((FOLDER / f"{name}.yaml").read_text(), name).value
    for value in (written, read_grid(name).document.value):
        jsonschema.validate(json.loads(json.dumps(value)), grid_schema())


def test_the_schema_knows_dotted_keys() -> None:
    definitions = grid_schema()["$defs"]

    assert definitions["Lists"]["properties"]["optimizer.lr"]["items"]["exclusiveMinimum"] == 0
    assert definitions["Values"]["additionalProperties"] is False


def test_a_grid_whose_stages_are_all_wrong_is_told_that_alone() -> None:
    said = error_of(ONE + "    vary: {optimizer.lr: []}\n")
    assert "vary" in said
    assert "stages: got" not in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            f"{HEAD}seeds: [-1, 3]\nstages: [{{name: a}}]\n",
            "seeds[0]: got -1, expected a number of at least 0",
            id="a-seed-below-zero",
        ),
        pytest.param(
            f'{HEAD}stages: [{{name: a, points: [{{name: "a\\nb", epochs: 1}}]}}]\n',
            "name: got 'a\\nb', expected one line of at most 120 printable characters, without space around it",
            id="a-name-of-two-lines",
        ),
        pytest.param(
            f"{HEAD}stages: [{{name: a, points: [{{name: '{'x' * 121}', epochs: 1}}]}}]\n",
            "expected one line of at most 120 printable characters",
            id="a-name-that-fits-no-table",
        ),
        pytest.param(
            f"{HEAD}stages: [{{name: a, set: {{model.weights: ../../etc/x}}}}]\n",
            "model.weights: got '../../etc/x', expected a file below the store's weights/",
            id="weights-outside-the-store",
        ),
    ],
)
def test_one_fault_is_told_once_and_at_its_place(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(parse(text), {}, Facts(data={"digits": DataFacts("a" * 64, 2, {}, {})}))

    assert told in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_a_key_that_holds_anchors_is_no_part_of_the_grid() -> None:
    plain = parse(f"{HEAD}stages: [{{name: a, set: {{epochs: 2}}}}]\n")
    anchored = parse(f"x-few: &few {{epochs: 2}}\n{HEAD}stages: [{{name: a, set: *few}}]\n")

    assert anchored.digest == plain.digest
    assert "x-few" not in anchored.text()


WANTED_SEEDS = "expected how many seeds, from 1 on, or a list of seeds such as [0, 1, 2]"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param("x", f"seeds: got 'x', {WANTED_SEEDS}", id="a word"),
        pytest.param("0", f"seeds: got 0, {WANTED_SEEDS}", id="none"),
        pytest.param("-1", f"seeds: got -1, {WANTED_SEEDS}", id="less than none"),
        pytest.param("1.5", f"seeds: got 1.5, {WANTED_SEEDS}", id="a fraction"),
        pytest.param("'3'", f"seeds: got '3', {WANTED_SEEDS}\nhint: write 3, without quotes", id="a number in quotes"),
        pytest.param("[]", f"seeds: got [], {WANTED_SEEDS}", id="an empty list"),
        pytest.param("null", f"seeds: got null, {WANTED_SEEDS}", id="null"),
        pytest.param("true", f"seeds: got true, {WANTED_SEEDS}", id="yes"),
        pytest.param("10001", "seeds: got 10001, expected a number of at most 10000", id="too many"),
        pytest.param(f"1{'0' * 30}", "expected a number of at most 10000", id="more than there are"),
        pytest.param("[0, a]", "seeds[1]: got 'a', expected a whole number", id="a word in a list"),
        pytest.param("[0, -1]", "seeds[1]: got -1, expected a number of at least 0", id="a negative seed"),
        pytest.param(f"[{1 << 53}]", f"expected a number of at most {(1 << 53) - 1}", id="not exact in JSON"),
        pytest.param(
            "[1, 1]",
            "seeds[1]: got 1 a second time, expected each seed once\nhint: equal seeds give the same run: ",
            id="twice",
        ),
    ],
)
def test_seeds_that_are_none_are_told_with_what_they_may_be(given: str, told: str) -> None:
    assert told in error_of(f"seeds: {given}\n{ONE}")


def test_seeds_of_a_stage_may_be_null_as_well() -> None:
    assert f"stages[0].seeds: got 'x', {WANTED_SEEDS}, or null" in error_of(f"{ONE}    seeds: x\n")


def test_a_large_number_is_named_shortly() -> None:
    text = f"{ONE}    vary: {{optimizer.lr: [1e30, 1e-7, 1e15]}}\n"

    assert names_of(text) == ["lr=1e+30", "lr=1e-7", "lr=1000000000000000"]
