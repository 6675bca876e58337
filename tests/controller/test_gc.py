"""What no grid wants is found, nothing else; what someone trains is left alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.archive import Wants
from controller.gc import (
    DAY,
    Contents,
    Unwanted,
    find_unwanted,
    read_contents,
    remove,
    sweep_temporary,
)
from trainer.dataset import dataset_lock
from trainer.lease import LeaseRecord, lease_key, run_lock, this_host
from trainer.store import Entry, FileStore, NotFound

NOW = 1_000_000_000.0
NOTHING_WANTED: dict[str, Wants] = {}


def contents(
    keys: Iterable[str], *, age: float = 2 * DAY, blobs: dict[str, frozenset[str] | None] | None = None
) -> Contents:
    return Contents(tuple(Entry(key, 10, "v", NOW - age) for key in keys), blobs or {}, {})


def wanted(*, grid: str = "g", runs: Iterable[str] = (), data_sets: Iterable[str] = ()) -> dict[str, Wants]:
    return {grid: Wants(frozenset(runs), frozenset(data_sets))}


def keys_of(found: Iterable[Unwanted]) -> list[str]:
    return [key for item in found for key in item.keys]


EVENTS = "runs/a/tensorboard/events.out.tfevents.0.a"
OF_A = ["results/a.json", "runs/a/blobs/1-x", "runs/a/lease.json", "runs/a/spec.yaml", EVENTS, "tests/a.json"]


def test_all_objects_of_a_run_of_no_grid_are_found_and_its_lease_goes_last() -> None:
    [item] = find_unwanted(contents([*OF_A, "failures/a.json"]), NOTHING_WANTED, NOW)
    assert (item.kind, item.name, item.size) == ("run", "a", 70)
    assert sorted(item.keys) == sorted([*OF_A, "failures/a.json"])
    assert item.keys[0] == "failures/a.json"
    assert item.keys[-1] == "runs/a/lease.json"


def test_a_wanted_run_keeps_everything_that_its_checkpoint_names() -> None:
    named = {"a": frozenset({"runs/a/blobs/1-x"})}
    assert find_unwanted(contents(OF_A, blobs=named), wanted(runs=["a"]), NOW) == []


def test_a_blob_that_nothing_names_is_found_once_it_is_a_day_old() -> None:
    keys = [*OF_A, "runs/a/blobs/2-y"]
    named = {"a": frozenset({"runs/a/blobs/1-x"})}
    assert keys_of(find_unwanted(contents(keys, blobs=named), wanted(runs=["a"]), NOW)) == ["runs/a/blobs/2-y"]
    assert find_unwanted(contents(keys, blobs=named, age=60), wanted(runs=["a"]), NOW) == []


def test_what_cannot_be_read_keeps_its_blobs() -> None:
    assert find_unwanted(contents(OF_A, blobs={"a": None}), wanted(runs=["a"]), NOW) == []


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("weights/alexnet.pth", id="weights"),
        pytest.param("notes.txt", id="a file of the user's"),
        pytest.param("results/readme.txt", id="no result"),
        pytest.param("results/old/a.json", id="a folder among the results"),
    ],
)
def test_what_is_no_concern_of_the_grids_is_never_found(key: str) -> None:
    assert find_unwanted(contents([key]), NOTHING_WANTED, NOW, data_sets=True) == []


def test_data_sets_are_found_only_when_asked_for() -> None:
    held = contents(["datasets/birds/index.json", "datasets/cats/index.json"])
    assert find_unwanted(held, wanted(data_sets=["cats"]), NOW) == []
    assert keys_of(find_unwanted(held, wanted(data_sets=["cats"]), NOW, data_sets=True)) == [
        "datasets/birds/index.json"
    ]


def test_a_data_set_that_was_written_to_within_a_day_may_be_half_an_import_and_is_not_found() -> None:
    old = contents(["datasets/birds/shard-train-0.tar"]).objects
    new = contents(["datasets/birds/shard-train-1.tar"], age=60).objects
    held = Contents((*old, *new), {}, {})
    assert find_unwanted(held, NOTHING_WANTED, NOW, data_sets=True) == []


def test_shards_that_an_index_does_not_name_are_found() -> None:
    held = contents(["datasets/cats/index.json", "datasets/cats/new.tar", "datasets/cats/old.tar"])
    named = Contents(held.objects, {}, {"cats": frozenset({"datasets/cats/new.tar"})})
    assert keys_of(find_unwanted(named, wanted(data_sets=["cats"]), NOW)) == ["datasets/cats/old.tar"]


def test_while_the_needs_of_a_grid_are_not_known_only_what_is_certainly_of_nobody_is_found() -> None:
    keys = ["datasets/birds/index.json", "datasets/birds/old.tar", "grids/a/grid.yaml", "runs/a/blobs/2-y", *OF_A]
    held = Contents(
        contents(keys).objects, {"a": frozenset({"runs/a/blobs/1-x"})}, {"birds": frozenset({"datasets/birds/new.tar"})}
    )
    wants = {"b": Wants(frozenset(), frozenset(), "grid b: what it needs cannot be told")}
    found = find_unwanted(held, wants, NOW, data_sets=True)
    assert [(item.kind, item.name, item.keys) for item in found] == [
        ("shards", "birds", ("datasets/birds/old.tar",)),
        ("grid", "a", ("grids/a/grid.yaml",)),
        ("blobs", "a", ("runs/a/blobs/2-y",)),
    ]


def test_blobs_are_read_up_of_every_run_while_the_needs_of_a_grid_are_not_known(file_store: FileStore) -> None:
    for key in ("runs/a/blobs/1-x", "runs/a/blobs/2-y"):
        file_store.put(key, b"tensor")
    file_store.put("runs/a/checkpoint.json", checkpoint("runs/a/blobs/1-x"))
    aged(file_store)
    wants = {"b": Wants(frozenset(), frozenset(), "grid b: what it needs cannot be told")}
    found = find_unwanted(read_contents(file_store, wants), wants, time.time())
    assert keys_of(found) == ["runs/a/blobs/2-y"]


def test_what_a_grid_whose_needs_are_not_known_may_want_by_now_stays(file_store: FileStore) -> None:
    items = [*unwanted_data(file_store)[:1], *unwanted_run(file_store)]
    assert [item.kind for item in items] == ["data set", "run"]
    file_store.put("grids/torn/grid.yaml", b"grid: [")
    assert remove(file_store, items).wanted == items
    assert remove(file_store, items, forget=["torn"]).removed == items


def test_a_forgotten_grid_goes_with_its_decisions() -> None:
    held = contents(["grids/a/decisions/lr.json", "grids/a/grid.yaml", "grids/b/grid.yaml"])
    [item] = find_unwanted(held, wanted(grid="b"), NOW)
    assert item.keys == ("grids/a/grid.yaml", "grids/a/decisions/lr.json")


def checkpoint(*blobs: str, previous: object = None) -> bytes:
    return json.dumps({"state": {"model": blobs[0]}, "best": {"model": blobs[-1]}, "previous": previous}).encode()


def aged(store: FileStore) -> None:
    """Make every object of the store two days old."""
    for entry in store.list(""):
        os.utime(store.local_path(entry.key), (time.time() - 2 * DAY,) * 2)


def test_blobs_of_the_checkpoint_before_are_named_too(file_store: FileStore) -> None:
    first, second, orphan = (f"runs/a/blobs/{name}" for name in ("1-x", "2-y", "3-z"))
    for key in (first, second, orphan):
        file_store.put(key, b"tensor")
    file_store.put("runs/a/checkpoint.json", checkpoint(second, previous=json.loads(checkpoint(first))))
    aged(file_store)
    grids = wanted(runs=["a"])
    assert keys_of(find_unwanted(read_contents(file_store, grids), grids, time.time())) == [orphan]


@pytest.mark.parametrize(("keep", "expected"), [("best", ["runs/a/blobs/1-x"]), ("all", [])])
def test_after_the_result_its_own_rule_says_which_blobs_stay(
    file_store: FileStore, keep: str, expected: list[str]
) -> None:
    for name in ("1-x", "2-y"):
        file_store.put(f"runs/a/blobs/{name}", b"tensor")
    result = {"spec": {"checkpoint": {"keep": keep}}, "best_weights": "runs/a/blobs/2-y"}
    file_store.put("results/a.json", json.dumps(result).encode())
    aged(file_store)
    grids = wanted(runs=["a"])
    assert keys_of(find_unwanted(read_contents(file_store, grids), grids, time.time())) == expected


def unwanted_run(store: FileStore) -> list[Unwanted]:
    store.put("runs/a/spec.yaml", b"seed: 0\n")
    return find_unwanted(read_contents(store, NOTHING_WANTED), NOTHING_WANTED, time.time())


def test_removing_leaves_nothing_of_the_run(file_store: FileStore) -> None:
    done = remove(file_store, unwanted_run(file_store))
    assert [item.name for item in done.removed] == ["a"]
    assert done.size == len(b"seed: 0\n")
    assert list(file_store.list("")) == []


def test_a_run_that_a_process_of_this_host_trains_is_left_alone(file_store: FileStore) -> None:
    items = unwanted_run(file_store)
    lock = run_lock(file_store, "a")
    assert lock.acquire()
    try:
        done = remove(file_store, items)
    finally:
        lock.release()
    assert done.removed == []
    assert done.held == items
    assert file_store.get("runs/a/spec.yaml") == b"seed: 0\n"


def unwanted_data(store: FileStore) -> list[Unwanted]:
    """A data set of no grid, and a shard that the index of another does not name."""
    for key in ("datasets/birds/index.json", "datasets/cats/index.json", "datasets/cats/shard-train-0.tar"):
        store.put(key, b"bytes")
    entries = list(store.list(""))
    found = Contents(tuple(replace(each, modified=0.0) for each in entries), {}, {"cats": frozenset()})
    items = find_unwanted(found, wanted(data_sets=["cats"]), NOW, data_sets=True)
    assert [(item.kind, item.name) for item in items] == [("data set", "birds"), ("shards", "cats")]
    return items


def test_data_that_a_process_of_this_host_imports_is_left_alone(file_store: FileStore) -> None:
    items = unwanted_data(file_store)
    before = list(file_store.list(""))
    locks = [dataset_lock(file_store, name) for name in ("birds", "cats")]
    assert all(lock.acquire() for lock in locks)
    done = remove(file_store, items)
    for lock in locks:
        lock.release()
    assert (done.removed, done.held) == ([], items)
    assert list(file_store.list("")) == before


def test_shards_that_an_index_came_to_name_meanwhile_stay(file_store: FileStore) -> None:
    items = unwanted_data(file_store)[1:]  # and the index as it is now cannot be read
    done = remove(file_store, items)
    assert (done.removed, done.wanted) == ([], items)
    assert file_store.get("datasets/cats/shard-train-0.tar") == b"bytes"


@pytest.mark.parametrize(
    ("host", "minutes", "released", "stays"),
    [
        pytest.param("elsewhere", 1, False, True, id="held elsewhere"),
        pytest.param("elsewhere", 120, False, False, id="silent for long"),
        pytest.param("elsewhere", 1, True, False, id="released"),
        pytest.param(None, 1, False, False, id="of a killed process of this host"),
    ],
)
def test_a_lease_of_another_host_keeps_a_run(
    file_store: FileStore, host: str | None, minutes: int, released: bool, stays: bool
) -> None:
    lease = LeaseRecord(
        holder="node-1:7",
        host=host or this_host(),
        attempt="0001-aaaaaaaa",
        heartbeat=datetime.now(UTC) - timedelta(minutes=minutes),
        released=released,
    )
    items = unwanted_run(file_store)
    file_store.put(lease_key("a"), lease.model_dump_json().encode())
    done = remove(file_store, items)
    assert [item.name for item in done.held] == (["a"] if stays else [])


def test_an_index_that_cannot_be_read_keeps_its_shards(file_store: FileStore) -> None:
    file_store.put("datasets/cats/index.json", b"{}")
    file_store.put("datasets/cats/shard-train-0.tar", b"tar")
    aged(file_store)
    assert find_unwanted(read_contents(file_store, NOTHING_WANTED), NOTHING_WANTED, time.time()) == []


def test_only_old_temporary_files_are_swept(file_store: FileStore) -> None:
    file_store.put("weights/net.pth", b"weights")
    folder = file_store.root / "weights"
    for name, age in ((".tmp-old", 2 * DAY), (".tmp-new", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert sweep_temporary(file_store) == 1
    assert not (folder / ".tmp-old").exists()
    assert (folder / ".tmp-new").exists()
    with pytest.raises(NotFound):
        file_store.get("weights/none")
