"""What in a store nobody wants, found first and shown, removed only when asked.

Wanted is every run that a grid in the store comes to; while it cannot be told what one of them comes to, every run
and every data set, for that grid may want it. Of a wanted run stay its spec, numerics, attempts, event file, results,
and the blobs that its checkpoint or its result names. What is being trained or imported is never touched, nor what a
grid came to want between being shown and being removed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from controller.archive import Wants, stored_grids, wanted_of
from trainer.dataset import dataset_lock, load_index
from trainer.failure import DataError
from trainer.lease import LeaseRecord, lease_key, run_lock, this_host
from trainer.store import Entry, FileStore, NotFound, Store

DAY = 24 * 3600.0  # seconds
MIN_AGE_SECONDS = DAY  # of what may be the first half of a write in flight: a blob without a pointer, an import
LEASE_SILENCE_SECONDS = 3600.0  # a lease of another host counts as held for so long: hosts' clocks differ

Kind = Literal["grid", "run", "blobs", "shards", "data set"]

OF_RUNS = ("results/", "tests/", "failures/")  # one object for each run, named after it


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Objects that go together, in the order in which they are to go, and why nobody wants them."""

    kind: Kind
    name: str
    why: str
    keys: tuple[str, ...]
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store holds, as far as this module looks."""

    objects: tuple[Entry, ...]
    named_blobs: Mapping[str, frozenset[str] | None]  # by run: keys that its checkpoint or result names; none: all
    named_shards: Mapping[str, frozenset[str] | None]  # by data set: keys of its index's shards; none: not readable


@dataclass
class Removal:
    """What a removal came to."""

    removed: list[Unwanted] = field(default_factory=list)
    held: list[Unwanted] = field(default_factory=list)  # left alone, since someone trains or imports them
    wanted: list[Unwanted] = field(default_factory=list)  # left alone, since a grid came to want them meanwhile

    @property
    def size(self) -> int:
        """Bytes that are free now."""
        return sum(item.size for item in self.removed)


def find_unwanted(
    contents: Contents, wants: Mapping[str, Wants], now: float, *, data_sets: bool = False
) -> list[Unwanted]:
    """All that no grid `wants` at `now` (seconds since the epoch): grids, runs, blobs, shards, and data sets if asked.

    Data sets are left out by default: an import may come before the first grid that names it. One to which something
    was written within MIN_AGE_SECONDS may be half an import, on whatever host.
    """
    by_home: dict[tuple[str, str], list[Entry]] = {}
    for entry in contents.objects:
        if (home := _home(entry.key)) is not None:
            by_home.setdefault(home, []).append(entry)
    runs, named_sets = _runs(wants), {name for each in wants.values() for name in each.data_sets}
    any_may_be_wanted = _any_may_be_wanted(wants)
    found = []
    for (kind, name), entries in sorted(by_home.items()):
        if kind == "grid" and name not in wants:
            found.append(_item("grid", name, "forgotten", entries))
        elif kind == "run" and name not in runs and not any_may_be_wanted:
            found.append(_item("run", name, "of no grid", entries))
        elif kind == "run":
            found += _orphan_blobs(name, entries, contents.named_blobs.get(name), now)
        elif kind == "data set":
            if data_sets and name not in named_sets and not any_may_be_wanted:
                if all(_is_old(entry, now) for entry in entries):
                    found.append(_item("data set", name, "named by no grid", entries))
            else:
                found += _orphan_shards(name, entries, contents.named_shards.get(name), now)
    return found


def _runs(wants: Mapping[str, Wants]) -> set[str]:
    return {run for each in wants.values() for run in each.runs}


def _any_may_be_wanted(wants: Mapping[str, Wants]) -> bool:
    """Whether no run and no data set is certainly of no grid."""
    return any(each.untold is not None for each in wants.values())


def _home(key: str) -> tuple[Kind, str] | None:
    """What the object belongs to; none for what is no concern of this module (weights, and what others put there)."""
    top, _, rest = key.partition("/")
    if f"{top}/" in OF_RUNS and "/" not in rest and rest.endswith(".json"):
        return "run", rest.removesuffix(".json")
    name, separator, _ = rest.partition("/")
    kinds: dict[str, Kind] = {"runs": "run", "grids": "grid", "datasets": "data set"}
    return (kinds[top], name) if separator and top in kinds else None


def _item(kind: Kind, name: str, why: str, entries: Iterable[Entry]) -> Unwanted:
    ordered = sorted(entries, key=lambda entry: (_turn(entry.key), entry.key))
    return Unwanted(kind, name, why, tuple(entry.key for entry in ordered), sum(entry.size for entry in ordered))


def _turn(key: str) -> int:
    """When the object goes: first what promises others (a result its weights), last what guards them (the lease)."""
    if key.startswith(OF_RUNS) or key.endswith(("/checkpoint.json", "/index.json", "/grid.yaml")):
        return 0
    return 2 if key.endswith("/lease.json") else 1


def _is_old(entry: Entry, now: float) -> bool:
    return now - entry.modified > MIN_AGE_SECONDS


def _orphan_blobs(run: str, entries: Iterable[Entry], named: frozenset[str] | None, now: float) -> list[Unwanted]:
    if named is None:
        return []
    prefix = f"runs/{run}/blobs/"
    orphans = [
        entry for entry in entries if entry.key.startswith(prefix) and entry.key not in named and _is_old(entry, now)
    ]
    return [_item("blobs", run, "named by no checkpoint or result", orphans)] if orphans else []


def _orphan_shards(name: str, entries: Iterable[Entry], named: frozenset[str] | None, now: float) -> list[Unwanted]:
    if named is None:
        return []
    orphans = [
        entry for entry in entries if entry.key.endswith(".tar") and entry.key not in named and _is_old(entry, now)
    ]
    return [_item("shards", name, "of an import that was replaced or never ended", orphans)] if orphans else []


def read_contents(store: Store, wants: Mapping[str, Wants]) -> Contents:
    """What `store` holds; blobs are read up of runs that stay alone, since all of an unwanted run's go."""
    objects = [
        entry
        for prefix in ("datasets/", "failures/", "grids/", "results/", "runs/", "tests/")
        for entry in store.list(prefix)
    ]
    homes = [home for entry in objects if (home := _home(entry.key)) is not None]
    with_blobs = {entry.key.split("/")[1] for entry in objects if _is_blob(entry.key)}
    staying = with_blobs if _any_may_be_wanted(wants) else with_blobs & _runs(wants)
    return Contents(
        tuple(objects),
        {run: _named_blobs(store, run) for run in sorted(staying)},
        {name: _named_shards(store, name) for kind, name in sorted(set(homes)) if kind == "data set"},
    )


def _is_blob(key: str) -> bool:
    return key.startswith("runs/") and "/blobs/" in key


def _named_blobs(store: Store, run: str) -> frozenset[str] | None:
    """Keys that the run's checkpoint and result name; none where all stay (`keep: all`) or one cannot be read."""
    named: set[str] = set()
    for key in (f"runs/{run}/checkpoint.json", f"results/{run}.json"):
        try:
            record = json.loads(store.get(key))
        except NotFound:
            continue
        except ValueError:
            return None
        if not isinstance(record, dict):
            return None
        if key.startswith("results/") and _keeps_all(record):
            return None
        named |= set(_texts(record))
    return frozenset(named)


def _keeps_all(result: Mapping[str, Any]) -> bool:
    spec = result.get("spec")
    checkpoint = spec.get("checkpoint") if isinstance(spec, dict) else None
    return isinstance(checkpoint, dict) and checkpoint.get("keep") == "all"


def _texts(value: Any) -> Iterator[str]:
    """Every text in `value`, however deep: a checkpoint names the one before, which names its own blobs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _named_shards(store: Store, name: str) -> frozenset[str] | None:
    try:
        index = load_index(store, name)
    except DataError:  # half imported, or of another version: nothing of it is touched
        return None
    return frozenset(index.shard_key(shard) for shard in range(len(index.shards)))


def remove(store: Store, items: Iterable[Unwanted], forget: Collection[str] = ()) -> Removal:
    """Remove `items`, but those that someone trains or imports, and those that a grid wants by now.

    Grids to `forget` want nothing.
    """
    done, wants = Removal(), _Wants(store, forget)
    for item in items:
        with _held(store, item) as is_ours:
            if not is_ours:
                done.held.append(item)
            elif not _is_unwanted(store, item, wants.now()):
                done.wanted.append(item)
            else:
                for key in item.keys:
                    store.delete(key)
                done.removed.append(item)
    return done


class _Wants:
    """What the store's grids want, worked out again only where a grid or a decision has come, gone or changed."""

    def __init__(self, store: Store, forget: Collection[str]) -> None:
        self._store = store
        self._forget = frozenset(forget)
        self._seen: list[tuple[str, str]] | None = None
        self._wants: Mapping[str, Wants] = {}

    def now(self) -> Mapping[str, Wants]:
        """What each grid wants at this moment."""
        seen = [
            (entry.key, entry.version)
            for entry in self._store.list("grids/")
            if entry.key.split("/")[1] not in self._forget
        ]
        if seen != self._seen:
            self._wants = wanted_of(self._store, frozenset(stored_grids(self._store)) - self._forget)
            self._seen = seen
        return self._wants


def _is_unwanted(store: Store, item: Unwanted, wants: Mapping[str, Wants]) -> bool:
    """Whether all of the item is still wanted by nobody; for who holds its lock, so that it stays so."""
    match item.kind:
        case "grid":
            return item.name not in wants
        case "run":
            return item.name not in _runs(wants) and not _any_may_be_wanted(wants)
        case "data set":
            return not (_any_may_be_wanted(wants) or any(item.name in each.data_sets for each in wants.values()))
        case "blobs":
            named = _named_blobs(store, item.name)
        case "shards":
            named = _named_shards(store, item.name)
    return named is not None and named.isdisjoint(item.keys)


@contextmanager
def _held(store: Store, item: Unwanted) -> Iterator[bool]:
    """Whether nobody works on it, as long as this lasts: no process of this host, and none of another as it seems."""
    if item.kind == "grid":
        yield True
        return
    is_run = item.kind in ("run", "blobs")
    lock = run_lock(store, item.name) if is_run else dataset_lock(store, item.name)
    if not lock.acquire():
        yield False
        return
    try:
        yield not (is_run and _is_held_elsewhere(store, item.name))
    finally:
        lock.release()


def _is_held_elsewhere(store: Store, run: str) -> bool:
    try:
        lease = LeaseRecord.model_validate_json(store.get(lease_key(run)))
    except NotFound:
        return False
    except ValidationError:
        return True  # not ours to judge
    if lease.released or lease.host == this_host():
        return False  # this host's lock, which is ours now, says more than the lease
    return (datetime.now(UTC) - lease.heartbeat).total_seconds() < LEASE_SILENCE_SECONDS


def sweep_temporary(store: Store) -> int:
    """Remove what killed writers of a folder left, older than a day; how many files. A server keeps no such files."""
    return store.sweep_temporary(DAY) if isinstance(store, FileStore) else 0
