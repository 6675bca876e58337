"""A grid that is acted on, as the store has it: what is read, how often, and what is told of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pictures import import_pictures
from results import result

from controller.acted import ActedGrid
from controller.archive import gather_facts, write_settings
from controller.grid import Grid, parse_grid
from controller.knowledge import read_decisions
from controller.observe import take_up
from controller.search import Decision, expand, wanted
from controller.settings import parse_settings
from controller.standing import Choice
from trainer.store import FileStore

TEXT = """\
grid: small
base:
  data: {name: pictures, resize: 24, crop: 20}
  model: {architecture: alexnet}
stages:
  - name: lr
    vary: {optimizer.lr: [0.1, 0.01]}
  - name: size
    vary: {batch_size: [8, 16]}
"""
SETTINGS = "image: none:1\nnamespace: lab\nparallelism: 2\n"


@pytest.fixture
def store(file_store: FileStore, tmp_path: Path) -> FileStore:
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    return file_store


def submit(store: FileStore, text: str) -> Grid:
    grid = parse_grid(text, "small.yaml")
    take_up(grid, store, Choice(), update=True)
    write_settings(store, "small", parse_settings(SETTINGS, "settings"))
    return grid


def act(store: FileStore) -> ActedGrid:
    grid = submit(store, TEXT)
    return ActedGrid(grid, store, gather_facts(store, wanted(grid)))


def finish(store: FileStore, grid: Grid, stage: str) -> None:
    """Leave the results of all that the stage compares."""
    expansion = expand(grid, read_decisions(store, grid.name), gather_facts(store, wanted(grid)))
    rows = next(each for each in expansion.stages if each.name == stage).experiments
    for run in {run.id for row in rows for run in row.runs}:
        store.put(f"results/{run}.json", result(run).model_dump_json().encode())


def test_a_decision_that_another_text_allows_is_told_and_nothing_is_read_twice(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted = act(store)
    told: list[Decision] = []
    acted.relist(told.append)
    assert told == []
    updated = submit(store, TEXT.replace("[0.1, 0.01]", "[0.2, 0.02]"))
    finish(store, updated, "lr")
    reads: Counter[str] = Counter()
    get = store.get

    def counted(key: str) -> bytes:
        reads[key] += 1
        return get(key)

    monkeypatch.setattr(store, "get", counted)
    assert acted.relist(told.append)
    assert [each.stage for each in told] == ["lr"]
    assert acted.grid.digest == updated.digest
    assert {number for key, number in reads.items() if key.startswith("results/")} == {1}


def test_a_look_at_the_intent_alone_knows_what_another_text_has_already(store: FileStore) -> None:
    acted = act(store)
    updated = submit(store, TEXT.replace("[0.1, 0.01]", "[0.2, 0.02]"))
    finish(store, updated, "lr")
    told: list[Decision] = []
    assert acted.look_at_intent(told.append)
    assert [each.stage for each in told] == ["lr"]
    assert sum(map(acted.sight.known.is_done, acted.sight.work)) == 2


def test_what_jobs_ask_for_is_worked_out_anew_with_each_stage(store: FileStore) -> None:
    acted = act(store)
    write_settings(store, "small", parse_settings(SETTINGS + "store: {uri: 's3://bucket'}\n", "settings"))
    acted.relist(lambda _: None)
    before = acted.template()
    assert acted.template() is before
    finish(store, acted.grid, "lr")
    acted.relist(lambda _: None)
    assert acted.template() is not before


def test_settings_that_changed_are_read_without_all_else(store: FileStore) -> None:
    acted = act(store)
    view = acted.view()
    acted.look_at_settings()
    assert acted.view() is view
    write_settings(store, "small", parse_settings(SETTINGS.replace("2", "3"), "settings"))
    acted.look_at_settings()
    assert acted.view().parallelism == 3
