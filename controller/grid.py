"""The grid file: what it may hold, how it is read, changed from the command line, and written in one canonical form."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from trainer.document import (
    Document,
    Place,
    Problem,
    dotted_keys,
    nearest,
    read_document,
    show_value,
    spec_error,
    takes_any_key,
    unknown_key_hint,
    validate,
    write_yaml,
)
from trainer.document import Path as DocumentPath
from trainer.failure import SpecError
from trainer.spec import AUGMENTATIONS, NORMALIZATIONS, ExperimentSpec, Frozen, ValidationMetric

BASE = "base"
SAFE_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"  # fit for a key of the store and a Kubernetes label
SPEC_KEYS = dotted_keys(ExperimentSpec)
OWN_KEYS = ("seeds", "max_failed", "keep")  # what `--set` takes beside the keys of the base
PRESETS: dict[DocumentPath, Mapping[str, Mapping[str, Any]]] = {
    ("augmentation",): AUGMENTATIONS,
    ("data", "normalize"): NORMALIZATIONS,
}

Values = dict[str, Any]
Seeds = PositiveInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class KeepBest(Frozen):
    """Keep the row that is best by the mean over seeds of a validation metric."""

    best: ValidationMetric = Field(description="validation metric, each run's read at its best epoch")


class KeepThis(Frozen):
    """Keep one row whatever the results, for a reason."""

    this: Annotated[Values, Field(min_length=1)] = Field(
        description="values that only this row has, by dotted key, or its `name`"
    )
    because: str = Field(min_length=1, description="the reason, as the table shows it")


class TestBest(Frozen):
    """Test the best distinct experiments of earlier stages."""

    __test__ = False

    best: PositiveInt = Field(description="how many")
    by: ValidationMetric | None = Field(default=None, description="validation metric; that of base.best if left out")
    of: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="stages to choose from; all before this one if left out"
    )


class PinnedRow(Frozen):
    """One row of an earlier stage."""

    stage: str = Field(description="its name")
    this: Annotated[Values, Field(min_length=1)] = Field(
        description="values that only this row has, by dotted key, or its `name`"
    )


class TestThese(Frozen):
    """Test certain rows of earlier stages whatever the results, for a reason."""

    __test__ = False

    these: Annotated[tuple[PinnedRow, ...], Field(min_length=1)] = Field(description="the rows")
    because: str = Field(min_length=1, description="the reason, as the table shows it")


def _keep_kind(value: Any) -> str:
    pinned = isinstance(value, KeepThis) or (
        isinstance(value, dict) and not value.keys().isdisjoint(("this", "because"))
    )
    return "KeepThis" if pinned else "KeepBest"


def _test_kind(value: Any) -> str:
    pinned = isinstance(value, TestThese) or (
        isinstance(value, dict) and not value.keys().isdisjoint(("these", "because"))
    )
    return "TestThese" if pinned else "TestBest"


Keep = Annotated[Annotated[KeepBest, Tag("KeepBest")] | Annotated[KeepThis, Tag("KeepThis")], Discriminator(_keep_kind)]
Test = Annotated[
    Annotated[TestBest, Tag("TestBest")] | Annotated[TestThese, Tag("TestThese")], Discriminator(_test_kind)
]


class Stage(Frozen):
    """Experiments that are compared with one another. Points, zip and vary together make their product."""

    name: str = Field(pattern=SAFE_NAME, description="unique within the grid")
    start: str | None = Field(
        default=None,
        alias="from",
        description="the stage whose kept values this one starts from, or `base`; the one before if left out",
    )
    fixed: Values = Field(default={}, alias="set", description="values for all rows, by dotted key")
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default={}, description="values to try, by dotted key: every combination is a row"
    )
    zipped: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default={}, alias="zip", description="values to try side by side, by dotted key: lists of one length"
    )
    points: tuple[Annotated[Values, Field(min_length=1)], ...] = Field(
        default=(), description="rows one by one: values by dotted key, and a `name` if the values make no good one"
    )
    exclude: tuple[Annotated[Values, Field(min_length=1)], ...] = Field(
        default=(), description="rows to leave out: each that has all of the values given"
    )
    seeds: Seeds | None = Field(default=None, description="seeds of this stage; the grid's if left out")
    keep: Keep | None = Field(
        default=None, description="which row later stages start from; the best by base.best.metric if left out"
    )
    on_failed: Literal["stop", "ignore", "wait"] = Field(
        default="stop",
        description="what a failed row does to the choice: nothing is kept and the grid ends there (stop), the row "
        "counts as the worst (ignore), or the stage waits for `grid retry` (wait). Diverged rows always rank last",
    )
    test: Test | None = Field(
        default=None, description="makes this a test stage: earlier rows, evaluated once on the test part"
    )


class GridFile(Frozen):
    """A grid: what to compare, stage by stage."""

    grid: str = Field(pattern=SAFE_NAME, description="the grid's name in the store")
    description: str = Field(default="", description="one line that `grid list` shows")
    base: ExperimentSpec = Field(description="values that every experiment starts from")
    seeds: Seeds = Field(default=1, description="how many seeds, counted from 0, or a list of them")
    max_failed: NonNegativeInt | None = Field(
        default=None, description="with more failed runs than this, no other is started; null never stops"
    )
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = Field(
        description="in the order of the table; each may start from what an earlier one kept"
    )


@dataclass(frozen=True)
class Candidate:
    """One row of a stage before it is known what it starts from."""

    name: str
    values: Mapping[str, Any]  # what the stage varies, by dotted key
    origins: tuple[DocumentPath, ...]  # where in the grid file each of the values stands


@dataclass(frozen=True)
class Grid:
    """A grid as read, with what the command line set. `stages` have `from`, `keep`, `seeds` and `test` filled in."""

    document: Document
    base: Mapping[str, Any]  # as written: what is a default is not in it
    description: str
    name: str
    seeds: tuple[int, ...]
    max_failed: int | None
    stages: tuple[Stage, ...]
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # rows that were built, by `search`

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises SpecError with the nearest names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise SpecError(
            f"stage: got {name!r}, expected a stage of grid {self.name}: {', '.join(s.name for s in self.stages)}",
            hint=_did_you_mean(name, [stage.name for stage in self.stages]),
        )

    def path(self, stage: Stage) -> DocumentPath:
        """Where the stage stands in the document."""
        return ("stages", [each.name for each in self.stages].index(stage.name))

    def stage_seeds(self, stage: Stage) -> tuple[int, ...]:
        """Seeds that each row of the stage is trained with."""
        return self.seeds if stage.seeds is None else _seed_list(stage.seeds)

    def candidates(self, stage: Stage) -> tuple[Candidate, ...]:
        """The stage's rows in order, without those excluded; names and values do not hang on what it starts from.

        Raises SpecError when two rows have one name, nothing is left, or an exclusion fits no row.
        """
        key = ("candidates", stage.name)
        if key not in self.memo:
            self.memo[key] = _candidates(stage, self.path(stage), self.document)
        found: tuple[Candidate, ...] = self.memo[key]
        return found

    def text(self) -> str:
        """The grid in canonical YAML: no comments, no defaults, keys in one order; reads back as an equal grid."""
        return write_yaml(_canonical(self.document.value))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical text."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def shipped_grids() -> list[tuple[str, str]]:
    """Name and description of each grid that comes with this program, by name."""
    found = []
    for name in _shipped_names():
        value = read_document(_shipped_text(name), f"{name}.yaml").value
        found.append((name, str(value.get("description", ""))))
    return found


def read_grid(name_or_path: str | Path, sets: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The grid of that shipped name or path, changed by `sets` (`key=value` each) and trained with `seeds` seeds.

    A value that is set goes to the base, but for the grid's own keys: `seeds`, `max_failed`, and `keep=best`, which
    puts the rule in the place of every pinned choice. `seeds` goes over the seeds of single stages too. Raises
    SpecError.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if not isinstance(name_or_path, Path) and name in _shipped_names():
        return parse_grid(_shipped_text(name), f"grids/{name}.yaml", sets, seeds)
    if not path.is_file():
        looks_like_path = isinstance(name_or_path, Path) or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
        if looks_like_path:
            raise SpecError(f"{name}: no such file", hint="`grid list` shows the grids that need no file")
        hint = _did_you_mean(name, _shipped_names()) or "`grid list` shows them; a path to a file is a grid too"
        raise SpecError(
            f"grid: got {name!r}, expected one of {', '.join(_shipped_names())}, one of the store's, or a file",
            hint=hint,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{name}: not readable as UTF-8 text: {error}") from error
    return parse_grid(text, name, sets, seeds)


def parse_grid(text: str, source: str, sets: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The grid that `text` holds, as `read_grid` reads it; `source` names it in errors."""
    document = read_document(text, source)
    validate(GridFile, document)
    for assignment in sets:
        document = _with_set(document, assignment)
    if seeds is not None:
        document = _with_seeds(document, seeds)
    file = validate(GridFile, document)
    if problems := list(_problems(file)):
        raise spec_error(problems, document)
    grid = Grid(
        document=document,
        base=document.value["base"],
        description=file.description,
        name=file.grid,
        seeds=_seed_list(file.seeds),
        max_failed=file.max_failed,
        stages=_completed(file),
    )
    for stage in grid.stages:
        if stage.test is None:
            grid.candidates(stage)
    return grid


def assign(values: Mapping[str, Any], path: Sequence[str], value: Any, outer: DocumentPath = ()) -> dict[str, Any]:
    """A copy of `values` in which `value` stands at `path`; a named pipeline on the way there is written out."""
    head, rest = path[0], path[1:]
    if not rest:
        return {**values, head: value}
    here = (*outer, head)
    inner = values.get(head)
    if isinstance(inner, str):
        inner = PRESETS.get(here, {}).get(inner, {})
    return {**values, head: assign(inner if isinstance(inner, Mapping) else {}, rest, value, here)}


def same(one: Any, other: Any) -> bool:
    """Whether two values of a grid mean the same: 1 and 1.0 do, 1 and true do not."""
    return bool(_key(one) == _key(other))


def matches(values: Mapping[str, Any], wanted: Mapping[str, Any], name: str | None = None) -> bool:
    """Whether a row that has `values` by dotted key, and `name`, has all that is `wanted`."""
    for key, value in wanted.items():
        if key == "name":
            if name != value:
                return False
        elif not same(_look_up(values, key), value):
            return False
    return True


def describe_changes(old: Grid, new: Grid) -> list[str]:
    """What differs between two grids, a line each; nothing when both come to the same."""
    before, after = dict(_flat(old.base)), dict(_flat(new.base))
    lines = [
        f"base.{key}: {_shown(before, key)} becomes {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if not same(before.get(key, _MISSING), after.get(key, _MISSING))
    ]
    if old.name != new.name:
        lines.append(f"grid: {old.name} becomes {new.name}")
    if old.seeds != new.seeds:
        lines.append(f"seeds: {_listed(old.seeds)} becomes {_listed(new.seeds)}")
    if old.max_failed != new.max_failed:
        lines.append(f"max_failed: {show_value(old.max_failed)} becomes {show_value(new.max_failed)}")
    earlier = {stage.name: stage for stage in old.stages}
    later = {stage.name: stage for stage in new.stages}
    lines += [f"stage {name}: removed" for name in earlier if name not in later]
    for name, stage in later.items():
        if name not in earlier:
            lines.append(f"stage {name}: added")
        else:
            lines += [f"stage {name}: {line}" for line in _stage_changes(old, earlier[name], new, stage)]
    common = [name for name in earlier if name in later]
    if common != [name for name in later if name in earlier]:
        lines.append("stages: in another order")
    return lines


_MISSING = object()


def _stage_changes(old: Grid, before: Stage, new: Grid, after: Stage) -> Iterator[str]:
    for key, was, now in (
        ("from", before.start, after.start),
        ("seeds", old.stage_seeds(before), new.stage_seeds(after)),
        ("set", before.fixed, after.fixed),
        ("on_failed", before.on_failed, after.on_failed),
        ("keep", _dumped(before.keep), _dumped(after.keep)),
        ("test", _dumped(before.test), _dumped(after.test)),
    ):
        if not same(was, now) and not (key == "seeds" and before.seeds is None and after.seeds is None):
            yield f"{key}: {show_value(was)} becomes {show_value(now)}"
    if before.test is not None or after.test is not None:
        return
    was_rows = {row.name: row.values for row in old.candidates(before)}
    now_rows = {row.name: row.values for row in new.candidates(after)}
    removed = [name for name in was_rows if name not in now_rows]
    added = [name for name in now_rows if name not in was_rows]
    changed = [name for name in now_rows if name in was_rows and not same(dict(was_rows[name]), dict(now_rows[name]))]
    for what, names in (("loses", removed), ("gains", added), ("changes the values of", changed)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{what} {'row' if len(names) == 1 else 'rows'} {', '.join(names[:5])}{more}"
    kept = [name for name in now_rows if name in was_rows]
    if not removed and not added and kept != [name for name in was_rows if name in now_rows]:
        yield "rows in another order"


def _dumped(model: Frozen | None) -> Any:
    return None if model is None else model.model_dump(by_alias=True, exclude_none=True)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return show_value(values[key]) if key in values else "the default"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    """The value of a row at dotted `key`, also inside a whole object that the row has."""
    if key in values:
        return values[key]
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        inner: Any = values.get(".".join(parts[:length]), _MISSING)
        if inner is _MISSING:
            continue
        for part in parts[length:]:
            inner = inner.get(part, _MISSING) if isinstance(inner, Mapping) else _MISSING
        return inner
    return _MISSING


def _key(value: Any) -> Any:
    """Something hashable that equal meanings share."""
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, _key(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(_key, value)))
    return (type(value) is bool, value)


def _seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)


def _did_you_mean(got: str, known: Sequence[str]) -> str | None:
    near = nearest(got, known)
    return f"did you mean {near!r}?" if near else None


def _shipped_names() -> list[str]:
    folder = files("controller") / "grids"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _shipped_text(name: str) -> str:
    return (files("controller") / "grids" / f"{name}.yaml").read_text(encoding="utf-8")


# What the command line changes


def _with_set(document: Document, assignment: str) -> Document:
    source = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise SpecError(f"{source}: expected key=value, as in `--set optimizer.lr=0.1`")
    value = read_document(text, source).value
    known = SPEC_KEYS
    if key == "keep":
        return _with_rule(document, value)
    if key in OWN_KEYS:
        return _with_value(document, (key,), value, source)
    if key not in known and not takes_any_key(ExperimentSpec, key):
        key = key.removeprefix(f"{BASE}.")
    if key not in known and not takes_any_key(ExperimentSpec, key):
        ends = [other for other in known if other.rpartition(".")[2] == key]
        near = ends[0] if ends else nearest(key, [*known, *OWN_KEYS])
        raise SpecError(
            f"{source}: unknown key; got {key!r}, expected a key of the base or one of {', '.join(OWN_KEYS)}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    for stage in document.value["stages"]:
        for part in ("set", "vary", "zip", "points"):
            held = stage.get(part, ())
            for taken in (taken for each in (held if isinstance(held, tuple) else (held,)) for taken in each):
                if key == taken or key.startswith(f"{taken}."):
                    raise SpecError(
                        f"{source}: stage {stage['name']!r} gives {taken} its own "
                        f"{'value' if part == 'set' else 'values'}, which win over the base",
                        hint="change the stage in a copy of the grid file, or set another key",
                    )
    return _with_value(document, (BASE, *key.split(".")), value, source)


def _with_value(document: Document, path: tuple[str, ...], value: Any, source: str) -> Document:
    if path[0] == BASE:
        changed = {**document.value, BASE: assign(document.value[BASE], path[1:], value)}
    else:
        changed = {**document.value, path[0]: value}
    kept = {place: where for place, where in document.places.items() if place[: len(path)] != path}
    return Document(document.source, changed, {**kept, path: Place(source, None)})


def _with_rule(document: Document, value: Any) -> Document:
    if value != "best":
        raise SpecError(f"--set keep={value}: got {value!r}, expected best", hint="other choices belong in a grid file")
    stages = []
    for stage in document.value["stages"]:
        changed = dict(stage)
        if isinstance(changed.get("keep"), dict) and "this" in changed["keep"]:
            del changed["keep"]
        if isinstance(changed.get("test"), dict) and "these" in changed["test"]:
            changed["test"] = {"best": len(changed["test"]["these"])}
        stages.append(changed)
    return replace(document, value={**document.value, "stages": tuple(stages)})


def _with_seeds(document: Document, seeds: int) -> Document:
    stages = tuple({key: item for key, item in stage.items() if key != "seeds"} for stage in document.value["stages"])
    changed = replace(document, value={**document.value, "stages": stages})
    return _with_value(changed, ("seeds",), seeds, f"--seeds {seeds}")


def _completed(file: GridFile) -> tuple[Stage, ...]:
    """The stages with what they leave out filled in from those before them and from the base."""
    stages: list[Stage] = []
    for stage in file.stages:
        if stage.test is None:
            start = stage.start or (stages[-1].name if stages else BASE)
            keep = stage.keep or KeepBest(best=file.base.best.metric)
            stages.append(stage.model_copy(update={"start": start, "keep": keep}))
            continue
        test = stage.test
        if isinstance(test, TestBest):
            of = test.of or tuple(each.name for each in stages if each.test is None)
            test = test.model_copy(update={"by": test.by or file.base.best.metric, "of": of})
        stages.append(stage.model_copy(update={"test": test}))
    return tuple(stages)


# What a model cannot check by itself


def _problems(file: GridFile) -> Iterator[Problem]:
    if not isinstance(file.seeds, int):
        yield from _repeated_seeds(file.seeds, ("seeds",))
    earlier: dict[str, Stage] = {}
    for index, stage in enumerate(file.stages):
        path: DocumentPath = ("stages", index)
        if stage.name in earlier:
            yield Problem((*path, "name"), f"got {stage.name!r} a second time, expected a name of its own")
        if stage.name == BASE:
            yield Problem((*path, "name"), f"got {BASE!r}, expected another name: `from: {BASE}` means the grid's base")
        if stage.seeds is not None and not isinstance(stage.seeds, int):
            yield from _repeated_seeds(stage.seeds, (*path, "seeds"))
        yield from _start_problems(stage, path, earlier)
        yield from _test_problems(stage, path, earlier) if stage.test else _row_problems(stage, path)
        earlier.setdefault(stage.name, stage)


def _repeated_seeds(seeds: Sequence[int], path: DocumentPath) -> Iterator[Problem]:
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            yield Problem((*path, index), f"got {seed} a second time, expected each seed once")


def _start_problems(stage: Stage, path: DocumentPath, earlier: Mapping[str, Stage]) -> Iterator[Problem]:
    if stage.test is not None:
        return
    starts = [name for name, each in earlier.items() if each.test is None]
    if stage.start is None:
        if earlier and list(earlier.values())[-1].test is not None:
            yield Problem(
                (*path, "name"),
                f"stage {stage.name!r} comes after a test stage, which keeps nothing to start from",
                f"add `from:` with one of {', '.join([*starts, BASE])}",
            )
    elif stage.start not in (*starts, BASE):
        near = nearest(stage.start, [*starts, BASE])
        yield Problem(
            (*path, "from"),
            f"got {stage.start!r}, expected {BASE} or an earlier stage that trains"
            + (f": {', '.join(starts)}" if starts else ""),
            f"did you mean {near!r}?" if near else None,
        )


def _test_problems(stage: Stage, path: DocumentPath, earlier: Mapping[str, Stage]) -> Iterator[Problem]:
    for name, key in (("start", "from"), ("fixed", "set"), ("vary", "vary"), ("zipped", "zip"), ("points", "points"),
                      ("exclude", "exclude"), ("keep", "keep"), ("seeds", "seeds")):  # fmt: skip
        if name in stage.model_fields_set:
            yield Problem((*path, key), "not in a test stage, whose rows are earlier ones", f"remove {key!r} or 'test'")
    trained = {name: each for name, each in earlier.items() if each.test is None}
    test = stage.test
    if not trained:
        yield Problem((*path, "test"), "got no stage before it, expected one that trains")
        return
    if isinstance(test, TestBest):
        named = [((*path, "test", "of", index), name) for index, name in enumerate(test.of or ())]
    else:
        assert test is not None
        named = [((*path, "test", "these", index, "stage"), row.stage) for index, row in enumerate(test.these)]
    for place, name in named:
        if name not in trained:
            yield Problem(
                place,
                f"got {name!r}, expected an earlier stage that trains: {', '.join(trained)}",
                _did_you_mean(name, list(trained)),
            )
        elif isinstance(test, TestThese):
            index = int(place[4])
            yield from _choice_problems(test.these[index].this, trained[name], (*place[:-1], "this"))


def _row_problems(stage: Stage, path: DocumentPath) -> Iterator[Problem]:
    holders: dict[str, str] = {}
    for part, keys in (("vary", stage.vary), ("zip", stage.zipped)):
        for key, values in keys.items():
            here = (*path, part, key)
            yield from _key_problems(key, here)
            if key in holders:
                yield Problem(here, f"stands in {holders[key]} too, expected in one of them")
            holders[key] = part
            if part == "vary":
                yield from _repeated_values(values, here)
    lengths = {key: len(values) for key, values in stage.zipped.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        yield Problem((*path, "zip"), f"got lists of different lengths: {told}; expected one length")
    names = Counter(str(point["name"]) for point in stage.points if "name" in point)
    for index, point in enumerate(stage.points):
        for key, value in point.items():
            here = (*path, "points", index, key)
            if key == "name":
                if not isinstance(value, str) or not value.strip():
                    yield Problem(here, f"got {show_value(value)}, expected text", "put it in quotes")
                elif names[value] > 1:
                    yield Problem(here, f"got {value!r} {names[value]} times, expected a name of its own")
                continue
            yield from _key_problems(key, here)
            if key in holders:
                yield Problem(here, f"stands in {holders[key]} too, expected in one of them")
    varied = _varied_keys(stage)
    for key in stage.fixed:
        here = (*path, "set", key)
        yield from _key_problems(key, here)
        if key in varied:
            yield Problem(here, "is set here and varied in the same stage", "remove one of the two")
    for index, excluded in enumerate(stage.exclude):
        for key in excluded:
            if key not in varied and not any(key.startswith(f"{each}.") for each in varied):
                yield Problem(
                    (*path, "exclude", index, key),
                    f"got {key!r}, expected a key that this stage varies: {', '.join(varied) or 'none'}",
                    _did_you_mean(key, varied),
                )
    if isinstance(stage.keep, KeepThis):
        yield from _choice_problems(stage.keep.this, stage, (*path, "keep", "this"))


def _key_problems(key: str, path: DocumentPath) -> Iterator[Problem]:
    known = SPEC_KEYS
    if key in known or takes_any_key(ExperimentSpec, key):
        return
    parts = key.split(".")
    while len(parts) > 1 and ".".join(parts[:-1]) not in known:
        parts.pop()
    ends = [other for other in known if other.rpartition(".")[2] == key]
    hint = f"did you mean {ends[0]!r}?" if ends else unknown_key_hint(ExperimentSpec, tuple(parts), None)
    yield Problem(path, f"unknown key; got {parts[-1]!r}", hint)


def _repeated_values(values: Sequence[Any], path: DocumentPath) -> Iterator[Problem]:
    seen: set[Any] = set()
    for index, value in enumerate(values):
        key = _key(value)
        if key in seen:
            yield Problem((*path, index), f"got {show_value(value)} a second time, expected each value once")
        seen.add(key)


def _choice_problems(this: Mapping[str, Any], stage: Stage, path: DocumentPath) -> Iterator[Problem]:
    varied = _varied_keys(stage)
    for key in this:
        if key != "name" and key not in varied and not any(key.startswith(f"{each}.") for each in varied):
            known = [*varied, "name"]
            yield Problem(
                (*path, key),
                f"got {key!r}, expected a key that stage {stage.name!r} varies, or name: {', '.join(known)}",
                _did_you_mean(key, known),
            )


def _varied_keys(stage: Stage) -> list[str]:
    points = (key for point in stage.points for key in point if key != "name")
    return list(dict.fromkeys([*points, *stage.zipped, *stage.vary]))


# Rows


def _candidates(stage: Stage, path: DocumentPath, document: Document) -> tuple[Candidate, ...]:
    """Points, zip and vary make their product, the last key going round fastest."""
    labels = _labels(_varied_keys(stage))
    rows: list[tuple[tuple[str, ...], dict[str, Any], tuple[DocumentPath, ...]]] = [((), {}, ())]
    for group in _groups(stage, path):
        written = [(_group_name(values, labels), values, places) for values, places in group]
        rows = [
            ((*words, name), {**before, **{k: v for k, v in values.items() if k != "name"}}, (*origins, *places))
            for words, before, origins in rows
            for name, values, places in written
        ]
    problems = []
    for index, wanted in enumerate(stage.exclude):
        left = [row for row in rows if not matches(row[1], wanted)]
        if len(left) == len(rows):
            problems.append(Problem((*path, "exclude", index), f"got {show_value(wanted)}, which fits no row"))
        rows = left
    if not rows:
        problems.append(Problem((*path, "exclude"), "excludes every row, expected at least one to stay"))
    default = " ".join(_group_name({key: value}, _labels(list(stage.fixed))) for key, value in stage.fixed.items())
    found = [Candidate(" ".join(filter(None, words)) or default or "default", values, at) for words, values, at in rows]
    names: dict[str, Candidate] = {}
    for row in found:
        if row.name in names:
            place = row.origins[0] if row.origins else path
            problems.append(
                Problem(place, f"two rows are named {row.name!r}", "give points a `name`, or remove one of the two")
            )
        names[row.name] = row
    if problems:
        raise spec_error(problems, document)
    return tuple(found)


def _groups(stage: Stage, path: DocumentPath) -> Iterator[list[tuple[dict[str, Any], tuple[DocumentPath, ...]]]]:
    if stage.points:
        yield [
            (point, tuple((*path, "points", index, key) for key in point if key != "name"))
            for index, point in enumerate(stage.points)
        ]
    if stage.zipped:
        keys = list(stage.zipped)
        yield [
            (dict(zip(keys, values, strict=True)), tuple((*path, "zip", key, index) for key in keys))
            for index, values in enumerate(zip(*stage.zipped.values(), strict=True))
        ]
    for key, values in stage.vary.items():
        yield [({key: value}, ((*path, "vary", key, index),)) for index, value in enumerate(values)]


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The shortest end of each key that no other key shares; `optimizer.name` is `optimizer`."""
    paths = {key: key.split(".")[:-1] if key.endswith(".name") else key.split(".") for key in keys}
    labels = {}
    for key, parts in paths.items():
        others = [other for name, other in paths.items() if name != key]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        unique = all(other != parts for other in others)
        labels[key] = ".".join(parts[-length:]) if unique else key
    return labels


def _group_name(values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    if "name" in values:
        return str(values["name"])
    return " ".join(f"{labels[key]}={_word(value)}" for key, value in values.items())


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else _flow(value)
    if len(text) <= 60:
        return text
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return f"{text[:50]}…{digest[:4]}"


def _flow(value: Any) -> str:
    """`value` in full on one line; names must not hang on what an error message finds short enough."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else show_value(value)


# The canonical text


def _canonical(value: Mapping[str, Any]) -> dict[str, Any]:
    """The grid's value with keys in the models' order, without what equals a default."""
    out: dict[str, Any] = {}
    for key in ("grid", "description", "seeds", "max_failed", BASE):
        if key == BASE:
            out[key] = _ordered_base(value[BASE], "")
        elif key == "seeds":
            seeds = _seed_list(value.get("seeds", 1))
            if seeds != (0,):
                out[key] = len(seeds) if seeds == tuple(range(len(seeds))) else seeds
        elif value.get(key) not in (None, ""):
            out[key] = value[key]
    out["stages"] = [_ordered_stage(stage) for stage in value["stages"]]
    return out


def _ordered_base(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    order = {key: position for position, key in enumerate(SPEC_KEYS)}
    keys = sorted(values, key=lambda key: (order.get(f"{prefix}{key}", len(order)), key))
    return {
        key: _ordered_base(values[key], f"{prefix}{key}.") if isinstance(values[key], Mapping) else values[key]
        for key in keys
    }


def _ordered_stage(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, about in Stage.model_fields.items():
        key = about.alias or name
        if key in values and not same(values[key], about.default):
            out[key] = values[key]
    return out
