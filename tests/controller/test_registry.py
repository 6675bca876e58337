"""Names of a grid's objects, and what its ConfigMap says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from controller import election
from controller.registry import Registry, Submission, grid_entry, object_name


def config_map(name: str = "small", **metadata: Any) -> dict[str, Any]:
    data = Submission(name, "d" * 64, "file:///store", "s3://bucket").data()
    found = {"name": object_name(name), "uid": "u", "resourceVersion": "7", **metadata}
    return {"metadata": found, "data": {**data, "owner": "me@here"}}


def test_objects_are_named_after_their_grid_as_far_as_names_of_objects_allow() -> None:
    assert object_name("demo") == "grid-demo"
    names = {object_name(grid) for grid in ("My_grid.2", "my_grid.2", "a" * 63)}
    assert len(names) == 3
    assert all(re.fullmatch(r"[a-z0-9-]{1,253}", name) for name in names)


def test_a_grid_whose_store_is_one_for_all_by_now_is_no_longer_found_under_the_other_uri() -> None:
    assert Submission("small", "d", "s3://bucket", "s3://bucket").changes()["store-in-pods"] is None  # a merge patch


@pytest.mark.parametrize("name", ["small", "My_grid.2"])
def test_a_config_map_says_which_grid_in_which_store(name: str) -> None:
    entry = grid_entry(config_map(name))
    assert entry is not None
    assert (entry.name, entry.owner, entry.version) == (name, "me@here", "7")
    assert entry.stores == ("file:///store", "s3://bucket")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({**config_map("other"), "metadata": config_map()["metadata"]}, id="under-another-name"),
        pytest.param({"metadata": {"name": "grid-small", "uid": "u", "resourceVersion": "7"}}, id="empty"),
    ],
)
def test_what_stands_for_no_grid_is_left_out(other: dict[str, Any]) -> None:
    assert grid_entry(other) is None


def lease(holder: str, version: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "grid-small", "resourceVersion": str(version)},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 8},
    }


class Clock:
    """Stands in for the module's `time`: passes when told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_grids_lease_is_held_until_it_is_given_back_or_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(election, "time", clock)
    registry = Registry()
    _, leases = registry.kinds()
    leases.changed(None, lease("watch", 1))
    assert registry.holder("small") == "watch"
    assert registry.holder("other") is None
    leases.changed(lease("watch", 1), lease("", 2))
    assert registry.holder("small") is None
    leases.changed(lease("", 2), lease("watch", 3))
    clock.now += 7
    assert registry.holder("small") == "watch"
    clock.now += 2
    assert registry.holder("small") is None
    leases.changed(lease("watch", 3), lease("watch", 4))
    leases.changed(None, lease("", 2))  # older than what was seen
    assert registry.holder("small") == "watch"
    leases.changed(lease("watch", 4), None)
    assert registry.holder("small") is None


def test_the_namespaces_own_lease_is_no_grids() -> None:
    _, leases = Registry().kinds()
    assert leases.view({"metadata": {"name": "experiment-grid"}}) is None


def test_grids_come_and_go_with_their_config_maps() -> None:
    registry = Registry()
    grids, _ = registry.kinds()
    entry = grid_entry(config_map())
    grids.changed(None, entry)
    assert set(registry.entries()) == {"small"}
    leaving = grid_entry(config_map(deletionTimestamp="2026-01-01T00:00:00Z"))
    grids.changed(entry, leaving)
    assert registry.entries() == {}
    grids.changed(leaving, None)
    assert registry.entries() == {}
