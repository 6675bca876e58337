"""What the store knows of a grid: its text, its intent and its decisions; and what its runs are started from.

hashes/<file>.json                          the SHA-256 of weights/<file>, and of which version of it
grids/<grid>/grid.yaml                      the grid in canonical form, with what the command line set
grids/<grid>/intent.json                    whether its runs are to be trained, and which single ones are not
grids/<grid>/settings.yaml                  the cluster's side of it, as it was submitted last
grids/<grid>/decisions/<stage>.json         what a stage kept: written once
grids/<grid>/earlier/<digest>.yaml          texts that an update replaced
grids/<grid>/earlier/damaged-<digest>.yaml  such texts that could not be read
grids/<grid>/set_aside/<stage>-<time>.json  decisions over rows that an update changed, or that were reopened
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from controller.architectures import check_classifier, check_factory
from controller.changes import describe_changes
from controller.grid import Grid, parse_grid
from controller.knowledge import read_decisions, read_failures, read_results, runs_with_results
from controller.origins import cure, data_cure, other_split
from controller.search import (
    DataFacts,
    Decision,
    DecisionMismatch,
    Expansion,
    Facts,
    Needs,
    Run,
    expand,
    fitting,
    wanted,
)
from controller.settings import Settings, parse_settings, settings_text
from controller.standing import Held
from trainer.dataset import PARTS, DatasetIndex, load_index
from trainer.failure import DataError, Failure, SpecError, StoreError
from trainer.identity import write_spec
from trainer.result import Record, parse_record
from trainer.store import Conflict, NotFound, Store
from trainer.weights import check_hash_in_name

DIGEST_DIGITS = 12  # of an earlier text's digest, in its name
CHANGES_SHOWN = 16  # lines that tell how a grid differs from the one that the store has
RESULTS_ASKED = 500  # results that are read to know what data and weights were that are gone
BLOCK = 1 << 20


class _Progress(Record):
    epoch: int
    peak_memory_bytes: int = 0


class CheckpointHead(Record):
    """What the controller needs to know of a run's `checkpoint.json`."""

    sequence: int
    progress: _Progress = Field(default=_Progress(epoch=0))

    @property
    def epochs_done(self) -> int:
        """Epochs that need not be computed again."""
        return self.progress.epoch

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident set, on a GPU largest allocation, that was reported up to then."""
        return self.progress.peak_memory_bytes


class Intent(Record):
    """What is wanted of a grid, as `grids/<grid>/intent.json` holds it."""

    intent: Literal["active", "paused", "cancelled"]
    digest: str = Field(description="of the grid's text that this was said of")
    time: datetime
    runs: Mapping[str, Held] = Field(
        default={}, description="of single runs, whatever else is wanted of the grid; those it leaves out are active"
    )


class WeightsHash(Record):
    """`hashes/<file>.json`: what a weights file is, so that it need not be read whole for each look at a grid."""

    version: str = Field(description="of the file as the store lists it: with another one this is out of date")
    sha256: str


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
    untold: str | None = None  # why these are not known: then the grid may need any run, and any data set


def grid_key(grid: str) -> str:
    """Where the grid's text lives."""
    return f"grids/{grid}/grid.yaml"


def settings_key(grid: str) -> str:
    """Where the settings of the grid's submission live."""
    return f"grids/{grid}/settings.yaml"


def decision_key(grid: str, stage: str) -> str:
    """Where the stage's decision lives."""
    return f"grids/{grid}/decisions/{stage}.json"


# Facts


def gather_facts(store: Store, needs: Needs, *, lacking: dict[str, DataError] | None = None) -> Facts:
    """What `store` and this machine know of all that `needs` names. Raises DataError, SpecError on what is missing.

    With `lacking`, weights that are missing or not what they should be go there with the error, under a stand-in.
    """
    for name in needs.classifiers:
        check_classifier(name)
    data = {name: data_facts(read_index(store, name)) for name in needs.data}
    wrong: dict[str, DataError] = {}
    weights: dict[str, str] = {}
    for name in needs.weights:
        try:
            weights[name] = weights_sha256(store, name)
        except DataError as error:
            wrong[name] = error
            weights[name] = _stand_in(name)
    if lacking is None:
        _refuse(list(wrong.values()))
    else:
        lacking |= wrong
    return Facts(data=data, weights=weights, factories={name: check_factory(name) for name in needs.factories})


def read_index(store: Store, name: str) -> DatasetIndex:
    """The data set's index, as `load_index` reads it; the hint of one that is missing is the whole command."""
    try:
        return load_index(store, name)
    except DataError as error:
        if not isinstance(error.__cause__, NotFound):
            raise
        raise DataError(error.message, hint=f"import it with {data_cure(name)}") from error


def facts_to_show(store: Store, needs: Needs) -> tuple[Facts, dict[str, DataError]]:
    """What is known of all that `needs` names, for those who train nothing; with what the store lacks, by its name.

    Of data and weights that the store lacks, finished runs say what they were; without any, stand-ins are in the
    facts. Raises SpecError as `gather_facts` does.
    """
    lacking: dict[str, DataError] = {}
    facts = gather_facts(store, replace(needs, data=()), lacking=lacking)
    data: dict[str, DataFacts] = {}
    for name in needs.data:
        try:
            data[name] = data_facts(read_index(store, name))
        except DataError as error:
            lacking[name] = error
            data[name] = DataFacts(_stand_in(name), 0, {})
    if not lacking:
        return replace(facts, data=data), lacking
    told = _told_by_results(store)
    return replace(
        facts,
        data={
            name: replace(each, fingerprint=told.get(("data", name), each.fingerprint)) if name in lacking else each
            for name, each in data.items()
        },
        weights={
            name: told.get(("weights", name), each) if name in lacking else each for name, each in facts.weights.items()
        },
    ), lacking


def _told_by_results(store: Store) -> dict[tuple[str, str], str]:
    """The fingerprint of data sets and weights by kind and name, as most of those runs had it whose results are read.

    Ids are hashes, so that any of them are a fair sample.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in read_results(store, runs_with_results(store)[:RESULTS_ASKED]).values():
        spec = result.spec
        with suppress(KeyError, TypeError, AttributeError):  # another trainer's spec, which need not be like ours
            counts.setdefault(("data", spec["data"]["name"]), Counter())[result.data_fingerprint] += 1
            if result.weights_fingerprint is not None:
                named = ("weights", spec["model"]["weights"])
                counts.setdefault(named, Counter())[result.weights_fingerprint] += 1
    return {named: found.most_common(1)[0][0] for named, found in counts.items()}


def _stand_in(name: str) -> str:
    return hashlib.sha256(f"no {name}".encode()).hexdigest()


def _refuse(errors: Sequence[DataError]) -> None:
    """Nothing without errors; raises one that says them all otherwise, each with its hint."""
    if errors:
        told = [str(error) for error in errors[:-1]] + [errors[-1].message]
        raise DataError("\n".join(told), hint=errors[-1].hint) from errors[-1]


def data_facts(index: DatasetIndex) -> DataFacts:
    """What a plan and a table need to know of the data set."""
    images = index.images
    return DataFacts(
        fingerprint=index.fingerprint,
        num_classes=index.num_classes,
        class_counts={part: index.class_counts(part) for part in PARTS},
        aspect_sums={part: sum(_aspect(images.width[row], images.height[row]) for row in index.rows(part))
                     for part in PARTS},
        other_split=other_split(index),
    )  # fmt: skip


def _aspect(width: int, height: int) -> float:
    return max(width, height) / min(width, height)


def weights_sha256(store: Store, name: str) -> str:
    """The hash of the file, read whole only where the store does not keep it of this version. Raises DataError.

    A store that takes no objects is no error: the next one reads the file anew.
    """
    key, version = f"hashes/{name}.json", weights_version(store, name)
    with suppress(NotFound, DataError):  # a damaged one is made anew
        kept = parse_record(WeightsHash, key, store.get(key))
        if version is not None and kept.version == version:
            check_hash_in_name(name, kept.sha256)
            return kept.sha256
    found = _read_sha256(store, name)
    if version is not None and weights_version(store, name) == version:  # else someone wrote the file meanwhile
        keep_sha256(store, name, version, found)
    check_hash_in_name(name, found)
    return found


def keep_sha256(store: Store, name: str, version: str, sha256: str) -> None:
    """Keep the hash of this version of the weights file; a store that takes no objects keeps none."""
    with suppress(StoreError):
        text = WeightsHash(version=version, sha256=sha256).model_dump_json(indent=2)
        store.put(f"hashes/{name}.json", text.encode())


def weights_version(store: Store, name: str) -> str | None:
    """The file's version as the store lists it; none where there is no such file."""
    key = f"weights/{name}"
    return next((entry.version for entry in store.list(key) if entry.key == key), None)


def _read_sha256(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with store.open(f"weights/{name}") as file:
            block = file.read(BLOCK)
            check_weights_head(name, block[:HEAD_BYTES])
            while block:
                digest.update(block)
                block = file.read(BLOCK)
    except NotFound as error:
        raise DataError(
            f"weights {name!r}: no weights/{name} in {store.uri}", hint=f"{cure(name)} puts it there"
        ) from error
    return digest.hexdigest()


HEAD_BYTES = 16  # of a weights file, enough to tell what it is
ZIP_HEAD = b"PK\x03\x04"  # torch.save since torch 1.6
PICKLE_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P"  # torch.save before; most of torchvision's files


def check_weights_head(name: str, head: bytes) -> None:
    """Raise DataError unless a weights file that begins with `head` may be what its name says."""
    if name.endswith(".safetensors"):
        # the header's length, then the header: https://huggingface.co/docs/safetensors/index#format
        is_right, expected = head[8:9] == b"{", "a safetensors file"
    else:
        is_right, expected = head.startswith((ZIP_HEAD, PICKLE_HEAD)), "what torch.save writes"
    if not is_right:
        raise DataError(
            f"weights {name!r}: weights/{name} begins with {head[:HEAD_BYTES]!r}, expected {expected}",
            hint="import a state dict, as torch.save(model.state_dict(), file) writes it, or as safetensors under a "
            "name that ends so",
        )


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
    try:
        before = _read_stored(held, grid.name, store)
    except SpecError:
        if not update:
            raise
        changes, kept_as = [f"the text in {store.uri} could not be read"], f"damaged-{_digest(held)}"
    else:
        changes, kept_as = describe_changes(before, grid), before.digest[:DIGEST_DIGITS]
    if changes and not update:
        raise SpecError(
            f"grid {grid.name}: {store.uri} holds another grid of this name; here\n" + _shown(changes),
            hint="--as NAME keeps both, each under its own name; "
            "--update takes this one over: rows are added or leave, what is trained stays",
        )
    store.put(f"grids/{grid.name}/earlier/{kept_as}.yaml", held)
    try:
        store.replace(key, text, version)
    except Conflict as error:
        raise SpecError(
            f"grid {grid.name}: someone else changed it in {store.uri} at the same moment",
            hint="the same command shows what differs now",
        ) from error
    return Adoption("updated", tuple(changes))


def _shown(changes: Sequence[str]) -> str:
    """The changes, a line each, as many as a terminal has room for."""
    more = len(changes) - CHANGES_SHOWN
    return "\n".join([*changes[:CHANGES_SHOWN], *([f"and {more:,} more"] if more > 0 else [])])


def set_aside_misfits(grid: Grid, store: Store, facts: Facts) -> tuple[str, ...]:
    """Set aside every decision that does not fit `grid`; the stages they were of."""
    _, misfits = fitting(grid, read_decisions(store, grid.name), facts)
    for stage in misfits:
        set_decision_aside(store, grid.name, stage)
    return misfits


def intent_key(grid: str) -> str:
    """Where it lives what is wanted of the grid."""
    return f"grids/{grid}/intent.json"


def set_intent(grid: Grid, store: Store, intent: Literal["active", "paused", "cancelled"]) -> Intent:
    """Record what is wanted of `grid`, unless that stands already; the intent that stands then.

    What was said of single runs stays.
    """

    def said(standing: Intent | None) -> Intent:
        runs = {} if standing is None else standing.runs
        return Intent(intent=intent, digest=grid.digest, time=datetime.now(UTC), runs=runs)

    return _change_intent(store, grid.name, said)


def hold_run(grid: Grid, store: Store, run: str, held: Held | None) -> Held | None:
    """Record what is wanted of one run in `grid`, none being what is wanted of the grid; what was said of it before."""
    before: list[Held | None] = []

    def said(standing: Intent | None) -> Intent:
        standing = standing or Intent(intent="active", digest=grid.digest, time=datetime.now(UTC))
        before.append(standing.runs.get(run))
        others = {each: value for each, value in standing.runs.items() if each != run}
        runs = others if held is None else {**others, run: held}
        return standing.model_copy(update={"runs": runs, "time": datetime.now(UTC)})

    _change_intent(store, grid.name, said)
    return before[-1]


def _change_intent(store: Store, grid: str, change: Callable[[Intent | None], Intent]) -> Intent:
    """The intent that `change` makes of the one that stands, recorded where it differs; no word in between is lost."""
    key = intent_key(grid)
    while True:
        try:
            data, version = store.get_versioned(key)
        except NotFound:
            standing, said = None, change(None)
        else:
            standing = parse_record(Intent, key, data)
            said = change(standing)
            if said.model_copy(update={"time": standing.time}) == standing:
                return standing
        text = said.model_dump_json(indent=2).encode()
        try:
            if standing is None:
                store.create(key, text)
            else:
                store.replace(key, text, version)
        except (Conflict, NotFound):  # someone else says something at the same moment
            continue
        return said


def read_intent(store: Store, grid: str) -> Intent | None:
    """What is wanted of the grid; none where nothing was said."""
    key = intent_key(grid)
    try:
        return parse_record(Intent, key, store.get(key))
    except NotFound:
        return None


def read_held(store: Store, grid: str) -> Mapping[str, Held]:
    """The grid's runs that are not to be trained, as someone has said of each, by run."""
    said = read_intent(store, grid)
    return {} if said is None else said.runs


def write_settings(store: Store, grid: str, settings: Settings) -> None:
    """Keep what the grid was submitted with, by which whoever acts on it makes its Jobs."""
    text, held = settings_text(settings).encode(), None
    with suppress(NotFound):
        held = store.get(settings_key(grid))
    if held != text:
        store.put(settings_key(grid), text)


def stored_settings(store: Store, grid: str, assignments: Sequence[str] = ()) -> Settings | None:
    """What the grid was submitted with last, changed by `assignments`; none where it was not. Raises SpecError."""
    place = f"{store.uri}/{settings_key(grid)}"
    try:
        return parse_settings(store.get(settings_key(grid)).decode(), place, assignments)
    except NotFound:
        return None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{place}: got bytes that are no text ({error}), expected settings in YAML, encoded as UTF-8",
            hint=f"`grid submit {grid} --settings FILE` writes them anew",
        ) from error


def stored_grids(store: Store) -> list[str]:
    """Names of the grids in the store."""
    keys = (entry.key.split("/") for entry in store.list("grids/"))
    return [parts[1] for parts in keys if len(parts) == 3 and parts[2] == "grid.yaml"]


def grids_naming(store: Store, kind: Literal["data", "weights"], name: str) -> list[str]:
    """The grids in the store that name the data set or the weights file, as far as they can be read."""
    found = []
    for each in stored_grids(store):
        with suppress(SpecError):  # whoever uses that grid is told
            grid = stored_grid(store, each)
            if grid is not None and name in getattr(wanted(grid), kind):
                found.append(each)
    return found


def stored_grid(store: Store, name: str) -> Grid | None:
    """The grid of that name as the store has it; none where it has none. Raises SpecError when it cannot be read."""
    try:
        return _read_stored(store.get(grid_key(name)), name, store)
    except NotFound:
        return None


def _read_stored(text: bytes, name: str, store: Store) -> Grid:
    try:
        return parse_grid(text.decode(), f"{store.uri}/{grid_key(name)}")
    except (SpecError, UnicodeDecodeError) as error:
        told = error.message if isinstance(error, SpecError) else str(error)
        raise SpecError(
            f"the grid {name!r} in the store cannot be read: {told}",
            hint=f"with the grid's file at hand, `grid run FILE --update` puts it there and keeps the damaged text; "
            f"`grid gc --forget {name}` counts the grid as gone",
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


def wanted_of(store: Store, grids: Collection[str] | None = None) -> dict[str, Wants]:
    """What each grid of the store, or each of `grids`, needs to stay, by grid.

    A grid that cannot be read or expanded is no error: it may need anything, and says why and what to do about it.
    """
    return {name: _wants(name, store) for name in sorted(stored_grids(store) if grids is None else grids)}


def _wants(name: str, store: Store) -> Wants:
    hint = f"`grid gc --forget {name}` counts the grid as gone"
    try:
        grid = stored_grid(store, name)
        if grid is None:  # someone removed it at this moment
            return Wants(frozenset(), frozenset())
        needs = wanted(grid)
        expansion = expand(grid, read_decisions(store, name), gather_facts(store, needs))
    except DecisionMismatch as error:
        told, hint = error.message, f"`grid reopen {name} {error.stage}` sets it aside, or {hint}"
    except (SpecError, DataError) as error:
        told = error.message
        hint = error.hint if error.hint and hint in error.hint else f"{error.hint}, or {hint}" if error.hint else hint
    else:
        return Wants(frozenset(expansion.runs()), frozenset(needs.data))
    return Wants(frozenset(), frozenset(), f"grid {name}: what it needs cannot be told: {told}; {hint}")


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
    head = checkpoint_head(store, run)
    return 0 if head is None else head.sequence


def checkpoint_head(store: Store, run: str) -> CheckpointHead | None:
    """How far the run's newest checkpoint is; none without one."""
    key = f"runs/{run}/checkpoint.json"
    try:
        return parse_record(CheckpointHead, key, store.get(key))
    except (NotFound, DataError):  # the trainer itself tells of a damaged one
        return None


def attempt_failure(store: Store, run: str, attempt: str | None) -> Failure | None:
    """What the attempt recorded of its own end; none where it could not, as when it was killed."""
    if attempt is None:
        return None
    key = f"runs/{run}/attempts/{attempt}/failure.json"
    try:
        return parse_record(Failure, key, store.get(key))
    except NotFound:
        return None


def record_failure(store: Store, failure: Failure) -> bool:
    """Write a failure after which only `grid retry` starts the run again; whether it was written.

    It is not where the store has one by now, such as the trainer's own: its writer knew more.
    """
    assert failure.final
    key, text = f"failures/{failure.run}.json", failure.model_dump_json(indent=2).encode()
    try:
        store.create(key, text)
    except Conflict:
        try:
            held, version = store.get_versioned(key)
            if parse_record(Failure, key, held).final:
                return False
            store.replace(key, text, version)
        except (Conflict, NotFound):  # someone else writes or clears it at this moment
            return False
    return True


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
