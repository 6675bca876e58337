"""`grid pause`, `resume` and `cancel` of one run: in every grid that wants it, with a cluster or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from grids import TEXT
from pictures import import_pictures
from results import result

from controller.archive import read_held, set_intent, write_settings
from controller.cli import main
from controller.grid import parse_grid
from controller.observe import take_up
from controller.settings import parse_settings
from controller.standing import Choice
from trainer.failure import ExitCode
from trainer.store import FileStore

ONE_STAGE = TEXT[: TEXT.index("  - name: smoothing")]
OTHER = ONE_STAGE.replace("grid: small", "grid: other").replace("[0.05, 0.005]", "[0.005, 0.5]")


@pytest.fixture
def store(alone: Path) -> FileStore:
    """A store with two grids, of which the second shares the runs with lr=0.005; and no kubeconfig."""
    store = FileStore(alone / "store")
    import_pictures(store, alone / "pictures", per_class=3)
    for name, text in (("small", TEXT), ("other", OTHER)):
        take_up(parse_grid(text, name), store, Choice())
    return store


def call(*words: str, expected: int = 0) -> Result:
    ended = CliRunner().invoke(main, list(words))
    assert ended.exit_code == expected, ended.output
    return ended


def stage_runs(grid: str, row: str) -> list[dict[str, Any]]:
    """The runs of a row of the stage lr, as `grid status` has them."""
    shown = json.loads(call("status", grid, "--json").stdout)
    (experiment,) = [each for each in shown["stages"][0]["experiments"] if each["experiment"] == row]
    runs: list[dict[str, Any]] = experiment["runs"]
    return runs


def shared_run() -> str:
    run: str = stage_runs("small", "lr=0.005")[0]["run"]
    return run


def test_a_run_is_paused_in_every_grid_that_wants_it(store: FileStore) -> None:
    run, mine = shared_run(), stage_runs("small", "lr=0.05")[0]["run"]
    ended = call("pause", run)
    assert ended.stdout == f"{run}: paused, in grids other, small\n"
    assert read_held(store, "small") == read_held(store, "other") == {run: "paused"}
    assert json.loads(call("cancel", mine, "--json").stdout) == {
        "run": mine,
        "intent": "cancelled",
        "grids": ["small"],
        "did": {},
    }
    assert read_held(store, "small") == {run: "paused", mine: "cancelled"}
    assert mine not in read_held(store, "other")


def test_what_is_paused_or_cancelled_says_so_everywhere(store: FileStore) -> None:
    run, mine = shared_run(), stage_runs("small", "lr=0.05")[1]["run"]
    call("pause", run)
    call("cancel", mine)
    assert (stage_runs("small", "lr=0.005")[0]["state"], stage_runs("small", "lr=0.005")[0]["reason"]) == (
        "waiting",
        "paused",
    )
    assert stage_runs("small", "lr=0.05")[1]["reason"] == "cancelled"
    assert "lr, waiting for 4 of 4 runs, of which 1 paused, 1 cancelled" in call("status", "small").stdout
    rows = json.loads(call("table", "small", "--json").stdout)["stages"][0]["rows"]
    assert [run["reason"] for row in rows for run in row["runs"]].count("paused") == 1
    store.put(f"results/{run}.json", result(run).model_dump_json().encode())
    assert stage_runs("other", "lr=0.005")[0]["state"] == "done"


def test_a_run_that_is_resumed_is_as_its_grids_are(store: FileStore) -> None:
    run = shared_run()
    call("cancel", run)
    set_intent(parse_grid(OTHER, "other"), store, "paused")
    ended = call("resume", run)
    assert ended.stdout == f"{run}: to be trained again, in grids other, small\n"
    assert "grid other is paused: `grid resume other` goes on" in ended.stderr
    assert read_held(store, "small") == read_held(store, "other") == {}
    assert stage_runs("small", "lr=0.005")[0]["reason"] == "never started"
    assert call("resume", run).stdout == f"{run}: nothing of it was paused or cancelled, in grids other, small\n"


def test_a_run_that_no_grid_wants_is_told_as_such(store: FileStore) -> None:
    ended = call("pause", "none-0123456789ab", expected=ExitCode.SPEC)
    assert "which no grid of file://" in ended.stderr
    assert "`grid status GRID --json` shows the ids" in ended.stderr
    assert read_held(store, "small") == {}


def test_settings_are_a_grids_and_not_a_runs(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shared_run()
    assert "--setting: got it with a run" in call("pause", run, "--setting", "parallelism=1", expected=64).stderr
    monkeypatch.setenv("GRID_SETTINGS", "kind")  # which is there for every command
    call("pause", run)
    assert read_held(store, "small") == {run: "paused"}


def test_a_grid_that_cannot_be_read_is_left_out_and_told(store: FileStore) -> None:
    run = shared_run()
    store.put("grids/broken/grid.yaml", b"stages: 3")
    ended = call("pause", run)
    assert "grid broken is left out" in ended.stderr
    assert read_held(store, "other") == {run: "paused"}


def test_a_grid_may_be_named_as_a_run_is(store: FileStore) -> None:
    name = "usual-0123456789ab"
    take_up(parse_grid(ONE_STAGE.replace("grid: small", f"grid: {name}"), name), store, Choice())
    assert "expected a grid that was submitted" in call("pause", name, expected=ExitCode.SPEC).stderr


def test_what_is_said_stands_though_the_cluster_cannot_be_reached(store: FileStore) -> None:
    run = shared_run()
    settings = parse_settings('image: none:1\nnamespace: lab\nstore: {uri: "s3://bucket"}\n', "settings")
    write_settings(store, "small", settings)
    ended = call("pause", run, expected=ExitCode.CLUSTER)
    assert "Jobs are not looked at" in ended.stderr
    assert f"{run} is paused in {store.uri}, in grids other, small" in ended.stderr
    assert read_held(store, "small") == read_held(store, "other") == {run: "paused"}


def test_render_leaves_out_what_is_held(store: FileStore) -> None:
    Path("settings.yaml").write_text('image: none:1\nstore: {uri: "s3://bucket"}\n')
    run = shared_run()
    before = json.loads(call("render", "small", "--settings", "settings.yaml", "--json").stdout)["items"]
    call("pause", run)
    after = json.loads(call("render", "small", "--settings", "settings.yaml", "--json").stdout)["items"]
    assert {job["metadata"]["name"] for job in before} - {job["metadata"]["name"] for job in after} == {run}
