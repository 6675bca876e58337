"""What the store knows of a grid: its text, its intent and its decisions; and what its runs are started from.

grids/<grid>/grid.yaml                      the grid in canonical form, with what the command line set
grids/<grid>/intent.json                    whether its runs are to be trained
grids/<grid>/decisions/<stage>.json         what a stage kept: written once
grids/<grid>/earlier/<digest>.yaml          texts that an update replaced
grids/<grid>/set_aside/<stage>-<time>.json  decisions over rows that an update changed, or that were reopened
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from controller.architectures import torchvision_classifiers
from controller.grid import Grid, describe_changes, parse_grid
from controller.knowledge import read_decisions, read_failures
from controller.search import DataFacts, Decision, Expansion, Facts, Needs, Run, expand, fitting, wanted
from trainer.dataset import PARTS, DatasetIndex, load_index
from trainer.document import nearest
from trainer.failure import DataError, Failure, SpecError
from trainer.identity import factory_source_hash, write_spec
from trainer.result import Record, parse_record
from trainer.store import Conflict, NotFound, Store

DIGEST_DIGITS = 12  # of an earlier text's digest, in its name
BLOCK = 1 << 20


class CheckpointHead(Record):
    """What the controller needs to know of a run's `checkpoint.json`."""

    sequence: int


class Intent(Record):
    """What is wanted of a grid, as `grids/<grid>/intent.json` holds it."""

    intent: Literal["active", "paused", "cancelled"]
    digest: str = Field(description="of the grid's text that this was said of")
    time: datetime


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of a grid in the store."""

    state: Literal["new", "unchanged", "updated"]
    changes: tuple[str, ...] = ()  # a line for each difference from the text that was there
    set_aside: tuple[str, ...] = ()  # stages whose decisions no longer fit


@dataclass(frozen=True, slots=True)
class Wants:
    """What one grid of the store needs to stay."""

    runs: frozenset[str]
    data_sets: frozenset[str]


def grid_key(grid: str) -> str:
    """Where the grid's text lives."""
    return f"grids/{grid}/grid.yaml"


def decision_key(grid: str, stage: str) -> str:
    """Where the stage's decision lives."""
    return f"grids/{grid}/decisions/{stage}.json"


# Facts


def gather_facts(store: Store, needs: Needs) -> Facts:
    """What `store` and this machine know of all that `needs` names. Raises DataError, SpecError on what is missing."""
    for name in needs.classifiers:
        _check_classifier(name)
    return Facts(
        data={name: data_facts(load_index(store, name)) for name in needs.data},
        weights={name: _weights_sha256(store, name) for name in needs.weights},
        factories={name: factory_source_hash(name) for name in needs.factories},
    )


def _check_classifier(name: str) -> None:
    known = torchvision_classifiers()
    if known and name not in known:
        near = nearest(name, known)
        raise SpecError(
            f"model.architecture: got {name!r}, expected a classifier of torchvision, or `package.module:function`",
            hint=f"did you mean {near!r}?" if near else f"torchvision has {', '.join(sorted(known))}",
        )


def data_facts(index: DatasetIndex) -> DataFacts:
    """What a plan and a table need to know of the data set."""
    images = index.images
    return DataFacts(
        fingerprint=index.fingerprint,
        num_classes=index.num_classes,
        class_counts={part: index.class_counts(part) for part in PARTS},
        majority_share={part: index.majority_share(part) for part in PARTS},
        aspect_sums={part: sum(_aspect(images.width[row], images.height[row]) for row in index.rows(part))
                     for part in PARTS},
    )  # fmt: skip


def _aspect(width: int, height: int) -> float:
    return max(width, height) / min(width, height)


def _weights_sha256(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with store.open(f"weights/{name}") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except NotFound as error:
        raise DataError(
            f"weights {name!r}: no weights/{name} in {store.uri}", hint=f"put the state dict there as weights/{name}"
        ) from error
    return digest.hexdigest()


# A grid's text and intent


def adopt(grid: Grid, store: Store, facts: Facts, *, update: bool = False) -> Adoption:
    """Make `grid` the one that the store has under its name, and its intent `active`.

    Where another text has the name, that needs `update`: a decision over rows that changed is set aside, results stay
    whatever grid they came from. Raises SpecError that lists the changes otherwise.
    """
    adoption = _adopt_text(grid, store, update=update)
    if update:  # a network's own source may have changed though the grid's text has not
        adoption = replace(adoption, set_aside=set_aside_misfits(grid, store, facts))
    set_intent(grid, store, "active")
    return adoption


def _adopt_text(grid: Grid, store: Store, *, update: bool) -> Adoption:
    key, text = grid_key(grid.name), grid.text().encode()
    try:
        store.create(key, text)
    except Conflict:
        held, version = store.get_versioned(key)
    else:
        return Adoption("new")
    if held == text:
        return Adoption("unchanged")
    before = parse_grid(held.decode(), f"{store.uri}/{key}")
    changes = describe_changes(before, grid)
    if changes and not update:
        raise SpecError(
            f"grid {grid.name}: {store.uri} holds another grid of this name; here\n" + "\n".join(changes),
            hint="--update takes this one over: rows are added or leave, what is trained stays; "
            "--as NAME keeps both, each under its own name",
        )
    store.put(f"grids/{grid.name}/earlier/{before.digest[:DIGEST_DIGITS]}.yaml", held)
    try:
        store.replace(key, text, version)
    except Conflict as error:
        raise SpecError(
            f"grid {grid.name}: someone else changed it in {store.uri} at the same moment",
            hint="the same command shows what differs now",
        ) from error
    return Adoption("updated", tuple(changes))


def set_aside_misfits(grid: Grid, store: Store, facts: Facts) -> tuple[str, ...]:
    """Set aside every decision that does not fit `grid`; the stages they were of."""
    _, misfits = fitting(grid, read_decisions(store, grid.name), facts)
    for stage in misfits:
        set_decision_aside(store, grid.name, stage)
    return misfits


def set_intent(grid: Grid, store: Store, intent: Literal["active", "paused", "cancelled"]) -> Intent:
    """Record what is wanted of `grid`, unless that stands already; the intent that stands then."""
    standing = read_intent(store, grid.name)
    if standing is not None and (standing.intent, standing.digest) == (intent, grid.digest):
        return standing
    said = Intent(intent=intent, digest=grid.digest, time=datetime.now(UTC))
    store.put(f"grids/{grid.name}/intent.json", said.model_dump_json(indent=2).encode())
    return said


def read_intent(store: Store, grid: str) -> Intent | None:
    """What is wanted of the grid; none where nothing was said."""
    key = f"grids/{grid}/intent.json"
    try:
        return parse_record(Intent, key, store.get(key))
    except NotFound:
        return None


def stored_grids(store: Store) -> list[str]:
    """Names of the grids in the store."""
    keys = (entry.key.split("/") for entry in store.list("grids/"))
    return [parts[1] for parts in keys if len(parts) == 3 and parts[2] == "grid.yaml"]


def stored_grid(store: Store, name: str) -> Grid | None:
    """The grid of that name as the store has it; none where it has none. Raises SpecError when it cannot be read."""
    key = grid_key(name)
    try:
        return parse_grid(store.get(key).decode(), f"{store.uri}/{key}")
    except NotFound:
        return None
    except (SpecError, UnicodeDecodeError) as error:
        raise SpecError(
            f"the grid {name!r} in the store cannot be read: {error}",
            hint=f"remove {key} from the store, and run the grid from its own file: results stay",
        ) from error


def wanted_of(store: Store, grids: Collection[str] | None = None) -> dict[str, Wants]:
    """What each grid of the store, or each of `grids`, needs to stay, by grid.

    Raises GridError when one of them cannot be read or expanded: what it wants would be unknown.
    """
    found = {}
    for name in sorted(stored_grids(store) if grids is None else grids):
        grid = stored_grid(store, name)
        assert grid is not None
        needs = wanted(grid)
        expansion = expand(grid, read_decisions(store, name), gather_facts(store, needs))
        found[name] = Wants(frozenset(expansion.runs()), frozenset(needs.data))
    return found


# Decisions


def record_decision(store: Store, grid: str, decision: Decision) -> Decision:
    """Write the decision, once; the one that stands, which is another's where someone was faster."""
    key = decision_key(grid, decision.stage)
    try:
        store.create(key, decision.model_dump_json(indent=2).encode())
    except Conflict:
        return parse_record(Decision, key, store.get(key))
    return decision


def set_decision_aside(store: Store, grid: str, stage: str) -> str | None:
    """Discard the stage's decision; the key it is kept under from now on, none where there was none."""
    key = decision_key(grid, stage)
    try:
        data = store.get(key)
    except NotFound:
        return None
    moved = f"grids/{grid}/set_aside/{stage}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    store.put(moved, data)
    store.delete(key)
    return moved


def reopen(grid: Grid, store: Store, stage: str, facts: Facts) -> tuple[str, ...]:
    """Discard the stage's decision and those that rest on it; the stages that are open now."""
    grid.stage(stage)  # raises on an unknown name
    if set_decision_aside(store, grid.name, stage) is None:
        return ()
    return tuple(sorted({stage, *set_aside_misfits(grid, store, facts)}))


# Runs


def write_run_spec(store: Store, run: Run) -> None:
    """Write what the trainer reads. Where it is there already, names that are no identity are brought up to date."""
    store.put(f"runs/{run.id}/spec.yaml", write_spec(run.spec).encode())


def checkpoint_sequence(store: Store, run: str) -> int:
    """How many checkpoints the run has had; 0 without one."""
    key = f"runs/{run}/checkpoint.json"
    try:
        return parse_record(CheckpointHead, key, store.get(key)).sequence
    except (NotFound, DataError):  # the trainer itself tells of a damaged one
        return 0


def attempt_failure(store: Store, run: str, attempt: str | None) -> Failure | None:
    """What the attempt recorded of its own end; none where it could not, as when it was killed."""
    if attempt is None:
        return None
    key = f"runs/{run}/attempts/{attempt}/failure.json"
    try:
        return parse_record(Failure, key, store.get(key))
    except NotFound:
        return None


def record_failure(store: Store, failure: Failure) -> None:
    """Write a failure after which only `grid retry` starts the run again."""
    assert failure.final
    store.put(f"failures/{failure.run}.json", failure.model_dump_json(indent=2).encode())


def clear_failures(store: Store, runs: Collection[str]) -> dict[str, Failure]:
    """Remove the final failures of `runs`, so that they may start again; the failures removed, by run."""
    cleared = read_failures(store, runs)
    for run in cleared:
        store.delete(f"failures/{run}.json")
    return cleared


def homes(expansion: Expansion) -> Mapping[str, tuple[str, ...]]:
    """Where each run stands in the grid, by id: `stage/experiment`, first home first."""
    found: dict[str, list[str]] = {}
    for stage in expansion.stages:
        for experiment in stage.experiments:
            home = experiment.name if stage.is_test else f"{stage.name}/{experiment.name}"
            for run in experiment.runs:
                found.setdefault(run.id, []).append(home)
    return {run: tuple(dict.fromkeys(named)) for run, named in found.items()}
