"""Which grids stand in a namespace: a ConfigMap for each, written by who submits it and followed by `grid serve`.

What is wanted of a grid is in the store. The ConfigMap only says that it is to be looked at, and in which store; a
changed time on it says that something there is new.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from controller.cluster import CONFIG_MAPS, LEASES, Cluster, Object, ObjectAbsent, ObjectExists
from controller.election import SeenLease, version_of
from controller.jobs import DOMAIN, GRID_COMPONENT, GRID_SELECTOR, MANAGED_BY, OWN_SELECTOR, standard_labels
from controller.mirror import Kind

TOUCHED_ANNOTATION = f"{DOMAIN}/touched"  # when the store last got something new of the grid
OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def object_name(grid: str) -> str:
    """Name of the grid's ConfigMap, and of its Lease: its own where that may be an object's name."""
    if OBJECT_NAME.fullmatch(grid):
        return f"grid-{grid}"
    return f"grid-{hashlib.sha256(grid.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class GridEntry:
    """A grid that stands in the namespace."""

    name: str
    object_name: str
    uid: str
    version: str  # of the ConfigMap: another one means that the store has something new
    owner: str  # user@machine of the first submission
    stores: tuple[str, ...]  # the URIs of its store: where it was submitted, and in pods where that is another one
    is_leaving: bool  # the ConfigMap is on its way out


def grid_entry(config_map: Object) -> GridEntry | None:
    """What the ConfigMap says; none of one that merely carries our labels."""
    metadata, data = config_map["metadata"], config_map.get("data") or {}
    name = data.get("name", "")
    if metadata["name"] != object_name(name):
        return None
    stores = tuple(dict.fromkeys(data[key] for key in ("store", "store-in-pods") if data.get(key)))
    return GridEntry(
        name=name,
        object_name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        owner=data.get("owner", ""),
        stores=stores,
        is_leaving="deletionTimestamp" in metadata,
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """A grid as a submission leaves it in a store."""

    name: str
    digest: str
    store: str  # its URI here
    store_in_pods: str  # and there

    @property
    def stores(self) -> tuple[str, str]:
        """The URIs that it may be found under."""
        return self.store, self.store_in_pods

    def data(self) -> dict[str, str]:
        """What the ConfigMap says of it."""
        return {key: value for key, value in self.changes().items() if value is not None}

    def changes(self) -> dict[str, str | None]:
        """The merge patch of what a ConfigMap of the grid says of it."""
        there = self.store_in_pods if self.store_in_pods != self.store else None
        return {"name": self.name, "digest": self.digest, "store": self.store, "store-in-pods": there}


def touch_grid(cluster: Cluster, grid: Submission) -> bool:
    """Say that the store has something new of the grid; whether it stands in the namespace. Raises ClusterError."""
    changes: Object = {"metadata": {"annotations": _touched()}, "data": grid.changes()}
    try:
        cluster.patch(CONFIG_MAPS, object_name(grid.name), changes)
    except ObjectAbsent:
        return False
    return True


def enter_grid(cluster: Cluster, grid: Submission) -> None:
    """Let the grid stand in the namespace, or say that the store has something new of it. Raises ClusterError."""
    if not touch_grid(cluster, grid):
        name = object_name(grid.name)
        metadata = {"name": name, "labels": standard_labels(GRID_COMPONENT), "annotations": _touched()}
        body = {"apiVersion": CONFIG_MAPS.api, "kind": CONFIG_MAPS.kind, "metadata": metadata}
        try:
            cluster.create(CONFIG_MAPS, {**body, "data": {**grid.data(), "owner": _owner()}})
        except ObjectExists:  # by another command, at this moment
            touch_grid(cluster, grid)


def remove_grid(cluster: Cluster, name: str) -> bool:
    """Let the grid stand in the namespace no longer; whether it did. Raises ClusterError."""
    try:
        cluster.delete(CONFIG_MAPS, object_name(name))
    except ObjectAbsent:
        return False
    return True


def _touched() -> dict[str, str]:
    return {TOUCHED_ANNOTATION: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without a name, as in most pods
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class Registry:
    """The grids that stand in the namespace, and who holds their Leases, as a mirror that follows `kinds` has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, GridEntry] = {}
        self._leases: dict[str, SeenLease] = {}  # by name

    def kinds(self) -> tuple[Kind[GridEntry], Kind[Object]]:
        """What a mirror is to follow, for one life of the mirror."""
        with self._lock:
            self._entries.clear()  # Leases stay as they were seen: since when one stands is worth keeping
        return (
            Kind(CONFIG_MAPS, grid_entry, self._entry_changed, GRID_SELECTOR, wakes=True),
            Kind(LEASES, _grid_lease, self._lease_changed, OWN_SELECTOR),
        )

    def entries(self) -> dict[str, GridEntry]:
        """The grids, by name."""
        with self._lock:
            return {name: entry for name, entry in self._entries.items() if not entry.is_leaving}

    def holder(self, grid: str) -> str | None:
        """Who holds the grid's own Lease and renews it, if anyone does."""
        with self._lock:
            seen = self._leases.get(object_name(grid))
            return seen.holder if seen is not None and seen.is_held else None

    def look_at_leases(self, cluster: Cluster) -> None:
        """Ask the API, and no cache, who holds the grids' Leases now. Raises ClusterError."""
        for lease in cluster.list(LEASES, _grid_lease, selector=OWN_SELECTOR).items:
            self._lease_changed(None, lease)

    def _entry_changed(self, old: GridEntry | None, new: GridEntry | None) -> None:
        with self._lock:
            if new is not None:
                self._entries[new.name] = new
            elif old is not None:
                self._entries.pop(old.name, None)

    def _lease_changed(self, old: Object | None, new: Object | None) -> None:
        with self._lock:
            if new is None:
                assert old is not None
                self._leases.pop(old["metadata"]["name"], None)
                return
            seen = self._leases.setdefault(new["metadata"]["name"], SeenLease())
            if seen.lease is None or version_of(new) > version_of(seen.lease):
                seen.note(new)


def _grid_lease(lease: Object) -> Object | None:
    """The Lease, unless it is the namespace's own."""
    return lease if lease["metadata"]["name"] != MANAGED_BY else None
