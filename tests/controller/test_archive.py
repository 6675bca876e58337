"""What the store keeps of a grid: one text under a name, decisions written once, and nothing lost by an update."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pictures import import_pictures

from controller.archive import (
    HEAD_BYTES,
    ZIP_HEAD,
    adopt,
    check_weights_head,
    clear_failures,
    data_facts,
    decision_key,
    gather_facts,
    grid_key,
    grids_naming,
    hold_run,
    read_held,
    read_intent,
    record_decision,
    record_failure,
    reopen,
    set_intent,
    stored_grid,
    stored_grids,
    stored_settings,
    wanted_of,
    weights_sha256,
    write_run_spec,
    write_settings,
)
from controller.grid import Grid, parse_grid
from controller.knowledge import read_decisions, read_failures
from controller.search import Decision, Expansion, Facts, RowSeen, expand, wanted
from controller.settings import parse_settings
from trainer.dataset import PARTS, load_index
from trainer.failure import DataError, Failure, SpecError, StoreError
from trainer.identity import read_spec
from trainer.store import FileStore

TEXT = """\
grid: small
base:
  data: {name: pictures, resize: 24, crop: 20}
  model: {architecture: alexnet}
  epochs: 2
seeds: 2
stages:
  - name: lr
    vary: {optimizer.lr: [0.1, 0.01]}
  - name: size
    vary: {batch_size: [8, 16]}
"""
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def small() -> Grid:
    return parse_grid(TEXT, "small.yaml")


@pytest.fixture
def facts(file_store: FileStore, small: Grid, tmp_path: Path) -> Facts:
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    return gather_facts(file_store, wanted(small))


def decided(expansion: Expansion, stage: str, kept: str) -> Decision:
    rows = next(each for each in expansion.stages if each.name == stage).experiments
    saw = tuple(RowSeen(experiment=row.name, runs=tuple(run.id for run in row.runs), value=1.0) for row in rows)
    return Decision(stage=stage, kept=(kept,), because="lowest", metric="validation_loss", saw=saw, time=NOW)


def record_all(store: FileStore, grid: Grid, facts: Facts, *kept: str) -> None:
    for stage, row in zip(("lr", "size"), kept, strict=False):
        expansion = expand(grid, read_decisions(store, grid.name), facts)
        record_decision(store, grid.name, decided(expansion, stage, row))


# Facts


def test_facts_count_the_images_of_each_part(file_store: FileStore, facts: Facts) -> None:
    index = load_index(file_store, "pictures")
    known = facts.data["pictures"]
    assert known == data_facts(index)
    assert known.fingerprint == index.fingerprint
    assert {part: sum(known.class_counts[part]) for part in PARTS} == {part: index.num_images(part) for part in PARTS}
    assert known.aspect_sums["train"] == pytest.approx(index.num_images("train") * 48 / 40)


def test_a_missing_data_set_is_told_with_its_cure(file_store: FileStore, small: Grid) -> None:
    with pytest.raises(DataError, match="grid data import pictures"):
        gather_facts(file_store, wanted(small))


def test_weights_are_known_by_their_hash(file_store: FileStore, small: Grid, tmp_path: Path) -> None:
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    needs = wanted(parse_grid(TEXT.replace("alexnet}", "alexnet, weights: a.pth}"), "small.yaml"))
    with pytest.raises(DataError, match=r"weights/a\.pth"):
        gather_facts(file_store, needs)
    content = ZIP_HEAD + b"abc"
    file_store.put("weights/a.pth", content)
    assert gather_facts(file_store, needs).weights == {"a.pth": hashlib.sha256(content).hexdigest()}
    file_store.put("weights/a.pth", b"abc")
    with pytest.raises(DataError, match=r"begins with b'abc', expected what torch\.save writes"):
        gather_facts(file_store, needs)


def test_all_weights_that_are_missing_are_told_at_once_each_with_its_cure(
    file_store: FileStore, tmp_path: Path
) -> None:
    import_pictures(file_store, tmp_path / "pictures", per_class=6)
    rows = "vary: {model.weights: [alexnet-owt-7be5be79.pth, mine.pth, net-00000000.pth]}"
    needs = wanted(parse_grid(TEXT.replace("vary: {optimizer.lr: [0.1, 0.01]}", rows), "small.yaml"))
    file_store.put("weights/net-00000000.pth", ZIP_HEAD)
    with pytest.raises(DataError) as caught:
        gather_facts(file_store, needs)
    told = str(caught.value)
    assert "`grid weights import https://download.pytorch.org/models/alexnet-owt-7be5be79.pth` puts it there" in told
    assert "`grid weights import FILE --name mine.pth` puts it there" in told
    assert "expected one that begins with 00000000, as the name says" in told
    lacking: dict[str, DataError] = {}
    facts = gather_facts(file_store, needs, lacking=lacking)
    assert list(lacking) == list(needs.weights)
    assert len(set(facts.weights.values())) == 3


def test_a_kept_hash_does_not_let_a_file_pass_that_is_not_what_its_name_says(file_store: FileStore) -> None:
    file_store.put("weights/net-00000000.pth", ZIP_HEAD)
    for _ in range(2):
        with pytest.raises(DataError, match="expected one that begins with 00000000"):
            weights_sha256(file_store, "net-00000000.pth")


def test_grids_that_name_a_weights_file_are_found(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    text = TEXT.replace("alexnet}", "alexnet, weights: a.pth}").replace("grid: small", "grid: other")
    file_store.put("grids/other/grid.yaml", text.encode())
    file_store.put("grids/torn/grid.yaml", b"{")
    assert grids_naming(file_store, "weights", "a.pth") == ["other"]
    assert grids_naming(file_store, "data", "pictures") == ["other", "small"]


def test_weights_are_read_whole_once_for_each_version_of_theirs(
    file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = file_store.open
    monkeypatch.setattr(file_store, "open", lambda key: opened.append(key) or read(key))
    for number, content in enumerate((b"abc", b"abd"), start=1):
        file_store.put("weights/a.pth", ZIP_HEAD + content)
        for _ in range(2):
            assert weights_sha256(file_store, "a.pth") == hashlib.sha256(ZIP_HEAD + content).hexdigest()
        assert opened == ["weights/a.pth"] * number
    file_store.put("hashes/a.pth.json", b"{")
    assert weights_sha256(file_store, "a.pth") == hashlib.sha256(ZIP_HEAD + b"abd").hexdigest()
    file_store.delete("weights/a.pth")
    with pytest.raises(DataError, match=r"no weights/a\.pth"):
        weights_sha256(file_store, "a.pth")


def test_the_hash_of_weights_that_are_written_while_they_are_read_is_not_kept(
    file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = file_store.open

    def beside(key: str) -> io.BufferedReader:
        file_store.put(key, ZIP_HEAD + b"new")
        return read(key)

    file_store.put("weights/a.pth", ZIP_HEAD + b"old")
    monkeypatch.setattr(file_store, "open", beside)
    weights_sha256(file_store, "a.pth")
    assert list(file_store.list("hashes/")) == []


def test_weights_are_known_in_a_store_that_takes_no_objects(
    file_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key: str, _data: bytes) -> None:
        raise StoreError(f"{key}: read-only")

    file_store.put("weights/a.pth", ZIP_HEAD)
    monkeypatch.setattr(file_store, "put", refuse)
    assert weights_sha256(file_store, "a.pth") == hashlib.sha256(ZIP_HEAD).hexdigest()


def test_settings_that_are_no_text_are_told_and_can_be_written_anew(file_store: FileStore) -> None:
    file_store.put("grids/small/settings.yaml", b"image: \xff\n")
    with pytest.raises(SpecError, match=r"grids/small/settings\.yaml: got bytes that are no text"):
        stored_settings(file_store, "small")
    settings = parse_settings("image: none:1\nnamespace: lab\n", "settings")
    write_settings(file_store, "small", settings)
    assert stored_settings(file_store, "small") == settings


def test_what_torch_and_safetensors_write_is_taken_for_weights() -> None:
    state = {"weight": torch.zeros(2)}
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        check_weights_head("net.pth", file.getvalue()[:HEAD_BYTES])
        with pytest.raises(DataError, match="expected a safetensors file"):
            check_weights_head("net.safetensors", file.getvalue()[:HEAD_BYTES])
    check_weights_head("net.safetensors", safetensors.torch.save(state)[:HEAD_BYTES])
    with pytest.raises(DataError, match="begins with b''"):
        check_weights_head("empty.safetensors", b"")


# A grid's text


@pytest.mark.parametrize("damaged", [b"{", b"\xff\xfe", b"grid: small\nbase: 3\n"], ids=["torn", "no-text", "no-grid"])
def test_a_damaged_text_is_told_with_the_ways_out_and_kept_by_an_update(
    file_store: FileStore, small: Grid, facts: Facts, damaged: bytes
) -> None:
    file_store.put("grids/small/grid.yaml", damaged)
    for attempt in (lambda: adopt(small, file_store, facts), lambda: stored_grid(file_store, "small")):
        with pytest.raises(SpecError, match="the grid 'small' in the store cannot be read: ") as caught:
            attempt()
        assert "`grid run FILE --update`" in str(caught.value.hint)
        assert "`grid gc --forget small`" in str(caught.value.hint)
    assert adopt(small, file_store, facts, update=True).state == "updated"
    [kept] = file_store.list("grids/small/earlier/")
    assert "damaged-" in kept.key
    assert file_store.get(kept.key) == damaged
    assert adopt(small, file_store, facts).state == "unchanged"


def test_a_grid_whose_needs_cannot_be_told_may_need_anything_and_says_why(
    file_store: FileStore, small: Grid, facts: Facts
) -> None:
    adopt(small, file_store, facts)
    file_store.put("grids/torn/grid.yaml", b"grid: [")
    whole = wanted_of(file_store)
    assert whole["small"].untold is None
    assert whole["torn"].untold is not None
    assert whole["torn"].untold.startswith("grid torn: what it needs cannot be told: ")
    file_store.delete("datasets/pictures/index.json")
    told = wanted_of(file_store)["small"].untold
    assert told is not None
    assert told.startswith("grid small: what it needs cannot be told: data set 'pictures'")
    assert told.endswith("or `grid gc --forget small` counts the grid as gone")


def test_a_decision_over_other_rows_is_told_with_how_to_reopen_it(
    file_store: FileStore, small: Grid, facts: Facts
) -> None:
    adopt(small, file_store, facts)
    record_all(file_store, small, facts, "lr=0.1")
    file_store.put("grids/small/grid.yaml", small.text().replace("0.1", "0.2").encode())
    told = wanted_of(file_store)["small"].untold
    assert told is not None
    assert "decision of stage 'lr': saw 'lr=0.1'" in told
    assert told.endswith("; `grid reopen small lr` sets it aside, or `grid gc --forget small` counts the grid as gone")


def test_a_grid_is_found_as_it_was_adopted(file_store: FileStore, small: Grid, facts: Facts) -> None:
    assert adopt(small, file_store, facts).state == "new"
    assert adopt(small, file_store, facts).state == "unchanged"
    found = stored_grid(file_store, "small")
    assert found is not None
    assert found.digest == small.digest
    assert stored_grids(file_store) == ["small"]
    intent = read_intent(file_store, "small")
    assert intent is not None
    assert (intent.intent, intent.digest) == ("active", small.digest)


def test_what_the_command_line_set_is_part_of_the_text(file_store: FileStore, facts: Facts) -> None:
    changed = parse_grid(TEXT, "small.yaml", ["epochs=7"])
    adopt(changed, file_store, facts)
    assert b"epochs: 7" in file_store.get(grid_key("small"))


def test_another_grid_of_the_name_is_refused_with_its_changes(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    before = file_store.get(grid_key("small"))
    with pytest.raises(SpecError, match=r"(?s)epochs: 2 becomes 3.*--as.*--update") as caught:
        adopt(parse_grid(TEXT, "small.yaml", ["epochs=3"]), file_store, facts)
    assert "small" in str(caught.value)
    assert file_store.get(grid_key("small")) == before


def test_a_new_description_needs_no_update(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    described = parse_grid(TEXT.replace("base:", "description: better\nbase:", 1), "small.yaml")
    assert adopt(described, file_store, facts).changes == ()
    assert b"better" in file_store.get(grid_key("small"))


def test_an_update_keeps_the_text_before(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    before = file_store.get(grid_key("small"))
    adoption = adopt(parse_grid(TEXT, "small.yaml", ["epochs=3"]), file_store, facts, update=True)
    assert adoption.state == "updated"
    assert any("epochs" in line for line in adoption.changes)
    assert [file_store.get(entry.key) for entry in file_store.list("grids/small/earlier/")] == [before]


@pytest.mark.parametrize(
    ("changed", "set_aside"),
    [
        pytest.param(TEXT.replace("[8, 16]", "[8, 16, 32]"), ("size",), id="row-added-to-the-second-stage"),
        pytest.param(TEXT.replace("[0.1, 0.01]", "[0.1, 0.01, 1.0]"), ("lr", "size"), id="row-added-to-the-first"),
        pytest.param(TEXT.replace("epochs: 2", "epochs: 3"), ("lr", "size"), id="base-changed"),
        pytest.param(TEXT + "  - name: more\n    vary: {epochs: [4]}\n", (), id="stage-added"),
        pytest.param(TEXT[: TEXT.index("  - name: size")], ("size",), id="stage-removed"),
    ],
)
def test_an_update_sets_aside_the_decisions_over_rows_that_changed(
    file_store: FileStore, small: Grid, facts: Facts, changed: str, set_aside: tuple[str, ...]
) -> None:
    adopt(small, file_store, facts)
    record_all(file_store, small, facts, "lr=0.1", "batch_size=8")
    before = set(read_decisions(file_store, "small"))
    adoption = adopt(parse_grid(changed, "small.yaml"), file_store, facts, update=True)
    assert adoption.set_aside == set_aside
    assert set(read_decisions(file_store, "small")) == before - set(set_aside)
    kept = [entry.key.rpartition("/")[2].rpartition("-")[0] for entry in file_store.list("grids/small/set_aside/")]
    assert tuple(kept) == set_aside


# Decisions


def test_the_first_decision_stands(file_store: FileStore, small: Grid, facts: Facts) -> None:
    expansion = expand(small, {}, facts)
    first, second = decided(expansion, "lr", "lr=0.1"), decided(expansion, "lr", "lr=0.01")
    assert record_decision(file_store, "small", first) == first
    assert record_decision(file_store, "small", second) == first
    assert read_decisions(file_store, "small") == {"lr": first}


def test_reopening_a_stage_discards_what_was_decided_after_it(file_store: FileStore, small: Grid, facts: Facts) -> None:
    record_all(file_store, small, facts, "lr=0.1", "batch_size=8")
    assert reopen(small, file_store, "lr", facts) == ("lr", "size")
    assert read_decisions(file_store, "small") == {}
    assert reopen(small, file_store, "lr", facts) == ()


def test_reopening_an_unknown_stage_names_the_nearest(file_store: FileStore, small: Grid, facts: Facts) -> None:
    with pytest.raises(SpecError, match="lr"):
        reopen(small, file_store, "rl", facts)


# Runs


def test_the_written_spec_is_the_run(file_store: FileStore, small: Grid, facts: Facts) -> None:
    for name, run in expand(small, {}, facts).runs().items():
        write_run_spec(file_store, run)
        assert read_spec(file_store.get(f"runs/{name}/spec.yaml").decode(), "spec.yaml") == run.spec


def test_retried_failures_are_gone(file_store: FileStore) -> None:
    values: dict[str, Any] = {"attempt": None, "exit_code": 70, "reason": "diverged", "message": "nan", "final": True}
    for run in ("a-1", "b-2", "other-3"):
        record_failure(file_store, Failure(run=run, **values))
    assert set(clear_failures(file_store, ["a-1", "b-2", "c-4"])) == {"a-1", "b-2"}
    assert set(read_failures(file_store)) == {"other-3"}


def test_a_failure_that_is_recorded_stands_but_for_one_that_is_not_final(file_store: FileStore) -> None:
    def failure(message: str, *, final: bool = True) -> Failure:
        return Failure(run="a-1", attempt=None, exit_code=70, reason="diverged", message=message, final=final)

    file_store.put("failures/a-1.json", failure("an attempt's", final=False).model_dump_json().encode())
    assert record_failure(file_store, failure("the trainer's"))
    assert not record_failure(file_store, failure("the launcher's"))
    assert read_failures(file_store)["a-1"].message == "the trainer's"


def test_every_grid_says_which_runs_it_wants(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    one_row = parse_grid(TEXT.replace("grid: small", "grid: other"), "other.yaml", ["epochs=3"])
    adopt(one_row, file_store, facts)
    found = wanted_of(file_store)
    assert {name: wants.runs for name, wants in found.items()} == {
        "small": frozenset(expand(small, {}, facts).runs()),
        "other": frozenset(expand(one_row, {}, facts).runs()),
    }
    assert found["small"].runs.isdisjoint(found["other"].runs)
    assert found["small"].data_sets == {"pictures"}


def test_a_decision_makes_more_runs_wanted(file_store: FileStore, small: Grid, facts: Facts) -> None:
    adopt(small, file_store, facts)
    before = wanted_of(file_store)["small"].runs
    record_all(file_store, small, facts, "lr=0.1")
    assert decision_key("small", "lr") in [entry.key for entry in file_store.list("grids/")]
    assert wanted_of(file_store)["small"].runs > before


def test_what_is_said_of_a_run_stays_whatever_is_said_of_its_grid(
    file_store: FileStore, small: Grid, facts: Facts
) -> None:
    adopt(small, file_store, facts)
    assert hold_run(small, file_store, "a-1", "paused") is None
    assert hold_run(small, file_store, "b-2", "cancelled") is None
    set_intent(small, file_store, "cancelled")
    adopt(small, file_store, facts)  # as a submit, or `grid run`, does
    intent = read_intent(file_store, "small")
    assert intent is not None
    assert (intent.intent, intent.runs) == ("active", {"a-1": "paused", "b-2": "cancelled"})
    assert hold_run(small, file_store, "a-1", None) == "paused"
    assert hold_run(small, file_store, "a-1", None) is None
    assert read_held(file_store, "small") == {"b-2": "cancelled"}


def test_of_two_words_at_the_same_moment_none_is_lost(
    file_store: FileStore, small: Grid, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(small, file_store, facts)
    replace, others = file_store.replace, iter(["other-1"])

    def beside(key: str, data: bytes, version: str) -> str:
        for other in others:
            monkeypatch.setattr(file_store, "replace", replace)
            hold_run(small, file_store, other, "cancelled")
        return replace(key, data, version)

    monkeypatch.setattr(file_store, "replace", beside)
    hold_run(small, file_store, "mine-1", "paused")
    assert read_held(file_store, "small") == {"other-1": "cancelled", "mine-1": "paused"}


def test_a_run_of_a_grid_without_a_word_yet_may_be_held(file_store: FileStore, small: Grid) -> None:
    assert read_held(file_store, "small") == {}
    hold_run(small, file_store, "a-1", "paused")
    intent = read_intent(file_store, "small")
    assert intent is not None
    assert (intent.intent, intent.digest, intent.runs) == ("active", small.digest, {"a-1": "paused"})


def test_an_intent_is_written_once_until_it_changes(file_store: FileStore, small: Grid, facts: Facts) -> None:
    first = set_intent(small, file_store, "active")
    assert set_intent(small, file_store, "active") == first
    assert set_intent(small, file_store, "cancelled").intent == "cancelled"
    assert adopt(small, file_store, facts).state == "new"
    intent = read_intent(file_store, "small")
    assert intent is not None
    assert intent.intent == "active"
